//! What the serial console of a virtual machine shows: text to wait for, and lines for a person to follow.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines for a person that stand for a progress bar, which the robot redraws twice a second.
const REDRAWN_LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The text of the serial console that no wait has passed yet.
#[derive(Default)]
pub(super) struct Screen {
    state: Mutex<ScreenState>,
    changed: Condvar,
}

#[derive(Default)]
struct ScreenState {
    unread: VecDeque<u8>,
    closed: bool,
}

/// How a wait for a pattern went.
pub(super) enum Wait {
    /// A pattern was shown.
    Found {
        /// Number of the pattern.
        pattern: usize,
        /// The text up to the end of the pattern.
        text: String,
    },
    /// The machine ended before.
    Ended {
        /// The text since the previous wait.
        unread: String,
    },
    /// The time was over before.
    TimedOut {
        /// The text since the previous wait.
        unread: String,
    },
}

impl Screen {
    /// Reads the console until QEMU closes it. With `shown`, its lines are printed on standard error.
    pub(super) fn read_all(&self, output: &mut impl Read, mut log: File, shown: bool) {
        let mut buffer = [0; 4096];
        let mut filter = EscapeFilter::default();
        let mut lines = ShownLines::default();
        loop {
            let len = output.read(&mut buffer).unwrap_or(0);
            // The log is for people who look after a failure; a full disk must not stop the machine.
            let _ = log.write_all(&buffer[..len]);
            let mut text = Vec::with_capacity(len);
            for byte in &buffer[..len] {
                let step = filter.step(*byte);
                if let Step::Text(byte) = step {
                    text.push(byte);
                }
                if shown && let Some(line) = lines.add(step, Instant::now()) {
                    // Before anybody who waits for it goes on, so that a step's lines stand above its end.
                    eprintln!("    | {line}");
                }
            }
            let mut state = self.lock();
            state.unread.extend(text);
            state.closed |= len == 0;
            self.changed.notify_all();
            if len == 0 {
                return;
            }
        }
    }

    /// Waits for the first of `patterns` and takes the text up to its end.
    pub(super) fn wait_for_any(&self, patterns: &[&str], timeout: Duration) -> Wait {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            let text = String::from_utf8_lossy(state.unread.make_contiguous()).into_owned();
            let first =
                (0..patterns.len()).filter_map(|n| text.find(patterns[n]).map(|at| (at + patterns[n].len(), n))).min();
            if let Some((end, pattern)) = first {
                // Lossy text may be longer than its bytes: what stays is taken from the text.
                state.unread = text.as_bytes()[end..].to_vec().into();
                return Wait::Found { pattern, text: text[..end].to_owned() };
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed {
                return Wait::Ended { unread: text };
            }
            if left.is_zero() {
                return Wait::TimedOut { unread: text };
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, ScreenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one byte of the console means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A byte of text, or the end of a line.
    Text(u8),
    /// The cursor goes back to the start of its line.
    Return,
    /// The cursor goes elsewhere: GRUB paints its menu in this way.
    Move,
    /// Part of a control sequence that changes no text.
    Nothing,
}

/// Takes terminal control sequences out, so that text is found however GRUB's menu paints it.
#[derive(Default)]
struct EscapeFilter {
    inside: bool,
    bracket: bool,
}

impl EscapeFilter {
    fn step(&mut self, byte: u8) -> Step {
        match (self.inside, byte) {
            (false, 0x1b) => (self.inside, self.bracket) = (true, false),
            (false, b'\r') => return Step::Return,
            (false, _) => return Step::Text(byte),
            (true, b'[') if !self.bracket => self.bracket = true,
            // Intermediate bytes, as in the choice of a character set.
            (true, 0x20..=0x2f) => {}
            // ECMA-48: a control sequence ends with a byte from 0x40 to 0x7e; other escapes have one byte.
            (true, 0x40..=0x7e) => {
                self.inside = false;
                if self.bracket && matches!(byte, b'H' | b'J' | b'f') {
                    return Step::Move;
                }
            }
            (true, _) => self.inside = self.bracket,
        }
        Step::Nothing
    }
}

/// Makes lines for a person of what the console shows: the lines of the boot menu, the recovery and the system. A
/// progress bar appears every few seconds, a count-down and the kernel's log not at all; they are in the serial log.
#[derive(Default)]
struct ShownLines {
    line: Vec<u8>,
    /// The cursor stands at the start of `line`: the next byte of text begins another line in its place.
    returned: bool,
    /// When a line was shown last that another one replaced.
    redrawn: Option<Instant>,
}

impl ShownLines {
    /// Takes one step of the console. Returns a line when one is complete and worth showing.
    fn add(&mut self, step: Step, now: Instant) -> Option<String> {
        match step {
            Step::Nothing => None,
            Step::Return => {
                self.returned = true;
                None
            }
            Step::Move | Step::Text(b'\n') => {
                self.returned = false;
                self.take()
            }
            Step::Text(byte) => {
                let replaced = if std::mem::take(&mut self.returned) { self.take() } else { None };
                self.line.push(byte);
                let due = self.redrawn.is_none_or(|last| now.duration_since(last) >= REDRAWN_LINE_INTERVAL);
                if replaced.is_some() && due {
                    self.redrawn = Some(now);
                    return replaced;
                }
                None
            }
        }
    }

    fn take(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        let has_words = line.chars().any(char::is_alphabetic);
        (has_words && !is_kernel_log(line)).then(|| line.to_owned())
    }
}

/// Whether a line is one of the kernel's, as in `[   36.285298] reboot: Restarting system`, and not one of reflash
/// among them, as in `[   70.257427] reflash[264]: this boot is good`.
fn is_kernel_log(line: &str) -> bool {
    let stamp = line.strip_prefix('[').and_then(|line| line.split_once("] "));
    stamp.is_some_and(|(stamp, text)| stamp.trim_start().parse::<f64>().is_ok() && !text.starts_with("reflash"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{EscapeFilter, REDRAWN_LINE_INTERVAL, ShownLines, Step};

    fn text(painted: &[u8]) -> String {
        let mut filter = EscapeFilter::default();
        let text = painted.iter().filter_map(|byte| match filter.step(*byte) {
            Step::Text(byte) => Some(byte),
            _ => None,
        });
        String::from_utf8(text.collect()).unwrap()
    }

    #[test]
    fn menus_become_plain_text() {
        assert_eq!(text(b"\x1b[0m\x1b[30;47m*Start\x1b[5;3H\x1b(B the\r\n system"), "*Start the\n system");
    }

    /// The lines that are shown of a console that writes each part at its own time.
    fn shown(parts: &[(Duration, &[u8])]) -> Vec<String> {
        let (mut filter, mut lines) = (EscapeFilter::default(), ShownLines::default());
        let start = Instant::now();
        let steps = parts.iter().flat_map(|(at, bytes)| bytes.iter().map(move |byte| (*at, *byte)));
        steps.filter_map(|(at, byte)| lines.add(filter.step(byte), start + at)).collect()
    }

    #[test]
    fn a_person_sees_the_menu_the_phases_and_the_system_but_no_count_down_and_no_kernel_log() {
        let console =
            b"\x1b[H\x1b[J\x1b[1;1HPress r: Recover/Reflash\n\r\x1b[2;1H1    \x1b[H\x1b[J\x1b[1;1HRecovery\n\r\
            [1/8] init: reflash\r\n[   36.285298] reboot: Restarting system\r\n\r\n\
            [   70.257427] reflash[264]: this boot is good\r\n\
            [\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mthing\x1b[0m.\r\n";
        let wanted = [
            "Press r: Recover/Reflash",
            "Recovery",
            "[1/8] init: reflash",
            "[   70.257427] reflash[264]: this boot is good",
            "[  OK  ] Started thing.",
        ];
        assert_eq!(shown(&[(Duration::ZERO, console)]), wanted);
    }

    #[test]
    fn a_progress_bar_is_shown_every_few_seconds_and_its_end_always() {
        let parts: [(Duration, &[u8]); 4] = [
            (Duration::ZERO, b"\r  10% MiB"),
            (REDRAWN_LINE_INTERVAL / 5, b"\r  20% MiB"),
            (REDRAWN_LINE_INTERVAL / 5 * 2, b"\r  30% MiB"),
            (REDRAWN_LINE_INTERVAL * 2, b"\r 100% MiB\r\n  write done\r\n"),
        ];
        assert_eq!(shown(&parts), ["  10% MiB", "  30% MiB", " 100% MiB", "  write done"]);
    }
}
