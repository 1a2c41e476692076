//! Headers of an archive of tar, one after the other, with the place of the content that follows each.
//!
//! The crate `tar` passes over as many bytes as a header says, whatever it describes. Directories and links have no
//! content, and programs that pack write sizes of theirs all the same: as many members after them would be missing,
//! without a word. GNU's tar and Go's, by which containers are made, know that such a size counts for nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tar::{EntryType, Header};

use super::merge::shown;

/// Length of a header; a content is filled up to a multiple of it.
const BLOCK_BYTES: u64 = 512;
/// Longest content that belongs to a header itself: names and attributes.
const LONGEST_BYTES: u64 = 1 << 20;
/// Place of the checksum in a header; it counts as spaces itself.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// An open archive, and how far it was read.
#[derive(Debug)]
pub struct Headers {
    archive: BufReader<File>,
    path: PathBuf,
    /// Length of the archive.
    bytes: u64,
    /// First byte of the next header, or of the content of the last one.
    at: u64,
    /// First byte that was not read yet.
    read_to: u64,
    /// Path of the last member, for errors.
    last: Vec<u8>,
    /// Whether the mark was found that an archive ends with.
    is_ended: bool,
}

impl Headers {
    /// Opens an archive that is not compressed.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let name = || format!("open the archive {}", path.display());
        let file = File::open(path).with_context(name)?;
        let bytes = file.metadata().with_context(name)?.len();
        let archive = BufReader::new(file);
        Ok(Self { archive, path: path.to_owned(), bytes, at: 0, read_to: 0, last: Vec::new(), is_ended: false })
    }

    /// Returns the next header; `None` at the end of the archive.
    ///
    /// # Errors
    /// When the file is no archive, or one that is damaged or cut off.
    pub fn next(&mut self) -> Result<Option<Header>> {
        if self.at == self.bytes {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if self.bytes - self.at < BLOCK_BYTES {
            ensure!(self.at > 0, "{} is no archive of tar: it has only {} bytes", self.path.display(), self.bytes);
            bail!(self.cut_off());
        }
        let name = || format!("read {}", self.path.display());
        // This keeps what was read ahead.
        let ahead = i64::try_from(self.at - self.read_to).with_context(name)?;
        self.archive.seek_relative(ahead).and_then(|()| self.archive.read_exact(block)).with_context(name)?;
        self.read_to = self.at + BLOCK_BYTES;
        if *block == [0; 512] {
            self.is_ended = true;
            return Ok(None);
        }
        if !is_whole(block) {
            ensure!(
                self.at > 0,
                "{} is no archive of tar, and none of the forms that are uncompressed: it begins with {}",
                self.path.display(),
                shown(&block[..8])
            );
            bail!(
                "the archive {} is damaged after {}: what lies at byte {} is no header",
                self.path.display(),
                shown(&self.last),
                self.at
            );
        }
        self.at += BLOCK_BYTES;
        Ok(Some(header))
    }

    /// Returns the first byte after the header.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Reads the content of a header that belongs to the one after it.
    ///
    /// # Errors
    /// When it is larger than any, or cut off.
    pub fn content(&mut self, header: &Header) -> Result<Vec<u8>> {
        let bytes = number(&header.as_old().size, || header.entry_size())?;
        ensure!(bytes <= LONGEST_BYTES, "a header of {bytes} bytes in {} is too large", self.path.display());
        let mut content = Vec::new();
        let length = (&mut self.archive).take(bytes).read_to_end(&mut content)?;
        self.read_to += length as u64;
        self.pass(bytes, b"a long name or an attribute")?;
        Ok(content)
    }

    /// Goes on after the content of `member`.
    ///
    /// # Errors
    /// When the archive ends within it.
    pub fn pass(&mut self, bytes: u64, member: &[u8]) -> Result<()> {
        self.last = member.to_vec();
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.bytes);
        let end = end.with_context(|| self.cut_off())?;
        // The last content need not be filled up.
        self.at = end.next_multiple_of(BLOCK_BYTES).min(self.bytes);
        Ok(())
    }

    /// Checks that the archive came to its end.
    ///
    /// # Errors
    /// When there is no mark of it, or not one member.
    pub fn finish(self) -> Result<()> {
        ensure!(!self.last.is_empty(), "{} is an empty archive", self.path.display());
        ensure!(
            self.is_ended,
            "{}, without the zeros that every archive ends with; bring it here again, or pack it again",
            self.cut_off()
        );
        Ok(())
    }

    fn cut_off(&self) -> String {
        let (path, last) = (self.path.display(), shown(&self.last));
        format!("the archive {path} is cut off: it ends after {} bytes, at or within {last}", self.bytes)
    }
}

/// Returns a number of a header; one that was left blank is zero, as for every program that unpacks.
///
/// # Errors
/// When it is no number.
pub fn number(field: &[u8], parse: impl FnOnce() -> std::io::Result<u64>) -> Result<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { Ok(parse()?) }
}

/// Returns the length of a member's content. Of what has none the size counts for nothing.
///
/// # Errors
/// When it is no number.
pub fn content_bytes(header: &Header, entry_type: EntryType, records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<u64> {
    match entry_type {
        EntryType::Directory
        | EntryType::Symlink
        | EntryType::Link
        | EntryType::Char
        | EntryType::Block
        | EntryType::Fifo => Ok(0),
        _ => of_records(records, "size", || number(&header.as_old().size, || header.entry_size())),
    }
}

/// Place of the first number of a device in a header.
pub const MAJOR: std::ops::Range<usize> = 329..337;
/// Place of the second number of a device in a header.
pub const MINOR: std::ops::Range<usize> = 337..345;

/// Returns one of the two numbers of a device.
///
/// # Errors
/// When it is no number.
pub fn device(
    header: &Header,
    place: std::ops::Range<usize>,
    parse: impl FnOnce() -> std::io::Result<Option<u32>>,
) -> Result<u32> {
    let found = number(&header.as_bytes()[place], || parse().map(|found| found.unwrap_or_default().into()))?;
    u32::try_from(found).context("the number of a device is too large")
}

/// Returns a number of the records before a header; where they do not have it, that of the header.
///
/// # Errors
/// When it is no number.
pub fn of_records(
    records: &BTreeMap<Vec<u8>, Vec<u8>>,
    key: &str,
    of_header: impl FnOnce() -> Result<u64>,
) -> Result<u64> {
    let Some(text) = records.get(key.as_bytes()) else { return of_header() };
    // A time may have a fraction.
    let whole = text.split(|byte| *byte == b'.').next().unwrap_or_default();
    let whole = std::str::from_utf8(whole).ok().and_then(|text| text.parse().ok());
    whole.with_context(|| format!("its {key} {} is no number", shown(text)))
}

/// Whether a block is a header with its own checksum. Old programs summed the bytes up as signed numbers.
fn is_whole(block: &[u8; 512]) -> bool {
    let text = String::from_utf8_lossy(&block[CHECKSUM]);
    let wanted = i64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok();
    let bytes = block.iter().enumerate();
    let counted = bytes.map(|(at, byte)| if CHECKSUM.contains(&at) { b' ' } else { *byte }).collect::<Vec<_>>();
    let unsigned: i64 = counted.iter().copied().map(i64::from).sum();
    let signed: i64 = counted.iter().map(|byte| i64::from(byte.cast_signed())).sum();
    wanted.is_some_and(|wanted| wanted == unsigned || wanted == signed)
}

#[cfg(test)]
mod tests {
    use super::Headers;
    use std::fs;
    use std::path::Path;

    /// A file with one byte, and after it links and directories whose headers have sizes, as some programs write them.
    fn sized(size: u64) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, bytes) in [
            ("file", tar::EntryType::Regular, 1),
            ("hard", tar::EntryType::Link, size),
            ("link", tar::EntryType::Symlink, size),
            ("directory", tar::EntryType::Directory, size),
            ("device", tar::EntryType::Char, size),
            ("last", tar::EntryType::Regular, 1),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_mode(0o755);
            header.set_entry_type(kind);
            header.set_link_name("file").unwrap();
            header.set_size(bytes);
            header.set_cksum();
            builder.append(&header, if name == "file" || name == "last" { b"x".as_slice() } else { b"" }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn names(archive: &[u8], directory: &Path) -> Vec<String> {
        let path = directory.join("a.tar");
        fs::write(&path, archive).unwrap();
        let members = super::super::archive::read(&path).unwrap().members;
        members.into_iter().map(|(path, _)| String::from_utf8(path).unwrap()).collect()
    }

    #[test]
    fn sizes_of_what_has_no_content_hide_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let expected = ["file", "hard", "link", "directory", "device", "last"];
        for size in [0, 1, 512, 700, 4096] {
            assert_eq!(names(&sized(size), directory.path()), expected, "{size}");
        }
    }

    #[test]
    fn blank_numbers_are_zeros_and_labels_no_members() {
        let directory = tempfile::tempdir().unwrap();
        let mut header = tar::Header::new_old();
        header.set_path("blank").unwrap();
        let mut label = tar::Header::new_gnu();
        label.set_path("backup").unwrap();
        label.set_entry_type(tar::EntryType::new(b'V'));
        label.set_size(0);
        header.set_cksum();
        label.set_cksum();
        let archive = [label.as_bytes().as_slice(), header.as_bytes(), &[0; 1024]].concat();
        assert_eq!(names(&archive, directory.path()), ["blank"]);
    }

    #[test]
    fn an_archive_that_ends_too_early_is_refused_wherever_it_was_cut() {
        let directory = tempfile::tempdir().unwrap();
        let (path, whole) = (directory.path().join("a.tar"), sized(0));
        let end = whole.len() - 1024;
        for length in (1..=end).step_by(171).chain((512..=end).step_by(512)) {
            fs::write(&path, &whole[..length]).unwrap();
            let error = super::super::archive::read(&path).unwrap_err().to_string();
            assert!(error.contains(if length < 512 { "no archive of tar" } else { "cut off" }), "{length}: {error}");
        }
        // Programs that unpack are content with one block of zeros.
        fs::write(&path, &whole[..end + 512]).unwrap();
        super::super::archive::read(&path).unwrap();
        // A layer, whose digest was checked, needs none.
        fs::write(&path, &whole[..end]).unwrap();
        assert_eq!(super::super::archive::read_layer(&path, 0).unwrap().members.len(), 6);
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let mut archive = sized(0);
        archive[1024] ^= 1;
        for (content, said) in [
            (archive, "damaged after file: what lies at byte 1024"),
            (b"PK\x03\x04".repeat(400), "no archive of tar, and none of the forms"),
        ] {
            fs::write(&path, content).unwrap();
            let mut headers = Headers::open(&path).unwrap();
            let error = std::iter::from_fn(|| match headers.next() {
                Ok(None) => None,
                Ok(Some(header)) => {
                    headers.pass(header.entry_size().unwrap(), &header.path_bytes()).unwrap();
                    Some(None)
                }
                Err(error) => Some(Some(error.to_string())),
            });
            let error = error.flatten().next().unwrap_or_default();
            assert!(error.contains(said), "{error}");
        }
    }
}
