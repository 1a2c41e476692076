//! The drill: everything that a recovery does but write, within a stated time, and then the system again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::ending::NextState;
use super::error::SetupError;
use super::online::Online;
use super::setup::Setup;
use super::sources;
use crate::boot::env::BootEnv;
use crate::chain::chain;
use crate::fetch::{RetryPolicy, Source};
use crate::jobs::drill::{self, DrillRequest};
use crate::jobs::recovery;
use crate::pid1::background::background;
use crate::pid1::worker;
use crate::record::blackbox::drill::UNDO;
use crate::record::blackbox::{AttemptOutcome, DrillCheck, DrillRecord, Recorder};
use crate::record::journal::Journal;
use crate::sys::thread::lock;

/// Time beyond `boot.drill_s` after which PID 1 restarts the machine, whatever keeps this process from doing so.
const GRACE_S: u64 = 60;

/// The checks so far, for whatever ends the drill.
#[derive(Clone)]
struct Findings {
    checks: Arc<Mutex<Vec<DrillCheck>>>,
    is_over: Arc<AtomicBool>,
    env: BootEnv,
    recorder: Option<Recorder>,
    journal: Arc<Journal>,
}

/// Carries out the drill that the running system asked for, if it did. `None` when this recovery has another reason.
pub(super) fn run(setup: &Setup) -> Option<NextState> {
    let env = setup.disk.state.boot_env();
    let findings = Findings {
        checks: Arc::default(),
        is_over: Arc::default(),
        env: env.clone(),
        recorder: setup.recorder.clone(),
        journal: Arc::clone(&setup.journal),
    };
    let variables = env.load_or_empty().unwrap_or_default();
    match drill::requested(&variables, setup.reason, setup.handover.died.is_some()) {
        DrillRequest::None => return None,
        DrillRequest::LeftOver => {
            findings.forget_request();
            return None;
        }
        DrillRequest::Died => {
            findings.add(DrillCheck::new("start", false, "the process that carried out the drill died"));
            return Some(findings.end());
        }
        DrillRequest::Asked => {}
    }
    let limit_s = setup.config.drill.as_secs();
    setup.journal.note(&format!("a drill: nothing is written, and the system starts again within {limit_s} s"));
    worker::restart_after(limit_s + GRACE_S);
    if let Err(error) = drill::begin(&env) {
        // Without it a death in the middle would be taken for the beginning of a recovery.
        return Some(NextState::Reboot(format!("no drill: {}", chain(&error))));
    }
    findings.record(DrillRecord::default());
    watch_time(&findings, setup);
    // A quarter of the time is left for the last check that runs, and for reports.
    let until = setup.began + setup.config.drill * 3 / 4;
    let online = rehearse(setup, &findings, until).unwrap_or_else(|error| {
        findings.add(DrillCheck::new("network", false, &chain(&error)));
        None
    });
    findings.add(match setup.find_back() {
        Ok(target) => match target.obstacle() {
            None => DrillCheck::new(UNDO, true, &format!("back to {} (serial {})", target.version, target.serial)),
            Some(obstacle) => DrillCheck::new(UNDO, false, &chain(&obstacle)),
        },
        Err(obstacle) => DrillCheck::new(UNDO, false, &chain(&obstacle)),
    });
    let next = findings.end();
    if let Some(online) = online {
        online.close();
    }
    Some(next)
}

/// Brings the network up and tries what a recovery does before it writes.
fn rehearse<'a>(setup: &'a Setup, findings: &Findings, until: Instant) -> Result<Option<Online<'a>>, SetupError> {
    let online = go_online(setup, findings, until)?;
    if online.is_some() {
        let mirrors = setup.open_mirrors()?.with_retry_policy(RetryPolicy::Until(until));
        // The renewal of the recovery, which has a source of its own, is no part of a drill.
        let mut job = setup.job(&mirrors, &mirrors);
        job.resources.learn_rollout = &|_| {};
        recovery::rehearse(&job, setup.record.as_ref(), |check| findings.add(check));
    }
    Ok(online)
}

/// Brings the network up, unless the release is at hand.
fn go_online<'a>(setup: &'a Setup, findings: &Findings, until: Instant) -> Result<Option<Online<'a>>, SetupError> {
    if sources::are_at_hand(&setup.config, &setup.journal) {
        return Ok(Some(Online::without_network(setup)));
    }
    let online = Online::bring_up(setup, Some(until))?;
    let found = match &online {
        Some(_) if setup.usb_release.is_there() => "a USB drive has a release",
        Some(_) => "the network is up",
        None => "no network came up",
    };
    findings.add(DrillCheck::new("network", online.is_some(), found));
    Ok(online)
}

/// Ends the drill when its time is over.
fn watch_time(findings: &Findings, setup: &Setup) {
    let (findings, limit, began) = (findings.clone(), setup.config.drill, setup.began);
    background(&setup.journal, "drill", move || {
        std::thread::sleep(limit.saturating_sub(began.elapsed()));
        let found = format!("the drill did not end within {} s", limit.as_secs());
        if !findings.is_over.load(Ordering::Relaxed) {
            findings.add(DrillCheck::new("time", false, &found));
            findings.end();
        }
        worker::restart();
    });
}

impl Findings {
    fn add(&self, check: DrillCheck) {
        let sentence = format!("drill: {check}");
        if check.passed || check.name == UNDO {
            self.journal.note(&sentence)
        } else {
            self.journal.warn(&sentence)
        }
        lock(&self.checks).push(check);
        self.record(DrillRecord::unfinished(lock(&self.checks).clone()));
    }

    /// Removes the request. Left over, it means nothing to a recovery that has another reason.
    fn forget_request(&self) {
        if let Err(error) = drill::end(&self.env) {
            self.journal.warn(&chain(&error));
        }
    }

    fn record(&self, record: DrillRecord) {
        if let Some(recorder) = &self.recorder {
            recorder.drill(record);
        }
    }

    /// Records the result, and lets the system start as it would have without the drill.
    fn end(&self) -> NextState {
        let record = DrillRecord::of(lock(&self.checks).clone());
        let sentence = record.to_string();
        self.record(record);
        if let Some(recorder) = &self.recorder {
            recorder.finish(AttemptOutcome::Started);
        }
        self.is_over.store(true, Ordering::Relaxed);
        self.forget_request();
        worker::done();
        NextState::Reboot(format!("{sentence}: starting the system"))
    }
}
