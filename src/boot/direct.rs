//! What GRUB would start the system with, for a start without GRUB. Pure.

/// Arguments that GRUB gives to a recovery alone, by their beginnings.
const OF_RECOVERY: [&str; 5] = ["BOOT_IMAGE=", "initrd=", "panic=", "reflash.", "gpt"];
/// Arguments that both kernels may have, although they begin as those of a recovery.
const OF_BOTH: [&str; 2] = ["reflash.disk-wait-s=", "reflash.good-within-s="];
/// Longest value of a fragment, bytes: the kernel takes a command line of 2048.
const MAX_VALUE_BYTES: usize = 1500;

/// The system's fragment of GRUB's script, `/boot/reflash.cfg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Path of the kernel in the system.
    pub kernel: String,
    /// Path of the initramfs in the system.
    pub initramfs: String,
    /// Arguments that the system needs.
    pub arguments: String,
}

/// Fault of a fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// A line is missing.
    #[error("it has no line `set {0}=\"...\"`")]
    Missing(&'static str),
    /// A value is not what GRUB would take literally.
    #[error("the value of {0} is not plain text of at most {MAX_VALUE_BYTES} bytes")]
    Value(&'static str),
}

impl Fragment {
    /// Parses the lines that the builder writes. This is no script language: GRUB would carry out any other line.
    ///
    /// # Errors
    /// [`FragmentError`].
    pub fn parse(text: &str) -> Result<Self, FragmentError> {
        let value = |name: &'static str| {
            let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("set ")?.split_once('='));
            let (_, value) = lines.find(|(found, _)| *found == name).ok_or(FragmentError::Missing(name))?;
            let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
            let is_plain = value.bytes().all(|byte| matches!(byte, b' '..=b'~') && !b"\"$\\`".contains(&byte));
            if is_plain && value.len() <= MAX_VALUE_BYTES {
                Ok(value.to_owned())
            } else {
                Err(FragmentError::Value(name))
            }
        };
        Ok(Self {
            kernel: value("system_linux")?,
            initramfs: value("system_initrd")?,
            arguments: value("system_args")?,
        })
    }
}

/// The system's command line, as the boot script makes it. Consoles, and whatever else `/grub/local.cfg` gives to both
/// kernels, are taken from the command line of this recovery, `own`. `system` and `data` are PARTUUIDs.
#[must_use]
pub fn arguments(own: &str, fragment: &Fragment, system: &str, data: Option<&str>, is_gpt: bool) -> String {
    let is_shared = |word: &&str| {
        *word != "quiet"
            && (OF_BOTH.iter().any(|shared| word.starts_with(shared))
                || !OF_RECOVERY.iter().any(|recovery| word.starts_with(recovery)))
    };
    let mut words = vec![format!("root=PARTUUID={system}")];
    words.extend(fragment.arguments.split_ascii_whitespace().map(str::to_owned));
    words.extend(own.split_ascii_whitespace().filter(is_shared).map(str::to_owned));
    words.push("panic=10".to_owned());
    words.extend(is_gpt.then(|| "gpt".to_owned()));
    words.push(format!("reflash.system={system}"));
    words.extend(data.map(|data| format!("reflash.data={data}")));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{Fragment, FragmentError, arguments};

    const TEXT: &str = "# Made with the image\nset system_linux=\"/boot/ostree/a/vmlinuz-6.1\"\n\
        set system_initrd=\"/boot/ostree/a/initramfs.img\"\nset system_args=\"systemd.gpt_auto=0 ostree=/ostree/b/0\"\n";

    #[test]
    fn the_system_gets_the_command_line_that_grub_would_give() {
        let fragment = Fragment::parse(TEXT).unwrap();
        assert_eq!(fragment.kernel, "/boot/ostree/a/vmlinuz-6.1");
        let own = "BOOT_IMAGE=(hd0,gpt4)/slots/a/vmlinuz console=tty0 console=ttyS0,115200 reflash.disk-wait-s=600 quiet \
            panic=30 reflash.recovery=1 reflash.slot=a reflash.reason=env-unwritable gpt\n";
        assert_eq!(
            arguments(own, &fragment, "5-5", Some("6-6"), true),
            "root=PARTUUID=5-5 systemd.gpt_auto=0 ostree=/ostree/b/0 console=tty0 console=ttyS0,115200 \
             reflash.disk-wait-s=600 panic=10 gpt reflash.system=5-5 reflash.data=6-6"
        );
        assert!(arguments("", &fragment, "5", None, false).ends_with("panic=10 reflash.system=5"));
    }

    #[test]
    fn what_grub_would_not_take_literally_is_refused() {
        assert_eq!(Fragment::parse("set system_linux=\"/a\"\n"), Err(FragmentError::Missing("system_initrd")));
        for value in ["$(reboot)", "a\\b", "`x`", "a\u{7f}", "\u{e4}", &"x".repeat(3000)] {
            let text = TEXT.replace("systemd.gpt_auto=0", value);
            assert_eq!(Fragment::parse(&text), Err(FragmentError::Value("system_args")), "{value}");
        }
        assert_eq!(Fragment::parse(&TEXT.replace('"', "")).unwrap(), Fragment::parse(TEXT).unwrap());
    }
}
