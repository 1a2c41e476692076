//! A whole black box, whose slots hold anything under right digests: root of the running system can write it.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use reflash::record::blackbox::{Attempt, BlackBox, Marks, SIZE_BYTES};
use reflash::release::digest::Digest;

const SLOT_BYTES: usize = 4096;

/// One file for this process, in memory where there is such a place.
fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let shared = PathBuf::from("/dev/shm");
        let directory = if shared.is_dir() { shared } else { std::env::temp_dir() };
        directory.join(format!("reflash-fuzz-blackbox-{}", std::process::id()))
    })
}

pub fn run(data: &[u8]) {
    let file = std::fs::File::create(path()).unwrap();
    file.set_len(SIZE_BYTES).unwrap();
    for (place, json) in (0_u64..).zip(data.split(|byte| *byte == b'\n').take(SIZE_BYTES as usize / SLOT_BYTES)) {
        // Sequence numbers from small to the largest, by the first byte.
        let sequence = u64::from(json.first().copied().unwrap_or(0)).wrapping_mul(0x0101_0101_0101_0101);
        let mut slot = b"RFLASHBB".to_vec();
        slot.extend_from_slice(&sequence.to_le_bytes());
        slot.extend_from_slice(&(json.len() as u32).to_le_bytes());
        slot.extend_from_slice(&Digest::of(json).0);
        slot.extend_from_slice(json);
        slot.resize(SLOT_BYTES, 0);
        file.write_all_at(&slot, place * SLOT_BYTES as u64).unwrap();
    }
    let opened = BlackBox::open(path());
    let _ = std::fs::remove_file(path());
    let Ok(mut opened) = opened else { return };
    let _ = (opened.recoveries(), opened.failures_in_a_row());
    let attempt = Attempt { id: opened.next_id(), ..Attempt::default() };
    let _ = attempt.is_over(attempt.id);
    opened.record(&attempt).unwrap();
    assert_eq!(opened.attempts().last(), Some(&attempt));
    let _ = opened.mark(Marks { good_through: 1, reported_through: 1 });
}
