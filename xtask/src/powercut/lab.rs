//! What the recordings are made with: releases, and robots that recover to them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use reflash::release::digest::Digest;
use reflash::release::index::Index;
use reflash::release::layout::{Role, Size};
use reflash::release::manifest::{self, SYSTEM_IMAGE, TrustedKeys};

use super::judge::{self, ReleaseUnderTest};
use crate::disk::{self as robot_disk, DiskParts};
use crate::grub::GrubImages;
use crate::keygen::{self, KeyFiles};
use crate::paths::Paths;
use crate::release::{self, Spec};
use crate::serve::Server;
use crate::step::step;
use crate::test_system::{self, Behaviour};
use crate::{agent, demo, grub as grub_images, initramfs};

/// Size of the state partition: small, so that each of thousands of states is mounted in milliseconds.
const STATE_MIB: u64 = 16;
/// Size of the recovery partition: room for two recoveries of at most 24 MiB each, and no more, because the partition
/// is held in memory several times.
const RECOVERY_MIB: u64 = 64;
/// Size of each system of a robot with two: room for an image of the tiny system.
const SYSTEM_MIB: u64 = 40;
/// Recipe of a disk with two systems.
pub(super) const TWO_SYSTEMS: &str = "layout-two-systems.toml";

/// Two releases, and a robot that recovers to them.
pub(super) struct Lab {
    pub(super) paths: Paths,
    pub(super) directory: PathBuf,
    pub(super) keys: KeyFiles,
    pub(super) trusted: TrustedKeys,
    /// Server of the releases, for as long as the robot is needed.
    pub(super) _server: Server,
    pub(super) images: Vec<PathBuf>,
    pub(super) releases: Vec<ReleaseUnderTest>,
    pub(super) grub: GrubImages,
    pub(super) recovery: initramfs::BuiltRecovery,
    /// Recoveries that slots may hold: the one that the robot was made with, and the one that the second release
    /// carries.
    pub(super) recoveries: [judge::SlotFiles; 2],
    /// Recovery of the second release, as files of a release.
    pub(super) carried: Vec<(String, PathBuf)>,
}

impl Lab {
    pub(super) fn new(paths: &Paths, assume_yes: bool) -> Result<Self> {
        let directory = paths.work().join("power-cut");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("release"))?;
        keygen::generate(&directory.join("keys"), None)?;
        let keys = KeyFiles::within(&directory.join("keys"));
        let mut trusted = TrustedKeys::default();
        trusted.add("power-cut", &std::fs::read_to_string(&keys.public)?)?;
        let agent = agent::obtain(paths, assume_yes)?;
        let (server, url) = demo::serve_to_guests(&directory.join("release"))?;
        let mut images = Vec::new();
        let kinds = [("1", Behaviour::Good), ("2", Behaviour::Good), ("3", Behaviour::NeverGood)];
        for (version, behaviour) in kinds {
            let image = directory.join(format!("system-{version}.img"));
            let spec = test_system::TestSystem { version, behaviour, image_mib: test_system::MIN_MIB, padding_mib: 2 };
            step(&format!("make the system of release {version}"), || {
                test_system::build(paths, &spec, &agent, &image)
            })?;
            images.push(image);
        }
        let grub = grub_images::build(paths, assume_yes)?;
        let recovery = initramfs::recovery(paths, &[], assume_yes)?;
        let provisioned = robot_disk::recovery_files(&grub, &recovery)?;
        let another = initramfs::BuiltRecovery { initramfs: directory.join("initramfs.img"), ..recovery.clone() };
        // To the kernel, zeros behind an archive are padding.
        let mut initramfs = std::fs::read(&recovery.initramfs)?;
        initramfs.extend([0; 4096]);
        std::fs::write(&another.initramfs, initramfs)?;
        let carried = robot_disk::recovery_files(&grub, &another)?;
        let recoveries = [digests(&provisioned)?, digests(&carried)?];
        let lab = Self {
            paths: paths.clone(),
            directory,
            keys,
            trusted,
            _server: server,
            images,
            releases: Vec::new(),
            grub,
            recovery,
            recoveries,
            carried,
        };
        lab.make_disk("layout.toml", &url, &lab.disk(), assume_yes)?;
        Ok(lab)
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.directory.join("disk.img")
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.directory.join("release")
    }

    /// Makes a robot's disk with the layout of a recipe, small where that is fast.
    pub(super) fn make_disk(&self, recipe: &str, url: &str, out: &Path, assume_yes: bool) -> Result<()> {
        let mut layout = robot_disk::read_layout(&self.paths.root.join("xtask/recipes").join(recipe))?;
        for partition in &mut layout.partitions {
            match partition.role {
                Role::State => partition.size = Size::Mib(STATE_MIB),
                Role::Recovery => partition.size = Size::Mib(RECOVERY_MIB),
                // Both systems of a robot that has two are held in memory as a whole.
                Role::System | Role::System2 if recipe == TWO_SYSTEMS => partition.size = Size::Mib(SYSTEM_MIB),
                _ => {}
            }
        }
        let config = demo::robot_config(url).replace("[machine]", "spread_s = 0\n[machine]");
        let parts = DiskParts {
            layout: &layout,
            disk_bytes: robot_disk::DEFAULT_BYTES,
            block_bytes: 512,
            grub: &self.grub,
            recovery: &self.recovery,
            config,
            keys: vec![self.keys.public.clone()],
            files: Vec::new(),
            environment: robot_disk::environment_without_system(),
        };
        robot_disk::build(&self.paths, &parts, out, assume_yes)
    }

    /// Publishes release `number + 1` in a tree.
    pub(super) fn publish(&self, number: usize, tree: &Path) -> Result<ReleaseUnderTest> {
        let spec = Spec {
            product: demo::PRODUCT.to_owned(),
            hardware: vec![demo::HARDWARE.to_owned()],
            channel: "stable".to_owned(),
            version: (number + 1).to_string(),
            serial: None,
            image: self.images[number].clone(),
            ostree: None,
            files: if number == 0 { Vec::new() } else { self.carried.clone() },
            layout: None,
            chunk_bytes: None,
            level: 1,
            created_unix_s: None,
            allow: Vec::new(),
        };
        let released = release::build(&spec, &keygen::load_secret(&self.keys.secret)?, tree)?;
        let index = released.manifest.image(SYSTEM_IMAGE)?.index;
        let index = std::fs::read(tree.join(manifest::object_path(&index.blake3)))?;
        let image = std::fs::read(&self.images[number])?;
        Ok(ReleaseUnderTest { serial: released.manifest.serial, index: Index::from_object(&index)?, image })
    }
}

fn digests(files: &[(String, PathBuf)]) -> Result<judge::SlotFiles> {
    let digests = files.iter().map(|(_, path)| Ok(Digest::of(&std::fs::read(path)?))).collect::<Result<Vec<_>>>()?;
    digests.try_into().map_err(|_| anyhow::anyhow!("a recovery must have as many files as a slot"))
}
