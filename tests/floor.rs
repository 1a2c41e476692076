//! The floor that does not fall, and the releases that are refused: their places on a disk, and what a recovery takes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::collection;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use reflash::boot::efivars::EfiVars;
use reflash::boot::grubenv::GrubEnv;
use reflash::boot::slots::Slot;
use reflash::fetch::{Directory, Mirrors, RetryPolicy, Source};
use reflash::jobs::floor::{self, Floor, FloorPlaces, FloorRecord, LoweringKind, ReleaseId};
use reflash::jobs::recovery::{self, RecoveryError, RecoveryPartition, RecoveryReport, SlotStorage};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::manifest::ManifestError;
use reflash::sys::mount::{self, Mount};

use crate::isolated::{isolated, run};
use crate::properties::config;
use crate::support::attached::{Attached, told};
use crate::support::clock::FakeClock;
use crate::support::{Fixture, MemoryTarget, sample_image};

/// Distance of the two copies in the file.
const COPY: u64 = 4096;

/// Puts something in the place of the file.
type Make = fn(&Path);

fn id(serial: u64) -> ReleaseId {
    ReleaseId::new(serial, b"manifest")
}

fn in_state(root: &Path) -> Floor {
    Floor::open(FloorPlaces { state: Some(root.to_owned()), ..FloorPlaces::default() })
}

/// Changes the floor, which must be kept everywhere.
fn kept(change: floor::FloorChange) -> bool {
    assert!(change.failed.is_empty(), "{:?}", change.failed);
    change.changed
}

/// Spoils one of the copies in a file.
fn spoil(file: &Path, at: u64) {
    File::options().write(true).open(file).unwrap().write_all_at(&[0x5a; COPY as usize], at).unwrap();
}

#[test]
fn a_cut_write_leaves_the_floor_before_or_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(floor::FILE);
    assert!(kept(in_state(dir.path()).raise(10)));
    for serial in 11..30 {
        let before = fs::read(&file).unwrap();
        assert!(kept(in_state(dir.path()).raise(serial)));
        let after = fs::read(&file).unwrap();
        let differs: Vec<usize> =
            (0..2).filter(|copy| before[copy * 4096..][..4096] != after[copy * 4096..][..4096]).collect();
        assert_eq!(differs.len(), 1, "only one of the copies is written");
        // Every state of a sector that is being written, as a drive may leave it.
        for cut in [0, 1, 16, 100, 256, 479, 480, 500, 511, 512, 4096] {
            let mut torn = before.clone();
            torn[differs[0] * 4096..][..cut].copy_from_slice(&after[differs[0] * 4096..][..cut]);
            fs::write(&file, &torn).unwrap();
            let floor = in_state(dir.path());
            // One in 256 digests ends as the one before it did: nothing is missing then.
            let is_there = torn[differs[0] * 4096..][..512] == after[differs[0] * 4096..][..512];
            assert!(is_there || cut < 512);
            assert_eq!(floor.record().serial, if is_there { serial } else { serial - 1 }, "cut after {cut} bytes");
            assert!(!kept(floor.mend()));
            let both = fs::read(&file).unwrap();
            let whole = |at: usize| FloorRecord::decode(&both[at..]).is_some();
            assert!(whole(0) && whole(4096), "what was torn is whole again");
        }
        fs::write(&file, &after).unwrap();
    }
}

#[test]
fn whatever_lies_in_its_place_the_file_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(floor::FILE);
    let kinds: [(&str, Make); 6] = [
        ("nothing", |_| {}),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a link", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
        ("an empty file", |path| drop(File::create(path).unwrap())),
        ("a hole", |path| File::create(path).unwrap().set_len(1 << 40).unwrap()),
        ("noise", |path| fs::write(path, [0xa5; 8192]).unwrap()),
    ];
    for (kind, make) in kinds {
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        make(&path);
        assert_eq!(in_state(dir.path()).record().serial, 0, "{kind}");
        assert!(kept(in_state(dir.path()).raise(7)), "{kind}");
        assert_eq!(in_state(dir.path()).record().serial, 7, "{kind}");
    }
    // Where nothing was ever good and nothing is refused, nothing is written.
    let empty = tempfile::tempdir().unwrap();
    assert!(!kept(in_state(empty.path()).mend()) && fs::read_dir(empty.path()).unwrap().next().is_none());
}

#[test]
fn the_firmware_remembers_the_floor_of_this_disk_and_of_no_other() {
    let (state, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let firmware = tempfile::tempdir().unwrap();
    let variable = || {
        let found = fs::read_dir(firmware.path()).unwrap().next()?.unwrap().path();
        assert!(found.file_name().unwrap().to_str().unwrap().starts_with("ReflashFloor-"));
        Some(fs::read(found).unwrap())
    };
    let open = |state: &Path| {
        let firmware = Some(EfiVars::directory(firmware.path()));
        Floor::open(FloorPlaces { state: Some(state.to_owned()), recovery: None, firmware })
    };
    assert!(kept(open(state.path()).raise(7)));
    let written = variable().unwrap();
    // Attributes: kept, at boot, at run time.
    assert_eq!((written.len(), &written[..4]), (4 + 512, &[7, 0, 0, 0][..]));
    // Nothing is written but when the floor rises.
    assert!(kept(open(state.path()).refuse(id(9))) && !kept(open(state.path()).raise(7)));
    assert!(!kept(open(state.path()).mend()) && variable().unwrap() == written);
    // Every copy on the disk is lost.
    fs::remove_file(state.path().join(floor::FILE)).unwrap();
    assert_eq!(open(state.path()).record().serial, 7);
    assert!(!kept(open(state.path()).mend()));
    assert_eq!(in_state(state.path()).record().serial, 7, "written again");
    // Another disk in this machine, as one that is provisioned anew.
    fs::write(other.path().join(floor::FILE), floor::file_of_new_disk(id(3), Some(&open(state.path())))).unwrap();
    let floor = open(other.path()).record();
    assert_eq!(
        (floor.serial, floor.lowerings[0].floor_before, floor.lowerings[0].kind),
        (3, 7, LoweringKind::Provisioned)
    );
    assert!(kept(open(other.path()).raise(4)) && variable().unwrap() != written);
    assert_eq!(in_state(other.path()).record().serial, 4);
    // A variable that cannot be written costs a warning.
    let broken = Floor::open(FloorPlaces {
        state: Some(other.path().to_owned()),
        recovery: None,
        firmware: Some(EfiVars::directory(Path::new("/nowhere"))),
    });
    let change = broken.raise(5);
    assert!(change.changed && change.failed.len() == 1 && in_state(other.path()).record().serial == 5);
}

/// A robot's recovery partition, as provisioning makes it, on a loop device.
struct Recovery {
    image: PathBuf,
    device: Attached,
    root: PathBuf,
    state: PathBuf,
    _dir: tempfile::TempDir,
}

impl Recovery {
    /// With what `fill` puts into its tree, on a device with logical blocks of `block_bytes`.
    fn new(block_bytes: u32, fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, tree) = (dir.path().join("recovery.img"), dir.path().join("tree"));
        let (root, state) = (dir.path().join("recovery"), dir.path().join("state"));
        fs::create_dir_all(tree.join("slots/a")).unwrap();
        fs::create_dir_all(&state).unwrap();
        fs::write(tree.join("slots/a/vmlinuz"), vec![0x77; 3 << 20]).unwrap();
        fill(&tree);
        let (image_path, tree) = (image.to_str().unwrap(), tree.to_str().unwrap());
        let features = "^inline_data,metadata_csum_seed";
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-d", tree, image_path, "32m"]);
        let device = Attached::new(&image, block_bytes);
        let this = Self { image, device, root, state, _dir: dir };
        this.mount();
        this
    }

    fn mount(&self) {
        Mount::device(self.device.path(), "ext4").read_only().data_only().on(&self.root).unwrap();
    }

    fn places(&self) -> FloorPlaces {
        let recovery = Some((self.root.clone(), self.device.path().to_owned()));
        FloorPlaces { state: Some(self.state.clone()), recovery, firmware: None }
    }

    fn floor(&self) -> Floor {
        Floor::open(self.places())
    }

    /// What the recovery partition has alone.
    fn alone(&self) -> Floor {
        Floor::open(FloorPlaces { state: None, ..self.places() })
    }

    fn assert_sound(&self) {
        let (sound, text) = told("e2fsck", &["-f", "-n", self.device.path().to_str().unwrap()]);
        assert!(sound, "{text}");
    }

    /// Mounts anew, so that nothing comes from a cache, and reads the file as GRUB or another program would.
    fn content(&self) -> Vec<u8> {
        mount::unmount(&self.root).unwrap();
        self.mount();
        fs::read(self.root.join(floor::FILE)).unwrap()
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.root);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_blocks_of_a_recovery_partition_are_overwritten_while_it_stays_read_only() {
    isolated("floor::the_blocks_of_a_recovery_partition_are_overwritten_while_it_stays_read_only", || {
        let recovery = Recovery::new(512, |tree| fs::write(tree.join(floor::FILE), floor::new_file()).unwrap());
        // Its pages are in the cache by now.
        assert_eq!(fs::read(recovery.root.join(floor::FILE)).unwrap(), floor::new_file());
        let before = fs::read(&recovery.image).unwrap();
        for serial in 1..6 {
            assert!(kept(recovery.floor().raise(serial)));
            assert_eq!(recovery.alone().record().serial, serial);
            // The state partition is remade.
            fs::remove_file(recovery.state.join(floor::FILE)).unwrap();
            assert_eq!(recovery.floor().record().serial, serial);
            assert!(!kept(recovery.floor().mend()));
            assert_eq!(in_state(&recovery.state).record().serial, serial);
        }
        let content = recovery.content();
        assert!(content.starts_with(b"RFLASHFL") && content != floor::new_file());
        recovery.assert_sound();
        // Nothing else has changed: not a block, not a time of an inode.
        let after = fs::read(&recovery.image).unwrap();
        let differs: Vec<usize> =
            (0..before.len() / 4096).filter(|at| before[at * 4096..][..4096] != after[at * 4096..][..4096]).collect();
        assert!(differs.len() == 2 && differs[1] == differs[0] + 1, "{differs:?}");

        // One copy is lost, then the other: each is written again.
        let place = differs[0] as u64 * COPY;
        for at in [place, place + COPY] {
            mount::unmount(&recovery.root).unwrap();
            spoil(recovery.device.path(), at);
            recovery.mount();
            assert!(recovery.alone().record().serial >= 4);
            assert!(!kept(recovery.floor().mend()));
            let content = recovery.content();
            assert!(content[..8] == *b"RFLASHFL" && content[4096..4104] == *b"RFLASHFL");
            assert_eq!(recovery.alone().record().serial, 5);
        }
        // Both: the state partition has it.
        mount::unmount(&recovery.root).unwrap();
        spoil(recovery.device.path(), place);
        spoil(recovery.device.path(), place + COPY);
        recovery.mount();
        assert_eq!((recovery.alone().record().serial, recovery.floor().record().serial), (0, 5));
        assert!(!kept(recovery.floor().mend()));
        assert_eq!(recovery.alone().record().serial, 5);
        recovery.assert_sound();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_rights_of_the_worker_are_enough_to_keep_the_floor() {
    isolated("floor::the_rights_of_the_worker_are_enough_to_keep_the_floor", || {
        let recovery = Recovery::new(512, |tree| fs::write(tree.join(floor::FILE), floor::new_file()).unwrap());
        // A variable that efivarfs protects.
        let dir = tempfile::tempdir().unwrap();
        let places = || FloorPlaces { firmware: Some(EfiVars::directory(dir.path())), ..recovery.places() };
        assert!(kept(Floor::open(places()).raise(3)));
        let variable = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        run("chattr", &["+i", variable.to_str().unwrap()]);
        assert!(fs::write(&variable, b"").is_err());
        reflash::sys::confine::confine();
        assert!(kept(Floor::open(places()).raise(4)));
        assert_eq!(recovery.alone().record().serial, 4);
        assert_eq!(fs::read(&variable).unwrap()[4 + 24], 4);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_robot_of_before_gets_the_file_with_its_next_recovery() {
    isolated("floor::a_robot_of_before_gets_the_file_with_its_next_recovery", || {
        let recovery = Recovery::new(4096, |_| {});
        // It is no fault that there is none.
        assert!(kept(recovery.floor().raise(3)));
        assert_eq!(recovery.alone().record().serial, 0);
        let partition = RecoveryPartition::mounted(recovery.device.path(), &recovery.root);
        partition.clear(Slot::B).unwrap();
        partition.write(Slot::B, "vmlinuz", 0, b"kernel").unwrap();
        partition.sync(Slot::B, "vmlinuz").unwrap();
        partition.settle().unwrap();
        assert!(kept(recovery.floor().raise(4)));
        assert_eq!(recovery.alone().record().serial, 4);
        // A second renewal leaves it alone, and its blocks too.
        partition.clear(Slot::B).unwrap();
        assert_eq!(recovery.alone().record().serial, 4, "while it is mounted writable");
        partition.settle().unwrap();
        assert_eq!(recovery.alone().record().serial, 4);
        assert_eq!(recovery.content().len(), 8192);
        recovery.assert_sound();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_cannot_be_overwritten_in_place_is_left_as_it_is() {
    isolated("floor::what_cannot_be_overwritten_in_place_is_left_as_it_is", || {
        let kinds: [(&str, Make); 7] = [
            ("a hole", |path| File::create(path).unwrap().set_len(8192).unwrap()),
            ("room that was never written", |path| {
                run("fallocate", &["-l", "8192", path.to_str().unwrap()]);
            }),
            ("a file of another size", |path| fs::write(path, [1; 4096]).unwrap()),
            ("a larger file", |path| fs::write(path, [1; 12288]).unwrap()),
            ("half a hole", |path| {
                fs::write(path, [1; 4096]).unwrap();
                File::options().write(true).open(path).unwrap().set_len(8192).unwrap();
            }),
            ("a file with another name", |path| {
                fs::write(path, floor::new_file()).unwrap();
                fs::hard_link(path, path.with_extension("other")).unwrap();
            }),
            ("a directory", |path| fs::create_dir(path).unwrap()),
        ];
        for (kind, make) in kinds {
            let recovery = Recovery::new(512, |_| {});
            mount::remount_writable(&recovery.root).unwrap();
            make(&recovery.root.join(floor::FILE));
            mount::unmount(&recovery.root).unwrap();
            recovery.mount();
            let before = fs::read(&recovery.image).unwrap();
            let change = recovery.floor().raise(5);
            assert!(change.changed && change.failed.len() == 1, "{kind}: {:?}", change.failed);
            assert_eq!((recovery.floor().record().serial, recovery.alone().record().serial), (5, 0), "{kind}");
            assert!(fs::read(&recovery.image).unwrap() == before, "{kind}: something was written");
            // The next time the partition is mounted writable, a fit file takes its place.
            mount::remount_writable(&recovery.root).unwrap();
            floor::prepare_recovery(&recovery.root).unwrap();
            mount::unmount(&recovery.root).unwrap();
            recovery.mount();
            assert!(!kept(recovery.floor().mend()), "{kind}");
            assert_eq!(recovery.alone().record().serial, 5, "{kind}");
        }
    });
}

/// A release with this serial on a medium of its own.
fn medium(fixture: &Fixture) -> (tempfile::TempDir, Box<dyn Source>) {
    let dir = tempfile::tempdir().unwrap();
    run("cp", &["-r", &format!("{}/.", fixture.tree().display()), dir.path().to_str().unwrap()]);
    let source = Box::new(Directory::new(dir.path()));
    (dir, source)
}

fn recover_with(
    fixture: &Fixture,
    source: &dyn Source,
    target: &MemoryTarget,
    state: &StatePartition,
    floor: &Floor,
    by_person: bool,
) -> Result<RecoveryReport, RecoveryError> {
    let journal = Journal::silent();
    let mut job = fixture.job(source, target, Some(state), &journal);
    job.policy.allow_older = by_person;
    job.resources.floor = Some(floor);
    recovery::run(&job, job.read_record().as_ref())
}

fn mirrors(sources: Vec<Box<dyn Source>>) -> Mirrors {
    Mirrors::with_clock(sources, RetryPolicy::Rounds(2), FakeClock::new().shared())
}

#[test]
fn a_recovery_takes_nothing_below_the_floor_but_what_is_installed_or_allowed() {
    let mut fixture = Fixture::with(sample_image(300, 1), |spec| spec.serial = Some(5));
    let (_five_dir, five) = medium(&fixture);
    let five_image = fixture.image.clone();
    fixture.publish(sample_image(300, 2), |spec| spec.serial = Some(7));
    let (_seven_dir, seven) = medium(&fixture);
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    let recover = |source: &dyn Source, by_person: bool| {
        let floor = in_state(dir.path());
        recover_with(&fixture, source, &target, &state, &floor, by_person)
    };
    let below = |error: RecoveryError| {
        matches!(error, RecoveryError::Manifest(ManifestError::BelowFloor { offered: 5, floor: 7, .. }))
    };
    let (five, seven) = (mirrors(vec![five]), mirrors(vec![seven]));

    assert_eq!(recover(&five, false).unwrap().serial, 5, "a new robot has no floor");
    assert_eq!(recover(&seven, false).unwrap().serial, 7);
    // It was never good, so that only the record keeps the robot from going back.
    assert!(matches!(recover(&five, false), Err(RecoveryError::Manifest(ManifestError::Older { .. }))));
    assert!(kept(in_state(dir.path()).raise(7)));
    // The record is lost, as with a state partition that was remade, or a key that was removed.
    fs::remove_dir_all(dir.path().join("installed")).unwrap();
    assert!(below(recover(&five, false).unwrap_err()));
    assert!(target.content() == fixture.image);
    // A person goes back: the floor stays, and says so.
    assert_eq!(recover(&five, true).unwrap().serial, 5);
    assert!(target.content() == five_image);
    let record = in_state(dir.path()).record();
    assert_eq!((record.serial, record.allowed.unwrap().serial, record.lowerings[0].floor_before), (7, 5, 7));
    assert_eq!(recover(&five, false).unwrap().serial, 5, "what a person put there is repaired");
    fs::remove_dir_all(dir.path().join("installed")).unwrap();
    assert_eq!(recover(&five, false).unwrap().serial, 5, "without its record too");
    assert!(!kept(in_state(dir.path()).raise(5)), "and its good boots do not lower the floor");
    assert_eq!(in_state(dir.path()).record().serial, 7);
    assert_eq!(recover(&seven, false).unwrap().serial, 7);
    // Once another one is good, it is not allowed any more.
    let floor = in_state(dir.path());
    assert!(kept(floor.raise(8)) && floor.record().allowed.is_none());
}

#[test]
fn a_refused_release_is_passed_over_until_a_person_wants_it() {
    let mut fixture = Fixture::with(sample_image(300, 1), |spec| spec.serial = Some(5));
    let (_five_dir, five) = medium(&fixture);
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    let floor = in_state(dir.path());
    let refused_id = ReleaseId::new(6, &{
        fixture.publish(sample_image(300, 2), |spec| spec.serial = Some(6));
        fs::read(fixture.tree().join("stable/manifest.json")).unwrap()
    });
    let (_six_dir, six) = medium(&fixture);
    let recover =
        |source: &dyn Source, by_person: bool| recover_with(&fixture, source, &target, &state, &floor, by_person);
    assert!(kept(floor.refuse(refused_id)) && floor.refuses(&refused_id));
    let only_six = mirrors(vec![six]);
    let refused = |error| matches!(error, RecoveryError::Manifest(ManifestError::Refused { offered: 6, .. }));
    assert!(refused(recover(&only_six, false).unwrap_err()));
    // The older one of another mirror is taken, although the refused one has the highest serial of all.
    let (_six_dir, six) = medium(&fixture);
    let both = mirrors(vec![six, five]);
    assert_eq!(recover(&both, false).unwrap().serial, 5);
    // It is the same after the state partition was written anew from what is kept elsewhere.
    assert!(in_state(dir.path()).refuses(&refused_id));
    // By the request of a person, and by a person at the machine.
    assert!(kept(floor.lift(6)));
    assert_eq!(recover(&only_six, false).unwrap().serial, 6);
    assert!(kept(floor.refuse(refused_id)));
    assert_eq!(recover(&only_six, true).unwrap().serial, 6);
    assert!(!floor.refuses(&refused_id) && !in_state(dir.path()).refuses(&refused_id));
}

#[test]
fn images_of_before_raise_the_floor_by_what_they_leave() {
    let env = |pairs: &[(&str, &str)]| {
        let mut env = GrubEnv::default();
        pairs.iter().for_each(|(name, value)| env.set(name, value).unwrap());
        env
    };
    assert!(!floor::was_good(&env(&[("reflash_boot_ok", "0")]), 7));
    assert!(floor::was_good(&env(&[("reflash_boot_ok", "1")]), 7));
    assert!(floor::was_good(&env(&[("reflash_boot_ok", "0"), ("reflash_was_good", "1")]), 7));
    assert!(floor::was_good(&env(&[("reflash_good", "7")]), 7) && !floor::was_good(&env(&[("reflash_good", "7")]), 8));
    // The record is that of the next release already, and the variables are not.
    assert!(!floor::was_good(&env(&[("reflash_boot_ok", "1"), ("reflash_recovering", "1")]), 8));
}

/// Something that happens to the floor, or to a place where it is kept.
#[derive(Debug, Clone)]
enum Event {
    Raise(u64),
    Refuse(u64),
    Lift(u64),
    Allow(u64),
    Mend,
    /// A place is lost: the state partition is made anew, or the firmware forgets its variables.
    Lose(usize),
    /// One copy of a place is noise.
    Spoil(usize, u64),
    /// Power is cut after so many bytes of the write that follows, in this place, before all later places.
    Cut(usize, usize, u64),
}

fn event() -> impl Strategy<Value = Event> {
    let serial = 1_u64..30;
    prop_oneof![
        4 => serial.clone().prop_map(Event::Raise),
        2 => serial.clone().prop_map(Event::Refuse),
        1 => serial.clone().prop_map(Event::Lift),
        2 => serial.clone().prop_map(Event::Allow),
        1 => Just(Event::Mend),
        1 => (0_usize..2).prop_map(Event::Lose),
        1 => (0_usize..2, 0_u64..2).prop_map(|(place, copy)| Event::Spoil(place, copy)),
        2 => (0_usize..2, 0_usize..600, serial).prop_map(|(place, cut, serial)| Event::Cut(place, cut, serial)),
    ]
}

#[test]
fn whatever_happens_to_one_place_at_a_time_the_floor_does_not_fall() {
    proptest!(ProptestConfig { cases: 60, ..config() }, |(events in collection::vec(event(), 1..40))| {
        let dir = tempfile::tempdir().unwrap();
        let places = [dir.path().join("state"), dir.path().join("firmware")];
        places.iter().for_each(|place| fs::create_dir(place).unwrap());
        let files = || [
            Some(places[0].join(floor::FILE)),
            fs::read_dir(&places[1]).unwrap().next().map(|entry| entry.unwrap().path()),
        ];
        let open = || Floor::open(FloorPlaces {
            state: Some(places[0].clone()),
            recovery: None,
            firmware: Some(EfiVars::directory(&places[1])),
        });
        let mut highest = 0;
        for event in events {
            match &event {
                Event::Raise(serial) => {
                    prop_assert_eq!(kept(open().raise(*serial)), *serial > highest);
                    highest = highest.max(*serial);
                }
                Event::Refuse(serial) => {
                    kept(open().refuse(id(*serial)));
                    prop_assert!(open().refuses(&id(*serial)));
                }
                Event::Lift(serial) => {
                    kept(open().lift(*serial));
                    prop_assert!(!open().refuses(&id(*serial)));
                }
                Event::Allow(serial) => {
                    kept(open().allow(id(*serial)));
                    let below = Some(id(*serial)).filter(|_| *serial < highest);
                    prop_assert_eq!(open().record().allowed, below);
                    prop_assert!(!open().refuses(&id(*serial)));
                }
                Event::Mend => drop(open().mend()),
                Event::Lose(place) => files()[*place].iter().for_each(|file| drop(fs::remove_file(file))),
                // The variable has one copy.
                Event::Spoil(place, copy) => match &files()[*place] {
                    Some(file) if *place == 1 => fs::write(file, [0x5a; 516]).unwrap(),
                    Some(file) if file.exists() => spoil(file, copy * COPY),
                    _ => {}
                },
                Event::Cut(place, cut, serial) => {
                    // The places are written in this order: what comes after the cut stays as it was.
                    let before = files().map(|file| file.and_then(|file| fs::read(file).ok()));
                    kept(open().raise(*serial));
                    for (number, (file, before)) in files().iter().zip(&before).enumerate() {
                        let (Some(file), Some(before)) = (file, before) else { continue };
                        let Ok(after) = fs::read(file) else { continue };
                        if number == *place && number == 0 && before.len() == after.len() {
                            let mut torn = before.clone();
                            let at = before.iter().zip(&after).position(|(before, after)| before != after);
                            let at = at.unwrap_or(0) / 4096 * 4096;
                            torn[at..at + cut].copy_from_slice(&after[at..at + cut]);
                            fs::write(file, torn).unwrap();
                        } else if number > *place {
                            fs::write(file, before).unwrap();
                        }
                    }
                    let now = open().record().serial;
                    prop_assert!(now == highest || now == highest.max(*serial));
                    highest = now;
                }
            }
            let record = open().record();
            prop_assert_eq!(record.serial, highest, "after {:?}", event);
            prop_assert!(record.refused.len() <= 8 && record.lowerings.len() <= 4);
            prop_assert_eq!(FloorRecord::decode(&record.encode()), Some(record));
            // One loss at a time: the next recovery mends it.
            drop(open().mend());
        }
    });
}

#[test]
fn no_bytes_are_more_than_a_damaged_copy() {
    proptest!(config(), |(mut bytes in collection::vec(any::<u8>(), 0..1100), magic in any::<bool>())| {
        if magic && bytes.len() >= 512 {
            bytes[..8].copy_from_slice(b"RFLASHFL");
            bytes[9] = 0;
            bytes[10] %= 12;
            let digest = reflash::release::digest::Digest::of(&bytes[..480]).0;
            bytes[480..512].copy_from_slice(&digest);
        }
        if let Some(record) = FloorRecord::decode(&bytes) {
            prop_assert!(record.serial < 1 << 63 && record.refused.iter().all(|known| known.serial < 1 << 63));
            prop_assert_eq!(FloorRecord::decode(&record.encode()), Some(record));
        }
    });
}
