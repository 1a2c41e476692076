//! Threads with a name, and locks that outlive a thread that panicked.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Starts a thread of this name that nothing waits for. The kernel keeps 15 bytes of the name (`TASK_COMM_LEN`), which
/// `/proc` and a panic message show.
///
/// # Errors
/// The kernel has no room for another thread. [`std::thread::spawn`] would panic, which restarts the machine when this
/// is PID 1.
pub fn background(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Locks a mutex whose content is whole at every moment, so that a thread that panicked while it held the lock does not
/// keep the others from it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{background, lock};
    use std::sync::{Arc, Mutex, mpsc::channel};

    #[test]
    fn a_thread_has_its_name_and_a_panic_does_not_close_a_lock() {
        let shared = Arc::new(Mutex::new(1));
        let (sender, names) = channel();
        let theirs = Arc::clone(&shared);
        background("worker", move || {
            let _held = lock(&theirs);
            sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
            panic!("on purpose");
        })
        .unwrap();
        assert_eq!(names.recv().unwrap().as_deref(), Some("worker"));
        assert_eq!(*lock(&shared), 1);
    }
}
