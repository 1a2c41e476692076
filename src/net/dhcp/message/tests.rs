//! Messages of servers, relays and strangers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Ask, COOKIE, FIXED_BYTES, Lease, MessageKind, Route, Sender, ServerAnswer, answer, checksum, frame};

const SENDER: Sender =
    Sender { mac: [2, 0, 0, 0, 0, 7], transaction: 0xdead_beef, elapsed_s: 3, wants_broadcast: false };
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 4, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 4, 77);

/// Start of the DHCP message in a frame without IP options.
const MESSAGE: usize = 14 + 20 + 8;

/// Options of a frame that the client sent.
pub(in super::super) fn options(frame: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    super::DhcpOptions::read(&frame[MESSAGE..]).0
}

/// The answer of a server, to be bent.
pub(in super::super) struct Reply {
    message: Vec<u8>,
    source: Ipv4Addr,
    ip_options: usize,
    options: Vec<u8>,
}

impl Reply {
    pub(in super::super) fn to(request: &[u8], kind: u8, server: Ipv4Addr, address: Ipv4Addr) -> Self {
        let request = &request[MESSAGE..];
        let mut message = vec![0; FIXED_BYTES];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[4..8].copy_from_slice(&request[4..8]);
        message[16..20].copy_from_slice(&address.octets());
        message[28..34].copy_from_slice(&request[28..34]);
        let this = Self { message, source: server, ip_options: 0, options: Vec::new() };
        let this = this.with(53, &[kind]);
        if server.is_unspecified() { this } else { this.with(54, &server.octets()) }
    }

    pub(in super::super) fn older_than_dhcp(request: &[u8], server: Ipv4Addr, address: Ipv4Addr) -> Self {
        Self { options: Vec::new(), ..Self::to(request, 0, server, address) }
    }

    pub(in super::super) fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.extend_from_slice(&[code, u8::try_from(value.len()).unwrap()]);
        self.options.extend_from_slice(value);
        self
    }

    pub(in super::super) fn frame(&self) -> Vec<u8> {
        let message = [&self.message[..], &COOKIE, &self.options, &[255]].concat();
        let mut frame = vec![0; 14 + 20 + self.ip_options * 4 + 8];
        frame[12] = 8;
        frame[14] = 0x45 + u8::try_from(self.ip_options).unwrap();
        frame[14 + 9] = 17;
        frame[26..30].copy_from_slice(&self.source.octets());
        let udp = 34 + self.ip_options * 4;
        frame[udp..udp + 4].copy_from_slice(&[0, 67, 0, 68]);
        frame.extend_from_slice(&message);
        frame
    }
}

fn reply(kind: u8) -> Reply {
    Reply::to(&frame(SENDER, Ask::Discover), kind, SERVER, ADDRESS)
}

fn lease(reply: &Reply) -> Lease {
    answer(&reply.frame(), SENDER).unwrap().lease
}

fn default_through(gateway: [u8; 4]) -> Vec<Route> {
    vec![Route::default_through(Ipv4Addr::from(gateway).into())]
}

#[test]
fn a_request_is_a_whole_packet() {
    let frame = frame(SENDER, Ask::Discover);
    assert_eq!(checksum(&[&frame[14..34]]), 0);
    let udp = &frame[34..];
    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
    assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
    let pseudo = [&frame[26..34], &[0, 17], &udp[4..6]].concat();
    assert_eq!(checksum(&[&pseudo, udp]), 0);
    assert!(frame.len() >= MESSAGE + 300);
    let options = options(&frame);
    assert_eq!((options[&53].as_slice(), options[&61].as_slice()), (&[1][..], &[1, 2, 0, 0, 0, 0, 7][..]));
    // RFC 3442: classless routes before routers.
    let wanted = &options[&55];
    let place = |code| wanted.iter().position(|one| *one == code).unwrap();
    assert!(place(121) < place(3) && [1, 6, 15, 26, 119].iter().all(|code| wanted.contains(code)));
}

#[test]
fn a_refusal_names_the_address_and_the_server_and_asks_for_nothing() {
    let frame = frame(SENDER, Ask::Decline { address: ADDRESS, server: SERVER });
    let options = options(&frame);
    assert_eq!(options[&53], [4]);
    assert_eq!((&options[&50][..], &options[&54][..]), (&ADDRESS.octets()[..], &SERVER.octets()[..]));
    assert!(!options.contains_key(&55) && !options.contains_key(&57));
    // RFC 2131, table 5: the address stands in the option alone.
    assert_eq!(frame[MESSAGE + 12..MESSAGE + 16], [0; 4]);
}

#[test]
fn everything_that_a_server_says_is_read() {
    let reply = reply(2)
        .with(1, &[255, 255, 252, 0])
        .with(3, &[192, 168, 4, 1, 192, 168, 4, 2])
        .with(6, &[192, 168, 4, 3, 9, 9, 9, 9, 1, 1, 1, 1, 8, 8, 8, 8, 8, 8, 4, 4])
        .with(15, b"Example.COM.")
        .with(26, &[5, 120])
        .with(51, &[0, 0, 14, 16])
        .with(58, &[0, 0, 7, 8])
        .with(119, b"\x03eng\x05apple\x03com\0\x09marketing\xc0\x04");
    assert_eq!(
        answer(&reply.frame(), SENDER).unwrap(),
        ServerAnswer {
            kind: MessageKind::Offer,
            server: SERVER,
            lease: Lease {
                address: ADDRESS,
                prefix_len: 22,
                // https://github.com/systemd/systemd/issues/440: several routers, the preferred one first.
                routes: [default_through([192, 168, 4, 1]), default_through([192, 168, 4, 2])].concat(),
                dns: vec![[192, 168, 4, 3].into(), [9; 4].into(), [1; 4].into(), [8; 4].into(), [8, 8, 4, 4].into()],
                // RFC 3397 has this example.
                search: vec!["example.com".into(), "eng.apple.com".into(), "marketing.apple.com".into()],
                mtu: Some(1400),
                duration: Some(Duration::from_secs(3600)),
                renew_after: Some(Duration::from_secs(1800)),
                server: SERVER,
                has_duration: true,
                has_mask: true,
            },
        }
    );
}

/// https://github.com/ipxe/ipxe/issues/1556
#[test]
fn classless_routes_replace_the_routers() {
    let routes = [
        &[32, 192, 168, 9, 9, 0, 0, 0, 0][..],
        &[0, 192, 168, 9, 9],
        &[8, 10, 192, 168, 4, 5],
        &[25, 10, 1, 2, 129, 192, 168, 4, 6],
    ]
    .concat();
    let lease = lease(&reply(5).with(3, &[192, 168, 4, 1]).with(121, &routes));
    let route = |destination: [u8; 4], prefix_len, gateway: Option<[u8; 4]>| Route {
        destination: destination.into(),
        prefix_len,
        gateway: gateway.map(Into::into),
    };
    assert_eq!(
        lease.routes,
        [
            route([192, 168, 9, 9], 32, None),
            route([0; 4], 0, Some([192, 168, 9, 9])),
            route([10, 0, 0, 0], 8, Some([192, 168, 4, 5])),
            route([10, 1, 2, 128], 25, Some([192, 168, 4, 6])),
        ]
    );
    // An option that is cut short keeps the routes before the cut; one that makes no sense at all leaves the routers in
    // force.
    let cut = self::lease(&reply(5).with(121, &routes[..16]));
    assert_eq!(cut.routes.len(), 2);
    let senseless = self::lease(&reply(5).with(3, &[192, 168, 4, 1]).with(121, &[77, 1, 2]));
    assert_eq!(senseless.routes, default_through([192, 168, 4, 1]));
}

/// https://github.com/smoltcp-rs/smoltcp/issues/445
#[test]
fn masks_that_are_missing_or_odd_stand_for_the_class() {
    for (mask, address, expected) in [
        (None, [192, 168, 4, 77], 24),
        (None, [10, 0, 0, 9], 8),
        (None, [172, 16, 0, 9], 16),
        (Some(vec![255, 0, 255, 0]), [10, 0, 0, 9], 8),
        (Some(vec![0, 0, 0, 0]), [10, 0, 0, 9], 8),
        (Some(vec![255, 255]), [10, 0, 0, 9], 8),
        (Some(vec![255, 255, 255, 255]), [10, 0, 0, 9], 32),
        (Some(vec![128, 0, 0, 0]), [10, 0, 0, 9], 1),
    ] {
        let reply = Reply::to(&frame(SENDER, Ask::Discover), 5, SERVER, address.into());
        let reply = if let Some(mask) = &mask { reply.with(1, mask) } else { reply };
        assert_eq!(lease(&reply).prefix_len, expected, "{mask:?}");
    }
}

#[test]
fn odd_options_cost_only_themselves() {
    let reply = reply(5)
        .with(0x7f, &[])
        .with(3, &[0, 0, 0, 0, 127, 0, 0, 1, 224, 0, 0, 1, 192, 168, 4, 9, 1, 2])
        .with(6, &[8, 8])
        .with(6, &[8, 8, 9, 9, 9, 9])
        .with(26, &[0, 68])
        .with(51, &[1])
        .with(15, b"bad\nnameserver 6.6.6.6")
        .with(119, b"\xc0\x00\x03abc");
    let lease = lease(&reply);
    assert_eq!(lease.routes, default_through([192, 168, 4, 9]));
    // RFC 3396: parts of one option are put together.
    assert_eq!(lease.dns, [Ipv4Addr::from([8; 4]), [9; 4].into()]);
    assert_eq!((lease.mtu, lease.duration), (None, None));
    assert_eq!(lease.search, ["bad", "nameserver", "6.6.6.6"]);
}

/// Linux takes IPv6 off a link that carries less than 1280 bytes.
#[test]
fn an_mtu_leaves_room_for_ipv6() {
    for (said, taken) in [(576, None), (577, Some(1280)), (1000, Some(1280)), (1280, Some(1280)), (9000, Some(9000))] {
        assert_eq!(lease(&reply(5).with(26, &u16::to_be_bytes(said))).mtu, taken, "{said}");
    }
}

#[test]
fn a_renewal_with_another_mask_is_another_configuration() {
    let granted = |mask| lease(&reply(5).with(1, &[255, 255, mask, 0]).with(51, &[0, 0, 3, 232]));
    assert!(granted(255).configures_as(&Lease { duration: None, ..granted(255) }));
    assert!(!granted(255).configures_as(&granted(0)));
}

/// What servers send beside: IPv6-only preferred (108), proxy configuration (252), long lists in several parts (RFC
/// 3396), empty options, times in no order, and a boot server that is none.
#[test]
fn what_is_of_no_use_here_does_no_harm() {
    // 160 bytes of domains, in two parts that are cut within a name.
    let domains: Vec<u8> =
        (0..16).flat_map(|number| [&[8][..], format!("domain{number:02}").as_bytes(), &[0]].concat()).collect();
    assert_eq!(domains.len(), 160);
    let empty = [1, 3, 6, 12, 15, 26, 28, 51, 58, 59, 66, 67, 119, 121, 252].into_iter();
    let mut reply = empty.fold(reply(5), |reply, code| reply.with(code, &[]));
    reply.message[20..24].fill(0xff);
    reply.message[44..236].fill(0xa5);
    let reply = reply
        .with(108, &[0, 0, 7, 8])
        .with(252, b"http://wpad.example/wpad.dat\n")
        .with(119, &domains[..77])
        .with(51, &[0, 0, 3, 232])
        .with(58, &[0, 1, 0, 0])
        .with(59, &[0, 0, 0, 1])
        .with(119, &domains[77..])
        .with(3, &[192, 168])
        .with(3, &[4, 1]);
    let lease = lease(&reply);
    assert_eq!((lease.address, lease.prefix_len, lease.mtu), (ADDRESS, 24, None));
    assert_eq!(lease.routes, default_through([192, 168, 4, 1]));
    let domains: Vec<String> = (0..16).map(|number| format!("domain{number:02}")).collect();
    assert_eq!(lease.search, domains);
    // The keeper takes the half of the lease where T1 lies behind its end.
    assert_eq!(
        (lease.duration, lease.renew_after),
        (Some(Duration::from_secs(1000)), Some(Duration::from_secs(65536)))
    );
    // An empty type is none, and so is that of a server older than DHCP.
    let mut untyped = self::reply(5);
    untyped.options = vec![53, 0, 3, 4, 192, 168, 4, 1];
    assert_eq!(answer(&untyped.frame(), SENDER).unwrap().kind, MessageKind::Bootp);
}

#[test]
fn options_may_go_on_in_the_fields_for_names() {
    let mut reply = reply(5).with(52, &[3]);
    reply.message[108..116].copy_from_slice(&[3, 4, 192, 168, 4, 1, 255, 0]);
    reply.message[44..51].copy_from_slice(&[6, 4, 9, 9, 9, 9, 255]);
    let lease = lease(&reply);
    assert_eq!((lease.routes, lease.dns), (default_through([192, 168, 4, 1]), vec![Ipv4Addr::from([9; 4])]));
}

#[test]
fn only_answers_to_this_exchange_count() {
    assert!(answer(&reply(2).frame(), SENDER).is_some());
    assert!(answer(&reply(2).frame(), Sender { transaction: 1, ..SENDER }).is_none());
    assert!(answer(&reply(2).frame(), Sender { mac: [9; 6], ..SENDER }).is_none());
    for kind in [1, 3, 4, 7, 8, 99] {
        assert!(answer(&reply(kind).frame(), SENDER).is_none(), "{kind}");
    }
    for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 5], [255; 4]] {
        let reply = Reply::to(&frame(SENDER, Ask::Discover), 2, SERVER, address.into());
        assert!(answer(&reply.frame(), SENDER).is_none(), "{address:?}");
    }
    // A header with options, and a server that does not say who it is.
    let mut with_ip_options = reply(2);
    with_ip_options.ip_options = 10;
    assert!(answer(&with_ip_options.frame(), SENDER).is_some());
    let mut nameless = reply(2);
    nameless.options = vec![53, 1, 2];
    assert_eq!(answer(&nameless.frame(), SENDER).unwrap().server, SERVER);
}

#[test]
fn no_frame_panics() {
    let good =
        reply(5).with(3, &[192, 168, 4, 1]).with(121, &[24, 10, 1, 2, 10, 0, 0, 1]).with(119, b"\x01a\0\xc0\0").frame();
    for length in 0..good.len() {
        let _ = answer(&good[..length], SENDER);
    }
    let mut state = 1_u64;
    for _ in 0..200_000 {
        let mut frame = good.clone();
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Beyond what makes it an answer to us.
            let at = MESSAGE + FIXED_BYTES + 4 + (state >> 33) as usize % (frame.len() - MESSAGE - FIXED_BYTES - 4);
            frame[at] = state.to_le_bytes()[3];
        }
        let _ = answer(&frame, SENDER);
    }
}
