//! The names that this node answers: the zone, and what the zone depends on besides the records. Pure.
//!
//! The zone is a snapshot that the resolver reads without a lock. [`Names`] computes a new snapshot and swaps it in: from
//! nothing when members or paths changed, and from the previous snapshot when only records of services changed. The latter
//! costs no more than the change.
//!
//! A name whose last instance left lingers for [`LINGER`]: until then the answer is that the name has no records, which
//! resolvers do not cache as long as the answer that the name does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::dns::{Replaced, WhenNoneUsable, Zone, ZoneInput};
use crate::model::PublicKey;
use crate::records::netmap::Netmap;
use crate::records::service_address::ServiceAddresses;

/// How long a name lingers after its last instance left.
pub(super) const LINGER: Duration = Duration::from_secs(60);

/// What never changes while the node runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamesConfig {
    /// This node.
    pub own: PublicKey,
    pub when_none_usable: WhenNoneUsable,
    /// The maximum number of addresses in an answer.
    pub max_addresses: usize,
}

/// What the zone is computed from.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamesInput<'a> {
    pub netmap: &'a Netmap,
    /// Nodes that do not answer.
    pub unreachable: &'a BTreeSet<PublicKey>,
    /// The distance group of each node whose distance was measured.
    pub groups: &'a BTreeMap<PublicKey, u8>,
}

/// The zone, and the state that one zone takes over from the previous one.
#[derive(Debug)]
pub(super) struct Names {
    config: NamesConfig,
    zone: Arc<ArcSwap<Zone>>,
    /// The names that linger, and since when.
    lingering: BTreeMap<String, Instant>,
    serial: u32,
    /// The service addresses that the kernel balances.
    balanced: BTreeSet<Ipv4Addr>,
    /// Which service has which service address on this node.
    service_addresses: Arc<ServiceAddresses>,
    /// Whether the file of the service addresses is out of date.
    is_unwritten: bool,
}

impl Names {
    /// Starts with an empty zone. `service_addresses` are those that this node assigned before.
    pub(super) fn new(config: NamesConfig, service_addresses: ServiceAddresses) -> Self {
        Self {
            config,
            zone: Arc::new(ArcSwap::from_pointee(Zone::default())),
            lingering: BTreeMap::new(),
            serial: 1,
            balanced: BTreeSet::new(),
            service_addresses: Arc::new(service_addresses),
            is_unwritten: false,
        }
    }

    /// The snapshot that the resolver reads.
    pub(super) fn zone(&self) -> &Arc<ArcSwap<Zone>> {
        &self.zone
    }

    pub(super) fn service_addresses(&self) -> &ServiceAddresses {
        &self.service_addresses
    }

    /// Computes the zone from nothing: for when members changed, or what is known of the paths to them. Returns whether the
    /// service addresses that the kernel is to balance changed.
    pub(super) fn rebuild(&mut self, input: &NamesInput<'_>, now: Instant) -> bool {
        let old = self.zone.load();
        let mut zone = Zone::build(&self.zone_input(input));
        for name in old.service_names() {
            if zone.find(name).is_none() {
                self.lingering.entry(name.to_owned()).or_insert(now);
            }
        }
        let changed = old.service_addresses() != zone.service_addresses();
        drop(old);
        self.lingering.retain(|name, since| {
            now.saturating_duration_since(*since) < LINGER && zone.find(name).is_none()
        });
        for name in self.lingering.keys() {
            zone.linger(name);
        }
        self.swap(zone);
        changed
    }

    /// Replaces the records of some services, at the cost of these services. Returns whether the service addresses that the
    /// kernel is to balance may have changed.
    pub(super) fn replace(
        &mut self,
        input: &NamesInput<'_>,
        replaced: &[Replaced<'_>],
        now: Instant,
    ) -> bool {
        let old = self.zone.load();
        let (mut zone, left) = old.replace(&self.zone_input(input), replaced);
        drop(old);
        let mut services = replaced.iter().flat_map(|s| [s.before, s.now]).flatten();
        let changed = services.any(|service| zone.is_balanced(service));
        let is_back = |name: &String, _: &mut Instant| zone.serves(name);
        let back: Vec<String> = self
            .lingering
            .extract_if(.., is_back)
            .map(|(name, _)| name)
            .collect();
        for name in back {
            zone.forget(&name);
        }
        for name in left {
            zone.linger(&name);
            self.lingering.insert(name, now);
        }
        self.swap(zone);
        changed
    }

    /// Sets the service addresses that the kernel balances by now. Returns whether they changed: then the zone has to be
    /// rebuilt.
    pub(super) fn set_balanced(&mut self, balanced: BTreeSet<Ipv4Addr>) -> bool {
        let changed = balanced != self.balanced;
        self.balanced = balanced;
        changed
    }

    /// Removes the names that have lingered long enough.
    pub(super) fn handle_time(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        let mut zone = Zone::clone(&self.zone.load());
        self.lingering.retain(|name, since| {
            let is_over = now.saturating_duration_since(*since) >= LINGER;
            if is_over {
                zone.forget(name);
            }
            !is_over
        });
        self.swap(zone);
    }

    /// When the next name has lingered long enough.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.lingering.values().min().map(|since| *since + LINGER)
    }

    /// The service addresses, if their file is out of date. They are not written at each change: other members can cause
    /// changes, and each write waits for the disk.
    pub(super) fn unwritten(&self) -> Option<&ServiceAddresses> {
        self.is_unwritten.then_some(&*self.service_addresses)
    }

    /// Handles that these service addresses were written to disk.
    pub(super) fn handle_written(&mut self, written: &ServiceAddresses) {
        self.is_unwritten &= *written != *self.service_addresses;
    }

    fn zone_input<'a>(&'a self, input: &NamesInput<'a>) -> ZoneInput<'a> {
        /// Names that linger are added after the zone is built: only then it is known which names came back.
        static NONE: BTreeSet<String> = BTreeSet::new();
        ZoneInput {
            netmap: input.netmap,
            own: self.config.own,
            unreachable: input.unreachable,
            groups: input.groups,
            when_none_usable: self.config.when_none_usable,
            lingering: &NONE,
            balanced: &self.balanced,
            held: &self.service_addresses,
            serial: self.serial,
            most_addresses: self.config.max_addresses,
        }
    }

    fn swap(&mut self, zone: Zone) {
        self.serial = self.serial.wrapping_add(1);
        let held = zone.held_addresses();
        if !Arc::ptr_eq(held, &self.service_addresses) {
            self.is_unwritten |= **held != *self.service_addresses;
            self.service_addresses = Arc::clone(held);
        }
        self.zone.store(Arc::new(zone));
    }
}

#[cfg(test)]
mod tests;
