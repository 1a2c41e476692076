//! DHCP: frames and times into the state machine that runs, for as long as the input lasts.

use std::time::Duration;

use reflash::net::dhcp::Lease;
use reflash::net::dhcp::fuzzing::{FuzzedClient, FuzzedStep};

use super::steps::{self, Step};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Where a DHCP message begins in a frame without IP options, and where its options do.
const MESSAGE: usize = 14 + 20 + 8;
const OPTIONS: usize = MESSAGE + 240;
/// Steps of the client without a wait that are too many: it would never wait.
const MOST_STEPS: usize = 8;

/// A segment with a client on it.
struct Segment {
    client: FuzzedClient,
    now: Duration,
    discovered: Option<Duration>,
    reported: Option<Duration>,
    /// The last frame that the client sent.
    sent: Vec<u8>,
}

impl Segment {
    fn new(held: Option<&Lease>) -> Self {
        Self {
            client: FuzzedClient::new(MAC, 7, held),
            now: Duration::ZERO,
            discovered: None,
            reported: None,
            sent: vec![],
        }
    }

    /// Lets the client do what it wants until it waits, and returns for how long.
    fn settle(&mut self) -> Duration {
        for _ in 0..MOST_STEPS {
            let step = self.client.step(self.now);
            self.note_report();
            match step {
                FuzzedStep::Wait(time) if time.is_zero() => {}
                FuzzedStep::Wait(time) => return time,
                FuzzedStep::Send(frame) => self.note_sent(frame),
            }
        }
        panic!("the client does not wait at {:?}", self.now);
    }

    fn note_sent(&mut self, frame: Vec<u8>) {
        assert!(frame.len() >= OPTIONS && frame.len() <= 1514, "a frame of {} bytes", frame.len());
        assert_eq!(frame[OPTIONS..OPTIONS + 2], [53, 1], "the kind comes first");
        if frame[OPTIONS + 2] == 1 {
            let pause = self.discovered.map(|before| self.now - before);
            assert!(pause.is_none_or(|pause| pause >= Duration::from_secs(1)), "DISCOVER after {pause:?}");
            self.discovered = Some(self.now);
        }
        self.sent = frame;
    }

    fn note_report(&mut self) {
        let Some(text) = self.client.take_report() else { return };
        assert!(!text.is_empty() && text.len() < 300, "{text}");
        let pause = self.reported.map(|before| self.now - before);
        assert!(pause.is_none_or(|pause| pause >= Duration::from_secs(10)), "{text:?} after {pause:?}");
        self.reported = Some(self.now);
    }

    /// Hands a frame in, made to be an answer to what was sent as far as `kind` says.
    fn receive(&mut self, kind: u8, bytes: &[u8]) -> Option<Lease> {
        let frame = if kind & 1 != 0 || self.sent.is_empty() { bytes.to_vec() } else { self.answer(kind, bytes) };
        let lease = self.client.receive(&frame, self.now);
        self.note_report();
        lease
    }

    fn answer(&self, kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut frame = self.sent[..OPTIONS].to_vec();
        // To our port, a reply, for an address and from a server that the input chooses among few.
        frame[36..38].copy_from_slice(&[0, 68]);
        frame[26..30].copy_from_slice(&[10, 9, 0, kind >> 1 & 3]);
        frame[MESSAGE] = 2;
        frame[MESSAGE + 16..MESSAGE + 20].copy_from_slice(&[10, 9, 0, 50 + (kind >> 3 & 1)]);
        let of_fields = usize::from(kind >> 4 & 1) * 192;
        let (fields, options) = bytes.split_at(of_fields.min(bytes.len()));
        frame[MESSAGE + 44..MESSAGE + 44 + fields.len()].copy_from_slice(fields);
        frame.extend_from_slice(&[53, 1, [2, 5, 6, 2][usize::from(kind >> 5 & 3)]]);
        frame.extend_from_slice(options);
        frame.truncate(1514);
        frame
    }
}

/// The input is a list of steps.
pub fn run(data: &[u8]) {
    let mut segment = Segment::new(None);
    let mut rest = data;
    segment.settle();
    while let Some(Step { pause, kind, bytes }) = steps::next(&mut rest) {
        let end = segment.now + pause;
        let mut waits = 0;
        while segment.now < end && waits < 200 {
            let wait = segment.settle();
            segment.now = (segment.now + wait).min(end);
            waits += 1;
        }
        segment.now = end;
        segment.settle();
        if let Some(lease) = segment.receive(kind, bytes) {
            check(&lease);
            // The lease is held from here on, and the client asks to keep it.
            segment = Segment::new(Some(&lease));
            segment.settle();
        }
    }
}

fn check(lease: &Lease) {
    assert!(lease.prefix_len <= 32 && !lease.address.is_unspecified() && !lease.address.is_loopback(), "{lease:?}");
    assert!(lease.mtu.is_none_or(|mtu| mtu >= 576), "{lease:?}");
    assert!(lease.dns.len() <= 64 && lease.routes.len() <= 64, "{lease:?}");
    assert!(lease.dns.iter().all(|address| !address.is_unspecified()), "{lease:?}");
    for domain in &lease.search {
        assert!(domain.len() <= 253 && !domain.contains(|c: char| c.is_whitespace() || c.is_control()), "{domain:?}");
    }
    for route in &lease.routes {
        assert!(route.prefix_len <= 32 && route.gateway.is_none_or(|gateway| !gateway.is_loopback()), "{route:?}");
    }
}
