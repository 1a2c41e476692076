//! What the worker, in which everything hostile is read, says to PID 1: a line a report, and a death now and then.

use std::time::Duration;

use reflash::pid1::link::{Handover, WorkerReport};
use reflash::pid1::supervisor::deaths::{AfterDeath, Deaths, WorkerLife};
use reflash::sys::process::ProcessEnding;

/// The input is lines; an empty one is a death.
pub fn run(data: &[u8]) {
    let (mut deaths, mut life) = (Deaths::default(), WorkerLife::default());
    for line in data.split(|byte| *byte == b'\n') {
        if !line.is_empty() {
            let Some(report) = WorkerReport::parse(line) else { continue };
            let again = report.to_line();
            assert_eq!(again.matches('\n').count(), 1, "{again:?}");
            assert_eq!(WorkerReport::parse(again.trim_end().as_bytes()).as_ref(), Some(&report));
            life.take(report);
            continue;
        }
        let ending = ProcessEnding::Exited(1);
        assert!(!life.obituary(&ending).is_empty());
        match deaths.add(&life, &ending, Duration::from_secs(1)) {
            AfterDeath::StartAgain { pause } => assert!(!pause.is_zero() && pause <= Duration::from_secs(30)),
            AfterDeath::RestartMachine => return,
        }
        life = WorkerLife::default();
        let handover = Handover { age_ms: 1, died: None, left_out: deaths.left_out().to_vec() };
        let text = serde_json::to_string(&handover).unwrap();
        assert_eq!(serde_json::from_str::<Handover>(&text).unwrap(), handover);
    }
}
