//! Archives as they were at a time that the recipe gives: an image can be built again with the same packages, long
//! after the archives went on.

use anyhow::{Result, ensure};

use crate::mirror::AptSource;
use crate::recipe::Distribution;
use crate::recipe::snapshot::TEMPLATE;
pub use crate::recipe::snapshot::timestamp;

/// Archive of the past states of Debian.
const DEBIAN: &str = "https://snapshot.debian.org/archive";
/// Archive of the past states of Ubuntu, since March 2023.
const UBUNTU: &str = "https://snapshot.ubuntu.com/ubuntu";

/// Suites of Ubuntu that are supported for years. Others need a mirror with a template.
const UBUNTU_SUITES: &[&str] = &["focal", "jammy", "noble", "resolute"];

/// Returns the distribution with the time of its snapshot in all addresses.
///
/// # Errors
/// Fails when the time lies ahead: what a server gives for it is the state of today, and another one tomorrow.
pub fn resolved(distribution: &Distribution) -> Result<Distribution> {
    let mut resolved = distribution.clone();
    let Some(snapshot) = &distribution.snapshot else { return Ok(resolved) };
    let timestamp = timestamp(snapshot)?;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    ensure!(
        timestamp <= now,
        "distribution.snapshot = {snapshot:?} lies ahead of this host's clock, which is at {now}: no archive has that \
         state yet"
    );
    resolved.mirror = resolved.mirror.map(|mirror| mirror.replace(TEMPLATE, &timestamp));
    resolved.sources.iter_mut().for_each(|line| *line = line.replace(TEMPLATE, &timestamp));
    for line in distribution.sources.iter().filter(|line| !line.contains(TEMPLATE)) {
        eprintln!("  distribution.snapshot does not pin the source {line:?}: it has no {TEMPLATE}");
    }
    Ok(resolved)
}

/// Returns the archives of a distribution that names a snapshot and no mirror.
///
/// # Errors
/// Fails when the snapshot is no time.
pub fn sources(distribution: &Distribution) -> Result<Vec<AptSource>> {
    let suite = &distribution.suite;
    let Some(snapshot) = &distribution.snapshot else { return Ok(Vec::new()) };
    let time = timestamp(snapshot)?;
    let is_ubuntu = UBUNTU_SUITES.contains(&suite.as_str());
    let pockets = match (is_ubuntu, distribution.updates) {
        (_, false) => vec![(String::new(), false)],
        (true, true) => vec![(String::new(), false), ("-updates".into(), false), ("-security".into(), false)],
        (false, true) => vec![(String::new(), false), ("-updates".into(), false), ("-security".into(), true)],
    };
    let components = match distribution.components.as_slice() {
        [] => vec!["main".to_owned()],
        given => given.to_vec(),
    };
    let source = |(pocket, apart): (String, bool)| {
        let uri = match (is_ubuntu, apart) {
            (true, _) => format!("{UBUNTU}/{time}/"),
            (false, true) => format!("{DEBIAN}/debian-security/{time}/"),
            (false, false) => format!("{DEBIAN}/debian/{time}/"),
        };
        AptSource { uri, release: format!("{suite}{pocket}"), components: components.clone() }
    };
    // Debian's unstable has no pockets.
    let has_pockets = !["sid", "unstable"].contains(&suite.as_str());
    Ok(pockets.into_iter().take(if has_pockets { 3 } else { 1 }).map(source).collect())
}

#[cfg(test)]
mod tests {
    use super::{resolved, sources};
    use crate::recipe::Distribution;

    fn distribution(suite: &str) -> Distribution {
        Distribution { suite: suite.into(), snapshot: Some("2025-11-20".into()), ..Distribution::default() }
    }

    fn lines(distribution: &Distribution) -> Vec<String> {
        sources(distribution).unwrap().iter().map(crate::mirror::AptSource::line).collect()
    }

    #[test]
    fn a_day_leads_to_the_archives_of_past_states() {
        assert_eq!(
            lines(&distribution("bookworm")),
            [
                "deb https://snapshot.debian.org/archive/debian/20251120T000000Z/ bookworm main",
                "deb https://snapshot.debian.org/archive/debian/20251120T000000Z/ bookworm-updates main",
                "deb https://snapshot.debian.org/archive/debian-security/20251120T000000Z/ bookworm-security main",
            ]
        );
        assert_eq!(
            lines(&distribution("noble"))[2],
            "deb https://snapshot.ubuntu.com/ubuntu/20251120T000000Z/ noble-security main"
        );
        assert_eq!(lines(&Distribution { updates: false, ..distribution("bookworm") }).len(), 1);
        assert_eq!(lines(&distribution("sid")).len(), 1);
    }

    #[test]
    fn an_own_server_gets_the_time_in_its_address() {
        let mut own = distribution("bookworm");
        own.mirror = Some("https://snap.example/{timestamp}/debian".into());
        own.sources = vec!["deb https://snap.example/{timestamp}/security bookworm-security main".into()];
        let found = resolved(&own).unwrap();
        assert_eq!(found.mirror.as_deref(), Some("https://snap.example/20251120T000000Z/debian"));
        assert!(found.sources[0].contains("/20251120T000000Z/security"));
    }

    #[test]
    fn a_day_ahead_is_refused() {
        let ahead = Distribution { snapshot: Some("2199-01-01".into()), ..distribution("bookworm") };
        let error = resolved(&ahead).unwrap_err().to_string();
        assert!(error.contains("2199-01-01") && error.contains("ahead"), "{error}");
    }
}
