//! Robots with several network cards, of which one leads to the release servers.
//!
//! Reports: https://github.com/rear/rear/issues/819, https://github.com/rear/rear/issues/458,
//! https://github.com/ipxe/ipxe/issues/826: of several cards, recovery configures the one that does not lead to the
//! server.

use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use super::site::{MANIFEST, PAGE, Site, output, within};
use crate::isolated::{isolated, run};

/// The network with the source, on a card. Its DHCP server checks an address for seconds before it offers it.
fn outer(site: &mut Site, card: &str, more: &[&str]) {
    site.card(card, "outer", &["192.168.7.1/24"]);
    site.dhcp("outer", "192.168.7", more);
    site.serve("outer", "192.168.7.1:80", MANIFEST);
}

/// An inner network, on a card. Its DHCP server answers at once.
fn inner(site: &mut Site, card: &str, more: &[&str]) {
    site.card(card, "inner", &["10.9.0.1/24"]);
    site.dhcp("inner", "10.9.0", &[&["--no-ping"], more].concat());
}

fn default_route() -> String {
    output("ip", &["route"]).lines().next().unwrap_or_default().to_owned()
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_inner_network_that_answers_first_is_not_used() {
    isolated("field::cards::an_inner_network_that_answers_first_is_not_used", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        outer(&mut site, "eth1", &[]);
        let mut running = site.start("");
        let up = running.is_up(12);
        assert_eq!(up.interface, "eth1");
        running.wait_for("eth1: used: it reaches 192.168.7.1:80", 3);
        running.wait_for("eth0: not used: 192.168.7.1:80 cannot be reached through it", 10);
        assert!(default_route().contains("dev eth1"), "{}", default_route());
        site.fetches("192.168.7.1", 2);
    });
}

/// A store behind a satellite, or one that fetches what it is asked for from another: it takes seconds for each answer.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_source_that_takes_seconds_to_answer_is_found_behind_the_card_that_leads_to_it() {
    isolated("field::cards::a_source_that_takes_seconds_to_answer_is_found_behind_the_card_that_leads_to_it", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        site.card("eth1", "outer", &["192.168.7.1/24"]);
        site.dhcp("outer", "192.168.7", &["--no-ping"]);
        run("ip", &["-n", "outer", "address", "add", "192.0.2.7/32", "dev", "lo"]);
        site.serve_after("outer", "192.0.2.7:80", MANIFEST, Duration::from_secs(5));
        // The only one of many mirrors that is there.
        site.sources = (1..=7).map(|last| format!("http://192.0.2.{last}/stable/manifest.json")).collect();
        let mut running = site.start("");
        running.wait_for("eth1: used: it reaches 192.0.2.7:80", 20);
        assert!(default_route().contains("dev eth1"), "{}", default_route());
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_inner_network_that_answers_second_changes_nothing() {
    isolated("field::cards::an_inner_network_that_answers_second_changes_nothing", || {
        let mut site = Site::new();
        outer(&mut site, "eth0", &["--no-ping"]);
        site.card("eth1", "inner", &["10.9.0.1/24"]);
        let mut running = site.start("");
        let up = running.is_up(8);
        assert_eq!(up.interface, "eth0");
        // Its line says that the card without a server is not waited for.
        assert!(running.began.elapsed() < Duration::from_secs(6));
        site.dhcp("inner", "10.9.0", &["--no-ping"]);
        running.wait_for("eth1: address 10.9.0.", 20);
        running.pass(3);
        assert!(default_route().contains("dev eth0"), "{}", default_route());
        assert!(
            running.seen.iter().any(|(_, line)| line.contains("eth1: not used while eth0 is")),
            "{:?}",
            running.seen
        );
        site.fetches("192.168.7.1", 2);
    });
}

/// The name servers of both networks, and what the inner one makes of every name.
fn with_names(inner_names: &[&str], inner_page: Option<&'static str>) {
    let mut site = Site::new();
    site.sources = vec!["http://images.example.com/stable/manifest.json".to_owned()];
    inner(&mut site, "eth0", inner_names);
    if let Some(page) = inner_page {
        site.serve("inner", "10.9.0.1:80", page);
    }
    outer(&mut site, "eth1", &["--port=53", "--address=/images.example.com/192.168.7.1"]);
    let mut running = site.start("");
    assert_eq!(running.is_up(14).interface, "eth1");
    running.wait_for("eth1: used: it reaches images.example.com:80", 3);
    site.fetches("images.example.com", 3);
    assert_eq!(site.resolv_conf(), "nameserver 192.168.7.1\n");
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_inner_name_server_that_is_silent_costs_nothing() {
    isolated("field::cards::an_inner_name_server_that_is_silent_costs_nothing", || {
        with_names(&["--dhcp-option=6,10.9.0.77"], None);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_inner_name_server_that_answers_everything_with_itself_is_not_believed() {
    isolated("field::cards::an_inner_name_server_that_answers_everything_with_itself_is_not_believed", || {
        with_names(&["--port=53", "--address=/#/10.9.0.1"], None);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_device_with_a_page_of_its_own_is_no_source() {
    isolated("field::cards::a_device_with_a_page_of_its_own_is_no_source", || {
        with_names(&["--port=53", "--address=/#/10.9.0.1"], Some(PAGE));
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_inner_name_server_that_knows_no_name_is_not_believed() {
    isolated("field::cards::an_inner_name_server_that_knows_no_name_is_not_believed", || {
        with_names(&["--port=53", "--address=/#/"], None);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_same_subnet_and_gateway_on_both_cards() {
    isolated("field::cards::the_same_subnet_and_gateway_on_both_cards", || {
        let mut site = Site::new();
        // Two devices with the factory's settings: even the leased address is the same.
        for (card, network) in [("eth0", "inner"), ("eth1", "outer")] {
            site.card(card, network, &["192.168.1.1/24"]);
            site.dnsmasq(network, &["--no-ping", "--dhcp-range=192.168.1.50,192.168.1.50,255.255.255.0,1000"]);
        }
        run("ip", &["-n", "outer", "address", "add", "192.168.7.1/32", "dev", "lo"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        let mut running = site.start("");
        assert_eq!(running.is_up(14).interface, "eth1");
        site.fetches("192.168.7.1", 2);
        // The network is up with the first lease; the other card's may come a moment later.
        running.wait_for("eth0: address 192.168.1.50/24", 10);
        running.pass(1);
        assert_eq!(output("ip", &["-4", "address"]).matches("inet 192.168.1.50/24").count(), 2);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_source_in_the_subnet_of_the_inner_network_is_reached_by_the_other_card() {
    isolated("field::cards::a_source_in_the_subnet_of_the_inner_network_is_reached_by_the_other_card", || {
        let mut site = Site::new();
        site.sources = vec!["http://10.8.8.8/stable/manifest.json".to_owned()];
        site.card("eth0", "inner", &["10.9.0.1/8"]);
        site.dnsmasq("inner", &["--no-ping", "--dhcp-range=10.9.0.50,10.9.0.60,255.0.0.0,1000"]);
        outer(&mut site, "eth1", &["--no-ping"]);
        run("ip", &["-n", "outer", "address", "add", "10.8.8.8/32", "dev", "lo"]);
        site.serve("outer", "10.8.8.8:80", MANIFEST);
        let running = site.start("");
        assert_eq!(running.is_up(14).interface, "eth1");
        site.fetches("10.8.8.8", 2);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn two_cards_in_one_subnet_answer_each_for_itself() {
    isolated("field::cards::two_cards_in_one_subnet_answer_each_for_itself", || {
        let mut site = Site::new();
        site.switch("outer", &["192.168.7.1/24"]);
        site.card_on_switch("eth0", "outer");
        site.card_on_switch("eth1", "outer");
        site.dhcp("outer", "192.168.7", &["--no-ping"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        let mut running = site.start("");
        running.is_up(10);
        while !running.seen.iter().any(|(_, line)| line.contains("eth0: address"))
            || !running.seen.iter().any(|(_, line)| line.contains("eth1: address"))
        {
            running.pass(1);
            assert!(running.began.elapsed() < Duration::from_secs(20));
        }
        running.pass(1);
        for card in ["eth0", "eth1"] {
            let text = output("ip", &["-4", "-o", "address", "show", "dev", card]);
            let address: IpAddr = text.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
            let listener = TcpListener::bind((address, 0)).unwrap();
            let to = listener.local_addr().unwrap();
            let before = sent(card);
            within("outer", move || {
                let timeout = Duration::from_secs(5);
                (0..20).for_each(|_| drop(std::net::TcpStream::connect_timeout(&to, timeout).unwrap()));
            })
            .join()
            .unwrap();
            assert!(sent(card) >= before + 20, "answers of {card} leave by another card");
            let mac = std::fs::read_to_string(format!("/sys/class/net/{card}/address")).unwrap();
            let neighbours = output("ip", &["-n", "outer", "neighbour", "show", &address.to_string()]);
            assert!(neighbours.contains(mac.trim()), "{card}: {mac} {neighbours}");
        }
        site.fetches("192.168.7.1", 2);
    });
}

fn sent(card: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/sys/class/net/{card}/statistics/tx_packets")).unwrap();
    text.trim().parse().unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_card_that_stops_reaching_the_source_is_left() {
    isolated("field::cards::a_card_that_stops_reaching_the_source_is_left", || {
        let mut site = Site::new();
        outer(&mut site, "eth0", &["--no-ping"]);
        site.card("eth1", "spare", &["10.9.0.1/24"]);
        site.dhcp("spare", "10.9.0", &["--no-ping"]);
        run("ip", &["-n", "spare", "address", "add", "192.168.7.1/32", "dev", "lo"]);
        site.serve("spare", "192.168.7.1:80", MANIFEST);
        let mut running = site.start("");
        running.is_up(8);
        running.pass(4);
        let first = if default_route().contains("eth0") { ("eth0", "outer") } else { ("eth1", "spare") };
        let second = if first.0 == "eth0" { ("eth1", "spare") } else { ("eth0", "outer") };
        // The cable stays, and behind it nothing answers any more.
        let firewall = |network: &str, what: &str| run("ip", &["-n", network, "link", "set", "sw0", what]);
        let routes = [
            "-n",
            first.1,
            "route",
            "add",
            "blackhole",
            if first.0 == "eth0" { "192.168.7.0/25" } else { "10.9.0.0/25" },
        ];
        run("ip", &routes);
        site.outcomes.failed();
        running.wait_for(&format!("{}: used: it reaches", second.0), 15);
        assert!(default_route().contains(second.0), "{}", default_route());
        site.fetches("192.168.7.1", 2);
        // A cable that is pulled makes way without any failed request.
        run("ip", &["-n", first.1, "route", "del", "blackhole", routes[5]]);
        running.pass(1);
        firewall(second.1, "down");
        let until = Instant::now() + Duration::from_secs(8);
        while !default_route().contains(first.0) {
            assert!(Instant::now() < until, "{}", default_route());
            std::thread::sleep(Duration::from_millis(100));
        }
        site.fetches("192.168.7.1", 4);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_card_with_a_link_and_no_network_delays_nothing() {
    isolated("field::cards::a_card_with_a_link_and_no_network_delays_nothing", || {
        let mut site = Site::new();
        // A camera on a cable of its own.
        site.card("eth0", "camera", &[]);
        outer(&mut site, "eth1", &["--no-ping"]);
        let mut running = site.start("");
        let up = running.is_up(5);
        assert_eq!(up.interface, "eth1");
        running.wait_for("eth0: not used: its network has given it no address", 20);
        let about_it = running.seen.iter().filter(|(_, line)| line.starts_with("eth0:")).count();
        assert!(about_it < 8, "{:?}", running.seen);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn one_card_is_up_as_soon_as_it_has_an_address_whatever_it_reaches() {
    isolated("field::cards::one_card_is_up_as_soon_as_it_has_an_address_whatever_it_reaches", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        // Another one without a cable.
        site.card("eth1", "nowhere", &[]);
        run("ip", &["-n", "nowhere", "link", "set", "sw0", "down"]);
        let running = site.start("");
        assert_eq!(running.is_up(5).interface, "eth0");
        assert_eq!(output("ip", &["rule"]).lines().count(), 3, "one card needs no rules");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn where_no_card_reaches_a_source_the_agent_goes_on_and_says_why() {
    isolated("field::cards::where_no_card_reaches_a_source_the_agent_goes_on_and_says_why", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        site.card("eth1", "second", &["10.10.0.1/24"]);
        site.dhcp("second", "10.10.0", &["--no-ping", "--dhcp-option=3"]);
        let mut running = site.start("");
        let up = running.is_up(20);
        running.wait_for("used in want of a better one: 192.168.7.1:80 cannot be reached through it", 10);
        assert!(up.gateway.is_some(), "a network with a gateway is the better guess: {up:?}");
        // The source appears behind the other card.
        run("ip", &["-n", "second", "address", "add", "192.168.7.1/32", "dev", "lo"]);
        run("ip", &["route", "add", "192.168.7.0/24", "via", "10.10.0.1", "dev", "eth1", "table", "1001"]);
        run("ip", &["route", "add", "192.168.7.0/24", "via", "10.10.0.1", "dev", "eth1", "metric", "900"]);
        site.serve("second", "192.168.7.1:80", MANIFEST);
        running.wait_for("eth1: used: it reaches 192.168.7.1:80", 70);
    });
}

#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_cable_that_flaps_fills_no_console_and_floods_no_network() {
    isolated("field::cards::full_a_cable_that_flaps_fills_no_console_and_floods_no_network", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        outer(&mut site, "eth1", &["--no-ping"]);
        let mut running = site.start("");
        running.is_up(14);
        let (before, sent_before) = (running.began.elapsed(), sent("eth0"));
        for _ in 0..30 {
            run("ip", &["-n", "inner", "link", "set", "sw0", "down"]);
            running.pass(1);
            run("ip", &["-n", "inner", "link", "set", "sw0", "up"]);
            running.pass(1);
        }
        let lines = running.seen.iter().filter(|(at, line)| *at > before && line.contains("eth0")).count();
        assert!(lines <= 8 + 7, "{lines}: {:?}", running.seen);
        assert!(sent("eth0") - sent_before < 200, "{}", sent("eth0") - sent_before);
        site.fetches("192.168.7.1", 2);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_usb_card_that_goes_and_comes_back_joins_again() {
    isolated("field::cards::a_usb_card_that_goes_and_comes_back_joins_again", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        let mut running = site.start("");
        running.is_up(5);
        for _ in 0..2 {
            site.card("usb0", "outer", &["192.168.7.1/24"]);
            site.dhcp("outer", "192.168.7", &["--no-ping"]);
            site.serve("outer", "192.168.7.1:80", MANIFEST);
            running.wait_for("usb0: used: it reaches", 30);
            site.fetches("192.168.7.1", 2);
            run("ip", &["link", "delete", "usb0"]);
            running.pass(2);
            assert!(default_route().contains("eth0"), "{}", default_route());
            run("ip", &["netns", "delete", "outer"]);
        }
        let rules = output("ip", &["rule"]);
        assert!(!rules.contains("192.168.7"), "{rules}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn several_interfaces_have_settings_of_their_own() {
    isolated("field::cards::several_interfaces_have_settings_of_their_own", || {
        let mut site = Site::new();
        site.card("eth0", "inner", &["10.9.0.1/24"]);
        site.card("eth1", "outer", &["192.168.7.1/24"]);
        site.card("eth2", "third", &["10.10.0.1/24"]);
        site.dhcp("third", "10.10.0", &["--no-ping"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        let mut running = site.start(
            "[[interfaces]]
             interface = 'eth0'
             addresses = ['10.9.0.7/24']
             gateways = ['10.9.0.1']
             [[interfaces]]
             interface = 'eth1'
             addresses = ['192.168.7.7/24', '2001:db8:7::7/64']
             gateways = ['192.168.7.1']
             dns = ['192.168.7.53']
             [[interfaces]]",
        );
        let up = running.is_up(12);
        assert_eq!((up.interface.as_str(), up.address), ("eth1", IpAddr::from([192, 168, 7, 7])));
        running.wait_for("eth2: address 10.10.0.", 15);
        assert!(output("ip", &["-4", "address", "show", "dev", "eth0"]).contains("inet 10.9.0.7/24"));
        assert!(output("ip", &["-6", "address", "show", "dev", "eth1"]).contains("inet6 2001:db8:7::7/64"));
        assert_eq!(site.resolv_conf(), "nameserver 192.168.7.53\n");
        site.fetches("192.168.7.1", 2);
    });
}

/// A server that the site had once: of the configuration it is left, and nothing answers there any more.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn the_name_servers_of_the_network_are_asked_behind_those_of_the_configuration() {
    isolated("field::cards::the_name_servers_of_the_network_are_asked_behind_those_of_the_configuration", || {
        let mut site = Site::new();
        outer(&mut site, "eth0", &["--no-ping", "--port=53", "--address=/images.example.com/192.168.7.1"]);
        let running = site.start("dns = ['192.168.7.77', '192.168.7.1']");
        assert_eq!(running.is_up(8).dns.len(), 2);
        assert_eq!(site.resolv_conf(), "nameserver 192.168.7.77\nnameserver 192.168.7.1\n");
        site.fetches("images.example.com", 3);
    });
}

/// A card that was replaced, or that the configuration calls by a name that only a rule of the image gives it.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn settings_for_a_card_that_is_not_there_are_used_for_the_one_that_is() {
    isolated("field::cards::settings_for_a_card_that_is_not_there_are_used_for_the_one_that_is", || {
        let site = Site::new();
        site.card("eth0", "outer", &["192.168.7.1/24"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        let mut running = site.start("interface = 'enp9s0'\naddress = '192.168.7.7/24'");
        running.wait_for("network: waiting for the interface enp9s0 of the configuration", 10);
        running.wait_for("network: enp9s0 of the configuration is not there; its settings are used for eth0", 30);
        assert!(running.began.elapsed() >= Duration::from_secs(29));
        let up = running.is_up(5);
        assert_eq!((up.interface.as_str(), up.address), ("eth0", IpAddr::from([192, 168, 7, 7])));
        site.fetches("192.168.7.1", 2);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_card_is_known_by_the_name_that_udev_gives_it() {
    isolated("field::cards::a_card_is_known_by_the_name_that_udev_gives_it", || {
        let site = Site::new();
        site.card("eth0", "outer", &["192.168.7.1/24"]);
        run("ip", &["link", "set", "eth0", "address", "52:54:00:12:ab:56"]);
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        let running = site.start("interface = 'enx52540012ab56'\naddress = '192.168.7.7/24'");
        assert_eq!(running.is_up(10).interface, "eth0");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn what_an_earlier_process_left_behind_is_taken_away() {
    isolated("field::cards::what_an_earlier_process_left_behind_is_taken_away", || {
        let mut site = Site::new();
        inner(&mut site, "eth0", &[]);
        outer(&mut site, "eth1", &["--no-ping"]);
        for command in [
            "link set eth1 up",
            "address add 172.16.0.9/16 dev eth1",
            "route add default via 172.16.0.1 dev eth1 metric 50",
            "rule add from 192.168.7.50 lookup 1000 priority 1000",
            "rule add to 192.168.7.1 lookup 1000 priority 2000",
            "-6 rule add from 2001:db8::1 lookup 1000 priority 1101",
            "route add default via 172.16.0.1 dev eth1 table 1000",
        ] {
            run("ip", &command.split(' ').collect::<Vec<_>>());
        }
        let running = site.start("");
        assert_eq!(running.is_up(14).interface, "eth1");
        site.fetches("192.168.7.1", 2);
        let left = output("ip", &["address"]) + &output("ip", &["route", "show", "table", "all"]);
        assert!(!left.contains("172.16.0."), "{left}");
        assert!(!output("ip", &["-6", "rule"]).contains("2001:db8::1"));
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_cable_that_moves_to_another_network_is_followed() {
    isolated("field::cards::a_cable_that_moves_to_another_network_is_followed", || {
        let mut site = Site::new();
        site.card("eth0", "first", &["10.9.0.1/24", "2001:db8:9::1/64"]);
        let advertises = ["--no-ping", "--enable-ra", "--ra-param=sw0,4,600"];
        site.dhcp("first", "10.9.0", &[&advertises[..], &["--dhcp-range=2001:db8:9::,ra-only,64"]].concat());
        let mut running = site.start("");
        running.is_up(8);
        running.wait_for("eth0: IPv6 address 2001:db8:9:", 8);
        site.stop_programs();
        run("ip", &["netns", "add", "outer"]);
        run("ip", &["-n", "first", "link", "set", "sw0", "netns", "outer"]);
        for address in ["192.168.7.1/24", "2001:db8:7::1/64"] {
            run("ip", &["-n", "outer", "address", "add", address, "dev", "sw0"]);
        }
        run("ip", &["-n", "outer", "link", "set", "sw0", "up"]);
        site.dhcp("outer", "192.168.7", &[&advertises[..], &["--dhcp-range=2001:db8:7::,ra-only,64"]].concat());
        site.serve("outer", "192.168.7.1:80", MANIFEST);
        running.wait_for("eth0: address 192.168.7.", 35);
        site.fetches("192.168.7.1", 2);
        // The router of the first network is not believed for longer than a moment.
        let router = || output("ip", &["-6", "route", "show", "default"]);
        let link = output("ip", &["-n", "outer", "-6", "-o", "address", "show", "dev", "sw0", "scope", "link"]);
        let own = link.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
        let until = Instant::now() + Duration::from_secs(15);
        while !(router().lines().count() == 1 && router().contains(&own)) {
            assert!(Instant::now() < until, "{own}\n{}", router());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(!output("ip", &["-4", "address", "show", "dev", "eth0"]).contains("10.9.0."));
    });
}
