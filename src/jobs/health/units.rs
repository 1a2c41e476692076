//! What systemd says of its services, as `systemctl show` prints it. Pure.

/// Arguments of `systemctl` that ask for the state of every service that is loaded. A program is asked and not the bus:
/// its output is documented and stable, and a client of the bus would cost the agent more than all of this.
pub const QUESTION: &[&str] = &[
    "show",
    "--no-pager",
    "--property=Id,Names,Type,ActiveState,SubState,Result,NRestarts,FragmentPath,SourcePath",
    "*.service",
];

/// State of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// Name, with `.service`.
    pub name: String,
    /// All names, by which another unit or a person may call it too, as `sshd.service` is one of `ssh.service`.
    pub names: Vec<String>,
    /// Whether it runs once and ends (`Type=oneshot`).
    pub is_oneshot: bool,
    /// The state that units of all kinds have, such as `active` and `failed`.
    pub active: String,
    /// The state that services have, such as `running` and `auto-restart`.
    pub sub: String,
    /// Result of its last end: `success`, `exit-code`, `signal`, `core-dump`, `watchdog`, `timeout`, `start-limit-hit`.
    pub result: String,
    /// Restarts by systemd itself since a person or a dependency started it.
    pub restarts: u64,
    /// Path of its file.
    pub fragment: String,
    /// Path of the file that a generator made it of.
    pub source: String,
}

/// Reads the answer: properties a line each, an empty line between two units.
#[must_use]
pub fn parse(answer: &str) -> Vec<UnitState> {
    answer.split("\n\n").map(unit).filter(|unit| !unit.name.is_empty()).collect()
}

fn unit(block: &str) -> UnitState {
    let mut unit = UnitState::default();
    for (key, value) in block.lines().filter_map(|line| line.split_once('=')) {
        let text = value.to_owned();
        match key {
            "Id" => unit.name = text,
            "Names" => unit.names = value.split_ascii_whitespace().map(str::to_owned).collect(),
            "Type" => unit.is_oneshot = value == "oneshot",
            "ActiveState" => unit.active = text,
            "SubState" => unit.sub = text,
            "Result" => unit.result = text,
            "NRestarts" => unit.restarts = value.parse().unwrap_or(0),
            "FragmentPath" => unit.fragment = text,
            "SourcePath" => unit.source = text,
            _ => {}
        }
    }
    unit
}

impl UnitState {
    /// Whether one of the unit's names fits a pattern.
    #[must_use]
    pub fn is_called(&self, pattern: &str) -> bool {
        fits(&self.name, pattern) || self.names.iter().any(|name| fits(name, pattern))
    }
}

/// Whether a name fits a pattern in which `*` stands for any text. `.service` may be left out of the pattern.
#[must_use]
pub fn fits(name: &str, pattern: &str) -> bool {
    let name = name.strip_suffix(".service").unwrap_or(name);
    let pattern = pattern.strip_suffix(".service").unwrap_or(pattern);
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::{fits, parse};

    /// As systemd 252 prints it.
    const ANSWER: &str = "Type=simple\nNRestarts=7\nResult=exit-code\nId=app.service\nActiveState=activating\n\
        SubState=auto-restart\nFragmentPath=/lib/systemd/system/app.service\nSourcePath=\n\nType=oneshot\nNRestarts=0\n\
        Result=success\nId=x\\x2dy.service\nActiveState=inactive\nSubState=dead\nFragmentPath=\nSourcePath=\n\n\
        Id=gone.service\nActiveState=inactive\n";

    #[test]
    fn the_answer_of_systemd_is_read() {
        let units = parse(ANSWER);
        assert_eq!(units.len(), 3);
        assert_eq!((units[0].restarts, units[0].sub.as_str()), (7, "auto-restart"));
        assert_eq!((units[0].is_oneshot, units[1].is_oneshot), (false, true));
        assert_eq!((units[1].name.as_str(), units[2].name.as_str()), ("x\\x2dy.service", "gone.service"));
        let ssh = &parse("Id=ssh.service\nNames=ssh.service sshd.service\n")[0];
        assert!(ssh.is_called("sshd") && ssh.is_called("ssh.service") && !ssh.is_called("sshd-keygen"));
        assert!(parse("").is_empty() && parse("nonsense\n\n\n").is_empty());
    }

    #[test]
    fn patterns_stand_for_names() {
        for (name, pattern, expected) in [
            ("app.service", "app", true),
            ("app.service", "app.service", true),
            ("app.service", "ap", false),
            ("app@1.service", "app@*", true),
            ("serial-getty@ttyS0.service", "*getty@*.service", true),
            ("getty.service", "*getty@*", false),
            ("aba.service", "ab*ba", false),
            ("anything.service", "*", true),
            ("a-b-c.service", "a*b*c", true),
        ] {
            assert_eq!(fits(name, pattern), expected, "{name} {pattern}");
        }
    }
}
