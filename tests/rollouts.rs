//! The builder's side of roll-outs: what robots of every age are offered, what is kept, and how soon a failing release
//! is halted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reflash::record::blackbox::{Attempt, AttemptOutcome, RefusedRelease};
use reflash::record::wire::{ReportedMachine, attempts_post};
use reflash::release::manifest::manifest_path;
use reflash::release::rollout::{Robot, RobotGroup, choose, identity_text};
use reflash_release::keygen::{self, KeyFiles};
use reflash_release::rollout::RolloutTerms;
use reflash_release::{OfferedTo, SecretKey, Spec, build, build_for, check, history};
use xtask::prune::prune;
use xtask::prune::tree::TreeDirectory;
use xtask::rollout::{Desk, FailureLimits, Watch};
use xtask::serve::{self, ServeOptions};

use crate::station::http;
use crate::support::{Fixture, sample_image};

/// A channel whose release 1 every robot has, and release 2 is only in the history.
struct Channel {
    fixture: Fixture,
    desk: Desk,
}

impl Channel {
    fn new() -> Self {
        let fixture = Fixture::new();
        let channel = Self { desk: Desk::new(fixture.tree(), "stable", None, fixture.keys.clone()), fixture };
        assert_eq!(channel.release(OfferedTo::NobodyYet, 2).unwrap(), 2);
        channel
    }

    fn key(&self) -> SecretKey {
        keygen::load_secret(&KeyFiles::within(&self.fixture.dir.path().join("keys")).secret).unwrap()
    }

    /// Makes one more release.
    fn release(&self, to: OfferedTo, seed: u64) -> anyhow::Result<u64> {
        let image = self.fixture.dir.path().join("next.img");
        std::fs::write(&image, sample_image(300, seed)).unwrap();
        let spec = Spec {
            product: "demo".into(),
            hardware: vec!["unit-a".into()],
            channel: "stable".into(),
            version: seed.to_string(),
            serial: None,
            image,
            ostree: None,
            files: Vec::new(),
            layout: None,
            chunk_bytes: Some(16 * 1024),
            level: 1,
            created_unix_s: Some(1_700_000_000),
            allow: Vec::new(),
        };
        Ok(build_for(to, &spec, &self.key(), &self.fixture.tree())?.manifest.serial)
    }

    /// What agents that know no roll-outs read: manifest and signature.
    fn offered(&self) -> [Vec<u8>; 2] {
        let path = self.fixture.tree().join(manifest_path("stable"));
        [path.clone(), path.with_added_extension("minisig")].map(|path| std::fs::read(path).unwrap())
    }

    /// Serials that a thousand robots take.
    fn taken(&self) -> Vec<u64> {
        let state = self.desk.state().unwrap();
        let robot = |number: u32| {
            let identity = identity_text(Some(&format!("SN-{number:04}")), None, None, [0; 16]);
            Robot { identity, ..Robot::default() }
        };
        let newest =
            |number| choose(&state.rollout, Some(&state.halts), &robot(number), &[], None).offers[0].release.serial;
        (0..1000).map(newest).collect()
    }
}

fn share(percent: u32) -> RolloutTerms {
    RolloutTerms {
        groups: vec![RobotGroup { share_ppm: percent * 10_000, ..RobotGroup::default() }],
        ..RolloutTerms::default()
    }
}

fn count(serials: &[u64], serial: u64) -> usize {
    serials.iter().filter(|it| **it == serial).count()
}

/// An agent of today reads `manifest.json` alone, whatever becomes of a roll-out.
#[test]
fn old_agents_are_offered_the_same_release_through_a_whole_roll_out() {
    let channel = Channel::new();
    let (desk, key, before) = (&channel.desk, channel.key(), channel.offered());
    assert!(format!("{:#}", desk.state().unwrap_err()).contains("rollout start SERIAL"));
    desk.start(2, None, share(5), &key).unwrap();
    let first = channel.taken();
    assert!((30..70).contains(&count(&first, 2)) && count(&first, 1) + count(&first, 2) == 1000);
    desk.change(&key, |state| state.widen(2, share(25))).unwrap();
    let wider = channel.taken();
    assert!((200..300).contains(&count(&wider, 2)));
    assert!(first.iter().zip(&wider).all(|(before, now)| *before == 1 || *now == 2), "widening drops no robot");
    desk.halt(2, "wheels", &key).unwrap();
    assert_eq!(count(&channel.taken(), 1), 1000);
    desk.change(&key, |state| state.resume(2)).unwrap();
    desk.change(&key, |state| state.widen(2, share(100))).unwrap();
    assert_eq!(count(&channel.taken(), 2), 1000);
    assert_eq!(channel.offered(), before);
    let offered = check::check(&channel.fixture.tree(), "stable", &channel.fixture.keys).unwrap();
    assert_eq!(offered.serial, 1);
    // Nor does a release that was made without a thought of the roll-out change it.
    let error = format!("{:#}", channel.release(OfferedTo::Everybody, 3).unwrap_err());
    assert!(error.contains("has a roll-out") && error.contains("--for-rollout"), "{error}");
    assert_eq!(channel.release(OfferedTo::NobodyYet, 3).unwrap(), 3);
    // An old release again gets a serial above all, and waits for its roll-out too.
    let again = history::again(&channel.fixture.tree(), "stable", 1, &key).unwrap();
    assert_eq!((again.serial, channel.offered()), (4, before.clone()));
    desk.start(4, None, share(5), &key).unwrap();
    let kept: Vec<u64> = desk.state().unwrap().rollout.releases.iter().map(|release| release.serial).collect();
    assert_eq!(kept, [2, 4], "what no robot takes any more is left out");
    // What the roll-out names and what old agents install stays; the rest goes.
    let tree = TreeDirectory(channel.fixture.tree());
    let pruned = prune(&tree, 1, 0, true).unwrap();
    assert_eq!(pruned.kept, ["stable 1", "stable 4", "stable 2"]);
    assert!(!channel.fixture.tree().join("stable/history/3.json").exists());
    check::check(&channel.fixture.tree(), "stable", &channel.fixture.keys).unwrap();
    assert_eq!(channel.offered(), before);
}

#[test]
fn a_channel_begins_with_a_release_for_every_robot() {
    let fixture = Fixture::new();
    let empty = fixture.dir.path().join("empty");
    let key = keygen::load_secret(&KeyFiles::within(&fixture.dir.path().join("keys")).secret).unwrap();
    let spec = |channel: &str| Spec {
        product: "demo".into(),
        hardware: vec!["unit-a".into()],
        channel: channel.into(),
        version: "1".into(),
        serial: None,
        image: fixture.dir.path().join("system.img"),
        ostree: None,
        files: Vec::new(),
        layout: None,
        chunk_bytes: Some(16 * 1024),
        level: 1,
        created_unix_s: Some(1_700_000_000),
        allow: Vec::new(),
    };
    let error = format!("{:#}", build_for(OfferedTo::NobodyYet, &spec("stable"), &key, &empty).unwrap_err());
    assert!(error.contains("no release before it"), "{error}");
    build(&spec("stable"), &key, &empty).unwrap();
    let desk = Desk::new(empty, "stable", None, fixture.keys.clone());
    let error = format!("{:#}", desk.start(1, None, share(5), &key).unwrap_err());
    assert!(error.contains("serial 1 is not above 1"), "{error}");
    assert!(format!("{:#}", desk.start(9, None, share(5), &key).unwrap_err()).contains("history/9.json"));
}

/// A robot that took release 2 back, as its black box says it.
fn failure(robot: u32) -> Vec<u8> {
    let machine = ReportedMachine {
        id: Some(format!("{robot:016x}")),
        product: "demo".into(),
        serial_number: Some(format!("SN-{robot:04}")),
        ..ReportedMachine::default()
    };
    let undone =
        RefusedRelease { version: Some("2".into()), serial: Some(2), why: "none of its starts was good".into() };
    let attempt = Attempt {
        id: 3,
        reason: "tries".into(),
        serial: Some(1),
        undone: Some(undone),
        outcome: Some(AttemptOutcome::Installed),
        ..Attempt::default()
    };
    attempts_post(&machine, &[attempt]).unwrap().into_bytes()
}

/// The real watcher over the real posts of a real station.
#[test]
fn the_third_report_of_a_failure_halts_the_release_within_a_minute() {
    let channel = Channel::new();
    let halt = keygen::generate(&channel.fixture.dir.path().join("halt"), None).unwrap();
    let line = keygen::load_public(&halt.public).unwrap().lines().nth(1).unwrap().to_owned();
    channel.desk.start(2, Some(line), share(25), &channel.key()).unwrap();
    let posts = channel.fixture.dir.path().join("posts.jsonl");
    let options = ServeOptions { station: true, keep_reports: Some(posts.clone()), ..ServeOptions::default() };
    let server = serve::start_with(&channel.fixture.tree(), SocketAddr::from(([127, 0, 0, 1], 0)), &options).unwrap();
    let report = |robot| assert_eq!(http(server.address, "POST", "/report", &failure(robot)).0, 204);
    let halt_key = keygen::load_secret(&halt.secret).unwrap();
    let limits = FailureLimits { failures: 3, percent: None };
    let mut watch = Watch::new(&channel.desk, &halt_key, limits, vec![posts.clone()]);
    assert!(watch.look().unwrap().is_empty(), "no robot has posted yet");
    report(1);
    report(2);
    // The same robot again, and posts that are none.
    report(2);
    assert_eq!(http(server.address, "POST", "/report", b"hello").0, 400);
    assert!(watch.look().unwrap().is_empty());
    assert!((200..300).contains(&count(&channel.taken(), 2)));
    report(3);
    let reported = Instant::now();
    // As `rollout watch` does, every two seconds.
    let halted = loop {
        let halted = watch.look().unwrap();
        if !halted.is_empty() {
            break halted;
        }
        assert!(reported.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_secs(2));
    };
    eprintln!("halted {} ms after the third report", reported.elapsed().as_millis());
    assert!(halted == [2] && reported.elapsed() < Duration::from_secs(60));
    assert_eq!(count(&channel.taken(), 1), 1000, "from now on no robot begins");
    let state = channel.desk.state().unwrap();
    assert_eq!(state.halts.halted[0].why, "it failed on 3 of 3 robots that reported it");
    assert!(watch.look().unwrap().is_empty(), "it is halted once");
    // A person lets it go on: what was reported before was judged by that.
    std::thread::sleep(Duration::from_millis(1100));
    channel.desk.change(&channel.key(), |state| state.resume(2)).unwrap();
    assert!((200..300).contains(&count(&channel.taken(), 2)));
    let mut again = Watch::new(&channel.desk, &halt_key, limits, vec![posts.clone()]);
    assert!(again.look().unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(1100));
    (4..7).for_each(report);
    assert_eq!(again.look().unwrap(), [2]);
    assert!(std::fs::read_to_string(&posts).unwrap().lines().all(|line| line.contains("received_unix_s")));
    // The halt key can do nothing else.
    let error = channel.desk.change(&halt_key, |state| state.resume(2)).unwrap_err();
    assert!(format!("{error:#}").contains("robots would not take stable/rollout.json"), "{error:#}");
}
