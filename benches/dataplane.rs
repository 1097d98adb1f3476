//! The cost of each step of the data plane, on one core and without system calls.
//!
//! ```text
//! cargo bench --bench dataplane
//! ```
//!
//! Each figure is the median of [`ROUNDS`] rounds. Gbit/s counts the bytes of the packets in the tunnel.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use meshd::model::Label;
use meshd::policy::{Offered, Policy, Subject, Table};
use meshd::tunnel::allowed_ips::AllowedIps;
use meshd::tunnel::coalesce::Coalescer;
use meshd::tunnel::guard::{Direction, Guard, Members, Memo, Verdict};
use meshd::tunnel::limiter::HandshakeLimiter;
use meshd::tunnel::noise::{Message, Noise, Opened, StaticKeys, room_for};
use meshd::tunnel::packet::{self, Ip, TCP, UDP};
use meshd::tunnel::split::{VnetHeader, split};
use x25519_dalek::StaticSecret;

const ROUNDS: usize = 15;
/// A round lasts at least so long.
const ROUND: Duration = Duration::from_millis(20);
/// Packets between two looks at the clock.
const BATCH: usize = 512;
/// Bytes of the headers in front of the payload of [`segment`].
const HEADERS: usize = 52;
/// Bytes of a segment's payload in a tunnel of MTU 1420.
const PAYLOAD: usize = 1420 - HEADERS;

/// Time that some operations took.
struct Took {
    time: Duration,
    operations: usize,
}

fn main() {
    println!("{:<44} {:>10} {:>8}", "one core", "ns/packet", "Gbit/s");
    for length in [64, 1420] {
        report(
            &format!("seal {length} bytes"),
            length,
            &mut sealing(length),
        );
        report(
            &format!("open {length} bytes"),
            length,
            &mut opening(length),
        );
    }
    report("refuse a replay of 1420 bytes", 1420, &mut replaying());
    let segments = 65_535usize.saturating_sub(HEADERS) / PAYLOAD;
    report(
        &format!("split a TCP packet into {segments} segments"),
        1420,
        &mut splitting(segments),
    );
    report("coalesce 64 segments of one flow", 1420, &mut coalescing(1));
    report(
        "coalesce 64 segments of four flows",
        1420,
        &mut coalescing(4),
    );
    let bytes = vec![7; 1420];
    report("checksum of 1420 bytes", 1420, &mut || {
        timed(BATCH, |_| {
            black_box(packet::sum(black_box(&bytes), 0));
        })
    });
    for peers in [4, 1000] {
        report(
            &format!("owner of an address, {peers} peers, IPv4"),
            0,
            &mut lookups(peers, false),
        );
        report(
            &format!("owner of an address, {peers} peers, IPv6"),
            0,
            &mut lookups(peers, true),
        );
    }
    for (name, packets, keeps_memo) in [
        ("policy, packets of one flow", checked(TCP, 1), true),
        (
            "policy, a TCP packet of another flow",
            checked(TCP, 256),
            false,
        ),
        (
            "policy, a datagram of another flow",
            checked(UDP, 256),
            false,
        ),
    ] {
        report(name, 0, &mut checking(packets, keeps_memo));
    }
    report(
        "limiter, one source, few handshakes",
        0,
        &mut limiting(1, Duration::from_millis(10)),
    );
    report(
        "limiter, forged sources, 50,000 a second",
        0,
        &mut limiting(1 << 24, Duration::from_micros(20)),
    );
    let (identity, initiation) = initiation();
    report("MAC of a handshake initiation", 0, &mut || {
        timed(BATCH, |_| {
            black_box(identity.is_for_us(black_box(&initiation)));
        })
    });
    report("whose a handshake initiation is", 0, &mut || {
        timed(16, |_| {
            black_box(identity.initiator(black_box(&initiation)));
        })
    });
}

/// The number of instances in the mesh of the checked packets.
const INSTANCES: u32 = 10_000;
/// The number of rules of its policy.
const RULES: usize = 1_000;

/// The address of an instance, on one of 100 nodes.
fn instance(n: u32) -> IpAddr {
    let [_, _, high, low] = (n % INSTANCES).to_be_bytes();
    Ipv4Addr::new(10, 128, high, low).into()
}

/// A guard of this mesh. The instances of each service may reach those of the next one.
fn guard() -> Guard {
    let label = |text: String| Label::parse(&text).expect("a short name");
    let rules = (0..RULES).map(|n| {
        let to = (n + 1) % RULES;
        format!("[[allow]]\nfrom = [\"s{n}\"]\nto = [\"s{to}:5432\", \"s{to}:53/udp\"]\n")
    });
    let text = format!(
        "language = 1\ndefault = \"deny\"\n{}",
        rules.collect::<String>()
    );
    let policy = Policy::parse(&text).expect("a policy");
    let subjects = (0..INSTANCES).map(|n| Subject {
        addresses: vec![instance(n)],
        node: label(format!("n{}", n % 100)),
        tags: Vec::new(),
        services: vec![Offered {
            service: label(format!("s{}", n as usize % RULES)).into(),
            ports: Vec::new(),
            allow: Vec::new(),
        }],
        is_node: false,
        guest: None,
        network: None,
    });
    let subjects: Vec<Subject> = subjects.collect();
    Guard::new(Arc::new(Table::compile(Some(&policy), &subjects)))
}

/// Packets that the policy allows, one of each of `flows` flows.
fn checked(protocol: u8, flows: u32) -> Vec<Vec<u8>> {
    let packets = (0..flows).map(|n| {
        let mut packet = vec![0; 60];
        packet[..10].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol]);
        let ends = [instance(n * 37), instance(n * 37 + 1)];
        for (at, end) in [12, 16].into_iter().zip(ends) {
            if let IpAddr::V4(v4) = end {
                packet[at..at + 4].copy_from_slice(&v4.octets());
            }
        }
        let port: u16 = if protocol == TCP { 5432 } else { 53 };
        packet[20..22].copy_from_slice(&(40_000 + n as u16).to_be_bytes());
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet[24..26].copy_from_slice(&[0, 40]);
        packet[32..34].copy_from_slice(&[5 << 4, 0x10]);
        packet
    });
    packets.collect()
}

/// Members of a mesh without any address. The checked packets are no control traffic and no errors, so none is looked up.
struct NoMembers;

impl Members for NoMembers {
    fn is_own(&self, _: IpAddr) -> bool {
        false
    }

    fn is_node(&self, _: IpAddr) -> bool {
        false
    }

    fn share_node(&self, _: IpAddr, _: IpAddr) -> bool {
        false
    }
}

/// Checks one outgoing packet after another.
fn checking(packets: Vec<Vec<u8>>, keeps_memo: bool) -> impl FnMut() -> Took {
    let (guard, mut memo, now) = (guard(), Memo::default(), Instant::now());
    move || {
        timed(BATCH, |n| {
            let packet = &packets[n % packets.len()];
            if !keeps_memo {
                memo.clear();
            }
            let ip = Ip::parse(packet).expect("a whole packet");
            let packet = (black_box(packet.as_slice()), &ip);
            let verdict = guard.check(Direction::Outgoing, packet, &NoMembers, &mut memo, now);
            assert_eq!(verdict, Verdict::Pass);
        })
    }
}

/// Runs `round` until it has lasted long enough, several times over, and prints the median.
fn report(name: &str, bytes: usize, round: &mut dyn FnMut() -> Took) {
    round();
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (mut time, mut operations) = (Duration::ZERO, 0);
            while time < ROUND {
                let took = round();
                time += took.time;
                operations += took.operations;
            }
            time.as_nanos() as f64 / operations as f64
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    let nanoseconds = figures[ROUNDS / 2];
    let rate = match bytes {
        0 => "-".to_owned(),
        _ => format!("{:.2}", bytes as f64 * 8.0 / nanoseconds),
    };
    println!("{name:<44} {nanoseconds:>10.1} {rate:>8}");
}

fn timed(operations: usize, mut operation: impl FnMut(usize)) -> Took {
    let began = Instant::now();
    for n in 0..operations {
        operation(n);
    }
    Took {
        time: began.elapsed(),
        operations,
    }
}

/// Both ends of a session, each with one peer.
fn established() -> (Noise, Noise) {
    let (a, b) = (
        StaticKeys::new(StaticSecret::from([1; 32])),
        StaticKeys::new(StaticSecret::from([2; 32])),
    );
    let now = Instant::now();
    let mut to_b = Noise::new(&a, b.public(), None, None, 1, now);
    let mut to_a = Noise::new(&b, a.public(), None, None, 2, now);
    let (mut x, mut y) = (vec![0; room_for(1420)], vec![0; room_for(1420)]);
    let length = to_b.initiate(&mut x).expect("none is under way");
    let Opened::Reply(length) = open(&mut to_a, &x[..length], &mut y) else {
        unreachable!("an initiation for this node is answered")
    };
    let Opened::Established(length) = open(&mut to_b, &y[..length], &mut x) else {
        unreachable!("a response begins a session")
    };
    assert_eq!(open(&mut to_a, &x[..length], &mut y), Opened::Keepalive);
    (to_b, to_a)
}

fn open(noise: &mut Noise, datagram: &[u8], output: &mut [u8]) -> Opened {
    match Message::parse(datagram) {
        Ok(message) => noise.open(message, datagram, output),
        Err(reason) => Opened::Refused(reason),
    }
}

/// Seals `BATCH` packets side by side; gives the length of a datagram.
fn seal_batch(noise: &mut Noise, packet: &[u8], output: &mut [u8]) -> usize {
    let (now, room) = (Instant::now(), room_for(packet.len()));
    let mut length = 0;
    for space in output.chunks_exact_mut(room) {
        let sealed = noise.seal(black_box(packet), space, now);
        length = sealed.expect("a session").0;
    }
    length
}

fn sealing(length: usize) -> impl FnMut() -> Took {
    let (mut to_b, _) = established();
    let packet = ipv4(length);
    let mut output = vec![0; room_for(length) * BATCH];
    move || {
        let began = Instant::now();
        seal_batch(&mut to_b, &packet, &mut output);
        Took {
            time: began.elapsed(),
            operations: BATCH,
        }
    }
}

fn opening(length: usize) -> impl FnMut() -> Took {
    let (mut to_b, mut to_a) = established();
    let packet = ipv4(length);
    let room = room_for(length);
    let (mut sealed, mut output) = (vec![0; room * BATCH], vec![0; room]);
    move || {
        let datagram = seal_batch(&mut to_b, &packet, &mut sealed);
        timed(BATCH, |n| {
            let opened = open(
                &mut to_a,
                &sealed[n * room..n * room + datagram],
                &mut output,
            );
            assert_eq!(opened, Opened::Packet(packet.len()));
        })
    }
}

fn replaying() -> impl FnMut() -> Took {
    let (mut to_b, mut to_a) = established();
    let packet = ipv4(1420);
    let (mut sealed, mut output) = (vec![0; room_for(1420)], vec![0; room_for(1420)]);
    let (datagram, _) = to_b
        .seal(&packet, &mut sealed, Instant::now())
        .expect("a session");
    open(&mut to_a, &sealed[..datagram], &mut output);
    move || {
        timed(BATCH, |_| {
            let opened = open(&mut to_a, &sealed[..datagram], &mut output);
            assert!(matches!(opened, Opened::Refused(_)));
        })
    }
}

/// An IPv4 packet with nothing in it.
fn ipv4(length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    packet
}

/// A TCP segment of flow `port` over IPv4, with timestamps, checksums right.
fn segment(port: u16, sequence: u32, payload: usize) -> Vec<u8> {
    let mut packet = ipv4(HEADERS + payload);
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = TCP;
    packet[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
    packet::write_ipv4_checksum(&mut packet, 20);
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[32] = 8 << 4;
    packet[33] = 0x10;
    let pseudo = packet::pseudo_header_sum(&packet, TCP, 32 + payload);
    let checksum = packet::finish(packet::sum(&packet[20..], pseudo));
    packet[36..38].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn splitting(segments: usize) -> impl FnMut() -> Took {
    let mut packet = segment(1, 0, segments * PAYLOAD);
    let headers: Vec<u8> = packet[..HEADERS].to_vec();
    let offload = VnetHeader::merged(false, TCP, 20, HEADERS, PAYLOAD);
    move || {
        let began = Instant::now();
        for _ in 0..16 {
            packet[..HEADERS].copy_from_slice(&headers);
            let mut count = 0;
            split(offload, black_box(&mut packet), |segment| {
                black_box(segment);
                count += 1;
            })
            .expect("lengths that go together");
            assert_eq!(count, segments);
        }
        Took {
            time: began.elapsed(),
            operations: 16 * segments,
        }
    }
}

fn coalescing(flows: u16) -> impl FnMut() -> Took {
    const SEGMENTS: usize = 64;
    // 64 segments and no more than an IP packet holds.
    let payload = if flows == 1 {
        65_000 / SEGMENTS
    } else {
        PAYLOAD
    };
    let packets: Vec<Vec<u8>> = (0..SEGMENTS)
        .map(|n| {
            let turn = n as u32 / u32::from(flows);
            segment(n as u16 % flows, turn * payload as u32, payload)
        })
        .collect();
    let length = HEADERS + payload;
    let mut arena = packets.concat();
    let mut coalescer = Coalescer::new(true);
    move || {
        // Merging wrote over the first headers of each flow.
        for (n, packet) in packets.iter().enumerate().take(usize::from(flows)) {
            arena[n * length..n * length + HEADERS].copy_from_slice(&packet[..HEADERS]);
        }
        let began = Instant::now();
        for n in 0..SEGMENTS {
            coalescer.push(&arena, n * length, (n + 1) * length);
        }
        let mut runs = 0;
        coalescer.flush(&mut arena, |arena, header, parts| {
            black_box((arena, header.to_bytes(), parts.count()));
            runs += 1;
        });
        let time = began.elapsed();
        assert_eq!(runs, flows);
        Took {
            time,
            operations: SEGMENTS,
        }
    }
}

/// Each peer owns a /24 and a /64, as in a mesh.
fn lookups(peers: u32, v6: bool) -> impl FnMut() -> Took {
    let v4_of = |n: u32| Ipv4Addr::from((10 << 24) + (n << 8) + 1);
    let v6_of = |n: u32| Ipv6Addr::from((0xfd09u128 << 112) + (u128::from(n) << 64) + 1);
    let prefixes = (0..peers).flat_map(|n| {
        [
            (IpNet::new(v4_of(n).into(), 24).expect("a length"), n),
            (IpNet::new(v6_of(n).into(), 64).expect("a length"), n),
        ]
    });
    let table = AllowedIps::new(prefixes);
    // Steps of a prime, so that neighbours in time are not neighbours in the table.
    let addresses: Vec<IpAddr> = (0..BATCH as u32)
        .map(|n| n.wrapping_mul(7919) % peers)
        .map(|n| if v6 { v6_of(n).into() } else { v4_of(n).into() })
        .collect();
    move || {
        timed(BATCH, |n| {
            assert!(black_box(&table).owner(black_box(addresses[n])).is_some());
        })
    }
}

fn limiting(sources: u32, gap: Duration) -> impl FnMut() -> Took {
    let mut now = Instant::now();
    let mut limiter = HandshakeLimiter::new([7; 32], now);
    let (node, datagram) = initiation();
    let mut source = 0u32;
    move || {
        timed(BATCH, |_| {
            now += gap;
            source = source.wrapping_add(1) % sources;
            let from = SocketAddr::from((Ipv4Addr::from(source), 51820));
            black_box(limiter.admit(node.reply_key(), &datagram, from, now));
        })
    }
}

/// A node, and a handshake initiation that a stranger sent to it.
fn initiation() -> (StaticKeys, Vec<u8>) {
    let node = StaticKeys::new(StaticSecret::from([2; 32]));
    let stranger = StaticKeys::new(StaticSecret::from([3; 32]));
    let mut noise = Noise::new(&stranger, node.public(), None, None, 3, Instant::now());
    let mut datagram = vec![0; room_for(0)];
    let length = noise.initiate(&mut datagram).expect("none is under way");
    datagram.truncate(length);
    (node, datagram)
}
