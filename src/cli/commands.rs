//! The commands, one row each. Pure.

use crate::boot::systems::SystemCount;

/// Name of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandName {
    /// `reflash flash`: make a target equal to a release.
    Flash,
    /// `reflash provision`: make a robot's disk of a whole disk.
    Provision,
    /// `reflash verify`: compare a target with the installed release.
    Verify,
    /// `reflash status`: show what is installed and how the last boots went.
    Status,
    /// `reflash report`: post the results of recent recoveries.
    Report,
    /// `reflash health`: check whether this system is healthy.
    Health,
    /// `reflash good`: record that this boot is good.
    Good,
    /// `reflash after-undo`: let applications act after a release was taken back.
    AfterUndo,
    /// `reflash mend`: mend what firmware and GRUB read.
    Mend,
    /// `reflash request`: start recovery at the next boot.
    Request,
    /// `reflash drill`: show whether this machine could recover.
    Drill,
    /// `reflash update`: fetch the next release while the system works.
    Update,
    /// `reflash env`: show or change the boot environment.
    Env,
}

/// A command with what its operands say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make a target equal to a release.
    Flash,
    /// Make a robot's disk of a whole disk.
    Provision,
    /// Compare a target with the installed release.
    Verify,
    /// Show what is installed and how the last boots went.
    Status,
    /// Post the results of recent recoveries.
    Report,
    /// Check whether this system is healthy.
    Health(HealthWait),
    /// Record that this boot is good.
    Good,
    /// Let applications act after a release was taken back.
    AfterUndo,
    /// Mend what firmware and GRUB read.
    Mend,
    /// Start recovery at the next boot, or offer a factory reset there.
    Request(RequestedAction),
    /// Show at the next boot, or here, whether this machine could recover.
    Drill(DrillKind),
    /// Fetch the next release while the system works.
    Update,
    /// Show or change the boot environment.
    Env(EnvAction),
}

/// Whether a check of the system's health waits until it is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthWait {
    /// Each check is made once.
    Once,
    /// Checks that fail are repeated until all of them pass.
    UntilHealthy,
}

/// Place of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillKind {
    /// In the recovery, which the next boot starts once.
    NextBoot,
    /// Here and now.
    Check,
}

/// Action that `reflash request` asks the next boot for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedAction {
    /// Install the release that is offered, or the installed one again.
    Reflash,
    /// Install the release that is offered, if its serial is higher than that of the installed one.
    Newer,
    /// Take the installed release back.
    Undo,
    /// Change how many systems the disk has.
    Systems(SystemCount),
    /// Delete the data, after a person at the console confirmed it twice.
    FactoryReset,
}

/// Operation of `reflash env` on the boot environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvAction {
    /// Print all variables.
    List,
    /// Set one variable.
    Set(String, String),
    /// Remove one variable.
    Unset(String),
}

/// The row of a command.
#[derive(Debug)]
pub struct CommandRow {
    /// The command itself.
    pub name: CommandName,
    /// The word that is typed.
    pub word: &'static str,
    /// The operands, as a usage line shows them.
    pub operands: &'static str,
    /// The first words that an operand can be, each with an explanation; the completions offer them.
    pub words: &'static [(&'static str, &'static str)],
    /// The line in the overview.
    pub summary: &'static str,
    /// The paragraphs that explain it.
    pub about: &'static [&'static str],
    /// Reads the operands; the error names the one that is wrong.
    pub(super) read: fn(&[&str]) -> Result<Command, String>,
}

/// Every command, in the order of the overview.
pub static COMMANDS: &[CommandRow] = &[
    CommandRow {
        name: CommandName::Flash,
        word: "flash",
        operands: "",
        words: &[],
        summary: "download, verify, write and read back a release",
        about: &[
            "Makes a target equal to the release of the configured channel. Only what differs is downloaded and written.",
            "The target must not be mounted. To reflash the system that is running, use `reflash request` and reboot.",
        ],
        read: |operands| without_operands(operands, Command::Flash),
    },
    CommandRow {
        name: CommandName::Provision,
        word: "provision",
        operands: "",
        words: &[],
        summary: "turn a whole disk into a robot's disk",
        about: &[
            "Makes partition table, boot code and file systems as the release says, then installs its system. The disk starts \
             only once everything on it was verified, and a run that ends early may be repeated. Needs root.",
            "The options --disk and --config must be given.",
        ],
        read: |operands| without_operands(operands, Command::Provision),
    },
    CommandRow {
        name: CommandName::Verify,
        word: "verify",
        operands: "",
        words: &[],
        summary: "compare the system with the installed release",
        about: &[
            "Compares every byte of a target with the release that is recorded as installed. It works on the running system \
             too. The exit code is 0 when every byte is right, and 1 when the target is damaged.",
        ],
        read: |operands| without_operands(operands, Command::Verify),
    },
    CommandRow {
        name: CommandName::Status,
        word: "status",
        operands: "",
        words: &[],
        summary: "show what is installed and how the last boots went",
        about: &[
            "Shows the installed release and the black box: reason, outcome, quantities and errors of the last recoveries. The \
             exit code is 1 when no release is recorded as installed.",
            "With --etc it compares /etc with the image instead: what this machine added, changed, deleted, or has as \
             another kind of file; which of it is older than the image's own file and hides it; and, as root, marks of \
             deletion and copies that serve nothing any more. A file that you have looked at is no longer listed once you \
             `touch` it. `reflash good` notes when each default arrived, by the clock of the machine.",
        ],
        read: |operands| without_operands(operands, Command::Status),
    },
    CommandRow {
        name: CommandName::Report,
        word: "report",
        operands: "",
        words: &[],
        summary: "post the results of recent recoveries to report.url",
        about: &[
            "Posts, as JSON, what the black box holds of the recoveries that were not reported before. The system's image runs \
             this command once it has a network.",
        ],
        read: |operands| without_operands(operands, Command::Report),
    },
    CommandRow {
        name: CommandName::Health,
        word: "health",
        operands: "[wait]",
        words: &[("wait", "repeat the checks until all of them pass, as the system's image does at each start")],
        summary: "check whether this system is healthy",
        about: &[
            "Runs every program of /usr/lib/reflash/health.d and /etc/reflash/health.d, which has to end with 0 within 60 s, \
             and asks systemd which services have failed or crash and are restarted. The exit code is 1 when something \
             fails that keeps a boot from being called good.",
            "With `wait` the services also have to stay up for boot.settle_s, and what fails is tried again until it passes: \
             the boot watch ends that by a restart after boot.good_within_s. What stands in the way is in the black box, in \
             the report and in `reflash status`.",
        ],
        read: read_health,
    },
    CommandRow {
        name: CommandName::Good,
        word: "good",
        operands: "",
        words: &[],
        summary: "record this boot as good; the system gets its tries back",
        about: &[
            "Gives the system its full number of tries back, and records that the installed release was good: it is the one \
             that an undo leads back to once another is installed. Then it mends what firmware and GRUB read, as `reflash \
             mend` does. The system's image runs this command once it is up.",
        ],
        read: |operands| without_operands(operands, Command::Good),
    },
    CommandRow {
        name: CommandName::AfterUndo,
        word: "after-undo",
        operands: "",
        words: &[],
        summary: "run the programs that applications have for an undo",
        about: &[
            "Runs every executable file in /etc/reflash/undo.d and /usr/lib/reflash/undo.d, by name, if the last recovery took \
             a release back and this was not done since. A name in /etc stands in place of the same name in /usr/lib; a link \
             to /dev/null switches a program off. The environment has REFLASH_SERIAL and REFLASH_VERSION of the release that \
             is installed again, and REFLASH_UNDONE_SERIAL, REFLASH_UNDONE_VERSION and REFLASH_UNDONE_WHY of the other one. \
             The system's image runs this command before its services.",
        ],
        read: |operands| without_operands(operands, Command::AfterUndo),
    },
    CommandRow {
        name: CommandName::Mend,
        word: "mend",
        operands: "",
        words: &[],
        summary: "mend partition table and boot code of this machine's disk",
        about: &[
            "Looks at what firmware and GRUB read of the disk: both copies of the partition table, the boot code, the EFI \
             system partition. What is damaged is written again from the other copy, or from the robot's own copy of its \
             boot code; everything is read back. `reflash good` does the same after each good boot. The exit code is 1 \
             when something stays damaged.",
        ],
        read: |operands| without_operands(operands, Command::Mend),
    },
    CommandRow {
        name: CommandName::Request,
        word: "request",
        operands: "[ACTION]",
        words: &[
            ("reflash", "install the offered release again; the data stays (the default)"),
            ("newer", "the same, but only if a server has a newer release now; the exit code is 1 if none has"),
            (
                "undo",
                "take the installed release back: the one before it, which is kept on the machine, is installed again",
            ),
            (
                "two-systems",
                "give the disk a second system: in room without a partition, or by the division of a system partition that \
                 holds its image twice; the data stays where it is",
            ),
            ("one-system", "take the second system away, if it is not the one in use"),
            ("factory-reset", "ask twice at the console, then recreate the data partition; the system is kept"),
        ],
        summary: "start recovery, or offer a factory reset, at the next boot",
        about: &[
            "Makes the next boot, and only that one, start recovery.",
            "An undo needs no network, unless `reflash status` says that something is missing. It also says which release it \
             leads back to, or why there is none. The release that is taken back is refused from then on: it is not chosen again by itself. \"Recover/Reflash\" in the boot \
             menu, and --serial, lift that.",
            "To erase everything, start the machine from a boot medium (`reflash-build media`) or use `reflash provision`: from its \
             own disk a machine cannot do that and survive a power cut.",
        ],
        read: read_request,
    },
    CommandRow {
        name: CommandName::Drill,
        word: "drill",
        operands: "[check]",
        words: &[("check", "make the checks here and now, without a restart")],
        summary: "try whether this machine could recover, without writing",
        about: &[
            "Makes the next boot, and only that one, a drill: recovery finds its disk, brings up the network, checks the release \
             that is offered, compares and plans, fetches a sample, sees whether an undo is possible, and starts the system \
             again within boot.drill_s. The result is in the black box, in the report and in `reflash status`. A drill that \
             fails in any way ends with the start of the system.",
            "The exit code of `reflash drill check` is 0 when a recovery would have worked, and 1 when not.",
        ],
        read: read_drill,
    },
    CommandRow {
        name: CommandName::Update,
        word: "update",
        operands: "",
        words: &[],
        summary: "fetch the next release while the system works",
        about: &[
            "Looks for a newer release, and fetches what this machine lacks of it into a store on its data partition: at the \
             lowest priority, within update.max_rate_kib_s, and in room that is reserved beforehand. What an earlier run \
             fetched is used. Nothing of the running system is changed. The exit code is 1 when there is no newer release.",
            "With --apply the servers are asked once more whether the release still stands, and the machine restarts: recovery \
             applies what was fetched, without a network. Programs in /etc/reflash/update.d and /usr/lib/reflash/update.d \
             that do not end with 0, and locks of `systemd-inhibit` that block a shutdown, hold that up.",
            "The system's image runs it with --background by a timer, which does what update.automatic says. `reflash status` \
             shows how it stands.",
        ],
        read: |operands| without_operands(operands, Command::Update),
    },
    CommandRow {
        name: CommandName::Env,
        word: "env",
        operands: "[list | set NAME=VALUE | unset NAME]",
        words: &[
            ("list", "print all variables (the default)"),
            ("set", "set the variable NAME to VALUE"),
            ("unset", "remove the variable NAME"),
        ],
        summary: "show or change the GRUB environment on the state partition",
        about: &["Changes are made in place and flushed. grub/README.md documents the variables."],
        read: read_env,
    },
];

fn without_operands(operands: &[&str], command: Command) -> Result<Command, String> {
    match operands {
        [] => Ok(command),
        [first, ..] => Err(not_expected(first)),
    }
}

/// The last of several counts, as for options.
fn read_request(operands: &[&str]) -> Result<Command, String> {
    let mut action = RequestedAction::Reflash;
    for operand in operands {
        action = match *operand {
            "reflash" => RequestedAction::Reflash,
            "newer" => RequestedAction::Newer,
            "undo" => RequestedAction::Undo,
            "two-systems" => RequestedAction::Systems(SystemCount::Two),
            "one-system" => RequestedAction::Systems(SystemCount::One),
            "factory-reset" => RequestedAction::FactoryReset,
            other => return Err(not_expected(other)),
        };
    }
    Ok(Command::Request(action))
}

fn read_health(operands: &[&str]) -> Result<Command, String> {
    match operands {
        [] => Ok(Command::Health(HealthWait::Once)),
        ["wait"] => Ok(Command::Health(HealthWait::UntilHealthy)),
        ["wait", other, ..] | [other, ..] => Err(not_expected(other)),
    }
}

fn read_drill(operands: &[&str]) -> Result<Command, String> {
    match operands {
        [] => Ok(Command::Drill(DrillKind::NextBoot)),
        ["check"] => Ok(Command::Drill(DrillKind::Check)),
        ["check", other, ..] | [other, ..] => Err(not_expected(other)),
    }
}

fn read_env(operands: &[&str]) -> Result<Command, String> {
    let action = match operands {
        [] | ["list"] => EnvAction::List,
        ["set", pair] => match pair.split_once('=') {
            Some((name, value)) => EnvAction::Set(name.to_owned(), value.to_owned()),
            None => return Err(format!("{pair:?} is not NAME=VALUE")),
        },
        ["unset", name] => EnvAction::Unset((*name).to_owned()),
        _ => return Err("expected: reflash env list, set NAME=VALUE or unset NAME".to_owned()),
    };
    Ok(Command::Env(action))
}

/// The sentence about an argument that a command does not take.
pub(super) fn not_expected(argument: &str) -> String {
    format!("{argument:?} is not expected here")
}
