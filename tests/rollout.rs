//! Roll-outs over real servers: which release a robot takes, and what no mirror, clock or cut makes it do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reflash::boot::grubenv::names;
use reflash::chain::chain;
use reflash::cli::answer::Exit;
use reflash::fetch::{Directory, Mirrors, RetryPolicy, Source, open_all};
use reflash::flash::target::DeviceTarget;
use reflash::jobs::floor::{Floor, FloorPlaces, ReleaseId, SeenRollout};
use reflash::jobs::recovery::{self, RecoveryError};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::digest::Digest;
use reflash::release::rollout::{Robot, RobotGroup, place};
use reflash_release::keygen::{self, KeyFiles};
use reflash_release::rollout::{
    ChannelPlace, RolloutState, RolloutTerms, TreePlace, load, manifest_of, sign_halts, sign_rollout,
};
use reflash_release::{SecretKey, signature as signature_of};

use crate::fetch::options;
use crate::support::server::{Act, TestServer, answer, object, status};
use crate::support::{Faults, Fixture, MemoryTarget, sample_image};

const CHANNEL: &str = "stable";

/// A channel with release 1 for every robot, and release 2 for a share of them.
struct Channel {
    fixture: Fixture,
    /// Image of release 1. That of release 2 is the fixture's.
    old: Vec<u8>,
}

impl Channel {
    fn new(percent: u32) -> Self {
        let this = Self::without_rollout();
        let tree = this.place();
        let (one, signed) = manifest_of(&tree, CHANNEL, None, &this.fixture.keys).unwrap();
        let mut state = RolloutState::first(&one, &signed, 0);
        let (two, signed) = manifest_of(&tree, CHANNEL, Some(2), &this.fixture.keys).unwrap();
        let group = RobotGroup { share_ppm: percent * 10_000, ..RobotGroup::default() };
        state.start(&two, &signed, RolloutTerms { groups: vec![group], ..RolloutTerms::default() }).unwrap();
        sign_halts(&tree, &mut state, &this.key(), &this.fixture.keys).unwrap();
        sign_rollout(&tree, &mut state, &this.key(), &this.fixture.keys).unwrap();
        this
    }

    /// Release 1 is offered, and release 2 is in the history alone.
    fn without_rollout() -> Self {
        let mut fixture = Fixture::with(sample_image(300, 1), |_| {});
        let old = fixture.image.clone();
        let offered = ["manifest.json", "manifest.json.minisig"].map(|name| fixture.tree().join(CHANNEL).join(name));
        let first = offered.clone().map(|path| std::fs::read(path).unwrap());
        fixture.publish(sample_image(300, 2), |spec| spec.version = "2".into());
        for (path, content) in offered.iter().zip(first) {
            std::fs::write(path, content).unwrap();
        }
        Self { fixture, old }
    }

    fn place(&self) -> TreePlace {
        TreePlace(self.fixture.tree())
    }

    fn key(&self) -> SecretKey {
        keygen::load_secret(&KeyFiles::within(&self.fixture.dir.path().join("keys")).secret).unwrap()
    }

    /// Changes the roll-out and signs it.
    fn change(&self, change: impl FnOnce(&mut RolloutState)) {
        let mut state = self.state();
        change(&mut state);
        sign_rollout(&self.place(), &mut state, &self.key(), &self.fixture.keys).unwrap();
    }

    fn halt(&self) {
        let mut state = self.state();
        state.halt(2, "the wheels lock").unwrap();
        sign_halts(&self.place(), &mut state, &self.key(), &self.fixture.keys).unwrap();
    }

    fn state(&self) -> RolloutState {
        load(&self.place(), CHANNEL, &self.fixture.keys).unwrap().unwrap()
    }

    /// A server of the tree.
    fn serve(&self) -> TestServer {
        serve(&self.fixture.tree(), |_| {})
    }

    /// A robot whose place in release 2 is in a share of 50 %, or beyond it.
    fn robot(&self, inside: bool) -> Unit {
        let release = Digest::of(&std::fs::read(self.fixture.tree().join("stable/history/2.json")).unwrap());
        let identities = (0..).map(|number| format!("serial SN-{number}"));
        let fits = |identity: &String| place(&release, identity).is_within(500_000) == inside;
        Unit::new(identities.into_iter().find(fits).unwrap())
    }
}

/// A server of a tree, which calls `seen` with the path of each request first.
fn serve(tree: &Path, seen: impl Fn(&str) + Send + Sync + 'static) -> TestServer {
    let tree = tree.to_owned();
    TestServer::start(move |request| {
        let path = request.target().strip_prefix("/release/").unwrap_or_default();
        seen(path);
        match std::fs::read(tree.join(path)) {
            Ok(content) => object(request, &content),
            Err(_) => status("404 Not Found"),
        }
    })
}

fn mirrors(urls: &[String]) -> Mirrors {
    open_all(urls, &options(), RetryPolicy::Rounds(1)).unwrap()
}

/// A robot with a disk and a memory.
struct Unit {
    identity: String,
    target: MemoryTarget,
    dir: tempfile::TempDir,
}

impl Unit {
    fn new(identity: String) -> Self {
        Self { identity, target: MemoryTarget::new(vec![0; 400 * 4096]), dir: tempfile::tempdir().unwrap() }
    }

    fn floor(&self) -> Floor {
        Floor::open(FloorPlaces { state: Some(self.dir.path().to_owned()), ..FloorPlaces::default() })
    }

    /// Recovers, as an automatic recovery does; the serial that is installed then.
    fn recover(&self, channel: &Channel, source: &dyn Source) -> Result<u64, RecoveryError> {
        self.recover_to(channel, source, &self.target)
    }

    fn recover_to(&self, channel: &Channel, source: &dyn Source, target: &MemoryTarget) -> Result<u64, RecoveryError> {
        let (state, floor, journal) = (StatePartition::new(self.dir.path()), self.floor(), Journal::silent());
        let robot = || Robot { identity: Some(self.identity.clone()), ..Robot::default() };
        let learn = |seen: SeenRollout| assert!(floor.note_seen(seen).failed.is_empty());
        let mut job = channel.fixture.job(source, target, Some(&state), &journal);
        (job.resources.floor, job.resources.robot, job.resources.learn_rollout) = (Some(&floor), &robot, &learn);
        let report = recovery::run(&job, job.read_record().as_ref())?;
        let record = job.read_record().unwrap();
        assert!(floor.note_good(record.as_good().unwrap()).failed.is_empty());
        Ok(report.serial)
    }

    fn damage(&self) {
        use reflash::flash::target::BlockTarget;
        self.target.write_at(40 * 4096, &[0x5a; 4096]).unwrap();
    }

    fn holds(&self, image: &[u8]) -> bool {
        self.target.content().starts_with(image)
    }

    fn writes(&self) -> usize {
        self.target.writes().len()
    }
}

#[test]
fn a_robot_outside_is_not_offered_what_one_inside_takes() {
    let channel = Channel::new(50);
    let server = channel.serve();
    let source = mirrors(&[server.url()]);
    // Blank robots, then the same ones with what they have.
    let (inside, outside) = (channel.robot(true), channel.robot(false));
    for (robot, serial, image) in [(&inside, 2, &channel.fixture.image), (&outside, 1, &channel.old)] {
        assert_eq!(robot.recover(&channel, &source).unwrap(), serial);
        assert!(robot.holds(image));
        let written = robot.writes();
        robot.damage();
        assert_eq!(robot.recover(&channel, &source).unwrap(), serial, "repaired to what it has");
        assert!(robot.holds(image) && robot.writes() > written);
    }
    assert!(!server.requests().iter().any(|request| request.target().ends_with("stable/manifest.json")));
    // Wider, the other one takes it too; the first keeps it.
    channel.change(|state| {
        let all = RobotGroup { share_ppm: 1_000_000, ..RobotGroup::default() };
        state.widen(2, RolloutTerms { groups: vec![all], ..RolloutTerms::default() }).unwrap();
    });
    assert_eq!(outside.recover(&channel, &source).unwrap(), 2);
    assert_eq!(inside.recover(&channel, &source).unwrap(), 2);
}

#[test]
fn a_robot_that_waits_is_answered_with_its_place_and_the_share() {
    let channel = Channel::new(50);
    let source = Directory::new(channel.fixture.tree());
    let robot = channel.robot(false);
    assert_eq!(robot.recover(&channel, &source).unwrap(), 1);
    let (state, floor, journal) = (StatePartition::new(robot.dir.path()), robot.floor(), Journal::silent());
    let knows = || Robot { identity: Some(robot.identity.clone()), ..Robot::default() };
    let mut job = channel.fixture.job(&source, &robot.target, Some(&state), &journal);
    (job.resources.floor, job.resources.robot) = (Some(&floor), &knows);
    job.policy.above = Some(1);
    let error = recovery::fetch_release(&job, job.read_record().as_ref()).unwrap_err();
    let text = chain(&error);
    assert!(error.is_nothing_new() && text.contains("release 2 (serial 2): it is not for this robot yet"), "{text}");
    assert!(text.contains("whose place is ") && text.ends_with("the share is 50 %"), "{text}");
}

/// A release whose manifest no mirror has, or has as it is signed, must not hide the one before it.
#[test]
fn a_newest_release_without_a_manifest_gives_way_to_the_next_one() {
    for damage in [None, Some("{}")] {
        let channel = Channel::new(50);
        channel.change(|state| {
            let all = RobotGroup { share_ppm: 1_000_000, ..RobotGroup::default() };
            state.widen(2, RolloutTerms { groups: vec![all], ..RolloutTerms::default() }).unwrap();
        });
        let newest = channel.fixture.tree().join("stable/history/2.json");
        match damage {
            None => std::fs::remove_file(&newest).unwrap(),
            Some(content) => std::fs::write(&newest, content).unwrap(),
        }
        let server = channel.serve();
        let source = mirrors(&[server.url()]);
        let blank = Unit::new("serial SN-1".into());
        assert_eq!(blank.recover(&channel, &source).unwrap(), 1, "a robot without a system takes the next one");
        assert!(blank.holds(&channel.old));
        blank.damage();
        assert_eq!(blank.recover(&channel, &source).unwrap(), 1, "and a damaged one is repaired");
        // One that has nothing else is told what is wrong, and not that there is nothing.
        let error = look(&channel, &source, &blank, |_| ()).unwrap_err();
        assert!(chain(&error).starts_with("cannot download the manifest"), "{}", chain(&error));
    }
}

/// Looks for something newer, as `reflash update` does.
fn look(
    channel: &Channel,
    source: &dyn Source,
    robot: &Unit,
    learn: impl Fn(recovery::LeftOut),
) -> Result<u64, RecoveryError> {
    let (state, floor, journal) = (StatePartition::new(robot.dir.path()), robot.floor(), Journal::silent());
    let knows = || Robot { identity: Some(robot.identity.clone()), ..Robot::default() };
    let mut job = channel.fixture.job(source, &robot.target, Some(&state), &journal);
    (job.resources.floor, job.resources.robot, job.resources.learn_left_out) = (Some(&floor), &knows, &learn);
    let record = job.read_record();
    job.policy.above = record.as_ref().map(|record| record.manifest().serial);
    Ok(recovery::fetch_release(&job, record.as_ref())?.manifest.serial)
}

#[test]
fn what_is_left_out_says_what_may_still_come_and_why_not_now() {
    let channel = Channel::new(50);
    let source = Directory::new(channel.fixture.tree());
    let robot = channel.robot(true);
    channel.change(|state| state.pause(2).unwrap());
    assert_eq!(robot.recover(&channel, &source).unwrap(), 1);
    let left_out = || {
        let learned = std::cell::RefCell::new(recovery::LeftOut::default());
        look(&channel, &source, &robot, |left| drop(learned.replace(left))).unwrap_err();
        learned.into_inner()
    };
    let serials = |left: &recovery::LeftOut| left.later.iter().map(|release| release.serial).collect::<Vec<_>>();
    let paused = left_out();
    assert_eq!(serials(&paused), [2], "a pause may end");
    assert!(paused.why.unwrap().contains("paused"));
    channel.halt();
    let halted = left_out();
    assert_eq!(serials(&halted), [0; 0], "what is halted is as good as withdrawn");
    assert!(halted.why.unwrap().contains("halted (the wheels lock)"));
}

/// From the moment a halt is published, no robot that reaches the server begins to write.
#[test]
fn a_halt_between_manifest_and_first_write_stops_the_write() {
    let channel = Arc::new(Channel::new(50));
    let robot = channel.robot(true);
    channel.change(|state| state.pause(2).unwrap());
    let before = channel.serve();
    assert_eq!(robot.recover(&channel, &mirrors(&[before.url()])).unwrap(), 1);
    channel.change(|state| state.resume(2).unwrap());
    let (halting, halted) = (Arc::clone(&channel), AtomicBool::new(false));
    // The index is the first object that is fetched, long before the first write.
    let server = serve(&channel.fixture.tree(), move |path| {
        if path.starts_with("objects/") && !halted.swap(true, Ordering::SeqCst) {
            halting.halt();
        }
    });
    let written = robot.writes();
    let error = robot.recover(&channel, &mirrors(&[server.url()])).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("nothing was written") && text.contains("halted (the wheels lock)"), "{text}");
    assert!(error.is_of_the_release() && robot.writes() == written && robot.holds(&channel.old));
    assert_eq!(robot.floor().record().seen.halts.counter, 2);
    // What it has is still repaired, from the same server.
    robot.damage();
    assert_eq!(robot.recover(&channel, &mirrors(&[server.url()])).unwrap(), 1);
    assert!(robot.holds(&channel.old));
}

#[test]
fn a_halt_takes_nothing_back_and_finishes_nothing() {
    let channel = Channel::new(50);
    let (server, has) = (channel.serve(), channel.robot(true));
    let source = mirrors(&[server.url()]);
    assert_eq!(has.recover(&channel, &source).unwrap(), 2);
    // A second robot is cut in the middle of the write.
    let cut = channel.robot(true);
    channel.change(|state| state.pause(2).unwrap());
    assert_eq!(cut.recover(&channel, &source).unwrap(), 1);
    channel.change(|state| state.resume(2).unwrap());
    let cut_at = |number| {
        let faults = Faults { fail_writes_from: Some(number), ..Faults::default() };
        let failing = MemoryTarget::faulty(cut.target.content(), faults);
        cut.recover_to(&channel, &source, &failing).unwrap_err();
        MemoryTarget::new(failing.content())
    };
    // What an undo needs is written first.
    let half = (1..).map(cut_at).find(|half| !half.content().starts_with(&channel.old)).unwrap();
    assert!(!half.content().starts_with(&channel.fixture.image));
    channel.halt();
    has.damage();
    assert_eq!(has.recover(&channel, &source).unwrap(), 2, "good on it: repaired, not taken back");
    assert!(has.holds(&channel.fixture.image));
    assert_eq!(cut.recover_to(&channel, &source, &half).unwrap(), 1, "back to what it had");
    assert!(half.content().starts_with(&channel.old));
    // A robot whose record is lost, and that was good on it, is not sent below its floor either.
    std::fs::remove_dir_all(has.dir.path().join("installed")).unwrap();
    has.damage();
    assert_eq!(has.recover(&channel, &source).unwrap(), 2);
    // One that was never provisioned takes the release before.
    assert_eq!(channel.robot(true).recover(&channel, &source).unwrap(), 1);
}

/// A mirror that lags behind, or that somebody set back: the robot never goes behind what it has seen.
#[test]
fn an_old_number_is_refused_and_the_next_mirror_asked() {
    let channel = Channel::new(50);
    let old = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let to = old.path().join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(channel.fixture.tree().join(name), to).unwrap();
    };
    for name in ["rollout.json", "halt.json", "history/1.json", "history/2.json", "manifest.json"] {
        copy(&format!("stable/{name}"));
        copy(&format!("stable/{name}.minisig"));
    }
    channel.change(|state| state.pause(2).unwrap());
    let (server, lagging) = (channel.serve(), serve(old.path(), |_| {}));
    let robot = channel.robot(true);
    // The mirror that lags is asked first, and its roll-out would have the robot in.
    let both = mirrors(&[lagging.url(), server.url()]);
    assert_eq!(robot.recover(&channel, &both).unwrap(), 1, "the newest roll-out of all counts");
    assert_eq!(robot.floor().record().seen.rollout.counter, 2);
    let written = robot.writes();
    let error = robot.recover(&channel, &mirrors(&[lagging.url()])).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("the roll-out file has number 1, and number 2 was seen before"), "{text}");
    assert!(error.is_of_the_release() && robot.writes() == written);
    // A mirror that has lost the file is no channel without roll-outs.
    for name in ["rollout.json", "halt.json"] {
        std::fs::remove_file(old.path().join("stable").join(name)).unwrap();
    }
    let error = chain(&robot.recover(&channel, &mirrors(&[lagging.url()])).unwrap_err());
    assert!(error.contains("there is no roll-out file here, and number 2 was seen before"), "{error}");
    let blank = channel.robot(true);
    assert_eq!(blank.recover(&channel, &mirrors(&[lagging.url(), server.url()])).unwrap(), 1);
    // A halt that a mirror has lost again.
    channel.change(|state| state.resume(2).unwrap());
    let halts = ["halt.json", "halt.json.minisig"].map(|name| channel.fixture.tree().join(CHANNEL).join(name));
    let before = halts.clone().map(|path| std::fs::read(path).unwrap());
    channel.halt();
    assert_eq!(robot.recover(&channel, &mirrors(&[server.url()])).unwrap(), 1);
    for (path, content) in halts.iter().zip(before) {
        std::fs::write(path, content).unwrap();
    }
    let error = chain(&robot.recover(&channel, &mirrors(&[server.url()])).unwrap_err());
    assert!(error.contains("the halt file has number 1, and number 2 was seen before"), "{error}");
}

/// Stores answer 403 for what is not there, and some hosts a page of theirs with status 200; agents of the field have
/// never asked for the file.
#[test]
fn a_channel_without_a_roll_out_goes_on_as_before_whatever_its_server_answers() {
    type Answer = fn() -> Vec<Act>;
    let page = || vec![answer("200 OK", &["Content-Type: text/html", "Content-Length: 15"], b"<!doctype html>")];
    let text = || vec![answer("200 OK", &["Content-Length: 9"], b"not found")];
    fn leads_to(target: &str) -> Vec<Act> {
        vec![answer("302 Found", &[&format!("Location: {target}"), "Content-Length: 0"], b"")]
    }
    let answers: [Answer; 13] = [
        || status("500 Internal Server Error"),
        || status("404 Not Found"),
        || status("403 Forbidden"),
        || status("410 Gone"),
        page,
        text,
        || vec![Act::Close],
        || vec![Act::Reset],
        || vec![Act::Wait(Duration::from_secs(60))],
        // A login page that only people reach, by a name, an address or a scheme that is none for a robot.
        || leads_to("http://127.0.0.1:1/login"),
        || leads_to("https://127.0.0.1:1/login"),
        || leads_to("http://login.invalid/"),
        || leads_to("ftp://127.0.0.1/"),
    ];
    for missing in answers {
        let channel = Channel::without_rollout();
        let tree = channel.fixture.tree();
        let server = TestServer::start(move |request| {
            let path = request.target().strip_prefix("/release/").unwrap_or_default();
            std::fs::read(tree.join(path)).map_or_else(|_| missing(), |content| object(request, &content))
        });
        let robot = channel.robot(true);
        assert_eq!(robot.recover(&channel, &mirrors(&[server.url()])).unwrap(), 1);
        // The polls of a robot that waits have served before.
        let source = mirrors(&[server.url()]);
        assert_eq!(robot.recover(&channel, &source).unwrap(), 1);
        assert_eq!(robot.recover(&channel, &source).unwrap(), 1);
        assert_eq!(robot.floor().record().seen, SeenRollout::default());
    }
}

#[test]
fn what_contradicts_itself_or_is_not_signed_leaves_the_robot_with_what_it_has() {
    let channel = Channel::new(50);
    let server = channel.serve();
    let source = || mirrors(&[server.url()]);
    let robot = channel.robot(false);
    assert_eq!(robot.recover(&channel, &source()).unwrap(), 1);
    let written = robot.writes();
    let path = channel.fixture.tree().join("stable/rollout.json");
    let good = std::fs::read(&path).unwrap();
    let signature = std::fs::read(path.with_added_extension("minisig")).unwrap();
    // As a builder with a fault, or a person with a text editor, signs it.
    let sign = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_slice(&good).unwrap();
        change(&mut value);
        let json = value.to_string();
        let signature = signature_of(json.as_bytes(), &channel.key(), "by hand").unwrap();
        std::fs::write(&path, json).unwrap();
        std::fs::write(path.with_added_extension("minisig"), signature).unwrap();
    };
    let refusal = |expected: &str| {
        let error = robot.recover(&channel, &source()).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(expected) && error.is_of_the_release(), "{expected}: {text}");
        assert_eq!((robot.writes(), robot.holds(&channel.old)), (written, true));
    };
    sign(&|value| value["releases"][1]["serial"] = 1.into());
    refusal("the signed roll-out file contradicts itself: it names serial 1 twice");
    sign(&|value| value["releases"][1]["who"][0]["share_ppm"] = 1_500_000.into());
    refusal("more than all robots");
    sign(&|value| value["releases"][1]["manifest"] = value["releases"][0]["manifest"].clone());
    refusal("have the same manifest");
    sign(&|value| value["format"] = 2.into());
    refusal("format 2 of the roll-out file is not known");
    sign(&|value| value["channel"] = "testing".into());
    refusal("is for channel \"testing\"");
    sign(&|value| value["counter"] = 0.into());
    refusal("its number is 0");
    // A newer file that has only what is older than what was good here.
    sign(&|value| {
        value["counter"] = 5.into();
        value["releases"][0]["serial"] = 0.into();
        value["releases"].as_array_mut().unwrap().truncate(1);
    });
    refusal("serial 0");
    std::fs::write(&path, &good).unwrap();
    std::fs::write(path.with_added_extension("minisig"), &signature).unwrap();
    // The robot has seen number 5, and the good file has 1.
    refusal("number 1, and number 5 was seen");
    let other = channel.robot(false);
    assert_eq!(other.recover(&channel, &source()).unwrap(), 1);
    channel.halt();
    channel.change(|state| state.rollout.releases.truncate(1));
    let text = chain(&other.recover(&channel, &source()).unwrap_err());
    assert!(text.contains("serial 2 is halted, and the roll-out has no such release"), "{text}");
}

#[test]
fn the_halt_key_halts_and_signs_nothing_else() {
    let channel = Channel::new(50);
    let halt_files = keygen::generate(&channel.fixture.dir.path().join("halt"), None).unwrap();
    let halt_key = keygen::load_secret(&halt_files.secret).unwrap();
    let line = keygen::load_public(&halt_files.public).unwrap().lines().nth(1).unwrap().to_owned();
    let server = channel.serve();
    let source = || mirrors(&[server.url()]);
    let robot = channel.robot(true);
    let place = channel.place();
    let halts = |state: &mut RolloutState| {
        state.halt(2, "by the watcher").unwrap();
        // The builder refuses what robots would not take, so the key signs past it.
        state.halts.counter += 1;
        let json = serde_json::to_vec(&state.halts).unwrap();
        let signature = signature_of(&json, &halt_key, "by hand").unwrap();
        place.write("stable/halt.json.minisig", signature.as_bytes()).unwrap();
        place.write("stable/halt.json", &json).unwrap();
    };
    // Before the roll-out names the key, robots do not take its halts; nor do they begin without right ones.
    halts(&mut channel.state());
    let text = chain(&robot.recover(&channel, &source()).unwrap_err());
    assert!(text.contains("not valid for any trusted key") && robot.writes() == 0, "{text}");
    let channel = Channel::new(50);
    channel.change(|state| state.rollout.halt_key = Some(line));
    let (server, robot, place) = (channel.serve(), channel.robot(true), channel.place());
    let source = || mirrors(&[server.url()]);
    let mut state = channel.state();
    state.halt(2, "by the watcher").unwrap();
    sign_halts(&place, &mut state, &halt_key, &channel.fixture.keys).unwrap();
    assert_eq!(robot.recover(&channel, &source()).unwrap(), 1);
    // A roll-out or a manifest that it signs is nothing.
    assert!(sign_rollout(&place, &mut channel.state(), &halt_key, &channel.fixture.keys).is_err());
    let json = std::fs::read(channel.fixture.tree().join("stable/rollout.json")).unwrap();
    let signature = signature_of(&json, &halt_key, "by hand").unwrap();
    place.write("stable/rollout.json.minisig", signature.as_bytes()).unwrap();
    let text = chain(&robot.recover(&channel, &source()).unwrap_err());
    assert!(text.contains("not valid for any trusted key"), "{text}");
}

#[test]
fn the_very_manifest_that_the_roll_out_names_is_taken_and_no_other() {
    let channel = Channel::new(50);
    let history = channel.fixture.tree().join("stable/history");
    for name in ["json", "json.minisig"] {
        std::fs::copy(history.join(format!("1.{name}")), history.join(format!("2.{name}"))).unwrap();
    }
    let robot = channel.robot(true);
    let server = channel.serve();
    let error = robot.recover(&channel, &mirrors(&[server.url()]));
    // Its place was taken by another manifest, which makes another place: both answers are right, and neither writes 2.
    if let Err(error) = error {
        let text = chain(&error);
        assert!(text.contains("this is not the manifest") && robot.writes() == 0, "{text}");
    }
    assert!(!robot.holds(&channel.fixture.image));
}

/// What a person plugs in is that person's choice.
#[test]
fn a_drive_without_a_roll_out_is_taken_by_a_robot_that_has_seen_one() {
    let channel = Channel::new(50);
    let robot = channel.robot(false);
    let server = channel.serve();
    assert_eq!(robot.recover(&channel, &mirrors(&[server.url()])).unwrap(), 1);
    // The drive has the release that the robot is outside of.
    let tree = channel.fixture.tree();
    let (from, to) = (tree.join("stable"), channel.fixture.dir.path().join("drive/stable"));
    std::fs::create_dir_all(&to).unwrap();
    for name in ["json", "json.minisig"] {
        std::fs::copy(from.join(format!("history/2.{name}")), to.join(format!("manifest.{name}"))).unwrap();
    }
    std::fs::create_dir(to.parent().unwrap().join("objects")).unwrap();
    for object in std::fs::read_dir(tree.join("objects")).unwrap() {
        let object = object.unwrap().path();
        std::fs::copy(&object, to.parent().unwrap().join("objects").join(object.file_name().unwrap())).unwrap();
    }
    // Once it is there, its release counts. One that was forgotten in the robot, and has nothing newer, hides nothing.
    let with_drive = || -> Mirrors {
        let drive: Box<dyn Source> = Box::new(Directory::new(to.parent().unwrap()));
        let network = reflash::fetch::open(&server.url(), &options()).unwrap();
        Mirrors::new(vec![drive, network], RetryPolicy::Rounds(1))
    };
    assert_eq!(robot.recover(&channel, &with_drive()).unwrap(), 2);
    for name in ["json", "json.minisig"] {
        std::fs::copy(from.join(format!("history/1.{name}")), to.join(format!("manifest.{name}"))).unwrap();
    }
    let inside = channel.robot(true);
    channel.change(|state| state.pause(2).unwrap());
    assert_eq!(inside.recover(&channel, &mirrors(&[server.url()])).unwrap(), 1);
    let one = std::fs::read(from.join("history/1.json")).unwrap();
    assert!(inside.floor().refuse(ReleaseId::new(1, &one)).changed);
    channel.change(|state| state.resume(2).unwrap());
    assert_eq!(inside.recover(&channel, &with_drive()).unwrap(), 2, "the drive has nothing that suits");
}

/// Release 1 on a robot of files, which a server offers release 2; `meanwhile` is called when that is being fetched.
/// What `reflash update` ends with, and the sentence of the standing.
fn update_while(channel: &Arc<Channel>, dir: &Path, meanwhile: impl Fn() + Send + Sync + 'static) -> (Exit, String) {
    let place = |name: &str| dir.join(name);
    let state = StatePartition::new(&place("state"));
    std::fs::create_dir(place("state")).unwrap();
    std::fs::File::create(place("system")).unwrap().set_len(700 * 4096).unwrap();
    let target = DeviceTarget::open(&place("system")).unwrap();
    channel.change(|state| state.pause(2).unwrap());
    let journal = Journal::silent();
    let tree = Directory::new(channel.fixture.tree());
    recovery::run(&channel.fixture.job(&tree, &target, Some(&state), &journal), None).unwrap();
    channel.change(|state| state.resume(2).unwrap());
    let begun = AtomicBool::new(false);
    let server = serve(&channel.fixture.tree(), move |path| {
        if path.starts_with("objects/") && !begun.swap(true, Ordering::SeqCst) {
            meanwhile();
        }
    });
    let text = format!("[release]\nurls = ['{}']\n[machine]\nproduct = 'demo'\nhardware = 'unit-a'\n", server.url());
    std::fs::write(place("reflash.toml"), text).unwrap();
    let keys = channel.fixture.dir.path().join("keys");
    let paths = [
        ("--state", place("state")),
        ("--target", place("system")),
        ("--config", place("reflash.toml")),
        ("--keys", keys),
        ("--store", place("run/update")),
    ];
    let options = paths.into_iter().flat_map(|(name, path)| [name.into(), path.into_os_string()]);
    let exit = reflash::cli::run(["update".into(), "--apply".into()].into_iter().chain(options));
    let standing = std::fs::read(place("run/update.json")).unwrap();
    let standing: serde_json::Value = serde_json::from_slice(&standing).unwrap();
    (exit, standing["sentence"].as_str().unwrap().to_owned())
}

/// To fetch a release may take days.
#[test]
fn what_is_known_when_an_update_begins_to_be_fetched_is_not_what_counts_at_its_end() {
    let fresh = || (Arc::new(Channel::new(100)), tempfile::tempdir().unwrap());
    let (channel, dir) = fresh();
    let (exit, sentence) = update_while(&channel, dir.path(), || ());
    assert_eq!(exit, Exit::Done, "{sentence}");

    // The mirror goes back behind what was seen when the fetch began.
    let (channel, dir) = fresh();
    let files = ["rollout.json", "rollout.json.minisig"].map(|name| channel.fixture.tree().join(CHANNEL).join(name));
    let old = files.clone().map(|path| std::fs::read(path).unwrap());
    let lag = move || files.iter().zip(&old).for_each(|(path, content)| std::fs::write(path, content).unwrap());
    let (exit, sentence) = update_while(&channel, dir.path(), lag);
    assert!(exit == Exit::Later && sentence.contains("this source lags behind"), "{sentence}");

    // A person takes the release back.
    let (channel, dir) = fresh();
    let signed = std::fs::read(channel.fixture.tree().join("stable/history/2.json")).unwrap();
    let root = dir.path().join("state");
    let floor = move || Floor::open(FloorPlaces { state: Some(root.clone()), ..FloorPlaces::default() });
    let refuse = move || assert!(floor().refuse(ReleaseId::new(2, &signed)).failed.is_empty());
    let (exit, sentence) = update_while(&channel, dir.path(), refuse);
    assert!(exit == Exit::Failed && sentence.contains("refused here"), "{sentence}");

    // Or asks for something else at the next start.
    let (channel, dir) = fresh();
    let env = StatePartition::new(&dir.path().join("state")).boot_env();
    let ask = {
        let env = env.clone();
        move || env.update(&[(names::NEXT_ENTRY, Some("recovery")), (names::REQUEST, Some("undo:1"))]).unwrap()
    };
    let (exit, sentence) = update_while(&channel, dir.path(), ask);
    assert!(exit == Exit::Failed && sentence.contains("something else, undo:1"), "{sentence}");
    assert_eq!(env.load_or_empty().unwrap().get(names::REQUEST), Some("undo:1"));
}
