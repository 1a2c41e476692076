//! One round of an update: look, fetch, wait for the moment, restart.

mod applying;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::places::{UpdatePlaces, now_unix_s};
use crate::boot::request::UpdatePermission;
use crate::boot::this_boot;
use crate::chain::chain;
use crate::cli::answer::{Exit, Failure, complain, failure};
use crate::cli::context::{self, Context, this_machine};
use crate::cli::mounted::{MountedState, own_partuuid};
use crate::cli::newer::note_seen;
use crate::cli::options::Options;
use crate::fetch::FetchOptions;
use crate::flash::target::DeviceTarget;
use crate::jobs::floor::Floor;
use crate::jobs::mend::pieces::BootPieces;
use crate::jobs::recovery::other::scripts_know_two;
use crate::jobs::recovery::{self, RecoveryError, RecoveryJob};
use crate::jobs::state::{InstalledRecord, Release};
use crate::jobs::update::standing::{UpdateStanding, UpdateState};
use crate::jobs::update::{UpdateStore, moment, permission};
use crate::machine::config::{Automatic, Config};
use crate::record::progress::bytes;
use crate::record::report;
use crate::release::manifest::Manifest;

/// How often a release is fetched in one round, where it is replaced by the next each time.
const ATTEMPTS: u32 = 3;
/// Time for which a system that does nothing by itself is left alone, seconds.
const OFF_S: u64 = 3600;

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
}

impl<'a> Round<'a> {
    pub(super) fn new(options: &'a Options, places: &'a UpdatePlaces) -> Self {
        let mut standing = UpdateStanding::new(UpdateState::Failed, "nothing was done yet");
        let before = places.standing().read().unwrap_or_default();
        standing.looked_unix_s = before["looked_unix_s"].as_u64();
        let offered = (before["offered"]["version"].as_str(), before["offered"]["serial"].as_u64());
        standing.offered = offered.0.map(str::to_owned).zip(offered.1);
        Self { options, places, standing, post: None, is_beside: false }
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

    /// Whether a round in the background ends here, without a network and without a write to any partition.
    fn has_nothing_to_do(&mut self, config: &Config) -> bool {
        if config.update_automatic == Automatic::Off {
            self.set(UpdateState::Off, "the system looks for no update by itself (update.automatic)");
            self.standing.next_unix_s = Some(now_unix_s() + OFF_S);
            return true;
        }
        let is_complete = UpdateStore::open(self.store(), Path::new("")).is_ok_and(|store| store.is_complete());
        is_complete && !self.is_due(config) && self.waits(config)
    }

    /// Whether the servers are to be asked again.
    fn is_due(&self, config: &Config) -> bool {
        let looked = self.standing.looked_unix_s.unwrap_or_default();
        now_unix_s().abs_diff(looked) >= u64::from(config.update_look_h) * 3600
    }

    /// Whether something is waited for, which the standing then says.
    fn waits(&mut self, config: &Config) -> bool {
        let mut waits_for: Vec<String> = Vec::new();
        if self.options.background {
            if config.update_automatic != Automatic::Apply {
                self.set(UpdateState::Fetched, &self.fetched("`reflash update --apply` applies it"));
                return true;
            }
            if self.is_this_machine() && !Path::new(this_boot::GOOD_MARK).exists() {
                waits_for.push("this boot to call itself good".to_owned());
            }
            waits_for.extend(moment::closed_now(&config.update_windows, now_unix_s()));
        }
        // What the robot's programs look at may take a minute each.
        if waits_for.is_empty() {
            waits_for = moment::objections(&moment::DIRECTORIES.map(Path::new));
        }
        if waits_for.is_empty() {
            return false;
        }
        self.set(UpdateState::Waiting, &self.fetched(&format!("waits for {}", waits_for.join("; "))));
        self.standing.waits_for = waits_for;
        true
    }

    fn is_this_machine(&self) -> bool {
        self.options.state.is_none() && own_partuuid().is_some()
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
        let mut job = context.job(&target, false);
        job.resources.state = Some(&mounted.state);
        let Some(record) = job.read_record() else {
            return failure("no release is recorded as installed, so that none can be newer; see reflash status");
        };
        drop(job);
        let boot_code = BootPieces::read(&mounted.state);
        let other = mounted.other.clone().filter(|_| self.is_beside);
        Ok(Machine { context, target, record, floor, boot_code, other, pending })
    }

    fn look_fetch_and_apply(&mut self, machine: &Machine) -> Result<Option<Restart>, Failure> {
        match &machine.pending {
            Some(Err(other)) => {
                return failure(format!("the next start is asked for something else, {other}: no update is applied"));
            }
            Some(Ok(_)) if self.options.background && !self.is_due(&machine.context.config) => {
                self.set(UpdateState::Requested, &self.fetched("the next start applies it"));
                return Ok(None);
            }
            _ => {}
        }
        let mut job = machine.context.job(&machine.target, false);
        job.resources.floor = Some(&machine.floor);
        job.policy.above = Some(machine.record.manifest().serial);
        let seen = Cell::new(None);
        let learn = |numbers| seen.set(Some(numbers));
        job.resources.learn_rollout = &learn;
        for _ in 0..ATTEMPTS {
            let looked = self.look(&job, machine);
            if let Some(numbers) = seen.take() {
                note_seen(self.options, numbers)?;
            }
            let Some(release) = looked? else { return Ok(None) };
            if !self.is_staged(&release)? {
                // It is asked again afterwards whether it still stands: this may take days.
                self.fetch(&job, machine, &release)?;
                continue;
            }
            if !self.options.apply && !self.options.background {
                self.set(UpdateState::Fetched, &self.fetched("`reflash update --apply` applies it"));
                return Ok(None);
            }
            if self.waits(&machine.context.config) {
                let is_refused = self.options.apply;
                return if is_refused { later(&self.standing.sentence) } else { Ok(None) };
            }
            return match &machine.other {
                Some(other) => self.switch(machine, other, &release),
                None => self.apply(&machine.context.config, &release),
            };
        }
        later("each release that was fetched was replaced by another one meanwhile; the next round looks again")
    }

    /// Asks which release is offered; `None` where there is nothing newer.
    fn look(&mut self, job: &RecoveryJob<'_>, machine: &Machine) -> Result<Option<Release>, Failure> {
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
            Err(error @ RecoveryError::Rollout(_)) if !error.is_nothing_new() => {
                self.refuse(&machine.context.config, &error)
            }
            Err(error) => self.drop_fetched(&error, machine).map(|()| None),
        }
    }

    /// Drops what was fetched of a release that is not offered any more, and says why there is nothing.
    fn drop_fetched(&mut self, error: &RecoveryError, machine: &Machine) -> Result<(), Failure> {
        // First, so that no cut leaves a request for what is gone.
        if let Some(Ok(_)) = machine.pending {
            permission::take_back(&MountedState::open(self.options)?.state.boot_env())?;
        }
        if let RecoveryError::Rollout(_) = error {
            // A pause may end: what was fetched stays, and is not applied.
            self.set(UpdateState::Current, &chain(error));
            self.rest(&machine.context.config);
            return Ok(());
        }
        let gone = UpdateStore::open(self.store(), Path::new("")).ok().map(|store| store.release_id().serial);
        UpdateStore::remove(self.store())?;
        (self.standing.bytes, self.standing.offered) = ((0, 0), None);
        if !error.is_nothing_new() {
            return self.refuse(&machine.context.config, error);
        }
        let Manifest { version, serial, .. } = machine.record.manifest();
        let withdrawn = gone.filter(|gone| gone > serial);
        let withdrawn = withdrawn.map(|gone| format!("; serial {gone}, which was fetched, is offered no more"));
        let sentence = format!("nothing is newer than {version} (serial {serial}){}", withdrawn.unwrap_or_default());
        self.set(UpdateState::Current, &sentence);
        self.rest(&machine.context.config);
        Ok(())
    }

    /// Says that a release is not for this machine.
    fn refuse<T>(&mut self, config: &Config, error: &(dyn std::error::Error + 'static)) -> Result<T, Failure> {
        let text = format!("what is offered is refused here: {}", chain(error));
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
