//! One round of an update: look, fetch, wait for the moment, restart.

mod applying;
mod waiting;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::places::UpdatePlaces;
use crate::boot::env::BootEnvError;
use crate::boot::request::UpdatePermission;
use crate::chain::chain;
use crate::cli::answer::{Exit, Failure, complain, failure};
use crate::cli::context::{self, Context, this_machine};
use crate::cli::mounted::MountedState;
use crate::cli::newer::note_seen;
use crate::cli::options::Options;
use crate::cli::other_system::is_restart_due;
use crate::fetch::FetchOptions;
use crate::flash::target::DeviceTarget;
use crate::jobs::floor::{Floor, ReleaseId};
use crate::jobs::mend::pieces::BootPieces;
use crate::jobs::recovery::other::scripts_know_two;
use crate::jobs::recovery::{self, LeftOut, RecoveryError, RecoveryJob};
use crate::jobs::state::{InstalledRecord, Release};
use crate::jobs::update::standing::{UpdateStanding, UpdateState};
use crate::jobs::update::{UpdateStore, permission};
use crate::machine::config::Config;
use crate::record::blackbox::BlackBox;
use crate::record::progress::bytes;
use crate::record::report;
use crate::release::manifest::Manifest;
use crate::sys::clock::now_unix_s;

/// How often a release is fetched in one round, where it is replaced by the next each time.
const ATTEMPTS: u32 = 3;
/// Time after which a server that lags behind, or a fact, is asked for again, seconds: the next run of the timer.
const SOON_S: u64 = 600;

/// Ends the program with the restart of the machine.
pub(super) type Restart = fn() -> Result<Exit, Failure>;
/// Posts the standing, if it differs from the one before.
type Post = Box<dyn FnOnce(&UpdateStanding, Option<&Value>)>;

/// One round.
pub(super) struct Round<'a> {
    options: &'a Options,
    places: &'a UpdatePlaces,
    pub(super) standing: UpdateStanding,
    pub(super) post: Option<Post>,
    /// Whether releases are written to the other system while this one works.
    is_beside: bool,
    /// Whether the next start applies what was fetched, or is of the system that it was written to.
    is_asked: bool,
    /// Recoveries in a row that were asked for and did not install another release.
    in_vain: u32,
}

/// What is known of the machine, after which none of its partitions is mounted any more.
struct Machine {
    context: Context,
    target: DeviceTarget,
    record: InstalledRecord,
    floor: Floor,
    boot_code: Option<BootPieces>,
    /// Partition of the other system, on a robot with two which GRUB can choose from.
    other: Option<PathBuf>,
    pending: Option<Result<UpdatePermission, String>>,
    /// Whether GRUB was switched to the other system, and the restart has not come yet.
    is_switched: bool,
    /// Release of the other system, if it is recorded.
    on_other: Option<ReleaseId>,
}

impl Machine {
    /// Whether the next start applies this very release, or is of it.
    fn is_asked_for(&self, release: &Release) -> bool {
        let id = release.id();
        match &self.pending {
            Some(Ok(permission)) => permission.serial == id.serial && permission.digest == id.digest,
            _ => self.on_other == Some(id),
        }
    }

    /// Whether the next start still does without another question what it is asked for. That of the other system has
    /// no end.
    fn is_permission_enough(&self) -> bool {
        match &self.pending {
            Some(Ok(permission)) => permission.is_enough(now_unix_s()),
            _ => true,
        }
    }
}

impl<'a> Round<'a> {
    pub(super) fn new(options: &'a Options, places: &'a UpdatePlaces) -> Self {
        let mut standing = UpdateStanding::new(UpdateState::Failed, "nothing was done yet");
        let before = places.standing().read().unwrap_or_default();
        standing.looked_unix_s = before["looked_unix_s"].as_u64();
        let offered = (before["offered"]["version"].as_str(), before["offered"]["serial"].as_u64());
        standing.offered = offered.0.map(str::to_owned).zip(offered.1);
        // In memory, and so of this boot.
        let is_asked = before["state"] == UpdateState::Requested.word();
        Self { options, places, standing, post: None, is_beside: false, is_asked, in_vain: 0 }
    }

    /// Says last, and whatever else this round has met, that the next start applies what was fetched.
    pub(super) fn say_what_comes_next(&mut self) {
        if !self.is_asked || self.standing.state == UpdateState::Requested {
            return;
        }
        let beside = match self.standing.waits_for.join("; ") {
            waits if !waits.is_empty() => format!("the restart waits for {waits}"),
            _ => self.standing.sentence.clone(),
        };
        self.set(UpdateState::Requested, &format!("{}; {beside}", self.next_start()));
    }

    fn next_start(&self) -> String {
        self.fetched(if self.is_beside { "the next start is of it" } else { "the next start applies it" })
    }

    /// Directory of the store.
    fn store(&self) -> &Path {
        self.places.store(self.is_beside)
    }

    /// Carries the round out. Returns how the machine is restarted, if it is to be.
    pub(super) fn go(&mut self) -> Result<Option<Restart>, Failure> {
        let mounted = MountedState::open_configuration(self.options)?;
        let config = context::config(self.options, Some(&mounted))?;
        self.is_beside = mounted.other.is_some() && mounted.recovery.as_deref().is_some_and(scripts_know_two);
        drop(mounted);
        self.standing.bytes =
            UpdateStore::open(self.store(), Path::new("")).map(|store| store.bytes()).unwrap_or_default();
        if self.options.background && self.has_nothing_to_do(&config) {
            return Ok(None);
        }
        let machine = self.read_machine(config)?;
        self.look_fetch_and_apply(&machine)
    }

    fn set(&mut self, state: UpdateState, sentence: &str) {
        self.standing.state = state;
        sentence.clone_into(&mut self.standing.sentence);
    }

    fn fetched(&self, rest: &str) -> String {
        let offered = match &self.standing.offered {
            Some((version, serial)) => format!("{version} (serial {serial})"),
            None => "the next release".to_owned(),
        };
        match self.is_beside {
            true => format!("{offered} is written to the other system; {rest}"),
            false => format!("{offered} is fetched, {}; {rest}", bytes(self.standing.bytes.1)),
        }
    }

    fn read_machine(&mut self, config: Config) -> Result<Machine, Failure> {
        let options = self.options;
        let mut config = config;
        let own_rate = config.update_max_bytes_per_s.into_iter().chain(config.network.max_bytes_per_s).min();
        config.network.max_bytes_per_s = own_rate;
        let mounted = MountedState::open(options)?;
        let context = Context::with(config, options, Some(&mounted))?;
        if let Some(url) = context.config.report_url.clone() {
            let reported = this_machine(&context.config, &mounted);
            let fetch_options = FetchOptions::with_clock_as_it_is(&context.config.network);
            self.post = Some(Box::new(move |standing, before| {
                let now = standing.to_json();
                let is_news = before.is_none_or(|before| {
                    ["state", "offered", "waits_for"].iter().any(|member| before[member] != now[member])
                });
                if is_news && let Err(error) = report::post_update(&url, &reported, &now, &fetch_options) {
                    complain(&format!("the server did not accept the report: {}", chain(&error)));
                }
            }));
        }
        let path = options.target.clone().map_or_else(|| mounted.system_partition(), Ok)?;
        let target = DeviceTarget::open_read_only(&path)?;
        let floor = mounted.floor();
        let pending = permission::pending(&mounted.state.boot_env())?;
        let is_switched = self.is_beside && is_restart_due(&mounted)?;
        self.is_asked = is_switched || matches!(pending, Some(Ok(_)));
        let mut job = context.job(&target, false);
        job.resources.state = Some(&mounted.state);
        let Some(record) = job.read_record() else {
            return failure("no release is recorded as installed, so that none can be newer; see reflash status");
        };
        let other_state = mounted.state.of_system(mounted.state.system().other());
        let on_other = other_state.record(job.resources.keys).filter(|_| is_switched).map(|record| record.id());
        drop(job);
        // With two systems no recovery is asked for.
        let black_box = BlackBox::open_read_only(&mounted.state.blackbox_path()).ok().filter(|_| !self.is_beside);
        self.in_vain = black_box.map_or(0, |black_box| black_box.asked_in_vain(record.manifest().serial));
        let boot_code = BootPieces::read(&mounted.state);
        let other = mounted.other.clone().filter(|_| self.is_beside);
        Ok(Machine { context, target, record, floor, boot_code, other, pending, is_switched, on_other })
    }

    fn look_fetch_and_apply(&mut self, machine: &Machine) -> Result<Option<Restart>, Failure> {
        if let Some(Err(other)) = &machine.pending {
            // What waits there stays, and the update waits.
            return Err(BootEnvError::Asked { what: other.clone() }.into());
        }
        let config = &machine.context.config;
        let is_due = self.is_due(config) || !machine.is_permission_enough();
        let is_to_restart = self.is_asked && self.options.background && !is_due;
        if is_to_restart && self.looked_s_ago() < SOON_S {
            return self.restart_again(config);
        }
        // The restart may have waited for hours, in which the release was halted.
        if is_to_restart && self.waits(config) {
            return self.not_now();
        }
        // The servers need not be asked about what is not applied yet.
        let is_idle = self.in_vain > 0 && self.options.background && !self.is_asked && !is_due && self.has_all();
        if is_idle && self.waits(config) {
            return self.not_now();
        }
        let mut job = machine.context.job(&machine.target, false);
        job.resources.floor = Some(&machine.floor);
        job.policy.above = Some(machine.record.manifest().serial);
        let seen = Cell::new(None);
        let learn = |numbers| seen.set(Some(numbers));
        job.resources.learn_rollout = &learn;
        let left_out = RefCell::new(LeftOut::default());
        let learn_left = |left| drop(left_out.replace(left));
        job.resources.learn_left_out = &learn_left;
        for _ in 0..ATTEMPTS {
            let looked_before = self.standing.looked_unix_s;
            let looked = self.look(&job, machine, &left_out);
            if let Some(numbers) = seen.take() {
                machine.floor.learn(&note_seen(self.options, numbers)?);
            }
            if looked.is_err() && is_to_restart && self.standing.looked_unix_s == looked_before {
                // No server answers, and the permission is for that.
                return self.restart_again(config);
            }
            let Some(release) = looked? else { return Ok(None) };
            let is_for_look = !self.options.apply && !self.options.background;
            if self.is_asked && machine.is_switched && machine.on_other == Some(release.id()) && !is_for_look {
                return self.restart_again(config);
            }
            if self.is_asked && !machine.is_asked_for(&release) {
                self.take_back(machine)?;
            }
            if !self.is_staged(&release)? {
                // It is asked again afterwards whether it still stands: this may take days.
                self.fetch(&job, machine, &release)?;
                machine.floor.learn(&MountedState::open(self.options)?.floor().record());
                continue;
            }
            if is_for_look && self.is_asked {
                self.set(UpdateState::Requested, &self.next_start());
                return Ok(None);
            }
            if is_for_look {
                self.set(UpdateState::Fetched, &self.fetched("`reflash update --apply` applies it"));
                return Ok(None);
            }
            if self.waits(config) {
                return self.not_now();
            }
            return match &machine.other {
                Some(other) => self.switch(machine, other, &release),
                None => self.apply(config, &release),
            };
        }
        later("each release that was fetched was replaced by another one meanwhile; the next round looks again")
    }

    /// Asks which release is offered; `None` where there is nothing newer.
    fn look(
        &mut self,
        job: &RecoveryJob<'_>,
        machine: &Machine,
        left_out: &RefCell<LeftOut>,
    ) -> Result<Option<Release>, Failure> {
        let looked = recovery::fetch_release(job, Some(&machine.record));
        if let Err(error) = &looked
            && !matches!(error, RecoveryError::Manifest(_) | RecoveryError::Rollout(_))
        {
            return Err(Failure::of(error, error.is_retryable()));
        }
        self.standing.looked_unix_s = Some(now_unix_s());
        match looked {
            Ok(release) => {
                self.standing = self.standing.clone().offering(&release.manifest);
                Ok(Some(release))
            }
            // A source that lags behind says nothing about what was fetched.
            Err(error) if error.is_of_lagging_source() => {
                self.standing.next_unix_s = Some(now_unix_s() + SOON_S);
                Err(Failure::of(&error, true))
            }
            Err(error @ RecoveryError::Rollout(_)) if !error.is_nothing_new() => {
                self.refuse(&machine.context.config, chain(&error))
            }
            Err(error) => self.drop_fetched(&error, machine, &left_out.take()).map(|()| None),
        }
    }

    /// Drops what was fetched of a release that is not offered any more, and says why there is nothing.
    fn drop_fetched(&mut self, error: &RecoveryError, machine: &Machine, left_out: &LeftOut) -> Result<(), Failure> {
        // First, so that no cut leaves a request for what is gone.
        if self.is_asked {
            self.take_back(machine)?;
        }
        let config = &machine.context.config;
        let fetched = UpdateStore::open(self.store(), Path::new("")).ok().map(|store| store.release_id());
        self.standing.offered = None;
        // A pause may end: what was fetched stays, and is not applied.
        if !fetched.is_some_and(|fetched| left_out.later.contains(&fetched)) {
            UpdateStore::remove(self.store())?;
            self.standing.bytes = (0, 0);
        }
        if let RecoveryError::Rollout(_) = error {
            self.set(UpdateState::Current, &machine.context.with_facts_fault(chain(error), left_out));
            let now = now_unix_s();
            let rest_s = left_out.rest_s(now, u64::from(config.update_look_h) * 3600, SOON_S);
            self.standing.next_unix_s = Some(now + rest_s);
            return Ok(());
        }
        if !error.is_nothing_new() {
            let newer = left_out.why.iter().map(|why| format!("; {why}")).collect::<String>();
            return self.refuse(config, chain(error) + &newer);
        }
        let gone = fetched.map(|fetched| fetched.serial);
        let Manifest { version, serial, .. } = machine.record.manifest();
        let withdrawn = gone.filter(|gone| gone > serial);
        let withdrawn = withdrawn.map(|gone| format!("; serial {gone}, which was fetched, is offered no more"));
        let sentence = format!("nothing is newer than {version} (serial {serial}){}", withdrawn.unwrap_or_default());
        self.set(UpdateState::Current, &sentence);
        self.rest(config);
        Ok(())
    }

    /// Says that a release is not for this machine.
    fn refuse<T>(&mut self, config: &Config, why: String) -> Result<T, Failure> {
        let text = format!("what is offered is refused here: {why}");
        self.set(UpdateState::Refused, &text);
        self.rest(config);
        failure(text)
    }

    /// Lets the timer rest until the servers are asked again.
    fn rest(&mut self, config: &Config) {
        self.standing.next_unix_s = Some(now_unix_s() + u64::from(config.update_look_h) * 3600);
    }

    /// Whether the store has all of this release, and what it has is what was fetched.
    fn is_staged(&mut self, release: &Release) -> Result<bool, Failure> {
        let Ok(store) = UpdateStore::open(self.store(), Path::new("")) else { return Ok(false) };
        if store.release_id() != release.id() || !store.is_complete() {
            return Ok(false);
        }
        self.standing.bytes = store.bytes();
        let is_whole = store.is_whole().unwrap_or(false);
        if !is_whole {
            complain("what was fetched is damaged: it is checked, and what is wrong is fetched again");
        }
        Ok(is_whole)
    }
}

/// A failure that is gone later.
fn later<T>(text: &str) -> Result<T, Failure> {
    Err(Failure { text: text.to_owned(), exit: Exit::Later })
}

#[cfg(test)]
mod tests {
    use super::{Round, UpdatePlaces, UpdateState};
    use crate::cli::options::Options;
    use crate::jobs::update::standing::UpdateStanding;

    #[test]
    fn the_word_says_what_the_next_start_does_whatever_a_round_meets() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { store: Some(dir.path().join("store")), ..Options::default() };
        let places = UpdatePlaces::of(&options);
        let round_after = |state, waits_for: &[&str]| {
            let mut round = Round::new(&options, &places);
            round.set(state, "no server answers");
            round.standing.waits_for = waits_for.iter().map(|phrase| (*phrase).to_owned()).collect();
            round.say_what_comes_next();
            (round.standing.state, round.standing.sentence)
        };
        assert_eq!(round_after(UpdateState::Failed, &[]), (UpdateState::Failed, "no server answers".to_owned()));
        let mut standing = UpdateStanding::new(UpdateState::Requested, "the next start applies it");
        standing.offered = Some(("1.3".to_owned(), 3));
        places.standing().write(&standing).unwrap();
        for state in [UpdateState::Off, UpdateState::Failed, UpdateState::Fetched, UpdateState::Refused] {
            let (state, sentence) = round_after(state, &[]);
            assert_eq!(state, UpdateState::Requested);
            assert!(sentence.starts_with("1.3 (serial 3) is fetched"), "{sentence}");
            assert!(sentence.ends_with("; the next start applies it; no server answers"), "{sentence}");
        }
        let (_, waits) = round_after(UpdateState::Waiting, &["a lock that arm holds: welding"]);
        assert!(waits.ends_with("applies it; the restart waits for a lock that arm holds: welding"), "{waits}");
    }
}
