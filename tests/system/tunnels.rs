//! Tunnels without a mesh: hosts with numbers, by which their keys and addresses are known.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use meshd::testbed::Host;
use meshd::tunnel::{PeerConfig, Tunnel, TunnelConfig};
use x25519_dalek::{PublicKey, StaticSecret};

/// The address of a host in the tunnel. The node everybody talks to is number 1.
pub(crate) fn inside(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 99, 0, number).into()
}

/// The key of a host, or another one.
pub(crate) fn key(number: u8) -> StaticSecret {
    StaticSecret::from([number; 32])
}

/// A tunnel on a host, with peers and where they are.
pub(crate) fn start(host: &Host, number: u8, peers: &[(u8, Option<SocketAddr>)]) -> Tunnel {
    let config = TunnelConfig {
        interface: "mesh0".into(),
        mtu: 1420,
        listen_port: 51820,
        private_key: Some(key(number)),
        workers: Some(2),
    };
    let tunnel = host
        .inside(|| Tunnel::start(config))
        .expect("a namespace")
        .expect("a tunnel");
    tunnel.set_local_addresses(vec![inside(number)]);
    let peers = peers.iter().map(|(peer, endpoint)| PeerConfig {
        public_key: PublicKey::from(&key(*peer)).to_bytes(),
        preshared_key: None,
        endpoint: *endpoint,
        allowed_ips: vec![inside(*peer).into()],
        persistent_keepalive: None,
    });
    tunnel.set_peers(peers.collect());
    tunnel
}

/// Whether a probe from `number` to the node, which has the key `of_node`, is answered.
pub(crate) fn answers(
    tunnel: &Tunnel,
    number: u8,
    of_node: &StaticSecret,
    limit: Duration,
) -> bool {
    let node = PublicKey::from(of_node).to_bytes();
    let end = Instant::now() + limit;
    loop {
        let answer = tunnel.probing().ping(node, inside(number), inside(1));
        if answer.wait(Duration::from_millis(500)).0.is_some() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
    }
}
