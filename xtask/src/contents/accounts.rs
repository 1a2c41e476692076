//! Users and groups of an image. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// User or group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AccountEntry {
    /// Number of the user or group.
    pub number: u32,
    /// Rest of its line, in order: group, home and shell of a user, members of a group.
    pub details: Vec<String>,
}

/// Parses the text of `passwd`.
#[must_use]
pub fn users(passwd: &str) -> BTreeMap<String, AccountEntry> {
    // name:password:uid:gid:comment:home:shell
    parse(passwd, |fields| [3, 5, 6].iter().filter_map(|at| fields.get(*at).map(|&field| field.to_owned())).collect())
}

/// Parses the text of `group`.
#[must_use]
pub fn groups(group: &str) -> BTreeMap<String, AccountEntry> {
    // name:password:gid:members
    parse(group, |fields| {
        let members = fields.get(3).copied().unwrap_or_default();
        members.split(',').filter(|member| !member.is_empty()).map(str::to_owned).collect()
    })
}

fn parse(text: &str, details: impl Fn(&[&str]) -> Vec<String>) -> BTreeMap<String, AccountEntry> {
    let account = |line: &str| {
        // Lines of comments, and those that take names from a network, are no accounts.
        let fields: Vec<&str> = line.split(':').collect();
        fields[0].chars().next().filter(|first| !"#+-".contains(*first))?;
        let number = fields.get(2)?.parse().ok()?;
        Some((fields[0].to_owned(), AccountEntry { number, details: details(&fields) }))
    };
    // Of two lines of a name the first one counts, as in the C library: here it comes last.
    text.lines().rev().filter_map(account).collect()
}

#[cfg(test)]
mod tests {
    use super::{groups, users};

    #[test]
    fn users_and_groups_have_numbers_and_details() {
        let found = users(
            "root:x:0:0:root:/root:/bin/bash\nrobot:x:1000:1000:A,B:/home/robot:/bin/sh\nrubbish\nrobot:x:7:7::/:\n",
        );
        assert_eq!((found.len(), found["robot"].number), (2, 1000));
        assert_eq!(found["robot"].details, ["1000", "/home/robot", "/bin/sh"]);
        let found = groups("dialout:x:20:robot,pi\nroot:x:0:\n");
        assert_eq!(found["dialout"].details, ["robot", "pi"]);
        assert!(found["root"].details.is_empty());
    }
}
