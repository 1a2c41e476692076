//! BIOS boot code of robots of today: replaced by that of the release, and mended, so that a cut at any instant starts.

use std::io::Cursor;

use reflash::disk::list::{Partition, PartitionTable};
use reflash::jobs::mend::pieces::BootPieces;
use reflash::jobs::mend::{MendError, boot_code};
use reflash::jobs::provision::bootstrap::names;
use reflash::jobs::provision::{DiskGeometry, DiskSkeleton};
use reflash::jobs::recovery::{self, BootChain};
use reflash::jobs::state::StatePartition;
use reflash::record::journal::Journal;
use reflash::release::layout::{Layout, Placed, Scheme};

use super::recording::Recording;
use crate::support::{Fixture, MemoryTarget, sample_image};
use reflash::fetch::Directory;

pub const DISK_BYTES: usize = 18 << 20;

/// `boot.img` as GRUB's is recognized.
fn boot_image(version: u8) -> Vec<u8> {
    let mut boot = vec![version; 512];
    let text = b"GRUB \0Geom\0Hard Disk\0Read\0 Error";
    boot[384..384 + text.len()].copy_from_slice(text);
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    boot
}

fn core_image(version: u8, sectors: u16) -> Vec<u8> {
    let mut core: Vec<u8> = (0..usize::from(sectors) * 512).map(|at| (at % 251) as u8 ^ version).collect();
    core[0x1e8..0x200].fill(0);
    core[0x1f4..0x1fc].copy_from_slice(&2_u64.to_le_bytes());
    core[0x1fc..0x1fe].copy_from_slice(&(sectors - 1).to_le_bytes());
    core
}

fn layout(scheme: Scheme) -> Layout {
    let size = |mib: u64| serde_json::json!(format!("{mib}MiB"));
    let roles: &[(&str, u64)] = match scheme {
        Scheme::Gpt => &[("biosboot", 1), ("esp", 2), ("state", 4), ("recovery", 4), ("system", 4)],
        Scheme::Mbr => &[("state", 4), ("recovery", 4), ("system", 4)],
    };
    let partition =
        |role: &str, size: serde_json::Value| serde_json::json!({ "role": role, "name": role, "size": size });
    let mut partitions: Vec<_> = roles.iter().map(|(role, mib)| partition(role, size(*mib))).collect();
    partitions.push(partition("data", "rest".into()));
    serde_json::from_value(serde_json::json!({ "table": scheme, "partitions": partitions })).unwrap()
}

/// A disk as provisioning leaves it, with a byte of its own in every other place.
fn provisioned(scheme: Scheme, version: u8) -> (Vec<u8>, PartitionTable) {
    provisioned_with(scheme, version, 512)
}

/// The same with logical blocks of so many bytes.
pub fn provisioned_with(scheme: Scheme, version: u8, block_bytes: u32) -> (Vec<u8>, PartitionTable) {
    let placed: Vec<Placed> = layout(scheme).place(DISK_BYTES as u64).unwrap();
    let geometry = DiskGeometry { table: scheme, placed: &placed, disk_bytes: DISK_BYTES as u64, block_bytes };
    let skeleton = DiskSkeleton::new(geometry, &boot_image(version), &core_image(version, 383)).unwrap();
    let mut disk = vec![0xd1; DISK_BYTES];
    for (offset, content) in skeleton.pieces() {
        disk[offset as usize..][..content.len()].copy_from_slice(content);
    }
    let parsed = reflash::disk::table::read(&mut Cursor::new(&disk), block_bytes).unwrap().unwrap();
    let partitions = parsed.partitions.into_iter().map(|entry| Partition { entry, node: None }).collect();
    (disk, PartitionTable { scheme, damaged_copy: false, damaged_primary: false, overlap: None, partitions })
}

/// Content of the core.img that a BIOS would run, by nothing but the first sector and the list in core.img. Where it
/// lies is no part of it.
fn started(disk: &[u8]) -> Vec<u8> {
    let field = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().unwrap()) as usize;
    assert_eq!(disk[510..512], [0x55, 0xaa]);
    let first = field(0x5c) * 512;
    let rest = usize::from(u16::from_le_bytes([disk[first + 0x1fc], disk[first + 0x1fd]]));
    let second = field(first + 0x1f4) * 512;
    let mut core = disk[first..first + 512].to_vec();
    core[0x1f4..0x1fc].copy_from_slice(&2_u64.to_le_bytes());
    core.extend_from_slice(&disk[second..second + rest * 512]);
    core
}

fn pieces(serial: u64, version: u8, scheme: Scheme) -> BootPieces {
    let core = if scheme == Scheme::Mbr { names::CORE_MBR } else { names::CORE_GPT };
    let files = vec![(names::BOOT_IMAGE.to_owned(), boot_image(version)), (core.to_owned(), core_image(version, 390))];
    BootPieces::new(serial, files)
}

/// The table and the partitions: all that does not belong to boot code.
fn others(disk: &[u8], scheme: Scheme) -> Vec<u8> {
    let (from, to) = if scheme == Scheme::Mbr { (512, 2032 * 512) } else { (1 << 20, 2 << 20) };
    [&disk[0x1b8..from.max(512)], &disk[to..]].concat()
}

/// <https://github.com/opencomputeproject/onie/issues/250>, a GRUB prompt after a power cut: boot code is replaced while
/// a machine depends on it.
#[test]
fn the_boot_code_of_a_robot_of_today_is_replaced_and_a_cut_at_any_sector_starts_one_of_both() {
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        let (before, table) = provisioned(scheme, 1);
        let disk = Recording::new(before.clone());
        assert!(boot_code::bring_bios(&disk, &table, &pieces(2, 2, scheme)).unwrap());
        assert!(started(&disk.content()) == core_image(2, 390));
        assert!(others(&disk.content(), scheme) == others(&before, scheme));
        assert_eq!(disk.writes().len(), 2, "core.img, then one sector");
        assert_eq!((disk.writes()[1].0, disk.writes()[1].1.len()), (0, 512));
        for cut in disk.cuts(&before, 150) {
            let now = started(&cut);
            assert!(now == core_image(1, 383) || now == core_image(2, 390));
            let again = Recording::new(cut);
            boot_code::bring_bios(&again, &table, &pieces(2, 2, scheme)).unwrap();
            assert!(again.content() == disk.content(), "the next run ends in the same place");
        }
        let written = disk.writes().len();
        assert!(!boot_code::bring_bios(&disk, &table, &pieces(2, 2, scheme)).unwrap());
        assert_eq!(disk.writes().len(), written, "nothing is written twice");
    }
}

#[test]
fn a_disk_that_does_not_keep_the_new_core_is_not_switched_to_it() {
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        let (before, table) = provisioned(scheme, 1);
        let mut disk = Recording::new(before.clone());
        disk.lying = Some(512..DISK_BYTES as u64);
        let error = boot_code::bring_bios(&disk, &table, &pieces(2, 2, scheme)).unwrap_err();
        assert!(matches!(error, MendError::ReadBack { .. }), "{error}");
        assert!(disk.content() == before);
    }
}

#[test]
fn an_mbr_whose_sector_is_lost_is_not_made_up() {
    let (mut before, table) = provisioned(Scheme::Mbr, 1);
    before[..512].fill(0);
    let disk = Recording::new(before.clone());
    let error = boot_code::bring_bios(&disk, &table, &pieces(2, 2, Scheme::Mbr)).unwrap_err();
    assert!(matches!(error, MendError::TableLost), "{error}");
    assert!(disk.content() == before);
}

/// A robot with a release whose boot code is of this version.
fn recover(fixture: &Fixture, disk: &Recording, table: &PartitionTable, state: &StatePartition) {
    let target = MemoryTarget::new(fixture.image.clone());
    let source = Directory::new(fixture.tree());
    let journal = Journal::silent();
    let mut job = fixture.job(&source, &target, Some(state), &journal);
    job.policy.allow_older = true;
    job.resources.boot_chain = Some(BootChain { disk, table, within: &|work| work() });
    recovery::run(&job, job.read_record().as_ref()).unwrap();
}

fn publish(fixture: &mut Fixture, serial: u64, version: u8) {
    let folder = fixture.dir.path().join("grub");
    std::fs::create_dir_all(&folder).unwrap();
    let files = [(names::BOOT_IMAGE, boot_image(version)), (names::CORE_GPT, core_image(version, 390))];
    let files = files.map(|(name, content)| {
        std::fs::write(fixture.dir.path().join(name), content).unwrap();
        (name.to_owned(), fixture.dir.path().join(name))
    });
    fixture.publish(sample_image(300, 1), |spec| {
        spec.files = files.into();
        spec.serial = Some(serial);
    });
}

/// Robots of today get the boot code of the release; what is damaged later is mended from the robot's own copy, without
/// the release; an older release takes nothing back.
#[test]
fn a_recovery_brings_the_boot_code_of_the_release_and_keeps_a_copy_to_mend_with() {
    let mut fixture = Fixture::new();
    publish(&mut fixture, 5, 2);
    let (before, table) = provisioned(Scheme::Gpt, 1);
    let (disk, directory) = (Recording::new(before), tempfile::tempdir().unwrap());
    let state = StatePartition::new(directory.path());
    recover(&fixture, &disk, &table, &state);
    assert!(started(&disk.content()) == core_image(2, 390));
    let kept = BootPieces::read(&state).unwrap();
    assert_eq!((kept.serial, kept.get(names::BOOT_IMAGE)), (5, Some(&boot_image(2)[..])));

    // A block of the core.img in use is lost.
    let mut damaged = disk.content();
    let place = u64::from_le_bytes(damaged[0x5c..0x64].try_into().unwrap()) as usize * 512;
    damaged[place + 8192..place + 12288].fill(0);
    let disk = Recording::new(damaged);
    reflash::jobs::mend::mend(&disk, Some(&table), Some(&kept), &Journal::silent());
    assert!(started(&disk.content()) == core_image(2, 390));

    let writes = disk.writes().len();
    std::fs::remove_dir_all(fixture.tree()).unwrap();
    publish(&mut fixture, 4, 1);
    recover(&fixture, &disk, &table, &state);
    assert_eq!(disk.writes().len(), writes, "an older release is installed again");

    // A copy that is damaged counts as none, and the release brings it anew.
    for entry in std::fs::read_dir(directory.path().join("boot")).unwrap() {
        std::fs::write(entry.unwrap().path(), b"damaged").unwrap();
    }
    assert_eq!(BootPieces::read(&state), None);
    publish(&mut fixture, 6, 3);
    recover(&fixture, &disk, &table, &state);
    assert!(started(&disk.content()) == core_image(3, 390));
    assert_eq!(BootPieces::read(&state).unwrap().serial, 6);
    assert_eq!(std::fs::read_dir(directory.path().join("boot")).unwrap().count(), 3, "the list and two files");
}
