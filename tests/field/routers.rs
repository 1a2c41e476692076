//! Routers that send a robot elsewhere, or say things of themselves and of their network that make no sense.

use std::time::Duration;

use super::ipv6::advertisement;
use super::site::{MANIFEST, Site};
use crate::isolated::{isolated, run};

fn set_in(network: &str, key: &str) {
    run("ip", &["netns", "exec", network, "sysctl", "-qw", &format!("{key}=1")]);
}

/// Takes the site away, so that the next one may have the same names.
fn clear(site: Site, networks: &[&str]) {
    drop(site);
    std::thread::sleep(Duration::from_secs(1));
    run("ip", &["link", "delete", "eth0"]);
    networks.iter().for_each(|network| run("ip", &["netns", "delete", network]));
}

/// A router whose way to the source leads through another router of the same network for a while, says so to the robot,
/// as every router does, and then learns of a better way. The kernel would hold on to the other router for minutes.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_router_that_redirects_to_another_is_asked_again() {
    isolated("field::routers::a_router_that_redirects_to_another_is_asked_again", || {
        for key in ["net.ipv4.conf.all.accept_redirects", "net.ipv4.conf.default.accept_redirects"] {
            run("sysctl", &["-qw", &format!("{key}=1")]);
        }
        let mut site = Site::new();
        site.switch("outer", &["192.168.1.1/24", "2001:db8:1::1/64", "fe80::1/64"]);
        site.card_on_switch("eth0", "outer");
        // A dead end: it is there, and passes nothing on.
        run("ip", &["netns", "add", "end"]);
        run("ip", &["-n", "outer", "link", "add", "p-end", "type", "veth", "peer", "name", "e0", "netns", "end"]);
        run("ip", &["-n", "outer", "link", "set", "p-end", "master", "sw0", "up"]);
        run("ip", &["-n", "end", "address", "add", "192.168.1.2/24", "dev", "e0"]);
        run("ip", &["-n", "end", "address", "add", "fe80::2/64", "dev", "e0", "nodad"]);
        run("ip", &["-n", "end", "link", "set", "e0", "up"]);
        for key in ["ipv4.ip_forward", "ipv4.conf.all.send_redirects", "ipv4.conf.sw0.send_redirects"] {
            set_in("outer", &format!("net.{key}"));
        }
        set_in("outer", "net.ipv6.conf.all.forwarding");
        run("ip", &["-n", "outer", "route", "add", "192.168.7.1", "via", "192.168.1.2"]);
        run("ip", &["-n", "outer", "-6", "route", "add", "2001:db8:7::1", "via", "fe80::2", "dev", "sw0"]);
        site.dhcp("outer", "192.168.1", &["--no-ping", "--dhcp-option=3,192.168.1.1"]);
        site.dnsmasq("outer", &["--enable-ra", "--ra-param=sw0,4,600", "--dhcp-range=2001:db8:1::,ra-only,64"]);
        let mut running = site.start("");
        running.is_up(10);
        running.wait_for("eth0: IPv6 address 2001:db8:1:", 10);
        for host in ["192.168.7.1", "192.168.7.1", "2001:db8:7::1", "2001:db8:7::1"] {
            site.fetch(host).unwrap_err();
        }
        run("ip", &["-n", "outer", "route", "delete", "192.168.7.1"]);
        run("ip", &["-n", "outer", "-6", "route", "delete", "2001:db8:7::1"]);
        run("ip", &["-n", "outer", "address", "add", "192.168.7.1/32", "dev", "lo"]);
        run("ip", &["-n", "outer", "address", "add", "2001:db8:7::1/128", "dev", "lo", "nodad"]);
        for (host, address) in [("192.168.7.1", "192.168.7.1:80"), ("2001:db8:7::1", "[2001:db8:7::1]:80")] {
            site.serve("outer", address, MANIFEST);
            site.fetches(host, 4);
        }
    });
}

/// A source behind a router of an IPv6-only network.
fn routed_ipv6() -> Site {
    let mut site = Site::new();
    site.sources = vec!["http://[2001:db8:7::1]/stable/manifest.json".to_owned()];
    site.card("eth0", "outer", &["2001:db8:1::1/64"]);
    run("ip", &["netns", "add", "beyond"]);
    run("ip", &["-n", "outer", "link", "add", "o1", "type", "veth", "peer", "name", "b0", "netns", "beyond"]);
    run("ip", &["-n", "outer", "address", "add", "2001:db8:7::2/64", "dev", "o1", "nodad"]);
    run("ip", &["-n", "outer", "link", "set", "o1", "up"]);
    run("ip", &["-n", "beyond", "address", "add", "2001:db8:7::1/64", "dev", "b0", "nodad"]);
    run("ip", &["-n", "beyond", "link", "set", "b0", "up"]);
    run("ip", &["-n", "beyond", "-6", "route", "add", "default", "via", "2001:db8:7::2"]);
    set_in("outer", "net.ipv6.conf.all.forwarding");
    site.serve("beyond", "[2001:db8:7::1]:80", MANIFEST);
    site
}

/// Comes up at a router that advertises this, and fetches from beyond it.
fn fetches_with(what: &str, dhcp: Option<&str>, change: impl Fn(&mut Vec<u8>)) {
    println!("{what}");
    let mut site = routed_ipv6();
    if let Some(range) = dhcp {
        site.dnsmasq("outer", &[&format!("--dhcp-range={range}")]);
    }
    let mut advert = advertisement(1800, Some("2001:db8:1::"), None);
    change(&mut advert);
    site.advertise("outer", advert);
    let up = site.start("").is_up(20);
    assert!(up.address.to_string().starts_with("2001:db8:1:"), "{what}: {up:?}");
    site.fetches("2001:db8:7::1", 8);
    clear(site, &["outer", "beyond"]);
}

/// https://github.com/ipxe/ipxe/pull/732: the prefix asks every machine to make an address of it, and is such that the
/// kernel makes none (RFC 4862, 5.5.3).
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_prefix_that_gives_no_address_leaves_dhcpv6() {
    isolated("field::routers::a_prefix_that_gives_no_address_leaves_dhcpv6", || {
        let dhcp = Some("2001:db8:1::100,2001:db8:1::1ff,64,1000");
        let preferred_longer_than_valid =
            |advert: &mut Vec<u8>| advert[24..28].copy_from_slice(&9000_u32.to_be_bytes());
        fetches_with("a prefix of 48 bits", dhcp, |advert| advert[18] = 48);
        fetches_with("a prefix of 120 bits", dhcp, |advert| advert[18] = 120);
        fetches_with("preferred for longer than it is valid", dhcp, preferred_longer_than_valid);
        fetches_with("valid for no time", dhcp, |advert| advert[20..28].fill(0));
    });
}

/// https://github.com/openwrt/odhcpd/issues/216 shows a provider that has ten seconds there: the times of a router are
/// in milliseconds, and the kernel checks an address for a second owner for that long.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn times_and_hops_that_make_no_sense_cost_no_address() {
    isolated("field::routers::times_and_hops_that_make_no_sense_cost_no_address", || {
        let times = |reachable: u32, again: u32| {
            move |advert: &mut Vec<u8>| {
                advert[8..12].copy_from_slice(&reachable.to_be_bytes());
                advert[12..16].copy_from_slice(&again.to_be_bytes());
            }
        };
        fetches_with("a millisecond", None, times(1, 1));
        fetches_with("an hour", None, times(3_600_000, 3_600_000));
        fetches_with("no number", None, times(u32::MAX, u32::MAX));
        // Packets would end at the router.
        fetches_with("one hop", None, |advert| advert[4] = 1);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_a_router_forbids_is_no_broken_connection() {
    isolated("field::routers::what_a_router_forbids_is_no_broken_connection", || {
        let site = Site::new();
        site.card("eth0", "outer", &["2001:db8:1::1/64"]);
        site.advertise("outer", advertisement(1800, Some("2001:db8:1::"), None));
        set_in("outer", "net.ipv6.conf.all.forwarding");
        run("ip", &["-n", "outer", "-6", "route", "add", "prohibit", "2001:db8:7::1"]);
        run("ip", &["-n", "outer", "-6", "route", "add", "unreachable", "2001:db8:7::2"]);
        site.start("").is_up(10);
        for (host, reason) in [("2001:db8:7::1", "forbids"), ("2001:db8:7::2", "no route")] {
            let source = reflash::fetch::open(&format!("http://[{host}]/r"), &crate::fetch::options()).unwrap();
            let error = source.get_small("stable/manifest.json", 100).unwrap_err();
            assert_eq!(error.kind(), reflash::fetch::FetchErrorKind::Unreachable, "{}", error.chain());
            assert!(error.chain().contains(reason), "{}", error.chain());
        }
    });
}
