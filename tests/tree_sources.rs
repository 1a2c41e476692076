//! Systems that exist already become the tree of an image: container images from every place that skopeo knows, images
//! of LXD, root file systems.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use xtask::host_packages::{Need, ensure_installed};
use xtask::image::source::{self, UsedSource};
use xtask::image::{self, ImageOptions, KeptTree};
use xtask::paths::Paths;
use xtask::recipe::Recipe;

use crate::isolated::{isolated, run};
use crate::support::server::{TestServer, answer, status};
use crate::support::tls::authority_as_server;

/// What is wanted of a tree of an earlier build: what the command line asks for by default.
const KEPT: KeptTree = KeptTree { fresh: false, keep_packages: false };

/// One member of a layer: a path, and a directory, a file with its text, `->` a link, or `=` a hard link.
type Layer = Vec<(String, &'static str)>;

/// The least that counts as a system, in files without content.
fn system() -> Layer {
    let mut layer: Layer = [("bin", "->usr/bin"), ("sbin", "->usr/sbin"), ("lib", "->usr/lib"), ("usr/bin/", "")]
        .map(|(path, what)| (path.to_owned(), what))
        .into();
    for path in [
        "usr/lib/systemd/systemd",
        "usr/lib/systemd/systemd-udevd",
        "usr/sbin/init",
        "usr/sbin/modprobe",
        "usr/sbin/e2fsck",
        "usr/bin/dbus-daemon",
        "usr/lib/ostree/ostree-prepare-root",
        "usr/lib/modules/6.1/kernel/x.ko",
    ] {
        layer.push((path.to_owned(), "x"));
    }
    layer.push(("usr/lib/os-release".into(), "ID=debian\nVERSION_CODENAME=bookworm\n"));
    layer
}

fn base() -> Layer {
    let mut layer = system();
    for (path, text) in [
        (".dockerenv", ""),
        ("usr/sbin/policy-rc.d", "exit 101"),
        ("etc/hostname", "0123456789ab"),
        ("opt/app/old", "old"),
        ("opt/app/kept/", ""),
        ("opt/gone/deep/file", "gone"),
        ("opt/tool", "tool"),
    ] {
        layer.push((path.to_owned(), text));
    }
    layer
}

fn second() -> Layer {
    [
        ("opt/app/new", "new"),
        ("opt/app/.wh..wh..opq", ""),
        ("opt/.wh.gone", ""),
        ("opt/second-name", "=opt/tool"),
        ("bin/through-the-link", "y"),
        ("opt/ünï \u{1f916}\n", "odd"),
    ]
    .map(|(path, what)| (path.to_owned(), what))
    .into()
}

fn tarball(layer: &Layer) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    // Both zero bytes and line feeds are in capabilities: here those of cap_dac_override and cap_fowner.
    let capability: &[u8] = b"\x01\0\0\x02\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (path, what) in layer {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        if let Some(target) = what.strip_prefix("->") {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, target).unwrap();
        } else if let Some(target) = what.strip_prefix('=') {
            header.set_entry_type(tar::EntryType::Link);
            builder.append_link(&mut header, path, target).unwrap();
        } else if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, path, std::io::empty()).unwrap();
        } else {
            if path == "opt/tool" {
                builder.append_pax_extensions([("SCHILY.xattr.security.capability", capability)]).unwrap();
            }
            header.set_size(what.len() as u64);
            builder.append_data(&mut header, path, what.as_bytes()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn piped(program: &str, bytes: &[u8]) -> Vec<u8> {
    let (directory, name) = (tempfile::tempdir().unwrap(), "in");
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    // gzip would put the time of the file into its result.
    let arguments: &[&str] = if program == "gzip" { &["-cn"] } else { &["-c"] };
    Command::new(program).args(arguments).stdin(File::open(path).unwrap()).output().unwrap().stdout
}

/// A layout in a directory; returns the manifest, which is for the given architecture.
fn layout(directory: &Path, layers: &[Layer], architecture: &str) -> Vec<u8> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        fs::write(blobs.join(sha256(bytes)), bytes).unwrap();
        serde_json::json!({"mediaType": kind, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
    };
    let (mut descriptors, mut ids) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let plain = tarball(layer);
        ids.push(format!("sha256:{}", sha256(&plain)));
        // Builders of today write either.
        let (kind, packed) =
            if number % 2 == 0 { ("tar+gzip", piped("gzip", &plain)) } else { ("tar+zstd", piped("zstd", &plain)) };
        descriptors.push(put(&format!("application/vnd.oci.image.layer.v1.{kind}"), &packed));
    }
    let config = serde_json::json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/app"]},
        "created": "2023-11-14T22:13:20Z", "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": descriptors});
    let manifest = manifest.to_string().into_bytes();
    let mut descriptor = put("application/vnd.oci.image.manifest.v1+json", &manifest);
    descriptor["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "1.0"});
    descriptor["platform"] = serde_json::json!({"architecture": architecture, "os": "linux"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string();
    fs::write(directory.join("index.json"), index).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    manifest
}

/// A place for recipes and what is made of them.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        ensure_installed(&[Need::Source, Need::Test], true).unwrap();
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn obtain(&self, section: &str) -> anyhow::Result<(Vec<u8>, UsedSource)> {
        let text = format!("name='x'\nversion='1'\n[source]\n{section}\n[ostree]\nbranch='x'\n");
        let recipe = Recipe::parse(&text)?;
        let work = self.at("work");
        fs::create_dir_all(&work)?;
        let settings = recipe.source.as_ref().unwrap();
        let (obtained, used) = source::obtain(&recipe, settings, self.0.path(), &work, KEPT)?;
        Ok((fs::read(obtained.tarball)?, used))
    }

    fn fails(&self, section: &str) -> String {
        format!("{:#}", self.obtain(section).map(|(_, used)| used).unwrap_err())
    }
}

/// Checks what the two layers must become, as the tool that unpacks it sees it.
fn assert_merged(tarball: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tree.tar");
    fs::write(&path, tarball).unwrap();
    let at = |name: &str| directory.path().join("tree").join(name);
    fs::create_dir(at("")).unwrap();
    run("tar", &["-xf", path.to_str().unwrap(), "--xattrs", "--xattrs-include=*", "-C", at("").to_str().unwrap()]);
    assert_eq!(fs::read_to_string(at("opt/app/new")).unwrap(), "new");
    assert_eq!(fs::read_to_string(at("opt/ünï \u{1f916}\n")).unwrap(), "odd");
    assert_eq!(fs::read_to_string(at("usr/bin/through-the-link")).unwrap(), "y");
    for gone in ["opt/app/old", "opt/app/kept", "opt/gone", ".dockerenv", "usr/sbin/policy-rc.d", "etc/hostname"] {
        assert!(at(gone).symlink_metadata().is_err(), "{gone}");
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(at("opt/tool").metadata().unwrap().ino(), at("opt/second-name").metadata().unwrap().ino());
    let capability = xattr::get(at("opt/tool"), "security.capability").unwrap().unwrap();
    assert_eq!((capability.len(), capability[4]), (20, b'\n'));
    assert!(fs::read_to_string(at("etc/hosts")).unwrap().contains("localhost"));
}

#[test]
#[ignore = "needs root: to install skopeo; cargo xtask test --tier root"]
fn a_container_image_gives_the_same_tree_from_a_layout_and_from_archives() {
    let bench = Bench::new();
    let manifest = layout(&bench.at("layout"), &[base(), second()], "amd64");
    let (first, used) = bench.obtain("oci = 'oci:layout:1.0'").unwrap();
    assert_merged(&first);
    assert_eq!(used.digest, format!("sha256:{}", sha256(&manifest)));
    // What is known already is not unpacked again, and the digest can be demanded.
    let (again, _) = bench.obtain(&format!("oci = 'oci:layout:1.0'\ndigest = '{}'", used.digest)).unwrap();
    assert!(first == again);
    let error = bench.fails(&format!("oci = 'oci:layout:1.0'\ndigest = 'sha256:{}'", "0".repeat(64)));
    assert!(error.contains("is now") || error.contains("now, and source.digest asks for"), "{error}");
    let copy = |to: &str| {
        let mut skopeo = Command::new("skopeo");
        skopeo.current_dir(bench.0.path()).args(["--insecure-policy", "copy", "--quiet", "oci:layout:1.0", to]);
        assert!(skopeo.status().unwrap().success());
    };
    copy("oci-archive:robot.oci:1.0");
    copy("dir:directory");
    for name in ["oci-archive:robot.oci", "dir:directory"] {
        let (tarball, same) = bench.obtain(&format!("oci = '{name}'")).unwrap();
        assert!(tarball == first, "{name}");
        assert_eq!(same.digest, used.digest);
    }
    // Docker's own form has another manifest, and no zstd; the tree is the same.
    layout(&bench.at("layout-gzip"), &[base()], "amd64");
    let (gzip, _) = bench.obtain("oci = 'oci:layout-gzip'").unwrap();
    let mut skopeo = Command::new("skopeo");
    skopeo.current_dir(bench.0.path()).args(["--insecure-policy", "copy", "--quiet", "oci:layout-gzip:1.0"]);
    assert!(skopeo.arg("docker-archive:robot.docker:robot:1.0").status().unwrap().success());
    let (tarball, _) = bench.obtain("oci = 'docker-archive:robot.docker'").unwrap();
    assert!(tarball == gzip);
}

#[test]
#[ignore = "needs root: to install skopeo; cargo xtask test --tier root"]
fn a_container_image_that_is_damaged_or_of_another_machine_is_refused() {
    let bench = Bench::new();
    layout(&bench.at("arm"), &[base()], "arm64");
    let error = bench.fails("oci = 'oci:arm:1.0'");
    assert!(error.contains("arm64"), "{error}");
    // A blob that is not what its digest says: skopeo refuses.
    let manifest = layout(&bench.at("damaged"), &[base(), second()], "amd64");
    let first = serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["layers"][0]["digest"].clone();
    let blob = bench.at("damaged/blobs/sha256").join(first.as_str().unwrap().trim_start_matches("sha256:"));
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = bench.fails("oci = 'oci:damaged:1.0'");
    assert!(error.contains("fetch the container image"), "{error}");
    // A layer that is not what the configuration says, which skopeo does not look at.
    let blobs = bench.at("lying/blobs/sha256");
    layout(&bench.at("lying"), &[base()], "amd64");
    let config = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path());
    let is_config = |path: &PathBuf| fs::read(path).unwrap().starts_with(b"{\"architecture\"");
    let path = config.into_iter().find(is_config).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let id = text.split("diff_ids\":[\"sha256:").nth(1).unwrap()[..64].to_owned();
    let lie = text.replace(&id, &"0".repeat(64));
    fs::write(blobs.join(sha256(lie.as_bytes())), &lie).unwrap();
    for name in ["manifest", "index"] {
        let old = path.file_name().unwrap().to_str().unwrap();
        if name == "manifest" {
            let at = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path());
            let at = at.into_iter().find(|path| fs::read(path).unwrap().starts_with(b"{\"config\"")).unwrap();
            let text = fs::read_to_string(&at).unwrap().replace(old, &sha256(lie.as_bytes()));
            fs::write(blobs.join(sha256(text.as_bytes())), &text).unwrap();
            let index = fs::read_to_string(bench.at("lying/index.json")).unwrap();
            let index = index.replace(at.file_name().unwrap().to_str().unwrap(), &sha256(text.as_bytes()));
            fs::write(bench.at("lying/index.json"), index).unwrap();
        }
    }
    let error = bench.fails("oci = 'oci:lying:1.0'");
    assert!(error.contains("has the digest") && error.contains(&"0".repeat(64)), "{error}");
}

#[test]
#[ignore = "needs root: to install skopeo; cargo xtask test --tier root"]
fn what_a_source_lacks_is_named_before_the_work() {
    let bench = Bench::new();
    let without = |missing: &str| base().into_iter().filter(|(path, _)| !path.starts_with(missing)).collect::<Layer>();
    layout(&bench.at("no-kernel"), &[without("usr/lib/modules")], "amd64");
    assert!(bench.fails("oci = 'oci:no-kernel:1.0'").contains("a kernel with its modules"));
    // The classic trap: a layer with a directory /lib takes the place of the link.
    layout(&bench.at("unmerged"), &[base(), vec![("lib/".into(), ""), ("lib/x".into(), "x")]], "amd64");
    let error = bench.fails("oci = 'oci:unmerged:1.0'");
    assert!(error.contains("/lib of the source is no link into /usr"), "{error}");
    layout(&bench.at("hostile"), &[base(), vec![("a".into(), "->../../../../tmp"), ("a/x".into(), "x")]], "amd64");
    bench.obtain("oci = 'oci:hostile:1.0'").unwrap();
    fs::write(bench.at("lxd.tar"), tarball(&vec![("metadata.yaml".into(), ""), ("rootfs/etc/x".into(), "")])).unwrap();
    assert!(bench.fails("rootfs = 'lxd.tar'").contains("source.lxd"));
    assert!(bench.fails("rootfs = 'none.tar'").contains("none.tar is missing"));
    fs::write(bench.at("plain.tar"), tarball(&base())).unwrap();
    assert!(bench.fails("lxd = ['plain.tar']").contains("no metadata.yaml"));
    let suite = "rootfs = 'plain.tar'\n[distribution]\nsuite = 'noble'";
    assert!(bench.fails(suite).contains("suite is noble, and the source is bookworm"));
}

#[test]
#[ignore = "needs root: to install squashfs-tools-ng; cargo xtask test --tier root"]
fn a_root_file_system_gives_the_same_tree_as_tarball_directory_and_image_of_lxd() {
    let bench = Bench::new();
    let plain = tarball(&base());
    fs::write(bench.at("root.tar"), &plain).unwrap();
    fs::create_dir(bench.at("root")).unwrap();
    run(
        "tar",
        &[
            "-xf",
            bench.at("root.tar").to_str().unwrap(),
            "--xattrs",
            "--xattrs-include=*",
            "-C",
            bench.at("root").to_str().unwrap(),
        ],
    );
    let (first, used) = bench.obtain("rootfs = 'root.tar'").unwrap();
    assert_eq!(used.digest, format!("sha256:{}", sha256(&plain)));
    // Times of directories that an archive does not list are those of their making; OSTree keeps no times.
    let names = |tarball: &[u8]| {
        let mut archive = tar::Archive::new(tarball);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            let header = entry.header();
            (entry.path_bytes().into_owned(), header.mode().unwrap(), header.uid().unwrap(), content)
        });
        entries.collect::<Vec<_>>()
    };
    let xz = piped("xz", &plain);
    fs::write(bench.at("root.tar.xz"), xz).unwrap();
    let squashed = format!("tar2sqfs -q {0}/root.squashfs < {0}/root.tar", bench.0.path().display());
    run("sh", &["-c", &squashed]);
    let unified: Layer = std::iter::once(("metadata.yaml".to_owned(), "architecture: x86_64\n"))
        .chain(base().into_iter().map(|(path, what)| (format!("rootfs/{path}"), what)))
        .collect();
    fs::write(bench.at("unified.tar.xz"), piped("xz", &tarball(&unified))).unwrap();
    let metadata: Layer = vec![("metadata.yaml".into(), "architecture: x86_64\n"), ("templates/x".into(), "x")];
    fs::write(bench.at("lxd.tar.xz"), piped("xz", &tarball(&metadata))).unwrap();
    for section in [
        "rootfs = 'root'",
        "rootfs = 'root.tar.xz'",
        "rootfs = 'root.squashfs'",
        "lxd = ['unified.tar.xz']",
        "lxd = ['lxd.tar.xz', 'root.squashfs']",
        "lxd = ['lxd.tar.xz', 'root.tar.xz']",
    ] {
        let (tarball, _) = bench.obtain(section).unwrap();
        let (found, expected) = (names(&tarball), names(&first));
        let different = found.iter().zip(&expected).find(|(one, other)| one != other);
        assert!(found == expected, "{section}: {different:?}");
    }
}

#[test]
#[ignore = "needs root: network namespaces; cargo xtask test --tier root"]
fn a_tag_of_a_registry_is_resolved_to_its_digest() {
    isolated("tree_sources::a_tag_of_a_registry_is_resolved_to_its_digest", || {
        run("ip", &["link", "set", "lo", "up"]);
        let bench = Bench::new();
        let manifest = layout(&bench.at("layout"), &[base(), second()], "amd64");
        let digest = format!("sha256:{}", sha256(&manifest));
        let blobs = bench.at("layout/blobs/sha256");
        // A list for two architectures, as `docker buildx` makes it.
        let other = layout(&bench.at("arm"), &[base()], "arm64");
        let list = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": other.len(),
                "digest": format!("sha256:{}", sha256(&other)), "platform": {"architecture": "arm64", "os": "linux"}},
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": manifest.len(),
                "digest": digest, "platform": {"architecture": "amd64", "os": "linux"}},
        ]})
        .to_string();
        let (tls, certificate) = authority_as_server("127.0.0.1");
        let server = TestServer::start_tls(tls, move |request| {
            let name = request.target().rsplit('/').next().unwrap();
            let send = |kind: &str, bytes: &[u8]| {
                let kind = format!("Content-Type: application/vnd.oci.image.{kind}.v1+json");
                vec![answer("200 OK", &[&kind, &format!("Content-Length: {}", bytes.len())], bytes)]
            };
            match name {
                "" => send("index", b"{}"),
                "1.0" => send("index", list.as_bytes()),
                _ => match fs::read(blobs.join(name.trim_start_matches("sha256:"))) {
                    Ok(bytes) => send("manifest", &bytes),
                    Err(_) => status("404 Not Found"),
                },
            }
        });
        let address = server.url().split('/').nth(2).unwrap().to_owned();
        // In place of the host's settings, within this namespace.
        fs::create_dir_all("/etc/containers").unwrap();
        run("mount", &["-t", "tmpfs", "tmpfs", "/etc/containers"]);
        let trusted = Path::new("/etc/containers/certs.d").join(&address);
        fs::create_dir_all(&trusted).unwrap();
        fs::copy(certificate.path(), trusted.join("ca.crt")).unwrap();
        let (tarball, used) = bench.obtain(&format!("oci = 'docker://{address}/robot:1.0'")).unwrap();
        assert_merged(&tarball);
        assert_eq!(used.digest, digest, "the digest is that of the image for amd64");
        let before = server.requests().len();
        let pinned = format!("oci = 'docker://{address}/robot@{digest}'");
        let (same, _) = bench.obtain(&pinned).unwrap();
        assert!(same == tarball);
        let asked = server.requests().len();
        assert!(asked > before);
        bench.obtain(&pinned).unwrap();
        assert_eq!(server.requests().len(), asked, "what is named by its digest and known is not asked for again");
    });
}

/// Builds the image of an example of the manual, with the kernel for virtual machines, which is a tenth of the other.
/// Returns what `ostree ls` shows of its commit.
fn built_example(example: &Path, name: &str) -> String {
    let recipe = example.join("robot.toml");
    let text = fs::read_to_string(&recipe).unwrap().replace("linux-image-amd64", "linux-image-cloud-amd64");
    fs::write(&recipe, text.replace("name = \"robot\"", &format!("name = \"example-{name}\""))).unwrap();
    let (paths, out) = (Paths::of_checkout(), example.join("system.img"));
    let options = ImageOptions { assume_yes: true, ..ImageOptions::default() };
    let description = image::build(&paths, &recipe, &out, &options).unwrap();
    let repository = format!("--repo={}", paths.work().join("ostree").display());
    let list = Command::new("ostree").args([&repository, "ls", "-R", &description.ostree_commit]).output().unwrap();
    String::from_utf8_lossy(&list.stdout).into_owned()
}

fn copied_example(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir_in(Paths::of_checkout().work()).unwrap();
    for entry in fs::read_dir(Paths::of_checkout().root.join("docs/examples").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_example_of_the_manual_for_apt_and_ansible_builds_an_image() {
    let example = copied_example("ansible");
    let list = built_example(example.path(), "ansible");
    assert!(list.contains("-00640 0 990 ") && list.contains("/usr/etc/hello.conf"), "{list}");
    assert!(list.contains("multi-user.target.wants/systemd-networkd.service"));
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_example_of_the_manual_for_lxd_builds_an_image() {
    ensure_installed(&[Need::Image, Need::Source], true).unwrap();
    let example = copied_example("lxd");
    // An image as `lxc image export` writes it, of a system that a person changed in a container.
    let script = "cd \"$1\" && mkdir -p image/rootfs && mmdebstrap --quiet --variant=minbase bookworm root.tar && \
        tar -xf root.tar -C image/rootfs && echo changed > image/rootfs/etc/changed && \
        echo 'LABEL=cloudimg-rootfs / ext4 defaults 0 1' > image/rootfs/etc/fstab && \
        echo 'architecture: x86_64' > image/metadata.yaml && \
        tar -czf robot-image.tar.gz --numeric-owner --xattrs -C image metadata.yaml rootfs && rm -r image root.tar";
    run("sh", &["-ec", script, "sh", example.path().to_str().unwrap()]);
    let list = built_example(example.path(), "lxd");
    assert!(list.contains("/usr/etc/changed") && list.contains("/usr/lib/ostree/ostree-prepare-root"), "{list}");
    let table = list.lines().find(|line| line.ends_with("/usr/etc/fstab")).unwrap();
    assert_eq!(table.split_whitespace().nth(3), Some("0"), "the table has no line of another machine: {table}");
}
