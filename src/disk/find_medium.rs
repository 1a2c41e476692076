//! Search for the boot medium, on USB or in an optical drive.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::machine::media::{DESCRIPTOR_BYTES, DESCRIPTOR_OFFSET_BYTES, MediaId};
use crate::order;
use crate::sys::thread::Questions;

/// Interval at which the devices are looked at again while waiting: USB drives take seconds to appear, optical drives
/// to spin up.
const POLL: Duration = Duration::from_millis(250);

/// How long one device may take to answer before the next is asked. An optical drive that spins up answers later.
const ANSWER: Duration = Duration::from_secs(3);

/// Waits for a device that holds the medium, and returns it. A copy of the medium is as good as the original, byte for
/// byte.
///
/// `on_wait` is called once, when there is something to wait for.
pub fn wait_for_medium(id: &MediaId, timeout: Duration, on_wait: impl FnOnce()) -> Option<PathBuf> {
    let deadline = Instant::now() + timeout;
    let mut on_wait = Some(on_wait);
    let mut questions = Questions::default();
    loop {
        if let Some(node) = found(id, &mut questions).into_iter().next() {
            return Some(node);
        }
        if Instant::now() >= deadline {
            return None;
        }
        if let Some(on_wait) = on_wait.take() {
            on_wait();
        }
        std::thread::sleep(POLL);
    }
}

/// Lists every whole device that holds the medium; the first partition of a USB drive holds it too, and is passed over.
pub fn media(id: &MediaId) -> Vec<PathBuf> {
    found(id, &mut Questions::default())
}

/// Asks every device, those that have not answered yet excepted: a drive that is failing answers after minutes.
fn found(id: &MediaId, questions: &mut Questions<PathBuf, Option<MediaId>>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/block").into_iter().flatten().flatten() {
        let node = Path::new("/dev").join(entry.file_name());
        if entry.path().join("partition").exists() {
            continue;
        }
        let asked = node.clone();
        if questions.ask("look-for-medium", node.clone(), ANSWER, move || descriptor(&asked)) == Some(Some(*id)) {
            found.push(node);
        }
    }
    order::by(&mut found, PathBuf::cmp);
    found
}

/// Reads the ID. A drive without a disc and a device that does not answer hold no boot medium.
fn descriptor(node: &Path) -> Option<MediaId> {
    let mut content = vec![0; DESCRIPTOR_BYTES];
    File::open(node).ok()?.read_exact_at(&mut content, DESCRIPTOR_OFFSET_BYTES).ok()?;
    MediaId::of_descriptor(&content)
}
