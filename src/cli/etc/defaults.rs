//! What this machine remembers of the defaults that images brought for `/etc`: since when each is the way it is. A copy
//! of the machine that is older hides a newer default. Pure: text in, text out.
//!
//! Times were preferred to a digest of the default that a copy was made from: an overlay does not say when it made one,
//! and with times a person answers by looking at the file and touching it.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Digest of a default, shortened: it only says whether two are the same.
pub(super) type ShortDigest = [u8; 8];

/// Largest size of the record that is read, bytes.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// First line of the record.
const HEAD: &str = "reflash etc defaults 1\n";

/// A default, or one that there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// `None`: images do not have it any more.
    pub digest: Option<ShortDigest>,
    /// When this was first seen, seconds since 1970. 0: before anything was remembered.
    pub since_unix_s: u64,
    /// When the machine was first seen without the file.
    pub deleted_unix_s: Option<u64>,
}

/// Record of all defaults, by path below `/etc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Defaults(pub BTreeMap<String, Known>);

/// What is seen of a default now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub digest: ShortDigest,
    /// Whether the machine has deleted it.
    pub deleted: bool,
}

impl Defaults {
    /// Reads the record. Lines that cannot be read are as if they were not there.
    pub(super) fn parse(text: &str) -> Self {
        let lines = text.strip_prefix(HEAD).unwrap_or_default().lines();
        Self(lines.filter_map(line).collect())
    }

    /// Returns the record for what is seen now: `is_there` says whether the machine has a path of its own.
    pub(super) fn next(&self, seen: &BTreeMap<String, Seen>, is_there: impl Fn(&str) -> bool, now_unix_s: u64) -> Self {
        let is_first = self.0.is_empty();
        let mut next = BTreeMap::new();
        for (path, seen) in seen {
            let before = self.0.get(path);
            let same = before.filter(|known| known.digest == Some(seen.digest));
            // At the first time nothing is known of when anything came.
            let since = same.map_or(if is_first { 0 } else { now_unix_s }, |known| known.since_unix_s);
            let deleted = before.and_then(|known| known.deleted_unix_s).or(Some(now_unix_s));
            let deleted_unix_s = deleted.filter(|_| seen.deleted);
            next.insert(path.clone(), Known { digest: Some(seen.digest), since_unix_s: since, deleted_unix_s });
        }
        for (path, known) in self.0.iter().filter(|(path, _)| !seen.contains_key(*path)) {
            // Remembered as long as the machine has a copy of what images do not have any more.
            if is_there(path) {
                let since = if known.digest.is_none() { known.since_unix_s } else { now_unix_s };
                next.insert(path.clone(), Known { digest: None, since_unix_s: since, deleted_unix_s: None });
            }
        }
        Self(next)
    }

    /// The text form.
    pub(super) fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (path, known) in &self.0 {
            let digest = known.digest.map_or("-".to_owned(), |digest| format!("{:016x}", u64::from_be_bytes(digest)));
            let deleted = known.deleted_unix_s.map_or("-".to_owned(), |time| time.to_string());
            let _ = writeln!(text, "{digest} {} {deleted} {path}", known.since_unix_s);
        }
        text
    }
}

fn line(line: &str) -> Option<(String, Known)> {
    let mut words = line.splitn(4, ' ');
    let (digest, since, deleted, path) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let digest = match digest {
        "-" => None,
        text => Some(u64::from_str_radix(text, 16).ok()?.to_be_bytes()),
    };
    let deleted_unix_s = if deleted == "-" { None } else { Some(deleted.parse().ok()?) };
    Some((path.to_owned(), Known { digest, since_unix_s: since.parse().ok()?, deleted_unix_s }))
}

#[cfg(test)]
mod tests {
    use super::{Defaults, Seen};
    use std::collections::BTreeMap;

    fn seen(of: &[(&str, u8, bool)]) -> BTreeMap<String, Seen> {
        of.iter()
            .map(|(path, byte, deleted)| ((*path).to_owned(), Seen { digest: [*byte; 8], deleted: *deleted }))
            .collect()
    }

    #[test]
    fn a_default_counts_from_the_first_boot_that_saw_it() {
        let all = |_: &str| true;
        let first = Defaults::default().next(&seen(&[("a", 1, false), ("b c", 1, true), ("old", 9, false)]), all, 10);
        assert_eq!((first.0["a"].since_unix_s, first.0["b c"].deleted_unix_s), (0, Some(10)));
        let now = seen(&[("a", 2, false), ("b c", 1, true), ("new", 3, false)]);
        let second = first.next(&now, all, 20);
        assert_eq!((second.0["a"].since_unix_s, second.0["new"].since_unix_s), (20, 20));
        assert_eq!((second.0["b c"].since_unix_s, second.0["b c"].deleted_unix_s), (0, Some(10)));
        assert_eq!((second.0["old"].digest, second.0["old"].since_unix_s), (None, 20));
        // Nothing changes at the next boot, and what the machine has not any more is forgotten.
        assert_eq!(second.next(&now, all, 30), second);
        assert!(!second.next(&now, |_| false, 30).0.contains_key("old"));
        assert_eq!(Defaults::parse(&second.text()), second);
    }

    #[test]
    fn no_damage_of_the_record_is_more_than_a_loss() {
        let whole = Defaults::default().next(&seen(&[("a", 1, true), ("b", 1, false)]), |_| true, 10).text();
        for cut in 0..whole.len() {
            assert!(Defaults::parse(&whole[..cut]).0.len() <= 2);
        }
        assert!(Defaults::parse("another file\nx 1 - a\n").0.is_empty());
    }
}
