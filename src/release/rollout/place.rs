//! The place of a robot in the roll-out of a release. Pure.

use std::fmt;

use super::ALL_PPM;
use crate::release::digest::{Digest, hex};

/// Place of a robot among all robots, as a fraction of 2^64: a share has the robots whose place is below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RobotPlace(pub u64);

impl RobotPlace {
    /// The place in parts per million, rounded down.
    #[must_use]
    pub fn ppm(self) -> u32 {
        let scaled = (u128::from(self.0) * u128::from(ALL_PPM)) >> 64;
        u32::try_from(scaled).unwrap_or(ALL_PPM)
    }

    /// Whether the place is in a share of so many parts per million.
    #[must_use]
    pub fn is_within(self, share_ppm: u32) -> bool {
        self.ppm() < share_ppm
    }
}

impl fmt::Display for RobotPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        percent(f, self.ppm())
    }
}

/// Writes parts per million as percent.
pub(super) fn percent(f: &mut fmt::Formatter<'_>, ppm: u32) -> fmt::Result {
    let (whole, rest) = (ppm / 10_000, ppm % 10_000);
    match rest {
        0 => write!(f, "{whole} %"),
        _ => write!(f, "{whole}.{} %", format!("{rest:04}").trim_end_matches('0')),
    }
}

/// Returns the place of the robot with this identity ([`identity_text`]) in the roll-out of a release.
///
/// Digest and identity are hashed together: the places of two releases have nothing to do with each other, so that no
/// robot is always among the first.
#[must_use]
pub fn place(release: &Digest, identity: &str) -> RobotPlace {
    let digest = Digest::of(format!("reflash rollout 1\n{release}\n{identity}").as_bytes());
    RobotPlace(u64::from_be_bytes(std::array::from_fn(|at| digest.0[at])))
}

/// Returns the text by which a robot is hashed: what stays the same in recovery and in the running system, and from one
/// disk to the next where that is possible. `None` for a robot that has nothing of its own.
#[must_use]
pub fn identity_text(serial: Option<&str>, uuid: Option<&str>, mac: Option<&str>, disk: [u8; 16]) -> Option<String> {
    // The network card counts only without the others: which one is the first may change with its driver.
    let firmware = [serial.map(|it| format!("serial {it}")), uuid.map(|it| format!("uuid {it}"))];
    let firmware = firmware.into_iter().flatten().collect::<Vec<_>>().join(" ");
    Some(firmware)
        .filter(|text| !text.is_empty())
        .or_else(|| mac.map(|mac| format!("mac {mac}")))
        .or_else(|| (disk != [0; 16]).then(|| format!("disk {}", hex(&disk))))
}
