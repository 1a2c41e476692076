//! What `--help` prints.

/// Overview.
pub const HELP: &str = "\
reflash - makes the system partition equal to a signed release

As PID 1 of the recovery initramfs it does so by itself. By hand:

  reflash flash [--target DEV]    download, verify, write, read back
  reflash provision --disk DEV    make a robot's disk of a whole disk: table, boot code, system
  reflash verify [--target DEV]   compare the system with the installed release
  reflash status                  what is installed, how the last boots went
  reflash report                  tell report.url how the last recoveries went
  reflash good                    this boot is good: give the system its tries back
  reflash request                 recover at the next boot
  reflash request factory-reset   at the next boot ask at the console to delete all data
  reflash env [list|set NAME=VALUE|unset NAME]
                                  the GRUB environment on the state partition
  reflash --version

`reflash VERB --help` shows the options of a verb.

Exit codes: 0 done; 1 the answer is no (verify: damaged; status: nothing installed);
2 wrong usage; 3 failed, trying again later can help; 4 failed.
";

const COMMON: &str = "\
  --json          print the answer as JSON
  --verbose, -v   tell on stderr every request and what the libraries say
  --state DIR     a mounted state partition (default: the one on this machine's disk)
  --config FILE   configuration (default /etc/reflash/reflash.toml)
  --keys DIR      minisign public keys (default /etc/reflash/keys)
";

const FLASH: &str = "\
reflash flash - make a target equal to the release of the configured channel

Only what differs is downloaded and written. The target must not be mounted; to reflash the
system that is running, use `reflash request` and reboot.

  --target DEV    block device or image file (default: the system partition)
  --url URL       base URL of the release tree; repeat for mirrors, tried in order
  --channel NAME  --product NAME  --hardware NAME
                  instead of the configuration's (hardware: instead of DMI's)
  --max-rate KIB  download at most so many KiB per second, all connections together
  --allow-older   accept an older release than the installed one
  --dry-run       compare, say what would be downloaded, moved and written, change nothing
  --no-read-back  do not read back what was written; only with --target, for files and disks on a bench
";

const PROVISION: &str = "\
reflash provision - make a robot's disk of a whole disk

Table, boot code and file systems as the release says, then its system. The disk starts only
once everything on it was verified; what ends early may be repeated. Needs root.

  --disk DEV      whole disk, or a file that stands for one
  --config FILE   reflash.toml of the new machine; --keys DIR: its trusted keys
  --arm WORD      erase a disk that is not blank: yes, or its serial number
  --firmware bios|uefi    what will start it (default: what started this machine)
  --block-bytes N logical block size that a file stands for: 512 or 4096
  --url URL  --channel NAME  --product NAME  --hardware NAME  --max-rate KIB
                  as for flash
  --dry-run       say what would be done, write nothing
";

const VERIFY: &str = "\
reflash verify - compare a target with the release recorded as installed

Works on the running system too. Exit code 0: every byte is right; 1: it is damaged.

  --target DEV    block device or image file (default: the system partition)
  --sha256        print the SHA-256 of the image on it, to compare with the manifest
";

const STATUS: &str = "\
reflash status - what is installed and how the last recoveries went

Shows the black box: reason, outcome, quantities and errors of the last recoveries.

";
const REPORT: &str = "\
reflash report - post what the black box holds to report.url, as JSON

Only recoveries that were not reported before. The system's image runs it once it has a network.

";
const GOOD: &str = "\
reflash good - call this boot good

Gives the system its full number of tries back. The system's image runs it once it is up.

";
const REQUEST: &str = "\
reflash request - start recovery, once, at the next boot

  reflash request [reflash|factory-reset]

reflash        install the offered release again; the data stays (the default)
factory-reset  ask twice at the console, then make the data partition anew; the system stays

To erase everything, start the machine from a boot medium (cargo xtask media) or use
`reflash provision`: from its own disk a machine cannot do that and survive a power cut.

";
const ENV: &str = "\
reflash env - the GRUB environment on the state partition

  reflash env list | set NAME=VALUE | unset NAME

Changes are made in place and flushed. grub/README.md documents the variables.

";

/// A verb's own text and the common options, joined at compile time.
macro_rules! help {
    ($own:ident) => {{
        const BYTES: [u8; $own.len() + COMMON.len()] = join($own, COMMON);
        match std::str::from_utf8(&BYTES) {
            Ok(text) => text,
            Err(_) => HELP,
        }
    }};
}

const fn join<const N: usize>(first: &str, second: &str) -> [u8; N] {
    let mut out = [0; N];
    let mut position = 0;
    while position < N {
        out[position] =
            if position < first.len() { first.as_bytes()[position] } else { second.as_bytes()[position - first.len()] };
        position += 1;
    }
    out
}

/// `reflash flash --help`.
pub(super) const FLASH_HELP: &str = help!(FLASH);
/// `reflash provision --help`.
pub(super) const PROVISION_HELP: &str = help!(PROVISION);
/// `reflash verify --help`.
pub(super) const VERIFY_HELP: &str = help!(VERIFY);
/// `reflash status --help`.
pub(super) const STATUS_HELP: &str = help!(STATUS);
/// `reflash report --help`.
pub(super) const REPORT_HELP: &str = help!(REPORT);
/// `reflash good --help`.
pub(super) const GOOD_HELP: &str = help!(GOOD);
/// `reflash request --help`.
pub(super) const REQUEST_HELP: &str = help!(REQUEST);
/// `reflash env --help`.
pub(super) const ENV_HELP: &str = help!(ENV);
