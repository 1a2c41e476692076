//! A release tree in a directory: a USB drive, a mounted share, the recovery partition itself.
//!
//! Nothing on a drive that a stranger may have made holds up a recovery. No symbolic link below the directory is
//! followed: `/proc/kmsg` is a regular file by its looks, and a read of it never ends. Nothing else is opened
//! ([`files`]). And each read has a thread of its own, which is left behind when the drive does not answer in time: a
//! drive that was pulled out or is failing can hold a read for minutes, or for ever, and nothing can interrupt that.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::delivery::refused_by_sink;
use super::error::{FetchError, FetchErrorKind};
use super::{Check, Sink, Source, url};
use crate::sys::files;
use crate::sys::thread::background;

/// The most bytes that are read at once and handed to the sink.
const BUFFER: usize = 64 << 10;
/// Pieces that are read ahead of the sink.
const AHEAD: usize = 2;
/// Time without a byte after which a directory is given up, unless another is set: as long as for a server.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Reads under way at once. More than the connections of a recovery means that some were left behind.
const MAX_READS: usize = 12;

/// A source that is a directory.
pub struct Directory {
    tree: Tree,
    stall_timeout: Duration,
    /// Reads under way, of which some may have been left behind.
    reads: Arc<AtomicUsize>,
}

/// Place of a release tree. No symbolic link below `root` is followed.
#[derive(Clone)]
struct Tree {
    root: PathBuf,
    inside: PathBuf,
}

impl Directory {
    /// A release tree below `base`.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self::on_medium(base, "")
    }

    /// A release tree in the directory `inside` of the file system that is mounted at `root`.
    pub fn on_medium(root: impl Into<PathBuf>, inside: impl Into<PathBuf>) -> Self {
        let tree = Tree { root: root.into(), inside: inside.into() };
        Self { tree, stall_timeout: STALL_TIMEOUT, reads: Arc::default() }
    }

    /// Sets the time without a byte after which the directory is given up.
    #[must_use]
    pub fn with_stall_timeout(mut self, stall_timeout: Duration) -> Self {
        self.stall_timeout = stall_timeout;
        self
    }

    /// The directory of a `file:///` URL.
    ///
    /// # Errors
    /// [`FetchErrorKind::Settings`] when the URL names another host or no absolute path.
    pub fn from_url(base: &str) -> Result<Self, FetchError> {
        let path = base
            .strip_prefix("file://")
            .map(|rest| rest.strip_prefix("localhost").unwrap_or(rest))
            .filter(|path| path.starts_with('/'))
            .ok_or_else(|| FetchError::new(FetchErrorKind::Settings, base, "expected file:/// and an absolute path"))?;
        Ok(Self::new(std::ffi::OsString::from_vec(url::percent_decoded(path))))
    }

    /// Reads part of a file, or all of it up to a limit, in a thread of its own.
    fn read(
        &self,
        path: &str,
        part: Part,
        take: &mut dyn FnMut(Vec<u8>) -> Result<(), FetchError>,
    ) -> Result<(), FetchError> {
        let name = shown(&self.tree.path_of(path));
        if !url::is_relative(path) {
            let problem = format!("{path:?} is not a path in a release");
            return Err(FetchError::new(FetchErrorKind::Local, &shown(&self.tree.path_of("")), problem));
        }
        let stalled = |problem: String| FetchError::new(FetchErrorKind::Stalled, &name, problem);
        let reads = Counted::new(&self.reads);
        if reads.others >= MAX_READS {
            return Err(stalled(format!("{} earlier reads have not come back", reads.others)));
        }
        let (sender, pieces) = sync_channel(AHEAD);
        let (tree, path) = (self.tree.clone(), path.to_owned());
        let work = move || {
            let _counted = reads;
            if let Err(error) = tree.send(&path, &part, &sender) {
                let _ = sender.send(Err(error));
            }
        };
        background("read-file", work)
            .map_err(|cause| FetchError::new(FetchErrorKind::Local, &name, "no thread to read with").because(cause))?;
        while let Some(piece) = self.next(&pieces, &name)? {
            take(piece)?;
        }
        Ok(())
    }

    fn next(&self, pieces: &Receiver<Result<Vec<u8>, FetchError>>, name: &str) -> Result<Option<Vec<u8>>, FetchError> {
        match pieces.recv_timeout(self.stall_timeout) {
            Ok(piece) => piece.map(Some),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let problem = format!("no byte within {} s", self.stall_timeout.as_secs());
                Err(FetchError::new(FetchErrorKind::Stalled, name, problem))
            }
        }
    }

    fn small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        self.read(path, Part::AllOf { limit_bytes }, &mut |piece| {
            bytes.extend_from_slice(&piece);
            Ok(())
        })?;
        Ok(bytes)
    }
}

/// The bytes of a file that are wanted.
enum Part {
    /// All, if there are no more than this.
    AllOf { limit_bytes: u64 },
    /// These, and none may be missing.
    Range(Range<u64>),
}

/// A read that is counted as long as it has not come back.
struct Counted {
    reads: Arc<AtomicUsize>,
    others: usize,
}

impl Counted {
    fn new(reads: &Arc<AtomicUsize>) -> Self {
        Self { reads: Arc::clone(reads), others: reads.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.reads.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Tree {
    fn path_of(&self, path: &str) -> PathBuf {
        let base = if self.inside.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&self.inside) };
        if path.is_empty() { base } else { base.join(path) }
    }

    fn open(&self, path: &str, name: &str) -> Result<(File, u64), FetchError> {
        let base = self.path_of("");
        let problem = |cause: std::io::Error| match cause.kind() {
            // Without the base, the medium is not there (yet); with it, the object is not on the medium.
            ErrorKind::NotFound if base.is_dir() => FetchError::new(FetchErrorKind::Missing, name, "not there"),
            ErrorKind::NotFound => {
                FetchError::new(FetchErrorKind::Unreachable, name, format!("{} is not there", base.display()))
            }
            _ if files::is_other_kind(&cause) => {
                FetchError::new(FetchErrorKind::Protocol, name, "is no file").because(cause)
            }
            _ => FetchError::new(FetchErrorKind::Broken, name, "cannot be read").because(cause),
        };
        let file = files::open_below(&self.root, &self.inside.join(path)).map_err(problem)?;
        let size = file.metadata().map_err(problem)?.len();
        Ok((file, size))
    }

    /// Reads, and sends piece by piece. An error of the receiver, which has gone, is none here.
    fn send(&self, path: &str, part: &Part, to: &SyncSender<Result<Vec<u8>, FetchError>>) -> Result<(), FetchError> {
        let name = shown(&self.path_of(path));
        let (mut file, size) = self.open(path, &name)?;
        let range = match part {
            Part::AllOf { limit_bytes } if size > *limit_bytes => {
                let problem = format!("{size} bytes, but at most {limit_bytes} are expected");
                return Err(FetchError::new(FetchErrorKind::Protocol, &name, problem));
            }
            Part::AllOf { .. } => 0..size,
            Part::Range(range) if size < range.end => {
                let problem = format!("{size} bytes, but bytes up to {} are needed", range.end);
                return Err(FetchError::new(FetchErrorKind::Protocol, &name, problem));
            }
            Part::Range(range) => range.clone(),
        };
        let wanted = range.end - range.start;
        let mut got = 0;
        let broken = |cause: std::io::Error, got| {
            FetchError::new(FetchErrorKind::Broken, &name, "cannot be read").because(cause).after(got, wanted)
        };
        file.seek(SeekFrom::Start(range.start)).map_err(|cause| broken(cause, got))?;
        while got < wanted {
            let mut piece = vec![0; usize::try_from(wanted - got).unwrap_or(BUFFER).min(BUFFER)];
            match file.read(&mut piece) {
                Ok(0) => return Err(broken(ErrorKind::UnexpectedEof.into(), got)),
                Ok(n) => {
                    piece.truncate(n);
                    got += n as u64;
                    if to.send(Ok(piece)).is_err() {
                        return Ok(());
                    }
                }
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(broken(cause, got)),
            }
        }
        Ok(())
    }
}

fn shown(path: &Path) -> String {
    format!("file://{}", path.display())
}

impl Source for Directory {
    fn describe(&self) -> String {
        shown(&self.tree.path_of(""))
    }

    /// A server that is named beside a directory is there for what the directory lacks.
    fn is_chosen(&self) -> bool {
        true
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let all = wanted.iter().map(|(path, limit)| self.small(path, *limit)).collect::<Result<Vec<_>, _>>()?;
        let first = wanted.first().map_or("", |(path, _)| path);
        check(&all).map_err(|refusal| refusal.of(&shown(&self.tree.path_of(first))))?;
        Ok(all)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        if range.is_empty() {
            return Ok(());
        }
        let (name, wanted, mut got) = (shown(&self.tree.path_of(path)), range.end - range.start, 0);
        let result = self.read(path, Part::Range(range), &mut |piece| {
            sink(&piece).map_err(|error| refused_by_sink(&name, error))?;
            got += piece.len() as u64;
            Ok(())
        });
        match result {
            Err(error) if got > 0 => Err(error.after(got, wanted)),
            Ok(()) if got < wanted => {
                Err(FetchError::new(FetchErrorKind::Broken, &name, "the read ended").after(got, wanted))
            }
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Directory;
    use crate::fetch::{FetchErrorKind, Source};

    fn tree() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a b");
        std::fs::create_dir_all(base.join("objects")).unwrap();
        std::fs::write(base.join("objects/ab"), b"0123456789").unwrap();
        let url = format!("file://{}/a%20b", dir.path().display());
        let source = Directory::from_url(&url).unwrap();
        (dir, source)
    }

    #[test]
    fn ranges_and_whole_files() {
        let (_dir, source) = tree();
        let mut got = Vec::new();
        source
            .get_range("objects/ab", 3..7, &mut |bytes| {
                got.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        assert_eq!(got, b"3456");
        assert_eq!(source.get_small("objects/ab", 10).unwrap(), b"0123456789");
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let (dir, source) = tree();
        let kind = |path: &str, range| source.get_range(path, range, &mut |_| Ok(())).unwrap_err().kind();
        assert_eq!(kind("objects/cd", 0..1), FetchErrorKind::Missing);
        assert_eq!(kind("objects/ab", 5..11), FetchErrorKind::Protocol);
        assert_eq!(kind("objects", 0..1), FetchErrorKind::Protocol);
        assert_eq!(kind("../a", 0..1), FetchErrorKind::Local);
        let base = dir.path().join("a b");
        std::os::unix::fs::symlink("objects/ab", base.join("link")).unwrap();
        std::os::unix::fs::symlink("/proc", base.join("proc")).unwrap();
        nix::unistd::mkfifo(&base.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in ["link", "proc/kmsg", "pipe"] {
            assert_eq!(kind(other, 0..1), FetchErrorKind::Protocol, "{other}");
        }
        assert_eq!(source.get_small("objects/ab", 9).unwrap_err().kind(), FetchErrorKind::Protocol);
        std::fs::remove_dir_all(dir.path().join("a b")).unwrap();
        assert_eq!(source.get_small("objects/ab", 9).unwrap_err().kind(), FetchErrorKind::Unreachable);
        for bad in ["file:relative", "file://host/x", "file://"] {
            assert!(Directory::from_url(bad).is_err(), "{bad}");
        }
    }
}
