//! A pause that survives power cuts without a clock: the time that is over is noted on the state partition every now
//! and then. A robot that is switched off every night comes to the end of a pause of a day.
//!
//! The note is the file `pause`: the name of the pause, a space, and the seconds that are over. A name is that of one
//! pause in a row of them, so that the next one begins anew.

use std::io;
use std::time::Duration;

use crate::jobs::state::StatePartition;

/// Longest pause that is believed.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Name of the pause after the safe start of this number. The safe start itself may have been that pause.
#[must_use]
pub fn after_safe_start(number: u32) -> String {
    format!("safe:{number}")
}

/// Returns the time of the pause `name` that is over already.
#[must_use]
pub fn elapsed(state: &StatePartition, name: &str) -> Duration {
    state.pause_note().and_then(|note| parse(&note, name)).unwrap_or_default()
}

/// Notes the time of the pause `name` that is over.
///
/// # Errors
/// The file system's. The pause begins anew after a power cut.
pub fn note(state: &StatePartition, name: &str, elapsed: Duration) -> io::Result<()> {
    state.note_pause(&format!("{name} {}\n", elapsed.as_secs()))
}

/// Forgets the pauses of an earlier row of failures: their names come again. What cannot be removed costs a pause.
pub fn forget(state: &StatePartition) {
    let _ = state.forget_pause();
}

fn parse(note: &[u8], name: &str) -> Option<Duration> {
    let text = std::str::from_utf8(note).ok()?.strip_suffix('\n')?;
    let seconds = text.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{after_safe_start, elapsed, forget, note, parse};
    use crate::jobs::state::StatePartition;

    #[test]
    fn only_the_note_of_the_same_pause_counts() {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        let name = after_safe_start(3);
        assert_eq!(elapsed(&state, &name), Duration::ZERO);
        note(&state, &name, Duration::from_secs(1800)).unwrap();
        assert_eq!(elapsed(&state, &name), Duration::from_secs(1800));
        assert_eq!(elapsed(&state, &after_safe_start(4)), Duration::ZERO);
        assert_eq!(elapsed(&state, "safe"), Duration::ZERO);
        note(&state, "start:4", Duration::from_secs(7)).unwrap();
        assert_eq!(elapsed(&state, &name), Duration::ZERO);
        forget(&state);
        forget(&state);
        assert_eq!(elapsed(&state, "start:4"), Duration::ZERO);
    }

    #[test]
    fn a_damaged_note_is_none() {
        for damaged in ["", "safe:1", "safe:1 ", "safe:1 5", "safe:1 -5\n", "safe:1 5 5\n", "safe:1  5\n", "safe:15\n"]
        {
            assert_eq!(parse(damaged.as_bytes(), "safe:1"), None, "{damaged:?}");
        }
        assert_eq!(parse(b"safe:1 \xff\n", "safe:1"), None);
        assert_eq!(parse(format!("safe:1 {}\n", u64::MAX).as_bytes(), "safe:1"), Some(Duration::from_secs(86_400)));
    }

    #[test]
    fn what_lies_in_the_place_of_the_note_makes_way() {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("pause")).unwrap();
        assert_eq!(elapsed(&state, "try:1"), Duration::ZERO);
        note(&state, "try:1", Duration::from_secs(5)).unwrap();
        assert_eq!(elapsed(&state, "try:1"), Duration::from_secs(5));
        std::fs::remove_file(dir.path().join("pause")).unwrap();
        std::fs::create_dir(dir.path().join("pause")).unwrap();
        note(&state, "try:1", Duration::from_secs(6)).unwrap();
        assert_eq!(elapsed(&state, "try:1"), Duration::from_secs(6));
    }
}
