//! What is configured in the kernel, brought in line with what the cards need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::console::{Console, Topic};
use crate::chain::chain;
use crate::sys::net::items::NetworkItem;
use crate::sys::net::rtnl::{Rtnl, RtnlError};

/// Pause after the kernel refused something, before it is tried again.
const PAUSE: Duration = Duration::from_secs(10);

/// What was configured, and what the kernel refused a short time ago.
#[derive(Debug, Default)]
pub(super) struct Applied {
    items: BTreeMap<NetworkItem, String>,
    refused: BTreeMap<NetworkItem, Instant>,
}

impl Applied {
    /// Forgets what was configured for a link: it was switched off or has come back, which may have cost it its routes.
    pub(super) fn forget(&mut self, of_link: u32) {
        self.items.retain(|item, _| index(item) != Some(of_link));
    }

    /// Changes what differs. Returns the first refusal.
    pub(super) fn become_equal(
        &mut self,
        wanted: &BTreeMap<NetworkItem, String>,
        rtnl: &mut Rtnl,
        console: &Arc<Console>,
    ) -> Result<(), RtnlError> {
        let stale: Vec<(NetworkItem, String)> =
            self.items.iter().filter(|(item, _)| !wanted.contains_key(item)).map(|(i, n)| (*i, n.clone())).collect();
        let mut touched = BTreeSet::new();
        // With the last address of a link the kernel drops its routes, and with the first of a network the others of
        // that network: addresses go first, and what is left is set again.
        for (item, name) in stale.iter().filter(|(item, _)| matches!(item, NetworkItem::Address { .. })) {
            self.remove(*item, name, rtnl, console);
            touched.extend(index(item));
        }
        touched.iter().for_each(|index| self.forget(*index));
        self.refused.retain(|item, since| wanted.contains_key(item) && since.elapsed() < PAUSE);
        let mut first = Ok(());
        for (item, name) in wanted {
            if self.items.contains_key(item) || self.refused.contains_key(item) {
                continue;
            }
            match rtnl.set(name, *item) {
                Ok(()) => _ = self.items.insert(*item, name.clone()),
                Err(error) => {
                    self.refused.insert(*item, Instant::now());
                    // Without rules, two cards in one subnet share their way out; everything else works.
                    if !(error.is_unsupported() && matches!(item, NetworkItem::Rule { .. })) {
                        let text = format!("{name}: {}; trying again in {} s", chain(&error), PAUSE.as_secs());
                        console.say(name, Topic::Trouble, text);
                        first = first.and(Err(error));
                    }
                }
            }
        }
        // Routes that counted until now go last, so that there is always one.
        for (item, name) in stale.iter().rev().filter(|(item, _)| !matches!(item, NetworkItem::Address { .. })) {
            self.remove(*item, name, rtnl, console);
        }
        first
    }

    fn remove(&mut self, item: NetworkItem, name: &str, rtnl: &mut Rtnl, console: &Arc<Console>) {
        self.items.remove(&item);
        if let Err(error) = rtnl.remove(name, item) {
            console.say(name, Topic::Trouble, format!("{name}: {}", chain(&error)));
        }
    }
}

fn index(item: &NetworkItem) -> Option<u32> {
    match item {
        NetworkItem::Address { index, .. } | NetworkItem::Route { index, .. } => Some(*index),
        NetworkItem::Rule { .. } => None,
    }
}
