//! Groups: the chunks of an image once more, many compressed together, for a machine that lacks most of them. Pure.
//!
//! A chunk by itself compresses badly, and its tables cost the decoder as much as its content. A group is one zstd
//! frame around the contents of its members, stored chunks one after the other. The digest of its own bytes is checked
//! before anything looks at them, and what it makes by the digests of the chunks, as ever.
//!
//! Groups are taken over from release to release. A member that the image no longer has is still a full chunk of the
//! group's content. A short last chunk of an image is in no group.
//!
//! The table is one zstd frame around the following. All numbers little endian; sections follow each other:
//!
//! | section | entries | entry |
//! |---|---|---|
//! | header | 1 | 8 bytes `RFLASHGR`; u32 version 1; u32 packs P; u32 groups G; u32 members M |
//! | packs | P | 32 bytes BLAKE3 of the pack; u64 its size |
//! | groups | G | u32 pack; u32 length; u64 offset in the pack; u32 number of its members; first 16 bytes of the BLAKE3 of its bytes |
//! | members | M | u32 stored chunk, as the difference to the one before and one more (0 for the next); 0x80000000 for one that the image does not have |
//!
//! Groups ascend by pack and offset, and no two share a byte.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use crate::release::cursor::Cursor;
use crate::release::deltas::count;
use crate::release::digest::{Digest, HalfDigest};
use crate::release::index::{Index, MAX_CHUNKS, Pack, StoredChunkNo, compressed_limit};
use crate::release::zstd_frame;

const MAGIC: &[u8; 8] = b"RFLASHGR";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 24;
const PACK_BYTES: u64 = 40;
const GROUP_BYTES: u64 = 36;
/// In the list of members: one that the image does not have. No difference of two stored chunks is as large.
const GONE: u32 = 0x8000_0000;

/// The most bytes of content in one group: bounds the memory of an agent.
pub const MAX_CONTENT_BYTES: u64 = 8 * 1024 * 1024;
/// The most members in a table: every chunk of the largest image, and as many that are gone.
const MAX_MEMBERS: u64 = 2 * MAX_CHUNKS;
/// Size of the largest table, before compression.
pub const MAX_TABLE_BYTES: u64 = HEADER_BYTES + MAX_CHUNKS * (PACK_BYTES + GROUP_BYTES) + MAX_MEMBERS * 4;

/// One group: where it lies, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkGroup<'a> {
    /// Position of its pack in [`Groups::packs`].
    pub pack: u32,
    /// Bytes of the pack.
    pub range: Range<u64>,
    /// The first bytes of its digest.
    pub digest: HalfDigest,
    /// Members of the group in their order, each a full chunk; `None` for one that the image does not have.
    pub members: &'a [Option<StoredChunkNo>],
}

/// The groups of a release.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    packs: Vec<Pack>,
    entries: Vec<Entry>,
    members: Vec<Option<StoredChunkNo>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    pack: u32,
    length: u32,
    offset: u64,
    digest: HalfDigest,
    /// The end of its members.
    end: u32,
}

/// The error for bytes that are not the table of an index's groups.
#[derive(Debug, thiserror::Error)]
pub enum GroupsError {
    /// The bytes are something else, or a later format.
    #[error("not a table of groups of version {VERSION}")]
    Magic,
    /// The table belongs to another index, contradicts itself, or is cut off.
    #[error("the table of groups does not fit: {0}")]
    Unfit(String),
    /// The object is not a zstd frame, or is damaged.
    #[error("the table of groups cannot be decompressed")]
    Compressed(#[source] io::Error),
}

impl Groups {
    /// Adds the next pack.
    pub fn push_pack(&mut self, pack: Pack) {
        self.packs.push(pack);
    }

    /// Adds the next group to the last pack, behind those that were added before it. A group has less than 4 GiB.
    pub fn push_to_last(&mut self, range: Range<u64>, digest: HalfDigest, members: &[Option<StoredChunkNo>]) {
        self.members.extend_from_slice(members);
        let (pack, length) = (count(&self.packs).saturating_sub(1), range.end.saturating_sub(range.start));
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.entries.push(Entry { pack, length, offset: range.start, digest, end: count(&self.members) });
    }

    /// The packs that the groups lie in.
    #[must_use]
    pub fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// Number of groups.
    #[must_use]
    pub fn len(&self) -> u32 {
        count(&self.entries)
    }

    /// Whether there is no group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns a group by its number, which must be below [`len`](Self::len).
    #[must_use]
    pub fn get(&self, number: u32) -> ChunkGroup<'_> {
        let number = number as usize;
        let Entry { pack, length, offset, digest, end } = self.entries[number];
        let start = if number == 0 { 0 } else { self.entries[number - 1].end };
        let members = &self.members[start as usize..end as usize];
        ChunkGroup { pack, range: offset..offset.saturating_add(u64::from(length)), digest, members }
    }

    /// Encodes the table, before compression.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [VERSION, count(&self.packs), self.len(), count(&self.members)] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for pack in &self.packs {
            out.extend_from_slice(&pack.digest.0);
            out.extend_from_slice(&pack.size_bytes.to_le_bytes());
        }
        for number in 0..self.len() {
            let Entry { pack, length, offset, digest, .. } = &self.entries[number as usize];
            out.extend_from_slice(&pack.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&count(self.get(number).members).to_le_bytes());
            out.extend_from_slice(digest);
        }
        let mut next = 0_u32;
        for member in &self.members {
            out.extend_from_slice(&member.map_or(GONE, |stored| stored.wrapping_sub(next)).to_le_bytes());
            next = member.map_or(next, |stored| stored.wrapping_add(1));
        }
        out
    }

    /// Reads the object of a table that belongs to `index`.
    ///
    /// # Errors
    /// [`GroupsError`] says why the object is refused.
    pub fn from_object(object: &[u8], index: &Index) -> Result<Self, GroupsError> {
        let bytes = zstd_frame::content(object, MAX_TABLE_BYTES).map_err(GroupsError::Compressed)?;
        Self::decode(&bytes, index)
    }

    fn decode(bytes: &[u8], index: &Index) -> Result<Self, GroupsError> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array() != Some(*MAGIC) || cursor.u32() != Some(VERSION) {
            return Err(GroupsError::Magic);
        }
        let cut = || GroupsError::Unfit(format!("it has {} bytes, and its header asks for others", bytes.len()));
        let mut counts = || cursor.u32().ok_or_else(cut);
        let (packs, groups, members) = (counts()?, counts()?, counts()?);
        let [p, g, m] = [packs, groups, members].map(u64::from);
        if p > MAX_CHUNKS || g > MAX_CHUNKS || m > MAX_MEMBERS {
            return unfit("it has more packs, groups or members than an image can have");
        }
        if HEADER_BYTES + p * PACK_BYTES + g * GROUP_BYTES + m * 4 != bytes.len() as u64 {
            return Err(cut());
        }
        let pack = |cursor: &mut Cursor<'_>| Some(Pack { digest: Digest(cursor.array()?), size_bytes: cursor.u64()? });
        let group = |cursor: &mut Cursor<'_>| {
            let (pack, length, offset) = (cursor.u32()?, cursor.u32()?, cursor.u64()?);
            // Its members' end is known once those of all before it are.
            Some(Entry { pack, length, offset, end: cursor.u32()?, digest: cursor.array()? })
        };
        let (Some(packs), Some(mut entries), Some(steps)) =
            (cursor.list(packs, pack), cursor.list(groups, group), cursor.list(members, Cursor::u32))
        else {
            return Err(cut());
        };
        let mut end = 0_u32;
        for entry in &mut entries {
            end = end.saturating_add(entry.end);
            entry.end = end;
        }
        if end != members {
            return unfit(&format!("its groups have {end} members, of {members}"));
        }
        let mut next = 0_u32;
        let member = |step: u32| {
            let stored = (step != GONE).then(|| next.wrapping_add(step))?;
            next = stored.wrapping_add(1);
            Some(stored)
        };
        let table = Self { packs, entries, members: steps.into_iter().map(member).collect() };
        table.check(index)?;
        Ok(table)
    }

    /// Checks that the groups fit the index and each other.
    fn check(&self, index: &Index) -> Result<(), GroupsError> {
        let mut known: HashSet<Digest> = index.packs().iter().map(|pack| pack.digest).collect();
        if let Some(pack) = self.packs.iter().find(|pack| !known.insert(pack.digest)) {
            return unfit(&format!("its pack {} is there twice, or one of the chunk index", pack.digest));
        }
        let chunk_bytes = index.chunk_bytes();
        let mut seen = vec![false; index.stored_count() as usize];
        for stored in self.members.iter().flatten() {
            let is_full = *stored < index.stored_count() && index.stored_len(*stored) == chunk_bytes as usize;
            if !is_full || std::mem::replace(&mut seen[*stored as usize], true) {
                return unfit(&format!("stored chunk {stored} is no member that a group can have, or is there twice"));
            }
        }
        let mut before = (0, 0);
        for number in 0..self.len() {
            let ChunkGroup { pack, range, members, .. } = self.get(number);
            let content_bytes = members.len() as u64 * u64::from(chunk_bytes);
            let limit = u32::try_from(content_bytes).map_or(0, compressed_limit);
            let length = range.end - range.start;
            if content_bytes == 0 || content_bytes > MAX_CONTENT_BYTES || length == 0 || length > u64::from(limit) {
                return unfit(&format!("group {number} has {length} bytes for {content_bytes} of content"));
            }
            let is_within = self.packs.get(pack as usize).is_some_and(|pack| range.end <= pack.size_bytes);
            if !is_within || (pack, range.start) < before {
                return unfit(&format!("group {number} does not lie behind the others in a pack"));
            }
            before = (pack, range.end);
        }
        Ok(())
    }
}

fn unfit<T>(text: &str) -> Result<T, GroupsError> {
    Err(GroupsError::Unfit(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Groups, GroupsError, MAX_CONTENT_BYTES};
    use crate::release::digest::Digest;
    use crate::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};

    /// Six stored chunks, the last of them short.
    fn image() -> Index {
        let mut builder = Builder::new(5 * u64::from(MIN_CHUNK_BYTES) + 4096, MIN_CHUNK_BYTES).unwrap();
        for number in 0..6_u32 {
            builder.store(Digest::of(&number.to_le_bytes()), 10);
            builder.push_chunk(ChunkContent::Stored(number));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b"chunks"), size_bytes: 60 }, 0);
        builder.finish().unwrap()
    }

    fn pack(name: &str, size_bytes: u64) -> Pack {
        Pack { digest: Digest::of(name.as_bytes()), size_bytes }
    }

    fn sample() -> Groups {
        let mut groups = Groups::default();
        groups.push_pack(pack("one", 100));
        groups.push_to_last(5..45, [1; 16], &[Some(2), None, Some(3)]);
        groups.push_to_last(45..100, [2; 16], &[Some(0)]);
        groups.push_pack(pack("two", 50));
        groups.push_to_last(0..50, [3; 16], &[None, Some(4), Some(1)]);
        groups
    }

    fn refusal(groups: &Groups) -> String {
        match Groups::decode(&groups.encode(), &image()) {
            Err(GroupsError::Unfit(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_table_comes_back_as_it_was() {
        let groups = sample();
        let object = zstd::bulk::compress(&groups.encode(), 3).unwrap();
        let back = Groups::from_object(&object, &image()).unwrap();
        assert_eq!(back, groups);
        let last = back.get(2);
        assert_eq!((last.pack, last.range.clone(), last.members), (1, 0..50, &[None, Some(4), Some(1)][..]));
        assert!(Groups::from_object(&[], &image()).is_err());
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_borne() {
        let (bytes, image) = (sample().encode(), image());
        for len in 0..bytes.len() {
            assert!(Groups::decode(&bytes[..len], &image).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            for bit in [1, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= bit;
                let _ = Groups::decode(&changed, &image);
            }
        }
    }

    type Change = fn(&mut Groups);

    #[test]
    fn what_contradicts_itself_or_the_index_is_refused() {
        let most = usize::try_from(MAX_CONTENT_BYTES / u64::from(MIN_CHUNK_BYTES)).unwrap();
        let cases: [(Change, &str); 9] = [
            (|groups| groups.packs[1] = groups.packs[0], "is there twice"),
            (|groups| groups.packs[1] = pack("chunks", 60), "one of the chunk index"),
            (|groups| groups.members[0] = Some(6), "stored chunk 6 is no member"),
            (|groups| groups.members[0] = Some(5), "stored chunk 5 is no member"),
            (|groups| groups.members[0] = Some(0), "stored chunk 0 is no member"),
            (|groups| groups.entries[1].offset = 44, "group 1 does not lie behind"),
            (|groups| groups.entries[2].offset = u64::MAX, "group 2 "),
            (|groups| groups.entries[2].pack = 2, "group 2 does not lie"),
            (|groups| groups.entries[0].length = 0, "group 0 has 0 bytes"),
        ];
        for (change, expected) in cases {
            let mut groups = sample();
            change(&mut groups);
            let text = refusal(&groups);
            assert!(text.contains(expected), "{text}");
        }
        for (members, fits) in [(most, true), (most + 1, false), (0, false)] {
            let mut groups = Groups::default();
            groups.push_pack(pack("one", 100));
            groups.push_to_last(0..100, [0; 16], &vec![None; members]);
            assert_eq!(Groups::decode(&groups.encode(), &image()).is_ok(), fits, "{members}");
        }
    }
}
