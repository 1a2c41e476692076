//! The provisioning marker in the last 4 KiB before the first partition: it says that a disk is being provisioned, and
//! later from which medium it was. Pure.
//!
//! Nothing else lies there: the table takes 24 KiB at most, and core.img on MBR disks ends before. No file system has
//! to be intact for the marker to be read, so that a medium left in its machine does not erase what it made, however
//! damaged that is.

use super::EDGE_LEN;
use crate::disk::table::ParsedTable;
use crate::machine::media::MediaId;
use crate::release::digest::is_zero;

/// Offset of the marker from the start of the disk, bytes.
pub(super) const OFFSET_BYTES: u64 = OFFSET as u64;
/// Offset of the marker in the first bytes of a disk.
pub(super) const OFFSET: usize = EDGE_LEN - SIZE;
/// Size of the marker on the disk, bytes.
pub(super) const SIZE_BYTES: u64 = SIZE as u64;
/// Size of the marker in memory: whole blocks of every disk.
const SIZE: usize = 4096;

/// Whole text while the disk is being provisioned.
const UNFINISHED: &str = "reflash: this disk is being provisioned\n";
/// Beginning of the text afterwards; the ID of the medium follows, a space, and the PARTUUID of the first partition.
const FINISHED: &str = "reflash: provisioned from ";

/// Returns the marker of a disk that is being provisioned.
pub(super) fn unfinished() -> Vec<u8> {
    padded(UNFINISHED)
}

/// Returns the marker of a disk with `table`, provisioned from `medium`.
pub(super) fn finished(medium: MediaId, table: &ParsedTable) -> Vec<u8> {
    padded(&format!("{FINISHED}{medium} {}\n", first_partition(table)))
}

/// Whether `head`, the first MiB of a disk, shows that provisioning it was interrupted.
pub(super) fn is_unfinished(head: &[u8]) -> bool {
    // A disk with anything in its first sector is in use, whatever the marker says.
    text(head).is_some_and(|text| text == UNFINISHED) && is_zero(&head[..512])
}

/// Returns the medium that a disk was provisioned from; `None` when the disk has got another table since then. A disk
/// without any table may still be what it was.
pub(super) fn medium_of(head: &[u8], table: Option<&ParsedTable>) -> Option<MediaId> {
    let (medium, partition) = text(head)?.strip_prefix(FINISHED)?.trim_end().split_once(' ')?;
    table.is_none_or(|table| first_partition(table) == partition).then(|| medium.parse().ok()).flatten()
}

fn first_partition(table: &ParsedTable) -> &str {
    table.partitions.first().map_or("", |entry| &entry.partuuid)
}

fn padded(text: &str) -> Vec<u8> {
    let mut mark = text.as_bytes().to_vec();
    mark.resize(SIZE, 0);
    mark
}

fn text(head: &[u8]) -> Option<&str> {
    let mark = head.get(OFFSET..EDGE_LEN)?;
    let (text, rest) = mark.split_at(mark.iter().position(|byte| *byte == 0)?);
    std::str::from_utf8(text).ok().filter(|_| is_zero(rest))
}

#[cfg(test)]
mod tests {
    use super::{OFFSET, finished, is_unfinished, medium_of, unfinished};
    use crate::disk::table::{ParsedTable, Scheme, TableEntry};
    use crate::machine::media::MediaId;

    fn head(mark: &[u8]) -> Vec<u8> {
        let mut head = vec![0; OFFSET];
        head.extend(mark);
        head
    }

    fn table(partuuid: &str) -> ParsedTable {
        let entry =
            TableEntry { number: 1, name: None, partuuid: partuuid.to_owned(), first_lba: 2048, size_bytes: 1 << 20 };
        ParsedTable {
            scheme: Scheme::Mbr,
            logical_block_size: 512,
            damaged_copy: false,
            damaged_primary: false,
            partitions: vec![entry],
        }
    }

    #[test]
    fn a_disk_knows_its_medium_until_it_gets_another_table() {
        let medium = MediaId::new([7; 16]);
        let head = head(&finished(medium, &table("a-01")));
        assert_eq!(medium_of(&head, Some(&table("a-01"))), Some(medium));
        assert_eq!(medium_of(&head, None), Some(medium));
        assert_eq!(medium_of(&head, Some(&table("b-01"))), None);
        assert!(!is_unfinished(&head));
    }

    #[test]
    fn a_begun_disk_is_unclaimed_only_with_an_empty_first_sector() {
        let mut head = head(&unfinished());
        assert!(is_unfinished(&head));
        assert_eq!(medium_of(&head, None), None);
        head[510] = 0x55;
        assert!(!is_unfinished(&head));
    }

    #[test]
    fn anything_else_is_not_a_marker() {
        for mark in [vec![0; 4096], vec![0xff; 4096], b"reflash: provisioned from x y\n".repeat(200)[..4096].to_vec()] {
            let head = head(&mark);
            assert!(!is_unfinished(&head) && medium_of(&head, None).is_none());
        }
        assert!(!is_unfinished(&[]) && medium_of(&[0; 512], None).is_none());
    }
}
