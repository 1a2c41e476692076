//! Steps with pauses between them, as two targets read them from their input.

use std::time::Duration;

/// What comes after a pause.
pub struct Step<'a> {
    pub pause: Duration,
    pub kind: u8,
    pub bytes: &'a [u8],
}

/// Takes the next step of the input: a byte for the pause, one for the kind, two for the length, and the bytes.
pub fn next<'a>(rest: &mut &'a [u8]) -> Option<Step<'a>> {
    let (&[pause, kind, low, high], more) = rest.split_first_chunk::<4>()?;
    let (bytes, more) = more.split_at((usize::from(low) | usize::from(high & 7) << 8).min(more.len()));
    *rest = more;
    // Small pauses are milliseconds, and the largest are days.
    let pause = if pause < 200 {
        Duration::from_millis(u64::from(pause) * 50)
    } else {
        Duration::from_secs(1 << (pause - 200).min(20))
    };
    Some(Step { pause, kind, bytes })
}
