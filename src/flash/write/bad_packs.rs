//! The memory of packs of groups that are damaged or nowhere.

use std::sync::Mutex;

use crate::flash::threads::lock;
use crate::release::digest::Digest;

/// Wrong groups in one pack after which no other of it is asked for: each takes several attempts and their pauses.
pub(super) const MOST_WRONG: u32 = 3;

/// The packs in which groups were wrong, each with their number.
#[derive(Default)]
pub(super) struct BadPacks(Mutex<Vec<(Digest, u32)>>);

impl BadPacks {
    /// Notes wrong groups.
    pub(super) fn note(&self, pack: Digest, wrong: u32) {
        let mut packs = lock(&self.0);
        match packs.iter_mut().find(|(known, _)| *known == pack) {
            Some((_, count)) => *count += wrong,
            None => packs.push((pack, wrong)),
        }
    }

    /// Whether there is any.
    pub(super) fn are_any(&self) -> bool {
        !lock(&self.0).is_empty()
    }

    /// Whether nothing more of a pack is asked for.
    pub(super) fn is_given_up(&self, pack: &Digest) -> bool {
        lock(&self.0).iter().any(|(known, count)| known == pack && *count >= MOST_WRONG)
    }
}
