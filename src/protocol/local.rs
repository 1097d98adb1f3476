//! meshd's local API: HTTP over a Unix socket. meshd checks the credentials of the caller's process. `meshctl --json`
//! prints these types.
//!
//! | call | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/system` | | [`SystemList`] |
//! | `POST /v1/join` | [`Join`] | [`Joined`] |
//! | `POST /v1/leave` | | `{}` |
//! | `POST /v1/rename` | [`Rename`] | [`Renamed`] |
//! | `POST /v1/rotate-key` | | [`KeyRotated`] |
//! | `GET /v1/services` | | [`ServiceList`] |
//! | `POST /v1/services` | [`AddService`] | [`ServiceChanged`] |
//! | `DELETE /v1/services/NAME`, `.../NAME/PORT`, `.../NAME/PORT/PROTOCOL` | | [`ServiceChanged`] |
//! | `POST /v1/services/NAME/drain`, `.../undrain` | | [`ServiceChanged`] |
//! | `GET /v1/services/NAME/instances` | | [`OwnInstances`] |
//! | `POST /v1/services/NAME/reserve` | [`Reserve`] | [`Reserved`] |
//! | `GET /v1/containers` | | [`ContainerList`] |
//! | `GET /v1/sd/prometheus`, `/v1/traefik`, `/v1/caddy` | | the formats of other programs: [`crate::discovery`] |
//! | `GET /v1/guests` | | [`GuestKeys`] |
//! | `POST /v1/guests/remove` | [`RemoveGuest`] | [`GuestRemoved`] |
//! | `POST /v1/ping` | [`Ping`] | [`Pong`] |
//! | `POST /v1/resolve` | [`Resolve`] | [`Resolved`] |
//! | `GET /v1/checkup` | | [`Checkup`] |
//! | `POST /v1/why` | [`WhyRequest`] | [`Why`] |
//! | `GET /v1/netcheck` | | [`Netcheck`] |
//! | `GET /v1/policy/denied` | | [`DeniedList`] |
//! | `GET /v1/metrics` | | text (Prometheus text format 0.0.4) |

mod guests;
mod instances;
mod paths;
mod policy;
mod routes;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use guests::{GuestKey, GuestKeys, GuestRemoved, GuestStatus, RemoveGuest};
pub use instances::{OwnInstance, OwnInstances, Reserve, Reserved};
pub use paths::{
    CallCheck, EndpointSource, Ipv6State, LocalAddress, NatCheck, NatFiltering, NatMapping,
    Netcheck, PathKind, PathRow, PathState, PortMappingCheck, PortMappingState, RelayCheck,
    SeenFrom, UdpCheck, UdpState, Why, WhyRequest,
};

pub use policy::{DeniedDirection, DeniedEnd, DeniedList, DeniedRow, PolicyStatus, TriedPolicy};
pub use routes::{OutsideName, RouteRow, RouteState};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::model::{Label, PublicHost, PublicKey, ServerAddress, ServiceName, WireGuardKey};
use crate::records::kinds::{Health, Protocol, Source};

/// The version of every document of this API, in its field `schema`.
pub const SCHEMA: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// The node waits for `meshctl join`.
    Unjoined,
    /// A coordinator is admitting the node.
    Joining,
    /// The tunnel, the addresses and DNS work.
    Up,
    /// meshd undoes its changes on the machine.
    Leaving,
    /// The mesh removed the node: no peer accepts its packets.
    Removed,
}

/// The document of `meshctl status --json`. Values that an unjoined node does not have are null or empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub schema: u32,
    /// The version of meshd.
    pub version: String,
    pub state: NodeState,
    /// The reason why a joined node is not ready. It is absent if the node is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// The identity of the node.
    pub node: Option<NodeStatus>,
    pub interface: Option<InterfaceStatus>,
    pub coordinator: Option<CoordinatorStatus>,
    pub dns: Option<DnsStatus>,
    /// The policy that the node keeps to. It is null if there is none.
    #[serde(default)]
    pub policy: Option<PolicyStatus>,
    /// The other members of the mesh.
    pub peers: Vec<PeerStatus>,
    /// The networks outside the mesh to which nodes route. Earlier versions leave them out.
    #[serde(default)]
    pub routes: Vec<RouteRow>,
    /// The host names of this node's services outside the mesh. It is absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<OutsideName>,
    pub services: ServiceCounts,
    /// The problems, each with its reason and its remedy.
    pub problems: Vec<Problem>,
}

impl Status {
    /// Returns the reason why the node is not ready. A node is ready if it has joined and was not removed, its tunnel
    /// and DNS work, and it has reached a peer since the start if the mesh has other nodes.
    #[must_use]
    pub fn why_not_ready(&self) -> Option<String> {
        let why = match self.state {
            NodeState::Up => return self.not_ready.clone(),
            NodeState::Unjoined => match self.problems.first() {
                Some(problem) => return Some(format!("{}: {}", problem.what, problem.why)),
                None => {
                    "this node has not joined a mesh; run `meshctl join -` and give it a token, which `meshctl token create` prints where the mesh key is"
                }
            },
            NodeState::Joining => "this node is being admitted",
            NodeState::Leaving => "this node is leaving the mesh",
            NodeState::Removed => "this node was removed from the mesh",
        };
        Some(self.not_ready.clone().unwrap_or_else(|| why.to_owned()))
    }
}

/// The identity of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The identity key.
    pub id: PublicKey,
    pub name: Label,
    /// The tags that its token granted.
    pub tags: Vec<Label>,
    /// Its IPv4 address in the mesh.
    pub address_v4: Ipv4Addr,
    /// Its IPv6 address in the mesh.
    pub address_v6: Ipv6Addr,
    /// Its IPv4 address block.
    pub block_v4: Ipv4Net,
    /// Its IPv6 address block.
    pub block_v6: Ipv6Net,
    /// Its WireGuard key.
    pub public_key: WireGuardKey,
    /// The addresses and UDP ports at which it offers other nodes to reach it, as in its own record. Earlier versions
    /// leave them out.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// The domain of the mesh.
    pub domain: Label,
    /// The guests for which this node is the door. They are absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<GuestStatus>,
}

/// The tunnel device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// The name of the device, such as `mesh0`.
    pub name: String,
    /// The maximum size of a packet in the tunnel, in bytes.
    pub mtu: u32,
    /// The UDP port.
    pub listen_port: u16,
}

/// The control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// The coordinator that the node uses, or tried last.
    pub url: String,
    /// Whether the stream is open.
    pub connected: bool,
    /// The last revision that the node holds.
    pub revision: u64,
    /// Seconds since the node last received something on the stream. It is null if it received nothing since the start.
    pub synced_seconds_ago: Option<f64>,
}

/// The resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// The addresses at which it answers.
    pub listen: Vec<SocketAddr>,
    /// The number of names with records.
    pub records: usize,
    /// The program that sends the host's queries for names of the mesh here: `systemd-resolved` or `none`.
    pub split_dns: String,
}

/// The path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Datagrams go to the peer's endpoint.
    Direct,
    /// Another node relays datagrams.
    Relay,
    /// Another node relays datagrams over TLS.
    Stream,
    /// A handshake is in progress.
    Connecting,
    /// There is no traffic, and none is needed.
    Idle,
    /// The peer does not answer.
    Unreachable,
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The identity key.
    pub id: PublicKey,
    pub name: Label,
    /// The tags that its token granted.
    pub tags: Vec<Label>,
    /// Its IPv4 address in the mesh.
    pub address_v4: Ipv4Addr,
    /// Its IPv6 address in the mesh.
    pub address_v6: Ipv6Addr,
    /// The path to it.
    pub state: PeerState,
    /// The node that relays to it.
    #[serde(default)]
    pub via: Option<Label>,
    /// The reason why it is not reached.
    #[serde(default)]
    pub reason: Option<String>,
    /// Seconds since its last authentic datagram. It is null if there was none since the start.
    #[serde(default)]
    pub last_heard_seconds_ago: Option<f64>,
    /// Its version of meshd. It is null if it is not known.
    #[serde(default)]
    pub version: Option<String>,
    /// The address from which its datagrams come and to which they go.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub last_handshake_seconds_ago: Option<f64>,
    /// The smoothed round trip in milliseconds. It is null while the peer does not answer.
    pub rtt_ms: Option<f64>,
    /// The maximum size of a packet in the tunnel that the path to it carries, in bytes, as far as it is known.
    #[serde(default)]
    pub path_mtu: Option<u16>,
    /// Bytes received in the tunnel.
    pub rx_bytes: u64,
    /// Bytes sent in the tunnel.
    pub tx_bytes: u64,
}

/// The numbers of services and of their instances. A container that is found under two names, such as `web` and `web.shop`, is
/// one instance of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceCounts {
    /// The number of services with an instance on this node.
    pub local: usize,
    /// The number of services in the mesh.
    pub mesh: usize,
    /// The number of instances on this node.
    #[serde(default)]
    pub local_instances: usize,
    /// The number of instances in the mesh.
    #[serde(default)]
    pub mesh_instances: usize,
}

/// A problem and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    pub what: String,
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// The document of `meshctl status --system`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemList {
    pub schema: u32,
    /// All changes that meshd made on the machine.
    pub entries: Vec<SystemEntry>,
}

/// A change that meshd made on the machine, and undoes when it stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemEntry {
    /// One of `link`, `address`, `route`, `rule`, `file`, `socket`, `resolver` and `sysctl`.
    pub kind: String,
    /// The object that meshd changed.
    pub what: String,
    /// Why meshd made the change.
    pub why: String,
}

/// A request to join a mesh.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Join {
    pub token: String,
    /// The node's name. The default is the configured name, and otherwise the host name.
    pub name: Option<String>,
    /// Seconds after which meshd gives up.
    pub timeout_seconds: f64,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The new key of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRotated {
    pub schema: u32,
    pub public_key: WireGuardKey,
    /// Whether a coordinator has stored it.
    pub published: bool,
    /// What becomes of the key until then. A meshd of an earlier version does not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<Unpublished>,
}

/// Why no coordinator has stored a change of this node yet, and what becomes of the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpublished {
    pub state: UnpublishedState,
    /// The reason and the consequence, as the end of a sentence for the user.
    pub note: String,
}

/// The kinds of reasons why no coordinator has stored a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnpublishedState {
    /// No coordinator is connected.
    Away,
    /// A coordinator is connected and has not answered yet.
    Unanswered,
    /// The coordinator refused the change.
    Refused,
    /// This node's own records do not allow the change, so it was sent to nobody.
    Invalid,
    /// A reason that only a later version knows.
    #[serde(other)]
    Other,
}

/// A request to give this node another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// The first label of `<name>.node.<domain>`.
    pub name: String,
}

/// The new name of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    pub schema: u32,
    /// The full name.
    pub name: String,
    /// Whether a coordinator has stored it.
    pub published: bool,
    /// What becomes of the name until then. A meshd of an earlier version does not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<Unpublished>,
}

/// The answer when the node has joined and works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub schema: u32,
    pub name: Label,
    /// Its IPv4 address in the mesh.
    pub address_v4: Ipv4Addr,
    /// Its IPv6 address in the mesh.
    pub address_v6: Ipv6Addr,
    /// Remarks for the person, such as that a name had to be changed.
    pub notes: Vec<String>,
    /// Whether the coordinator has stored the node record, which tells others how to reach the node. A meshd of an earlier
    /// version does not wait for that and does not send this field.
    #[serde(default = "yes")]
    pub published: bool,
}

fn yes() -> bool {
    true
}

/// The answer when the node has left the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    pub schema: u32,
    /// The name that it had. It is absent if the node was only joining.
    pub name: Option<Label>,
    /// Whether its name and its addresses are free.
    pub departure: DepartureState,
    /// The number of peers that received the departure from this node, if it reached no coordinator.
    pub peers_reached: usize,
}

/// The state of a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepartureState {
    /// A coordinator has stored it: the name and the addresses are free.
    Published,
    /// No coordinator has stored it yet. meshd and the peers that have it will send it to one.
    Pending,
    /// The node signed none, because another machine with the same keys continues.
    Copy,
    /// None was needed: no coordinator had admitted the node, or the mesh had removed it.
    Unneeded,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// The document of `meshctl service list --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    pub schema: u32,
    /// The services in the order of their names and projects.
    pub services: Vec<ServiceRow>,
}

/// A service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// The full name, `<name>.svc.<domain>`.
    pub name: Label,
    /// The Compose project.
    pub project: Option<Label>,
    /// A row for each port of each instance.
    pub instances: Vec<InstanceRow>,
}

/// One port of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// The label of the instance.
    pub id: Label,
    /// The name of the node.
    pub node: Label,
    /// The address at which it is reached.
    pub address: IpAddr,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
    pub port_name: Option<Label>,
    /// The health that its node reports.
    pub health: Health,
    /// Whether this node can reach the instance's node.
    pub reachable: bool,
    /// The source that registered it.
    pub source: Source,
    /// The host names under which an ingress offers it to the world outside the mesh. A meshd of an earlier version does not send it.
    #[serde(default)]
    pub public: Vec<PublicHost>,
}

/// The document of `GET /v1/containers`: the exposed containers of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerList {
    pub schema: u32,
    /// The containers in the order of their ids.
    pub containers: Vec<ContainerRow>,
}

/// An exposed container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// The id that the engine gave it.
    pub id: String,
    pub name: String,
    /// The label of its instance.
    pub instance: Label,
    /// Its services. The first one is that of its label.
    pub services: Vec<ServiceName>,
    /// Its instance address. It is null if the container is in the host's network, or has no IPv4 address.
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 instance address. It is null if the container has no IPv6 address on its network.
    #[serde(default)]
    pub address_v6: Option<Ipv6Addr>,
    pub state: ContainerState,
    /// Its health, independent of whether it is drained.
    pub health: Health,
    /// Whether one of its services is drained.
    pub drained: bool,
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// The container starts.
    Starting,
    /// The container runs.
    Ready,
    /// The container received its stop signal.
    Draining,
}

/// A request to register a service of this node, or to change one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddService {
    /// The first label of `<name>.svc.<domain>`.
    pub name: String,
    /// The port on which it listens.
    pub port: u16,
    pub protocol: Protocol,
    /// The address on which it listens: one of the node's mesh addresses, or an IPv4 address or a host name outside the mesh. The default is
    /// all mesh addresses.
    pub address: Option<ServerAddress>,
    /// Its health check.
    pub check: Option<Check>,
    /// The name of the port in SRV queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<Label>,
    /// The SRV weight. The default is 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// The SRV priority. The default is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Who may reach it, within the policy: selectors, at least one. The default is that the policy alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// The host names under which an ingress offers it to the world outside the mesh, at least one. The default is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<Vec<String>>,
}

/// A request to remove a service of this node. It is the path of a DELETE request, and has no body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoveService {
    pub name: String,
    /// Only the instance with this port.
    pub port: Option<String>,
    /// Only the instance with this protocol: `tcp` or `udp`.
    pub protocol: Option<String>,
}

/// A health check.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Check {
    /// What the check tries.
    pub probe: CheckProbe,
    /// Milliseconds between two tries.
    pub interval_ms: u64,
    /// Milliseconds after which a try has failed.
    pub timeout_ms: u64,
    /// The number of successes in a row that make an unhealthy service healthy.
    #[serde(default = "Check::default_rise")]
    pub rise: u32,
    /// The number of failures in a row that make a healthy service unhealthy.
    #[serde(default = "Check::default_fall")]
    pub fall: u32,
    /// The lowest and the highest HTTP status that counts as a success.
    #[serde(default = "Check::default_status")]
    pub status: (u16, u16),
}

impl Check {
    /// Runs `probe` every 5 s with a limit of 2 s. Two failures in a row make the service unhealthy, and one success
    /// makes it healthy.
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

    /// The milliseconds within which failures in a row make a service unhealthy whose program does not work any more.
    #[must_use]
    pub fn notices_within(&self) -> u64 {
        // The interval is varied by up to a tenth.
        let interval = self.interval_ms.saturating_add(self.interval_ms / 10);
        let one = interval.saturating_add(self.timeout_ms);
        one.saturating_mul(self.fall.into())
    }

    /// Parses one HTTP status or a range of them: `204`, `200-299`.
    #[must_use]
    pub fn parse_status(text: &str) -> Option<(u16, u16)> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
        (100 <= min && min <= max && max <= 599).then_some((min, max))
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

/// The try of a health check.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckProbe {
    /// A TCP connection to the service's port.
    Tcp,
    /// An HTTP GET of this path.
    Http(String),
}

/// The answer when a service of this node has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChanged {
    pub schema: u32,
    /// The full name, such as `web.svc.mesh`.
    pub name: String,
    /// Whether a coordinator has stored the change.
    pub published: bool,
    /// What becomes of the change until then. A meshd of an earlier version does not send it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<Unpublished>,
    /// What happened to the service. A meshd of an earlier version does not send this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<ServiceChange>,
}

/// What happened to a service of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceChange {
    /// It was added.
    New,
    /// It was there, and has other settings now.
    Changed,
    /// It was there with the same settings, or it was drained before.
    Unchanged,
    Removed,
    Drained,
    Undrained,
    /// A change of a later version.
    #[serde(other)]
    Other,
}

/// A request for a round trip to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The name of the node, or one of its mesh addresses.
    pub node: String,
    /// Milliseconds to wait.
    pub timeout_ms: u64,
}

/// A round trip through the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    /// The name of the node.
    pub node: Label,
    /// Its address in the mesh.
    pub address: IpAddr,
    /// The address from which its datagrams come.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds. It is null if no answer came in time.
    pub rtt_ms: Option<f64>,
    /// The route or rule that takes packets of this machine to that node away from the tunnel, if there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// A request for the answer of this node's resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolve {
    /// A domain name.
    pub name: String,
    /// A record type, such as `A`.
    #[serde(rename = "type")]
    pub record_type: String,
}

/// The answer of this node's resolver, with explanations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    pub schema: u32,
    /// The name as it was asked.
    pub name: String,
    /// The response code, such as `NOERROR` or `NXDOMAIN`.
    pub response_code: String,
    /// The records in the form of a zone file.
    pub answers: Vec<String>,
    /// Explanations of the answer, one line each.
    pub why: Vec<String>,
}

/// The facts that `meshctl doctor` compares with its own lookups. `meshctl` makes the lookups itself with the rights of
/// its caller, because meshd has no right to enter a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    pub schema: u32,
    /// A name that always exists: the name of this node.
    pub name: String,
    /// The IPv4 address of this name.
    pub expected: Ipv4Addr,
    /// The DNS address. It is null if this node answers no names.
    pub dns: Option<Ipv4Addr>,
    /// The same as in [`DnsStatus`].
    pub split_dns: String,
    /// The running containers of this host.
    pub containers: Vec<ContainerResolver>,
    /// Routes and rules that take packets of this machine away from the tunnel.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Whether the mesh removed this node.
    #[serde(default)]
    pub removed: bool,
    /// The results of a probe to each other node.
    #[serde(default)]
    pub tunnels: Vec<TunnelCheck>,
}

/// The result of a probe to another node, inside the tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunnelCheck {
    /// The name of the node.
    pub peer: Label,
    /// The address to which datagrams are sent.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds until the answer, including a handshake if one was needed. It is null if no answer came in time.
    pub rtt_ms: Option<f64>,
    /// The reason why the tunnel does not work. It is null if it works.
    pub why: Option<String>,
    /// What to do. It is null if there is nothing to do.
    pub fix: Option<String>,
}

/// A running container and its resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerResolver {
    pub name: String,
    /// The network of the container. If it has several, the one that decides how it resolves names.
    pub network: String,
    /// The kind of this network.
    pub kind: NetworkKind,
    /// The id of its first process in the host's process table.
    pub pid: u32,
}

/// The kinds of networks of a container. They differ in how names are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// The default bridge of the engine. Its resolv.conf is a copy of the host's.
    Default,
    /// A network of the user, as Compose creates them. The engine's own resolver forwards queries to the host's servers.
    User,
    /// A network that has no connection to the outside.
    Internal,
    /// The network of the host itself.
    Host,
}
