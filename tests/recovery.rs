//! The recovery flow on real releases: what is written, in which order, and how each kind of bad input ends.

use std::path::PathBuf;

use reflash::boot::env::LoadedEnv;
use reflash::chain::chain;
use reflash::fetch::Source;
use reflash::flash::write::WriteError;
use reflash::jobs::recovery::RecoveryError;
use reflash::jobs::state::StatePartition;
use reflash::release::manifest::object_path;

use crate::support::{Faults, Fixture, MemoryTarget, sample_image};

fn source(fixture: &Fixture) -> impl Source {
    reflash::fetch::Directory::new(fixture.tree())
}

fn blank(fixture: &Fixture) -> MemoryTarget {
    MemoryTarget::new(vec![0xaa; fixture.image.len()])
}

/// Runs on a blank target and expects refusal before the first write.
fn refused(fixture: &Fixture) -> RecoveryError {
    let target = blank(fixture);
    let error = fixture.recover(&source(fixture), &target, None).unwrap_err();
    assert!(target.writes().is_empty(), "{}", chain(&error));
    error
}

#[test]
fn a_blank_partition_becomes_the_image_and_the_superblock_comes_last() {
    let fixture = Fixture::new();
    let target = blank(&fixture);
    let report = fixture.recover(&source(&fixture), &target, None).unwrap();
    assert!(target.content() == fixture.image);
    assert_eq!(report.totals.right_bytes, 0);
    let log = target.log.lock().unwrap();
    // Blanked and flushed before anything else; then everything flushed before the head; and the head flushed.
    assert_eq!(log[..2], [Some(0..4096), None]);
    let head = log.iter().rposition(|entry| entry.as_ref().is_some_and(|range| range.start == 0)).unwrap();
    assert_eq!(log[head - 1..], [None, Some(0..16 * 1024), None]);
}

#[test]
fn an_equal_partition_costs_no_write_and_no_download() {
    let fixture = Fixture::new();
    let target = MemoryTarget::new(fixture.image.clone());
    std::fs::remove_file(fixture.pack_path()).unwrap();
    let report = fixture.recover(&source(&fixture), &target, None).unwrap();
    assert!(target.writes().is_empty());
    assert_eq!((report.totals.download_bytes, report.totals.right_bytes), (0, fixture.image.len() as u64));
}

#[test]
fn only_damaged_chunks_are_written_and_what_lies_behind_the_image_is_kept() {
    let fixture = Fixture::new();
    let mut content = fixture.image.clone();
    content[5 * 16 * 1024 + 1] ^= 1;
    content.extend_from_slice(&[0x55; 8192]);
    let target = MemoryTarget::new(content);
    fixture.recover(&source(&fixture), &target, None).unwrap();
    assert!(target.content()[..fixture.image.len()] == fixture.image[..]);
    assert!(target.content()[fixture.image.len()..].iter().all(|byte| *byte == 0x55));
    let chunk = |number: u64| number * 16 * 1024..(number + 1) * 16 * 1024;
    assert_eq!(target.writes(), [0..4096, chunk(5), chunk(0)]);
}

#[test]
fn a_cut_at_every_write_leaves_no_superblock_and_the_next_run_finishes() {
    let fixture = Fixture::new();
    let complete = blank(&fixture);
    fixture.recover(&source(&fixture), &complete, None).unwrap();
    for cut in 0..complete.writes().len() {
        let faults = Faults { fail_writes_from: Some(cut), ..Faults::default() };
        let target = MemoryTarget::faulty(vec![0xaa; fixture.image.len()], faults);
        let error = fixture.recover(&source(&fixture), &target, None).unwrap_err();
        assert!(matches!(&error, RecoveryError::Write(WriteError::Target { .. })), "{}", chain(&error));
        let left = target.content();
        assert!(cut == 0 || left[..4096].iter().all(|byte| *byte == 0), "cut at write {cut}");
        let target = MemoryTarget::new(left);
        fixture.recover(&source(&fixture), &target, None).unwrap();
        assert!(target.content() == fixture.image, "cut at write {cut}");
    }
}

#[test]
fn a_block_that_reads_back_wrong_is_rewritten_and_then_named() {
    let fixture = Fixture::new();
    let with = |times| {
        let faults = Faults { corrupt: vec![(40, times)], ..Faults::default() };
        MemoryTarget::faulty(vec![0; fixture.image.len()], faults)
    };
    let target = with(2);
    fixture.recover(&source(&fixture), &target, None).unwrap();
    assert!(target.content() == fixture.image);
    let error = fixture.recover(&source(&fixture), &with(99), None).unwrap_err();
    // Block 40 lies in chunk 10, bytes 163840 to 180224: sectors 320 to 351.
    assert!(chain(&error).contains("memory reads back wrong") && chain(&error).contains("sectors 320 to 351"));
    assert!(!error.is_retryable());
}

#[test]
fn an_unreadable_block_is_healed_by_writing_it() {
    let fixture = Fixture::new();
    let faults = Faults { unreadable: [70].into(), ..Faults::default() };
    let target = MemoryTarget::faulty(fixture.image.clone(), faults);
    fixture.recover(&source(&fixture), &target, None).unwrap();
    assert!(target.content() == fixture.image);
    assert_eq!(target.writes().len(), 3);
}

#[test]
fn a_device_that_fails_ends_the_recovery_and_claims_nothing() {
    let fixture = Fixture::new();
    // EIO, ENODEV of a device that is gone, ENOSPC of a thin one.
    for errno in [5, 19, 28] {
        let dir = tempfile::tempdir().unwrap();
        let state = StatePartition::new(dir.path());
        let faults = Faults { fail_writes_from: Some(4), errno, ..Faults::default() };
        let target = MemoryTarget::faulty(vec![0; fixture.image.len()], faults);
        let error = fixture.recover(&source(&fixture), &target, Some(&state)).unwrap_err();
        let text = chain(&error);
        assert!(text.contains("memory at byte") && text.contains("sector"), "{text}");
        assert!(text.contains(&std::io::Error::from_raw_os_error(errno).to_string()), "{text}");
        assert!(!error.is_retryable() && !error.is_of_the_release());
        assert!(state.installed(&fixture.keys).is_none());
        assert_eq!(state.boot_env().load_or_empty().unwrap().get("reflash_recovering"), Some("1"));
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_file_system_that_fills_up_ends_the_recovery_whether_it_holds_the_target_or_the_state() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let mount = |name: &str, kib: usize| {
        let at = dir.path().join(name);
        std::fs::create_dir(&at).unwrap();
        let mut command = std::process::Command::new("mount");
        let made = command.args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]).arg(&at).status().unwrap();
        assert!(made.success());
        at
    };
    let small = mount("small", 512);
    // Half of the image fits; the write in the middle is a short one.
    let file = small.join("target");
    std::fs::File::create(&file).unwrap().set_len(fixture.image.len() as u64).unwrap();
    let target = reflash::flash::target::DeviceTarget::open(&file).unwrap();
    let error = fixture.recover(&source(&fixture), &target, None).unwrap_err();
    assert!(chain(&error).contains("No space left"), "{}", chain(&error));
    drop(target);

    // The record does not fit, the environment was there before: it starts, and says what is missing.
    let full = mount("full", 16);
    let state = StatePartition::new(&full);
    state.boot_env().update(&[("reflash_tries", Some("0"))]).unwrap();
    let _ = std::fs::write(full.join("filler"), vec![1; 64 * 1024]);
    let report = fixture.recover(&source(&fixture), &blank(&fixture), Some(&state)).unwrap();
    assert!(report.committed.unrecorded.is_some() && state.installed(&fixture.keys).is_none());
    assert_eq!(state.boot_env().load_or_empty().unwrap().get("reflash_tries"), Some("3"));
    for at in [small, full] {
        std::process::Command::new("umount").arg(at).status().unwrap();
    }
}

#[test]
fn a_full_state_partition_gives_up_its_logs_for_the_record() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    std::fs::write(state.events_path(), "old").unwrap();
    fixture.recover(&source(&fixture), &blank(&fixture), Some(&state)).unwrap();
    assert!(state.installed(&fixture.keys).is_some());
    // A record that cannot be written for another reason must not leave the index of what was there before.
    std::fs::remove_dir_all(dir.path().join("installed")).unwrap();
    std::fs::write(dir.path().join("installed"), "a file").unwrap();
    // No name is left under which the file could be put aside.
    for number in 0..10 {
        std::fs::write(dir.path().join(format!("installed.odd{number}")), "").unwrap();
    }
    let report = fixture.recover(&source(&fixture), &blank(&fixture), Some(&state)).unwrap();
    assert!(report.committed.unrecorded.is_some() && state.installed(&fixture.keys).is_none());
}

#[test]
fn automatic_recoveries_are_counted_by_release_and_wishes_begin_anew() {
    let mut fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let recover = |fixture: &Fixture, requested: bool| {
        let recoveries = state.boot_env().recoveries().unwrap();
        let change = |job: &mut reflash::jobs::recovery::RecoveryJob<'_>| {
            (job.policy.requested, job.policy.recoveries) = (requested, recoveries);
        };
        fixture.recover_as(&source(fixture), &blank(fixture), Some(&state), change).unwrap();
        state.boot_env().recoveries().unwrap().to_string()
    };
    assert_eq!((recover(&fixture, false), recover(&fixture, false)), ("1:1".into(), "1:2".into()));
    assert_eq!((recover(&fixture, true), recover(&fixture, false)), ("1:0".into(), "1:1".into()));
    fixture.publish(sample_image(300, 9), |_| {});
    assert_eq!(recover(&fixture, false), "2:1");
}

#[test]
fn what_is_installed_is_repaired_from_its_own_objects_whatever_is_offered() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    fixture.recover(&source(&fixture), &blank(&fixture), Some(&state)).unwrap();
    std::fs::remove_file(fixture.tree().join("stable/manifest.json")).unwrap();
    let mut damaged = fixture.image.clone();
    damaged[70_000] ^= 1;
    let target = MemoryTarget::new(damaged);
    let journal = reflash::record::journal::Journal::silent();
    let source = source(&fixture);
    let job = fixture.job(&source, &target, Some(&state), &journal);
    let record = state.record(&fixture.keys).unwrap();
    assert!(reflash::jobs::recovery::compare(&job, &state.index_of(&record).unwrap()).is_err());
    reflash::jobs::recovery::install(&job, Some(&record), record.release()).unwrap();
    assert!(target.content() == fixture.image);
}

#[test]
fn the_boot_environment_says_recovering_exactly_while_it_is_true() {
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let tries = || match state.boot_env().load().unwrap() {
        LoadedEnv::Good(env) => {
            (env.get("reflash_recovering").map(str::to_owned), env.get("reflash_tries").map(str::to_owned))
        }
        LoadedEnv::Lost(_) => (None, None),
    };
    let faults = Faults { fail_writes_from: Some(0), ..Faults::default() };
    let target = MemoryTarget::faulty(vec![0; fixture.image.len()], faults);
    fixture.recover(&source(&fixture), &target, Some(&state)).unwrap_err();
    assert_eq!(tries(), (Some("1".into()), Some("0".into())));
    assert!(state.installed(&fixture.keys).is_none());
    fixture.recover(&source(&fixture), &blank(&fixture), Some(&state)).unwrap();
    assert_eq!(tries(), (None, Some("3".into())));
    let installed = state.installed(&fixture.keys).unwrap();
    assert_eq!((installed.manifest.version.as_str(), installed.manifest.serial), ("1", 1));
}

#[test]
fn an_older_release_is_refused_unless_a_person_asks() {
    let mut fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let state = StatePartition::new(dir.path());
    let target = blank(&fixture);
    fixture.publish(sample_image(300, 5), |spec| spec.serial = Some(7));
    fixture.recover(&source(&fixture), &target, Some(&state)).unwrap();
    let newest = fixture.image.clone();
    std::fs::remove_dir_all(fixture.tree()).unwrap();
    fixture.publish(sample_image(300, 6), |spec| spec.serial = Some(6));
    let error = fixture.recover(&source(&fixture), &target, Some(&state)).unwrap_err();
    assert!(chain(&error).contains("serial 6, older than the installed 7"), "{}", chain(&error));
    assert!(target.content() == newest);
    fixture.recover_as(&source(&fixture), &target, Some(&state), |job| job.policy.allow_older = true).unwrap();
    assert!(target.content() == fixture.image);
}

#[test]
fn the_wrong_machine_is_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    let target = blank(&fixture);
    let error = fixture
        .recover_as(&source(&fixture), &target, None, |job| job.identity.hardware = "unit-z".into())
        .unwrap_err();
    assert!(chain(&error).contains("hardware \"unit-a\"") && chain(&error).contains("unit-z"), "{}", chain(&error));
    assert!(!error.is_retryable() && target.writes().is_empty());
}

#[test]
fn an_image_larger_than_the_partition_is_refused_with_both_sizes() {
    let fixture = Fixture::new();
    let target = MemoryTarget::new(vec![0xaa; fixture.image.len() - 4096]);
    let error = fixture.recover(&source(&fixture), &target, None).unwrap_err();
    let text = chain(&error);
    assert!(text.contains("1228800") && text.contains("1224704") && target.writes().is_empty(), "{text}");
}

#[test]
fn a_damaged_manifest_or_signature_is_refused_and_tried_again() {
    let fixture = Fixture::new();
    let manifest = fixture.tree().join("stable/manifest.json");
    let signature = fixture.tree().join("stable/manifest.json.minisig");
    for path in [&manifest, &signature] {
        let good = std::fs::read(path).unwrap();
        for bad in [damaged(&good), good[..good.len() / 2].to_vec(), Vec::new()] {
            std::fs::write(path, bad).unwrap();
            let error = refused(&fixture);
            assert!(chain(&error).contains("the signature of the manifest or roll-out is"), "{}", chain(&error));
            assert!(error.is_retryable());
        }
        std::fs::write(path, good).unwrap();
    }
}

#[test]
fn another_key_is_refused() {
    let mut fixture = Fixture::new();
    fixture.keys = Fixture::new().keys;
    let error = refused(&fixture);
    assert!(chain(&error).contains("not valid for any trusted key (test)"), "{}", chain(&error));
}

#[test]
fn a_damaged_index_is_refused_by_digest() {
    let fixture = Fixture::new();
    let path = fixture.index_path();
    let good = std::fs::read(&path).unwrap();
    // While its parts are whole, the index itself is not asked for; without the outline it is.
    std::fs::write(&path, damaged(&good)).unwrap();
    fixture.recover(&source(&fixture), &blank(&fixture), None).unwrap();
    let outline = fixture.released.manifest.images[0].parts.as_ref().unwrap().outline;
    let outline = fixture.tree().join(object_path(&outline.blake3));
    std::fs::write(&outline, damaged(&std::fs::read(&outline).unwrap())).unwrap();
    for bad in [damaged(&good), good[..good.len() / 2].to_vec()] {
        std::fs::write(&path, bad).unwrap();
        let error = refused(&fixture);
        assert!(chain(&error).contains("chunk index"), "{}", chain(&error));
        assert!(error.is_retryable());
    }
}

#[test]
fn a_damaged_pack_writes_nothing_wrong_and_is_named() {
    let fixture = Fixture::new();
    let path: PathBuf = fixture.pack_path();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let good = std::fs::read(&path).unwrap();
    for bad in [damaged(&good), good[..good.len() / 2].to_vec(), vec![0; good.len()]] {
        std::fs::write(&path, bad).unwrap();
        let target = blank(&fixture);
        let error = fixture.recover(&source(&fixture), &target, None).unwrap_err();
        assert!(chain(&error).contains(&name), "{}", chain(&error));
        // Whatever was written is right, and there is no superblock.
        let content = target.content();
        assert!(content[..4096].iter().all(|byte| *byte == 0));
        for range in target.writes().iter().skip(1) {
            let range = range.start as usize..range.end as usize;
            assert!(content[range.clone()] == fixture.image[range]);
        }
    }
    std::fs::write(&path, good).unwrap();
    let target = blank(&fixture);
    fixture.recover(&source(&fixture), &target, None).unwrap();
}

/// One bit in the middle.
fn damaged(good: &[u8]) -> Vec<u8> {
    let mut bad = good.to_vec();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x10;
    bad
}
