//! Threads with a name, and locks that outlive a thread that panicked.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Starts a thread of this name that nothing waits for. The kernel keeps 15 bytes of the name (`TASK_COMM_LEN`), which
/// `/proc` and a panic message show.
///
/// # Errors
/// The kernel has no room for another thread. [`std::thread::spawn`] would panic, which restarts the machine when this
/// is PID 1.
pub fn background(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Questions to devices, each in a thread of its own: a device that is failing can hold a read for minutes, or for
/// ever, and nothing can interrupt that. Such a thread is left behind, and its answer taken when it comes after all.
#[derive(Debug)]
pub struct Questions<K, T> {
    unanswered: Vec<(K, Receiver<T>)>,
}

impl<K, T> Default for Questions<K, T> {
    fn default() -> Self {
        Self { unanswered: Vec::new() }
    }
}

impl<K: PartialEq, T: Send + 'static> Questions<K, T> {
    /// Asks, and waits for the answer up to `limit`. While an earlier question about `key` has no answer, no other is
    /// asked about it and nothing is waited for. `name` is that of the thread.
    pub fn ask(
        &mut self,
        name: &str,
        key: K,
        limit: Duration,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if let Some(at) = self.unanswered.iter().position(|(asked, _)| *asked == key) {
            let answer = self.unanswered[at].1.try_recv();
            if !matches!(answer, Err(TryRecvError::Empty)) {
                self.unanswered.swap_remove(at);
            }
            return answer.ok();
        }
        let (sender, answer) = sync_channel(1);
        background(name, move || drop(sender.send(question()))).ok()?;
        match answer.recv_timeout(limit) {
            Ok(value) => Some(value),
            Err(RecvTimeoutError::Timeout) => {
                self.unanswered.push((key, answer));
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

/// Locks a mutex whose content is whole at every moment, so that a thread that panicked while it held the lock does not
/// keep the others from it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Questions, background, lock};
    use std::sync::{Arc, Mutex, mpsc::channel};

    #[test]
    fn a_device_that_does_not_answer_is_left_and_its_late_answer_taken() {
        let (release, held) = channel::<()>();
        let (limit, mut questions) = (std::time::Duration::from_millis(20), Questions::default());
        let late = move || held.recv().map_or(7, |()| 1);
        assert_eq!(questions.ask("late", "sda", limit, late), None);
        assert_eq!(questions.ask("prompt", "sdb", std::time::Duration::from_secs(9), || 2), Some(2));
        assert_eq!(questions.ask("again", "sda", limit, || 3), None, "one question at a time");
        release.send(()).unwrap();
        let answer = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            questions.ask("again", "sda", limit, || 3)
        });
        assert_eq!(answer, Some(1));
        assert_eq!(questions.ask("again", "sda", std::time::Duration::from_secs(9), || 4), Some(4));
    }

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
