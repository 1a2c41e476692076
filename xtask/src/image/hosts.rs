//! Tests: what is built does not depend on the host that builds it. Each host is a process of its own that makes the
//! same things, because a mask of permissions, a language and an e2fsprogs belong to a process.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use super::ostree::Repository;
use super::{ext4, files, homes, tree};
use crate::paths::{Paths, PlaceArgs};
use crate::recipe::{ImageSize, Recipe};
use crate::{filesystem, fresh, host_packages, step, surroundings};

/// Variable that says where a process puts what it makes.
const OUT: &str = "REFLASH_TEST_OUT";
/// The test that makes things where [`OUT`] is set.
const MAKES: &str = "image::hosts::a_host_with_other_defaults_makes_the_same_bytes";

const RECIPE: &str = "name='x'\nversion='1'\n[distribution]\nsuite='s'\npackages=[]\n[ostree]\nbranch='b'\n\
    [[files]]\npath='/etc/systemd/system/x.service.d/y.conf'\ntext='k'\n\
    [[files]]\npath='/home/pilot/.ssh/authorized_keys'\ntext='key'\n\
    [[files]]\npath='/usr/share/robot/maps/a'\ntext=''\nmode='0600'\n";

/// What a build does that needs no packages.
fn make_in(out: &Path) {
    surroundings::pin_umask();
    // The host may have no checkout, whose work directory would have the logs of tools.
    let places = PlaceArgs { work: Some(out.join("work")), ..PlaceArgs::default() };
    step::log_below(&Paths::find(places).unwrap());
    let plain = out.join("plain");
    fresh::make(&plain).unwrap();
    fs::create_dir_all(plain.join("plain/directory")).unwrap();
    let owner = plain.metadata().unwrap();
    fs::write(plain.join("plain/file"), format!("{}:{}", owner.uid(), owner.gid())).unwrap();
    files::put(&plain, Path::new("/usr/share/robot/maps/a"), b"k", 0o600).unwrap();
    ext4::build(&plain, &out.join("plain.img"), ImageSize::Auto, "b", None).unwrap();
    let fixed = ["-U", "clear", "-E", "hash_seed=7d3f6c6e-0000-4000-8000-000000000000"];
    filesystem::state(&[("a", "b")], 64 << 20, out, &fixed, &out.join("state.img")).unwrap();
    filesystem::data(128 << 20, out, &fixed, &out.join("data.img")).unwrap();
    if host_packages::is_root() && Command::new("ostree").arg("--version").output().is_ok() {
        commit_in(out);
    }
}

/// From a tree to the image of its deployment.
fn commit_in(out: &Path) {
    let made = out.join("tree");
    fresh::make(&made).unwrap();
    for directory in
        ["etc/skel", "usr/share/systemd", "usr/lib/systemd/system", "usr/lib/modules/6.1", "usr/lib/tmpfiles.d"]
    {
        fs::create_dir_all(made.join(directory)).unwrap();
    }
    fs::create_dir_all(made.join("var/lib/x")).unwrap();
    for (path, text) in [
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\npilot:x:1000:1000::/home/pilot:/bin/sh\n"),
        ("etc/group", "root:x:0:\npilot:x:1000:\n"),
        ("etc/skel/.bashrc", "skel"),
        ("usr/share/systemd/tmp.mount", "unit"),
        ("usr/lib/os-release", "ID=debian\nNAME=x\nVERSION_ID=1\n"),
        ("usr/lib/modules/6.1/vmlinuz", "kernel"),
        ("usr/lib/modules/6.1/initramfs.img", "initramfs"),
        ("var/lib/x/y", "state"),
    ] {
        fs::write(made.join(path), text).unwrap();
    }
    symlink("../usr/lib/os-release", made.join("etc/os-release")).unwrap();
    let recipe = Recipe::parse(RECIPE).unwrap();
    let directories = files::place(&recipe, out, &made).unwrap();
    homes::settle(&recipe, &made, &directories).unwrap();
    tree::convert(&made, &recipe).unwrap();
    let repository = Repository::open(&out.join("repository")).unwrap();
    let commit = repository.commit(&made, &recipe, 1).unwrap();
    fs::write(out.join("commit"), &commit).unwrap();
    let entry = repository.deploy(&commit, &recipe, &out.join("sysroot")).unwrap();
    fs::write(out.join("sysroot/boot/reflash.cfg"), entry.script()).unwrap();
    ext4::build(&out.join("sysroot"), &out.join("system.img"), ImageSize::Auto, "b", None).unwrap();
}

/// Runs `command`, which ends with the test binary, and returns what it has made in `out`.
fn made_by(mut command: Command, seen_as: &Path, out: &Path) -> Vec<(&'static str, Option<blake3::Hash>)> {
    let output = command.args(["--exact", MAKES]).env(OUT, seen_as).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let digest = |name| fs::read(out.join(name)).ok().map(|content| blake3::hash(&content));
    ["plain.img", "state.img", "data.img", "commit", "system.img"].map(|name| (name, digest(name))).into()
}

/// Makes a directory one that a group works in together, as a host of CI jobs may have it: with setgid, and a list by
/// which everything that is made in it is the group's.
fn share(directory: &Path) {
    let entry = |(kind, bits, number): (u16, u16, u32)| {
        [&kind.to_le_bytes()[..], &bits.to_le_bytes(), &number.to_le_bytes()].concat()
    };
    // user::rwx, group::rwx, group:4242:rwx, mask::rwx, other::---, as linux/posix_acl_xattr.h has them.
    let entries = [(1, 7, !0), (4, 7, !0), (8, 7, 4242), (16, 7, !0), (32, 0, !0_u32)].map(entry).concat();
    xattr::set(directory, "system.posix_acl_default", &[&2_u32.to_le_bytes()[..], &entries].concat()).unwrap();
    if host_packages::is_root() {
        std::os::unix::fs::chown(directory, None, Some(4242)).unwrap();
    }
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
}

/// <https://github.com/LibreELEC/LibreELEC.tv/issues/8549>, <https://github.com/systemd/mkosi/pull/4443>,
/// <https://github.com/armbian/build/pull/6809>
#[test]
fn a_host_with_other_defaults_makes_the_same_bytes() {
    if let Some(out) = std::env::var_os(OUT) {
        return make_in(Path::new(&out));
    }
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("mke2fs.conf");
    fs::write(&config, "[defaults]\n\tbase_features = ext_attr,orphan_file\n\tblocksize = 1024\n").unwrap();
    let make = |name: &str, mask: &str, variables: &[(&str, &str)]| {
        let out = directory.path().join(name);
        fs::create_dir(&out).unwrap();
        if name == "two" {
            share(&out);
        }
        let mut command = Command::new("sh");
        command.args(["-c", "umask $0; exec \"$@\"", mask]).arg(std::env::current_exe().unwrap());
        command.envs(variables.iter().copied());
        made_by(command, &out, &out)
    };
    let hostile = [
        ("LANG", "de_DE.UTF-8"),
        ("LC_ALL", "de_DE.UTF-8"),
        ("TZ", "Asia/Kathmandu"),
        ("MKE2FS_CONFIG", config.to_str().unwrap()),
        ("MKE2FS_DEVICE_SECTSIZE", "4096"),
        ("E2FSPROGS_FAKE_TIME", "1"),
        ("TAR_OPTIONS", "--owner=nobody"),
        ("OSTREE_REPO", "/nowhere"),
    ];
    let one = make("one", "022", &[]);
    assert!(one.iter().take(3).all(|(_, digest)| digest.is_some()));
    assert_eq!(make("two", "077", &hostile), one);
}

/// Debian 13 has e2fsprogs of 2025 and ostree of 2025; this host's are those of 2023 and 2022, if it is Debian 12.
/// <https://github.com/tytso/e2fsprogs/issues/147>, <https://github.com/rauc/rauc/issues/1190>
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_debian_13_makes_the_same_bytes_as_this_host() {
    let directory = tempfile::tempdir().unwrap();
    let (host, root) = (directory.path().join("host"), directory.path().join("root"));
    fs::create_dir(&host).unwrap();
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=minbase", "--include=e2fsprogs,ostree", "trixie"])
        .arg(&root)
        .arg("http://deb.debian.org/debian");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let program = std::env::current_exe().unwrap();
    fs::copy(&program, root.join("made-by")).unwrap();
    fs::create_dir(root.join("out")).unwrap();
    // What mmdebstrap leaves of /dev and /proc is not enough for ostree.
    let script = "mount -t proc proc \"$0/proc\"; mount --rbind /dev \"$0/dev\"; exec chroot \"$0\" /made-by \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", script]).arg(&root);
    let newer = made_by(command, Path::new("/out"), &root.join("out"));
    assert!(newer.iter().all(|(_, digest)| digest.is_some()), "{newer:?}");
    assert_eq!(newer, made_by(Command::new(program), &host, &host));
}
