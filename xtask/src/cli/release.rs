//! `release` on the command line: what a release is made of is collected here, from the options and the files beside
//! the image.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reflash::release::manifest::TrustedKeys;

use crate::paths::Paths;
use crate::release::{self, Allow, Released, Spec};
use crate::step::{mib, produced, room_for_undo};
use crate::{bootstrap_files, disk, grub, image, initramfs, keygen};

/// Options of `release`.
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// Root of the release tree. Default: release, where everything built goes.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
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
    /// Image of the system partition. Default: system.img, where everything built goes.
    #[arg(long, value_name = "FILE.img")]
    image: Option<PathBuf>,
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
    /// Bytes of a chunk: a power of two from 16384 to 4194304 (default: the smallest that fits the image).
    #[arg(long, alias = "frame-bytes")]
    chunk_bytes: Option<u32>,
    /// zstd level, 1 to 22.
    #[arg(long, default_value_t = release::DEFAULT_LEVEL)]
    level: i32,
    /// Allow what is mostly a mistake that robots cannot undo: future-date, serial-jump, other-product, fewer-hardware,
    /// other-key; repeat for several.
    #[arg(long, value_name = "WHAT")]
    allow: Vec<Allow>,
}

/// Makes the release, or checks the one that is there.
///
/// # Errors
/// When a part is missing, or the release cannot be made or is not right.
pub fn run(args: ReleaseArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| paths.dist().join("release"));
    if let (true, Some(public)) = (args.check, &args.public) {
        return check(&out, &args.channel, public);
    }
    let image = args.image.clone().unwrap_or_else(|| paths.dist().join("system.img"));
    let described = image::Description::beside(&image).ok();
    let version = args.version.clone().or_else(|| described.as_ref().map(|image| image.version.clone()));
    let spec = Spec {
        version: version.context("give --version; the image has no description beside it that names one")?,
        files: files(&args, paths, assume_yes)?,
        product: args.product.unwrap_or_default(),
        hardware: args.hardware,
        channel: args.channel,
        serial: args.serial,
        image,
        ostree: described.map(|image| (image.ostree_commit, image.ostree_ref)),
        layout: args.layout.as_deref().map(disk::read_layout).transpose()?,
        chunk_bytes: args.chunk_bytes,
        level: args.level,
        created_unix_s: None,
        allow: args.allow,
    };
    let key = keygen::load_secret(&args.key.context("--key is missing")?)?;
    let released = release::build(&spec, &key, &out)?;
    produced(&summary(&released), &released.path);
    eprintln!("  {}", room_for_undo(released.partition_bytes));
    Ok(())
}

fn check(tree: &Path, channel: &str, public: &Path) -> Result<()> {
    let mut keys = TrustedKeys::default();
    let text = std::fs::read_to_string(public).with_context(|| format!("read {}", public.display()))?;
    keys.add(&public.display().to_string(), &text)?;
    let manifest = release::check::check(tree, channel, &keys)?;
    eprintln!("  release {} (serial {}) is complete and every byte of it right", manifest.version, manifest.serial);
    Ok(())
}

/// The files beside the image. A release that says how a disk is laid out also brings what blank disks are made from.
fn files(args: &ReleaseArgs, paths: &Paths, assume_yes: bool) -> Result<Vec<(String, PathBuf)>> {
    if args.layout.is_none() && !args.recovery {
        return Ok(Vec::new());
    }
    let recovery = initramfs::recovery(paths, &args.recovery_keys, assume_yes)?;
    let grub = grub::build(paths, assume_yes)?;
    match &args.layout {
        Some(_) => bootstrap_files::files(paths, &grub, &recovery, &paths.dist().join("kit")),
        None => disk::recovery_files(&grub, &recovery),
    }
}

fn summary(released: &Released) -> String {
    let manifest = &released.manifest;
    let patches = manifest.images.iter().filter_map(|image| image.patches).map(|patches| patches.pack.size_bytes);
    let patched = match patches.sum::<u64>() {
        0 => String::new(),
        bytes => format!("; {} of patches for robots that have the release before", mib(bytes)),
    };
    let (version, serial) = (&manifest.version, manifest.serial);
    format!("release {version} (serial {serial}), {} to download{patched}", mib(released.packed_bytes))
}
