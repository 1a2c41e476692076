//! DHCPv6 servers as networks have them: several, some of which give nothing, or what another machine has.
//!
//! Reports: https://github.com/openwrt/odhcp6c/issues/62 (nothing is declined),
//! https://github.com/openwrt/odhcp6c/issues/34 (two servers, told apart by their preference),
//! https://github.com/NetworkConfiguration/dhcpcd/issues/439 (one answers twice, itself and through a relay), and
//! https://github.com/tianocore/edk2/issues/9828 (a server without addresses).

use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use super::ipv6::advertisement;
use super::site::{MANIFEST, Site, within};
use crate::isolated::{isolated, run};

const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;
const SOLICIT: u8 = 1;
const DECLINE: u8 = 9;

/// A message of the client.
struct Asked {
    kind: u8,
    /// Number of the server that is asked, if one is.
    server: Option<u8>,
    addresses: Vec<Ipv6Addr>,
}

/// What a server answers.
struct Answered {
    server: u8,
    preference: u8,
    /// Address, T1, T2 and lifetime in seconds; a status in place of it.
    gives: Result<(&'static str, [u32; 3]), u16>,
}

const USUAL: [u32; 3] = [500, 800, 1000];

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(4) {
        let (value, rest) = rest.split_at(u16::from_be_bytes([head[2], head[3]]).into());
        all.push((u16::from_be_bytes([head[0], head[1]]), value.to_vec()));
        bytes = rest;
    }
    all
}

/// Servers on `sw0` of the network, which give these answers to a message, one after the other.
fn servers(network: &str, answers: impl Fn(&Asked) -> Vec<Answered> + Send + 'static) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    within(network, move || {
        let socket = UdpSocket::bind("[::]:547").unwrap();
        let index = nix::net::if_::if_nametoindex("sw0").unwrap();
        socket.join_multicast_v6(&"ff02::1:2".parse().unwrap(), index).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            for answer in answers_to(&buffer[..length], &answers) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    is_ready.recv_timeout(Duration::from_secs(5)).unwrap();
}

fn answers_to(message: &[u8], answers: impl Fn(&Asked) -> Vec<Answered>) -> Vec<Vec<u8>> {
    let all = options(&message[4..]);
    let first = |code| all.iter().find(|(found, _)| *found == code).map(|(_, value)| value.as_slice());
    let Some(association) = first(3) else { return Vec::new() };
    let octets = |value: &[u8]| Ipv6Addr::from(<[u8; 16]>::try_from(&value[..16]).unwrap());
    let addresses = options(&association[12..]).iter().map(|(_, value)| octets(value)).collect();
    let asked = Asked { kind: message[0], server: first(2).map(|id| id[2]), addresses };
    let kind = if asked.kind == SOLICIT { ADVERTISE } else { REPLY };
    let made = |answer: Answered| {
        let (times, inner) = match answer.gives {
            Ok((address, times)) => {
                let address = address.parse::<Ipv6Addr>().unwrap().octets();
                let lifetime = times[2].to_be_bytes();
                (times, option(5, &[&address[..], &lifetime, &lifetime].concat()))
            }
            Err(status) => ([0; 3], option(13, &status.to_be_bytes())),
        };
        let association = [&association[..4], &times[0].to_be_bytes(), &times[1].to_be_bytes(), &inner].concat();
        let options = [
            option(1, first(1).unwrap()),
            option(2, &[0, 9, answer.server]),
            option(7, &[answer.preference]),
            option(3, &association),
        ];
        [&[kind, message[1], message[2], message[3]], &options.concat()[..]].concat()
    };
    answers(&asked).into_iter().map(made).collect()
}

/// A switch with a router that says that addresses come by DHCPv6, and a source beyond it.
fn site() -> Site {
    let mut site = Site::new();
    site.sources = vec!["http://[2001:db8:7::1]/stable/manifest.json".to_owned()];
    site.switch("outer", &["2001:db8:1::1/64", "2001:db8:7::1/128"]);
    site.card_on_switch("eth0", "outer");
    run("ip", &["netns", "exec", "outer", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]);
    site.serve("outer", "[2001:db8:7::1]:80", MANIFEST);
    let mut managed = advertisement(1800, None, None);
    managed[5] = 0x80;
    site.advertise("outer", managed);
    site
}

/// Another machine on the same switch.
fn camera(address: &str) {
    run("ip", &["netns", "add", "camera"]);
    run("ip", &["link", "add", "p-camera", "type", "veth", "peer", "name", "eth0", "netns", "camera"]);
    run("ip", &["link", "set", "p-camera", "netns", "outer"]);
    run("ip", &["-n", "outer", "link", "set", "p-camera", "master", "sw0", "up"]);
    run("ip", &["-n", "camera", "link", "set", "eth0", "up"]);
    run("ip", &["-n", "camera", "address", "add", &format!("{address}/64"), "dev", "eth0", "nodad"]);
    // A port of a switch forwards when it has been up for a moment.
    std::thread::sleep(Duration::from_secs(1));
}

/// The address with which the source is reached.
fn address_of(site: &Site, seconds: u64) -> String {
    let running = site.start("");
    let up = running.is_up(seconds);
    site.fetches("2001:db8:7::1", 5);
    up.address.to_string()
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_ipv6_address_by_dhcpv6_that_another_machine_has_is_declined() {
    isolated("field::dhcpv6::an_ipv6_address_by_dhcpv6_that_another_machine_has_is_declined", || {
        let site = site();
        camera("2001:db8:1::50");
        let is_declined = std::sync::atomic::AtomicBool::new(false);
        servers("outer", move |asked| {
            if asked.kind == DECLINE {
                assert_eq!((asked.server, &asked.addresses[..]), (Some(1), &["2001:db8:1::50".parse().unwrap()][..]));
                is_declined.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            let is_declined = is_declined.load(std::sync::atomic::Ordering::SeqCst);
            let address = if is_declined { "2001:db8:1::51" } else { "2001:db8:1::50" };
            vec![Answered { server: 1, preference: 0, gives: Ok((address, USUAL)) }]
        });
        assert_eq!(address_of(&site, 20), "2001:db8:1::51");
    });
}

/// A server that does not listen, or a machine that claims every address.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_server_that_gives_what_is_taken_again_and_again_is_named_and_makes_way() {
    isolated("field::dhcpv6::a_server_that_gives_what_is_taken_again_and_again_is_named_and_makes_way", || {
        let site = site();
        camera("2001:db8:1::50");
        servers("outer", |asked| {
            let of = |(server, address)| Answered { server, preference: 0, gives: Ok((address, USUAL)) };
            let both = [(1, "2001:db8:1::50"), (2, "2001:db8:1::60")];
            both.into_iter().filter(|(server, _)| asked.server.is_none_or(|asked| asked == *server)).map(of).collect()
        });
        let mut running = site.start("");
        let up = running.is_up(25);
        assert_eq!(up.address.to_string(), "2001:db8:1::60");
        running.wait_for("the DHCPv6 server gives 2001:db8:1::50, which another machine has: it is declined", 1);
        site.fetches("2001:db8:7::1", 5);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_server_with_the_highest_preference_is_used_and_one_without_addresses_is_not() {
    isolated("field::dhcpv6::the_server_with_the_highest_preference_is_used_and_one_without_addresses_is_not", || {
        let site = site();
        servers("outer", |asked| {
            let all = [
                Answered { server: 1, preference: 200, gives: Err(2) },
                Answered { server: 2, preference: 0, gives: Ok(("2001:db8:1::60", USUAL)) },
                Answered { server: 3, preference: 7, gives: Ok(("2001:db8:1::70", USUAL)) },
            ];
            all.into_iter().filter(|answer| asked.server.is_none_or(|asked| asked == answer.server)).collect()
        });
        assert_eq!(address_of(&site, 12), "2001:db8:1::70");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn times_that_make_no_sense_neither_keep_the_address_away_nor_make_a_storm() {
    isolated("field::dhcpv6::times_that_make_no_sense_neither_keep_the_address_away_nor_make_a_storm", || {
        let site = site();
        let messages = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&messages);
        servers("outer", move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            vec![Answered { server: 1, preference: 255, gives: Ok(("2001:db8:1::50", [u32::MAX - 1, 1, 2])) }]
        });
        let mut running = site.start("");
        running.is_up(12);
        running.pass(25);
        site.fetches("2001:db8:7::1", 5);
        let messages = messages.load(std::sync::atomic::Ordering::SeqCst);
        assert!(messages < 6, "{messages}");
    });
}
