//! `reflash update` as it is typed, and as the timer calls it.

use std::fs;
use std::path::PathBuf;

use reflash::boot::grubenv::{GrubEnv, names};
use reflash::boot::request::RecoveryRequest;
use reflash::cli::answer::Exit;
use reflash::fetch::Directory;
use reflash::flash::target::DeviceTarget;
use reflash::jobs::state::StatePartition;
use reflash::record::blackbox::{Attempt, AttemptOutcome, BlackBox};
use reflash::release::digest::Digest;
use serde_json::Value;

use super::rebuilt;
use crate::support::{Fixture, sample_image};

/// A machine with its partitions in files, and a release tree that it is configured for.
struct Machine {
    fixture: Fixture,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let fixture = Fixture::with(sample_image(1000, 3), |_| ());
        let dir = tempfile::tempdir().unwrap();
        let this = Self { fixture, dir };
        fs::create_dir(this.path("state")).unwrap();
        fs::File::create(this.path("system")).unwrap().set_len(1400 * 4096).unwrap();
        let state = StatePartition::new(&this.path("state"));
        let target = DeviceTarget::open(&this.path("system")).unwrap();
        this.fixture.recover(&Directory::new(this.fixture.tree()), &target, Some(&state)).unwrap();
        this.configure("");
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, update: &str) {
        let url = format!("file://{}", self.fixture.tree().display());
        let text = format!(
            "[release]\nurls = ['{url}']\n[machine]\nproduct = 'demo'\nhardware = 'unit-a'\n[update]\n{update}\n"
        );
        fs::write(self.path("reflash.toml"), text).unwrap();
    }

    fn publish_next(&mut self, version: &str) {
        let next = rebuilt(&sample_image(1000, 3));
        self.fixture.publish(next, |spec| spec.version = version.into());
    }

    fn update(&self, more: &[&str]) -> Exit {
        let text = |name: &str| self.path(name).display().to_string();
        let keys = self.fixture.dir.path().join("keys").display().to_string();
        let (state, system, config, store) = (text("state"), text("system"), text("reflash.toml"), text("run/update"));
        let own =
            ["update", "--state", &state, "--target", &system, "--config", &config, "--keys", &keys, "--store", &store];
        reflash::cli::run(own.iter().chain(more).map(Into::into))
    }

    fn standing(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("run/update.json")).unwrap()).unwrap()
    }

    fn state_word(&self) -> String {
        self.standing()["state"].as_str().unwrap().to_owned()
    }

    fn sentence(&self) -> String {
        self.standing()["sentence"].as_str().unwrap().to_owned()
    }

    fn env(&self) -> GrubEnv {
        StatePartition::new(&self.path("state")).boot_env().load_or_empty().unwrap()
    }

    /// Sets the time of the last look back, as if it were long ago, and lets the timer not rest.
    fn forget_the_last_look(&self) {
        self.looked_at(1);
    }

    fn looked_at(&self, unix_s: u64) {
        let mut standing = self.standing();
        (standing["looked_unix_s"], standing["next_unix_s"]) = (unix_s.into(), Value::Null);
        fs::write(self.path("run/update.json"), standing.to_string()).unwrap();
    }
}

#[test]
fn a_release_is_fetched_once_and_asked_about_once_more_before_the_restart() {
    let mut machine = Machine::new();
    let before = fs::read(machine.path("system")).unwrap();
    assert_eq!(machine.update(&[]), Exit::No);
    assert_eq!(machine.state_word(), "current");
    machine.publish_next("2");
    assert_eq!(machine.update(&["--json"]), Exit::Done);
    let standing = machine.standing();
    assert_eq!((standing["state"].as_str(), standing["offered"]["version"].as_str()), (Some("fetched"), Some("2")));
    assert!(
        standing["stored_bytes"].as_u64().unwrap() > 10_000 && standing["stored_bytes"] == standing["needed_bytes"]
    );
    assert_eq!(machine.env().get(names::REQUEST), None);
    // The packs may be gone from now on: they are in the store.
    for object in machine.fixture.objects() {
        fs::remove_file(object).unwrap();
    }
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    assert_eq!(machine.state_word(), "requested");
    let env = machine.env();
    assert_eq!(env.get(names::NEXT_ENTRY), Some("recovery"));
    let Some(RecoveryRequest::Update(permission)) = RecoveryRequest::parse(env.get(names::REQUEST)) else {
        panic!("{:?}", env.get(names::REQUEST));
    };
    let manifest = fs::read(machine.fixture.tree().join("stable/manifest.json")).unwrap();
    assert_eq!((permission.serial, permission.hours), (machine.fixture.released.manifest.serial, 24));
    assert_eq!(permission.digest[..], Digest::of(&manifest).0[..8]);
    assert_eq!(fs::read(machine.path("system")).unwrap(), before, "nothing of the running system is written");
}

#[test]
fn a_release_that_is_withdrawn_or_replaced_is_not_applied() {
    let mut machine = Machine::new();
    let stable = machine.fixture.tree().join("stable");
    let old: Vec<_> =
        ["manifest.json", "manifest.json.minisig"].map(|name| fs::read(stable.join(name)).unwrap()).into();
    machine.publish_next("2");
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    // Another takes its place before the restart: that one is fetched and asked for.
    machine.publish_next("3");
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    let serial = machine.fixture.released.manifest.serial;
    assert!(machine.env().get(names::REQUEST).unwrap().starts_with(&format!("update:{serial}:")));
    // And that is withdrawn: the request is taken back with it.
    for (name, content) in ["manifest.json", "manifest.json.minisig"].iter().zip(old) {
        fs::write(stable.join(name), content).unwrap();
    }
    assert_eq!(machine.update(&["--apply"]), Exit::No);
    assert!(machine.sentence().contains("offered no more"), "{}", machine.sentence());
    assert_eq!((machine.env().get(names::REQUEST), machine.env().get(names::NEXT_ENTRY)), (None, None));
    assert!(!machine.path("run/update/content").exists());
}

#[test]
fn the_timer_does_what_the_configuration_says() {
    let mut machine = Machine::new();
    machine.publish_next("2");
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "off");
    machine.configure("automatic = 'fetch'");
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "off", "it rests for an hour");
    machine.forget_the_last_look();
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "fetched");
    machine.configure(&closed_window());
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "waiting");
    assert!(machine.sentence().contains("02:00-02:01"), "{}", machine.sentence());
    assert_eq!(machine.env().get(names::REQUEST), None);
    // One that is always open.
    machine.configure("automatic = 'apply'\nwindow = ['Mon-Sun 00:00-24:00']");
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "requested");
    // What a person asked for otherwise stays as it is.
    let env = StatePartition::new(&machine.path("state")).boot_env();
    env.update(&[(names::NEXT_ENTRY, Some("recovery")), (names::REQUEST, Some("undo"))]).unwrap();
    assert_eq!(machine.update(&["--apply"]), Exit::Failed);
    assert!(machine.sentence().contains("undo"), "{}", machine.sentence());
    assert_eq!(machine.env().get(names::REQUEST), Some("undo"));
}

/// A window that is never open: that of a minute three days away.
fn closed_window() -> String {
    let day = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let today = usize::from(reflash::sys::gentle::wall_time(now_unix_s()).unwrap().weekday);
    format!("automatic = 'apply'\nwindow = ['{} 02:00-02:01']", day[(today + 3) % 7])
}

fn now_unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn what_the_next_start_does_is_read_and_not_remembered() {
    let mut machine = Machine::new();
    machine.publish_next("2");
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    assert_eq!(machine.update(&[]), Exit::Done);
    assert!(machine.sentence().ends_with("; the next start applies it"), "{}", machine.sentence());
    machine.configure(&closed_window());
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "requested");
    assert!(machine.sentence().contains("the restart waits for the time"), "{}", machine.sentence());
    let env = StatePartition::new(&machine.path("state")).boot_env();
    env.update(&[(names::NEXT_ENTRY, Some("factory-reset")), (names::REQUEST, None)]).unwrap();
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.state_word(), "failed");
    assert!(machine.sentence().contains("something else, factory-reset"), "{}", machine.sentence());
}

/// The restart did not come for so long that recovery would ask a network, which it may not have.
#[test]
fn a_permission_that_is_too_old_is_asked_for_anew_before_the_restart() {
    let mut machine = Machine::new();
    machine.publish_next("2");
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    let env = StatePartition::new(&machine.path("state")).boot_env();
    let asked = |env: GrubEnv| match RecoveryRequest::parse(env.get(names::REQUEST)) {
        Some(RecoveryRequest::Update(permission)) => permission,
        other => panic!("{other:?}"),
    };
    machine.configure("automatic = 'apply'\npermit_h = 1");
    for (hours_ago, is_anew) in [(0, false), (2, true)] {
        let mut permission = asked(machine.env());
        (permission.asked_unix_s, permission.hours) = (now_unix_s() - 5 - hours_ago * 3600, 1);
        let request = RecoveryRequest::Update(permission).to_string();
        env.update(&[(names::REQUEST, Some(&request))]).unwrap();
        assert_eq!(machine.update(&["--background"]), Exit::Done);
        assert_eq!(machine.state_word(), "requested");
        assert_eq!(asked(machine.env()) != permission, is_anew, "{hours_ago} h");
    }
    assert!(asked(machine.env()).is_enough(now_unix_s()));
}

/// Something held the restart up for a while.
#[test]
fn whether_the_release_still_stands_is_asked_before_every_restart() {
    let mut machine = Machine::new();
    let stable = machine.fixture.tree().join("stable");
    let files = ["manifest.json", "manifest.json.minisig"];
    let before = files.map(|name| fs::read(stable.join(name)).unwrap());
    machine.publish_next("2");
    machine.configure("automatic = 'apply'");
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    let asked = machine.env().get(names::REQUEST).map(str::to_owned);
    // A server that does not answer takes nothing back: the permission is for that.
    let away = machine.fixture.tree().with_extension("away");
    fs::rename(machine.fixture.tree(), &away).unwrap();
    machine.looked_at(now_unix_s() - 1200);
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert!(machine.sentence().ends_with("; the next start applies it"), "{}", machine.sentence());
    assert_eq!(machine.env().get(names::REQUEST), asked.as_deref());
    fs::rename(&away, machine.fixture.tree()).unwrap();
    // It was withdrawn meanwhile.
    files.iter().zip(before).for_each(|(name, content)| fs::write(stable.join(name), content).unwrap());
    machine.looked_at(now_unix_s() - 60);
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!(machine.env().get(names::REQUEST), asked.as_deref(), "that was asked just now");
    machine.looked_at(now_unix_s() - 1200);
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!((machine.env().get(names::REQUEST), machine.env().get(names::NEXT_ENTRY)), (None, None));
}

/// Nothing is learned by asking at once again what recovery has just been asked in vain.
#[test]
fn an_update_that_recovery_did_not_apply_rests_and_a_person_need_not_wait() {
    let mut machine = Machine::new();
    let installed = machine.fixture.released.manifest.serial;
    machine.publish_next("2");
    machine.configure("automatic = 'apply'");
    let mut black_box = BlackBox::open(&StatePartition::new(&machine.path("state")).blackbox_path()).unwrap();
    let mut asked = |outcome| {
        let attempt = Attempt {
            id: black_box.next_id(),
            reason: "requested".into(),
            serial: Some(installed),
            outcome: Some(outcome),
            ..Attempt::default()
        };
        black_box.record(&attempt).unwrap();
    };
    asked(AttemptOutcome::Installed);
    asked(AttemptOutcome::Started);
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert_eq!((machine.state_word().as_str(), machine.env().get(names::REQUEST)), ("waiting", None));
    assert!(machine.sentence().contains("1 h of this start, since recovery was asked once"), "{}", machine.sentence());
    // A later round asks no server, and rests too.
    let away = machine.fixture.tree().with_extension("away");
    fs::rename(machine.fixture.tree(), &away).unwrap();
    machine.looked_at(now_unix_s() - 60);
    asked(AttemptOutcome::Started);
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert!(machine.sentence().contains("2 h of this start"), "{}", machine.sentence());
    assert!(machine.standing()["next_unix_s"].as_u64().unwrap() > now_unix_s() + 600);
    fs::rename(&away, machine.fixture.tree()).unwrap();
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    assert_eq!(machine.state_word(), "requested");
    // What is asked for is not held up by it.
    machine.looked_at(now_unix_s() - 60);
    assert_eq!(machine.update(&["--background"]), Exit::Done);
    assert!(machine.sentence().ends_with("the next start applies it"), "{}", machine.sentence());
}

#[test]
fn one_update_works_at_a_time_and_what_fails_is_said() {
    let mut machine = Machine::new();
    machine.publish_next("2");
    fs::create_dir_all(machine.path("run")).unwrap();
    let lock = fs::File::create(machine.path("run/update.lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!((machine.update(&[]), machine.update(&["--background"])), (Exit::Later, Exit::Done));
    drop(lock);
    // A file in the place of the store's directory, and a server that is gone.
    fs::write(machine.path("run/update"), "x").unwrap();
    assert_eq!(machine.update(&[]), Exit::Later);
    assert!(machine.sentence().contains("store"), "{}", machine.sentence());
    fs::remove_file(machine.path("run/update")).unwrap();
    let stable = machine.fixture.tree().join("stable");
    fs::rename(&stable, machine.fixture.tree().join("gone")).unwrap();
    assert_ne!(machine.update(&[]), Exit::Done);
    machine.configure("automatic = 'apply'");
    assert_eq!(machine.update(&["--background"]), Exit::Done, "no service fails for it");
    assert_eq!(machine.state_word(), "failed");
    fs::rename(machine.fixture.tree().join("gone"), &stable).unwrap();
    assert_eq!(machine.update(&[]), Exit::Done);
    // A release that is larger than the partition.
    machine.fixture.publish(sample_image(2000, 8), |spec| spec.version = "3".into());
    assert_eq!(machine.update(&[]), Exit::Failed);
    assert_eq!(machine.state_word(), "refused");
}

#[test]
fn a_store_that_was_damaged_meanwhile_is_mended_before_the_restart() {
    let mut machine = Machine::new();
    machine.publish_next("2");
    assert_eq!(machine.update(&[]), Exit::Done);
    let content = machine.path("run/update/content");
    let mut bytes = fs::read(&content).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&content, &bytes).unwrap();
    assert_eq!(machine.update(&["--apply"]), Exit::Done);
    bytes[middle] ^= 1;
    assert!(fs::read(&content).unwrap() == bytes);
    assert_eq!(machine.state_word(), "requested");
}
