//! Exchanges as they happen in the field, with the clock and the frames in the hands of the test.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::super::message::tests::{Reply, options};
use super::{ClientStep, DhcpClient, Lease};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 50);

/// Answers to one frame, given its kind (1 DISCOVER, 3 REQUEST).
type Answers<'a> = &'a dyn Fn(u8, &[u8]) -> Vec<Vec<u8>>;

/// A segment: what happens to each frame that the client sends.
struct Segment<'a> {
    client: DhcpClient,
    now: Duration,
    discovers: Vec<Duration>,
    reports: Vec<(Duration, String)>,
    answers: Answers<'a>,
}

impl<'a> Segment<'a> {
    fn new(held: Option<&Lease>, answers: Answers<'a>) -> Self {
        Self {
            client: DhcpClient::new(MAC, 7, held, &[]),
            now: Duration::ZERO,
            discovers: vec![],
            reports: vec![],
            answers,
        }
    }

    fn run(&mut self, seconds: u64) -> Option<Lease> {
        let end = Duration::from_secs(seconds);
        let mut steps = 0;
        while self.now < end {
            steps += 1;
            assert!(steps < 10_000, "it loops without a pause at {:?}", self.now);
            let step = self.client.step(self.now);
            self.reports.extend(self.client.take_report().map(|text| (self.now, text)));
            match step {
                ClientStep::Wait(time) => self.now += time.max(Duration::from_millis(1)),
                ClientStep::Send(frame) => {
                    let kind = options(&frame)[&53][0];
                    if kind == 1 {
                        self.discovers.push(self.now);
                    }
                    for answer in (self.answers)(kind, &frame) {
                        if let Some(lease) = self.client.receive(&answer, self.now) {
                            return Some(lease);
                        }
                    }
                }
            }
            self.reports.extend(self.client.take_report().map(|text| (self.now, text)));
        }
        None
    }

    fn assert_calm(&self) {
        for pair in self.discovers.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_secs(1), "{:?}", self.discovers);
        }
        for pair in self.reports.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= Duration::from_secs(10), "{:?}", self.reports);
        }
    }
}

fn offer(request: &[u8], server: Ipv4Addr) -> Vec<u8> {
    Reply::to(request, 2, server, ADDRESS).frame()
}

fn ack(request: &[u8], server: Ipv4Addr) -> Vec<u8> {
    Reply::to(request, 5, server, ADDRESS).frame()
}

fn nak(request: &[u8], server: Ipv4Addr) -> Vec<u8> {
    Reply::to(request, 6, server, Ipv4Addr::UNSPECIFIED).frame()
}

// https://github.com/home-assistant/addons/issues/2973, https://github.com/NetworkManager/NetworkManager/pull/93
#[test]
fn answers_to_one_machine_or_to_all_are_asked_for_in_turn() {
    for passes_broadcasts in [false, true] {
        let answers = |kind: u8, frame: &[u8]| {
            let is_broadcast = frame[14 + 20 + 8 + 10] & 0x80 != 0;
            match (is_broadcast == passes_broadcasts, kind) {
                (false, _) => vec![],
                (true, 1) => vec![offer(frame, SERVER)],
                (true, _) => vec![ack(frame, SERVER)],
            }
        };
        let mut segment = Segment::new(None, &answers);
        assert_eq!(segment.run(10).map(|lease| lease.address), Some(ADDRESS), "{passes_broadcasts}");
        segment.assert_calm();
    }
}

/// RFC 1534, 2: a server that is older than DHCP answers a DISCOVER by what it grants. Debian's dhclient takes it.
#[test]
fn a_server_older_than_dhcp_is_used_where_no_other_offers() {
    let bootp = |request: &[u8]| Reply::older_than_dhcp(request, OTHER, ADDRESS).with(3, &[10, 9, 0, 1]).frame();
    let answers = |_, request: &[u8]| vec![bootp(request)];
    let mut segment = Segment::new(None, &answers);
    let lease = segment.run(60).unwrap();
    assert_eq!((lease.address, lease.server, lease.duration, lease.routes.len()), (ADDRESS, OTHER, None, 1));
    assert_eq!(segment.discovers.len(), 3);
    // One that offers, if late, goes first.
    let both = |kind, request: &[u8]| match kind {
        1 => vec![bootp(request), offer(request, SERVER)],
        _ => vec![bootp(request), ack(request, SERVER)],
    };
    assert_eq!(Segment::new(None, &both).run(60).unwrap().server, SERVER);
}

#[test]
fn a_server_that_answers_grants_at_once() {
    let answers = |kind, request: &[u8]| {
        if kind == 1 {
            return vec![offer(request, SERVER)];
        }
        let asked = options(request);
        assert_eq!((&asked[&50][..], &asked[&54][..]), (&ADDRESS.octets()[..], &SERVER.octets()[..]));
        vec![ack(request, SERVER)]
    };
    let mut segment = Segment::new(None, &answers);
    let lease = segment.run(10).unwrap();
    assert_eq!((lease.address, lease.server, segment.now), (ADDRESS, SERVER, Duration::ZERO));
}

#[test]
fn no_answer_is_asked_for_again_with_growing_pauses() {
    let mut segment = Segment::new(None, &|_, _| vec![]);
    assert_eq!(segment.run(300), None);
    segment.assert_calm();
    assert!((8..16).contains(&segment.discovers.len()), "{:?}", segment.discovers);
    assert!(segment.reports[0].1.contains("no DHCP answer yet"));
}

/// https://github.com/systemd/systemd/pull/2450 and https://github.com/zephyrproject-rtos/zephyr/issues/50868
#[test]
fn a_refusal_counts_only_from_the_server_that_was_asked() {
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER), offer(request, OTHER)],
        _ => vec![nak(request, OTHER), ack(request, SERVER)],
    };
    let lease = Segment::new(None, &answers).run(10).unwrap();
    assert_eq!(lease.server, SERVER);
}

/// https://github.com/ipxe/ipxe/pull/879
#[test]
fn a_server_that_refuses_its_own_offers_is_asked_ever_more_seldom() {
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER)],
        _ => vec![nak(request, SERVER)],
    };
    let mut segment = Segment::new(None, &answers);
    assert_eq!(segment.run(600), None);
    segment.assert_calm();
    assert!(segment.discovers.len() < 60, "{:?}", segment.discovers);
    assert!(segment.reports.iter().any(|(_, text)| text.contains("10.9.0.1 refuses")), "{:?}", segment.reports);
}

#[test]
fn after_a_refusal_the_other_server_gets_its_turn() {
    // The one that refuses always answers first.
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER), offer(request, OTHER)],
        _ if options(request)[&54] == SERVER.octets() => vec![nak(request, SERVER)],
        _ => vec![ack(request, OTHER)],
    };
    let mut segment = Segment::new(None, &answers);
    let lease = segment.run(30).unwrap();
    assert_eq!(lease.server, OTHER);
    assert!(segment.now < Duration::from_secs(5), "{:?}", segment.now);
}

/// https://github.com/libremesh/lime-packages/issues/658: of two servers, the one that answers first has a network that
/// leads nowhere.
#[test]
fn a_server_whose_lease_is_of_no_use_is_passed_over_for_a_while() {
    let both = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER), offer(request, OTHER)],
        _ if options(request)[&54] == SERVER.octets() => vec![ack(request, SERVER)],
        _ => vec![ack(request, OTHER)],
    };
    let passing_over = |servers: &[(Ipv4Addr, u64)], answers| {
        let servers: Vec<(Ipv4Addr, Duration)> =
            servers.iter().map(|(server, until_s)| (*server, Duration::from_secs(*until_s))).collect();
        Segment { client: DhcpClient::new(MAC, 7, None, &servers), ..Segment::new(None, answers) }
    };
    let mut segment = passing_over(&[(SERVER, 20)], &both);
    assert_eq!((segment.run(20).unwrap().server, segment.now), (OTHER, Duration::ZERO));
    // Where every other server was tried before, it has its turn again.
    let mut segment = passing_over(&[(OTHER, 10), (SERVER, 20)], &both);
    assert_eq!(segment.run(20).unwrap().server, OTHER);
    assert!(segment.now >= Duration::from_secs(10), "{:?}", segment.now);
    segment.assert_calm();
    let mut alone = passing_over(&[(SERVER, 20)], &|_, request| vec![offer(request, SERVER)]);
    assert_eq!(alone.run(20), None);
    assert!(alone.discovers.len() <= 3, "{:?}", alone.discovers);
}

#[test]
fn an_offer_whose_server_then_falls_silent_is_given_up() {
    let answers = |kind, request: &[u8]| if kind == 1 { vec![offer(request, SERVER)] } else { vec![] };
    let mut segment = Segment::new(None, &answers);
    assert_eq!(segment.run(120), None);
    segment.assert_calm();
    assert!(segment.discovers.len() > 3, "{:?}", segment.discovers);
    assert!(segment.reports.iter().any(|(_, text)| text.contains("does not grant it")), "{:?}", segment.reports);
}

#[test]
fn the_first_to_offer_does_not_win_for_ever_when_it_never_grants() {
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER), offer(request, OTHER)],
        _ if options(request)[&54] == SERVER.octets() => vec![],
        _ => vec![ack(request, OTHER)],
    };
    let mut segment = Segment::new(None, &answers);
    assert_eq!(segment.run(60).unwrap().server, OTHER);
    assert!(segment.now < Duration::from_secs(20), "{:?}", segment.now);
    segment.assert_calm();
}

#[test]
fn a_grant_of_another_address_counts_from_the_server_that_was_asked() {
    let elsewhere = Ipv4Addr::new(10, 9, 0, 77);
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER)],
        _ => [OTHER, SERVER].map(|server| Reply::to(request, 5, server, elsewhere).frame()).to_vec(),
    };
    let lease = Segment::new(None, &answers).run(10).unwrap();
    assert_eq!((lease.address, lease.server), (elsewhere, SERVER));
}

/// Of two servers behind one relay, or of a pair that shares the work, one offers and the other grants what it has.
#[test]
fn the_other_server_of_a_pair_may_grant_another_address() {
    let elsewhere = Ipv4Addr::new(10, 9, 0, 77);
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER)],
        _ => vec![Reply::to(request, 5, OTHER, elsewhere).frame()],
    };
    let mut segment = Segment::new(None, &answers);
    let lease = segment.run(10).unwrap();
    assert_eq!((lease.address, lease.server, segment.now), (elsewhere, OTHER, Duration::from_secs(2)));
}

#[test]
fn what_was_asked_for_may_be_granted_late_or_behind_a_refusal() {
    let first = RefCell::new(None);
    let answers = |kind, request: &[u8]| {
        if kind == 3 {
            first.borrow_mut().get_or_insert_with(|| request.to_vec());
        }
        if kind == 1 { vec![offer(request, SERVER)] } else { vec![] }
    };
    for (granted_s, is_taken) in [(14, true), (40, true), (90, false)] {
        first.take();
        let mut segment = Segment::new(None, &answers);
        assert_eq!(segment.run(granted_s), None);
        let request = first.take().unwrap();
        assert_eq!(segment.client.receive(&nak(&request, SERVER), segment.now), None);
        assert_eq!(segment.client.receive(&offer(&request, SERVER), segment.now), None);
        let lease = segment.client.receive(&ack(&request, SERVER), segment.now);
        assert_eq!(lease.map(|lease| lease.address), is_taken.then_some(ADDRESS), "{granted_s} s");
    }
    let refused = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER)],
        _ => vec![nak(request, SERVER), ack(request, SERVER)],
    };
    let mut segment = Segment::new(None, &refused);
    assert_eq!((segment.run(10).unwrap().server, segment.now), (SERVER, Duration::ZERO));
}

#[test]
fn what_a_grant_leaves_out_is_as_it_was_offered() {
    let full = |reply: Reply| {
        reply
            .with(1, &[255, 255, 255, 0])
            .with(3, &[10, 9, 0, 1])
            .with(6, &[10, 9, 0, 3])
            .with(51, &[0, 0, 3, 232])
            .with(58, &[0, 0, 1, 44])
    };
    let answers = |kind, request: &[u8]| match kind {
        1 => vec![full(Reply::to(request, 2, SERVER, ADDRESS)).frame()],
        _ => vec![ack(request, SERVER)],
    };
    let lease = Segment::new(None, &answers).run(10).unwrap();
    assert_eq!((lease.prefix_len, lease.routes.len(), lease.dns.len()), (24, 1, 1));
    assert_eq!((lease.duration, lease.renew_after), (Some(Duration::from_secs(1000)), Some(Duration::from_secs(300))));
    // And a renewal as it was.
    let renewed = Segment::new(Some(&lease), &|_, request: &[u8]| vec![ack(request, SERVER)]).run(10).unwrap();
    assert_eq!((renewed.prefix_len, renewed.routes, renewed.dns), (24, lease.routes.clone(), lease.dns.clone()));
    // A stranger who grants first does not take the network away.
    let stranger = |_, request: &[u8]| vec![ack(request, OTHER), ack(request, SERVER)];
    assert_eq!(Segment::new(Some(&lease), &stranger).run(10).unwrap().server, SERVER);
}

#[test]
fn a_held_address_is_asked_for_again_and_kept() {
    let answers =
        |kind, request: &[u8]| if kind == 1 { vec![offer(request, SERVER)] } else { vec![ack(request, SERVER)] };
    let lease = Segment::new(None, &answers).run(10).unwrap();
    let keep = |kind, request: &[u8]| {
        assert_eq!(kind, 3);
        // ciaddr has the address; a server identifier would make it a selection (RFC 2131, 4.3.2).
        assert_eq!(request[14 + 28 + 12..][..4], ADDRESS.octets());
        assert!(!options(request).contains_key(&54) && !options(request).contains_key(&50));
        vec![ack(request, OTHER)]
    };
    let kept = Segment::new(Some(&lease), &keep).run(20).unwrap();
    assert_eq!((kept.address, kept.server), (ADDRESS, OTHER));
    // A server that has forgotten us is asked as a stranger.
    let forgotten = |kind, request: &[u8]| match kind {
        1 => vec![offer(request, SERVER)],
        _ if options(request).contains_key(&54) => vec![ack(request, SERVER)],
        _ => vec![],
    };
    assert!(Segment::new(Some(&lease), &forgotten).run(30).is_some());
}

/// The frame that ended PID 1 in the field: an offer from nowhere, then a grant that wants renewing at once.
#[test]
fn a_source_of_no_address_and_times_of_zero_do_no_harm() {
    let answers = |kind, request: &[u8]| {
        let kind = if kind == 1 { 2 } else { 5 };
        let reply = Reply::to(request, kind, Ipv4Addr::UNSPECIFIED, ADDRESS);
        let times = [(58, vec![0, 0, 0, 0]), (59, vec![0, 0, 0, 4]), (51, vec![0, 0, 0, 0])];
        vec![times.into_iter().fold(reply, |reply, (code, value)| reply.with(code, &value)).frame()]
    };
    let lease = Segment::new(None, &answers).run(10).unwrap();
    assert_eq!((lease.duration, lease.renew_after), (Some(Duration::ZERO), Some(Duration::ZERO)));
}

#[test]
fn no_stream_of_answers_makes_it_fast_or_loud() {
    // Every answer that there is, to every frame, from many servers.
    let answers = |_, request: &[u8]| {
        let servers = (0..40).map(|last| Ipv4Addr::new(10, 9, 1, last));
        servers.flat_map(|server| [nak(request, server), offer(request, server), nak(request, server)]).collect()
    };
    let mut segment = Segment::new(None, &answers);
    assert_eq!(segment.run(600), None);
    segment.assert_calm();
    assert!(segment.discovers.len() <= 600);
}
