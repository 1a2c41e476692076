//! Name servers of the field, each on an address of its own below 127.0.0.0/8.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use super::{NameError, Resolver};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
const A: u8 = 1;
const AAAA: u8 = 28;

/// What a server does with a question.
#[derive(Clone, Copy)]
enum Habit {
    /// Answers with the address.
    Address,
    /// Answers with this code and no record.
    Code(u8),
    /// Answers with the unspecified address, as filters do.
    Filters,
    /// Says nothing.
    Silent,
    /// Says that the answer does not fit.
    Truncated,
}

/// A name server with one habit for each kind of question.
fn server(a: Habit, aaaa: Habit) -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    // TCP on the same port, for what does not fit.
    if let Ok(tcp) = TcpListener::bind(address) {
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut question).unwrap();
                let answer = answer(&question, Habit::Address).unwrap();
                let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length[..], &answer].concat()).unwrap();
            }
        });
    }
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let question = &buffer[..length];
            let habit = if question[length - 3] == AAAA { aaaa } else { a };
            if let Some(answer) = answer(question, habit) {
                udp.send_to(&answer, from).unwrap();
            }
        }
    });
    address
}

fn answer(question: &[u8], habit: Habit) -> Option<Vec<u8>> {
    let mut answer = question.to_vec();
    let kind = question[question.len() - 3];
    answer[2] |= 0x80;
    let record = match (habit, kind) {
        (Habit::Silent, _) => return None,
        (Habit::Truncated, _) => {
            answer[2] |= 2;
            return Some(answer);
        }
        (Habit::Code(code), _) => {
            answer[3] |= code;
            return Some(answer);
        }
        (Habit::Address, A) => vec![192, 0, 2, 7],
        (Habit::Address, _) => [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7]].concat(),
        (Habit::Filters, A) => vec![0; 4],
        (Habit::Filters, _) => vec![0; 16],
    };
    answer[7] = 1;
    answer.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, u8::try_from(record.len()).unwrap()]);
    answer.extend_from_slice(&record);
    Some(answer)
}

fn resolver(servers: &[SocketAddr]) -> Resolver {
    Resolver::default().with_servers(servers.to_vec())
}

/// https://github.com/home-assistant/plugin-dns/pull/81, https://github.com/pi-hole/FTL/issues/3039
#[test]
fn one_kind_that_fails_does_not_cost_the_other() {
    let codes = [0, 1, 2, 3, 4, 5];
    for aaaa in codes.map(Habit::Code).into_iter().chain([Habit::Silent, Habit::Filters, Habit::Truncated]) {
        let began = Instant::now();
        let found = resolver(&[server(Habit::Address, aaaa)]).lookup("images.example.com").unwrap();
        assert_eq!(found[0], ADDRESS);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    for a in codes.map(Habit::Code) {
        let found = resolver(&[server(a, Habit::Address)]).lookup("images.example.com").unwrap();
        assert_eq!(found, ["2001:db8::7".parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn one_server_that_fails_does_not_cost_the_others() {
    // Nothing listens there any more.
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let good = server(Habit::Address, Habit::Code(0));
    let nothing = |habit| server(habit, habit);
    for bad in [dead, nothing(Habit::Silent), nothing(Habit::Code(3)), nothing(Habit::Code(5)), nothing(Habit::Filters)]
    {
        for servers in [[bad, good], [good, bad]] {
            assert_eq!(resolver(&servers).lookup("images.example.com").unwrap(), [ADDRESS]);
        }
    }
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_over_tcp() {
    let found = resolver(&[server(Habit::Truncated, Habit::Code(3))]).lookup("images.example.com").unwrap();
    assert_eq!(found, [ADDRESS]);
}

#[test]
fn failures_name_every_server_and_what_it_said() {
    let unknown = server(Habit::Code(3), Habit::Code(3));
    let refusing = server(Habit::Code(5), Habit::Code(5));
    let error = resolver(&[unknown, refusing]).lookup("images.example.com").unwrap_err().to_string();
    assert!(error.contains("images.example.com") && error.contains("127.0.0.1: knows no such name"), "{error}");
    assert!(error.contains("refuses to answer for IPv4"), "{error}");
    assert!(matches!(resolver(&[]).lookup("a.b"), Err(NameError::NoServer { .. })));
    for odd in ["", ".", "a..b", &"x".repeat(64), &"y.".repeat(200)] {
        assert!(matches!(resolver(&[unknown]).lookup(odd), Err(NameError::Invalid { .. })), "{odd:?}");
    }
}

#[test]
fn servers_that_stay_silent_are_named() {
    let silent = [0, 1].map(|_| server(Habit::Silent, Habit::Silent));
    let half = server(Habit::Silent, Habit::Code(3));
    let lookup = |servers: &[SocketAddr]| resolver(servers).lookup("images.example.com").unwrap_err().to_string();
    std::thread::scope(|scope| {
        let both = scope.spawn(|| lookup(&silent));
        let error = lookup(&[half]);
        // Whether the silence about the other kind is reported in time is a matter of moments.
        assert!(error.contains("(127.0.0.1: knows no such name"), "{error}");
        let error = both.join().unwrap();
        assert!(error.ends_with("(127.0.0.1: no answer)"), "{error}");
    });
}

#[test]
fn numbers_and_listed_names_need_no_server() {
    let resolver =
        Resolver::parse("", "192.0.2.7 Images.Example.com images # the old one\n2001:db8::7 images\nnonsense\n");
    assert_eq!(resolver.lookup("[2001:db8::9]").unwrap(), ["2001:db8::9".parse::<IpAddr>().unwrap()]);
    assert_eq!(resolver.lookup("192.0.2.9").unwrap(), ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(resolver.lookup("IMAGES").unwrap(), [ADDRESS, "2001:db8::7".parse().unwrap()]);
    assert_eq!(resolver.lookup("images.example.com.").unwrap(), [ADDRESS]);
    assert_eq!(resolver.lookup("localhost").unwrap(), [IpAddr::from([127, 0, 0, 1])]);
}

#[test]
fn short_names_are_looked_for_in_the_domains() {
    let text = "# by DHCP\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\nsearch one.example two.example\n";
    let resolver = Resolver::parse(text, "");
    let servers: Vec<SocketAddr> = vec!["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()];
    assert_eq!(
        resolver,
        Resolver { search: vec!["one.example".into(), "two.example".into()], ..self::resolver(&servers) }
    );
    assert_eq!(resolver.candidates("images"), ["images.one.example", "images.two.example", "images"]);
    assert_eq!(resolver.candidates("a.b"), ["a.b", "a.b.one.example", "a.b.two.example"]);
    assert_eq!(resolver.candidates("a.b."), ["a.b"]);
}

/// systemd-resolved writes `search .` where it knows no domain.
#[test]
fn the_root_is_no_domain_to_look_in() {
    let servers = vec![server(Habit::Code(3), Habit::Code(3))];
    let resolver = Resolver::parse("search . one.example. .\n", "").with_servers(servers);
    assert_eq!(resolver.candidates("images"), ["images.one.example", "images"]);
    assert_eq!(resolver.candidates("a.b"), ["a.b", "a.b.one.example"]);
    let error = resolver.lookup("images").unwrap_err().to_string();
    assert!(error.contains("127.0.0.1: knows no such name"), "{error}");
}

/// A name server on UDP alone, which answers each question this way after a while.
fn answering(delay: Duration, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            std::thread::sleep(delay);
            udp.send_to(&answer(&buffer[..length]), from).unwrap();
        }
    });
    address
}

/// https://github.com/MichaCo/DnsClient.NET/issues/52, https://github.com/coredns/coredns/issues/844
#[test]
fn what_fits_into_an_answer_is_used_where_tcp_is_closed() {
    let whole = |question: &[u8]| answer(question, Habit::Address).unwrap();
    let truncated = move |question: &[u8]| {
        let mut answer = whole(question);
        answer[2] |= 2;
        answer
    };
    // 18 records are announced, and a middlebox has cut the answer behind the first without a word.
    let cut = move |question: &[u8]| {
        let mut answer = whole(question);
        answer[7] = 18;
        [&answer[..], &[0xc0, 12, 0, 1]].concat()
    };
    // A record of another kind whose content makes no sense, before the address.
    let odd = move |question: &[u8]| {
        let (mut answer, length) = (whole(question), question.len());
        answer[7] = 2;
        answer.splice(length..length, [0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 3, 0xff, 0xff, 0xff]);
        answer
    };
    for server in [answering(Duration::ZERO, truncated), answering(Duration::ZERO, cut), answering(Duration::ZERO, odd)]
    {
        let found = resolver(&[server]).lookup("images.example.com").unwrap();
        assert_eq!(found[0], ADDRESS);
    }
}

/// Forwarders of old routers and of containers: what does not fit is cut to nothing, TCP is closed, and only a question
/// with EDNS gets all of it.
#[test]
fn an_answer_that_does_not_fit_is_asked_for_in_a_larger_packet_where_tcp_is_closed() {
    let forwarder = answering(Duration::ZERO, |question| {
        const OPT: [u8; 5] = [0, 0, 41, 0x04, 0xd0];
        let at = question.len() - 11;
        if question[10..12] != [0, 1] || question[at..at + 5] != OPT {
            return answer(question, Habit::Truncated).unwrap();
        }
        let plain = [&question[..10], &[0, 0], &question[12..at]].concat();
        answer(&plain, Habit::Address).unwrap()
    });
    let began = Instant::now();
    let found = resolver(&[forwarder]).lookup("images.example.com").unwrap();
    assert_eq!(found, [ADDRESS, "2001:db8::7".parse().unwrap()]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // One that does not know EDNS says so, and one that is never content is not asked for ever.
    let old = answering(Duration::ZERO, |question| {
        let habit = if question[11] == 0 { Habit::Truncated } else { Habit::Code(1) };
        answer(question, habit).unwrap()
    });
    let error = resolver(&[old]).lookup("images.example.com").unwrap_err().to_string();
    assert!(error.contains("cut short, and over TCP"), "{error}");
    let cutting = answering(Duration::ZERO, |question| answer(question, Habit::Truncated).unwrap());
    assert!(resolver(&[cutting]).lookup("images.example.com").is_err());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

/// A provider's server invents an address for a name that only the site's own server knows.
#[test]
fn servers_that_are_listed_first_are_believed_first() {
    let invented = |question: &[u8]| {
        let mut answer = answer(question, Habit::Address).unwrap();
        *answer.last_mut().unwrap() = 99;
        answer
    };
    let late = answering(Duration::from_millis(100), |question| answer(question, Habit::Address).unwrap());
    let prompt = answering(Duration::ZERO, invented);
    assert_eq!(resolver(&[late, prompt]).lookup("images.example.com").unwrap()[0], ADDRESS);
    assert_ne!(resolver(&[prompt, late]).lookup("images.example.com").unwrap()[0], ADDRESS);
    let silent = server(Habit::Silent, Habit::Silent);
    let began = Instant::now();
    assert_ne!(resolver(&[silent, prompt]).lookup("images.example.com").unwrap()[0], ADDRESS);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn names_of_every_form_are_asked_for() {
    let good = server(Habit::Address, Habit::Code(0));
    let long = format!("{}.example.com", "x".repeat(63));
    for name in
        ["_images._tcp.example.com", &long, "xn--bcher-kva.example", "IMAGES.example.com.", "1.2.3.4.5", "a-b-.c"]
    {
        assert_eq!(resolver(&[good]).lookup(name).unwrap_or_else(|error| panic!("{error}")), [ADDRESS]);
    }
}

/// https://github.com/hickory-dns/resolv-conf/issues/1, https://github.com/systemd/systemd/issues/3359
#[test]
fn lists_of_servers_are_read_as_people_and_programs_write_them() {
    let text = "\u{feff}nameserver 192.0.2.53\r\noptions edns0 trust-ad\r\n\r\nnameserver\tfe80::1%7 # router\r\n\
                nameserver fe80::2%lo\nnameserver fe80::3%no/../such\nNAMESERVER x\nsortlist 1\nsearch a b c d e f g h\n";
    let parsed = Resolver::parse(text, "");
    let servers: Vec<String> = parsed.servers.iter().map(|server| server.address.to_string()).collect();
    assert_eq!(servers, ["192.0.2.53:53", "[fe80::1%7]:53", "[fe80::2%1]:53"]);
    assert_eq!(parsed.search.len(), 8);
}
