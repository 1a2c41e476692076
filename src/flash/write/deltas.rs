//! Fetches deltas, and makes chunks with them.

use super::error::WriteError;
use crate::fetch::{FetchErrorKind, SinkError, Source};
use crate::flash::plan::{DeltaRequest, Plan};
use crate::record::progress::Done;
use crate::release::add_copy;
use crate::release::deltas::{self, Deltas, short_digest};
use crate::release::index::{ChunkNo, Index};
use crate::release::manifest::object_path;

/// The deltas of a plan, in memory: a delta that came in the middle of the work would hold up all that is written after
/// it. There is a bound for all together.
#[derive(Default)]
pub(super) struct HeldDeltas(Vec<(u32, Vec<u8>)>);

impl HeldDeltas {
    /// Fetches what the plan needs, each checked by its digest before anything else looks at it. Nothing is written
    /// yet, so that a network that fails here costs nothing.
    ///
    /// What came wrong is fetched once more by itself, so that the source knows which of its copies is damaged. A delta
    /// that is wrong everywhere is left out: its chunks are fetched whole.
    pub(super) fn fetch(plan: &Plan, source: &dyn Source, done: &Done) -> Result<Self, WriteError> {
        let (mut held, from) = (Self::default(), Origin { source, done });
        let Some(fitting) = &plan.deltas else { return Ok(held) };
        for request in &plan.delta_requests {
            for number in held.receive(from, fitting.table(), request, OnWrong::GoOn)? {
                let range = fitting.table().place(number);
                let alone = DeltaRequest { range, deltas: vec![number] };
                held.receive(from, fitting.table(), &alone, OnWrong::Refuse)?;
            }
        }
        held.0.sort_unstable_by_key(|(number, _)| *number);
        Ok(held)
    }

    /// Receives the deltas of one request. Returns those that came wrong or did not come.
    fn receive(
        &mut self,
        from: Origin<'_>,
        table: &Deltas,
        request: &DeltaRequest,
        on_wrong: OnWrong,
    ) -> Result<Vec<u32>, WriteError> {
        let (pack, range) = (table.pack().digest, request.range.clone());
        let mut receiver = Receiver {
            table,
            on_wrong,
            rest: &request.deltas,
            position: range.start,
            bytes: Vec::new(),
            held: &mut self.0,
            wrong: Vec::new(),
        };
        let fetched = from.source.get_range(&object_path(&pack), range.clone(), &mut |bytes| {
            from.done.network(bytes.len() as u64);
            receiver.take(bytes)
        });
        let missing = receiver.wrong.iter().chain(receiver.rest).copied().collect();
        match fetched {
            Err(error) if error.kind() != FetchErrorKind::Corrupt => {
                Err(WriteError::Fetch { pack, start: range.start, end: range.end, source: error })
            }
            _ => Ok(missing),
        }
    }

    fn get(&self, number: u32) -> Option<&[u8]> {
        let at = self.0.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(&self.0[at].1)
    }

    /// Fills `content` with what a delta makes of `old`. Returns whether that could be done.
    pub(super) fn make(&self, number: u32, old: &[u8], content: &mut [u8]) -> bool {
        let difference = self.get(number).and_then(|delta| deltas::open(delta, content.len()).ok());
        difference.is_some_and(|difference| add_copy::apply(old, &difference, content).is_ok())
    }
}

/// Where the chunks of a delta lie in the content that it makes.
pub(super) fn places<'a>(
    index: &'a Index,
    made: &'a [ChunkNo],
) -> impl Iterator<Item = (ChunkNo, std::ops::Range<usize>)> + 'a {
    made.iter().scan(0, |end, chunk| {
        let start = *end;
        *end += index.chunk_len(*chunk);
        Some((*chunk, start..*end))
    })
}

/// Where deltas come from.
#[derive(Clone, Copy)]
struct Origin<'a> {
    source: &'a dyn Source,
    /// Counter of the bytes that came.
    done: &'a Done,
}

/// What happens when a delta does not have its digest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnWrong {
    /// The others are taken all the same.
    GoOn,
    /// The source is told, and asks another copy.
    Refuse,
}

/// Cuts the bytes of a request into its deltas.
struct Receiver<'a, 'h> {
    table: &'a Deltas,
    on_wrong: OnWrong,
    /// Deltas that have not come yet.
    rest: &'a [u32],
    /// Offset in the pack of the next byte.
    position: u64,
    /// The bytes of the first of them so far.
    bytes: Vec<u8>,
    held: &'h mut Vec<(u32, Vec<u8>)>,
    wrong: Vec<u32>,
}

impl Receiver<'_, '_> {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), SinkError> {
        while let Some((number, after)) = self.rest.split_first() {
            let place = self.table.place(*number);
            let gap = usize::try_from(place.start.saturating_sub(self.position)).unwrap_or(usize::MAX).min(bytes.len());
            let length = self.table.get(*number).length as usize;
            let wanted = (length - self.bytes.len()).min(bytes.len() - gap);
            self.bytes.extend_from_slice(&bytes[gap..gap + wanted]);
            self.position += (gap + wanted) as u64;
            bytes = &bytes[gap + wanted..];
            if self.bytes.len() < length {
                return Ok(());
            }
            let delta = std::mem::take(&mut self.bytes);
            let (found, expected) = (short_digest(&delta), self.table.get(*number).digest);
            if found == expected {
                self.held.push((*number, delta));
            } else if self.on_wrong == OnWrong::Refuse {
                self.position = place.start;
                let reason = format!("delta {number} has a digest that begins with {found:02x?}, not {expected:02x?}");
                return Err(SinkError::Wrong { from: place.start, reason });
            } else {
                self.wrong.push(*number);
            }
            self.rest = after;
        }
        Ok(())
    }
}
