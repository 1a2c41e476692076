//! The DHCPv6 client against servers of every temper.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::super::message::tests::{MAC, association, from_server, no_address};
use super::{Dhcp6Client, Dhcp6Need, Dhcp6Step};

const SERVER: &[u8] = &[9, 9];

/// A client with the messages that it has sent, and when.
struct Run {
    client: Dhcp6Client,
    now: Duration,
    sent: Vec<(Duration, Vec<u8>)>,
}

impl Run {
    fn new(wanted: Dhcp6Need) -> Self {
        Self { client: Dhcp6Client::new(MAC, wanted, 42, Duration::ZERO), now: Duration::ZERO, sent: Vec::new() }
    }

    /// Lets time pass until the next message, and returns its kind and number.
    fn next(&mut self) -> (u8, u32) {
        loop {
            match self.client.step(self.now) {
                Dhcp6Step::Send(message) => {
                    let kind = (message[0], u32::from_be_bytes([0, message[1], message[2], message[3]]));
                    self.sent.push((self.now, message));
                    return kind;
                }
                Dhcp6Step::Wait(time) => {
                    assert!(!time.is_zero(), "a wait of nothing is a busy loop");
                    self.now += time;
                }
            }
        }
    }

    fn answer(&mut self, kind: u8, transaction: u32, options: &[(u16, Vec<u8>)]) -> bool {
        self.client.receive(&from_server(kind, transaction, SERVER, options), self.now)
    }

    fn bound() -> Self {
        let mut run = Self::new(Dhcp6Need::Address);
        let (kind, number) = run.next();
        assert_eq!(kind, 1);
        assert!(!run.answer(2, number, &[association("2001:db8::7", 300, 480, 600)]));
        let (kind, number) = run.next();
        assert_eq!(kind, 3);
        assert!(run.answer(7, number, &[association("2001:db8::7", 300, 480, 600)]));
        run
    }

    fn addresses(&self) -> Vec<Ipv6Addr> {
        self.client.given().map(|given| given.addresses.clone()).unwrap_or_default()
    }
}

#[test]
fn an_address_is_got_renewed_and_kept_while_the_servers_are_away() {
    let mut run = Run::bound();
    assert_eq!(run.addresses(), ["2001:db8::7".parse::<Ipv6Addr>().unwrap()]);
    let began = run.now;
    let (kind, number) = run.next();
    assert_eq!((kind, run.now - began), (5, Duration::from_secs(300)));
    assert!(!run.answer(7, number, &[association("2001:db8::7", 300, 480, 600)]), "nothing changed");
    let began = run.now;
    // Nothing answers: from the server, to any, to a new beginning.
    let mut kinds = Vec::new();
    while run.now - began < Duration::from_secs(900) {
        kinds.push(run.next().0);
    }
    kinds.dedup();
    assert_eq!(kinds, [5, 6, 1]);
    assert_eq!(run.addresses().len(), 1, "an address of its own is better than none");
    assert!(run.client.take_report().is_some_and(|report| report.contains("no DHCPv6 answer yet")));
}

#[test]
fn another_address_is_taken_over() {
    let mut run = Run::bound();
    let (_, number) = run.next();
    assert!(run.answer(7, number, &[association("2001:db8::8", 300, 480, 600)]));
    assert_eq!(run.addresses(), ["2001:db8::8".parse::<Ipv6Addr>().unwrap()]);
}

#[test]
fn silence_costs_few_messages() {
    for wanted in [Dhcp6Need::Address, Dhcp6Need::Information] {
        let mut run = Run::new(wanted);
        while run.now < Duration::from_secs(3600) {
            run.next();
        }
        assert!(run.sent.len() < 45, "{}", run.sent.len());
        assert!(run.sent.windows(2).all(|pair| pair[1].0 - pair[0].0 >= Duration::from_millis(900)));
    }
}

#[test]
fn a_server_that_refuses_what_it_offers_makes_no_storm() {
    let mut run = Run::new(Dhcp6Need::Address);
    while run.now < Duration::from_secs(3600) {
        let (kind, number) = run.next();
        match kind {
            1 => _ = run.answer(2, number, &[association("2001:db8::7", 300, 480, 600)]),
            _ => _ = run.answer(7, number, &[no_address()]),
        }
    }
    assert!(run.sent.len() < 160, "{}", run.sent.len());
}

#[test]
fn the_first_to_advertise_does_not_win_for_ever_when_it_never_gives() {
    let mut run = Run::new(Dhcp6Need::Address);
    let good: &[u8] = &[7];
    let offered = [association("2001:db8::7", 300, 480, 600)];
    while run.addresses().is_empty() {
        let (kind, number) = run.next();
        let asked = |server: &[u8]| {
            run.sent
                .last()
                .unwrap()
                .1
                .windows(server.len() + 4)
                .any(|part| part == [&[0, 2, 0, u8::try_from(server.len()).unwrap()][..], server].concat())
        };
        match kind {
            1 => {
                for server in [SERVER, good] {
                    run.client.receive(&from_server(2, number, server, &offered), run.now);
                }
            }
            3 if asked(good) => {
                run.client.receive(&from_server(7, number, good, &offered), run.now);
            }
            _ => {}
        }
        assert!(run.now < Duration::from_secs(90), "{:?}", run.sent.iter().map(|sent| sent.0).collect::<Vec<_>>());
    }
}

#[test]
fn name_servers_are_had_from_one_that_gives_no_address() {
    // In the advertisement that says so.
    let mut run = Run::new(Dhcp6Need::Address);
    let (_, number) = run.next();
    let names = (23, "2001:db8::53".parse::<Ipv6Addr>().unwrap().octets().to_vec());
    assert!(run.answer(2, number, &[no_address(), names.clone()]));
    assert_eq!(run.client.given().unwrap().name_servers.len(), 1);
    // And of a server that knows nothing of addresses and answers nothing else.
    let mut run = Run::new(Dhcp6Need::Address);
    loop {
        let (kind, number) = run.next();
        if kind == 11 {
            assert!(run.answer(7, number, &[names]));
            break;
        }
        assert!(run.now < Duration::from_secs(30));
    }
    assert_eq!(run.client.given().unwrap().name_servers.len(), 1);
}

#[test]
fn lifetimes_of_seconds_make_no_storm() {
    for (t1, t2, valid) in [(0, 0, 1), (1, 1, 1), (1, 2, 3), (u32::MAX, 1, 2), (5, 1, 2)] {
        let mut run = Run::new(Dhcp6Need::Address);
        while run.now < Duration::from_secs(600) {
            let (kind, number) = run.next();
            let answer = if kind == 1 { 2 } else { 7 };
            run.answer(answer, number, &[association("2001:db8::7", t1, t2, valid)]);
        }
        assert!(run.sent.len() < 70, "{t1} {t2} {valid}: {}", run.sent.len());
        assert!(!run.addresses().is_empty());
    }
}

#[test]
fn name_servers_alone_are_asked_for_and_refreshed() {
    let mut run = Run::new(Dhcp6Need::Information);
    let (kind, number) = run.next();
    assert_eq!(kind, 11);
    let server: Ipv6Addr = "2001:db8::53".parse().unwrap();
    assert!(run.answer(7, number, &[(23, server.octets().to_vec()), (32, 1_u32.to_be_bytes().to_vec())]));
    assert_eq!(run.client.given().unwrap().name_servers, [server]);
    let began = run.now;
    assert_eq!(run.next().0, 11);
    assert!(run.now - began >= Duration::from_secs(600), "however often the server wants it");
}

#[test]
fn answers_that_nothing_asked_for_change_nothing() {
    let mut run = Run::new(Dhcp6Need::Address);
    for number in 0..1000 {
        assert!(!run.answer(2, number, &[association("2001:db8::7", 300, 480, 600)]));
        assert!(!run.answer(7, number, &[association("2001:db8::7", 300, 480, 600)]));
    }
    let (kind, number) = run.next();
    assert_eq!(kind, 1);
    assert!(!run.answer(7, number, &[association("2001:db8::7", 300, 480, 600)]), "it was not asked for that");
    // An advertisement by one server, a reply by another.
    run.answer(2, number, &[association("2001:db8::7", 300, 480, 600)]);
    let (_, number) = run.next();
    let other = from_server(7, number, &[8], &[association("2001:db8::9", 300, 480, 600)]);
    assert!(!run.client.receive(&other, run.now));
}

#[test]
fn a_server_that_gave_what_leads_nowhere_is_left_for_another_if_there_is_one() {
    let offered = [association("2001:db8::9", 300, 480, 600)];
    let mut run = Run::bound();
    run.now += Duration::from_secs(5);
    run.client.ask_others(run.now);
    let (kind, number) = run.next();
    assert_eq!(kind, 1);
    assert!(!run.answer(2, number, &offered));
    run.client.receive(&from_server(2, number, &[7, 7], &offered), run.now);
    let (kind, number) = run.next();
    assert_eq!(kind, 3);
    assert!(run.client.receive(&from_server(7, number, &[7, 7], &offered), run.now));

    // The only one is asked again after some seconds. Until then what it gave stays.
    let mut run = Run::bound();
    run.client.ask_others(run.now);
    let began = run.now;
    loop {
        let (kind, number) = run.next();
        assert!(run.addresses().len() == 1 && run.now - began < Duration::from_secs(10));
        if kind != 1 {
            break;
        }
        run.answer(2, number, &offered);
    }
    assert!(run.now - began >= Duration::from_secs(3) && run.sent.len() < 9, "{}", run.sent.len());
}

/// The preference of a server, as an option.
fn preference(value: u8) -> (u16, Vec<u8>) {
    (7, vec![value])
}

#[test]
fn the_server_with_the_highest_preference_is_asked_and_the_best_at_once() {
    let address = |text| association(text, 300, 480, 600);
    for (preferences, asked, at_once) in
        [([0, 0], 0, false), ([0, 9], 1, false), ([9, 0], 0, false), ([0, 255], 1, true)]
    {
        let mut run = Run::new(Dhcp6Need::Address);
        let (_, number) = run.next();
        let began = run.now;
        for (server, value) in [[1_u8, 1], [2, 2]].iter().zip(preferences) {
            let options = [address("2001:db8::7"), preference(value)];
            assert!(!run.client.receive(&from_server(2, number, server, &options), run.now));
        }
        assert_eq!(run.next().0, 3);
        let server = [[1_u8, 1], [2, 2]][asked];
        let message = &run.sent.last().unwrap().1;
        assert!(message.windows(6).any(|part| part == [&[0, 2, 0, 2], &server[..]].concat()), "{preferences:?}");
        assert_eq!(run.now - began < Duration::from_millis(900), at_once, "{preferences:?}");
    }
}

#[test]
fn an_offer_after_the_first_wait_is_taken_at_once() {
    let mut run = Run::new(Dhcp6Need::Address);
    run.next();
    let (_, number) = run.next();
    let began = run.now;
    assert!(!run.answer(2, number, &[association("2001:db8::7", 300, 480, 600)]));
    assert_eq!((run.next().0, run.now), (3, began));
}

#[test]
fn an_address_that_another_machine_has_is_declined_and_another_asked_for() {
    let mut run = Run::bound();
    let taken: Ipv6Addr = "2001:db8::7".parse().unwrap();
    run.client.decline(&["2001:db8::8".parse().unwrap()], run.now);
    assert_eq!(run.addresses(), [taken]);
    run.client.decline(&[taken], run.now);
    assert!(run.addresses().is_empty());
    assert!(run.client.take_report().is_some_and(|report| report.contains("2001:db8::7, which another machine has")));
    let began = run.now;
    let (kind, number) = run.next();
    assert_eq!((kind, run.now), (9, began));
    let has = |message: &[u8]| message.windows(16).any(|part| part == taken.octets());
    assert!(has(&run.sent.last().unwrap().1));
    assert!(!run.answer(7, number, &[]));
    let (kind, number) = run.next();
    assert_eq!((kind, run.now - began), (1, Duration::from_secs(1)));
    assert!(!has(&run.sent.last().unwrap().1), "no hint at what is taken");
    assert!(!run.answer(2, number, &[association("2001:db8::9", 300, 480, 600), preference(255)]));
    let (_, number) = run.next();
    assert!(run.answer(7, number, &[association("2001:db8::9", 300, 480, 600)]));
    assert_eq!(run.addresses(), ["2001:db8::9".parse::<Ipv6Addr>().unwrap()]);
}

#[test]
fn a_server_whose_every_address_is_taken_makes_no_storm() {
    for confirms in [true, false] {
        let mut run = Run::new(Dhcp6Need::Address);
        while run.now < Duration::from_secs(3600) {
            let (kind, number) = run.next();
            match kind {
                1 => _ = run.answer(2, number, &[association("2001:db8::7", 300, 480, 600)]),
                3 => {
                    run.answer(7, number, &[association("2001:db8::7", 300, 480, 600)]);
                    run.client.decline(&["2001:db8::7".parse().unwrap()], run.now);
                }
                9 if confirms => _ = run.answer(7, number, &[]),
                _ => {}
            }
        }
        assert!(run.sent.len() < 250, "{}", run.sent.len());
    }
}
