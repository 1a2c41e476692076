//! What a recovery is asked for beyond its reason: the variable `reflash_request`. Pure.

use std::fmt;

use crate::boot::decide::Reason;

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
    /// To install the release with this serial, also one that was refused before.
    Release(u64),
}

impl RecoveryRequest {
    /// Reads the variable. Anything that [`fmt`](fmt::Display::fmt) does not write is no request.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Option<Self> {
        let serial = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        match value?.split_once(':') {
            None if value == Some("undo") => Some(Self::Undo { of: None }),
            None if value == Some("drill") => Some(Self::Drill),
            Some(("undo", of)) => serial(of).map(|of| Self::Undo { of: Some(of) }),
            Some(("serial", of)) => serial(of).map(Self::Release),
            _ => None,
        }
    }

    /// Returns the request if it counts in a recovery for `reason`, on a machine whose installed release has the serial
    /// `installed`.
    ///
    /// An older recovery takes `next_entry` and leaves this variable alone, so that the request may be stale: an undo
    /// is meant for one release. And only an undo goes on after a cut; whatever else was asked for begins anew by
    /// itself, or is not worth it.
    #[must_use]
    pub fn that_counts(self, reason: Reason, installed: Option<u64>) -> Option<Self> {
        let meant = match self {
            Self::Undo { of: Some(of) } => installed.is_none_or(|installed| installed == of),
            Self::Undo { of: None } => reason == Reason::Menu,
            Self::Drill | Self::Release(_) => reason.is_requested(),
        };
        meant.then_some(self)
    }
}

impl fmt::Display for RecoveryRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undo { of: None } => f.write_str("undo"),
            Self::Undo { of: Some(of) } => write!(f, "undo:{of}"),
            Self::Drill => f.write_str("drill"),
            Self::Release(serial) => write!(f, "serial:{serial}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RecoveryRequest::{self, Drill, Release, Undo};
    use crate::boot::decide::Reason;

    #[test]
    fn a_request_is_read_as_it_is_written() {
        for request in [Undo { of: None }, Undo { of: Some(8) }, Drill, Release(u64::MAX)] {
            assert_eq!(RecoveryRequest::parse(Some(&request.to_string())), Some(request));
        }
        for word in [None, Some(""), Some("undo:"), Some("undo:-1"), Some("serial:+1"), Some("serial"), Some("drill:1")]
        {
            assert_eq!(RecoveryRequest::parse(word), None, "{word:?}");
        }
    }

    #[test]
    fn a_request_that_an_older_recovery_left_standing_does_not_count() {
        let undo = |of| Undo { of };
        for (request, reason, installed, counts) in [
            (undo(Some(8)), Reason::Requested, Some(8), true),
            (undo(Some(8)), Reason::Recovering, Some(8), true),
            (undo(Some(8)), Reason::Recovering, None, true),
            (undo(Some(8)), Reason::Requested, Some(9), false),
            (undo(None), Reason::Menu, Some(8), true),
            (undo(None), Reason::Requested, Some(8), false),
            (undo(None), Reason::Tries, Some(8), false),
            (Release(7), Reason::Requested, Some(8), true),
            (Release(7), Reason::Recovering, Some(8), false),
            (Drill, Reason::Requested, Some(8), true),
            (Drill, Reason::Tries, Some(8), false),
        ] {
            assert_eq!(
                request.that_counts(reason, installed).is_some(),
                counts,
                "{request:?} {reason:?} {installed:?}"
            );
        }
    }
}
