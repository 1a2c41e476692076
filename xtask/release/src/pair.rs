//! A small file of a channel and its signature, and how they make way for the next.
//!
//! The two cannot be replaced at one stroke. So the signature goes first, and is followed in its file by those before
//! it: the pair fits while only one of the two is new, and after a cut in between.

use anyhow::Result;
use reflash::release::manifest::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES, TrustedKeys, signatures};
use serde_json::Value;

use crate::place::ChannelPlace;

/// Replaces a file of a channel that has one signature, so that what is there is signed at every instant. Returns false
/// if somebody else came before.
///
/// Agents of version 0.1.0 read the first signature alone, and ask again while it does not fit.
///
/// # Errors
/// When the place cannot be read or written.
pub fn replace_signed(place: &dyn ChannelPlace, path: &str, signature: &str, content: &[u8]) -> Result<bool> {
    let there = Pair::read(place, path)?;
    let both = there.followed_by(signature);
    // At last the new signature is left alone: tools of others read one.
    Ok(there.put(place, path, &both, content)?
        && place.replace(&signature_path(path), Some(both.as_bytes()), signature.as_bytes())?)
}

/// A file and its signature.
pub(crate) struct Pair {
    pub content: Option<Vec<u8>>,
    pub signature: Option<Vec<u8>>,
}

impl Pair {
    pub fn read(place: &dyn ChannelPlace, path: &str) -> Result<Self> {
        // In this order, what is replaced in between fits all the same.
        Ok(Self { content: place.read(path)?, signature: place.read(&signature_path(path))? })
    }

    pub fn signatures(&self) -> String {
        String::from_utf8_lossy(self.signature.as_deref().unwrap_or_default()).into_owned()
    }

    pub fn is_signed(&self, keys: &TrustedKeys) -> bool {
        let content = self.content.clone();
        content.is_some_and(|content| keys.authenticate(content, &self.signatures()).is_ok())
    }

    /// The number that the content has, whoever signed it: a counter, or the serial of a release.
    pub fn number(&self) -> Option<u64> {
        let content: Value = serde_json::from_slice(self.content.as_deref()?).ok()?;
        content.get("counter").or_else(|| content.get("serial"))?.as_u64()
    }

    /// Puts other content and its signature in the place of this pair. Returns false if somebody else came before.
    pub fn make_way(&self, place: &dyn ChannelPlace, path: &str, signature: &str, content: &[u8]) -> Result<bool> {
        self.put(place, path, &self.followed_by(signature), content)
    }

    /// Puts the signatures `both` and then the content in the place of this pair.
    fn put(&self, place: &dyn ChannelPlace, path: &str, both: &str, content: &[u8]) -> Result<bool> {
        Ok(place.replace(&signature_path(path), self.signature.as_deref(), both.as_bytes())?
            && place.replace(path, self.content.as_deref(), content)?)
    }

    /// The signature file of the next content: its signature, and those of this one.
    fn followed_by(&self, signature: &str) -> String {
        let text = self.signatures();
        let number = self.number().unwrap_or_default();
        let ends = [format!(" number {number}"), format!(" serial {number}")];
        let names_this =
            |line: &str| line.starts_with("trusted comment:") && ends.iter().any(|end| line.ends_with(end));
        let is_of_this = |one: &&str| one.lines().any(names_this);
        let (of_this, of_others): (Vec<&str>, Vec<&str>) = signatures(&text).partition(is_of_this);
        let before = of_this.into_iter().chain(of_others).filter(|_| self.content.is_some());
        let mut all: Vec<&str> = Vec::new();
        for one in signatures(signature).take(1).chain(before).chain(signatures(signature)).map(str::trim) {
            let size: usize = all.iter().map(|one| one.len() + 1).sum();
            let has_room = all.len() < MAX_SIGNATURES && ((size + one.len()) as u64) < MAX_SIGNATURE_BYTES;
            if has_room && one.starts_with("untrusted comment:") && !all.contains(&one) {
                all.push(one);
            }
        }
        all.iter().map(|one| format!("{one}\n")).collect()
    }
}

fn signature_path(path: &str) -> String {
    format!("{path}.minisig")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use anyhow::{Result, bail};
    use reflash::release::manifest::TrustedKeys;

    use super::{Pair, replace_signed};
    use crate::channel::signature;
    use crate::keygen;
    use crate::place::ChannelPlace;

    /// A place that is gone after so many writes.
    struct Cut {
        files: RefCell<BTreeMap<String, Vec<u8>>>,
        writes_left: RefCell<usize>,
    }

    impl ChannelPlace for Cut {
        fn name(&self) -> String {
            "the place".to_owned()
        }

        fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
            Ok(self.files.borrow().get(path).cloned())
        }

        fn write(&self, path: &str, content: &[u8]) -> Result<()> {
            let left = &mut *self.writes_left.borrow_mut();
            *left = if let Some(left) = left.checked_sub(1) { left } else { bail!("the power is cut") };
            self.files.borrow_mut().insert(path.to_owned(), content.to_vec());
            Ok(())
        }
    }

    #[test]
    fn a_manifest_is_signed_whatever_write_its_replacement_ends_with() {
        let dir = tempfile::tempdir().unwrap();
        let files = keygen::generate(&dir.path().join("key"), None).unwrap();
        let key = keygen::load_secret(&files.secret).unwrap();
        let mut keys = TrustedKeys::default();
        keys.add("key", &keygen::load_public(&files.public).unwrap()).unwrap();
        let release = |serial: u64| {
            let content = format!("{{\"serial\": {serial}}}");
            let text = signature(content.as_bytes(), &key, &format!("reflash demo stable 1 serial {serial}")).unwrap();
            (content, text)
        };
        let path = "stable/manifest.json";
        for writes in 0..=3 {
            let place = Cut { files: RefCell::default(), writes_left: RefCell::new(3) };
            let (first, second) = (release(1), release(2));
            assert!(replace_signed(&place, path, &first.1, first.0.as_bytes()).unwrap());
            *place.writes_left.borrow_mut() = writes;
            let whole = replace_signed(&place, path, &second.1, second.0.as_bytes());
            assert_eq!(whole.is_ok(), writes == 3);
            let found = Pair::read(&place, path).unwrap();
            assert!(found.is_signed(&keys), "after {writes} writes: {}", found.signatures());
            assert_eq!(found.number(), Some(if writes < 2 { 1 } else { 2 }));
            // Whoever comes next goes on from there, and leaves one signature.
            *place.writes_left.borrow_mut() = 3;
            let third = release(3);
            assert!(replace_signed(&place, path, &third.1, third.0.as_bytes()).unwrap());
            let found = Pair::read(&place, path).unwrap();
            assert!(found.is_signed(&keys) && found.signatures() == third.1);
        }
    }
}
