//! Many machines at once: what they post while they work, the page that shows it, and a cache in front of the server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reflash::cli::answer::Exit;
use reflash::fetch::{CertificateClock, FetchOptions, Http, RetryPolicy, SystemClock, open_all};
use reflash::flash::target::DeviceTarget;
use reflash::jobs::recovery::{self, RecoveryError};
use reflash::record::journal::Journal;
use reflash::record::report::{Ending, Poster, ReportedMachine};
use serde_json::{Value, json};
use xtask::serve;

use crate::support::server::{Act, TestRequest, TestServer, answer, status};
use crate::support::{Fixture, sample_image};

mod cache;

fn options() -> FetchOptions {
    FetchOptions {
        proxy: None,
        no_proxy: Vec::new(),
        ca_file: None,
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(30),
        rate: None,
        certificate_clock: Arc::new(CertificateClock::fixed()),
        clock: Arc::new(SystemClock),
        on_served: None,
    }
}

/// Serves the tree, and a station beside it.
pub fn serve(fixture: &Fixture) -> serve::Server {
    let options = serve::ServeOptions { station: true, ..serve::ServeOptions::default() };
    serve::start_with(&fixture.tree(), SocketAddr::from(([127, 0, 0, 1], 0)), &options).unwrap()
}

fn machine(number: usize) -> ReportedMachine {
    ReportedMachine {
        id: Some(format!("{number:016x}")),
        hostname: Some(format!("robot-{number}")),
        product: "demo".into(),
        hardware: Some("unit-a".into()),
        serial_number: Some(format!("S{number}")),
        ..ReportedMachine::default()
    }
}

/// Makes a file the release, as machine `who`, which reports to `station`; also how long it took until all was
/// reported.
fn flash(
    fixture: &Fixture,
    urls: &[String],
    file: &Path,
    who: ReportedMachine,
    station: &str,
) -> (Result<recovery::RecoveryReport, RecoveryError>, Duration) {
    let started = Instant::now();
    std::fs::File::create(file).unwrap().set_len(fixture.image.len() as u64).unwrap();
    let target = DeviceTarget::open(file).unwrap();
    let mirrors = open_all(urls, &options(), RetryPolicy::Rounds(3)).unwrap();
    let journal = Arc::new(Journal::silent());
    let poster = Poster::start(who, station, &options(), &journal).unwrap();
    let result = recovery::run(&fixture.job(&mirrors, &target, None, &journal), None);
    poster.close(if result.is_ok() { Ending::Installed } else { Ending::Failed });
    (result, started.elapsed())
}

fn holds_image(file: &Path, fixture: &Fixture) -> bool {
    std::fs::read(file).unwrap() == fixture.image
}

fn base(server: &serve::Server) -> String {
    format!("http://{}", server.address)
}

/// What the station knows, by host name.
fn known(server: &serve::Server) -> Vec<Value> {
    let (status, body) = http(server.address, "GET", "/station.json", b"");
    assert_eq!(status, 200);
    let all: Value = serde_json::from_str(&body).unwrap();
    all["machines"].as_array().unwrap().clone()
}

/// Status and body of one request.
pub fn http(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses what is too long may hang up before it has all of it.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn posts(station: &TestServer) -> Vec<Value> {
    station.requests().iter().map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
}

#[test]
fn a_machine_is_on_the_page_from_its_first_post_to_its_result() {
    let fixture = Fixture::new();
    let server = serve(&fixture);
    let report = format!("{}/report", base(&server));
    let file = fixture.dir.path().join("disk");
    flash(&fixture, &[base(&server)], &file, machine(1), &report).0.unwrap();
    assert!(holds_image(&file, &fixture));
    // Nothing listens where this one asks for its release.
    flash(&fixture, &["http://127.0.0.1:9".into()], &file, machine(2), &report).0.unwrap_err();
    let rows = known(&server);
    let of = |row: &Value| (row["progress"]["result"].clone(), row["progress"]["phase"].clone());
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        [(json!("installed"), json!("commit")), (json!("failed"), json!("manifest")),]
    );
    assert_eq!((&rows[0]["progress"]["version"], &rows[0]["address"]), (&json!("1"), &json!("127.0.0.1")));
    assert_eq!(rows[1]["machine"]["serial_number"], "S2");
    assert!(rows[0]["seen_ms_ago"].as_u64().unwrap() < 60_000);
}

#[test]
fn posts_come_at_phases_and_at_most_once_a_second() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let pack = std::fs::read(fixture.pack_path()).unwrap();
    let pack_name = fixture.pack_path().file_name().unwrap().to_str().unwrap().to_owned();
    // The download takes 3 s, everything else no time.
    let mirror = TestServer::start(move |request: &TestRequest| {
        let path = request.target().trim_start_matches("/release/");
        if path.ends_with(&pack_name) {
            let mut acts = vec![Act::Wait(Duration::from_secs(3))];
            acts.extend(crate::support::server::object(request, &pack));
            return acts;
        }
        match std::fs::read(tree.join(path)) {
            Ok(content) => crate::support::server::object(request, &content),
            Err(_) => status("404 Not Found"),
        }
    });
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let times = Arc::clone(&arrivals);
    let station = TestServer::start(move |_| {
        times.lock().unwrap().push(Instant::now());
        status("204 No Content")
    });
    let file = fixture.dir.path().join("disk");
    let done = flash(&fixture, &[mirror.url()], &file, machine(1), &station.url()).0.unwrap();
    let posts = posts(&station);
    // At the start, a second later for the phases until then, after the download, and at the end.
    assert!((3..8).contains(&posts.len()), "{posts:?}");
    let last = posts.len() - 1;
    let arrivals = arrivals.lock().unwrap();
    // The last one does not wait.
    let pauses = arrivals[..last].windows(2).map(|pair| pair[1] - pair[0]);
    assert!(pauses.clone().all(|pause| pause > Duration::from_millis(950)), "{:?}", pauses.collect::<Vec<_>>());
    // The work of the disk and of the network.
    let total_bytes = done.totals.changed_bytes() + done.totals.download_bytes;
    let writing = posts.iter().find(|post| post["progress"]["total_bytes"] == total_bytes).unwrap();
    let of = |post: &Value| (post["progress"]["phase"].clone(), post["progress"]["result"].clone());
    assert_eq!(of(writing), (json!("write"), json!(null)));
    assert_eq!(of(&posts[last]), (json!("commit"), json!("installed")));
    let sequence: Vec<_> = posts.iter().map(|post| post["progress"]["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequence, (1..=posts.len() as u64).collect::<Vec<_>>());
    assert!(station.requests().iter().all(|request| request.header("content-type") == Some("application/json")));
}

#[test]
fn a_station_that_is_down_slow_or_broken_changes_nothing() {
    let fixture = Fixture::new();
    let server = serve(&fixture);
    let file = fixture.dir.path().join("disk");
    let broken = TestServer::start(|_| status("500 Internal Server Error"));
    let lying = TestServer::start(|_| vec![Act::Send(b"HTTP/1.1 2\xff\xff what?\r\n\r\n".to_vec()), Act::Close]);
    let slow = TestServer::start(|_| vec![Act::Wait(Duration::from_secs(20)), answer("200 OK", &[], b"")]);
    for station in ["http://127.0.0.1:9/report".to_owned(), broken.url(), lying.url(), slow.url()] {
        let (result, took) = flash(&fixture, &[base(&server)], &file, machine(1), &station);
        result.unwrap();
        assert!(holds_image(&file, &fixture), "{station}");
        // Of which 3 s are the wait for the last post, and most of the rest a busy test machine.
        assert!(took.as_secs() < 10, "{station}: {took:?}");
    }
    // The first and the last one; between them is the pause after a failure, of 5 s at least.
    let told = posts(&broken);
    assert!((2..=3).contains(&told.len()), "{told:?}");
    assert_eq!(told[told.len() - 1]["progress"]["result"], "installed");
}

#[test]
fn the_verb_tells_of_the_machine_it_runs_on_and_not_of_a_disk_on_a_bench() {
    let fixture = Fixture::new();
    let server = serve(&fixture);
    let path = |name: &str| fixture.dir.path().join(name).display().to_string();
    std::fs::create_dir(path("state")).unwrap();
    let config = format!(
        "[release]\nurls = [\"{0}\"]\n[machine]\nproduct = \"demo\"\nhardware = \"unit-a\"\nhostname = \"arm-7\"\n\
         [report]\nurl = \"{0}/report\"\n",
        base(&server)
    );
    std::fs::write(path("reflash.toml"), config).unwrap();
    let flash = |more: &[&str]| {
        std::fs::File::create(path("disk")).unwrap().set_len(fixture.image.len() as u64).unwrap();
        let (disk, config, keys) = (path("disk"), path("reflash.toml"), path("keys"));
        let arguments = ["flash", "--target", &disk, "--config", &config, "--keys", &keys, "--json"];
        reflash::cli::run(arguments.iter().chain(more).map(Into::into))
    };
    assert_eq!(flash(&[]), Exit::Done);
    assert!(known(&server).is_empty());
    assert_eq!(flash(&["--state", &path("state")]), Exit::Done);
    let told = || {
        let row = known(&server).pop().unwrap();
        (row["machine"]["hostname"].clone(), row["progress"]["result"].clone())
    };
    assert_eq!(told(), (json!("arm-7"), json!("installed")));
    assert_eq!(flash(&["--state", &path("state"), "--hardware", "unit-b"]), Exit::Failed);
    assert_eq!(told(), (json!("arm-7"), json!("refused")));
}

#[test]
fn the_station_takes_posts_at_one_place_and_files_are_served_as_without_it() {
    let fixture = Fixture::new();
    let server = serve(&fixture);
    let status = |method, path, body: &[u8]| http(server.address, method, path, body).0;
    let manifest = "/stable/manifest.json";
    assert_eq!(
        http(server.address, "GET", manifest, b"").1,
        std::fs::read_to_string(fixture.tree().join(&manifest[1..])).unwrap()
    );
    assert_eq!(
        [status("HEAD", manifest, b""), status("POST", manifest, b"{}"), status("POST", "/other", b"{}")],
        [200, 405, 405]
    );
    assert_eq!(
        [status("GET", "/none", b""), status("GET", "/report", b""), status("POST", "/station", b"")],
        [404, 405, 405]
    );
    let padded = |len: usize| {
        let mut post = json!({ "machine": { "id": "a" } }).to_string().into_bytes();
        post.resize(len, b' ');
        post
    };
    assert_eq!(
        [status("POST", "/report", &padded(64 << 10)), status("POST", "/report", &padded((64 << 10) + 1))],
        [204, 413]
    );
    assert_eq!([status("POST", "/report", b"{"), status("POST", "/report", b"")], [400, 400]);
    assert_eq!(known(&server).len(), 1);
    let (code, page) = http(server.address, "GET", "/station", b"");
    assert!(code == 200 && page.contains("textContent") && !page.contains("innerHTML"));
    assert!(!page.contains("http://") && !page.contains("https://"), "the page needs nothing from elsewhere");
    let without = serve::start(&fixture.tree(), SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
    assert_eq!(
        [http(without.address, "POST", "/report", b"{}").0, http(without.address, "GET", "/station", b"").0],
        [405, 404]
    );
}

/// The page as a browser shows it, after two rounds of refreshing.
fn dom(url: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=2500"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--dump-dom", url])
        .env("HOME", profile.path())
        .output()
        .expect("chromium must be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The row of the table that has `text` in it.
fn row<'a>(dom: &'a str, text: &str) -> &'a str {
    let rows = dom.split("<tr>").skip(2);
    rows.into_iter().find(|row| row.contains(text)).unwrap_or_else(|| panic!("no row with {text}: {dom}"))
}

#[test]
#[ignore = "needs root: to install chromium; cargo xtask test --tier root"]
fn a_browser_shows_the_machines_and_shows_what_they_say_as_text() {
    let fixture = Fixture::new();
    let server = serve(&fixture);
    let report = Http::new(&format!("{}/report", base(&server)), &options()).unwrap();
    let post = |name: &str, progress: Value| {
        let machine = json!({ "id": name, "hostname": name, "serial_number": format!("S-{name}") });
        report.post_json(&json!({ "machine": machine, "progress": progress }).to_string()).unwrap();
    };
    let bad = "<img src=x onerror=alert(1)>";
    post(
        "robot-1",
        json!({ "phase": "write", "phase_number": 6, "done_bytes": 50 << 20, "total_bytes": 100 << 20,
        "bytes_per_s": 5 << 20, "message": "write 100.0 MiB to sda4", "version": "2.0", "result": null }),
    );
    post("robot-2", json!({ "phase": "commit", "result": "installed" }));
    post("robot-3", json!({ "phase": "manifest", "result": "refused", "message": bad }));
    post(bad, json!({ "phase": bad, "result": bad, "version": "</script><script>alert(1)</script>" }));
    let dom = dom(&format!("{}/station", base(&server)));
    let working = row(&dom, "robot-1");
    for text in ["S-robot-1", "127.0.0.1", "write", "50%", "5.0 MiB/s", "2.0", "s ago", r#"<progress max="104857600""#]
    {
        assert!(working.contains(text), "{text}: {working}");
    }
    assert!(row(&dom, "robot-2").contains("installed") && row(&dom, "robot-2").contains("commit"));
    assert!(row(&dom, "robot-3").contains(r#"class="bad">refused"#));
    let escaped = "&lt;img src=x onerror=alert(1)&gt;";
    assert!(row(&dom, r#"class="name">&lt;img"#).matches(escaped).count() >= 3, "{dom}");
    assert!(!dom.contains("<img") && !dom.contains("</script><script>"), "{dom}");
    assert!(dom.contains("4 machines, 3 with a result, 0 silent"), "{dom}");
}

#[test]
#[ignore = "needs root: to install chromium; cargo xtask test --tier root"]
fn a_browser_says_since_when_a_machine_is_silent() {
    let page = std::fs::read(xtask::paths::Paths::of_checkout().root.join("xtask/src/station.html")).unwrap();
    let row_of = |name: &str, seen_ms_ago: u64, result: Value| {
        json!({ "address": "::1", "seen_ms_ago": seen_ms_ago, "last_attempt": null, "machine": { "hostname": name },
            "progress": { "phase": "write", "done_bytes": null, "total_bytes": null, "bytes_per_s": null, "result": result } })
    };
    let rows = [
        row_of("heard", 29_000, json!(null)),
        row_of("stuck", 31_000, json!(null)),
        row_of("restarted", 90_000, json!("installed")),
    ];
    let list = json!({ "machines": rows }).to_string();
    let server = TestServer::start(move |request| {
        let (kind, body) = match request.target() {
            "/station.json" => ("Content-Type: application/json", list.as_bytes()),
            _ => ("Content-Type: text/html", page.as_slice()),
        };
        vec![answer("200 OK", &[kind, &format!("Content-Length: {}", body.len())], body)]
    });
    let dom = dom(&format!("http://{}/station", server.address));
    assert!(row(&dom, "heard").contains("29 s ago"), "{dom}");
    assert!(row(&dom, "stuck").contains(r#"class="bad">silent since "#), "{dom}");
    assert!(row(&dom, "restarted").contains("<span>silent since "), "{dom}");
    assert!(dom.contains("3 machines, 1 with a result, 1 silent"), "{dom}");
}
