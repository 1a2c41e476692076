//! Weak hashes, deltas, differences and groups against an index of five chunks, the last of which is short.

use std::sync::OnceLock;

use reflash::release::add_copy;
use reflash::release::deltas::Deltas;
use reflash::release::digest::Digest;
use reflash::release::groups::Groups;
use reflash::release::index::{Builder, ChunkContent, Index, MIN_CHUNK_BYTES, Pack};
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
    let pack = Pack { digest: Digest::of(b"deltas"), size_bytes: u64::from(kind) };
    match kind % 4 {
        // What was found before there were groups keeps its meaning.
        _ if kind >= GROUPS_FROM => {
            let object = if kind % 2 == 0 { rest.to_vec() } else { zstd::bulk::compress(rest, 1).unwrap() };
            if let Ok(groups) = Groups::from_object(&object, index()) {
                check_groups(&groups);
            }
        }
        0 => {
            let Ok(weak_hashes) = WeakHashes::decode(rest.to_vec(), index()) else { return };
            assert_eq!(weak_hashes.encode(), rest);
            for stored in [0, 1, 4, 5, u32::MAX] {
                assert!(weak_hashes.of(stored).is_none_or(|hashes| stored < 5 && hashes.count() == 4));
            }
        }
        1 => drop(Deltas::from_object(rest, pack, index()).map(|deltas| check(&deltas, pack))),
        2 => {
            let (old, mut new) = ([7; 4096], [0; 8192]);
            let _ = add_copy::apply(&old, rest, &mut new);
        }
        _ => {
            let object = zstd::bulk::compress(rest, 1).unwrap();
            drop(Deltas::from_object(&object, pack, index()).map(|deltas| check(&deltas, pack)));
        }
    }
}

/// The first kind that stands for a table of groups.
const GROUPS_FROM: u8 = 240;

fn check_groups(groups: &Groups) {
    let (mut before, mut seen) = ((0, 0), [false; 4]);
    for number in 0..groups.len() {
        let group = groups.get(number);
        let pack = groups.packs()[group.pack as usize];
        assert!(before <= (group.pack, group.range.start) && group.range.end <= pack.size_bytes, "{group:?}");
        assert!(!group.range.is_empty() && !group.members.is_empty() && group.members.len() <= 512, "{group:?}");
        for stored in group.members.iter().flatten() {
            assert!(!std::mem::replace(&mut seen[*stored as usize], true), "{group:?}");
        }
        before = (group.pack, group.range.end);
    }
}

fn check(deltas: &Deltas, pack: Pack) {
    let mut end = 0;
    for number in 0..deltas.len() {
        let (delta, place) = (deltas.get(number), deltas.place(number));
        assert!(place.start == end && !place.is_empty() && !delta.chunks.is_empty(), "{delta:?}");
        assert!(!delta.chunks.contains(&0) && delta.source_bytes() <= 2 << 20, "{delta:?}");
        end = place.end;
    }
    assert_eq!(end, pack.size_bytes);
}
