//! What is kept, as a source of chunks: the partition itself stands for a pack.

use std::ops::Range;
use std::time::Duration;

use super::area;
use crate::fetch::{Check, FetchError, FetchErrorKind, Sink, SinkError, Source, Surveyed};
use crate::flash::target::BlockTarget;
use crate::release::digest::Digest;
use crate::release::index::Pack;
use crate::release::manifest::object_path;

/// Bytes that are read and handed on at a time.
const PIECE_BYTES: u32 = 256 * 1024;

/// Returns the pack that stands for a partition. Its offsets are those of the partition. Its digest is that of these
/// words, so that no pack of a release can have it.
pub(super) fn pack_of(target: &dyn BlockTarget) -> Pack {
    Pack { digest: Digest::of(b"reflash: what is kept on the partition itself"), size_bytes: target.size_bytes() }
}

/// A source that reads what is kept from the partition, and asks another one for the rest.
pub(crate) struct KeptSource<'a> {
    target: &'a dyn BlockTarget,
    other: &'a dyn Source,
    path: String,
}

impl<'a> KeptSource<'a> {
    /// A source over this partition.
    pub(crate) fn new(target: &'a dyn BlockTarget, other: &'a dyn Source) -> Self {
        Self { target, other, path: object_path(&pack_of(target).digest) }
    }

    fn read(&self, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let name = || format!("{}, byte {}", self.target.name(), range.start);
        for start in range.clone().step_by(PIECE_BYTES as usize) {
            let length = u64::from(PIECE_BYTES).min(range.end - start);
            let bytes = area::read_bytes(self.target, start, length).map_err(|cause| {
                FetchError::new(FetchErrorKind::Broken, &name(), "what is kept cannot be read").because(cause)
            })?;
            sink(&bytes).map_err(|error| match error {
                SinkError::Local(cause) => {
                    FetchError::new(FetchErrorKind::Local, &name(), "the bytes could not be taken").because(cause)
                }
                SinkError::Wrong { .. } => FetchError::new(FetchErrorKind::Corrupt, &name(), error.to_string()),
            })?;
        }
        Ok(())
    }
}

impl Source for KeptSource<'_> {
    fn describe(&self) -> String {
        self.other.describe()
    }

    fn is_there(&self) -> bool {
        self.other.is_there()
    }

    fn is_chosen(&self) -> bool {
        self.other.is_chosen()
    }

    fn survey_others(&self, wanted: &[(&str, u64)], patience: Duration) -> Vec<Surveyed> {
        self.other.survey_others(wanted, patience)
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        self.other.get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        if path == self.path { self.read(range, sink) } else { self.other.get_range(path, range, sink) }
    }
}

/// The source of an undo without a network: it has nothing.
pub(crate) struct Nowhere;

impl Nowhere {
    fn missing(path: &str) -> FetchError {
        FetchError::new(FetchErrorKind::Missing, path, "this is not kept on the machine, and no network is used")
    }
}

impl Source for Nowhere {
    fn describe(&self) -> String {
        "what is kept on the machine".to_owned()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], _check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        Err(Self::missing(wanted.first().map_or("", |(path, _)| path)))
    }

    fn get_range(&self, path: &str, _range: Range<u64>, _sink: Sink<'_>) -> Result<(), FetchError> {
        Err(Self::missing(path))
    }
}
