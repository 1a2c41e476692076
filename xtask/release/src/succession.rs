//! What may follow what in a channel: robots go on from the release that they have, so that one wrong number can end
//! a channel for good.

use std::path::Path;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use minisign::SignatureBox;
use reflash::release::layout::{Role, Size};
use reflash::release::manifest::{Manifest, SYSTEM_IMAGE};

/// The most by which a serial may be above the last one of its channel: a robot never goes below a serial that it
/// installed, and a slip of the hand by some digits would leave few numbers.
pub const MAX_SERIAL_STEP: u64 = 1_000_000;

/// How far a release may be dated ahead of the clock of the host that signs it, seconds: a host in another time zone
/// that takes its local time for UTC is less than a day ahead.
const MAX_AHEAD_S: u64 = 24 * 60 * 60;

/// One thing that is refused unless it is allowed by its name, because it is mostly a mistake that robots in the field
/// cannot undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// A date more than a day ahead of the host's clock. Robots may take it for the time.
    FutureDate,
    /// A serial more than [`MAX_SERIAL_STEP`] above the last one.
    SerialJump,
    /// A product that is not that of the last release. No robot of the channel installs it.
    OtherProduct,
    /// Hardware that the last release fitted and this one does not. Those robots get no further release.
    FewerHardware,
    /// A key that did not sign the last release. Robots that trust only the one that did refuse the release.
    OtherKey,
    /// No partition layout, where the last release had one. No blank machine can be made a robot from it.
    NoLayout,
}

/// Robots that a release is offered to once it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferedTo {
    /// Every robot of the channel, at once: its manifest is `manifest.json`.
    Everybody,
    /// No robot before a roll-out names it: its manifest is in the channel's history alone.
    NobodyYet,
}

impl Allow {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::FutureDate, Self::SerialJump, Self::OtherProduct, Self::FewerHardware, Self::OtherKey, Self::NoLayout];

    /// The name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FutureDate => "future-date",
            Self::SerialJump => "serial-jump",
            Self::OtherProduct => "other-product",
            Self::FewerHardware => "fewer-hardware",
            Self::OtherKey => "other-key",
            Self::NoLayout => "no-layout",
        }
    }
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|one| one.name() == text).ok_or_else(|| format!("known are {}", names()))
    }
}

/// Refuses a release that would end its channel for some robot, or for all. `before` is what the channel has offered
/// last, if it has offered anything.
///
/// # Errors
/// The first thing that is wrong, with the name that allows it, if it can be right at all.
pub fn check(before: Option<&Manifest>, manifest: &Manifest, allowed: &[Allow]) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock of this host is before 1970")?.as_secs();
    check_at(now, before, manifest, allowed)
}

fn check_at(now_unix_s: u64, before: Option<&Manifest>, manifest: &Manifest, allowed: &[Allow]) -> Result<()> {
    let created = manifest.created_unix_s;
    refuse(Allow::FutureDate, allowed, created > now_unix_s.saturating_add(MAX_AHEAD_S), || {
        let days = created.saturating_sub(now_unix_s) / MAX_AHEAD_S;
        format!(
            "the release is dated {created} s after 1970, {days} days ahead of the clock of this host; look at that \
             clock and at SOURCE_DATE_EPOCH"
        )
    })?;
    if let (Some(layout), Ok(image)) = (&manifest.layout, manifest.image(SYSTEM_IMAGE)) {
        // Robots that were provisioned with this layout could not install the release.
        let system = layout.partitions.iter().find(|partition| partition.role == Role::System);
        if let Some(Size::Mib(mib)) = system.map(|system| system.size) {
            let room = mib.saturating_mul(1 << 20);
            ensure!(
                image.size_bytes <= room,
                "the system image has {} bytes, its partition in the layout {room}; no robot could install it",
                image.size_bytes
            );
        }
    }
    let Some(before) = before else { return Ok(()) };
    refuse(Allow::OtherProduct, allowed, before.product != manifest.product, || {
        format!("the channel has releases of product {:?}, this one is of {:?}", before.product, manifest.product)
    })?;
    refuse(Allow::NoLayout, allowed, before.layout.is_some() && manifest.layout.is_none(), || {
        "the last release had a partition layout, this one has none: blank machines could not be provisioned from it \
         (--layout)"
            .to_owned()
    })?;
    let step = manifest.serial.saturating_sub(before.serial);
    refuse(Allow::SerialJump, allowed, step > MAX_SERIAL_STEP, || {
        format!(
            "serial {} is {step} above the last one, {}; more than {MAX_SERIAL_STEP} is mostly a mistake, and robots \
             that installed it never go back",
            manifest.serial, before.serial
        )
    })?;
    let covered = |old: &&String| !manifest.hardware.iter().any(|new| covers(new, old));
    let lost: Vec<&str> = before.hardware.iter().filter(covered).map(String::as_str).collect();
    refuse(Allow::FewerHardware, allowed, !lost.is_empty(), || {
        format!(
            "the last release fits {}, this one does not: those robots would get no further release",
            lost.join(", ")
        )
    })
}

/// Refuses a key that did not sign the last release. `signature` is the file beside the manifest that is offered; a
/// channel without one has no robots. What is made for a roll-out follows the newest of the history, since the manifest
/// that is offered stays. Where the one is damaged, the other says which key it was.
///
/// # Errors
/// As above.
pub(crate) fn check_key(to: OfferedTo, signature: &Path, key_number: &[u8], allowed: &[Allow]) -> Result<()> {
    if !signature.exists() {
        return Ok(());
    }
    let offered = || SignatureBox::from_file(signature).ok();
    let kept = || kept_signature(signature.parent()?);
    let before = match to {
        OfferedTo::Everybody => offered().or_else(kept),
        OfferedTo::NobodyYet => kept().or_else(offered),
    };
    let is_other = before.is_none_or(|before| before.keynum() != key_number);
    refuse(Allow::OtherKey, allowed, is_other, || {
        "the last release of the channel was signed with another key, or with one that cannot be found out: robots \
         that do not trust this one too would refuse the release"
            .to_owned()
    })
}

/// Newest signature of a channel's history that can be read.
fn kept_signature(channel: &Path) -> Option<SignatureBox> {
    let kept = std::fs::read_dir(channel.join("history")).ok()?.flatten().filter_map(|entry| {
        let serial: u64 = entry.file_name().to_str()?.strip_suffix(".json.minisig")?.parse().ok()?;
        Some((serial, SignatureBox::from_file(entry.path()).ok()?))
    });
    kept.max_by_key(|(serial, _)| *serial).map(|(_, signature)| signature)
}

fn refuse(what: Allow, allowed: &[Allow], is_so: bool, why: impl FnOnce() -> String) -> Result<()> {
    let name = what.name();
    ensure!(!is_so || allowed.contains(&what), "{}. If it is meant, allow it with --allow {name}", why());
    Ok(())
}

/// Whether every hardware name that fits the pattern `old` fits `new` too.
fn covers(new: &str, old: &str) -> bool {
    match new.strip_suffix('*') {
        Some(prefix) => old.strip_suffix('*').unwrap_or(old).starts_with(prefix),
        None => new == old,
    }
}

#[cfg(test)]
mod tests {
    use reflash::release::layout::{Layout, Scheme};
    use reflash::release::manifest::{FORMAT, Manifest};

    use super::{Allow, MAX_AHEAD_S, MAX_SERIAL_STEP, check_at, covers};

    const NOW: u64 = 1_800_000_000;

    const LAYOUT: Layout = Layout { table: Scheme::Gpt, partitions: Vec::new() };

    type Change = fn(&mut Manifest);

    fn manifest(serial: u64) -> Manifest {
        Manifest {
            format: FORMAT,
            product: "demo".into(),
            hardware: vec!["unit-a".into(), "big-*".into()],
            channel: "stable".into(),
            version: "1".into(),
            serial,
            created_unix_s: NOW,
            minimum_agent: "0.1.0".into(),
            images: Vec::new(),
            layout: None,
            files: Vec::new(),
        }
    }

    #[test]
    fn what_ends_a_channel_is_refused_and_each_by_its_own_name_allowed() {
        let before = Manifest { layout: Some(LAYOUT), ..manifest(7) };
        let cases: [(Allow, Change); 5] = [
            (Allow::NoLayout, |new| new.layout = None),
            (Allow::FutureDate, |new| new.created_unix_s = NOW + MAX_AHEAD_S + 1),
            (Allow::SerialJump, |new| new.serial = 7 + MAX_SERIAL_STEP + 1),
            (Allow::OtherProduct, |new| new.product = "other".into()),
            (Allow::FewerHardware, |new| new.hardware = vec!["unit-*".into(), "big-1".into()]),
        ];
        for (what, change) in cases {
            let mut new = Manifest { layout: Some(LAYOUT), ..manifest(8) };
            change(&mut new);
            let refused = |allowed: &[Allow]| check_at(NOW, Some(&before), &new, allowed).err().map(|e| e.to_string());
            assert!(refused(&[]).is_some_and(|text| text.ends_with(&format!("--allow {}", what.name()))));
            let others = Allow::ALL.into_iter().filter(|other| *other != what).collect::<Vec<_>>();
            assert!(refused(&others).is_some());
            assert_eq!(refused(&[what]), None);
            assert_eq!(what.name().parse(), Ok(what));
        }
        assert!("everything".parse::<Allow>().is_err_and(|text| text.contains("serial-jump")));
    }

    #[test]
    fn what_is_common_is_not_asked_about() {
        let before = manifest(7);
        for change in [
            (|_| ()) as Change,
            // The same source a second time.
            |new| new.created_unix_s = NOW - 86_400,
            |new| new.created_unix_s = NOW + MAX_AHEAD_S,
            |new| new.serial = 7 + MAX_SERIAL_STEP,
            |new| new.hardware = vec!["*".into()],
        ] {
            let mut new = manifest(8);
            change(&mut new);
            check_at(NOW, Some(&before), &new, &[]).unwrap();
        }
        // A first serial may be a date.
        check_at(NOW, None, &manifest(20_261_126), &[]).unwrap();
        for (new, old, expected) in [("a*", "ab", true), ("a*", "ab*", true), ("ab*", "a*", false), ("a", "a*", false)]
        {
            assert_eq!(covers(new, old), expected, "{new} {old}");
        }
    }
}
