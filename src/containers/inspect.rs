//! What the engine says, as written and as meant. Pure. Fields that are missing, null or of a later version are borne:
//! Docker and Podman of many years differ in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use ipnet::Ipv4Net;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::labels::{Facts, Labels};
use super::network::OWNER;
use crate::records::kinds::Protocol;

/// A container's id: hexadecimal, at most 64 octets. Names change, this does not.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// Parses an id; nothing that could be more than one part of a path passes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = (1..=64).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit());
        plain.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve octets, as the engine's own programs show it.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a container's id"))
    }
}

/// Whether a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Running,
    /// It does, and gets no time.
    Paused,
    /// It ended and is about to be started again.
    Restarting,
    /// It does not.
    Stopped,
}

/// What a HEALTHCHECK says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineHealth {
    /// Nothing yet.
    Starting,
    /// Passed.
    Healthy,
    /// Failed.
    Unhealthy,
}

/// Where a container is on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// In the host's own network.
    Host,
    /// In none.
    Isolated,
    /// In that of another container.
    Shared,
    /// Its addresses by the name of the network.
    Attached(BTreeMap<String, Endpoint>),
}

/// A container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address there.
    pub address: Ipv4Addr,
    /// The network's id.
    pub network: String,
}

/// A container as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The id of its image.
    pub image: String,
    /// All labels that may mean something.
    pub labels: Labels,
    /// Those of its image, once they are known.
    pub image_labels: Option<Labels>,
    /// What tells one run of the container from the next: when it was started, as text.
    pub run: String,
    /// Whether it runs.
    pub status: Status,
    /// Its first process.
    pub pid: Option<u32>,
    /// What its HEALTHCHECK says.
    pub health: Option<EngineHealth>,
    /// Ports and whether there is a HEALTHCHECK.
    pub facts: Facts,
    /// The signal that asks it to end.
    pub stop_signal: u32,
    /// Where it is.
    pub network: Network,
    /// Its ports that are published on this host.
    pub published: Vec<Published>,
}

/// A container's port published on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Over what.
    pub protocol: Protocol,
    /// In the container.
    pub port: NonZeroU16,
    /// On which of the host's addresses; none: on all.
    pub address: Option<IpAddr>,
    /// On the host.
    pub host_port: NonZeroU16,
}

/// A network of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineNetwork {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Such as `bridge`.
    pub driver: String,
    /// Whether it has no way out.
    pub internal: bool,
    /// The bridge it is, if it is one.
    pub bridge: Option<String>,
    /// Its subnets.
    pub subnets: Vec<Ipv4Net>,
    /// What it gives addresses out of, if that is less than the subnet.
    pub range: Option<Ipv4Net>,
    /// Its own address there.
    pub gateway: Option<Ipv4Addr>,
    /// What its driver was told.
    pub options: BTreeMap<String, String>,
    /// Whether meshd made it.
    pub ours: bool,
}

/// What the engine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engine {
    /// Docker's or Podman's version.
    pub version: String,
    /// Whether it is Podman.
    pub podman: bool,
    /// Who filters packets for it, such as `iptables` or `nftables`; empty if it does not say.
    pub firewall: String,
    /// Whether it runs without root: its networks are then not those of this host.
    pub rootless: bool,
}

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A signal was sent to it.
    Kill(u32),
    /// It ended.
    Die,
    /// It was started.
    Start,
    /// It gets no time any more.
    Pause,
    /// It gets time again.
    Unpause,
    /// Its HEALTHCHECK says something else.
    Health(EngineHealth),
    /// It is no more.
    Destroy,
    /// Something else that a look at it will show.
    Changed,
}

/// An event of the engine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// To a container.
    Container(ContainerId, Action),
    /// To the networks.
    Networks,
    /// Nothing of interest.
    Other,
}

/// A line of the stream of events.
///
/// # Errors
/// It is none.
pub fn event(line: &[u8]) -> Result<Event, serde_json::Error> {
    let raw: RawEvent = serde_json::from_slice(line)?;
    let (action, detail) = match raw.action.split_once(':') {
        Some((action, detail)) => (action, detail.trim()),
        None => (raw.action.as_str(), ""),
    };
    let actor = raw.actor.unwrap_or_default();
    let attributes = actor.attributes.unwrap_or_default();
    let id = ContainerId::parse(&actor.id);
    Ok(match (raw.kind.as_str(), id) {
        ("container", Some(id)) => match action {
            "kill" => Event::Container(
                id,
                // A signal that cannot be read asks to be taken for the one that ends.
                Action::Kill(signal(&attributes.signal).unwrap_or(SIGTERM)),
            ),
            "die" | "died" => Event::Container(id, Action::Die),
            "start" => Event::Container(id, Action::Start),
            "pause" => Event::Container(id, Action::Pause),
            "unpause" => Event::Container(id, Action::Unpause),
            "destroy" | "remove" => Event::Container(id, Action::Destroy),
            "health_status" => {
                Event::Container(id, health(detail).map_or(Action::Changed, Action::Health))
            }
            "restart" | "rename" | "update" => Event::Container(id, Action::Changed),
            _ => Event::Other,
        },
        ("network", _) => match (action, ContainerId::parse(&attributes.container)) {
            ("connect" | "disconnect", Some(id)) => Event::Container(id, Action::Changed),
            ("create" | "destroy" | "remove", _) => Event::Networks,
            _ => Event::Other,
        },
        _ => Event::Other,
    })
}

/// The containers of a list, with their labels; those that do not run are there without.
///
/// # Errors
/// It is none.
pub fn list(text: &[u8]) -> Result<Vec<(ContainerId, Option<Labels>)>, serde_json::Error> {
    let raw: Vec<RawListed> = serde_json::from_slice(text)?;
    Ok(raw
        .into_iter()
        .filter_map(|row| {
            let running = matches!(row.state.as_str(), "running" | "paused" | "restarting");
            let labels = running.then(|| row.labels.unwrap_or_default().0);
            Some((ContainerId::parse(&row.id)?, labels))
        })
        .collect())
}

/// A description of one container.
///
/// # Errors
/// It is none.
pub fn container(text: &[u8]) -> Result<Inspected, serde_json::Error> {
    let raw: RawContainer = serde_json::from_slice(text)?;
    let id = ContainerId::parse(&raw.id)
        .ok_or_else(|| serde::de::Error::custom("not a container's id"))?;
    let state = raw.state.unwrap_or_default();
    let config = raw.config.unwrap_or_default();
    let mode = raw.host_config.unwrap_or_default().network_mode;
    let settings = raw.network_settings.unwrap_or_default();
    let published = published(settings.ports.unwrap_or_default());
    let attached: BTreeMap<String, Endpoint> = settings
        .networks
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, endpoint)| {
            let endpoint = endpoint?;
            let address = endpoint.ip_address.parse().ok()?;
            let network = endpoint.network_id.unwrap_or_default();
            Some((name, Endpoint { address, network }))
        })
        .collect();
    let network = match mode.as_str() {
        "host" => Network::Host,
        "none" => Network::Isolated,
        mode if mode.starts_with("container:") => Network::Shared,
        _ => Network::Attached(attached),
    };
    let status = match (state.running, state.paused, state.restarting) {
        (_, _, true) => Status::Restarting,
        (_, true, _) => Status::Paused,
        (true, ..) => Status::Running,
        _ => Status::Stopped,
    };
    let test = config
        .healthcheck
        .unwrap_or_default()
        .test
        .unwrap_or_default();
    let exposed = config
        .exposed_ports
        .unwrap_or_default()
        .keys()
        .filter_map(|port| exposed_port(port))
        .collect::<BTreeSet<_>>();
    Ok(Inspected {
        id,
        name: raw.name.trim_start_matches('/').to_owned(),
        image: raw.image,
        labels: config.labels.unwrap_or_default().0,
        image_labels: None,
        run: state.started_at.unwrap_or_default(),
        status,
        pid: u32::try_from(state.pid).ok().filter(|pid| *pid > 0),
        health: state
            .health
            .and_then(|h| health(&h.status.unwrap_or_default())),
        facts: Facts {
            exposed,
            has_healthcheck: test.first().is_some_and(|word| word != "NONE"),
        },
        stop_signal: signal(&config.stop_signal.unwrap_or_default()).unwrap_or(SIGTERM),
        network,
        published,
    })
}

/// The labels of an image's description.
///
/// # Errors
/// It is none.
pub fn image_labels(text: &[u8]) -> Result<Labels, serde_json::Error> {
    let raw: RawImage = serde_json::from_slice(text)?;
    Ok(raw.config.and_then(|c| c.labels).unwrap_or_default().0)
}

/// The networks of a list.
///
/// # Errors
/// It is none.
pub fn networks(text: &[u8]) -> Result<Vec<EngineNetwork>, serde_json::Error> {
    let raw: Vec<RawNetwork> = serde_json::from_slice(text)?;
    Ok(raw.into_iter().map(RawNetwork::meant).collect())
}

/// What the answers to `/version` and `/info` say.
///
/// # Errors
/// The first is none; the second may be.
pub fn engine(version: &[u8], facts: Option<&[u8]>) -> Result<Engine, serde_json::Error> {
    let version: RawVersion = serde_json::from_slice(version)?;
    let podman = version
        .components
        .unwrap_or_default()
        .iter()
        .any(|part| part.name.to_ascii_lowercase().contains("podman"));
    let facts: RawFacts = facts
        .and_then(|text| serde_json::from_slice(text).ok())
        .unwrap_or_default();
    Ok(Engine {
        version: super::labels::printable(&version.version),
        podman,
        firewall: facts
            .firewall_backend
            .and_then(|backend| backend.driver)
            .map(|driver| super::labels::printable(&driver))
            .unwrap_or_default(),
        rootless: facts
            .security_options
            .unwrap_or_default()
            .iter()
            .any(|option| option.split(',').any(|part| part == "name=rootless")),
    })
}

/// Ends a process unless it says otherwise.
pub const SIGTERM: u32 = libc::SIGTERM.unsigned_abs();
/// Ends it in any case.
pub const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();

/// A signal by number or name, as engines write it.
fn signal(text: &str) -> Option<u32> {
    let name = text.trim_start_matches("SIG");
    let number = match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "TERM" => libc::SIGTERM,
        "KILL" => libc::SIGKILL,
        "WINCH" => libc::SIGWINCH,
        "PWR" => libc::SIGPWR,
        _ => {
            // The C library keeps the first two of the kernel's real-time signals, from 32 on, for itself.
            let real_time = name.strip_prefix("RTMIN").map(|rest| {
                let offset = rest.strip_prefix('+').map_or(Some(0), |n| n.parse().ok());
                offset.and_then(|n: u32| n.checked_add(34))
            });
            return real_time.unwrap_or_else(|| name.parse().ok().filter(|n| (1..=64).contains(n)));
        }
    };
    Some(number.unsigned_abs())
}

fn health(text: &str) -> Option<EngineHealth> {
    match text {
        "starting" => Some(EngineHealth::Starting),
        "healthy" => Some(EngineHealth::Healthy),
        "unhealthy" => Some(EngineHealth::Unhealthy),
        _ => None,
    }
}

fn published(ports: RawPorts) -> Vec<Published> {
    let mut published = Vec::new();
    for (port, bindings) in ports {
        let Some((protocol, port)) = exposed_port(&port) else {
            continue;
        };
        for binding in bindings.unwrap_or_default() {
            let address = match binding.host_ip.parse::<IpAddr>() {
                Ok(address) if !address.is_unspecified() => Some(address),
                Err(_) if !binding.host_ip.is_empty() => continue,
                _ => None,
            };
            if let Ok(host_port) = binding.host_port.parse() {
                published.push(Published {
                    protocol,
                    port,
                    address,
                    host_port,
                });
            }
        }
    }
    published
}

/// `5432/tcp`.
fn exposed_port(text: &str) -> Option<(Protocol, NonZeroU16)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some((protocol, number.parse().ok()?))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEvent {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Option<RawActor>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawActor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Option<RawAttributes>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAttributes {
    signal: String,
    container: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawListed {
    id: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    labels: Option<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawContainer {
    id: String,
    name: String,
    image: String,
    state: Option<RawState>,
    config: Option<RawConfig>,
    host_config: Option<RawHostConfig>,
    network_settings: Option<RawNetworkSettings>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawState {
    running: bool,
    paused: bool,
    restarting: bool,
    pid: i64,
    started_at: Option<String>,
    health: Option<RawHealth>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawHealth {
    status: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawConfig {
    labels: Option<RawLabels>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealthcheck>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawHealthcheck {
    test: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawHostConfig {
    network_mode: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawNetworkSettings {
    networks: Option<BTreeMap<String, Option<RawEndpoint>>>,
    ports: Option<RawPorts>,
}

/// By the port in the container, such as `5432/tcp`.
type RawPorts = BTreeMap<String, Option<Vec<RawBinding>>>;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawBinding {
    host_ip: String,
    host_port: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEndpoint {
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "NetworkID")]
    network_id: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawImage {
    config: Option<RawImageConfig>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawImageConfig {
    labels: Option<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawVersion {
    version: String,
    components: Option<Vec<RawComponent>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawComponent {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawFacts {
    firewall_backend: Option<RawFirewall>,
    security_options: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawFirewall {
    driver: Option<String>,
}

/// A network as Docker writes it, and with other names as Podman does in its own API, which alone tells the bridge.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNetwork {
    #[serde(alias = "Id")]
    id: String,
    #[serde(alias = "Name")]
    name: String,
    #[serde(alias = "Driver")]
    driver: String,
    #[serde(alias = "Internal")]
    internal: bool,
    #[serde(rename = "Options")]
    options: Option<BTreeMap<String, String>>,
    #[serde(rename = "IPAM")]
    ipam: Option<RawIpam>,
    network_interface: Option<String>,
    subnets: Option<Vec<RawSubnet>>,
    #[serde(rename = "Labels")]
    labels: Option<RawLabels>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawIpam {
    config: Option<Vec<RawSubnet>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSubnet {
    #[serde(alias = "Subnet")]
    subnet: String,
    #[serde(rename = "IPRange")]
    range: Option<String>,
    #[serde(alias = "Gateway")]
    gateway: Option<String>,
}

impl RawNetwork {
    fn meant(self) -> EngineNetwork {
        let options = self.options.unwrap_or_default();
        let named = options
            .get("com.docker.network.bridge.name")
            .cloned()
            .or(self.network_interface);
        let bridge = (self.driver == "bridge").then(|| {
            // Docker's name for a bridge that nobody named.
            named.unwrap_or_else(|| format!("br-{}", self.id.get(..12).unwrap_or(&self.id)))
        });
        let subnets = self.ipam.and_then(|i| i.config).unwrap_or_default();
        let v4 = subnets.iter().find(|s| s.subnet.parse::<Ipv4Net>().is_ok());
        let (owner, value) = OWNER;
        EngineNetwork {
            range: v4.and_then(|s| s.range.as_deref()?.parse().ok()),
            gateway: v4.and_then(|s| s.gateway.as_deref()?.parse().ok()),
            ours: self
                .labels
                .is_some_and(|labels| labels.0.get(owner).is_some_and(|by| by == value)),
            options,
            bridge: bridge.filter(|name| is_interface_name(name)),
            subnets: subnets
                .into_iter()
                .chain(self.subnets.unwrap_or_default())
                .filter_map(|s| s.subnet.parse().ok())
                .map(|net: Ipv4Net| net.trunc())
                .collect(),
            id: self.id,
            name: self.name,
            driver: self.driver,
            internal: self.internal,
        }
    }
}

/// Whether the kernel would take it for an interface's name, and no quoting is needed anywhere.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// Labels, of which only those are kept that may mean something: others are anybody's and may be large.
#[derive(Default)]
struct RawLabels(Labels);

impl<'de> Deserialize<'de> for RawLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Kept;
        impl<'de> Visitor<'de> for Kept {
            type Value = RawLabels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawLabels, A::Error> {
                let mut labels = Labels::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with("mesh.") || key.starts_with("com.docker.compose.") {
                        labels.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(RawLabels(labels))
            }
        }
        deserializer.deserialize_map(Kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(fill: char) -> ContainerId {
        ContainerId::parse(&fill.to_string().repeat(64)).expect("hexadecimal")
    }

    #[test]
    fn a_description_is_read_with_nulls_and_fields_of_later_versions() {
        let text = serde_json::json!({
            "Id": "a".repeat(64), "Name": "/shop-db-1", "Image": "sha256:1", "Novel": {"x": [1]},
            "State": {"Running": true, "Pid": 42, "StartedAt": "2026-01-01T00:00:00Z", "Health": {"Status": "healthy", "Log": null}},
            "Config": {"Labels": {"mesh.service": "db", "other": "x"}, "ExposedPorts": {"5432/tcp": {}, "x/sctp": {}}, "StopSignal": "SIGINT",
                "Healthcheck": {"Test": ["CMD", "true"]}},
            "HostConfig": {"NetworkMode": "shop_default"},
            "NetworkSettings": {"Networks": {"shop_default": {"IPAddress": "172.18.0.2", "NetworkID": "f00"}, "gone": null, "empty": {"IPAddress": ""}}},
        });
        let read = container(text.to_string().as_bytes()).expect("readable");
        assert_eq!(
            (read.name.as_str(), read.pid, read.stop_signal),
            ("shop-db-1", Some(42), 2)
        );
        assert_eq!(read.labels.len(), 1);
        assert_eq!(read.health, Some(EngineHealth::Healthy));
        assert!(read.facts.has_healthcheck && read.facts.exposed.len() == 1);
        let Network::Attached(networks) = read.network else {
            panic!("{:?}", read.network)
        };
        assert_eq!(networks.keys().collect::<Vec<_>>(), ["shop_default"]);
        let bare = format!(
            "{{\"Id\":\"{}\",\"Config\":null,\"NetworkSettings\":{{}}}}",
            "b".repeat(64)
        );
        assert_eq!(
            container(bare.as_bytes()).expect("readable").status,
            Status::Stopped
        );
        assert!(container(b"{\"Id\":\"../images\"}").is_err());
    }

    #[test]
    fn events_of_docker_and_podman_are_read() {
        let of = |kind: &str, action: &str, attributes: &str| {
            let id = "c".repeat(64);
            let line = format!(
                "{{\"Type\":\"{kind}\",\"Action\":\"{action}\",\"Actor\":{{\"ID\":\"{id}\",\"Attributes\":{{{attributes}}}}}}}"
            );
            event(line.as_bytes()).expect("readable")
        };
        let happened = |action| Event::Container(id('c'), action);
        assert_eq!(
            of("container", "kill", "\"signal\":\"15\""),
            happened(Action::Kill(15))
        );
        assert_eq!(
            of("container", "kill", "\"signal\":\"SIGHUP\""),
            happened(Action::Kill(1))
        );
        assert_eq!(of("container", "died", ""), happened(Action::Die));
        assert_eq!(of("container", "rename", ""), happened(Action::Changed));
        assert_eq!(
            of("container", "health_status: healthy", ""),
            happened(Action::Health(EngineHealth::Healthy))
        );
        assert_eq!(
            of("container", "health_status", ""),
            happened(Action::Changed)
        );
        assert_eq!(of("container", "exec_start: true", ""), Event::Other);
        let container = format!("\"container\":\"{}\"", "d".repeat(64));
        assert_eq!(
            of("network", "disconnect", &container),
            Event::Container(id('d'), Action::Changed)
        );
        assert_eq!(of("network", "create", ""), Event::Networks);
        assert_eq!(
            event(b"{\"status\":\"pull\"}").expect("readable"),
            Event::Other
        );
        assert!(event(b"garbage").is_err());
    }

    #[test]
    fn signals_are_numbers_or_names() {
        let read: Vec<_> = [
            "15",
            "SIGTERM",
            "TERM",
            "SIGRTMIN+3",
            "RTMIN",
            "0",
            "65",
            "x",
            "",
        ]
        .iter()
        .map(|text| signal(text))
        .collect();
        assert_eq!(
            read,
            [
                Some(15),
                Some(15),
                Some(15),
                Some(37),
                Some(34),
                None,
                None,
                None,
                None
            ]
        );
    }

    #[test]
    fn networks_of_docker_and_podman_name_their_bridges() {
        let docker = format!(
            "[{{\"Name\":\"shop\",\"Id\":\"{}\",\"Driver\":\"bridge\",\"Internal\":true,\"IPAM\":{{\"Config\":[{{\"Subnet\":\"172.18.0.0/16\"}},{{\"Subnet\":\"fd00::/64\"}}]}},\"Options\":{{}}}},
             {{\"Name\":\"bridge\",\"Id\":\"x\",\"Driver\":\"bridge\",\"Options\":{{\"com.docker.network.bridge.name\":\"docker0\"}}}},
             {{\"Name\":\"odd\",\"Id\":\"x\",\"Driver\":\"bridge\",\"Options\":{{\"com.docker.network.bridge.name\":\"a; drop\"}}}},
             {{\"Name\":\"host\",\"Id\":\"y\",\"Driver\":\"host\",\"Options\":null,\"IPAM\":{{\"Config\":null}}}}]",
            "e".repeat(64)
        );
        let read = networks(docker.as_bytes()).expect("readable");
        let shown: Vec<_> = read
            .iter()
            .map(|n| (n.name.as_str(), n.bridge.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [
                ("shop", Some("br-eeeeeeeeeeee")),
                ("bridge", Some("docker0")),
                ("odd", None),
                ("host", None)
            ]
        );
        assert!(read[0].internal);
        assert_eq!(
            read[0].subnets,
            ["172.18.0.0/16".parse().expect("a literal")]
        );
        let podman = "[{\"name\":\"podman\",\"id\":\"z\",\"driver\":\"bridge\",\"network_interface\":\"podman0\",\"subnets\":[{\"subnet\":\"10.88.0.0/16\"}],\"internal\":false}]";
        let read = networks(podman.as_bytes()).expect("readable");
        assert_eq!(read[0].bridge.as_deref(), Some("podman0"));
        assert_eq!(read[0].subnets.len(), 1);
    }

    #[test]
    fn the_engine_says_what_matters_for_wiring() {
        let version = b"{\"Version\":\"29.0.1\",\"Components\":[{\"Name\":\"Engine\"}]}";
        let facts = b"{\"FirewallBackend\":{\"Driver\":\"nftables\"},\"SecurityOptions\":[\"name=seccomp,profile=builtin\",\"name=rootless\"]}";
        let read = engine(version, Some(facts)).expect("readable");
        assert_eq!(
            (read.version.as_str(), read.firewall.as_str()),
            ("29.0.1", "nftables")
        );
        assert!(read.rootless && !read.podman);
        let podman = b"{\"Version\":\"5.8.6\",\"Components\":[{\"Name\":\"Podman Engine\"}]}";
        assert!(engine(podman, Some(b"garbage")).expect("readable").podman);
    }
}
