//! Where packages come from when a recipe names no mirror: the same place as the host's own, so that a proxy cache,
//! a company mirror or a cloud's mirror is used although the recipe names none.

use std::process::Command;

use crate::step;

/// One line of `sources.list`, without options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AptSource {
    /// URL of the archive.
    pub uri: String,
    /// Suite or pocket, such as `bookworm-updates`.
    pub release: String,
    /// Components in the host's order.
    pub components: Vec<String>,
}

impl AptSource {
    /// Line of `sources.list`.
    pub fn line(&self) -> String {
        format!("deb {} {} {}", self.uri, self.release, self.components.join(" "))
    }
}

/// Finds the sources that the host's apt uses for this suite and its updates. There are none when apt does not have the
/// suite, or the host has no apt.
pub fn of_host(suite: &str) -> Vec<AptSource> {
    let format = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)";
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", format, "Created-By: Packages"]);
    parse(&step::output(&mut command).unwrap_or_default(), suite)
}

fn parse(targets: &str, suite: &str) -> Vec<AptSource> {
    let mut sources: Vec<AptSource> = Vec::new();
    for line in targets.lines() {
        let mut fields = line.split('|');
        let (Some(uri), Some(release), Some(component)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        // Backports and proposed updates are a decision of their own: the recipe's `sources`.
        let pocket = release.strip_prefix(suite);
        let usable = ["http:", "https:", "file:"].iter().any(|scheme| uri.starts_with(scheme));
        if !usable || !pocket.is_some_and(|pocket| ["", "-updates", "-security"].contains(&pocket)) {
            continue;
        }
        match sources.iter_mut().find(|source| source.uri == uri && source.release == release) {
            Some(source) if source.components.iter().any(|known| known == component) => {}
            Some(source) => source.components.push(component.to_owned()),
            None => sources.push(AptSource {
                uri: uri.to_owned(),
                release: release.to_owned(),
                components: vec![component.to_owned()],
            }),
        }
    }
    // The suite itself must be among them: its pockets alone make no system, and others hold unrelated packages.
    // The key of the archive is that of the suite, so a third party's repository of the same name is left out.
    let has_suite = sources.iter().any(|source| source.release == suite);
    if has_suite { sources } else { Vec::new() }
}

/// Returns the options by which the host's apt reaches its archives: proxies, and the checks of an archive's date that
/// an old mirror needs off.
pub fn apt_options() -> Vec<String> {
    let dump = step::output(Command::new("apt-config").arg("dump")).unwrap_or_default();
    options(&dump)
}

fn options(dump: &str) -> Vec<String> {
    let wanted = |line: &&str| {
        ["Acquire::http", "Acquire::https", "Acquire::Check-"].iter().any(|prefix| line.starts_with(prefix))
            // `::` alone opens a list, and an empty value says nothing.
            && !line.ends_with("\"\";")
    };
    dump.lines().filter(wanted).map(|line| line.trim_end_matches(';').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::{options, parse};

    const TARGETS: &str = "http://a.example/d/|bookworm|main\nhttp://a.example/d/|bookworm|non-free-firmware\n\
        http://a.example/d/|bookworm|main\nhttp://a.example/d/|bookworm-updates|main\n\
        http://a.example/s/|bookworm-security|main\nhttp://a.example/d/|bookworm-backports|main\n\
        cdrom://x/|bookworm|main\nhttp://b.example/|nodistro|main\n";

    #[test]
    fn the_suite_and_its_updates_are_taken_over() {
        let lines: Vec<String> = parse(TARGETS, "bookworm").iter().map(super::AptSource::line).collect();
        assert_eq!(
            lines,
            [
                "deb http://a.example/d/ bookworm main non-free-firmware",
                "deb http://a.example/d/ bookworm-updates main",
                "deb http://a.example/s/ bookworm-security main",
            ]
        );
    }

    #[test]
    fn another_suite_gets_nothing() {
        assert!(parse(TARGETS, "noble").is_empty());
        assert!(parse("http://a.example/d/|trixie-updates|main\n", "trixie").is_empty());
    }

    #[test]
    fn proxies_are_taken_over() {
        let dump = "APT \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://p.example:3142\";\n\
                    Acquire::Check-Valid-Until \"false\";\nDPkg::Post-Invoke \"\";\n";
        assert_eq!(
            options(dump),
            ["Acquire::http::Proxy \"http://p.example:3142\"", "Acquire::Check-Valid-Until \"false\""]
        );
    }
}
