//! Applications in containers that the image brings: their data survives a release that brings another version.

use std::fs;
use std::path::Path;
use std::process::Command;

use xtask::demo::BOOT_TIMEOUT;
use xtask::host_packages::{Need, ensure_installed};
use xtask::image::{self, ImageOptions};
use xtask::paths::Paths;

use super::fallback::{Robot, ask, expect};
use super::health::{changed_image, good_boot};

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes the archive of a container image, as `podman save` does: the host's static busybox, and a shell line that
/// notes each start in the data.
fn write_container(version: &str, out: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("root/bin")).unwrap();
    fs::create_dir_all(at("root/data")).unwrap();
    fs::copy("/bin/busybox", at("root/bin/busybox")).unwrap();
    for name in ["sh", "sleep", "true"] {
        std::os::unix::fs::symlink("busybox", at("root/bin").join(name)).unwrap();
    }
    run(Command::new("tar").arg("-C").arg(at("root")).arg("-cf").arg(at("layer.tar")).arg("."));
    let digest = run(Command::new("sha256sum").arg(at("layer.tar")));
    let layer = format!("sha256:{}", digest.split_whitespace().next().unwrap());
    let start = format!("echo started {version} >> /data/starts; exec sleep 1000000");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/sh", "-c", start] },
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    });
    let tag = format!("localhost/app:{version}");
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"] }]);
    fs::write(at("config.json"), config.to_string()).unwrap();
    fs::write(at("manifest.json"), manifest.to_string()).unwrap();
    let names = ["manifest.json", "config.json", "layer.tar"];
    run(Command::new("tar").arg("-C").arg(directory.path()).arg("-cf").arg(out).args(names));
}

/// Puts version 2.0 of the application in place of 1.0.
fn renew_application(root: &Path) {
    let archive = root.join("usr/share/robot/app.tar");
    fs::remove_file(&archive).unwrap();
    write_container("2.0", &archive);
    let unit = "etc/systemd/system/app.service";
    for path in ["usr/lib/robot/load-app", unit, format!("usr/{unit}").as_str()] {
        let (path, new) = (root.join(path), root.join("usr/new"));
        let text = fs::read_to_string(&path).unwrap().replace("localhost/app:1.0", "localhost/app:2.0");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, path.metadata().unwrap().permissions()).unwrap();
        // The file has a second name in OSTree's repository, which stays as it is.
        fs::rename(new, path).unwrap();
    }
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_application_in_a_container_of_podman_keeps_its_data_over_releases() {
    ensure_installed(&[Need::Image], true).unwrap();
    let paths = Paths::of_checkout();
    let directory = tempfile::tempdir_in(paths.work()).unwrap();
    let example = fs::read_to_string(paths.root.join("docs/examples/podman/robot.toml")).unwrap();
    // The kernel for virtual machines, which is a tenth of the other, and a login without a password.
    let example = example
        .replace("linux-image-amd64", "linux-image-cloud-amd64")
        .replace("commands = [", "commands = [\"passwd --delete root\", ")
        .replace("name = \"robot\"", "name = \"podman-test\"");
    let recipe = directory.path().join("robot.toml");
    fs::write(&recipe, example).unwrap();
    write_container("1.0", &directory.path().join("app.tar"));
    let image = directory.path().join("system.img");
    image::build(&paths, &recipe, &image, &ImageOptions { assume_yes: true, ..ImageOptions::default() }).unwrap();

    let mut robot = Robot::with_image(fs::read(&image).unwrap(), "tries = 2\nsettle_s = 10\n");
    let mut vm = robot.start("podman");
    expect(&vm, &["starting it"]);
    good_boot(&mut vm);
    let first = ask(&mut vm, "cat /var/lib/robot/starts; podman ps; reflash health; echo kept > /var/lib/robot/own");
    assert!(first.contains("started 1.0") && first.contains("this system is healthy"), "{first}");

    robot.publish_image("2", changed_image(&image, renew_application));
    ask(&mut vm, "reflash request");
    vm.type_text("systemctl reboot\n").unwrap();
    expect(&vm, &["reason: requested", "2 is installed"]);
    good_boot(&mut vm);
    let second = ask(&mut vm, "cat /var/lib/robot/starts /var/lib/robot/own; podman images");
    for text in ["started 1.0", "started 2.0", "kept"] {
        assert!(second.contains(text), "{second}");
    }
    assert_eq!(second.matches("localhost/app").count(), 1, "{second}");

    // The store of the containers is a copy: what a power cut leaves of it is made anew.
    ask(&mut vm, "systemctl stop app; echo '{' > /var/lib/containers/storage/overlay-images/images.json; sync");
    vm.type_text("systemctl reboot\n").unwrap();
    vm.wait_for("Start the system", BOOT_TIMEOUT).unwrap();
    good_boot(&mut vm);
    let third = ask(&mut vm, "tail -n1 /var/lib/robot/starts; reflash status");
    assert!(third.contains("started 2.0"), "{third}");
}
