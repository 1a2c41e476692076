//! Networks that have IPv6 only, or a broken half of it.
//!
//! Reports: https://github.com/pi-hole/pi-hole/issues/6090 and https://github.com/systemd/systemd/pull/28950 (IPv6-only
//! networks), https://github.com/algesten/ureq/issues/1150 and https://github.com/bohanwood/debi/issues/142 (IPv6 that
//! is advertised and leads nowhere).

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::site::{MANIFEST, Site, output};
use crate::isolated::{isolated, run};

const NAMES: [&str; 2] = ["--port=53", "--address=/images.example.com/2001:db8:7::1"];

/// A network with the source, by IPv6 only. The arguments say how it gives addresses and name servers.
fn only_ipv6(arguments: &[&str]) -> Site {
    let mut site = Site::new();
    site.sources = vec!["http://images.example.com/stable/manifest.json".to_owned()];
    site.card("eth0", "outer", &["2001:db8:1::1/64"]);
    run("ip", &["-n", "outer", "address", "add", "2001:db8:7::1/128", "dev", "lo", "nodad"]);
    run("ip", &["netns", "exec", "outer", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]);
    site.dnsmasq("outer", &[&["--enable-ra", "--ra-param=sw0,4,600"], arguments].concat());
    site.serve("outer", "[2001:db8:7::1]:80", MANIFEST);
    site
}

fn address_of(site: &Site, seconds: u64) -> Ipv6Addr {
    let mut running = site.start("");
    let up = running.is_up(seconds);
    running.wait_for("eth0: IPv6 address 2001:db8:1:", 5);
    site.fetches("images.example.com", 5);
    assert!(up.gateway.is_some_and(|gateway| gateway.to_string().starts_with("fe80::")), "{up:?}");
    match up.address {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address}"),
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_ipv6_only_network_with_name_servers_in_the_advertisement() {
    isolated("field::ipv6::an_ipv6_only_network_with_name_servers_in_the_advertisement", || {
        let site = only_ipv6(&[&NAMES[..], &["--dhcp-range=2001:db8:1::,ra-only,64"]].concat());
        address_of(&site, 10);
        assert!(site.resolv_conf().contains("nameserver "), "{}", site.resolv_conf());
        let route = output("ip", &["-6", "route", "show", "default"]);
        assert!(route.contains("via fe80::") && route.contains("metric 50"), "{route}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_ipv6_only_network_with_addresses_by_dhcpv6_only() {
    isolated("field::ipv6::an_ipv6_only_network_with_addresses_by_dhcpv6_only", || {
        let range = "--dhcp-range=2001:db8:1::100,2001:db8:1::1ff,64,1000";
        let dns = "--dhcp-option=option6:dns-server,[2001:db8:1::1]";
        let site = only_ipv6(&[&NAMES[..], &[range, dns]].concat());
        let address = address_of(&site, 15);
        assert_eq!(address.segments()[..7], [0x2001, 0xdb8, 1, 0, 0, 0, 0], "{address}");
    });
}

/// A network with NAT64, whose name server makes IPv6 addresses of IPv4 ones (RFC 6147).
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_ipv6_only_network_whose_name_server_translates() {
    isolated("field::ipv6::an_ipv6_only_network_whose_name_server_translates", || {
        let names = [
            "--port=53",
            "--address=/images.example.com/192.0.2.1",
            "--address=/images.example.com/64:ff9b::192.0.2.1",
        ];
        let site = only_ipv6(&[&names[..], &["--dhcp-range=2001:db8:1::,ra-only,64"]].concat());
        run("ip", &["-n", "outer", "address", "add", "64:ff9b::192.0.2.1/128", "dev", "lo", "nodad"]);
        site.serve("outer", "[64:ff9b::192.0.2.1]:80", MANIFEST);
        address_of(&site, 10);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_ipv6_only_network_with_name_servers_by_dhcpv6() {
    isolated("field::ipv6::an_ipv6_only_network_with_name_servers_by_dhcpv6", || {
        let dns = "--dhcp-option=option6:dns-server,[2001:db8:1::1]";
        let search = "--dhcp-option=option6:domain-search,lab.example";
        let site = only_ipv6(&[&NAMES[..], &["--dhcp-range=2001:db8:1::,ra-stateless,64", dns, search]].concat());
        address_of(&site, 15);
        assert!(site.resolv_conf().contains("lab.example"), "{}", site.resolv_conf());
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_network_of_local_addresses_only_is_enough() {
    isolated("field::ipv6::a_network_of_local_addresses_only_is_enough", || {
        let mut site = Site::new();
        site.sources = vec!["http://[fd00:7::1]/stable/manifest.json".to_owned()];
        site.card("eth0", "outer", &["fd00:1::1/64"]);
        run("ip", &["-n", "outer", "address", "add", "fd00:7::1/128", "dev", "lo", "nodad"]);
        site.serve("outer", "[fd00:7::1]:80", MANIFEST);
        site.dnsmasq("outer", &["--enable-ra", "--ra-param=sw0,4,600", "--dhcp-range=fd00:1::,ra-only,64"]);
        let up = site.start("").is_up(10);
        assert!(up.address.to_string().starts_with("fd00:1::"), "{up:?}");
        site.fetches("fd00:7::1", 3);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_static_ipv6_address_needs_no_router_that_advertises() {
    isolated("field::ipv6::a_static_ipv6_address_needs_no_router_that_advertises", || {
        for gateway in ["2001:db8:1::1", "fe80::1"] {
            let site = Site::new();
            site.card("eth0", "outer", &["2001:db8:1::1/64", "fe80::1/64", "2001:db8:7::1/128"]);
            site.serve("outer", "[2001:db8:7::1]:80", MANIFEST);
            let text = format!("address = '2001:db8:1::7/64'\ngateway = '{gateway}'\ndns = ['2001:db8:1::1']");
            let up = site.start(&text).is_up(8);
            assert_eq!((up.address.to_string().as_str(), up.prefix_len), ("2001:db8:1::7", 64));
            assert_eq!(up.gateway, Some(gateway.parse().unwrap()));
            site.fetches("2001:db8:7::1", 3);
            drop(site);
            std::thread::sleep(Duration::from_secs(1));
            run("ip", &["link", "delete", "eth0"]);
            run("ip", &["netns", "delete", "outer"]);
        }
    });
}

/// An advertisement with a prefix and this lifetime as a router, and options.
pub fn advertisement(lifetime_s: u16, prefix: Option<&str>, name_server: Option<&str>) -> Vec<u8> {
    let mut out = vec![134, 0, 0, 0, 64, 0];
    out.extend_from_slice(&lifetime_s.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    if let Some(prefix) = prefix {
        out.extend_from_slice(&[3, 4, 64, 0xc0, 0, 0, 2, 88, 0, 0, 2, 88, 0, 0, 0, 0]);
        out.extend_from_slice(&prefix.parse::<Ipv6Addr>().unwrap().octets());
    }
    if let Some(server) = name_server {
        out.extend_from_slice(&name_server_for(600, server));
    }
    out
}

fn name_server_for(lifetime_s: u32, server: &str) -> Vec<u8> {
    let address = server.parse::<Ipv6Addr>().unwrap().octets();
    [&[25, 3, 0, 0][..], &lifetime_s.to_be_bytes(), &address].concat()
}

/// https://github.com/radvd-project/radvd/issues/143: the lifetime of a name server ends about when the next
/// advertisement is due, so that one that is lost takes it away (RFC 8106, 5.1). Other routers withdraw the only one by
/// mistake.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_only_name_server_is_used_however_short_its_lifetime() {
    isolated("field::ipv6::the_only_name_server_is_used_however_short_its_lifetime", || {
        for lifetime_s in [0, 1] {
            let mut site = Site::new();
            site.sources = vec!["http://images.example.com/stable/manifest.json".to_owned()];
            site.card("eth0", "outer", &["2001:db8:1::1/64"]);
            run("ip", &["-n", "outer", "address", "add", "2001:db8:7::1/128", "dev", "lo", "nodad"]);
            site.dnsmasq("outer", &NAMES);
            site.serve("outer", "[2001:db8:7::1]:80", MANIFEST);
            let server = name_server_for(lifetime_s, "2001:db8:1::1");
            site.advertise_every("outer", [advertisement(1800, Some("2001:db8:1::"), None), server].concat(), 5);
            let mut running = site.start("");
            running.is_up(15);
            site.fetches("images.example.com", 3);
            running.pass(3);
            assert_eq!(site.resolv_conf(), "nameserver 2001:db8:1::1\n");
            drop(site);
            std::thread::sleep(Duration::from_secs(1));
            run("ip", &["link", "delete", "eth0"]);
            run("ip", &["netns", "delete", "outer"]);
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_router_that_is_none_and_a_prefix_without_one_do_no_harm_to_ipv4() {
    isolated("field::ipv6::a_router_that_is_none_and_a_prefix_without_one_do_no_harm_to_ipv4", || {
        let mut site = Site::new();
        site.card("eth0", "outer", &["192.168.7.1/24"]);
        site.dhcp("outer", "192.168.7", &["--no-ping"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        site.advertise("outer", advertisement(0, Some("2001:db8:9::"), None));
        let mut running = site.start("");
        let up = running.is_up(8);
        assert_eq!(up.address.to_string()[..10], *"192.168.7.");
        running.wait_for("eth0: IPv6 address 2001:db8:9:", 8);
        running.pass(2);
        assert!(running.seen.iter().any(|(_, line)| line.contains("no router")), "{:?}", running.seen);
        assert_eq!(output("ip", &["-6", "route", "show", "default"]), "");
        site.fetches("192.168.7.1", 2);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn ipv6_that_leads_nowhere_leaves_ipv4_to_be_used() {
    isolated("field::ipv6::ipv6_that_leads_nowhere_leaves_ipv4_to_be_used", || {
        let mut site = Site::new();
        site.card("eth0", "outer", &["192.168.7.1/24"]);
        let names = ["--address=/images.example.com/192.168.7.1", "--address=/images.example.com/2001:db8:7::1"];
        site.dhcp("outer", "192.168.7", &[&["--no-ping", "--port=53"], &names[..]].concat());
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        site.advertise("outer", advertisement(1800, Some("2001:db8:9::"), Some("2001:db8:9::77")));
        let mut running = site.start("");
        running.is_up(8);
        running.wait_for("eth0: IPv6 address 2001:db8:9:", 8);
        site.fetches("images.example.com", 10);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lease_without_a_gateway_leaves_ipv6_to_be_used() {
    isolated("field::ipv6::a_lease_without_a_gateway_leaves_ipv6_to_be_used", || {
        let mut site = only_ipv6(&[&NAMES[..], &["--dhcp-range=2001:db8:1::,ra-only,64"]].concat());
        run("ip", &["-n", "outer", "address", "add", "10.9.0.1/24", "dev", "sw0"]);
        site.dhcp("outer", "10.9.0", &["--no-ping", "--dhcp-option=3"]);
        let mut running = site.start("");
        running.is_up(8);
        running.wait_for("eth0: IPv6 address 2001:db8:1:", 8);
        site.fetches("images.example.com", 8);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn one_card_has_ipv6_and_another_ipv4() {
    isolated("field::ipv6::one_card_has_ipv6_and_another_ipv4", || {
        let mut site = only_ipv6(&[&NAMES[..], &["--dhcp-range=2001:db8:1::,ra-only,64"]].concat());
        site.card("eth1", "inner", &["10.9.0.1/24"]);
        site.dhcp("inner", "10.9.0", &["--no-ping", "--port=53", "--address=/#/10.9.0.1"]);
        let mut running = site.start("");
        let up = running.is_up(14);
        assert_eq!(up.interface, "eth0");
        running.wait_for("eth0: used: it reaches images.example.com:80", 5);
        site.fetches("images.example.com", 3);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_address_of_a_name_server_may_be_of_the_link_only() {
    isolated("field::ipv6::the_address_of_a_name_server_may_be_of_the_link_only", || {
        let mut site = Site::new();
        site.sources = vec!["http://images.example.com/stable/manifest.json".to_owned()];
        site.card("eth0", "outer", &["fe80::53/64", "2001:db8:1::1/64"]);
        run("ip", &["-n", "outer", "address", "add", "2001:db8:7::1/128", "dev", "lo", "nodad"]);
        site.dnsmasq("outer", &NAMES);
        site.serve("outer", "[2001:db8:7::1]:80", MANIFEST);
        site.advertise("outer", advertisement(1800, Some("2001:db8:1::"), Some("fe80::53")));
        // A second card, so that the name has to be looked up by way of the first.
        site.card("eth1", "inner", &["10.9.0.1/24"]);
        site.dhcp("inner", "10.9.0", &["--no-ping"]);
        let mut running = site.start("");
        running.is_up(14);
        running.wait_for("eth0: used: it reaches images.example.com:80", 10);
        assert_eq!(site.resolv_conf(), "nameserver fe80::53%eth0\n");
        site.fetches("images.example.com", 3);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_router_that_withdraws_makes_way() {
    isolated("field::ipv6::a_router_that_withdraws_makes_way", || {
        let mut site = only_ipv6(&[&NAMES[..], &["--dhcp-range=2001:db8:1::,ra-only,64"]].concat());
        let mut running = site.start("");
        running.is_up(8);
        site.fetches("images.example.com", 4);
        site.stop_programs();
        site.advertise("outer", advertisement(0, None, None));
        running.wait_for("no router", 5);
        assert_eq!(output("ip", &["-6", "route", "show", "default"]), "");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn hostile_advertisements_end_nothing() {
    isolated("field::ipv6::hostile_advertisements_end_nothing", || {
        let mut site = Site::new();
        site.card("eth0", "outer", &["192.168.7.1/24"]);
        site.dhcp("outer", "192.168.7", &["--no-ping"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        for length in [1, 7, 15, 17, 24] {
            site.advertise("outer", [&[134; 1][..], &vec![0; length - 1]].concat());
        }
        site.advertise("outer", [advertisement(u16::MAX, Some("ff02::"), Some("::")), vec![3, 0]].concat());
        site.advertise("outer", [advertisement(9000, Some("fe80::"), Some("ff02::1")), vec![3, 200, 64]].concat());
        let mut running = site.start("");
        running.is_up(8);
        running.pass(5);
        site.fetches("192.168.7.1", 2);
        assert!(running.seen.len() < 20, "{:?}", running.seen);
        assert!(!site.resolv_conf().contains(':'), "{}", site.resolv_conf());
    });
}
