//! The largest packets of the links: what leases say, and again what the links had before any lease said so.

use std::collections::BTreeMap;
use std::io;

use crate::sys::net::link::{Link, mtu, set_mtu};

/// What links had before a lease changed it, by their indexes.
#[derive(Debug, Default)]
pub(super) struct OwnMtus(BTreeMap<u32, u16>);

impl OwnMtus {
    /// Sets what a new lease says, or takes back what an earlier one said, perhaps of another network.
    ///
    /// # Errors
    /// The value, and the refusal of the driver.
    pub(super) fn take(&mut self, link: &Link, leased: Option<u16>) -> Result<(), (u16, io::Error)> {
        match self.wanted(link.index, mtu(&link.name), leased) {
            Some(wanted) => set_mtu(&link.name, wanted).map_err(|error| (wanted, error)),
            None => Ok(()),
        }
    }

    /// The value to set on a link that has `now`.
    fn wanted(&mut self, index: u32, now: Option<u16>, leased: Option<u16>) -> Option<u16> {
        let wanted = leased.or_else(|| self.0.get(&index).copied()).filter(|wanted| Some(*wanted) != now)?;
        if let Some(now) = now {
            self.0.entry(index).or_insert(now);
        }
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::OwnMtus;

    #[test]
    fn a_lease_without_an_mtu_takes_back_that_of_the_one_before() {
        let mut own = OwnMtus::default();
        assert_eq!(own.wanted(2, Some(1500), None), None, "nothing was changed");
        assert_eq!(own.wanted(2, Some(1500), Some(1400)), Some(1400));
        assert_eq!(own.wanted(2, Some(1400), Some(1400)), None);
        assert_eq!(own.wanted(2, Some(1400), Some(9000)), Some(9000));
        assert_eq!(own.wanted(3, Some(1428), None), None, "each link has its own");
        assert_eq!(own.wanted(2, Some(9000), None), Some(1500));
        assert_eq!(own.wanted(2, Some(1500), None), None);
    }
}
