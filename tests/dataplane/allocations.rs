//! No memory is asked for while packets pass.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use meshd::testbed::{Host, World};
use meshd::tunnel::coalesce::Coalescer;
use meshd::tunnel::drops::DropReason;
use meshd::tunnel::noise::{Opened, room_for};
use meshd::tunnel::packet::{self, TCP};
use meshd::tunnel::split::{VnetHeader, split};
use meshd::tunnel::{PeerConfig, Tunnel, TunnelConfig};
use x25519_dalek::{PublicKey, StaticSecret};

use super::count;
use super::session::{established, open};

const HEADERS: usize = 40;
const PAYLOAD: usize = 1380;
const SEGMENTS: usize = 46;

/// A TCP packet over IPv4 as the kernel leaves it for segmentation, and its offload header.
fn large_packet(sequence: u32) -> (VnetHeader, Vec<u8>) {
    let length = HEADERS + SEGMENTS * PAYLOAD;
    let mut packet = vec![7; length];
    packet[..HEADERS].fill(0);
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = TCP;
    packet[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = 0x10;
    packet::write_ipv4_checksum(&mut packet, 20);
    let offload = VnetHeader::merged(false, TCP, 20, HEADERS, PAYLOAD);
    (offload, packet)
}

#[test]
fn a_large_packet_is_split_sealed_opened_and_merged_without_an_allocation() {
    const ROUNDS: u32 = 50;
    let (mut to_b, mut to_a) = established();
    let (offload, original) = large_packet(1);
    let mut packet = original.clone();
    let room = room_for(HEADERS + PAYLOAD);
    let mut sent = vec![0; SEGMENTS * room];
    let mut arena = vec![0; SEGMENTS * room];
    let mut coalescer = Coalescer::new(true);
    let now = Instant::now();

    let (mut segments, mut merged) = (0, 0);
    let allocations = count::of(|| {
        for _ in 0..ROUNDS {
            packet.copy_from_slice(&original);
            let mut used = 0;
            split(offload, &mut packet, |segment| {
                let sealed = to_b.seal(segment, &mut sent[used * room..], now);
                assert_eq!(sealed, Some((segment.len() + 32, true)));
                used += 1;
            })
            .expect("lengths that go together");
            segments += used;
            let mut at = 0;
            for datagram in sent
                .chunks(room)
                .map(|room| &room[..HEADERS + PAYLOAD + 32])
            {
                let Opened::Packet(length) = open(&mut to_a, datagram, &mut arena[at..]) else {
                    panic!("a sealed packet is opened")
                };
                coalescer.push(&arena, at, at + length);
                at += length;
            }
            coalescer.flush(&mut arena, |_, _, parts| {
                merged += 1;
                assert_eq!(parts.count(), SEGMENTS);
            });
        }
    });

    assert_eq!(segments, ROUNDS as usize * SEGMENTS);
    assert_eq!(merged, ROUNDS, "one packet again each time");
    assert_eq!(allocations, 0);
}

/// A tunnel in `host`, to the other end.
fn start(host: &Host, own: u8, keys: &[StaticSecret; 2], endpoint: IpAddr) -> Tunnel {
    let other = 3 - own;
    let key = |n: u8| &keys[usize::from(n - 1)];
    let config = TunnelConfig {
        interface: "wg0".to_owned(),
        mtu: 1420,
        listen_port: 51820,
        private_key: Some(key(own).clone()),
        workers: Some(2),
    };
    let tunnel = host
        .inside(|| Tunnel::start(config))
        .expect("a namespace")
        .expect("root may make a device");
    tunnel.set_peers(vec![PeerConfig {
        public_key: PublicKey::from(key(other)).to_bytes(),
        preshared_key: None,
        endpoint: Some(SocketAddr::new(endpoint, 51820)),
        allowed_ips: vec![ipnet::IpNet::from(IpAddr::from([10, 9, 0, other]))],
        persistent_keepalive: None,
    }]);
    for arguments in [
        format!("address add 10.9.0.{own}/24 dev wg0"),
        "link set wg0 up".to_owned(),
    ] {
        let status = host
            .command("ip")
            .expect("a namespace")
            .args(arguments.split(' '))
            .status()
            .expect("ip");
        assert!(status.success(), "ip {arguments}");
    }
    tunnel
}

/// Datagrams one by one, each answered.
fn echo(near: &UdpSocket, far: &UdpSocket, times: u32) {
    let mut buffer = [0; 1400];
    for n in 0..times {
        let length = 1 + (n as usize * 37) % 1300;
        near.send(&buffer[..length]).expect("a route");
        let (length, from) = far.recv_from(&mut buffer).expect("it arrives");
        far.send_to(&buffer[..length], from).expect("a route");
        near.recv(&mut buffer).expect("it is answered");
    }
}

/// Sends `bytes` bytes through a TCP connection.
fn stream(mut near: &TcpStream, mut far: &TcpStream, bytes: usize) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = [7; 65_536];
            for _ in 0..bytes / block.len() {
                near.write_all(&block).expect("it is read");
            }
        });
        let mut block = vec![0; 65_536];
        let mut read = 0;
        while read < bytes / block.len() * block.len() {
            read += far.read(&mut block).expect("it is written");
        }
    });
}

#[test]
fn the_threads_that_carry_packets_allocate_nothing_once_a_session_is_warm() {
    if !nix::unistd::geteuid().is_root() {
        meshd::testbed::skip_test("network namespaces need root");
        return;
    }
    count::watch_data_threads();
    let world = World::new().expect("root may make namespaces");
    let (a, b) = (
        world.host("a").expect("a namespace"),
        world.host("b").expect("a namespace"),
    );
    let keys = [1, 2].map(|n| StaticSecret::from([n; 32]));
    let tunnels = [
        start(&a, 1, &keys, b.v4().into()),
        start(&b, 2, &keys, a.v4().into()),
    ];
    let at = |last, port| SocketAddr::from((Ipv4Addr::new(10, 9, 0, last), port));
    let limit = Some(Duration::from_secs(20));
    let socket = |host: &Host, address| {
        let socket = host
            .inside(|| UdpSocket::bind(address))
            .expect("a namespace")
            .expect("a free port");
        socket.set_read_timeout(limit).expect("a socket");
        socket
    };
    let (near, far) = (socket(&a, at(1, 5000)), socket(&b, at(2, 5000)));
    near.connect(at(2, 5000)).expect("a route");
    let listener = b
        .inside(|| TcpListener::bind(at(2, 5001)))
        .expect("a namespace")
        .expect("a free port");
    let client = a
        .inside(|| TcpStream::connect_timeout(&at(2, 5001), Duration::from_secs(20)))
        .expect("a namespace")
        .expect("the way through");
    let (server, _) = listener.accept().expect("a connection");
    server.set_read_timeout(limit).expect("a socket");
    client.set_read_timeout(limit).expect("a socket");

    echo(&near, &far, 50);
    stream(&client, &server, 4 << 20);
    stream(&server, &client, 4 << 20);
    let warm = count::by_data_threads();
    assert!(warm > 0, "the threads are told by their names");
    echo(&near, &far, 2_000);
    stream(&client, &server, 32 << 20);
    stream(&server, &client, 32 << 20);

    assert_eq!(count::by_data_threads() - warm, 0);
    for tunnel in &tunnels {
        assert_eq!(tunnel.counters().of(DropReason::NotAuthentic), 0);
        let bytes = tunnel.peers().iter().map(|peer| peer.rx_bytes).sum::<u64>();
        assert!(bytes > 36 << 20, "{bytes} bytes came through the tunnel");
    }
}
