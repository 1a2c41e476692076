//! What the partitions of a layout must have room for: the file systems that a blank disk begins with, and the image.
//! A layout without that room is accepted by no blank disk, which a person would notice at the first machine.

use anyhow::{Result, bail};
use reflash::release::layout::{ALIGNMENT_BYTES, Layout, LayoutError, PartitionSpec, Placed, Role, Size};

use crate::templates;

/// Largest disk that is looked at: 1 PiB. Sums of sizes stay far below the end of the numbers.
const LARGEST_DISK_MIB: u64 = 1 << 30;

/// What a partition must have room for.
struct Content {
    what: &'static str,
    needs_mib: u64,
}

impl Content {
    fn of(partition: &PartitionSpec, image_bytes: u64) -> Self {
        let (what, bytes) = match partition.role {
            Role::System | Role::System2 => ("the image", image_bytes),
            role => ("its file system", templates::bytes(role)),
        };
        Self { what, needs_mib: bytes.div_ceil(ALIGNMENT_BYTES).max(1) }
    }
}

/// Checks the layout, and returns the size in MiB of the smallest disk that it and all of its content fit on. Without
/// an image `image_bytes` is 0.
///
/// # Errors
/// When no disk has room for all of it. The message names the partition and the size that it needs.
pub fn smallest_disk_mib(layout: &Layout, image_bytes: u64) -> Result<u64> {
    for partition in &layout.partitions {
        let Size::Mib(mib) = partition.size else { continue };
        let (Content { what, needs_mib }, name) = (Content::of(partition, image_bytes), &partition.name);
        // A size of 0 is an error of the layout itself.
        if (1..needs_mib).contains(&mib) {
            bail!(
                "partition {name:?} has {mib} MiB, and {what} needs {needs_mib} MiB: set its size to \
                 \"{needs_mib}MiB\" or more"
            );
        }
    }
    if let Err(error @ LayoutError::Invalid(_)) = layout.place(LARGEST_DISK_MIB * ALIGNMENT_BYTES) {
        bail!(error);
    }
    let is_enough = |disk_mib: &u64| {
        let has_room = |placed: &Placed| {
            placed.size_bytes / ALIGNMENT_BYTES >= Content::of(&placed.partition, image_bytes).needs_mib
        };
        layout.place(disk_mib.saturating_mul(ALIGNMENT_BYTES)).is_ok_and(|placed| placed.iter().all(has_room))
    };
    // A larger disk makes no partition smaller, but for the MiB by which several shares are rounded at once.
    let (mut too_small, mut enough) = (0, LARGEST_DISK_MIB);
    if !is_enough(&enough) {
        bail!("the shares of the disk leave no room for the other partitions, however large it is");
    }
    while enough - too_small > 1 {
        let middle = too_small + (enough - too_small) / 2;
        if is_enough(&middle) { enough = middle } else { too_small = middle }
    }
    Ok(enough)
}

#[cfg(test)]
mod tests {
    use reflash::release::layout::{Layout, Role, Size};

    use super::smallest_disk_mib;
    use crate::embedded;

    const MIB: u64 = 1024 * 1024;

    fn with(role: Role, size: Size) -> Layout {
        let mut layout: Layout = toml::from_str(embedded::LAYOUT).unwrap();
        layout.partitions.iter_mut().filter(|partition| partition.role == role).for_each(|it| it.size = size);
        layout
    }

    #[test]
    fn the_example_layouts_fit_on_the_disk_that_they_say() {
        // 2 for the table, then the partitions; data takes what its file system needs.
        for (text, mib) in [
            (embedded::LAYOUT, 2 + 1 + 64 + 64 + 256 + 768 + 64),
            (embedded::LAYOUT_MBR, 2 + 64 + 256 + 768 + 64),
            (embedded::LAYOUT_TWO_SYSTEMS, 2 + 1 + 64 + 64 + 256 + 768 + 768 + 64),
        ] {
            let layout: Layout = toml::from_str(text).unwrap();
            assert_eq!(smallest_disk_mib(&layout, 768 * MIB).unwrap(), mib);
            let error = smallest_disk_mib(&layout, 768 * MIB + 1).unwrap_err().to_string();
            assert!(error.contains("\"system\" has 768 MiB, and the image needs 769 MiB"), "{error}");
        }
    }

    /// Such a layout was checked, signed and published, and refused by the first machine.
    #[test]
    fn a_partition_that_its_file_system_does_not_fit_into_is_named_with_the_size_that_it_needs() {
        for (role, name, needs) in [
            (Role::Esp, "esp", 48),
            (Role::State, "state", 48),
            (Role::Recovery, "recovery", 96),
            (Role::Data, "data", 64),
        ] {
            assert!(smallest_disk_mib(&with(role, Size::Mib(needs)), 0).is_ok(), "{name}");
            let error = smallest_disk_mib(&with(role, Size::Mib(needs - 1)), 0).unwrap_err().to_string();
            let said = format!(
                "partition \"{name}\" has {} MiB, and its file system needs {needs} MiB: set its size to \"{needs}MiB\"",
                needs - 1
            );
            assert!(error.contains(&said), "{error}");
        }
    }

    #[test]
    fn shares_of_the_disk_need_a_disk_that_is_large_enough() {
        assert_eq!(smallest_disk_mib(&with(Role::Recovery, Size::Percent(1)), 0).unwrap(), 9600 + 2);
        let layout = with(Role::System, Size::Percent(50));
        assert_eq!(smallest_disk_mib(&layout, 10_000 * MIB).unwrap(), 20_000 + 2);
        let mut all = with(Role::System, Size::Percent(99));
        all.partitions.iter_mut().filter(|it| it.role == Role::Recovery).for_each(|it| it.size = Size::Percent(1));
        let error = smallest_disk_mib(&all, 0).unwrap_err().to_string();
        assert!(error.contains("leave no room"), "{error}");
        let error = smallest_disk_mib(&with(Role::Data, Size::Mib(0)), 0).unwrap_err().to_string();
        assert!(error.contains("1% to 99%"), "{error}");
    }
}
