//! Weak hashes and patches against an index of five chunks, the last of which is short.

use std::sync::OnceLock;

use reflash::release::digest::Digest;
use reflash::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};
use reflash::release::patches::Patches;
use reflash::release::weak_hashes::WeakHashes;

fn index() -> &'static Index {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(|| {
        let mut builder = Builder::new(4 * u64::from(MIN_CHUNK_BYTES) + 8192, MIN_CHUNK_BYTES).unwrap();
        for number in 0..5_u32 {
            builder.store(Digest::of(&number.to_le_bytes()), 10);
            builder.push_chunk(ChunkContent::Stored(number));
        }
        builder.push_extent(0, Pack { digest: Digest::of(b"chunks"), size_bytes: 50 }, 0);
        builder.finish().unwrap()
    })
}

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    // The pack has as many bytes as the kind says, so that a mutation can make them fit.
    let pack = Pack { digest: Digest::of(b"patches"), size_bytes: u64::from(kind) };
    match kind % 3 {
        0 => {
            let Ok(weak_hashes) = WeakHashes::decode(rest.to_vec(), index()) else { return };
            assert_eq!(weak_hashes.encode(), rest);
            for stored in [0, 1, 4, 5, u32::MAX] {
                assert!(weak_hashes.of(stored).is_none_or(|hashes| stored < 5 && hashes.count() == 4));
            }
        }
        1 => drop(Patches::from_object(rest, pack, index()).map(|patches| check(&patches, pack))),
        _ => {
            let object = zstd::bulk::compress(rest, 1).unwrap();
            drop(Patches::from_object(&object, pack, index()).map(|patches| check(&patches, pack)));
        }
    }
}

fn check(patches: &Patches, pack: Pack) {
    let mut end = 0;
    for (patch, offset) in patches.places() {
        assert!(offset == end && patch.length > 0 && patch.chunk == patch.stored && patch.chunk != 0, "{patch:?}");
        end += u64::from(patch.length);
    }
    assert_eq!(end, pack.size_bytes);
}
