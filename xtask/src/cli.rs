//! What can be typed after `cargo xtask`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use xtask::test::Tier;
use xtask::{disk, powercut, publish, release};

/// Builds everything reflash ships, into target/dist/, and runs it in virtual machines.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Install missing packages without asking (as with CI=true).
    #[arg(long, global = true)]
    pub yes: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Build everything and show a virtual robot reflash itself, from GRUB to the login prompt.
    Demo,
    /// Run the tests: style, unit tests, tests with root, and boots in virtual machines.
    Test {
        /// Tier to run; repeat for several. Without it, all but the full tier.
        #[arg(long = "tier", value_name = "TIER")]
        tiers: Vec<Tier>,
        /// Run everything, also what takes long (as --tier full).
        #[arg(long)]
        full: bool,
        /// Run only tests that have this in their names, and nothing else of the tiers.
        #[arg(long, value_name = "PATTERN")]
        only: Option<String>,
    },
    /// Put together every state that a power cut during a recovery can leave, and show that each ends well.
    PowerCut(PowerCutArgs),
    /// Build the agent: one static binary.
    Agent,
    /// Build the recovery kernel and initramfs around the agent.
    Initramfs {
        /// Public keys to build in, for machines started without a recovery partition.
        #[arg(long = "key", value_name = "FILE.pub")]
        keys: Vec<PathBuf>,
    },
    /// Build a system image from a recipe.
    Image(ImageArgs),
    /// Say which blocks differ between two images, what they belong to, and how many of them are new.
    Compare(CompareArgs),
    /// Make GRUB's images.
    Grub,
    /// Make a key pair to sign releases with.
    Keygen {
        /// Where reflash.key and reflash.pub go. Keep the directory: robots trust these keys.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Protect the secret key with the password in REFLASH_KEY_PASSWORD.
        #[arg(long)]
        password: bool,
    },
    /// Sign and publish an image as a release tree of static files, or check one.
    Release(ReleaseArgs),
    /// Publish a channel of a release tree in an S3-compatible store (docs/publishing.md).
    Publish(publish::Args),
    /// Serve a release tree over HTTP.
    Serve {
        /// The tree.
        #[arg(long, default_value = "target/dist/release", value_name = "DIR")]
        dir: PathBuf,
        /// Address and port.
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// Take what machines post at /report, and show it at /station (docs/station.md).
        #[arg(long)]
        station: bool,
    },
    /// Assemble a bootable disk image with an empty system partition.
    Disk(DiskArgs),
    /// Measure first flashes and updates against this machine's limits and against other tools.
    Bench(BenchArgs),
    /// Make a boot medium for USB and optical drives, BIOS and UEFI: provisions machines, or repairs them.
    Media(MediaArgs),
}

#[derive(Args)]
pub struct MediaArgs {
    /// Where the image goes. Write it to a stick with: dd if=FILE of=/dev/sdX bs=4M conv=fsync
    #[arg(long, default_value = "target/dist/media.iso", value_name = "FILE")]
    pub out: PathBuf,
    /// Configuration, for the medium and the recovery partition it makes.
    #[arg(long, value_name = "reflash.toml")]
    pub config: Option<PathBuf>,
    /// Public keys to trust; repeat for several.
    #[arg(long = "key", value_name = "FILE.pub", required = true)]
    pub keys: Vec<PathBuf>,
    /// Put this release tree on the medium: machines are then provisioned without a network.
    #[arg(long, value_name = "DIR")]
    pub release: Option<PathBuf>,
    /// Channel to take from it.
    #[arg(long, default_value = "stable", requires = "release")]
    pub channel: String,
    /// Names of machines for the host name template's {asset}: lines of SERIAL NAME, UUID NAME or MAC NAME.
    #[arg(long, value_name = "FILE.txt")]
    pub assets: Option<PathBuf>,
    /// Let the medium erase disks that are not blank, with nobody asked: any, or only the one with this serial number.
    #[arg(long, value_name = "SERIAL", num_args = 0..=1, default_missing_value = "yes")]
    pub arm: Option<String>,
    /// Seconds until the first entry of the menu starts by itself.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub timeout_s: u32,
    /// Write the files for network boot (PXE, iPXE) into this directory, instead of a medium.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "release", "timeout_s", "wait"])]
    pub netboot: Option<PathBuf>,
    /// Start nothing by itself: wait in the menu for a person.
    #[arg(long, conflicts_with = "timeout_s")]
    pub wait: bool,
}

#[derive(Args)]
pub struct BenchArgs {
    /// Image on the device before an update. Without it, images are built from xtask/recipes/bench.toml.
    #[arg(long, value_name = "FILE.img")]
    pub old: Option<PathBuf>,
    /// The image after the update, laid out anew.
    #[arg(long, value_name = "FILE.img", requires = "old")]
    pub new: Option<PathBuf>,
    /// The same, laid out over the old one (cargo xtask image --previous).
    #[arg(long, value_name = "FILE.img", requires = "old")]
    pub stable: Option<PathBuf>,
    /// An image with many changes.
    #[arg(long, value_name = "FILE.img", requires = "old")]
    pub large: Option<PathBuf>,
    /// Rounds; every tool takes its turn in each.
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// Only these cases; repeat for several.
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// A small synthetic pair, one round, no peer but the yardstick.
    #[arg(long)]
    pub quick: bool,
    /// Logical block size of the device.
    #[arg(long, default_value_t = 512, value_name = "BYTES")]
    pub sector_bytes: u32,
    /// Where the figures go, and every single run.
    #[arg(long, default_value = "target/dist/bench.json", value_name = "FILE.json")]
    pub json: PathBuf,
    /// Draw charts into this directory.
    #[arg(long, value_name = "DIR")]
    pub charts: Option<PathBuf>,
}

#[derive(Args)]
pub struct PowerCutArgs {
    /// Seed of everything random; the same seed gives the same states for the same recording.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// About how many states of the first flash are judged; a state is found again with the same number.
    #[arg(long, default_value_t = powercut::USUAL_STATES)]
    pub states: usize,
    /// States of each recording that are really booted.
    #[arg(long, default_value_t = 1)]
    pub boots: usize,
    /// Only this state, which is written out as a disk image: RECORDING:NUMBER, as a failure names it.
    #[arg(long, value_name = "N:N", value_parser = state_number)]
    pub state: Option<(usize, u64)>,
}

pub fn state_number(text: &str) -> Result<(usize, u64), String> {
    let numbers = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| "expected RECORDING:NUMBER, such as 1:4711".to_owned())
}

#[derive(Args)]
pub struct ImageArgs {
    /// The recipe; xtask/recipes/robot.toml is a commented example.
    pub recipe: PathBuf,
    /// Where the image goes; a description is put beside it, with the extension json.
    #[arg(long, default_value = "target/dist/system.img")]
    pub out: PathBuf,
    /// The image of the release before: what did not change stays on its blocks, so that a robot need not fetch it.
    #[arg(long, value_name = "FILE.img")]
    pub previous: Option<PathBuf>,
    /// Build everything again, also what has not changed.
    #[arg(long)]
    pub fresh: bool,
}

#[derive(Args)]
pub struct CompareArgs {
    /// The image that robots have.
    pub old: PathBuf,
    /// The image that they are to get.
    pub new: PathBuf,
    /// Files to list, those with most changed blocks first.
    #[arg(long, default_value_t = 10)]
    pub files: usize,
}

#[derive(Args)]
pub struct ReleaseArgs {
    /// Root of the release tree.
    #[arg(long, default_value = "target/dist/release", value_name = "DIR")]
    pub out: PathBuf,
    /// Channel to publish in.
    #[arg(long, default_value = "stable")]
    pub channel: String,
    /// Only check the published release: signature, every object, the image's digest. Needs --public.
    #[arg(long, requires = "public")]
    pub check: bool,
    /// Public key to check with.
    #[arg(long, value_name = "FILE.pub")]
    pub public: Option<PathBuf>,
    /// Secret key to sign with; its password, if it has one, is taken from REFLASH_KEY_PASSWORD or asked for.
    #[arg(long, value_name = "FILE.key", required_unless_present = "check")]
    pub key: Option<PathBuf>,
    /// Product the release is for.
    #[arg(long, required_unless_present = "check")]
    pub product: Option<String>,
    /// Hardware it fits (DMI product name): exact, or a prefix with *; repeat for several.
    #[arg(long, required_unless_present = "check")]
    pub hardware: Vec<String>,
    /// Image of the system partition, as `cargo xtask image` made it.
    #[arg(long, default_value = "target/dist/system.img")]
    pub image: PathBuf,
    /// Version for people; default: the image's.
    #[arg(long)]
    pub version: Option<String>,
    /// Serial; default: the next after the published one.
    #[arg(long)]
    pub serial: Option<u64>,
    /// Also renew the recovery of the robots that install it: its kernel, initramfs and boot script.
    #[arg(long)]
    pub recovery: bool,
    /// Public key for the initramfs of that recovery; repeat for several.
    #[arg(long = "recovery-key", value_name = "FILE.pub", requires = "recovery")]
    pub recovery_keys: Vec<PathBuf>,
    /// Partition layout to ship with the release.
    #[arg(long, value_name = "FILE.toml")]
    pub layout: Option<PathBuf>,
    /// Bytes of a chunk: a power of two from 16384 to 4194304 (default: the smallest that fits the image).
    #[arg(long, alias = "frame-bytes")]
    pub chunk_bytes: Option<u32>,
    /// zstd level, 1 to 22.
    #[arg(long, default_value_t = release::DEFAULT_LEVEL)]
    pub level: i32,
}

#[derive(Args)]
pub struct DiskArgs {
    /// Configuration for the recovery partition.
    #[arg(long, value_name = "reflash.toml")]
    pub config: PathBuf,
    /// Public keys for the recovery partition.
    #[arg(long = "key", value_name = "FILE.pub", required = true)]
    pub keys: Vec<PathBuf>,
    /// Further files for the recovery partition, such as the CA that the configuration names.
    #[arg(long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Partition layout.
    #[arg(long, default_value = "xtask/recipes/layout.toml")]
    pub layout: PathBuf,
    /// Size of the disk, MiB.
    #[arg(long, default_value_t = disk::DEFAULT_BYTES / 1024 / 1024)]
    pub size_mib: u64,
    /// Logical block size of the disk it is for: 512, or 4096, which only UEFI starts from.
    #[arg(long, default_value_t = 512, value_name = "BYTES")]
    pub sector_bytes: u32,
    /// Where the disk goes.
    #[arg(long, default_value = "target/dist/disk.img")]
    pub out: PathBuf,
}
