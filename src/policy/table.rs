//! The compiled form of a policy.
//!
//! Each address has a *class*: subjects with equal facts have one class. The ports that are open from one class to another are in
//! *layers*. A layer holds some of the rules. In a layer, the sources that occur in the same rules have one *role*, and so have the
//! destinations that occur in the same rules with the same ports. A hash map has the ports for each pair of roles.
//!
//! One layer could hold all rules, but it could be very large: many rules for few subjects make many roles, and a rule for all subjects
//! then has an entry for each pair of them. So rules for all subjects are in layers of their own, in which there are few roles.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::ports::{Asked, PortSet};
use crate::model::Label;

/// A class: all subjects that no rule of any policy tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class(pub(super) u16);

impl Class {
    /// The class of an address that is of no subject.
    pub const OUTSIDE: Self = Self(0);

    /// The class of an address that subjects of two nodes have, and of subjects beyond the maximum number of classes. No packet passes
    /// from this class or to it, unless the table allows everything.
    pub const NOBODY: Self = Self(u16::MAX);

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The compiled form of a policy and of all subjects of a mesh. A table never changes: after a change of either, a new one is compiled.
#[derive(Debug, Clone, Default)]
pub struct Table {
    pub(super) base: Base,
    /// Whether every packet passes.
    pub(super) is_open: bool,
    pub(super) classes: Classes,
    // These are large, so `without` shares them with the table that it is called on.
    pub(super) layers: Arc<[Layer]>,
    pub(super) narrowing: Arc<Narrowing>,
    /// The sets of ports of the layers and of the narrowing.
    pub(super) sets: Arc<[PortSet]>,
}

/// The part of the verdict that does not depend on the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Base {
    /// Nothing passes.
    #[default]
    Closed,
    /// A packet passes if a layer opens its port.
    Rules,
    /// Everything passes that is not narrowed.
    Everything,
}

/// The classes of the addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Classes {
    pub(super) v4: HashMap<u32, Class, RandomState>,
    pub(super) v6: HashMap<V6, Class, RandomState>,
    /// The classes of networks outside the mesh, the longest prefix first.
    pub(super) networks: Vec<(IpNet, Class)>,
    /// How many subjects of each node have no class because there are too many.
    pub(super) beyond: BTreeMap<Label, usize>,
}

impl Classes {
    /// The class of an address that no node and no instance has.
    fn of_network(&self, address: IpAddr) -> Class {
        let mut networks = self.networks.iter();
        let network = networks.find(|(prefix, _)| prefix.contains(&address));
        network.map_or(Class::OUTSIDE, |(_, class)| *class)
    }
}

/// An IPv6 address as a key of a map, in as little memory as it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct V6([u8; 16]);

impl From<Ipv6Addr> for V6 {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets())
    }
}

impl Hash for V6 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.0));
    }
}

/// Some of the rules.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    /// The role of each class as a source; 0 if no rule of the layer has it.
    pub(super) from: Box<[u16]>,
    /// The role of each class as a destination; 0 if no rule of the layer has it.
    pub(super) to: Box<[u16]>,
    /// The number of the set of ports for each pair of roles, by [`Layer::key`].
    pub(super) pairs: HashMap<u32, u32, RandomState>,
}

impl Layer {
    pub(super) fn key(from: u16, to: u16) -> u32 {
        u32::from(from) << 16 | u32::from(to)
    }

    /// The number of the set of ports that the layer opens.
    fn set(&self, from: Class, to: Class) -> Option<u32> {
        let from = *self.from.get(from.index())?;
        let to = *self.to.get(to.index())?;
        if from == 0 || to == 0 {
            return None;
        }
        self.pairs.get(&Self::key(from, to)).copied()
    }
}

/// The packets that the owners of services refuse although the policy allows them (`mesh.allow`).
#[derive(Debug, Clone, Default)]
pub(super) struct Narrowing {
    /// The numbers of the refusals of each class that has any, as a range in `refusals`.
    pub(super) of_class: HashMap<Class, std::ops::Range<u32>, RandomState>,
    pub(super) refusals: Vec<Refusal>,
    /// Sets of classes, each in ascending order. A service has one for each of its selectors.
    pub(super) admitted: Vec<Box<[u16]>>,
}

/// The packets that one service refuses.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// The numbers of the sets of classes that are not refused.
    pub(super) admitted: Box<[u32]>,
    /// The number of the set of ports that all other classes do not reach.
    pub(super) refused: u32,
}

impl Narrowing {
    /// The refusals of the services of a class.
    fn refusals(&self, to: Class) -> &[Refusal] {
        let range = self.of_class.get(&to).cloned().unwrap_or_default();
        let range = range.start as usize..range.end as usize;
        self.refusals.get(range).unwrap_or_default()
    }

    fn admits(&self, refusal: &Refusal, from: Class) -> bool {
        let mut sets = refusal.admitted.iter();
        sets.any(|set| {
            let set = self.admitted.get(*set as usize);
            set.is_some_and(|set| set.binary_search(&from.0).is_ok())
        })
    }
}

impl Table {
    /// The table by which nothing passes.
    #[must_use]
    pub fn closed() -> Self {
        Self::default()
    }

    /// The same table, by which nothing passes to these addresses or from them.
    #[must_use]
    pub fn without(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut table = self.clone();
        for address in addresses {
            table.is_open = false;
            match address {
                IpAddr::V4(address) => {
                    table.classes.v4.insert(address.to_bits(), Class::NOBODY);
                }
                IpAddr::V6(address) => {
                    table.classes.v6.insert(V6::from(address), Class::NOBODY);
                }
            }
        }
        table
    }

    /// Whether something passes to an address that the table does not know.
    #[must_use]
    pub fn allows_unknown(&self) -> bool {
        self.base == Base::Everything
    }

    /// Whether every packet passes, so that nothing has to be looked up: there is no policy, or one that allows everything, and no
    /// `mesh.allow`.
    #[must_use]
    pub fn allows_everything(&self) -> bool {
        self.is_open
    }

    /// The class of an address.
    #[must_use]
    pub fn class(&self, address: IpAddr) -> Class {
        let class = match address {
            IpAddr::V4(address) => self.classes.v4.get(&address.to_bits()),
            IpAddr::V6(address) => self.classes.v6.get(&V6::from(address)),
        };
        class
            .copied()
            .unwrap_or_else(|| self.classes.of_network(address))
    }

    /// Whether a packet passes.
    #[must_use]
    pub fn allows(&self, from: Class, to: Class, asked: Asked) -> bool {
        let has = |set: u32| {
            let set = self.sets.get(set as usize);
            set.is_some_and(|set| set.contains(asked))
        };
        if self.is_open {
            return true;
        }
        let by_rules = match self.base {
            Base::Closed => false,
            Base::Rules => {
                let mut sets = self.layers.iter().filter_map(|layer| layer.set(from, to));
                sets.any(has)
            }
            Base::Everything => from != Class::NOBODY && to != Class::NOBODY,
        };
        let refuses =
            |refusal: &Refusal| has(refusal.refused) && !self.narrowing.admits(refusal, from);
        let is_narrowed = !self.narrowing.of_class.is_empty();
        by_rules && !(is_narrowed && self.narrowing.refusals(to).iter().any(refuses))
    }

    /// All ports that are open from one class to another.
    #[must_use]
    pub fn ports(&self, from: Class, to: Class) -> PortSet {
        self.ports_by_rules(from, to)
            .without(&self.refused_ports(from, to))
    }

    /// All ports that the policy opens, including those that the owner of the destination refuses.
    pub(super) fn ports_by_rules(&self, from: Class, to: Class) -> PortSet {
        match self.base {
            Base::Everything if self.is_open || (from != Class::NOBODY && to != Class::NOBODY) => {
                PortSet::everything()
            }
            Base::Rules => {
                let mut sets = self.layers.iter().filter_map(|layer| layer.set(from, to));
                self.union(&mut sets)
            }
            Base::Closed | Base::Everything => PortSet::nothing(),
        }
    }

    /// All ports that the owner of the destination refuses, including those that the policy does not open.
    pub(super) fn refused_ports(&self, from: Class, to: Class) -> PortSet {
        let refusals = self.narrowing.refusals(to).iter();
        let refusals = refusals.filter(|refusal| !self.narrowing.admits(refusal, from));
        self.union(&mut refusals.map(|refusal| refusal.refused))
    }

    /// Whether the owner of a class refuses anything.
    pub(super) fn is_narrowed(&self, class: Class) -> bool {
        self.narrowing.of_class.contains_key(&class)
    }

    /// The roles of a class in the layers of this table and in `more`: as a source, or as a destination.
    pub(super) fn roles(&self, more: &[Layer], class: Class, as_source: bool) -> Vec<u16> {
        let layers = self.layers.iter().chain(more);
        let roles = layers.map(|layer| if as_source { &layer.from } else { &layer.to });
        roles
            .map(|roles| roles.get(class.index()).copied().unwrap_or_default())
            .collect()
    }

    fn union(&self, numbers: &mut dyn Iterator<Item = u32>) -> PortSet {
        let mut union = PortSet::nothing();
        let sets = numbers.filter_map(|number| self.sets.get(number as usize));
        sets.for_each(|set| union.add(set));
        union
    }

    /// The pairs of classes among `classes` between which something passes, and what. For the rules of the firewall of one host,
    /// `classes` are those of the addresses of this host: all pairs of a large mesh are more than anybody has use for.
    #[must_use]
    pub fn pairs(&self, classes: &[Class]) -> Vec<(Class, Class, PortSet)> {
        let mut classes = classes.to_vec();
        classes.sort_unstable();
        classes.dedup();
        let pairs = classes
            .iter()
            .flat_map(|from| classes.iter().map(move |to| (*from, *to)));
        let pairs = pairs.map(|(from, to)| (from, to, self.ports(from, to)));
        pairs.filter(|(_, _, ports)| !ports.is_empty()).collect()
    }

    /// How many subjects of each node have no class, because the node has more than [`MAX_KINDS`](super::MAX_KINDS) kinds of them, or
    /// the mesh more than 65,534. Nothing passes to them or from them. Nodes without such subjects are left out.
    #[must_use]
    pub fn beyond(&self) -> &BTreeMap<Label, usize> {
        &self.classes.beyond
    }
}
