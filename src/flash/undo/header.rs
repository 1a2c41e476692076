//! The two header blocks of what is kept. Pure: [`super`] has the format.

use super::obstacle::UndoRoom;
use crate::release::digest::{BLOCK_SIZE_BYTES, Digest};
use crate::release::fields::{u32_at, u64_at};
use crate::release::index::{MAX_CHUNKS, MAX_OBJECT_BYTES};
use crate::release::manifest::{MAX_SIGNATURE_BYTES, MAX_SIZE_BYTES};

const MAGIC: &[u8; 8] = b"RFLASHUN";
const VERSION: u32 = 1;
/// Offset in the block of the parts.
const PARTS_AT: usize = 64;
/// Offset in the block of the places of the second copies of the parts.
const COPIES_AT: usize = PARTS_AT + PARTS * 48;
/// Offset in the block of the digest over everything before it.
const DIGEST_AT: usize = BLOCK_SIZE_BYTES - 32;

/// Size of an entry of the directory, bytes.
pub(super) const ENTRY_BYTES: usize = 44;
/// Number of parts.
const PARTS: usize = 4;
/// The most bytes that each part may have: manifest, signature, chunk index and directory.
const LIMITS: [u64; PARTS] = [MAX_SIZE_BYTES, MAX_SIGNATURE_BYTES, MAX_OBJECT_BYTES, MAX_CHUNKS * ENTRY_BYTES as u64];

/// A part of what is kept, other than chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeptPart {
    /// Offset on the partition, bytes; a multiple of 4096.
    pub(super) offset: u64,
    /// Offset of its second copy, bytes; 0 where there is none.
    pub(super) copy: u64,
    /// Length, bytes.
    pub(super) length: u64,
    /// BLAKE3 of the part.
    pub(super) digest: Digest,
}

/// Places of everything that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contents {
    /// Lowest offset that is in use, bytes. What is added lies below it.
    pub(super) low: u64,
    /// Number of distinct chunks that are neither kept nor in their places.
    pub(super) missing: u32,
    /// The signed manifest of the release.
    pub(super) manifest: KeptPart,
    /// Its signature.
    pub(super) signature: KeptPart,
    /// The object of its chunk index.
    pub(super) index: KeptPart,
    /// The directory of the chunks.
    pub(super) directory: KeptPart,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a few of them live at a time, and they are copied")]
pub(super) enum State {
    /// Nothing is kept.
    Nothing,
    /// A release is kept.
    Kept(Contents),
    /// Nothing is kept, since there was no room.
    NoRoom(UndoRoom),
    /// Nothing is kept, since the disk did not take it.
    NotKept,
    /// A later format: whatever is there, this agent cannot read it.
    Later,
}

/// A header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Number of the header. The higher of two that are whole counts.
    pub(super) sequence: u64,
    /// What the header says.
    pub(super) state: State,
}

impl Header {
    /// Reads a block. `end` is the offset on the partition where what is kept ends and the headers begin. Whatever is
    /// no header of this partition is `None`.
    pub(super) fn decode(block: &[u8], end: u64) -> Option<Self> {
        let (content, digest) = block.get(..BLOCK_SIZE_BYTES)?.split_at(DIGEST_AT);
        if !content.starts_with(MAGIC) || digest != Digest::of(content).0 {
            return None;
        }
        let sequence = u64_at(content, 16)?;
        if u32_at(content, 8)? != VERSION {
            return Some(Self { sequence, state: State::Later });
        }
        if u64_at(content, 24)? != end {
            return None;
        }
        let state = match u32_at(content, 12)? {
            0 => State::Nothing,
            1 => State::Kept(contents(content, end)?),
            2 => State::NoRoom(UndoRoom { needed_bytes: u64_at(content, 40)?, there_bytes: u64_at(content, 48)? }),
            3 => State::NotKept,
            _ => State::Later,
        };
        Some(Self { sequence, state })
    }

    /// Writes the block of a partition on which the headers begin at `end`.
    pub(super) fn encode(&self, end: u64) -> [u8; BLOCK_SIZE_BYTES] {
        let mut block = [0; BLOCK_SIZE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        let kind: u32 = match self.state {
            State::Nothing | State::Later => 0,
            State::Kept(_) => 1,
            State::NoRoom(_) => 2,
            State::NotKept => 3,
        };
        put(12, &kind.to_le_bytes());
        put(16, &self.sequence.to_le_bytes());
        put(24, &end.to_le_bytes());
        match &self.state {
            State::Kept(contents) => {
                put(32, &contents.low.to_le_bytes());
                put(56, &contents.missing.to_le_bytes());
                for (part, at) in contents.parts().iter().zip((PARTS_AT..).step_by(48)) {
                    put(at, &part.offset.to_le_bytes());
                    put(at + 8, &part.length.to_le_bytes());
                    put(at + 16, &part.digest.0);
                }
                for (part, at) in contents.parts().iter().zip((COPIES_AT..).step_by(8)) {
                    put(at, &part.copy.to_le_bytes());
                }
            }
            State::NoRoom(room) => {
                put(40, &room.needed_bytes.to_le_bytes());
                put(48, &room.there_bytes.to_le_bytes());
            }
            State::Nothing | State::NotKept | State::Later => {}
        }
        let digest = Digest::of(&block[..DIGEST_AT]);
        block[DIGEST_AT..].copy_from_slice(&digest.0);
        block
    }
}

impl Contents {
    fn parts(&self) -> [KeptPart; PARTS] {
        [self.manifest, self.signature, self.index, self.directory]
    }
}

/// Reads the places. None may lie outside of what they say is in use, or be larger than its kind can be.
fn contents(content: &[u8], end: u64) -> Option<Contents> {
    const BLOCK: u64 = BLOCK_SIZE_BYTES as u64;
    let low = u64_at(content, 32)?;
    if low > end || !low.is_multiple_of(BLOCK) {
        return None;
    }
    let part = |number: usize| {
        let at = PARTS_AT + number * 48;
        let (offset, length) = (u64_at(content, at)?, u64_at(content, at + 8)?);
        let digest = Digest(*content.get(at + 16..)?.first_chunk()?);
        let copy = u64_at(content, COPIES_AT + number * 8)?;
        let fits = |offset: u64| {
            offset >= low && offset.is_multiple_of(BLOCK) && offset.checked_add(length).is_some_and(|last| last <= end)
        };
        let is_right = fits(offset) && (copy == 0 || fits(copy)) && length <= LIMITS[number];
        is_right.then_some(KeptPart { offset, copy, length, digest })
    };
    let missing = u32_at(content, 56)?;
    let (manifest, signature, index, directory) = (part(0)?, part(1)?, part(2)?, part(3)?);
    Some(Contents { low, missing, manifest, signature, index, directory })
}

#[cfg(test)]
mod tests {
    use super::{Contents, Header, KeptPart, State};
    use crate::flash::undo::UndoRoom;
    use crate::release::digest::Digest;

    const END: u64 = 1 << 20;

    fn part(offset: u64, length: u64) -> KeptPart {
        KeptPart { offset, copy: 0, length, digest: Digest::of(&offset.to_le_bytes()) }
    }

    fn contents() -> Contents {
        Contents {
            low: 4096,
            missing: 3,
            manifest: part(END - 4096, 4000),
            signature: part(END - 8192, 300),
            index: KeptPart { copy: 20_480, ..part(8192, 10_000) },
            directory: part(4096, 44),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_only_on_a_partition_of_that_size() {
        let room = UndoRoom { needed_bytes: 9, there_bytes: 8 };
        for state in [State::Nothing, State::Kept(contents()), State::NoRoom(room), State::NotKept] {
            let header = Header { sequence: 7, state };
            let block = header.encode(END);
            assert_eq!(Header::decode(&block, END), Some(header));
            assert_eq!(Header::decode(&block, END + 4096), None);
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let block = Header { sequence: 7, state: State::Kept(contents()) }.encode(END);
        for at in 0..block.len() {
            let mut changed = block;
            changed[at] ^= 0x40;
            assert_eq!(Header::decode(&changed, END), None, "byte {at}");
        }
        assert_eq!(Header::decode(&block[..4095], END), None);
        assert_eq!(Header::decode(&[0; 4096], END), None);
    }

    #[test]
    fn places_that_cannot_be_are_refused_even_with_a_digest() {
        let refused = |change: &dyn Fn(&mut Contents)| {
            let mut wrong = contents();
            change(&mut wrong);
            Header::decode(&Header { sequence: 1, state: State::Kept(wrong) }.encode(END), END).is_none()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|wrong| wrong.low = END + 4096));
        assert!(refused(&|wrong| wrong.low = 4095));
        assert!(refused(&|wrong| wrong.directory.offset = 0), "below what is in use");
        assert!(refused(&|wrong| wrong.manifest.length = 4097), "into the headers");
        assert!(refused(&|wrong| wrong.index.length = u64::MAX - 8191), "wraps");
        assert!(refused(&|wrong| wrong.signature = part(8192, 4097)), "larger than a signature");
        assert!(refused(&|wrong| wrong.index.offset = 8193));
        assert!(refused(&|wrong| wrong.index.copy = 8193));
        assert!(refused(&|wrong| wrong.manifest.copy = END), "its second copy in the headers");
        assert!(!refused(&|wrong| wrong.index.copy = 0), "no second copy");
    }

    #[test]
    fn a_later_format_is_known_as_such_and_its_number_counts() {
        let mut block = Header { sequence: 9, state: State::Nothing }.encode(END);
        block[8] = 2;
        let digest = Digest::of(&block[..4064]);
        block[4064..].copy_from_slice(&digest.0);
        assert_eq!(Header::decode(&block, END), Some(Header { sequence: 9, state: State::Later }));
    }
}
