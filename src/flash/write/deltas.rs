//! Fetches deltas, and makes chunks with them.

use super::error::WriteError;
use crate::fetch::pieces::{Cutter, PieceRefusal};
use crate::fetch::{FetchErrorKind, Source};
use crate::flash::plan::{NumberedRequest, Plan};
use crate::record::progress::Done;
use crate::release::add_copy;
use crate::release::deltas::{self, Deltas};
use crate::release::digest::Digest;
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
    /// that is wrong everywhere is left out, and so are all if their pack is nowhere: their chunks are fetched whole.
    pub(super) fn fetch(plan: &Plan, source: &dyn Source, done: &Done) -> Result<Self, WriteError> {
        let (mut held, from) = (Self::default(), Origin { source, done });
        let Some(fitting) = &plan.deltas else { return Ok(held) };
        for request in &plan.delta_requests {
            for number in held.receive(from, fitting.table(), request, OnWrong::GoOn)? {
                let range = fitting.table().place(number);
                let alone = NumberedRequest { pack: request.pack, range, numbers: vec![number] };
                held.receive(from, fitting.table(), &alone, OnWrong::Refuse)?;
            }
        }
        held.0.sort_unstable_by_key(|(number, _)| *number);
        Ok(held)
    }

    /// Receives the deltas of one request. Returns those that came wrong or did not come, and may be asked for again.
    fn receive(
        &mut self,
        from: Origin<'_>,
        table: &Deltas,
        request: &NumberedRequest,
        on_wrong: OnWrong,
    ) -> Result<Vec<u32>, WriteError> {
        let NumberedRequest { pack, range, numbers } = request;
        let places = numbers.iter().map(|number| table.place(*number)).collect();
        let (mut cutter, mut wrong) = (Cutter::new(range.start, places), Vec::new());
        let fetched = from.source.get_range(&object_path(pack), range.clone(), &mut |bytes| {
            from.done.network(bytes.len() as u64);
            cutter.take(bytes, |which, delta| {
                let number = numbers[which];
                let (found, expected) = (Digest::of(&delta).half(), table.get(number).digest);
                if found == expected {
                    self.0.push((number, delta));
                } else if on_wrong == OnWrong::Refuse {
                    let reason =
                        format!("delta {number} has a digest that begins with {found:02x?}, not {expected:02x?}");
                    return Err(PieceRefusal::Wrong(reason));
                } else {
                    wrong.push(number);
                }
                Ok(())
            })
        });
        wrong.extend_from_slice(&numbers[cutter.taken()..]);
        match fetched {
            Err(error) if error.kind() == FetchErrorKind::Corrupt => Ok(wrong),
            // What is nowhere need not be asked for one by one.
            Err(error) if error.is_of_the_object() => Ok(Vec::new()),
            Err(error) => Err(WriteError::Fetch { pack: *pack, start: range.start, end: range.end, source: error }),
            Ok(()) => Ok(wrong),
        }
    }

    /// Whether all that a plan wanted are there.
    pub(super) fn are_all(&self, plan: &Plan) -> bool {
        self.0.len() == plan.delta_requests.iter().map(|request| request.numbers.len()).sum::<usize>()
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
