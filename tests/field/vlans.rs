//! VLANs: several on a card, beside what is untagged, with a number that nobody answers on, and under links that flap.

use std::process::Command;

use super::ipv6::advertisement;
use super::site::{MANIFEST, Site, output};
use crate::isolated::{isolated, run};

/// Whether the kernel has VLANs: that of a test host may have none.
fn has_vlans() -> bool {
    run("ip", &["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    let add = ["link", "add", "link", "v0", "name", "v0.2", "type", "vlan", "id", "2"];
    let added = Command::new("ip").args(add).status().unwrap().success();
    run("ip", &["link", "delete", "v0"]);
    if !added {
        eprintln!("this kernel has no VLANs: nothing was tested");
    }
    added
}

/// A network of its own, which VLAN `id` of the cable to `outer` leads to, with a DHCP server.
fn tagged(site: &mut Site, id: u16, subnet: &str) -> String {
    let (network, name) = (format!("v{id}"), format!("sw0.{id}"));
    run("ip", &["netns", "add", &network]);
    run("ip", &["-n", "outer", "link", "add", "link", "sw0", "name", &name, "type", "vlan", "id", &id.to_string()]);
    run("ip", &["-n", "outer", "link", "set", &name, "netns", &network]);
    run("ip", &["-n", &network, "address", "add", &format!("{subnet}.1/24"), "dev", &name]);
    run("ip", &["-n", &network, "link", "set", &name, "up"]);
    let range = format!("--dhcp-range={subnet}.50,{subnet}.60,255.255.255.0,1000");
    site.dnsmasq_on(&network, &name, &[&range, "--no-ping"]);
    network
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn of_several_vlans_and_what_is_untagged_the_one_that_leads_to_the_source_is_used() {
    isolated("field::vlans::of_several_vlans_and_what_is_untagged_the_one_that_leads_to_the_source_is_used", || {
        if !has_vlans() {
            return;
        }
        let mut site = Site::new();
        site.card("eth0", "outer", &["10.9.0.1/24"]);
        site.dhcp("outer", "10.9.0", &["--no-ping"]);
        tagged(&mut site, 5, "10.5.0");
        let far = tagged(&mut site, 7, "192.168.7");
        site.serve(&far, "192.168.7.1:80", MANIFEST);
        // Nobody answers on VLAN 6.
        let interfaces = ["", "vlan = 5", "vlan = 6", "vlan = 7"];
        let mut running =
            site.start(&interfaces.map(|vlan| format!("[[interfaces]]\ninterface = 'eth0'\n{vlan}\n")).concat());
        running.is_up(20);
        running.wait_for("eth0.7: used", 20);
        site.fetches("192.168.7.1", 5);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_vlan_comes_back_after_its_card_flapped_or_it_was_deleted() {
    isolated("field::vlans::a_vlan_comes_back_after_its_card_flapped_or_it_was_deleted", || {
        if !has_vlans() {
            return;
        }
        let mut site = Site::new();
        site.card("eth0", "outer", &["10.9.0.1/24"]);
        let far = tagged(&mut site, 7, "192.168.7");
        site.serve(&far, "192.168.7.1:80", MANIFEST);
        let mut running = site.start("interface = 'eth0'\nvlan = 7");
        running.is_up(20);
        site.fetches("192.168.7.1", 5);
        // At the other end of the cable, for less and for more than the grace.
        for seconds in [2, 13] {
            run("ip", &["-n", "outer", "link", "set", "sw0", "down"]);
            running.pass(seconds);
            run("ip", &["-n", "outer", "link", "set", "sw0", "up"]);
            run("ip", &["-n", &far, "link", "set", "sw0.7", "up"]);
            site.fetches("192.168.7.1", 20);
        }
        for change in [&["set", "eth0", "down"][..], &["set", "eth0.7", "down"], &["delete", "eth0.7"]] {
            println!("{change:?}");
            run("ip", &[&["link"], change].concat());
            running.pass(1);
            site.fetches("192.168.7.1", 40);
        }
    });
}

/// What is untagged advertises the very prefix of the VLAN.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_is_advertised_beside_the_vlan_is_not_used() {
    isolated("field::vlans::what_is_advertised_beside_the_vlan_is_not_used", || {
        if !has_vlans() {
            return;
        }
        let mut site = Site::new();
        site.sources = vec!["http://[2001:db8:7::1]/stable/manifest.json".to_owned()];
        site.card("eth0", "outer", &["2001:db8:9::1/64"]);
        site.advertise("outer", advertisement(1800, Some("2001:db8:7::"), None));
        let far = tagged(&mut site, 7, "192.168.7");
        run("ip", &["-n", &far, "address", "add", "2001:db8:7::1/64", "dev", "sw0.7", "nodad"]);
        let routers = ["--dhcp-range=2001:db8:7::,ra-only,64", "--enable-ra", "--ra-param=*,4,600"];
        site.dnsmasq_on(&far, "sw0.7", &routers);
        site.serve(&far, "[2001:db8:7::1]:80", MANIFEST);
        let mut running = site.start("interface = 'eth0'\nvlan = 7");
        running.is_up(20);
        running.wait_for("eth0.7: IPv6 address 2001:db8:7:", 20);
        site.fetches("2001:db8:7::1", 10);
        let untagged = output("ip", &["-6", "address", "show", "dev", "eth0"]);
        assert!(!untagged.contains("2001:"), "{untagged}");
    });
}
