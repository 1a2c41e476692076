//! A factory reset, seen from the partition.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use reflash::boot::env::BootEnv;
use reflash::flash::target::DeviceTarget;
use reflash::jobs::factory_reset;

use crate::support::sample_image;

const MIB: u64 = 1 << 20;

#[test]
fn a_reset_gives_back_all_that_the_data_lay_on() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, grubenv) = (dir.path().join("data"), dir.path().join("grubenv"));
    let file = File::create_new(&disk).unwrap();
    file.write_all_at(&vec![0x55; 24 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let old_bytes = file.metadata().unwrap().blocks() * 512;
    assert!(old_bytes >= 24 * MIB);

    let template = sample_image(512, 3);
    let confirmed = || {
        let mut words = ["reset", "delete"].iter().map(|word| (*word).to_owned());
        factory_reset::ask(|_| {}, || words.next()).unwrap()
    };
    let env = BootEnv::new(&grubenv);
    let target = DeviceTarget::open(&disk).unwrap();
    // One that has lost a block is found out before the reset is begun, and before a byte of data is gone.
    let compressed = zstd::encode_all(&template[..], 1).unwrap();
    let cut = &compressed[..compressed.len() / 2];
    assert!(factory_reset::run(confirmed(), &env, &target, || Ok(cut)).is_err());
    assert!(factory_reset::pending(&env).unwrap().is_none());
    assert!(std::fs::read(&disk).unwrap().iter().all(|byte| *byte == 0x55));
    factory_reset::run(confirmed(), &env, &target, || Ok(&compressed[..])).unwrap();

    // A file takes a discard as leave to make a hole: so it can be seen.
    let content = std::fs::read(&disk).unwrap();
    assert!(content[..template.len()] == template);
    assert!(content[template.len()..].iter().all(|byte| *byte == 0));
    assert!(file.metadata().unwrap().blocks() * 512 < template.len() as u64 + MIB);
    assert!(factory_reset::pending(&env).unwrap().is_none());
}
