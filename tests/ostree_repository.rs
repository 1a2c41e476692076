//! The repository that is published, as the real tool sees it: plain `ostree pull` gets the commit of the image.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use xtask::host_packages::{Need, ensure_installed};
use xtask::ostree_repository::{Signer, publish};
use xtask::serve::{self, Server};

use crate::support::sample_image;

const STABLE: &str = "robot/amd64/stable";
const CANDIDATE: &str = "robot/amd64/candidate";

fn ostree(arguments: &[&str]) -> Output {
    Command::new("ostree").args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = ostree(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

struct Bench {
    directory: tempfile::TempDir,
    signer: Signer,
}

impl Bench {
    fn new() -> Self {
        ensure_installed(&[Need::Image, Need::OstreeRepository, Need::OstreeSigning], true).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let signer = key(&directory.path().join("gpg"), "publisher");
        Self { directory, signer }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// An image with the repository of a deployment in it, as the builder lays it out; returns it and its commit.
    fn image(&self, version: u8) -> (PathBuf, String) {
        let (root, tree) = (self.at(&format!("root-{version}")), self.at(&format!("tree-{version}")));
        fs::create_dir_all(root.join("ostree/repo")).unwrap();
        fs::create_dir_all(tree.join("usr/lib")).unwrap();
        for number in 0..120 {
            fs::write(tree.join(format!("usr/lib/same-{number}")), format!("{number}")).unwrap();
        }
        for number in 0..60 {
            fs::write(tree.join(format!("usr/lib/changed-{number}")), format!("{number} of {version}")).unwrap();
        }
        let mut large = sample_image(256, 5);
        large[100_000..100_009].fill(version);
        fs::write(tree.join("usr/lib/large"), large).unwrap();
        let repo = root.join("ostree/repo");
        let repo = format!("--repo={}", repo.display());
        succeeds(&[&repo, "init", "--mode=bare"]);
        let tree = format!("--tree=dir={}", tree.display());
        let (stable, candidate) = (format!("--bind-ref={STABLE}"), format!("--bind-ref={CANDIDATE}"));
        let time = format!("--timestamp=@{}", 1_700_000_000 + u64::from(version));
        let commit = succeeds(&[&repo, "commit", "--orphan", "-s", "x", &tree, &stable, &candidate, &time]);
        succeeds(&[&repo, "refs", "--create", STABLE, &commit]);
        let image = self.at(&format!("{version}.img"));
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&image).arg("32m");
        assert!(mke2fs.status().unwrap().success());
        (image, commit)
    }

    /// A robot's own repository, with the published one as a remote whose commits and summary it checks.
    fn client(&self, name: &str, server: &Server) -> String {
        let repo = format!("--repo={}", self.text(name));
        fs::create_dir(self.at(name)).unwrap();
        succeeds(&[&repo, "init", "--mode=bare-user-only"]);
        let url = format!("http://{}/", server.address);
        let public = self.text("public.gpg");
        let mut export = Command::new("gpg");
        export.arg("--homedir").arg(self.signer.home.as_ref().unwrap());
        fs::write(&public, export.args(["--export", &self.signer.key]).output().unwrap().stdout).unwrap();
        let import = format!("--gpg-import={public}");
        succeeds(&[&repo, "remote", "add", "--set=gpg-verify-summary=true", &import, "origin", &url]);
        repo
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let homes = ["gpg", "gpg-other"].map(|name| self.at(name));
        for home in homes.iter().filter(|home| home.exists()) {
            let _ = Command::new("gpgconf").arg("--homedir").arg(home).args(["--kill", "gpg-agent"]).status();
        }
    }
}

fn key(home: &Path, name: &str) -> Signer {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(home).unwrap();
    fs::set_permissions(home, fs::Permissions::from_mode(0o700)).unwrap();
    let mut gpg = Command::new("gpg");
    gpg.arg("--homedir").arg(home).args(["--batch", "--quiet", "--passphrase", ""]);
    assert!(gpg.args(["--quick-gen-key", name, "ed25519", "sign", "never"]).status().unwrap().success());
    Signer { key: name.into(), home: Some(home.to_owned()) }
}

fn serve(directory: &Path) -> Server {
    serve::start(directory, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), false).unwrap()
}

#[test]
#[ignore = "needs root: to mount the image; cargo xtask test --tier root"]
fn plain_ostree_pull_gets_the_commit_of_the_image_and_the_next_one_as_a_delta() {
    let bench = Bench::new();
    let repository = bench.at("published");
    let stable = [STABLE.to_owned()];
    let (image, first) = bench.image(1);
    let published = publish(&image, &first, &stable, &repository, Some(&bench.signer)).unwrap();
    assert_eq!(published.deltas_from, [None]);
    let server = serve(&repository);
    let client = bench.client("client", &server);
    let requests = || server.counters.requests.swap(0, Ordering::Relaxed);
    succeeds(&[&client, "pull", "origin", STABLE]);
    assert_eq!(succeeds(&[&client, "rev-parse", &format!("origin:{STABLE}")]), first);
    assert!(requests() > 180, "each object is a request");
    succeeds(&[&client, "fsck"]);

    let (image, second) = bench.image(2);
    let published = publish(&image, &second, &stable, &repository, Some(&bench.signer)).unwrap();
    assert_eq!(published.deltas_from, [Some(first)]);
    // The delta alone is enough: a copy of the robot's repository takes it without any server.
    let alone = format!("--repo={}", bench.text("alone"));
    let copied = Command::new("cp").arg("-a").args([bench.at("client"), bench.at("alone")]).status();
    assert!(copied.unwrap().success());
    requests();
    let deltas = walkdir::WalkDir::new(repository.join("deltas")).into_iter().map(|entry| entry.unwrap().into_path());
    let delta = deltas.filter(|path| path.ends_with("superblock")).collect::<Vec<_>>();
    let [superblock] = delta.as_slice() else { panic!("{delta:?}") };
    succeeds(&[&alone, "static-delta", "apply-offline", superblock.parent().unwrap().to_str().unwrap()]);
    succeeds(&[&alone, "refs", "--force", "--create", "applied", &second]);
    succeeds(&[&alone, "fsck"]);
    assert_eq!(requests(), 0);
    // ostree 2022.7 of Debian 12 fetches the delta, and beside it objects that the delta has too:
    // <https://github.com/ostreedev/ostree/issues/2680>. So only the delta's use is checked here, not what is spared.
    let said = succeeds(&[&client, "pull", "--require-static-deltas", "origin", STABLE]);
    assert!(said.contains("1 delta parts"), "{said}");
    assert_eq!(succeeds(&[&client, "rev-parse", &format!("origin:{STABLE}")]), second);
    succeeds(&[&client, "fsck"]);

    // The same again changes nothing, and the same commit goes on to another channel.
    let published = publish(&image, &second, &stable, &repository, Some(&bench.signer)).unwrap();
    assert_eq!(published.deltas_from, [None]);
    publish(&image, &second, &[CANDIDATE.to_owned()], &repository, Some(&bench.signer)).unwrap();
    succeeds(&[&client, "pull", "origin", CANDIDATE]);
    let error = publish(&image, &second, &["robot/other".to_owned()], &repository, Some(&bench.signer)).unwrap_err();
    assert!(format!("{error:#}").contains("not made for the ref robot/other"), "{error:#}");
}

#[test]
#[ignore = "needs root: to mount the image; cargo xtask test --tier root"]
fn a_client_refuses_what_its_key_has_not_signed() {
    let bench = Bench::new();
    let repository = bench.at("published");
    let stable = [STABLE.to_owned()];
    let (image, commit) = bench.image(1);
    let other = key(&bench.at("gpg-other"), "somebody");
    publish(&image, &commit, &stable, &repository, Some(&other)).unwrap();
    let server = serve(&repository);
    let client = bench.client("client", &server);
    assert!(!ostree(&[&client, "pull", "origin", STABLE]).status.success(), "signed with another key");
    publish(&image, &commit, &stable, &repository, None).unwrap();
    assert!(!repository.join("summary.sig").exists());
    assert!(!ostree(&[&client, "pull", "origin", STABLE]).status.success(), "not signed");
    publish(&image, &commit, &stable, &repository, Some(&bench.signer)).unwrap();
    succeeds(&[&client, "pull", "origin", STABLE]);
    let error = publish(&image, &"0".repeat(64), &stable, &repository, None).unwrap_err();
    assert!(format!("{error:#}").contains("take the commit 000"), "{error:#}");
}
