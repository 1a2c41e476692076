//! The disk map: where the partitions of a GPT disk lie, in a block that GRUB's first script reads when it cannot read
//! the partition table. Pure.
//!
//! GRUB uses the first copy of the table only, and has no means to read the second. The map is a boot environment of
//! its own, which GRUB reads without any file system; `grub/first.cfg` knows its place and its variables.

use super::grubenv::{GrubEnv, GrubEnvError, SIZE_BYTES};
use crate::disk::roles::Role;
use crate::disk::table::TableEntry;

/// Offset of the map from the start of the disk, bytes: behind the largest table, and before the first partition and
/// the provisioning marker. In `grub/first.cfg` it is sector 2032.
pub const OFFSET_BYTES: u64 = OFFSET as u64;
/// Offset of the map in the first bytes of a disk.
pub(crate) const OFFSET: usize = 2032 * 512;

/// Sectors as GRUB counts them, whatever the blocks of the disk are.
const SECTOR_BYTES: u64 = 512;

/// A partition as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedPartition {
    /// Offset on the disk, bytes.
    pub offset_bytes: u64,
    /// Size of the partition, bytes.
    pub size_bytes: u64,
    /// PARTUUID in text.
    pub partuuid: String,
}

/// The partitions that the machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskMap {
    /// The state partition, with the boot environment.
    pub state: MappedPartition,
    /// The recovery partition.
    pub recovery: MappedPartition,
    /// The system partition.
    pub system: MappedPartition,
    /// PARTUUID of the data partition, which GRUB does not read.
    pub data_partuuid: String,
    /// The partition of the second system, on a robot with two.
    pub second: Option<MappedPartition>,
}

impl DiskMap {
    /// Makes the map of a disk with blocks of `block_bytes`, whose table has these entries by role. `None` where one of
    /// the partitions is missing.
    pub fn of<'a>(block_bytes: u32, entry: impl Fn(Role) -> Option<&'a TableEntry>) -> Option<Self> {
        let partition = |role| {
            let entry = entry(role)?;
            let offset_bytes = entry.first_lba.checked_mul(block_bytes.into())?;
            Some(MappedPartition { offset_bytes, size_bytes: entry.size_bytes, partuuid: entry.partuuid.clone() })
        };
        let [state, recovery, system, data] = [Role::State, Role::Recovery, Role::System, Role::Data].map(partition);
        let second = partition(Role::System2);
        Some(Self { state: state?, recovery: recovery?, system: system?, data_partuuid: data?.partuuid, second })
    }

    /// Encodes the map into the 512 bytes at [`OFFSET_BYTES`].
    ///
    /// # Errors
    /// [`GrubEnvError::Full`] when identities are longer than those of any partition table.
    pub fn encode(&self) -> Result<[u8; SIZE_BYTES], GrubEnvError> {
        let mut env = GrubEnv::default();
        let always = [("map_state", &self.state), ("map_recovery", &self.recovery), ("map_system", &self.system)];
        let second = self.second.as_ref();
        for (name, partition) in always.into_iter().chain(second.map(|second| ("map_system2", second))) {
            // GRUB's own notation of a range of sectors.
            let range = format!("{}+{}", partition.offset_bytes / SECTOR_BYTES, partition.size_bytes / SECTOR_BYTES);
            env.set(name, &range)?;
        }
        env.set("map_recovery_uuid", &self.recovery.partuuid)?;
        env.set("map_system_uuid", &self.system.partuuid)?;
        env.set("map_data_uuid", &self.data_partuuid)?;
        second.map_or(Ok(()), |second| env.set("map_system2_uuid", &second.partuuid))?;
        env.encode()
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskMap, MappedPartition, OFFSET_BYTES};

    const FIRST_SCRIPT: &str = include_str!("../../grub/first.cfg");

    fn partition(offset_mib: u64, size_mib: u64) -> MappedPartition {
        let mib = 1024 * 1024;
        let partuuid = "00112233-4455-6677-8899-aabbccddeeff".to_owned();
        MappedPartition { offset_bytes: offset_mib * mib, size_bytes: size_mib * mib, partuuid }
    }

    #[test]
    fn the_map_has_what_the_first_script_reads_and_fits_on_the_largest_disk() {
        let largest = partition(8 * 1024 * 1024 * 1024, 8 * 1024 * 1024 * 1024);
        let data_partuuid = largest.partuuid.clone();
        let second = Some(largest.clone());
        let map =
            DiskMap { state: largest.clone(), recovery: partition(130, 256), system: largest, data_partuuid, second };
        let block = map.encode().unwrap();
        let text = std::str::from_utf8(&block).unwrap();
        assert!(text.contains("\nmap_recovery=266240+524288\n"), "{text}");
        let place = format!("($1){}+1", OFFSET_BYTES / 512);
        assert!(FIRST_SCRIPT.contains(&format!("load_env --file \"{place}\"")));
        for name in text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
            assert!(FIRST_SCRIPT.contains(&format!("${name}")), "{name}");
        }
    }
}
