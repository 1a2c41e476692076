use super::{
    BOOT_TEXT, BootCodeError, BootImages, SECTOR_BYTES, Sectors, core_image, core_in_use, first_sector, switch,
};

#[test]
fn the_disks_own_bytes_stay_and_the_addresses_are_set() {
    let mut boot = [0x11; 512];
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut disk = [0x22; 512];
    disk[510..].copy_from_slice(&[0x55, 0xaa]);
    let sector = first_sector(&boot, &disk, 2048).unwrap();
    assert_eq!(sector[0x5c..0x64], 2048_u64.to_le_bytes());
    assert_eq!(sector[0x66..0x68], [0x90, 0x90]);
    assert!(sector[0x1b8..0x1fe].iter().all(|byte| *byte == 0x22));
    assert!(sector[..0x5c].iter().chain(&sector[0x68..0x1b8]).all(|byte| *byte == 0x11));
    assert_eq!(sector[510..], [0x55, 0xaa]);
    assert_eq!(first_sector(&boot[..500], &disk, 1), Err(BootCodeError::BootImage(500)));
    assert_eq!(first_sector(&[0; 512], &disk, 1), Err(BootCodeError::BootImage(512)));
}

#[test]
fn core_points_at_its_second_sector_and_must_fit() {
    let core = core_image(&[0; 2048], 2048, 1 << 20).unwrap();
    assert_eq!(core[0x1f4..0x1fc], 2049_u64.to_le_bytes());
    assert!(core_image(&[0; 2048], 2048, 1024).is_err());
}

/// What the BIOS, `boot.img` and the first sector of `core.img` do, and nothing else: the bytes that are then run.
fn loaded(disk: &[u8]) -> Option<Vec<u8>> {
    let field = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().unwrap());
    if disk[510..512] != [0x55, 0xaa] || !disk[..446].windows(BOOT_TEXT.len()).any(|text| text == BOOT_TEXT) {
        return None;
    }
    let core = usize::try_from(field(0x5c)).ok()? * 512;
    let mut content = disk.get(core..core + 512)?.to_vec();
    let mut entry = core + 512 - 12;
    loop {
        let sectors = usize::from(u16::from_le_bytes([disk[entry + 8], disk[entry + 9]]));
        if sectors == 0 {
            break;
        }
        let start = usize::try_from(field(entry)).ok()? * 512;
        content.extend_from_slice(disk.get(start..start + sectors * 512)?);
        entry -= 12;
    }
    // Where it lies is no part of what it is.
    content[0x1f4..0x1fc].copy_from_slice(&2_u64.to_le_bytes());
    Some(content)
}

fn boot_image(version: u8) -> Vec<u8> {
    let mut boot = vec![version; 512];
    boot[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
    boot[384..384 + BOOT_TEXT.len()].copy_from_slice(BOOT_TEXT);
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    boot
}

fn grub_core(version: u8, sectors: u16) -> Vec<u8> {
    let mut core = vec![version; usize::from(sectors) * 512];
    for (at, byte) in (0_u8..=255).cycle().zip(&mut core) {
        *byte = byte.wrapping_add(at);
    }
    core[0x1e8..0x200].fill(0);
    core[0x1f4..0x1fc].copy_from_slice(&2_u64.to_le_bytes());
    core[0x1fc..0x1fe].copy_from_slice(&(sectors - 1).to_le_bytes());
    core[0x1fe..0x200].copy_from_slice(&[0x20, 8]);
    core
}

const DISK_SECTORS: usize = 4200;

fn sector(disk: &[u8], lba: u64) -> [u8; SECTOR_BYTES] {
    disk[usize::try_from(lba).unwrap() * 512..][..512].try_into().unwrap()
}

/// A disk as it is provisioned, with something of its own in each sector.
fn provisioned(region: &Sectors, version: u8, sectors: u16) -> Vec<u8> {
    let mut disk = vec![0xee; DISK_SECTORS * 512];
    let core = core_image(&grub_core(version, sectors), region.start, u64::MAX).unwrap();
    let first = first_sector(&boot_image(version), &[0x77; 512], region.start).unwrap();
    disk[..512].copy_from_slice(&first);
    disk[usize::try_from(region.start).unwrap() * 512..][..core.len()].copy_from_slice(&core);
    disk
}

fn plan(disk: &[u8], region: &Sectors, version: u8, sectors: u16) -> Result<Vec<(u64, Vec<u8>)>, BootCodeError> {
    let (boot, core) = (boot_image(version), grub_core(version, sectors));
    let mut read = |lba: u64, count: u64| {
        let start = usize::try_from(lba).ok()?.checked_mul(512)?;
        disk.get(start..start.checked_add(usize::try_from(count).ok()?.checked_mul(512)?)?).map(<[u8]>::to_vec)
    };
    let switch = switch(BootImages { boot: &boot, core: &core }, &sector(disk, 0), region, &mut read)?;
    let writes = switch.map(|switch| switch.core.into_iter().chain([(0, switch.first_sector.to_vec())]).collect());
    Ok(writes.unwrap_or_default())
}

fn apply(disk: &mut [u8], (lba, content): &(u64, Vec<u8>), sectors: usize) {
    let length = content.len().min(sectors * 512);
    disk[usize::try_from(*lba).unwrap() * 512..][..length].copy_from_slice(&content[..length]);
}

/// In the BIOS boot partition of a GPT and in the gap of an MBR: at any instant one whole core.img is loaded, and never
/// a sector outside the region changes but the first.
#[test]
fn a_cut_at_any_sector_loads_the_old_or_the_new_core() {
    for region in [2048..4096, 1..2040] {
        let mut disk = provisioned(&region, 1, 383);
        let mut version = 1;
        for sectors in [383, 390, 200] {
            let (old, new) = (loaded(&disk).unwrap(), grub_core(version + 1, sectors));
            let writes = plan(&disk, &region, version + 1, sectors).unwrap();
            assert_eq!(writes.len(), 2, "core.img, then the first sector");
            let mut cut = disk.clone();
            for write in &writes {
                for done in 0..=write.1.len() / 512 {
                    let mut now = cut.clone();
                    apply(&mut now, write, done);
                    let found = loaded(&now).unwrap();
                    assert!(found == old || found == new, "cut after {done} sectors at {}", write.0);
                    assert_eq!(found == new, write.0 == 0 && done == 1);
                    if done % 50 == 0 {
                        // The next run ends in the same place.
                        for write in plan(&now, &region, version + 1, sectors).unwrap() {
                            apply(&mut now, &write, usize::MAX / 512);
                        }
                        assert!(loaded(&now).unwrap() == new);
                        assert_eq!(plan(&now, &region, version + 1, sectors).unwrap(), []);
                    }
                }
                apply(&mut cut, write, usize::MAX / 512);
            }
            let outside = |disk: &[u8]| {
                let (from, to) = (usize::try_from(region.start).unwrap(), usize::try_from(region.end).unwrap());
                [&disk[512..from * 512], &disk[to * 512..]].concat()
            };
            assert!(outside(&cut) == outside(&disk) && cut[0x1b8..0x1fe] == disk[0x1b8..0x1fe]);
            (disk, version) = (cut, version + 1);
        }
    }
}

#[test]
fn damage_of_the_core_in_use_or_of_the_first_sector_is_mended() {
    let region = 2048..4096;
    let whole = provisioned(&region, 1, 383);
    for (what, at, len, fill) in [
        ("the first sector's code", 0, 446, 0),
        ("the first sector's code", 0, 440, 0xff),
        ("where core.img is", 0x5c, 8, 0xaa),
        ("a part of boot.img", 0x70, 20, 0),
        ("the list of core.img", 2048 * 512 + 0x1f4, 12, 0),
        ("the first 4 KiB of core.img", 2048 * 512, 4096, 0),
        ("the last sector of core.img", (2048 + 382) * 512, 512, 0xff),
    ] {
        let mut disk = whole.clone();
        disk[at..at + len].fill(fill);
        if fill == 0 && len == 446 {
            disk[440..446].copy_from_slice(&whole[440..446]);
        }
        let writes = plan(&disk, &region, 1, 383).unwrap();
        assert!(!writes.is_empty(), "{what}");
        writes.iter().for_each(|write| apply(&mut disk, write, usize::MAX / 512));
        assert!(loaded(&disk) == Some(grub_core(1, 383)), "{what}");
        assert_eq!(plan(&disk, &region, 1, 383).unwrap(), [], "{what}");
        assert_eq!(disk[0x1b8..0x1fe], whole[0x1b8..0x1fe]);
    }
}

#[test]
fn a_gap_that_is_too_small_keeps_what_is_there() {
    let region = 1..500;
    let disk = provisioned(&region, 1, 383);
    assert_eq!(plan(&disk, &region, 1, 383).unwrap(), [], "the same is there");
    let error = plan(&disk, &region, 2, 383).unwrap_err();
    assert_eq!(error, BootCodeError::NoSecondPlace { image_bytes: 383 * 512, region_bytes: 499 * 512 });
    // With nothing left to lose, the first place is as good as any.
    let mut blank = disk;
    blank[..440].fill(0);
    assert_eq!(plan(&blank, &region, 2, 383).unwrap()[0].0, 1);
}

#[test]
fn what_starts_something_else_is_left_alone() {
    let region = 2048..4096;
    let mut disk = provisioned(&region, 1, 383);
    disk[384..388].copy_from_slice(b"LILO");
    assert_eq!(plan(&disk, &region, 1, 383), Err(BootCodeError::Foreign));
    let mut elsewhere = provisioned(&region, 3, 383);
    elsewhere[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
    assert_eq!(plan(&elsewhere, &region, 1, 383), Err(BootCodeError::Foreign));
}

#[test]
fn the_core_of_the_installed_grub_is_followed() {
    let region = 2048..4096;
    let disk = provisioned(&region, 1, 383);
    let mut read = |lba: u64, count: u64| {
        let start = usize::try_from(lba).ok()? * 512;
        disk.get(start..start + usize::try_from(count).ok()? * 512).map(<[u8]>::to_vec)
    };
    assert_eq!(core_in_use(&sector(&disk, 0), &mut read), Some(2048..2048 + 383));
    assert_eq!(core_in_use(&[0; 512], &mut read), None);
}
