//! The robot as far as it is known before the network: drivers, disk, records, configuration, keys.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::boot_medium::BootMedium;
use super::configuration::{self, MachineSettings};
use super::data_store::Staged;
use super::drivers::load_modules;
use super::error::SetupError;
use super::inputs;
use super::pause::Pause;
use super::robot_disk::{OtherDisk, RECOVERY, RobotDisk};
use super::sources;
use super::standing::{Standing, find_kept};
use super::usb_release::UsbRelease;
use crate::boot::decide::{Reason, Recoveries, Situation, System};
use crate::boot::request::RecoveryRequest;
use crate::boot::slots::Slot;
use crate::boot::worth::Worth;
use crate::chain::chain;
use crate::fetch::{CertificateClock, FetchError, Mirrors, Source};
use crate::flash::undo::{UndoObstacle, UndoTarget};
use crate::flash::verify::Verified;
use crate::jobs::floor::{Floor, FloorChange, SeenRollout};
use crate::jobs::recovery::other::{self, OtherSystem, scripts_know_two};
use crate::jobs::recovery::{self, BootChain, Identity, Keep, Policy, RecoveryJob, Renewal, Resources};
use crate::jobs::site_copy::{self, SiteCopy};
use crate::jobs::state::{IndexedRelease, InstalledRecord, StatePartition};
use crate::jobs::systems;
use crate::machine::config::{BootArgs, Config, Layer};
use crate::machine::drivers::Coldplug;
use crate::machine::robot;
use crate::net::RequestOutcomes;
use crate::pid1::link::{Handover, WorkPart};
use crate::pid1::worker;
use crate::record::blackbox::{AttemptOutcome, BlackBox, Recorder};
use crate::record::event::Event;
use crate::record::journal::{Journal, Phase};
use crate::record::report::ReportedMachine;
use crate::release::manifest::TrustedKeys;
use crate::release::rollout::{Facts, Robot};

/// The robot before the network.
pub(super) struct Setup {
    pub args: BootArgs,
    pub reason: Reason,
    pub config: Config,
    pub keys: TrustedKeys,
    /// Product, hardware and channel that a release must fit.
    pub identity: Identity,
    pub disk: RobotDisk,
    /// Record of the installed release, whose signature is checked here and not again.
    pub record: Option<InstalledRecord>,
    /// The floor of this robot, and the releases that are refused on it.
    pub floor: Arc<Floor>,
    /// What is known of the installed release before anything is decided.
    pub standing: Standing,
    /// Takes the creation times of manifests for the clock.
    learn_time: Box<dyn Fn(u64) + Send + Sync>,
    /// Reads what the robot knows of itself, for roll-outs.
    robot: Box<dyn Fn() -> Robot + Send + Sync>,
    /// Takes the numbers of roll-out files for the floor.
    learn_rollout: Box<dyn Fn(SeenRollout) + Send + Sync>,
    /// The clock that the certificates of servers are checked against.
    pub clock: Arc<CertificateClock>,
    /// A USB drive with a release, if one is plugged in.
    pub usb_release: Arc<UsbRelease>,
    /// The update that the running system has fetched, if it is asked for.
    pub staged: Option<Staged>,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// The black box, if it can be written.
    pub recorder: Option<Recorder>,
    pub journal: Arc<Journal>,
    /// Note of requests that failed, for the network: another card may do better.
    pub outcomes: RequestOutcomes,
    /// Beginning of this boot's recovery, before any death of the process that does it.
    pub began: Instant,
    /// What PID 1 handed over.
    pub handover: Handover,
    /// The pause that is going on before something is tried again.
    pub pause: RefCell<Option<Pause>>,
    /// Keeps loading drivers for what is plugged in later.
    _coldplug: Coldplug,
}

impl Setup {
    pub(super) fn new(
        args: BootArgs,
        over: Layer,
        handover: &Handover,
        journal: &Arc<Journal>,
    ) -> Result<Self, SetupError> {
        // Only a person starts a machine from a medium.
        let given = args.reason.clone().or_else(|| args.media.map(|_| "menu".to_owned()));
        let reason = Reason::parse(given.as_deref());
        let given = given.unwrap_or_else(|| "not given".to_owned());
        let sentence = format!("reflash {}, reason: {given} ({})", env!("CARGO_PKG_VERSION"), reason.description());
        let (coldplug, medium, disk, recorder) = journal.phase(Phase::Init, &sentence, || {
            let coldplug = load_modules(if args.media.is_some() { &["isofs"] } else { &[] }, handover, journal)?;
            let medium = args.media.map(|id| BootMedium::open(id, journal)).transpose()?;
            let disk = RobotDisk::open(&args, medium.as_ref(), handover, journal)?;
            let recorder = worker::within(&WorkPart::State, || {
                open_records(&disk.state, &given, reason, handover.died.is_some(), journal)
            });
            disk.mended.iter().for_each(|what| journal.record(Event::Mended(what)));
            report_deaths(handover, journal);
            Ok::<_, SetupError>((coldplug, medium, disk, recorder))
        })?;
        let MachineSettings { config, keys, identity, record } =
            journal.phase(Phase::Config, "read configuration and keys", || {
                configuration::read(medium.as_ref(), over, &disk.state, journal)
            })?;
        if let Some(limit) = config.stall {
            worker::ask_for_watchdog(limit);
        }
        let recoveries = count_recoveries(&disk.state, recorder.as_ref());
        if reason.blames_environment()
            && let Err(error) = disk.state.boot_env().renew()
        {
            // Reported again before the first write, where it becomes fatal.
            journal.warn(&chain(&error));
        }
        let kept = find_kept(&disk.target, &keys, handover);
        let (floor, standing) = worker::within(&WorkPart::State, || {
            let floor = Floor::open(disk.floor_places.clone());
            if let Some(other) = &disk.other {
                systems::refuse_failed(&disk.state, other.systems, &keys, &floor, journal);
            }
            let kept = back_to_other(&disk, &keys, &floor).map_or(kept, Ok);
            let known = floor.record();
            let standing =
                Standing::find(reason, args.force, &disk.state, record.as_ref(), recorder.as_ref(), &known, kept);
            (floor, standing)
        });
        standing.report(journal);
        worker::within(&WorkPart::State, || settle_floor(&floor, &standing, record.as_ref(), journal));
        let last_manifest = record.as_ref().map(|record| record.manifest().created_unix_s);
        let clock = sources::start_clock(last_manifest, journal);
        let learning = Arc::clone(&clock);
        let floor = Arc::new(floor);
        let is_checked = reason == Reason::Requested && standing.request.is_some_and(RecoveryRequest::is_checked);
        let robot = robot_of(config.ring.clone(), is_checked, &floor, &clock);
        let learn_rollout = note_seen(&floor, journal);
        let search_drives = !handover.leaves_out(&WorkPart::UsbDrives);
        let usb_release = UsbRelease::watch(&disk.name, &config.channel, search_drives, journal);
        let data = disk.data.as_deref();
        let staged = data.and_then(|data| Staged::open(standing.request, data, handover, journal));
        Ok(Self {
            args,
            reason,
            config,
            keys,
            identity,
            disk,
            record,
            floor,
            standing,
            learn_time: Box::new(move |created| learning.learn(created)),
            robot,
            learn_rollout,
            clock,
            usb_release,
            staged,
            outcomes: RequestOutcomes::default(),
            recoveries,
            recorder,
            journal: Arc::clone(journal),
            began: Instant::now().checked_sub(handover.age()).unwrap_or_else(Instant::now),
            handover: handover.clone(),
            pause: RefCell::new(None),
            _coldplug: coldplug,
        })
    }

    /// Opens the sources of the release: the USB drive that is or will be plugged in, what the running system has
    /// fetched, then the configured ones.
    pub(super) fn open_mirrors(&self) -> Result<Mirrors, FetchError> {
        let drive: Box<dyn Source> = Box::new(Arc::clone(&self.usb_release));
        let first = [drive].into_iter().chain(self.staged.as_ref().map(Staged::source)).collect();
        let (clock, handover, outcomes) = (&self.clock, &self.handover, &self.outcomes);
        sources::open_mirrors(&self.config, first, clock, handover, outcomes, &self.journal)
    }

    /// The recovery of this robot. `for_renewal` gives up by itself: for what may be had later.
    pub(super) fn job<'a>(&'a self, mirrors: &'a Mirrors, for_renewal: &'a dyn Source) -> RecoveryJob<'a> {
        let booted = Slot::parse(self.args.slot.as_deref());
        let boot_chain = self.disk.whole.as_ref().map(|disk| BootChain {
            disk,
            table: &self.disk.layout,
            within: &|work| worker::within(&WorkPart::Mending, work),
        });
        let renewal = Renewal { medium: &self.disk.recovery, source: for_renewal, booted };
        let other = self.disk.other.as_ref().map(|other| {
            let OtherDisk { target, state, systems } = other;
            OtherSystem::look(target, state, *systems, Some(Path::new(RECOVERY)), &self.keys, &self.floor)
        });
        // What is gone back to is the other system.
        let keep = if other.is_some_and(|other| other.is_known_to_grub) { Keep::Nothing } else { self.standing.keep() };
        RecoveryJob {
            identity: self.identity.clone(),
            policy: Policy {
                tries: self.config.boot_tries,
                allow_older: self.args.force,
                requested: self.reason.is_requested(),
                recoveries: self.recoveries,
                above: None,
                incomplete: None,
                keep,
                installed: self.standing.installed,
                safe_start: None,
                begun: self.recorder.as_ref().and_then(|recorder| recorder.with(|open| open.cut_short())),
                chunks_alone: false,
                asked_before: false,
                active: System::Unknown,
                two_systems: other.is_some(),
                in_running_system: false,
            },
            resources: Resources {
                brief_source: for_renewal,
                state: Some(&self.disk.state),
                floor: Some(&self.floor),
                other,
                boot_chain: boot_chain.filter(|_| !self.handover.leaves_out(&WorkPart::Mending)),
                renewal: (!self.handover.leaves_out(&WorkPart::Renewal)).then_some(renewal),
                learn_time: &*self.learn_time,
                robot: &*self.robot,
                learn_rollout: &*self.learn_rollout,
                ..Resources::new(&self.keys, mirrors, &self.disk.target)
            },
            journal: &self.journal,
        }
    }

    /// The installed release, if its record is whole.
    pub(super) fn installed(&self) -> Option<IndexedRelease> {
        self.disk.state.index_of(self.record.as_ref()?)
    }

    /// Compares the system with the record of the installed release, and looks again at what is kept on the machine.
    pub(super) fn compare(&self, job: &RecoveryJob<'_>) -> Compared {
        self.standing.look_again(self.find_back());
        self.compare_at_first(job)
    }

    /// Looks for the release that an undo would lead back to: on the other system of two, or behind the image.
    pub(super) fn find_back(&self) -> Result<UndoTarget, UndoObstacle> {
        let kept = || find_kept(&self.disk.target, &self.keys, &self.handover);
        back_to_other(&self.disk, &self.keys, &self.floor).map_or_else(kept, Ok)
    }

    /// Compares the system with the record of the installed release, while nothing was written since this robot was
    /// looked at.
    pub(super) fn compare_at_first(&self, job: &RecoveryJob<'_>) -> Compared {
        let Some(installed) = self.installed() else {
            self.journal.note("no record of an installed release to compare with");
            return Compared::Unknown;
        };
        if self.handover.leaves_out(&WorkPart::Comparison) {
            return Compared::Unknown;
        }
        match worker::within(&WorkPart::Comparison, || recovery::compare(job, &installed)) {
            Ok(proof) => Compared::Intact(proof, Box::new(installed)),
            Err(_) => Compared::Damaged,
        }
    }

    /// Whether it was asked for that the installed release is taken back.
    pub(super) fn undo_is_requested(&self) -> bool {
        matches!(self.standing.request, Some(RecoveryRequest::Undo { .. }))
    }

    /// Everything that a decision depends on. `online` says whether there is a network by now.
    pub(super) fn situation(&self, compared: &Compared, online: bool) -> Situation {
        self.situation_of(compared.system(), online)
    }

    /// The same for a state of the system partition that is known.
    pub(super) fn situation_of(&self, system: System, online: bool) -> Situation {
        Situation {
            reason: self.judged_reason(),
            undo_requested: self.undo_is_requested(),
            system,
            worth: self.standing.worth(),
            kept: self.standing.kept(online),
            safe_starts: self.standing.safe_starts,
            recoveries: self.recoveries,
            budget: self.config.recoveries,
        }
    }

    /// The reason as far as the decision is concerned. Starts that failed while the partition table was damaged say
    /// nothing about the release: the kernel may have found none of its partitions.
    fn judged_reason(&self) -> Reason {
        if self.reason == Reason::Tries && !self.disk.mended.is_empty() { Reason::EnvLost } else { self.reason }
    }

    /// Identity of this machine for reports. Complete only when the network is up: the driver of the card that is part
    /// of it is loaded in the background.
    pub(super) fn reported_machine(&self) -> ReportedMachine {
        let copy = || SiteCopy::read(&self.disk.state).get(site_copy::ASSET).map(|name| name.trim().to_owned());
        let asset = inputs::asset(Path::new(RECOVERY)).or_else(copy);
        ReportedMachine::this(&self.config.product, self.config.hostname.as_deref(), asset.as_deref())
    }

    /// Records in the black box how this attempt ended.
    pub(super) fn finish(&self, outcome: AttemptOutcome) {
        if let Some(recorder) = &self.recorder {
            recorder.finish(outcome);
        }
    }
}

/// The release on the other system of two, where GRUB can be switched to it and it was good.
fn back_to_other(disk: &RobotDisk, keys: &TrustedKeys, floor: &Floor) -> Option<UndoTarget> {
    let other = disk.other.as_ref().filter(|_| scripts_know_two(Path::new(RECOVERY)))?;
    other::possible(&other.state, keys, floor).ok()
}

/// The system partition, compared with the record of the installed release.
pub(super) enum Compared {
    /// There is no whole record, or the comparison was skipped.
    Unknown,
    /// Every byte is right, with the proof.
    Intact(Verified, Box<IndexedRelease>),
    /// Something differs.
    Damaged,
}

impl Compared {
    pub(super) fn system(&self) -> System {
        match self {
            Self::Unknown => System::Unknown,
            Self::Intact(..) => System::Intact,
            Self::Damaged => System::Damaged,
        }
    }
}

/// What this robot knows of itself. Facts can only be asked for by the running system, which has done so before it had
/// this recovery begin.
fn robot_of(
    ring: Option<String>,
    is_checked: bool,
    floor: &Arc<Floor>,
    clock: &Arc<CertificateClock>,
) -> Box<dyn Fn() -> Robot + Send + Sync> {
    let (floor, clock) = (Arc::clone(floor), Arc::clone(clock));
    Box::new(move || {
        let facts = if is_checked { Facts::CheckedBefore } else { Facts::Unknown };
        robot::this(ring.as_deref(), floor.record().identity, clock.known_time(), facts)
    })
}

/// Notes the numbers of roll-out files beside the floor, at once: a mirror that lags behind may be asked next.
fn note_seen(floor: &Arc<Floor>, journal: &Arc<Journal>) -> Box<dyn Fn(SeenRollout) + Send + Sync> {
    let (floor, journal) = (Arc::clone(floor), Arc::clone(journal));
    Box::new(move |seen| {
        let change = worker::within(&WorkPart::State, || floor.note_seen(seen));
        change.failed.iter().for_each(|error| journal.warn(&chain(error)));
    })
}

/// Mends the copies of the floor. An installed release of which only older programs wrote that it was good raises it
/// here. The refusal of a release that was asked for by its serial is lifted.
fn settle_floor(floor: &Floor, standing: &Standing, record: Option<&InstalledRecord>, journal: &Journal) {
    let before = floor.record().serial;
    let good = record.filter(|_| standing.worth() == Worth::Before).and_then(InstalledRecord::as_good);
    if let Some(FloorChange { changed: true, .. }) = good.map(|good| floor.note_good(good))
        && floor.record().serial > before
    {
        journal.note(&format!("nothing older than serial {} is installed from now on", floor.record().serial));
    }
    let failed = match standing.request {
        Some(RecoveryRequest::Release(serial)) => floor.lift(serial).failed,
        _ => Vec::new(),
    };
    failed.iter().chain(&floor.mend().failed).for_each(|error| journal.warn(&chain(error)));
}

/// Opens the event log and the black box. A machine without them recovers all the same.
fn open_records(
    state: &StatePartition,
    given: &str,
    reason: Reason,
    resumed: bool,
    journal: &Journal,
) -> Option<Recorder> {
    match state.open_events() {
        Ok(events) => journal.open_events(Box::new(events)),
        Err(error) => journal.warn(&format!("no event log: {error}")),
    }
    match BlackBox::open(&state.blackbox_path()) {
        Ok(open) => Some(Recorder::begin(open, given, reason.is_requested(), resumed, journal)),
        Err(error) => {
            journal.warn(&format!("no black box: {error}"));
            None
        }
    }
}

/// Records how the process before this one ended, which PID 1 has shown, and reports what is left out for that reason.
pub(super) fn report_deaths(handover: &Handover, journal: &Journal) {
    if let Some(died) = &handover.died {
        journal.record(Event::Warning(&format!("the process before this one died: {died}")));
    }
    for part in &handover.left_out {
        journal.warn(&format!("left out, since the recovery died of it before: {part}"));
    }
}

/// Reads the count of automatic recoveries from the environment and from the black box.
fn count_recoveries(state: &StatePartition, recorder: Option<&Recorder>) -> Recoveries {
    let recorded = recorder.map(|recorder| recorder.with(|open| open.recoveries())).unwrap_or_default();
    state.boot_env().recoveries().unwrap_or_default().or_recorded(recorded)
}
