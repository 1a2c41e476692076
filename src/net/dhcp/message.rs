//! DHCPv4 messages (RFC 2131, RFC 2132) in the frames that carry them. Pure.
//!
//! The reader is lenient, since servers, relays and strangers on the segment send what they like: an option that makes
//! no sense is left out and the rest is read. The crate `dhcproto` was looked at: it stops at the first malformed
//! option, keeps only the last of several parts of one option (RFC 3396), and does not read options in the fields
//! `sname` and `file` (option 52), so a lease could lose its routers to one odd byte.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::addresses::{MOST_ENTRIES, address_at, class_prefix_len, is_host};
use super::domains;
use super::routes::{self, RouteOptions};
use crate::sys::net::items::Route;

/// Kind of a message (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageKind {
    /// That of a server older than DHCP, which grants what it answers with, for ever (RFC 1534, 2).
    Bootp = 0,
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
}

mod code {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTERS: u8 = 3;
    pub(super) const NAME_SERVERS: u8 = 6;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    /// Routes by the class of their destination, RFC 2132, 5.8.
    pub(super) const CLASSFUL_ROUTES: u8 = 33;
    pub(super) const OVERLOAD: u8 = 52;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const WANTED: u8 = 55;
    pub(super) const MAX_SIZE: u8 = 57;
    pub(super) const RENEWAL_TIME: u8 = 58;
    pub(super) const CLIENT_ID: u8 = 61;
    pub(super) const SEARCH: u8 = 119;
    /// Classless routes, RFC 3442.
    pub(super) const ROUTES: u8 = 121;
    /// The same, by the number that Windows had for it before.
    pub(super) const ROUTES_OF_WINDOWS: u8 = 249;
    pub(super) const PAD: u8 = 0;
    pub(super) const END: u8 = 255;
}

/// Options that the client asks for. Classless routes come first: RFC 3442 wants them before the routers.
const WANTED: [u8; 12] = [
    code::ROUTES,
    code::ROUTES_OF_WINDOWS,
    code::MASK,
    code::ROUTERS,
    code::CLASSFUL_ROUTES,
    code::NAME_SERVERS,
    code::DOMAIN,
    code::MTU,
    code::LEASE_TIME,
    code::RENEWAL_TIME,
    code::SERVER,
    code::SEARCH,
];

const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Fixed part of a message, up to the cookie.
const FIXED_BYTES: usize = 236;
/// Least length of a message: old relays drop shorter ones (BOOTP's size, RFC 1542, 2.1).
const LEAST_MESSAGE_BYTES: usize = 300;
const BOOTREPLY: u8 = 2;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Least MTU that is believed. 576 is mostly the line of a server's template and no property of the link: dhclient's
/// script ignores it too.
const LEAST_MTU: u16 = 577;
/// Least MTU that is set: below, Linux takes IPv6 off the link (RFC 8200, 5). TCP finds a narrower path by itself.
const LEAST_SET_MTU: u16 = 1280;
/// Lease time of an endless lease, RFC 2131, 3.3.
const FOR_EVER: u32 = u32::MAX;

/// Identity of the client in one exchange, as every request carries it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    /// Hardware address of the card.
    pub(super) mac: [u8; 6],
    /// Number of the exchange.
    pub(super) transaction: u32,
    /// Time since the exchange began, seconds.
    pub(super) elapsed_s: u16,
    /// Whether answers are to be broadcast.
    pub(super) wants_broadcast: bool,
}

/// Subject of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// Any offer.
    Discover,
    /// The address that `server` offered.
    Select { address: Ipv4Addr, server: Ipv4Addr },
    /// None: the address that `server` granted belongs to another machine.
    Decline { address: Ipv4Addr, server: Ipv4Addr },
    /// The address that is in use already, from whichever server (REBINDING).
    Keep { address: Ipv4Addr },
}

/// Answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerAnswer {
    pub(super) kind: MessageKind,
    /// Option 54, or the source of the packet where that is missing.
    pub(super) server: Ipv4Addr,
    pub(super) lease: Lease,
}

/// Lease that a DHCP server offers or grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Address leased to us.
    pub address: Ipv4Addr,
    /// Prefix length of the address.
    pub prefix_len: u8,
    /// Routes of the lease; without any, only the subnet can be reached.
    pub routes: Vec<Route>,
    /// Addresses of the name servers, in the server's order.
    pub dns: Vec<Ipv4Addr>,
    /// Domains to search for short names, the machine's own first.
    pub search: Vec<String>,
    /// Largest packet that the link carries, bytes, where the server says so.
    pub mtu: Option<u16>,
    /// Duration of the lease; `None` for an endless one.
    pub duration: Option<Duration>,
    /// Time after which to renew it, T1; `None` where the server leaves it to the client.
    pub renew_after: Option<Duration>,
    /// Address of the DHCP server.
    pub server: Ipv4Addr,
    /// Whether the server named the duration; otherwise it is endless.
    pub has_duration: bool,
    /// Whether the server named the mask; otherwise the prefix length is that of the address's class.
    pub has_mask: bool,
}

impl Lease {
    /// Whether the link is configured by this lease as by the other one.
    pub fn configures_as(&self, other: &Self) -> bool {
        let of = |lease: &Self| (lease.address, lease.prefix_len, lease.routes.clone(), lease.dns.clone(), lease.mtu);
        of(self) == of(other)
    }

    /// Takes what this lease does not say from one that the same server offered or granted before: some servers leave
    /// options out of all messages but one.
    pub(super) fn completed(mut self, known: &Self) -> Self {
        if !self.has_mask && known.has_mask {
            (self.prefix_len, self.has_mask) = (known.prefix_len, true);
        }
        if self.routes.is_empty() {
            self.routes.clone_from(&known.routes);
        }
        if self.dns.is_empty() {
            self.dns.clone_from(&known.dns);
        }
        if self.search.is_empty() {
            self.search.clone_from(&known.search);
        }
        if !self.has_duration && known.has_duration {
            (self.duration, self.has_duration) = (known.duration, true);
        }
        self.renew_after = self.renew_after.or(known.renew_after);
        self.mtu = self.mtu.or(known.mtu);
        self
    }
}

/// Makes the frame of a request: a broadcast, from an address that this machine does not have yet.
pub(super) fn frame(sender: Sender, ask: Ask) -> Vec<u8> {
    let message = message(sender, ask);
    let udp_bytes = 8 + message.len();
    let total = u16::try_from(20 + udp_bytes).unwrap_or(u16::MAX);
    let source = if let Ask::Keep { address } = ask { address } else { Ipv4Addr::UNSPECIFIED };
    let mut ip = [0_u8; 20];
    ip[0] = 0x45;
    // Interactive traffic of the network itself, as other clients mark it.
    ip[1] = 0x10;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].fill(0xff);
    let checksum = checksum(&[&ip]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());

    let length = u16::try_from(udp_bytes).unwrap_or(u16::MAX).to_be_bytes();
    let mut udp = Vec::with_capacity(udp_bytes);
    udp.extend_from_slice(&CLIENT_PORT.to_be_bytes());
    udp.extend_from_slice(&SERVER_PORT.to_be_bytes());
    udp.extend_from_slice(&length);
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(&message);
    let pseudo = [&ip[12..20], &[0, 17], &length[..]].concat();
    // Zero would mean that there is no checksum.
    let checksum = match self::checksum(&[&pseudo, &udp]) {
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(14 + 20 + udp.len());
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&sender.mac);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&udp);
    frame
}

fn message(sender: Sender, ask: Ask) -> Vec<u8> {
    let mut out = vec![0; FIXED_BYTES];
    out[..4].copy_from_slice(&[1, 1, 6, 0]);
    out[4..8].copy_from_slice(&sender.transaction.to_be_bytes());
    out[8..10].copy_from_slice(&sender.elapsed_s.to_be_bytes());
    out[10] = u8::from(sender.wants_broadcast) << 7;
    if let Ask::Keep { address } = ask {
        out[12..16].copy_from_slice(&address.octets());
    }
    out[28..34].copy_from_slice(&sender.mac);
    out.extend_from_slice(&COOKIE);
    let mut option = |code: u8, value: &[u8]| {
        out.push(code);
        out.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(value);
    };
    let kind = match ask {
        Ask::Discover => MessageKind::Discover,
        Ask::Select { .. } | Ask::Keep { .. } => MessageKind::Request,
        Ask::Decline { .. } => MessageKind::Decline,
    };
    option(code::KIND, &[kind as u8]);
    // Ethernet and the address, as most clients send it: a server then knows us again after a reflash.
    option(code::CLIENT_ID, &[&[1], &sender.mac[..]].concat());
    if let Ask::Select { address, server } | Ask::Decline { address, server } = ask {
        option(code::REQUESTED_ADDRESS, &address.octets());
        option(code::SERVER, &server.octets());
    }
    // A server may drop a refusal that asks for something (RFC 2131, table 5).
    if kind != MessageKind::Decline {
        option(code::WANTED, &WANTED);
        option(code::MAX_SIZE, &1500_u16.to_be_bytes());
    }
    out.push(code::END);
    out.resize(out.len().max(LEAST_MESSAGE_BYTES), code::PAD);
    out
}

/// The one's complement sum of RFC 1071 over parts of even length, the last of which may be odd.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

/// Reads the answer in a frame, if it is one to `sender`. `None` for everything else, however it is made.
///
/// UDP checksums are not looked at: a sender that is a container or a virtual machine on the same host leaves them to a
/// card that the frame never meets.
pub(super) fn answer(frame: &[u8], sender: Sender) -> Option<ServerAnswer> {
    let ip = frame.get(14..)?;
    if frame.get(12..14)? != [0x08, 0x00] || ip.first()? >> 4 != 4 || *ip.get(9)? != 17 {
        return None;
    }
    let header_bytes = usize::from(ip.first()? & 0xf) * 4;
    let source = address_at(ip, 12)?;
    let udp = ip.get(header_bytes.max(20)..)?;
    if udp.get(2..4)? != CLIENT_PORT.to_be_bytes() {
        return None;
    }
    let message = udp.get(8..)?;
    let is_ours = message.get(..4)?[..3] == [BOOTREPLY, 1, 6]
        && message.get(4..8)? == sender.transaction.to_be_bytes()
        && message.get(28..34)? == sender.mac;
    if !is_ours || message.get(FIXED_BYTES..FIXED_BYTES + 4)? != COOKIE {
        return None;
    }
    let options = DhcpOptions::read(message);
    let kind = match options.first_byte(code::KIND).unwrap_or(0) {
        0 => MessageKind::Bootp,
        2 => MessageKind::Offer,
        5 => MessageKind::Ack,
        6 => MessageKind::Nak,
        _ => return None,
    };
    let server = options.address(code::SERVER).filter(|server| is_host(*server)).unwrap_or(source);
    let address = address_at(message, 16)?;
    // A refusal has no address; an offer without a usable address is left out.
    if kind != MessageKind::Nak && !is_host(address) {
        return None;
    }
    Some(ServerAnswer { kind, server, lease: options.lease(address, server) })
}

/// Options by code, those in several parts put together (RFC 3396).
struct DhcpOptions(BTreeMap<u8, Vec<u8>>);

impl DhcpOptions {
    fn read(message: &[u8]) -> Self {
        let mut options = Self(BTreeMap::new());
        options.add(message.get(FIXED_BYTES + 4..).unwrap_or_default());
        // `file`, then `sname`, may hold more of them.
        let overload = options.first_byte(code::OVERLOAD).unwrap_or(0);
        for (bit, field) in [(1, 108..236), (2, 44..108)] {
            if overload & bit != 0 {
                options.add(message.get(field).unwrap_or_default());
            }
        }
        options
    }

    /// Adds the options of one field, up to its end or the first that reaches beyond it.
    fn add(&mut self, mut field: &[u8]) {
        while let Some((&code, rest)) = field.split_first() {
            match code {
                code::END => return,
                code::PAD => field = rest,
                _ => {
                    let Some((&length, rest)) = rest.split_first() else { return };
                    let Some((value, rest)) = rest.split_at_checked(length.into()) else { return };
                    self.0.entry(code).or_default().extend_from_slice(value);
                    field = rest;
                }
            }
        }
    }

    fn get(&self, code: u8) -> &[u8] {
        self.0.get(&code).map(Vec::as_slice).unwrap_or_default()
    }

    fn first_byte(&self, code: u8) -> Option<u8> {
        self.get(code).first().copied()
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        address_at(self.get(code), 0)
    }

    /// Addresses of machines in a list; others are left out, and so is what is left of one.
    fn hosts(&self, code: u8) -> Vec<Ipv4Addr> {
        let addresses = self.get(code).chunks_exact(4).filter_map(|four| address_at(four, 0));
        addresses.filter(|address| is_host(*address)).take(MOST_ENTRIES).collect()
    }

    fn seconds(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code).get(..4)?.try_into().ok()?))
    }

    fn lease(&self, address: Ipv4Addr, server: Ipv4Addr) -> Lease {
        let seconds = self.seconds(code::LEASE_TIME).filter(|seconds| *seconds != FOR_EVER);
        Lease {
            address,
            prefix_len: self.prefix_len(address),
            routes: routes::of(&RouteOptions {
                classless: [code::ROUTES, code::ROUTES_OF_WINDOWS].map(|code| self.get(code)),
                classful: self.get(code::CLASSFUL_ROUTES),
                routers: &self.hosts(code::ROUTERS),
            }),
            dns: self.hosts(code::NAME_SERVERS),
            search: domains::search(self.get(code::DOMAIN), self.get(code::SEARCH)),
            mtu: self.mtu(),
            duration: seconds.map(|seconds| Duration::from_secs(seconds.into())),
            has_duration: self.seconds(code::LEASE_TIME).is_some(),
            renew_after: self.seconds(code::RENEWAL_TIME).map(|seconds| Duration::from_secs(seconds.into())),
            server,
            has_mask: !self.get(code::MASK).is_empty(),
        }
    }

    /// A mask that is missing or has holes stands for that of the address's class, as other clients take it.
    fn prefix_len(&self, address: Ipv4Addr) -> u8 {
        let mask = self.address(code::MASK).map(u32::from);
        match mask {
            Some(mask) if mask != 0 && mask.leading_ones() + mask.trailing_zeros() == 32 => {
                u8::try_from(mask.leading_ones()).unwrap_or(32)
            }
            _ => class_prefix_len(address),
        }
    }

    fn mtu(&self) -> Option<u16> {
        let bytes = self.get(code::MTU).get(..2)?;
        let mtu = Some(u16::from_be_bytes(bytes.try_into().ok()?)).filter(|mtu| *mtu >= LEAST_MTU);
        mtu.map(|mtu| mtu.max(LEAST_SET_MTU))
    }
}

#[cfg(test)]
pub(super) mod tests;
