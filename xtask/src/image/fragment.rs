//! The GRUB fragment: GRUB 2.06 cannot read the Boot Loader Specification entries that OSTree writes, so the only entry
//! is translated at build time. Pure.

use anyhow::{Context, Result, ensure};

/// Values that a boot loader needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootEntry {
    /// Kernel, from the root of the file system.
    pub linux: String,
    /// Initramfs, from the root of the file system.
    pub initrd: String,
    /// Arguments of the kernel.
    pub args: String,
}

impl BootEntry {
    /// Parses one entry. The paths in it start at /boot, as if that were a partition of its own.
    ///
    /// # Errors
    /// Fails when a line is missing, or when it holds something that GRUB's script language would not take literally.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(char::is_whitespace));
            let found = lines.find(|(name, _)| *name == key).map(|(_, value)| value.trim().to_owned());
            found.with_context(|| format!("the boot entry has no line {key:?}"))
        };
        let entry = Self {
            linux: format!("/boot{}", value("linux")?),
            initrd: format!("/boot{}", value("initrd")?),
            args: value("options")?,
        };
        for text in [&entry.linux, &entry.initrd, &entry.args] {
            ensure!(!text.contains(['"', '$', '\\', '`', '\n']), "{text:?} would not survive GRUB's script language");
        }
        ensure!(entry.args.split(' ').any(|word| word.starts_with("ostree=/ostree/")), "the boot entry has no ostree=");
        Ok(entry)
    }

    /// Returns the script for GRUB.
    pub fn script(&self) -> String {
        format!(
            "# Sourced by GRUB from the recovery partition. Made with the image from OSTree's boot entry.\n\
             set system_linux=\"{}\"\nset system_initrd=\"{}\"\nset system_args=\"{}\"\n",
            self.linux, self.initrd, self.args
        )
    }
}

#[cfg(test)]
mod tests {
    use super::BootEntry;

    const BLS: &str = "title Debian GNU/Linux 12 (bookworm) 1.0 (ostree:0)\nversion 1\noptions systemd.gpt_auto=0 \
        ostree=/ostree/boot.1/system/abc/0\nlinux /ostree/system-abc/vmlinuz-6.1\n\
        initrd /ostree/system-abc/initramfs-6.1.img\n";

    #[test]
    fn an_entry_becomes_a_script() {
        let entry = BootEntry::parse(BLS).unwrap();
        assert_eq!(entry.linux, "/boot/ostree/system-abc/vmlinuz-6.1");
        let script = entry.script();
        assert!(script.contains("set system_initrd=\"/boot/ostree/system-abc/initramfs-6.1.img\"\n"), "{script}");
        assert!(
            script.ends_with("set system_args=\"systemd.gpt_auto=0 ostree=/ostree/boot.1/system/abc/0\"\n"),
            "{script}"
        );
    }

    #[test]
    fn a_bad_entry_is_refused() {
        assert!(BootEntry::parse(&BLS.replace("initrd", "inird")).unwrap_err().to_string().contains("initrd"));
        assert!(BootEntry::parse(&BLS.replace("ostree=", "o=")).is_err());
        assert!(BootEntry::parse(&BLS.replace("gpt_auto=0", "gpt_auto=$x")).is_err());
    }
}
