//! Two tunnels that reach each other only through a third one.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use meshd::model::{NodeAddress, Path};
use meshd::testbed::{Host, World};
use meshd::tunnel::relay::RelayLimit;
use meshd::tunnel::{PeerConfig, Tunnel, TunnelConfig, UsableRelay};
use x25519_dalek::{PublicKey, StaticSecret};

/// How long anything may take: only a hang takes that long.
const LIMIT: Duration = Duration::from_secs(20);
const BYTES: usize = 32 << 20;
const RELAY: u8 = 3;

fn secret(n: u8) -> StaticSecret {
    StaticSecret::from([n; 32])
}

fn key(n: u8) -> [u8; 32] {
    PublicKey::from(&secret(n)).to_bytes()
}

fn address(n: u8) -> NodeAddress {
    NodeAddress(Ipv4Addr::new(10, 9, 0, n))
}

/// The tunnel of `host`, whose peers are the other two. No endpoint is configured.
fn start(host: &Host, own: u8) -> Tunnel {
    let config = TunnelConfig {
        interface: "wg0".to_owned(),
        mtu: 1400,
        listen_port: 51820,
        private_key: Some(secret(own)),
        workers: Some(1),
    };
    let tunnel = host.inside(|| Tunnel::start(config));
    let tunnel = tunnel
        .expect("a namespace")
        .expect("root may make a device");
    tunnel.set_local_addresses(vec![address(own).0.into()]);
    let others = (1..=RELAY).filter(|n| *n != own);
    let peers = others.map(|n| PeerConfig {
        public_key: key(n),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec![ipnet::IpNet::from(IpAddr::from(address(n).0))],
        persistent_keepalive: None,
    });
    tunnel.set_peers(peers.collect());
    for arguments in [
        format!("address add 10.9.0.{own}/24 dev wg0"),
        "link set wg0 up".to_owned(),
    ] {
        let mut ip = host.command("ip").expect("a namespace");
        let status = ip.args(arguments.split(' ')).status().expect("ip");
        assert!(status.success(), "ip {arguments}");
    }
    tunnel
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reaches the relay, and uses it when it has given a tag.
fn use_relay(tunnel: &Tunnel, own: u8, relay: SocketAddr) {
    let path = Path::Direct(relay);
    let steering = tunnel.steering();
    steering.offer(&key(RELAY), address(RELAY), &[path], &[path]);
    let ends = (address(own).0.into(), address(RELAY).0.into());
    let tag = wait_for("a tag", || {
        tunnel.probing().probe(&key(RELAY), ends.0, ends.1);
        let report = steering.report(&key(RELAY))?;
        let seen = report.paths.iter().find(|seen| seen.path == path)?;
        Some(seen.offer?.tag)
    });
    steering.set_relays(&[UsableRelay {
        node: address(RELAY),
        endpoint: relay,
        others: Vec::new(),
        tag,
    }]);
}

#[test]
fn a_peer_is_reached_through_a_relay_that_sees_nothing_but_frames() {
    if !nix::unistd::geteuid().is_root() {
        meshd::testbed::skip_test("network namespaces need root");
        return;
    }
    let world = World::new().expect("root may make namespaces");
    let hosts = ["a", "b", "r"].map(|name| world.host(name).expect("a namespace"));
    let tunnels: Vec<Tunnel> = hosts.iter().zip(1..).map(|(h, n)| start(h, n)).collect();
    let [a, b, r] = &tunnels[..] else {
        panic!("three tunnels")
    };
    let at = |host: &Host| SocketAddr::from((host.v4(), 51820));
    let steering = r.steering();
    let own = steering.own_relay();
    own.set_limit(
        Some(RelayLimit {
            bits_per_second: 100_000_000_000,
        }),
        Instant::now(),
    );
    for n in [1, 2] {
        steering.offer(&key(n), address(n), &[], &[]);
        let from = [at(&hosts[usize::from(n) - 1])];
        own.handle_paths(address(n), &from, Instant::now());
    }
    use_relay(a, 1, at(&hosts[2]));
    use_relay(b, 2, at(&hosts[2]));

    // Each knows the other one only through the relay.
    let path = Path::Relay(address(RELAY));
    a.steering().offer(&key(2), address(2), &[path], &[path]);
    b.steering().offer(&key(1), address(1), &[path], &[path]);
    let ends = (address(1).0.into(), address(2).0.into());
    let ping = || a.probing().ping(key(2), ends.0, ends.1);
    wait_for("an answer", || ping().wait(Duration::from_secs(1)).0);
    for (tunnel, peer) in [(a, 2), (b, 1)] {
        let status = tunnel.peer(&key(peer)).expect("a peer");
        assert_eq!((status.path, status.endpoint), (Some(path), None));
    }

    // A TCP connection uses merged datagrams in both directions.
    let listener = hosts[1].inside(|| TcpListener::bind((address(2).0, 5001)));
    let listener = listener.expect("a namespace").expect("a free port");
    let to = SocketAddr::from((address(2).0, 5001));
    let client = hosts[0].inside(|| TcpStream::connect_timeout(&to, LIMIT));
    let mut client = client.expect("a namespace").expect("the way through");
    let (mut server, _) = listener.accept().expect("a connection");
    server.set_read_timeout(Some(LIMIT)).expect("a socket");
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            client.write_all(&vec![7; BYTES]).expect("it is read");
        });
        let mut all = vec![0; BYTES];
        server.read_exact(&mut all).expect("it is written");
        assert!(all.iter().all(|byte| *byte == 7));
    });
    eprintln!("{BYTES} bytes through the relay in {:?}", began.elapsed());
    let (forwarded, dropped) = own.counts();
    assert!(forwarded > BYTES as u64, "{forwarded} bytes, {dropped:?}");
    let carried = r.peers().iter().map(|peer| peer.rx_bytes).sum::<u64>();
    assert!(
        carried < 100_000,
        "{carried} bytes were for the relay itself"
    );

    // A relay that is none any more drops the frames, and says why.
    own.set_limit(None, Instant::now());
    assert_eq!(ping().wait(Duration::from_millis(500)).0, None);
    let (_, dropped) = own.counts();
    let not_offered = dropped
        .iter()
        .filter(|(why, _)| why.as_str() == "not_offered");
    assert!(not_offered.map(|(_, count)| count).sum::<u64>() > 0);
}
