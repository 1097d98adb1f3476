//! A node ignores echo replies, and echoes of messages about paths, that answer none of its probes: they change neither
//! whether a peer is reached nor its round-trip time.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use meshd::protocol::path_messages::{self, Echo, Message, PathMessage};
use meshd::testbed::{Host, Running};
use socket2::{Domain, Protocol, Socket, Type};

use crate::mesh::Mesh;
use crate::node_kit::put_plain_device;

/// The first bytes of meshd's probes after the ICMP header.
const MARK: &[u8] = b"meshprob";
const IDENTIFIER: u16 = 0x6d65;
const NO_SIZE: u16 = 1;
/// The length in bytes of an echo message with the mark and the nonce.
const ECHO: usize = 24;

/// Makes an ICMP or ICMPv6 echo reply that carries `carried`. The kernel writes the checksum of an ICMPv6 message.
fn reply(v6: bool, identifier: u16, sequence: u16, carried: [u8; 8]) -> Vec<u8> {
    let mut echo = vec![if v6 { 129 } else { 0 }, 0, 0, 0];
    echo.extend(identifier.to_be_bytes());
    echo.extend(sequence.to_be_bytes());
    echo.extend(MARK);
    echo.extend(carried);
    if !v6 {
        let words = echo
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = !(sum as u16);
        echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    echo
}

/// Makes an echo of the messages about paths that carries `carried` as its nonce.
fn echo(carried: [u8; 8]) -> Vec<u8> {
    let message = PathMessage {
        nonce: u64::from_be_bytes(carried),
        message: Message::Echo(Echo {
            path: 0,
            sent_us: 0,
            seen: None,
            via: None,
            relay: None,
        }),
    };
    let mut out = vec![0; 128];
    let length = message.write(&mut out).expect("there is room");
    out.truncate(length);
    out
}

/// The state of the attacker. It has the keys of a peer, so it receives the probes that are sent to that peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Plan {
    /// Sends replies that answer no probe. They carry times, numbers next to what the last probe carried, and what
    /// probes carried that were answered before.
    Forge,
    /// Answers each probe correctly, and sends forged replies as well.
    Answer,
    Stop,
}

/// A WireGuard device with a node's keys, on a machine that answers no probe. It forges replies from three addresses: the
/// node's own IPv4 address, one that a container would have, and the node's IPv6 address.
struct Attacker<'a> {
    host: &'a Host,
    victim: (Ipv4Addr, Ipv6Addr),
    plan: AtomicU8,
    /// The contents of the probes that it received.
    seen: Mutex<Vec<[u8; 8]>>,
    /// The contents of the probes that it answered.
    answered: Mutex<Vec<[u8; 8]>>,
}

impl Attacker<'_> {
    fn set(&self, plan: Plan) {
        self.plan.store(plan as u8, Ordering::SeqCst);
    }

    fn is(&self, plan: Plan) -> bool {
        self.plan.load(Ordering::SeqCst) == plan as u8
    }

    fn run(&self, own: (Ipv4Addr, Ipv6Addr), container: Ipv4Addr) {
        let socket = |domain, protocol, from: IpAddr| {
            let socket = Socket::new(domain, Type::RAW, Some(protocol)).expect("root");
            socket
                .bind(&SocketAddr::new(from, 0).into())
                .expect("an address of this machine");
            socket
        };
        let work = || {
            let v4 = |from: Ipv4Addr| socket(Domain::IPV4, Protocol::ICMPV4, from.into());
            let listening = v4(own.0);
            listening
                .set_read_timeout(Some(Duration::from_millis(2)))
                .expect("a socket");
            let sending = [
                (v4(container), false),
                (v4(own.0), false),
                (socket(Domain::IPV6, Protocol::ICMPV6, own.1.into()), true),
            ];
            // A peer that speaks of paths is probed by messages on a port.
            let port = |from: IpAddr| {
                let socket = UdpSocket::bind((from, path_messages::PORT)).expect("a free port");
                socket.set_nonblocking(true).expect("a socket");
                socket
            };
            let ports = [
                port(own.0.into()),
                port(container.into()),
                port(own.1.into()),
            ];
            let mut buffer = [MaybeUninit::uninit(); 2048];
            let mut message = [0; 2048];
            while !self.is(Plan::Stop) {
                while let Ok(length) = ports[0].recv(&mut message) {
                    self.handle_message(&message[..length], &ports[0]);
                }
                if let Ok(length) = listening.recv(&mut buffer) {
                    // SAFETY: the kernel has written `length` bytes.
                    let packet = unsafe { buffer[..length].assume_init_ref() };
                    self.handle_packet(packet, &sending[1].0);
                }
                for carried in self.forgeries() {
                    for (socket, v6) in &sending {
                        for sequence in [NO_SIZE, 1280, 1400] {
                            self.send(socket, *v6, sequence, carried);
                        }
                    }
                    for (n, socket) in ports.iter().enumerate() {
                        self.send_message(socket, n == 2, carried);
                    }
                }
            }
        };
        self.host.inside(work).expect("a namespace");
    }

    /// Stores what a probe carries, and answers it if that is the plan.
    fn handle_packet(&self, packet: &[u8], from: &Socket) {
        // The IPv4 header has no options, so it is 20 bytes long.
        let Some(echo) = packet.get(20..).filter(|echo| echo.len() >= ECHO) else {
            return;
        };
        if echo[0] != 8 || &echo[8..16] != MARK {
            return;
        }
        let carried = echo[16..24].try_into().expect("8 bytes");
        if self.is(Plan::Answer) {
            let sequence = u16::from_be_bytes([echo[6], echo[7]]);
            self.send(from, false, sequence, carried);
            self.answered.lock().expect("no panic").push(carried);
        }
        self.seen.lock().expect("no panic").push(carried);
    }

    /// Stores the nonce of a probe that is a message about paths, and answers it if that is the plan.
    fn handle_message(&self, message: &[u8], from: &UdpSocket) {
        let Ok(PathMessage {
            nonce,
            message: Message::Probe(_),
        }) = PathMessage::parse(message)
        else {
            return;
        };
        let carried = nonce.to_be_bytes();
        if self.is(Plan::Answer) {
            self.send_message(from, false, carried);
            self.answered.lock().expect("no panic").push(carried);
        }
        self.seen.lock().expect("no panic").push(carried);
    }

    fn send_message(&self, socket: &UdpSocket, v6: bool, carried: [u8; 8]) {
        let to: IpAddr = match v6 {
            true => self.victim.1.into(),
            false => self.victim.0.into(),
        };
        let _ = socket.send_to(&echo(carried), (to, path_messages::PORT));
    }

    /// The contents of forged replies: times in microseconds since the start of the victim's tunnel, numbers next to
    /// what the last probe carried, and what answered probes carried. What an unanswered probe carries is never among
    /// them.
    fn forgeries(&self) -> Vec<[u8; 8]> {
        let times = [0u64, 1, 1_000_000, 2_000_000, u64::MAX];
        let mut forgeries: Vec<[u8; 8]> = times.map(u64::to_be_bytes).to_vec();
        let seen = self.seen.lock().expect("no panic");
        if let Some(last) = seen.last() {
            let last = u64::from_be_bytes(*last);
            let near = [
                last.wrapping_add(1),
                last.wrapping_sub(1),
                last.swap_bytes(),
            ];
            forgeries.extend(near.map(u64::to_be_bytes));
        }
        // These probes were answered, so the replies to them are replays.
        let answered = self.answered.lock().expect("no panic");
        forgeries.extend(answered.iter().rev().take(8));
        forgeries
    }

    fn send(&self, socket: &Socket, v6: bool, sequence: u16, carried: [u8; 8]) {
        let to: IpAddr = match v6 {
            true => self.victim.1.into(),
            false => self.victim.0.into(),
        };
        let echo = reply(v6, IDENTIFIER, sequence, carried);
        let _ = socket.send_to(&echo, &SocketAddr::new(to, 0).into());
    }
}

/// Puts a plain WireGuard device in the place of the second node's meshd, on a machine that answers no echo.
pub(crate) fn take_place_of_second(mesh: &mut Mesh) -> Running {
    let (v4, _) = mesh.addresses(1);
    let running = put_plain_device(mesh, 1, &[0]);
    mesh.ip(1, &format!("address add {}/16 dev mesh0", container_of(v4)));
    for setting in [
        "net.ipv4.icmp_echo_ignore_all=1",
        "net.ipv6.icmp.echo_ignore_all=1",
    ] {
        assert!(mesh.succeeds(1, "sysctl", &["-qw", setting]));
    }
    running
}

/// An address that a container of the node with address `node` would have.
fn container_of(node: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = node.octets();
    Ipv4Addr::new(a, b, c, 7)
}

#[test]
fn no_reply_that_nobody_asked_for_and_no_replay_of_a_true_one_is_a_round_trip() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    let own = mesh.addresses(1);
    let victim = mesh.addresses(0);
    let _device = take_place_of_second(&mut mesh);
    let attacker = Attacker {
        host: &mesh.nodes[1].host,
        victim,
        plan: AtomicU8::new(Plan::Forge as u8),
        seen: Mutex::default(),
        answered: Mutex::default(),
    };
    let seen = || attacker.seen.lock().expect("no panic").len();
    let ping = || mesh.on(0, &["ping", "-c", "1", "n2"]);
    std::thread::scope(|scope| {
        scope.spawn(|| attacker.run(own, container_of(own.0)));
        let checks = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // The attacker receives the victim's probes, so the tunnel works and the forged replies arrive as well.
            mesh.wait_until("probes come to the attacker", || {
                ping();
                seen() > 0
            });
            let received = mesh.status(0).peers[0].rx_bytes;
            let before = seen();
            let unanswered = ping();
            assert_eq!(unanswered.code, 1, "{unanswered:?}");
            assert!(unanswered.stdout.contains("no answer"), "{unanswered:?}");
            assert!(seen() > before, "the probe came to the attacker");
            let after = mesh.status(0).peers[0].rx_bytes;
            assert!(after > received + 10_000, "{received} and {after}");

            // Now there are correct answers among the forged ones, and many replays of them.
            attacker.set(Plan::Answer);
            mesh.wait_until("a true answer counts", || ping().code == 0);
            for _ in 0..5 {
                let answered = ping();
                assert_eq!(answered.code, 0, "{answered:?}");
            }
            // Replies with nonces of earlier probes do not answer a new probe.
            attacker.set(Plan::Forge);
            let unanswered = ping();
            assert_eq!(unanswered.code, 1, "{unanswered:?}");
        }));
        attacker.set(Plan::Stop);
        checks.expect("what is asserted above");
    });
}
