//! Key `distribution.snapshot` of a recipe: the time that package archives are pinned to. Pure.

use anyhow::{Context, Result, ensure};
use jiff::civil::{Date, DateTime};

/// Text in an address that the time of the snapshot replaces.
pub const TEMPLATE: &str = "{timestamp}";

/// Form of the time in the addresses of snapshot servers.
const FORM: &str = "%Y%m%dT%H%M%SZ";

/// Returns the time in the form that snapshot servers have in their addresses, such as `20261120T000000Z`. The recipe
/// gives it in that form, or as a day, which begins at midnight UTC.
///
/// # Errors
/// Fails when the text is neither.
pub fn timestamp(text: &str) -> Result<String> {
    let is_day = text.len() == "2026-11-20".len();
    let time = match is_day.then(|| text.parse::<Date>().ok()).flatten() {
        Some(day) => Some(day.to_datetime(jiff::civil::Time::midnight())),
        None => DateTime::strptime(FORM, text).ok().filter(|time| time.strftime(FORM).to_string() == text),
    };
    let time = time.with_context(|| {
        format!("distribution.snapshot = {text:?} is no date: expected a day as 2026-11-20, or 20261120T060000Z")
    })?;
    Ok(time.strftime(FORM).to_string())
}

/// Checks a snapshot and the addresses that it goes into.
///
/// # Errors
/// Names the key that cannot work.
pub fn check(snapshot: Option<&str>, mirror: Option<&str>, sources: &[String]) -> Result<()> {
    let templates = mirror.into_iter().chain(sources.iter().map(String::as_str)).any(|text| text.contains(TEMPLATE));
    let Some(snapshot) = snapshot else {
        ensure!(!templates, "an address with {TEMPLATE} needs distribution.snapshot = \"YEAR-MONTH-DAY\"");
        return Ok(());
    };
    timestamp(snapshot)?;
    ensure!(
        mirror.is_none_or(|mirror| mirror.contains(TEMPLATE)),
        "distribution.snapshot pins nothing with a mirror that always has the newest packages: put {TEMPLATE} into \
         distribution.mirror, or leave it out to take the snapshots of the distribution"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check, timestamp};

    #[test]
    fn days_and_times_are_read_and_all_else_is_refused() {
        assert_eq!(timestamp("2026-11-20").unwrap(), "20261120T000000Z");
        assert_eq!(timestamp("20261120T061530Z").unwrap(), "20261120T061530Z");
        for wrong in ["2026-02-30", "2026-13-01", "20.11.2026", "2026-11", "yesterday", "", "20261120T251530Z"] {
            let error = timestamp(wrong).unwrap_err().to_string();
            assert!(error.contains("distribution.snapshot") && error.contains("2026-11-20"), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_pins_nothing_is_refused() {
        check(None, Some("http://a.example"), &[]).unwrap();
        check(Some("2026-11-20"), None, &[]).unwrap();
        check(Some("2026-11-20"), Some("http://a.example/{timestamp}/"), &[]).unwrap();
        let message = |mirror, snapshot| check(snapshot, Some(mirror), &[]).unwrap_err().to_string();
        assert!(message("http://a.example", Some("2026-11-20")).contains("{timestamp}"));
        assert!(message("http://a.example/{timestamp}", None).contains("needs distribution.snapshot"));
        assert!(check(None, None, &["deb http://a.example/{timestamp} x main".into()]).is_err());
    }
}
