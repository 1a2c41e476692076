//! What an image ships to `/var`, as the first step of the system's boot brings it: to data, or to memory where data is
//! lost. The rules themselves are tested with the builder, in `tests/shipped.rs`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use reflash::pid1::system::plan::BootPlaces;
use reflash::pid1::system::{RootParts, put_together};
use reflash::record::start::{EtcFrom, StartRecord, VarFrom};
use reflash::sys::mount;

use crate::isolated::{isolated, run};
use crate::support::attached::Attached;

/// Directory of a deployment whose list has a directory, a key, a page that is renewed, and a removal in /etc.
fn robot(dir: &Path) -> BootPlaces {
    let at = |name: &str| dir.join(name);
    for directory in ["sysroot/etc", "sysroot/var", "sysroot/usr/share/reflash/shipped/content", "data", "run"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    fs::write(at("sysroot/etc/default"), "default").unwrap();
    let shipped = at("sysroot/usr/share/reflash/shipped");
    fs::write(shipped.join("content/page"), "page 2").unwrap();
    let directory = |path: &str, mode: u32| {
        format!("{{\"path\":\"{path}\",\"digest\":\"d\",\"node\":{{\"kind\":\"directory\",\"mode\":{mode}}}}}\n")
    };
    let directories = directory("var/lib", 0o755) + &directory("var/lib/demo", 0o2750);
    let page = "{\"path\":\"var/lib/demo/page\",\"rule\":\"version\",\"digest\":\"2\",\"node\":{\"mode\":416,\"uid\":7,\
                \"size_bytes\":6,\"content\":\"page\",\"data\":[[0,6]]}}\n";
    let removal = "{\"path\":\"etc/stale\",\"rule\":\"remove\"}\n";
    fs::write(shipped.join("list.jsonl"), format!("{{\"format\":1}}\n{directories}{page}{removal}")).unwrap();
    fs::write(shipped.join("each-start.jsonl"), format!("{{\"format\":1,\"image\":\"i\"}}\n{directories}")).unwrap();
    BootPlaces { root: at("sysroot"), data: at("data"), run: at("run") }
}

fn start<T>(
    places: &BootPlaces,
    data: Option<&Path>,
    safe: Option<u32>,
    look: impl FnOnce(&Path, &StartRecord) -> T,
) -> T {
    let fsck = Path::new("/usr/sbin/e2fsck");
    let parts = RootParts { places, data, renewal: None, fsck, safe, memory_bytes: 512 << 20 };
    let mut record = StartRecord::default();
    put_together(&parts, &mut record);
    let result = look(&places.root, &record);
    for place in [&places.root, &places.data, &places.run] {
        mount::detach_below(place);
    }
    result
}

fn assert_has_page(root: &Path, record: &StartRecord) {
    let page = root.join("var/lib/demo/page");
    assert_eq!(fs::read_to_string(&page).unwrap(), "page 2", "{record:?}");
    let found = page.metadata().unwrap();
    assert_eq!((found.permissions().mode() & 0o7777, found.uid()), (0o640, 7));
    assert_eq!(root.join("var/lib/demo").metadata().unwrap().permissions().mode() & 0o7777, 0o2750);
}

/// <https://github.com/ostreedev/ostree/issues/3222>
#[test]
#[ignore = "needs root: loop devices; cargo xtask test --tier root"]
fn what_an_image_ships_is_there_before_the_system_runs_whatever_var_is_made_of() {
    isolated("field::shipped::what_an_image_ships_is_there_before_the_system_runs_whatever_var_is_made_of", || {
        let dir = tempfile::tempdir().unwrap();
        let places = robot(dir.path());
        let image = dir.path().join("data.img");
        run("mke2fs", &["-q", "-F", "-t", "ext4", image.to_str().unwrap(), "32m"]);
        let device = Attached::new(&image, 512);
        for (data, safe, var) in [
            (Some(device.path()), None, VarFrom::Data),
            (Some(device.path()), Some(1), VarFrom::Memory),
            (None, None, VarFrom::Memory),
            (Some(device.path()), None, VarFrom::Data),
        ] {
            start(&places, data, safe, |root, record| {
                assert_eq!(record.var, var, "{record:?}");
                assert_has_page(root, record);
            });
        }
        // A machine of its own: what it changed stays, and what the release removes of /etc shows the image's.
        start(&places, Some(device.path()), None, |root, record| {
            assert_eq!((record.etc, record.is_whole()), (EtcFrom::Data, true), "{record:?}");
            fs::write(root.join("var/lib/demo/page"), "mine").unwrap();
            fs::remove_file(root.join("var/lib/reflash/shipped.json")).unwrap();
            fs::write(root.join("etc/stale"), "stale").unwrap();
        });
        start(&places, Some(device.path()), None, |root, record| {
            assert!(record.is_whole(), "{record:?}");
            // Without a record the list is carried out again, and what was there is kept aside.
            assert_has_page(root, record);
            assert!(!root.join("etc/stale").exists());
            // The page was not there before the release, which was never good; the file in /etc was.
            assert_eq!(fs::read_dir(root.join("var/lib/reflash/aside")).unwrap().count(), 3);
            assert_eq!(fs::read_to_string(root.join("etc/default")).unwrap(), "default");
        });
        // A list that cannot be read costs what it would have brought, and no start.
        fs::write(places.root.join("usr/share/reflash/shipped/each-start.jsonl"), "noise").unwrap();
        start(&places, Some(device.path()), None, |root, record| {
            assert_eq!((record.var, record.etc), (VarFrom::Data, EtcFrom::Data));
            assert!(record.lost.iter().any(|loss| loss.contains("line 1 of the list")), "{record:?}");
            assert_has_page(root, record);
        });
        // Nor does a process that it ended before.
        fs::write(places.run.join("shipping"), "").unwrap();
        start(&places, Some(device.path()), None, |_, record| {
            assert_eq!((record.var, record.etc), (VarFrom::Data, EtcFrom::Data));
            assert!(record.lost.iter().any(|loss| loss.contains("is not brought")), "{record:?}");
        });
    });
}
