//! A robot in bad company: whatever its cards, drives and partitions hold, PID 1 of the recovery stays, and the robot
//! recovers.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use xtask::demo::{self, BOOT_TIMEOUT};
use xtask::disk;
use xtask::test_system::Behaviour;
use xtask::vm::VirtualMachine;

use super::fallback::{expect, tiny_image};
use crate::support::Fixture;
use crate::support::server::{Act, TestServer, object, status};

/// Length of an Ethernet header, and of an IPv4 header without options.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
/// Length of the fixed part of a DHCP message with its magic number (RFC 2131, 2).
const DHCP: usize = 240;

/// A DHCP server that means ill, alone on a segment with one card of a virtual machine. Each frame of QEMU's `socket`
/// network is one datagram.
struct RogueServer {
    port: u16,
    answers: Arc<AtomicUsize>,
}

impl RogueServer {
    /// Starts the server; the card listens on `guest_port`.
    fn start(guest_port: u16) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let answers = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&answers);
        // Ends with the test's process: a machine that is off sends nothing.
        std::thread::spawn(move || {
            let mut frame = [0; 2048];
            while let Ok(length) = socket.recv(&mut frame) {
                for answer in ill_answers(&frame[..length]) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _ = socket.send_to(&answer, (Ipv4Addr::LOCALHOST, guest_port));
                }
            }
        });
        Self { port, answers }
    }
}

/// What the server makes of a frame: to a DHCP message an answer from no address with a lease to be renewed at once,
/// and the same cut short, with options that end nowhere, and refused.
fn ill_answers(frame: &[u8]) -> Vec<Vec<u8>> {
    let is_dhcp = frame.len() > ETHERNET + IPV4 + 8 + DHCP && frame[12..14] == [8, 0] && frame[36..38] == [0, 67];
    let Some(message) = is_dhcp.then(|| &frame[ETHERNET + IPV4 + 8..]) else { return Vec::new() };
    // Option 53 comes first in what we send: 1 asks for offers, 3 asks for a lease.
    let kind = message.get(DHCP + 2).copied().unwrap_or_default();
    let options = |kind: u8, more: &[u8]| [&[53, 1, kind, 54, 4, 10, 9, 9, 1][..], more].concat();
    let lease = [51, 4, 0, 1, 0x51, 0x80, 1, 4, 255, 255, 255, 0, 58, 4, 0, 0, 0, 0, 59, 4, 0, 0, 0, 4, 255];
    let answer = if kind == 1 { 2 } else { 5 };
    let good = built(message, &options(answer, &lease));
    let cut = good[..good.len() - 7].to_vec();
    let endless = built(message, &options(answer, &[121, 255, 33, 10]));
    let refused = built(message, &options(6, &[255]));
    vec![endless, cut, good, refused]
}

/// A frame from 0.0.0.0 to everybody with an answer to `request`.
fn built(request: &[u8], options: &[u8]) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0];
    message.extend(&request[4..8]);
    message.extend([0; 8]);
    message.extend([10, 9, 9, 15]);
    message.extend([0; 8]);
    message.extend(&request[28..44]);
    message.extend([0; 192]);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend(options);
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut udp = [0, 67, 0, 68].to_vec();
    udp.extend(length(8 + message.len()));
    udp.extend([0, 0]);
    let mut ip = vec![0x45, 0];
    ip.extend(length(IPV4 + 8 + message.len()));
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!u16::try_from(folded).unwrap()).to_be_bytes());
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 0x99], &[8, 0], &ip, &udp, &message].concat()
}

/// An ext4 stick whose manifest is a link to something that is read for ever.
fn stick_with_a_link(folder: &Path) -> std::path::PathBuf {
    let tree = folder.join("stick");
    let channel = tree.join("reflash/release/stable");
    std::fs::create_dir_all(&channel).unwrap();
    symlink("/proc/kmsg", channel.join("manifest.json")).unwrap();
    symlink("/proc/kmsg", channel.join("manifest.json.minisig")).unwrap();
    let image = folder.join("stick.img");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).arg("16m").status();
    assert!(made.unwrap().success());
    image
}

fn debugfs(device: &str, request: &str) {
    let done = Command::new("debugfs").args(["-w", "-R", request, device]).output().unwrap();
    assert!(done.status.success(), "{request}: {done:?}");
}

#[test]
#[ignore = "needs a virtual machine: cargo xtask test"]
fn a_robot_in_bad_company_recovers() {
    let mut fixture = Fixture::with(tiny_image("1", Behaviour::Good), super::for_demo_robots);
    let tree = fixture.dir.path().join("whole");
    assert!(Command::new("cp").arg("-r").args([fixture.tree(), tree.clone()]).status().unwrap().success());
    // Another mirror has the newest release of all, but for its content.
    let system = fixture.dir.path().join("system.img");
    let image = std::fs::read(&system).unwrap();
    fixture.publish(tiny_image("2", Behaviour::Good), |spec| {
        super::for_demo_robots(spec);
        spec.version = "2".into();
    });
    std::fs::write(&system, image).unwrap();
    let half_tree = fixture.tree();
    let half = TestServer::start(move |request| {
        let path = request.target().trim_start_matches('/');
        let content = std::fs::read(half_tree.join(path)).ok().filter(|_| !path.starts_with("objects/"));
        content.map_or_else(|| status("404 Not Found"), |content| object(request, &content))
    });
    // The first mirror is genuine, and as slow as a mirror can be that is not yet dead.
    let slow_tree = tree.clone();
    let slow = TestServer::start(move |request| {
        let Ok(content) = std::fs::read(slow_tree.join(request.target().trim_start_matches('/'))) else {
            return status("404 Not Found");
        };
        let Some((first, last)) = request.range() else { return object(request, &content) };
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n",
            last - first + 1,
            content.len()
        );
        let trickle = content[first..=last]
            .chunks(300)
            .flat_map(|piece| [Act::Send(piece.to_vec()), Act::Wait(Duration::from_secs(1))]);
        std::iter::once(Act::Send(head.into_bytes())).chain(trickle).collect()
    });
    let (_server, url) = demo::serve_to_guests(&tree).unwrap();
    let config = demo::robot_config(&url).replace("[machine]", "spread_s = 0\n[machine]");
    let [slow_port, half_port] = [&slow, &half].map(|server| server.address.port());
    let bad = format!("\"http://10.0.2.2:{slow_port}\", \"http://10.0.2.2:{half_port}\", ");
    let config = config.replace(&format!("\"{url}\""), &format!("{bad}\"{url}\""));
    assert!(config.contains(&half_port.to_string()), "{config}");
    let disk = super::disk(&fixture, config, Vec::new(), disk::environment_without_system());
    // The record of what is installed has grown to 420 MiB of nothing, in a machine of 512 MiB; the black box leads
    // elsewhere.
    let device = format!("{}?offset={}", disk.display(), disk::partition_range(&disk, "state").unwrap().start);
    let small = fixture.dir.path().join("small");
    std::fs::write(&small, b"{").unwrap();
    for request in [
        "mkdir /installed".to_owned(),
        format!("write {} /installed/manifest.json", small.display()),
        format!("write {} /installed/manifest.json.minisig", small.display()),
        "sif /installed/manifest.json size 440401920".to_owned(),
        "symlink /blackbox /recovery/grub/slot.cfg".to_owned(),
    ] {
        debugfs(&device, &request);
    }
    let stick = stick_with_a_link(fixture.dir.path());
    let guest_port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let rogue = RogueServer::start(guest_port);
    let mut machine = VirtualMachine::robot("bad-company", &disk);
    machine.add_usb_ports();
    machine.add_watchdog();
    let peer = format!("socket,id=rogue,udp=127.0.0.1:{},localaddr=127.0.0.1:{guest_port}", rogue.port);
    let drive = format!("if=none,id=link,format=raw,readonly=on,file={}", stick.display());
    for argument in ["-netdev", &peer, "-device", "virtio-net-pci,netdev=rogue", "-drive", &drive, "-device"] {
        machine.extra.push(argument.to_owned());
    }
    machine.extra.push("usb-storage,bus=ports.0,drive=link,removable=on".to_owned());
    let robot = machine.start().unwrap();
    let shown = expect(&robot, &["reason: tries", "and no source has all of it", "is installed after"]);
    for bad in ["panicked", "process died", "Out of memory"] {
        assert!(!shown.contains(bad), "{bad}: {shown}");
    }
    robot.wait_for("tiny system 1 is up", BOOT_TIMEOUT).unwrap();
    drop(robot);
    assert!(rogue.answers.load(Ordering::SeqCst) >= 4, "the rogue server was never asked");
    super::assert_system_is(&disk, &fixture);
}
