//! Asks several sources at the same time for the same small objects, within a time.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::error::FetchError;
use super::health::Health;
use super::{Check, Source};
use crate::sys::thread::background;

/// One source's answer to a survey.
#[derive(Debug)]
pub struct Surveyed {
    /// The name of the source on the console.
    pub source: String,
    /// The objects, which nothing has looked at, or why they did not come.
    pub result: Result<Vec<Vec<u8>>, FetchError>,
}

/// Asks each of these sources once, and waits at most this long. One that takes longer is left to itself: its thread
/// ends with its timeouts.
pub(super) fn survey(
    sources: &Arc<[Box<dyn Source>]>,
    health: &Arc<Health>,
    asked: &[usize],
    wanted: &[(&str, u64)],
    patience: Duration,
) -> Vec<Surveyed> {
    let wanted: Arc<[(String, u64)]> = wanted.iter().map(|(path, limit)| ((*path).to_owned(), *limit)).collect();
    let (sender, answers) = channel();
    for &index in asked {
        let (sources, health, wanted, sender) =
            (Arc::clone(sources), Arc::clone(health), Arc::clone(&wanted), sender.clone());
        let work = move || {
            let result = ask(&*sources[index], &health, index, &wanted);
            let _ = sender.send(Surveyed { source: sources[index].describe(), result });
        };
        // Without another thread there is one opinion fewer.
        let _ = background("survey", work);
    }
    drop(sender);
    let end = Instant::now() + patience;
    let mut surveyed = Vec::new();
    while let Ok(answer) = answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
        surveyed.push(answer);
    }
    surveyed
}

fn ask(
    source: &dyn Source,
    health: &Health,
    index: usize,
    wanted: &[(String, u64)],
) -> Result<Vec<Vec<u8>>, FetchError> {
    let wanted: Vec<(&str, u64)> = wanted.iter().map(|(path, limit)| (path.as_str(), *limit)).collect();
    let visit = health.enter_now(index)?;
    let take_all: Check<'_> = &mut |_| Ok(());
    let result = source.get_checked(&wanted, take_all);
    match &result {
        Ok(_) => visit.went_well(),
        Err(error) => drop(visit.failed(wanted.first().map_or("", |(path, _)| path), error)),
    }
    result
}
