//! DHCP servers of the field: lists, masks and times that no other client expects, and servers that refuse.
//!
//! Answers are sent over a real network by a server that says what a case wants; what they do to the state machine,
//! with the time at which it does it, is in the unit tests of `net::dhcp`.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{setsockopt, sockopt};

use super::site::{MANIFEST, Running, Site, output, within};
use crate::isolated::{isolated, run};

/// DHCP message types (RFC 2132, 9.6).
const OFFER: u8 = 2;
const ACK: u8 = 5;
const NAK: u8 = 6;
/// Address of the server, and the one that it leases.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const LEASED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 50);

/// One answer: its type, its server identifier, and the options behind these.
struct Answer(u8, Ipv4Addr, Vec<u8>);

/// A server at [`SERVER`] in the network `outer`; `answers` gets the type of a request. Counts the requests.
fn serve(answers: impl Fn(u8) -> Vec<Answer> + Send + 'static) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    within("outer", move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
        socket.set_broadcast(true).unwrap();
        let name: &std::ffi::OsStr = "sw0".as_ref();
        setsockopt(&socket.as_fd(), sockopt::BindToDevice, &name.into()).unwrap();
        let mut request = [0; 2048];
        while let Ok(length) = socket.recv(&mut request) {
            counted.fetch_add(1, Ordering::SeqCst);
            // Our client puts the type first.
            let kind = if length > 242 { request[242] } else { 0 };
            for Answer(kind, server, options) in answers(kind) {
                let mut answer = vec![2, 1, 6, 0];
                answer.extend(&request[4..8]);
                answer.extend([0; 8]);
                answer.extend(if kind == NAK { Ipv4Addr::UNSPECIFIED } else { LEASED }.octets());
                answer.extend([0; 8]);
                answer.extend(&request[28..44]);
                answer.extend([0; 192]);
                answer.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind, 54, 4]);
                answer.extend(server.octets());
                answer.extend(options);
                let _ = socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68));
            }
        }
    });
    asked
}

/// A server that grants with these options, which end the message.
fn granting(options: &'static [u8]) -> impl Fn(u8) -> Vec<Answer> + Send + 'static {
    move |kind| {
        let options = [&[51, 4, 0, 0, 3, 232][..], options, &[255]].concat();
        vec![Answer(if kind == 1 { OFFER } else { ACK }, SERVER, options)]
    }
}

fn site() -> Site {
    let mut site = Site::new();
    site.sources.clear();
    site.card("eth0", "outer", &["10.9.0.1/24"]);
    site
}

/// Brings the network up behind a server that grants with these options. Returns routes, link, addresses and
/// resolv.conf.
fn granted(options: &'static [u8]) -> String {
    let site = site();
    serve(granting(options));
    let running = site.start("");
    running.is_up(15);
    output("ip", &["-4", "route", "show", "table", "all"])
        + &output("ip", &["-4", "address", "show", "dev", "eth0"])
        + &site.resolv_conf()
}

/// https://github.com/systemd/systemd/issues/440, https://github.com/coreos/bugs/issues/110: option 3 with two
/// routers.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn of_a_list_of_routers_the_first_is_the_way_out() {
    isolated("field::dhcp::of_a_list_of_routers_the_first_is_the_way_out", || {
        let shown = granted(&[1, 4, 255, 255, 255, 0, 3, 8, 10, 9, 0, 1, 10, 9, 0, 2]);
        assert!(shown.contains("default via 10.9.0.1") && shown.contains("10.9.0.50/24"), "{shown}");
    });
}

/// The same family: a list that is not a multiple of four bytes, and an empty one.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_list_of_routers_that_is_cut_is_used_as_far_as_it_goes() {
    isolated("field::dhcp::a_list_of_routers_that_is_cut_is_used_as_far_as_it_goes", || {
        let shown = granted(&[1, 4, 255, 255, 255, 0, 3, 6, 10, 9, 0, 1, 10, 9, 6, 4, 10, 9, 0, 1]);
        assert!(shown.contains("default via 10.9.0.1") && shown.contains("nameserver 10.9.0.1"), "{shown}");
    });
}

/// https://github.com/smoltcp-rs/smoltcp/issues/445: no netmask.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn without_a_mask_the_class_decides() {
    isolated("field::dhcp::without_a_mask_the_class_decides", || {
        let shown = granted(&[3, 4, 10, 9, 0, 1]);
        assert!(shown.contains("10.9.0.50/8") && shown.contains("default via 10.9.0.1"), "{shown}");
    });
}

/// The same family: a mask with holes.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_mask_with_holes_is_no_mask() {
    isolated("field::dhcp::a_mask_with_holes_is_no_mask", || {
        let shown = granted(&[1, 4, 255, 0, 255, 0, 3, 4, 10, 9, 0, 1]);
        assert!(shown.contains("10.9.0.50/8") && shown.contains("default via 10.9.0.1"), "{shown}");
    });
}

/// https://github.com/ipxe/ipxe/issues/1556, https://github.com/lf-edge/eve/pull/2042: the way out is in option 121
/// only, which otherwise replaces option 3 (RFC 3442).
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn classless_routes_are_the_way_out() {
    isolated("field::dhcp::classless_routes_are_the_way_out", || {
        let shown = granted(&[
            1, 4, 255, 255, 255, 0, 3, 4, 10, 9, 0, 9, 121, 14, 0, 10, 9, 0, 1, 24, 192, 168, 9, 10, 9, 0, 2, 0, 0, 0,
        ]);
        assert!(shown.contains("default via 10.9.0.1") && !shown.contains("via 10.9.0.9"), "{shown}");
        assert!(shown.contains("192.168.9.0/24 via 10.9.0.2"), "{shown}");
    });
}

/// https://github.com/maxnet/berryboot/issues/224: the MTU of a tunnel; and one that no link can have.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_mtu_is_taken_where_it_can_be_one() {
    isolated("field::dhcp::an_mtu_is_taken_where_it_can_be_one", || {
        let shown = granted(&[1, 4, 255, 255, 255, 0, 26, 2, 5, 120]);
        assert!(shown.contains("mtu 1400"), "{shown}");
    });
}

/// The same family: an MTU below what IPv4 asks of every link (RFC 791), as of a server that counts in other units.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn an_mtu_of_no_use_is_left_out() {
    isolated("field::dhcp::an_mtu_of_no_use_is_left_out", || {
        let shown = granted(&[1, 4, 255, 255, 255, 0, 26, 2, 0, 1]);
        assert!(shown.contains("mtu 1500") && shown.contains("10.9.0.50/24"), "{shown}");
    });
}

/// https://github.com/coreos/bugs/issues/84, https://github.com/grml/grml/issues/86: domains; here with a list whose
/// compression leads in a circle.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_domain_is_taken_beside_a_search_list_that_is_none() {
    isolated("field::dhcp::a_domain_is_taken_beside_a_search_list_that_is_none", || {
        let shown = granted(&[1, 4, 255, 255, 255, 0, 15, 3, b'l', b'a', b'n', 119, 2, 0xc0, 0, 6, 4, 10, 9, 0, 1]);
        assert!(shown.contains("search lan") && shown.contains("nameserver 10.9.0.1"), "{shown}");
    });
}

/// https://github.com/ipxe/ipxe/pull/879, https://github.com/zephyrproject-rtos/zephyr/issues/50868: another server of
/// the segment refuses whatever it hears.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_refusal_of_another_server_is_not_the_answer() {
    isolated("field::dhcp::a_refusal_of_another_server_is_not_the_answer", || {
        let site = site();
        let grant = granting(&[1, 4, 255, 255, 255, 0, 3, 4, 10, 9, 0, 1]);
        let asked = serve(move |kind| {
            let refused = || Answer(NAK, Ipv4Addr::new(10, 9, 0, 77), vec![255]);
            [vec![refused()], grant(kind), vec![refused()]].into_iter().flatten().collect()
        });
        site.start("").is_up(10);
        assert!(asked.load(Ordering::SeqCst) <= 6, "{} requests", asked.load(Ordering::SeqCst));
    });
}

/// https://github.com/systemd/systemd/pull/2450: the only server refuses its own offers, as one whose pool is
/// exhausted.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_server_that_refuses_is_asked_seldom_and_named_seldom() {
    isolated("field::dhcp::full_a_server_that_refuses_is_asked_seldom_and_named_seldom", || {
        let site = site();
        let asked = serve(|kind| match kind {
            1 => vec![Answer(OFFER, SERVER, vec![51, 4, 0, 0, 3, 232, 255])],
            _ => vec![Answer(NAK, SERVER, vec![255])],
        });
        let mut running = site.start("");
        running.pass(30);
        let asked = asked.load(Ordering::SeqCst);
        assert!((4..=40).contains(&asked), "{asked} requests in 30 s");
        let lines = running.seen.iter().filter(|(_, text)| text.contains("refuses")).count();
        assert!((1..=8).contains(&lines), "{lines} lines in 30 s");
    });
}

/// A network with the source, in which another DHCP server answers first and names a router that leads nowhere.
fn with_a_rogue() -> Site {
    let mut site = Site::new();
    site.switch("outer", &["192.168.7.1/24"]);
    site.card_on_switch("eth0", "outer");
    run("ip", &["netns", "add", "rogue"]);
    run("ip", &["-n", "outer", "link", "add", "p-rogue", "type", "veth", "peer", "name", "sw0", "netns", "rogue"]);
    run("ip", &["-n", "outer", "link", "set", "p-rogue", "master", "sw0", "up"]);
    run("ip", &["-n", "rogue", "address", "add", "10.9.0.1/24", "dev", "sw0"]);
    run("ip", &["-n", "rogue", "link", "set", "sw0", "up"]);
    site.dhcp("rogue", "10.9.0", &["--no-ping"]);
    site.serve("outer", "192.168.7.1:80", MANIFEST);
    site
}

/// Lets requests fail for so long, as a recovery's do.
fn in_trouble(site: &Site, running: &mut Running, seconds: u64) {
    for _ in 0..seconds / 3 {
        site.outcomes.failed();
        running.pass(3);
    }
}

/// https://github.com/libremesh/lime-packages/issues/658: of two DHCP servers on a segment, the one of another network
/// answers first.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_server_whose_network_leads_nowhere_makes_way_for_another() {
    isolated("field::dhcp::full_a_server_whose_network_leads_nowhere_makes_way_for_another", || {
        let mut site = with_a_rogue();
        // It checks an address for seconds before it offers it.
        site.dhcp("outer", "192.168.7", &[]);
        let mut running = site.start("");
        assert!(running.is_up(8).address.to_string().starts_with("10.9.0."));
        in_trouble(&site, &mut running, 90);
        running.wait_for("eth0: the lease of 10.9.0.1 leads to no source", 1);
        running.wait_for("eth0: address 192.168.7.", 15);
        site.fetches("192.168.7.1", 2);
        let addresses = output("ip", &["-4", "address", "show", "dev", "eth0"]);
        assert!(!addresses.contains("10.9.0."), "{addresses}");
        // That one stays.
        running.pass(30);
        assert!(running.seen.iter().all(|(_, line)| !line.contains("the lease of 192.168.7.1")), "{:?}", running.seen);
    });
}

/// A robot whose servers are down keeps its lease and its calm.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_the_only_server_keeps_its_lease_while_no_source_answers() {
    isolated("field::dhcp::full_the_only_server_keeps_its_lease_while_no_source_answers", || {
        let mut site = site();
        site.sources = vec!["http://192.168.7.1/stable/manifest.json".to_owned()];
        let asked = serve(granting(&[1, 4, 255, 255, 255, 0, 3, 4, 10, 9, 0, 1]));
        let mut running = site.start("");
        running.is_up(15);
        let address = || output("ip", &["-4", "address", "show", "dev", "eth0"]);
        let before = address();
        for _ in 0..40 {
            in_trouble(&site, &mut running, 3);
            assert_eq!(address(), before);
        }
        running.wait_for("eth0: the lease of 10.9.0.1 leads to no source", 1);
        let asked = asked.load(Ordering::SeqCst);
        assert!((4..=8).contains(&asked), "{asked} requests in two minutes");
    });
}

/// The first of two routers takes packets and passes none on.
#[test]
#[ignore = "takes long: cargo xtask test --full"]
fn full_a_router_that_leads_nowhere_makes_way_for_the_next() {
    isolated("field::dhcp::full_a_router_that_leads_nowhere_makes_way_for_the_next", || {
        let mut site = with_a_rogue();
        site.sources = vec!["http://192.0.2.7/stable/manifest.json".to_owned()];
        run("ip", &["-n", "outer", "address", "add", "10.9.0.2/24", "dev", "sw0"]);
        run("ip", &["-n", "outer", "address", "add", "192.0.2.7/32", "dev", "lo"]);
        site.stop_programs();
        site.dhcp("rogue", "10.9.0", &["--no-ping", "--dhcp-option=3,10.9.0.1,10.9.0.2"]);
        site.serve("outer", "192.0.2.7:80", MANIFEST);
        let mut running = site.start("");
        running.is_up(8);
        in_trouble(&site, &mut running, 90);
        running.wait_for("gateway 10.9.0.2", 15);
        site.fetches("192.0.2.7", 2);
        let routes = output("ip", &["-4", "route", "show", "default"]);
        assert_eq!(routes.lines().filter(|line| line.starts_with("default via 10.9.0.")).count(), 2, "{routes}");
    });
}

/// A lease of one second that is to be renewed at once, from a server that gives its address as 0.0.0.0: what ended
/// PID 1 once.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lease_of_no_time_neither_ends_the_network_nor_floods_it() {
    isolated("field::dhcp::a_lease_of_no_time_neither_ends_the_network_nor_floods_it", || {
        let site = site();
        let asked = serve(|kind| {
            let times = [51, 4, 0, 0, 0, 1, 58, 4, 0, 0, 0, 0, 59, 4, 0, 0, 0, 4, 1, 4, 255, 255, 255, 0, 255];
            vec![Answer(if kind == 1 { OFFER } else { ACK }, Ipv4Addr::UNSPECIFIED, times.to_vec())]
        });
        let mut running = site.start("");
        running.is_up(15);
        running.pass(8);
        let asked = asked.load(Ordering::SeqCst);
        assert!(asked <= 14, "{asked} requests in some 10 s");
        assert!(output("ip", &["-4", "address", "show", "dev", "eth0"]).contains("10.9.0.50/24"));
    });
}
