//! Turns of processes that change the same thing: advisory locks that are waited for, and not for ever.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::files;

/// Longest wait for a small change: a write of one block takes less even on slow flash.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two attempts to take a lock.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits for the turn to read and change small files of a directory, such as the boot environment. `None` after some
/// seconds, and where it cannot be locked: whoever holds it for so long hangs, and must not keep a good boot from being
/// recorded.
#[must_use]
pub fn in_directory(path: &Path) -> Option<File> {
    within(path, LIMIT)
}

/// Waits for the turn to change the file at `path`, and those beside it, as [`in_directory`] does.
#[must_use]
pub fn beside(path: &Path) -> Option<File> {
    in_directory(path.parent()?)
}

fn within(path: &Path, limit: Duration) -> Option<File> {
    let file = File::open(path).ok()?;
    wait(&file, limit).is_ok_and(|is_ours| is_ours).then_some(file)
}

/// Waits for the turn that the file at `path` stands for, which is made if it is missing; `None` after `limit`.
///
/// # Errors
/// The file system's.
pub fn of_file(path: &Path, limit: Duration) -> io::Result<Option<File>> {
    let file = files::open_to_append(path)?;
    Ok(wait(&file, limit)?.then_some(file))
}

fn wait(file: &File, limit: Duration) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if began.elapsed() < limit => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{of_file, within};
    use std::time::{Duration, Instant};

    #[test]
    fn a_turn_is_waited_for_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let short = Duration::from_millis(100);
        let first = of_file(&path, short).unwrap().unwrap();
        let began = Instant::now();
        assert!(of_file(&path, short).unwrap().is_none() && began.elapsed() >= short);
        let held = within(dir.path(), short).unwrap();
        assert!(within(dir.path(), short).is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| of_file(&path, Duration::from_secs(30)).unwrap().is_some());
            std::thread::sleep(short);
            drop((first, held));
            assert!(waits.join().unwrap());
        });
        assert!(within(dir.path(), short).is_some());
        // Not even a named pipe in its place is waited at.
        std::fs::remove_file(&path).unwrap();
        crate::sys::special::make_pipe(&path).unwrap();
        assert!(of_file(&path, short).is_err());
    }
}
