//! Disks of every kind become robots' disks, on loop devices and sparse files, and other tools agree.
#![allow(clippy::unwrap_used)] // clippy sees tests only in functions with #[test], not in their helpers.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use reflash::boot::env::BootEnv;
use reflash::chain::chain;
use reflash::disk::Which;
use reflash::disk::raw::WholeDisk;
use reflash::fetch::Directory;
use reflash::flash::target::{BlockTarget, DeviceTarget};
use reflash::jobs::factory_reset;
use reflash::jobs::floor::{Floor, FloorPlaces, LoweringKind};
use reflash::jobs::mend::{self, pieces::BootPieces};
use reflash::jobs::provision::bootstrap::names;
use reflash::jobs::provision::{
    self, DiskCandidate, DiskContent, ErasePermission, Firmware, InstallError, Preflight, Site,
};
use reflash::jobs::state::StatePartition;
use reflash::machine::media::MediaId;
use reflash::record::journal::Journal;
use reflash::release::layout::{Layout, Role, Scheme};
use reflash::release::manifest::object_path;
use reflash::sys::confine::confine;
use reflash::sys::ext4;
use reflash::sys::mount::{self, Mount};
use xtask::grub_emulator::{Emulator, GrubOutcome};
use xtask::initramfs::BuiltRecovery;
use xtask::paths::Paths;
use xtask::{bootstrap_files, disk, grub};

use crate::isolated::{isolated, run};
use crate::support::attached::{Attached, make_foreign, told};
use crate::support::{Fixture, sample_image};

const GIB: u64 = 1 << 30;

/// A release that disks can be provisioned from. Its recovery starts nowhere.
fn release(table: Scheme) -> Fixture {
    release_with(if table == Scheme::Gpt { "layout.toml" } else { "layout-mbr.toml" })
}

/// The same with this layout of `xtask/recipes`.
fn release_with(layout: &str) -> Fixture {
    let paths = Paths::of_checkout();
    let dir = tempfile::tempdir().unwrap();
    let recovery = BuiltRecovery { vmlinuz: dir.path().join("vmlinuz"), initramfs: dir.path().join("initramfs.img") };
    std::fs::write(&recovery.vmlinuz, sample_image(50, 3)).unwrap();
    std::fs::write(&recovery.initramfs, sample_image(40, 4)).unwrap();
    // Tests run beside each other.
    let grub = grub::build_in(&dir.path().join("grub"), true).unwrap();
    let layout = disk::read_layout(&paths.root.join("xtask/recipes").join(layout)).unwrap();
    let files = bootstrap_files::files(&paths, &grub, &recovery, &dir.path().join("kit")).unwrap();
    Fixture::with(sample_image(300, 7), |spec| (spec.files, spec.layout) = (files, Some(layout)))
}

/// A sparse file, attached as a disk with partitions where the kernel has to see it.
struct Disk {
    file: tempfile::NamedTempFile,
    block_bytes: u32,
}

impl Disk {
    fn new(size_bytes: u64, block_bytes: u32) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size_bytes).unwrap();
        Self { file, block_bytes }
    }

    fn attach(&self) -> Attached {
        Attached::new(self.file.path(), self.block_bytes)
    }

    fn candidate(&self) -> DiskCandidate {
        DiskCandidate::of_file(self.file.path(), self.block_bytes).unwrap()
    }

    fn written_blocks(&self) -> u64 {
        self.file.as_file().metadata().unwrap().blocks()
    }
}

/// The whole way, as the verb and PID 1 go it.
fn provision(
    fixture: &Fixture,
    candidate: DiskCandidate,
    firmware: Firmware,
    arm: Option<&str>,
    wrap: impl FnOnce(DeviceTarget) -> Box<dyn BlockTarget>,
) -> Result<Vec<reflash::release::layout::Placed>, InstallError> {
    provision_from(
        None,
        fixture,
        candidate,
        firmware,
        ErasePermission { confirmation: arm, unattended_medium: None },
        wrap,
    )
}

fn provision_from(
    medium: Option<MediaId>,
    fixture: &Fixture,
    candidate: DiskCandidate,
    firmware: Firmware,
    leave: ErasePermission<'_>,
    wrap: impl FnOnce(DeviceTarget) -> Box<dyn BlockTarget>,
) -> Result<Vec<reflash::release::layout::Placed>, InstallError> {
    let journal = Journal::silent();
    let source = Directory::from_url(&format!("file://{}", fixture.tree().display())).unwrap();
    let target = wrap(DeviceTarget::open(&candidate.disk.path).unwrap());
    let job = fixture.job(&source, &*target, None, &journal);
    let (release, preflight) = provision::prepare(&job, candidate, firmware)?;
    let armed = preflight.arm(leave)?;
    let site = Site {
        config: "[release]\nurls = ['http://x.example']\n".to_owned(),
        keys: vec![("a.pub".to_owned(), "key".to_owned())],
        asset: Some("left-arm".to_owned()),
        medium,
    };
    let mounts = tempfile::tempdir().unwrap();
    provision::install(armed, &job, release, &site, mounts.path()).map(|(_, provisioned)| provisioned.partitions)
}

fn as_it_is(target: DeviceTarget) -> Box<dyn BlockTarget> {
    Box::new(target)
}

/// What tools that know nothing of reflash say about it; the UUIDs on it.
fn check(disk: &Disk, layout: &Layout) -> Vec<String> {
    let device = disk.attach();
    device.assert_sound(layout);
    let mut identities = Vec::new();
    for (number, partition) in (1..).zip(&layout.partitions) {
        let (_, identity) = told("blkid", &["-p", "-o", "export", &device.node(number)]);
        let ours = |line: &&str| line.starts_with("PART_ENTRY_UUID=") || line.starts_with("UUID=");
        // FAT's serial number is that of the template; nothing is found by it.
        identities.extend(identity.lines().filter(ours).filter(|_| partition.role != Role::Esp).map(str::to_owned));
    }
    identities
}

/// Mounts a partition and says what is in it.
fn read_files(disk: &Disk, number: u32, paths: &[&str]) -> Vec<Option<Vec<u8>>> {
    let device = disk.attach();
    let at = tempfile::tempdir().unwrap();
    run("mount", &["-o", "ro", &device.node(number), at.path().to_str().unwrap()]);
    let found = paths.iter().map(|path| std::fs::read(at.path().join(path)).ok()).collect();
    run("umount", &[at.path().to_str().unwrap()]);
    found
}

/// The recovery partition of a new disk keeps the floor, which a person has set: it is raised in place.
fn raise_floor(disk: &Disk, number: u32, provisioned: u64) {
    let device = disk.attach();
    let at = tempfile::tempdir().unwrap();
    let node = device.node(number);
    run("mount", &["-o", "ro", &node, at.path().to_str().unwrap()]);
    let open = || {
        let recovery = Some((at.path().to_owned(), PathBuf::from(&node)));
        Floor::open(FloorPlaces { recovery, ..FloorPlaces::default() })
    };
    let record = open().record();
    assert_eq!((record.serial, record.lowerings[0].kind), (provisioned, LoweringKind::Provisioned));
    let change = open().raise(provisioned + 1);
    assert!(change.changed && change.failed.is_empty(), "{:?}", change.failed);
    assert_eq!(open().record().serial, provisioned + 1);
    run("umount", &[at.path().to_str().unwrap()]);
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn disks_of_every_kind_and_size_get_what_the_layout_says() {
    isolated("provision::disks_of_every_kind_and_size_get_what_the_layout_says", || {
        for (table, firmware, block_bytes, size_bytes) in [
            (Scheme::Gpt, Firmware::Bios, 512, 4 * GIB),
            (Scheme::Gpt, Firmware::Uefi, 512, 3 * 1024 * GIB),
            (Scheme::Gpt, Firmware::Uefi, 4096, 16 * GIB),
            (Scheme::Mbr, Firmware::Bios, 512, 4 * GIB),
        ] {
            let fixture = release(table);
            let layout = fixture.released.manifest.layout.clone().unwrap();
            let mut identities = Vec::new();
            for foreign in [false, true] {
                let disk = Disk::new(size_bytes, block_bytes);
                if foreign {
                    make_foreign(disk.file.path(), disk.block_bytes);
                    let error = provision(&fixture, disk.candidate(), firmware, None, as_it_is).unwrap_err();
                    assert!(chain(&error).contains("reflash.arm=yes"), "{}", chain(&error));
                }
                let arm = foreign.then_some("yes");
                let placed = provision(&fixture, disk.candidate(), firmware, arm, as_it_is).unwrap();
                let end = placed.last().unwrap();
                assert!(size_bytes - (end.offset_bytes + end.size_bytes) <= 2 << 20, "the rest is used");
                identities.extend(check(&disk, &layout));
                let number = |role| placed.iter().find(|place| place.partition.role == role).unwrap().number;
                let slots = ["slots/a/vmlinuz", "slots/b/vmlinuz", "slots/a/grub.cfg", "slots/b/grub.cfg"];
                let found = read_files(&disk, number(Role::Recovery), &slots);
                assert!(found[0].is_some() && found[0] == found[1] && found[2].is_some() && found[2] == found[3]);
                let recovery = ["slots/a/vmlinuz", "keys/a.pub", "reflash.toml", "asset", "templates/data.ext4.zst"];
                let found = read_files(&disk, number(Role::Recovery), &recovery);
                assert!(found.iter().all(Option::is_some), "{table:?}: {found:?}");
                assert_eq!(found[0].as_deref(), Some(&sample_image(50, 3)[..]));
                let state = read_files(&disk, number(Role::State), &["grubenv", "installed/manifest.json"]);
                let env = reflash::boot::grubenv::GrubEnv::parse(state[0].as_ref().unwrap()).unwrap();
                assert_eq!((env.get("reflash_tries"), env.get("reflash_recovering")), (Some("3"), None));
                check_own_copy(&disk, number(Role::State), table, &fixture);
                raise_floor(&disk, number(Role::Recovery), fixture.released.manifest.serial);
                let system = placed.iter().find(|place| place.partition.role == Role::System).unwrap();
                let mut content = vec![0; fixture.image.len()];
                disk.file.as_file().read_exact_at(&mut content, system.offset_bytes).unwrap();
                assert!(content == fixture.image);
                check_boot_chain(&disk, table, number(Role::Recovery));
            }
            let all = identities.len();
            identities.sort();
            identities.dedup();
            assert!(all >= 2 * 2 * 3 && identities.len() == all, "two machines share an identity: {identities:?}");
        }
    });
}

/// The robot has a copy of its boot code before it has ever recovered: what it loses of that is mended without a
/// network. <https://github.com/opencomputeproject/onie/issues/250>: a new machine that ends at a GRUB prompt.
fn check_own_copy(disk: &Disk, state: u32, table: Scheme, fixture: &Fixture) {
    let device = disk.attach();
    let at = tempfile::tempdir().unwrap();
    Mount::device(device.node(state), "ext4").read_only().data_only().on(at.path()).unwrap();
    let pieces = BootPieces::read(&StatePartition::new(at.path()));
    mount::unmount(at.path()).unwrap();
    let pieces = pieces.unwrap_or_else(|| panic!("a new {table:?} disk has no copy of its boot code"));
    let layout = reflash::disk::Disk { path: device.path().to_owned(), ..disk.candidate().disk }.layout();
    let (layout, whole) = (layout.unwrap().unwrap(), WholeDisk::open(device.path()).unwrap());
    let names = mend::boot_code::file_names_of(&whole, &layout);
    assert!(pieces.serial == fixture.released.manifest.serial && pieces.equals(&fixture.released.manifest, &names));
    let look = |pieces| mend::mend(&whole, Some(&layout), pieces, &Journal::silent());
    assert!(look(Some(&pieces)).is_whole(), "{:?}", look(Some(&pieces)));
    // Without it nothing is called whole that was not seen to be so.
    let unchecked = if table == Scheme::Gpt {
        &["boot code for BIOS", "EFI system partition"][..]
    } else {
        &["boot code for BIOS"]
    };
    let outcome = look(None);
    assert!(outcome.unchecked == unchecked && outcome.mended_all && !outcome.is_whole(), "{outcome:?}");
    if disk.block_bytes == 512 {
        let (first, lost) = (first_sector(disk), vec![0; 440]);
        disk.file.as_file().write_all_at(&lost, 0).unwrap();
        assert!(look(Some(&pieces)).is_whole());
        assert!(first_sector(disk) == first, "the boot code came back");
    }
}

fn first_sector(disk: &Disk) -> [u8; 512] {
    let mut first = [0; 512];
    disk.file.as_file().read_exact_at(&mut first, 0).unwrap();
    first
}

/// GRUB starts recovery from this disk, whose system is none that starts: by its table, and by the disk map once the
/// table is lost.
fn check_boot_chain(disk: &Disk, table: Scheme, recovery: u32) {
    let emulator = Emulator::new(true).unwrap();
    let root = format!("hd0,{}{recovery}", if table == Scheme::Gpt { "gpt" } else { "msdos" });
    let start = || match emulator.start(&[disk.file.path()], &root).unwrap() {
        GrubOutcome::Started(kernel) => kernel,
        GrubOutcome::Restart => panic!("nothing is started from a {table:?} disk"),
    };
    let started = start();
    let arguments = ["reflash.slot", "reflash.reason"].map(|name| started.argument(name).unwrap());
    assert_eq!(arguments, ["a", "system-unreadable"], "{started:?}");
    if table == Scheme::Gpt {
        let (file, block) = (disk.file.as_file(), u64::from(disk.block_bytes));
        let mut header = vec![0; disk.block_bytes as usize];
        file.read_exact_at(&mut header, block).unwrap();
        file.write_all_at(&vec![0; header.len()], block).unwrap();
        let by_map = start();
        assert_eq!(by_map.argument("reflash.reason"), Some("env-unwritable"), "{by_map:?}");
        assert_eq!(by_map.argument("reflash.recovery"), started.argument("reflash.recovery"));
        assert_eq!((by_map.kernel, by_map.initramfs), (started.kernel, started.initramfs));
        file.write_all_at(&header, block).unwrap();
    }
}

/// PID 1's worker has fewer rights than root: enough to make a robot of a disk, and to make its data anew.
/// <https://github.com/containers/bubblewrap/issues/523>: a confined program that cannot attach a loop device.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_disk_with_two_systems_has_the_second_one_empty_and_known_to_grub() {
    isolated("provision::a_disk_with_two_systems_has_the_second_one_empty_and_known_to_grub", || {
        let fixture = release_with("layout-two-systems.toml");
        // To an agent of before, the release has the layout with one system.
        let known = fixture.released.manifest.layout.clone().unwrap();
        assert!(known.partitions.iter().all(|partition| partition.role != Role::System2));
        assert_eq!(known, release(Scheme::Gpt).released.manifest.layout.unwrap());
        for (firmware, block_bytes) in [(Firmware::Bios, 512), (Firmware::Uefi, 4096)] {
            let disk = Disk::new(4 * GIB, block_bytes);
            // An earlier life has a system there, which nothing may start.
            disk.file.as_file().write_all_at(&[0xdb; 1 << 20], 1154 << 20).unwrap();
            let placed = provision(&fixture, disk.candidate(), firmware, Some("yes"), as_it_is).unwrap();
            let numbers: Vec<_> = placed.iter().map(|place| (place.number, place.partition.role)).collect();
            assert_eq!(numbers[4..], [(5, Role::System), (7, Role::System2), (6, Role::Data)]);
            let (second, data) = (&placed[5], &placed[6]);
            assert_eq!(
                second.offset_bytes + second.size_bytes,
                data.offset_bytes,
                "data can grow at the end of the disk"
            );
            let mut edge = vec![1; 1 << 20];
            disk.file.as_file().read_exact_at(&mut edge, second.offset_bytes).unwrap();
            assert!(edge.iter().all(|byte| *byte == 0));
            let layout: Layout =
                disk::read_layout(&Paths::of_checkout().root.join("xtask/recipes/layout-two-systems.toml")).unwrap();
            disk.attach().assert_sound(&layout);
            if block_bytes == 512 {
                let mut map = [0; 512];
                disk.file.as_file().read_exact_at(&mut map, 2032 * 512).unwrap();
                let map = String::from_utf8_lossy(&map).into_owned();
                let range = format!("\nmap_system2={}+{}\n", second.offset_bytes / 512, second.size_bytes / 512);
                assert!(map.contains(&range) && map.contains("\nmap_system2_uuid="), "{map}");
            }
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_rights_of_the_worker_are_enough_to_provision_a_disk_and_to_reset_it() {
    isolated("provision::the_rights_of_the_worker_are_enough_to_provision_a_disk_and_to_reset_it", || {
        let (fixture, disk) = (release(Scheme::Gpt), Disk::new(4 * GIB, 512));
        let device = disk.attach();
        let mut superior = Command::new("sleep").arg("60").spawn().unwrap();
        let memory = format!("/proc/{}/mem", superior.id());
        assert!(File::open(&memory).is_ok());
        assert_eq!(confine(), [""; 0]);
        let candidate = provision::survey(Which::WithLoop).unwrap();
        let candidate = candidate.into_iter().find(|candidate| candidate.disk.path == device.path()).unwrap();
        let placed = provision(&fixture, candidate, Firmware::Uefi, None, as_it_is).unwrap();
        // Only a kernel that is built without partition tables needs that.
        run("partx", &["--update", device.path().to_str().unwrap()]);
        let node = |role| device.node(placed.iter().find(|place| place.partition.role == role).unwrap().number);
        let at = tempfile::tempdir().unwrap();
        let identity_of_data = || told("blkid", &["-p", "-s", "UUID", "-o", "value", &node(Role::Data)]).1;
        let (old, data) = (identity_of_data(), node(Role::Data));
        Mount::device(node(Role::State), "ext4").data_only().on(at.path()).unwrap();
        let mut words = ["reset", "delete"].iter().map(|word| (*word).to_owned());
        let confirmed = factory_reset::ask(|_| {}, || words.next()).unwrap();
        let template = fixture.released.manifest.file(names::DATA).unwrap().object.blake3;
        let template = std::fs::read(fixture.tree().join(object_path(&template))).unwrap();
        let target = DeviceTarget::open(data.as_ref()).unwrap();
        factory_reset::run(confirmed, &BootEnv::new(&at.path().join("grubenv")), &target, || Ok(&template[..]))
            .unwrap();
        drop(target);
        mount::unmount(at.path()).unwrap();
        Mount::device(&data, "ext4").data_only().on(at.path()).unwrap();
        ext4::new_uuid(at.path()).unwrap();
        mount::unmount(at.path()).unwrap();
        assert!(identity_of_data() != old && !old.is_empty());
        // They are not enough to reach into a process that has more, as PID 1 has.
        assert!(File::open(&memory).is_err());
        superior.kill().unwrap();
        superior.wait().unwrap();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_must_not_be_provisioned_is_refused_before_the_first_write() {
    isolated("provision::what_must_not_be_provisioned_is_refused_before_the_first_write", || {
        let gpt = release(Scheme::Gpt);
        let mbr = release(Scheme::Mbr);
        for (fixture, size_bytes, block_bytes, firmware, said) in [
            (&gpt, GIB, 512, Firmware::Bios, "the layout needs 1156 MiB"),
            (&gpt, 4 * GIB, 4096, Firmware::Bios, "blocks of 4096 bytes"),
            (&mbr, 3 * 1024 * GIB, 512, Firmware::Bios, "2 TiB"),
            (&mbr, 4 * GIB, 512, Firmware::Uefi, "with a BIOS"),
        ] {
            let disk = Disk::new(size_bytes, block_bytes);
            let error = provision(fixture, disk.candidate(), firmware, Some("yes"), as_it_is).unwrap_err();
            assert!(chain(&error).contains(said), "{}", chain(&error));
            assert_eq!(disk.written_blocks(), 0);
        }
        // A word that names another disk.
        let disk = Disk::new(4 * GIB, 512);
        let error = provision(&gpt, disk.candidate(), Firmware::Bios, Some("S123"), as_it_is).unwrap_err();
        assert!(chain(&error).contains("S123"), "{}", chain(&error));
        assert_eq!(disk.written_blocks(), 0);
        // A release for robots that have their disk.
        let plain = Fixture::new();
        let error = provision(&plain, disk.candidate(), Firmware::Bios, None, as_it_is).unwrap_err();
        assert!(chain(&error).contains("no partition layout"), "{}", chain(&error));
    });
}

/// A medium that was left in its machine is started by a firmware that, this time, did not find the disk.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_medium_does_not_erase_by_itself_what_it_made() {
    isolated("provision::a_medium_does_not_erase_by_itself_what_it_made", || {
        for table in [Scheme::Gpt, Scheme::Mbr] {
            let fixture = release(table);
            let (medium, other) = (MediaId::new([1; 16]), MediaId::new([2; 16]));
            let disk = Disk::new(4 * GIB, 512);
            let from = |medium: MediaId, again: bool| {
                let leave =
                    ErasePermission { confirmation: Some("yes"), unattended_medium: Some(medium).filter(|_| !again) };
                provision_from(Some(medium), &fixture, disk.candidate(), Firmware::Bios, leave, as_it_is)
            };
            from(medium, false).unwrap();
            check(&disk, &fixture.released.manifest.layout.clone().unwrap());
            let refused = || {
                let written = || disk.file.path().metadata().unwrap().modified().unwrap();
                let before = written();
                let told = chain(&from(medium, false).unwrap_err());
                assert!(told.contains("was already provisioned from this medium"), "{told}");
                assert_eq!(written(), before);
            };
            refused();
            from(medium, true).unwrap();
            refused();
            // Its table is gone, and with it what GRUB would find it by.
            let zeros = vec![0; 40 * 512];
            disk.file.as_file().write_all_at(&zeros, 0).unwrap();
            disk.file.as_file().write_all_at(&zeros, 4 * GIB - zeros.len() as u64).unwrap();
            refused();
            from(other, false).unwrap();
            // It belongs to another system now.
            make_foreign(disk.file.path(), disk.block_bytes);
            from(other, false).unwrap();
        }
    });
}

/// A disk that answers no write from a given one on, as when its power was cut there.
struct CutTarget {
    inner: DeviceTarget,
    writes_left: AtomicU64,
}

impl CutTarget {
    fn count(&self) -> io::Result<()> {
        let left = self.writes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::other("the power was cut"))
    }
}

impl BlockTarget for CutTarget {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, content: &[u8]) -> io::Result<()> {
        self.count()?;
        self.inner.write_at(offset, content)
    }
    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        self.count()?;
        self.inner.zero(range)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_cut_leaves_the_old_disk_or_an_unclaimed_one_or_the_new_one() {
    isolated("provision::a_cut_leaves_the_old_disk_or_an_unclaimed_one_or_the_new_one", || {
        let fixture = release(Scheme::Gpt);
        let layout = fixture.released.manifest.layout.clone().unwrap();
        let mut finished = false;
        for writes in (0..6).chain((6..400).step_by(23)).chain([u64::MAX]) {
            let disk = Disk::new(4 * GIB, 512);
            make_foreign(disk.file.path(), disk.block_bytes);
            let cut = |inner| Box::new(CutTarget { inner, writes_left: writes.into() }) as Box<dyn BlockTarget>;
            let result = provision(&fixture, disk.candidate(), Firmware::Bios, Some("yes"), cut);
            let after = disk.candidate();
            finished = result.is_ok();
            match (&result, &after.content) {
                (Ok(_), DiskContent::Table(table)) => assert_eq!(table.partitions.len(), layout.partitions.len()),
                // The old owner's, whole, or an unclaimed one, which needs no arming.
                (Err(_), DiskContent::Table(table)) => assert!(writes < 2 && table.partitions.len() == 2, "{writes}"),
                (Err(_), DiskContent::Interrupted) => {
                    let mut first = [0; 512];
                    disk.file.as_file().read_exact_at(&mut first, 0).unwrap();
                    assert!(first.iter().all(|byte| *byte == 0), "{writes}");
                    provision(&fixture, after, Firmware::Bios, None, as_it_is).unwrap();
                    check(&disk, &layout);
                }
                (result, content) => panic!("after {writes} writes: {result:?}, {content:?}"),
            }
        }
        assert!(finished);
    });
}

#[test]
fn the_plan_tells_what_will_be_destroyed_and_what_comes() {
    let disk = Disk::new(4 * GIB, 512);
    let layout = disk::read_layout(&Paths::of_checkout().root.join("xtask/recipes/layout.toml")).unwrap();
    let plan = Preflight::new(disk.candidate(), &layout, Firmware::Bios).unwrap().to_string();
    for part in ["4.3 GB", "Nothing of value will be destroyed", "GPT", "state", "64 MiB", "data"] {
        assert!(plan.contains(part), "{plan}");
    }
    file_with(&disk, b"precious");
    let candidate = disk.candidate();
    assert_eq!(candidate.content, DiskContent::Foreign("no partition table, but it is not blank".to_owned()));
    let plan = Preflight::new(candidate, &layout, Firmware::Bios).unwrap();
    assert!(plan.to_string().contains("ALL OF THIS WILL BE DESTROYED"), "{plan}");
    assert!(plan.arm(ErasePermission::default()).is_err());
}

fn file_with(disk: &Disk, content: &[u8]) {
    File::options().write(true).open(Path::new(disk.file.path())).unwrap().write_all_at(content, 5000).unwrap();
}
