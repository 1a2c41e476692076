//! What is in an image, and what one image has otherwise than another.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use xtask::contents::difference::{self, ContentsDifference};
use xtask::contents::packages::PackageDatabase;
use xtask::contents::{ImageContents, sbom};
use xtask::image::ext4;
use xtask::recipe::ImageSize;

fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn package(name: &str, version: &str) -> String {
    format!(
        "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\nInstalled-Size: 9\n\
         Maintainer: A <a@b.example>\nHomepage: https://{name}.example/\nDescription: software {name}\n more\n\n"
    )
}

/// A system as the builder deploys it; two `edition`s differ as releases do.
fn system(top: &Path, edition: u8) {
    let root = top.join(format!("ostree/deploy/system/deploy/commit{edition}.0"));
    let at = |path: &str| root.join(path);
    let is_new = edition == 2;
    let packages = if is_new {
        [package("openssl", "3.0.18-1~deb12u2"), package("nano", "7.2-1"), package("libc6", "2.36-9")]
    } else {
        [package("openssl", "3.0.9-1"), package("vim", "2:9.0-1"), package("libc6", "2.36-9+b1")]
    };
    let dpkg = at("usr/share/reflash/dpkg");
    write(&dpkg.join("status"), packages.concat());
    // Packages name their files as they were before /lib became a link.
    write(&dpkg.join("info/openssl.list"), "/.\n/usr/bin/openssl\n/lib/ssl.so\n");
    write(&dpkg.join("info/libc6:amd64.list"), "/opt/vendor/tool\n");
    write(&at("usr/bin/openssl"), vec![edition; 9000]);
    write(&at("usr/lib/ssl.so"), "the same");
    write(&at("usr/opt/vendor/tool"), "the same");
    symlink("usr/lib", at("lib")).unwrap();
    write(&at("usr/bin/helper"), "helper");
    if is_new {
        fs::set_permissions(at("usr/bin/helper"), fs::Permissions::from_mode(0o4755)).unwrap();
    }
    let os =
        format!("ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\nIMAGE_ID=demo\nIMAGE_VERSION={edition}\n");
    write(&at("usr/lib/os-release"), os);
    for etc in ["etc", "usr/etc"] {
        let robot = 1000 + u32::from(is_new);
        write(
            &at(&format!("{etc}/passwd")),
            format!("root:x:0:0::/root:/bin/sh\nrobot:x:{robot}:1000::/home:/bin/sh\n"),
        );
        write(&at(&format!("{etc}/group")), "root:x:0:\ndialout:x:20:robot\n");
        let wants = at(&format!("{etc}/systemd/system/multi-user.target.wants"));
        fs::create_dir_all(&wants).unwrap();
        let unit = if is_new { "robot.service" } else { "ssh.service" };
        symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(unit)).unwrap();
        symlink("/dev/null", at(&format!("{etc}/systemd/system/apt-daily.timer"))).unwrap();
    }
    write(
        &at("usr/share/doc/openssl/copyright"),
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: Apache-2.0\n",
    );
    write(
        &at("usr/local/lib/python3.11/dist-packages/rclpy_x-1.2.dist-info/METADATA"),
        format!("Metadata-Version: 2.1\nName: rclpy_x\nVersion: 1.{edition}\n\ntext\n"),
    );
}

fn image(directory: &Path, edition: u8) -> ImageContents {
    let (tree, image) = (directory.join(format!("tree{edition}")), directory.join(format!("{edition}.img")));
    system(&tree, edition);
    ext4::build(&tree, &image, ImageSize::Auto, "branch", None).unwrap();
    ImageContents::read(&image).unwrap()
}

fn compared() -> (ImageContents, ImageContents, ContentsDifference) {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (image(directory.path(), 1), image(directory.path(), 2));
    let difference = difference::between(&old, &new);
    (old, new, difference)
}

#[test]
fn the_difference_of_two_images_names_packages_files_users_units_and_rights() {
    let (old, new, difference) = compared();
    assert_eq!((old.database, new.packages.len()), (Some(PackageDatabase::Dpkg), 3));
    let packages = difference.packages.as_ref().unwrap();
    let names = |changes: &[difference::VersionChange]| -> Vec<String> {
        changes.iter().map(|change| change.name.clone()).collect()
    };
    assert_eq!(
        (names(&packages.upgraded), names(&packages.downgraded)),
        (vec!["openssl".into()], vec!["libc6".into()])
    );
    assert_eq!((packages.added[0].name.as_str(), packages.removed[0].name.as_str()), ("nano", "vim"));
    // The path of the commit, which changes with every release, hides nothing and shows nothing twice.
    let changed: Vec<&str> = difference.files.changed.iter().map(|change| change.name.as_str()).collect();
    let status = "/usr/share/reflash/dpkg/status";
    let metadata = "/usr/local/lib/python3.11/dist-packages/rclpy_x-1.2.dist-info/METADATA";
    assert_eq!(
        changed,
        ["/etc/passwd", "/usr/bin/helper", "/usr/bin/openssl", "/usr/lib/os-release", metadata, status]
    );
    assert_eq!(difference.files.changed[1].what, ["mode"]);
    let owner = |path: &str| new.files[path].package.as_deref();
    assert_eq!((owner("/usr/lib/ssl.so"), owner("/usr/opt/vendor/tool")), (Some("openssl"), Some("libc6")));
    assert_eq!(owner("/usr/bin/helper"), None);
    let text = difference.to_string();
    for line in [
        "demo 1 (Debian 12) -> demo 2 (Debian 12)",
        "packages: 1 upgraded, 1 downgraded, 1 added, 1 removed; 3 packages before, 3 now",
        "downgraded libc6 2.36-9+b1 -> 2.36-9",
        "robot: number 1000 is now 1001",
        "now enabled: robot.service",
        "no longer enabled: ssh.service",
        "new: /usr/bin/helper, mode 4755",
        "/usr/bin/openssl (openssl): content",
    ] {
        assert!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
    assert!(!text.contains("apt-daily"), "{text}");
}

#[test]
#[ignore = "needs root: it gives a file capabilities"]
fn capabilities_of_files_are_rights_too() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    write(&tree.join("usr/bin/ping"), "ping");
    // cap_net_raw=ep in the form that the kernel keeps (VFS_CAP_REVISION_2 of linux/capability.h).
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(tree.join("usr/bin/ping"), "security.capability", &value).unwrap();
    let path = directory.path().join("x.img");
    ext4::build(&tree, &path, ImageSize::Auto, "branch", None).unwrap();
    let contents = ImageContents::read(&path).unwrap();
    let ping = &contents.files["/usr/bin/ping"];
    assert_eq!(ping.capability.as_deref(), Some("0100000200200000000000000000000000000000"));
    assert!(ping.gives_rights());
    // A system without a package database still says what it has.
    assert_eq!((contents.database, contents.packages.len()), (None, 0));
}

fn bill(contents: &ImageContents) -> String {
    let subject = sbom::SbomSubject { timestamp: 1_795_573_350, ostree_commit: Some("ab"), archives: &[] };
    sbom::json(contents, &subject).unwrap()
}

#[test]
fn a_bill_of_materials_lists_packages_with_licences_and_what_pip_installed() {
    let (_, new, _) = compared();
    let text = bill(&new);
    for part in [
        "pkg:deb/debian/openssl@3.0.18-1~deb12u2?arch=amd64&distro=debian-12",
        "pkg:pypi/rclpy-x@1.2",
        "\"id\": \"Apache-2.0\"",
        "\"name\": \"demo\"",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert_eq!(sbom::packages(text.as_bytes()).unwrap().len(), 3);
}

/// Checks with the validator of the format's own organisation, against the schema that it publishes.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_public_validator_accepts_the_bill_of_materials() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let without_database = ImageContents::default();
    let (_, new, _) = compared();
    fs::write(at("new.json"), bill(&new)).unwrap();
    fs::write(at("none.json"), bill(&without_database)).unwrap();
    // The validator must be able to refuse, too.
    fs::write(at("wrong.json"), bill(&new).replace("\"library\"", "\"packet\"")).unwrap();
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    };
    let environment = at("venv");
    let (made, text) = run(Path::new("python3"), &["-m", "venv", environment.to_str().unwrap()]);
    assert!(made, "{text}");
    let pip = environment.join("bin/pip");
    let (installed, text) = run(&pip, &["install", "--quiet", "cyclonedx-python-lib[json-validation]==11.*"]);
    assert!(installed, "{text}");
    let check = "import sys\nfrom cyclonedx.schema import SchemaVersion\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())\n\
        print(error)\nsys.exit(error is not None)\n";
    fs::write(at("check.py"), check).unwrap();
    for (name, is_valid) in [("new.json", true), ("none.json", true), ("wrong.json", false)] {
        let script = at("check.py");
        let arguments = [script.to_str().unwrap().to_owned(), at(name).display().to_string()];
        let (accepted, text) = run(&environment.join("bin/python3"), &arguments.each_ref().map(String::as_str));
        assert_eq!(accepted, is_valid, "{name}: {text}");
    }
}
