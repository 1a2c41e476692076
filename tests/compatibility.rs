//! Files of version 0.1.0, kept in `tests/fixtures`, read and written by today's code: the policy of
//! `docs/compatibility.md`, checked.
//!
//! Where a command of the agent touches a file, the test runs the command, so that it keeps its meaning when the
//! library is rearranged. A test that fails here says that machines in the field would no longer be understood: the
//! code is wrong, not the fixture.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use reflash::boot::decide::Recoveries;
use reflash::boot::env::BootEnv;
use reflash::boot::grubenv::{GrubEnv, names};
use reflash::boot::slots::{Slot, Trial};
use reflash::machine::config::{Action, Config, InterfaceSelector, Layer};
use reflash::machine::hostname;
use reflash::pid1::system::Arguments;
use reflash::record::blackbox::{Attempt, AttemptOutcome, BlackBox, Marks};
use reflash::record::journal::{Journal, Phase};
use reflash::release::digest::{Digest, hex};
use reflash::release::index::{ChunkContent, Index, Pack};
use reflash::release::layout::{Role, Scheme};
use reflash::release::manifest::{Authentic, Manifest, Object, TrustedKeys, object_path};
use reflash::release::weak_hashes::WeakHashes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The target partition is larger than the image, as on a robot.
const PARTITION_BYTES: usize = 1024 * 1024;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn bytes(path: &str) -> Vec<u8> {
    let path = fixture(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text(path: &str) -> String {
    String::from_utf8(bytes(path)).unwrap()
}

fn json_of(path: &str) -> Value {
    serde_json::from_slice(&bytes(path)).unwrap()
}

fn digest(hex: &str) -> Digest {
    hex.parse().unwrap()
}

fn trusted_keys() -> TrustedKeys {
    let mut keys = TrustedKeys::default();
    keys.add("reflash.pub", &text("keys/reflash.pub")).unwrap();
    keys
}

/// Authenticates and parses the manifest in a folder of the fixtures.
fn manifest_in(folder: &str) -> (Authentic, Manifest) {
    let signature = text(&format!("{folder}/manifest.json.minisig"));
    let signed = trusted_keys().authenticate(bytes(&format!("{folder}/manifest.json")), &signature).unwrap();
    let manifest = Manifest::parse(&signed).unwrap();
    (signed, manifest)
}

fn object(named: &Object) -> Vec<u8> {
    let content = bytes(&format!("release/{}", object_path(&named.blake3)));
    assert_eq!((Digest::of(&content), content.len() as u64), (named.blake3, named.size_bytes));
    content
}

/// The index of the newer release.
fn index() -> Index {
    Index::from_object(&object(&manifest_in("release/stable").1.images[0].index)).unwrap()
}

/// Decodes every chunk of an image from its packs, each checked against its digest.
fn image_of(index: &Index) -> Vec<u8> {
    let mut image = Vec::new();
    for chunk in 0..index.chunk_count() {
        let range = index.chunk_range(chunk);
        let bytes = usize::try_from(range.end - range.start).unwrap();
        let content = match index.chunk_content(chunk) {
            ChunkContent::Zero => vec![0; bytes],
            ChunkContent::Stored(stored) => {
                let location = index.location(stored);
                let Pack { digest, size_bytes } = index.packs()[location.pack as usize];
                let pack = object(&Object { blake3: digest, size_bytes });
                let place =
                    usize::try_from(location.range.start).unwrap()..usize::try_from(location.range.end).unwrap();
                zstd::bulk::decompress(&pack[place], bytes).unwrap()
            }
        };
        assert!(index.matches(chunk, &content), "chunk {chunk}");
        image.extend_from_slice(&content);
    }
    image
}

/// A copy of the state partition that may be written to.
fn state_copy() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("installed")).unwrap();
    let files = ["grubenv", "blackbox", "events.jsonl"];
    let installed = ["manifest.json", "manifest.json.minisig", "system.idx"].map(|name| format!("installed/{name}"));
    for file in files.into_iter().map(str::to_owned).chain(installed) {
        fs::write(directory.path().join(&file), bytes(&format!("state/{file}"))).unwrap();
    }
    directory
}

/// Runs the agent as a person would, with the state partition `state`.
fn reflash(state: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflash"));
    command.args(arguments).arg("--state").arg(state).arg("--keys").arg(fixture("keys")).arg("--json");
    command.output().unwrap()
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A configuration file for commands, which reports to `url`.
fn config_file(directory: &Path, url: &str) -> String {
    let path = directory.join("reflash.toml");
    let tree = fixture("release");
    let text = format!(
        "[release]\nurls = ['file://{}']\n[machine]\nproduct = 'demo-robot'\nhardware = 'UP-CHT01'\n\
         [report]\nurl = '{url}'\n",
        tree.display()
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A server that takes every post; the bodies arrive in order.
fn report_server() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/report", listener.local_addr().unwrap());
    let (sender, bodies) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(body) = read_post(&mut reader) {
                    if sender.send(body).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, bodies)
}

fn read_post(reader: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    reader.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()?;
    Some(serde_json::from_slice(&body).unwrap())
}

/// Everything that a reader of version 0.1.0 looks for is there with the same value. Members may have been added.
fn assert_holds(now: &Value, then: &Value, place: &str) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            for (name, value) in then {
                let found = now.get(name).unwrap_or_else(|| panic!("{place}.{name} is gone"));
                assert_holds(found, value, &format!("{place}.{name}"));
            }
        }
        (Value::Array(now), Value::Array(then)) => {
            assert_eq!(now.len(), then.len(), "{place}");
            now.iter().zip(then).enumerate().for_each(|(at, (now, then))| {
                assert_holds(now, then, &format!("{place}[{at}]"));
            });
        }
        _ => assert_eq!(now, then, "{place}"),
    }
}

fn member_names(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_manifest_says_what_it_said_and_is_written_byte_for_byte() {
    let (signed, manifest) = manifest_in("release/stable");
    assert_eq!(signed.key_name(), "reflash.pub");
    assert_eq!((manifest.format, manifest.serial, manifest.created_unix_s), (1, 5, 1_793_600_000));
    assert_eq!((manifest.product.as_str(), manifest.channel.as_str()), ("demo-robot", "stable"));
    assert_eq!((manifest.version.as_str(), manifest.minimum_agent.as_str()), ("2026.11", "0.1.0"));
    assert_eq!(manifest.hardware, ["NUC11", "UP-*"]);
    manifest.check_fit("demo-robot", "UP-CHT01", "stable").unwrap();

    let [image] = manifest.images.as_slice() else { panic!("{:?}", manifest.images) };
    assert_eq!((image.name.as_str(), image.size_bytes), ("system", 155_648));
    assert_eq!(image.sha256, hex(&Sha256::digest(image_of(&index()))));
    assert_eq!(
        (image.ostree_commit.as_deref(), image.ostree_ref.as_deref()),
        (Some("b".repeat(64).as_str()), Some("demo/amd64/stable"))
    );
    let weak_hashes = image.weak_hashes.unwrap();
    let expected = digest("b5fd674b5b2ffe9c71a6a1252726562d1151ed0a3f4f46346a1c233181bc6c4e");
    assert_eq!((weak_hashes.blake3, weak_hashes.size_bytes), (expected, 216));

    let layout = manifest.layout.as_ref().unwrap();
    assert_eq!(layout.table, Scheme::Gpt);
    let roles: Vec<Role> = layout.partitions.iter().map(|partition| partition.role).collect();
    assert_eq!(roles, [Role::BiosBoot, Role::Esp, Role::State, Role::Recovery, Role::System, Role::Data]);
    let placed = layout.place(8 << 30).unwrap();
    let mib: Vec<(u64, u64)> = placed.iter().map(|place| (place.offset_bytes >> 20, place.size_bytes >> 20)).collect();
    assert_eq!(mib, [(1, 1), (2, 64), (66, 64), (130, 256), (386, 768), (1154, 7037)]);
    let files: Vec<(&str, u64)> =
        manifest.files.iter().map(|file| (file.name.as_str(), file.object.size_bytes)).collect();
    assert_eq!(files, [("recovery/vmlinuz", 9), ("recovery/initramfs.img", 13), ("recovery/grub.cfg", 17)]);

    // It has a member that agents of today pass over: the patches of version 0.1.0, in place of which there are deltas.
    let without_patches = |bytes: &[u8]| {
        let mut manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        let patches = manifest["images"][0].as_object_mut().unwrap().remove("patches");
        (manifest, patches.is_some())
    };
    let written = serde_json::to_vec_pretty(&manifest).unwrap();
    assert_eq!(without_patches(&written).0, without_patches(signed.bytes()).0);
    assert!(without_patches(signed.bytes()).1);
}

#[test]
fn a_chunk_index_says_what_it_said_and_is_written_byte_for_byte() {
    let index = index();
    assert_eq!((index.chunk_bytes(), index.image_bytes()), (16_384, 155_648));
    let pack = digest("d244778a812860ffcbca0913d8470370391d5786f5627ef5492cc864fb5caf8e");
    assert_eq!(index.packs(), [Pack { digest: pack, size_bytes: 8125 }]);
    let chunks: Vec<Option<u32>> = (0..index.chunk_count())
        .map(|chunk| match index.chunk_content(chunk) {
            ChunkContent::Zero => None,
            ChunkContent::Stored(stored) => Some(stored),
        })
        .collect();
    assert_eq!(chunks, [Some(0), Some(1), Some(2), Some(3), None, Some(1), Some(4), Some(5), Some(6), Some(7)]);
    let ends: Vec<u64> = (0..index.stored_count()).map(|stored| index.location(stored).range.end).collect();
    assert_eq!(ends, [1079, 2158, 3254, 4333, 5412, 6492, 7575, 8125]);
    assert_eq!(*index.digest(2), digest("f64b82ad3721c8456534dde8e2f3009ca04b2a1e603e0759bc7bc07f50ce07a4"));

    let stored = object(&manifest_in("release/stable").1.images[0].index);
    assert_eq!(index.encode(), zstd::stream::decode_all(stored.as_slice()).unwrap());
}

#[test]
fn weak_hashes_say_what_they_said_and_are_written_byte_for_byte() {
    let index = index();
    let stored = object(&manifest_in("release/stable").1.images[0].weak_hashes.unwrap());
    let weak_hashes = WeakHashes::decode(stored.clone(), &index).unwrap();
    let of = |stored| weak_hashes.of(stored).unwrap().map(|weak_hash| weak_hash.bits()).collect::<Vec<u64>>();
    assert_eq!(of(0), [0x68a8_4da9_107a, 0xd508_14d2_e81a, 0xedb5_3e84_aa27, 0xb2ea_3e52_37fe]);
    assert_eq!(of(7), [0x98f2_3b0e_f9b2, 0xfaf0_4a02_d603, 0, 0], "the short last chunk is padded");
    assert_eq!(weak_hashes.encode(), stored);

    let image = image_of(&index);
    let mut made = WeakHashes::builder(index.chunk_bytes());
    for stored in 0..index.stored_count() {
        let chunk = (0..index.chunk_count()).find(|chunk| index.chunk_content(*chunk) == ChunkContent::Stored(stored));
        let range = index.chunk_range(chunk.unwrap());
        let place = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        made.push(&WeakHashes::of_chunk(&image[place]));
    }
    assert_eq!(made.encode(), stored, "today's code hashes the same image to the same object");
}

#[test]
fn a_robot_with_the_release_before_installs_the_release_of_version_0_1_0() {
    let state = state_copy();
    let (url, posts) = report_server();
    let config = config_file(state.path(), &url);
    let target = state.path().join("system.img");
    let mut partition = image_of(&Index::from_object(&bytes("state/installed/system.idx")).unwrap());
    partition.resize(PARTITION_BYTES, 0);
    fs::write(&target, &partition).unwrap();
    let target_text = target.to_str().unwrap();
    assert_eq!(reflash(state.path(), &["verify", "--target", target_text]).status.code(), Some(0));

    let flashed = answer(&reflash(state.path(), &["flash", "--config", &config, "--target", target_text]));
    let then = json_of("after/flash.json");
    assert_eq!((&flashed["version"], &flashed["serial"]), (&then["version"], &then["serial"]));
    // Where the state partition is there, it now also says what is kept for an undo.
    let (now, then) = (member_names(&flashed["totals"]), member_names(&then["totals"]));
    assert!(then.iter().all(|name| now.contains(name)), "{now:?}");
    let image = image_of(&index());
    assert_eq!(fs::read(&target).unwrap()[..image.len()], image);

    let now = |path: &str| fs::read(state.path().join(path)).unwrap();
    assert_eq!(now("installed/manifest.json"), bytes("release/stable/manifest.json"));
    assert_eq!(now("installed/manifest.json.minisig"), bytes("release/stable/manifest.json.minisig"));
    assert_eq!(now("installed/system.idx"), object(&manifest_in("release/stable").1.images[0].index));
    assert_only_adds(&now("grubenv"), &bytes("after/flash.grubenv"), "flash");

    let then = json_of("report-progress.json");
    let last = std::iter::from_fn(|| posts.recv_timeout(Duration::from_secs(5)).ok())
        .find(|post| post["progress"]["result"].is_string())
        .expect("a post with a result");
    for part in ["machine", "progress"] {
        for name in member_names(&then[part]) {
            assert!(last[part].get(name).is_some(), "{part}.{name} is gone");
        }
    }
    for name in ["phase", "phase_number", "result", "version"] {
        assert_eq!(last["progress"][name], then["progress"][name], "{name}");
    }
}

#[test]
fn the_record_of_what_is_installed_is_trusted_and_compared() {
    let state = state_copy();
    let installed = &answer(&reflash(state.path(), &["status"]))["installed"];
    assert_eq!((&installed["version"], &installed["serial"]), (&json!("2026.10"), &json!(4)));
    assert_eq!(installed["created_unix_s"], json!(1_790_000_000));
    let index = Index::from_object(&bytes("state/installed/system.idx")).unwrap();
    let target = state.path().join("system.img");
    let mut partition = image_of(&index);
    partition[20_000] ^= 1;
    fs::write(&target, &partition).unwrap();
    let output = reflash(state.path(), &["verify", "--target", target.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["damaged_byte_ranges"], json!([[16_384, 32_768]]));
    assert_eq!((&answer["intact"], &answer["serial"]), (&json!(false), &json!(4)));
}

#[test]
fn a_black_box_says_what_it_said() {
    let state = state_copy();
    let status = answer(&reflash(state.path(), &["status"]));
    assert_holds(&status, &json_of("after/status.json"), "status");

    let black_box = BlackBox::open_read_only(&state.path().join("blackbox")).unwrap();
    let outcomes: Vec<Option<AttemptOutcome>> = black_box.attempts().iter().map(|attempt| attempt.outcome).collect();
    let (installed, started) = (AttemptOutcome::Installed, AttemptOutcome::Started);
    assert_eq!(
        outcomes,
        [Some(installed), Some(started), None, Some(AttemptOutcome::Failed), Some(AttemptOutcome::Parked)]
    );
    let reasons: Vec<&str> = black_box.attempts().iter().map(|attempt| attempt.reason.as_str()).collect();
    assert_eq!(reasons, ["provision", "env-lost", "system-unreadable", "recovering", "tries"]);
    let requested: Vec<bool> = black_box.attempts().iter().map(|attempt| attempt.requested).collect();
    assert_eq!(requested, [true, false, false, false, false]);
    assert_eq!(black_box.attempts()[2].damaged_byte_ranges, [[0, 16_384], [65_536, 81_920]]);
    assert_eq!((black_box.marks().good_through, black_box.marks().reported_through), (1, 1));
}

#[test]
fn a_black_box_is_written_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blackbox");
    let kept = BlackBox::open_read_only(&fixture("state/blackbox")).unwrap();
    let mut new = BlackBox::open(&path).unwrap();
    new.mark(Marks { good_through: 0, reported_through: 1 }).unwrap();
    for attempt in kept.attempts() {
        // Every attempt is written when it begins, and again when more is known.
        let Attempt { id, agent, reason, requested, started_unix_s, .. } = attempt.clone();
        new.record(&Attempt { id, agent, reason, requested, started_unix_s, ..Attempt::default() }).unwrap();
        new.record(attempt).unwrap();
    }
    new.mark(Marks { good_through: 1, reported_through: 1 }).unwrap();
    assert!(fs::read(&path).unwrap() == bytes("state/blackbox"), "the black boxes differ");
}

#[test]
fn what_the_black_box_holds_is_reported_as_it_was() {
    let state = state_copy();
    let (url, posts) = report_server();
    let config = config_file(state.path(), &url);
    assert_eq!(answer(&reflash(state.path(), &["report", "--config", &config]))["reported"], json!(true));
    let post = posts.recv_timeout(Duration::from_secs(5)).unwrap();
    let then = json_of("report-attempts.json");
    assert_holds(&post["attempts"], &then["attempts"], "attempts");
    for name in member_names(&then["machine"]) {
        assert!(post["machine"].get(name).is_some(), "machine.{name} is gone");
    }
    assert_eq!(answer(&reflash(state.path(), &["report", "--config", &config]))["reported"], json!(false));
}

#[test]
fn a_boot_environment_says_what_it_said_and_is_written_byte_for_byte() {
    let block = bytes("state/grubenv");
    let env = GrubEnv::parse(&block).unwrap();
    let variables: Vec<(&str, &str)> = env.iter().collect();
    assert_eq!(
        variables,
        [
            ("saved_entry", "0"),
            ("reflash_tries", "2"),
            ("reflash_max_tries", "3"),
            ("reflash_boot_ok", "0"),
            ("reflash_recovering", "1"),
            ("reflash_recoveries", "4:2"),
            ("reflash_reset", "1"),
            ("reflash_slot", "a"),
            ("reflash_trial", "b-tried"),
            ("next_entry", "recovery"),
            ("of_somebody_else", "a \\ and\na line"),
        ]
    );
    assert_eq!(env.encode().unwrap().as_slice(), block);

    let state = state_copy();
    let boot_env = BootEnv::new(&state.path().join("grubenv"));
    assert_eq!(boot_env.recoveries().unwrap(), Recoveries { serial: 4, count: 2 });
    assert_eq!(Slot::parse(env.get(names::SLOT)), Some(Slot::A));
    assert_eq!(Trial::parse(env.get(names::TRIAL)), Some(Trial::Tried(Slot::B)));
    for (arguments, file) in
        [(&["good"][..], "after/good.grubenv"), (&["request", "factory-reset"], "after/request.grubenv")]
    {
        let state = state_copy();
        answer(&reflash(state.path(), arguments));
        assert_only_adds(&fs::read(state.path().join("grubenv")).unwrap(), &bytes(file), arguments[0]);
    }
}

/// Checks that an environment says by the variables of before what it said; later versions add variables.
fn assert_only_adds(written: &[u8], before: &[u8], command: &str) {
    assert_eq!(written.len(), before.len());
    let (written, before) = (GrubEnv::parse(written).unwrap(), GrubEnv::parse(before).unwrap());
    for (name, value) in before.iter() {
        assert_eq!(written.get(name), Some(value), "{command}: {name}");
    }
    let added = written.iter().filter(|(name, _)| before.get(name).is_none());
    assert_eq!(added.filter(|(name, _)| !names::OURS.contains(name)).count(), 0, "{command}");
}

#[test]
fn every_variable_of_the_boot_environment_is_documented() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("grub/README.md")).unwrap();
    for name in names::OURS {
        assert!(readme.contains(&format!("\n| `{name}` | ")), "grub/README.md has no row for {name}");
    }
}

#[test]
fn the_event_log_is_written_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let journal = Journal::silent();
    journal.open_events(Box::new(fs::File::create(&path).unwrap()));
    let _: Result<(), ()> = journal.phase(Phase::Write, "write 56 KiB to /dev/sda5", || {
        journal.warn("the system could not be written: the disk says no");
        Err(())
    });
    journal.note("restarting");
    let written = fs::read_to_string(&path).unwrap();
    let kept = text("state/events.jsonl");
    let (written, kept): (Vec<&str>, Vec<&str>) = (written.lines().collect(), kept.lines().skip(7).collect());
    assert_eq!(written.len(), kept.len());
    for (written, kept) in written.into_iter().zip(kept) {
        let mut lines = [written, kept].map(|line| serde_json::from_str::<Value>(line).unwrap());
        // Only these depend on when and where it was written.
        for line in &mut lines {
            line["unix_s"] = json!(line["unix_s"].as_u64().map(|_| "seconds"));
            if let Some(duration) = line.get_mut("duration_ms") {
                *duration = json!(duration.as_u64().map(|_| "milliseconds"));
            }
        }
        assert_holds(&lines[0], &lines[1], "line");
    }
}

#[test]
fn a_configuration_file_with_every_key_says_what_it_said() {
    let config = Config::resolve(Layer::parse("reflash.toml", &text("config/reflash.toml")).unwrap()).unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(
        config.urls,
        ["https://images.example.com/robots", "http://mirror.example.com/robots", "file:///srv/robots"]
    );
    assert_eq!((config.channel.as_str(), config.spread), ("testing", seconds(120)));
    assert_eq!((config.product.as_str(), config.hardware.as_deref()), ("demo-robot", Some("UP-CHT01")));
    assert_eq!(config.hostname.as_deref(), Some("robot-{asset|serial|uuid|mac}"));
    assert_eq!((config.boot_tries, config.recoveries, config.offline), (5, 4, seconds(300)));
    assert_eq!(config.report_url.as_deref(), Some("https://station.example.com/report"));
    assert_eq!(config.stall, Some(seconds(600)));

    let network = &config.network;
    assert_eq!(network.interface, Some(InterfaceSelector::Mac([0x00, 0x07, 0x32, 0x4c, 0x81, 0x0e])));
    let address = network.address.unwrap();
    assert_eq!((address.address.to_string().as_str(), address.prefix_len), ("192.0.2.7", 24));
    assert!(format!("{network:?}").contains("gateway: Some(192.0.2.1)"), "{network:?}");
    assert_eq!(network.dns, ["192.0.2.53", "2001:db8::53"].map(|server| server.parse::<std::net::IpAddr>().unwrap()));
    assert_eq!((network.vlan, network.max_bytes_per_s), (Some(42), Some(2048 * 1024)));
    assert_eq!(network.proxy.as_deref(), Some("http://user:password@proxy.example.com:3128"));
    assert_eq!(network.ca_file.as_deref(), Some("/recovery/ca.pem"));
    assert_eq!((network.connect_timeout, network.stall_timeout), (seconds(20), seconds(45)));

    let disk = &config.disk;
    assert_eq!((disk.serial.as_deref(), disk.model.as_deref()), (Some("S4X*"), Some("Samsung*")));
    assert_eq!((disk.min_gb, disk.max_gb, disk.removable), (Some(100), Some(600), true));
    assert_eq!((disk.path.as_deref(), disk.transport.as_deref()), (Some("*/0000:00:17.0/ata1/*"), Some("nvme")));
}

/// A recovery of 0.1.0 refuses a file with any other key, and those in the field stay as they are.
#[test]
fn every_key_that_version_0_1_0_does_not_know_says_so() {
    let known: toml::Table = toml::from_str(&text("config/reflash.toml")).unwrap();
    for section in reflash::machine::config::sections() {
        let table = section.path.split('.').try_fold(&known, |table, name| table.get(name)?.as_table());
        for key in section.keys {
            let is_table = known.get(section.path).and_then(|table| table.get(key.name)).is_some();
            let is_known = is_table || table.is_some_and(|table| table.contains_key(key.name));
            let expected = (!is_known).then_some("0.1.0");
            assert_eq!(key.newer_than, expected, "{}.{}", section.path, key.name);
        }
    }
}

#[test]
fn a_kernel_command_line_with_every_argument_says_what_it_said() {
    let file = Layer::parse("reflash.toml", &text("config/reflash.toml")).unwrap();
    let (over, args) = Layer::from_kernel_command_line(&text("config/every.cmdline")).unwrap();
    assert_eq!(args.recovery_partuuid.as_deref(), Some("86fda3c1-0000-4000-8000-000000000004"));
    assert_eq!((args.slot.as_deref(), args.reason.as_deref()), (Some("b"), Some("tries")));
    assert_eq!((args.force, args.verbose, args.again, args.dry_run), (true, true, true, true));
    assert_eq!((args.action, args.arm.as_deref()), (Some(Action::Provision), Some("S4X123")));
    assert_eq!(args.media.unwrap().to_string(), "0f1e2d3c-4b5a-8978-8695-a4b3c2d1e0ff");
    assert_eq!(args.origin.unwrap().to_string(), "00112233-4455-8677-8899-aabbccddeeff");
    assert_eq!(args.unknown, Vec::<String>::new());

    let config = Config::resolve(file.clone().overridden_by(over)).unwrap();
    assert_eq!(config.urls, ["https://a.example.com/r", "https://b.example.com/r"]);
    assert_eq!((config.channel.as_str(), config.product.as_str()), ("testing", "other-robot"));
    assert_eq!(config.hardware.as_deref(), Some("NUC11"));
    assert_eq!(config.report_url.as_deref(), Some("http://station.example.com/report"));
    let network = &config.network;
    assert_eq!(network.interface, Some(InterfaceSelector::Name("enp1s0".to_owned())));
    let address = network.address.unwrap();
    assert_eq!((address.address.to_string().as_str(), address.prefix_len), ("198.51.100.7", 25));
    assert!(format!("{network:?}").contains("gateway: Some(198.51.100.1)"), "{network:?}");
    assert_eq!(
        network.dns,
        ["198.51.100.53", "198.51.100.54"].map(|server| server.parse::<std::net::IpAddr>().unwrap())
    );
    assert_eq!((network.vlan, network.max_bytes_per_s), (Some(7), Some(512 * 1024)));
    assert_eq!(network.proxy.as_deref(), Some("http://proxy.example.com:8080"));
    assert_eq!((config.disk.path.as_deref(), config.disk.removable), (Some("*/ata1/*"), true));
    assert_eq!(config.offline, Duration::from_secs(300), "what the command line does not say comes from the file");

    let (_, args) = Layer::from_kernel_command_line(&text("config/recovery.cmdline")).unwrap();
    assert_eq!((args.reason.as_deref(), args.slot.as_deref()), (Some("system-unreadable"), Some("a")));
    assert_eq!((args.force, args.action, args.unknown), (false, None, Vec::new()));
    let system = Arguments::parse(&text("config/system.cmdline")).unwrap();
    assert_eq!(system.system, "86fda3c1-0000-4000-8000-000000000005");
    assert_eq!(system.data.as_deref(), Some("86fda3c1-0000-4000-8000-000000000006"));
}

#[test]
fn a_list_of_assets_says_what_it_said() {
    let list = text("config/assets.txt");
    for (key, value, name) in [
        ("serial", "S4X 0117", "robot-0117"),
        ("mac", "00:07:32:4C:81:0E", "robot-0118"),
        ("serial", "another", "robot-spare"),
    ] {
        let found = hostname::asset(&list, |asked| (asked == key).then(|| value.to_owned())).unwrap();
        assert_eq!(found.as_deref(), Some(name));
    }
}

#[test]
fn exit_codes_mean_what_they_meant() {
    let state = state_copy();
    let code = |arguments: &[&str]| reflash(state.path(), arguments).status.code();
    assert_eq!(code(&["status"]), Some(0), "done");
    assert_eq!(code(&["no-such-command"]), Some(2), "wrong usage");
    // Nothing listens there any more, but something may again.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config_file(state.path(), &format!("http://{closed}/report"));
    assert_eq!(code(&["report", "--config", &config]), Some(3), "failed, trying again later can help");
    assert_eq!(code(&["report", "--config", "/nowhere/reflash.toml"]), Some(4), "failed");
    fs::remove_dir_all(state.path().join("installed")).unwrap();
    assert_eq!(code(&["status"]), Some(1), "the answer is no: nothing is installed");
}
