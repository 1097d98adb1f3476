//! Gives each subject its class, and each address that of its subject.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;

use crate::model::Label;
use crate::policy::subject::{Offered, Subject};
use crate::policy::table::{Class, Classes, V6};

/// The largest class of subjects. No subject has [`Class::OUTSIDE`] or [`Class::NOBODY`] as its class.
const MAX_CLASS: usize = u16::MAX as usize - 1;

/// The maximum number of classes that subjects of one node add. A node has few kinds of instances, but a member that was broken into could
/// publish thousands, take all classes, and leave none for those of others.
pub const MAX_KINDS: usize = 1_024;

/// Everything about a subject that a selector looks at. The name of an instance's node is not part of it, because rules select an
/// instance by the tags of its node only.
#[derive(PartialEq, Eq, Hash)]
struct Facts<'s> {
    node: Option<&'s Label>,
    guest: Option<&'s Label>,
    tags: Vec<&'s Label>,
    services: &'s [Offered],
    /// The nodes that route to the network, if the subject is one.
    gateways: &'s [Label],
}

impl<'s> Facts<'s> {
    fn of(subject: &'s Subject) -> Self {
        let mut tags: Vec<&Label> = subject.tags.iter().collect();
        tags.sort_unstable();
        tags.dedup();
        Self {
            node: subject.is_node.then_some(&subject.node),
            guest: subject.guest.as_ref(),
            tags,
            services: &subject.services,
            gateways: subject
                .network
                .as_ref()
                .map_or(&[], |n| n.gateways.as_slice()),
        }
    }
}

/// The owner of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The subject with this number.
    One(usize),
    /// Several subjects of one node, which count as one subject at this address: the one with this number in [`Owners::merged`].
    Several(usize),
    /// Subjects of two nodes. Neither owns the address.
    Disputed,
}

/// The owners of all addresses.
pub(in crate::policy) struct Owners {
    of_address: HashMap<IpAddr, Owner, RandomState>,
    merged: Vec<Subject>,
}

impl Owners {
    pub(in crate::policy) fn of(subjects: &[Subject]) -> Self {
        let mut owners = Self {
            of_address: HashMap::default(),
            merged: Vec::new(),
        };
        for (number, subject) in subjects.iter().enumerate() {
            for address in &subject.addresses {
                let owner = match owners.of_address.get(address).copied() {
                    None => Owner::One(number),
                    Some(before) => owners.joined(before, number, subjects),
                };
                owners.of_address.insert(*address, owner);
            }
        }
        owners
    }

    /// The owner of an address that the subject with this number has too.
    fn joined(&mut self, owner: Owner, number: usize, subjects: &[Subject]) -> Owner {
        let Some(more) = subjects.get(number) else {
            return owner;
        };
        match owner {
            Owner::One(before) if before == number => owner,
            Owner::One(before) => match subjects.get(before) {
                Some(before) if before.node == more.node => {
                    let mut merged = before.clone();
                    merge(&mut merged, more);
                    self.merged.push(merged);
                    Owner::Several(self.merged.len() - 1)
                }
                _ => Owner::Disputed,
            },
            Owner::Several(merged) => match self.merged.get_mut(merged) {
                Some(before) if before.node == more.node => {
                    merge(before, more);
                    owner
                }
                _ => Owner::Disputed,
            },
            Owner::Disputed => owner,
        }
    }
}

fn merge(into: &mut Subject, more: &Subject) {
    into.is_node |= more.is_node;
    // Two guests never have one address, see `Ledger::netmap`.
    into.guest = into.guest.take().or_else(|| more.guest.clone());
    into.services.extend(more.services.iter().cloned());
    for tag in &more.tags {
        if !into.tags.contains(tag) {
            into.tags.push(tag.clone());
        }
    }
}

/// The classes of the subjects of a mesh. They do not depend on a policy.
pub(in crate::policy) struct Kinds<'s> {
    subjects: &'s [Subject],
    /// One subject of each class, in the order of the classes. The first one is of class 1.
    pub(in crate::policy) examples: Vec<&'s Subject>,
    /// The class of each subject.
    pub(in crate::policy) of_subject: Vec<Class>,
    of_merged: Vec<Class>,
}

impl<'s> Kinds<'s> {
    pub(in crate::policy) fn of(subjects: &'s [Subject], owners: &'s Owners) -> Self {
        let mut known: HashMap<Facts<'s>, Class, RandomState> = HashMap::default();
        let mut of_node: HashMap<&'s Label, usize, RandomState> = HashMap::default();
        let mut examples = Vec::new();
        let mut classify = |subject: &'s Subject| {
            let facts = Facts::of(subject);
            if let Some(class) = known.get(&facts) {
                return *class;
            }
            let class = match u16::try_from(examples.len() + 1) {
                Ok(number) if usize::from(number) <= MAX_CLASS => Class(number),
                _ => return Class::NOBODY,
            };
            // Subjects that tests of a policy make up have no addresses, and all of them are on one node.
            if !subject.addresses.is_empty() {
                let count = of_node.entry(&subject.node).or_default();
                if *count >= MAX_KINDS {
                    return Class::NOBODY;
                }
                *count += 1;
            }
            examples.push(subject);
            known.insert(facts, class);
            class
        };
        let of_subject = subjects.iter().map(&mut classify).collect();
        let of_merged = owners.merged.iter().map(&mut classify).collect();
        Self {
            subjects,
            examples,
            of_subject,
            of_merged,
        }
    }

    /// The classes of all addresses.
    pub(super) fn classes(&self, owners: &Owners) -> Classes {
        let mut classes = Classes::default();
        for (address, owner) in &owners.of_address {
            let class = match owner {
                Owner::One(number) => self.of_subject.get(*number),
                Owner::Several(number) => self.of_merged.get(*number),
                Owner::Disputed => None,
            };
            let class = class.copied().unwrap_or(Class::NOBODY);
            match address {
                IpAddr::V4(address) => classes.v4.insert(address.to_bits(), class),
                IpAddr::V6(address) => classes.v6.insert(V6::from(*address), class),
            };
        }
        classes.v4.shrink_to_fit();
        classes.v6.shrink_to_fit();
        let networks = self.subjects.iter().zip(&self.of_subject);
        let networks = networks.filter_map(|(subject, class)| {
            let network = subject.network.as_ref()?;
            Some((network.prefix, *class))
        });
        classes.networks = networks.collect();
        // The longest prefix that has an address counts.
        classes
            .networks
            .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        classes.beyond = self.beyond();
        classes
    }

    /// How many subjects of each node have no class, where any have none.
    fn beyond(&self) -> BTreeMap<Label, usize> {
        let mut beyond: BTreeMap<Label, usize> = BTreeMap::new();
        for (subject, class) in self.subjects.iter().zip(&self.of_subject) {
            if *class == Class::NOBODY {
                *beyond.entry(subject.node.clone()).or_default() += 1;
            }
        }
        beyond
    }
}
