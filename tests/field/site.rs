//! A machine with network cards, and the networks that they lead to, each in a namespace of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket, sockopt,
};
use reflash::machine::config::{Network, NetworkLayer};
use reflash::net::names::Resolver;
use reflash::net::{NetError, NetworkOptions, RequestOutcomes, Stop, Up, bring_up_with};

use crate::isolated::run;

/// Answer of a release server.
pub const MANIFEST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
/// Answer of the page of a device.
pub const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>";

pub struct Site {
    directory: tempfile::TempDir,
    programs: Vec<Child>,
    stop: Stop,
    pub outcomes: RequestOutcomes,
    pub sources: Vec<String>,
}

/// The network room as it runs.
pub struct Running {
    pub up: Receiver<Result<Up, NetError>>,
    pub events: Receiver<String>,
    pub began: Instant,
    /// Every event until now.
    pub seen: Vec<(Duration, String)>,
    /// Which of them were waited for.
    waited_for: Vec<bool>,
}

impl Site {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            programs: Vec::new(),
            stop: Stop::default(),
            outcomes: RequestOutcomes::default(),
            sources: vec!["http://192.168.7.1/stable/manifest.json".to_owned()],
        }
    }

    /// A card that leads to a network of its own, whose end of the cable is `sw0` with these addresses.
    pub fn card(&self, name: &str, network: &str, addresses: &[&str]) {
        run("ip", &["netns", "add", network]);
        run("ip", &["-n", network, "link", "set", "lo", "up"]);
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", "sw0", "netns", network]);
        self.addresses(network, addresses);
    }

    /// A card on the same switch as the others of the network.
    pub fn card_on_switch(&self, name: &str, network: &str) {
        let port = format!("p-{name}");
        run("ip", &["link", "add", name, "type", "veth", "peer", "name", &port, "netns", network]);
        run("ip", &["-n", network, "link", "set", &port, "master", "sw0", "up"]);
    }

    /// A network whose `sw0` is a switch.
    pub fn switch(&self, network: &str, addresses: &[&str]) {
        run("ip", &["netns", "add", network]);
        run("ip", &["-n", network, "link", "set", "lo", "up"]);
        run("ip", &["-n", network, "link", "add", "sw0", "type", "bridge"]);
        self.addresses(network, addresses);
    }

    fn addresses(&self, network: &str, addresses: &[&str]) {
        for address in addresses {
            let more: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            run("ip", &[&["-n", network, "address", "add", address, "dev", "sw0"], more].concat());
        }
        run("ip", &["-n", network, "link", "set", "sw0", "up"]);
    }

    /// A dnsmasq on `sw0` of the network, without a name server unless `--port=53` is among the arguments.
    pub fn dnsmasq(&mut self, network: &str, arguments: &[&str]) {
        self.dnsmasq_on(network, "sw0", arguments);
    }

    /// [`dnsmasq`](Self::dnsmasq) on another link.
    pub fn dnsmasq_on(&mut self, network: &str, link: &str, arguments: &[&str]) {
        let leases = self.directory.path().join(format!("leases-{}", self.programs.len()));
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", network, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"])
            .args(["--user=root", "--pid-file=", "--bind-dynamic", "--except-interface=lo"])
            .arg(format!("--interface={link}"))
            .args(["--no-hosts", "--dhcp-authoritative", "--log-facility=-"])
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .args(arguments);
        if !arguments.iter().any(|argument| argument.starts_with("--port")) {
            command.arg("--port=0");
        }
        let program = command.stderr(Stdio::null()).spawn().expect("ip and dnsmasq must be installed");
        self.programs.push(program);
    }

    /// A DHCP server for the first three numbers of an address, with these options.
    pub fn dhcp(&mut self, network: &str, subnet: &str, arguments: &[&str]) {
        let range = format!("--dhcp-range={subnet}.50,{subnet}.60,255.255.255.0,1000");
        self.dnsmasq(network, &[&[range.as_str()], arguments].concat());
    }

    pub fn stop_programs(&mut self) {
        for mut program in self.programs.drain(..) {
            program.kill().unwrap();
            program.wait().unwrap();
        }
    }

    /// A server in the network that gives every request this answer.
    pub fn serve(&self, network: &str, address: &str, answer: &'static str) {
        self.serve_after(network, address, answer, Duration::ZERO);
    }

    /// A server in the network that gives every request this answer, and takes so long for it.
    pub fn serve_after(&self, network: &str, address: &str, answer: &'static str, time: Duration) {
        let address: SocketAddr = address.parse().unwrap();
        let (ready, is_ready) = channel();
        within(network, move || {
            let listener = TcpListener::bind(address).unwrap();
            ready.send(()).unwrap();
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request);
                    std::thread::sleep(time);
                    let _ = stream.write_all(answer.as_bytes());
                });
            }
        });
        is_ready.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    /// A router on `sw0` of the network that sends this advertisement once a second, from the address of its link.
    pub fn advertise(&self, network: &str, advertisement: Vec<u8>) {
        self.advertise_every(network, advertisement, 1);
    }

    /// [`advertise`](Self::advertise), once in so many seconds.
    pub fn advertise_every(&self, network: &str, advertisement: Vec<u8>, seconds: u64) {
        within(network, move || {
            let name: &std::ffi::OsStr = "sw0".as_ref();
            let kind = (AddressFamily::Inet6, SockType::Raw, SockProtocol::IcmpV6);
            let socket = socket(kind.0, kind.1, SockFlag::empty(), kind.2).unwrap();
            setsockopt(&socket, sockopt::BindToDevice, &name.into()).unwrap();
            setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
            let index = nix::net::if_::if_nametoindex("sw0").unwrap();
            let all = SockaddrIn6::from(SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index));
            loop {
                // The link's own address may not be ready yet.
                let _ = sendto(socket.as_raw_fd(), &advertisement, &all, MsgFlags::empty());
                std::thread::sleep(Duration::from_secs(seconds));
            }
        });
    }

    /// Starts the network as the agent does, with `[network]` of this text.
    pub fn start(&self, network: &str) -> Running {
        let layer: NetworkLayer = toml::from_str(network).unwrap();
        let network = Network::resolve(layer).unwrap();
        let options = NetworkOptions {
            resolv_conf: self.directory.path().join("resolv.conf"),
            sources: self.sources.clone(),
            stop: self.stop.clone(),
            outcomes: self.outcomes.clone(),
            ..NetworkOptions::default()
        };
        let ((result, up), (event, events)) = (channel(), channel());
        let began = Instant::now();
        std::thread::spawn(move || {
            let up = bring_up_with(&network, options, move |text| {
                println!("{:5.1} {text}", began.elapsed().as_secs_f32());
                let _ = event.send(text.to_owned());
            });
            let _ = result.send(up);
        });
        Running { up, events, began, seen: Vec::new(), waited_for: Vec::new() }
    }

    pub fn resolv_conf(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("resolv.conf")).unwrap_or_default()
    }

    /// Fetches the manifest as the agent would: names by `resolv.conf`, each address in turn.
    pub fn fetch(&self, host: &str) -> Result<String, String> {
        let addresses = Resolver::parse(&self.resolv_conf(), "").lookup(host).map_err(|error| error.to_string())?;
        let mut last = "no address".to_owned();
        for address in addresses {
            match fetch_from(address) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    }

    /// Waits until the manifest can be fetched.
    pub fn fetches(&self, host: &str, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let fetched = self.fetch(host);
            if fetched.as_ref().is_ok_and(|answer| answer.ends_with("{}")) {
                return;
            }
            let routes = output("ip", &["route"]) + &output("ip", &["-6", "route"]) + &output("ip", &["rule"]);
            assert!(Instant::now() < until, "{fetched:?}\n{}\n{routes}", self.resolv_conf());
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn fetch_from(address: IpAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 80), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /stable/manifest.json HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.stop();
        self.stop_programs();
    }
}

impl Running {
    /// Waits until the network is up, as the agent does.
    pub fn is_up(&self, seconds: u64) -> Up {
        self.up.recv_timeout(Duration::from_secs(seconds)).expect("the network does not come up").unwrap()
    }

    /// Waits for an event with this text that has not been waited for.
    pub fn wait_for(&mut self, text: &str, seconds: u64) -> String {
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let fresh = |at: &usize| self.seen[*at].1.contains(text) && self.waited_for.get(*at) != Some(&true);
            if let Some(at) = (0..self.seen.len()).find(fresh) {
                self.waited_for.resize(self.seen.len(), false);
                self.waited_for[at] = true;
                return self.seen[at].1.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.unwrap_or_else(|_| panic!("no event with {text:?} in {seconds} s"));
            self.seen.push((self.began.elapsed(), event));
        }
    }

    /// Lets time pass and collects the events.
    pub fn pass(&mut self, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        while let Ok(event) = self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            self.seen.push((self.began.elapsed(), event));
        }
    }
}

/// Runs `work` in a thread in the network.
pub fn within<T: Send + 'static>(
    network: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let namespace = File::open(format!("/run/netns/{network}")).unwrap();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
}

pub fn output(program: &str, arguments: &[&str]) -> String {
    String::from_utf8(Command::new(program).args(arguments).output().unwrap().stdout).unwrap()
}
