//! What a project file gives to a command: each option that the command line leaves out. Pure.
//!
//! An option on the command line always wins, and so does the environment for the places. A list given on the command
//! line replaces the project's, since nothing could be left out of it otherwise.

use std::path::{Path, PathBuf};

use super::commands::BuilderCommand;
use crate::paths::{PlaceArgs, RELEASED_IMAGE};
use crate::project::Project;

/// Fills in what the command line leaves out.
pub fn take(command: &mut BuilderCommand, places: &mut PlaceArgs, project: &Project) {
    places.dist.get_or_insert_with(|| project.dist.clone());
    places.work.get_or_insert_with(|| project.work.clone());
    let dist = places.dist.clone().unwrap_or_default();
    let tree = || Some(project.release.tree.clone().unwrap_or_else(|| dist.join("release")));
    let channel = || Some(project.channel.clone());
    let released = || dist.join(RELEASED_IMAGE);
    match command {
        BuilderCommand::Initramfs(args) => list(&mut args.keys, &project.keys.public),
        BuilderCommand::Image(args) => {
            or(&mut args.recipe, || project.recipe.clone());
            list(&mut args.keys, &project.keys.public);
            // The first image has none before it.
            or(&mut args.previous, || Some(released()).filter(|path| path.is_file()));
        }
        // One image alone is the new one: it is compared with what robots have.
        BuilderCommand::Compare(args) if args.new.is_none() => {
            args.new = args.old.take().or_else(|| Some(dist.join("system.img")));
            args.old = Some(released());
        }
        BuilderCommand::Keygen(args) => or(&mut args.out, || directory_of(project.keys.secret.as_deref())),
        BuilderCommand::Release(args) => {
            or(&mut args.out, tree);
            or(&mut args.channel, channel);
            or(&mut args.key, || project.keys.secret.clone());
            or(&mut args.product, || Some(project.product.clone()));
            or(&mut args.layout, || project.layout.clone());
            or(&mut args.site, || project.site.clone());
            or(&mut args.assets, || project.assets.clone());
            list(&mut args.hardware, &project.hardware);
            list(&mut args.public, &project.keys.public);
            list(&mut args.recovery_keys, &project.keys.public);
            or(&mut args.recipe, || project.recipe.clone());
            args.recovery |= project.release.recovery;
            args.released_image = Some(released());
        }
        BuilderCommand::Publish(args) => {
            or(&mut args.dir, tree);
            or(&mut args.channel, channel);
            or(&mut args.to, || project.publish.to.clone());
            or(&mut args.endpoint, || project.publish.endpoint.clone());
            or(&mut args.region, || project.publish.region.clone());
            list(&mut args.public, &project.keys.public);
        }
        BuilderCommand::Rollout(args) => {
            let options = &mut args.options;
            or(&mut options.dir, tree);
            or(&mut options.channel, channel);
            or(&mut options.to, || project.publish.to.clone());
            or(&mut options.endpoint, || project.publish.endpoint.clone());
            or(&mut options.region, || project.publish.region.clone());
            or(&mut options.key, || project.keys.secret.clone());
            list(&mut options.public, &project.keys.public);
        }
        BuilderCommand::PublishOstree(args) => {
            or(&mut args.into, || project.ostree.repository.clone());
            list(&mut args.refs, &project.ostree.refs);
            // A key that was named on the command line lies in GnuPG's own directory, or in the one named with it.
            if args.gpg_key.is_none() {
                args.gpg_key.clone_from(&project.ostree.gpg_key);
                args.gpg_home.clone_from(&project.ostree.gpg_home);
            }
        }
        BuilderCommand::Prune(args) => {
            or(&mut args.dir, tree);
            args.take_place(project.publish.to.as_ref());
            or(&mut args.endpoint, || project.publish.endpoint.clone());
            or(&mut args.region, || project.publish.region.clone());
        }
        BuilderCommand::Serve(args) => {
            or(&mut args.dir, tree);
            or(&mut args.listen, || project.serve.listen);
        }
        BuilderCommand::Disk(args) => {
            or(&mut args.config, || project.site.clone());
            or(&mut args.layout, || project.layout.clone());
            or(&mut args.size_mib, || project.disk.size_mib);
            list(&mut args.keys, &project.keys.public);
            list(&mut args.files, &project.disk.files);
        }
        BuilderCommand::Media(args) => {
            or(&mut args.config, || project.site.clone());
            or(&mut args.assets, || project.assets.clone());
            or(&mut args.channel, channel);
            list(&mut args.keys, &project.keys.public);
            or(&mut args.recipe, || project.recipe.clone());
            // A network boot carries no release.
            if !args.no_release && args.netboot.is_none() {
                or(&mut args.release, tree);
            }
        }
        _ => {}
    }
}

fn or<T>(option: &mut Option<T>, of_project: impl FnOnce() -> Option<T>) {
    if option.is_none() {
        *option = of_project();
    }
}

fn list<T: Clone>(option: &mut Vec<T>, of_project: &[T]) {
    if option.is_empty() {
        option.extend_from_slice(of_project);
    }
}

fn directory_of(file: Option<&Path>) -> Option<PathBuf> {
    Some(file?.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::take;
    use crate::cli::Cli;
    use crate::cli::commands::BuilderCommand;
    use crate::project::Project;
    use clap::Parser;
    use std::path::{Path, PathBuf};

    fn project() -> Project {
        let text = "product = 'arm'\nhardware = ['NUC*']\nchannel = 'beta'\nrecipe = 'r.toml'\nlayout = 'l.toml'\n\
                    site = 's.toml'\nassets = 'a.txt'\n[keys]\nsecret = 'keys/k.key'\npublic = ['keys/k.pub']\n\
                    [release]\nrecovery = true\n[disk]\nsize_mib = 4096\nfiles = ['ca.pem']\n[publish]\n\
                    to = 's3://b/p'\nregion = 'eu'\n[serve]\nlisten = '127.0.0.1:1'\n\
                    [ostree]\nrepository = 'repo'\nrefs = ['arm/beta']\ngpg_key = 'ours'\ngpg_home = 'gpg'\n";
        Project::parse(text, Path::new("/p")).unwrap()
    }

    fn filled(line: &[&str]) -> (BuilderCommand, PathBuf) {
        let cli = Cli::try_parse_from([&["x"], line].concat()).unwrap();
        let Cli { mut command, mut places, .. } = cli;
        take(&mut command, &mut places, &project());
        (command, places.dist.unwrap())
    }

    macro_rules! args {
        ($line:expr, $command:ident) => {
            match filled($line).0 {
                BuilderCommand::$command(args) => args,
                _ => unreachable!(),
            }
        };
    }

    #[test]
    fn a_release_needs_no_option() {
        let args = args!(&["release"], Release);
        assert_eq!((args.product.as_deref(), args.channel.as_deref()), (Some("arm"), Some("beta")));
        assert_eq!((args.hardware, args.recovery), (vec!["NUC*".to_owned()], true));
        assert_eq!(args.key.as_deref(), Some(Path::new("/p/keys/k.key")));
        assert_eq!(args.out.as_deref(), Some(Path::new("/p/dist/release")));
        assert_eq!((args.layout, args.site), (Some("/p/l.toml".into()), Some("/p/s.toml".into())));
        assert_eq!(args.recovery_keys, args.public);
        assert_eq!(args.released_image, Some("/p/dist/released.img".into()));
    }

    #[test]
    fn the_command_line_wins_key_by_key_and_a_list_replaces_the_list() {
        let line = ["release", "--product", "leg", "--hardware", "x", "--key", "my.key", "--channel", "stable"];
        let args = args!(&line, Release);
        assert_eq!((args.product.as_deref(), args.channel.as_deref()), (Some("leg"), Some("stable")));
        assert_eq!((args.hardware, args.key), (vec!["x".to_owned()], Some("my.key".into())));
        assert_eq!(args.layout, Some("/p/l.toml".into()));
        let (_, dist) = filled(&["--dist", "elsewhere", "serve"]);
        assert_eq!(dist, Path::new("elsewhere"));
        let args = args!(&["--dist", "elsewhere", "release"], Release);
        assert_eq!(args.out, Some("elsewhere/release".into()));
    }

    #[test]
    fn every_command_of_the_chain_takes_what_it_needs() {
        assert_eq!(args!(&["image"], Image).recipe, Some("/p/r.toml".into()));
        assert_eq!(args!(&["image", "other.toml"], Image).recipe, Some("other.toml".into()));
        assert_eq!(args!(&["image"], Image).keys, [Path::new("/p/keys/k.pub")]);
        assert_eq!(args!(&["image"], Image).previous, None, "there is no image before the first");
        assert_eq!(args!(&["initramfs"], Initramfs).keys, [Path::new("/p/keys/k.pub")]);
        assert_eq!(args!(&["keygen"], Keygen).out, Some("/p/keys".into()));
        let disk = args!(&["disk"], Disk);
        assert_eq!((disk.size_mib, disk.config), (Some(4096), Some("/p/s.toml".into())));
        assert_eq!((disk.files, disk.layout), (vec!["/p/ca.pem".into()], Some("/p/l.toml".into())));
        let media = args!(&["media"], Media);
        assert_eq!((media.release, media.channel.as_deref()), (Some("/p/dist/release".into()), Some("beta")));
        assert_eq!((media.assets, media.keys), (Some("/p/a.txt".into()), vec!["/p/keys/k.pub".into()]));
        assert_eq!(args!(&["media", "--no-release"], Media).release, None);
        assert_eq!(args!(&["media", "--netboot", "d"], Media).release, None);
        assert_eq!(args!(&["serve"], Serve).listen, Some("127.0.0.1:1".parse().unwrap()));
        let publish = args!(&["publish"], Publish);
        assert_eq!((publish.to.as_deref(), publish.region.as_deref()), (Some("s3://b/p"), Some("eu")));
        let rollout = args!(&["rollout", "halt", "8"], Rollout).options;
        assert_eq!((rollout.to.as_deref(), rollout.channel.as_deref()), (Some("s3://b/p"), Some("beta")));
        assert_eq!((rollout.key, rollout.public), (Some("/p/keys/k.key".into()), vec!["/p/keys/k.pub".into()]));
        let ostree = args!(&["publish-ostree"], PublishOstree);
        assert_eq!((ostree.into, ostree.refs), (Some("/p/repo".into()), vec!["arm/beta".to_owned()]));
        assert_eq!((ostree.gpg_key.as_deref(), ostree.gpg_home), (Some("ours"), Some("/p/gpg".into())));
        let ostree = args!(&["publish-ostree", "--ref", "arm/x", "--gpg-key", "mine"], PublishOstree);
        assert_eq!((ostree.refs, ostree.gpg_home), (vec!["arm/x".to_owned()], None));
        let compare = args!(&["compare"], Compare);
        assert_eq!(
            (compare.old, compare.new),
            (Some("/p/dist/released.img".into()), Some("/p/dist/system.img".into()))
        );
        let compare = args!(&["compare", "new.img"], Compare);
        assert_eq!((compare.old, compare.new), (Some("/p/dist/released.img".into()), Some("new.img".into())));
        let compare = args!(&["compare", "old.img", "new.img"], Compare);
        assert_eq!((compare.old, compare.new), (Some("old.img".into()), Some("new.img".into())));
    }
}
