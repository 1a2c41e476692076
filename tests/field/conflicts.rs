//! Addresses that another machine on the segment has already.
//!
//! Reports: https://github.com/AdguardTeam/AdGuardHome/issues/584 (a server that has lost its leases grants them anew),
//! https://github.com/systemd/systemd/issues/13923 (a client that does not look), and
//! https://github.com/TechnitiumSoftware/DnsServer/issues/472 (clients that decline for ever, since something on the
//! segment claims every address).

use std::net::IpAddr;
use std::time::Duration;

use super::site::Site;
use crate::isolated::{isolated, run};

/// A network with a DHCP server that gives 10.9.0.50 to 10.9.0.53 and pings nothing, and a source.
fn site() -> Site {
    let mut site = Site::new();
    site.sources = vec!["http://10.9.0.1/stable/manifest.json".to_owned()];
    site.switch("outer", &["10.9.0.1/24"]);
    site.card_on_switch("eth0", "outer");
    site.dnsmasq("outer", &["--dhcp-range=10.9.0.50,10.9.0.53,255.255.255.0,1000", "--no-ping"]);
    site.serve("outer", "10.9.0.1:80", super::site::MANIFEST);
    site
}

/// Another machine on the same switch.
fn camera(addresses: impl Iterator<Item = u8>) {
    run("ip", &["netns", "add", "camera"]);
    run("ip", &["link", "add", "p-camera", "type", "veth", "peer", "name", "eth0", "netns", "camera"]);
    run("ip", &["link", "set", "p-camera", "netns", "outer"]);
    run("ip", &["-n", "outer", "link", "set", "p-camera", "master", "sw0", "up"]);
    run("ip", &["-n", "camera", "link", "set", "eth0", "up"]);
    for last in addresses {
        run("ip", &["-n", "camera", "address", "add", &format!("10.9.0.{last}/24"), "dev", "eth0"]);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_granted_address_that_another_machine_has_is_declined() {
    isolated("field::conflicts::a_granted_address_that_another_machine_has_is_declined", || {
        let site = site();
        // Which of its addresses the server gives first depends on the card.
        camera(50..=52);
        let running = site.start("");
        assert_eq!(running.is_up(20).address.to_string(), "10.9.0.53");
        site.fetches("10.9.0.1", 5);
    });
}

/// The same of a machine that claims every address.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_address_is_used_all_the_same_where_every_one_is_claimed() {
    isolated("field::conflicts::an_address_is_used_all_the_same_where_every_one_is_claimed", || {
        let site = site();
        camera(50..=53);
        let mut running = site.start("");
        let up = running.is_up(20);
        running.wait_for(&format!("eth0: {} is used although another machine (", up.address), 1);
        running.wait_for(&format!("eth0: address {}/24", up.address), 5);
    });
}

/// A person gives another machine the address that the robot has: the source is lost until the robot takes another.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_an_address_that_is_taken_while_it_is_held_is_left_once_it_leads_nowhere() {
    isolated("field::conflicts::full_an_address_that_is_taken_while_it_is_held_is_left_once_it_leads_nowhere", || {
        let mut site = site();
        // Nothing is served here: what the address leads to looks the same as packets that somebody else gets.
        site.sources = vec!["http://10.9.0.7/stable/manifest.json".to_owned()];
        let mut running = site.start("");
        let first = running.is_up(12).address.to_string();
        running.wait_for(&format!("eth0: address {first}/24"), 5);
        let IpAddr::V4(held) = first.parse().unwrap() else { panic!("{first}") };
        camera(std::iter::once(held.octets()[3]));
        let outcomes = site.outcomes.clone();
        std::thread::spawn(move || {
            loop {
                outcomes.failed();
                std::thread::sleep(Duration::from_secs(5));
            }
        });
        running.wait_for(&format!("the DHCP server 10.9.0.1 grants {first}, which another machine ("), 150);
        let line = running.wait_for("eth0: address 10.9.0.5", 40);
        assert!(!line.contains(&format!("address {first}/")), "{line}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_configured_address_that_another_machine_has_is_used_and_named() {
    isolated("field::conflicts::a_configured_address_that_another_machine_has_is_used_and_named", || {
        let site = site();
        camera(std::iter::once(77));
        let mut running = site.start("address = \"10.9.0.77/24\"");
        assert_eq!(running.is_up(12).address.to_string(), "10.9.0.77");
        running.wait_for(") has the configured address 10.9.0.77 too", 3);
    });
}

/// The kernel finds out by itself, and says nothing.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_ipv6_address_that_another_machine_has_is_named() {
    isolated("field::conflicts::an_ipv6_address_that_another_machine_has_is_named", || {
        let site = site();
        camera(std::iter::empty());
        run("ip", &["-n", "camera", "address", "add", "2001:db8::77/64", "dev", "eth0", "nodad"]);
        let mut running = site.start("address = \"2001:db8::77/64\"");
        running.wait_for("another machine has the IPv6 address 2001:db8::77 too", 12);
    });
}
