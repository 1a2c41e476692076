//! Long steps: each has a name, shows that it is alive and ends with its duration.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time after which a step first says that it is at work: nobody waits for a shorter one.
const FIRST_SIGN: Duration = Duration::from_secs(30);
/// Time between two signs.
const NEXT_SIGN: Duration = Duration::from_secs(60);

/// Number of steps that have begun and not ended, within one another: only the innermost gives signs.
static DEPTH: AtomicUsize = AtomicUsize::new(0);
/// File that a tool which runs now writes to.
static OUTPUT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Runs one named step and prints how long it took. One that takes minutes says meanwhile that it is at work, and where
/// the output of its tool can be read.
///
/// # Errors
/// Whatever `work` returns, with the step's name in front.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    if std::io::stderr().is_terminal() {
        eprint!("  {name} ...\r");
        let _ = std::io::stderr().flush();
    } else {
        eprintln!("  {name} ...");
    }
    let result = while_giving_signs((FIRST_SIGN, NEXT_SIGN), work, &|| eprintln!("{}", sign(name, started.elapsed())));
    let seconds = started.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("  {name}: done in {seconds:.1} s"),
        Err(_) => eprintln!("  {name}: FAILED after {seconds:.1} s"),
    }
    result.with_context(|| name.to_owned())
}

/// Notes the file that a tool of the present step writes to, for as long as the tool runs.
pub fn note_output(file: Option<&Path>) {
    *OUTPUT.lock().unwrap_or_else(PoisonError::into_inner) = file.map(Path::to_owned);
}

fn sign(name: &str, elapsed: Duration) -> String {
    let output = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
    let output = output.as_ref().map_or_else(String::new, |path| format!("; its output is in {}", path.display()));
    format!("  {name}: at work for {} s{output}", elapsed.as_secs())
}

/// Does the work, and calls `give_sign` after the first pause and then after each of the second.
fn while_giving_signs<T>(
    (first, next): (Duration, Duration),
    work: impl FnOnce() -> T,
    give_sign: &(impl Fn() + Sync),
) -> T {
    let depth = DEPTH.fetch_add(1, Ordering::Relaxed) + 1;
    // Also where the work panics: the steps around it go on giving signs.
    let _inside = Inside;
    thread::scope(|scope| {
        // The end of the work drops the sender, which ends the thread at once.
        let (_working, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            let mut pause = first;
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                if DEPTH.load(Ordering::Relaxed) == depth {
                    give_sign();
                }
                pause = next;
            }
        });
        work()
    })
}

struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{note_output, sign, while_giving_signs};
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    #[test]
    fn a_long_step_says_that_it_is_at_work_and_a_short_one_is_not_delayed() {
        let signs = AtomicUsize::new(0);
        let give = || {
            signs.fetch_add(1, Ordering::Relaxed);
        };
        let (soon, late) = (Duration::from_millis(5), Duration::from_secs(600));
        let wait = || {
            let started = Instant::now();
            while signs.load(Ordering::Relaxed) < 3 && started.elapsed() < Duration::from_secs(20) {
                thread::sleep(Duration::from_millis(5));
            }
        };
        while_giving_signs((soon, soon), wait, &give);
        assert!(signs.load(Ordering::Relaxed) >= 3);
        let started = Instant::now();
        assert_eq!(while_giving_signs((late, late), || 7, &give), 7);
        assert!(started.elapsed() < Duration::from_secs(60), "the end of the work is not waited for");
    }

    #[test]
    fn a_sign_names_the_output_of_the_tool_that_runs() {
        assert_eq!(sign("a", Duration::from_secs(90)), "  a: at work for 90 s");
        note_output(Some(Path::new("/w/logs/a.log")));
        assert!(sign("a", Duration::from_secs(90)).ends_with("; its output is in /w/logs/a.log"));
        note_output(None);
    }
}
