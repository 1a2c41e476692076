//! The store: what a robot needs of its next release and does not have, on the data partition.
//!
//! A directory with two files. `content` has parts of objects of the release tree, one behind the other, in room that
//! was reserved before any of it was fetched; `map` lists them, and how much of each is there. What is listed as there
//! was made durable before the list was: a cut loses no more than the last megabytes. Whoever reads the store trusts
//! none of it, and checks what it gives as if it came from a server.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::error::UpdateError;
use super::map::StoreMap;
use crate::fetch::{Check, FetchError, FetchErrorKind, Sink, SinkError, Source};
use crate::jobs::floor::ReleaseId;
use crate::jobs::state::{Release, replace};
use crate::release::digest::Digest;
use crate::release::manifest::{MAX_SIGNATURE_BYTES, MAX_SIZE_BYTES, Manifest, ManifestError, TrustedKeys};
use crate::sys::loopback::Loop;
use crate::sys::mount::Mount;
use crate::sys::thread::lock;
use crate::sys::{ext4, files, gentle};

/// Directory of the store in the running system.
pub const PATH: &str = "/var/lib/reflash/update";
/// Directory of the store below the root of the data partition.
pub const PATH_ON_DATA: &str = "var/lib/reflash/update";
const MAP: &str = "map";
const CONTENT: &str = "content";
/// Names under which the store has the signed manifest of its release. No path of a release tree begins so: the store
/// never answers which release is offered.
const MANIFEST: &str = "store/manifest.json";
const SIGNATURE: &str = "store/manifest.json.minisig";
/// Size of the longest list that is read, bytes.
const MAX_MAP_BYTES: u64 = 8 << 20;
/// Bytes that may be written before they are made durable: little to be fetched again, and little for a disk to do at
/// once.
const SYNC_BYTES: u64 = 4 << 20;
/// Bytes that are read and handed on at a time.
const PIECE_BYTES: u64 = 256 << 10;
/// Bytes that the store leaves free on the data partition: it is the robot's.
pub const KEPT_FREE_BYTES: u64 = 64 << 20;
/// Bytes that stay free where a store is in memory and has only what is small.
pub const KEPT_FREE_IN_MEMORY_BYTES: u64 = 8 << 20;

/// The store, opened.
pub struct UpdateStore {
    directory: PathBuf,
    content: File,
    map: Mutex<StoreMap>,
    /// Bytes that were written and may not be durable yet.
    unsynced_bytes: Mutex<u64>,
    /// Bytes that stay free in the file system for the robot.
    kept_free_bytes: u64,
}

impl UpdateStore {
    /// Opens the store below `root` for reading: no link is followed there.
    ///
    /// # Errors
    /// There is none, or its list is not what was written.
    pub fn open(root: &Path, inside: &Path) -> io::Result<Self> {
        let text = files::read_below(root, &inside.join(MAP), MAX_MAP_BYTES)?;
        let map = String::from_utf8(text).ok().and_then(|text| StoreMap::decode(&text));
        let map = map.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its list is damaged"))?;
        let content = files::open_below(root, &inside.join(CONTENT))?;
        Ok(Self {
            directory: root.join(inside),
            content,
            map: Mutex::new(map),
            unsynced_bytes: Mutex::new(0),
            kept_free_bytes: KEPT_FREE_BYTES,
        })
    }

    /// Opens the store on a data partition that is not mounted, for reading, and leaves it mounted at `at`. Nothing is
    /// written to the partition: its journal is not replayed, and a device in between refuses what a read-only mount
    /// writes all the same, as when files were deleted that were still open when the machine was cut.
    ///
    /// # Errors
    /// The partition cannot be read, or as [`UpdateStore::open`].
    pub fn open_on_partition(partition: &Path, at: &Path) -> Result<Self, UpdateError> {
        let failed = failed("open", at);
        let device = Loop::to_read(partition).map_err(failed)?;
        let mount = Mount::device(device.path(), "ext4").read_only().no_load().data_only();
        mount.on(at).map_err(io::Error::other).map_err(failed)?;
        Self::open(at, Path::new(PATH_ON_DATA)).map_err(failed)
    }

    /// Opens the store in `directory` to be filled for `release`, and makes it where there is none. What is there of
    /// another release stays until it is known what this one needs.
    ///
    /// # Errors
    /// The file system's.
    pub fn fill(directory: &Path, release: ReleaseId) -> Result<Self, UpdateError> {
        let failed = failed("open", directory);
        fs::create_dir_all(directory).map_err(failed)?;
        let path = directory.join(CONTENT);
        let content = files::open_to_write(&path).or_else(|error| match files::is_other_kind(&error) {
            true => files::put_aside(&path).and_then(|_| files::open_to_write(&path)),
            false => Err(error),
        });
        let content = content.map_err(failed)?;
        let map = Self::open(directory, Path::new("")).ok().and_then(|store| store.map.into_inner().ok());
        let is_fresh = map.is_none();
        let mut map = map.unwrap_or_else(|| StoreMap::new(release));
        if map.release != release {
            (map.release, map.complete) = (release, None);
            // What another release says of itself is of no use, whatever its length.
            map.pieces.retain(|piece| {
                let is_of_another = [MANIFEST, SIGNATURE].contains(&piece.path.as_str());
                if is_of_another {
                    gentle::give_back(&content, piece.at..piece.at + piece.length());
                }
                !is_of_another
            });
        }
        // What lies behind the end of a file that was cut off is not there.
        let size_bytes = content.metadata().map_err(failed)?.len();
        for piece in map.pieces.iter_mut().filter(|piece| piece.at + piece.have > size_bytes) {
            piece.have = size_bytes.saturating_sub(piece.at);
            map.complete = None;
        }
        let store = Self {
            directory: directory.to_owned(),
            content,
            map: Mutex::new(map),
            unsynced_bytes: Mutex::new(0),
            kept_free_bytes: KEPT_FREE_BYTES,
        };
        if is_fresh {
            store.content.set_len(0).map_err(failed)?;
            store.sync()?;
        }
        Ok(store)
    }

    /// The same store, in a file system in memory, of which the robot needs less to stay free.
    #[must_use]
    pub(super) fn in_memory(self) -> Self {
        Self { kept_free_bytes: KEPT_FREE_IN_MEMORY_BYTES, ..self }
    }

    /// Removes the store, if there is one.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(directory: &Path) -> io::Result<()> {
        // The list first: without it nothing counts as stored.
        for name in [MAP, CONTENT] {
            files::removed_or_gone(fs::remove_file(directory.join(name)))?;
        }
        files::removed_or_gone(fs::remove_dir(directory).or_else(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => Ok(()),
            _ => Err(error),
        }))
    }

    /// The release that the store is for, as its list says.
    #[must_use]
    pub fn release_id(&self) -> ReleaseId {
        lock(&self.map).release
    }

    /// Bytes that are stored, and that there are to be.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        lock(&self.map).bytes()
    }

    /// Whether the list says that all of the release is there that this robot needs.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        lock(&self.map).complete.is_some()
    }

    /// Reads the release from the store, and checks its signature.
    ///
    /// # Errors
    /// No key of today signed it, or it is not there.
    pub fn release(&self, keys: &TrustedKeys) -> Result<Release, ManifestError> {
        let part = |path, limit_bytes| self.whole(path, limit_bytes).unwrap_or_default();
        let signature = part(SIGNATURE, MAX_SIGNATURE_BYTES);
        let signed = keys.authenticate(part(MANIFEST, MAX_SIZE_BYTES), &String::from_utf8_lossy(&signature))?;
        let manifest = Manifest::parse(&signed)?;
        Ok(Release { signed, manifest })
    }

    /// Makes room for what is needed of the release, keeps what is there of it, and gives the rest back.
    ///
    /// # Errors
    /// [`UpdateError::NoRoom`], or the file system's: nothing was fetched then.
    pub fn adopt(&self, release: &Release, needed: &[(String, Range<u64>)]) -> Result<(), UpdateError> {
        let own = [(MANIFEST, release.signed.bytes()), (SIGNATURE, release.signed.signature().as_bytes())];
        let mut all: Vec<(String, Range<u64>)> = needed.to_vec();
        all.extend(own.iter().map(|(path, content)| ((*path).to_owned(), 0..content.len() as u64)));
        let (free, new) = lock(&self.map).adopt(&all);
        // Durable first: what is given back must not be listed as stored.
        self.sync()?;
        free.into_iter().for_each(|place| gentle::give_back(&self.content, place));
        self.reserve(new)?;
        own.iter().try_for_each(|(path, content)| self.record(path, 0, content))?;
        self.sync()
    }

    /// Adds a small object as a whole, unless it is there.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn put(&self, path: &str, content: &[u8]) -> Result<(), UpdateError> {
        self.make_room(path, 0..content.len() as u64)?;
        self.record(path, 0, content)
    }

    /// Makes room for a part of an object, unless there is some.
    ///
    /// # Errors
    /// [`UpdateError::NoRoom`], or the file system's.
    pub(super) fn make_room(&self, path: &str, range: Range<u64>) -> Result<(), UpdateError> {
        let new = {
            let mut map = lock(&self.map);
            let from = map.end();
            from..map.add(path, &range, from)
        };
        self.reserve(new)
    }

    /// Reserves room, and leaves enough for the robot.
    fn reserve(&self, place: Range<u64>) -> Result<(), UpdateError> {
        let failed = failed("reserve room for", &self.directory);
        let needed_bytes = place.end - place.start;
        if needed_bytes == 0 {
            return Ok(());
        }
        let free_bytes = ext4::free(&self.directory).map_err(failed)?.bytes.saturating_sub(self.kept_free_bytes);
        if needed_bytes > free_bytes {
            let path = self.directory.clone();
            return Err(UpdateError::NoRoom { path, needed_bytes, free_bytes, kept_free_bytes: self.kept_free_bytes });
        }
        gentle::reserve(&self.content, place).map_err(failed)
    }

    /// Stores a part of an object where room was made for it. What has no room is left out.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn record(&self, path: &str, at: u64, content: &[u8]) -> Result<(), UpdateError> {
        let (mut at, mut content) = (at, content);
        while !content.is_empty() {
            let place =
                lock(&self.map).piece(path, at).map(|piece| (piece.range.end, piece.at + at - piece.range.start));
            let Some((end, place)) = place else { return Ok(()) };
            let length = content.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let (now, rest) = content.split_at(length);
            self.content.write_all_at(now, place).map_err(failed("write to", &self.directory))?;
            lock(&self.map).note(path, &(at..at + length as u64));
            (at, content) = (at + length as u64, rest);
            self.count(length as u64)?;
        }
        Ok(())
    }

    /// Counts what was written, and makes it durable now and then.
    fn count(&self, bytes: u64) -> Result<(), UpdateError> {
        let mut unsynced_bytes = lock(&self.unsynced_bytes);
        *unsynced_bytes += bytes;
        if *unsynced_bytes >= SYNC_BYTES {
            *unsynced_bytes = 0;
            // The other connections wait meanwhile: that is the pace of the disk.
            self.sync()?;
        }
        Ok(())
    }

    /// Makes durable what was stored, then the list of it.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn sync(&self) -> Result<(), UpdateError> {
        let failed = failed("write to", &self.directory);
        // What is stored from here on is not in this list.
        let text = lock(&self.map).encode().map_err(failed)?;
        self.content.sync_data().map_err(failed)?;
        gentle::forget_cached(&self.content);
        replace(&self.directory.join(MAP), text.as_bytes()).map_err(failed)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }

    /// Notes that all is there, with the digest of it, so that damage is noticed later.
    ///
    /// # Errors
    /// Something is missing, or the file system failed.
    pub(super) fn finish(&self) -> Result<(), UpdateError> {
        let (have, all) = self.bytes();
        if have < all {
            self.sync()?;
            return Err(UpdateError::Incomplete { missing_bytes: all - have });
        }
        let digest = self.digest().map_err(failed("read", &self.directory))?;
        lock(&self.map).complete = Some(digest);
        self.sync()
    }

    /// Whether the store still holds what it held when it became complete.
    ///
    /// # Errors
    /// The file system's.
    pub fn is_whole(&self) -> Result<bool, UpdateError> {
        let digest = self.digest().map_err(failed("read", &self.directory))?;
        Ok(lock(&self.map).complete == Some(digest))
    }

    /// Lets nothing count as complete, so that all of it is checked, and what is wrong is fetched again.
    pub fn distrust(&self) {
        lock(&self.map).complete = None;
    }

    /// Digest of everything that is stored, past the cache.
    fn digest(&self) -> io::Result<Digest> {
        gentle::forget_cached(&self.content);
        let pieces = lock(&self.map).pieces.clone();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX)];
        for piece in &pieces {
            for start in (0..piece.have).step_by(buffer.len()) {
                let length = buffer.len().min(usize::try_from(piece.have - start).unwrap_or(usize::MAX));
                self.content.read_exact_at(&mut buffer[..length], piece.at + start)?;
                hasher.update(&buffer[..length]);
            }
        }
        gentle::forget_cached(&self.content);
        Ok(Digest(*hasher.finalize().as_bytes()))
    }

    /// Place of a byte of an object in the file of the contents, and the end of what follows there.
    pub(super) fn place(&self, path: &str, at: u64) -> Option<(u64, u64)> {
        let map = lock(&self.map);
        let piece = map.piece(path, at).filter(|piece| at < piece.have_end())?;
        Some((piece.at + at - piece.range.start, piece.have_end()))
    }

    /// The first byte from `at` on that is stored of an object.
    pub(super) fn next(&self, path: &str, at: u64) -> Option<u64> {
        let map = lock(&self.map);
        let stored = map.pieces.iter().filter(|piece| piece.path == path && piece.have > 0 && piece.have_end() > at);
        stored.map(|piece| piece.range.start.max(at)).min()
    }

    fn whole(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let end = lock(&self.map).pieces.iter().filter(|piece| piece.path == path).map(|piece| piece.range.end).max();
        let end = end.filter(|end| *end <= limit_bytes).ok_or_else(|| self.missing(path))?;
        let mut content = Vec::new();
        self.get_range(path, 0..end, &mut |part| {
            content.extend_from_slice(part);
            Ok(())
        })?;
        Ok(content)
    }

    fn missing(&self, path: &str) -> FetchError {
        FetchError::new(FetchErrorKind::Missing, path, "the store of this machine does not have it")
    }
}

impl Source for UpdateStore {
    fn describe(&self) -> String {
        "the store of this machine".to_owned()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let files = wanted.iter().map(|(path, limit)| self.whole(path, *limit)).collect::<Result<Vec<_>, _>>()?;
        check(&files).map_err(|refusal| refusal.of(wanted.first().map_or("", |(path, _)| path)))?;
        Ok(files)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        let mut at = range.start;
        while at < range.end {
            let (place, end) = self.place(path, at).ok_or_else(|| self.missing(path))?;
            let length = PIECE_BYTES.min(end.min(range.end) - at);
            let mut part = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            self.content.read_exact_at(&mut part, place).map_err(|cause| {
                FetchError::new(FetchErrorKind::Broken, path, "the store of this machine cannot be read").because(cause)
            })?;
            sink(&part).map_err(|error| match error {
                SinkError::Local(cause) => {
                    FetchError::new(FetchErrorKind::Local, path, "the bytes could not be taken").because(cause)
                }
                SinkError::Wrong { .. } => FetchError::new(FetchErrorKind::Corrupt, path, error.to_string()),
            })?;
            at += length;
        }
        Ok(())
    }
}

impl Source for Arc<UpdateStore> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        (**self).get_checked(wanted, check)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        (**self).get_range(path, range, sink)
    }
}

/// The error of the file system while something is done with the store in `directory`.
fn failed(doing: &'static str, directory: &Path) -> impl Fn(io::Error) -> UpdateError + Copy {
    move |source| UpdateError::Store { doing, path: directory.to_owned(), source }
}
