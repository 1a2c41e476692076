//! Roles of the partitions of a disk. Pure.

use std::path::Path;

use super::list::{Partition, PartitionTable};
use super::table::Scheme;
pub use crate::release::layout::Role;

/// Roles of the four primaries of a machine with an MBR, in table order; `grub/grub.cfg` counts on it too.
pub const MBR_ROLES: [Role; 4] = [Role::State, Role::Recovery, Role::System, Role::Data];

impl PartitionTable {
    /// The partition with this role: on GPT the one of that name, on MBR, which has no names, the one with the number
    /// that reflash gives the role there.
    #[must_use]
    pub fn of_role(&self, role: Role) -> Option<&Partition> {
        match self.scheme {
            Scheme::Gpt => self.named(role.name()),
            Scheme::Mbr => (1..).zip(MBR_ROLES).find(|(_, one)| *one == role).and_then(|(at, _)| self.number(at)),
        }
    }

    /// The data partition, for which GRUB takes the one with this PARTUUID. GRUB goes by the number, which is that of
    /// another partition once a tool has put those of a robot with two systems in the order of their places.
    #[must_use]
    pub fn data(&self, partuuid: &str) -> Option<&Partition> {
        self.of_role(Role::Data).or_else(|| self.partuuid(partuuid))
    }

    /// The device of the partition with this role, once the kernel has one.
    #[must_use]
    pub fn device_of(&self, role: Role) -> Option<&Path> {
        self.of_role(role)?.node.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::{Partition, PartitionTable, Role, Scheme};
    use crate::disk::table::TableEntry;

    #[test]
    fn roles_are_names_on_gpt_and_numbers_on_mbr() {
        let layout = |scheme, names: [Option<&str>; 4]| {
            let entry = |(number, name): (u32, Option<&str>)| TableEntry {
                number,
                name: name.map(str::to_owned),
                partuuid: number.to_string(),
                first_lba: 0,
                size_bytes: 0,
            };
            let partitions = (1..).zip(names).map(|each| Partition { entry: entry(each), node: None }).collect();
            PartitionTable { scheme, damaged_copy: false, damaged_primary: false, overlap: None, partitions }
        };
        let number = |layout: &PartitionTable, role| layout.of_role(role).map(|found| found.entry.number);
        let gpt = layout(Scheme::Gpt, [Some("esp"), Some("data"), Some("state"), Some("data")]);
        assert_eq!(
            (number(&gpt, Role::State), number(&gpt, Role::System), number(&gpt, Role::Data)),
            (Some(3), None, None)
        );
        let data = |layout: &PartitionTable, grub: &str| layout.data(grub).map(|found| found.entry.number);
        assert_eq!(data(&gpt, "2"), Some(2), "two have the name: GRUB knows which it is");
        let sorted = layout(Scheme::Gpt, [Some("state"), Some("system"), Some("system2"), Some("data")]);
        assert_eq!(data(&sorted, "3"), Some(4), "never the second system, whose number was that of data");
        let mut mbr = layout(Scheme::Mbr, [None; 4]);
        assert_eq!(
            (number(&mbr, Role::State), number(&mbr, Role::Data), number(&mbr, Role::Esp)),
            (Some(1), Some(4), None)
        );
        mbr.partitions.remove(2);
        assert_eq!((number(&mbr, Role::System), number(&mbr, Role::Recovery)), (None, Some(2)));
    }
}
