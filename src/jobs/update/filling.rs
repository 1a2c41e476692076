//! A source that fills the store: what is there is taken from it, and what comes from a server is kept.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use super::error::UpdateError;
use super::store::UpdateStore;
use crate::chain::chain;
use crate::fetch::{Check, FetchError, FetchErrorKind, Sink, SinkError, Source, Surveyed};
use crate::release::manifest::OBJECTS_PATH;
use crate::sys::thread::lock;

/// The path of an object, and the bytes of it that were asked for.
type PartOfObject = (String, Range<u64>);

/// The store in front of the servers.
pub(super) struct Filling<'a> {
    store: &'a UpdateStore,
    network: &'a dyn Source,
    /// Small objects that were asked for, each with its size: a recovery asks for them again.
    small: Mutex<Vec<(String, Range<u64>)>>,
    /// Parts of objects that were asked for while room was made for them.
    ranges: Mutex<Option<Vec<PartOfObject>>>,
    /// The first failure of the store: what a transfer makes of it says less.
    failure: Mutex<Option<UpdateError>>,
}

impl<'a> Filling<'a> {
    pub(super) fn new(store: &'a UpdateStore, network: &'a dyn Source) -> Self {
        Self { store, network, small: Mutex::default(), ranges: Mutex::default(), failure: Mutex::default() }
    }

    /// Small objects that were asked for so far.
    pub(super) fn asked_for(&self) -> Vec<(String, Range<u64>)> {
        lock(&self.small).clone()
    }

    /// Forgets which small objects were asked for: another plan asks for others.
    pub(super) fn forget_asked(&self) {
        lock(&self.small).clear();
    }

    /// Makes room for parts of objects that are asked for from now on: before it is known what is needed, they are of
    /// the chunk index.
    pub(super) fn make_room_for_ranges(&self) {
        *lock(&self.ranges) = Some(Vec::new());
    }

    /// Ends that, and returns what was asked for and came.
    pub(super) fn take_ranges(&self) -> Vec<(String, Range<u64>)> {
        lock(&self.ranges).take().unwrap_or_default()
    }

    /// The failure of the store, if it had one.
    pub(super) fn take_failure(&self) -> Option<UpdateError> {
        lock(&self.failure).take()
    }

    /// Keeps a failure of the store, and returns its text for the transfer.
    fn failed(&self, error: UpdateError) -> String {
        let text = chain(&error);
        lock(&self.failure).get_or_insert(error);
        text
    }

    /// Hands on what the store has from `at` on. Returns up to where, and whether the sink refused some of it.
    fn give_stored(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(u64, bool), FetchError> {
        let (mut at, mut refused) = (range.start, false);
        let end = self.store.place(path, at).map_or(at, |(_, end)| end.min(range.end));
        let sent = self.store.get_range(path, at..end, &mut |part| match sink(part) {
            Ok(()) => {
                at += part.len() as u64;
                Ok(())
            }
            Err(SinkError::Wrong { from, reason }) => {
                (at, refused) = (from, true);
                Err(SinkError::Wrong { from, reason })
            }
            Err(local) => Err(local),
        });
        match sent {
            // A disk that cannot read it is no reason not to fetch it.
            Err(error) if error.kind() == FetchErrorKind::Local => Err(error),
            Err(_) => Ok((at, true)),
            Ok(()) => Ok((at, refused)),
        }
    }

    /// Fetches a part and keeps it. Returns up to where it was taken: further back where the sink refused what the
    /// store had given before.
    fn fetch_and_keep(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<u64, FetchError> {
        let (mut at, mut back) = (range.start, None);
        let fetched = self.network.get_range(path, range.clone(), &mut |part| {
            self.store.record(path, at, part).map_err(|error| SinkError::Local(self.failed(error).into()))?;
            match sink(part) {
                Ok(()) => at += part.len() as u64,
                Err(SinkError::Wrong { from, .. }) if from < range.start => {
                    back = Some(from);
                    return Err(SinkError::Local("a part that the store gave is wrong".into()));
                }
                Err(SinkError::Wrong { from, reason }) => {
                    at = from;
                    return Err(SinkError::Wrong { from, reason });
                }
                Err(local) => return Err(local),
            }
            Ok(())
        });
        match (fetched, back) {
            (_, Some(back)) => Ok(back),
            (fetched, None) => fetched.map(|()| range.end),
        }
    }
}

impl Source for Filling<'_> {
    fn describe(&self) -> String {
        self.network.describe()
    }

    fn is_there(&self) -> bool {
        self.network.is_there()
    }

    fn survey_others(&self, wanted: &[(&str, u64)], patience: Duration) -> Vec<Surveyed> {
        self.network.survey_others(wanted, patience)
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let stored = self.store.get_checked(wanted, check).ok();
        let is_new = stored.is_none();
        let found = stored.map_or_else(|| self.network.get_checked(wanted, check), Ok)?;
        for ((path, _), content) in wanted.iter().zip(&found).filter(|((path, _), _)| path.starts_with(OBJECTS_PATH)) {
            lock(&self.small).push(((*path).to_owned(), 0..content.len() as u64));
            if is_new {
                let stored = self.store.put(path, content);
                stored.map_err(|error| FetchError::new(FetchErrorKind::Local, path, self.failed(error)))?;
            }
        }
        Ok(found)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let is_new = lock(&self.ranges).is_some();
        if is_new {
            let room = self.store.make_room(path, range.clone());
            room.map_err(|error| FetchError::new(FetchErrorKind::Local, path, self.failed(error)))?;
        }
        // From a refusal on, nothing of this range is taken from the store any more.
        let (mut at, mut distrusted) = (range.start, false);
        while at < range.end {
            if !distrusted && self.store.place(path, at).is_some() {
                (at, distrusted) = self.give_stored(path, at..range.end, sink)?;
                continue;
            }
            let next = self.store.next(path, at).filter(|next| !distrusted && *next > at);
            let end = next.unwrap_or(range.end).min(range.end);
            let reached = self.fetch_and_keep(path, at..end, sink)?;
            distrusted |= reached < end;
            at = reached;
        }
        // What could not be had is not asked for again.
        if let Some(ranges) = lock(&self.ranges).as_mut() {
            ranges.push((path.to_owned(), range));
        }
        Ok(())
    }
}
