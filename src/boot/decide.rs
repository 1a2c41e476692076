//! Decides what recovery does first, from the reason that GRUB gave, the state of the system partition, and the number
//! of recoveries before. Pure.

use std::fmt;

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

/// Everything that the first step depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Reason why GRUB started recovery.
    pub reason: Reason,
    /// State of the system partition.
    pub system: System,
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
    /// Ask for the release and make the partition equal to it.
    Fetch {
        /// Whether the system is started as it is when no release can be fetched, provided that it is intact.
        or_start: bool,
    },
    /// Wait for another release: writing the same bytes again would not help, since it was done often enough.
    Park,
}

/// Decides on the first step.
///
/// An intact system whose boots all failed (`tries`) is not simply started again. A better release may have been
/// published since, so the agent first asks for that.
#[must_use]
pub fn decide(situation: &Situation) -> BootDecision {
    // An unknown system is compared before it is started.
    let or_start = situation.system != System::Damaged;
    if situation.reason.is_requested() {
        return BootDecision::Fetch { or_start };
    }
    if situation.recoveries.count >= situation.budget {
        return BootDecision::Park;
    }
    match situation.reason {
        // Only a release can bring the boot script back, and without the script every boot ends in recovery.
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
    fn an_intact_system_is_started_without_the_network_unless_its_boots_failed_or_recovery_was_requested() {
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
    fn the_brake_holds_everything_but_a_request() {
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
