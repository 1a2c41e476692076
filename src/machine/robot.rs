//! What a robot knows of itself, for a roll-out.

use crate::machine::clock::{BUILD_TIME, FAR_S};
use crate::machine::identity::{HardwareIdentity, identity};
use crate::release::rollout::{Facts, Robot, identity_text};

/// This machine as a roll-out sees it. `disk` is the random identity of its floor, zeros where there is none.
///
/// Its identity is read anew each time: the driver of the network card may be loaded later.
#[must_use]
pub fn this(ring: Option<&str>, disk: [u8; 16], now_unix_s: Option<u64>, facts: Facts) -> Robot {
    of(identity(), ring, disk, now_unix_s, facts)
}

fn of(hardware: HardwareIdentity, ring: Option<&str>, disk: [u8; 16], now_unix_s: Option<u64>, facts: Facts) -> Robot {
    let HardwareIdentity { product_serial: serial, product_uuid: uuid, mac, .. } = hardware;
    let identity = identity_text(serial.as_deref(), uuid.as_deref(), mac.as_deref(), disk);
    let names = [serial, uuid, mac].into_iter().flatten().collect();
    Robot { identity, names, ring: ring.map(str::to_owned), now_unix_s, facts }
}

/// The time of a running system, seconds since 1970, if its clock can be right: not before the build of this program,
/// and not far after it.
#[must_use]
pub fn believable(now_unix_s: u64) -> Option<u64> {
    (BUILD_TIME..=BUILD_TIME.saturating_add(FAR_S)).contains(&now_unix_s).then_some(now_unix_s)
}

#[cfg(test)]
mod tests {
    use super::{BUILD_TIME, believable, of};
    use crate::machine::identity::HardwareIdentity;
    use crate::release::rollout::Facts;

    #[test]
    fn the_firmware_names_a_robot_and_its_card_or_disk_only_without_that() {
        let known = |serial: Option<&str>, uuid: Option<&str>, mac: Option<&str>, disk: u8| {
            let hardware = HardwareIdentity {
                product_serial: serial.map(Into::into),
                product_uuid: uuid.map(Into::into),
                mac: mac.map(Into::into),
                ..HardwareIdentity::default()
            };
            of(hardware, Some("lab"), [disk; 16], None, Facts::Unknown)
        };
        let both = known(Some("A1"), Some("u-1"), Some("02:00"), 7);
        assert_eq!((both.identity.as_deref(), both.names.len()), (Some("serial A1 uuid u-1"), 3));
        assert_eq!(known(Some("A1"), Some("u-1"), Some("02:01"), 8).identity, both.identity);
        assert_eq!(known(None, None, Some("02:00"), 7).identity.as_deref(), Some("mac 02:00"));
        assert_eq!(known(None, None, None, 0xab).identity, Some(format!("disk {}", "ab".repeat(16))));
        assert_eq!(known(None, None, None, 0).identity, None);
    }

    #[test]
    fn a_clock_that_cannot_be_right_is_none() {
        assert_eq!([0, BUILD_TIME - 1, BUILD_TIME, u64::MAX].map(believable), [None, None, Some(BUILD_TIME), None]);
    }
}
