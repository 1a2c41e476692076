//! Disks of other machines in a table of file systems. Pure.
//!
//! systemd waits for each disk of /etc/fstab and ends in an emergency shell without it, so a line that came with a
//! container, an image of a cloud or another robot keeps every machine of the fleet from starting.

/// Beginnings of what a disk of this machine is called by.
const ON_DISK: &[&str] = &["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "ID=", "/swap"];
/// Devices that are no disks.
const NO_DISKS: &[&str] = &["/dev/zram", "/dev/loop", "/dev/fuse", "/dev/shm", "/dev/nfs"];
/// Places that are the image's or the machine's own: a source has no disk for them, whatever the options say.
const OWN: &[&str] = &["/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/home", "/etc"];
/// Options by which a start does not depend on the disk.
const OPTIONAL: &[&str] = &["nofail", "noauto", "x-systemd.automount"];

/// Disk of a line of the table.
struct DiskLine {
    /// Whether it is mounted over what the image or the machine has of its own.
    is_own: bool,
    /// Whether a start goes on without it.
    is_optional: bool,
}

fn disk_line(line: &str) -> Option<DiskLine> {
    let mut fields = line.split_ascii_whitespace();
    let device = fields.next()?.trim_matches('"');
    let (place, kind, options) = (fields.next()?, fields.next(), fields.next());
    is_disk(device).then(|| DiskLine {
        is_own: OWN.contains(&plain(place).as_str()) && kind != Some("swap"),
        is_optional: options.unwrap_or_default().split(',').any(|option| OPTIONAL.contains(&option)),
    })
}

/// Whether a name of what is mounted is that of a disk.
pub fn is_disk(device: &str) -> bool {
    let begins = |list: &[&str]| list.iter().any(|prefix| device.starts_with(prefix));
    begins(ON_DISK) && !begins(NO_DISKS)
}

/// A place without what means nothing in it: slashes at the end and in a row, and names `.`.
fn plain(place: &str) -> String {
    let names: Vec<&str> = place.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    format!("/{}", names.join("/"))
}

/// Returns the table of a source without the lines of disks that no robot has, and these lines, each in one form.
#[must_use]
pub fn without_disks(table: &str) -> (String, Vec<String>) {
    let is_of_another = |line: &&str| disk_line(line).is_some_and(|disk| disk.is_own || !disk.is_optional);
    let (dropped, kept): (Vec<&str>, Vec<&str>) = table.lines().partition(is_of_another);
    (kept.iter().map(|line| format!("{line}\n")).collect(), dropped.into_iter().map(in_one_form).collect())
}

/// Returns what is wrong with a table that a recipe makes, or nothing.
#[must_use]
pub fn fault(table: &str) -> Option<String> {
    let needed = table.lines().filter(|line| disk_line(line).is_some_and(|disk| !disk.is_optional));
    let lines: Vec<String> = needed.map(in_one_form).collect();
    (!lines.is_empty()).then(|| {
        format!(
            "/etc/fstab of the image needs disks, and every robot without them would start into an emergency shell: {}; \
             give each line the option nofail, or leave it out (the partitions of the layout are mounted without one)",
            lines.join("; ")
        )
    })
}

fn in_one_form(line: &str) -> String {
    line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{fault, without_disks};

    /// Images of clouds, and those of LXD that are made from them, carry such a table.
    #[test]
    fn disks_of_another_machine_leave_the_table() {
        let table = "# a\nLABEL=cloudimg-rootfs\t/\text4\tdefaults\t0 1\nUUID=1 /boot/efi vfat x 0 1\n/dev/sdb1 none swap sw\n\
                     tmpfs /tmp tmpfs x\nUUID=2 /media/store ext4 nofail\n";
        let (kept, dropped) = without_disks(table);
        assert_eq!(kept, "# a\ntmpfs /tmp tmpfs x\nUUID=2 /media/store ext4 nofail\n");
        assert_eq!(dropped.len(), 3);
        assert_eq!(dropped[0], "LABEL=cloudimg-rootfs / ext4 defaults 0 1");
    }

    #[test]
    fn every_place_counts_in_every_spelling_and_options_that_let_a_start_go_on_are_known() {
        for line in [
            "UUID=11 /var/log ext4 defaults 0 2",
            "UUID=12 /opt ext4 defaults 0 2",
            "UUID=13 /srv ext4 defaults",
            "/dev/sdb1 /data xfs defaults 0 0",
            "UUID=14 /home/ ext4 nofail 0 2",
            "\"LABEL=x\" //var/./ ext4 nofail",
            "PARTLABEL=x /my\\040disk ext4",
            "/dev/mapper/vg-data /data ext4 defaults,nofailing 0 0",
            "/swapfile none swap sw 0 0",
        ] {
            assert_eq!(without_disks(line).1.len(), 1, "{line}");
        }
        for line in [
            "# UUID=11 /var/log ext4 defaults 0 2",
            "",
            "nfs:/x /mnt/n nfs defaults 0 0",
            "/data/x /y none bind 0 0",
            "/dev/sdb1 /data xfs defaults,nofail 0 0",
            "/dev/sdb1 /data xfs noauto",
            "/dev/sdb1 /data xfs x-systemd.automount,rw",
            "/dev/sdb1 none swap sw,nofail",
            "/dev/zram0 none swap defaults 0 0",
            "tmpfs /var/log tmpfs size=1m 0 0",
            "/dev/sdb1",
        ] {
            assert_eq!(without_disks(line).1.len(), 0, "{line}");
        }
        assert!(fault("UUID=1 /data ext4 defaults").unwrap().contains("UUID=1 /data ext4 defaults; give"));
        assert_eq!(fault("tmpfs /x tmpfs defaults\nUUID=1 /home ext4 nofail\n"), None);
    }
}
