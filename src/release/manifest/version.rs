//! Versions: that of a release is text for people, that of an agent is compared. Pure.

/// Size of the longest version of a release, bytes.
const MAX_BYTES: usize = 100;
/// Letters of a bad version that are shown.
const SHOWN: usize = 20;

/// Checks the version of a release, which is shown on consoles and stands in records that have little room. The error
/// is what of it can be shown, and the reason.
pub(super) fn check_shown(version: &str) -> Result<(), (String, String)> {
    if !version.is_empty() && version.len() <= MAX_BYTES && !version.contains(char::is_control) {
        return Ok(());
    }
    let shown: String = version.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect();
    let reason = format!(
        "its version, which begins with {shown:?}, has {} bytes or control characters; 1 to {MAX_BYTES} bytes of text \
         are allowed",
        version.len()
    );
    Err((shown, reason))
}

/// Parses the three numbers of an agent's version.
pub(super) fn parse(text: &str) -> Option<[u64; 3]> {
    let mut parts = text.split('.');
    let mut version = [0; 3];
    for part in &mut version {
        *part = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(version)
}
