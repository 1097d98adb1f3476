//! The paths between this node and a peer, and this node's own connection to the network.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::PeerState;
use crate::model::Label;

/// A request to explain the path between two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyRequest {
    /// The name of a node, or one of its mesh addresses. The default is this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The name of the other node, or one of its mesh addresses.
    pub to: String,
}

/// The document of `meshctl why --json`: the path from this node to a peer, as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    pub schema: u32,
    /// This node.
    pub from: Label,
    /// The peer.
    pub to: Label,
    /// The path in use.
    pub state: PeerState,
    /// The node that relays to it.
    pub via: Option<Label>,
    /// The reason why the peer is not reached, or not directly.
    pub reason: Option<String>,
    /// Seconds since the path in use was chosen. It is null if it is not known.
    pub since_seconds_ago: Option<f64>,
    /// The smoothed round trip in milliseconds. It is null while the peer does not answer.
    pub rtt_ms: Option<f64>,
    /// The maximum size of a packet in the tunnel that the path carries, in bytes, as far as it is known.
    pub mtu: Option<u16>,
    /// Seconds since the peer's last authentic datagram. It is null if there was none since the start.
    pub last_heard_seconds_ago: Option<f64>,
    /// Seconds since this node last sent to it. It is null if it did not since the start.
    pub last_sent_seconds_ago: Option<f64>,
    /// Seconds since the last handshake.
    pub last_handshake_seconds_ago: Option<f64>,
    /// Bytes received that belong to the peer, including those of incomplete handshakes.
    pub rx_bytes: u64,
    /// The last call to the peer, by which two nodes behind routers meet. It is null if none was sent since the start.
    pub call: Option<CallCheck>,
    /// All paths that this node knows. The path in use is the first one.
    pub paths: Vec<PathRow>,
    /// What to do so that the two reach each other directly.
    pub mend: Vec<String>,
}

/// A call: this node asked a peer, over a coordinator or by way of members that both reach, to open its router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallCheck {
    /// Seconds since this node sent it.
    pub sent_seconds_ago: f64,
    /// Whether it was sent over the coordinator.
    pub by_coordinator: bool,
    /// The number of members that were asked to pass it on.
    pub by_peers: u32,
    /// Seconds since the peer answered. It is null if it did not.
    pub answered_seconds_ago: Option<f64>,
}

/// A path to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathRow {
    pub kind: PathKind,
    /// The peer's address and UDP port. It is null if another node relays.
    pub endpoint: Option<SocketAddr>,
    /// The node that relays.
    pub via: Option<Label>,
    /// Where the endpoint is from. It is null if another node relays.
    pub source: Option<EndpointSource>,
    pub state: PathState,
    /// The number of probes and handshakes sent.
    pub probes: u64,
    /// The number of them that were answered.
    pub answers: u64,
    /// The smoothed round trip in milliseconds. It is null if it was not measured.
    pub rtt_ms: Option<f64>,
    /// The maximum size of a packet in the tunnel, in bytes, as far as it is known.
    pub mtu: Option<u16>,
    /// Seconds since the peer's last authentic datagram on this path.
    pub last_heard_seconds_ago: Option<f64>,
    /// Seconds since this node last sent on this path.
    pub last_sent_seconds_ago: Option<f64>,
    /// Why the path is not used.
    pub reason: Option<String>,
}

/// The kinds of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// Datagrams go to the peer itself.
    Direct,
    /// Another node relays datagrams.
    Relay,
    /// Another node relays datagrams over TLS.
    Stream,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

/// Where an endpoint is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointSource {
    /// The administrator set it.
    Set,
    /// The peer's router maps it.
    Mapped,
    /// It is an address of the peer's machine.
    Host,
    /// Datagrams of the peer come from it.
    Observed,
    /// A source of a later version.
    #[serde(other)]
    Other,
}

/// The states of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    /// Packets are sent on it.
    InUse,
    /// It works, and is used if the path in use fails.
    Standby,
    /// Probes are sent on it.
    Trying,
    /// Nothing was sent on it yet.
    Untried,
    /// Probes were sent on it, and nothing came.
    Failed,
    /// This node cannot send on it.
    Unusable,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// The document of `meshctl netcheck --json`: what this node knows of its own connection to the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    pub schema: u32,
    /// This node.
    pub name: Label,
    pub udp: UdpCheck,
    /// The addresses of this machine outside the tunnel.
    pub addresses: Vec<LocalAddress>,
    pub ipv6: Ipv6State,
    pub nat: NatCheck,
    pub port_mapping: PortMappingCheck,
    /// The hole in the router's firewall for IPv6. It is null if this machine has no public IPv6 address behind a gateway.
    pub ipv6_pinhole: Option<PortMappingCheck>,
    /// The nodes that can relay for this node.
    pub relays: Vec<RelayCheck>,
    /// The coordinator that this node uses, or tried last.
    pub coordinator: String,
    /// Whether the coordinator is connected.
    pub coordinator_connected: bool,
    /// What to do so that other nodes reach this node directly.
    pub mend: Vec<String>,
}

/// Whether UDP works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UdpCheck {
    /// The UDP port of this node.
    pub port: u16,
    pub state: UdpState,
    /// The number of peers from which a packet was received since the start.
    pub heard: usize,
    /// The number of peers.
    pub peers: usize,
    /// Seconds since the last authentic datagram of any of them.
    pub last_heard_seconds_ago: Option<f64>,
}

/// Whether UDP works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UdpState {
    /// Datagrams of peers arrive.
    Works,
    /// It is not known: there is no peer, or none had time to answer.
    Unknown,
    /// No peer answers, though there were probes to all of them.
    Unanswered,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// An address of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAddress {
    pub interface: String,
    pub address: IpAddr,
    /// Whether it is an address that routers forward to only inside a private network.
    pub private: bool,
    /// Whether this node offers it to its peers.
    pub offered: bool,
}

/// Whether this machine has IPv6 outside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv6State {
    /// It has a public address.
    Public,
    /// It has only addresses of a private network.
    Private,
    /// It has no address.
    None,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// What is known of the address translation between this machine and the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatCheck {
    pub mapping: NatMapping,
    pub filtering: NatFiltering,
    /// From where others see this node.
    pub seen: Vec<SeenFrom>,
}

/// How the address translation chooses ports (RFC 4787 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatMapping {
    /// It is not known.
    Unknown,
    /// There is no translation.
    None,
    /// There is a translation. How it chooses ports is not known.
    Translated,
    /// All peers see the same port.
    EndpointIndependent,
    /// Each peer sees another port.
    EndpointDependent,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

/// Which datagrams the router lets in (RFC 4787 section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatFiltering {
    /// It is not known.
    Unknown,
    /// It lets everything in.
    Open,
    /// It lets in what comes from an address to which this node sent.
    AddressDependent,
    /// It lets in what comes from an address and port to which this node sent.
    AddressAndPortDependent,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

/// The address of this node as another program sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeenFrom {
    /// The name of a peer, the URL of a coordinator, or the host and port of a STUN server.
    pub by: String,
    pub address: IpAddr,
    /// The UDP port. It is null if it was seen over TCP.
    pub port: Option<u16>,
    /// Seconds since then.
    pub seconds_ago: Option<f64>,
}

/// The port that the router maps to this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PortMappingCheck {
    pub state: PortMappingState,
    /// `pcp`, `nat-pmp` or `upnp`.
    pub protocol: Option<String>,
    /// The address and port at the router.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since a peer last sent through it.
    pub proven_seconds_ago: Option<f64>,
    /// Why there is none, or why it is not believed.
    pub reason: Option<String>,
}

/// The states of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortMappingState {
    /// This node does not ask for one.
    Off,
    /// The router maps none.
    None,
    /// The router says that it maps one, and nothing has come through it yet.
    Unproven,
    /// A peer has sent through it.
    Proven,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// A node that can relay for this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayCheck {
    pub name: Label,
    /// How it relays.
    pub kind: PathKind,
    /// The smoothed round trip in milliseconds.
    pub rtt_ms: Option<f64>,
    /// The part of its limit that is in use, from 0 to 1.
    pub load: Option<f64>,
    /// Whether this node uses it.
    pub in_use: bool,
}
