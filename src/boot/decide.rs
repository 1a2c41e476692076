//! What recovery does first: from why GRUB started it, what is on the disk, and how often that was tried before. Pure.

use std::fmt;

/// Why GRUB started recovery: `reflash.reason=`; `grub/README.md` says when it gives which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A person chose it in the menu.
    Menu,
    /// The running system asked for it.
    Requested,
    /// An earlier recovery did not come to its end.
    Recovering,
    /// The boot environment is missing or damaged.
    EnvLost,
    /// GRUB could not count a try down.
    EnvUnwritable,
    /// No boot of the system called itself good.
    Tries,
    /// GRUB cannot read the system's kernel, initramfs or boot entry.
    SystemUnreadable,
    /// The loader cannot read a boot script of either slot.
    ScriptLost,
    /// None, or one this agent does not know.
    Unknown,
}

impl Reason {
    /// Reads the kernel argument's value.
    #[must_use]
    pub fn parse(word: Option<&str>) -> Self {
        match word {
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

    /// What a person reads on the screen.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Menu => "a person chose it in the boot menu",
            Self::Requested => "the running system asked for it",
            Self::Recovering => "the last recovery was cut short",
            Self::EnvLost => "the boot environment is missing or damaged",
            Self::EnvUnwritable => "GRUB could not write the boot environment",
            Self::Tries => "the system was started as often as it may be and never called a boot good",
            Self::SystemUnreadable => "GRUB could not read the system's kernel",
            Self::ScriptLost => "GRUB could not read its boot script in either slot",
            Self::Unknown => "GRUB gave no reason that is known here",
        }
    }

    /// Somebody wants it: it is never held back by the count of recoveries.
    #[must_use]
    pub fn is_requested(self) -> bool {
        matches!(self, Self::Menu | Self::Requested)
    }

    /// The environment itself is at fault: it is better written to another place of the disk.
    #[must_use]
    pub fn blames_environment(self) -> bool {
        matches!(self, Self::EnvLost | Self::EnvUnwritable)
    }
}

/// What the system partition holds, compared with the record of the installed release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// There is no record to compare with.
    Unknown,
    /// Every byte is right.
    Intact,
    /// Something differs.
    Damaged,
}

/// Automatic recoveries to one release since the last good boot: the loop brake. In the boot environment as
/// `SERIAL:COUNT`, because there it is written together with the tries it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recoveries {
    /// Serial of the release.
    pub serial: u64,
    /// How many.
    pub count: u32,
}

impl Recoveries {
    /// Reads the variable. Anything else than `SERIAL:COUNT` counts as none: the brake must not hold a machine back
    /// because of a damaged number.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        let parsed = text.and_then(|text| {
            let (serial, count) = text.split_once(':')?;
            Some(Self { serial: serial.parse().ok()?, count: count.parse().ok()? })
        });
        parsed.unwrap_or_default()
    }

    /// The count to begin a recovery to release `serial` with: another release, or somebody's wish, begins anew.
    #[must_use]
    pub fn towards(self, serial: u64, requested: bool) -> Self {
        if requested || serial != self.serial { Self { serial, count: 0 } } else { self }
    }

    /// After one more automatic recovery.
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

/// Everything the first step depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Why recovery was started.
    pub reason: Reason,
    /// What is on the disk.
    pub system: System,
    /// What was tried before.
    pub recoveries: Recoveries,
    /// `boot.recoveries`: how often one release may be recovered to.
    pub budget: u32,
}

/// The first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDecision {
    /// Give the intact system a fresh environment and start it; no network needed.
    Start,
    /// Ask for the release and make the partition equal to it.
    Fetch {
        /// When no release is to be had, the system is started as it is, if it is intact.
        or_start: bool,
    },
    /// This release was recovered to often enough. Wait for another; do not write the same bytes again.
    Park,
}

/// Decides.
///
/// An intact system whose boots all failed (`tries`) is not simply started again: the release may have been replaced
/// by a better one, so that is asked for first.
#[must_use]
pub fn decide(situation: &Situation) -> BootDecision {
    // What is not known yet is compared before it is started.
    let or_start = situation.system != System::Damaged;
    if situation.reason.is_requested() {
        return BootDecision::Fetch { or_start };
    }
    if situation.recoveries.count >= situation.budget {
        return BootDecision::Park;
    }
    match situation.reason {
        // Only a release brings a boot script back; without one every start comes here.
        Reason::Tries | Reason::ScriptLost | Reason::Unknown => BootDecision::Fetch { or_start },
        _ if situation.system == System::Intact => BootDecision::Start,
        _ => BootDecision::Fetch { or_start: false },
    }
}

#[cfg(test)]
mod tests {
    use super::{BootDecision, Reason, Recoveries, Situation, System, decide};

    const ALL: [&str; 9] = [
        "menu",
        "requested",
        "recovering",
        "env-lost",
        "env-unwritable",
        "tries",
        "system-unreadable",
        "script-lost",
        "new-word",
    ];

    fn situation(reason: &str, system: System, count: u32) -> Situation {
        let recoveries = Recoveries { serial: 7, count };
        Situation { reason: Reason::parse(Some(reason)), system, recoveries, budget: 3 }
    }

    #[test]
    fn an_intact_system_is_started_without_the_network_unless_it_failed_by_itself_or_somebody_wants_another() {
        for reason in ALL {
            let expected = match reason {
                "menu" | "requested" | "tries" | "script-lost" | "new-word" => BootDecision::Fetch { or_start: true },
                _ => BootDecision::Start,
            };
            assert_eq!(decide(&situation(reason, System::Intact, 2)), expected, "{reason}");
        }
    }

    #[test]
    fn a_damaged_system_is_never_started_and_an_unknown_one_only_where_it_can_be_compared_later() {
        for reason in ALL {
            assert_eq!(
                decide(&situation(reason, System::Damaged, 0)),
                BootDecision::Fetch { or_start: false },
                "{reason}"
            );
            let later = matches!(reason, "menu" | "requested" | "tries" | "script-lost" | "new-word");
            assert_eq!(
                decide(&situation(reason, System::Unknown, 0)),
                BootDecision::Fetch { or_start: later },
                "{reason}"
            );
        }
    }

    #[test]
    fn the_brake_holds_everything_but_a_persons_wish() {
        for reason in ALL {
            for system in [System::Intact, System::Damaged, System::Unknown] {
                let held = decide(&situation(reason, system, 3)) == BootDecision::Park;
                assert_eq!(held, !matches!(reason, "menu" | "requested"), "{reason}");
            }
        }
    }

    #[test]
    fn recoveries_count_one_release_and_survive_as_text() {
        let three = Recoveries { serial: 7, count: 3 };
        assert_eq!(Recoveries::parse(Some(&three.to_string())), three);
        for damaged in [None, Some(""), Some("7"), Some("x:1"), Some("7:-1"), Some("7:1:2")] {
            assert_eq!(Recoveries::parse(damaged), Recoveries::default());
        }
        assert_eq!(three.towards(7, false).one_more().count, 4);
        assert_eq!(three.towards(8, false), Recoveries { serial: 8, count: 0 });
        assert_eq!(three.towards(7, true).count, 0);
    }
}
