//! Keeps what a release is about to lose, before another one is written over it.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use super::append::{AppendError, Appender};
use super::area;
use super::check;
use super::directory::{KeptDirectory, KeptFrame};
use super::header::{Contents, Header, KeptPart, State};
use super::kept::Kept;
use super::need::{self, Change, Place, Wanted};
use super::obstacle::{UndoObstacle, UndoRoom};
use crate::flash::readback::Scan;
use crate::flash::target::{AlignedBuf, BlockTarget};
use crate::flash::threads;
use crate::record::progress::Done;
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkNo, Index, StoredChunkNo, compressed_limit};
use crate::release::manifest::Authentic;

/// zstd level of the kept frames: the robot waits for it. Of a Debian image in chunks of 32 KiB, levels 1, 3 and 5
/// leave 26.5, 26.3 and 25.4 %, and take 1, 1.4 and 4 times as long.
const LEVEL: i32 = 1;
/// Bytes that one thread reads at a time.
const READ_BYTES: u32 = 1024 * 1024;
/// Frames that may wait to be written: so many, and no more bytes than below, as a frame may be as large as its chunk.
const QUEUE: usize = 64;
const QUEUE_BYTES: u32 = 8 * 1024 * 1024;
/// How often what is kept is written, each time to another place, before the disk is called at fault.
const ATTEMPTS: u32 = 2;

/// The release that stays within reach.
#[derive(Clone, Copy)]
pub(crate) struct ReleaseToKeep<'a> {
    /// The signed bytes of its manifest.
    pub(crate) signed: &'a Authentic,
    /// Chunk index of its system image.
    pub(crate) index: &'a Index,
    /// The object that the index was read from.
    pub(crate) index_object: &'a [u8],
}

/// What has to be kept of a release before a change.
pub(crate) struct Keeping<'a> {
    target: &'a dyn BlockTarget,
    release: ReleaseToKeep<'a>,
    /// What is kept of that very release already.
    same: Option<&'a Kept>,
    wanted: Vec<Wanted>,
    /// End of the largest of the images: the one to go back to, the one that is there, and the new one.
    floor: u64,
    /// Lowest offset that is in use.
    low: u64,
    /// The least that is needed: chunks compressed as well as in the release.
    least_bytes: u64,
    /// Room that it takes, and that there is.
    pub(crate) room: UndoRoom,
}

/// Quantities of what was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeptNow {
    /// Bytes that were added.
    pub(crate) added_bytes: u64,
    /// Bytes of the partition that are in use for it, headers included.
    pub(crate) all_bytes: u64,
    /// Number of distinct chunks that are neither kept nor in their places.
    pub(crate) missing: u32,
}

impl<'a> Keeping<'a> {
    /// Finds out what a change takes from `release`. `same` is what is kept of that release already. The image that is
    /// there has `installed_bytes`: until the new one is written, it may still have to start.
    pub(crate) fn survey(
        target: &'a dyn BlockTarget,
        release: ReleaseToKeep<'a>,
        same: Option<&'a Kept>,
        installed_bytes: u64,
        change: Change<'_>,
        done: &Done,
    ) -> Self {
        let places = known_places(target, release.index, &change, done);
        let wanted = need::wanted(release.index, &places, &change, |digest| {
            same.is_some_and(|kept| kept.chunks.directory.has(digest))
        });
        let floor = release.index.image_bytes().max(change.index.image_bytes()).max(installed_bytes);
        let floor = floor.next_multiple_of(BLOCK_SIZE_BYTES as u64);
        let low = same.map_or_else(|| area::end_of(target), |kept| kept.contents.low);
        let chunks = need::compressed_bytes(release.index, wanted.iter().map(|wanted| wanted.stored));
        let known = same.map_or(0, |kept| kept.chunks.directory.len());
        let parts = match same {
            Some(_) if wanted.is_empty() => 0,
            Some(_) => need::parts_bytes(0, (known + wanted.len()) as u64),
            None => need::parts_bytes(release.index_object.len() as u64, wanted.len() as u64),
        };
        let room = UndoRoom { needed_bytes: need::with_margin(chunks) + parts, there_bytes: low.saturating_sub(floor) };
        Self { target, release, same, wanted, floor, low, least_bytes: chunks + parts, room }
    }

    /// Bytes of the partition that [`carry_out`](Self::carry_out) reads, for progress.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.wanted.len() as u64 * u64::from(self.release.index.chunk_bytes())
    }

    /// Whether nothing has to be added, and what is kept stays out of the way of the new image.
    pub(crate) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.same.is_some() && self.floor <= self.low
    }

    /// Keeps it, durably and read back, or makes sure that nothing claims to be kept.
    ///
    /// # Errors
    /// The reason for which there will be no undo. The update goes on without.
    pub(crate) fn carry_out(&self, done: &Done) -> Result<KeptNow, UndoObstacle> {
        let header = area::read_header(self.target).map_err(UndoObstacle::Read)?;
        if self.floor > self.low || self.least_bytes > self.room.there_bytes {
            return Err(self.give_up(&header));
        }
        let before = self.forget_another(header).map_err(UndoObstacle::Write)?;
        let mut low = self.low;
        let mut attempt = 1;
        loop {
            match self.attempt(&before, &mut low, done) {
                Ok(kept) => return Ok(kept),
                Err(AppendError::Full) => return Err(self.give_up(&before)),
                // Further down the disk may be whole.
                Err(AppendError::Device(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(AppendError::Device(error)) => {
                    let _ = give_up(self.target, Some(&before), State::NotKept);
                    return Err(UndoObstacle::Write(error));
                }
            }
        }
    }

    /// Room that is known not to be enough.
    fn give_up(&self, header: &Header) -> UndoObstacle {
        let needed_bytes = self.room.needed_bytes.max(self.room.there_bytes.saturating_add(1));
        let room = UndoRoom { needed_bytes, ..self.room };
        // Where the image reaches into the headers, it is written over them.
        if self.floor <= area::end_of(self.target) {
            let _ = give_up(self.target, Some(header), State::NoRoom(room));
        }
        UndoObstacle::NoRoom(room)
    }

    /// Makes sure that another release does not count as kept while its records are written over.
    fn forget_another(&self, header: Header) -> io::Result<Header> {
        match header.state {
            State::Kept(_) if self.same.is_none() => area::write_header(self.target, &header, State::Nothing),
            _ => Ok(header),
        }
    }

    fn attempt(&self, before: &Header, low: &mut u64, done: &Done) -> Result<KeptNow, AppendError> {
        let index = self.release.index;
        let frame_bytes = compressed_limit(index.chunk_bytes()) as usize;
        let mut appender = Appender::new(self.target, self.floor, *low, frame_bytes);
        let result = self.add(before, &mut appender, done);
        *low = appender.low;
        result
    }

    fn add(&self, before: &Header, appender: &mut Appender<'_>, done: &Done) -> Result<KeptNow, AppendError> {
        let high = appender.low;
        let new_parts = match self.same {
            Some(_) => None,
            None => Some([
                appender.part(self.release.signed.bytes())?,
                appender.part(self.release.signed.signature().as_bytes())?,
                appender.part(self.release.index_object)?,
            ]),
        };
        let missing = self.add_frames(appender, done)?;
        appender.flush()?;
        let of_same = self.same.map(|kept| kept.contents);
        if let Some(contents) = of_same
            && appender.entries.is_empty()
            && contents.missing == missing
        {
            return Ok(self.kept_now(contents.low, 0, missing));
        }
        let empty = KeptDirectory::default();
        let directory = self.same.map_or(&empty, |kept| &kept.chunks.directory).with(&appender.entries);
        let directory = appender.part(&directory.encode())?;
        let [manifest, signature, index] = match (new_parts, of_same) {
            (Some(parts), _) => parts,
            (None, Some(same)) => [same.manifest, same.signature, same.index],
            (None, None) => return Err(AppendError::Full),
        };
        self.target.flush().map_err(AppendError::Device)?;
        self.read_back(&new_parts.into_iter().flatten().chain([directory]).collect::<Vec<_>>(), &appender.entries)
            .map_err(AppendError::Device)?;
        let contents = Contents { low: appender.low, missing, manifest, signature, index, directory };
        area::write_header(self.target, before, State::Kept(contents)).map_err(AppendError::Device)?;
        Ok(self.kept_now(appender.low, high - appender.low, missing))
    }

    fn kept_now(&self, low: u64, added_bytes: u64, missing: u32) -> KeptNow {
        KeptNow { added_bytes, all_bytes: self.target.size_bytes() - low, missing }
    }

    /// Reads, compresses and adds all that is wanted. Returns the number of contents that are needed and are nowhere.
    fn add_frames(&self, appender: &mut Appender<'_>, done: &Done) -> Result<u32, AppendError> {
        let index = self.release.index;
        let mut order: Vec<&Wanted> = self.wanted.iter().collect();
        order.sort_by_key(|wanted| wanted.places.first().copied());
        let runs = runs(&order, (READ_BYTES / index.chunk_bytes()).max(1) as usize);
        let next = AtomicUsize::new(0);
        let mut missing = 0;
        std::thread::scope(|scope| {
            let (sender, frames) = sync_channel(((QUEUE_BYTES / index.chunk_bytes()) as usize).clamp(1, QUEUE));
            for _ in 0..threads::count_with_buffers(READ_BYTES.max(index.chunk_bytes()) as usize * 2) {
                let (sender, runs, next) = (sender.clone(), &runs, &next);
                threads::spawn(scope, "keep", move || {
                    let mut reader = Reader::new(self.target, index);
                    while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if !reader.read(run, &sender) {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for Frame { wanted, bytes } in frames {
                match bytes {
                    Some(bytes) => appender.frame(*index.digest(wanted.stored), &bytes)?,
                    None => missing += u32::from(wanted.is_needed),
                }
                done.disk(u64::from(index.chunk_bytes()));
            }
            Ok(missing)
        })
    }

    /// Makes sure that the medium holds what was added.
    fn read_back(&self, parts: &[KeptPart], entries: &[KeptFrame]) -> io::Result<()> {
        let wrong = || io::Error::other("what was kept reads back wrong");
        for part in parts {
            area::read_part(self.target, part)?.ok_or_else(wrong)?;
        }
        let index = self.release.index;
        let stored: HashMap<_, StoredChunkNo> =
            self.wanted.iter().map(|wanted| (index.digest(wanted.stored), wanted.stored)).collect();
        let places = entries.iter().filter_map(|it| Some((*stored.get(&it.digest)?, it.offset, it.length)));
        if check::damaged(self.target, index, places.collect()).is_empty() { Ok(()) } else { Err(wrong()) }
    }
}

/// Says what becomes of each place of the release, where that does not follow from the indexes by reading it.
fn known_places(target: &dyn BlockTarget, kept: &Index, change: &Change<'_>, done: &Done) -> Vec<Place> {
    let mut places = change.places(kept);
    let is_unknown = |place: &Place| *place == Place::Unknown;
    let unknown: Vec<ChunkNo> = (0..).zip(&places).filter(|(_, place)| is_unknown(place)).map(|(at, _)| at).collect();
    if unknown.is_empty() {
        return places;
    }
    let scan = Scan::of_chunks(kept, unknown.iter().copied(), target, done);
    for chunk in unknown {
        places[chunk as usize] = if scan.comparison().is_right(chunk) { Place::Stays } else { Place::Lost };
    }
    places
}

/// Makes sure that no release counts as kept. `header` is the one that counts, if it was read already.
///
/// # Errors
/// The device's. An undo finds out by itself that something is missing, before it writes anything.
pub(super) fn give_up(target: &dyn BlockTarget, header: Option<&Header>, state: State) -> io::Result<()> {
    let header = header.map_or_else(|| area::read_header(target), |header| Ok(*header))?;
    let says_so = matches!((header.state, state), (State::Nothing | State::NotKept | State::NoRoom(_), State::Nothing));
    if says_so || header.state == state {
        return Ok(());
    }
    area::write_header(target, &header, state).map(drop)
}

/// Gives up whatever is kept, because it is not wanted or cannot be read any more. An image that reaches into the
/// headers is left alone: writing it does the same.
///
/// # Errors
/// The device's.
pub(crate) fn forget(target: &dyn BlockTarget, image_bytes: u64) -> io::Result<()> {
    if image_bytes > area::end_of(target) { Ok(()) } else { give_up(target, None, State::Nothing) }
}

/// A content on its way to the disk; `None` where no place holds it.
struct Frame<'w> {
    wanted: &'w Wanted,
    bytes: Option<Vec<u8>>,
}

/// Joins contents whose first places are neighbours.
fn runs<'r, 'w>(mut order: &'r [&'w Wanted], most: usize) -> Vec<&'r [&'w Wanted]> {
    let mut runs = Vec::new();
    while let Some(first) = order.first() {
        let first = first.places.first().copied();
        let is_next = |(at, wanted): &(usize, &&Wanted)| {
            let expected = first.and_then(|first| first.checked_add(ChunkNo::try_from(*at).ok()?));
            expected.is_some() && wanted.places.first().copied() == expected
        };
        let count = order.iter().enumerate().take(most).take_while(is_next).count().max(1);
        let (run, rest) = order.split_at(count);
        runs.push(run);
        order = rest;
    }
    runs
}

/// Reads contents from their places, checks and compresses them.
struct Reader<'a> {
    target: &'a dyn BlockTarget,
    index: &'a Index,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    buffer: AlignedBuf,
}

impl<'a> Reader<'a> {
    fn new(target: &'a dyn BlockTarget, index: &'a Index) -> Self {
        let buffer = AlignedBuf::zeroed(READ_BYTES.max(index.chunk_bytes()) as usize);
        Self { target, index, zstd: zstd::bulk::Compressor::new(LEVEL).ok(), buffer }
    }

    /// Reads a run and hands its frames on. Returns whether they are still wanted.
    fn read<'w>(&mut self, run: &[&'w Wanted], to: &SyncSender<Frame<'w>>) -> bool {
        let chunks = run.iter().filter_map(|wanted| wanted.places.first().copied());
        let length: usize = chunks.clone().map(|chunk| self.index.chunk_len(chunk)).sum();
        let start = chunks.clone().next().map(|first| self.index.chunk_range(first).start);
        let is_read = start.is_some_and(|start| self.target.read_at(start, &mut self.buffer[..length]).is_ok());
        let mut frames = Vec::with_capacity(run.len());
        let mut at = 0;
        for wanted in run {
            let first = wanted.places.first().filter(|_| is_read);
            let mut bytes = None;
            if let Some(chunk) = first {
                let range = at..at + self.index.chunk_len(*chunk);
                at = range.end;
                bytes = self.compress(*chunk, range);
            }
            frames.push(Frame { wanted, bytes });
        }
        // The buffer is used again for those that were not where they were looked for first.
        for frame in frames.iter_mut().filter(|frame| frame.bytes.is_none()) {
            frame.bytes = frame.wanted.places.iter().find_map(|chunk| self.read_alone(*chunk));
        }
        frames.into_iter().all(|frame| to.send(frame).is_ok())
    }

    fn read_alone(&mut self, chunk: ChunkNo) -> Option<Vec<u8>> {
        let length = self.index.chunk_len(chunk);
        self.target.read_at(self.index.chunk_range(chunk).start, &mut self.buffer[..length]).ok()?;
        self.compress(chunk, 0..length)
    }

    fn compress(&mut self, chunk: ChunkNo, range: std::ops::Range<usize>) -> Option<Vec<u8>> {
        let content = &self.buffer[range];
        if !self.index.matches(chunk, content) {
            return None;
        }
        self.zstd.as_mut()?.compress(content).ok()
    }
}
