//! meshd's local API: HTTP over a unix socket, checked by peer credentials. What `meshctl --json` prints.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/system` | | [`SystemList`] |
//! | `POST /v1/join` | [`Join`] | [`Joined`] |
//! | `POST /v1/leave` | | `{}` |
//! | `GET /v1/services` | | [`ServiceList`] |
//! | `POST /v1/services` | [`AddService`] | [`ServiceChanged`] |
//! | `DELETE /v1/services/NAME` | | [`ServiceChanged`] |
//! | `POST /v1/services/NAME/drain`, `.../undrain` | | [`ServiceChanged`] |
//! | `GET /v1/containers` | | [`ContainerList`] |
//! | `POST /v1/ping` | [`Ping`] | [`Pong`] |
//! | `POST /v1/resolve` | [`Resolve`] | [`Resolved`] |
//! | `GET /v1/checkup` | | [`Checkup`] |
//! | `GET /v1/metrics` | | text (OpenMetrics) |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::model::{Label, PublicKey, ServiceName, WireGuardKey};
use crate::records::kinds::{Health, Protocol, Source};

/// The `schema` of every document here.
pub const SCHEMA: u32 = 1;

/// What the node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Waits for `meshctl join`.
    Unjoined,
    /// Is being admitted.
    Joining,
    /// Tunnel, addresses and DNS work.
    Up,
    /// Takes its changes back.
    Leaving,
    /// The mesh removed it: no peer takes its packets any more.
    Removed,
}

/// `meshctl status --json`. What an unjoined node has not got is null or empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// 1.
    pub schema: u32,
    /// Of meshd.
    pub version: String,
    /// What the node is doing.
    pub state: NodeState,
    /// Why a joined node is not ready; absent if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Who it is.
    pub node: Option<NodeStatus>,
    /// Its tunnel device.
    pub interface: Option<InterfaceStatus>,
    /// Its control stream.
    pub coordinator: Option<CoordinatorStatus>,
    /// Its resolver.
    pub dns: Option<DnsStatus>,
    /// The other members.
    pub peers: Vec<PeerStatus>,
    /// Counts.
    pub services: ServiceCounts,
    /// What is wrong, why, and what to do.
    pub problems: Vec<Problem>,
}

impl Status {
    /// Why the node is not ready; nothing if it is: joined, not removed, tunnel and DNS up, and a peer reached since the start
    /// where the mesh has others.
    #[must_use]
    pub fn why_not_ready(&self) -> Option<String> {
        let why = match self.state {
            NodeState::Up => return self.not_ready.clone(),
            NodeState::Unjoined => match self.problems.first() {
                Some(problem) => return Some(format!("{}: {}", problem.what, problem.why)),
                None => "this node has not joined a mesh; run `meshctl join TOKEN`",
            },
            NodeState::Joining => "this node is being admitted",
            NodeState::Leaving => "this node is leaving the mesh",
            NodeState::Removed => "this node was removed from the mesh",
        };
        Some(self.not_ready.clone().unwrap_or_else(|| why.to_owned()))
    }
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Identity key.
    pub id: PublicKey,
    /// Its name.
    pub name: Label,
    /// What its token granted.
    pub tags: Vec<Label>,
    /// Its mesh address.
    pub address_v4: Ipv4Addr,
    /// The same in IPv6.
    pub address_v6: Ipv6Addr,
    /// The addresses it owns.
    pub block_v4: Ipv4Net,
    /// The same in IPv6.
    pub block_v6: Ipv6Net,
    /// WireGuard key.
    pub public_key: WireGuardKey,
    /// The mesh's domain.
    pub domain: Label,
}

/// The tunnel device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Such as `mesh0`.
    pub name: String,
    /// Octets.
    pub mtu: u32,
    /// UDP port.
    pub listen_port: u16,
}

/// The control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// The coordinator in use, or tried last.
    pub url: String,
    /// Whether the stream is open.
    pub connected: bool,
    /// The last revision held.
    pub revision: u64,
    /// Seconds since the stream was last known to be whole; null if never since the start.
    pub synced_seconds_ago: Option<f64>,
}

/// The resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Where it answers.
    pub listen: Vec<SocketAddr>,
    /// Names with records.
    pub records: usize,
    /// Who sends the host's mesh names here: `systemd-resolved` or `none`.
    pub split_dns: String,
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Straight, over its endpoint.
    Direct,
    /// Through another node.
    Relay,
    /// Through another node, over TLS.
    Stream,
    /// A handshake is under way.
    Connecting,
    /// No traffic, and none needed.
    Idle,
    /// Does not answer.
    Unreachable,
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Identity key.
    pub id: PublicKey,
    /// Its name.
    pub name: Label,
    /// What its token granted.
    pub tags: Vec<Label>,
    /// Its mesh address.
    pub address_v4: Ipv4Addr,
    /// The same in IPv6.
    pub address_v6: Ipv6Addr,
    /// How it is reached.
    pub state: PeerState,
    /// The node that relays to it.
    #[serde(default)]
    pub via: Option<Label>,
    /// Why it is not reached.
    #[serde(default)]
    pub reason: Option<String>,
    /// Seconds since its last authentic datagram; null if there was none since the start.
    #[serde(default)]
    pub last_heard_seconds_ago: Option<f64>,
    /// Its version of meshd; null if it is not known.
    #[serde(default)]
    pub version: Option<String>,
    /// Where its datagrams come from and go to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub last_handshake_seconds_ago: Option<f64>,
    /// Smoothed round trip in milliseconds; null while the peer does not answer.
    pub rtt_ms: Option<f64>,
    /// Octets of a packet in the tunnel that fit through the path to it, as far as known.
    #[serde(default)]
    pub path_mtu: Option<u16>,
    /// Octets received in the tunnel.
    pub rx_bytes: u64,
    /// Octets sent in the tunnel.
    pub tx_bytes: u64,
}

/// How many services there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// Instances on this node.
    pub local: usize,
    /// Services in the mesh.
    pub mesh: usize,
}

/// Something wrong, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// `meshctl status --system`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemList {
    /// 1.
    pub schema: u32,
    /// All that meshd put on the machine.
    pub entries: Vec<SystemEntry>,
}

/// One thing meshd put on the machine and takes away when it stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemEntry {
    /// `link`, `address`, `route`, `rule`, `file`, `socket`, `resolver` or `sysctl`.
    pub kind: String,
    /// Which.
    pub what: String,
    /// What it is there for.
    pub why: String,
}

/// Joins a mesh.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// The join token.
    pub token: String,
    /// The node's name; by default the configured one, else from the host name.
    pub name: Option<String>,
    /// Seconds until the attempt is given up.
    pub timeout_seconds: f64,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The tunnel's new key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotated {
    /// Version of this document.
    pub schema: u32,
    /// Its public half.
    pub public_key: WireGuardKey,
    /// Whether the coordinator has it.
    pub published: bool,
}

/// Gives this node another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// `<name>.node.<domain>`.
    pub name: String,
}

/// The node's new name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    /// Version of this document.
    pub schema: u32,
    /// The whole name.
    pub name: String,
    /// Whether the coordinator has it.
    pub published: bool,
}

/// The node is in and works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// 1.
    pub schema: u32,
    /// The node's name.
    pub name: Label,
    /// Its mesh address.
    pub address_v4: Ipv4Addr,
    /// The same in IPv6.
    pub address_v6: Ipv6Addr,
    /// What the person should know, such as a name that had to be changed.
    pub notes: Vec<String>,
    /// Whether the coordinator has accepted the node record, which tells others how to reach the node. A meshd of an earlier
    /// version does not wait for that and does not send this field.
    #[serde(default = "yes")]
    pub published: bool,
}

fn yes() -> bool {
    true
}

/// The node is out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// 1.
    pub schema: u32,
    /// The name it had; absent if it was only joining.
    pub name: Option<Label>,
    /// Whether its name and addresses are free.
    pub departure: DepartureState,
    /// How many peers received the departure from this node itself, where no coordinator could be reached.
    pub peers_reached: usize,
}

/// What became of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepartureState {
    /// A coordinator has it: name and addresses are free.
    Published,
    /// No coordinator has it yet. meshd and the peers that have it hand it over.
    Pending,
    /// None was signed: another machine with the same keys goes on.
    Copy,
    /// None was needed: no coordinator had admitted the node, or it was removed before.
    Unneeded,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// `meshctl service list --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    /// 1.
    pub schema: u32,
    /// By name, then project.
    pub services: Vec<ServiceRow>,
}

/// A service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// `<name>.svc.<domain>`.
    pub name: Label,
    /// Compose project.
    pub project: Option<Label>,
    /// One row per instance and port.
    pub instances: Vec<InstanceRow>,
}

/// One port of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// The instance's label.
    pub id: Label,
    /// The node's name.
    pub node: Label,
    /// Where it is reached.
    pub address: IpAddr,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
    /// On which port.
    pub port: u16,
    /// Over what.
    pub protocol: Protocol,
    /// The port's name.
    pub port_name: Option<Label>,
    /// Its owner's verdict.
    pub health: Health,
    /// Whether this node can reach its owner.
    pub reachable: bool,
    /// Who registered it.
    pub source: Source,
}

/// `GET /v1/containers`: the exposed containers of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerList {
    /// 1.
    pub schema: u32,
    /// By id.
    pub containers: Vec<ContainerRow>,
}

/// An exposed container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its instance's label.
    pub instance: Label,
    /// Its services, the one it was labelled with first.
    pub services: Vec<ServiceName>,
    /// Its instance address; null if it is in the host's network.
    pub address: Option<Ipv4Addr>,
    /// What it is at.
    pub state: ContainerState,
    /// How it is, whether it is drained or not.
    pub health: Health,
    /// Whether one of its services is drained.
    pub drained: bool,
}

/// What a container is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Not up yet.
    Starting,
    /// Up.
    Ready,
    /// Asked to end.
    Draining,
}

/// Registers a service of this node, or changes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddService {
    /// `<name>.svc.<domain>`.
    pub name: String,
    /// The port it listens on.
    pub port: u16,
    /// Over what.
    pub protocol: Protocol,
    /// Where it listens, one of the addresses of the node in the mesh; by default its own addresses.
    pub address: Option<IpAddr>,
    /// How its health is known.
    pub check: Option<Check>,
}

/// A health check.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Check {
    /// What is tried.
    pub probe: CheckProbe,
    /// Milliseconds from one try to the next.
    pub interval_ms: u64,
    /// Milliseconds after which a try has failed.
    pub timeout_ms: u64,
    /// Successes in a row after which what was unhealthy is healthy again.
    #[serde(default = "Check::default_rise")]
    pub rise: u32,
    /// Failures in a row after which what was healthy is unhealthy.
    #[serde(default = "Check::default_fall")]
    pub fall: u32,
    /// The least and the greatest HTTP status that is a success.
    #[serde(default = "Check::default_status")]
    pub status: (u16, u16),
}

impl Check {
    /// `probe` every 5 s with a limit of 2 s; two failures in a row make it unhealthy, one success healthy again.
    #[must_use]
    pub fn new(probe: CheckProbe) -> Self {
        Self {
            probe,
            interval_ms: 5_000,
            timeout_ms: 2_000,
            rise: Self::default_rise(),
            fall: Self::default_fall(),
            status: Self::default_status(),
        }
    }

    fn default_rise() -> u32 {
        1
    }

    fn default_fall() -> u32 {
        2
    }

    fn default_status() -> (u16, u16) {
        (200, 399)
    }
}

/// What a health check tries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckProbe {
    /// A TCP connection to the service's port.
    Tcp,
    /// An HTTP GET of this path.
    Http(String),
}

/// A service of this node has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChanged {
    /// 1.
    pub schema: u32,
    /// The full name, such as `web.svc.mesh`.
    pub name: String,
    /// Whether the coordinator has it; else it follows when the stream is back.
    pub published: bool,
}

/// Asks for round trips to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Name of the node, or one of its mesh addresses.
    pub node: String,
    /// Milliseconds to wait.
    pub timeout_ms: u64,
}

/// One round trip through the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    /// The node's name.
    pub node: Label,
    /// Its address.
    pub address: IpAddr,
    /// Where its datagrams come from.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds; null if no answer came in time.
    pub rtt_ms: Option<f64>,
    /// What takes packets of this machine's programs to that node away from the tunnel, if anything does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// Asks what this node's DNS answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// A domain name.
    pub name: String,
    /// A record type, such as `A`.
    #[serde(rename = "type")]
    pub record_type: String,
}

/// What this node's DNS answers, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// 1.
    pub schema: u32,
    /// As asked.
    pub name: String,
    /// Such as `NOERROR` or `NXDOMAIN`.
    pub response_code: String,
    /// The records, in zone-file form.
    pub answers: Vec<String>,
    /// One line each on why it is so.
    pub why: Vec<String>,
}

/// What `meshctl doctor` compares with what it finds: lookups are made where programs make them, with the caller's
/// rights, since meshd has none to enter a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    /// 1.
    pub schema: u32,
    /// A name that always exists: this node's.
    pub name: String,
    /// Its IPv4 address.
    pub expected: Ipv4Addr,
    /// The DNS address; null if this node answers no names.
    pub dns: Option<Ipv4Addr>,
    /// As in [`DnsStatus`].
    pub split_dns: String,
    /// The running containers of this host.
    pub containers: Vec<Inside>,
    /// What takes packets of this machine away from the tunnel.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Whether the mesh removed this node.
    #[serde(default)]
    pub removed: bool,
    /// What a probe to each other node found.
    #[serde(default)]
    pub tunnels: Vec<TunnelCheck>,
}

/// A probe to another node, inside the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunnelCheck {
    /// The node's name.
    pub peer: Label,
    /// Where it is sent to.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds until the answer, a handshake included if there was none before; null if none came in time.
    pub rtt_ms: Option<f64>,
    /// Why it does not work; null if it does.
    pub why: Option<String>,
    /// What to do; null if there is nothing to do.
    pub fix: Option<String>,
}

/// A running container, as far as its resolver is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Its name.
    pub name: String,
    /// The network it is on; with several, the one that matters.
    pub network: String,
    /// What kind that is.
    pub kind: NetworkKind,
    /// Its first process, in the host's process table.
    pub pid: u32,
}

/// Kinds of a container's network, by how names are resolved on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// The engine's default bridge: resolv.conf is a copy of the host's.
    Default,
    /// A network of the user's, as Compose makes them: the engine's own resolver asks the host's.
    User,
    /// One with no way out.
    Internal,
    /// The host's own.
    Host,
}
