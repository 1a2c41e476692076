//! The chunk index, before and after decompression.

use reflash::release::index::Index;

use crate::raw_index::RawIndex;

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => {
            let Ok(index) = Index::decode(rest) else { return };
            assert_eq!(index.encode(), rest, "what is accepted is what the numbers say");
            assert_eq!(RawIndex::of(rest).encode(), rest, "and another reader reads the same");
            check(&index);
        }
        1 => drop(Index::from_object(rest).map(|index| check(&index))),
        _ => {
            let object = zstd::bulk::compress(rest, 1).unwrap();
            assert_eq!(Index::from_object(&object).is_ok(), Index::decode(rest).is_ok());
        }
    }
}

fn check(index: &Index) {
    let mut places: Vec<_> = (0..index.stored_count()).map(|stored| index.location(stored)).collect();
    for place in &places {
        assert!(place.range.start < place.range.end, "{place:?}");
        assert!(place.range.end <= index.packs()[place.pack as usize].size_bytes, "{place:?}");
    }
    places.sort_by_key(|place| (place.pack, place.range.start));
    for pair in places.windows(2) {
        assert!(pair[0].pack != pair[1].pack || pair[0].range.end <= pair[1].range.start, "{pair:?}");
    }
    let mut end = 0;
    for chunk in 0..index.chunk_count() {
        let range = index.chunk_range(chunk);
        assert!(range.start == end && range.start < range.end, "{range:?}");
        end = range.end;
        let _ = index.chunk_content(chunk);
    }
    assert_eq!(end, index.image_bytes());
}
