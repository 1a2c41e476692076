//! Kernel arguments of the system's boot. Pure.

use super::error::SysrootError;
use crate::boot::this_boot;

/// Arguments on the kernel command line for the first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// PARTUUID of the system partition.
    pub system: String,
    /// PARTUUID of the data partition. GRUB cannot always read it, and no fault of data keeps the system from starting.
    pub data: Option<String>,
    /// Number of this safe start, counted from 1, if it is one.
    pub safe: Option<u32>,
}

impl Arguments {
    /// Reads `reflash.system=`, `reflash.data=` and `reflash.safe=`. Of several the last one counts, as it does for the
    /// kernel. A safe start whose number makes no sense is a safe start all the same.
    ///
    /// # Errors
    /// [`SysrootError::Argument`] when `reflash.system=` is missing or empty.
    pub fn parse(command_line: &str) -> Result<Self, SysrootError> {
        let find = |name: &str| {
            let mut values =
                command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            values.next_back().filter(|value| !value.is_empty())
        };
        let name = "reflash.system";
        let system = find(name).ok_or(SysrootError::Argument { name })?.to_ascii_lowercase();
        let safe = this_boot::safe_start(command_line);
        Ok(Self { system, data: find("reflash.data").map(str::to_ascii_lowercase), safe })
    }
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    #[test]
    fn partitions_come_from_the_command_line() {
        let line = "BOOT_IMAGE=x ro reflash.system=OLD reflash.data=B-2 quiet reflash.system=A-1\n";
        let expected = Arguments { system: "a-1".into(), data: Some("b-2".into()), safe: None };
        assert_eq!(Arguments::parse(line).unwrap(), expected);
        let error = Arguments::parse("reflash.data=x").unwrap_err().to_string();
        assert!(error.contains("reflash.system"), "{error}");
        assert_eq!(Arguments::parse("reflash.system=x reflash.data=").unwrap().data, None);
    }

    #[test]
    fn a_safe_start_is_one_whatever_its_number() {
        for (text, number) in [
            ("reflash.safe=2", Some(2)),
            ("reflash.safe=x", Some(1)),
            ("reflash.safe=0", Some(1)),
            ("reflash.safe", Some(1)),
            ("reflash.safe=", Some(1)),
            ("reflash.safety=1", None),
        ] {
            assert_eq!(Arguments::parse(&format!("reflash.system=x {text}")).unwrap().safe, number, "{text}");
        }
    }
}
