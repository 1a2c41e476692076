//! What the network room reports: at most so many lines about each card, however often something changes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::options::OnEvent;
use crate::sys::thread::lock;

/// Lines about a card that may follow each other at once: what happens when a cable is plugged in.
const BURST: u32 = 8;
/// Time after which one more line may follow.
const PAUSE: Duration = Duration::from_secs(10);

/// Subject of a line. Of lines that have to wait, only the last one about a subject is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// Cable and card.
    Link,
    /// Addresses, routes and name servers.
    Address,
    /// Search for an address.
    Search,
    /// Whether the card is used, and why.
    Use,
    /// Refusals of the kernel.
    Trouble,
}

/// Lines about one card that are held back.
#[derive(Debug)]
struct Limit {
    left: u32,
    refilled: Duration,
    held: BTreeMap<Topic, String>,
}

impl Limit {
    fn new(now: Duration) -> Self {
        Self { left: BURST, refilled: now, held: BTreeMap::new() }
    }

    fn refill(&mut self, now: Duration) {
        while self.left < BURST && now.saturating_sub(self.refilled) >= PAUSE {
            self.left += 1;
            self.refilled += PAUSE;
        }
        if self.left == BURST {
            self.refilled = now;
        }
    }

    /// Returns the line if it may be reported now.
    fn say(&mut self, topic: Topic, text: String, now: Duration) -> Option<String> {
        self.refill(now);
        self.held.remove(&topic);
        if self.left == 0 {
            self.held.insert(topic, text);
            return None;
        }
        self.left -= 1;
        Some(text)
    }

    /// Returns a line that was held back, once it may be reported.
    fn overdue(&mut self, now: Duration) -> Option<String> {
        self.refill(now);
        if self.left == 0 {
            return None;
        }
        let (_, text) = self.held.pop_first()?;
        self.left -= 1;
        Some(text)
    }
}

/// Reports of the network room. All threads of a card share it.
pub(super) struct Console {
    began: Instant,
    on_event: OnEvent,
    cards: Mutex<BTreeMap<String, Limit>>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    pub(super) fn new(on_event: OnEvent) -> Self {
        Self { began: Instant::now(), on_event, cards: Mutex::default() }
    }

    /// Reports a line about a card, now or when it may be.
    pub(super) fn say(&self, card: &str, topic: Topic, text: String) {
        let now = self.began.elapsed();
        let line = {
            let mut cards = lock(&self.cards);
            cards.entry(card.to_owned()).or_insert_with(|| Limit::new(now)).say(topic, text, now)
        };
        if let Some(line) = line {
            (self.on_event)(&line);
        }
    }

    /// Reports what was held back and may be reported now.
    pub(super) fn flush(&self) {
        let now = self.began.elapsed();
        let lines: Vec<String> = lock(&self.cards).values_mut().filter_map(|limit| limit.overdue(now)).collect();
        lines.iter().for_each(|line| (self.on_event)(line));
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, Topic};
    use std::time::Duration;

    #[test]
    fn a_cable_that_flaps_for_an_hour_fills_no_console() {
        let mut limit = Limit::new(Duration::ZERO);
        let mut lines = Vec::new();
        for second in 0..3600 {
            let now = Duration::from_secs(second);
            let text = if second % 2 == 0 { "lost" } else { "up" };
            lines.extend(limit.say(Topic::Link, text.to_owned(), now));
            lines.extend(limit.overdue(now));
        }
        assert!((300..=370).contains(&lines.len()), "{}", lines.len());
        // The last word is reported in the end.
        let later = Duration::from_secs(4000);
        if let Some(last) = limit.overdue(later) {
            assert_eq!(last, "up");
        }
        assert_eq!(limit.overdue(later), None);
    }

    #[test]
    fn lines_of_a_start_are_reported_at_once() {
        let mut limit = Limit::new(Duration::ZERO);
        for _ in 0..8 {
            assert!(limit.say(Topic::Search, "text".to_owned(), Duration::ZERO).is_some());
        }
        assert_eq!(limit.say(Topic::Use, "one".to_owned(), Duration::ZERO), None);
        assert_eq!(limit.say(Topic::Use, "two".to_owned(), Duration::ZERO), None);
        assert_eq!(limit.overdue(Duration::from_secs(9)), None);
        assert_eq!(limit.overdue(Duration::from_secs(10)).as_deref(), Some("two"));
        assert_eq!(limit.overdue(Duration::from_secs(60)), None);
    }
}
