//! The drill: everything that a recovery does but write, on real releases.

use reflash::fetch::Directory;
use reflash::jobs::recovery;
use reflash::record::blackbox::{DrillCheck, DrillRecord};
use reflash::record::journal::Journal;

use crate::support::{Fixture, MemoryTarget};

/// Rehearses a recovery of `target` from the release, and makes sure that nothing was written.
fn rehearsed(fixture: &Fixture, target: &MemoryTarget) -> Vec<DrillCheck> {
    let (journal, source, before) = (Journal::silent(), Directory::new(fixture.tree()), target.content());
    let mut checks = Vec::new();
    recovery::rehearse(&fixture.job(&source, target, None, &journal), None, |check| checks.push(check));
    assert!(target.log.lock().unwrap().is_empty() && target.content() == before, "a drill writes nothing");
    checks
}

fn names(checks: &[DrillCheck]) -> Vec<(&str, bool)> {
    checks.iter().map(|check| (check.name.as_str(), check.passed)).collect()
}

#[test]
fn a_machine_that_could_recover_passes_and_not_a_byte_is_written() {
    let fixture = Fixture::new();
    for content in [fixture.image.clone(), vec![0x55; fixture.image.len()]] {
        let checks = rehearsed(&fixture, &MemoryTarget::new(content));
        assert_eq!(names(&checks), [("manifest", true), ("plan", true), ("content", true)], "{checks:?}");
        assert!(checks[0].found.contains("serial"), "{checks:?}");
        assert!(DrillRecord::of(checks).passed);
    }
}

#[test]
fn what_a_recovery_would_lack_is_found_before_it_is_needed() {
    // A pack is gone: with an equal system only the sample shows it.
    let fixture = Fixture::new();
    std::fs::remove_file(fixture.pack_path()).unwrap();
    let checks = rehearsed(&fixture, &MemoryTarget::new(fixture.image.clone()));
    assert_eq!(names(&checks), [("manifest", true), ("plan", true), ("content", false)], "{checks:?}");
    assert!(!DrillRecord::of(checks).passed);

    // Its content is damaged.
    let fixture = Fixture::new();
    let mut pack = std::fs::read(fixture.pack_path()).unwrap();
    pack.iter_mut().take(64).for_each(|byte| *byte ^= 0x10);
    std::fs::write(fixture.pack_path(), pack).unwrap();
    let checks = rehearsed(&fixture, &MemoryTarget::new(fixture.image.clone()));
    assert_eq!(names(&checks).last(), Some(&("content", false)), "{checks:?}");

    // The release is for a larger partition, or is not there at all.
    let fixture = Fixture::new();
    let checks = rehearsed(&fixture, &MemoryTarget::new(vec![0; 64 * 1024]));
    assert!(names(&checks).last().is_some_and(|(_, passed)| !passed), "{checks:?}");
    std::fs::remove_dir_all(fixture.tree().join("stable")).unwrap();
    let checks = rehearsed(&fixture, &MemoryTarget::new(fixture.image.clone()));
    assert_eq!(names(&checks), [("manifest", false)], "{checks:?}");
}
