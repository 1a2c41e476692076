//! The manifest, the one mutable file of a release. It says what the release is and which machines it fits, and it has
//! the digests from which everything else follows. Pure.
//!
//! Types enforce the order of checks: bytes become [`Authentic`] by a signature of a trusted key, only `Authentic`
//! bytes are parsed into a [`Manifest`], and only a manifest that [fits the machine](Manifest::check_fit) is acted on.
//! `docs/release-format.md` describes the format for a second implementation.

mod error;
mod image;
mod version;

use std::collections::HashMap;

use minisign_verify::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

use crate::release::digest::{BLOCK_SIZE_BYTES, Digest};
use crate::release::layout::Layout;
pub use error::ManifestError;
pub use image::{DeltaObjects, FrameObjects, Image, IndexParts, Object};

/// Version of the manifest format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// Size of the largest manifest, bytes. Anything that a server sends beyond it is not read.
pub const MAX_SIZE_BYTES: u64 = 1024 * 1024;

/// Size of the largest signature, bytes: a minisign signature has 4 lines, about 350 bytes.
pub const MAX_SIGNATURE_BYTES: u64 = 4096;
/// The most signatures of one file that are looked at.
pub const MAX_SIGNATURES: usize = 4;

/// The highest serial that a release can have: `2^63 - 1`. A higher one is a slip or damage, and a robot that took it
/// would find no newer release ever again.
pub const MAX_SERIAL: u64 = i64::MAX as u64;

/// The latest creation time of a release that is accepted, in seconds since 1970: the year 2232. Linux sets no clock
/// later (`TIME_SETTOD_SEC_MAX` of include/linux/time64.h: 30 years before its nanoseconds end), and an agent sets its
/// clock by this number.
const MAX_CREATED_UNIX_S: u64 = (i64::MAX / 1_000_000_000) as u64 - 30 * 365 * 24 * 60 * 60;

/// Size of the largest file beside the images, bytes: that of the whole recovery partition.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// The most hardware names that are shown of a release for other machines.
const MAX_SHOWN_PATTERNS: usize = 8;

/// Name of the image that belongs on the system partition.
pub const SYSTEM_IMAGE: &str = "system";

/// The description of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the manifest format, [`FORMAT`].
    pub format: u32,
    /// Product that the release is made for.
    pub product: String,
    /// Hardware names that the release fits, each exact or a prefix followed by `*`.
    pub hardware: Vec<String>,
    /// Channel that the release is published in.
    pub channel: String,
    /// Version of the release, for people.
    pub version: String,
    /// Number that orders the releases of a channel: higher is newer. A lower number than the installed one is refused.
    pub serial: u64,
    /// Creation time, seconds since 1970 UTC.
    pub created_unix_s: u64,
    /// Oldest agent version that can install it.
    pub minimum_agent: String,
    /// Partition images of the release.
    pub images: Vec<Image>,
    /// Partition layout of the product's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Files of the release beside the images, such as the recovery kernel.
    #[serde(default)]
    pub files: Vec<File>,
}

/// A named file of the release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Name of the file, such as `recovery/vmlinuz`.
    pub name: String,
    /// Object with the content of the file.
    #[serde(flatten)]
    pub object: Object,
}

/// Beginning of the paths of objects, which are named by digests: what they hold never changes.
pub const OBJECTS_PATH: &str = "objects/";

/// Returns the path of an object below the base URL.
#[must_use]
pub fn object_path(digest: &Digest) -> String {
    format!("{OBJECTS_PATH}{digest}")
}

/// Returns the path of a channel's manifest below the base URL. Its signature has `.minisig` after it.
#[must_use]
pub fn manifest_path(channel: &str) -> String {
    format!("{channel}/manifest.json")
}

/// The keys that a release may be signed with, each with a name for people.
#[derive(Clone, Default)]
pub struct TrustedKeys(Vec<(String, PublicKey)>);

/// The bytes of a manifest that a trusted key signed.
#[derive(Debug, Clone)]
pub struct Authentic {
    bytes: Vec<u8>,
    signature: String,
    key_name: String,
}

impl TrustedKeys {
    /// Adds a minisign public key: the text of a `.pub` file, or only its base64 line.
    ///
    /// # Errors
    /// [`ManifestError::Key`] when the text is not such a key.
    pub fn add(&mut self, name: &str, text: &str) -> Result<(), ManifestError> {
        let key = PublicKey::decode(text)
            .or_else(|_| PublicKey::from_base64(text.trim()))
            .map_err(|source| ManifestError::Key { name: name.to_owned(), source })?;
        self.0.push((name.to_owned(), key));
        Ok(())
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks the signature over the exact bytes. One key that fits is enough, because keys are rotated by shipping
    /// both. So is one signature of several: that of a file which is being replaced has those of the new and of the old
    /// content, so that a reader finds a pair that fits at any moment, and after any cut.
    ///
    /// # Errors
    /// [`ManifestError::NoKeys`], [`ManifestError::SignatureFormat`] or [`ManifestError::Signature`].
    pub fn authenticate(&self, bytes: Vec<u8>, signature: &str) -> Result<Authentic, ManifestError> {
        let mut last = None;
        for (number, one) in signatures(signature).take(MAX_SIGNATURES).enumerate() {
            let parsed = match Signature::decode(one) {
                Ok(parsed) => parsed,
                Err(error) if number == 0 => return Err(ManifestError::SignatureFormat(error)),
                Err(_) => continue,
            };
            for (name, key) in &self.0 {
                // Only pre-hashed signatures are accepted, minisign's default since 0.8. The legacy form has no use.
                match key.verify(&bytes, &parsed, false) {
                    Ok(()) => return Ok(Authentic { bytes, signature: one.to_owned(), key_name: name.clone() }),
                    Err(error) => last = Some(error),
                }
            }
        }
        let source = last.ok_or(ManifestError::NoKeys)?;
        let keys = self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        Err(ManifestError::Signature { keys, source })
    }
}

/// Splits the text of a signature file into its signatures, each as a file of its own.
pub fn signatures(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let next = text.find("\nuntrusted comment:").map(|at| at + 1);
        rest = next.map(|at| &text[at..]);
        Some(&text[..next.unwrap_or(text.len())])
    })
}

impl Authentic {
    /// Returns the signed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the text of the signature file.
    #[must_use]
    pub fn signature(&self) -> &str {
        &self.signature
    }

    /// Returns the name of the key that signed the manifest.
    #[must_use]
    pub fn key_name(&self) -> &str {
        &self.key_name
    }
}

impl Manifest {
    /// Parses signed bytes. The format number is read first, so that a later format is reported as such and not as a
    /// parse error.
    ///
    /// # Errors
    /// [`ManifestError::Format`], [`ManifestError::Json`] or [`ManifestError::Invalid`].
    ///
    /// # Examples
    /// ```
    /// use reflash::release::manifest::{Manifest, ManifestError, TrustedKeys};
    ///
    /// let mut keys = TrustedKeys::default();
    /// keys.add("example", "RWTWyYCWopDr//nQ7N9i5fxfT2T1B31ELuZa2u+zYqioRRTv1uKWZlEU")?;
    /// let json = concat!(
    ///     r#"{"format": 1, "product": "demo", "hardware": ["unit-*"], "channel": "stable", "version": "1.2", "#,
    ///     r#""serial": 7, "created_unix_s": 1700000000, "minimum_agent": "0.1.0", "images": []}"#
    /// );
    /// let signature = "untrusted comment: signature
    /// RUTWyYCWopDr/2rwk4d4zuPzT7VfNpy7y4U+1OTTEfVbgsNlyVx737yMtQu25TvDRDbvrRpGRzwuglLnL8rW/N+Ok6d4TXmcNQE=
    /// trusted comment: an example
    /// tewAL/aE5Mz6opv8Le2uPGfUzqRjq5WwSvDgC7+YYxOfCnKRvAczaPYe+libUdA3HHaAcmrBdkzTQ/L8v45eDw==";
    ///
    /// let manifest = Manifest::parse(&keys.authenticate(json.into(), signature)?)?;
    /// assert_eq!((manifest.version.as_str(), manifest.serial), ("1.2", 7));
    /// manifest.check_fit("demo", "unit-a", "stable")?;
    /// # Ok::<(), ManifestError>(())
    /// ```
    pub fn parse(signed: &Authentic) -> Result<Self, ManifestError> {
        let manifest = Self::parse_recorded(signed)?;
        manifest.check_values()?;
        Ok(manifest)
    }

    /// Parses the signed bytes of a release that is installed already. Its date is not judged: an older agent may have
    /// installed a release with any, and without its record the robot would go back behind it.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_recorded(signed: &Authentic) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct OnlyFormat {
            format: u64,
        }
        let only: OnlyFormat = serde_json::from_slice(&signed.bytes).map_err(ManifestError::Json)?;
        if only.format != u64::from(FORMAT) {
            return Err(ManifestError::Format { found: only.format, known: FORMAT });
        }
        let manifest: Self = serde_json::from_slice(&signed.bytes).map_err(ManifestError::Json)?;
        manifest.check_images()?;
        Ok(manifest)
    }

    /// Returns the image with this name.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] when the release has no such image.
    pub fn image(&self, name: &str) -> Result<&Image, ManifestError> {
        let found = self.images.iter().find(|image| image.name == name);
        found.ok_or_else(|| self.invalid(format!("it has no image named {name:?}")))
    }

    /// Returns the file with this name.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] when the release has no such file.
    pub fn file(&self, name: &str) -> Result<&File, ManifestError> {
        let found = self.files.iter().find(|file| file.name == name);
        found.ok_or_else(|| {
            self.invalid(format!("it has no file named {name:?}, so no disk can be provisioned from it"))
        })
    }

    /// Checks that the release is made for this machine, channel and agent.
    ///
    /// # Errors
    /// [`ManifestError::Unfit`] or [`ManifestError::AgentTooOld`].
    pub fn check_fit(&self, product: &str, hardware: &str, channel: &str) -> Result<(), ManifestError> {
        let unfit = |what, offered: &str, actual: &str| ManifestError::Unfit {
            version: self.version.clone(),
            what,
            offered: offered.to_owned(),
            actual: actual.to_owned(),
        };
        if self.product != product {
            return Err(unfit("product", &self.product, product));
        }
        // A mirror that serves the signed manifest of another channel must not move a robot from stable to testing.
        if self.channel != channel {
            return Err(unfit("channel", &self.channel, channel));
        }
        if !self.hardware.iter().any(|pattern| fits(pattern, hardware)) {
            let mut shown = self.hardware.iter().take(MAX_SHOWN_PATTERNS).cloned().collect::<Vec<_>>().join(", ");
            if self.hardware.len() > MAX_SHOWN_PATTERNS {
                shown += &format!(" and {} more", self.hardware.len() - MAX_SHOWN_PATTERNS);
            }
            return Err(unfit("hardware", &shown, hardware));
        }
        let version = |text| version::parse(text).ok_or_else(|| self.invalid(format!("{text:?} is not a version")));
        if version(&self.minimum_agent)? > version(env!("CARGO_PKG_VERSION"))? {
            return Err(ManifestError::AgentTooOld {
                version: self.version.clone(),
                needed: self.minimum_agent.clone(),
            });
        }
        Ok(())
    }

    /// Checks the numbers of a manifest: what is wrong with them is refused before it is signed and after it is read.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`].
    pub fn check_values(&self) -> Result<(), ManifestError> {
        if self.created_unix_s > MAX_CREATED_UNIX_S {
            let reason =
                format!("it was made {} seconds after 1970, and no clock can be set to that", self.created_unix_s);
            return Err(self.invalid(reason));
        }
        if self.serial > MAX_SERIAL {
            return Err(self.invalid(format!("it has serial {}, and the highest is {MAX_SERIAL}", self.serial)));
        }
        if let Err((version, reason)) = version::check_shown(&self.version) {
            return Err(ManifestError::Invalid { version, reason });
        }
        self.check_images()
    }

    fn check_images(&self) -> Result<(), ManifestError> {
        for image in &self.images {
            if image.size_bytes == 0 || !image.size_bytes.is_multiple_of(BLOCK_SIZE_BYTES as u64) {
                let reason = format!("image {:?} has {} bytes, not a multiple of 4096", image.name, image.size_bytes);
                return Err(self.invalid(reason));
            }
        }
        self.check_names().and_then(|()| self.check_objects()).map_err(|reason| self.invalid(reason))
    }

    /// Two images or files of one name would leave open which of them is meant.
    fn check_names(&self) -> Result<(), String> {
        let images: Vec<&str> = self.images.iter().map(|image| image.name.as_str()).collect();
        let files: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        for (what, names) in [("images", images), ("files", files)] {
            if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
                return Err(format!("two {what} have the name {:?}", twice.1));
            }
        }
        Ok(())
    }

    /// An object is fetched into memory as a whole, up to the size that stands here.
    fn check_objects(&self) -> Result<(), String> {
        let mut sizes = HashMap::new();
        let files = self.files.iter().map(|file| (format!("file {:?}", file.name), file.object, MAX_FILE_BYTES));
        let images = self.images.iter().flat_map(Image::objects);
        for (what, object, limit_bytes) in images.chain(files) {
            let Object { blake3, size_bytes } = object;
            if size_bytes > limit_bytes {
                return Err(format!("the {what} has {size_bytes} bytes, and at most {limit_bytes} are allowed"));
            }
            let known = *sizes.entry(blake3).or_insert(size_bytes);
            if known != size_bytes {
                return Err(format!("object {blake3} has {known} bytes in one place and {size_bytes} in another"));
            }
        }
        Ok(())
    }

    fn invalid(&self, reason: String) -> ManifestError {
        ManifestError::Invalid { version: self.version.clone(), reason }
    }
}

fn fits(pattern: &str, hardware: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => hardware.starts_with(prefix),
        None => pattern == hardware,
    }
}

#[cfg(test)]
mod tests {
    use super::{Authentic, Manifest, ManifestError, TrustedKeys, signatures};

    // A key and a signature over b"test" from minisign-verify's documentation.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1633700835\tfile:test\tprehashed\n\
        wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==\n";

    fn signed(json: &str) -> Authentic {
        Authentic { bytes: json.as_bytes().to_vec(), signature: String::new(), key_name: "k".into() }
    }

    fn json(change: impl Fn(&mut serde_json::Value)) -> String {
        let digest = "a".repeat(64);
        let mut value = serde_json::json!({
            "format": 1, "product": "demo", "hardware": ["unit-a", "unit-b*"], "channel": "stable",
            "version": "1.2", "serial": 7, "created_unix_s": 1_700_000_000, "minimum_agent": "0.1.0",
            "images": [{ "name": "system", "size_bytes": 8192, "sha256": "x",
                         "index": { "blake3": digest, "size_bytes": 10 } }],
            "a_later_addition": true,
        });
        change(&mut value);
        value.to_string()
    }

    #[test]
    fn only_exact_signed_bytes_are_authentic() {
        let mut keys = TrustedKeys::default();
        assert!(matches!(keys.authenticate(b"test".to_vec(), SIGNATURE), Err(ManifestError::NoKeys)));
        // Another key first: one good key is enough.
        keys.add("old", "RWSGOq2NVecA2UPNdBUZykf1CCb147pkmdtYxgb3Ti+JO/wCYvhbAb/U").unwrap();
        let error = keys.authenticate(b"test".to_vec(), SIGNATURE).unwrap_err();
        assert!(matches!(&error, ManifestError::Signature { keys, .. } if keys == "old"), "{error}");
        keys.add("new", KEY).unwrap();
        assert_eq!(keys.authenticate(b"test".to_vec(), SIGNATURE).unwrap().key_name(), "new");
        assert!(keys.authenticate(b"tesT".to_vec(), SIGNATURE).is_err());
        assert!(matches!(keys.authenticate(b"test".to_vec(), "no"), Err(ManifestError::SignatureFormat(_))));
        // A file that is being replaced has the signature of what comes before that of what is there.
        let (_, other) = SIGNATURE.split_once('\n').unwrap();
        let other = format!("untrusted comment: other\n{}\n", other.replacen("RUQ", "RUR", 1).trim_end());
        let both = format!("{other}{SIGNATURE}");
        assert_eq!(signatures(&both).collect::<Vec<_>>(), [other.as_str(), SIGNATURE]);
        let taken = keys.authenticate(b"test".to_vec(), &both).unwrap();
        assert_eq!(taken.signature(), SIGNATURE);
        assert!(keys.authenticate(b"test".to_vec(), &other).is_err());
        assert!(keys.authenticate(b"test".to_vec(), &format!("{}{SIGNATURE}", other.repeat(4))).is_err());
        assert!(matches!(keys.authenticate(b"test".to_vec(), ""), Err(ManifestError::SignatureFormat(_))));
        assert!(keys.add("broken", "RWQ").is_err());
    }

    #[test]
    fn additions_are_accepted_and_later_formats_named() {
        let manifest = Manifest::parse(&signed(&json(|_| {}))).unwrap();
        assert_eq!((manifest.serial, manifest.image("system").unwrap().size_bytes), (7, 8192));
        assert!(manifest.image("data").is_err());
        let later = json(|v| v["format"] = 2.into());
        assert!(matches!(Manifest::parse(&signed(&later)), Err(ManifestError::Format { found: 2, .. })));
        for wrong in ["", "{}", "[1]", &json(|v| v["images"][0]["size_bytes"] = 4097.into())] {
            assert!(Manifest::parse(&signed(wrong)).is_err(), "{wrong}");
        }
        for (created, fits) in [(8_277_292_036_u64, true), (8_277_292_037, false), (1 << 63, false), (u64::MAX, false)]
        {
            let parsed = Manifest::parse(&signed(&json(|v| v["created_unix_s"] = created.into())));
            assert_eq!(parsed.is_ok(), fits, "{created}");
        }
    }

    #[test]
    fn numbers_and_names_that_contradict_each_other_are_refused() {
        let digest = "b".repeat(64);
        let file = |name: &str, size_bytes: u64| serde_json::json!({ "name": name, "blake3": digest, "size_bytes": size_bytes });
        let refusal = |change: &dyn Fn(&mut serde_json::Value)| {
            Manifest::parse(&signed(&json(change))).map(|_| ()).unwrap_err().to_string()
        };
        let text = refusal(&|v| v["files"] = [file("a", 5), file("b", 6)].into());
        assert!(text.contains("has 5 bytes in one place and 6 in another"), "{text}");
        let text = refusal(&|v| v["files"] = [file("a", 5), file("a", 5)].into());
        assert!(text.contains("two files have the name \"a\""), "{text}");
        let text = refusal(&|v| v["images"] = [v["images"][0].clone(), v["images"][0].clone()].into());
        assert!(text.contains("two images have the name \"system\""), "{text}");
        let text = refusal(&|v| v["images"][0]["index"]["size_bytes"] = (1_u64 << 40).into());
        assert!(text.contains("the chunk index of image \"system\" has 1099511627776 bytes"), "{text}");
        let text = refusal(&|v| v["files"] = [file("a", 1 << 30)].into());
        assert!(text.contains("the file \"a\" has 1073741824 bytes, and at most 268435456"), "{text}");
        Manifest::parse(&signed(&json(|v| v["files"] = [file("a", 5), file("b", 5)].into()))).unwrap();
    }

    #[test]
    fn the_wrong_machine_is_refused_by_what_differs() {
        let manifest = Manifest::parse(&signed(&json(|_| {}))).unwrap();
        manifest.check_fit("demo", "unit-a", "stable").unwrap();
        manifest.check_fit("demo", "unit-b-rev3", "stable").unwrap();
        for (product, hardware, channel, named) in [
            ("other", "unit-a", "stable", "product"),
            ("demo", "unit-a2", "stable", "hardware"),
            ("demo", "unit-a", "testing", "channel"),
        ] {
            let text = manifest.check_fit(product, hardware, channel).unwrap_err().to_string();
            assert!(text.contains(named), "{text}");
        }
        let later = Manifest::parse(&signed(&json(|v| v["minimum_agent"] = "99.0.0".into()))).unwrap();
        assert!(matches!(later.check_fit("demo", "unit-a", "stable"), Err(ManifestError::AgentTooOld { .. })));
    }

    #[test]
    fn a_serial_that_leaves_none_above_it_is_refused() {
        let with = |serial: u64| signed(&json(|v| v["serial"] = serial.into()));
        assert_eq!(Manifest::parse(&with(super::MAX_SERIAL)).unwrap().serial, super::MAX_SERIAL);
        for serial in [super::MAX_SERIAL + 1, u64::MAX] {
            let error = Manifest::parse(&with(serial)).unwrap_err();
            assert!(error.to_string().contains(&format!("it has serial {serial}, and the highest is")), "{error}");
            // What an older agent installed is still known, so that it can be compared and repaired.
            assert_eq!(Manifest::parse_recorded(&with(serial)).unwrap().serial, serial);
        }
    }
}
