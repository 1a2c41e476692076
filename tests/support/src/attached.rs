//! A disk image as a block device with partitions, for tools that know nothing of reflash.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reflash::release::layout::{Layout, Role, Scheme};
use reflash::sys::mount::Mount;

/// A loop device. It is detached when this is dropped.
pub struct Attached(PathBuf);

impl Attached {
    /// Attaches a file with logical blocks of `block_bytes`.
    pub fn new(file: &Path, block_bytes: u32) -> Self {
        Self::with(&["-P", &format!("--sector-size={block_bytes}")], file)
    }

    /// Attaches a file as a device that refuses writes.
    pub fn read_only(file: &Path) -> Self {
        Self::with(&["-r"], file)
    }

    fn with(options: &[&str], file: &Path) -> Self {
        let output = Command::new("losetup").args(["-f", "--show"]).args(options).arg(file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        // Does nothing more, except on kernels that are built without partition tables.
        let _ = Command::new("partx").arg("--update").arg(&device).status();
        Self(device)
    }

    /// The device of a partition.
    pub fn node(&self, number: u32) -> String {
        format!("{}p{number}", self.0.display())
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Mounts a partition for writing. Loop devices are shared with every other test that looks at the disks of this
    /// machine, and such a look holds a partition for a moment.
    pub fn mount(&self, number: u32, at: &Path) {
        for _ in 0..100 {
            match Mount::device(self.node(number), "ext4").data_only().on(at) {
                Err(error) if error.source.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                mounted => return mounted.unwrap(),
            }
        }
        panic!("{} stays in use", self.node(number));
    }

    /// Asserts that table and file systems are without fault. Journals are replayed first.
    pub fn assert_sound(&self, layout: &Layout) {
        match layout.table {
            Scheme::Gpt => {
                let (_, text) = self.told("sgdisk", &["-v"]);
                assert!(text.contains("No problems found"), "{text}");
            }
            Scheme::Mbr => {
                let (good, text) = self.told("sfdisk", &["-V"]);
                assert!(good && text.contains("No errors detected"), "{text}");
            }
        }
        for (number, partition) in layout.numbers().zip(&layout.partitions) {
            let node = self.node(number);
            let (good, text) = match partition.role {
                Role::BiosBoot | Role::System | Role::System2 => continue,
                Role::Esp => told("fsck.vfat", &["-n", &node]),
                _ => {
                    // Replays what a power cut left, and says so by its exit code.
                    let _ = told("e2fsck", &["-p", &node]);
                    told("e2fsck", &["-f", "-n", &node])
                }
            };
            assert!(good, "{}: {text}", partition.name);
        }
    }

    /// Runs a program with the device as its last argument: whether it succeeded, and what it said.
    pub fn told(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        told(program, &[arguments, &[self.0.to_str().unwrap()]].concat())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// Runs a program: whether it succeeded, and what it said.
pub fn told(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Makes a disk image one of another system: a table with partitions, and signatures of other uses of disks, where a
/// robot's partitions will begin.
pub fn make_foreign(file: &Path, block_bytes: u32) {
    use std::os::unix::fs::FileExt;
    let device = Attached::new(file, block_bytes);
    let table = "label: gpt\nsize=200MiB, name=\"Windows\"\nsize=300MiB\n";
    let mut sfdisk =
        Command::new("sfdisk").arg("-q").arg(device.path()).stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let file = std::fs::File::options().write(true).open(file).unwrap();
    // LVM's label in the second sector of the first partition.
    file.write_all_at(b"LABELONE", (1 << 20) + 512).unwrap();
    for mib in [1, 2, 66, 130, 386, 1154] {
        file.write_all_at(&[0xa5; 8192], (mib << 20) + 8192).unwrap();
    }
}
