//! Whole objects that a server without ranges is still sending: the next range of the same object goes on where the one
//! before it ended. A request of its own for each would bring everything that lies before it once more.
//!
//! The ranges of such a server come one at a time and in order, however many connections ask: of several bodies of one
//! object, all but one would be dropped unread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use ureq::BodyReader;

use super::part::MAX_SKIP;
use crate::sys::thread::lock;

/// The most bodies that are kept: ranges of a release are of two packs at most for long.
const MOST: usize = 2;

/// A body that was read up to a place in its object.
pub(super) struct OpenBody {
    pub path: String,
    pub url: String,
    pub reader: BodyReader<'static>,
    /// Offset of its next byte in the object.
    pub at: u64,
    /// Size of the object, where the server said it.
    pub size_bytes: Option<u64>,
}

/// The bodies of one source.
#[derive(Default)]
pub(super) struct OpenBodies {
    state: Mutex<State>,
    turn_ended: Condvar,
    /// Whether the source is known to send whole objects.
    is_needed: AtomicBool,
}

#[derive(Default)]
struct State {
    bodies: Vec<OpenBody>,
    /// Whether somebody has the turn.
    is_taken: bool,
    /// Object and offset of those that wait for it.
    waiting: Vec<(String, u64)>,
}

/// The right to read from the source, which one thread has at a time.
pub(super) struct Turn<'b>(&'b OpenBodies);

impl OpenBodies {
    /// Waits for the turn for a range that begins at `offset`: of one object, the foremost comes first.
    pub(super) fn turn(&self, path: &str, offset: u64) -> Turn<'_> {
        let own = (path.to_owned(), offset);
        let mut state = lock(&self.state);
        state.waiting.push(own.clone());
        while state.is_taken || state.waiting.iter().any(|other| *other < own) {
            state = self.turn_ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_taken = true;
        if let Some(place) = state.waiting.iter().position(|other| *other == own) {
            state.waiting.remove(place);
        }
        Turn(self)
    }

    /// Whether nobody has the turn or waits for it.
    pub(super) fn is_free(&self) -> bool {
        let state = lock(&self.state);
        !state.is_taken && state.waiting.is_empty()
    }

    /// Drops all that are not being read.
    pub(super) fn drop_all(&self) {
        lock(&self.state).bodies.clear();
    }

    /// Waits for the turn if the source is known to send whole objects.
    pub(super) fn turn_if_needed(&self, path: &str, offset: u64) -> Option<Turn<'_>> {
        self.is_needed.load(Ordering::Relaxed).then(|| self.turn(path, offset))
    }
}

impl Turn<'_> {
    /// Takes the body of an object that is nearest before `offset`, if one is near enough.
    pub(super) fn take(&self, path: &str, offset: u64) -> Option<OpenBody> {
        let bodies = &mut lock(&self.0.state).bodies;
        let distance = |body: &OpenBody| offset.checked_sub(body.at).filter(|skip| *skip <= MAX_SKIP);
        let fits = |body: &OpenBody| body.path == path && distance(body).is_some();
        let fitting = bodies.iter().enumerate().filter(|(_, body)| fits(body));
        let nearest = fitting.min_by_key(|(_, body)| distance(body))?.0;
        Some(bodies.remove(nearest))
    }

    /// Drops those of one object.
    pub(super) fn drop_all_of(&self, path: &str) {
        lock(&self.0.state).bodies.retain(|body| body.path != path);
    }

    /// Keeps a body, in the place of the oldest.
    pub(super) fn keep(&self, body: OpenBody) {
        self.0.is_needed.store(true, Ordering::Relaxed);
        let bodies = &mut lock(&self.0.state).bodies;
        if bodies.len() >= MOST {
            bodies.remove(0);
        }
        bodies.push(body);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).is_taken = false;
        self.0.turn_ended.notify_all();
    }
}
