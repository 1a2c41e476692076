//! Units of systemd that an image enables or masks. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// State of a unit in `/etc/systemd/system`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitEnablement {
    /// Enabled: another unit starts it.
    Enabled,
    /// Masked: it cannot be started.
    Masked,
}

/// Returns the units that links of `/etc/systemd/system` enable or mask; each link is a path from there, and a target.
#[must_use]
pub fn states(links: &[(String, String)]) -> BTreeMap<String, UnitEnablement> {
    let mut states = BTreeMap::new();
    for (path, target) in links {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let pulled_in = [".wants", ".requires", ".upholds"].iter().any(|end| directory.ends_with(end));
        // An alias such as dbus-org.freedesktop.timesync1.service is what enabling a unit leaves, too.
        let state = if directory.is_empty() && target == "/dev/null" {
            UnitEnablement::Masked
        } else {
            UnitEnablement::Enabled
        };
        if pulled_in || directory.is_empty() {
            states
                .entry(name.to_owned())
                .and_modify(|known: &mut UnitEnablement| *known = state.max(*known))
                .or_insert(state);
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::{UnitEnablement, states};

    #[test]
    fn links_enable_and_mask_units() {
        let link = |path: &str, target: &str| (path.to_owned(), target.to_owned());
        let found = states(&[
            link("multi-user.target.wants/ssh.service", "/usr/lib/systemd/system/ssh.service"),
            link("apt-daily.timer", "/dev/null"),
            link("timers.target.wants/apt-daily.timer", "/lib/systemd/system/apt-daily.timer"),
            link("ssh.service.d/link.conf", "/etc/x"),
        ]);
        assert_eq!(found.len(), 2);
        assert_eq!((found["ssh.service"], found["apt-daily.timer"]), (UnitEnablement::Enabled, UnitEnablement::Masked));
    }
}
