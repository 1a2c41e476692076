//! The partition layout of a product's disk as data, and the place of each partition on a disk of known size. Pure.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Alignment of the beginning and end of every partition, bytes: a multiple of every erase block and sector size in
/// use.
pub const ALIGNMENT_BYTES: u64 = 1024 * 1024;

/// The kind of partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// A GUID partition table.
    Gpt,
    /// A master boot record with at most four primary partitions.
    Mbr,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt => "GPT",
            Self::Mbr => "MBR",
        })
    }
}

/// The role of a partition, which decides its type GUID and which programs may write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// GRUB's core.img on BIOS machines with GPT.
    BiosBoot,
    /// The EFI system partition.
    Esp,
    /// The boot environment, the manifest and index of the installed release, and the event log.
    State,
    /// The recovery: kernel, initramfs, GRUB's script, configuration and keys.
    Recovery,
    /// The image of the release.
    System,
    /// The robot's own data: `/var` and the changes to `/etc`.
    Data,
    /// A second system, so that a release can be written while the robot works with another one.
    System2,
}

impl Role {
    /// Returns the name of the role in layouts, which is also the partition's name on a GPT.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BiosBoot => "biosboot",
            Self::Esp => "esp",
            Self::State => "state",
            Self::Recovery => "recovery",
            Self::System => "system",
            Self::Data => "data",
            Self::System2 => "system2",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Size of a partition: `"64MiB"`, `"2GiB"`, `"30%"` of the disk, or `"rest"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A fixed size in mebibytes.
    Mib(u64),
    /// A share of the usable disk in hundredths, 1 to 99.
    Percent(u8),
    /// The space that the other partitions leave free. At most one partition has this size.
    Rest,
}

/// One partition of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionSpec {
    /// Name of the partition in the table: 1 to 36 ASCII letters, digits, `-` and `_`.
    pub name: String,
    /// Role of the partition.
    pub role: Role,
    /// Size of the partition.
    pub size: Size,
}

/// A partition layout, with the partitions in table order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Kind of partition table.
    pub table: Scheme,
    /// The partitions, in the order in which they lie on the disk. Their numbers are their positions, from 1, but that
    /// of a second system, which has the last one: boot code of every age knows the others by their numbers.
    pub partitions: Vec<PartitionSpec>,
}

/// A partition that has its place on a disk of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Number of the partition in the table, from 1.
    pub number: u32,
    /// Name, role and size as the layout has them.
    pub partition: PartitionSpec,
    /// Offset of the partition on the disk, bytes; a multiple of [`ALIGNMENT_BYTES`].
    pub offset_bytes: u64,
    /// Size of the partition, bytes; a multiple of [`ALIGNMENT_BYTES`].
    pub size_bytes: u64,
}

/// The error for a layout that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The layout is wrong for a disk of any size.
    #[error("the layout is wrong: {0}")]
    Invalid(String),
    /// The disk is too small for the layout.
    #[error("the layout needs {needed_mib} MiB and the disk has {disk_mib} MiB; use a larger disk or a smaller layout")]
    DiskTooSmall {
        /// Size of the fixed parts, the table and at least 1 MiB for `rest`, mebibytes.
        needed_mib: u64,
        /// Size of the disk, mebibytes.
        disk_mib: u64,
    },
}

impl Layout {
    /// Places the partitions on a disk of `disk_bytes`. The first one begins at 1 MiB, and the last MiB stays free for
    /// the backup table.
    ///
    /// # Errors
    /// [`LayoutError`] says why the layout does not fit. Nothing is written here.
    pub fn place(&self, disk_bytes: u64) -> Result<Vec<Placed>, LayoutError> {
        self.check()?;
        let disk_mib = disk_bytes / ALIGNMENT_BYTES;
        let usable_mib = disk_mib.saturating_sub(2);
        let fixed_mib = |size: Size| match size {
            Size::Mib(mib) => mib,
            Size::Percent(percent) => usable_mib * u64::from(percent) / 100,
            Size::Rest => 0,
        };
        let fixed_sum = self.partitions.iter().map(|p| fixed_mib(p.size)).fold(0, u64::saturating_add);
        let has_rest = self.partitions.iter().any(|p| p.size == Size::Rest);
        let needed_mib = fixed_sum.saturating_add(2).saturating_add(u64::from(has_rest));
        if needed_mib > disk_mib {
            return Err(LayoutError::DiskTooSmall { needed_mib, disk_mib });
        }
        let mut next_mib = 1;
        let mut placed = Vec::new();
        for (number, partition) in self.numbers().zip(&self.partitions) {
            let size_mib = match partition.size {
                Size::Rest => usable_mib - fixed_sum,
                size => fixed_mib(size),
            };
            placed.push(Placed {
                number,
                partition: partition.clone(),
                offset_bytes: next_mib * ALIGNMENT_BYTES,
                size_bytes: size_mib * ALIGNMENT_BYTES,
            });
            next_mib += size_mib;
        }
        Ok(placed)
    }

    /// Returns the number that each partition has in the table.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        let mut next = 0;
        self.partitions.iter().map(move |partition| match partition.role {
            Role::System2 => u32::try_from(self.partitions.len()).unwrap_or(u32::MAX),
            _ => {
                next += 1;
                next
            }
        })
    }

    /// Returns the layout for agents that know one system only: the space of the second one goes to what takes the
    /// rest.
    #[must_use]
    pub fn with_one_system(&self) -> Self {
        let partitions = self.partitions.iter().filter(|partition| partition.role != Role::System2).cloned();
        Self { table: self.table, partitions: partitions.collect() }
    }

    fn check(&self) -> Result<(), LayoutError> {
        let invalid = |text: String| Err(LayoutError::Invalid(text));
        let of_role = |role| self.partitions.iter().filter(move |partition| partition.role == role);
        let second = of_role(Role::System2).next();
        if self.table == Scheme::Mbr && second.is_some() {
            return invalid(
                "two systems need a fifth partition, and an MBR holds 4; a machine with a BIOS starts from a GPT too"
                    .to_owned(),
            );
        }
        if second.is_some_and(|second| of_role(Role::System).any(|first| first.size != second.size)) {
            return invalid("the two systems differ in size, and each release has to fit into both".to_owned());
        }
        if self.table == Scheme::Mbr && self.partitions.len() > 4 {
            return invalid(format!("{} partitions, and an MBR holds 4", self.partitions.len()));
        }
        if self.partitions.iter().filter(|p| p.size == Size::Rest).count() > 1 {
            return invalid("two partitions take the rest of the disk".to_owned());
        }
        for (position, partition) in self.partitions.iter().enumerate() {
            let name = &partition.name;
            let clean = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
            if name.is_empty() || name.len() > 36 || !clean {
                return invalid(format!("{name:?} is not a partition name: 1 to 36 letters, digits, '-' and '_'"));
            }
            if self.partitions[..position].iter().any(|other| other.name == *name) {
                return invalid(format!("two partitions are named {name:?}"));
            }
            if matches!(partition.size, Size::Mib(0) | Size::Percent(0) | Size::Percent(100..)) {
                let size = partition.size;
                return invalid(format!(
                    "partition {name:?} has the size {size}: expected 1MiB or more, 1% to 99%, or rest"
                ));
            }
        }
        for needed in [Role::State, Role::Recovery, Role::System, Role::Data] {
            if of_role(needed).count() != 1 {
                return invalid(format!("it needs exactly one partition with the role {needed}"));
            }
        }
        if of_role(Role::System2).count() > 1 {
            return invalid("it has more than two systems".to_owned());
        }
        Ok(())
    }
}

impl std::str::FromStr for Size {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<Self, LayoutError> {
        let number = |digits: &str| digits.parse::<u64>().ok();
        let size = if text == "rest" {
            Some(Self::Rest)
        } else if let Some(digits) = text.strip_suffix("MiB") {
            number(digits).map(Self::Mib)
        } else if let Some(digits) = text.strip_suffix("GiB") {
            number(digits).and_then(|gib| gib.checked_mul(1024)).map(Self::Mib)
        } else {
            text.strip_suffix('%').and_then(|digits| digits.parse().ok()).map(Self::Percent)
        };
        size.ok_or_else(|| LayoutError::Invalid(format!("{text:?} is not a size: expected 64MiB, 2GiB, 30% or rest")))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mib(mib) => write!(f, "{mib}MiB"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Rest => write!(f, "rest"),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Layout, LayoutError, PartitionSpec, Role, Scheme, Size};

    const MIB: u64 = 1024 * 1024;

    fn layout(system: &str, data: &str) -> Layout {
        serde_json::from_value(serde_json::json!({ "table": "gpt", "partitions": [
            { "name": "biosboot", "role": "biosboot", "size": "1MiB" },
            { "name": "state", "role": "state", "size": "64MiB" },
            { "name": "recovery", "role": "recovery", "size": "256MiB" },
            { "name": "system", "role": "system", "size": system },
            { "name": "data", "role": "data", "size": data },
        ]}))
        .unwrap()
    }

    #[test]
    fn partitions_follow_each_other_and_the_last_takes_the_rest() {
        let placed = layout("2GiB", "rest").place(4096 * MIB + 5).unwrap();
        let mib: Vec<_> = placed.iter().map(|p| (p.number, p.offset_bytes / MIB, p.size_bytes / MIB)).collect();
        assert_eq!(mib, [(1, 1, 1), (2, 2, 64), (3, 66, 256), (4, 322, 2048), (5, 2370, 1725)]);
    }

    #[test]
    fn shares_are_of_the_usable_disk() {
        let placed = layout("50%", "rest").place(1002 * MIB).unwrap();
        assert_eq!((placed[3].size_bytes / MIB, placed[4].size_bytes / MIB), (500, 179));
    }

    #[test]
    fn a_small_disk_is_refused_with_both_sizes() {
        let error = layout("2GiB", "rest").place(2000 * MIB).unwrap_err();
        assert_eq!(error, LayoutError::DiskTooSmall { needed_mib: 2372, disk_mib: 2000 });
        assert!(layout("2GiB", "rest").place(2372 * MIB).is_ok());
        assert!(layout("70%", "70%").place(5000 * MIB).is_err());
    }

    #[test]
    fn a_second_system_lies_beside_the_first_and_has_the_last_number() {
        let mut two = layout("512MiB", "rest");
        let second = PartitionSpec { name: "system2".to_owned(), role: Role::System2, size: Size::Mib(512) };
        two.partitions.insert(4, second);
        let placed = two.place(4096 * MIB).unwrap();
        let mib: Vec<_> = placed.iter().map(|p| (p.number, p.partition.role, p.offset_bytes / MIB)).collect();
        assert_eq!(mib[3..], [(4, Role::System, 322), (6, Role::System2, 834), (5, Role::Data, 1346)]);
        assert_eq!(two.with_one_system(), layout("512MiB", "rest"));
        assert_eq!(serde_json::from_str::<Layout>(&serde_json::to_string(&two).unwrap()).unwrap(), two);
        let refusal = |change: fn(&mut Layout)| {
            let mut wrong = two.clone();
            change(&mut wrong);
            wrong.place(4096 * MIB).unwrap_err().to_string()
        };
        assert!(refusal(|wrong| wrong.partitions[4].size = Size::Mib(256)).contains("differ in size"));
        assert!(refusal(|wrong| wrong.table = Scheme::Mbr).contains("starts from a GPT too"));
        let third = |wrong: &mut Layout| {
            wrong.partitions.push(wrong.partitions[4].clone());
            wrong.partitions[6].name = "third".to_owned();
        };
        assert!(refusal(third).contains("more than two"));
    }

    #[test]
    fn wrong_layouts_are_refused() {
        assert!(layout("rest", "rest").place(5000 * MIB).is_err());
        assert!(layout("0MiB", "rest").place(5000 * MIB).is_err());
        let mut twice = layout("1GiB", "rest");
        twice.partitions[4].name = "system".into();
        assert!(twice.place(5000 * MIB).unwrap_err().to_string().contains("two partitions"));
        let mut without = layout("1GiB", "rest");
        without.partitions.pop();
        assert!(without.place(5000 * MIB).unwrap_err().to_string().contains("role data"));
        assert!("64MB".parse::<super::Size>().is_err() && "-1MiB".parse::<super::Size>().is_err());
    }
}
