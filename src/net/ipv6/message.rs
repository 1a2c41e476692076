//! DHCPv6 messages (RFC 8415, RFC 3646, RFC 7083). Pure.
//!
//! The reader is as lenient as that of DHCPv4: an option that makes no sense is left out and the rest is read. The
//! crate `dhcproto` was looked at: it stops at the first malformed option, and brings a decoder for domain names with
//! it, of which there is one here already.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::super::dhcp::search_domains;
use super::advert::is_host;

mod code {
    pub(super) const CLIENT_ID: u16 = 1;
    pub(super) const SERVER_ID: u16 = 2;
    pub(super) const IA_NA: u16 = 3;
    pub(super) const IA_ADDRESS: u16 = 5;
    pub(super) const WANTED: u16 = 6;
    pub(super) const PREFERENCE: u16 = 7;
    pub(super) const ELAPSED: u16 = 8;
    pub(super) const STATUS: u16 = 13;
    pub(super) const NAME_SERVERS: u16 = 23;
    pub(super) const SEARCH: u16 = 24;
    pub(super) const REFRESH: u16 = 32;
}

/// Options that the client asks for.
const WANTED: [u16; 2] = [code::NAME_SERVERS, code::SEARCH];
/// Largest number of entries of a list that is taken.
const MOST_ENTRIES: usize = 8;
/// Longest identifier of a server (RFC 8415, 11.1).
const MOST_ID_BYTES: usize = 130;
/// Lifetime of what lasts for ever.
const FOR_EVER: u32 = u32::MAX;

/// Kind of a message that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dhcp6Ask {
    Solicit = 1,
    Request = 3,
    Renew = 5,
    Rebind = 6,
    Decline = 9,
    Information = 11,
}

/// Kind of a message that a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dhcp6AnswerKind {
    Advertise,
    Reply,
}

/// Identity of the client in one exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dhcp6Sender {
    /// Hardware address of the card: the identity that servers know the machine by, also after a reflash.
    pub(super) mac: [u8; 6],
    /// Number of the exchange, of which 24 bits are sent.
    pub(super) transaction: u32,
    /// Time since the exchange began, in hundredths of a second.
    pub(super) elapsed_cs: u16,
}

/// What a DHCPv6 server gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dhcp6Given {
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) name_servers: Vec<Ipv6Addr>,
    pub(super) search: Vec<String>,
    /// Time for which the addresses are given; `None` for ever.
    pub(super) duration: Option<Duration>,
    /// Time after which the server is asked to go on, T1, where the server says so.
    pub(super) renew_after: Option<Duration>,
    /// Time after which any server is asked, T2, where the server says so.
    pub(super) rebind_after: Option<Duration>,
    /// Time after which name servers are asked for again, where the server says so.
    pub(super) refresh_after: Option<Duration>,
}

/// Dhcp6Answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dhcp6Answer {
    pub(super) kind: Dhcp6AnswerKind,
    /// Identifier of the server.
    pub(super) server: Vec<u8>,
    /// Reason for which the server gives nothing, as a number (RFC 8415, 21.13).
    pub(super) refusal: Option<u16>,
    /// How much the server is to be preferred to others.
    pub(super) preference: u8,
    pub(super) given: Dhcp6Given,
}

/// Makes a message: to one server if there is one, about these addresses.
pub(super) fn message(sender: Dhcp6Sender, ask: Dhcp6Ask, server: Option<&[u8]>, addresses: &[Ipv6Addr]) -> Vec<u8> {
    let [_, a, b, c] = sender.transaction.to_be_bytes();
    let mut out = vec![ask as u8, a, b, c];
    // Link-layer address of Ethernet (DUID-LL): it needs no memory.
    let mut id = vec![0, 3, 0, 1];
    id.extend_from_slice(&sender.mac);
    put(&mut out, code::CLIENT_ID, &id);
    if let Some(server) = server {
        put(&mut out, code::SERVER_ID, server);
    }
    put(&mut out, code::ELAPSED, &sender.elapsed_cs.to_be_bytes());
    let wanted: Vec<u8> = WANTED.iter().flat_map(|code| code.to_be_bytes()).collect();
    if ask == Dhcp6Ask::Information {
        put(&mut out, code::WANTED, &[&wanted[..], &code::REFRESH.to_be_bytes()].concat());
        return out;
    }
    put(&mut out, code::WANTED, &wanted);
    // One association; its number is part of the card's address. The server chooses the times.
    let mut association = sender.mac[2..].to_vec();
    association.extend_from_slice(&[0; 8]);
    for address in addresses {
        put(&mut association, code::IA_ADDRESS, &[&address.octets()[..], &[0; 8]].concat());
    }
    put(&mut out, code::IA_NA, &association);
    out
}

fn put(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(value);
}

/// Reads an answer to `sender`. `None` for everything else, however it is made.
pub(super) fn answer(bytes: &[u8], sender: Dhcp6Sender) -> Option<Dhcp6Answer> {
    let kind = match bytes.first()? {
        2 => Dhcp6AnswerKind::Advertise,
        7 => Dhcp6AnswerKind::Reply,
        _ => return None,
    };
    if bytes.get(1..4)? != &sender.transaction.to_be_bytes()[1..] {
        return None;
    }
    let options = bytes.get(4..)?;
    let client = first(options, code::CLIENT_ID)?;
    if client.get(4..)? != sender.mac {
        return None;
    }
    let server = first(options, code::SERVER_ID).filter(|id| !id.is_empty() && id.len() <= MOST_ID_BYTES)?;
    let mut answer = Dhcp6Answer {
        kind,
        server: server.to_vec(),
        refusal: status(options),
        preference: first(options, code::PREFERENCE).and_then(|value| value.first().copied()).unwrap_or_default(),
        given: Dhcp6Given::default(),
    };
    let given = &mut answer.given;
    let servers = first(options, code::NAME_SERVERS).unwrap_or_default().chunks_exact(16).filter_map(address);
    given.name_servers = servers.filter(|server| is_host(*server)).take(MOST_ENTRIES).collect();
    given.search = search_domains(&[], first(options, code::SEARCH).unwrap_or_default());
    given.refresh_after = first(options, code::REFRESH).and_then(|value| time(value, 0));
    let own = sender.mac[2..].to_vec();
    let associations = each(options).filter(|(code, value)| *code == code::IA_NA && value.get(..4) == Some(&own[..]));
    for (_, association) in associations {
        let Some(inner) = association.get(12..) else { continue };
        answer.refusal = answer.refusal.or_else(|| status(inner));
        given.renew_after = time(association, 4).filter(|time| !time.is_zero());
        given.rebind_after = time(association, 8).filter(|time| !time.is_zero());
        for (_, value) in each(inner).filter(|(code, _)| *code == code::IA_ADDRESS) {
            given.take_address(value);
        }
    }
    Some(answer)
}

impl Dhcp6Given {
    /// Takes an address with its lifetimes. One whose time is over is left out.
    fn take_address(&mut self, value: &[u8]) -> Option<()> {
        let address = value.get(..16).and_then(address).filter(|address| is_host(*address))?;
        let valid_s = u32::from_be_bytes(value.get(20..24)?.try_into().ok()?);
        let refused = status(value.get(24..).unwrap_or_default()).is_some();
        if valid_s > 0 && !refused && !address.is_unicast_link_local() && self.addresses.len() < MOST_ENTRIES {
            self.addresses.push(address);
            let valid = (valid_s != FOR_EVER).then(|| Duration::from_secs(valid_s.into()));
            self.duration = [self.duration, valid].into_iter().flatten().min();
        }
        Some(())
    }
}

/// Options of a message or of an association, up to the first that reaches beyond its end.
fn each(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(4)?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes([head[2], head[3]]).into())?;
        bytes = rest;
        Some((u16::from_be_bytes([head[0], head[1]]), value))
    })
}

fn first(options: &[u8], code: u16) -> Option<&[u8]> {
    each(options).find(|(found, _)| *found == code).map(|(_, value)| value)
}

/// The status, unless it is that of success.
fn status(options: &[u8]) -> Option<u16> {
    let value = first(options, code::STATUS)?;
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?)).filter(|status| *status != 0)
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    Some(bytes.into())
}

fn time(bytes: &[u8], at: usize) -> Option<Duration> {
    let seconds = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    (seconds != FOR_EVER).then(|| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Dhcp6Answer, Dhcp6AnswerKind, Dhcp6Ask, Dhcp6Sender, answer, code, message, put};
    use std::net::Ipv6Addr;
    use std::time::Duration;

    pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const SENDER: Dhcp6Sender = Dhcp6Sender { mac: MAC, transaction: 0x00ab_cdef, elapsed_cs: 0 };

    /// An answer of a server to the exchange `transaction`, with these options after the identifiers.
    pub(crate) fn from_server(kind: u8, transaction: u32, server: &[u8], options: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&transaction.to_be_bytes()[1..]);
        put(&mut out, code::CLIENT_ID, &[&[0, 3, 0, 1][..], &MAC].concat());
        put(&mut out, code::SERVER_ID, server);
        options.iter().for_each(|(code, value)| put(&mut out, *code, value));
        out
    }

    /// An association with one address, T1, T2 and the valid lifetime in seconds.
    pub(crate) fn association(address: &str, t1: u32, t2: u32, valid: u32) -> (u16, Vec<u8>) {
        let mut value = MAC[2..].to_vec();
        value.extend_from_slice(&t1.to_be_bytes());
        value.extend_from_slice(&t2.to_be_bytes());
        let address = address.parse::<Ipv6Addr>().unwrap().octets();
        put(&mut value, code::IA_ADDRESS, &[&address[..], &valid.to_be_bytes()[..], &valid.to_be_bytes()[..]].concat());
        (code::IA_NA, value)
    }

    pub(crate) fn no_address() -> (u16, Vec<u8>) {
        let mut value = MAC[2..].to_vec();
        value.extend_from_slice(&[0; 8]);
        put(&mut value, code::STATUS, &[0, 2, b'n', b'o']);
        (code::IA_NA, value)
    }

    fn name_servers(servers: &[&str]) -> (u16, Vec<u8>) {
        let octets = servers.iter().flat_map(|server| server.parse::<Ipv6Addr>().unwrap().octets());
        (code::NAME_SERVERS, octets.collect())
    }

    fn read(options: &[(u16, Vec<u8>)]) -> Dhcp6Answer {
        answer(&from_server(7, SENDER.transaction, &[9], options), SENDER).unwrap()
    }

    #[test]
    fn a_request_names_client_server_and_addresses() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let bytes = message(SENDER, Dhcp6Ask::Request, Some(&[9, 9]), &[address]);
        assert_eq!(bytes[..4], [3, 0xab, 0xcd, 0xef]);
        assert!(bytes.windows(6).any(|window| window == [0, 2, 0, 2, 9, 9]));
        assert!(bytes.windows(16).any(|window| window == address.octets()));
        let information = message(SENDER, Dhcp6Ask::Information, None, &[]);
        assert!(!information.windows(2).any(|window| window == [0, 3].map(|byte: u8| byte)) || information[0] == 11);
    }

    #[test]
    fn a_reply_gives_address_times_and_name_servers() {
        let mut domain = vec![3];
        domain.extend_from_slice(b"lab\x07example\x00");
        let answer = read(&[
            association("2001:db8::1:7", 300, 480, 600),
            name_servers(&["2001:db8::53", "ff02::1", "fe80::1"]),
            (code::SEARCH, domain),
            (code::REFRESH, 7200_u32.to_be_bytes().to_vec()),
        ]);
        assert_eq!((answer.kind, answer.refusal), (Dhcp6AnswerKind::Reply, None));
        let given = answer.given;
        assert_eq!(given.addresses, ["2001:db8::1:7".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(given.name_servers.len(), 2, "a group is no name server");
        assert_eq!(given.search, ["lab.example"]);
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!((given.renew_after, given.rebind_after), (seconds(300), seconds(480)));
        assert_eq!((given.duration, given.refresh_after), (seconds(600), seconds(7200)));
        let endless = read(&[association("2001:db8::1:7", u32::MAX, u32::MAX, u32::MAX)]).given;
        assert_eq!((endless.duration, endless.renew_after, endless.addresses.len()), (None, None, 1));
    }

    #[test]
    fn refusals_and_answers_to_others_are_recognised() {
        assert_eq!(read(&[no_address()]).refusal, Some(2));
        assert_eq!(read(&[(code::STATUS, vec![0, 5])]).refusal, Some(5));
        assert_eq!(read(&[(code::STATUS, vec![0, 0])]).refusal, None);
        assert!(read(&[association("2001:db8::7", 0, 0, 0)]).given.addresses.is_empty(), "its time is over");
        let good = from_server(7, SENDER.transaction, &[9], &[]);
        let other = |sender| answer(&good, sender).is_none();
        assert!(other(Dhcp6Sender { transaction: 1, ..SENDER }) && other(Dhcp6Sender { mac: [0; 6], ..SENDER }));
        assert!(answer(&from_server(7, SENDER.transaction, &[], &[]), SENDER).is_none());
        assert!(answer(&from_server(7, SENDER.transaction, &[0; 200], &[]), SENDER).is_none());
        assert!(answer(&message(SENDER, Dhcp6Ask::Solicit, None, &[]), SENDER).is_none());
    }

    #[test]
    fn no_bytes_panic() {
        let whole = from_server(
            7,
            SENDER.transaction,
            &[9],
            &[association("2001:db8::7", 1, 2, 3), name_servers(&["2001:db8::53"]), no_address()],
        );
        let mut state = 3_u64;
        for _ in 0..100_000 {
            let mut bytes = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let [value, at, ..] = state.to_be_bytes();
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            let _ = answer(&bytes, SENDER);
        }
        (0..whole.len()).for_each(|length| _ = answer(&whole[..length], SENDER));
    }
}
