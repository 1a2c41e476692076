//! The list of what an image brings to `/var` and changes in `/etc`, directories that belong to the machine. Pure.
//!
//! The builder writes it into the image, and the first step of the system's boot carries it out
//! (`src/jobs/shipped.rs`). The directory [`DIRECTORY`] of an image has three parts:
//!
//! | name | content |
//! |---|---|
//! | [`LIST`] | a [`ListHeader`], then a [`ShippedEntry`] for each path, one a line, as JSON; a directory comes before what lies in it |
//! | [`EACH_START`] | the same, with only those entries that are looked at in every start, and the image's name in the header |
//! | [`CONTENT`] | a directory with the content of files, each named by its BLAKE3 digest; stretches of zeros are left out |
//!
//! Names are bytes, not text: JSON has them with `%` and two hexadecimal digits for every byte that is no printable
//! ASCII character, and for `%` itself. systemd-tmpfiles could not carry this: a list of its lines has no hard links,
//! attributes, holes and names of any bytes, and a line does not say of which release it is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Directory of the list, below the root of an image.
pub const DIRECTORY: &str = "usr/share/reflash/shipped";
/// Name of the whole list.
pub const LIST: &str = "list.jsonl";
/// Name of the list for every start.
pub const EACH_START: &str = "each-start.jsonl";
/// Name of the directory with the content of files.
pub const CONTENT: &str = "content";
/// Version of the format.
pub const FORMAT: u32 = 1;

/// Length of the longest line that is read, bytes: attributes of 64 KiB, and some thousand holes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Most entries that are read.
const MAX_ENTRIES: usize = 1_000_000;
/// Bytes that are escaped beside control characters and all that is not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Rule for what becomes of a path from one release to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShippedRule {
    /// A file is made once; what the machine has, changed or deleted stays so. A missing directory is made again.
    #[default]
    Default,
    /// Files and directories are made once; what the machine deleted stays deleted.
    Once,
    /// The release's own is put there by the first start of a release in which it differs.
    Version,
    /// The release's own is put there by every start.
    Always,
    /// A path that the first start of a release removes.
    Remove,
}

impl ShippedRule {
    /// Whether the path belongs to the release, not to the machine.
    #[must_use]
    pub fn is_of_the_release(self) -> bool {
        matches!(self, Self::Version | Self::Always)
    }
}

/// Kind of a shipped file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeType {
    /// Regular file with content.
    #[default]
    File,
    /// Directory of other entries.
    Directory,
    /// Symbolic link to a path.
    Link,
    /// Named pipe, without content.
    Pipe,
    /// Character device, as layers of containers have them for what they delete.
    CharacterDevice,
    /// Block device, by its numbers.
    BlockDevice,
}

/// A path below the root, without a leading slash, that may hold any bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RawPath(pub PathBuf);

impl RawPath {
    /// The path with its odd bytes escaped, as it is written and as people see it.
    #[must_use]
    pub fn escaped(&self) -> String {
        percent_encode(self.0.as_os_str().as_bytes(), ESCAPED).to_string()
    }

    /// The path that was escaped.
    #[must_use]
    pub fn unescaped(text: &str) -> Self {
        Self(OsString::from_vec(percent_decode_str(text).collect()).into())
    }
}

impl fmt::Display for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.escaped())
    }
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.escaped())
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::unescaped(&text))
    }
}

/// First line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListHeader {
    /// Version of the format.
    pub format: u32,
    /// Name of the image for the machine's record: the BLAKE3 digest of its [`LIST`], in the list for every start.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Name and version of the recipe.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// One path of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShippedEntry {
    /// Path below the root: `var/…` or `etc/…`.
    pub path: RawPath,
    /// Rule of the path.
    pub rule: ShippedRule,
    /// Digest of all that the release has there: kind, owner, permissions, attributes and content.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// The file itself; `None` below `/etc`, where the image has it in place, and for what is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<ShippedNode>,
}

/// A file, directory or special file as the image has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShippedNode {
    /// Kind of the file.
    pub kind: NodeType,
    /// Permissions of the file.
    pub mode: u32,
    /// Number of the owner.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
    /// Size of a regular file, bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_bytes: u64,
    /// Name of the content of a regular file in [`CONTENT`]; empty for a file without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// Stretches of the file that the content holds, one after the other: offset and length, bytes. All else is zeros.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<[u64; 2]>,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<RawPath>,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<[u32; 2]>,
    /// Extended attributes, access control lists and capabilities among them, in base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// Path of the entry before this one that is the same file, by a hard link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<RawPath>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ShippedNode {
    /// The digest of all that the file consists of.
    #[must_use]
    pub fn digest(&self) -> String {
        // A name by which the same file is known too is no part of it.
        let alone = Self { first: None, ..self.clone() };
        let text = serde_json::to_vec(&alone).unwrap_or_default();
        blake3::hash(&text).to_hex().as_str().get(..32).unwrap_or_default().to_owned()
    }

    /// The extended attributes as the kernel takes them. An attribute that is damaged is left out.
    pub fn attribute_values(&self) -> impl Iterator<Item = (&str, Vec<u8>)> {
        self.attributes.iter().filter_map(|(name, value)| Some((name.as_str(), STANDARD.decode(value).ok()?)))
    }

    /// Adds an extended attribute.
    pub fn add_attribute(&mut self, name: String, value: &[u8]) {
        self.attributes.insert(name, STANDARD.encode(value));
    }
}

/// Reads the first line of a list.
///
/// # Errors
/// The reader's, and [`io::ErrorKind::InvalidData`] for a list of another format.
pub fn read_header(reader: &mut impl BufRead) -> io::Result<ListHeader> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    let header: ListHeader = serde_json::from_slice(&line).map_err(|error| wrong(1, &error))?;
    if header.format != FORMAT {
        return Err(wrong(1, &format!("format {} is not known here, only {FORMAT}", header.format)));
    }
    Ok(header)
}

/// Reads a list, and hands each entry over as it comes. Entries whose path is not plainly below `var` or `etc` are
/// errors: nothing else is the list's business.
///
/// # Errors
/// The reader's and those of `take`, and [`io::ErrorKind::InvalidData`] with the number of the line.
pub fn read_list(
    mut reader: impl BufRead,
    mut take: impl FnMut(ShippedEntry) -> io::Result<()>,
) -> io::Result<ListHeader> {
    let header = read_header(&mut reader)?;
    let mut line = Vec::new();
    for number in 2..MAX_ENTRIES + 2 {
        line.clear();
        if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(header);
        }
        let entry: ShippedEntry = serde_json::from_slice(&line).map_err(|error| wrong(number, &error))?;
        if !is_plain(&entry.path.0) {
            return Err(wrong(number, &format!("{} lies neither in /var nor in /etc", entry.path)));
        }
        take(entry)?;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the list has more than {MAX_ENTRIES} entries")))
}

fn wrong(number: usize, why: &dyn fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("line {number} of the list of what the image ships: {why}"))
}

/// Whether the path lies below `var` or `etc`, without `..`.
#[must_use]
pub fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    let begins = matches!(parts.next(), Some(std::path::Component::Normal(first)) if first == "var" || first == "etc");
    let mut rest = parts.peekable();
    begins && rest.peek().is_some() && rest.all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// Major and minor number of a device on Linux, of the one number that [`std::os::unix::fs::MetadataExt::rdev`] has.
#[must_use]
pub fn device_numbers(device: u64) -> [u32; 2] {
    let part = |high: u64, low: u64| u32::try_from(high & 0xffff_f000 | low & 0xfff).unwrap_or_default();
    let minor = u32::try_from((device >> 12) & 0xffff_ff00 | device & 0xff).unwrap_or_default();
    [part(device >> 32, device >> 8), minor]
}

/// Writes a line of a list.
///
/// # Errors
/// The writer's.
pub fn write_line(writer: &mut impl io::Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, line).map_err(io::Error::other)?;
    writer.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::{
        ListHeader, NodeType, RawPath, ShippedEntry, ShippedNode, ShippedRule, device_numbers, read_list, write_line,
    };
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn raw(bytes: &[u8]) -> RawPath {
        RawPath(OsStr::from_bytes(bytes).into())
    }

    #[test]
    fn names_of_any_bytes_come_back_as_they_were() {
        let all: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
        for name in [&b"var/lib/a b"[..], b"var/x\"y\\z'", b"var/new\nline\t", b"var/caf\xe9", b"var/%41", &all] {
            let path = raw(name);
            assert_eq!(RawPath::unescaped(&path.escaped()), path);
            assert!(path.escaped().bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_control()));
        }
        assert_eq!(raw(b"var/caf\xe9").to_string(), "/var/caf%E9");
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let mut node = ShippedNode { mode: 0o640, size_bytes: 5, data: vec![[0, 5]], ..ShippedNode::default() };
        node.add_attribute("user.x".into(), &[0, 255]);
        let entries = [
            ShippedEntry { path: raw(b"var/a"), digest: node.digest(), node: Some(node), ..ShippedEntry::default() },
            ShippedEntry { path: raw(b"etc/b"), rule: ShippedRule::Remove, ..ShippedEntry::default() },
        ];
        let mut text = Vec::new();
        let header = ListHeader { format: 1, image: "ab".into(), version: "x 1".into() };
        write_line(&mut text, &header).unwrap();
        entries.iter().for_each(|entry| write_line(&mut text, entry).unwrap());
        let mut read = Vec::new();
        let take = |entry| {
            read.push(entry);
            Ok(())
        };
        assert_eq!(read_list(&text[..], take).unwrap(), header);
        assert_eq!(read, entries);
        assert_eq!(read[0].node.as_ref().unwrap().attribute_values().next(), Some(("user.x", vec![0, 255])));
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_line() {
        for (text, why) in [
            ("", "line 1"),
            ("{\"format\":2}\n", "format 2"),
            ("{\"format\":1}\n{\"path\":\"usr/x\"}\n", "line 2"),
            ("{\"format\":1}\n{\"path\":\"var/../usr/x\"}\n", "line 2"),
            ("{\"format\":1}\n{\"path\":\"/var/x\"}\n", "line 2"),
            ("{\"format\":1}\n{\"path\":\"var\"}\n", "line 2"),
            ("{\"format\":1}\n{\"path\":\"var/x\",\"rule\":\"often\"}\n", "line 2"),
        ] {
            let error = read_list(text.as_bytes(), |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_device_has_two_numbers() {
        for (device, numbers) in
            [(0, [0, 0]), (0x0103, [1, 3]), (0x0010_0803, [8, 259]), (0xf000_0000_0fff, [0xf_00f, 0xff])]
        {
            assert_eq!(device_numbers(device), numbers, "{device:x}");
        }
    }

    #[test]
    fn the_digest_is_of_everything_but_the_other_name() {
        let node = ShippedNode { mode: 0o644, ..ShippedNode::default() };
        let with = |change: &dyn Fn(&mut ShippedNode)| {
            let mut other = node.clone();
            change(&mut other);
            other.digest()
        };
        assert_eq!(with(&|node| node.first = Some(raw(b"var/a"))), node.digest());
        let changes: [&dyn Fn(&mut ShippedNode); 5] = [
            &|node| node.mode = 0o600,
            &|node| node.uid = 1,
            &|node| node.kind = NodeType::Pipe,
            &|node| node.content = "ab".into(),
            &|node| node.add_attribute("user.x".into(), b"y"),
        ];
        changes.iter().for_each(|change| assert_ne!(with(change), node.digest()));
    }
}
