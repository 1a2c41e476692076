//! One name server: both kinds of address over UDP, and over TCP what did not fit.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

use super::server::NameServer;
use crate::sys::net::bound;

/// Waits for an answer before the question is sent again: a lost packet costs a second.
const AGAIN: Duration = Duration::from_secs(1);
/// Largest answer over UDP that is taken; servers send 512 bytes, or those that EDNS asks for.
const MOST_UDP_BYTES: usize = 4096;

/// Bytes before the question.
const HEADER_BYTES: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;

/// What came of one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Addresses, at least one.
    Addresses(Vec<IpAddr>),
    /// No address, and why.
    Failed(String),
}

/// Asks one server for both kinds. `report` gets each outcome as it comes, and says whether
/// anybody still waits.
pub(super) fn ask(server: &NameServer, name: &str, until: Instant, report: impl Fn(Outcome) -> bool + Sync) {
    // What is asked for over TCP keeps nobody from hearing the answer to the other question.
    let result = thread::scope(|scope| ask_by_udp(server, name, until, &report, scope));
    if let Err(error) = result {
        report(Outcome::Failed(error.to_string()));
    }
}

fn ask_by_udp<'s, R: Fn(Outcome) -> bool + Sync>(
    server: &'s NameServer,
    name: &'s str,
    until: Instant,
    report: &'s R,
    scope: &'s thread::Scope<'s, '_>,
) -> io::Result<()> {
    // Connected: the kernel drops what comes from elsewhere, and says when nobody listens there.
    let socket = bound::udp(server.interface.as_deref(), server.address)?;
    socket.connect(server.address)?;
    let random = RandomState::new().hash_one(name);
    let [a, b, c, d, ..] = random.to_le_bytes();
    let kinds = [(TYPE::A, u16::from_le_bytes([a, b])), (TYPE::AAAA, u16::from_le_bytes([c, d]))];
    let mut open: Vec<(TYPE, u16, Vec<u8>)> =
        kinds.into_iter().map(|(kind, id)| Ok((kind, id, question(name, kind, id)?))).collect::<io::Result<_>>()?;
    let mut buffer = [0; MOST_UDP_BYTES];
    while !open.is_empty() {
        for (_, _, question) in &open {
            socket.send(question)?;
        }
        let again = (Instant::now() + AGAIN).min(until);
        while !open.is_empty() {
            let left = again.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(at) = open.iter().position(|(kind, id, _)| is_answer(&buffer[..length], *id, name, *kind)) else {
                continue;
            };
            let (kind, id, question) = open.swap_remove(at);
            let Some(outcome) = read(&buffer[..length], kind) else {
                // Cut short, or not to be read: TCP has room for all of it.
                let sent = Sent { name, kind, id, bytes: question };
                let (fitted, longer) = (addresses(&buffer[..length]), with_room(&sent.bytes));
                let ask = move || _ = report(over_tcp(server, &sent, fitted, until));
                thread::Builder::new().spawn_scoped(scope, ask)?;
                // Where TCP is closed, as with some forwarders, a larger packet may come.
                if let Some(longer) = longer {
                    socket.send(&longer)?;
                    open.push((kind, id, longer));
                }
                continue;
            };
            if !report(outcome) {
                return Ok(());
            }
        }
        if Instant::now() >= until {
            report(Outcome::Failed("no answer".into()));
            return Ok(());
        }
    }
    Ok(())
}

/// A question as it was sent.
struct Sent<'a> {
    name: &'a str,
    kind: TYPE,
    id: u16,
    bytes: Vec<u8>,
}

/// Asks once more over TCP, whose answers have room for everything. What fitted into the short answer is better than
/// nothing where TCP is closed.
fn over_tcp(server: &NameServer, question: &Sent<'_>, fitted: Vec<IpAddr>, until: Instant) -> Outcome {
    let failed = match ask_by_tcp(server, &question.bytes, until) {
        Ok(answer) if is_answer(&answer, question.id, question.name, question.kind) => {
            match read(&answer, question.kind) {
                Some(outcome @ Outcome::Addresses(_)) => return outcome,
                Some(Outcome::Failed(text)) => text,
                None => "its answer cannot be read".to_owned(),
            }
        }
        Ok(_) => "its answer over TCP is to another question".to_owned(),
        Err(error) => {
            let is_late = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            let why = if is_late { "none comes in time".to_owned() } else { error.to_string() };
            format!("its answer is cut short, and over TCP: {why}")
        }
    };
    if fitted.is_empty() { Outcome::Failed(failed) } else { Outcome::Addresses(fitted) }
}

fn ask_by_tcp(server: &NameServer, question: &[u8], until: Instant) -> io::Result<Vec<u8>> {
    let patience = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = bound::tcp(server.interface.as_deref(), server.address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    read_until(&mut stream, &mut length, until)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    read_until(&mut stream, &mut answer, until)?;
    Ok(answer)
}

/// Fills the buffer in time, however few bytes come at a time.
fn read_until(stream: &mut TcpStream, buffer: &mut [u8], until: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn question(name: &str, kind: TYPE, id: u16) -> io::Result<Vec<u8>> {
    let name = Name::new(name).map_err(|_| io::Error::other("it is not a name that can be asked for"))?;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().map_err(io::Error::other)
}

/// The question with room for an answer that is larger than UDP's 512 bytes (RFC 6891), unless it has that already.
fn with_room(question: &[u8]) -> Option<Vec<u8>> {
    // One more record: the root's, of type OPT, with 1232 bytes, which fit into any packet of IPv6.
    const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
    let (head, rest) = question.split_at_checked(HEADER_BYTES)?;
    head.ends_with(&[0, 0]).then(|| [&head[..HEADER_BYTES - 2], &[0, 1], rest, &OPT].concat())
}

/// Whether bytes answer this question. Only the head and the question are read: the rest may be cut.
pub(super) fn is_answer(bytes: &[u8], id: u16, name: &str, kind: TYPE) -> bool {
    let answers = bytes.get(..2) == Some(&id.to_be_bytes()[..]) && bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
    // Servers that fail may leave the question out.
    if !answers || bytes.get(4..6) == Some(&[0, 0]) {
        return answers;
    }
    let mut asked = Vec::new();
    for label in name.split('.') {
        asked.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        asked.extend_from_slice(label.as_bytes());
    }
    asked.extend_from_slice(&[0]);
    let Some(found) = bytes.get(12..12 + asked.len()) else { return false };
    found.eq_ignore_ascii_case(&asked)
        && bytes.get(12 + asked.len()..14 + asked.len()) == Some(&u16::from(kind).to_be_bytes()[..])
}

/// What an answer says; `None` when it is cut short or cannot be read.
pub(super) fn read(bytes: &[u8], kind: TYPE) -> Option<Outcome> {
    const TRUNCATED: u8 = 0x02;
    if bytes.get(2)? & TRUNCATED != 0 {
        return None;
    }
    let addresses = addresses(bytes);
    if !addresses.is_empty() {
        return Some(Outcome::Addresses(addresses));
    }
    let packet = Packet::parse(bytes).ok();
    let code = match &packet {
        Some(packet) => packet.rcode(),
        None => RCODE::from(u16::from(bytes.get(3)? & 0x0f)),
    };
    if packet.is_none() && code == RCODE::NoError {
        return None;
    }
    let what = if kind == TYPE::AAAA { "IPv6" } else { "IPv4" };
    Some(Outcome::Failed(match code {
        RCODE::NoError => format!("has no {what} address"),
        RCODE::NameError => "knows no such name".to_owned(),
        RCODE::Refused => format!("refuses to answer for {what}"),
        other => format!("cannot answer for {what} ({other:?})"),
    }))
}

/// The addresses among the answers, as far as these can be read: a record of another kind that is malformed, or an end
/// that is cut off, does not cost the addresses before it. Every address belongs to the name, be it through an alias.
fn addresses(bytes: &[u8]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let count = |at: usize| bytes.get(at..at + 2).map_or(0, |count| u16::from_be_bytes([count[0], count[1]]));
    let (questions, answers) = (count(4), count(6));
    let mut at = HEADER_BYTES;
    for _ in 0..questions {
        let Some(end) = end_of_name(bytes, at) else { return addresses };
        at = end + 4;
    }
    for _ in 0..answers {
        let Some(head) = end_of_name(bytes, at) else { break };
        let Some(&[kind_high, kind_low, _, _, _, _, _, _, high, low]) = bytes.get(head..head + 10) else { break };
        let end = head + 10 + usize::from(u16::from_be_bytes([high, low]));
        let Some(data) = bytes.get(head + 10..end) else { break };
        let address = match u16::from_be_bytes([kind_high, kind_low]) {
            A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        // Filters answer with the unspecified address for names that they do not like.
        addresses.extend(address.filter(|address| !address.is_unspecified()));
        at = end;
    }
    addresses
}

/// The place behind a name, which ends with an empty label or with a pointer.
fn end_of_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            label @ 1..=63 => at += 1 + usize::from(label),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, is_answer, question, read};
    use simple_dns::TYPE;

    #[test]
    fn a_question_is_answered_only_by_its_own_answer() {
        let question = question("images.example.com", TYPE::A, 0x1234).unwrap();
        assert!(!is_answer(&question, 0x1234, "images.example.com", TYPE::A), "a question is no answer");
        let mut answer = question.clone();
        answer[2] |= 0x80;
        assert!(is_answer(&answer, 0x1234, "images.example.com", TYPE::A));
        assert!(is_answer(&answer, 0x1234, "IMAGES.example.com", TYPE::A));
        assert!(!is_answer(&answer, 0x1235, "images.example.com", TYPE::A));
        assert!(!is_answer(&answer, 0x1234, "images.example.org", TYPE::A));
        assert!(!is_answer(&answer, 0x1234, "images.example.com", TYPE::AAAA));
        assert_eq!(read(&answer, TYPE::A), Some(Outcome::Failed("has no IPv4 address".into())));
        answer[2] |= 2;
        assert_eq!(read(&answer, TYPE::A), None);
    }

    #[test]
    fn no_bytes_panic() {
        let mut answer = question("a.b", TYPE::A, 7).unwrap();
        answer[2] |= 0x80;
        // An answer that points at itself.
        answer[7] = 1;
        answer.extend_from_slice(&[0xc0, 0x11, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4]);
        let mut state = 9_u64;
        for _ in 0..100_000 {
            let mut bytes = answer.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let [value, at, ..] = state.to_be_bytes();
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            let _ = (is_answer(&bytes, 7, "a.b", TYPE::A), read(&bytes, TYPE::A));
        }
        for length in 0..answer.len() {
            let _ = read(&answer[..length], TYPE::A);
        }
    }
}
