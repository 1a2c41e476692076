//! Files of the state partition, the recovery partition and the site that are not what this program wrote there: grown
//! by a flipped bit, sparse, or no files at all. Each costs at most its own content.

use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reflash::boot::env::{BootEnv, LoadedEnv};
use reflash::cli::answer::Exit;
use reflash::jobs::keys::read_keys;
use reflash::jobs::state::StatePartition;
use reflash::record::blackbox::{Attempt, BlackBox};
use rustix::fs::{FileType, Mode};

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;
use crate::support::{Fixture, MemoryTarget};

/// No case here may take longer: a read without a bound of what is made here takes minutes, or for ever.
const SOON: Duration = Duration::from_secs(20);

type Make = fn(&Path);

/// What can be in the place of a file. The victim is a file that must stay as it is.
const KINDS: [(&str, Make); 8] = [
    ("a directory", |path| fs::create_dir(path).unwrap()),
    ("a directory with content", |path| fs::create_dir_all(path.join("a/b")).unwrap()),
    ("a link to a file", |path| symlink(victim(path), path).unwrap()),
    ("a link to an endless device", |path| symlink("/dev/zero", path).unwrap()),
    ("a link to itself", |path| symlink(path.file_name().unwrap(), path).unwrap()),
    ("a named pipe", |path| {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    }),
    ("a hole of three gigabytes", |path| fs::File::create(path).unwrap().set_len(3 << 30).unwrap()),
    ("nothing", |path| drop(fs::File::create(path).unwrap())),
];

fn victim(path: &Path) -> PathBuf {
    path.ancestors().find(|directory| directory.join("victim").exists()).unwrap().join("victim")
}

/// Every file of the state partition.
const FILES: [&str; 8] = [
    "grubenv",
    "blackbox",
    "events.jsonl",
    "events.1.jsonl",
    "installed",
    "installed/manifest.json",
    "installed/manifest.json.minisig",
    "installed/system.idx",
];

/// <https://github.com/lf-edge/eve/pull/1555>: a file of the program's own state that can grow to gigabytes is read whole
/// at every start, which runs out of memory and restarts, for ever.
#[test]
fn whatever_lies_on_the_state_partition_a_recovery_ends_well() {
    let fixture = Fixture::new();
    let source = reflash::fetch::Directory::new(fixture.tree());
    for file in FILES {
        for (kind, make) in KINDS {
            let dir = tempfile::tempdir().unwrap();
            let content = vec![0x5a; 300_000];
            fs::write(dir.path().join("victim"), &content).unwrap();
            let root = dir.path().join("state");
            fs::create_dir(&root).unwrap();
            let state = StatePartition::new(&root);
            let target = MemoryTarget::new(vec![0; fixture.image.len()]);
            fixture.recover(&source, &target, Some(&state)).unwrap();
            drop(state.open_events().unwrap());
            drop(BlackBox::open(&state.blackbox_path()).unwrap());
            let path = root.join(file);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            make(&path);

            let began = Instant::now();
            let says = format!("{kind} in the place of {file}");
            // As PID 1 begins.
            let _ = state.open_events().map(|mut log| std::io::Write::write_all(&mut log, b"{}\n").unwrap());
            let mut open = BlackBox::open(&state.blackbox_path()).unwrap_or_else(|error| panic!("{says}: {error}"));
            open.record(&Attempt { id: open.next_id(), ..Attempt::default() }).unwrap();
            let lost = state.record(&fixture.keys).is_none();
            assert_eq!(lost, file == "installed" || file.contains("manifest.json"), "{says}");
            // Then a recovery, which repairs the record too.
            let report = fixture.recover(&source, &target, Some(&state)).unwrap_or_else(|e| panic!("{says}: {e:?}"));
            assert!(report.committed.unrecorded.is_none(), "{says}: {:?}", report.committed.unrecorded);
            assert!(state.installed(&fixture.keys).is_some(), "{says}");
            assert!(matches!(state.boot_env().load().unwrap(), LoadedEnv::Good(_)), "{says}");
            assert!(began.elapsed() < SOON, "{says} took {:?}", began.elapsed());
            assert!(fs::read(dir.path().join("victim")).unwrap() == content, "{says}: written through");
        }
    }
}

/// The same for the commands of a running system. `reflash good` decides whether the next start is a recovery.
#[test]
fn whatever_lies_on_the_state_partition_commands_answer() {
    let fixture = Fixture::new();
    let keys = fixture.dir.path().join("keys").display().to_string();
    for file in FILES {
        for (kind, make) in KINDS {
            let dir = tempfile::tempdir().unwrap();
            let content = vec![0x5a; 300_000];
            fs::write(dir.path().join("victim"), &content).unwrap();
            let root = dir.path().join("state");
            fs::create_dir_all(root.join("installed")).unwrap();
            if file == "installed" {
                fs::remove_dir(root.join(file)).unwrap();
            }
            make(&root.join(file));
            let (began, says) = (Instant::now(), format!("{kind} in the place of {file}"));
            let reflash = |arguments: &[&str]| {
                let state = ["--state", root.to_str().unwrap()];
                reflash::cli::run(arguments.iter().chain(&state).map(Into::into))
            };
            assert_eq!(reflash(&["status", "--keys", &keys]), Exit::No, "{says}");
            assert_eq!(reflash(&["good"]), Exit::Done, "{says}");
            assert_eq!(reflash(&["request", "reflash"]), Exit::Done, "{says}");
            let env = BootEnv::new(&root.join("grubenv")).load_or_empty().unwrap();
            assert_eq!((env.get("reflash_tries"), env.get("next_entry")), (Some("3"), Some("recovery")), "{says}");
            assert!(began.elapsed() < SOON, "{says} took {:?}", began.elapsed());
            assert!(fs::read(dir.path().join("victim")).unwrap() == content, "{says}: written through");
        }
    }
}

/// What is said of a grown record names the file and both sizes.
#[test]
fn a_grown_record_is_named_with_its_size() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    fixture.recover(&reflash::fetch::Directory::new(fixture.tree()), &target, Some(&state)).unwrap();
    let manifest = dir.path().join("installed/manifest.json");
    fs::File::options().write(true).open(manifest).unwrap().set_len(440_401_920).unwrap();
    let text = reflash::chain::chain(&state.read_record(&fixture.keys).unwrap_err());
    let expected = "installed/manifest.json on the state partition cannot be used; the next recovery from a network writes it anew: \
                    440401920 bytes, but at most 1048576 are expected";
    assert_eq!(text, expected);
}

/// Writing what is there already could lose it, where the partition is full or fails.
#[test]
fn a_record_that_is_there_is_not_written_again() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let target = MemoryTarget::new(vec![0; fixture.image.len()]);
    let recover = || fixture.recover(&reflash::fetch::Directory::new(fixture.tree()), &target, Some(&state)).unwrap();
    let inodes = || {
        let entries = fs::read_dir(dir.path().join("installed")).unwrap().map(|entry| entry.unwrap());
        let mut found: Vec<_> = entries.map(|entry| (entry.file_name(), entry.ino())).collect();
        found.sort();
        found
    };
    recover();
    let before = inodes();
    assert!(before.len() >= 3, "{before:?}");
    recover();
    assert_eq!(inodes(), before);
    fs::write(dir.path().join("installed/manifest.json"), "x").unwrap();
    recover();
    assert_ne!(inodes(), before);
    assert!(state.installed(&fixture.keys).is_some());
}

/// One flipped bit of an inode's size, as debugfs sets it, on a real file system.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_flipped_bit_of_an_inode_costs_the_record_alone() {
    isolated("field::files::a_flipped_bit_of_an_inode_costs_the_record_alone", || {
        let fixture = Fixture::new();
        let source = reflash::fetch::Directory::new(fixture.tree());
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        let mount = |device: &Attached| {
            reflash::sys::mount::Mount::device(device.path(), "ext4").data_only().on(&at).unwrap();
            StatePartition::new(&at)
        };
        let target = MemoryTarget::new(vec![0; fixture.image.len()]);
        {
            let device = Attached::new(&image, 512);
            fixture.recover(&source, &target, Some(&mount(&device))).unwrap();
            reflash::sys::mount::unmount(&at).unwrap();
        }
        for file in ["manifest.json", "manifest.json.minisig", "system.idx"] {
            run("debugfs", &["-w", "-R", &format!("sif installed/{file} size 440401920"), image.to_str().unwrap()]);
        }
        run("debugfs", &["-w", "-R", "sif grubenv size 440401920", image.to_str().unwrap()]);
        // A directory that contains itself.
        run("debugfs", &["-w", "-R", "ln installed installed/loop", image.to_str().unwrap()]);
        let device = Attached::new(&image, 512);
        let state = mount(&device);
        let began = Instant::now();
        assert!(state.read_record(&fixture.keys).is_err());
        fixture.recover(&source, &target, Some(&state)).unwrap();
        assert!(state.installed(&fixture.keys).is_some() && began.elapsed() < SOON);
        reflash::sys::mount::unmount(&at).unwrap();
    });
}

/// Keys are few and small. A directory that is not costs its own keys while another has some, and time in no case.
#[test]
fn a_directory_of_keys_that_has_no_end_is_left_out() {
    let fixture = Fixture::new();
    let good = fixture.dir.path().join("keys").display().to_string();
    let many: (&str, Make) = ("100,000 files", |path| {
        fs::create_dir(path).unwrap();
        for number in 0..100_000 {
            fs::File::create(path.join(format!("{number}.pub"))).unwrap();
        }
    });
    let kinds = KINDS.map(|(kind, make)| (kind, make, "keys/x.pub")).into_iter().chain([(many.0, many.1, "keys")]);
    for (kind, make, at) in kinds {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("victim"), "x").unwrap();
        let path = dir.path().join(at);
        if at != "keys" {
            fs::create_dir(dir.path().join("keys")).unwrap();
        }
        make(&path);
        let began = Instant::now();
        let directory = dir.path().join("keys").display().to_string();
        // Content that is no key is refused, as it always was: a key that its maker believes in would be missing.
        if ["nothing", "a link to a file"].contains(&kind) {
            assert!(read_keys(&[directory, good.clone()]).is_err(), "{kind}");
            continue;
        }
        let read = read_keys(&[directory.clone(), good.clone()]).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!((read.keys.len(), read.left_out.len()), (1, 1), "{kind}");
        assert!(read_keys(&[directory]).is_err(), "{kind}");
        assert!(began.elapsed() < SOON, "{kind} took {:?}", began.elapsed());
    }
}
