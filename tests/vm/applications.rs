//! Applications in containers and sandboxes that the image brings: their data survives a release that brings another
//! version.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use xtask::demo::BOOT_TIMEOUT;
use xtask::host_packages::{Need, ensure_installed};
use xtask::image::{self, ImageOptions};
use xtask::paths::Paths;
use xtask::vm::RunningMachine;

use super::fallback::{Robot, ask, expect};
use super::health::{changed_image, good_boot};

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A directory for recipes and images, which are too large for `/tmp` on some hosts.
fn scratch_directory(paths: &Paths) -> TempDir {
    fs::create_dir_all(paths.work()).unwrap();
    tempfile::tempdir_in(paths.work()).unwrap()
}

/// Puts the host's static busybox into a directory, under the names by which the applications run it.
fn write_busybox(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    fs::copy("/bin/busybox", directory.join("busybox")).unwrap();
    for name in ["sh", "sleep", "true"] {
        std::os::unix::fs::symlink("busybox", directory.join(name)).unwrap();
    }
}

/// Writes an example of the documents as a recipe for a virtual machine: with the kernel for these, which is a tenth of
/// the other, and a login without a password.
fn write_recipe(example: &str, directory: &Path) -> PathBuf {
    let path = Paths::of_checkout().root.join("docs/examples").join(example).join("robot.toml");
    let text = fs::read_to_string(path).unwrap();
    let text = text
        .replace("linux-image-amd64", "linux-image-cloud-amd64")
        .replace("commands = [", "commands = [\"passwd --delete root\", ")
        .replace("name = \"robot\"", &format!("name = \"{example}-test\""));
    let recipe = directory.join("robot.toml");
    fs::write(&recipe, text).unwrap();
    recipe
}

/// Asks for a recovery, and waits until the robot has the release and its start is good.
fn reflash(vm: &mut RunningMachine, version: &str) {
    ask(vm, "reflash request");
    vm.type_text("systemctl reboot\n").unwrap();
    expect(vm, &["reason: requested", &format!("{version} is installed")]);
    good_boot(vm);
}

/// Writes the archive of a container image, as `podman save` does: busybox, and a shell line that notes each start in
/// the data.
fn write_container(version: &str, out: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write_busybox(&at("root/bin"));
    fs::create_dir_all(at("root/data")).unwrap();
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

/// Writes the bundles of a runtime, which is busybox, and of an application, which notes each start in its data.
fn write_bundles(version: &str, out: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let flatpak = |arguments: &[&str]| {
        run(Command::new("flatpak").current_dir(&directory).env("HOME", directory.path()).args(arguments))
    };
    for (name, group, keys) in
        [("Platform", "Runtime", "sdk=org.example.Platform/x86_64/stable"), ("App", "Application", "command=app")]
    {
        for part in ["files", "usr", "var", "export"] {
            fs::create_dir_all(at(name).join(part)).unwrap();
        }
        let keys = format!("name=org.example.{name}\nruntime=org.example.Platform/x86_64/stable\n{keys}");
        fs::write(at(name).join("metadata"), format!("[{group}]\n{keys}\n")).unwrap();
    }
    write_busybox(&at("Platform/usr/bin"));
    let start = format!("#!/bin/sh\necho started {version} >> $XDG_DATA_HOME/starts; exec sleep 1000000\n");
    fs::create_dir(at("App/files/bin")).unwrap();
    fs::write(at("App/files/bin/app"), start).unwrap();
    fs::set_permissions(at("App/files/bin/app"), fs::Permissions::from_mode(0o755)).unwrap();
    run(Command::new("ostree").args(["init", "--mode=archive", "--repo"]).arg(at("repo")));
    flatpak(&["build-export", "--disable-sandbox", "--runtime", "repo", "Platform", "stable"]);
    flatpak(&["build-export", "--disable-sandbox", "repo", "App", "stable"]);
    let bundle = |name: &str| out.join(name).to_str().unwrap().to_owned();
    flatpak(&["build-bundle", "--runtime", "repo", &bundle("platform.flatpak"), "org.example.Platform", "stable"]);
    flatpak(&["build-bundle", "repo", &bundle("app.flatpak"), "org.example.App", "stable"]);
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
    let directory = scratch_directory(&paths);
    let recipe = write_recipe("podman", directory.path());
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
    reflash(&mut vm, "2");
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

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_application_of_flatpak_keeps_its_data_over_releases() {
    ensure_installed(&[Need::Image, Need::Flatpak], true).unwrap();
    let paths = Paths::of_checkout();
    let directory = scratch_directory(&paths);
    let recipe = write_recipe("flatpak", directory.path());
    let build = |version: &str, previous: Option<&Path>| {
        write_bundles(version, directory.path());
        let image = directory.path().join(format!("{version}.img"));
        let options = ImageOptions { previous, assume_yes: true, ..ImageOptions::default() };
        image::build(&paths, &recipe, &image, &options).unwrap();
        image
    };
    let first_image = build("1.0", None);

    let mut robot = Robot::with_image(fs::read(&first_image).unwrap(), "tries = 2\nsettle_s = 10\n");
    let mut vm = robot.start("flatpak");
    expect(&vm, &["starting it"]);
    good_boot(&mut vm);
    let inside = "XDG_RUNTIME_DIR=/run/robot flatpak enter org.example.App busybox id";
    let own = "echo kept > /var/lib/robot/.var/app/org.example.App/data/own";
    let starts = "cat /var/lib/robot/.var/app/org.example.App/data/*";
    // The runtime's busybox, in the repository and where it is run from.
    let shared = "find /usr/lib/robot/flatpak -type f -size +1M -printf 'file %i\\n' | uniq -c";
    let first = ask(&mut vm, &format!("{own}; {starts}; {inside}; {shared}; reflash health"));
    for text in ["started 1.0", "(robot)", " 2 file ", "this system is healthy"] {
        assert!(first.contains(text), "{text}: {first}");
    }

    robot.publish_image("2", fs::read(build("2.0", Some(&first_image))).unwrap());
    reflash(&mut vm, "2");
    let second = ask(&mut vm, &format!("{starts}; flatpak list --columns=ref,installation"));
    for text in ["started 1.0", "started 2.0", "kept"] {
        assert!(second.contains(text), "{text}: {second}");
    }
    assert_eq!(second.matches("org.example.App/x86_64/stable").count(), 1, "{second}");

    // The application is part of the release: an undo takes it back, and nothing of flatpak in /var has a part in it.
    let damage = ["/var/lib/flatpak", "/var/lib/robot/.local/share/flatpak"]
        .map(|place| format!("mkdir -p {place}/repo; echo '{{' > {place}/repo/config; rm -rf {place}/repo/objects"));
    let asked = ask(&mut vm, &format!("{}; reflash request undo", damage.join("; ")));
    assert!(asked.contains("the next boot goes back to 1"), "{asked}");
    vm.type_text("systemctl reboot\n").unwrap();
    expect(&vm, &["2 is taken back, since that was asked for", "1 is back after"]);
    good_boot(&mut vm);
    let third = ask(&mut vm, &format!("{starts} | tail -n 1; {starts}; flatpak list")).replace('\r', "");
    for text in ["started 1.0\nkept\n", "started 2.0", "exit-1"] {
        assert!(third.contains(text), "{text}: {third}");
    }
}
