//! The boot environment, the black box and the reports, each with the other side it talks to.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use reflash::boot::env::{BootEnv, LoadedEnv};
use reflash::boot::grubenv::Assignments;
use reflash::fetch::{CertificateClock, FetchOptions, SystemClock};
use reflash::record::blackbox::{Attempt, AttemptOutcome, BlackBox};
use reflash::record::report::{Pending, ReportedMachine};

use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use proptest::{collection, sample};

use crate::properties::config;
use crate::support::server::{TestServer, answer, status};

fn editenv(path: &Path, arguments: &[&str]) -> String {
    let output = Command::new("grub-editenv").arg(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs root: to install grub-editenv; cargo xtask test --tier root"]
fn grub_editenv_and_we_read_what_the_other_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grubenv");
    let env = BootEnv::new(&path);
    let odd = "a\\b c=d # ä";
    editenv(&path, &["create"]);
    editenv(&path, &["set", "reflash_tries=2", &format!("odd={odd}"), "empty="]);
    let LoadedEnv::Good(read) = env.load().unwrap() else { panic!("grub-editenv's file is not read") };
    assert_eq!((read.get("reflash_tries"), read.get("odd"), read.get("empty")), (Some("2"), Some(odd), Some("")));

    env.update(&[("reflash_tries", Some("1")), ("next_entry", Some("recovery")), ("empty", None)]).unwrap();
    let listed = editenv(&path, &["list"]);
    assert_eq!(listed, format!("reflash_tries=1\nodd={odd}\nnext_entry=recovery\n"));
    // It goes on with our block of 512 bytes as with its own of 1024.
    editenv(&path, &["unset", "odd"]);
    editenv(&path, &["set", "reflash_tries=9"]);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 512);
    assert_eq!(env.load_or_empty().unwrap().get("reflash_tries"), Some("9"));

    // Both find the same end of the room.
    let room = 512 - env.load_or_empty().unwrap().encode().unwrap().iter().position(|byte| *byte == b'#').unwrap();
    assert!(room > 0);
    let mut fill = 400;
    while env.update(&[("fill", Some(&"x".repeat(fill)))]).is_ok() {
        fill += 1;
    }
    let too_long = format!("fill={}", "x".repeat(fill));
    let refused = Command::new("grub-editenv").arg(&path).args(["set", &too_long]).output().unwrap();
    assert!(!refused.status.success());
    editenv(&path, &["set", &format!("fill={}", "x".repeat(fill - 1))]);
}

#[test]
#[ignore = "needs root: to install grub-editenv; cargo xtask test --tier root"]
fn grub_reads_the_same_from_a_damaged_block_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grubenv");
    let of = |text: &str| {
        let mut block = format!("# GRUB Environment Block\n{text}").into_bytes();
        block.resize(512, b'#');
        block
    };
    let before = of("reflash_tries=3\nreflash_max_tries=3\nreflash_boot_ok=1\nodd=a\\\\b\\\nc\n");
    let after = of("reflash_max_tries=3\nodd=a\\\\b\\\nc\nreflash_recovering=1\nreflash_tries=0\n");
    let overwritten = || collection::vec((25..145_usize, sample::select(b"\0\n\\=#a\xff".to_vec())), 0..5);
    let config = ProptestConfig { cases: 400, ..config() };
    // A write that was torn within the sector, and bytes that matter put where they hurt.
    proptest!(config, |(damage in 0..4, cut in 0..=512_usize, bytes in overwritten())| {
        let mut block = before.clone();
        match damage {
            0 => block[..cut].copy_from_slice(&after[..cut]),
            1 => block[cut..].copy_from_slice(&after[cut..]),
            2 => block[cut..].fill(0),
            _ => {}
        }
        for (at, byte) in bytes {
            block[at] = byte;
        }
        std::fs::write(&path, &block).unwrap();
        let listed = Command::new("grub-editenv").arg(&path).arg("list").output().unwrap();
        let ours: Vec<u8> = match Assignments::of(&block) {
            Ok(found) => found.flat_map(|(name, value)| [name, b"=", &value, b"\n"].concat()).collect(),
            Err(_) => Vec::new(),
        };
        prop_assert_eq!(ours.escape_ascii().to_string(), listed.stdout.escape_ascii().to_string());
    });
}

#[test]
fn what_was_not_reported_is_posted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = BlackBox::open(&dir.path().join("blackbox")).unwrap();
    let options = || FetchOptions {
        proxy: None,
        no_proxy: Vec::new(),
        ca_file: None,
        connect_timeout: std::time::Duration::from_secs(5),
        stall_timeout: std::time::Duration::from_secs(5),
        rate: None,
        certificate_clock: Arc::new(CertificateClock::fixed()),
        clock: Arc::new(SystemClock),
        on_served: None,
    };
    let who = ReportedMachine::this("demo", None, None);
    assert!(Pending::of(&open, &who).is_none());
    let attempt = |id, outcome| Attempt { id, outcome, reason: "tries".into(), ..Attempt::default() };
    open.record(&attempt(1, None)).unwrap();
    open.record(&attempt(2, Some(AttemptOutcome::Failed))).unwrap();
    open.record(&attempt(3, None)).unwrap();

    let refusing = TestServer::start(|_| status("500 Internal Server Error"));
    let pending = Pending::of(&open, &who).unwrap();
    assert!(pending.post(&refusing.url(), &options()).is_err());

    // A server that moved, or a login page: what that takes is not delivered.
    let headers = ["Content-Length: 0", "Location: https://reports.example/robots"];
    let moved = TestServer::start(move |_| vec![answer("308 Permanent Redirect", &headers, b"")]);
    let error = pending.post(&moved.url(), &options()).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("redirected to https://reports.example/robots, where nothing"), "{error}");

    let server = TestServer::start(|_| status("204 No Content"));
    let pending = Pending::of(&open, &who).unwrap();
    pending.post(&server.url(), &options()).unwrap();
    pending.mark(&mut open);
    let requests = server.requests();
    assert!(requests[0].line.starts_with("POST /release "), "{}", requests[0].line);
    let document: serde_json::Value = serde_json::from_slice(&requests[0].body).unwrap();
    // The third is still going on.
    let ids: Vec<_> = document["attempts"].as_array().unwrap().iter().map(|attempt| attempt["id"].as_u64()).collect();
    assert_eq!((ids, &document["machine"]["product"]), (vec![Some(1), Some(2)], &"demo".into()));
    assert_eq!(document["attempts"][1]["outcome"], "failed");
    assert!(Pending::of(&BlackBox::open(&dir.path().join("blackbox")).unwrap(), &who).is_none());
}

/// A block in which a value of ours is as long as none of our programs writes it, or in which another program's fills
/// the room.
#[test]
fn values_that_fill_the_block_keep_nobody_from_writing_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grubenv");
    let env = BootEnv::new(&path);
    let good = [("reflash_tries", Some("3")), ("reflash_boot_ok", Some("1")), ("reflash_good", Some("12"))];
    for name in reflash::boot::grubenv::names::OURS.into_iter().chain(["mine"]) {
        let mut block = format!("# GRUB Environment Block\n{name}={}\n", "x".repeat(430)).into_bytes();
        block.resize(512, b'#');
        std::fs::write(&path, &block).unwrap();
        env.update(&good).unwrap();
        let read = env.load_or_empty().unwrap();
        assert_eq!((read.get("reflash_good"), read.get("reflash_boot_ok")), (Some("12"), Some("1")), "{name}");
    }
    // A person who fills it is told so, and nothing of anybody is lost.
    std::fs::remove_file(&path).unwrap();
    env.update(&[("other", Some(&*"y".repeat(300)))]).unwrap();
    env.update(&[("mine", Some(&*"x".repeat(430)))]).unwrap_err();
    assert_eq!(env.load_or_empty().unwrap().get("other").map(str::len), Some(300));
}

/// Several values of ours that are somewhat longer than any program writes them: each can be believed by its length,
/// and all of them leave no room.
#[test]
fn several_long_values_keep_no_recovery_from_beginning() {
    use reflash::boot::env::PermitRequest;
    use reflash::boot::grubenv::{GrubEnv, names};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grubenv");
    let env = BootEnv::new(&path);
    for length in [20, 40, 66, 96] {
        for first in 0..names::OURS.len() {
            let fill = |separator: &str| {
                let mut block = b"# GRUB Environment Block\n".to_vec();
                for name in names::OURS.into_iter().cycle().skip(first).take(names::OURS.len()) {
                    let line = format!("{name}={}{separator}\n", "7".repeat(length));
                    if block.len() + line.len() <= 512 {
                        block.extend_from_slice(line.as_bytes());
                    }
                }
                block.resize(512, b'#');
                std::fs::write(&path, &block).unwrap();
            };
            // The same as an editor of another system would have saved it.
            for separator in ["", "\r"] {
                fill(separator);
                let request = PermitRequest { good: Some(u64::MAX >> 1), ..PermitRequest::default() };
                env.begin_recovering(request).unwrap();
                let read = GrubEnv::parse(&std::fs::read(&path).unwrap()).unwrap();
                assert_eq!((read.get(names::RECOVERING), read.get(names::TRIES)), (Some("1"), Some("0")));
                fill(separator);
                env.begin_other(request).unwrap();
                fill(separator);
                env.update(&[(names::TRIES, Some("3")), (names::BOOT_OK, Some("1"))]).unwrap();
                fill(separator);
                env.offer_undo(Some(u64::MAX >> 1)).unwrap();
                env.renew().unwrap();
                env.make_room().unwrap();
                let all = [(names::GOOD, Some("9223372036854775807")), (names::SAFE, Some("999"))];
                env.update(&all).unwrap();
                assert_eq!(std::fs::metadata(&path).unwrap().len(), 512);
            }
        }
    }
}

/// An update switches to the other system between the look of `reflash request` and what it writes.
#[test]
fn a_request_is_made_for_the_system_that_was_looked_at() {
    use reflash::boot::grubenv::names;
    let dir = tempfile::tempdir().unwrap();
    let env = BootEnv::new(&dir.path().join("grubenv"));
    env.update(&[(names::TRIES, Some("3"))]).unwrap();
    let ask = || {
        let state = dir.path().display().to_string();
        reflash::cli::run(["request", "reflash", "--state", &state].map(Into::into))
    };
    let turn = reflash::sys::turn::in_directory(dir.path()).unwrap();
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn(ask);
        std::thread::sleep(std::time::Duration::from_secs(1));
        let mut switched = env.load_or_empty().unwrap();
        switched.set(names::SYSTEM, "2").unwrap();
        switched.set(names::BEFORE, "1").unwrap();
        env.save(&switched).unwrap();
        drop(turn);
        asked.join().unwrap()
    });
    assert_eq!(asked, reflash::cli::answer::Exit::Failed);
    assert_eq!(env.load_or_empty().unwrap().get(names::NEXT_ENTRY), None);
    assert_eq!(ask(), reflash::cli::answer::Exit::Done);
    assert_eq!(env.load_or_empty().unwrap().get(names::NEXT_ENTRY), Some("recovery"));
}
