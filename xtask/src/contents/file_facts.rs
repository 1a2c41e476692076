//! Facts about one file of an image. Pure.

use serde::Serialize;

/// A file, link or directory of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// Kind of the file: `file`, `link` or `directory`.
    pub kind: &'static str,
    /// Permissions in octal, with setuid, setgid and the sticky bit.
    pub mode: String,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Bytes of the content.
    pub bytes: u64,
    /// Whether the file has capabilities of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// Package that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Digest of the content.
    #[serde(skip)]
    pub digest: [u8; 32],
}

impl FileFacts {
    /// Whether a program gets rights by being started that its user does not have.
    #[must_use]
    pub fn gives_rights(&self) -> bool {
        let special =
            self.mode.len() == 4 && matches!(self.mode.as_bytes()[0], b'2' | b'4' | b'6' | b'3' | b'5' | b'7');
        self.kind == "file" && (special || self.capability.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::FileFacts;

    #[test]
    fn only_files_with_special_bits_or_capabilities_give_rights() {
        let file = |kind, mode: &str, capability: Option<&str>| FileFacts {
            kind,
            mode: mode.into(),
            uid: 0,
            gid: 0,
            bytes: 0,
            capability: capability.map(str::to_owned),
            package: None,
            digest: [0; 32],
        };
        assert!(file("file", "4755", None).gives_rights() && file("file", "2755", None).gives_rights());
        assert!(file("file", "0755", Some("00")).gives_rights());
        assert!(!file("directory", "2775", None).gives_rights() && !file("file", "1755", None).gives_rights());
    }
}
