//! Numbers of users and groups, release after release. Pure.
//!
//! Debian gives a package's user the next free number, so one package more or less moves the numbers of all that come
//! after it, and files on the robots' data partitions then belong to somebody else. So a name keeps the number that it
//! has in the release before, and the number of a name that is gone is not given to another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail, ensure};

use super::super::within::lines;
use super::names::word_of;
use super::ranges::Ranges;

/// Numbers that programs choose for users of services (Debian policy, section 9.2.2).
const SYSTEM: RangeInclusive<u32> = 100..=999;
/// Numbers that programs choose for people.
const ORDINARY: RangeInclusive<u32> = 1000..=59_999;

/// First lines of the text form.
const HEAD: &str = "# Numbers of users and groups, which stay from release to release. The image builder adds to this \
                    file; keep it\n# with the recipe. The number of a name that is gone is not given to another one.\n";

/// Kind of account that has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccountKind {
    /// User, as in /etc/passwd.
    User,
    /// Group, as in /etc/group.
    Group,
}

impl fmt::Display for AccountKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Group => "group",
        })
    }
}

/// AccountNumber of a name, and whether the name is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountNumber {
    /// The number itself.
    pub number: u32,
    /// Whether the last release does not have the name any more.
    pub gone: bool,
}

/// Every name that a release has or had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Users and groups by name.
    pub names: BTreeMap<(AccountKind, String), AccountNumber>,
    /// Ranges of numbers that users may use in containers: /etc/subuid, then /etc/subgid.
    pub ranges: [Ranges; 2],
}

impl Numbers {
    /// Parses the text form.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let (numbers, faults) = Self::parse_what_can_be(text);
        faults.into_iter().next().map_or(Ok(numbers), Err)
    }

    /// Parses the text form as far as it can be understood, and returns what is wrong with the other lines: those of a
    /// release are as they are.
    pub fn parse_what_can_be(text: &str) -> (Self, Vec<anyhow::Error>) {
        let (mut numbers, mut faults) = (Self::default(), Vec::new());
        for (at, line) in text.lines().enumerate() {
            if !line.trim().is_empty() && !line.starts_with('#') {
                let added = numbers.add_line(line).with_context(|| format!("line {}, {line:?}", at + 1));
                faults.extend(added.err());
            }
        }
        (numbers, faults)
    }

    fn add_line(&mut self, line: &str) -> Result<()> {
        let number = |text: &str| text.parse::<u32>().with_context(|| format!("{text:?} is no number"));
        let form = || "expected \"user NAME NUMBER\", the same with group, or \"subuid NAME FIRST COUNT\"";
        let line = line.trim().replace('\t', " ");
        let (kind, rest) = line.split_once(' ').with_context(form)?;
        let (rest, gone) = rest.strip_suffix(" gone").map_or((rest, false), |rest| (rest, true));
        let (rest, last) = rest.trim_end().rsplit_once(' ').with_context(form)?;
        if let Some(at) = ["subuid", "subgid"].iter().position(|range| *range == kind) {
            let (name, first) = rest.trim_end().rsplit_once(' ').with_context(form)?;
            return match word_of(name.trim().as_bytes()) {
                Some(name) => self.ranges[at].add(&name, number(first)?, number(last)?),
                None => Ok(()),
            };
        }
        let kind = match kind {
            "user" => AccountKind::User,
            "group" => AccountKind::Group,
            _ => bail!(form()),
        };
        let number = number(last)?;
        // Builders of before wrote lines of comments, and names with spaces as they are.
        let Some(name) = word_of(rest.trim().as_bytes()) else { return Ok(()) };
        let before = self.names.insert((kind, name.clone()), AccountNumber { number, gone });
        ensure!(before.is_none(), "a second line for the {kind} {name}");
        Ok(())
    }

    /// Reads what the databases of a tree say: `passwd`, `group`, `subuid` and `subgid`.
    #[must_use]
    pub fn of_databases([passwd, group, subuid, subgid]: [&[u8]; 4]) -> Self {
        let mut numbers = Self { ranges: [Ranges::of(subuid), Ranges::of(subgid)], ..Self::default() };
        for (kind, content) in [(AccountKind::User, passwd), (AccountKind::Group, group)] {
            for line in lines(content) {
                let mut fields = line.split(|byte| *byte == b':');
                let (Some(name), Some(number)) = (fields.next().and_then(word_of), fields.nth(1)) else { continue };
                if let Some(number) = str::from_utf8(number).ok().and_then(|number| number.parse().ok()) {
                    // The first line of a name is the one that counts, as in the C library.
                    numbers.names.entry((kind, name)).or_insert(AccountNumber { number, gone: false });
                }
            }
        }
        numbers
    }

    /// Returns the text form, from which the same numbers are read again.
    ///
    /// # Errors
    /// When they are not: the next release could not be made from this one.
    pub fn checked_text(&self) -> Result<String> {
        let text = self.to_string();
        let again = Self::parse(&text).context("the record of users and groups cannot be read back")?;
        ensure!(again == *self, "the record of users and groups is read back with other names or numbers");
        Ok(text)
    }

    /// Adds what only `other` knows, and returns the names for which the two differ, each with the number of `other`.
    pub fn complete_from(&mut self, other: &Self) -> Vec<String> {
        let mut differ = Vec::new();
        for (name, number) in &other.names {
            match self.names.get(name) {
                Some(own) if own.number != number.number => {
                    differ.push(format!("{} {}: {}, not {}", name.0, name.1, own.number, number.number));
                }
                Some(_) => {}
                None => {
                    self.names.insert(name.clone(), *number);
                }
            }
        }
        for (own, other) in self.ranges.iter_mut().zip(&other.ranges) {
            own.complete_from(other);
        }
        differ
    }

    fn of(&self, kind: AccountKind) -> impl Iterator<Item = (&str, AccountNumber)> {
        self.names.iter().filter(move |((of, _), _)| *of == kind).map(|((_, name), number)| (name.as_str(), *number))
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        for ((kind, name), AccountNumber { number, gone }) in &self.names {
            writeln!(f, "{kind} {name} {number}{}", if *gone { " gone" } else { "" })?;
        }
        self.ranges[0].write(f, "subuid")?;
        self.ranges[1].write(f, "subgid")
    }
}

/// Change of a tree by which names keep their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renumbering {
    /// New number of each user whose number changes, by the old one.
    pub users: BTreeMap<u32, u32>,
    /// New number of each group whose number changes, by the old one.
    pub groups: BTreeMap<u32, u32>,
    /// Ranges as the tree has them, and as it shall have them: those of users, then those of groups.
    pub ranges: [(Ranges, Ranges); 2],
    /// Names with their numbers after the change, and those that are gone.
    pub record: Numbers,
}

impl Renumbering {
    /// Decides on the numbers of a tree that has `now`, after releases that had `kept`.
    ///
    /// # Errors
    /// Every name whose number cannot be kept, with both numbers.
    pub fn plan(kept: &Numbers, now: &Numbers) -> Result<Self> {
        let mut plan = Self::default();
        let mut faults = Vec::new();
        for kind in [AccountKind::User, AccountKind::Group] {
            let targets = targets(kind, kept, now, &mut faults);
            let map = if kind == AccountKind::User { &mut plan.users } else { &mut plan.groups };
            for (name, old) in now.of(kind) {
                let Some(&new) = targets.get(name) else { continue };
                let known = map.insert(old.number, new);
                if known.is_some_and(|known| known != new) {
                    faults.push(format!(
                        "{kind} {name} shares its number {} with another name, of which each had its own: {new} and {}",
                        old.number,
                        known.unwrap_or_default()
                    ));
                }
                plan.record.names.insert((kind, name.to_owned()), AccountNumber { number: new, gone: false });
            }
            let gone = kept.of(kind).filter(|(name, _)| !targets.contains_key(*name));
            for (name, number) in gone {
                plan.record.names.insert((kind, name.to_owned()), AccountNumber { gone: true, ..number });
            }
            merged_into_one(kind, map, now, &mut faults);
            map.retain(|old, new| old != new);
        }
        for at in 0..2 {
            let after = now.ranges[at].keeping(&kept.ranges[at]);
            plan.record.ranges[at] = after.clone();
            plan.record.ranges[at].complete_from(&kept.ranges[at]);
            plan.ranges[at] = (now.ranges[at].clone(), after);
        }
        ensure!(
            faults.is_empty(),
            "these cannot keep the numbers that they have in the release before, and files on the robots' data \
             partitions would belong to others:\n  {}",
            faults.join("\n  ")
        );
        Ok(plan)
    }

    /// Returns each change of a number, with its reason.
    #[must_use]
    pub fn changes(&self, kept: &Numbers, now: &Numbers) -> Vec<String> {
        let mut changes = Vec::new();
        for ((kind, name), before) in &now.names {
            let key = (*kind, name.clone());
            let Some(after) = self.record.names.get(&key).filter(|after| after.number != before.number) else {
                continue;
            };
            let owner = kept.of(*kind).find(|(_, number)| number.number == before.number).map(|(owner, _)| owner);
            let because = match owner.filter(|_| !kept.names.contains_key(&key)) {
                None => "as in the release before".to_owned(),
                Some(owner) => format!(
                    "because {} was {owner}'s in a release before; to keep it all the same, write the line \
                     \"{kind} {name} {}\" into the recipe's file of numbers",
                    before.number, before.number
                ),
            };
            changes.push(format!("{kind} {name} {} -> {}, {because}", before.number, after.number));
        }
        let ranges = self.ranges.iter().zip(["subuid", "subgid"]).filter(|((now, after), _)| now != after);
        changes.extend(ranges.map(|(_, what)| format!("ranges of {what}, as in the release before")));
        changes
    }

    /// Whether nothing has to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.ranges.iter().all(|(now, after)| now == after)
    }

    /// Returns the number that a file's owner gets: user first, then group.
    #[must_use]
    pub fn owner(&self, user: u32, group: u32) -> (u32, u32) {
        (self.user(user), self.group(group))
    }

    /// Returns the number that takes the place of a user's.
    #[must_use]
    pub fn user(&self, number: u32) -> u32 {
        self.users.get(&number).copied().unwrap_or_else(|| moved(&self.ranges[0], number))
    }

    /// Returns the number that takes the place of a group's.
    #[must_use]
    pub fn group(&self, number: u32) -> u32 {
        self.groups.get(&number).copied().unwrap_or_else(|| moved(&self.ranges[1], number))
    }

    /// Returns `passwd` with the new numbers.
    #[must_use]
    pub fn passwd(&self, text: &[u8]) -> Vec<u8> {
        with_numbers(text, &[(2, &self.users), (3, &self.groups)])
    }

    /// Returns `group` with the new numbers.
    #[must_use]
    pub fn groups_text(&self, text: &[u8]) -> Vec<u8> {
        with_numbers(text, &[(2, &self.groups)])
    }
}

fn moved((now, after): &(Ranges, Ranges), number: u32) -> u32 {
    now.moved_to(after, number).unwrap_or(number)
}

/// The number of before that a name which shares `number` with the new name has.
fn shared(kind: AccountKind, number: u32, kept: &Numbers, now: &Numbers) -> Option<u32> {
    let names = now.of(kind).filter(|(_, other)| other.number == number);
    names.filter_map(|(name, _)| kept.names.get(&(kind, name.to_owned()))).map(|before| before.number).next()
}

/// Finds names that have numbers of their own in the tree and would get the same one, by which the files of one would
/// belong to the other: those whose numbers of before are the same by a mistake in the recipe's file.
fn merged_into_one(kind: AccountKind, map: &BTreeMap<u32, u32>, now: &Numbers, faults: &mut Vec<String>) {
    let mut by_target: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    map.iter().for_each(|(old, new)| by_target.entry(*new).or_default().push(*old));
    for (target, olds) in by_target.into_iter().filter(|(_, olds)| olds.len() > 1) {
        let names: Vec<&str> =
            now.of(kind).filter(|(_, number)| olds.contains(&number.number)).map(|(name, _)| name).collect();
        faults.push(format!("{kind}s {} have numbers of their own, and each had {target}", names.join(" and ")));
    }
}

/// The number that each name of the tree gets.
fn targets(kind: AccountKind, kept: &Numbers, now: &Numbers, faults: &mut Vec<String>) -> BTreeMap<String, u32> {
    let is_chosen = |number: u32| SYSTEM.contains(&number) || ORDINARY.contains(&number);
    let reserved: BTreeMap<u32, &str> = kept.of(kind).map(|(name, number)| (number.number, name)).collect();
    let mut taken: BTreeSet<u32> =
        reserved.keys().copied().chain(now.of(kind).map(|(_, number)| number.number)).collect();
    let (mut targets, mut chosen) = (BTreeMap::new(), BTreeMap::new());
    for (name, AccountNumber { number, .. }) in now.of(kind) {
        let target = match kept.names.get(&(kind, name.to_owned())) {
            Some(before) if before.number == number => number,
            Some(before) if is_chosen(before.number) && is_chosen(number) => before.number,
            Some(before) => {
                faults.push(format!(
                    "{kind} {name} had {} and has {number}; numbers outside of {} to {} are fixed",
                    before.number,
                    SYSTEM.start(),
                    ORDINARY.end()
                ));
                number
            }
            // Another name of a user or group of before, as `useradd --non-unique` makes it.
            None if let Some(shared) = shared(kind, number, kept, now) => shared,
            None => match reserved.get(&number) {
                None => number,
                Some(_) if let Some(chosen) = chosen.get(&number) => *chosen,
                Some(_) if is_chosen(number) => {
                    let class = if SYSTEM.contains(&number) { SYSTEM } else { ORDINARY };
                    let free = class.clone().find(|candidate| !taken.contains(candidate));
                    taken.extend(free);
                    chosen.extend(free.map(|free| (number, free)));
                    free.unwrap_or_else(|| {
                        let (first, last) = class.into_inner();
                        faults.push(format!("{kind} {name}: all numbers from {first} to {last} are or were used"));
                        number
                    })
                }
                Some(other) => {
                    faults.push(format!("{kind} {name} has the fixed number {number}, which {kind} {other} had"));
                    number
                }
            },
        };
        targets.insert(name.to_owned(), target);
    }
    targets
}

/// Replaces numbers in the given fields of every line that is an account.
fn with_numbers(content: &[u8], fields: &[(usize, &BTreeMap<u32, u32>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for line in lines(content) {
        let mut words: Vec<Vec<u8>> = line.split(|byte| *byte == b':').map(<[u8]>::to_vec).collect();
        let is_account = word_of(&words[0]).is_some();
        for (at, map) in fields.iter().filter(|_| is_account) {
            let Some(word) = words.get_mut(*at) else { continue };
            let old = str::from_utf8(word).ok().and_then(|word| word.parse::<u32>().ok());
            if let Some(new) = old.and_then(|old| map.get(&old)) {
                *word = new.to_string().into_bytes();
            }
        }
        out.extend(words.join(&b':'));
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{AccountKind, AccountNumber, Numbers, Renumbering};

    fn databases(users: &[(&str, u32)]) -> Numbers {
        let lines: String = users.iter().map(|(name, number)| format!("{name}:x:{number}:\n")).collect();
        Numbers::of_databases([lines.as_bytes(), lines.as_bytes(), b"", b""])
    }

    fn after(kept: &Numbers, now: &[(&str, u32)]) -> Numbers {
        Renumbering::plan(kept, &databases(now)).unwrap().record
    }

    fn user(numbers: &Numbers, name: &str) -> AccountNumber {
        numbers.names[&(AccountKind::User, name.to_owned())]
    }

    /// The three releases of a robot whose /var/lib/chrony belonged to messagebus in the end.
    /// <https://github.com/Vanilla-OS/ABRoot/issues/419>, <https://github.com/bootc-dev/bootc/issues/1263>
    #[test]
    fn numbers_stay_over_three_releases_with_packages_that_come_and_go() {
        let first = after(&Numbers::default(), &[("_chrony", 100), ("messagebus", 101), ("sshd", 102)]);
        let now = [("_chrony", 100), ("messagebus", 101), ("tcpdump", 102), ("avahi", 103), ("sshd", 104)];
        let second = after(&first, &now);
        let numbers =
            |of: &Numbers| ["_chrony", "messagebus", "sshd", "tcpdump", "avahi"].map(|name| user(of, name).number);
        assert_eq!(numbers(&second), [100, 101, 102, 105, 103]);
        let third = after(&second, &[("messagebus", 100), ("tcpdump", 101), ("avahi", 102), ("sshd", 103)]);
        assert_eq!(numbers(&third), [100, 101, 102, 105, 103]);
        assert!(user(&third, "_chrony").gone && !user(&third, "sshd").gone);
        // The number of the one that is gone is given to no new one, and waits for its return.
        let fourth = after(&third, &[("messagebus", 101), ("new", 100)]);
        assert_eq!(user(&fourth, "new").number, 104);
        let fifth = after(&fourth, &[("_chrony", 107), ("new", 100)]);
        assert_eq!(
            (user(&fifth, "_chrony"), user(&fifth, "new").number),
            (AccountNumber { number: 100, gone: false }, 104)
        );
    }

    #[test]
    fn owners_are_exchanged_at_once_and_not_one_after_the_other() {
        let plan =
            Renumbering::plan(&databases(&[("a", 100), ("b", 101)]), &databases(&[("a", 101), ("b", 100)])).unwrap();
        assert_eq!((plan.owner(100, 101), plan.owner(7, 7)), ((101, 100), (7, 7)));
        assert_eq!(
            plan.passwd(b"a:x:101:101:,,,:/:/bin/sh\nb:x:100:50::/:\n"),
            b"a:x:100:100:,,,:/:/bin/sh\nb:x:101:50::/:\n"
        );
        assert_eq!(plan.groups_text(b"a:x:101:b,c\n#a:x:101:\n"), b"a:x:100:b,c\n#a:x:101:\n");
        assert!(
            !plan.is_empty() && Renumbering::plan(&Numbers::default(), &databases(&[("a", 1)])).unwrap().is_empty()
        );
    }

    #[test]
    fn each_change_is_said_with_its_reason() {
        let kept = Numbers::parse("user pilot 1000 gone\nuser chrony 100\n").unwrap();
        let now = Numbers::parse("user driver 1000\nuser chrony 105\nuser same 7\n").unwrap();
        let plan = Renumbering::plan(&kept, &now).unwrap();
        let changes = plan.changes(&kept, &now);
        assert_eq!(changes[0], "user chrony 105 -> 100, as in the release before");
        assert!(changes[1].starts_with("user driver 1000 -> 1001, because 1000 was pilot's in a release before; to"));
        assert!(changes[1].contains("\"user driver 1000\"") && changes.len() == 2, "{changes:?}");
        // The way that it names is one.
        let mut file = Numbers::parse("user driver 1000\n").unwrap();
        file.complete_from(&kept);
        assert_eq!(user(&Renumbering::plan(&file, &now).unwrap().record, "driver").number, 1000);
    }

    #[test]
    fn a_number_that_cannot_be_kept_is_an_error_with_name_and_both_numbers() {
        let kept = databases(&[("www-data", 33), ("robot", 998), ("other", 50)]);
        let now = databases(&[("www-data", 133), ("robot", 65_000), ("fixed", 50)]);
        let text = Renumbering::plan(&kept, &now).unwrap_err().to_string();
        for said in [
            "user www-data had 33 and has 133",
            "group robot had 998 and has 65000",
            "user fixed has the fixed number 50, which user other had",
        ] {
            assert!(text.contains(said), "{said} is missing in {text}");
        }
        let two = databases(&[("a", 100), ("b", 101)]);
        let text = Renumbering::plan(&two, &databases(&[("a", 200), ("b", 200)])).unwrap_err().to_string();
        assert!(text.contains("user b shares its number 200"), "{text}");
    }

    #[test]
    fn a_second_name_of_a_number_follows_the_first_one() {
        let kept = Numbers::parse("user pilot 1000\nuser gone 105 gone\n").unwrap();
        // The tree gave pilot another number, and pilot has a second name; two new names share the number of one that
        // is gone.
        let now =
            Numbers::of_databases([&b"pilot:x:1001:\nadmin:x:1001:\nnew:x:105:\ntwin:x:105:\n"[..], b"", b"", b""]);
        let plan = Renumbering::plan(&kept, &now).unwrap();
        assert_eq!((plan.user(1001), user(&plan.record, "admin").number), (1000, 1000));
        let new = user(&plan.record, "new").number;
        assert!(new != 105 && new == user(&plan.record, "twin").number && plan.user(105) == new, "{plan:?}");
    }

    #[test]
    fn two_users_never_become_one() {
        let mut kept = Numbers::parse("user a 500\n").unwrap();
        kept.complete_from(&Numbers::parse("user a 100\nuser b 500\n").unwrap());
        let text = Renumbering::plan(&kept, &Numbers::of_databases([&b"a:x:100:\nb:x:500:\n"[..], b"", b"", b""]))
            .unwrap_err();
        assert!(text.to_string().contains("users a and b have numbers of their own, and each had 500"), "{text}");
        // Those that share it in the tree too are two names of one user.
        Renumbering::plan(&kept, &Numbers::of_databases([&b"a:x:500:\nb:x:500:\n"[..], b"", b"", b""])).unwrap();
    }

    #[test]
    fn a_range_that_grew_does_not_reach_into_that_of_another() {
        let kept = Numbers::of_databases([&b""[..], b"", b"a:100000:65536\nb:165536:65536\n", b""]);
        let now = Numbers::of_databases([&b""[..], b"", b"a:100000:131072\nb:231072:65536\nc:300000:10\n", b""]);
        let plan = Renumbering::plan(&kept, &now).unwrap();
        assert_eq!(plan.ranges[0].1.content(), b"a:100000:65536\nb:165536:65536\nc:300000:10\n");
        let alone = Numbers::of_databases([&b""[..], b"", b"a:100000:131072\n", b""]);
        let only = Numbers::of_databases([&b""[..], b"", b"a:100000:65536\n", b""]);
        assert_eq!(Renumbering::plan(&only, &alone).unwrap().ranges[0].1.content(), b"a:100000:131072\n");
    }

    #[test]
    fn ranges_for_containers_stay_too() {
        let kept = Numbers::of_databases([&b""[..], b"", b"pilot:100000:65536\n", b""]);
        let now = Numbers::of_databases([&b""[..], b"", b"new:100000:65536\npilot:165536:65536\n", b""]);
        let plan = Renumbering::plan(&kept, &now).unwrap();
        assert_eq!((plan.user(165_536 + 5), plan.user(100_000), plan.group(100_000)), (100_005, 165_536, 100_000));
        assert_eq!(plan.ranges[0].1.content(), b"new:165536:65536\npilot:100000:65536\n");
    }

    #[test]
    fn the_text_form_keeps_everything() {
        let text = "user a 100\nuser b 101 gone\ngroup a 102\nsubuid a 100000 65536\nsubgid a 1 2\n";
        let numbers = Numbers::parse(text).unwrap();
        assert!(numbers.to_string().ends_with(text) && numbers.to_string().starts_with("# Numbers"));
        assert_eq!(Numbers::parse(&numbers.to_string()).unwrap(), numbers);
        for (wrong, said) in
            [("user a", "line 1"), ("\nuser a x", "\"x\" is no number"), ("user a 1\nuser a 2", "second line")]
        {
            let error = format!("{:#}", Numbers::parse(wrong).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }

    /// What is recorded of one release must be read for the next, whatever lines its databases have.
    #[test]
    fn every_line_of_the_databases_is_recorded_so_that_it_is_read_back() {
        let passwd = b"# pilot:x:1000:1000::/home/pilot:/bin/sh\n#old:x:1001:1001::/:\n\n+::::::\n+adm:x:7:7::/:\n-x:x:8:8::/:\n\
                       :x:9:9::/:\nshort:x:1006\nDOM\\user a:x:1007:1007::/:\nm\xfcller:x:1008:1008:M\xfcller:/:\n";
        let numbers = Numbers::of_databases([passwd, b"domain users:x:1009:pilot\n+:::\n", b"a b:1:2\n#c:3:4\n", b""]);
        let text = numbers.checked_text().unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "user DOM\\user%20a 1007",
            "user m%fcller 1008",
            "user short 1006",
            "group domain%20users 1009",
            "subuid a%20b 1 2",
        ];
        assert_eq!(lines, expected);
        let plan = Renumbering::plan(&Numbers::parse("user short 1010\n").unwrap(), &numbers).unwrap();
        assert!(plan.passwd(passwd).ends_with(b"m\xfcller:x:1008:1008:M\xfcller:/:\n"));
        assert!(plan.passwd(passwd).starts_with(b"# pilot:x:1000:1000:"));
        assert_eq!(plan.ranges[0].1.content(), b"a b:1:2\n");
    }

    /// Builders of before recorded lines of comments, and names of several words.
    #[test]
    fn a_record_that_was_made_of_odd_lines_is_read() {
        let text =
            "user # pilot 1000\nuser #old 1001\ngroup domain users 1007\nuser DOM\\user a 1008 gone\nuser ok 5\n";
        let numbers = Numbers::parse(text).unwrap();
        let names: Vec<&str> = numbers.names.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["DOM\\user%20a", "ok", "domain%20users"]);
        assert!(user(&numbers, "DOM\\user%20a").gone);
        let (numbers, faults) = Numbers::parse_what_can_be("user a x\nnonsense\nuser ok 5\n");
        assert_eq!((numbers.names.len(), faults.len()), (1, 2));
    }

    #[test]
    fn the_file_of_the_recipe_wins_over_the_image_before() {
        let mut file = Numbers::parse("user a 500\nuser c 7\n").unwrap();
        let differ = file.complete_from(&Numbers::parse("user a 100\nuser b 101\n").unwrap());
        assert_eq!(differ, ["user a: 500, not 100"]);
        assert_eq!((user(&file, "a").number, user(&file, "b").number), (500, 101));
    }
}
