//! Keeps what a release is about to lose, before another one is written over it.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

use super::append::{AppendError, Appender};
use super::area;
use super::check;
use super::directory::{KeptDirectory, KeptFrame};
use super::fetch::ChunkSource;
use super::header::{Contents, Header, KeptPart, State};
use super::kept::Kept;
use super::need::{self, Change, Place, Wanted, WantedChunk};
use super::obstacle::{UndoObstacle, UndoRoom};
use super::reader::{Frame, READ_BYTES, Reader, first_place, runs};
use super::release_to_keep::{KeptSoFar, ReleaseToKeep};
use crate::flash::plan::FramePlace;
use crate::flash::readback::Scan;
use crate::flash::target::BlockTarget;
use crate::flash::threads::{self, lock};
use crate::record::progress::Done;
use crate::release::digest::BLOCK_SIZE_BYTES;
use crate::release::index::{ChunkNo, Index, StoredChunkNo, compressed_limit};

/// Frames that may wait to be written: so many, and no more bytes than below, as a frame may be as large as its chunk.
const QUEUE: usize = 64;
const QUEUE_BYTES: u32 = 8 * 1024 * 1024;
/// How often what is kept is written, each time to another place, before the disk is called at fault.
const ATTEMPTS: u32 = 2;

/// What has to be kept of a release before a change.
pub(crate) struct Keeping<'a> {
    target: &'a dyn BlockTarget,
    release: ReleaseToKeep<'a>,
    wanted: Wanted,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptNow {
    /// Bytes that were added.
    pub(crate) added_bytes: u64,
    /// Bytes of the partition that are in use for it, headers included.
    pub(crate) all_bytes: u64,
    /// Places in the image of what is neither kept nor in its place: one for each distinct chunk.
    pub(crate) missing: Vec<Range<u64>>,
}

impl<'a> Keeping<'a> {
    /// Finds out what a change takes from `release`. The image that is there has `installed_bytes`: until the new one
    /// is written, it may still have to start.
    pub(crate) fn survey(
        target: &'a dyn BlockTarget,
        release: ReleaseToKeep<'a>,
        installed_bytes: u64,
        change: Change<'_>,
        done: &Done,
    ) -> Self {
        let same = release.so_far.kept();
        let places = known_places(target, release.index, &change, done);
        let wanted = need::wanted(release.index, &places, &change, |digest| {
            same.is_some_and(|kept| kept.chunks.directory.has(digest))
        });
        let floor = release.index.image_bytes().max(change.index.image_bytes()).max(installed_bytes);
        let floor = floor.next_multiple_of(BLOCK_SIZE_BYTES as u64);
        let low = same.map_or_else(|| area::end_of(target), |kept| kept.contents.low);
        let chunks = need::compressed_bytes(release.index, wanted.stored());
        let parts = match release.so_far {
            KeptSoFar::Release(_) if wanted.contents().is_empty() => 0,
            KeptSoFar::Release(kept) => {
                need::parts_bytes(0, (kept.chunks.directory.len() + wanted.contents().len()) as u64)
            }
            KeptSoFar::Nothing(object) => need::parts_bytes(object.size_bytes(), wanted.contents().len() as u64),
        };
        let room = UndoRoom { needed_bytes: need::with_margin(chunks) + parts, there_bytes: low.saturating_sub(floor) };
        Self { target, release, wanted, floor, low, least_bytes: chunks + parts, room }
    }

    /// What a network has to give of a release that is kept on `target` and lacks these chunks. Up to
    /// `installed_bytes` the partition may hold an image that still has to start.
    pub(crate) fn of_missing(
        target: &'a dyn BlockTarget,
        kept: &'a Kept,
        missing: impl Iterator<Item = StoredChunkNo>,
        installed_bytes: u64,
    ) -> Self {
        let Kept { signed, index, .. } = kept;
        let wanted = Wanted::of_missing(missing);
        let floor = index.image_bytes().max(installed_bytes).next_multiple_of(BLOCK_SIZE_BYTES as u64);
        let low = kept.contents.low;
        let chunks = need::compressed_bytes(index, wanted.stored());
        let parts = need::parts_bytes(0, (kept.chunks.directory.len() + wanted.contents().len()) as u64);
        let needed_bytes = chunks + parts;
        let room = UndoRoom { needed_bytes, there_bytes: low.saturating_sub(floor) };
        let release = ReleaseToKeep { signed, index, so_far: KeptSoFar::Release(kept) };
        Self { target, release, wanted, floor, low, least_bytes: needed_bytes, room }
    }

    /// Bytes of the partition that [`carry_out`](Self::carry_out) reads, for progress.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.wanted.contents().len() as u64 * u64::from(self.release.index.chunk_bytes())
    }

    /// Whether nothing has to be added, and what is kept stays out of the way of the new image.
    pub(crate) fn is_empty(&self) -> bool {
        self.wanted.contents().is_empty() && self.release.so_far.kept().is_some() && self.floor <= self.low
    }

    /// Keeps it, durably and read back, or makes sure that nothing claims to be kept.
    ///
    /// What the partition has lost is fetched, if `network` has it.
    ///
    /// # Errors
    /// The reason for which there will be no undo. The update goes on without.
    pub(crate) fn carry_out(&self, done: &Done, network: Option<ChunkSource<'_>>) -> Result<KeptNow, UndoObstacle> {
        // Blocks that cannot be read are whole again once they are written.
        let nothing = Header { sequence: 0, state: State::Nothing };
        let header = area::read_header(self.target).unwrap_or(nothing);
        if self.floor > self.low || self.least_bytes > self.room.there_bytes {
            return Err(self.give_up(&header));
        }
        let before = self.forget_another(header).map_err(UndoObstacle::Write)?;
        let mut low = self.low;
        let mut attempt = 1;
        loop {
            match self.attempt(&before, &mut low, done, network) {
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

    /// Fetches what is missing and adds it to what is kept, which stays as it is if that fails.
    ///
    /// # Errors
    /// There is no room for it, or the disk failed.
    pub(crate) fn complete(&self, done: &Done, network: ChunkSource<'_>) -> Result<KeptNow, UndoObstacle> {
        let header = area::read_header(self.target).map_err(UndoObstacle::Read)?;
        if !self.room.is_enough() {
            return Err(UndoObstacle::NoRoom(self.room));
        }
        self.attempt(&header, &mut self.low.clone(), done, Some(network)).map_err(|error| match error {
            AppendError::Full => UndoObstacle::NoRoom(self.room),
            AppendError::Device(error) => UndoObstacle::Write(error),
        })
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
            State::Kept(_) if self.release.so_far.kept().is_none() => {
                area::write_header(self.target, &header, State::Nothing)
            }
            _ => Ok(header),
        }
    }

    fn attempt(
        &self,
        before: &Header,
        low: &mut u64,
        done: &Done,
        network: Option<ChunkSource<'_>>,
    ) -> Result<KeptNow, AppendError> {
        let index = self.release.index;
        let frame_bytes = compressed_limit(index.chunk_bytes()) as usize;
        let mut appender = Appender::new(self.target, self.floor, *low, self.wanted.contents().len(), frame_bytes);
        let result = self.add(before, &mut appender, done, network);
        *low = appender.low;
        result
    }

    fn add(
        &self,
        before: &Header,
        appender: &mut Appender<'_>,
        done: &Done,
        network: Option<ChunkSource<'_>>,
    ) -> Result<KeptNow, AppendError> {
        let high = appender.low;
        let ReleaseToKeep { signed, so_far, .. } = self.release;
        let texts = [signed.bytes(), signed.signature().as_bytes()];
        let same = so_far.kept();
        let of_same = same.map(|kept| kept.contents);
        let there = of_same.map(|same| [same.manifest, same.signature, same.index]);
        // A copy that was lost is made good by two new ones, where there is room for that.
        let room = self.room.needed_bytes + need::parts_bytes(of_same.map_or(0, |same| same.index.length), 0);
        let is_whole = |parts: &[KeptPart; 3]| parts.iter().all(|part| area::is_twice(self.target, part));
        let whole = there.filter(|parts| room > self.room.there_bytes || is_whole(parts));
        let first = match whole {
            Some(parts) => parts,
            None => [appender.part(texts[0])?, appender.part(texts[1])?, appender.part(&self.index_object()?)?],
        };
        let missing = self.add_frames(appender, done, network)?;
        appender.flush()?;
        let count = u32::try_from(missing.len()).unwrap_or(u32::MAX);
        if let Some(contents) = of_same
            && whole.is_some()
            && appender.entries.is_empty()
            && contents.missing == count
        {
            return Ok(self.kept_now(contents.low, 0, missing));
        }
        let mut added = std::mem::take(&mut appender.entries);
        added.sort_unstable_by_key(|frame| self.release.index.digest(frame.stored));
        let directory = self.directory(&added);
        let of_directory = appender.part(directory.encoded())?;
        // Behind the chunks, so that the copies are as far from each other as they can be.
        let [manifest, signature, index] = match whole {
            Some(parts) => parts,
            None => [
                appender.copy(first[0], texts[0])?,
                appender.copy(first[1], texts[1])?,
                appender.copy(first[2], &self.index_object()?)?,
            ],
        };
        let of_directory = appender.copy(of_directory, directory.encoded())?;
        drop(directory);
        let new_parts =
            if whole.is_some() { vec![of_directory] } else { vec![manifest, signature, index, of_directory] };
        self.target.flush().map_err(AppendError::Device)?;
        self.read_back(&new_parts, added).map_err(AppendError::Device)?;
        let contents =
            Contents { low: appender.low, missing: count, manifest, signature, index, directory: of_directory };
        area::write_header(self.target, before, State::Kept(contents)).map_err(AppendError::Device)?;
        Ok(self.kept_now(appender.low, high - appender.low, missing))
    }

    /// Reads the object of the index, which has the digest that the manifest names.
    fn index_object(&self) -> Result<Vec<u8>, AppendError> {
        let object = match self.release.so_far {
            KeptSoFar::Release(kept) => kept.read_index_object(self.target),
            KeptSoFar::Nothing(object) => object.read(),
        };
        object.map_err(AppendError::Device)
    }

    /// The directory of what was kept before and these frames, which are in the order of their digests.
    fn directory(&self, added: &[FramePlace]) -> KeptDirectory {
        let index = self.release.index;
        let added = added.iter().map(|frame| {
            let FramePlace { stored, length, offset } = *frame;
            KeptFrame { digest: *index.digest(stored), offset, length }
        });
        let empty = KeptDirectory::default();
        self.release.so_far.kept().map_or(&empty, |kept| &kept.chunks.directory).with(added)
    }

    fn kept_now(&self, low: u64, added_bytes: u64, missing: Vec<StoredChunkNo>) -> KeptNow {
        let missing = need::first_places(self.release.index, &missing);
        KeptNow { added_bytes, all_bytes: self.target.size_bytes() - low, missing }
    }

    /// Reads, compresses and adds all that is wanted. Returns the contents that are needed and are nowhere.
    fn add_frames(
        &self,
        appender: &mut Appender<'_>,
        done: &Done,
        network: Option<ChunkSource<'_>>,
    ) -> Result<Vec<StoredChunkNo>, AppendError> {
        let mut lost = self.add_from_partition(appender, done)?;
        if let Some(network) = network.filter(|_| !lost.is_empty()) {
            let index = self.release.index;
            let stored: Vec<StoredChunkNo> = lost.iter().map(|content| content.stored).collect();
            let mut fetched = Vec::new();
            network.fetch(index, &stored, |stored, frame| {
                appender.frame(stored, frame)?;
                fetched.push(stored);
                done.disk(u64::from(index.chunk_bytes()));
                Ok(())
            })?;
            fetched.sort_unstable();
            lost.retain(|content| fetched.binary_search(&content.stored).is_err());
        }
        let mut missing: Vec<StoredChunkNo> =
            lost.iter().filter(|content| content.is_needed).map(|content| content.stored).collect();
        missing.sort_unstable();
        Ok(missing)
    }

    /// Adds what the partition still has. Returns the contents that it has lost.
    fn add_from_partition(&self, appender: &mut Appender<'_>, done: &Done) -> Result<Vec<&WantedChunk>, AppendError> {
        let (target, index, wanted) = (self.target, self.release.index, &self.wanted);
        let mut order: Vec<u32> = (0..).zip(wanted.contents()).map(|(number, _)| number).collect();
        order.sort_unstable_by_key(|number| (first_place(wanted, &wanted.contents()[*number as usize]), *number));
        let next = Mutex::new(runs(wanted, &order, (READ_BYTES / index.chunk_bytes()).max(1) as usize));
        let mut lost = Vec::new();
        std::thread::scope(|scope| {
            let (sender, frames) = sync_channel(((QUEUE_BYTES / index.chunk_bytes()) as usize).clamp(1, QUEUE));
            for _ in 0..threads::count_with_buffers(READ_BYTES.max(index.chunk_bytes()) as usize * 2) {
                let (sender, next) = (sender.clone(), &next);
                threads::spawn(scope, "keep", move || {
                    let mut reader = Reader::new(target, index, wanted);
                    loop {
                        let Some(run) = lock(next).next() else { return };
                        if !reader.read(run, &sender) {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for Frame { content, bytes } in frames {
                match bytes {
                    Some(bytes) => {
                        appender.frame(content.stored, &bytes)?;
                        done.disk(u64::from(index.chunk_bytes()));
                    }
                    None => lost.push(content),
                }
            }
            Ok(lost)
        })
    }

    /// Makes sure that the medium holds what was added.
    fn read_back(&self, parts: &[KeptPart], frames: Vec<FramePlace>) -> io::Result<()> {
        let wrong = || io::Error::other("what was kept reads back wrong");
        for part in parts {
            if !area::is_twice(self.target, part) {
                return Err(wrong());
            }
        }
        if check::damaged(self.target, self.release.index, frames).is_empty() { Ok(()) } else { Err(wrong()) }
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
