//! How many threads read, decode and write, and the lock they share state with.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

/// Memory that the buffers of one kind of thread may take together: those of three threads that decode groups.
const MAX_BUFFERS_BYTES: usize = 24 * 1024 * 1024;

/// Whether one thread of each kind has to do.
static ARE_FEW: AtomicBool = AtomicBool::new(false);

/// Lets one thread of each kind do from now on: for work beside what the machine is for, in little memory.
pub fn be_few() {
    ARE_FEW.store(true, Ordering::Relaxed);
}

/// Number of threads for one kind of work: two more than cores, because some wait for the disk while others compute,
/// and between one and `at_most`.
pub(super) fn count(at_most: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    if ARE_FEW.load(Ordering::Relaxed) { 1 } else { (cores + 2).min(at_most).max(1) }
}

/// Number of threads that each have a buffer of `bytes`, as far as memory allows.
pub(super) fn count_with_buffers(bytes: usize) -> usize {
    count(MAX_BUFFERS_BYTES / bytes.max(1))
}

/// Starts a thread of `scope` with a name, which `/proc/PID/task/TID/comm` shows as far as 15 bytes.
///
/// # Panics
/// The kernel has no thread to give. The work of these threads cannot be left out, and PID 1 restarts.
pub(super) fn spawn<'scope>(scope: &'scope Scope<'scope, '_>, name: &str, work: impl FnOnce() + Send + 'scope) {
    if let Err(error) = Builder::new().name(name.to_owned()).spawn_scoped(scope, work) {
        panic!("cannot start the thread {name}: {error}");
    }
}

/// Locks a mutex even when a thread panicked while it held it: the results of the other threads must not be lost.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
