//! `cargo xtask demo`: builds everything from nothing and shows a virtual robot that reflashes itself.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reflash::boot::grubenv::names;
use reflash::release::digest::Digest;

use crate::bootstrap_files;
use crate::grub::{self, GrubImages};
use crate::host_packages::{Need, ensure_installed};
use crate::image;
use crate::initramfs::{self, BuiltRecovery};
use crate::keygen::{self, KeyFiles};
use crate::paths::Paths;
use crate::release::{self, Spec};
use crate::serve::{self, Server};
use crate::step::{human, output, produced, step};
use crate::vm::{RunningMachine, VirtualMachine};
use crate::{disk, room, step};

/// The product of the demonstration.
pub const PRODUCT: &str = "demo-robot";
/// The hardware name of the demonstration's robots, which QEMU's firmware reports.
pub const HARDWARE: &str = "reflash demo";

/// Address of this machine as a guest of QEMU's user network sees it (QEMU's documentation, "user mode network").
const HOST_SEEN_BY_GUEST: &str = "10.0.2.2";

/// Time for a boot under emulation on a loaded machine: more than three times the longest that was seen.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// Time for a download, a write or a read-back under emulation.
pub const FLASH_TIMEOUT: Duration = Duration::from_secs(900);

/// The phases of a recovery, with the time that each may take under emulation.
const PHASES: [(&str, Duration); 8] = [
    ("init", BOOT_TIMEOUT),
    ("config", BOOT_TIMEOUT),
    ("network", BOOT_TIMEOUT),
    ("manifest", BOOT_TIMEOUT),
    ("plan", FLASH_TIMEOUT),
    ("write", FLASH_TIMEOUT),
    ("verify", FLASH_TIMEOUT),
    ("commit", FLASH_TIMEOUT),
];

/// Duration and room (bytes) of a demonstration that builds everything, measured with two cores under emulation.
const FIRST: (&str, u64) = ("10 minutes", 3_500_000_000);
/// Duration and room (bytes) of one that builds the disk only, measured in the same way.
const REPEATED: (&str, u64) = ("2 minutes", 1_500_000_000);

/// The parts that every robot's disk is made of, whatever system it runs.
#[derive(Debug, Clone)]
pub struct RobotParts {
    /// The agent, statically linked.
    pub agent: PathBuf,
    /// The images of GRUB.
    pub grub: GrubImages,
    /// Recovery kernel and initramfs.
    pub recovery: BuiltRecovery,
    /// The key pair that releases are signed with.
    pub keys: KeyFiles,
}

/// The parts of a robot, and the release of the demonstration's system.
#[derive(Debug, Clone)]
pub struct BuiltDemo {
    /// The parts of the disk.
    pub parts: RobotParts,
    /// The system image.
    pub image: PathBuf,
    /// Description of the system image.
    pub description: image::Description,
    /// The release tree.
    pub release: PathBuf,
}

/// Builds the parts of every robot. What has not changed is not built again.
///
/// # Errors
/// The first part that fails.
pub fn build_robot_parts(paths: &Paths, assume_yes: bool) -> Result<RobotParts> {
    ensure_installed(&[Need::Agent, Need::Initramfs, Need::Disk, Need::Vm], assume_yes)?;
    let keys_directory = paths.work().join("keys");
    let keys = KeyFiles::within(&keys_directory);
    if !keys.secret.exists() {
        keygen::generate(&keys_directory, None)?;
    }
    let recovery = initramfs::recovery(paths, std::slice::from_ref(&keys.public), assume_yes)?;
    let grub = grub::build(paths, assume_yes)?;
    Ok(RobotParts { agent: paths.dist().join("reflash"), grub, recovery, keys })
}

/// Builds everything but the disk. What has not changed is not built again.
///
/// # Errors
/// The first part that fails.
pub fn build_all(paths: &Paths, assume_yes: bool) -> Result<BuiltDemo> {
    // All packages are asked for at once, at the beginning.
    ensure_installed(&[Need::Agent, Need::Initramfs, Need::Image, Need::Disk, Need::Vm], assume_yes)?;
    let parts = build_robot_parts(paths, assume_yes)?;
    let image = paths.dist().join("system.img");
    let recipe = paths.root.join("xtask/recipes/demo.toml");
    let description = image::build(
        paths,
        &recipe,
        &image,
        &image::ImageOptions { assume_yes, keep_packages: true, ..image::ImageOptions::default() },
    )?;
    let release = paths.dist().join("release");
    let kit = bootstrap_files::files(paths, &parts.grub, &parts.recovery, &paths.dist().join("kit"))?;
    publish(paths, &image, &description, kit, &parts.keys, &release)?;
    Ok(BuiltDemo { parts, image, description, release })
}

/// Releases the image and these files, unless exactly these are published already.
fn publish(
    paths: &Paths,
    image: &Path,
    description: &image::Description,
    files: Vec<(String, PathBuf)>,
    keys: &KeyFiles,
    tree: &Path,
) -> Result<()> {
    let mut trusted = reflash::release::manifest::TrustedKeys::default();
    trusted.add("demo", &std::fs::read_to_string(&keys.public)?)?;
    let published = release::check::check(tree, "stable", &trusted);
    let same = published.is_ok_and(|manifest| {
        manifest.images.iter().any(|known| known.ostree_commit.as_deref() == Some(&description.ostree_commit))
            && sha256(image).is_ok_and(|sum| manifest.images[0].sha256 == sum)
            && manifest.files.len() == files.len()
            && manifest.files.iter().zip(&files).all(|(known, (name, path))| {
                known.name == *name
                    && std::fs::read(path).is_ok_and(|content| Digest::of(&content) == known.object.blake3)
            })
    });
    if same {
        step::unchanged("release");
        return Ok(());
    }
    let spec = Spec {
        product: PRODUCT.to_owned(),
        hardware: vec![HARDWARE.to_owned()],
        channel: "stable".to_owned(),
        version: description.version.clone(),
        serial: None,
        image: image.to_owned(),
        ostree: Some((description.ostree_commit.clone(), description.ostree_ref.clone())),
        files,
        layout: Some(disk::read_layout(&paths.root.join("xtask/recipes/layout.toml"))?),
        chunk_bytes: None,
        level: release::DEFAULT_LEVEL,
        created_unix_s: None,
        allow: Vec::new(),
    };
    let released = release::build(&spec, &keygen::load_secret(&keys.secret)?, tree)?;
    produced("release", &released.path);
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg(path))?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Starts a server of the release on a free port of this machine. Returns it and the URL that robots reach it under.
///
/// # Errors
/// When the tree is not there.
pub fn serve_to_guests(tree: &Path) -> Result<(Server, String)> {
    let server = serve::start(tree, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false)?;
    let url = format!("http://{HOST_SEEN_BY_GUEST}:{}", server.address.port());
    Ok((server, url))
}

/// The configuration of a robot that follows the releases at `url`.
#[must_use]
pub fn robot_config(url: &str) -> String {
    format!("[release]\nurls = [\"{url}\"]\n\n[machine]\nproduct = \"{PRODUCT}\"\nhostname = \"robot-{{serial}}\"\n")
}

/// Assembles a robot's disk with an empty system partition.
///
/// # Errors
/// As [`disk::build`].
pub fn robot_disk(paths: &Paths, robot: &RobotParts, config: String, out: &Path) -> Result<()> {
    let layout = disk::read_layout(&paths.root.join("xtask/recipes/layout.toml"))?;
    let parts = disk::DiskParts {
        layout: &layout,
        disk_bytes: disk::DEFAULT_BYTES,
        block_bytes: 512,
        grub: &robot.grub,
        recovery: &robot.recovery,
        config,
        keys: vec![robot.keys.public.clone()],
        files: Vec::new(),
        environment: disk::environment_without_system(),
    };
    disk::build(paths, &parts, out, true)
}

/// Runs the whole demonstration.
///
/// # Errors
/// When there is too little room, and the first step that does not happen.
pub fn run(paths: &Paths, assume_yes: bool) -> Result<()> {
    let started = Instant::now();
    announce(paths)?;
    eprintln!("Building");
    let built = build_all(paths, assume_yes)?;
    let (server, url) = serve_to_guests(&built.release)?;
    let disk = paths.dist().join("disk.img");
    robot_disk(paths, &built.parts, robot_config(&url), &disk)?;
    eprintln!("Starting a virtual robot with an empty system partition; lines after a | are its screen");
    let mut machine = VirtualMachine::robot("demo", &disk);
    machine.show_screen = true;
    let log = watch(&mut machine.start()?, &built.description.version)?;
    step("compare the system partition with the image", || check_system(&disk, &built.image))?;
    check_environment(&disk)?;
    let requests = server.counters.requests.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!();
    eprintln!(
        "The robot reflashed itself to {} and called the boot good, in {}",
        built.description.version,
        human(started.elapsed())
    );
    eprintln!("  after the system ran, its partition is byte for byte the released image");
    eprintln!("  OSTree commit {}", built.description.ostree_commit);
    eprintln!("  requests to the server: {requests}");
    produced("serial log", &log);
    Ok(())
}

/// Says what the demonstration takes, and refuses to begin what would end with a full disk.
fn announce(paths: &Paths) -> Result<()> {
    let built_before = paths.dist().join("system.img").exists();
    let (time, room_bytes) = if built_before { REPEATED } else { FIRST };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let target = paths.root.join("target");
    eprintln!(
        "This takes about {time}, and up to {:.1} GB of room in {}; what was built before and has not changed is used \
         again",
        gb(room_bytes),
        target.display()
    );
    room::require("the demonstration", room_bytes, &paths.root, "move the checkout to a larger file system")
}

/// Follows a robot from its first menu to a good boot, and switches it off in its own order. Returns the path of the
/// serial console's log.
fn watch(robot: &mut RunningMachine, version: &str) -> Result<PathBuf> {
    choose_recovery(robot)?;
    watch_recovery(robot)?;
    watch_first_boot(robot, version, "robot-demo0001")?;
    watched("shut the robot down", || {
        robot.press_power_button()?;
        robot.wait_for_end(BOOT_TIMEOUT)
    })?;
    Ok(robot.log_path.clone())
}

/// Runs a step during which the robot shows its screen: the name stands above those lines, the duration below them.
fn watched<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("  {name} ...");
    let started = Instant::now();
    let result = work();
    let how = if result.is_ok() { "done in" } else { "FAILED after" };
    eprintln!("  {name}: {how} {}", human(started.elapsed()));
    result.with_context(|| name.to_owned())
}

/// Picks "Recover/Reflash" in GRUB's menu, as a technician would.
fn choose_recovery(robot: &mut RunningMachine) -> Result<()> {
    watched("GRUB shows its menu; choose \"Recover/Reflash\"", || {
        robot.wait_for("Recover/Reflash", BOOT_TIMEOUT)?;
        robot.type_text("r")
    })
}

/// Follows a recovery to the restart. A step ends where the robot says that its phase ended: with the beginning of the
/// next phase, the wait between two phases would count for the earlier one.
fn watch_recovery(robot: &RunningMachine) -> Result<()> {
    let until = |text: &str, timeout| match robot.wait_for_any(&[text, "recovery cannot go on"], timeout)? {
        // To the end of the line, so that all of it is shown above the end of the step.
        (0, _) => robot.wait_for("\n", timeout).map(drop),
        (_, text) => bail!("the agent parked:\n{text}"),
    };
    watched("the recovery starts", || until("[1/8] init", BOOT_TIMEOUT))?;
    for (number, (phase, timeout)) in (1..).zip(PHASES) {
        watched(&format!("recovery [{number}/{}] {phase}", PHASES.len()), || {
            until(&format!("{phase} done in"), timeout)
        })?;
    }
    Ok(())
}

/// Follows the first boot of a new system to its login prompt, under the name its hardware stands for, and
/// `reflash good`.
fn watch_first_boot(robot: &RunningMachine, version: &str, name: &str) -> Result<()> {
    watched("the robot restarts", || {
        robot.wait_for("starting it", BOOT_TIMEOUT)?;
        robot.wait_for("Start the system", BOOT_TIMEOUT)
    })?;
    let login = &format!("{name} login:");
    let screen = watched("the new system calls its boot good and shows its login prompt", || {
        // In either order. The login program hangs the console up when it takes it over, and a line that is written at
        // that moment is lost: either the command's or the unit's line proves the good boot.
        let (mut screen, mut is_good, mut has_prompt) = (String::new(), false, false);
        while !(is_good && has_prompt) {
            let patterns = [login, "this boot is good", "Finished reflash-good.service"];
            let (pattern, text) = robot.wait_for_any(&patterns, BOOT_TIMEOUT)?;
            screen += &text;
            if pattern == 0 { has_prompt = true } else { is_good = true }
        }
        Ok(screen)
    })?;
    ensure!(screen.contains(version), "the system did not print its version {version} before its login prompt");
    Ok(())
}

/// Checks that the system partition is byte for byte the image.
///
/// # Errors
/// The first difference.
pub fn check_system(disk: &Path, image: &Path) -> Result<()> {
    let range = disk::partition_range(disk, "system")?;
    let (device, mut image) = (File::open(disk)?, File::open(image)?);
    let mut offset = range.start;
    let (mut expected, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let len = image.read(&mut expected)?;
        if len == 0 {
            return Ok(());
        }
        device.read_exact_at(&mut found[..len], offset)?;
        if expected[..len] != found[..len] {
            let at = offset - range.start;
            bail!("the system partition differs from the image in the MiB at byte {at}");
        }
        offset += len as u64;
    }
}

fn check_environment(disk: &Path) -> Result<()> {
    let env = disk::read_environment(disk)?;
    let is = |name, value| env.get(name) == Some(value);
    ensure!(
        is(names::TRIES, "3") && is(names::BOOT_OK, "1") && env.get(names::RECOVERING).is_none(),
        "the boot environment is not that of a good boot: {:?}",
        env.iter().collect::<Vec<_>>()
    );
    Ok(())
}
