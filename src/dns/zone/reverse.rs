//! The owners of addresses, for the reverse names.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use rpds::HashTrieMapSync;

use super::entry::{Rank, ZoneInstance};

/// Addresses with all their owners.
#[derive(Debug, Clone, Default)]
pub(super) struct Reverse {
    claims: HashTrieMapSync<IpAddr, Vec<Claim>>,
}

/// An owner of an address. The first one in this order gives the address its name.
#[derive(Debug, Clone)]
enum Claim {
    ServiceAddress(Arc<str>),
    Node(Arc<str>),
    Instance(Arc<ZoneInstance>),
}

impl Reverse {
    /// The name of the first claim to `address` that has a name. `name_of` returns the name of an instance.
    pub(super) fn find<'a>(
        &'a self,
        address: &IpAddr,
        name_of: impl Fn(&'a ZoneInstance) -> Option<Cow<'a, str>>,
    ) -> Option<Cow<'a, str>> {
        let mut claims = self.claims.get(address)?.iter();
        claims.find_map(|claim| match claim {
            Claim::ServiceAddress(name) | Claim::Node(name) => Some(Cow::Borrowed(name.as_ref())),
            Claim::Instance(instance) => name_of(instance),
        })
    }

    pub(super) fn give_to_node(&mut self, address: IpAddr, name: &str) {
        self.add(address, Claim::Node(name.into()));
    }

    pub(super) fn give_to_service(&mut self, address: IpAddr, name: &str) {
        self.add(address, Claim::ServiceAddress(name.into()));
    }

    /// An address of a node is its own, however many services are there.
    pub(super) fn give_to_instance(&mut self, address: IpAddr, instance: &Arc<ZoneInstance>) {
        let held = self.claims.get(&address);
        let of_node = |claim: &Claim| matches!(claim, Claim::Node(_));
        if !held.is_some_and(|claims| claims.iter().any(of_node)) {
            self.add(address, Claim::Instance(Arc::clone(instance)));
        }
    }

    pub(super) fn take_from_service(&mut self, address: IpAddr) {
        self.retain(address, |claim| !matches!(claim, Claim::ServiceAddress(_)));
    }

    pub(super) fn take_from_record(&mut self, address: IpAddr, record: &str) {
        self.retain(
            address,
            |claim| !matches!(claim, Claim::Instance(instance) if *instance.rank.record == *record),
        );
    }

    fn add(&mut self, address: IpAddr, claim: Claim) {
        match self.claims.get_mut(&address) {
            Some(claims) => {
                let at = claims.partition_point(|held| held.rank() <= claim.rank());
                claims.insert(at, claim);
            }
            None => self.claims.insert_mut(address, vec![claim]),
        }
    }

    fn retain(&mut self, address: IpAddr, keep: impl FnMut(&Claim) -> bool) {
        let Some(claims) = self.claims.get_mut(&address) else {
            return;
        };
        claims.retain(keep);
        if claims.is_empty() {
            self.claims.remove_mut(&address);
        }
    }
}

impl Claim {
    fn rank(&self) -> (u8, Option<&Rank>) {
        match self {
            Self::ServiceAddress(_) => (0, None),
            Self::Node(_) => (1, None),
            Self::Instance(instance) => (2, Some(&instance.rank)),
        }
    }
}
