//! Makes one shipped file with all that belongs to it, and sees whether one is there already.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use crate::order;
use crate::release::shipped::{CONTENT, DIRECTORY, NodeType, ShippedNode, device_numbers};
use crate::sys::{files, special};

/// Attributes that the machine's kernel gives by its own policy, and that no image brings.
const OF_THE_KERNEL: &[&str] = &["security.selinux", "security.ima", "security.evm"];
/// Bytes that are compared at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// Makes the file at `at`, where nothing is. `image` is the root of the image. Returns what of its attributes the file
/// system did not take: the file is worth having without them.
pub(super) fn make(node: &ShippedNode, image: &Path, at: &Path) -> io::Result<Vec<String>> {
    match node.kind {
        NodeType::File => write_content(node, image, at)?,
        NodeType::Directory => DirBuilder::new().mode(0o700).create(at)?,
        NodeType::Link => symlink(&node.target.clone().unwrap_or_default().0, at)?,
        NodeType::Pipe => special::make_pipe(at)?,
        NodeType::CharacterDevice | NodeType::BlockDevice => {
            special::make_device(at, node.kind == NodeType::BlockDevice, node.device.unwrap_or_default())?;
        }
    }
    dress(node, at)
}

/// Gives a file owner, permissions and attributes, in this order: a change of the owner takes capabilities away, and an
/// access control list has the last say on the permissions of the group.
pub(super) fn dress(node: &ShippedNode, at: &Path) -> io::Result<Vec<String>> {
    lchown(at, Some(node.uid), Some(node.gid))?;
    if node.kind != NodeType::Link {
        fs::set_permissions(at, Permissions::from_mode(node.mode & 0o7777))?;
    }
    let set = |(name, value): (&str, Vec<u8>)| {
        special::set_attribute(at, name, &value).err().map(|error| format!("attribute {name}: {error}"))
    };
    Ok(node.attribute_values().filter_map(set).collect())
}

fn write_content(node: &ShippedNode, image: &Path, at: &Path) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(at)?;
    file.set_len(node.size_bytes)?;
    let Some(mut content) = open_content(node, image)? else { return Ok(()) };
    for [offset, length] in &node.data {
        file.seek(SeekFrom::Start(*offset))?;
        if io::copy(&mut content.by_ref().take(*length), &mut file)? != *length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image has less content than it says"));
        }
    }
    Ok(())
}

fn open_content(node: &ShippedNode, image: &Path) -> io::Result<Option<File>> {
    if node.content.is_empty() {
        return Ok(None);
    }
    files::open_below(image, &Path::new(DIRECTORY).join(CONTENT).join(&node.content)).map(Some)
}

/// Whether the machine has exactly this at `at`, of which it is known that it is there.
pub(super) fn is_made(node: &ShippedNode, image: &Path, at: &Path) -> io::Result<bool> {
    let found = at.symlink_metadata()?;
    Ok(is_dressed(node, at, &found)? && has_content(node, image, at, &found)?)
}

/// Whether kind, owner, permissions and attributes are those of the release.
pub(super) fn is_dressed(node: &ShippedNode, at: &Path, found: &Metadata) -> io::Result<bool> {
    let same_mode = node.kind == NodeType::Link || found.mode() & 0o7777 == node.mode & 0o7777;
    if kind_of(found) != Some(node.kind) || !same_mode || (found.uid(), found.gid()) != (node.uid, node.gid) {
        return Ok(false);
    }
    let of_the_kernel = |name: &OsString| OF_THE_KERNEL.iter().any(|other| name == other);
    let mut names: Vec<OsString> =
        special::attribute_names(at)?.into_iter().filter(|name| !of_the_kernel(name)).collect();
    order::by(&mut names, OsString::cmp);
    let mut wanted: Vec<OsString> = node.attributes.keys().map(OsString::from).collect();
    order::by(&mut wanted, OsString::cmp);
    let same = |(name, value): (&str, Vec<u8>)| special::attribute(at, name.as_ref()).is_ok_and(|own| own == value);
    Ok(names == wanted && node.attribute_values().all(same))
}

/// Kind of what was found; `None` for a socket, which no release has.
pub(super) fn kind_of(found: &Metadata) -> Option<NodeType> {
    let kind = found.file_type();
    let kinds = [
        (kind.is_file(), NodeType::File),
        (kind.is_dir(), NodeType::Directory),
        (kind.is_symlink(), NodeType::Link),
        (kind.is_fifo(), NodeType::Pipe),
        (kind.is_char_device(), NodeType::CharacterDevice),
        (kind.is_block_device(), NodeType::BlockDevice),
    ];
    kinds.into_iter().find_map(|(is, kind)| is.then_some(kind))
}

fn has_content(node: &ShippedNode, image: &Path, at: &Path, found: &Metadata) -> io::Result<bool> {
    match node.kind {
        NodeType::Directory | NodeType::Pipe => Ok(true),
        NodeType::Link => Ok(fs::read_link(at)? == node.target.clone().unwrap_or_default().0),
        NodeType::CharacterDevice | NodeType::BlockDevice => {
            Ok(device_numbers(found.rdev()) == node.device.unwrap_or_default())
        }
        NodeType::File if found.len() != node.size_bytes => Ok(false),
        NodeType::File => {
            let (mut file, mut content) = (files::open(at)?, open_content(node, image)?);
            let mut place = 0;
            for [offset, length] in &node.data {
                let Some(content) = &mut content else { return Ok(false) };
                let zeros = offset.saturating_sub(place);
                if !are_equal(&mut file, &mut io::repeat(0), zeros)? || !are_equal(&mut file, content, *length)? {
                    return Ok(false);
                }
                place = offset.saturating_add(*length);
            }
            are_equal(&mut file, &mut io::repeat(0), node.size_bytes.saturating_sub(place))
        }
    }
}

/// Whether the next `length` bytes of both are the same.
fn are_equal(one: &mut impl Read, other: &mut impl Read, length: u64) -> io::Result<bool> {
    let (mut left, mut pieces) = (length, [vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]]);
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let [first, second] = &mut pieces;
        let (Some(first), Some(second)) = (first.get_mut(..now), second.get_mut(..now)) else { return Ok(false) };
        one.read_exact(first)?;
        other.read_exact(second)?;
        if first != second {
            return Ok(false);
        }
        left -= now as u64;
    }
    Ok(true)
}
