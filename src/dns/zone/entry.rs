//! What a name of the zone has, and how it follows from the instances that stand under it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::WhenNoneUsable;
use crate::model::Label;
use crate::model::record::{Health, Port};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneInstance {
    /// Its name, relative to the domain.
    pub name: Arc<str>,
    /// Its node's name.
    pub node: Label,
    /// IPv4 addresses.
    pub v4: Box<[Ipv4Addr]>,
    /// IPv6 addresses.
    pub v6: Box<[Ipv6Addr]>,
    /// Its ports.
    pub ports: Box<[Port]>,
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
    /// Where it stands among others of a name.
    pub(super) rank: Rank,
}

/// The order of instances: those with a short name first, then as their records are called, then as they stand there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) of_project: bool,
    pub(super) record: Arc<str>,
    pub(super) place: u32,
}

/// What a name is to an instance that stands under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// Its own.
    Own,
    /// Its service's.
    Service,
    /// That of its service's part on its node.
    OnNode,
    /// That of one of its ports.
    Port(PortFilter),
}

/// An instance under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) instance: Arc<ZoneInstance>,
    pub(super) role: Role,
}

/// What a name has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Those answered, nearest first.
    pub answered: Box<[Arc<ZoneInstance>]>,
    /// Whether those answered are not usable, for want of any that are.
    pub flagged: bool,
    /// Of SRV: only ports of this name or number are meant; all if absent.
    pub port: Option<PortFilter>,
    /// Whether it answers addresses.
    pub has_addresses: bool,
    /// Whether it answers SRV.
    pub has_srv: bool,
    /// Addresses that are no instance's: a node's.
    pub addresses: Box<[IpAddr]>,
    /// Answered instead of the instances' addresses, if the service has one.
    pub service_address: Option<Ipv4Addr>,
    /// Whether it is the name of a service.
    pub is_service: bool,
    /// Whether SOA and NS are here.
    pub apex: bool,
    /// Whether its last instance left lately.
    pub(super) lingering: bool,
    /// How many names there are one label below.
    pub(super) below: u32,
    /// All instances, by rank.
    pub(super) places: Vec<Place>,
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

impl Entry {
    /// All instances that the name means, for an explanation.
    pub fn all(&self) -> impl Iterator<Item = &Arc<ZoneInstance>> {
        self.meant().map(|place| &place.instance)
    }

    /// Whether instances stand here, in whatever state.
    #[must_use]
    pub fn has_instances(&self) -> bool {
        !self.places.is_empty()
    }

    /// What the name means. The service `db` of the project `shop` and the instance `db` of the service `shop` have one
    /// name; it is the service's.
    fn meant(&self) -> impl Iterator<Item = &Place> {
        let is_service = self.places.iter().any(|place| place.role == Role::Service);
        let places = self.places.iter();
        places.filter(move |place| !is_service || place.role != Role::Own)
    }

    /// Whether nothing is here and nothing below.
    pub(super) fn is_bare(&self) -> bool {
        let kept = self.apex || self.lingering || self.below > 0;
        !kept && self.places.is_empty() && self.addresses.is_empty()
    }

    /// Takes an instance in, once: of several roles the last counts.
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

    /// Lets go of the instances of a record.
    pub(super) fn let_go(&mut self, record: &str) {
        self.places
            .retain(|place| *place.instance.rank.record != *record);
    }

    /// Works out what follows from the instances that are here now.
    pub(super) fn settle(&mut self, name: &str, when_none: WhenNoneUsable) {
        let of = |standings: &[Standing]| -> Vec<Arc<ZoneInstance>> {
            let all = self.all();
            all.filter(|instance| standings.contains(&instance.standing))
                .cloned()
                .collect()
        };
        // An instance asked for by its own name is meant, whatever its state.
        let places: Vec<&Place> = self.meant().collect();
        let meant = match places.as_slice() {
            [only] if *only.instance.name == *name => Some(vec![Arc::clone(&only.instance)]),
            _ => None,
        };
        let mut answered = meant.unwrap_or_else(|| of(&[Standing::Usable]));
        let mut flagged = false;
        if answered.is_empty() && when_none == WhenNoneUsable::All {
            answered = of(&[Standing::Unreachable, Standing::Unhealthy]);
            flagged = !answered.is_empty();
        }
        answered.sort_by_key(|instance| instance.group);
        let roles = || places.iter().map(|place| &place.role);
        let is_service = roles().any(|role| *role == Role::Service);
        let has_addresses = roles().any(|role| !matches!(role, Role::Port(_)));
        let has_srv = roles().any(|role| matches!(role, Role::Service | Role::Port(_)));
        let port = roles()
            .filter_map(|role| match role {
                Role::Port(filter) => Some(filter.clone()),
                _ => None,
            })
            .next_back();
        self.is_service = is_service;
        self.has_addresses = has_addresses;
        self.has_srv = has_srv;
        self.port = port;
        self.flagged = flagged;
        self.answered = answered.into();
    }
}
