//! Paths that lose what is too large for them, without a word.

use std::time::{Duration, Instant};

use reflash::chain::chain;
use reflash::fetch::FetchOptions;

use super::addresses::relay;
use super::{flash_with, good, release};
use crate::field::site::{Site, within};
use crate::support::isolated::{isolated, run};
use crate::support::server::{TestServer, object, status};
use crate::support::tls::{ALWAYS, Authority};

/// A cable to a switch of which one port carries smaller packets than anybody is told. It says nothing about those that
/// it loses, as a tunnel does whose router sends no ICMP, or whose ICMP is filtered.
fn site() -> Site {
    let site = Site::new();
    site.switch("outer", &["192.168.7.1/24", "2001:db8:7::1/64"]);
    site.card_on_switch("eth0", "outer");
    // Packets that are left for the card to cut up would pass whole.
    run("ip", &["-n", "outer", "link", "set", "sw0", "gso_max_segs", "1"]);
    run("ip", &["link", "set", "eth0", "gso_max_segs", "1", "up"]);
    run("ip", &["address", "add", "192.168.7.2/24", "dev", "eth0"]);
    run("ip", &["address", "add", "2001:db8:7::2/64", "dev", "eth0", "nodad"]);
    site
}

/// https://github.com/pypi/support/issues/75: connections are made, and hang with the first large packet.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn large_packets_that_vanish_on_the_way_are_followed_by_small_ones() {
    isolated("field::servers::paths::large_packets_that_vanish_on_the_way_are_followed_by_small_ones", || {
        let _site = site();
        std::fs::write("/run/hosts", "192.168.7.1 release.test\n").unwrap();
        run("mount", &["--bind", "/run/hosts", "/etc/hosts"]);
        let fixture = release();
        let authority = Authority::new();
        let (tree, plain_tree, issued) = (fixture.tree(), fixture.tree(), authority.issue("release.test", ALWAYS));
        let servers = within("outer", move || {
            run("ip", &["link", "set", "lo", "up"]);
            let tls = TestServer::start_tls(issued, move |request| {
                let path = tree.join(request.target().trim_start_matches("/release/"));
                std::fs::read(path).map_or_else(|_| status("404 Not Found"), |content| object(request, &content))
            });
            let plain = good(plain_tree);
            let four = relay("192.168.7.1:0", plain.address);
            let six = relay("[2001:db8:7::1]:0", plain.address);
            let tls_four = relay("192.168.7.1:0", tls.address);
            ((plain, tls), four, six, tls_four)
        });
        let (_running, four, six, tls) = servers.join().unwrap();
        let stall = Duration::from_secs(2);
        let ca_file = Some(authority.file.path().to_owned());
        let options = FetchOptions { stall_timeout: stall, ca_file, ..crate::fetch::options() };
        // A packet of 1280 bytes is what any path of IPv6 carries, and IPv4 does not promise as much.
        for (mtu, url, stalls) in [
            ("1500", format!("http://{four}/release"), 0),
            ("1400", format!("http://{four}/release"), 1),
            ("1280", format!("http://{six}/release"), 1),
            ("1400", format!("https://release.test:{}/release", tls.port()), 1),
            ("1000", format!("http://{four}/release"), 2),
        ] {
            // A switch takes the least of its ports for its own, until it is told otherwise.
            for (link, mtu) in [("p-eth0", mtu), ("sw0", "1500")] {
                run("ip", &["-n", "outer", "link", "set", link, "mtu", mtu]);
            }
            let began = Instant::now();
            let (result, retries) = flash_with(&fixture, std::slice::from_ref(&url), &options);
            result.unwrap_or_else(|error| panic!("{mtu} {url}: {}; {retries:?}", chain(&error)));
            println!("{mtu} {url}: {:?} {retries:?}", began.elapsed());
            // What is silent on a kept connection is asked for at once on another one.
            assert!(stalls > 0 || retries.is_empty(), "{mtu} {url}: {retries:?}");
            assert!(began.elapsed() < stall * (3 * stalls + 2), "{mtu} {url}: {:?} {retries:?}", began.elapsed());
        }
    });
}
