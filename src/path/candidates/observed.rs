//! The addresses from which others saw this node's packets come.
//!
//! Each echo of a peer says so. Where no peer does, STUN servers are asked. An address counts if two witnesses agree on it, because one
//! alone may lie or be in the same network. If there is only one witness, its word counts, but not in a signed record. What a record
//! says must have been agreed for a minute, and changes at most once a minute, so that no peer and no NAT can make a node sign records
//! without end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::address::is_routable;
use crate::protocol::path_messages::{Nat, NatBehaviour};
use crate::records::kinds::MAX_OBSERVED;

/// How long what a witness saw is believed without a repetition.
const SEEN_FOR: Duration = Duration::from_secs(300);
/// How long an address must be agreed upon before it is in a record, and how long it stays there after that ends.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// The least time between two changes of the addresses in a record.
const CHANGE_INTERVAL: Duration = Duration::from_secs(60);
/// The maximum number of witnesses. The oldest word is forgotten for a newer one.
const MAX_WITNESSES: usize = 64;

/// What the witnesses saw. `K` names a witness: a peer or a server.
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
    /// `witness` said at `now` that it saw this node's packets come from `address`.
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

    /// The network has changed: what was seen before says nothing any more.
    pub fn handle_network_change(&mut self) {
        self.seen.clear();
        self.agreed.clear();
    }

    /// Forgets what is too old, and notes on which addresses witnesses agree now. Called with each word of a witness and each time
    /// that the record is brought up to date.
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
    /// on one of them, these are the words of all. Otherwise a single witness counts only if its word is newer than theirs: a router
    /// that gives this node another port breaks the paths to most witnesses, so perhaps only a relay sees the new port. A witness in
    /// this node's own network sees an address that is known.
    #[must_use]
    pub fn addresses(&self, known: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut found = self.witnesses();
        found.retain(|(address, _)| !known.contains(address));
        let seen_at = |address: &SocketAddr| {
            let words = self.seen.values().filter(|seen| seen.address == *address);
            words.map(|seen| seen.at).max()
        };
        let agreed = found.iter().filter(|(_, witnesses)| *witnesses >= 2);
        let agreed = agreed.filter_map(|(address, _)| seen_at(address)).max();
        found.retain(|(address, witnesses)| *witnesses >= 2 || seen_at(address) > agreed);
        found.sort_by_key(|(address, witnesses)| (std::cmp::Reverse(*witnesses), *address));
        found.truncate(MAX_OBSERVED);
        found.into_iter().map(|(address, _)| address).collect()
    }

    /// Brings the addresses for the node record up to date, and returns whether they have changed.
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

    /// What the words of the witnesses say about the NAT, if this node's own addresses are `host` and the port of its tunnel is
    /// `port`. Nobody has measured the filtering.
    #[must_use]
    pub fn nat(&self, host: &[std::net::IpAddr], port: u16) -> Nat {
        let outside = self.seen.values().map(|seen| seen.address);
        let mut outside = outside.filter(|seen| !host.contains(&seen.ip()));
        let Some(first) = outside.next() else {
            let has_words = !self.seen.is_empty();
            return Nat {
                mapping: if has_words {
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

    /// Who saw this node where, and when.
    pub fn words(&self) -> impl Iterator<Item = (&K, SocketAddr, Instant)> {
        let words = self.seen.iter();
        words.map(|(witness, seen)| (witness, seen.address, seen.at))
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
