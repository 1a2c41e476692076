//! The agent's network against a real DHCP server (dnsmasq) behind veth pairs, in namespaces.
#![allow(clippy::unwrap_used)] // clippy sees tests only in functions with #[test], not in their helpers.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use reflash::machine::config::{InterfaceSelector, Network, NetworkLayer, StaticAddress};
use reflash::net::NetError;
use reflash::net::NetworkOptions;
use reflash::net::RequestOutcomes;
use reflash::net::Stop;
use reflash::net::Up;
use reflash::net::bring_up_with;

use crate::isolated::{isolated, run};

/// The machine and its surroundings: cards in this namespace, their other ends in the namespace `server`.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) servers: Vec<Child>,
    pub(crate) stop: Stop,
    /// URLs of the manifests of all sources.
    pub(crate) sources: Vec<String>,
    pub(crate) outcomes: RequestOutcomes,
}

impl World {
    pub(crate) fn new() -> Self {
        run("ip", &["netns", "add", "server"]);
        run("ip", &["-n", "server", "link", "set", "lo", "up"]);
        Self {
            directory: tempfile::tempdir().unwrap(),
            servers: Vec::new(),
            stop: Stop::default(),
            sources: Vec::new(),
            outcomes: RequestOutcomes::default(),
        }
    }

    /// A card `name` whose other end is `s-name` with the address, if any.
    pub(crate) fn card(&self, name: &str, server_address: Option<&str>) {
        let other = format!("s-{name}");
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", &other, "netns", "server"]);
        run("ip", &["-n", "server", "link", "set", &other, "up"]);
        if let Some(address) = server_address {
            run("ip", &["-n", "server", "address", "add", address, "dev", &other]);
        }
    }

    pub(crate) fn dhcp_server(&mut self, on: &str, first: &str, last: &str) {
        self.dhcp_server_with(on, first, last, &["3,10.77.0.1", "6,10.77.0.53,10.77.0.54"]);
    }

    /// A server that gives these options to whoever asks.
    pub(crate) fn dhcp_server_with(&mut self, on: &str, first: &str, last: &str, options: &[&str]) {
        let leases = self.directory.path().join(format!("leases-{}", self.servers.len()));
        let server = Command::new("ip")
            .args(["netns", "exec", "server", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            .args(["--user=root", "--pid-file=", "--bind-interfaces", "--except-interface=lo", "--dhcp-authoritative"])
            .arg(format!("--interface={on}"))
            .arg(format!("--dhcp-range={first},{last},255.255.255.0,1000"))
            .args(options.iter().map(|option| format!("--dhcp-option={option}")))
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("ip (iproute2) and dnsmasq (dnsmasq-base) must be installed");
        self.servers.push(server);
    }

    pub(crate) fn stop_server(&mut self) {
        let mut server = self.servers.pop().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Starts the network as the agent does; the events come from the receiver.
    pub(crate) fn start(&self, network: Network) -> (Receiver<Result<Up, NetError>>, Receiver<String>) {
        let (result, result_of) = channel();
        let (event, events) = channel();
        let options = NetworkOptions {
            resolv_conf: self.resolv_conf(),
            sources: self.sources.clone(),
            stop: self.stop.clone(),
            outcomes: self.outcomes.clone(),
            ..NetworkOptions::default()
        };
        std::thread::spawn(move || {
            let up = bring_up_with(&network, options, move |text| {
                println!("{text}");
                let _ = event.send(text.to_owned());
            });
            let _ = result.send(up);
        });
        (result_of, events)
    }

    pub(crate) fn resolv_conf(&self) -> std::path::PathBuf {
        // A directory that does not exist yet, as /etc may not in an initramfs.
        self.directory.path().join("etc/resolv.conf")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.stop();
        while !self.servers.is_empty() {
            self.stop_server();
        }
    }
}

pub(crate) fn dhcp() -> Network {
    Network::resolve(NetworkLayer::default()).unwrap()
}

pub(crate) fn wait_for(events: &Receiver<String>, text: &str, seconds: u64) -> String {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).unwrap_or_else(|_| panic!("no event with {text:?} in {seconds} s"));
        if event.contains(text) {
            return event;
        }
    }
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    String::from_utf8(Command::new(program).args(arguments).output().unwrap().stdout).unwrap()
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Connects to the address from the server's side.
pub(crate) fn reached_by_server(address: IpAddr) {
    let listener = std::net::TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
    run("ip", &["netns", "exec", "server", "timeout", "10", "bash", "-c", &connect]);
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lease_is_obtained_and_the_machine_is_configured() {
    isolated("net::a_lease_is_obtained_and_the_machine_is_configured", || {
        let mut world = World::new();
        world.card("eth0", Some("10.77.0.1/24"));
        world.dhcp_server("s-eth0", "10.77.0.50", "10.77.0.60");
        let (up, events) = world.start(dhcp());
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();

        assert_eq!((up.interface.as_str(), up.prefix_len, up.lease_seconds), ("eth0", 24, Some(1000)));
        let IpAddr::V4(address) = up.address else { panic!("{up:?}") };
        assert!((50..=60).contains(&address.octets()[3]), "{up:?}");
        assert_eq!(up.gateway, Some(IpAddr::from([10, 77, 0, 1])));
        assert_eq!(up.dns, [IpAddr::from([10, 77, 0, 53]), IpAddr::from([10, 77, 0, 54])]);
        assert_eq!(read(&world.resolv_conf()), "nameserver 10.77.0.53\nnameserver 10.77.0.54\n");
        let address = output("ip", &["-4", "address", "show", "dev", "eth0"]);
        assert!(address.contains(&format!("inet {}/24 brd 10.77.0.255", up.address)), "{address}");
        assert!(output("ip", &["route"]).starts_with("default via 10.77.0.1 dev eth0"));
        reached_by_server(up.address);
        wait_for(&events, "eth0: link up", 1);
        wait_for(&events, "leased for 1000 s", 1);
        // Nothing listens to packets between exchanges.
        assert_eq!(read(Path::new("/proc/net/packet")).lines().count(), 1);
    });
}

/// Reports: https://github.com/systemd/systemd/issues/440 (routers), https://github.com/maxnet/berryboot/issues/224 (MTU),
/// https://github.com/coreos/bugs/issues/84 (search list).
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn of_several_routers_the_first_is_used_and_mtu_and_domains_are_taken() {
    isolated("net::of_several_routers_the_first_is_used_and_mtu_and_domains_are_taken", || {
        let mut world = World::new();
        world.card("eth0", Some("10.77.0.1/24"));
        let options = [
            "3,10.77.0.1,10.77.0.2",
            "6,10.77.0.53,10.77.0.54,10.77.0.55,10.77.0.56",
            "15,own.example",
            "26,1400",
            "option:domain-search,lab.example,own.example,example",
        ];
        world.dhcp_server_with("s-eth0", "10.77.0.50", "10.77.0.60", &options);
        let (up, events) = world.start(dhcp());
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!((up.gateway, up.dns.len()), (Some(IpAddr::from([10, 77, 0, 1])), 4));
        assert!(output("ip", &["route"]).starts_with("default via 10.77.0.1 dev eth0"));
        assert_eq!(read(Path::new("/sys/class/net/eth0/mtu")).trim(), "1400");
        let resolv_conf = read(&world.resolv_conf());
        assert!(
            resolv_conf.ends_with("nameserver 10.77.0.56\nsearch own.example lab.example example\n"),
            "{resolv_conf}"
        );
        wait_for(&events, "MTU 1400", 1);
    });
}

/// Report: https://github.com/ipxe/ipxe/issues/1556.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn classless_routes_are_set_in_place_of_the_router() {
    isolated("net::classless_routes_are_set_in_place_of_the_router", || {
        let mut world = World::new();
        world.card("eth0", Some("10.77.0.1/24"));
        // The default route leads through a router outside the subnet, which another route makes reachable.
        let routes = "121,192.0.2.1/32,0.0.0.0,0.0.0.0/0,192.0.2.1,198.51.100.0/24,10.77.0.7";
        world.dhcp_server_with("s-eth0", "10.77.0.50", "10.77.0.60", &["3,10.77.0.1", routes]);
        let (up, _events) = world.start(dhcp());
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(up.gateway, Some(IpAddr::from([192, 0, 2, 1])));
        let routes = output("ip", &["route"]);
        for route in ["default via 192.0.2.1 dev eth0", "192.0.2.1 dev eth0", "198.51.100.0/24 via 10.77.0.7 dev eth0"]
        {
            assert!(routes.contains(route), "{routes}");
        }
        assert!(!routes.contains("via 10.77.0.1"), "{routes}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_server_that_appears_later_is_found() {
    isolated("net::a_server_that_appears_later_is_found", || {
        let mut world = World::new();
        world.card("eth0", Some("10.77.0.1/24"));
        let (up, events) = world.start(dhcp());
        assert!(wait_for(&events, "no DHCP answer yet", 15).contains("(attempt 2), next in 8 s"));
        assert!(up.try_recv().is_err());
        world.dhcp_server("s-eth0", "10.77.0.50", "10.77.0.60");
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(up.interface, "eth0");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn of_two_cards_the_one_with_a_server_wins() {
    isolated("net::of_two_cards_the_one_with_a_server_wins", || {
        let mut world = World::new();
        world.card("eth0", Some("10.66.0.1/24"));
        world.card("eth1", Some("10.77.0.1/24"));
        world.dhcp_server("s-eth1", "10.77.0.50", "10.77.0.60");
        let (up, events) = world.start(dhcp());
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(up.interface, "eth1");
        wait_for(&events, "eth1: address 10.77.0.", 1);
        // The other card goes on asking; the one with a lease does not listen any more.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(read(Path::new("/proc/net/packet")).lines().count(), 2);
        assert!(!output("ip", &["-4", "address", "show", "dev", "eth0"]).contains("inet "));
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_card_and_a_cable_that_come_later_join() {
    isolated("net::a_card_and_a_cable_that_come_later_join", || {
        let mut world = World::new();
        let (up, events) = world.start(dhcp());
        wait_for(&events, "no network card found", 8);
        world.card("usb0", Some("10.77.0.1/24"));
        run("ip", &["-n", "server", "link", "set", "s-usb0", "down"]);
        wait_for(&events, "no link on usb0; is the cable plugged in?", 20);
        run("ip", &["-n", "server", "link", "set", "s-usb0", "up"]);
        world.dhcp_server("s-usb0", "10.77.0.50", "10.77.0.60");
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(up.interface, "usb0");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_card_unplugged_during_dhcp_is_no_accident() {
    isolated("net::a_card_unplugged_during_dhcp_is_no_accident", || {
        let mut world = World::new();
        world.card("usb0", None);
        let (up, events) = world.start(dhcp());
        wait_for(&events, "usb0: asking for an address", 5);
        run("ip", &["link", "delete", "usb0"]);
        std::thread::sleep(Duration::from_secs(1));
        world.card("usb0", Some("10.77.0.1/24"));
        world.dhcp_server("s-usb0", "10.77.0.50", "10.77.0.60");
        assert_eq!(up.recv_timeout(Duration::from_secs(40)).unwrap().unwrap().interface, "usb0");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_lease_is_renewed_and_a_new_address_is_taken_over() {
    isolated("net::a_lease_is_renewed_and_a_new_address_is_taken_over", || {
        let mut world = World::new();
        world.card("eth0", Some("10.77.0.1/24"));
        world.dhcp_server("s-eth0", "10.77.0.50", "10.77.0.60");
        let (up, events) = world.start(dhcp());
        let first = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();

        // A cable that was out for a moment makes the lease be renewed at once.
        let flap = || {
            run("ip", &["-n", "server", "link", "set", "s-eth0", "down"]);
            wait_for(&events, "eth0: link lost", 5);
            run("ip", &["-n", "server", "link", "set", "s-eth0", "up"]);
            wait_for(&events, "eth0: link up again", 5);
        };
        flap();
        wait_for(&events, "lease renewed for 1000 s", 20);
        reached_by_server(first.address);

        world.stop_server();
        world.dhcp_server("s-eth0", "10.77.0.150", "10.77.0.160");
        flap();
        wait_for(&events, "eth0: address 10.77.0.1", 30);
        let address = output("ip", &["-4", "address", "show", "dev", "eth0"]);
        assert_eq!(address.matches("inet ").count(), 1, "{address}");
        assert!(address.contains("inet 10.77.0.15") || address.contains("inet 10.77.0.160"), "{address}");

        // Out for longer, it is searched anew, and found on the other card.
        world.card("eth1", Some("10.88.0.1/24"));
        world.dhcp_server("s-eth1", "10.88.0.50", "10.88.0.60");
        run("ip", &["-n", "server", "link", "set", "s-eth0", "down"]);
        wait_for(&events, "eth1: address 10.88.0.", 40);
        // A card whose cable stays away loses its address.
        let until = Instant::now() + Duration::from_secs(15);
        while output("ip", &["-4", "address", "show", "dev", "eth0"]).contains("inet ") {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn a_static_address_needs_no_server() {
    isolated("net::a_static_address_needs_no_server", || {
        let world = World::new();
        world.card("eth0", None);
        world.card("eth1", Some("10.77.0.1/24"));
        let network = Network {
            interface: Some(InterfaceSelector::Name("eth1".into())),
            address: Some(StaticAddress { address: IpAddr::from([10, 77, 0, 7]), prefix_len: 24 }),
            // The gateway is outside the subnet, as with some providers.
            gateway: Some(IpAddr::from([10, 99, 0, 1])),
            dns: vec![IpAddr::from([10, 77, 0, 53])],
            ..dhcp()
        };
        let (up, _events) = world.start(network);
        let up = up.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!((up.interface.as_str(), up.address, up.lease_seconds), ("eth1", IpAddr::from([10, 77, 0, 7]), None));
        assert!(output("ip", &["route"]).contains("default via 10.99.0.1 dev eth1 proto static metric 50 onlink"));
        assert_eq!(read(&world.resolv_conf()), "nameserver 10.77.0.53\n");
        reached_by_server(up.address);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn dhcp_runs_on_the_vlan() {
    isolated("net::dhcp_runs_on_the_vlan", || {
        let mut world = World::new();
        world.card("eth0", Some("10.66.0.1/24"));
        // On the plain cable a server that must not be listened to.
        world.dhcp_server("s-eth0", "10.66.0.50", "10.66.0.60");
        let vlan = ["-n", "server", "link", "add", "link", "s-eth0", "name", "s-vlan", "type", "vlan", "id", "42"];
        if !Command::new("ip").args(vlan).status().unwrap().success() {
            println!("skipped: this kernel has no 802.1Q VLANs");
            return;
        }
        run("ip", &["-n", "server", "address", "add", "10.77.0.1/24", "dev", "s-vlan"]);
        run("ip", &["-n", "server", "link", "set", "s-vlan", "up"]);
        world.dhcp_server("s-vlan", "10.77.0.50", "10.77.0.60");
        let (up, _events) = world.start(Network { vlan: Some(42), ..dhcp() });
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(up.interface, "eth0.42");
        assert!(up.address.to_string().starts_with("10.77.0."), "{up:?}");
        reached_by_server(up.address);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn stopping_ends_the_wait() {
    isolated("net::stopping_ends_the_wait", || {
        let world = World::new();
        world.card("eth0", None);
        let (up, events) = world.start(dhcp());
        wait_for(&events, "asking for an address", 5);
        world.stop.stop();
        assert!(matches!(up.recv_timeout(Duration::from_secs(2)).unwrap(), Err(NetError::Stopped)));
    });
}

/// Report: https://github.com/systemd/systemd/issues/440, and the reason why sites list two routers.
#[test]
#[ignore = "needs root: cargo xtask test --tier root"]
fn of_several_routers_one_that_is_gone_is_passed_over() {
    isolated("net::of_several_routers_one_that_is_gone_is_passed_over", || {
        let mut world = World::new();
        world.card("eth0", Some("10.77.0.1/24"));
        run("ip", &["-n", "server", "address", "add", "192.0.2.1/32", "dev", "lo"]);
        world.dhcp_server_with("s-eth0", "10.77.0.50", "10.77.0.60", &["3,10.77.0.9,10.77.0.8,10.77.0.1"]);
        let (up, _events) = world.start(dhcp());
        let up = up.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
        assert_eq!(up.gateway, Some(IpAddr::from([10, 77, 0, 9])));
        // Each router that is gone costs the time that the kernel asks for it. A refusal comes from the other side.
        let until = Instant::now() + Duration::from_secs(40);
        let reached = || {
            let connected = TcpStream::connect_timeout(&([192, 0, 2, 1], 9).into(), Duration::from_secs(4));
            connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        while !reached() {
            assert!(Instant::now() < until, "{}", output("ip", &["route"]));
        }
    });
}
