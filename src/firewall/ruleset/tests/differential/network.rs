//! A host with a bridge and containers on it, which are network namespaces, and programs that send packets between them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::{CONTAINERS, place};
use crate::model::Protocol;
use crate::policy::Asked;
use crate::testbed::{Host, World};

/// How long packets that have to arrive may take: only one that is lost takes that long.
const LIMIT: Duration = Duration::from_secs(3);
/// How long a packet that must not arrive is waited for. The kernel delivers packets while they are sent.
const SILENCE: Duration = Duration::from_millis(5);
/// A protocol for experiments (RFC 3692 section 2.1).
const EXPERIMENTAL: i32 = 253;
/// Types of ICMP messages (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
/// The lengths in bytes of the header of IPv4 without options, and of that of an ICMP echo.
const IPV4_HEADER: usize = 20;
const ECHO_HEADER: usize = 8;

/// The host. The kernel sends no redirects, since a container would believe them.
const HOST: &str = "
ip link add mesh0 type bridge
ip address add 10.210.1.1/16 dev mesh0
ip link set mesh0 up
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0
sysctl -qw net.ipv4.conf.default.send_redirects=0 net.ipv4.conf.docker0.send_redirects=0
";

/// A packet between two ends of the host, which are numbered as in [`place`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) asked: Asked,
}

/// The host or a container, with programs that receive at all ports, and with sockets from which packets are sent.
struct End {
    ports: BTreeMap<u16, (UdpSocket, TcpListener)>,
    datagrams: UdpSocket,
    echo: Socket,
    other: Socket,
    host: Host,
}

/// The packets of one policy.
struct Sent<'a> {
    round: u32,
    packets: &'a [Packet],
    /// The packets that open connections, by the addresses that their receivers may see.
    connections: BTreeMap<SocketAddr, usize>,
    /// The numbers of the packets that have arrived.
    arrived: BTreeSet<usize>,
}

pub(super) struct Network {
    ends: Vec<End>,
    round: Cell<u32>,
    _world: World,
}

impl Network {
    /// Makes the host and its containers. Programs receive everything in `asked`.
    pub(super) fn start(world: World, asked: &[Asked]) -> Self {
        let hosts: Vec<Host> = (0..=CONTAINERS)
            .map(|n| world.host(&format!("c{n}")).expect("a namespace"))
            .collect();
        run(&hosts[0], HOST);
        for (n, container) in hosts.iter().enumerate().skip(1) {
            let (_, address) = place(n, false);
            let pid = container.pid();
            let cable = format!(
                "ip link add v{n} type veth peer name c0 netns {pid}\n\
                 ip link set v{n} master docker0 up"
            );
            run(&hosts[0], &cable);
            let own = format!(
                "ip address add {address}/16 dev c0\n\
                 ip link set c0 up\n\
                 ip route add default via 172.17.0.1"
            );
            run(container, &own);
        }
        Self {
            ends: hosts
                .into_iter()
                .map(|host| End::open(host, asked))
                .collect(),
            round: Cell::new(0),
            _world: world,
        }
    }

    /// The host that has the rules.
    pub(super) fn host(&self) -> &Host {
        &self.ends[0].host
    }

    /// Sends packets, of which those with the numbers `expected` have to arrive. Returns the numbers of those that did.
    pub(super) fn exchange(
        &self,
        packets: &[Packet],
        expected: &BTreeSet<usize>,
    ) -> BTreeSet<usize> {
        self.round.set(self.round.get() + 1);
        let mut sent = Sent {
            round: self.round.get(),
            packets,
            connections: BTreeMap::new(),
            arrived: BTreeSet::new(),
        };
        let mut clients = Vec::new();
        for (from, end) in self.ends.iter().enumerate() {
            for (number, client) in end.send(from, packets, sent.round) {
                let (instance, own) = place(from, false);
                let port = port_of(&client);
                for address in [instance, own] {
                    sent.connections.insert((address, port).into(), number);
                }
                clients.push(client);
            }
            self.receive(&mut sent);
        }
        let end = Instant::now() + LIMIT;
        while !expected.is_subset(&sent.arrived) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            self.receive(&mut sent);
        }
        std::thread::sleep(SILENCE);
        self.receive(&mut sent);
        sent.arrived
    }

    /// Receives all that has arrived.
    fn receive(&self, sent: &mut Sent<'_>) {
        let mut buffer = [0; 256];
        for (at, end) in self.ends.iter().enumerate() {
            for (port, (datagrams, connections)) in &end.ports {
                while let Ok((length, _)) = datagrams.recv_from(&mut buffer) {
                    let packet = sent.arrive(&buffer[..length]);
                    let asked = Asked::Port(Protocol::Udp, *port);
                    assert_eq!((packet.to, packet.asked), (at, asked));
                }
                while let Ok((connection, peer)) = connections.accept() {
                    let number = sent.connections.get(&peer);
                    let number = *number.expect("it is of a client of this policy");
                    let packet = sent.packets[number];
                    let asked = Asked::Port(Protocol::Tcp, *port);
                    assert_eq!((packet.to, packet.asked), (at, asked));
                    sent.arrived.insert(number);
                    let reset = SockRef::from(&connection).set_linger(Some(Duration::ZERO));
                    reset.expect("a socket");
                }
            }
            while let Ok(length) = (&end.echo).read(&mut buffer) {
                // The socket receives the echoes of others too, and errors.
                if buffer[IPV4_HEADER] == ECHO_REPLY {
                    let packet = sent.arrive(&buffer[IPV4_HEADER + ECHO_HEADER..length]);
                    assert_eq!((packet.from, packet.asked), (at, Asked::Icmp));
                }
            }
            while let Ok(length) = (&end.other).read(&mut buffer) {
                let packet = sent.arrive(&buffer[IPV4_HEADER..length]);
                assert_eq!((packet.to, packet.asked), (at, Asked::Other));
            }
        }
    }
}

impl Sent<'_> {
    /// The packet with this content has arrived.
    fn arrive(&mut self, content: &[u8]) -> Packet {
        let content: [u8; 8] = content.try_into().expect("as it was sent");
        let content = u64::from_be_bytes(content);
        let round = content >> 32;
        let expected = u64::from(self.round);
        assert_eq!(round, expected, "a packet of an earlier policy");
        let number = usize::try_from(content & 0xffff_ffff).expect("a small number");
        self.arrived.insert(number);
        self.packets[number]
    }
}

impl End {
    fn open(host: Host, asked: &[Asked]) -> Self {
        let any = Ipv4Addr::UNSPECIFIED;
        let open = || {
            let ports = asked.iter().filter_map(|asked| match asked {
                Asked::Port(_, port) => Some(*port),
                Asked::Icmp | Asked::Other => None,
            });
            let ports: BTreeSet<u16> = ports.collect();
            let ports = ports.into_iter().map(|port| {
                let datagrams = UdpSocket::bind((any, port)).expect("a free port");
                let connections = TcpListener::bind((any, port)).expect("a free port");
                datagrams.set_nonblocking(true).expect("a socket");
                connections.set_nonblocking(true).expect("a socket");
                (port, (datagrams, connections))
            });
            let raw = |protocol: i32| {
                let protocol = Some(socket2::Protocol::from(protocol));
                let socket = Socket::new(Domain::IPV4, Type::RAW, protocol).expect("root");
                socket.set_nonblocking(true).expect("a socket");
                socket
            };
            let datagrams = UdpSocket::bind((any, 0)).expect("a free port");
            let (echo, other) = (raw(libc::IPPROTO_ICMP), raw(EXPERIMENTAL));
            (ports.collect(), datagrams, echo, other)
        };
        let (ports, datagrams, echo, other) = host.inside(open).expect("a namespace");
        Self {
            ports,
            datagrams,
            echo,
            other,
            host,
        }
    }

    /// Sends the packets of this end. Returns the sockets that open connections, with the numbers of their packets.
    fn send(&self, from: usize, packets: &[Packet], round: u32) -> Vec<(usize, Socket)> {
        let sent = self.host.inside(|| {
            let own = packets.iter().enumerate();
            let own = own.filter(|(_, packet)| packet.from == from);
            let clients = own.filter_map(|(number, packet)| {
                let content = (u64::from(round) << 32) | number as u64;
                let client = self.send_one(*packet, content.to_be_bytes());
                client.map(|client| (number, client))
            });
            clients.collect()
        });
        sent.expect("a namespace")
    }

    /// The kernel returns an error at once for a packet of the host itself that the rules deny.
    fn send_one(&self, packet: Packet, content: [u8; 8]) -> Option<Socket> {
        let (to, _) = place(packet.to, false);
        let raw = SocketAddr::from((to, 0)).into();
        match packet.asked {
            Asked::Port(Protocol::Tcp, port) => return Some(connect((to, port).into())),
            Asked::Port(Protocol::Udp, port) => {
                let _ = self.datagrams.send_to(&content, (to, port));
            }
            Asked::Icmp => {
                let _ = self.echo.send_to(&echo(content), &raw);
            }
            Asked::Other => {
                let _ = self.other.send_to(&content, &raw);
            }
        }
        None
    }
}

/// Begins to connect. Dropping the socket ends the connection at once.
fn connect(server: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    let linger = socket.set_linger(Some(Duration::ZERO));
    linger.expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    socket.bind(&any.into()).expect("a free port");
    // It returns an error as long as there is no answer.
    let _ = socket.connect(&server.into());
    socket
}

fn port_of(socket: &Socket) -> u16 {
    let address = socket.local_addr().expect("it is bound");
    address.as_socket().expect("an address of IPv4").port()
}

/// An echo request with this content. The identifier is 1, and the sequence number is the end of the content.
fn echo(content: [u8; 8]) -> Vec<u8> {
    let mut echo = vec![ECHO, 0, 0, 0, 0, 1, content[6], content[7]];
    echo.extend(content);
    let words = echo.chunks(2);
    let words = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).expect("it is folded");
    echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    echo
}

/// Runs commands on a host, which have to succeed.
fn run(host: &Host, script: &str) {
    let mut command = host.command("sh").expect("a namespace");
    let output = command.args(["-ec", script]).output().expect("a shell");
    assert!(output.status.success(), "{script}: {output:?}");
}
