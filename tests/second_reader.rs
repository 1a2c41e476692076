//! A second implementation of the format: `read_release.py` has nothing of the agent in it, and makes the same image.

use std::path::Path;
use std::process::Command;

use crate::support::Fixture;

const BLOCK: usize = 4096;

/// Runs the reader. Returns what it says, or its complaint.
fn read(fixture: &Fixture, out: &Path, before: Option<&Path>) -> Result<String, String> {
    let mut python = Command::new("python3");
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_release.py"));
    python.arg(fixture.tree()).arg("stable").arg(fixture.dir.path().join("keys/reflash.pub")).arg(out).args(before);
    let done = python.output().unwrap();
    match done.status.success() {
        true => Ok(String::from_utf8(done.stdout).unwrap()),
        false => Err(String::from_utf8(done.stderr).unwrap()),
    }
}

/// Zeros, lines that come again in other chunks, text, noise, and a chunk that stands twice: 1 MiB, since BLAKE3 takes
/// Python a second for that.
fn image() -> Vec<u8> {
    let mut content = vec![0; 256 * BLOCK];
    blake3::Hasher::new().finalize_xof().fill(&mut content[..60 * BLOCK]);
    (100 * BLOCK..180 * BLOCK).for_each(|at| content[at] = b"a line of text, "[at % 16] ^ (at / 5000) as u8);
    let noise = content[..2 * BLOCK].to_vec();
    (100 * BLOCK..140 * BLOCK).step_by(64).for_each(|at| {
        let line = (at / 64 * 37 + at / BLOCK * 11) % 128 * 64;
        content[at..at + 64].copy_from_slice(&noise[line..line + 64]);
    });
    content.copy_within(0..8 * BLOCK, 200 * BLOCK);
    content.truncate(255 * BLOCK);
    content
}

#[test]
#[ignore = "needs root: to install python3; cargo xtask test --tier root"]
fn a_reader_in_python_makes_the_image_from_scratch_and_from_the_one_before() {
    let mut fixture = Fixture::with(image(), |_| ());
    let (before, out) = (fixture.dir.path().join("before"), fixture.dir.path().join("out"));
    let said = read(&fixture, &before, None).unwrap();
    assert!(std::fs::read(&before).unwrap() == fixture.image);
    assert!(said.contains(" of groups") && !said.contains(" 0 of groups"), "{said}");

    // Something changed a little, something moved, something is new, and something is gone.
    let mut new = fixture.image.clone();
    (20 * BLOCK..60 * BLOCK).step_by(700).for_each(|at| new[at] ^= 0x40);
    new.copy_within(100 * BLOCK..140 * BLOCK, 143 * BLOCK);
    blake3::Hasher::new().update(b"new").finalize_xof().fill(&mut new[100 * BLOCK..106 * BLOCK]);
    new[200 * BLOCK..208 * BLOCK].fill(0);
    fixture.publish(new, |spec| spec.version = "2".into());
    read(&fixture, &out, None).unwrap();
    assert!(std::fs::read(&out).unwrap() == fixture.image);
    std::fs::remove_file(&out).unwrap();
    let said = read(&fixture, &out, Some(&before)).unwrap();
    assert!(std::fs::read(&out).unwrap() == fixture.image);
    let fetched: usize = said.rsplit(", ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(!said.contains(" 0 of deltas") && fetched < 10 * BLOCK, "{said}");

    // It looks at what it reads.
    let signature = fixture.tree().join("stable/manifest.json.minisig");
    let good = std::fs::read_to_string(&signature).unwrap();
    // A letter in the middle of the second line, which is the signature.
    let at = good.find('\n').unwrap() + 50;
    let letter = if good.as_bytes()[at] == b'A' { "B" } else { "A" };
    std::fs::write(&signature, [&good[..at], letter, &good[at + 1..]].concat()).unwrap();
    assert!(read(&fixture, &out, None).is_err());
    std::fs::write(&signature, good).unwrap();
    let pack = fixture.tree().join(format!("objects/{}", fixture.released.manifest.images[0].deltas[0].pack.blake3));
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let complaint = read(&fixture, &out, Some(&before)).unwrap_err();
    assert!(complaint.contains("delta 0 is damaged"), "{complaint}");
}
