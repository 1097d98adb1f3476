//! The configuration of a tunnel and of its peers, and the reasons for which a tunnel cannot be as configured.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use x25519_dalek::StaticSecret;

/// The configuration with which a tunnel starts.
#[derive(Clone)]
pub struct TunnelConfig {
    /// The name of the network device: at most 15 bytes.
    pub interface: String,
    /// The MTU of the network device in bytes.
    pub mtu: u16,
    /// The UDP port; 0 for any free one.
    pub listen_port: u16,
    /// The private key of this node. Without one, nothing is sealed or opened.
    pub private_key: Option<StaticSecret>,
    /// The number of data threads. Without one, it follows from the number of cores.
    pub workers: Option<usize>,
}

/// The configuration of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The public key of the peer.
    pub public_key: [u8; 32],
    /// An additional secret that both ends have (WireGuard section 5.2).
    pub preshared_key: Option<[u8; 32]>,
    /// The first endpoint. The peer may move to another one later.
    pub endpoint: Option<SocketAddr>,
    /// The addresses that the peer owns.
    pub allowed_ips: Vec<IpNet>,
    /// The number of seconds without traffic after which a keepalive is sent.
    pub persistent_keepalive: Option<u16>,
}

/// The reason for which a tunnel cannot start or change.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The kernel has no TUN devices.
    #[error(
        "there is no /dev/net/tun; load the module with `modprobe tun`, or give the container `--device /dev/net/tun`"
    )]
    NoTun,
    /// The process lacks a capability.
    #[error("making a network device needs CAP_NET_ADMIN; run as root")]
    Permission,
    /// The interface name is invalid.
    #[error("`{0}` cannot be an interface name: 1 to 15 letters, digits, `-`, `_` or `.`")]
    Name(String),
    /// Another interface has the name.
    #[error(
        "the interface {0} exists already; remove it (`ip link delete {0}`) or set another `interface`"
    )]
    InterfaceTaken(String),
    /// Another program has the port.
    #[error(
        "UDP port {0} is in use; find out by whom with `ss -ulpn`, or set another `listen_port`"
    )]
    PortTaken(u16),
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}
