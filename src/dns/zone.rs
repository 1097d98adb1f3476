//! The zone: every name of the mesh with the records that this node answers for it. It is computed when something changes.
//!
//! A zone is immutable. The next zone shares with it everything that stays the same, so a change of a service costs only the
//! names of the service.

mod entry;
mod names;
mod reverse;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub(super) use self::entry::Share;
pub use self::entry::{Entry, PortFilter, Standing, ZoneInstance};
use self::entry::{Rank, Role};
use self::names::Names;
use self::reverse::Reverse;

use crate::model::address::MeshAddresses;
use crate::model::{Label, PublicKey};
use crate::records::kinds::{Health, Instance, Service};
use crate::records::netmap::{GuestAt, Netmap};
use crate::records::service_address::ServiceAddresses;

/// The TTL of an answer in seconds.
pub const TTL: u32 = 5;
/// The TTL of a negative answer in seconds (RFC 2308 section 5).
pub const NEGATIVE_TTL: u32 = 5;

/// The default of the maximum number of addresses in an answer. Clients use one of the first, and a short reply passes every path
/// in one datagram.
pub const MAX_ADDRESSES: usize = 8;

/// The maximum number of SRV or TXT records in an answer. With the addresses of their targets they fit into one message.
pub const MAX_RECORDS: usize = 32;

/// The first label of a name that means only the nearest instances of the service below it. No instance has it as its own.
pub(super) const NEAREST: &str = "nearest";

/// The answer for a service without a usable instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenNoneUsable {
    /// The instances that are only unhealthy or unreachable, because one of them may work nevertheless.
    #[default]
    All,
    /// No address.
    None,
}

/// The input from which a zone is computed.
#[derive(Debug)]
pub struct ZoneInput<'a> {
    /// The members and their services.
    pub netmap: &'a Netmap,
    /// The identity of this node.
    pub own: PublicKey,
    /// The nodes that do not answer this node.
    pub unreachable: &'a BTreeSet<PublicKey>,
    /// The distance groups of other nodes: equal numbers are equally near, and smaller ones nearer. A node that was not
    /// measured is absent.
    pub groups: &'a BTreeMap<PublicKey, u8>,
    /// The answer for services without a usable instance.
    pub when_none_usable: WhenNoneUsable,
    /// Names, relative to the domain, whose last instance left less than a minute ago.
    pub lingering: &'a BTreeSet<String>,
    /// The service addresses that the kernel of this node balances.
    pub balanced: &'a BTreeSet<Ipv4Addr>,
    /// The service addresses that this node assigned before. [`Zone::replace`] uses those of the zone that it replaces instead.
    pub held: &'a ServiceAddresses,
    /// The serial number of the SOA, which grows with each change (RFC 1982).
    pub serial: u32,
    /// Addresses in an answer at most.
    pub most_addresses: usize,
}

/// A service record that another one replaces.
#[derive(Debug, Clone, Copy)]
pub struct Replaced<'a> {
    /// The record before the change, if there was one.
    pub before: Option<&'a Service>,
    /// The record in the netmap now, if there is one.
    pub now: Option<&'a Service>,
}

/// An immutable zone.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// The top label. It is empty before the node has joined.
    pub domain: String,
    /// The mesh's addresses.
    pub addresses: Option<MeshAddresses>,
    /// The serial number of the SOA.
    pub serial: u32,
    /// Addresses in an answer at most.
    pub most_addresses: usize,
    /// The service addresses that the kernel of this node balances. Others are not answered.
    pub balanced: Arc<BTreeSet<Ipv4Addr>>,
    names: Names,
    reverse: Reverse,
    /// The names with a service address, and the addresses.
    given: Arc<BTreeMap<Ipv4Addr, String>>,
    /// The assignment from which `given` is derived.
    held: Arc<ServiceAddresses>,
}

impl Zone {
    /// Computes the zone from nothing.
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
            balanced: Arc::new(input.balanced.clone()),
            held: Arc::new(input.held.clone()),
            ..Self::default()
        };
        for apex in ["", "svc", "node"] {
            zone.names.put(apex, |entry| entry.apex = true);
        }
        for member in input.netmap.members.values() {
            let name = format!("{}.node", member.name);
            let addresses = member.addresses();
            for address in &addresses {
                zone.reverse.give_to_node(*address, &name);
            }
            if member.id == input.own {
                zone.names
                    .put("ns", |entry| entry.addresses = addresses.as_slice().into());
            }
            zone.names
                .put(&name, |entry| entry.addresses = addresses.into());
        }
        // What a door says of its guests is old once the door does not answer.
        let is_here = |guest: &&GuestAt| {
            guest.heard && (guest.door == input.own || !input.unreachable.contains(&guest.door))
        };
        for guest in input.netmap.guests.iter().filter(is_here) {
            let name = format!("{}.guest", guest.name);
            for address in guest.addresses() {
                zone.reverse.give_to_node(address, &name);
            }
            // A guest with two doors has the addresses of those that hear it.
            zone.names.put(&name, |entry| {
                let held = entry.addresses.iter().copied();
                entry.addresses = held.chain(guest.addresses()).collect();
            });
        }
        let mut touched = BTreeSet::new();
        for service in input.netmap.services.values() {
            zone.add_service(service, input, &mut touched);
        }
        zone.qualify(&mut touched);
        zone.settle(&touched, input.when_none_usable);
        zone.give_service_addresses(input.netmap);
        for name in input.lingering {
            zone.linger(name);
        }
        zone
    }

    /// Returns the zone after a change of some services. Members and reachability must be the same. Also returns the names of
    /// services whose last instance left.
    #[must_use]
    pub fn replace(&self, input: &ZoneInput<'_>, services: &[Replaced<'_>]) -> (Self, Vec<String>) {
        let mut zone = self.clone();
        zone.serial = input.serial;
        let mut touched = BTreeSet::new();
        for service in services.iter().flat_map(|s| [s.before, s.now]).flatten() {
            zone.touch_service(service, input, &mut touched);
        }
        zone.unqualify(&mut touched);
        for service in services.iter().filter_map(|s| s.before) {
            zone.remove_service(service, input);
        }
        for service in services.iter().filter_map(|s| s.now) {
            zone.add_service(service, input, &mut touched);
        }
        zone.qualify(&mut touched);
        zone.settle(&touched, input.when_none_usable);
        let claims = |s: &Replaced<'_>| {
            let claims = |service: &Service| service.service_address.is_some();
            s.before.is_some_and(claims) || s.now.is_some_and(claims)
        };
        if services.iter().any(claims) {
            zone.give_service_addresses(input.netmap);
        }
        let names = services.iter().filter_map(|s| s.before).map(base_of);
        let left = names.filter(|name| !zone.serves(name)).collect();
        for name in &touched {
            zone.names.prune(name);
        }
        (zone, left)
    }

    /// Keeps `name`, without records, until [`Zone::forget`].
    pub fn linger(&mut self, name: &str) {
        self.names.put(name, |entry| entry.lingering = true);
    }

    /// Removes `name`, if it is kept without records.
    pub fn forget(&mut self, name: &str) {
        self.names.change(name, |entry| entry.lingering = false);
        self.names.prune(name);
    }

    fn add_service(
        &mut self,
        service: &Service,
        input: &ZoneInput<'_>,
        touched: &mut BTreeSet<String>,
    ) {
        let Some(member) = input.netmap.members.get(&service.node) else {
            return;
        };
        let base = base_of(service);
        let own = service.node == input.own;
        let group = match input.groups.get(&service.node) {
            _ if own => 0,
            Some(group) => *group,
            None => u8::MAX,
        };
        let reachable = own || !input.unreachable.contains(&service.node);
        let record: Arc<str> = service.id.as_str().into();
        for (place, instance) in (0..).zip(&service.instances) {
            let (v4, v6) = split_families(&instance.addresses);
            let zoned = Arc::new(ZoneInstance {
                name: format!("{}.{base}", instance.id).into(),
                node: member.name.clone(),
                owner: member.rank(),
                v4: v4.into(),
                v6: v6.into(),
                ports: instance.ports.as_slice().into(),
                weight: instance.weight,
                priority: instance.priority,
                group,
                standing: standing(instance, reachable),
                health: instance.health,
                rank: Rank {
                    of_project: service.project.is_some(),
                    record: Arc::clone(&record),
                    place,
                },
            });
            let mesh = self.addresses;
            for address in &instance.addresses {
                if mesh.is_some_and(|mesh| mesh.contains(*address)) {
                    self.reverse.give_to_instance(*address, &zoned);
                }
            }
            for (name, role) in names_of(service, instance, &base, &member.name) {
                self.names.put(&name, |entry| entry.take_in(&zoned, role));
                touched.insert(name);
            }
        }
    }

    /// Adds all names under which instances of `service` are listed to `touched`.
    fn touch_service(
        &self,
        service: &Service,
        input: &ZoneInput<'_>,
        touched: &mut BTreeSet<String>,
    ) {
        let Some(member) = input.netmap.members.get(&service.node) else {
            return;
        };
        let base = base_of(service);
        for instance in &service.instances {
            let names = names_of(service, instance, &base, &member.name);
            touched.extend(names.into_iter().map(|(name, _)| name));
        }
    }

    fn remove_service(&mut self, service: &Service, input: &ZoneInput<'_>) {
        let Some(member) = input.netmap.members.get(&service.node) else {
            return;
        };
        let base = base_of(service);
        for instance in &service.instances {
            for address in &instance.addresses {
                self.reverse.take_from_record(*address, &service.id);
            }
            for (name, _) in names_of(service, instance, &base, &member.name) {
                self.names.change(&name, |entry| entry.let_go(&service.id));
            }
        }
    }

    /// Adds a name with the key of the node in it for each instance whose own name belongs to another instance or to a service.
    /// Adds these names to `touched`.
    fn qualify(&mut self, touched: &mut BTreeSet<String>) {
        for (name, instance) in self.displaced(touched) {
            self.names
                .put(&name, |entry| entry.take_in(&instance, Role::Own));
            touched.insert(name);
        }
    }

    /// Removes the names that [`Zone::qualify`] added, before the instances that have them change. Adds these names to `touched`.
    fn unqualify(&mut self, touched: &mut BTreeSet<String>) {
        for (name, instance) in self.displaced(touched) {
            self.names.change(&name, |entry| entry.dismiss(&instance));
            touched.insert(name);
        }
    }

    /// The instances whose own name is among `names` but belongs to another instance or to a service, each with its qualified
    /// name.
    fn displaced(&self, names: &BTreeSet<String>) -> Vec<(String, Arc<ZoneInstance>)> {
        let entries = names
            .iter()
            .filter_map(|name| Some((name, self.find(name)?)));
        entries
            .flat_map(|(name, entry)| entry.displaced(name))
            .filter_map(|instance| Some((instance.qualified_name()?, Arc::clone(instance))))
            .collect()
    }

    fn settle(&mut self, touched: &BTreeSet<String>, when_none: WhenNoneUsable) {
        for name in touched {
            self.names
                .change(name, |entry| entry.settle(name, when_none));
        }
    }

    /// Updates the service addresses to those that follow from the claims.
    fn give_service_addresses(&mut self, netmap: &Netmap) {
        let held = ServiceAddresses::assign(netmap, &self.held);
        if held != *self.held {
            self.held = Arc::new(held);
        }
        let assigned = Arc::clone(&self.held);
        let assigned = assigned.iter().map(|(name, a)| (a, format!("{name}.svc")));
        let assigned = assigned.filter(|(_, name)| self.names.find(name).is_some());
        let assigned: BTreeMap<Ipv4Addr, String> = assigned.collect();
        if assigned == *self.given {
            return;
        }
        let before = std::mem::replace(&mut self.given, Arc::new(assigned));
        for (address, name) in before.iter() {
            self.names
                .change(name, |entry| entry.service_address = None);
            self.reverse.take_from_service((*address).into());
        }
        for (address, name) in self.given.iter() {
            self.names
                .change(name, |entry| entry.service_address = Some(*address));
            self.reverse.give_to_service((*address).into(), name);
        }
    }

    /// Returns the entry of `name`, which is relative to the domain.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.names.find(name)
    }

    /// The name, relative to the domain, that means this instance only. It is the name that the instance's node gave it or, if
    /// that belongs to another instance or to a service, the name with the key of the node in it.
    #[must_use]
    pub fn own_name<'a>(&self, instance: &'a ZoneInstance) -> Option<Cow<'a, str>> {
        let means_it = |name: &str| {
            let entry = self.find(name);
            entry.is_some_and(|entry| entry.means_only(instance))
        };
        if means_it(&instance.name) {
            return Some(Cow::Borrowed(&instance.name));
        }
        let qualified = instance.qualified_name().filter(|name| means_it(name));
        qualified.map(Cow::Owned)
    }

    /// Returns the assignment of service addresses.
    #[must_use]
    pub fn held_addresses(&self) -> &Arc<ServiceAddresses> {
        &self.held
    }

    /// Returns whether `name`, which is relative to the domain, has instances in any state.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        self.find(name).is_some_and(Entry::has_instances)
    }

    /// Whether `service` has an address of its own.
    #[must_use]
    pub fn is_balanced(&self, service: &Service) -> bool {
        let entry = self.find(&base_of(service));
        service.service_address.is_some() || entry.is_some_and(|e| e.service_address.is_some())
    }

    /// The usable instances of each service that has a service address: its IPv4 addresses, the same that would be
    /// answered without one.
    #[must_use]
    pub fn service_addresses(&self) -> BTreeMap<Ipv4Addr, Vec<Ipv4Addr>> {
        let of = |(address, name): (&Ipv4Addr, &String)| {
            let instances = self.find(name)?.answered.iter();
            let addresses: BTreeSet<Ipv4Addr> =
                instances.flat_map(|i| i.v4.iter().copied()).collect();
            Some((*address, addresses.into_iter().collect()))
        };
        self.given.iter().filter_map(of).collect()
    }

    /// The name, relative to the domain, of the node, instance or service that has `address`.
    #[must_use]
    pub fn find_address(&self, address: &IpAddr) -> Option<Cow<'_, str>> {
        self.reverse
            .find(address, |instance| self.own_name(instance))
    }

    /// Returns how many names have records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names
            .iter()
            .filter(|(_, e)| {
                e.apex || e.kind.has_addresses || e.kind.has_srv || !e.addresses.is_empty()
            })
            .count()
    }

    /// Returns whether no name has records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Names of services, relative to the domain: those that linger when their last instance leaves. What stands under a
    /// node goes with the node.
    pub fn service_names(&self) -> impl Iterator<Item = &str> {
        self.names
            .iter()
            .filter(|(name, entry)| entry.has_instances() && name.ends_with(".svc"))
            .map(|(name, _)| name)
    }

    /// Returns how many names are answered with instances that are not usable.
    #[must_use]
    pub fn flagged(&self) -> usize {
        self.names.iter().filter(|(_, entry)| entry.flagged).count()
    }
}

/// The name of a service, relative to the domain.
fn base_of(service: &Service) -> String {
    format!("{}.svc", service.service_name())
}

/// Returns every name of an instance, with the role of the name.
fn names_of(
    service: &Service,
    instance: &Instance,
    base: &str,
    node: &Label,
) -> Vec<(String, Role)> {
    let mut names = vec![(base.to_owned(), Role::Service)];
    if instance.id.as_str() != NEAREST {
        names.push((format!("{}.{base}", instance.id), Role::Own));
    }
    // Every project has a `db`: below the node only those stand that were named on purpose.
    let short = service.project.is_none();
    if short {
        names.push((format!("{}.svc.{node}.node", service.name), Role::OnNode));
    }
    for port in &instance.ports {
        let protocol = port.protocol.as_str();
        let label = port.name.as_ref().unwrap_or(&service.name);
        let role = Role::Port(PortFilter {
            name: port.name.clone(),
            protocol: port.protocol,
        });
        if port.name.is_none() && short {
            names.push((format!("_{}._{protocol}.svc", service.name), role.clone()));
        }
        names.push((format!("_{label}._{protocol}.{base}"), role));
    }
    names
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

#[cfg(test)]
mod tests;
