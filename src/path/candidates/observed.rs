//! The addresses from which others saw this node's packets come.
//!
//! Each echo of a peer has this address. If no peer sends one, this node queries STUN servers. An address is used if two witnesses report
//! it, because a single one may lie or be in the same network. If there is only one witness, its observation is used, but not in a signed
//! record. An address is in a record only after two witnesses agreed on it for a minute. A record changes at most once a minute. So no peer
//! and no NAT can make a node sign records without end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::address::is_routable;
use crate::protocol::path_messages::{Nat, NatBehaviour};
use crate::records::kinds::MAX_OBSERVED;

/// How long an observation is used if the witness does not repeat it.
const SEEN_FOR: Duration = Duration::from_secs(300);
/// How long an address must be agreed upon before it is in a record, and how long it stays there after that ends.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// The least time between two changes of the addresses in a record.
const CHANGE_INTERVAL: Duration = Duration::from_secs(60);
/// The maximum number of witnesses. A newer observation replaces the oldest one.
const MAX_WITNESSES: usize = 64;

/// The observations of the witnesses. `K` names a witness: a peer or a server.
#[derive(Debug, Clone)]
pub struct Observed<K> {
    seen: BTreeMap<K, Seen>,
    agreed: BTreeMap<SocketAddr, Agreed>,
    recorded: Vec<SocketAddr>,
    changed: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    address: SocketAddr,
    at: Instant,
}

/// Since when and until when two witnesses agreed on an address.
#[derive(Debug, Clone, Copy)]
struct Agreed {
    since: Instant,
    until: Instant,
}

impl<K> Default for Observed<K> {
    fn default() -> Self {
        Self {
            seen: BTreeMap::new(),
            agreed: BTreeMap::new(),
            recorded: Vec::new(),
            changed: None,
        }
    }
}

impl<K: Copy + Ord> Observed<K> {
    /// `witness` reported at `now` that this node's packets came from `address`.
    pub fn handle_seen(&mut self, witness: K, address: SocketAddr, now: Instant) {
        let is_late = self.seen.get(&witness).is_some_and(|seen| seen.at > now);
        if !is_routable(address.ip()) || address.port() == 0 || is_late {
            return;
        }
        if self.seen.len() >= MAX_WITNESSES && !self.seen.contains_key(&witness) {
            let oldest = self.seen.iter().min_by_key(|(_, seen)| seen.at);
            if let Some(oldest) = oldest.map(|(witness, _)| *witness) {
                self.seen.remove(&oldest);
            }
        }
        self.seen.insert(witness, Seen { address, at: now });
        self.handle_timeout(now);
    }

    /// The network has changed, so earlier observations are not valid any more.
    pub fn handle_network_change(&mut self) {
        self.seen.clear();
        self.agreed.clear();
    }

    /// Removes observations that are too old, and stores on which addresses witnesses agree now. This runs after each observation and
    /// each time that the record is updated.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.seen
            .retain(|_, seen| now.saturating_duration_since(seen.at) < SEEN_FOR);
        for (address, witnesses) in self.witnesses() {
            if witnesses >= 2 {
                let fresh = Agreed {
                    since: now,
                    until: now,
                };
                self.agreed.entry(address).or_insert(fresh).until = now;
            }
        }
        self.agreed
            .retain(|_, agreed| now.saturating_duration_since(agreed.until) < STABLE_AFTER);
    }

    /// The addresses to name to a peer besides those that are `known`, those with the most witnesses first. If no two witnesses agree
    /// on one of them, these are the addresses of all observations. Otherwise the observation of a single witness is used only if it is
    /// newer than theirs: a router that gives this node another port breaks the paths to most witnesses, so perhaps only a relay sees the
    /// new port. A witness in this node's own network sees an address that is known.
    #[must_use]
    pub fn addresses(&self, known: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut found = self.witnesses();
        found.retain(|(address, _)| !known.contains(address));
        let seen_at = |address: &SocketAddr| {
            let observations = self.seen.values().filter(|seen| seen.address == *address);
            observations.map(|seen| seen.at).max()
        };
        let agreed = found.iter().filter(|(_, witnesses)| *witnesses >= 2);
        let agreed = agreed.filter_map(|(address, _)| seen_at(address)).max();
        found.retain(|(address, witnesses)| *witnesses >= 2 || seen_at(address) > agreed);
        found.sort_by_key(|(address, witnesses)| (std::cmp::Reverse(*witnesses), *address));
        found.truncate(MAX_OBSERVED);
        found.into_iter().map(|(address, _)| address).collect()
    }

    /// Updates the addresses for the node record, and returns whether they have changed.
    pub fn refresh_record(&mut self, now: Instant) -> bool {
        self.handle_timeout(now);
        let stable = self.agreed.iter().filter(|(_, agreed)| {
            agreed.until.saturating_duration_since(agreed.since) >= STABLE_AFTER
        });
        let mut stable: Vec<SocketAddr> = stable.map(|(address, _)| *address).collect();
        stable.truncate(MAX_OBSERVED);
        let since = self.changed.map(|at| now.saturating_duration_since(at));
        if stable == self.recorded || since.is_some_and(|since| since < CHANGE_INTERVAL) {
            return false;
        }
        self.recorded = stable;
        self.changed = Some(now);
        true
    }

    /// The addresses for the node record.
    #[must_use]
    pub fn recorded(&self) -> &[SocketAddr] {
        &self.recorded
    }

    /// The behaviour of the NAT according to the observations, if this node's own addresses are `host` and the port of its tunnel is
    /// `port`. The filtering is not measured.
    #[must_use]
    pub fn nat(&self, host: &[std::net::IpAddr], port: u16) -> Nat {
        let outside = self.seen.values().map(|seen| seen.address);
        let mut outside = outside.filter(|seen| !host.contains(&seen.ip()));
        let Some(first) = outside.next() else {
            let has_observations = !self.seen.is_empty();
            return Nat {
                mapping: if has_observations {
                    NatBehaviour::Absent
                } else {
                    NatBehaviour::Unknown
                },
                ..Nat::default()
            };
        };
        let (mut same, mut differs, mut kept) = (0, false, first.port() == port);
        for seen in outside.filter(|seen| seen.is_ipv4() == first.is_ipv4()) {
            same += usize::from(seen == first);
            differs |= seen.ip() == first.ip() && seen.port() != first.port();
            kept &= seen.port() == port;
        }
        let mapping = match (differs, same) {
            (true, _) => NatBehaviour::AddressAndPortDependent,
            (false, 0) => NatBehaviour::Unknown,
            (false, _) => NatBehaviour::EndpointIndependent,
        };
        Nat {
            mapping,
            filtering: NatBehaviour::Unknown,
            ports_kept: Some(kept),
        }
    }

    /// The observations: the witness, the address and the time of each one.
    pub fn observations(&self) -> impl Iterator<Item = (&K, SocketAddr, Instant)> {
        let observations = self.seen.iter();
        observations.map(|(witness, seen)| (witness, seen.address, seen.at))
    }

    /// The addresses and how many witnesses saw each one.
    fn witnesses(&self) -> Vec<(SocketAddr, usize)> {
        let mut found: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for seen in self.seen.values() {
            *found.entry(seen.address).or_default() += 1;
        }
        found.into_iter().collect()
    }
}
