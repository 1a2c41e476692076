//! Memory of the agent, measured by the kernel on the real binary.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use reflash::boot::env::BootEnv;
use reflash::flash::target::DeviceTarget;
use reflash::flash::undo;
use reflash::release::index::{Index, MAX_CHUNKS, MIN_CHUNK_BYTES};
use reflash::release::manifest::{TrustedKeys, object_path};
use reflash_release::{self as release, Spec, keygen};

use crate::support::resident::peak_resident_kib;
use crate::support::server::{TestServer, object, status};

/// Chunks of each release: a quarter of what there may be, an image of 4 GiB with chunks of 64 KiB. While a release is
/// written over another one that is kept, peak memory grows by 0.6 KiB a chunk, so that [`MAX_CHUNKS`] of them, which
/// were not measured, need more than the 128 MiB that the design allows.
const CHUNKS: u64 = MAX_CHUNKS / 4;
/// Memory that the agent takes at most with so many: 65.3 MiB were measured.
const MAX_RESIDENT_KIB: u64 = 72 * 1024;
/// Room for what is kept for an undo, bytes.
const UNDO_BYTES: u64 = 512 << 20;

/// The installed release, the one that is kept until then, and the new one have an index each, and no chunk in common;
/// each chunk is read, kept, fetched, written and read back.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_update_that_is_kept_for_an_undo_takes_little_memory_for_each_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // One block in each chunk, and a disk may take long to free so many pieces of a file.
    let images = tempfile::tempdir_in("/dev/shm").unwrap();
    keygen::generate(&path("keys"), None).unwrap();
    fs::write(path("machine.toml"), "[machine]\nproduct = \"demo\"\nhardware = \"unit-a\"\n").unwrap();
    fs::create_dir(path("state")).unwrap();
    let image_bytes = CHUNKS * u64::from(MIN_CHUNK_BYTES);
    File::create(path("target")).unwrap().set_len(image_bytes + UNDO_BYTES).unwrap();
    let served = dir.path().to_owned();
    let server =
        TestServer::start(move |request| match fs::read(served.join(request.target().trim_start_matches('/'))) {
            Ok(content) => object(request, &content),
            Err(_) => status("404 Not Found"),
        });
    for version in 1..=3 {
        let serial = publish(dir.path(), images.path(), version);
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflash"));
        command.arg("flash").args(["--url", &server.url()]);
        for (option, name) in
            [("--target", "target"), ("--state", "state"), ("--config", "machine.toml"), ("--keys", "keys")]
        {
            command.arg(option).arg(path(name));
        }
        let peak_kib = peak_resident_kib(&mut command);
        eprintln!("peak resident memory of the flash of release {version}: {peak_kib} KiB");
        assert!(peak_kib > 0 && peak_kib <= MAX_RESIDENT_KIB, "release {version}: {peak_kib} KiB");
        // What `reflash good` writes: the next release is written over a good one, which is kept.
        let env = BootEnv::new(&path("state").join("grubenv"));
        env.update(&[("reflash_good", Some(&*serial.to_string())), ("reflash_boot_ok", Some("1"))]).unwrap();
        let mut keys = TrustedKeys::default();
        let public = keygen::KeyFiles::within(&path("keys")).public;
        keys.add("test", &fs::read_to_string(public).unwrap()).unwrap();
        let target = DeviceTarget::open(&path("target")).unwrap();
        let kept = undo::possible(&target, &keys).map(|kept| kept.version);
        assert_eq!(kept.ok(), (version > 1).then(|| (version - 1).to_string()));
    }
}

/// Publishes a release of [`CHUNKS`] chunks, none of which another release has. Returns its serial.
fn publish(dir: &Path, images: &Path, version: u64) -> u64 {
    let image = images.join("system.img");
    let file = File::create(&image).unwrap();
    file.set_len(CHUNKS * u64::from(MIN_CHUNK_BYTES)).unwrap();
    for chunk in 0..CHUNKS {
        let content = [version.to_le_bytes(), (chunk + 1).to_le_bytes()].concat();
        file.write_all_at(&content, chunk * u64::from(MIN_CHUNK_BYTES)).unwrap();
    }
    let spec = Spec {
        product: "demo".into(),
        hardware: vec!["unit-a".into()],
        channel: "stable".into(),
        version: version.to_string(),
        serial: None,
        image,
        ostree: None,
        files: Vec::new(),
        layout: None,
        chunk_bytes: Some(MIN_CHUNK_BYTES),
        level: 1,
        created_unix_s: None,
        allow: Vec::new(),
    };
    let key = keygen::load_secret(&keygen::KeyFiles::within(&dir.join("keys")).secret).unwrap();
    let released = release::build(&spec, &key, &dir.join("release")).unwrap();
    let index = fs::read(dir.join("release").join(object_path(&released.manifest.images[0].index.blake3))).unwrap();
    assert_eq!(u64::from(Index::from_object(&index).unwrap().stored_count()), CHUNKS);
    released.manifest.serial
}
