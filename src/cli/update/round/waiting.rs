//! What a round waits for before it looks again, and before the restart.

use std::path::Path;

use super::Round;
use crate::boot::this_boot;
use crate::cli::mounted::own_partuuid;
use crate::cli::update::FAILED_REST_S;
use crate::jobs::update::standing::UpdateState;
use crate::jobs::update::{UpdateStore, moment};
use crate::machine::config::{Automatic, Config};
use crate::sys::clock::{self, now_unix_s};

/// Time for which a system that does nothing by itself is left alone, seconds.
const OFF_S: u64 = 3600;

impl Round<'_> {
    /// Whether a round in the background ends here, without a network and without a write to any partition.
    pub(super) fn has_nothing_to_do(&mut self, config: &Config) -> bool {
        if config.update_automatic == Automatic::Off {
            self.set(UpdateState::Off, "the system looks for no update by itself (update.automatic)");
            self.standing.next_unix_s = Some(now_unix_s() + OFF_S);
            return true;
        }
        // What the next start was asked for may have been changed since: the environment says that, and no memory.
        !self.is_asked && self.has_all() && !self.is_due(config) && self.waits(config)
    }

    /// Whether the store has all of its release, as its list says.
    pub(super) fn has_all(&self) -> bool {
        UpdateStore::open(self.store(), Path::new("")).is_ok_and(|store| store.is_complete())
    }

    /// Whether the servers are to be asked again.
    pub(super) fn is_due(&self, config: &Config) -> bool {
        self.looked_s_ago() >= u64::from(config.update_look_h) * 3600
    }

    pub(super) fn looked_s_ago(&self) -> u64 {
        now_unix_s().abs_diff(self.standing.looked_unix_s.unwrap_or_default())
    }

    /// Whether something is waited for, which the standing then says.
    pub(super) fn waits(&mut self, config: &Config) -> bool {
        let mut waits_for: Vec<String> = Vec::new();
        if self.options.background {
            if config.update_automatic != Automatic::Apply {
                self.set(UpdateState::Fetched, &self.fetched("`reflash update --apply` applies it"));
                return true;
            }
            if self.is_this_machine() && !Path::new(this_boot::GOOD_MARK).exists() {
                waits_for.push("this boot to call itself good".to_owned());
            }
            waits_for.extend(moment::closed_now(&config.update_windows, now_unix_s()));
            // What is asked for already is not asked for in vain again.
            let in_vain = if self.is_asked { 0 } else { self.in_vain };
            let uptime_s = if self.is_this_machine() { clock::uptime_s() } else { 0 };
            if let Some(rest) = moment::rest_after(in_vain, uptime_s) {
                // Only after the state was mounted is that known, and to mount it is to write to it.
                self.standing.next_unix_s = Some(now_unix_s() + FAILED_REST_S);
                waits_for.push(rest);
            }
        }
        // What the robot's programs look at may take a minute each.
        if waits_for.is_empty() {
            waits_for = moment::objections(&moment::DIRECTORIES.map(Path::new));
        }
        if waits_for.is_empty() {
            return false;
        }
        self.set(UpdateState::Waiting, &self.fetched(&format!("waits for {}", waits_for.join("; "))));
        self.standing.waits_for = waits_for;
        true
    }

    pub(super) fn is_this_machine(&self) -> bool {
        self.options.state.is_none() && own_partuuid().is_some()
    }
}
