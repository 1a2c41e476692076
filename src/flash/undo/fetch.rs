//! Fetches chunks that the partition has lost from the packs of a release, to keep them beside the others.

use std::io;
use std::ops::Range;

use crate::fetch::{FetchErrorKind, SinkError, Source};
use crate::flash::frames;
use crate::flash::plan::{ChunkPlaces, Request, coalesce};
use crate::flash::write::content::decode;
use crate::release::frames::FrameDigests;
use crate::release::index::{Index, StoredChunkNo};
use crate::release::manifest::{FrameObjects, object_path};

/// A network that may have what a partition has lost of the release that is kept on it.
#[derive(Clone, Copy)]
pub(crate) struct ChunkSource<'a> {
    /// Source of the packs. It must give up by itself.
    pub(crate) source: &'a dyn Source,
    /// Index of the release that is being installed, whose packs are there for certain.
    pub(crate) offered: Option<&'a Index>,
    /// Digests of the frames of that release, and of the one that is kept.
    pub(crate) frames: [Option<FrameObjects>; 2],
    /// The most compressed bytes that are fetched.
    pub(crate) limit_bytes: u64,
}

/// The number of a stored chunk in the release that it is fetched from, and in the release that is kept.
type Pair = (StoredChunkNo, StoredChunkNo);

impl ChunkSource<'_> {
    /// Fetches stored chunks of `kept` and hands each frame to `take` once it was checked. Chunks that no source has
    /// are left out. The packs of the release that is being installed are asked first: those of an older release may
    /// have been removed from the server.
    ///
    /// # Errors
    /// The error of `take`. That of a source costs only the chunks that it should have brought.
    pub(super) fn fetch<E>(
        &self,
        kept: &Index,
        missing: &[StoredChunkNo],
        mut take: impl FnMut(StoredChunkNo, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Ok(mut checker) = Checker::new(kept) else { return Ok(()) };
        let mut left_bytes = self.limit_bytes;
        let [of_offered, of_kept] = self.frames;
        let offered = self.offered.map(|offered| (offered, pairs(kept, offered, missing), of_offered));
        let own = (kept, missing.iter().map(|stored| (*stored, *stored)).collect::<Vec<Pair>>(), of_kept);
        let mut done: Vec<StoredChunkNo> = Vec::new();
        for (index, pairs, objects) in offered.into_iter().chain([own]) {
            done.sort_unstable();
            let mut pairs = pairs;
            pairs.retain(|(_, stored)| done.binary_search(stored).is_err());
            pairs.sort_unstable();
            let kept_of = |theirs: StoredChunkNo| {
                let at = pairs.binary_search_by_key(&theirs, |(theirs, _)| *theirs).ok()?;
                Some(pairs[at].1)
            };
            let theirs: Vec<StoredChunkNo> = pairs.iter().map(|(theirs, _)| *theirs).collect();
            let mut digests = FrameDigests::new(objects, index);
            // They are checked after decompression in any case.
            let _ = frames::learn(&mut digests, self.source, theirs.iter().copied());
            let mut gone_pack = None;
            for request in coalesce(ChunkPlaces::of(index), &theirs) {
                let length = request.range.end - request.range.start;
                if Some(request.pack) == gone_pack || length > left_bytes {
                    continue;
                }
                left_bytes -= length;
                let fetched = self.request(index, &request, |theirs, frame| {
                    digests.allows(theirs, frame)
                        && kept_of(theirs).is_some_and(|stored| checker.is_right(stored, frame))
                });
                for (theirs, frame) in &fetched.frames {
                    let Some(stored) = kept_of(*theirs) else { continue };
                    take(stored, frame)?;
                    done.push(stored);
                }
                match fetched.end {
                    End::Whole => {}
                    End::PackGone => gone_pack = Some(request.pack),
                    End::NoSource => break,
                }
            }
        }
        Ok(())
    }

    /// Fetches the chunks of one request, and passes over those that are wrong in every copy.
    fn request(
        &self,
        index: &Index,
        request: &Request,
        mut is_right: impl FnMut(StoredChunkNo, &[u8]) -> bool,
    ) -> Fetched {
        let path = object_path(&index.packs()[request.pack as usize].digest);
        let mut frames = Vec::with_capacity(request.stored.len());
        let mut next = 0;
        while let Some(first) = request.stored.get(next) {
            let start = index.location(*first).range.start;
            let (mut received, mut base, begun) = (Vec::new(), start, next);
            let mut sink = |part: &[u8]| {
                received.extend_from_slice(part);
                while let Some(stored) = request.stored.get(next) {
                    let Range { start: from, end } = index.location(*stored).range;
                    if base + (received.len() as u64) < end {
                        break;
                    }
                    let (begin, stop) = (offset(from - base), offset(end - base));
                    let Some(frame) = received.get(begin..stop) else { break };
                    if !is_right(*stored, frame) {
                        (received, base) = (Vec::new(), from);
                        return Err(SinkError::Wrong { from, reason: "it is not the chunk of the release".to_owned() });
                    }
                    frames.push((*stored, frame.to_vec()));
                    received.drain(..stop);
                    (base, next) = (end, next + 1);
                }
                Ok(())
            };
            match self.source.get_range(&path, start..request.range.end, &mut sink).map_err(|error| error.kind()) {
                // Another chunk than the first one that is missing may be right.
                Err(FetchErrorKind::Corrupt) => next += 1,
                Ok(()) if next == begun => next += 1,
                Ok(()) => {}
                Err(FetchErrorKind::Missing) => return Fetched { frames, end: End::PackGone },
                Err(_) => return Fetched { frames, end: End::NoSource },
            }
        }
        Fetched { frames, end: End::Whole }
    }
}

/// Frames that a request brought.
struct Fetched {
    frames: Vec<(StoredChunkNo, Vec<u8>)>,
    end: End,
}

/// Outcome of a request as far as the next one depends on it.
enum End {
    /// All that can be had was received.
    Whole,
    /// No source has the pack.
    PackGone,
    /// No source answers.
    NoSource,
}

/// Checks frames as the writer would.
struct Checker<'i> {
    index: &'i Index,
    zstd: zstd::bulk::Decompressor<'static>,
    content: Vec<u8>,
}

impl<'i> Checker<'i> {
    fn new(index: &'i Index) -> io::Result<Self> {
        let content = vec![0; index.chunk_bytes() as usize];
        Ok(Self { index, zstd: zstd::bulk::Decompressor::new()?, content })
    }

    fn is_right(&mut self, stored: StoredChunkNo, frame: &[u8]) -> bool {
        decode(self.index, &mut self.zstd, stored, frame, &mut self.content).is_ok()
    }
}

/// Finds the missing chunks that another release has too.
fn pairs(kept: &Index, offered: &Index, missing: &[StoredChunkNo]) -> Vec<Pair> {
    let mut by_digest = missing.to_vec();
    by_digest.sort_unstable_by_key(|stored| kept.digest(*stored));
    let pair = |theirs| {
        let digest = offered.digest(theirs);
        let at = by_digest.binary_search_by(|stored| kept.digest(*stored).cmp(digest)).ok()?;
        Some((theirs, by_digest[at]))
    };
    (0..offered.stored_count()).filter_map(pair).collect()
}

/// An offset within one request, which is small.
fn offset(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
