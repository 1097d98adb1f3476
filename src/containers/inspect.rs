//! Containers, networks and events of the engine, as values. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::{Ipv4Net, Ipv6Net};

use super::labels::{Facts, Labels};
pub use crate::model::ContainerId;
use crate::records::kinds::Protocol;

/// Whether a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    /// It is not scheduled until it is unpaused.
    Paused,
    /// It has ended, and the engine is about to start it again.
    Restarting,
    Stopped,
}

/// The result of a HEALTHCHECK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineHealth {
    Starting,
    Healthy,
    Unhealthy,
}

/// How a container is attached to networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// It uses the network namespace of the host.
    Host,
    /// It has no network.
    Isolated,
    /// It uses the network namespace of another container.
    Shared,
    /// It has an endpoint in each of these networks, by the name of the network.
    Attached(BTreeMap<String, Endpoint>),
}

/// The endpoint of a container in one network. It has an address of one family at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// The network's id.
    pub network: String,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub id: String,
    /// `None` until meshd has requested them.
    pub labels: Option<Labels>,
}

/// A container as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    pub id: ContainerId,
    pub name: String,
    pub image: Image,
    /// The labels of the container that meshd or Compose define.
    pub labels: Labels,
    /// When the container was started, as text. It distinguishes one run of the container from the next.
    pub run: String,
    pub status: Status,
    /// The first process of the container.
    pub pid: Option<u32>,
    /// The result of its HEALTHCHECK.
    pub health: Option<EngineHealth>,
    pub facts: Facts,
    /// The signal with which the engine stops it.
    pub stop_signal: u32,
    pub network: Network,
    /// The ports that the engine publishes on this host.
    pub published: Vec<Published>,
}

/// A container's port published on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub protocol: Protocol,
    /// The port in the container.
    pub port: NonZeroU16,
    /// The address of the host, or `None` for all addresses.
    pub address: Option<IpAddr>,
    pub host_port: NonZeroU16,
}

/// A network of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineNetwork {
    pub id: String,
    pub name: String,
    /// Such as `bridge`.
    pub driver: String,
    /// Whether the engine routes nothing into or out of the network.
    pub internal: bool,
    /// The bridge device of the network.
    pub bridge: Option<String>,
    pub subnets: Vec<Ipv4Net>,
    /// The subnets of IPv6, if the network has IPv6.
    pub subnets_v6: Vec<Ipv6Net>,
    /// The range that the engine leases addresses from, if it is smaller than the subnet.
    pub range: Option<Ipv4Net>,
    /// The address of the host in the network.
    pub gateway: Option<Ipv4Addr>,
    /// The options of its driver.
    pub options: BTreeMap<String, String>,
    /// Whether meshd created it.
    pub ours: bool,
}

/// The engine itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engine {
    /// Docker's or Podman's version.
    pub version: String,
    /// Whether it is Podman.
    pub podman: bool,
    /// Its firewall backend, such as `iptables` or `nftables`; empty if the engine does not name one.
    pub firewall: String,
    /// Whether it runs without root. Its networks are then in a network namespace of their own.
    pub rootless: bool,
}

/// A change of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A signal was sent to it.
    Kill(u32),
    Die,
    Start,
    Pause,
    Unpause,
    /// The result of its HEALTHCHECK changed.
    Health(EngineHealth),
    /// It was removed.
    Destroy,
    /// Something else changed, which its description shows.
    Changed,
}

/// An event of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Container(ContainerId, Action),
    /// A network was created or removed.
    Networks,
    /// An event that meshd does not need.
    Other,
}

/// The label of a network that meshd made, and its value.
pub(super) const OWNER: (&str, &str) = ("mesh.made-by", "meshd");

/// The default signal with which an engine stops a process.
pub const SIGTERM: u32 = libc::SIGTERM.unsigned_abs();
/// The signal that ends a process in any case.
pub const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();
