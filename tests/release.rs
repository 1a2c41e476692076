//! A release is complete, reproducible, and checked by tools that are not ours.

use std::process::Command;

use reflash_release::check::check;
use reflash_release::{Allow, MAX_SERIAL};

use crate::support::{Fixture, sample_image};

#[test]
fn the_same_image_gives_the_same_objects() {
    let names = |fixture: &Fixture| -> Vec<_> {
        let mut names: Vec<_> = fixture.objects().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    let (one, other) = (Fixture::new(), Fixture::new());
    assert_eq!(names(&one), names(&other));
    assert!(names(&one) != names(&Fixture::with(sample_image(300, 2), |_| {})));
}

#[test]
fn a_good_release_passes_the_check_and_each_damaged_file_is_named() {
    let fixture = Fixture::new();
    let run = || check(&fixture.tree(), "stable", &fixture.keys);
    assert_eq!(run().unwrap().serial, 1);
    for path in fixture.objects() {
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bad).unwrap();
        let text = format!("{:#}", run().unwrap_err());
        assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
        std::fs::write(&path, good).unwrap();
    }
    run().unwrap();
}

#[test]
fn the_serial_grows_by_itself_and_never_goes_back() {
    let mut fixture = Fixture::new();
    fixture.publish(sample_image(300, 2), |_| {});
    assert_eq!(fixture.released.manifest.serial, 2);
    fixture.publish(sample_image(300, 3), |spec| spec.serial = Some(10));
    assert_eq!(fixture.released.manifest.serial, 10);
    // Neither back nor to where hardly a number is left.
    for wished in [9, MAX_SERIAL + 1, u64::MAX] {
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fixture.publish(sample_image(300, 3), |spec| spec.serial = Some(wished));
        }));
        assert!(refused.is_err(), "{wished}");
        assert_eq!(fixture.released.manifest.serial, 10);
    }
    fixture.publish(sample_image(300, 3), |spec| {
        (spec.serial, spec.allow) = (Some(MAX_SERIAL), vec![Allow::SerialJump]);
    });
    assert_eq!(fixture.released.manifest.serial, MAX_SERIAL);
}

#[test]
#[ignore = "needs root: to install minisign; cargo xtask test --tier root"]
fn the_minisign_tool_accepts_the_signature_and_refuses_a_changed_manifest() {
    let fixture = Fixture::new();
    let manifest = fixture.tree().join("stable/manifest.json");
    let verify = || {
        let key = fixture.dir.path().join("keys/reflash.pub");
        Command::new("minisign").arg("-V").arg("-p").arg(key).arg("-m").arg(&manifest).output().unwrap()
    };
    let good = verify();
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"serial\": 1", "\"serial\": 2")).unwrap();
    assert!(!verify().status.success());
}
