//! The accounts of the image and of the machine in one: `passwd`, `shadow`, `group`, `gshadow`. Pure.
//!
//! The image's accounts are all there, since its services need them. Of the machine's own files each line counts that
//! is whole: it replaces the image's line of the same name if it belongs to a person or to root, and is added if the
//! image has none of that name. A line that is cut or damaged counts as missing, so that no damage opens an account.

use crate::order;

/// Range of the numbers of people's accounts and groups, as login.defs has it.
const PEOPLE: std::ops::RangeInclusive<u32> = 1000..=60_000;
/// Programs that log nobody in.
const NO_SHELLS: &[&str] = &["nologin", "false", "sync", "halt", "shutdown"];

/// The text of the four files; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Databases {
    pub passwd: String,
    pub shadow: String,
    pub group: String,
    pub gshadow: String,
}

/// A person's account, or root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    /// Whether the password file lets somebody in: by a password, or without one.
    pub has_password: bool,
}

/// Lines by name, in the order in which they came.
fn lines(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter_map(|fields| Some((*fields.first()?, fields)))
}

/// Whether the name is one that useradd makes.
fn is_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=32).contains(&name.len()) && name.chars().all(valid) && !name.starts_with(['-', '.'])
}

fn is_printable(fields: &[&str]) -> bool {
    fields.iter().all(|field| !field.chars().any(char::is_control))
}

/// Whether a line of the machine's passwd counts: seven fields, the password elsewhere, a person or root.
fn is_account(fields: &[&str]) -> bool {
    let [name, password, uid, gid, _, home, shell] = fields else { return false };
    let (Ok(uid), Ok(_)) = (uid.parse::<u32>(), gid.parse::<u32>()) else { return false };
    is_name(name)
        && is_printable(fields)
        && *password == "x"
        && if uid == 0 { *name == "root" } else { PEOPLE.contains(&uid) }
        && home.starts_with('/')
        && (shell.is_empty() || shell.starts_with('/'))
}

/// Whether a line of the machine's shadow counts: nine fields, and the day of the last change is a number, which a line
/// that was cut has not.
fn is_password(fields: &[&str]) -> bool {
    fields.len() == 9
        && is_name(fields[0])
        && is_printable(fields)
        && fields[2..].iter().all(|field| field.is_empty() || field.parse::<i64>().is_ok())
        && !fields[2].is_empty()
}

fn is_group(fields: &[&str]) -> bool {
    let [name, _, gid, members] = fields else { return false };
    is_name(name) && is_printable(fields) && gid.parse::<u32>().is_ok() && members.split(',').all(is_member)
}

fn is_member(name: &str) -> bool {
    name.is_empty() || is_name(name)
}

/// Puts both in one.
pub(super) fn merged(image: &Databases, machine: &Databases) -> Databases {
    let people = order::map(lines(&machine.passwd).filter(|(_, fields)| is_account(fields)));
    let passwd = merge(&image.passwd, &machine.passwd, |_, fields| is_account(fields));
    // A password is that of a person, or of root: services have none.
    let known = order::map(lines(&image.passwd).filter(|(_, fields)| is_account(fields)));
    let owned = |name: &str| people.contains_key(name) || known.contains_key(name);
    let shadow = merge(&image.shadow, &machine.shadow, |name, fields| is_password(fields) && owned(name));
    let numbers = order::map(lines(&image.group).filter_map(|(name, fields)| Some((name, *fields.get(2)?))));
    // A group of the image keeps its number: files of the image belong to it.
    let group_counts = |name: &str, fields: &[&str]| {
        is_group(fields)
            && match numbers.get(name) {
                Some(number) => fields[2] == *number,
                None => fields[2].parse().is_ok_and(|gid| PEOPLE.contains(&gid)),
            }
    };
    let group = merge(&image.group, &machine.group, group_counts);
    let groups: Vec<&str> = lines(&group).map(|(name, _)| name).collect();
    let gshadow = merge(&image.gshadow, &machine.gshadow, |name, fields| {
        fields.len() == 4 && is_printable(fields) && groups.contains(&name)
    });
    Databases { passwd, shadow, group, gshadow }
}

/// The image's lines, with those of the machine that count in their places or behind them.
fn merge(image: &str, machine: &str, counts: impl Fn(&str, &[&str]) -> bool) -> String {
    let mut own = order::map(lines(machine).filter(|(name, fields)| counts(name, fields)));
    let mut out = String::new();
    let mut push = |fields: &[&str]| out.push_str(&(fields.join(":") + "\n"));
    for (name, fields) in lines(image) {
        push(&own.remove(name).unwrap_or(fields));
    }
    own.values().for_each(|fields| push(fields));
    out
}

/// Accounts of people, and root, that have a shell.
pub(super) fn accounts(databases: &Databases) -> Vec<Account> {
    let passwords = order::map(lines(&databases.shadow).filter_map(|(name, fields)| Some((name, *fields.get(1)?))));
    let account = |(name, fields): (&str, Vec<&str>)| {
        let shell = fields.get(6)?.rsplit('/').next()?;
        let has_shell = is_account(&fields) && !NO_SHELLS.contains(&shell);
        has_shell.then_some(())?;
        let password = passwords.get(name).copied().unwrap_or("!");
        Some(Account {
            name: name.to_owned(),
            uid: fields[2].parse().ok()?,
            gid: fields[3].parse().ok()?,
            home: fields[5].to_owned(),
            has_password: !password.starts_with(['!', '*']),
        })
    };
    lines(&databases.passwd).filter_map(account).collect()
}

#[cfg(test)]
mod tests {
    use super::{Databases, accounts, merged};

    fn image() -> Databases {
        Databases {
            passwd: "root:x:0:0:root:/root:/bin/bash\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n\
                     pilot:x:1000:1000::/home/pilot:/bin/bash\n"
                .into(),
            shadow: "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\npilot:!:19000:0:99999:7:::\n".into(),
            group: "root:x:0:\nsudo:x:27:\nshadow:x:42:\npilot:x:1000:\n".into(),
            gshadow: "root:*::\nsudo:*::\nshadow:*::\npilot:!::\n".into(),
        }
    }

    fn names(databases: &Databases) -> Vec<(String, bool)> {
        accounts(databases).into_iter().map(|account| (account.name, account.has_password)).collect()
    }

    #[test]
    fn people_and_their_passwords_come_from_the_machine_and_services_from_the_image() {
        let machine = Databases {
            passwd: "root:x:0:0:root:/root:/bin/zsh\nsshd:x:999:0::/:/bin/sh\nann:x:1001:1001::/home/ann:/bin/bash\n"
                .into(),
            shadow: "root:$y$a:20000:0:99999:7:::\nsshd::20000:0:99999:7:::\nann:$y$b:20000:0:99999:7:::\n".into(),
            group: "sudo:x:27:ann\nshadow:x:0:ann\nann:x:1001:\nevil:x:0:\n".into(),
            gshadow: "sudo:*::ann\nann:!::\nevil:!::\n".into(),
        };
        let both = merged(&image(), &machine);
        assert_eq!(names(&both), [("root".into(), true), ("pilot".into(), false), ("ann".into(), true)]);
        assert!(
            both.passwd.contains("root:x:0:0:root:/root:/bin/zsh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n")
        );
        assert!(both.shadow.contains("\nsshd:!:19000") && both.group.contains("\nsudo:x:27:ann\nshadow:x:42:\n"));
        assert!(both.group.ends_with("ann:x:1001:\n") && !both.gshadow.contains("evil"));
        assert_eq!(merged(&image(), &Databases::default()), image());
    }

    #[test]
    fn no_damage_opens_an_account() {
        let whole = "root:$y$a:20000:0:99999:7:::";
        for cut in 0..whole.len() {
            let machine = Databases { shadow: whole[..cut].into(), ..Databases::default() };
            assert_eq!(merged(&image(), &machine), image(), "{}", &whole[..cut]);
        }
        for passwd in [
            "root::0:0:root:/root:/bin/bash",
            "toor:x:0:0::/root:/bin/bash",
            "daemon:x:1:1::/:/bin/bash",
            "ann:x:1001:1001::/home/ann",
            "ann:x:+-:1001::/home/ann:/bin/sh",
            "ann:x:1001:1001::home:/bin/sh",
            "\0\0\0\0",
            "a\u{1}n:x:1001:1001::/home/ann:/bin/sh",
            "-x:x:1001:1001::/home/ann:/bin/sh",
        ] {
            let machine = Databases { passwd: passwd.into(), ..Databases::default() };
            assert_eq!(merged(&image(), &machine), image(), "{passwd}");
        }
        // A password without an account is of no use.
        let machine = Databases { shadow: "ghost::20000:0:99999:7:::".into(), ..Databases::default() };
        assert_eq!(merged(&image(), &machine), image());
        // An account whose password is lost is closed.
        let machine = Databases { passwd: "ann:x:1001:1001::/home/ann:/bin/sh".into(), ..Databases::default() };
        assert!(names(&merged(&image(), &machine)).contains(&("ann".into(), false)));
    }
}
