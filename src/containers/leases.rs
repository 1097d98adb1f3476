//! Instance addresses: leased from the node's block, from host 2 on, one for each container. Pure.
//!
//! A container keeps its address for as long as it exists, stopped or not. A released address is not leased again for a
//! minute, so that a client with an old DNS answer does not connect to another service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::inspect::ContainerId;

/// How long a released address is not leased again.
pub const REUSE_DELAY: Duration = Duration::from_secs(60);

/// The addresses of the instances on this node.
#[derive(Debug, Clone)]
pub struct Leases {
    block: Ipv4Net,
    held: BTreeMap<ContainerId, Lease>,
    released: BTreeMap<Ipv4Addr, Instant>,
    /// The addresses that are leased to no container, because others have them.
    reserved: BTreeSet<Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    address: Ipv4Addr,
    /// The time at which its container stopped.
    idle: Option<Instant>,
}

/// All addresses are leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {0} instance addresses of this node's block {1} are in use")]
pub struct Full(pub u32, pub Ipv4Net);

impl Leases {
    /// The leases from `block`, beginning with the `stored` ones. Stored addresses of another block are left out. If an
    /// address is stored for two containers, only the first has it.
    #[must_use]
    pub fn new(block: Ipv4Net, stored: BTreeMap<ContainerId, Ipv4Addr>, now: Instant) -> Self {
        let mut leases = Self {
            block,
            held: BTreeMap::new(),
            released: BTreeMap::new(),
            reserved: BTreeSet::new(),
        };
        for (id, address) in stored {
            if leases.is_instance_address(address) && !leases.is_held(address) {
                let idle = Some(now);
                leases.held.insert(id, Lease { address, idle });
            }
        }
        leases
    }

    /// The first and the last instance address of the block. The address after the last one is the block's broadcast
    /// address.
    fn range(&self) -> (u32, u32) {
        let first = u32::from(self.block.network()).saturating_add(2);
        (first, u32::from(self.block.broadcast()).saturating_sub(1))
    }

    fn is_instance_address(&self, address: Ipv4Addr) -> bool {
        let (first, last) = self.range();
        (first..=last).contains(&u32::from(address))
    }

    fn is_held(&self, address: Ipv4Addr) -> bool {
        self.held.values().any(|lease| lease.address == address)
    }

    /// Returns the address of `id`. A container without an address gets a new one.
    ///
    /// # Errors
    /// All addresses are in use.
    pub fn lease(&mut self, id: &ContainerId, now: Instant) -> Result<Ipv4Addr, Full> {
        if let Some(lease) = self.held.get_mut(id) {
            lease.idle = None;
            return Ok(lease.address);
        }
        self.released
            .retain(|_, since| now.saturating_duration_since(*since) < REUSE_DELAY);
        let (first, last) = self.range();
        let held: BTreeSet<Ipv4Addr> = self.held.values().map(|lease| lease.address).collect();
        let address = (first..=last)
            .map(Ipv4Addr::from)
            .find(|a| {
                let is_used = held.contains(a) || self.reserved.contains(a);
                !is_used && !self.released.contains_key(a)
            })
            .or_else(|| self.reclaim(now))
            .ok_or(Full(last.saturating_sub(first) + 1, self.block))?;
        let idle = None;
        self.held.insert(id.clone(), Lease { address, idle });
        Ok(address)
    }

    /// Leases none of these addresses to containers from now on, because others have them.
    pub fn reserve(&mut self, addresses: BTreeSet<Ipv4Addr>) {
        self.reserved = addresses;
    }

    /// Returns the address of the container that has been stopped for the longest time, if that is at least
    /// [`REUSE_DELAY`], and removes its lease.
    fn reclaim(&mut self, now: Instant) -> Option<Ipv4Addr> {
        let (id, lease) = self
            .held
            .iter()
            .filter_map(|(id, lease)| lease.idle.map(|since| (since, id, lease)))
            .filter(|(since, _, _)| now.saturating_duration_since(*since) >= REUSE_DELAY)
            .min_by_key(|(since, _, _)| *since)
            .map(|(_, id, lease)| (id.clone(), *lease))?;
        self.held.remove(&id);
        Some(lease.address)
    }

    /// Handles the stop of the container `id`. It keeps its address until another container needs it.
    pub fn idle(&mut self, id: &ContainerId, now: Instant) {
        if let Some(lease) = self.held.get_mut(id) {
            lease.idle.get_or_insert(now);
        }
    }

    /// Handles the removal of the container `id`.
    pub fn release(&mut self, id: &ContainerId, now: Instant) {
        if let Some(lease) = self.held.remove(id) {
            self.released
                .insert(lease.address, lease.idle.unwrap_or(now));
        }
    }

    /// Releases the addresses of containers that do not exist any more.
    pub fn retain(&mut self, existing: impl Fn(&ContainerId) -> bool, now: Instant) {
        let gone: Vec<ContainerId> = self
            .held
            .keys()
            .filter(|id| !existing(id))
            .cloned()
            .collect();
        for id in gone {
            self.release(&id, now);
        }
    }

    /// The leases as they are stored on disk.
    #[must_use]
    pub fn stored(&self) -> BTreeMap<ContainerId, Ipv4Addr> {
        self.held
            .iter()
            .map(|(id, lease)| (id.clone(), lease.address))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ContainerId {
        ContainerId::parse(&format!("{n:064x}")).expect("hexadecimal")
    }

    fn leases() -> (Leases, Instant) {
        let block = "10.210.1.0/24".parse().expect("a literal");
        let now = Instant::now();
        (Leases::new(block, BTreeMap::new(), now), now)
    }

    #[test]
    fn a_slash_24_has_253_addresses_and_the_next_lease_fails() {
        let (mut leases, now) = leases();
        let all: Vec<String> = (0..253)
            .map(|n| leases.lease(&id(n), now).expect("room").to_string())
            .collect();
        assert_eq!(all.first().map(String::as_str), Some("10.210.1.2"));
        assert_eq!(all.last().map(String::as_str), Some("10.210.1.254"));
        let refused = leases.lease(&id(253), now).expect_err("full");
        assert!(refused.to_string().contains("all 253"), "{refused}");
        assert_eq!(
            leases.lease(&id(7), now).map(|a| a.to_string()),
            Ok("10.210.1.9".into())
        );
    }

    #[test]
    fn an_address_that_something_else_has_is_leased_to_no_container() {
        let (mut leases, now) = leases();
        let reserved = |n: u8| Ipv4Addr::new(10, 210, 1, n);
        leases.reserve(BTreeSet::from([reserved(2), reserved(4)]));
        let leased = [0, 1].map(|n| leases.lease(&id(n), now).expect("room"));
        assert_eq!(leased, [reserved(3), reserved(5)]);
        leases.reserve(BTreeSet::new());
        assert_eq!(leases.lease(&id(2), now), Ok(reserved(2)));
    }

    #[test]
    fn a_released_address_is_not_leased_for_a_minute() {
        let (mut leases, now) = leases();
        let first = leases.lease(&id(1), now).expect("room");
        leases.release(&id(1), now);
        let second = leases
            .lease(&id(2), now + REUSE_DELAY - Duration::from_millis(1))
            .expect("room");
        assert_ne!(first, second);
        assert_eq!(leases.lease(&id(3), now + REUSE_DELAY), Ok(first));
    }

    #[test]
    fn a_stopped_container_keeps_its_address_until_others_need_it() {
        let (mut leases, now) = leases();
        for n in 0..253 {
            leases.lease(&id(n), now).expect("room");
        }
        leases.idle(&id(5), now);
        leases.idle(&id(4), now + Duration::from_secs(1));
        assert!(
            leases
                .lease(&id(300), now + Duration::from_secs(59))
                .is_err()
        );
        let taken = leases
            .lease(&id(300), now + Duration::from_secs(70))
            .expect("reclaimed");
        assert_eq!(taken.to_string(), "10.210.1.7");
        assert_eq!(
            leases.lease(&id(4), now).map(|a| a.to_string()),
            Ok("10.210.1.6".into())
        );
    }

    #[test]
    fn addresses_survive_a_restart_and_another_blocks_do_not() {
        let (mut leases, now) = leases();
        leases.lease(&id(1), now).expect("room");
        let second = leases.lease(&id(2), now).expect("room");
        let stored = leases.stored();
        let block = "10.210.1.0/24".parse().expect("a literal");
        let mut again = Leases::new(block, stored.clone(), now);
        again.retain(|known| *known == id(2), now);
        assert_eq!(again.lease(&id(2), now), Ok(second));
        assert_ne!(
            again.lease(&id(3), now).expect("room").to_string(),
            "10.210.1.2",
            "it was released just now"
        );
        let other = Leases::new("10.210.2.0/24".parse().expect("a literal"), stored, now);
        assert_eq!(other.stored(), BTreeMap::new());
    }
}
