//! Data partitions as the field has them: zeroed, full of noise, full, read-only, with features of another time. None
//! of them keeps the system from starting.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use reflash::disk::reserve;
use reflash::pid1::system::plan::BootPlaces;
use reflash::pid1::system::{RenewalParts, RootParts, put_together};
use reflash::record::start::{DataUse, EtcFrom, StartRecord, VarFrom};
use reflash::sys::mount;

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;

const FSCK: &str = "/usr/sbin/e2fsck";
const SIZE: u64 = 64 << 20;

/// A robot's deployment and data partition, in a directory.
pub(super) struct Robot {
    pub(super) dir: tempfile::TempDir,
    places: BootPlaces,
    /// The state and the recovery partition of a robot whose data may be made anew.
    others: Option<(Attached, Attached)>,
}

impl Robot {
    /// A robot that has started once: its data partition has changes to /etc, and files in /var.
    pub(super) fn new() -> Self {
        Self::blank(&[]).with_files()
    }

    /// What a robot has on its data partition after its first start.
    pub(super) fn with_files(self) -> Self {
        self.on_data(|data| {
            fs::create_dir_all(data.join("etc-overlay/upper")).unwrap();
            fs::set_permissions(data.join("etc-overlay"), fs::Permissions::from_mode(0o700)).unwrap();
            fs::create_dir_all(data.join("etc-overlay/work")).unwrap();
            fs::write(data.join("etc-overlay/upper/own"), "own").unwrap();
            fs::create_dir_all(data.join("var/lib")).unwrap();
            fs::create_dir_all(data.join("var/log/journal/x")).unwrap();
            fs::write(data.join("var/log/journal/x/system.journal"), "journal").unwrap();
            fs::write(data.join("var/lib/map"), "map").unwrap();
        });
        self
    }

    /// A robot whose data partition was just made, with more options for mke2fs.
    pub(super) fn blank(more: &[&str]) -> Self {
        Self::blank_of(SIZE, more)
    }

    /// The same, of another size.
    pub(super) fn blank_of(size: u64, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let places = BootPlaces { root: at("sysroot"), data: at("data"), run: at("run") };
        for directory in ["sysroot/etc", "sysroot/var", "sysroot/usr", "data", "run"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("sysroot/etc/default"), "default").unwrap();
        fs::File::create(at("image")).unwrap().set_len(size).unwrap();
        // As xtask/src/filesystem.rs makes it.
        let features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed";
        let image = at("image");
        let usual = ["-q", "-F", "-b", "4096", "-I", "256", "-J", "size=4", "-O", features];
        run("mke2fs", &[&usual, more, &[image.to_str().unwrap()]].concat());
        Self { dir, places, others: None }
    }

    /// Lets the robot's data be made anew, from an empty template.
    pub(super) fn with_renewal(mut self) -> Self {
        let (state, recovery) = (self.dir.path().join("state.img"), self.dir.path().join("recovery.img"));
        let tree = self.dir.path().join("recovery.tree");
        fs::create_dir_all(tree.join("templates")).unwrap();
        let template = zstd::encode_all(fs::File::open(Self::blank(&[]).image()).unwrap(), 1).unwrap();
        fs::write(tree.join("templates/data.ext4.zst"), template).unwrap();
        run("mke2fs", &["-q", "-F", "-t", "ext4", state.to_str().unwrap(), "32m"]);
        let (tree, out) = (tree.to_str().unwrap(), recovery.to_str().unwrap());
        run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree, out, "32m"]);
        self.others = Some((Attached::new(&state, 512), Attached::new(&recovery, 512)));
        self
    }

    /// Has a look at the state partition.
    pub(super) fn on_state<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let at = self.dir.path().join("mounted");
        fs::create_dir_all(&at).unwrap();
        run("mount", &[self.others.as_ref().unwrap().0.path().to_str().unwrap(), at.to_str().unwrap()]);
        let result = look(&at);
        run("umount", &[at.to_str().unwrap()]);
        result
    }

    pub(super) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(super) fn on_data<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let at = self.dir.path().join("mounted");
        fs::create_dir_all(&at).unwrap();
        run("mount", &["-o", "loop", self.image().to_str().unwrap(), at.to_str().unwrap()]);
        let result = work(&at);
        run("umount", &[at.to_str().unwrap()]);
        result
    }

    /// Writes over the beginning of the data partition.
    pub(super) fn overwrite(&self, content: &[u8]) {
        fs::File::options().write(true).open(self.image()).unwrap().write_all_at(content, 0).unwrap();
    }

    pub(super) fn debugfs(&self, request: &str) {
        run("debugfs", &["-w", "-R", request, self.image().to_str().unwrap()]);
    }

    /// Starts the robot, and has a look at its system before it is switched off again.
    pub(super) fn start_with<T>(&self, options: Options, look: impl FnOnce(&Path, &StartRecord) -> T) -> T {
        let image = self.image();
        let device = if options.is_read_only { Attached::read_only(&image) } else { Attached::new(&image, 512) };
        let renewal = self.others.as_ref().map(|(state, recovery)| RenewalParts {
            state: state.path().to_owned(),
            recovery: recovery.path().to_owned(),
        });
        let parts = RootParts {
            places: &self.places,
            data: (!options.has_no_device).then(|| device.path()),
            renewal: renewal.as_ref(),
            fsck: Path::new(options.fsck),
            safe: options.safe,
            memory_bytes: 512 << 20,
        };
        let mut record = StartRecord::default();
        put_together(&parts, &mut record);
        let result = look(&self.places.root, &record);
        for place in [&self.places.root, &self.places.data, &self.places.run] {
            mount::detach_below(place);
        }
        result
    }

    pub(super) fn start<T>(&self, look: impl FnOnce(&Path, &StartRecord) -> T) -> T {
        self.start_with(Options::default(), look)
    }

    /// Asserts that the robot's system starts and that services can write.
    pub(super) fn assert_starts(&self, case: &str, options: Options) -> StartRecord {
        self.start_with(options, |root, record| {
            let why = format!("{case}: {record:#?}");
            assert_eq!(fs::read_to_string(root.join("etc/default")).unwrap(), "default", "{why}");
            fs::create_dir_all(root.join("var/lib/service")).unwrap_or_else(|error| panic!("{error}: {why}"));
            fs::write(root.join("var/lib/service/file"), "x").unwrap_or_else(|error| panic!("{error}: {why}"));
            fs::write(root.join("etc/new"), "x").unwrap_or_else(|error| panic!("{error}: {why}"));
            fs::write(root.join("etc/default"), "x").unwrap_or_else(|error| panic!("{error}: {why}"));
            record.clone()
        })
    }
}

#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) fsck: &'static str,
    pub(super) safe: Option<u32>,
    pub(super) is_read_only: bool,
    pub(super) has_no_device: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsck: FSCK, safe: None, is_read_only: false, has_no_device: false }
    }
}

pub(super) fn forms(record: &StartRecord) -> (DataUse, VarFrom, EtcFrom) {
    (record.data, record.var, record.etc)
}

pub(super) const WHOLE: (DataUse, VarFrom, EtcFrom) = (DataUse::Writable, VarFrom::Data, EtcFrom::Data);
const READABLE: (DataUse, VarFrom, EtcFrom) = (DataUse::ReadOnly, VarFrom::MemoryOverData, EtcFrom::MemoryOverData);
const NOTHING: (DataUse, VarFrom, EtcFrom) = (DataUse::Lost, VarFrom::Memory, EtcFrom::Memory);

pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// <https://github.com/balena-os/meta-balena/issues/1945>, <https://github.com/motioneye-project/motioneyeos/pull/2464>:
/// what to do when the data partition cannot be checked or mounted any more.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_data_partition_that_was_overwritten_does_not_keep_the_system_from_starting() {
    isolated("field::data::a_data_partition_that_was_overwritten_does_not_keep_the_system_from_starting", || {
        let all = SIZE as usize;
        for (case, content) in [
            ("the first block is noise", noise(4096)),
            ("the first MiB is noise", noise(1 << 20)),
            ("all is noise", noise(all)),
            ("all is zero", vec![0; all]),
            ("all is 0xff", vec![0xff; all]),
            ("another file system", [&b"XFSB"[..], &[0; 4092]].concat()),
        ] {
            let robot = Robot::new();
            robot.overwrite(&content);
            let record = robot.assert_starts(case, Options::default());
            // One block group has one superblock.
            assert_eq!(forms(&record), NOTHING, "{case}: {record:#?}");
            let told = |loss: &String| loss.contains("cannot be read") || loss.contains("has XFS in place of ext4");
            assert!(record.lost.iter().any(told), "{record:#?}");
        }
        let robot = Robot::new();
        let record = robot.assert_starts("no device", Options { has_no_device: true, ..Options::default() });
        assert_eq!(forms(&record), NOTHING);
        let record = robot.assert_starts("as it should be", Options::default());
        assert!(record.is_whole(), "{record:#?}");
        robot.start(|root, _| {
            assert_eq!(fs::read_to_string(root.join("etc/new")).unwrap(), "x");
            assert_eq!(fs::read_to_string(root.join("var/lib/service/file")).unwrap(), "x");
        });
    });
}

/// <https://github.com/openbmc/openbmc/issues/1776>: the overlay cannot be mounted on a full partition, and the machine
/// does not start. <https://github.com/home-assistant/operating-system/issues/2092>: a full data partition ends in a boot
/// loop.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_full_data_partition_does_not_keep_the_system_from_starting() {
    isolated("field::data::a_full_data_partition_does_not_keep_the_system_from_starting", || {
        let fill_inodes = |data: &Path| {
            fs::create_dir_all(data.join("var/many")).unwrap();
            let mut number = 0;
            while fs::File::create(data.join(format!("var/many/{number}"))).is_ok() {
                number += 1;
            }
        };
        let fill_blocks = |data: &Path| {
            for (name, size) in [("large", 1 << 20), ("small", 4096), ("smallest", 1)] {
                let mut file = fs::File::create(data.join(name)).unwrap();
                while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
            }
        };
        for (case, fill) in [("inodes", &fill_inodes as &dyn Fn(&Path)), ("blocks", &fill_blocks)] {
            for reserve in [true, false] {
                let case = format!("no free {case}, reserve: {reserve}");
                let robot = Robot::new();
                robot.on_data(|data| {
                    if reserve {
                        reserve::restore(data).unwrap();
                    }
                    fill(data);
                });
                // What is full stays full: the system itself can always start again.
                for round in 0..3 {
                    let looked = robot.start(|root, record| {
                        let why = format!("{case}, start {round}: {record:#?}");
                        assert_eq!(fs::read_to_string(root.join("etc/own")).unwrap(), "own", "{why}");
                        assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map", "{why}");
                        fs::write(root.join("etc/own"), "own").unwrap_or_else(|error| panic!("{error}: {why}"));
                        if reserve || round == 0 {
                            assert!(record.lost.iter().any(|loss| loss.contains("is full")), "{why}");
                        }
                        record.clone()
                    });
                    assert_eq!((looked.data, looked.var), (DataUse::Writable, VarFrom::Data), "{looked:#?}");
                    if reserve {
                        assert_eq!(looked.etc, EtcFrom::Data, "{case}: {looked:#?}");
                    }
                    robot.on_data(fill);
                }
            }
        }
        // Once there is room again, all is as it was.
        let robot = Robot::new();
        robot.on_data(fill_inodes);
        assert_eq!(robot.start(|_, record| record.etc), EtcFrom::MemoryOverData);
        robot.on_data(|data| fs::remove_dir_all(data.join("var/many")).unwrap());
        assert!(robot.start(|_, record| record.is_whole()));
        robot.on_data(|data| {
            assert_eq!(fs::read_dir(data.join(reserve::DIRECTORY)).unwrap().count(), reserve::files().len());
        });
    });
}

/// <https://github.com/armbian/build/pull/6809>, <https://github.com/osbuild/bootc-image-builder/issues/20>: the e2fsck of
/// the image is older than what made the file system.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn what_the_check_does_not_understand_is_mounted_as_far_as_the_kernel_does() {
    isolated("field::data::what_the_check_does_not_understand_is_mounted_as_far_as_the_kernel_does", || {
        // Features that nobody knows: one that forbids writing, one that forbids reading.
        let robot = Robot::new();
        robot.debugfs("feature FEATURE_R20");
        let record = robot.assert_starts("unknown feature for writing", Options::default());
        assert_eq!(forms(&record), READABLE, "{record:#?}");
        robot.start(|root, record| {
            assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
            assert_eq!(fs::read_to_string(root.join("etc/own")).unwrap(), "own");
            assert!(!root.join("var/log/journal").exists(), "the journal would be copied into memory");
            assert!(record.data_at.as_deref().is_some_and(|at| Path::new(at).join("var/lib/map").exists()));
        });
        let robot = Robot::new();
        robot.debugfs("feature FEATURE_I29");
        let record = robot.assert_starts("unknown feature for reading", Options::default());
        assert_eq!(forms(&record), NOTHING, "{record:#?}");
        // A check that is missing, that crashes, or that gives up, while the file system is whole.
        let script = Path::new("/run/fsck");
        for (case, text) in [
            ("missing", None),
            ("too old", Some("#!/bin/sh\nexit 12\n")),
            ("operational error", Some("#!/bin/sh\nexit 8\n")),
            ("crashes", Some("#!/bin/sh\nkill -SEGV $$\n")),
            ("no program", Some("garbage")),
        ] {
            let _ = fs::remove_file(script);
            if let Some(text) = text {
                fs::write(script, text).unwrap();
                fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let record = Robot::new().assert_starts(case, Options { fsck: "/run/fsck", ..Options::default() });
            assert_eq!(forms(&record), WHOLE, "{case}: {record:#?}");
            assert!(record.lost.iter().any(|loss| loss.contains("was not repaired")), "{case}: {record:#?}");
        }
        // One that leaves errors.
        fs::write(script, "#!/bin/sh\nexit 4\n").unwrap();
        let robot = Robot::new();
        let before = fs::read(robot.image()).unwrap();
        let record = robot.assert_starts("errors are left", Options { fsck: "/run/fsck", ..Options::default() });
        assert_eq!(forms(&record), READABLE, "{record:#?}");
        assert!(before == fs::read(robot.image()).unwrap(), "what is damaged is not written");
    });
}

/// <https://github.com/raspberrypi/linux/issues/3902>: a card at its end of life takes no more writes, and says so.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_device_that_cannot_be_written_is_read() {
    isolated("field::data::a_device_that_cannot_be_written_is_read", || {
        let options = Options { is_read_only: true, ..Options::default() };
        let robot = Robot::new();
        let record = robot.assert_starts("read-only device", options);
        assert_eq!(forms(&record), READABLE, "{record:#?}");
        // The same after a power cut: its journal cannot be replayed.
        robot.debugfs("feature needs_recovery");
        let record = robot.assert_starts("read-only device with a journal to replay", options);
        assert_eq!(forms(&record), READABLE, "{record:#?}");
        robot.start_with(options, |root, _| {
            assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
        });
    });
}

/// <https://github.com/home-assistant/operating-system/issues/1119>: a card that answers reads and fails writes, and says
/// nothing of it before. Here the device lies on a file system that is full.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_device_whose_writes_fail_is_read() {
    isolated("field::data::a_device_whose_writes_fail_is_read", || {
        let robot = Robot::new();
        let small = robot.dir.path().join("small");
        fs::create_dir_all(&small).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=70M", "tmpfs", small.to_str().unwrap()]);
        run("cp", &["--sparse=always", robot.image().to_str().unwrap(), small.join("image").to_str().unwrap()]);
        fs::remove_file(robot.image()).unwrap();
        std::os::unix::fs::symlink(small.join("image"), robot.image()).unwrap();
        // What is a hole in the image cannot be written any more.
        let mut filler = fs::File::create(small.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
        let record = robot.assert_starts("writes fail", Options::default());
        assert_eq!(forms(&record), READABLE, "{record:#?}");
        assert!(record.lost.iter().any(|loss| loss.contains("cannot be written")), "{record:#?}");
        robot.start(|root, _| {
            assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
            assert_eq!(fs::read_to_string(root.join("etc/own")).unwrap(), "own");
        });
    });
}

/// A journal whose blocks are garbage: <https://bugs.launchpad.net/ubuntu/+source/e2fsprogs/+bug/1798562>. And a
/// superblock that asks for a panic at the first fault, which the next start would meet again.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_damaged_journal_or_superblock_costs_at_most_what_it_held() {
    isolated("field::data::a_damaged_journal_or_superblock_costs_at_most_what_it_held", || {
        let robot = Robot::new();
        let output = Command::new("debugfs").args(["-R", "blocks <8>"]).arg(robot.image()).output().unwrap();
        let blocks: Vec<u64> =
            String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(blocks.len() > 100, "{blocks:?}");
        let image = fs::File::options().write(true).open(robot.image()).unwrap();
        blocks.iter().for_each(|block| image.write_all_at(&noise(4096), block * 4096).unwrap());
        robot.debugfs("feature needs_recovery");
        let record = robot.assert_starts("journal", Options::default());
        assert_eq!(forms(&record), WHOLE, "{record:#?}");
        robot.start(|root, _| assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map"));

        let robot = Robot::new();
        run("tune2fs", &["-e", "panic", robot.image().to_str().unwrap()]);
        robot.assert_starts("errors=panic", Options::default());
        robot.start(|_, record| {
            assert!(record.is_whole());
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            let line = mounts.lines().find(|line| line.contains("/sysroot/var ")).unwrap();
            assert!(!line.contains("errors=panic"), "{line}");
        });
        // Directories of the robot that are no directories.
        for (case, damage) in [
            ("var is a file", "rm -rf $0/var; echo x >$0/var"),
            ("upper is a file", "rm -rf $0/etc-overlay/upper; echo x >$0/etc-overlay/upper"),
            ("the overlay is a link", "rm -rf $0/etc-overlay; ln -s /no/such $0/etc-overlay"),
            ("work is full of files", "mkdir -p $0/etc-overlay/work/work/a/b; touch $0/etc-overlay/work/work/a/c"),
            ("the directories are immutable", "chattr -R +i $0/etc-overlay"),
        ] {
            let robot = Robot::new();
            robot.on_data(|data| run("sh", &["-c", damage, data.to_str().unwrap()]));
            robot.assert_starts(case, Options::default());
        }
    });
}

/// A robot whose own `/etc` keeps systemd or every login from working: <https://github.com/systemd/systemd/issues/12229>,
/// <https://github.com/Start9Labs/start-technologies/issues/3923>. A safe start has none of it, but the people's accounts.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_safe_start_has_the_accounts_of_the_machine_and_nothing_else_of_it() {
    isolated("field::data::a_safe_start_has_the_accounts_of_the_machine_and_nothing_else_of_it", || {
        let robot = Robot::new();
        let etc = robot.places.root.join("etc");
        fs::write(etc.join("passwd"), "root:x:0:0:root:/root:/bin/bash\npilot:x:1000:1000::/home/pilot:/bin/bash\n")
            .unwrap();
        fs::write(etc.join("shadow"), "root:*:19000::::::\npilot:!:19000:0:99999:7:::\n").unwrap();
        fs::set_permissions(etc.join("shadow"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(etc.join("fstab"), "").unwrap();
        fs::create_dir_all(etc.join("systemd")).unwrap();
        fs::create_dir_all(etc.join("ssh")).unwrap();
        fs::write(etc.join("systemd/system.conf"), "[Manager]\n").unwrap();
        fs::create_dir_all(robot.places.root.join("usr/sbin")).unwrap();
        fs::write(robot.places.root.join("usr/sbin/sshd"), "").unwrap();
        robot.on_data(|data| {
            let own = data.join("etc-overlay/upper");
            fs::write(own.join("fstab"), "UUID=no-such /x ext4 defaults 0 2\n").unwrap();
            fs::write(own.join("ld.so.preload"), "/no/such.so\n").unwrap();
            fs::write(own.join("ld.so.cache"), "").unwrap();
            // An overlay's whiteout of a directory: the machine's /etc has no systemd at all.
            reflash::sys::files::make_whiteout(&own.join("systemd")).unwrap();
            fs::write(own.join("passwd"), "\0\0garbage\nann:x:1001:1001::/home/ann:/bin/sh\n").unwrap();
            fs::write(own.join("shadow"), "root::\nann:$y$x:20000:0:99999:7:::\n").unwrap();
            fs::write(own.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
            fs::create_dir_all(own.join("ssh")).unwrap();
            let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n";
            fs::write(own.join("ssh/ssh_host_ed25519_key"), key).unwrap();
            fs::write(own.join("ssh/ssh_host_ed25519_key.pub"), "ssh-ed25519 x\n").unwrap();
            fs::write(own.join("ssh/ssh_host_rsa_key"), "").unwrap();
            fs::write(own.join("ssh/ssh_host_rsa_key.pub"), "").unwrap();
            fs::create_dir_all(data.join("var/home/pilot/.ssh")).unwrap();
            fs::write(data.join("var/home/pilot/.ssh/authorized_keys"), "ssh-ed25519 pilot\n").unwrap();
        });
        let before = fs::read(robot.image()).unwrap();
        let safe = Options { safe: Some(2), ..Options::default() };
        robot.start_with(safe, |root, record| {
            let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
            assert_eq!(forms(record), (DataUse::ReadOnly, VarFrom::Memory, EtcFrom::Memory), "{record:#?}");
            assert_eq!((record.safe_start, read("etc/fstab").as_str()), (Some(2), ""));
            assert_eq!(read("etc/systemd/system.conf"), "[Manager]\n");
            for gone in ["etc/ld.so.preload", "etc/ld.so.cache", "etc/own", "var/lib", "etc/ssh/ssh_host_rsa_key"] {
                assert!(!root.join(gone).exists(), "{gone}");
            }
            let logins = record.logins.as_deref().unwrap();
            assert_eq!(logins, ["pilot", "ann"], "root's line was cut, pilot has a key, ann a password");
            assert!(read("etc/shadow").starts_with("root:*:") && read("etc/shadow").contains("ann:$y$x:"));
            assert_eq!(root.join("etc/shadow").metadata().unwrap().permissions().mode() & 0o777, 0o640);
            assert_eq!(read("var/home/pilot/.ssh/authorized_keys"), "ssh-ed25519 pilot\n");
            let keys = root.join("var/home/pilot/.ssh/authorized_keys").metadata().unwrap();
            assert_eq!((keys.permissions().mode() & 0o777, std::os::unix::fs::MetadataExt::uid(&keys)), (0o600, 1000));
            assert_eq!(
                root.join("etc/ssh/ssh_host_ed25519_key").metadata().unwrap().permissions().mode() & 0o777,
                0o600
            );
            assert!(read("etc/machine-id").starts_with("0123"));
            assert_eq!(fs::read_to_string(robot.places.run.join("safe")).unwrap(), "2\n");
            fs::write(root.join("etc/new"), "x").unwrap();
            fs::write(root.join("var/new"), "x").unwrap();
            let at = PathBuf::from(record.data_at.as_ref().unwrap());
            assert!(at.join("var/lib/map").exists() && fs::write(at.join("x"), "x").is_err());
        });
        assert!(before == fs::read(robot.image()).unwrap(), "a safe start changes nothing on data");
        // Nobody can log in when the machine's accounts are lost and the image has none that is open.
        robot.overwrite(&vec![0; SIZE as usize]);
        robot.start_with(safe, |_, record| {
            assert_eq!(forms(record), NOTHING);
            assert_eq!(record.logins.as_deref(), Some(&[][..]), "{record:#?}");
        });
    });
}

/// After a way back to an older image, what a newer one noted on the state partition is still there. An image that
/// knows nothing of the renewal of data has used the partition in between, and its files count.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_renewal_that_an_older_image_came_between_puts_nothing_over_newer_files() {
    isolated("field::data::a_renewal_that_an_older_image_came_between_puts_nothing_over_newer_files", || {
        for stage in ["saved", "made"] {
            let robot = Robot::new().with_renewal();
            robot.on_data(|data| fs::write(data.join("var/lib/map"), "newer").unwrap());
            robot.on_state(|at| {
                fs::create_dir_all(at.join("saved-data/var/lib")).unwrap();
                fs::write(at.join("saved-data/var/lib/map"), "older").unwrap();
                fs::write(at.join("saved-data/var/lib/lost"), "lost").unwrap();
                let note = format!("{{\"stage\":\"{stage}\",\"starts\":2,\"data\":\"{}:1\"}}", "00".repeat(16));
                fs::write(at.join("data-renewal.json"), note).unwrap();
            });
            robot.start(|root, record| {
                assert_eq!(forms(record), WHOLE, "{stage}: {record:#?}");
                assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "newer", "{stage}");
                assert_eq!(fs::read_to_string(root.join("var/lib/lost")).unwrap(), "lost", "{stage}");
            });
            robot.on_state(|state| assert!(!state.join("data-renewal.json").exists(), "{stage}"));
        }
    });
}

/// <https://github.com/balena-os/meta-balena/issues/1945>: the partition is made anew when nothing else helps. Never at
/// once, never without what can be read of it, and a power cut at any stage leads on.
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn a_lost_data_partition_is_made_anew_at_the_third_start_where_that_is_configured() {
    isolated("field::data::a_lost_data_partition_is_made_anew_at_the_third_start_where_that_is_configured", || {
        let readable = || {
            let robot = Robot::new();
            robot.on_data(|data| {
                reflash::sys::files::make_whiteout(&data.join("etc-overlay/upper/gone")).unwrap();
                fs::create_dir_all(data.join("var/cache")).unwrap();
                fs::write(data.join("var/cache/x"), "x").unwrap();
                fs::write(data.join("var/huge"), vec![1; 30 << 20]).unwrap();
            });
            // Nobody knows this feature, which forbids writing.
            robot.debugfs("feature FEATURE_R20");
            robot.with_renewal()
        };
        let renewed = |root: &Path, record: &StartRecord| {
            assert_eq!(forms(record), WHOLE, "{record:#?}");
            assert!(record.data_renewed, "{record:#?}");
            assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
            assert_eq!(fs::read_to_string(root.join("etc/own")).unwrap(), "own");
            assert!(!root.join("var/huge").exists() && !root.join("var/cache").exists());
        };
        let settled = |robot: &Robot| {
            robot.start(|root, record| {
                assert!(record.is_whole() && !record.data_renewed, "{record:#?}");
                assert_eq!(fs::read_to_string(root.join("var/lib/map")).unwrap(), "map");
            });
            robot.on_data(|data| {
                let overlay = data.join("etc-overlay").metadata().unwrap();
                assert_eq!(overlay.permissions().mode() & 0o777, 0o700);
                let gone = data.join("etc-overlay/upper/gone").symlink_metadata().unwrap();
                assert!(std::os::unix::fs::FileTypeExt::is_char_device(&gone.file_type()));
            });
            robot.on_state(|state| {
                assert!(!state.join("saved-data").exists() && !state.join("data-renewal.json").exists())
            });
        };
        // Two starts without it, and a safe start, which does not count.
        let robot = readable();
        for _ in 0..2 {
            assert_eq!(forms(&robot.assert_starts("waits", Options::default())), READABLE);
            let safe = Options { safe: Some(1), ..Options::default() };
            assert_eq!(robot.start_with(safe, |_, record| record.data), DataUse::ReadOnly);
        }
        robot.start(renewed);
        settled(&robot);
        // The power is cut when all was copied, and again in the middle of the template.
        let robot = readable();
        (0..2).for_each(|_| drop(robot.assert_starts("waits", Options::default())));
        let before = fs::read(robot.image()).unwrap();
        robot.start(renewed);
        for written in [0, 4096, 1 << 20, SIZE as usize / 2] {
            robot.overwrite(&before);
            robot.on_state(|at| {
                fs::create_dir_all(at.join("saved-data/var/lib")).unwrap();
                fs::create_dir_all(at.join("saved-data/etc-overlay/upper")).unwrap();
                fs::set_permissions(at.join("saved-data/etc-overlay"), fs::Permissions::from_mode(0o700)).unwrap();
                reflash::sys::files::make_whiteout(&at.join("saved-data/etc-overlay/upper/gone")).unwrap();
                fs::write(at.join("saved-data/var/lib/map"), "map").unwrap();
                fs::write(at.join("saved-data/etc-overlay/upper/own"), "own").unwrap();
                fs::write(at.join("data-renewal.json"), "{\"stage\":\"saved\",\"starts\":2}").unwrap();
            });
            robot.overwrite(&fs::read(Robot::blank(&[]).image()).unwrap()[..written]);
            robot.start(renewed);
            settled(&robot);
        }
        // It is made anew from nothing as well, and a note that makes no sense is a first start.
        let robot = Robot::new().with_renewal();
        robot.overwrite(&vec![0; SIZE as usize]);
        robot.on_state(|state| fs::write(state.join("data-renewal.json"), "{\"stage\":\"later\"}").unwrap());
        for _ in 0..2 {
            assert_eq!(forms(&robot.assert_starts("zeroed", Options::default())), NOTHING);
        }
        let record = robot.assert_starts("made anew", Options::default());
        assert!(record.data_renewed && forms(&record) == WHOLE, "{record:#?}");
        // One good start ends the count.
        let robot = Robot::new().with_renewal();
        robot.on_state(|state| fs::write(state.join("data-renewal.json"), "{\"starts\":2}").unwrap());
        assert!(robot.assert_starts("whole", Options::default()).is_whole());
        robot.on_state(|state| assert!(!state.join("data-renewal.json").exists()));
        // A disk that takes no writes keeps what it has.
        let robot = Robot::new().with_renewal();
        let options = Options { is_read_only: true, ..Options::default() };
        for start in 0..7 {
            assert_eq!(forms(&robot.assert_starts("read-only", options)), READABLE, "start {start}");
        }
    });
}
