//! Whether a source can be reached through one card: names by the card's own name servers, connections by the card
//! only.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::choice::Reach;
use super::names::Resolver;
use super::target::{self, PageVerdict, Target};
use crate::chain::chain;
use crate::sys::net::bound;
use crate::sys::net::link::Link;
use crate::sys::thread::background;

/// Time for one connection.
const ONE: Duration = Duration::from_secs(3);
/// Time for its answer, nearly as long as requests wait.
const ANSWER: Duration = Duration::from_secs(20);
/// Time until something is said of a trial, although a slow source may still answer: names may take 5 s.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Time for everything.
const ALL: Duration = Duration::from_secs(30);
/// Head start of an address over the next one.
const HEAD_START: Duration = Duration::from_millis(200);
/// Addresses of a name that are tried.
const MOST_ADDRESSES: usize = 8;
/// Bytes of an answer that are looked at.
const MOST_BYTES: usize = 16 << 10;
/// Characters of it that are shown.
const MOST_SHOWN: usize = 60;

/// Way to the sources that is tried.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// Link to try.
    pub(super) link: Link,
    /// Name servers and domains of its network.
    pub(super) servers: Vec<IpAddr>,
    pub(super) search: Vec<String>,
    /// Name servers of the other cards, each with its link: used when the own ones know nothing.
    pub(super) others: Vec<(IpAddr, Link)>,
    /// Number of what the card was given, which the trial has too.
    pub(super) given: u64,
}

/// Result of a trial.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ReachTrial {
    pub(super) reach: Reach,
    /// Addresses of the source that was reached, which lead through the link from now on.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether the name was looked up by the name servers of other cards.
    pub(super) foreign_names: bool,
    /// What was reached, or why nothing was.
    pub(super) text: String,
    /// Number of what the card was given.
    pub(super) given: u64,
}

/// Tries all targets at the same time; the first that is a source decides. What is known after [`FIRST_WORD`] is
/// reported, and what comes after it if that is better.
pub(super) fn attempt(way: &Way, targets: &[Target], report: impl Fn(ReachTrial)) {
    let (sender, trials) = channel();
    let connects = Arc::new(AtomicBool::new(false));
    for target in targets {
        let (sender, way, target, connects) = (sender.clone(), way.clone(), target.clone(), Arc::clone(&connects));
        let _ = background("reach", move || {
            let _ = sender.send(reach_one(&way, &target, &connects));
        });
    }
    drop(sender);
    let begun = Instant::now();
    let said = |trial: &ReachTrial| report(ReachTrial { given: way.given, ..trial.clone() });
    let (mut best, mut first_word) = (no("nothing answered in time".to_owned()), None);
    let mut nothing_yet = true;
    loop {
        let until = begun + if first_word.is_none() { FIRST_WORD } else { ALL };
        match trials.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(trial) if trial.reach == Reach::Yes => return said(&trial),
            Ok(trial) => {
                if nothing_yet || trial.reach > best.reach {
                    best = trial;
                }
                nothing_yet = false;
            }
            Err(RecvTimeoutError::Timeout) if first_word.is_none() => {
                if best.reach == Reach::No && connects.load(Ordering::Relaxed) {
                    let text = format!("what it connects to has not answered within {} s", FIRST_WORD.as_secs());
                    best = ReachTrial { reach: Reach::Doubtful, ..no(text) };
                }
                said(&best);
                first_word = Some(best.reach);
            }
            Err(_) => {
                if first_word.is_none_or(|before| best.reach > before) {
                    said(&best);
                }
                return;
            }
        }
    }
}

/// A trial in vain.
pub(super) fn no(text: String) -> ReachTrial {
    ReachTrial { reach: Reach::No, text, ..ReachTrial::default() }
}

fn reach_one(way: &Way, target: &Target, connects: &Arc<AtomicBool>) -> ReachTrial {
    let system = Resolver::of_system();
    let own: Vec<(IpAddr, &Link)> = way.servers.iter().map(|server| (*server, &way.link)).collect();
    let mut last = no(format!("{target} was not tried"));
    if !own.is_empty() || way.others.is_empty() || target.host.parse::<IpAddr>().is_ok() {
        last = by_names_of(way, target, &system.clone().of_interfaces(&own, &way.search), connects);
        if last.reach > Reach::No {
            return last;
        }
    }
    // An own name server that knows nothing, or answers every question with itself.
    let others: Vec<(IpAddr, &Link)> = way.others.iter().map(|(server, link)| (*server, link)).collect();
    if others.is_empty() || target.host.parse::<IpAddr>().is_ok() {
        return last;
    }
    let foreign = by_names_of(way, target, &system.of_interfaces(&others, &way.search), connects);
    if foreign.reach > last.reach || own.is_empty() { ReachTrial { foreign_names: true, ..foreign } } else { last }
}

fn by_names_of(way: &Way, target: &Target, resolver: &Resolver, connects: &Arc<AtomicBool>) -> ReachTrial {
    let addresses = match resolver.lookup(&target.host) {
        Ok(addresses) => addresses,
        Err(error) => return no(chain(&error)),
    };
    let (reach, text) = race(&way.link, target, &addresses, connects);
    let addresses = addresses.into_iter().take(MOST_ADDRESSES).collect();
    ReachTrial { reach, addresses, text, ..ReachTrial::default() }
}

/// Tries the addresses, each with a head start over the next.
fn race(link: &Link, target: &Target, addresses: &[IpAddr], connects: &Arc<AtomicBool>) -> (Reach, String) {
    let (sender, results) = channel();
    let mut waiting = addresses.iter().take(MOST_ADDRESSES);
    let mut running = 0;
    let mut best = (Reach::No, format!("{target} has no address"));
    loop {
        let next = waiting.next();
        if let Some(&address) = next {
            running += usize::from(spawn(link, target, SocketAddr::new(address, target.port), &sender, connects));
        } else if running == 0 {
            return best;
        }
        match results.recv_timeout(if next.is_some() { HEAD_START } else { ALL }) {
            Ok((Reach::Yes, text)) => return (Reach::Yes, text),
            Ok(result) => {
                running -= 1;
                if result.0 > best.0 || best.0 == Reach::No {
                    best = result;
                }
            }
            Err(_) if next.is_none() => return best,
            Err(_) => {}
        }
    }
}

fn spawn(
    link: &Link,
    target: &Target,
    address: SocketAddr,
    sender: &Sender<(Reach, String)>,
    connects: &Arc<AtomicBool>,
) -> bool {
    let (sender, name, target, connects) = (sender.clone(), link.name.clone(), target.clone(), Arc::clone(connects));
    background(&format!("probe {address}"), move || {
        let result = connect(&name, address, &target, &connects).unwrap_or_else(|error| {
            let why = if is_late(&error) { "no answer".to_owned() } else { error.to_string() };
            (Reach::No, format!("{target} cannot be reached through it ({address}: {why})"))
        });
        let _ = sender.send(result);
    })
    .is_ok()
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn connect(
    interface: &str,
    address: SocketAddr,
    target: &Target,
    connects: &AtomicBool,
) -> io::Result<(Reach, String)> {
    let mut stream = bound::tcp(Some(interface), address, ONE)?;
    let Some(request) = &target.request else { return Ok((Reach::Yes, format!("it reaches {target}"))) };
    connects.store(true, Ordering::Relaxed);
    let (verdict, answer) = match ask(&mut stream, request, target) {
        Err(error) if is_late(&error) => {
            return Ok((Reach::Doubtful, format!("{target} takes connections through it and does not answer")));
        }
        result => result?,
    };
    Ok(match verdict {
        PageVerdict::Source => (Reach::Yes, format!("it reaches {target}")),
        PageVerdict::OtherPage => {
            let line = String::from_utf8_lossy(&answer);
            let line: String = line.lines().next().unwrap_or_default().escape_debug().take(MOST_SHOWN).collect();
            (Reach::Doubtful, format!("what answers as {target} through it has no release ({line})"))
        }
        PageVerdict::NeedsMore | PageVerdict::NotHttp => {
            (Reach::Doubtful, format!("what answers as {target} through it is no release server"))
        }
    })
}

/// Sends the request, and reads until the answer shows what it is.
fn ask(stream: &mut TcpStream, request: &str, target: &Target) -> io::Result<(PageVerdict, Vec<u8>)> {
    let until = Instant::now() + ANSWER;
    stream.set_write_timeout(Some(ONE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let verdict = target::verdict(&answer, target);
        if verdict != PageVerdict::NeedsMore || answer.len() >= MOST_BYTES {
            return Ok((verdict, answer));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok((verdict, answer));
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((verdict, answer)),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
