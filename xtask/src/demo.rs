//! `cargo xtask demo`: everything from nothing, and a virtual robot that reflashes itself.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use reflash::boot::grubenv::names;
use reflash::release::digest::Digest;

use crate::grub::{self, Images};
use crate::host::{Need, ensure_installed};
use crate::image;
use crate::initramfs::{self, Recovery};
use crate::keygen::{self, KeyFiles};
use crate::kit;
use crate::paths::Paths;
use crate::release::{self, Spec};
use crate::serve::{self, Server};
use crate::step::{human, output, produced, step};
use crate::vm::{Machine, Running};
use crate::{disk, step};

/// The product of the demonstration.
pub const PRODUCT: &str = "demo-robot";
/// What QEMU's firmware says the machine is.
pub const HARDWARE: &str = "reflash demo";

/// Address of this machine as a guest of QEMU's user network sees it (QEMU's documentation, "user mode network").
const HOST_SEEN_BY_GUEST: &str = "10.0.2.2";

/// Under emulation on a loaded machine; more than three times what was ever seen.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// Download, write and read-back under emulation.
pub const FLASH_TIMEOUT: Duration = Duration::from_secs(900);

/// Everything that `target/dist/` holds, without a disk.
#[derive(Debug, Clone)]
pub struct Built {
    /// GRUB.
    pub grub: Images,
    /// Recovery kernel and initramfs.
    pub recovery: Recovery,
    /// The key pair releases are signed with.
    pub keys: KeyFiles,
    /// The system image.
    pub image: PathBuf,
    /// Its description.
    pub description: image::Description,
    /// The release tree.
    pub release: PathBuf,
}

/// Builds everything but the disk. What has not changed is not built again.
///
/// # Errors
/// The first part that fails.
pub fn build_all(paths: &Paths, assume_yes: bool) -> Result<Built> {
    ensure_installed(&[Need::Agent, Need::Initramfs, Need::Image, Need::Disk, Need::Vm], assume_yes)?;
    let keys_directory = paths.work().join("keys");
    let keys = KeyFiles::within(&keys_directory);
    if !keys.secret.exists() {
        keygen::generate(&keys_directory, None)?;
    }
    let recovery = initramfs::recovery(paths, std::slice::from_ref(&keys.public), assume_yes)?;
    let grub = grub::build(paths, assume_yes)?;
    let image = paths.dist().join("system.img");
    let recipe = paths.root.join("xtask/recipes/demo.toml");
    let description =
        image::build(paths, &recipe, &image, &image::Options { assume_yes, ..image::Options::default() })?;
    let release = paths.dist().join("release");
    let kit = kit::files(paths, &grub, &recovery, &paths.dist().join("kit"))?;
    publish(paths, &image, &description, kit, &keys, &release)?;
    Ok(Built { grub, recovery, keys, image, description, release })
}

/// Releases the image and these files, unless these very ones are published already.
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
    };
    let released = release::build(&spec, &keygen::load_secret(&keys.secret)?, tree)?;
    produced("release", &released.path);
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg(path))?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A server of the release on a free port of this machine, and the URL robots reach it under.
///
/// # Errors
/// When the tree is not there.
pub fn serve_to_guests(tree: &Path) -> Result<(Server, String)> {
    let server = serve::start(tree, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false)?;
    let url = format!("http://{HOST_SEEN_BY_GUEST}:{}", server.address.port());
    Ok((server, url))
}

/// Configuration of a robot that follows `url`.
#[must_use]
pub fn robot_config(url: &str) -> String {
    format!("[release]\nurls = [\"{url}\"]\n\n[machine]\nproduct = \"{PRODUCT}\"\nhostname = \"robot-{{serial}}\"\n")
}

/// Assembles a robot's disk with an empty system partition.
///
/// # Errors
/// As [`disk::build`].
pub fn robot_disk(paths: &Paths, built: &Built, config: String, out: &Path) -> Result<()> {
    let layout = disk::read_layout(&paths.root.join("xtask/recipes/layout.toml"))?;
    let parts = disk::Parts {
        layout: &layout,
        disk_bytes: disk::DEFAULT_BYTES,
        block_bytes: 512,
        grub: &built.grub,
        recovery: &built.recovery,
        config,
        keys: vec![built.keys.public.clone()],
        files: Vec::new(),
        environment: disk::environment_without_system(),
    };
    disk::build(paths, &parts, out, true)
}

/// The whole demonstration.
///
/// # Errors
/// The first thing that does not happen.
pub fn run(paths: &Paths, assume_yes: bool) -> Result<()> {
    let started = Instant::now();
    eprintln!("Building");
    let built = build_all(paths, assume_yes)?;
    let (server, url) = serve_to_guests(&built.release)?;
    let disk = paths.dist().join("disk.img");
    robot_disk(paths, &built, robot_config(&url), &disk)?;
    eprintln!("Starting a virtual robot with an empty system partition");
    let mut robot = Machine::robot("demo", &disk).start()?;
    choose_recovery(&mut robot)?;
    watch_recovery(&robot)?;
    watch_first_boot(&robot, &built.description.version, "robot-demo0001")?;
    step("shut the robot down", || {
        robot.press_power_button()?;
        robot.wait_for_end(BOOT_TIMEOUT)
    })?;
    let log = robot.log_path.clone();
    drop(robot);
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

/// Picks "Recover/Reflash" in GRUB's menu, as a technician would.
///
/// # Errors
/// When the menu does not appear.
pub fn choose_recovery(robot: &mut Running) -> Result<()> {
    step("GRUB shows its menu; choose \"Recover/Reflash\"", || {
        robot.wait_for("Recover/Reflash", BOOT_TIMEOUT)?;
        robot.type_text("r")
    })
}

/// Follows a recovery to its reboot.
///
/// # Errors
/// When a phase does not come.
pub fn watch_recovery(robot: &Running) -> Result<()> {
    for (phase, timeout) in [
        ("[1/8] init", BOOT_TIMEOUT),
        ("[2/8] config", BOOT_TIMEOUT),
        ("[3/8] network", BOOT_TIMEOUT),
        ("[4/8] manifest", BOOT_TIMEOUT),
        ("[5/8] plan", BOOT_TIMEOUT),
        ("[6/8] write", FLASH_TIMEOUT),
        ("[7/8] verify", FLASH_TIMEOUT),
        ("[8/8] commit", FLASH_TIMEOUT),
        ("starting it", FLASH_TIMEOUT),
    ] {
        step(&format!("recovery: {phase}"), || {
            match robot.wait_for_any(&[phase, "recovery cannot go on"], timeout)? {
                (0, _) => Ok(()),
                (_, text) => bail!("the agent parked:\n{text}"),
            }
        })?;
    }
    Ok(())
}

/// Follows the first boot of a new system to its login prompt, under the name its hardware stands for, and
/// `reflash good`.
///
/// # Errors
/// When it does not come up.
pub fn watch_first_boot(robot: &Running, version: &str, name: &str) -> Result<()> {
    step("the new system starts", || robot.wait_for("Start the system", BOOT_TIMEOUT))?;
    // The two come in either order.
    let login = &format!("{name} login:");
    let good = "Finished reflash-good.service";
    let screen = step("it calls its boot good and shows its login prompt", || {
        let (first, before) = robot.wait_for_any(&[good, login], BOOT_TIMEOUT)?;
        let after = robot.wait_for(if first == 0 { login } else { good }, BOOT_TIMEOUT)?;
        Ok(before + &after)
    })?;
    ensure!(screen.contains(version), "the system did not print its version {version} before its login prompt");
    for line in screen.lines().filter(|line| line.contains(version) || line.contains(login)) {
        eprintln!("  | {}", line.trim());
    }
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
