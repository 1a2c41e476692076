//! `cargo xtask`: every command of the builder.

mod cli;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use reflash::release::manifest::TrustedKeys;
use xtask::paths::Paths;
use xtask::step::produced;
use xtask::{
    agent, bench, demo, disk, grub, host, image, initramfs, keygen, kit, media, powercut, publish, release, serve, test,
};

use cli::{Cli, Command, PowerCutArgs, ReleaseArgs};

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
        Command::Test { mut tiers, full, only } => {
            if full {
                tiers.push(test::Tier::Full);
            }
            test::run(&paths, &test::Options { tiers, only, assume_yes: yes })
        }
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
                block_bytes: args.sector_bytes,
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
        chunk_bytes: args.chunk_bytes,
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
