//! A release tree in a directory: a USB drive, a mounted share, the recovery partition itself.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::error::{FetchError, FetchErrorKind};
use super::http::refused_by_sink;
use super::{Check, Sink, Source, url};

/// The most bytes that are read at once and handed to the sink.
const BUFFER: usize = 64 << 10;

/// A source that is a directory.
pub struct Directory {
    base: PathBuf,
}

impl Directory {
    /// A release tree below `base`.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
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

    fn open(&self, path: &str) -> Result<(String, File, u64), FetchError> {
        let full = self.base.join(path);
        let name = shown(&full);
        if !url::is_relative(path) {
            return Err(FetchError::new(
                FetchErrorKind::Local,
                &shown(&self.base),
                format!("{path:?} is not a path in a release"),
            ));
        }
        let problem = |cause: std::io::Error| match cause.kind() {
            // Without the base, the medium is not there (yet); with it, the object is not on the medium.
            ErrorKind::NotFound if self.base.is_dir() => FetchError::new(FetchErrorKind::Missing, &name, "not there"),
            ErrorKind::NotFound => {
                FetchError::new(FetchErrorKind::Unreachable, &name, format!("{} is not there", self.base.display()))
            }
            _ => FetchError::new(FetchErrorKind::Broken, &name, "cannot be read").because(cause),
        };
        // Asked before the open, which would wait for ever on a named pipe.
        let metadata = std::fs::metadata(&full).map_err(problem)?;
        if !metadata.is_file() {
            return Err(FetchError::new(FetchErrorKind::Protocol, &name, "is not a file"));
        }
        let file = File::open(&full).map_err(problem)?;
        Ok((name, file, metadata.len()))
    }

    fn small(&self, path: &str, limit_bytes: u64) -> Result<Vec<u8>, FetchError> {
        let (name, file, _) = self.open(path)?;
        let mut bytes = Vec::new();
        // One byte more than allowed is enough to know.
        file.take(limit_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|cause| FetchError::new(FetchErrorKind::Broken, &name, "cannot be read").because(cause))?;
        if bytes.len() as u64 > limit_bytes {
            let problem = format!("more than the {limit_bytes} bytes that are expected at most");
            return Err(FetchError::new(FetchErrorKind::Protocol, &name, problem));
        }
        Ok(bytes)
    }
}

fn shown(path: &Path) -> String {
    format!("file://{}", path.display())
}

impl Source for Directory {
    fn describe(&self) -> String {
        shown(&self.base)
    }

    fn get_checked(&self, wanted: &[(&str, u64)], check: Check<'_>) -> Result<Vec<Vec<u8>>, FetchError> {
        let all = wanted.iter().map(|(path, limit)| self.small(path, *limit)).collect::<Result<Vec<_>, _>>()?;
        let first = wanted.first().map_or("", |(path, _)| path);
        check(&all).map_err(|refusal| refusal.of(&shown(&self.base.join(first))))?;
        Ok(all)
    }

    fn get_range(&self, path: &str, range: Range<u64>, sink: Sink<'_>) -> Result<(), FetchError> {
        if range.is_empty() {
            return Ok(());
        }
        let (name, mut file, size) = self.open(path)?;
        let wanted = range.end - range.start;
        if size < range.end {
            let problem = format!("{size} bytes, but bytes up to {} are needed", range.end);
            return Err(FetchError::new(FetchErrorKind::Protocol, &name, problem));
        }
        let mut got = 0;
        let broken = |cause: std::io::Error, got| {
            FetchError::new(FetchErrorKind::Broken, &name, "cannot be read").because(cause).after(got, wanted)
        };
        file.seek(SeekFrom::Start(range.start)).map_err(|cause| broken(cause, got))?;
        let mut buffer = vec![0; BUFFER];
        while got < wanted {
            let most = usize::try_from(wanted - got).unwrap_or(BUFFER).min(BUFFER);
            let n = match file.read(&mut buffer[..most]) {
                Ok(0) => return Err(broken(ErrorKind::UnexpectedEof.into(), got)),
                Ok(n) => n,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => continue,
                Err(cause) => return Err(broken(cause, got)),
            };
            sink(&buffer[..n]).map_err(|error| refused_by_sink(&name, error).after(got, wanted))?;
            got += n as u64;
        }
        Ok(())
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
        assert_eq!(source.get_small("objects/ab", 9).unwrap_err().kind(), FetchErrorKind::Protocol);
        std::fs::remove_dir_all(dir.path().join("a b")).unwrap();
        assert_eq!(source.get_small("objects/ab", 9).unwrap_err().kind(), FetchErrorKind::Unreachable);
        for bad in ["file:relative", "file://host/x", "file://"] {
            assert!(Directory::from_url(bad).is_err(), "{bad}");
        }
    }
}
