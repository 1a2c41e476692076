//! Decides what recovery does first: from the reason that GRUB gave, the state of the system partition, the worth of
//! the installed release, what is kept of another one, and the recoveries and safe starts before. Pure.

use std::fmt;

use crate::boot::worth::Worth;

/// The reason why GRUB started recovery, from the kernel argument `reflash.reason=`. `grub/README.md` says when GRUB
/// gives which reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A person chose it in the menu.
    Menu,
    /// The running system asked for it.
    Requested,
    /// An earlier recovery did not finish.
    Recovering,
    /// The boot environment is missing or damaged.
    EnvLost,
    /// GRUB could not write the environment to count a try down.
    EnvUnwritable,
    /// The system used up its tries, and none of those boots was confirmed as good.
    Tries,
    /// GRUB cannot read the system's kernel, initramfs or boot entry.
    SystemUnreadable,
    /// The loader cannot read a boot script of either slot.
    ScriptLost,
    /// GRUB gave no reason, or one that this agent does not know.
    Unknown,
}

impl Reason {
    /// Reads the value of the kernel argument.
    #[must_use]
    pub fn parse(value: Option<&str>) -> Self {
        match value {
            Some("menu") => Self::Menu,
            Some("requested") => Self::Requested,
            Some("recovering") => Self::Recovering,
            Some("env-lost") => Self::EnvLost,
            Some("env-unwritable") => Self::EnvUnwritable,
            Some("tries") => Self::Tries,
            Some("system-unreadable") => Self::SystemUnreadable,
            Some("script-lost") => Self::ScriptLost,
            _ => Self::Unknown,
        }
    }

    /// Returns the reason as a person reads it on the screen.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Menu => "a person chose it in the boot menu",
            Self::Requested => "the running system asked for it",
            Self::Recovering => "the last recovery was cut short",
            Self::EnvLost => "the boot environment is missing or damaged",
            Self::EnvUnwritable => "GRUB could not write the boot environment",
            Self::Tries => "the system used up its tries and no boot was confirmed as good",
            Self::SystemUnreadable => "GRUB could not read the system's kernel",
            Self::ScriptLost => "GRUB could not read its boot script in either slot",
            Self::Unknown => "GRUB gave no reason that this agent knows",
        }
    }

    /// Whether a person or the system asked for recovery. Such a recovery is never held back by the count of
    /// recoveries.
    #[must_use]
    pub fn is_requested(self) -> bool {
        matches!(self, Self::Menu | Self::Requested)
    }

    /// Whether only a release mends what led here: an update that was cut short, or a boot script that is lost.
    fn needs_release(self) -> bool {
        matches!(self, Self::Recovering | Self::ScriptLost | Self::Unknown)
    }

    /// Whether the environment itself is at fault, so that it should be written to another place of the disk.
    #[must_use]
    pub fn blames_environment(self) -> bool {
        matches!(self, Self::EnvLost | Self::EnvUnwritable)
    }
}

/// State of the system partition, compared with the record of the installed release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// There is no record to compare with.
    Unknown,
    /// Every byte of the system is right.
    Intact,
    /// The system differs from the installed release.
    Damaged,
}

/// The loop brake: a count of the automatic recoveries to one release since the last good boot.
///
/// It is kept in the boot environment, as `SERIAL:COUNT`, because there it is written together with the tries it
/// belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recoveries {
    /// Serial of the release.
    pub serial: u64,
    /// Number of automatic recoveries to it.
    pub count: u32,
}

impl Recoveries {
    /// Reads the variable. Anything other than `SERIAL:COUNT` counts as no recovery: the brake must not hold a machine
    /// back because of a damaged number.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        let parsed = text.and_then(|text| {
            let (serial, count) = text.split_once(':')?;
            Some(Self { serial: serial.parse().ok()?, count: count.parse().ok()? })
        });
        parsed.unwrap_or_default()
    }

    /// Returns the count before a recovery to release `serial`. Another release, or a recovery that was requested,
    /// begins at zero.
    #[must_use]
    pub fn towards(self, serial: u64, requested: bool) -> Self {
        if requested || serial != self.serial { Self { serial, count: 0 } } else { self }
    }

    /// Returns the count that is believed, of that in the environment and the one that the black box bears witness to,
    /// for where the environment is lost. The higher one is believed: to wait too long is harmless, since a person or
    /// the next release ends it.
    #[must_use]
    pub fn or_recorded(self, recorded: Self) -> Self {
        // An environment that names another release is not lost: it counts anew.
        let of_another = self.serial != 0 && recorded.serial != self.serial;
        if recorded.count > self.count && !of_another { recorded } else { self }
    }

    /// Returns the count after one more automatic recovery.
    #[must_use]
    pub fn one_more(self) -> Self {
        Self { count: self.count.saturating_add(1), ..self }
    }
}

impl fmt::Display for Recoveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.serial, self.count)
    }
}

/// The release that is kept on the machine, so that an undo can bring it back without a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptRelease {
    /// Nothing, or nothing that can be used.
    Nothing,
    /// The installed release itself: damage can be repaired from it.
    Installed,
    /// A release other than the installed one, which was good.
    Another,
    /// Such a release too, of which only a network has what is missing.
    Part,
}

/// The safe starts of the installed release: with the image's own settings, and without the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SafeStarts {
    /// Whether every boot script that GRUB may read can make one.
    pub known: bool,
    /// Number of those that were made since the last good boot.
    pub made: u16,
}

/// Everything that the first step depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Reason why GRUB started recovery.
    pub reason: Reason,
    /// Whether it was asked for that the installed release is taken back.
    pub undo_requested: bool,
    /// State of the system partition.
    pub system: System,
    /// Whether the installed release was ever good.
    pub worth: Worth,
    /// The release that an undo can bring back.
    pub kept: KeptRelease,
    /// The safe starts so far.
    pub safe_starts: SafeStarts,
    /// Automatic recoveries before this one.
    pub recoveries: Recoveries,
    /// Number of automatic recoveries that one release may have: the configuration key `boot.recoveries`.
    pub budget: u32,
}

/// The first step of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDecision {
    /// Give the intact system a fresh environment and start it; no network needed.
    Start,
    /// Go back to the release that is kept; no network needed.
    Undo,
    /// Go back to the release that is kept, once a network has given what is missing of it. Without a network,
    /// [`without_release`] says what is done; where the network does not have it, it is decided again without the undo.
    UndoOnline,
    /// Ask for the release that is offered and make the partition equal to it. Without one, [`without_release`] says
    /// what is done.
    Fetch,
    /// Ask for a release with a higher serial, since writing the same bytes again would not help. Without one,
    /// [`without_release`] says what is done.
    FetchNewer,
    /// Wait for a release with a higher serial, and after a pause try again what was tried before.
    Park,
}

/// The step where no release can be had within `boot.offline_s`, or none that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutRelease {
    /// Start the intact system.
    Start,
    /// Start the intact system without its data and settings.
    SafeStart,
    /// Go back to the release that is kept.
    Undo,
    /// Go on asking, and start the system after a pause, though nothing shows that it is whole. What was being written
    /// lacks its superblock, so that GRUB does not start it.
    Try,
    /// Go on asking: what is known to be damaged is not started.
    Wait,
}

/// Safe starts, each followed by failing starts, after which a release that was good is taken back all the same: for
/// hours its surroundings were not what kept it from starting.
const SAFE_STARTS_OF_GOOD: u16 = 3;
/// The same for a release of which nothing is known.
const SAFE_STARTS_OF_UNKNOWN: u16 = 1;

/// Decides on the first step. `docs/failure-modes.md` has the decisions as a table.
///
/// The first exhaustion of `boot.tries` decides: a release that was never good is taken back, one that was good before
/// gets a safe start, for its surroundings are at fault. The brake holds back only what neither of them answers.
#[must_use]
pub fn decide(situation: &Situation) -> BootDecision {
    let Situation { reason, system, worth, kept, .. } = *situation;
    // Where nothing is left to go back to, what recovery wrote for itself must not outrank everything else.
    if situation.undo_requested && (kept != KeptRelease::Nothing || reason.is_requested()) {
        return match (kept, system) {
            (KeptRelease::Another, _) | (KeptRelease::Installed, System::Damaged | System::Unknown) => {
                BootDecision::Undo
            }
            (KeptRelease::Part, _) => BootDecision::UndoOnline,
            (_, System::Intact) => BootDecision::Start,
            (_, System::Damaged | System::Unknown) => BootDecision::Fetch,
        };
    }
    if reason.is_requested() {
        return BootDecision::Fetch;
    }
    let braked = situation.recoveries.count >= situation.budget;
    match system {
        System::Damaged | System::Unknown if braked => match kept {
            KeptRelease::Another | KeptRelease::Installed => BootDecision::Undo,
            KeptRelease::Part => BootDecision::UndoOnline,
            KeptRelease::Nothing => BootDecision::Park,
        },
        // What was cut short is an update rather than damage, and a lost script comes from a release only.
        System::Damaged if kept == KeptRelease::Installed && !reason.needs_release() => BootDecision::Undo,
        System::Damaged | System::Unknown => BootDecision::Fetch,
        System::Intact => match reason {
            Reason::Tries => after_failed_starts(situation, braked),
            Reason::Recovering if braked => after_failed_starts(situation, braked),
            Reason::ScriptLost | Reason::Unknown if !braked => BootDecision::Fetch,
            _ if !braked => BootDecision::Start,
            // GRUB could read the kernel of a release that was good.
            Reason::SystemUnreadable => undo_or(kept, BootDecision::Park),
            _ if worth == Worth::Never => undo_or(kept, BootDecision::Park),
            _ => BootDecision::Park,
        },
    }
}

/// The first step where the starts of an intact system failed.
fn after_failed_starts(situation: &Situation, braked: bool) -> BootDecision {
    let Situation { worth, kept, safe_starts, .. } = *situation;
    match worth {
        Worth::Never => undo_or(kept, if braked { BootDecision::Park } else { BootDecision::Fetch }),
        _ if safe_starts.known => BootDecision::FetchNewer,
        _ if braked => undo_or(kept, BootDecision::Park),
        _ => BootDecision::Fetch,
    }
}

/// Going back to another release that is kept, where there is one.
fn undo_or(kept: KeptRelease, otherwise: BootDecision) -> BootDecision {
    match kept {
        KeptRelease::Another => BootDecision::Undo,
        KeptRelease::Part => BootDecision::UndoOnline,
        KeptRelease::Installed | KeptRelease::Nothing => otherwise,
    }
}

/// Decides on the step where no release is to be had.
#[must_use]
pub fn without_release(situation: &Situation) -> WithoutRelease {
    let Situation { reason, system, worth, kept, safe_starts, .. } = *situation;
    match (system, kept) {
        (System::Damaged | System::Unknown, KeptRelease::Another | KeptRelease::Installed) => {
            return WithoutRelease::Undo;
        }
        (System::Damaged, KeptRelease::Nothing | KeptRelease::Part) => return WithoutRelease::Wait,
        (System::Unknown, KeptRelease::Nothing | KeptRelease::Part) => return WithoutRelease::Try,
        (System::Intact, _) => {}
    }
    let enough = match worth {
        Worth::Never => 0,
        Worth::Before | Worth::SameImage => SAFE_STARTS_OF_GOOD,
        Worth::Unknown => SAFE_STARTS_OF_UNKNOWN,
    };
    match reason {
        Reason::Tries | Reason::Recovering if safe_starts.made >= enough && kept == KeptRelease::Another => {
            WithoutRelease::Undo
        }
        Reason::Tries | Reason::Recovering if safe_starts.known && worth != Worth::Never => WithoutRelease::SafeStart,
        _ => WithoutRelease::Start,
    }
}

/// Whether an undo takes the installed release back, so that it is refused from then on. A release that was good and
/// has lost some of its bytes is as good as before once it is installed again.
#[must_use]
pub fn takes_back(situation: &Situation) -> bool {
    let was_good = matches!(situation.worth, Worth::Before | Worth::SameImage);
    situation.undo_requested || !was_good || situation.system == System::Intact
}

/// Hours to go on asking for a release before `step` is taken: 0 the first time, then more each time that it has
/// failed.
#[must_use]
pub fn hours_before(step: WithoutRelease, situation: &Situation) -> u32 {
    let Situation { safe_starts, recoveries, budget, .. } = *situation;
    match step {
        WithoutRelease::SafeStart => safe_starts.made.checked_sub(1).map_or(0, |before| growing_hours(before.into())),
        // Where an undo waits for a network, nobody has parked the machine.
        WithoutRelease::Start if recoveries.count >= budget => parked_hours(recoveries, budget),
        WithoutRelease::Try if recoveries.count > 0 => parked_hours(recoveries, 1),
        WithoutRelease::Start | WithoutRelease::Try | WithoutRelease::Undo | WithoutRelease::Wait => 0,
    }
}

/// Pause of a parked machine before it tries again, in hours: from one to a day, by the number of recoveries beyond the
/// budget.
#[must_use]
pub fn parked_hours(recoveries: Recoveries, budget: u32) -> u32 {
    growing_hours(recoveries.count.saturating_sub(budget))
}

/// Pause before the next try, in hours: 1 after the first failure, doubled after each further one, 24 at most.
#[must_use]
pub fn growing_hours(times: u32) -> u32 {
    const LONGEST: u32 = 24;
    1_u32.checked_shl(times).unwrap_or(LONGEST).min(LONGEST)
}

#[cfg(test)]
mod tests;
