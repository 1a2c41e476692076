//! What a recovery is asked for beyond its reason: the variable `reflash_request`. Pure.

use std::fmt;

use crate::boot::decide::Reason;
use crate::boot::grubenv::{GrubEnv, names};
use crate::boot::systems::SystemCount;

/// The kind of recovery that a person, or the running system, asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryRequest {
    /// To take the installed release back; where a serial is given, only a release with that serial.
    Undo {
        /// Serial of the release to take back.
        of: Option<u64>,
    },
    /// To show that recovery works, and to write nothing.
    Drill,
    /// To install the newer release that the running system has seen to be this robot's.
    Newer,
    /// To install the release with this serial, also one that was refused before.
    Release(u64),
    /// To change how many systems the disk has.
    Systems(SystemCount),
    /// To apply the release that the running system has fetched and asked about.
    Update(UpdatePermission),
}

/// Permission to apply one release without asking a network: the running system has just asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdatePermission {
    /// Serial of the release.
    pub serial: u64,
    /// First 8 bytes of the BLAKE3 of its signed manifest.
    pub digest: [u8; 8],
    /// Time at which the servers said that the release stands, seconds since 1970.
    pub asked_unix_s: u64,
    /// Hours from then on for which that is enough.
    pub hours: u32,
}

impl UpdatePermission {
    /// Whether the permission is enough at this time. A clock that is further back than the permission is good for was
    /// set back, or lost: how old the permission is is then not known, and a network is to be asked.
    #[must_use]
    pub fn is_enough(&self, now_unix_s: u64) -> bool {
        now_unix_s.abs_diff(self.asked_unix_s) <= u64::from(self.hours) * 3600
    }

    /// Reads what [`fmt`](fmt::Display::fmt) writes.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let serial = digits(fields.next()?)?;
        let hex = fields.next().filter(|hex| hex.len() == 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        let digest = u64::from_str_radix(hex, 16).ok()?.to_be_bytes();
        let permission = Self {
            serial,
            digest,
            asked_unix_s: digits(fields.next()?)?,
            hours: digits(fields.next()?)?.try_into().ok()?,
        };
        fields.next().is_none().then_some(permission)
    }
}

/// A number without a sign.
fn digits(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Display for UpdatePermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, digest, asked_unix_s, hours } = self;
        write!(f, "{serial}:{:016x}:{asked_unix_s}:{hours}", u64::from_be_bytes(*digest))
    }
}

/// The request that the next start is for, or the name of another entry that it takes.
#[must_use]
pub fn pending(env: &GrubEnv) -> Option<Result<RecoveryRequest, String>> {
    let entry = env.get(names::NEXT_ENTRY).filter(|entry| !entry.is_empty())?;
    let request = RecoveryRequest::parse(env.get(names::REQUEST)).filter(|_| entry == "recovery");
    Some(request.ok_or_else(|| entry.to_owned()))
}

/// Returns what the next start is asked for, for people, if that is none of what `is_ours` means.
#[must_use]
pub fn asked_otherwise(env: &GrubEnv, is_ours: &dyn Fn(RecoveryRequest) -> bool) -> Option<String> {
    match pending(env)? {
        Ok(request) if is_ours(request) => None,
        Ok(request) => Some(request.to_string()),
        Err(entry) => Some(entry),
    }
}

impl RecoveryRequest {
    /// Reads the variable. Anything that [`fmt`](fmt::Display::fmt) does not write is no request.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Option<Self> {
        match value?.split_once(':') {
            None if value == Some("undo") => Some(Self::Undo { of: None }),
            None if value == Some("drill") => Some(Self::Drill),
            None if value == Some("newer") => Some(Self::Newer),
            Some(("undo", of)) => digits(of).map(|of| Self::Undo { of: Some(of) }),
            Some(("serial", of)) => digits(of).map(Self::Release),
            Some(("systems", of)) => SystemCount::parse(of).map(Self::Systems),
            Some(("update", of)) => UpdatePermission::parse(of).map(Self::Update),
            _ => None,
        }
    }

    /// Returns the request if it counts in a recovery for `reason`, on a machine whose installed release has the serial
    /// `installed`.
    ///
    /// An older recovery takes `next_entry` and leaves this variable alone, so that the request may be stale: an undo
    /// is meant for one release. Only an undo and an update that was fetched go on after a cut; whatever else was asked
    /// for begins anew by itself, or is not worth it.
    #[must_use]
    pub fn that_counts(self, reason: Reason, installed: Option<u64>) -> Option<Self> {
        let meant = match self {
            Self::Undo { of: Some(of) } => installed.is_none_or(|installed| installed == of),
            // Without a record that can be read, as after its key was removed, whoever asks cannot name the release.
            Self::Undo { of: None } => {
                reason == Reason::Menu
                    || installed.is_none() && matches!(reason, Reason::Requested | Reason::Recovering)
            }
            Self::Drill | Self::Newer | Self::Release(_) | Self::Systems(_) => reason.is_requested(),
            // It was asked for while the release before it was installed, or was cut while it replaced that.
            Self::Update(update) => {
                matches!(reason, Reason::Requested | Reason::Recovering)
                    && installed.is_none_or(|installed| installed < update.serial)
            }
        };
        meant.then_some(self)
    }

    /// Whether an update that was fetched is asked for.
    #[must_use]
    pub fn is_update(self) -> bool {
        matches!(self, Self::Update(_))
    }

    /// Whether the running system has just asked if a release is this robot's, by the facts and the time that it knows.
    /// Whoever asks for a recovery as such has not.
    #[must_use]
    pub fn is_checked(self) -> bool {
        matches!(self, Self::Newer | Self::Update(_))
    }
}

impl fmt::Display for RecoveryRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undo { of: None } => f.write_str("undo"),
            Self::Undo { of: Some(of) } => write!(f, "undo:{of}"),
            Self::Drill => f.write_str("drill"),
            Self::Newer => f.write_str("newer"),
            Self::Release(serial) => write!(f, "serial:{serial}"),
            Self::Systems(count) => write!(f, "systems:{}", count.name()),
            Self::Update(permission) => write!(f, "update:{permission}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecoveryRequest::{self, Drill, Newer, Release, Systems, Undo, Update};
    use super::UpdatePermission;
    use crate::boot::decide::Reason;
    use crate::boot::systems::SystemCount;

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let update = Update(UpdatePermission {
            serial: 12,
            digest: [0, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef],
            asked_unix_s: 1_794_700_000,
            hours: 24,
        });
        assert_eq!(update.to_string(), "update:12:0023456789abcdef:1794700000:24");
        let counts = [SystemCount::One, SystemCount::Two].map(Systems);
        for request in
            [Undo { of: None }, Undo { of: Some(8) }, Drill, Newer, Release(u64::MAX), update].into_iter().chain(counts)
        {
            assert_eq!(RecoveryRequest::parse(Some(&request.to_string())), Some(request));
            assert_eq!(request.is_checked(), [Newer, update].contains(&request));
        }
        let wrong_updates = ["update", "update:12", "update:12:0023456789abcdef:1:2:3", "update:12:0023:1:2"];
        let words = [
            "systems",
            "systems:3",
            "systems:02",
            "",
            "undo:",
            "undo:-1",
            "serial:+1",
            "serial",
            "drill:1",
            "newer:1",
            "update:1:+023456789abcdef:1:2",
        ];
        for word in words.into_iter().chain(wrong_updates).map(Some).chain([None]) {
            assert_eq!(RecoveryRequest::parse(word), None, "{word:?}");
        }
    }

    #[test]
    fn a_permission_is_enough_for_its_hours_by_a_clock_that_can_be_right() {
        let asked_unix_s = 1_794_700_000;
        let permission = UpdatePermission { serial: 2, digest: [1; 8], asked_unix_s, hours: 24 };
        let day = 24 * 3600;
        for (now, enough) in [
            (asked_unix_s, true),
            (asked_unix_s + day, true),
            (asked_unix_s + day + 1, false),
            // A hardware clock that keeps local time is read as if it were UTC.
            (asked_unix_s - 14 * 3600, true),
            (asked_unix_s - day - 1, false),
            (0, false),
            (u64::MAX, false),
            (asked_unix_s + 365 * day, false),
        ] {
            assert_eq!(permission.is_enough(now), enough, "{now}");
        }
    }

    #[test]
    fn a_request_that_an_older_recovery_left_standing_does_not_count() {
        let undo = |of| Undo { of };
        let update = Update(UpdatePermission { serial: 9, digest: [1; 8], asked_unix_s: 1, hours: 1 });
        for (request, reason, installed, counts) in [
            (undo(Some(8)), Reason::Requested, Some(8), true),
            (undo(Some(8)), Reason::Recovering, Some(8), true),
            (undo(Some(8)), Reason::Recovering, None, true),
            (undo(Some(8)), Reason::Requested, Some(9), false),
            (undo(None), Reason::Menu, Some(8), true),
            (undo(None), Reason::Requested, Some(8), false),
            (undo(None), Reason::Recovering, Some(8), false),
            (undo(None), Reason::Requested, None, true),
            (undo(None), Reason::Recovering, None, true),
            (undo(None), Reason::Tries, None, false),
            (undo(None), Reason::Tries, Some(8), false),
            (Release(7), Reason::Requested, Some(8), true),
            (Release(7), Reason::Recovering, Some(8), false),
            (Drill, Reason::Requested, Some(8), true),
            (Drill, Reason::Tries, Some(8), false),
            (Newer, Reason::Requested, Some(8), true),
            (Newer, Reason::Recovering, Some(8), false),
            (Systems(SystemCount::Two), Reason::Requested, Some(8), true),
            (Systems(SystemCount::Two), Reason::Recovering, Some(8), false),
            (update, Reason::Requested, Some(8), true),
            (update, Reason::Recovering, Some(8), true),
            (update, Reason::Recovering, None, true),
            (update, Reason::Requested, Some(9), false),
            (update, Reason::Menu, Some(8), false),
            (update, Reason::Tries, Some(8), false),
        ] {
            assert_eq!(
                request.that_counts(reason, installed).is_some(),
                counts,
                "{request:?} {reason:?} {installed:?}"
            );
        }
    }
}
