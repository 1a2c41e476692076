//! The builder as people install it: started in a directory that is no checkout, and in a checkout that was copied.

use crate::typed::{fails, succeeds};

const RELEASE: &[&str] =
    &["release", "--key", "keys/reflash.key", "--product", "p", "--hardware", "h*", "--version", "1"];

#[test]
fn a_release_is_made_and_checked_without_a_checkout() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let text = succeeds(here, &["keygen", "--out", "keys"]);
    assert!(text.contains("`reflash-build release --key`"), "{text}");
    std::fs::write(here.join("small.img"), vec![7; 75 * 4096]).unwrap();
    succeeds(here, &[RELEASE, &["--image", "small.img"]].concat());
    assert!(here.join("dist/release/stable/manifest.json").is_file());
    let text = succeeds(here, &["release", "--check", "--public", "keys/reflash.pub"]);
    assert!(text.contains("release 1 (serial 1) is complete"), "{text}");
    // The image's usual place is where `image` would have put it.
    std::fs::rename(here.join("small.img"), here.join("dist/system.img")).unwrap();
    succeeds(here, RELEASE);
    succeeds(
        here,
        &[
            "--dist",
            "elsewhere",
            "release",
            "--key",
            "keys/reflash.key",
            "--product",
            "p",
            "--hardware",
            "h",
            "--version",
            "1",
            "--image",
            "dist/system.img",
        ],
    );
    assert!(here.join("elsewhere/release/stable/manifest.json").is_file());
    let text = fails(here, &["serve", "--dir", "nothing"]);
    assert!(text.contains("make a release first: reflash-build release"), "{text}");
}

#[test]
fn a_copied_checkout_builds_into_itself() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy");
    std::fs::create_dir_all(copy.join("docs")).unwrap();
    std::fs::create_dir_all(copy.join("xtask")).unwrap();
    let original = xtask::paths::Paths::of_checkout().root;
    for manifest in ["Cargo.toml", "xtask/Cargo.toml"] {
        std::fs::copy(original.join(manifest), copy.join(manifest)).unwrap();
    }
    let below = copy.join("docs");
    succeeds(&below, &["keygen", "--out", "keys"]);
    std::fs::write(below.join("small.img"), vec![7; 75 * 4096]).unwrap();
    succeeds(&below, &[RELEASE, &["--image", "small.img"]].concat());
    assert!(below.join("keys/reflash.pub").is_file(), "paths are relative to where the command was started");
    assert!(copy.join("target/dist/release/stable/manifest.json").is_file());
}

#[test]
fn what_is_missing_without_a_checkout_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    for command in ["agent", "install", "test", "demo", "power-cut", "bench"] {
        let text = fails(here, &[command]);
        assert!(text.contains(&format!("`{command}` needs a checkout of reflash")), "{text}");
    }
    let text = fails(here, &["initramfs", "--agent", "/bin/true"]);
    assert!(text.contains("check the agent /bin/true: it needs a dynamic loader"), "{text}");
    let text = fails(here, &["initramfs", "--agent", "missing"]);
    assert!(text.contains("read the agent ") && text.contains("missing"), "{text}");
    if xtask::embedded::agent().is_none() {
        let text = fails(here, &["initramfs"]);
        assert!(text.contains("--agent FILE") && text.contains("cargo xtask install"), "{text}");
    }
    assert_eq!(std::fs::read_dir(here).unwrap().count(), 0, "nothing is left behind");
}
