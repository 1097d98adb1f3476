//! The zone: every mesh name and what this node answers for it, computed once per change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::model::address::MeshAddresses;
use crate::model::netmap::Netmap;
use crate::model::record::{Health, Instance, Port, Service};
use crate::model::service_address::ServiceAddresses;
use crate::model::{Label, PublicKey};

/// Seconds an answer may be kept.
pub const TTL: u32 = 5;
/// Seconds a negative answer may be kept (RFC 2308 section 5).
pub const NEGATIVE_TTL: u32 = 5;

/// Addresses in an answer at most, unless configured otherwise: clients take one of the first, and what is short passes
/// every path in one datagram.
pub const MOST_ADDRESSES: usize = 8;

/// What is answered for a service of which no instance can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenNoneUsable {
    /// Those that are only unhealthy or unreachable: one may work all the same.
    #[default]
    All,
    /// No address.
    None,
}

/// What a zone is made of.
#[derive(Debug)]
pub struct ZoneInput<'a> {
    /// The members and their services.
    pub netmap: &'a Netmap,
    /// This node.
    pub own: PublicKey,
    /// Nodes that do not answer.
    pub unreachable: &'a BTreeSet<PublicKey>,
    /// Measured round trips.
    pub round_trips: &'a BTreeMap<PublicKey, Duration>,
    /// What to do for services without a usable instance.
    pub when_none_usable: WhenNoneUsable,
    /// Names, relative to the domain, whose last instance left less than a minute ago.
    pub lingering: &'a BTreeSet<String>,
    /// Service addresses that the kernel balances here by now.
    pub balanced: &'a BTreeSet<Ipv4Addr>,
    /// Grows with each change (RFC 1982).
    pub serial: u32,
    /// Addresses in an answer at most.
    pub most_addresses: usize,
}

/// Why an instance is answered or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its owner says it is healthy, and this node can reach its owner.
    Usable,
    /// This node cannot reach its owner.
    Unreachable,
    /// Its owner says it is not healthy.
    Unhealthy,
    /// Its owner says it is not ready yet.
    Starting,
    /// Its owner wants no new clients for it.
    Draining,
}

/// An instance as the zone holds it.
#[derive(Debug, Clone)]
pub struct ZoneInstance {
    /// Its name, relative to the domain.
    pub name: String,
    /// Its node's name.
    pub node: Label,
    /// IPv4 addresses.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// SRV weight.
    pub weight: u16,
    /// SRV priority.
    pub priority: u16,
    /// How far it is: equal numbers are equally near.
    pub group: u8,
    /// Whether it is answered.
    pub standing: Standing,
    /// Its owner's verdict.
    pub health: Health,
}

/// What a name has.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// All instances, for an explanation.
    pub all: Vec<usize>,
    /// Those answered, nearest first.
    pub answered: Vec<usize>,
    /// Whether those answered are not usable, for want of any that are.
    pub flagged: bool,
    /// Of SRV: only ports of this name or number are meant; all if absent.
    pub port: Option<PortFilter>,
    /// Whether it answers addresses.
    pub has_addresses: bool,
    /// Whether it answers SRV.
    pub has_srv: bool,
    /// Addresses that are no instance's: a node's.
    pub addresses: Vec<IpAddr>,
    /// Answered instead of the instances' addresses, if the service has one.
    pub service_address: Option<Ipv4Addr>,
    /// Whether SOA and NS are here.
    pub apex: bool,
}

/// Which ports an SRV name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFilter {
    /// The port's name; absent: ports without one.
    pub name: Option<Label>,
    /// `tcp` or `udp`.
    pub protocol: crate::model::record::Protocol,
}

impl PortFilter {
    /// Whether `port` is meant.
    #[must_use]
    pub fn matches(&self, port: &Port) -> bool {
        port.protocol == self.protocol && port.name == self.name
    }
}

/// An immutable zone.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// The top label; empty before the node has joined.
    pub domain: String,
    /// The mesh's addresses.
    pub addresses: Option<MeshAddresses>,
    /// Instances, referred to by index.
    pub instances: Vec<ZoneInstance>,
    /// For SOA.
    pub serial: u32,
    /// Addresses in an answer at most.
    pub most_addresses: usize,
    /// Service addresses that lead somewhere from this node; others are not answered.
    pub balanced: BTreeSet<Ipv4Addr>,
    names: HashMap<String, Entry>,
    reverse: HashMap<IpAddr, String>,
}

impl Zone {
    /// Computes the zone.
    #[must_use]
    pub fn build(input: &ZoneInput<'_>) -> Self {
        let Some(mesh) = &input.netmap.mesh else {
            return Self::default();
        };
        let mut zone = Self {
            domain: mesh.domain.to_string(),
            addresses: Some(mesh.addresses),
            serial: input.serial,
            most_addresses: input.most_addresses,
            balanced: input.balanced.clone(),
            ..Self::default()
        };
        for apex in ["", "svc", "node"] {
            zone.entry(apex).apex = true;
        }
        for member in input.netmap.members.values() {
            let name = format!("{}.node", member.name);
            let addresses = [
                IpAddr::V4(member.block.node_v4()),
                IpAddr::V6(member.block.node_v6()),
            ];
            for address in addresses {
                zone.reverse.insert(address, name.clone());
            }
            if member.id == input.own {
                zone.entry("ns").addresses = addresses.to_vec();
            }
            zone.entry(&name).addresses = addresses.to_vec();
        }
        // Those with a short name first: a reverse name is to be the short one.
        let services = || input.netmap.services.values();
        let (projects, short): (Vec<_>, Vec<_>) = services().partition(|s| s.project.is_some());
        for service in short.into_iter().chain(projects) {
            zone.add_service(service, input);
        }
        for (name, address) in ServiceAddresses::assign(input.netmap).iter() {
            let name = format!("{name}.svc");
            if let Some(entry) = zone.names.get_mut(&name) {
                entry.service_address = Some(address);
                zone.reverse.insert(address.into(), name);
            }
        }
        for name in input.lingering {
            zone.entry(name);
        }
        zone.add_parents();
        zone.choose(input.when_none_usable);
        zone
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        self.names.entry(name.to_owned()).or_default()
    }

    fn add_service(&mut self, service: &Service, input: &ZoneInput<'_>) {
        let Some(member) = input.netmap.members.get(&service.node) else {
            return;
        };
        let base = format!("{}.svc", service.service_name());
        let on_node = format!("{}.svc.{}.node", service.name, member.name);
        let group = group(
            service.node == input.own,
            input.round_trips.get(&service.node),
        );
        let reachable = service.node == input.own || !input.unreachable.contains(&service.node);
        for instance in &service.instances {
            let index = self.instances.len();
            let name = format!("{}.{base}", instance.id);
            let (v4, v6) = split_families(&instance.addresses);
            for address in &instance.addresses {
                if input
                    .netmap
                    .mesh
                    .as_ref()
                    .is_some_and(|mesh| mesh.addresses.contains(*address))
                {
                    self.reverse.entry(*address).or_insert_with(|| name.clone());
                }
            }
            self.instances.push(ZoneInstance {
                name: name.clone(),
                node: member.name.clone(),
                v4,
                v6,
                ports: instance.ports.clone(),
                weight: instance.weight,
                priority: instance.priority,
                group,
                standing: standing(instance, reachable),
                health: instance.health,
            });
            let own = self.entry(&name);
            own.all.push(index);
            own.has_addresses = true;
            // Every project has a `db`: below the node only those stand that were named on purpose.
            let short = service.project.is_none().then_some((&on_node, false));
            for (name, srv) in std::iter::once((&base, true)).chain(short) {
                let entry = self.entry(name);
                entry.all.push(index);
                entry.has_addresses = true;
                entry.has_srv |= srv;
            }
            self.add_ports(service, instance, &base, index);
        }
    }

    fn add_ports(&mut self, service: &Service, instance: &Instance, base: &str, index: usize) {
        for port in &instance.ports {
            let protocol = port.protocol.as_str();
            let label = port.name.as_ref().unwrap_or(&service.name);
            let mut names = vec![format!("_{label}._{protocol}.{base}")];
            if port.name.is_none() && service.project.is_none() {
                names.push(format!("_{}._{protocol}.svc", service.name));
            }
            for name in names {
                let entry = self.entry(&name);
                entry.has_srv = true;
                entry.port = Some(PortFilter {
                    name: port.name.clone(),
                    protocol: port.protocol,
                });
                if entry.all.last() != Some(&index) {
                    entry.all.push(index);
                }
            }
        }
    }

    /// Names that have nothing themselves but something below them exist (RFC 8020).
    fn add_parents(&mut self) {
        let names: Vec<String> = self.names.keys().cloned().collect();
        for name in names {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if self.names.contains_key(parent) {
                    break;
                }
                self.names.insert(parent.to_owned(), Entry::default());
                rest = parent;
            }
        }
    }

    fn choose(&mut self, when_none: WhenNoneUsable) {
        let instances = &self.instances;
        for (name, entry) in &mut self.names {
            let of = |standings: &[Standing]| -> Vec<usize> {
                entry
                    .all
                    .iter()
                    .copied()
                    .filter(|i| {
                        instances
                            .get(*i)
                            .is_some_and(|x| standings.contains(&x.standing))
                    })
                    .collect()
            };
            // An instance asked for by its own name is meant, whatever its state.
            let by_own_name = entry.all.len() == 1
                && entry
                    .all
                    .first()
                    .and_then(|i| instances.get(*i))
                    .is_some_and(|i| i.name == *name);
            entry.answered = if by_own_name {
                entry.all.clone()
            } else {
                of(&[Standing::Usable])
            };
            if entry.answered.is_empty() && when_none == WhenNoneUsable::All {
                entry.answered = of(&[Standing::Unreachable, Standing::Unhealthy]);
                entry.flagged = !entry.answered.is_empty();
            }
            entry
                .answered
                .sort_by_key(|i| instances.get(*i).map_or(u8::MAX, |x| x.group));
        }
    }

    /// What `name`, relative to the domain, has.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.names.get(name)
    }

    /// The usable instances of each service that has a service address: its IPv4 addresses, the same that would be
    /// answered without one.
    #[must_use]
    pub fn service_addresses(&self) -> BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> {
        let with_one = self.names.values().filter_map(|entry| {
            let instances = entry.answered.iter();
            let addresses: BTreeSet<Ipv4Addr> = instances
                .filter_map(|i| self.instances.get(*i))
                .flat_map(|instance| instance.v4.iter().copied())
                .collect();
            Some((entry.service_address?, addresses.into_iter().collect()))
        });
        with_one.collect()
    }

    /// The name, relative to the domain, of whoever has `address`.
    #[must_use]
    pub fn find_address(&self, address: &IpAddr) -> Option<&str> {
        self.reverse.get(address).map(String::as_str)
    }

    /// How many names have records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names
            .values()
            .filter(|e| e.apex || e.has_addresses || e.has_srv || !e.addresses.is_empty())
            .count()
    }

    /// Whether there is nothing to answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Names of services, relative to the domain: those that linger when their last instance leaves. What stands under a
    /// node goes with the node.
    pub fn service_names(&self) -> impl Iterator<Item = &str> {
        self.names
            .iter()
            .filter(|(name, entry)| !entry.all.is_empty() && name.ends_with(".svc"))
            .map(|(name, _)| name.as_str())
    }

    /// How many names are answered with instances that are not usable.
    #[must_use]
    pub fn flagged(&self) -> usize {
        self.names.values().filter(|entry| entry.flagged).count()
    }
}

fn standing(instance: &Instance, reachable: bool) -> Standing {
    match instance.health {
        Health::Draining => Standing::Draining,
        Health::Starting => Standing::Starting,
        Health::Unhealthy => Standing::Unhealthy,
        Health::Healthy | Health::Unknown if reachable => Standing::Usable,
        Health::Healthy | Health::Unknown => Standing::Unreachable,
    }
}

/// This node first, then by round trip in steps of a factor of two from half a millisecond; not measured last.
fn group(own: bool, round_trip: Option<&Duration>) -> u8 {
    match (own, round_trip) {
        (true, _) => 0,
        (false, None) => u8::MAX,
        (false, Some(rtt)) => {
            1 + u8::try_from(
                (rtt.as_micros() / 500)
                    .checked_ilog2()
                    .map_or(0, |log| log + 1),
            )
            .unwrap_or(u8::MAX - 2)
        }
    }
}

fn split_families(addresses: &[IpAddr]) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(a) => v4.push(*a),
            IpAddr::V6(a) => v6.push(*a),
        }
    }
    (v4, v6)
}
