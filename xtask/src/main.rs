//! `cargo xtask`: every command of the builder.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use reflash::manifest::TrustedKeys;
use xtask::paths::Paths;
use xtask::step::produced;
use xtask::{
    agent, bench, demo, disk, grub, host, image, initramfs, keygen, kit, media, powercut, publish, release, serve, test,
};

/// Builds everything reflash ships, into target/dist/, and runs it in virtual machines.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Install missing packages without asking (as with CI=true).
    #[arg(long, global = true)]
    yes: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and show a virtual robot reflash itself, from GRUB to the login prompt.
    Demo,
    /// Run every test: style, unit tests, stories, and boots in virtual machines.
    Test {
        /// Also what takes long: large matrices and soaks.
        #[arg(long)]
        full: bool,
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
struct MediaArgs {
    /// Where the image goes. Write it to a stick with: dd if=FILE of=/dev/sdX bs=4M conv=fsync
    #[arg(long, default_value = "target/dist/media.iso", value_name = "FILE")]
    out: PathBuf,
    /// Configuration, for the medium and the recovery partition it makes.
    #[arg(long, value_name = "reflash.toml")]
    config: Option<PathBuf>,
    /// Public keys to trust; repeat for several.
    #[arg(long = "key", value_name = "FILE.pub", required = true)]
    keys: Vec<PathBuf>,
    /// Put this release tree on the medium: machines are then provisioned without a network.
    #[arg(long, value_name = "DIR")]
    release: Option<PathBuf>,
    /// Channel to take from it.
    #[arg(long, default_value = "stable", requires = "release")]
    channel: String,
    /// Names of machines for the host name template's {asset}: lines of SERIAL NAME, UUID NAME or MAC NAME.
    #[arg(long, value_name = "FILE.txt")]
    assets: Option<PathBuf>,
    /// Let the medium erase disks that are not blank, with nobody asked: any, or only the one with this serial number.
    #[arg(long, value_name = "SERIAL", num_args = 0..=1, default_missing_value = "yes")]
    arm: Option<String>,
    /// Seconds until the first entry of the menu starts by itself.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout_s: u32,
    /// Write the files for network boot (PXE, iPXE) into this directory, instead of a medium.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["out", "release", "timeout_s", "wait"])]
    netboot: Option<PathBuf>,
    /// Start nothing by itself: wait in the menu for a person.
    #[arg(long, conflicts_with = "timeout_s")]
    wait: bool,
}

#[derive(Args)]
struct BenchArgs {
    /// Image on the device before an update. Without it, images are built from xtask/recipes/bench.toml.
    #[arg(long, value_name = "FILE.img")]
    old: Option<PathBuf>,
    /// The image after the update, laid out anew.
    #[arg(long, value_name = "FILE.img", requires = "old")]
    new: Option<PathBuf>,
    /// The same, laid out over the old one (cargo xtask image --previous).
    #[arg(long, value_name = "FILE.img", requires = "old")]
    stable: Option<PathBuf>,
    /// An image with many changes.
    #[arg(long, value_name = "FILE.img", requires = "old")]
    large: Option<PathBuf>,
    /// Rounds; every tool takes its turn in each.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Only these cases; repeat for several.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// A small synthetic pair, one round, no peer but the yardstick.
    #[arg(long)]
    quick: bool,
    /// Logical block size of the device.
    #[arg(long, default_value_t = 512, value_name = "BYTES")]
    sector_bytes: u32,
    /// Where the figures go, and every single run.
    #[arg(long, default_value = "target/dist/bench.json", value_name = "FILE.json")]
    json: PathBuf,
    /// Draw charts into this directory.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
}

#[derive(Args)]
struct PowerCutArgs {
    /// Seed of everything random; the same seed gives the same states for the same recording.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// About how many states of the first flash are judged; a state is found again with the same number.
    #[arg(long, default_value_t = powercut::USUAL_STATES)]
    states: usize,
    /// States of each recording that are really booted.
    #[arg(long, default_value_t = 1)]
    boots: usize,
    /// Only this state, which is written out as a disk image: RECORDING:NUMBER, as a failure names it.
    #[arg(long, value_name = "N:N", value_parser = state_number)]
    state: Option<(usize, u64)>,
}

fn state_number(text: &str) -> Result<(usize, u64), String> {
    let numbers = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| "expected RECORDING:NUMBER, such as 1:4711".to_owned())
}

#[derive(Args)]
struct ImageArgs {
    /// The recipe; xtask/recipes/robot.toml is a commented example.
    recipe: PathBuf,
    /// Where the image goes; a description is put beside it, with the extension json.
    #[arg(long, default_value = "target/dist/system.img")]
    out: PathBuf,
    /// The image of the release before: what did not change stays on its blocks, so that a robot need not fetch it.
    #[arg(long, value_name = "FILE.img")]
    previous: Option<PathBuf>,
    /// Build everything again, also what has not changed.
    #[arg(long)]
    fresh: bool,
}

#[derive(Args)]
struct CompareArgs {
    /// The image that robots have.
    old: PathBuf,
    /// The image that they are to get.
    new: PathBuf,
    /// Files to list, those with most changed blocks first.
    #[arg(long, default_value_t = 10)]
    files: usize,
}

#[derive(Args)]
struct ReleaseArgs {
    /// Root of the release tree.
    #[arg(long, default_value = "target/dist/release", value_name = "DIR")]
    out: PathBuf,
    /// Channel to publish in.
    #[arg(long, default_value = "stable")]
    channel: String,
    /// Only check the published release: signature, every object, the image's digest. Needs --public.
    #[arg(long, requires = "public")]
    check: bool,
    /// Public key to check with.
    #[arg(long, value_name = "FILE.pub")]
    public: Option<PathBuf>,
    /// Secret key to sign with; its password, if it has one, is taken from REFLASH_KEY_PASSWORD or asked for.
    #[arg(long, value_name = "FILE.key", required_unless_present = "check")]
    key: Option<PathBuf>,
    /// Product the release is for.
    #[arg(long, required_unless_present = "check")]
    product: Option<String>,
    /// Hardware it fits (DMI product name): exact, or a prefix with *; repeat for several.
    #[arg(long, required_unless_present = "check")]
    hardware: Vec<String>,
    /// Image of the system partition, as `cargo xtask image` made it.
    #[arg(long, default_value = "target/dist/system.img")]
    image: PathBuf,
    /// Version for people; default: the image's.
    #[arg(long)]
    version: Option<String>,
    /// Serial; default: the next after the published one.
    #[arg(long)]
    serial: Option<u64>,
    /// Also renew the recovery of the robots that install it: its kernel, initramfs and boot script.
    #[arg(long)]
    recovery: bool,
    /// Public key for the initramfs of that recovery; repeat for several.
    #[arg(long = "recovery-key", value_name = "FILE.pub", requires = "recovery")]
    recovery_keys: Vec<PathBuf>,
    /// Partition layout to ship with the release.
    #[arg(long, value_name = "FILE.toml")]
    layout: Option<PathBuf>,
    /// Bytes of a frame: a power of two from 16384 to 4194304 (default: the smallest that fits the image).
    #[arg(long)]
    frame_bytes: Option<u32>,
    /// zstd level, 1 to 22.
    #[arg(long, default_value_t = release::DEFAULT_LEVEL)]
    level: i32,
}

#[derive(Args)]
struct DiskArgs {
    /// Configuration for the recovery partition.
    #[arg(long, value_name = "reflash.toml")]
    config: PathBuf,
    /// Public keys for the recovery partition.
    #[arg(long = "key", value_name = "FILE.pub", required = true)]
    keys: Vec<PathBuf>,
    /// Further files for the recovery partition, such as the CA that the configuration names.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Partition layout.
    #[arg(long, default_value = "xtask/recipes/layout.toml")]
    layout: PathBuf,
    /// Size of the disk, MiB.
    #[arg(long, default_value_t = disk::DEFAULT_BYTES / 1024 / 1024)]
    size_mib: u64,
    /// Where the disk goes.
    #[arg(long, default_value = "target/dist/disk.img")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let paths = Paths::of_checkout();
    let yes = cli.yes;
    match cli.command {
        Command::Demo => demo::run(&paths, yes),
        Command::Test { full } => test::run(&paths, full, yes),
        Command::PowerCut(PowerCutArgs { seed, states, boots, state }) => {
            powercut::run(&paths, &powercut::Options { seed, states, boots, state }, yes)
        }
        Command::Agent => agent::build(&paths, yes).map(drop),
        Command::Initramfs { keys } => initramfs::recovery(&paths, &keys, yes).map(drop),
        Command::Image(args) => {
            let options = image::Options { fresh: args.fresh, assume_yes: yes, previous: args.previous.as_deref() };
            image::build(&paths, &args.recipe, &args.out, &options).map(drop)
        }
        Command::Compare(args) => {
            print!("{}", image::compare::compare(&args.old, &args.new, args.files)?);
            Ok(())
        }
        Command::Grub => grub::build(&paths, yes).map(drop),
        Command::Keygen { out, password } => {
            let password = password
                .then(|| std::env::var("REFLASH_KEY_PASSWORD").context("--password needs REFLASH_KEY_PASSWORD"))
                .transpose()?;
            let files = keygen::generate(&out, password)?;
            produced("secret key, for `cargo xtask release --key`", &files.secret);
            produced("public key, for robots", &files.public);
            Ok(())
        }
        Command::Bench(args) => bench::run(
            &paths,
            &bench::Options {
                old: args.old,
                new: args.new,
                stable: args.stable,
                large: args.large,
                runs: if args.quick { 1 } else { args.runs },
                cases: args.cases,
                quick: args.quick,
                sector_bytes: args.sector_bytes,
                json: args.json,
                charts: args.charts,
                assume_yes: yes,
            },
        ),
        Command::Release(args) => run_release(args, &paths, yes),
        Command::Publish(args) => publish::run(args),
        Command::Serve { dir, listen, station } => serve::run(&dir, listen, station),
        Command::Media(args) => {
            let read =
                |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
            let parts = media::Parts {
                recovery: &initramfs::recovery(&paths, &args.keys, yes)?,
                config: args.config.as_ref().map(read).transpose()?,
                keys: &args.keys,
                assets: args.assets.as_ref().map(read).transpose()?,
                release: args.release.as_deref().map(|release| (release, args.channel.as_str())),
                arm: args.arm.as_deref(),
                timeout_s: (!args.wait).then_some(args.timeout_s),
            };
            match &args.netboot {
                Some(out) => media::netboot::build(&parts, out),
                None => media::build(&paths, &parts, &args.out, yes).map(drop),
            }
        }
        Command::Disk(args) => {
            host::ensure_installed(&[host::Need::Disk], yes)?;
            let layout = disk::read_layout(&args.layout)?;
            let config =
                std::fs::read_to_string(&args.config).with_context(|| format!("read {}", args.config.display()))?;
            let parts = disk::Parts {
                layout: &layout,
                disk_bytes: args.size_mib * 1024 * 1024,
                grub: &grub::build(&paths, yes)?,
                recovery: &initramfs::recovery(&paths, &args.keys, yes)?,
                config,
                keys: args.keys,
                files: args.files,
                environment: disk::environment_without_system(),
            };
            disk::build(&paths, &parts, &args.out, yes)
        }
    }
}

fn run_release(args: ReleaseArgs, paths: &Paths, yes: bool) -> Result<()> {
    if let (true, Some(public)) = (args.check, &args.public) {
        let mut keys = TrustedKeys::default();
        let text = std::fs::read_to_string(public).with_context(|| format!("read {}", public.display()))?;
        keys.add(&public.display().to_string(), &text)?;
        let manifest = release::check::check(&args.out, &args.channel, &keys)?;
        eprintln!("  release {} (serial {}) is complete and every byte of it right", manifest.version, manifest.serial);
        return Ok(());
    }
    let described = image::Description::beside(&args.image).ok();
    let version = args.version.or_else(|| described.as_ref().map(|image| image.version.clone()));
    // Whoever says how a disk is laid out wants disks to be provisioned from this release.
    let files = if args.layout.is_some() || args.recovery {
        let recovery = initramfs::recovery(paths, &args.recovery_keys, yes)?;
        let grub = grub::build(paths, yes)?;
        match &args.layout {
            Some(_) => kit::files(paths, &grub, &recovery, &paths.dist().join("kit"))?,
            None => disk::recovery_files(&grub, &recovery),
        }
    } else {
        Vec::new()
    };
    let spec = release::Spec {
        product: args.product.unwrap_or_default(),
        hardware: args.hardware,
        channel: args.channel,
        version: version.context("give --version; the image has no description beside it that names one")?,
        serial: args.serial,
        image: args.image,
        ostree: described.map(|image| (image.ostree_commit, image.ostree_ref)),
        files,
        layout: args.layout.as_deref().map(disk::read_layout).transpose()?,
        frame_bytes: args.frame_bytes,
        level: args.level,
        created_unix_s: None,
    };
    let key = keygen::load_secret(&args.key.context("--key is missing")?)?;
    let released = release::build(&spec, &key, &args.out)?;
    let manifest = &released.manifest;
    let mib = released.packed_bytes as f64 / 1048576.0;
    let patches = manifest.images.iter().filter_map(|image| image.patches).map(|patches| patches.pack.size_bytes);
    let patched = match patches.sum::<u64>() {
        0 => String::new(),
        bytes => format!("; {:.1} MiB of patches for who has the release before", bytes as f64 / 1048576.0),
    };
    produced(
        &format!("release {} (serial {}), {mib:.1} MiB to download{patched}", manifest.version, manifest.serial),
        &released.path,
    );
    Ok(())
}
