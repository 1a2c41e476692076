//! A small file of a channel and its signature, and how they make way for the next.
//!
//! The two cannot be replaced at one stroke. So the signature goes first, and is followed in its file by those before
//! it: the pair fits while only one of the two is new, and after a cut in between.

use anyhow::Result;
use reflash::release::manifest::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES, TrustedKeys, signatures};
use serde_json::Value;

use super::ChannelPlace;

/// A file and its signature.
pub(super) struct Pair {
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

    /// The number that the content has, whoever signed it.
    pub fn number(&self) -> Option<u64> {
        serde_json::from_slice::<Value>(self.content.as_deref()?).ok()?.get("counter")?.as_u64()
    }

    /// Puts other content and its signature in the place of this pair. Returns false if somebody else came before.
    pub fn make_way(&self, place: &dyn ChannelPlace, path: &str, signature: &str, content: &[u8]) -> Result<bool> {
        let both = self.followed_by(signature);
        Ok(place.replace(&signature_path(path), self.signature.as_deref(), both.as_bytes())?
            && place.replace(path, self.content.as_deref(), content)?)
    }

    /// The signature file of the next content: its signature, and those of this one.
    fn followed_by(&self, signature: &str) -> String {
        let text = self.signatures();
        let number = format!(" number {}", self.number().unwrap_or_default());
        let is_of_this =
            |one: &&str| one.lines().any(|line| line.starts_with("trusted comment:") && line.ends_with(&number));
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
