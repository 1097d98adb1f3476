//! A running tunnel and what the network sends it: it counts all of it, and goes on.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use meshd::testbed::{Host, World};
use meshd::tunnel::noise::{Noise, StaticKeys};
use meshd::tunnel::{DropReason, PeerConfig, Tunnel};
use x25519_dalek::PublicKey;

use crate::tunnels::{answers, inside, key, start};

/// A hang limit.
const LIMIT: Duration = Duration::from_secs(30);

struct Setting {
    node: Tunnel,
    peer: Tunnel,
    newcomer: Tunnel,
    attacker: Host,
    target: Ipv4Addr,
    _hosts: Vec<Host>,
    _world: World,
}

/// A node, a peer that has a session with it, and one that has none yet.
fn setting() -> Option<Setting> {
    if !nix::unistd::geteuid().is_root() {
        meshd::testbed::skip_test("network namespaces need root");
        return None;
    }
    let world = World::new().expect("a network");
    let hosts: Vec<Host> = ["node", "peer", "newcomer"]
        .map(|name| world.host(name).expect("a host"))
        .into();
    let attacker = world.host("attacker").expect("a host");
    hosts[0].inside(take_any_source).expect("a namespace");
    let target = hosts[0].v4();
    let endpoint = Some(SocketAddr::from((target, 51820)));
    let node = start(&hosts[0], 1, &[(2, None), (3, None)]);
    let peer = start(&hosts[1], 2, &[(1, endpoint)]);
    let newcomer = start(&hosts[2], 3, &[(1, endpoint)]);
    assert!(answers(&peer, 2, &key(1), LIMIT));
    Some(Setting {
        node,
        peer,
        newcomer,
        attacker,
        target,
        _hosts: hosts,
        _world: world,
    })
}

/// Has the kernel hand over packets from sources to which there is no way back.
fn take_any_source() {
    for device in std::fs::read_dir("/proc/sys/net/ipv4/conf").expect("a folder") {
        let path = device.expect("an entry").path().join("rp_filter");
        if let Err(error) = std::fs::write(&path, "0") {
            eprintln!("{}: {error}", path.display());
        }
    }
}

#[test]
fn datagrams_of_any_length_are_counted_and_the_tunnel_still_works() {
    let Some(setting) = setting() else { return };
    let target = SocketAddr::from((setting.target, 51820));
    let sent = setting
        .attacker
        .inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let mut bytes = vec![0u8; 65_507];
            let mut sent = 0u64;
            for kind in [0u8, 1, 2, 3, 4, 255] {
                bytes[0] = kind;
                for length in (0..1600).chain((1600..65_507).step_by(997)) {
                    sent += u64::from(socket.send_to(&bytes[..length], target).is_ok());
                    // The receiver is to see all of them.
                    if sent.is_multiple_of(64) {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            sent
        })
        .expect("a namespace");
    assert!(answers(&setting.peer, 2, &key(1), LIMIT));
    let counted = || -> u64 { setting.node.counters().0.iter().map(|(_, n)| n).sum() };
    let end = Instant::now() + LIMIT;
    while counted() < sent && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let drops = setting.node.counters();
    assert_eq!(counted(), sent, "each one is counted, once: {drops:?}");
    for reason in [
        DropReason::NotWireGuard,
        DropReason::NotAuthentic,
        DropReason::NoSession,
    ] {
        assert!(drops.of(reason) > 0, "{reason:?}");
    }
}

#[test]
fn a_peer_that_sends_from_an_address_it_does_not_own_is_not_heard() {
    let Some(setting) = setting() else { return };
    let node = PublicKey::from(&key(1)).to_bytes();
    for foreign in [inside(3), inside(1), inside(77)] {
        setting.peer.probing().probe(&node, foreign, inside(1));
    }
    assert!(answers(&setting.peer, 2, &key(1), LIMIT));
    assert_eq!(setting.node.counters().of(DropReason::ForeignSource), 3);
}

#[test]
fn a_newcomer_gets_in_while_forged_handshakes_flood_the_node() {
    let Some(setting) = setting() else { return };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            setting
                .attacker
                .inside(|| forge(setting.target, &stop))
                .expect("a namespace")
        });
        std::thread::sleep(Duration::from_secs(1));
        let came = answers(&setting.newcomer, 3, &key(1), LIMIT);
        let stays = answers(&setting.peer, 2, &key(1), LIMIT);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent = flood.join().expect("it ends");
        let drops = setting.node.counters();
        assert!(came && stays, "{sent} forged; {drops:?}");
        assert!(
            drops.of(DropReason::Challenged) > 0,
            "{sent} forged; {drops:?}"
        );
    });
}

/// The number of the guest, and that of the keys of its door.
const GUEST: u8 = 60;
const DOOR: u8 = 61;

#[test]
fn others_get_in_while_a_guest_floods_its_door_with_handshakes() {
    let Some(setting) = setting() else { return };
    let config = |number: u8| PeerConfig {
        public_key: PublicKey::from(&key(number)).to_bytes(),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec![inside(number).into()],
        persistent_keepalive: None,
    };
    let keys = setting.node.keys();
    keys.set_guest_key(key(DOOR));
    keys.set_peers_and_guests(vec![config(2), config(3)], vec![config(GUEST)]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            setting
                .attacker
                .inside(|| knock(setting.target, &stop))
                .expect("a namespace")
        });
        std::thread::sleep(Duration::from_secs(1));
        let came = answers(&setting.newcomer, 3, &key(1), LIMIT);
        let stays = answers(&setting.peer, 2, &key(1), LIMIT);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent = flood.join().expect("it ends");
        let drops = setting.node.counters();
        assert!(came && stays, "{sent} handshakes; {drops:?}");
        let guest = setting.node.peer(&config(GUEST).public_key);
        assert!(guest.is_some_and(|guest| guest.rx_bytes > 0), "{drops:?}");
    });
}

/// Sends handshakes of the guest, each of them another one, until `stop` is set.
fn knock(target: Ipv4Addr, stop: &std::sync::atomic::AtomicBool) -> u64 {
    let (guest, door) = (StaticKeys::new(key(GUEST)), StaticKeys::new(key(DOOR)));
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let mut packet = [0u8; 256];
    let (mut sent, begin) = (0u64, Instant::now());
    while !stop.load(std::sync::atomic::Ordering::Relaxed) && begin.elapsed() < 3 * LIMIT {
        let mut noise = Noise::new(&guest, door.public(), None, None, 7, Instant::now());
        let length = noise.initiate(&mut packet).expect("an initiation");
        sent += u64::from(socket.send_to(&packet[..length], (target, 51820)).is_ok());
    }
    sent
}

/// Forged handshakes a millisecond. A build without optimization takes tens of microseconds for a cookie.
const FLOOD: u32 = if cfg!(debug_assertions) { 5 } else { 50 };

/// Sends handshake initiations with a valid first MAC from forged source addresses until `stop` is set.
fn forge(target: Ipv4Addr, stop: &std::sync::atomic::AtomicBool) -> u64 {
    let (nobody, node) = (StaticKeys::new(key(200)), StaticKeys::new(key(1)));
    let mut noise = Noise::new(&nobody, node.public(), None, None, 7, Instant::now());
    let mut packet = [0u8; 28 + 256];
    let length = noise.initiate(&mut packet[28..]).expect("an initiation");
    let total = 28 + length;
    packet[..10].copy_from_slice(&[0x45, 0, 0, total as u8, 0, 0, 0, 0, 64, 17]);
    packet[16..20].copy_from_slice(&target.octets());
    packet[22..24].copy_from_slice(&51820u16.to_be_bytes());
    packet[24..26].copy_from_slice(&(8 + length as u16).to_be_bytes());
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::RAW,
        Some(socket2::Protocol::from(libc::IPPROTO_RAW)),
    )
    .expect("root may");
    let to = SocketAddr::from((target, 0)).into();
    let (mut sent, begin) = (0u64, Instant::now());
    while !stop.load(std::sync::atomic::Ordering::Relaxed) && begin.elapsed() < 3 * LIMIT {
        for _ in 0..FLOOD {
            let mixed = (sent as u32).wrapping_mul(2_654_435_761).to_be_bytes();
            packet[12..16].copy_from_slice(&[11, mixed[0], mixed[1], mixed[2]]);
            packet[20..22].copy_from_slice(&[mixed[3] | 4, mixed[1]]);
            sent += u64::from(socket.send_to(&packet[..total], &to).is_ok());
        }
        std::thread::sleep(Duration::from_micros(900));
    }
    sent
}
