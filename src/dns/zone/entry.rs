//! The entry of a name in the zone, and how it follows from the instances that have the name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::Arc;

use super::WhenNoneUsable;
use crate::model::Label;
use crate::records::kinds::{Health, Port};
use crate::records::netmap;

/// The reason why an instance is answered or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The owner reports the instance as healthy, and this node can reach the owner.
    Usable,
    /// This node cannot reach the owner.
    Unreachable,
    /// The owner reports the instance as unhealthy.
    Unhealthy,
    /// The owner reports that the instance is not ready yet.
    Starting,
    /// The owner wants no new clients for the instance.
    Draining,
}

/// An instance as the zone holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneInstance {
    /// Its name, relative to the domain.
    pub name: Arc<str>,
    /// Its node's name.
    pub node: Label,
    /// The rank of its node among members that claim the same name.
    pub owner: netmap::Rank,
    /// IPv4 addresses.
    pub v4: Box<[Ipv4Addr]>,
    /// IPv6 addresses.
    pub v6: Box<[Ipv6Addr]>,
    pub ports: Box<[Port]>,
    /// SRV weight.
    pub weight: u16,
    /// SRV priority.
    pub priority: u16,
    /// The distance group: equal numbers are equally near.
    pub group: u8,
    /// Whether and why the instance is answered.
    pub standing: Standing,
    /// The health that the owner reports.
    pub health: Health,
    /// The position among the instances of a name.
    pub(super) rank: Rank,
}

/// The order of instances: those with a short name come first, then the names of the records decide, and then the position in the
/// record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) of_project: bool,
    pub(super) record: Arc<str>,
    pub(super) place: u32,
}

/// The role of a name for one of its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// The instance's own name.
    Own,
    /// The name of its service.
    Service,
    /// The name of the service on one node.
    OnNode,
    /// The name of one of its ports.
    Port(PortFilter),
}

/// An instance under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) instance: Arc<ZoneInstance>,
    pub(super) role: Role,
}

/// The entry of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The instances that are answered: the nearest first, and the instances of one node next to each other.
    pub answered: Box<[Arc<ZoneInstance>]>,
    /// The parts that nodes have in `answered`. It is absent if there is at most one instance.
    pub(super) spread: Option<Box<Spread>>,
    /// Whether unusable instances are answered, because no instance is usable.
    pub flagged: bool,
    /// The ports that an SRV answer has. Without a filter it has all of them.
    pub port: Option<PortFilter>,
    /// What the name is to its instances.
    pub kind: Kind,
    /// The addresses of a node, which belong to no instance.
    pub addresses: Box<[IpAddr]>,
    /// The service address, which is answered instead of the addresses of the instances.
    pub service_address: Option<Ipv4Addr>,
    /// Whether the name has SOA and NS records.
    pub apex: bool,
    /// Whether the last instance left lately.
    pub(super) lingering: bool,
    /// The number of names that are one label below.
    pub(super) below: u32,
    /// All instances, by rank.
    pub(super) places: Vec<Place>,
}

/// What a name is to its instances, and which types of records follow from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kind {
    /// The name is that of a service.
    pub is_service: bool,
    /// The name is the own name of an instance.
    pub(super) is_own: bool,
    /// The name has the addresses of its instances.
    pub has_addresses: bool,
    /// The name has SRV records.
    pub has_srv: bool,
}

/// Which ports an SRV name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFilter {
    /// The name of the port, or `None` for ports without a name.
    pub name: Option<Label>,
    /// `tcp` or `udp`.
    pub protocol: crate::records::kinds::Protocol,
}

impl PortFilter {
    /// Whether `port` is meant.
    #[must_use]
    pub fn matches(&self, port: &Port) -> bool {
        port.protocol == self.protocol && port.name == self.name
    }
}

impl Entry {
    /// All instances that the name means, for an explanation.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ZoneInstance>> {
        let own = self
            .kind
            .is_own
            .then_some(&self.answered)
            .into_iter()
            .flatten();
        let places = self.places.iter().filter(|_| !self.kind.is_own);
        let others = places.filter(|place| place.role != Role::Own);
        own.chain(others.map(|place| &place.instance))
    }

    /// The part of a node in the answers. `at` counts the nodes that have a part.
    pub(in crate::dns) fn share(&self, at: usize) -> Option<Share<'_>> {
        let Some(spread) = &self.spread else {
            let instance = self.answered.get(at)?;
            return Some(Share {
                group: instance.group,
                instances: self.answered.get(at..=at)?,
                v4: &instance.v4,
                v6: &instance.v6,
            });
        };
        let part = spread.parts.get(at)?;
        Some(Share {
            group: part.group,
            instances: self.answered.get(part.instances.clone())?,
            v4: spread.v4.get(part.v4.clone())?,
            v6: spread.v6.get(part.v6.clone())?,
        })
    }

    /// How many nodes have a part in the answers.
    pub(in crate::dns) fn shares(&self) -> usize {
        let spread = self.spread.as_ref();
        spread.map_or(self.answered.len(), |spread| spread.parts.len())
    }

    /// Whether this is the own name of `instance`.
    pub(super) fn means_only(&self, instance: &ZoneInstance) -> bool {
        let answered = self.answered.first();
        self.kind.is_own && answered.is_some_and(|holder| holder.rank == instance.rank)
    }

    /// The instances to which their nodes gave `name`, and which do not have it because it belongs to a service or to another
    /// instance.
    pub(super) fn displaced<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Arc<ZoneInstance>> {
        let called = move |place: &&Place| place.role == Role::Own && *place.instance.name == *name;
        let is_service = self.places.iter().any(|place| place.role == Role::Service);
        let holder = match is_service {
            true => None,
            false => holder(self.places.iter().filter(called), name),
        };
        let holder = holder.map(|place| &place.instance.rank);
        let places = self.places.iter().filter(called);
        places
            .map(|place| &place.instance)
            .filter(move |instance| Some(&instance.rank) != holder)
    }

    /// Whether instances stand here, in whatever state.
    #[must_use]
    pub fn has_instances(&self) -> bool {
        !self.places.is_empty()
    }

    /// Returns whether the name has nothing, and no name is below it.
    pub(super) fn is_bare(&self) -> bool {
        let kept = self.apex || self.lingering || self.below > 0;
        !kept && self.places.is_empty() && self.addresses.is_empty()
    }

    /// Adds an instance. If it is there already, the new role replaces the old one.
    pub(super) fn take_in(&mut self, instance: &Arc<ZoneInstance>, role: Role) {
        let place = Place {
            instance: Arc::clone(instance),
            role,
        };
        let found = self
            .places
            .binary_search_by(|held| held.instance.rank.cmp(&instance.rank));
        match found {
            Ok(at) => self.places[at] = place,
            Err(at) => self.places.insert(at, place),
        }
    }

    /// Removes the instances of a record.
    pub(super) fn let_go(&mut self, record: &str) {
        self.places
            .retain(|place| *place.instance.rank.record != *record);
    }

    /// Removes one instance.
    pub(super) fn dismiss(&mut self, instance: &ZoneInstance) {
        self.places
            .retain(|place| place.instance.rank != instance.rank);
    }

    /// Derives the other fields from the instances that are listed here now. The service `db` of the project `shop` and the
    /// instance `db` of the service `shop` claim the same name, which belongs to the service. If several instances claim a name,
    /// it belongs to the one that [`holder`] returns.
    pub(super) fn settle(&mut self, name: &str, when_none: WhenNoneUsable) {
        let has = |role: &Role| self.places.iter().any(|place| place.role == *role);
        let is_service = has(&Role::Service);
        let is_own = !is_service && has(&Role::Own);
        let owns = self.places.iter().filter(|place| place.role == Role::Own);
        // An instance is answered to its own name in every state.
        let own = is_own.then(|| holder(owns, name)).flatten();
        let meant: Vec<&Place> = match own {
            Some(own) => vec![own],
            None => {
                let places = self.places.iter();
                places.filter(|place| place.role != Role::Own).collect()
            }
        };
        let of = |standings: &[Standing]| -> Vec<Arc<ZoneInstance>> {
            let instances = meant.iter().map(|place| &place.instance);
            instances
                .filter(|instance| own.is_some() || standings.contains(&instance.standing))
                .cloned()
                .collect()
        };
        let mut answered = of(&[Standing::Usable]);
        let mut flagged = false;
        if answered.is_empty() && when_none == WhenNoneUsable::All {
            answered = of(&[Standing::Unreachable, Standing::Unhealthy]);
            flagged = !answered.is_empty();
        }
        answered.sort_by_key(|instance| (instance.group, instance.owner));
        let roles = || meant.iter().map(|place| &place.role);
        let has_addresses = roles().any(|role| !matches!(role, Role::Port(_)));
        let has_srv = roles().any(|role| matches!(role, Role::Service | Role::Port(_)));
        let port = roles()
            .filter_map(|role| match role {
                Role::Port(filter) => Some(filter.clone()),
                _ => None,
            })
            .next_back();
        self.kind = Kind {
            is_service,
            is_own,
            has_addresses,
            has_srv,
        };
        self.port = port;
        self.flagged = flagged;
        self.spread = (answered.len() > 1).then(|| Box::new(Spread::of(&answered)));
        self.answered = answered.into();
    }
}

/// The part that the instances of one node have in the answers.
#[derive(Debug, Clone, Copy)]
pub(in crate::dns) struct Share<'a> {
    pub(in crate::dns) group: u8,
    pub(in crate::dns) instances: &'a [Arc<ZoneInstance>],
    /// The addresses of these instances, each once.
    pub(in crate::dns) v4: &'a [Ipv4Addr],
    pub(in crate::dns) v6: &'a [Ipv6Addr],
}

/// The parts of several nodes in the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spread {
    parts: Box<[Part]>,
    v4: Box<[Ipv4Addr]>,
    v6: Box<[Ipv6Addr]>,
}

/// The part of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    group: u8,
    instances: Range<usize>,
    v4: Range<usize>,
    v6: Range<usize>,
}

impl Spread {
    fn of(answered: &[Arc<ZoneInstance>]) -> Self {
        let (mut parts, mut v4, mut v6) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for of_node in answered.chunk_by(|a, b| (a.group, a.owner) == (b.group, b.owner)) {
            let instances = start..start + of_node.len();
            start = instances.end;
            parts.push(Part {
                group: of_node.first().map_or(u8::MAX, |instance| instance.group),
                instances,
                v4: append(&mut v4, of_node.iter().flat_map(|i| i.v4.iter())),
                v6: append(&mut v6, of_node.iter().flat_map(|i| i.v6.iter())),
            });
        }
        Self {
            parts: parts.into(),
            v4: v4.into(),
            v6: v6.into(),
        }
    }
}

/// Appends addresses, each once. Returns the range that they have in `to`.
fn append<'a, A: Ord + Copy + 'a>(
    to: &mut Vec<A>,
    addresses: impl Iterator<Item = &'a A>,
) -> Range<usize> {
    let start = to.len();
    to.extend(addresses.copied().collect::<BTreeSet<A>>());
    start..to.len()
}

/// Returns the instance that has `name`. The instances in `owns` claim it as their own name.
fn holder<'a>(mut owns: impl Iterator<Item = &'a Place>, name: &str) -> Option<&'a Place> {
    let first = owns.next()?;
    let Some(second) = owns.next() else {
        return Some(first);
    };
    let label = name.split('.').next().unwrap_or_default();
    [first, second]
        .into_iter()
        .chain(owns)
        .min_by_key(|place| place.instance.claim(label))
}

impl ZoneInstance {
    /// The name that this instance has if its own name belongs to another instance or to a service. It contains the node's key.
    pub(super) fn qualified_name(&self) -> Option<String> {
        let (label, base) = self.name.split_once('.')?;
        let label = Label::parse(label).ok()?;
        Some(format!("{}.{base}", label.with_suffix(&self.key_text())))
    }

    fn key_text(&self) -> String {
        self.owner.id.short()
    }

    /// The position of this instance among those that claim `label`; the least one has it. An instance comes first if the label
    /// ends with the key of its node. Next come instances whose node's name begins the label, as in the labels that meshd makes.
    /// Otherwise the rank of the node decides.
    fn claim(&self, label: &str) -> (u8, netmap::Rank, &Rank) {
        let begins = |with: &str| {
            let rest = label.strip_prefix(with);
            rest.is_some_and(|rest| rest.starts_with('-'))
        };
        let ends = |with: &str| {
            let rest = label.strip_suffix(with);
            rest.is_some_and(|rest| rest.ends_with('-'))
        };
        let right = if ends(&self.key_text()) {
            0
        } else if begins(self.node.as_str()) {
            1
        } else {
            2
        };
        (right, self.owner, &self.rank)
    }
}
