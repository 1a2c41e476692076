//! `release` on the command line: what a release is made of is collected here, from the options and the files beside
//! the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use reflash::release::layout::{Layout, Role, Size};
use reflash::release::manifest::manifest_path;
use reflash::release::rollout::rollout_path;

use super::software;
use crate::invocation::program;
use crate::paths::Paths;
use crate::project::{self, needed};
use crate::release::history::{self, PastRelease};
use crate::release::{self, Allow, DEFAULT_CHANNEL, OfferedTo, Released, Spec};
use crate::step::{answer, mib, produced, room_for_undo};
use crate::{bootstrap_files, disk, grub, image, initramfs, keygen, layout_room, offered, rollout, site, trusted};

/// Options of `release`. Those that a project file gives are optional here and asked for when they are missing.
#[derive(Debug, clap::Args)]
pub struct ReleaseArgs {
    /// Root of the release tree. Default: release, where everything built goes.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Channel to publish in. Default: stable.
    #[arg(long)]
    pub channel: Option<String>,
    /// Only check the published release: signature, every object, the image's digest. Needs --public.
    #[arg(long)]
    check: bool,
    /// Public key to check with; repeat for several.
    #[arg(long, value_name = "FILE.pub")]
    pub public: Vec<PathBuf>,
    /// Only list the releases of the channel, the newest first.
    #[arg(long, conflicts_with = "check")]
    list: bool,
    /// Offer an old release again: the same image and files, signed with the next serial. For going back.
    #[arg(long, value_name = "SERIAL", conflicts_with_all = ["check", "list", "image", "version", "serial", "recovery"])]
    again: Option<u64>,
    /// Secret key to sign with; its password, if it has one, is taken from REFLASH_KEY_PASSWORD or asked for.
    #[arg(long, value_name = "FILE.key")]
    pub key: Option<PathBuf>,
    /// Product the release is for.
    #[arg(long)]
    pub product: Option<String>,
    /// Hardware it fits (DMI product name): exact, or a prefix with *; repeat for several.
    #[arg(long)]
    pub hardware: Vec<String>,
    /// Image of the system partition. Default: system.img, where everything built goes.
    #[arg(long, value_name = "FILE.img")]
    image: Option<PathBuf>,
    /// Version for people; default: the image's.
    #[arg(long)]
    version: Option<String>,
    /// Serial; default: the next after the published one.
    #[arg(long)]
    serial: Option<u64>,
    /// Offer the release to no robot yet: `rollout start` does (docs/rollouts.md).
    #[arg(long, conflicts_with_all = ["check", "list", "again"])]
    pub for_rollout: bool,
    /// Renew the recovery of the robots that install it, too: its kernel, initramfs and boot script. With --layout
    /// every release does.
    #[arg(long)]
    pub recovery: bool,
    /// Public key for the initramfs of that recovery; repeat for several.
    #[arg(long = "recovery-key", value_name = "FILE.pub")]
    pub recovery_keys: Vec<PathBuf>,
    /// Partition layout to ship with the release.
    #[arg(long, value_name = "FILE.toml")]
    pub layout: Option<PathBuf>,
    /// Bytes of a chunk: a power of two from 16384 to 4194304 (default: the smallest that fits the image).
    #[arg(long, alias = "frame-bytes", value_parser = chunk_bytes)]
    chunk_bytes: Option<u32>,
    /// zstd level, 1 to 22.
    #[arg(long, default_value_t = release::DEFAULT_LEVEL, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Allow what is mostly a mistake that robots cannot undo: future-date, serial-jump, other-product, fewer-hardware,
    /// other-key, no-layout; repeat for several.
    #[arg(long, value_name = "WHAT")]
    allow: Vec<Allow>,
    /// Configuration of the machines, which is compared with the release.
    #[arg(skip)]
    pub site: Option<PathBuf>,
    /// Recipe of the image, for a warning when nobody could log in.
    #[arg(skip)]
    pub recipe: Option<PathBuf>,
    /// Names of machines for that configuration.
    #[arg(skip)]
    pub assets: Option<PathBuf>,
    /// Path at which the image that was released is kept, for the layout of the next one.
    #[arg(skip)]
    pub released_image: Option<PathBuf>,
}

fn chunk_bytes(text: &str) -> Result<u32, String> {
    let bytes = text.parse::<u32>().ok().filter(|bytes| bytes.is_power_of_two() && (1 << 14..=1 << 22).contains(bytes));
    bytes.ok_or_else(|| "expected a power of two from 16384 to 4194304".to_owned())
}

/// Makes the release, offers an old one again, or looks at what is there.
///
/// # Errors
/// When a part is missing, or the release cannot be made or is not right.
pub fn run(args: ReleaseArgs, paths: &Paths, assume_yes: bool) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| paths.dist().join("release"));
    let channel = args.channel.clone().unwrap_or_else(|| DEFAULT_CHANNEL.to_owned());
    if args.check || args.list || args.again.is_some() {
        offered::require(&out, &channel)?;
    }
    if args.check {
        return check(&out, &channel, &args.public);
    }
    if args.list {
        return list(&out, &channel);
    }
    let key = needed(args.key.as_deref(), "--key", "keys.secret")?;
    if let Some(serial) = args.again {
        let manifest = history::again(&out, &channel, serial, &keygen::load_secret(key)?, &args.allow)?;
        let text = format!("release {} again (serial {})", manifest.version, manifest.serial);
        let is_rolled_out = out.join(rollout_path(&channel)).exists();
        let written = match is_rolled_out {
            true => history::path(&channel, manifest.serial),
            false => manifest_path(&channel),
        };
        produced(&text, &out.join(written));
        if is_rolled_out {
            waits_for_rollout(manifest.serial, 100);
        }
        return Ok(());
    }
    let image = args.image.clone().unwrap_or_else(|| paths.dist().join("system.img"));
    ensure!(
        image.is_file(),
        "there is no image {}: make it with `{} image`, or name one with --image",
        image.display(),
        program()
    );
    image::compare::is_image(&image)?;
    let described = image::Description::beside(&image).ok();
    // What a person names with --image is that person's decision.
    if let (None, Some(recipe), Some(described)) = (&args.image, &args.recipe, &described) {
        described.check_recipe(recipe)?;
    }
    let version = args.version.clone().or_else(|| described.as_ref().map(|image| image.version.clone()));
    let hardware = Some(args.hardware.clone()).filter(|names| !names.is_empty());
    hardware.as_deref().map_or(Ok(()), project::check_hardware)?;
    let mut spec = Spec {
        version: version.with_context(|| without_description(&image))?,
        files: Vec::new(),
        product: needed(args.product.clone(), "--product", "product")?,
        hardware: needed(hardware, "--hardware", "hardware")?,
        channel,
        serial: args.serial,
        image,
        ostree: described.clone().map(|image| (image.ostree_commit, image.ostree_ref)),
        layout: args.layout.as_deref().map(disk::read_layout).transpose()?,
        chunk_bytes: args.chunk_bytes,
        level: args.level,
        created_unix_s: None,
        allow: args.allow.clone(),
    };
    if args.site.is_some() {
        let checked = site::read(args.site.as_deref(), args.assets.as_deref())?.check()?;
        checked.check_fit(&spec.product, &spec.hardware, &spec.channel)?;
    }
    if let (Some(layout), Some(path)) = (&spec.layout, &args.layout) {
        let image_bytes = spec.image.metadata().with_context(|| format!("look at {}", spec.image.display()))?.len();
        layout_room::smallest_disk_mib(layout, image_bytes).with_context(|| path.display().to_string())?;
    }
    let key = keygen::load_secret(key)?;
    let to = if args.for_rollout { OfferedTo::NobodyYet } else { OfferedTo::Everybody };
    release::refuse_early(to, &spec, key.keynum(), &out)?;
    warn_of_same_version(&spec, &out)?;
    let image_bytes = spec.image.metadata().with_context(|| format!("look at {}", spec.image.display()))?.len();
    if let Some(warning) = too_large(image_bytes, &history::releases(&out, &spec.channel)?) {
        eprintln!("  {warning}");
    }
    spec.files = files(&args, paths, assume_yes)?;
    let before = (out.as_path(), spec.channel.as_str());
    let software = paths.work().join("release");
    spec.files.extend(software::files(&spec.image, described.as_ref(), before, &software)?);
    let released = release::build_for(to, &spec, &key, &out)?;
    if let Some(kept) = &args.released_image {
        keep_image(&spec.image, kept)?;
    }
    produced(&summary(&released), &released.path);
    if to == OfferedTo::NobodyYet {
        waits_for_rollout(released.manifest.serial, 5);
    }
    eprintln!("  {}", room_for_undo(released.partition_bytes));
    image::named::warn_without_keys(args.recipe.as_deref());
    Ok(())
}

/// Robots go by the serial, and people by the version: two releases of one version are mostly a forgotten step.
fn warn_of_same_version(spec: &Spec, tree: &Path) -> Result<()> {
    let known = history::releases(tree, &spec.channel)?;
    if let Some(past) = known.iter().find(|past| past.manifest.version == spec.version) {
        let (version, serial) = (&spec.version, past.manifest.serial);
        eprintln!(
            "  warning: version {version} was released before, as serial {serial}: raise `version` in the recipe"
        );
    }
    Ok(())
}

/// Says which robots have no room for an image: they keep the partitions that they were provisioned with, whatever the
/// layout of a later release says.
fn too_large(image_bytes: u64, known: &[PastRelease]) -> Option<String> {
    let system_mib = |layout: &Layout| {
        let system = layout.partitions.iter().find(|partition| partition.role == Role::System)?;
        if let Size::Mib(mib) = system.size { Some(mib) } else { None }
    };
    let of = |past: &PastRelease| Some((past.manifest.serial, system_mib(past.manifest.layout.as_ref()?)?));
    let small = known.iter().filter_map(of).filter(|(_, room_mib)| image_bytes > room_mib.saturating_mul(1 << 20));
    let (serial, room_mib) = small.min_by_key(|(_, room_mib)| *room_mib)?;
    Some(format!(
        "warning: the image has {}, and machines that were provisioned with the layout of release {serial} have \
         {room_mib} MiB for the system: they cannot install this release",
        mib(image_bytes)
    ))
}

/// Says that the second step is missing: what lies in the history alone, no robot asks for.
fn waits_for_rollout(serial: u64, percent: u32) {
    let does = if percent == 100 { "does" } else { "begins" };
    eprintln!("  no robot is offered it yet: `{} rollout start {serial} --share {percent}` {does}", program());
}

/// The message about an image without a version: the builder writes the description last.
fn without_description(image: &Path) -> String {
    format!(
        "{} has no description beside it that names a version: either `{} image` is still at work or was interrupted, \
         and has to come to its end first, or the image was made by other means, and needs --version",
        image.display(),
        program()
    )
}

/// Keeps the image under a second name, which costs no space: `image` writes a new file each time.
fn keep_image(image: &Path, kept: &Path) -> Result<()> {
    let new = kept.with_added_extension("new");
    let _ = std::fs::remove_file(&new);
    let linked = std::fs::hard_link(image, &new).or_else(|_| std::fs::copy(image, &new).map(drop));
    linked
        .and_then(|()| std::fs::rename(&new, kept))
        .with_context(|| format!("keep the released image as {}", kept.display()))
}

fn check(tree: &Path, channel: &str, public: &[PathBuf]) -> Result<()> {
    let keys = trusted::of(public).context("--check needs --public")?;
    let manifest = release::check::check(tree, channel, &keys)?;
    eprintln!("  release {} (serial {}) is complete and every byte of it right", manifest.version, manifest.serial);
    Ok(())
}

fn list(tree: &Path, channel: &str) -> Result<()> {
    let releases = history::releases(tree, channel)?;
    let offers = rollout::offers(tree, channel)?;
    let lines: String = releases.iter().map(|past| listed(past, offers.as_ref()) + "\n").collect();
    answer(&lines)
}

/// One line of the list. Where there is a roll-out, it says who is offered what, and `manifest.json` is for agents that
/// know none.
fn listed(past: &PastRelease, offers: Option<&BTreeMap<u64, String>>) -> String {
    let manifest = &past.manifest;
    let seconds = i64::try_from(manifest.created_unix_s).ok();
    let made = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let made = made.map_or_else(|| "no date".to_owned(), |made| made.to_string());
    let offered = match (past.offered, offers) {
        (true, None) => "  offered now".to_owned(),
        (false, None) => String::new(),
        (oldest, Some(offers)) => {
            let offer = offers.get(&manifest.serial).map_or_else(String::new, |whom| format!("  roll-out: {whom}"));
            offer + if oldest { "  for agents without roll-outs" } else { "" }
        }
    };
    let commit = manifest.images.first().and_then(|image| image.ostree_commit.as_deref());
    let commit = commit.map_or_else(String::new, |commit| format!("  commit {}", commit.get(..12).unwrap_or(commit)));
    format!("{:>6}  {:<20}  {made}{commit}{offered}", manifest.serial, manifest.version)
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
    let deltas = manifest.images.iter().filter_map(|image| image.deltas.first()).map(|deltas| deltas.pack.size_bytes);
    let spared = match deltas.sum::<u64>() {
        0 => String::new(),
        bytes => format!("; {} of deltas for robots that have the release before", mib(bytes)),
    };
    let (version, serial) = (&manifest.version, manifest.serial);
    format!(
        "release {version} (serial {serial}), {} to download for a blank machine{spared}",
        mib(released.first_flash_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::too_large;
    use crate::release::history::PastRelease;
    use reflash::release::layout::{Layout, PartitionSpec, Role, Scheme, Size};
    use reflash::release::manifest::{FORMAT, Manifest};

    fn release(serial: u64, system: Option<Size>) -> PastRelease {
        let partition = |size| PartitionSpec { name: "system".into(), role: Role::System, size };
        let layout = system.map(|size| Layout { table: Scheme::Gpt, partitions: vec![partition(size)] });
        let manifest = Manifest {
            format: FORMAT,
            product: "demo".into(),
            hardware: vec!["*".into()],
            channel: "stable".into(),
            version: "1".into(),
            serial,
            created_unix_s: 1,
            minimum_agent: "0.1.0".into(),
            images: Vec::new(),
            layout,
            files: Vec::new(),
        };
        PastRelease { manifest, offered: false }
    }

    /// The layout was raised with the image, and every robot outside refused the release.
    #[test]
    fn robots_whose_partition_is_too_small_are_said_by_the_layout_that_they_have() {
        let known = [
            release(9, Some(Size::Mib(4096))),
            release(8, Some(Size::Mib(3072))),
            release(3, Some(Size::Mib(2048))),
            release(2, Some(Size::Rest)),
            release(1, None),
        ];
        assert_eq!(too_large(2048 << 20, &known), None);
        let said = too_large((2048 << 20) + 1, &known).unwrap();
        assert!(said.contains("layout of release 3 have 2048 MiB"), "{said}");
        assert!(too_large(3500 << 20, &known).unwrap().contains("release 3"), "the smallest");
    }
}
