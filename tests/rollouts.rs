//! The builder's side of roll-outs: what robots of every age are offered, what is kept, and how soon a failing release
//! is halted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reflash::record::blackbox::{Attempt, AttemptOutcome, RefusedRelease};
use reflash::record::wire::{ReportedMachine, attempts_post};
use reflash::release::manifest::{manifest_path, object_path};
use reflash::release::rollout::{Robot, RobotGroup, choose, identity_text};
use reflash_release::keygen::{self, KeyFiles};
use reflash_release::rollout::RolloutTerms;
use reflash_release::{OfferedTo, SecretKey, Spec, build, build_for, check, history};
use xtask::prune::prune;
use xtask::prune::tree::TreeDirectory;
use xtask::publish::{Store, StoreLocation, publish};
use xtask::rollout::{Desk, FailureLimits, FirstRollout, HaltKeyChange, Watch};
use xtask::serve::{self, ServeOptions};

use crate::station::http;
use crate::support::server::{TestServer, answer};
use crate::support::{Fixture, sample_image};

/// A first roll-out on a release without recovery files.
const ANY: FirstRollout = FirstRollout { allow_no_recovery: true, above: 0 };

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
        self.release_with(to, seed, Vec::new())
    }

    /// Makes one more release, with files beside the image.
    fn release_with(&self, to: OfferedTo, seed: u64, files: Vec<(String, PathBuf)>) -> anyhow::Result<u64> {
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
            files,
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
    desk.start(2, &share(5), &HaltKeyChange::Keep, ANY, &key).unwrap();
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
    let again = history::again(&channel.fixture.tree(), "stable", 1, &key, &[]).unwrap();
    assert_eq!((again.serial, channel.offered()), (4, before.clone()));
    desk.start(4, &share(5), &HaltKeyChange::Keep, ANY, &key).unwrap();
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
    let error = format!("{:#}", desk.start(1, &share(5), &HaltKeyChange::Keep, ANY, &key).unwrap_err());
    assert!(error.contains("every robot is offered release 1 already"), "{error}");
    assert!(
        format!("{:#}", desk.start(9, &share(5), &HaltKeyChange::Keep, ANY, &key).unwrap_err())
            .contains("has no release 9")
    );
}

/// A robot that took release 2 back, as its black box says it.
fn failure(robot: u32) -> Vec<u8> {
    failure_of(robot, 2)
}

fn failure_of(robot: u32, serial: u64) -> Vec<u8> {
    let machine = ReportedMachine {
        id: Some(format!("{robot:016x}")),
        product: "demo".into(),
        serial_number: Some(format!("SN-{robot:04}")),
        ..ReportedMachine::default()
    };
    let undone = RefusedRelease { version: None, serial: Some(serial), why: "none of its starts was good".into() };
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
    channel.desk.start(2, &share(25), &HaltKeyChange::Name(line), ANY, &channel.key()).unwrap();
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

/// Robots outside the newer release have nothing else, and over months some robots fail for reasons of their own.
#[test]
fn the_release_of_every_robot_is_halted_only_while_nothing_newer_is_rolled_out() {
    let channel = Channel::new();
    channel.desk.start(2, &share(25), &HaltKeyChange::Keep, ANY, &channel.key()).unwrap();
    let posts = channel.fixture.dir.path().join("posts.jsonl");
    let write = |serial| {
        let lines = (1..=5).flat_map(|robot| [failure_of(robot, serial), b"\n".to_vec()]);
        std::fs::write(&posts, lines.collect::<Vec<_>>().concat()).unwrap();
    };
    let limits = FailureLimits { failures: 3, percent: None };
    let key = channel.key();
    let look = || Watch::new(&channel.desk, &key, limits, vec![posts.clone()]).look().unwrap();
    write(1);
    assert!(look().is_empty());
    channel.desk.change(&key, |state| state.widen(2, share(100))).unwrap();
    assert!(look().is_empty());
    write(2);
    assert_eq!(look(), [2], "the last step is watched too");
}

/// Halts on all threads at once, each with its own release.
fn halt_at_once(desks: &[Desk], key: &(dyn Fn() -> SecretKey + Sync)) {
    let halt = |(desk, serial): (&Desk, u64)| desk.halt(serial, "wheels", &key()).unwrap();
    std::thread::scope(|scope| {
        for at in desks.iter().zip(1..) {
            scope.spawn(move || halt(at));
        }
    });
}

#[test]
fn two_halts_at_the_same_moment_are_both_kept() {
    let channel = Channel::new();
    channel.desk.start(2, &share(5), &HaltKeyChange::Keep, ANY, &channel.key()).unwrap();
    let desks = [(); 2].map(|()| Desk::new(channel.fixture.tree(), "stable", None, channel.fixture.keys.clone()));
    for _ in 0..10 {
        halt_at_once(&desks, &|| channel.key());
        let mut halted: Vec<u64> = channel.desk.state().unwrap().halts.halted.iter().map(|halt| halt.serial).collect();
        halted.sort_unstable();
        assert_eq!(halted, [1, 2]);
        let resume = |serial| channel.desk.change(&channel.key(), |state| state.resume(serial)).unwrap();
        resume(1);
        resume(2);
    }
}

/// Objects of a store by their path, and how many were ever written under a condition.
#[derive(Default)]
struct Stored {
    objects: BTreeMap<String, Vec<u8>>,
    conditional: usize,
    /// Object that a `prune` of somebody else deletes while a manifest is written.
    pruned: Option<String>,
}

/// A store in memory, which knows conditional writes or says that it does not.
fn store_server(knows_conditions: bool) -> (TestServer, Arc<Mutex<Stored>>) {
    let stored = Arc::new(Mutex::new(Stored::default()));
    let shared = Arc::clone(&stored);
    let server = TestServer::start(move |request| {
        let mut stored = shared.lock().unwrap();
        let path = request.target().split('?').next().unwrap_or_default().to_owned();
        let there = stored.objects.get(&path).cloned();
        let tag = |content: &[u8]| format!("\"{}\"", reflash::release::digest::Digest::of(content));
        let without = |status| answer(status, &["Content-Length: 0"], b"");
        let condition = request.header("if-match").or(request.header("if-none-match"));
        let act = match (request.line.split(' ').next(), there) {
            (Some("PUT"), _) if condition.is_some() && !knows_conditions => without("501 Not Implemented"),
            (Some("PUT"), there) => {
                let holds = match (request.header("if-match"), request.header("if-none-match"), &there) {
                    (Some(wanted), _, there) => there.as_ref().is_some_and(|there| tag(there) == wanted),
                    (None, Some(_), there) => there.is_none(),
                    (None, None, _) => true,
                };
                if holds {
                    if let Some(object) = stored.pruned.take_if(|_| path.ends_with(".json")) {
                        stored.objects.remove(&object).unwrap();
                    }
                    stored.conditional += usize::from(condition.is_some());
                    stored.objects.insert(path, request.body.clone());
                    without("200 OK")
                } else {
                    without("412 Precondition Failed")
                }
            }
            (Some("HEAD"), Some(there)) => answer("200 OK", &[&format!("Content-Length: {}", there.len())], b""),
            (_, Some(there)) => {
                let headers = [format!("Content-Length: {}", there.len()), format!("ETag: {}", tag(&there))];
                answer("200 OK", &[&headers[0], &headers[1]], &there)
            }
            (_, None) => without("404 Not Found"),
        };
        vec![act]
    });
    (server, stored)
}

/// Two computers that share nothing but the store.
#[test]
fn two_computers_do_not_overwrite_each_other_in_a_store_that_knows_conditions() {
    for knows_conditions in [true, false] {
        let channel = Channel::new();
        let (server, stored) = store_server(knows_conditions);
        let desk = |number: u32| {
            let tree = channel.fixture.dir.path().join(format!("computer-{number}"));
            let endpoint = Some(format!("http://{}", server.address));
            let place = StoreLocation::parse("s3://robots/fleet", endpoint, "us-east-1".into()).unwrap();
            let store = Store::with_key(place, "id", "secret").unwrap();
            Desk::new(tree, "stable", Some(store), channel.fixture.keys.clone())
        };
        let first = Desk { tree: channel.fixture.tree(), ..desk(0) };
        first.start(2, &share(5), &HaltKeyChange::Keep, ANY, &channel.key()).unwrap();
        assert_eq!(stored.lock().unwrap().conditional > 0, knows_conditions);
        let halted = || {
            let mut halted: Vec<u64> = first.state().unwrap().halts.halted.iter().map(|halt| halt.serial).collect();
            halted.sort_unstable();
            halted
        };
        if knows_conditions {
            for _ in 0..3 {
                halt_at_once(&[desk(1), desk(2)], &|| channel.key());
                assert_eq!(halted(), [1, 2]);
                first.change(&channel.key(), |state| state.resume(1).and_then(|()| state.resume(2))).unwrap();
            }
        } else {
            desk(1).halt(1, "wheels", &channel.key()).unwrap();
            assert_eq!(halted(), [1]);
        }
        // The copy in the tree of the release computer is that of the store.
        let copy = std::fs::read(channel.fixture.tree().join("stable/rollout.json")).unwrap();
        let stored = stored.lock().unwrap().objects["/robots/fleet/stable/rollout.json"].clone();
        assert_eq!(String::from_utf8(copy), String::from_utf8(stored));
    }
}

/// A clone without the release tree, or two people at once: robots that have the first release of a serial never take
/// the second one.
#[test]
fn another_release_does_not_take_the_place_of_the_one_that_has_its_serial() {
    let channel = Channel::new();
    let (server, stored) = store_server(true);
    let store = || {
        let endpoint = Some(format!("http://{}", server.address));
        let place = StoreLocation::parse("s3://robots/fleet", endpoint, "us-east-1".into()).unwrap();
        Store::with_key(place, "id", "secret").unwrap()
    };
    let (tree, keys) = (channel.fixture.tree(), &channel.fixture.keys);
    let publish = || publish(&tree, "stable", keys, &[], &store());
    assert!(publish().unwrap().manifest_sent && !publish().unwrap().manifest_sent);
    let desk = |tree: PathBuf| Desk::new(tree, "stable", Some(store()), keys.clone());
    let start = || desk(tree.clone()).start(2, &share(5), &HaltKeyChange::Keep, ANY, &channel.key());
    start().unwrap();
    let there = stored.lock().unwrap().objects.clone();
    std::fs::rename(&tree, tree.with_extension("first")).unwrap();
    assert_eq!(channel.release(OfferedTo::Everybody, 8).unwrap(), 1);
    assert_eq!(channel.release(OfferedTo::NobodyYet, 9).unwrap(), 2);
    let error = format!("{:#}", publish().unwrap_err());
    assert!(error.contains("another release with serial 1 (1) is there"), "{error}");
    let error = format!("{:#}", start().unwrap_err());
    assert!(error.contains("another release with serial 2 (2) is there"), "{error}");
    assert_eq!(stored.lock().unwrap().objects, there);
}

/// Tree and store are lost, and robots take no roll-out below the one that they saw.
#[test]
fn a_roll_out_that_is_begun_anew_goes_on_above_the_number_that_robots_saw() {
    let channel = Channel::new();
    let (desk, key) = (&channel.desk, channel.key());
    desk.start(2, &share(5), &HaltKeyChange::Keep, FirstRollout { above: 7, ..ANY }, &key).unwrap();
    let state = desk.state().unwrap();
    assert_eq!((state.rollout.counter, state.halts.counter), (8, 8));
    desk.change(&key, |state| state.pause(2)).unwrap();
    assert_eq!(desk.state().unwrap().rollout.counter, 8 + 1);
    channel.release(OfferedTo::NobodyYet, 3).unwrap();
    let again = desk.start(3, &share(5), &HaltKeyChange::Keep, FirstRollout { above: 20, ..ANY }, &key).unwrap_err();
    assert!(again.to_string().contains("there is one, with number 9"), "{again}");
}

/// Robots whose agent knows no roll-outs stay at the release where a channel begins with them.
#[test]
fn a_roll_out_begins_on_a_release_that_renews_the_recovery_and_a_later_one_takes_its_place() {
    let channel = Channel::new();
    let (desk, key) = (&channel.desk, channel.key());
    let error =
        format!("{:#}", desk.start(2, &share(5), &HaltKeyChange::Keep, FirstRollout::default(), &key).unwrap_err());
    assert!(error.contains("release 1 has no recovery files") && error.contains("--allow-no-recovery"), "{error}");
    desk.start(2, &share(100), &HaltKeyChange::Keep, ANY, &key).unwrap();
    let refused = |serial| format!("{:#}", desk.step_to(serial).unwrap_err());
    assert!(refused(2).contains("has no recovery files"));
    let file = |name: &str| {
        let path = channel.fixture.dir.path().join(name);
        std::fs::write(&path, name).unwrap();
        (format!("recovery/{name}"), path)
    };
    let files = ["vmlinuz", "initramfs.img", "grub.cfg"].map(file).to_vec();
    assert_eq!(channel.release_with(OfferedTo::NobodyYet, 3, files).unwrap(), 3);
    assert!(refused(3).contains("has no release 3"));
    desk.start(3, &share(5), &HaltKeyChange::Keep, FirstRollout::default(), &key).unwrap();
    assert!(refused(3).contains("is not for every robot"));
    desk.change(&key, |state| state.widen(3, share(100))).unwrap();
    desk.step_to(3).unwrap();
    let offered = check::check(&channel.fixture.tree(), "stable", &channel.fixture.keys).unwrap();
    assert_eq!(offered.serial, 3);
    // Agents from before there were several signatures in a file read the first one.
    let [content, signatures] = channel.offered();
    let signatures = String::from_utf8(signatures).unwrap();
    let first = reflash::release::manifest::signatures(&signatures).next().unwrap();
    channel.fixture.keys.authenticate(content, first).unwrap();
}

/// `prune` deletes what no manifest names, and a release takes over what lies there.
#[test]
fn what_is_pruned_while_a_release_is_published_is_sent_again() {
    let channel = Channel::new();
    let (server, stored) = store_server(true);
    let endpoint = Some(format!("http://{}", server.address));
    let place = StoreLocation::parse("s3://robots/fleet", endpoint, "us-east-1".into()).unwrap();
    let store = Store::with_key(place, "id", "secret").unwrap();
    let index = &channel.fixture.released.manifest.images[0].index.blake3;
    let object = format!("/robots/fleet/{}", object_path(index));
    stored.lock().unwrap().pruned = Some(object.clone());
    publish(&channel.fixture.tree(), "stable", &channel.fixture.keys, &[], &store).unwrap();
    let stored = stored.lock().unwrap();
    assert!(stored.pruned.is_none() && stored.objects.contains_key(&object));
}
