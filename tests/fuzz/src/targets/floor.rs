//! Copies of the floor, with changed bytes and right digests: what is believed is what a robot can have written, what
//! is written again is the same, and no copy makes the floor fall.

use reflash::jobs::floor::{FloorRecord, GoodRelease, ReleaseId};
use reflash::release::digest::Digest;
use reflash::release::manifest::MAX_SERIAL;

const SIZE: usize = 512;
const DIGEST_AT: usize = SIZE - 32;

pub fn run(data: &[u8]) {
    // As it is, which only a whole record survives.
    check(FloorRecord::decode(data));
    let Some((&how, changes)) = data.split_first() else { return };
    let copies: Vec<FloorRecord> = changes.chunks(SIZE).filter_map(|bytes| copy(how, bytes)).collect();
    copies.iter().for_each(|copy| check(Some(copy.clone())));
    let Some(mut together) = FloorRecord::together(&copies) else { return };
    assert!(copies.iter().all(|copy| copy.serial <= together.serial), "the floor fell");
    let before = together.serial;
    let id = ReleaseId::new(u64::from(how), changes);
    together.refuse(id);
    assert!(together.refuses(&id));
    together.note_good(GoodRelease::new(id, &Digest::of(changes)));
    together.raise(id.serial);
    together.allow(id);
    assert!(together.serial >= before && !together.refuses(&id));
    check(Some(together));
}

/// A copy with right magic and digest: the bytes as they are, or changes of a record that a robot wrote.
fn copy(how: u8, bytes: &[u8]) -> Option<FloorRecord> {
    let mut content = [0; SIZE];
    if how & 1 == 0 {
        content[..bytes.len()].copy_from_slice(bytes);
        content[..8].copy_from_slice(b"RFLASHFL");
    } else {
        let mut written = FloorRecord::default();
        (written.sequence, written.serial) = (3, 40);
        let id = |serial: u64| ReleaseId::new(serial, &serial.to_le_bytes());
        written.note_good(GoodRelease::new(id(40), &Digest::of(b"image")));
        written.allow(id(30));
        (50..55).for_each(|serial| assert!(written.refuse(id(serial))));
        content = written.encode();
        for change in bytes.as_chunks::<3>().0 {
            content[usize::from(u16::from_le_bytes([change[0], change[1]])) % DIGEST_AT] ^= change[2];
        }
    }
    let digest = Digest::of(&content[..DIGEST_AT]);
    content[DIGEST_AT..].copy_from_slice(&digest.0);
    FloorRecord::decode(&content)
}

fn check(record: Option<FloorRecord>) {
    let Some(record) = record else { return };
    let serials = [record.allowed, record.good.map(|good| good.release)].into_iter().flatten();
    let serials = serials.chain(record.refused.iter().copied()).chain(record.lowerings.iter().map(|it| it.release));
    assert!(record.serial <= MAX_SERIAL && serials.map(|id| id.serial).all(|serial| serial <= MAX_SERIAL));
    assert!(record.refused.len() <= 8 && record.lowerings.len() <= 4);
    assert_eq!(FloorRecord::decode(&record.encode()), Some(record));
}
