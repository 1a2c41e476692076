//! A fleet's own repository: from `init` to a release, as a person would type it, and what is refused early.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::sample_image;
use crate::typed::{fails, says, succeeds};

/// A first project with an image, which takes minutes to build and is not looked into here.
struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap() };
        succeeds(
            project.path(),
            &["init", "arm", "--yes", "--product", "arm", "--hardware", "NUC*", "--url", "http://a"],
        );
        project.image(1);
        project
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn root(&self) -> PathBuf {
        self.path().join("arm")
    }

    fn image(&self, seed: u64) {
        std::fs::create_dir_all(self.root().join("dist")).unwrap();
        // As `image` does it: a new file.
        let _ = std::fs::remove_file(self.root().join("dist/system.img"));
        std::fs::write(self.root().join("dist/system.img"), sample_image(75, seed)).unwrap();
    }

    fn change(&self, name: &str, from: &str, to: &str) {
        let path = self.root().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Without a layout, which needs boot code and a kernel beside the image.
    fn without_layout(self) -> Self {
        self.change("reflash-project.toml", "layout = ", "# layout = ");
        self.change("reflash-project.toml", "recovery = true", "recovery = false");
        self
    }
}

/// Product, hardware, keys and layout had to be typed again for each command; here each is typed once.
#[test]
fn nothing_is_typed_twice_from_init_to_a_release() {
    let project = Project::new().without_layout();
    let (root, below) = (project.root(), project.root().join("files"));
    assert_eq!(root.join("keys/reflash.key").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read_to_string(root.join(".gitignore")).unwrap().contains("/keys/*.key"));
    let text = succeeds(&below, &["check"]);
    assert!(text.contains("fits ") && text.contains("nothing is offered yet"), "{text}");
    for version in ["1", "2", "3"] {
        succeeds(&below, &["release", "--version", version]);
        project.image(version.parse().unwrap());
    }
    assert!(root.join("dist/release/stable/manifest.json").is_file() && root.join("dist/released.img").is_file());
    let text = succeeds(&below, &["release", "--check"]);
    assert!(text.contains("release 3 (serial 3) is complete"), "{text}");
    let list = says(&below, &["release", "--list"]);
    assert!(list.lines().next().unwrap().contains("offered now") && list.lines().count() == 3, "{list}");
    // Back to an old release: the content of it under a new serial.
    let text = succeeds(&below, &["release", "--again", "1"]);
    assert!(text.contains("release 1 again (serial 4)"), "{text}");
    succeeds(&below, &["release", "--check"]);
    let text = succeeds(&below, &["prune", "--min-age-h", "0", "--keep", "2"]);
    assert!(text.contains("stable 4, stable 3") && text.contains("nothing was deleted"), "{text}");
    succeeds(&below, &["prune", "--min-age-h", "0", "--keep", "2", "--delete"]);
    succeeds(&below, &["release", "--check"]);
    assert_eq!(says(&below, &["release", "--list"]).lines().count(), 2);
    let text = fails(&below, &["release", "--again", "2"]);
    assert!(text.contains("no release 2; it has 4, 3"), "{text}");
    // An option wins over the project, key by key.
    let text = fails(&below, &["release", "--version", "4", "--product", "leg"]);
    assert!(text.contains("machine.product is \"arm\""), "{text}");
}

/// In a root shell no key was found, and nothing said so between the image and the robot on the bench.
#[test]
fn a_robot_that_nobody_can_log_in_to_is_said_by_each_command_that_makes_it() {
    let project = Project::new().without_layout();
    let here = &project.root();
    let warning = "nobody will be able to log in by ssh";
    std::fs::write(here.join("files/authorized_keys"), "# none\n").unwrap();
    assert!(succeeds(here, &["release", "--version", "1"]).contains(warning));
    project.image(2);
    std::fs::write(here.join("files/authorized_keys"), "ssh-ed25519 AAAA ada@desk\n").unwrap();
    assert!(!succeeds(here, &["release", "--version", "2"]).contains(warning));
    // What `init --yes` has chosen, it says.
    let text = succeeds(here, &["init", "other", "--yes", "--ssh-key", "files/authorized_keys"]);
    assert!(text.contains("the ssh key of ada@desk may log in") && text.contains(":8080, for a bench"), "{text}");
}

/// `--again` named a file that it had not written, and no robot was offered the release; the list called another one
/// offered.
#[test]
fn on_a_channel_with_a_roll_out_what_waits_for_it_is_said() {
    let project = Project::new().without_layout();
    let here = &project.root();
    succeeds(here, &["release", "--version", "1"]);
    succeeds(here, &["release", "--version", "2", "--for-rollout"]);
    succeeds(here, &["rollout", "start", "2", "--share", "100", "--allow-no-recovery"]);
    let text = succeeds(here, &["release", "--version", "2", "--serial", "3", "--for-rollout"]);
    assert!(text.contains("version 2 was released before, as serial 2"), "{text}");
    std::fs::remove_file(here.join("dist/release/stable/history/3.json")).unwrap();
    let text = succeeds(here, &["release", "--again", "1"]);
    assert!(text.contains("dist/release/stable/history/3.json") && !text.contains("manifest.json"), "{text}");
    assert!(text.contains("no robot is offered it yet: `reflash-build rollout start 3 --share 100` does"), "{text}");
    let list = says(here, &["release", "--list"]);
    let lines: Vec<&str> = list.lines().collect();
    assert!(!lines[0].contains("roll-out") && lines[1].ends_with("roll-out: all robots"), "{list}");
    assert!(lines[2].contains("for agents without roll-outs") && !list.contains("offered now"), "{list}");
    assert!(succeeds(here, &["check"]).contains("`reflash-build rollout status`"));
    // A misspelt directory was watched without a word.
    let text = succeeds(here, &["rollout", "watch", "--once", "--reports", "pots"]);
    assert!(text.contains("warning: there is no pots"), "{text}");
    succeeds(here, &["rollout", "start", "3", "--share", "100"]);
    assert!(says(here, &["release", "--list"]).lines().next().unwrap().ends_with("roll-out: all robots"));
}

/// A key was changed: the manifest that a roll-out leaves in place has the signature of the old one for ever, and a
/// fleet could not even be taken back.
#[test]
fn after_a_change_of_keys_a_channel_goes_on_and_can_be_taken_back() {
    let project = Project::new().without_layout();
    let here = &project.root();
    for version in ["1", "2"] {
        succeeds(here, &["release", "--version", version]);
        project.image(version.parse().unwrap());
    }
    succeeds(here, &["keygen", "--out", "new"]);
    project.change("reflash-project.toml", "secret = \"keys/", "secret = \"new/");
    project.change("reflash-project.toml", "public = [", "public = [\"new/reflash.pub\", ");
    assert!(fails(here, &["release", "--again", "1"]).contains("--allow other-key"));
    succeeds(here, &["release", "--again", "1", "--allow", "other-key"]);
    succeeds(here, &["release", "--again", "2"]);
    // The other way round, with a roll-out.
    project.change("reflash-project.toml", "secret = \"new/", "secret = \"keys/");
    assert!(fails(here, &["release", "--version", "5", "--for-rollout"]).contains("--allow other-key"));
    succeeds(here, &["release", "--version", "5", "--for-rollout", "--allow", "other-key"]);
    succeeds(here, &["rollout", "start", "5", "--share", "100", "--allow-no-recovery"]);
    succeeds(here, &["check"]);
    succeeds(here, &["release", "--version", "6", "--for-rollout"]);
    succeeds(here, &["release", "--again", "5"]);
}

#[test]
fn a_release_that_would_end_its_channel_is_refused_before_long_work() {
    let project = Project::new().without_layout();
    let here = &project.root();
    succeeds(here, &["release", "--version", "1"]);
    // Another product: the site follows, so that only the channel is against it.
    project.change("site.toml", "product = \"arm\"", "product = \"leg\"");
    // A recovery takes an agent, a kernel and minutes; nothing of that is looked for.
    let text = fails(here, &["release", "--version", "2", "--product", "leg", "--recovery"]);
    assert!(text.contains("releases of product \"arm\"") && text.contains("--allow other-product"), "{text}");
    project.change("site.toml", "product = \"leg\"", "product = \"arm\"");
    succeeds(here, &["keygen", "--out", "other"]);
    let text = fails(here, &["release", "--version", "2", "--key", "other/reflash.key"]);
    assert!(text.contains("signed with another key") && text.contains("--allow other-key"), "{text}");
    project.change("reflash-project.toml", "secret = \"keys/", "secret = \"other/");
    let text = fails(here, &["check"]);
    assert!(text.contains("secret half of none of the public keys") && text.contains("another key"), "{text}");
    for (line, said) in [
        (&["release", "--key", "keys/reflash.pub"][..], "public half of a key pair"),
        (&["release", "--image", "missing.img", "--key", "missing.key"], "there is no image missing.img"),
        (&["release", "--level", "99"], "99 is not in 1..=22"),
        (&["release", "--chunk-bytes", "1000"], "power of two"),
        (&["release", "--check", "--public", "keys/reflash.key"], "a secret key, which must not leave"),
    ] {
        let text = fails(here, &[line, &["--version", "2"]].concat());
        assert!(text.contains(said), "{line:?}: {text}");
    }
}

/// What `media` and `disk` built without a word, and a machine refused with a technician before it.
#[test]
fn media_and_disks_with_a_configuration_that_cannot_work_are_refused_before_anything_is_built() {
    let project = Project::new();
    let here = &project.root();
    for (from, to, said) in [
        ("product = \"arm\"", "# product", "machine.product"),
        ("{serial|mac}", "{serail}", "\"serail\" is not one of"),
        ("[machine]", "[provision.disk]\ntransport = \"nvmee\"\n[machine]", "known are nvme"),
        ("channel = \"stable\"", "chanel = \"stable\"", "chanel"),
    ] {
        let kept = std::fs::read_to_string(here.join("site.toml")).unwrap();
        project.change("site.toml", from, to);
        for line in [&["check"][..], &["media", "--no-release"], &["disk"]] {
            let text = fails(here, line);
            assert!(text.contains(said) && text.contains("site.toml"), "{line:?}: {text}");
        }
        std::fs::write(here.join("site.toml"), kept).unwrap();
    }
    // A release that the machines would refuse, or none at all.
    assert!(fails(here, &["media"]).contains("channel stable in"), "the release is named before it is built");
    project.change("reflash-project.toml", "layout = ", "# layout = ");
    project.change("reflash-project.toml", "recovery = true", "recovery = false");
    succeeds(here, &["release", "--version", "1", "--channel", "stable"]);
    project.change("site.toml", "product = \"arm\"", "product = \"leg\"");
    let text = fails(here, &["media"]);
    assert!(text.contains("releases are of product \"arm\""), "{text}");
    succeeds(here, &["keygen", "--out", "other"]);
    let text = fails(here, &["media", "--key", "other/reflash.pub"]);
    assert!(text.contains("not valid for any trusted key"), "{text}");
    project.change("reflash-project.toml", "site = ", "# site = ");
    assert!(fails(here, &["media", "--no-release"]).contains("there is no configuration"));
    assert!(fails(here, &["disk"]).contains("`site` in a project file"));
    project.change("reflash-project.toml", "public = ", "# public = ");
    assert!(fails(here, &["media"]).contains("the public key that machines trust is missing"));
    assert!(!here.join(".reflash-work").exists(), "nothing was built");
}

#[test]
fn check_names_every_fault_of_a_project_at_once() {
    let project = Project::new();
    let here = &project.root();
    project.change("recipe.toml", "packages = [", "pakages = [");
    project.change("site.toml", "product = \"arm\"", "product = \"leg\"");
    project.change("layout.toml", "256MiB", "4MiB");
    std::fs::set_permissions(here.join("keys/reflash.key"), PermissionsExt::from_mode(0o644)).unwrap();
    let text = fails(here, &["check"]);
    for said in [
        "pakages",
        "machine.product is \"leg\"",
        "layout.toml: partition \"recovery\" has 4 MiB, and its file system needs 96 MiB: set its size to \"96MiB\"",
        "chmod 600",
        "not checked, since the recipe",
        "4 of 8 parts",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // What is wrong with a layout is so for `release`, before it signs anything, and for `disk`.
    project.change("site.toml", "product = \"leg\"", "product = \"arm\"");
    for line in [&["release", "--version", "1"][..], &["disk"]] {
        let text = fails(here, line);
        assert!(text.contains("partition \"recovery\" has 4 MiB"), "{line:?}: {text}");
    }
    assert!(!here.join("dist/release").exists(), "nothing was signed");
    project.change("reflash-project.toml", "hardware", "hardwear");
    let text = fails(here, &["serve"]);
    assert!(text.contains("hardwear") && text.contains("line "), "{text}");
    // `init` has nothing to do with a project around it.
    succeeds(here, &["init", "inner", "--yes"]);
}

/// Two project files in one repository, as the manual says, and one `dist` for both: robots of one product would have
/// become the other one.
#[test]
fn the_image_of_another_product_is_not_released() {
    let project = Project::new().without_layout();
    let here = &project.root();
    let recipe = std::fs::read_to_string(here.join("recipe.toml")).unwrap();
    let value = |key: &str| {
        let line = recipe.lines().find(|line| line.starts_with(&format!("{key} = \""))).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let description = |name: &str, branch: &str| {
        let text = format!(
            "{{\"name\":\"{name}\",\"version\":\"3.0.0\",\"ostree_commit\":\"b\",\"ostree_ref\":\"{branch}\",\
             \"image_bytes\":1,\"kernel\":\"d\",\"timestamp\":1,\"inputs\":\"e\"}}"
        );
        std::fs::write(here.join("dist/system.json"), text).unwrap();
    };
    description("gripper", "gripper/amd64/stable");
    for line in [&["check"][..], &["release"]] {
        let text = fails(here, line);
        assert!(text.contains("the image is gripper") && text.contains("`dist` of its own"), "{line:?}: {text}");
    }
    assert!(!here.join("dist/release").exists());
    // What a person names is that person's decision.
    succeeds(here, &["release", "--image", "dist/system.img"]);
    description(&value("name"), &value("branch"));
    succeeds(here, &["check"]);
    succeeds(here, &["release"]);
}

/// The disk of machines is not the one that `disk` makes: a good layout was called wrong.
#[test]
fn a_layout_for_larger_disks_than_the_image_is_right_and_its_disk_is_said() {
    let project = Project::new();
    project.change("layout.toml", "2GiB", "20GiB");
    let here = &project.root();
    let recipe = std::fs::read_to_string(here.join("recipe.toml")).unwrap();
    let suite = recipe.lines().find(|line| line.starts_with("suite = ")).unwrap();
    project.change("recipe.toml", suite, "suite = \"bokworm\"");
    let text = succeeds(here, &["check"]);
    assert!(text.contains("\"bokworm\" is no code name that is known here"), "{text}");
    assert!(text.contains("for disks of 20931 MiB or more; `disk` would refuse its 8192 MiB"), "{text}");
    let text = fails(here, &["disk"]);
    assert!(text.contains("layout.toml needs a disk of 20931 MiB, and this one has 8192 (--size-mib"), "{text}");
}

/// A person who types the next command too early, or a channel wrongly, gets the one that comes before.
#[test]
fn a_command_that_comes_too_early_names_the_one_before_it() {
    let project = Project::new().without_layout();
    let here = &project.root();
    for line in
        [&["prune"][..], &["release", "--list"], &["release", "--check"], &["release", "--again", "1"], &["media"]]
    {
        let text = fails(here, line);
        assert!(text.contains("has no release yet") && text.contains("`reflash-build release`"), "{line:?}: {text}");
    }
    let text = fails(here, &["compare"]);
    assert!(text.contains("released.img") && text.contains("first image"), "{text}");
    let text = fails(here, &["release"]);
    assert!(text.contains("still at work or was interrupted") && text.contains("--version"), "{text}");
    // The cause, and before the recovery is built.
    std::fs::write(here.join("empty.img"), "").unwrap();
    let text = fails(here, &["release", "--version", "1", "--image", "empty.img"]);
    assert!(text.contains("empty.img is no image: it has 0 bytes"), "{text}");
    // Nothing is asked of a person whose project stays as it is.
    let text = fails(here, &["init", ".", "--yes", "--product", "arm"]);
    assert!(text.contains("nothing was written") && !text.contains(".gitignore"), "{text}");
    succeeds(here, &["release", "--version", "1"]);
    let text = fails(here, &["release", "--list", "--channel", "stabel"]);
    assert!(text.contains("there is a release in stable"), "{text}");
    // From another directory: the directory of the project stands for the file in it.
    let elsewhere = tempfile::tempdir().unwrap();
    let directory = here.to_str().unwrap();
    assert!(succeeds(elsewhere.path(), &["--project", directory, "prune"]).contains("stable 1"));
}

#[test]
fn without_a_project_and_without_a_terminal_what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    for (line, said) in [
        (&["check"][..], "`reflash-build init` makes one"),
        (&["image"], "there is no reflash-project.toml here or in a directory above: the recipe is missing"),
        (&["media"], "there is no reflash-project.toml here or in a directory above: the public key"),
        (&["init"], "give --yes"),
        (&["serve", "--listen", "8080"], "ADDRESS:PORT"),
        (&["publish"], "--public"),
        (&["compare"], "the image that robots have"),
        (&["keygen"], "--out is missing"),
        (&["--project", "none.toml", "release"], "none.toml"),
    ] {
        let text = fails(here, line);
        assert!(text.contains(said), "{line:?}: {text}");
    }
    std::fs::write(here.join("x.img"), sample_image(75, 1)).unwrap();
    let text = fails(here, &["release", "--image", "x.img"]);
    assert!(text.contains("--key is missing") && text.contains("keys.secret"), "{text}");
    // A password without a terminal: the variable is named, for making a key and for signing.
    let text = fails(here, &["keygen", "--out", "keys", "--password"]);
    assert!(text.contains("REFLASH_KEY_PASSWORD") && !here.join("keys/reflash.key").exists(), "{text}");
    assert_eq!(std::fs::read_dir(here).unwrap().count(), 1, "nothing is left behind");
}
