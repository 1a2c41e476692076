//! An index as its bare numbers, which need not fit each other: what a signer with a fault, or with a stolen key, can
//! make. The library's own builder refuses to.

/// The sections of an index. `docs/release-format.md` describes them.
#[derive(Debug, Clone, Default)]
pub struct RawIndex {
    pub chunk_bytes: u32,
    pub image_bytes: u64,
    /// Digest and size of each pack.
    pub packs: Vec<([u8; 32], u64)>,
    /// First stored chunk, pack and offset of each extent.
    pub extents: Vec<(u32, u32, u64)>,
    /// Stored chunk of each chunk, or `u32::MAX` for zeros.
    pub chunks: Vec<u32>,
    /// Compressed length of each stored chunk.
    pub lengths: Vec<u32>,
    /// Digest of each stored chunk.
    pub digests: Vec<[u8; 32]>,
    /// Counts of chunks, stored chunks, extents and packs in the header, where they are not those of the lists.
    pub counts: [Option<u32>; 4],
}

impl RawIndex {
    /// Takes a good index apart.
    pub fn of(bytes: &[u8]) -> Self {
        let mut rest = &bytes[12..];
        let (chunk_bytes, image_bytes) = (take_u32(&mut rest), take_u64(&mut rest));
        let [_, chunks, stored, extents, packs, _]: [u32; 6] = std::array::from_fn(|_| take_u32(&mut rest));
        let packs = (0..packs).map(|_| (take(&mut rest), take_u64(&mut rest))).collect();
        let extents = (0..extents).map(|_| (take_u32(&mut rest), take_u32(&mut rest), take_u64(&mut rest))).collect();
        let chunks = (0..chunks).map(|_| take_u32(&mut rest)).collect();
        let lengths = (0..stored).map(|_| take_u32(&mut rest)).collect();
        let digests = (0..stored).map(|_| take(&mut rest)).collect();
        Self { chunk_bytes, image_bytes, packs, extents, chunks, lengths, digests, counts: [None; 4] }
    }

    /// Encodes the numbers as they are, before compression.
    pub fn encode(&self) -> Vec<u8> {
        let lens = [self.chunks.len(), self.lengths.len(), self.extents.len(), self.packs.len()];
        let mut out = b"RFLASHIX".to_vec();
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        put(&2_u32.to_le_bytes());
        put(&self.chunk_bytes.to_le_bytes());
        put(&self.image_bytes.to_le_bytes());
        put(&4096_u32.to_le_bytes());
        for (count, len) in self.counts.iter().zip(lens) {
            put(&count.unwrap_or(len as u32).to_le_bytes());
        }
        put(&[0; 4]);
        for (digest, size_bytes) in &self.packs {
            put(digest);
            put(&size_bytes.to_le_bytes());
        }
        for (first, pack, offset_bytes) in &self.extents {
            put(&first.to_le_bytes());
            put(&pack.to_le_bytes());
            put(&offset_bytes.to_le_bytes());
        }
        for number in self.chunks.iter().chain(&self.lengths) {
            put(&number.to_le_bytes());
        }
        self.digests.iter().for_each(|digest| put(digest));
        out
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (head, tail) = rest.split_first_chunk().expect("a good index is whole");
    *rest = tail;
    *head
}

fn take_u32(rest: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(rest))
}

fn take_u64(rest: &mut &[u8]) -> u64 {
    u64::from_le_bytes(take(rest))
}
