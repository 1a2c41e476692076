//! Power cuts in virtual machines: a robot that updates itself is switched off at random instants, and switched on
//! again until its system is up. Of the writes that were not flushed a random part is lost with the power.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reflash::boot::grubenv::names;
use xtask::demo::FLASH_TIMEOUT;
use xtask::disk;
use xtask::powercut::{Lost, lose_unflushed};
use xtask::test_system::Behaviour;
use xtask::vm::{BadSector, GuestFirmware, VirtualMachine};

use super::built::copy_sparse;
use super::fallback::Robot;

/// Cuts over one update, each followed by restarts until the system is up.
const CUTS: u32 = 20;
/// Restarts after which a robot counts as lost. Each of them may be cut again once.
const MAX_RESTARTS: u32 = 4;

/// The seed of a run without `REFLASH_SEED`. It is always the same, so that a failure comes back when the test is
/// repeated; what a cut hits still varies with the speed of the machine.
const USUAL_SEED: u64 = 1;

/// The seed for the instants of the cuts and for the writes that are lost.
fn seed() -> u64 {
    let Ok(text) = std::env::var("REFLASH_SEED") else { return USUAL_SEED };
    text.parse().unwrap_or_else(|error| panic!("REFLASH_SEED={text:?} is not a number: {error}"))
}

/// Digest of a whole partition.
fn digest(disk: &Path, partition: &str) -> blake3::Hash {
    let range = disk::partition_range(disk, partition).unwrap();
    let mut content = vec![0; usize::try_from(range.end - range.start).unwrap()];
    File::open(disk).unwrap().read_exact_at(&mut content, range.start).unwrap();
    blake3::hash(&content)
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_power_cuts_at_random_instants_leave_the_old_or_the_new_system_and_the_data() {
    let seed = seed();
    eprintln!("seed {seed} (REFLASH_SEED sets another one), {CUTS} cuts");
    let mut random = seed;
    let mut up_to = |end: Duration| {
        // Numerical Recipes' linear congruential generator: instants need no better.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        end.mul_f64((random >> 40) as f64 / (1_u64 << 24) as f64)
    };

    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let old = std::fs::read(robot.image()).unwrap();
    let mut vm = robot.start("cuts");
    vm.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    vm.cut_power();
    let user_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(user_file.path(), &old[..3 << 20]).unwrap();
    let data = disk::partition_range(&robot.disk, "data").unwrap().start;
    let (request, device) =
        (format!("write {} map", user_file.path().display()), format!("{}?offset={data}", robot.disk.display()));
    assert!(Command::new("debugfs").args(["-w", "-R", &request, &device]).status().unwrap().success());
    let before = digest(&robot.disk, "data");
    robot.publish("2", Behaviour::Good);
    disk::change_environment(&robot.disk, &[(names::NEXT_ENTRY, "recovery")]).unwrap();
    let start = robot.disk.with_extension("start");
    copy_sparse(&robot.disk, &start);
    let (before_cut, log) = (robot.disk.with_extension("before"), robot.disk.with_extension("log"));

    let began = Instant::now();
    let mut vm = robot.start("cuts");
    vm.wait_for("tiny system 2 is up", FLASH_TIMEOUT).unwrap();
    let uncut = began.elapsed();
    vm.cut_power();
    let new = std::fs::read(robot.image()).unwrap();

    let mut ended_on_new = 0;
    for cut in 1..=CUTS {
        copy_sparse(&start, &robot.disk);
        let mut cuts = Vec::new();
        for restart in 0..=MAX_RESTARTS {
            let mut machine = VirtualMachine::robot(&format!("cuts-{cut}-{restart}"), &robot.disk);
            // The first start is always cut, the second one every other time: a cut while it recovers from a cut.
            let after = up_to(uncut);
            if restart == 0 || restart == 1 && cut % 2 == 0 {
                copy_sparse(&robot.disk, &before_cut);
                File::create(&log).unwrap();
                machine.write_log = Some(log.clone());
                let mut vm = machine.start().unwrap();
                std::thread::sleep(after);
                vm.cut_power();
                std::fs::rename(&before_cut, &robot.disk).unwrap();
                let seed = seed.wrapping_add(u64::from(cut * (MAX_RESTARTS + 1) + restart));
                let Lost { in_flight, lost } = lose_unflushed(&robot.disk, &log, seed).unwrap();
                cuts.push(format!("{:.1} s ({lost} of {in_flight} writes lost)", after.as_secs_f32()));
                continue;
            }
            let mut vm = machine.start().unwrap();
            if vm.wait_for(" is up", FLASH_TIMEOUT).is_ok() {
                vm.cut_power();
                break;
            }
            assert!(restart < MAX_RESTARTS, "cut {cut} after {}: the system does not come up", cuts.join(", "));
        }
        let range = disk::partition_range(&robot.disk, "system").unwrap();
        let mut system = vec![0; new.len()];
        File::open(&robot.disk).unwrap().read_exact_at(&mut system, range.start).unwrap();
        assert!(system == new || system == old, "cut {cut}: neither the old nor the new system");
        ended_on_new += u32::from(system == new);
        assert_eq!(digest(&robot.disk, "data"), before, "cut {cut}: the data partition changed");
        let env = disk::read_environment(&robot.disk).unwrap();
        assert_eq!((env.get(names::BOOT_OK), env.get(names::RECOVERING)), (Some("1"), None), "cut {cut}");
        eprintln!("cut {cut} of {CUTS} after {}: up on {}", cuts.join(", "), if system == new { "2" } else { "1" });
    }
    eprintln!(
        "{CUTS} cuts over {:.0} s: {ended_on_new} ended on the new system, the others on the old",
        uncut.as_secs_f32()
    );
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_environment_whose_sector_died_is_written_elsewhere() {
    let mut robot = Robot::new(Behaviour::Good, GuestFirmware::Bios, 3);
    let mut vm = robot.start("bad-sector");
    vm.wait_for("tiny system 1 is up", FLASH_TIMEOUT).unwrap();
    vm.cut_power();
    let mut machine = VirtualMachine::robot("bad-sector-read", &robot.disk);
    let sector_of_environment = |disk| disk::file_offset(disk, "state", "/grubenv").unwrap() / 512;
    let dead = sector_of_environment(&robot.disk);
    machine.bad_sector = Some(BadSector { number: dead, fails_writes: false });
    let mut vm = machine.start().unwrap();
    for text in ["Recovery, reason: env-lost", "is intact: starting it", "tiny system 1 is up"] {
        vm.wait_for(text, FLASH_TIMEOUT).unwrap();
    }
    vm.cut_power();
    assert_ne!(sector_of_environment(&robot.disk), dead);
    let env = disk::read_environment(&robot.disk).unwrap();
    assert_eq!((env.get(names::TRIES), env.get(names::BOOT_OK)), (Some("3"), Some("1")));
}
