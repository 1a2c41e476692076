//! The real nginx with `docs/nginx-cache.conf` between machines and server.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Fixture, base, flash, holds_image, known, machine, sample_image, serve};
use crate::support::server::{TestServer, object};

/// The user `nobody` of Debian, and of most others.
const NOBODY: &str = "65534";

/// nginx as an unprivileged process, below a directory of its own.
struct Cache {
    process: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Cache {
    fn start(origin: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let published = xtask::paths::Paths::of_checkout().root.join("docs/nginx-cache.conf");
        let mut config = std::fs::read_to_string(published).unwrap();
        let place = dir.path().display().to_string();
        for (there, here) in [
            ("192.0.2.1:8080", origin.to_string()),
            ("listen 8080;", format!("listen {address};")),
            ("/var/cache/reflash", place.clone()),
            ("/run/reflash-cache.pid", format!("{place}/pid")),
            // For a process that may not change its user.
            ("user www-data;", String::new()),
        ] {
            assert!(config.contains(there), "{there}");
            config = config.replace(there, &here);
        }
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = if xtask::host_packages::is_root() {
            let owned = Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(dir.path()).status();
            assert!(owned.unwrap().success());
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "TERM", "nginx"]);
            command
        } else {
            Command::new("nginx")
        };
        command.args(["-e", "stderr", "-g", "daemon off;", "-c"]).arg(dir.path().join("nginx.conf"));
        let process = command.stdin(Stdio::null()).spawn().expect("nginx and setpriv must be installed");
        let mut cache = Self { process, address, dir };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(cache.process.try_wait().unwrap().is_none() && Instant::now() < until, "nginx does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        cache
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // It ends its workers itself.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Waits until the cache asks whether the manifest is still the same: `proxy_cache_valid` of docs/nginx-cache.conf is 1
/// s, and nginx counts whole seconds. A longer wait does no harm.
fn until_the_manifest_is_stale() {
    std::thread::sleep(Duration::from_secs(2));
}

/// 16 MiB, half of which does not compress: packs of more than one range, and of several slices.
fn fixture() -> Fixture {
    Fixture::with(sample_image(4096, 5), |spec| spec.chunk_bytes = Some(64 * 1024))
}

fn origin_bytes(server: &xtask::serve::Server) -> u64 {
    server.counters.body_bytes.load(Ordering::Relaxed)
}

/// Everything of the release: packs, index, manifest and signature.
fn release_bytes(tree: &Path) -> u64 {
    let files = walkdir::WalkDir::new(tree).into_iter().map(|entry| entry.unwrap().metadata().unwrap());
    files.filter(std::fs::Metadata::is_file).map(|file| file.len()).sum()
}

#[test]
#[ignore = "needs root: to install nginx; cargo xtask test --tier root"]
fn what_one_machine_took_costs_the_origin_nothing_for_the_next() {
    let fixture = fixture();
    let server = serve(&fixture);
    let cache = Cache::start(server.address);
    let report = format!("{}/report", base(&server));
    let disk = |number| fixture.dir.path().join(format!("disk-{number}"));
    flash(&fixture, &[cache.url()], &disk(1), machine(1), &report).0.unwrap();
    assert!(holds_image(&disk(1), &fixture));
    let (first, whole) = (origin_bytes(&server), release_bytes(&fixture.tree()));
    assert!(first >= whole * 9 / 10 && first <= whole * 11 / 10, "{first} of {whole} bytes");
    until_the_manifest_is_stale();
    let requests = || server.counters.requests.load(Ordering::Relaxed);
    let before = requests();
    flash(&fixture, &[cache.url()], &disk(2), machine(2), &report).0.unwrap();
    assert!(holds_image(&disk(2), &fixture));
    // It is, and so is the signature: 304, without a byte. The third question is for a roll-out, which this channel
    // does not have. Of objects, not even a question.
    assert_eq!((requests() - before, origin_bytes(&server) - first), (3, 0));
    // Another release is seen at once, although the old manifest is in the cache.
    let mut fixture = fixture;
    until_the_manifest_is_stale();
    fixture.publish(sample_image(4096, 6), |spec| {
        (spec.version, spec.chunk_bytes) = ("2".into(), Some(64 * 1024));
    });
    let file = fixture.dir.path().join("disk-1");
    let report = flash(&fixture, &[cache.url()], &file, machine(1), &report).0.unwrap();
    assert_eq!(report.version, "2");
    assert_eq!(cache.errors(), "");
    // The origin goes away, with the station; what is in the cache is complete.
    drop(server);
    until_the_manifest_is_stale();
    let file = fixture.dir.path().join("disk-3");
    flash(&fixture, &[cache.url()], &file, machine(3), "http://127.0.0.1:9").0.unwrap();
    assert!(holds_image(&file, &fixture));
}

#[test]
#[ignore = "needs root: to install nginx; cargo xtask test --tier root"]
fn twenty_machines_at_once_cost_the_origin_one_download() {
    const MACHINES: usize = 20;
    let fixture = fixture();
    let server = serve(&fixture);
    let cache = Cache::start(server.address);
    let report = format!("{}/report", base(&server));
    let disk = |number| fixture.dir.path().join(format!("disk-{number}"));
    std::thread::scope(|scope| {
        for number in 0..MACHINES {
            let (fixture, cache, report, disk) = (&fixture, &cache, &report, disk(number));
            scope.spawn(move || flash(fixture, &[cache.url()], &disk, machine(number), report).0.unwrap());
        }
    });
    assert!((0..MACHINES).all(|number| holds_image(&disk(number), &fixture)));
    let (bytes, whole) = (origin_bytes(&server), release_bytes(&fixture.tree()));
    assert!(bytes <= whole * 11 / 10, "{bytes} bytes for a release of {whole}");
    let rows = known(&server);
    assert_eq!(rows.len(), MACHINES);
    assert!(rows.iter().all(|row| row["progress"]["result"] == "installed"), "{rows:?}");
    assert_eq!(cache.errors(), "");
}

#[test]
#[ignore = "needs root: to install nginx; cargo xtask test --tier root"]
fn a_cache_that_went_bad_is_found_out_and_the_server_asked_instead() {
    let fixture = fixture();
    let server = serve(&fixture);
    let cache = Cache::start(server.address);
    let disk = fixture.dir.path().join("disk");
    let nobody = "http://127.0.0.1:9";
    flash(&fixture, &[cache.url()], &disk, machine(1), nobody).0.unwrap();
    let files =
        walkdir::WalkDir::new(cache.dir.path().join("files")).into_iter().map(|entry| entry.unwrap().into_path());
    let mut spoiled = 0;
    for path in files.filter(|path| path.metadata().unwrap().len() > 500_000) {
        let mut content = std::fs::read(&path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        std::fs::write(&path, content).unwrap();
        spoiled += 1;
    }
    assert!(spoiled >= 8, "{spoiled} slices");
    flash(&fixture, &[cache.url(), base(&server)], &disk, machine(2), nobody).0.unwrap();
    assert!(holds_image(&disk, &fixture));
}

#[test]
#[ignore = "needs root: to install nginx; cargo xtask test --tier root"]
fn a_small_range_of_a_large_pack_costs_a_slice() {
    let data = sample_image(2048, 3);
    let len = data.len();
    let origin = TestServer::start(move |request| object(request, &data));
    let cache = Cache::start(origin.address);
    let get = |range: std::ops::Range<u64>| {
        let source = reflash::fetch::Http::new(&cache.url(), &super::options()).unwrap();
        let mut got = 0;
        let mut sink = |bytes: &[u8]| {
            got += bytes.len() as u64;
            Ok(())
        };
        reflash::fetch::Source::get_range(&source, "objects/00ff", range, &mut sink).unwrap();
        got
    };
    let ranges = || -> Vec<_> { origin.requests().iter().map(|request| request.range().unwrap()).collect() };
    let mib = 1 << 20;
    assert_eq!(get(5 * mib + 1000..5 * mib + 2000), 1000);
    assert_eq!(ranges(), [(5 << 20, (6 << 20) - 1)]);
    // Across two slices, of which one is there; and the end, which is shorter than a slice asks for.
    assert_eq!(get(6 * mib - 10..6 * mib + 10), 20);
    assert_eq!(ranges()[1..], [(6 << 20, (7 << 20) - 1)]);
    assert_eq!(get(len as u64 - 7..len as u64), 7);
    assert_eq!(ranges().len(), 3);
}
