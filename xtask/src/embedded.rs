//! Files of the checkout that travel inside the builder, so that an installed one needs no checkout.
//!
//! Scripts and lists stay files of their own in the checkout, where people read them and tools check them; cargo builds
//! the builder again when one of them changes.

/// GRUB's loader of boot scripts: `grub/grub.cfg`.
pub const GRUB_LOADER: &str = include_str!("../../grub/grub.cfg");
/// GRUB's first script, which is inside its images: `grub/first.cfg`.
pub const GRUB_FIRST_SCRIPT: &str = include_str!("../../grub/first.cfg");
/// GRUB's boot script of a slot: `grub/slot.cfg`.
pub const GRUB_SLOT_SCRIPT: &str = include_str!("../../grub/slot.cfg");
/// GRUB's menu of a boot medium: `grub/media.cfg`.
pub const GRUB_MEDIA_MENU: &str = include_str!("../../grub/media.cfg");

/// Groups of kernel modules for an initramfs: `initramfs/modules.toml`.
pub const MODULES: &str = include_str!("../../initramfs/modules.toml");
/// Default configuration of the recovery initramfs: `initramfs/reflash.toml`.
pub const RECOVERY_CONFIG: &str = include_str!("../../initramfs/reflash.toml");

/// Example of a recipe, with every key: `xtask/recipes/robot.toml`.
pub const RECIPE: &str = include_str!("../recipes/robot.toml");
/// Partition layout of a GPT disk: `xtask/recipes/layout.toml`.
pub const LAYOUT: &str = include_str!("../recipes/layout.toml");
/// Partition layout of an MBR disk: `xtask/recipes/layout-mbr.toml`.
pub const LAYOUT_MBR: &str = include_str!("../recipes/layout-mbr.toml");
/// Example layout of a GPT disk with two systems.
pub const LAYOUT_TWO_SYSTEMS: &str = include_str!("../recipes/layout-two-systems.toml");

/// Settings of systemd's watchdog for a system image.
pub const WATCHDOG_SETTINGS: &str = include_str!("image/units/watchdog.conf");
/// Unit that calls a boot of the system good.
pub const GOOD_UNIT: &str = include_str!("image/units/reflash-good.service");
/// Unit that waits until the system is healthy.
pub const HEALTH_UNIT: &str = include_str!("image/units/reflash-health.service");
/// Unit that lets applications act after an undo.
pub const AFTER_UNDO_UNIT: &str = include_str!("image/units/reflash-after-undo.service");
/// Unit that posts reports of the last recoveries.
pub const REPORT_UNIT: &str = include_str!("image/units/reflash-report.service");
/// Timer that starts the posting of reports after the start of the system.
pub const REPORT_TIMER: &str = include_str!("image/units/reflash-report.timer");
/// Unit that restarts into a drill.
pub const DRILL_UNIT: &str = include_str!("image/units/reflash-drill.service");
/// Timer of [`DRILL_UNIT`].
pub const DRILL_TIMER: &str = include_str!("image/units/reflash-drill.timer");
/// Preset that leaves [`DRILL_TIMER`] off.
pub const DRILL_PRESET: &str = include_str!("image/units/50-reflash-drill.preset");
/// Unit that fetches the next release while the system works.
pub const UPDATE_UNIT: &str = include_str!("image/units/reflash-update.service");
/// Timer of that unit.
pub const UPDATE_TIMER: &str = include_str!("image/units/reflash-update.timer");
/// Unit that mends what firmware and GRUB read.
pub const MEND_UNIT: &str = include_str!("image/units/reflash-mend.service");
/// Timer of that unit.
pub const MEND_TIMER: &str = include_str!("image/units/reflash-mend.timer");
/// Unit that makes the host keys of a secure shell server.
pub const SSH_KEYS_UNIT: &str = include_str!("image/units/reflash-ssh-keys.service");
/// All of the above: an image that was made with others of them is made anew.
pub const IMAGE_UNITS: [&str; 14] = [
    WATCHDOG_SETTINGS,
    GOOD_UNIT,
    HEALTH_UNIT,
    AFTER_UNDO_UNIT,
    REPORT_UNIT,
    REPORT_TIMER,
    DRILL_UNIT,
    DRILL_TIMER,
    DRILL_PRESET,
    MEND_UNIT,
    MEND_TIMER,
    SSH_KEYS_UNIT,
    UPDATE_UNIT,
    UPDATE_TIMER,
];
/// Connection plugin with which Ansible runs a playbook in the tree of an image.
pub const ANSIBLE_CONNECTION: &str = include_str!("image/ansible_connection.py");

/// The agent that the builder was compiled with; the build script explains how. Empty when there was none.
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// Notices of the software in that agent. Empty when there was no agent.
const NOTICES: &str = include_str!(concat!(env!("OUT_DIR"), "/notices"));

/// Returns the notices of the software in the agent that the builder was compiled with, if it was.
#[must_use]
pub fn notices() -> Option<&'static str> {
    (!NOTICES.is_empty()).then_some(NOTICES)
}

/// Returns the agent that the builder was compiled with, if it was.
#[must_use]
pub fn agent() -> Option<&'static [u8]> {
    (!AGENT.is_empty()).then_some(AGENT)
}

#[cfg(test)]
mod tests {
    use super::IMAGE_UNITS;
    use std::path::Path;

    #[test]
    fn every_unit_of_an_image_counts_as_one_of_its_inputs() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image/units");
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(IMAGE_UNITS.contains(&text.as_str()), "{} is not among them", path.display());
        }
    }
}
