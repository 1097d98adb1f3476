//! The configuration of a tunnel and of its peers, and the reasons for which a tunnel cannot be as configured.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use x25519_dalek::StaticSecret;

use crate::model::interface::InterfaceError;

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
    /// The TUN device cannot be opened.
    #[error(transparent)]
    Tun(#[from] TunUnusable),
    /// The process lacks a capability.
    #[error(
        "making a network device needs root or CAP_NET_ADMIN; use sudo or `systemctl start meshd`, and give a container `--cap-add NET_ADMIN`"
    )]
    Permission,
    /// The interface name is invalid.
    #[error(transparent)]
    Name(#[from] InterfaceError),
    /// Another interface has the name.
    #[error(
        "the interface {0} exists already (`ip -d link show {0}` shows what it is); set another `interface`, or remove that one if nothing needs it"
    )]
    InterfaceTaken(String),
    /// Another program has the port.
    #[error(
        "UDP port {0} is in use; find out by whom with `ss -ulpn`, or set another `listen_port`"
    )]
    PortTaken(u16),
    /// The process may not bind the port.
    #[error(
        "this program may not use UDP port {0}: ports below 1024 need root or CAP_NET_BIND_SERVICE; set another `listen_port`"
    )]
    PortDenied(u16),
    /// A system call failed.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// The reason for which /dev/net/tun cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TunUnusable {
    /// There is no such file.
    #[error(
        "there is no /dev/net/tun; load the module with `modprobe tun`, give a container `--device /dev/net/tun`, and set PrivateDevices=no in a unit of systemd"
    )]
    Missing,
    /// The file is there, but the kernel has no driver for it.
    #[error(
        "/dev/net/tun is there, but the kernel has no driver for it; load the module with `modprobe tun`, or use a kernel with CONFIG_TUN"
    )]
    NoDriver,
    /// The mode of the file does not permit it.
    #[error(
        "this program may not open /dev/net/tun, which has mode {mode:04o} and belongs to user {owner}; run: sudo chmod 666 /dev/net/tun, which is its usual mode"
    )]
    Mode {
        /// The mode of the file.
        mode: u32,
        /// The user id of its owner.
        owner: u32,
    },
    /// The kernel refuses the device itself, whatever the mode of the file.
    #[error(
        "the kernel does not let this program open /dev/net/tun, although the mode of the file permits it; set `DeviceAllow=/dev/net/tun rw` in the unit of meshd, give a container `--device /dev/net/tun`, and look for a denial of AppArmor or SELinux in the kernel's log"
    )]
    Device,
}
