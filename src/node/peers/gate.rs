//! How many conversations others may begin with this node, and what one peer may cost. Pure: the clock is an argument.
//!
//! A connection comes from a peer's address, and any program on that peer's machine can open one: until its sender has
//! proved who it is, it has a place of its own kind, for a short time. These places are few for each address, and the
//! newest connection takes the place of the oldest, so that connections which prove nothing keep no other out. One that is
//! proved moves to the places of the proven, one for each peer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::PublicKey;

/// How long a connection may take until its sender has proved who it is.
pub(super) const PROOF_LIMIT: Duration = Duration::from_secs(4);
/// Unproven connections at once at most.
const MAX_UNPROVEN: usize = 64;
/// Of these, from one peer's address.
const MAX_UNPROVEN_OF_ONE: usize = 4;
/// Conversations with peers that have proved who they are at once at most.
const MAX_PROVEN: usize = 64;

/// Connections from one peer's address: so many at once, and so many a second.
const CONNECTIONS: Rate = Rate::new(64, 32);
/// Conversations of one peer.
const CONVERSATIONS: Rate = Rate::new(20, 4);
/// Octets that one peer sends.
const OCTETS: Rate = Rate::new(8 * 1024 * 1024, 256 * 1024);
/// Signatures that are verified for one peer. One takes about 70 µs, so that a peer costs 2 % of a core at most.
const SIGNATURES: Rate = Rate::new(8192, 300);
/// Messages of one peer that bring something new: each is written to disk, and names are worked out again.
const WRITES: Rate = Rate::new(64, 5);
/// What a conversation waits at once at most. It ends before that by its own limit.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// So many at once after a pause, and so many in each second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u64,
    a_second: u64,
}

impl Rate {
    const fn new(burst: u64, a_second: u64) -> Self {
        Self { burst, a_second }
    }

    /// What `count` take, in time.
    fn time_of(self, count: u64) -> Duration {
        let nanoseconds = u128::from(count) * 1_000_000_000 / u128::from(self.a_second.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// What was spent of one rate, as the time at which all is there again (generic cell rate algorithm, ITU-T I.371).
#[derive(Debug, Clone, Copy)]
struct Spent(Instant);

impl Spent {
    /// Whether one more may be spent now; then it is.
    fn admit(&mut self, rate: Rate, now: Instant) -> bool {
        let full = self.0.max(now) + rate.time_of(1);
        let admitted = full.saturating_duration_since(now) <= rate.time_of(rate.burst);
        if admitted {
            self.0 = full;
        }
        admitted
    }

    /// Spends `count`, which may be more than there is. Gives how long to wait until the debt is paid.
    fn charge(&mut self, rate: Rate, count: u64, now: Instant) -> Duration {
        let most = rate.time_of(rate.burst) + MAX_WAIT;
        self.0 = (self.0.max(now) + rate.time_of(count).min(most)).min(now + most);
        self.0
            .saturating_duration_since(now)
            .saturating_sub(rate.time_of(rate.burst))
    }
}

/// What a message cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) octets: u64,
    pub(super) signatures: u64,
    pub(super) writes: u64,
}

#[derive(Debug)]
struct Guest {
    connections: Spent,
    conversations: Spent,
    octets: Spent,
    signatures: Spent,
    writes: Spent,
}

impl Guest {
    fn new(now: Instant) -> Self {
        let none = Spent(now);
        Self {
            connections: none,
            conversations: none,
            octets: none,
            signatures: none,
            writes: none,
        }
    }

    /// Whether nothing is known of it that matters.
    fn is_fresh(&self, now: Instant) -> bool {
        let all = [
            self.connections,
            self.conversations,
            self.octets,
            self.signatures,
            self.writes,
        ];
        all.iter().all(|spent| spent.0 <= now)
    }
}

/// A connection that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Admitted {
    /// Which one.
    pub(super) number: u64,
    /// The connection that loses its place to it, and ends.
    pub(super) ends: Option<u64>,
}

/// What becomes of a connection whose sender has proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proved {
    /// It goes on. The peer's conversation before, if there was one, ends.
    GoesOn { ends: Option<u64> },
    /// The peer begins too many, or too many peers speak.
    Refused,
}

/// The gate. It knows as many guests as there are members at most: nobody else is asked about.
#[derive(Debug, Default)]
pub(super) struct Gate {
    guests: BTreeMap<PublicKey, Guest>,
    /// By number, so in the order in which they came.
    unproven: BTreeMap<u64, PublicKey>,
    proven: BTreeMap<PublicKey, u64>,
    last: u64,
}

impl Gate {
    fn guest(&mut self, peer: PublicKey, now: Instant) -> &mut Guest {
        self.guests.entry(peer).or_insert_with(|| Guest::new(now))
    }

    /// Whether a connection from the address of `peer` may try to prove who it is; then [`Gate::handle_ended`] is owed.
    pub(super) fn admit(&mut self, peer: PublicKey, now: Instant) -> Option<Admitted> {
        if !self.guest(peer, now).connections.admit(CONNECTIONS, now) {
            return None;
        }
        let count = |of: &PublicKey| self.unproven.values().filter(|id| *id == of).count();
        let from = if count(&peer) >= MAX_UNPROVEN_OF_ONE {
            Some(peer)
        } else if self.unproven.len() >= MAX_UNPROVEN {
            // The address with most of them gives one up, and of two such the one that came first.
            let from_newest = self.unproven.values().rev();
            from_newest.max_by_key(|id| count(id)).copied()
        } else {
            None
        };
        let ends = from.and_then(|from| {
            let mut oldest = self.unproven.iter();
            oldest.find(|(_, id)| **id == from).map(|(n, _)| *n)
        });
        if let Some(ends) = ends {
            self.unproven.remove(&ends);
        }
        self.last += 1;
        self.unproven.insert(self.last, peer);
        Some(Admitted {
            number: self.last,
            ends,
        })
    }

    /// The sender of a connection has proved that it is `peer`.
    pub(super) fn prove(&mut self, number: u64, peer: PublicKey, now: Instant) -> Proved {
        self.unproven.remove(&number);
        let before = self.proven.get(&peer).copied();
        if before.is_none() && self.proven.len() >= MAX_PROVEN
            || !self
                .guest(peer, now)
                .conversations
                .admit(CONVERSATIONS, now)
        {
            return Proved::Refused;
        }
        self.proven.insert(peer, number);
        Proved::GoesOn { ends: before }
    }

    /// Whether a conversation with `peer` is under way that it began.
    #[cfg(test)]
    pub(super) fn has_proven(&self, peer: &PublicKey) -> bool {
        self.proven.contains_key(peer)
    }

    /// A connection ended.
    pub(super) fn handle_ended(&mut self, number: u64) {
        self.unproven.remove(&number);
        self.proven.retain(|_, held| *held != number);
    }

    /// A message of `peer` was received. Gives how long to wait before the next one is.
    pub(super) fn charge(&mut self, peer: PublicKey, cost: Cost, now: Instant) -> Duration {
        let guest = self.guest(peer, now);
        let octets = guest.octets.charge(OCTETS, cost.octets, now);
        let signatures = guest.signatures.charge(SIGNATURES, cost.signatures, now);
        let writes = guest.writes.charge(WRITES, cost.writes, now);
        octets.max(signatures).max(writes)
    }

    /// Forgets those that are no peers any more, once nothing is left to pay.
    pub(super) fn retain(&mut self, is_peer: impl Fn(&PublicKey) -> bool, now: Instant) {
        self.guests
            .retain(|id, guest| is_peer(id) || !guest.is_fresh(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn number(gate: &mut Gate, peer: u8, now: Instant) -> u64 {
        gate.admit(id(peer), now).expect("a place").number
    }

    #[test]
    fn silent_connections_from_a_nodes_address_keep_its_own_conversation_out_for_no_moment() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let silent: Vec<u64> = (0..10).map(|_| number(&mut gate, 1, now)).collect();
        let own = gate.admit(id(1), now).expect("a place");
        assert_eq!(own.ends, Some(silent[10 - MAX_UNPROVEN_OF_ONE]));
        assert_eq!(
            gate.prove(own.number, id(1), now),
            Proved::GoesOn { ends: None }
        );
        // What is silent afterwards does not end it.
        for _ in 0..10 {
            let admitted = gate.admit(id(1), now).expect("a place");
            assert_ne!(admitted.ends, Some(own.number));
        }
        assert_eq!(gate.proven.get(&id(1)), Some(&own.number));
    }

    #[test]
    fn a_peer_has_one_conversation_and_the_newest_is_the_one() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let first = number(&mut gate, 1, now);
        assert_eq!(gate.prove(first, id(1), now), Proved::GoesOn { ends: None });
        let second = number(&mut gate, 1, now);
        assert_eq!(
            gate.prove(second, id(1), now),
            Proved::GoesOn { ends: Some(first) }
        );
        gate.handle_ended(first);
        assert_eq!(gate.proven.get(&id(1)), Some(&second));
        gate.handle_ended(second);
        assert!(gate.proven.is_empty());
    }

    #[test]
    fn unproven_connections_from_many_addresses_take_nothing_from_one_that_has_few() {
        let now = Instant::now();
        let mut gate = Gate::default();
        for peer in 1..=200 {
            for _ in 0..MAX_UNPROVEN_OF_ONE {
                number(&mut gate, peer, now);
            }
        }
        assert_eq!(gate.unproven.len(), MAX_UNPROVEN);
        let honest = gate.admit(id(250), now).expect("a place");
        assert!(honest.ends.is_some());
        // Each further one ends one of those that have more.
        for peer in 201..230 {
            let admitted = gate.admit(id(peer), now).expect("a place");
            assert_ne!(admitted.ends, Some(honest.number));
        }
    }

    #[test]
    fn a_peer_that_asks_too_often_waits_and_keeps_nobody_else_out() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let mut begun = |peer, now| {
            let begun = (0..200).filter(|_| {
                let Some(admitted) = gate.admit(id(peer), now) else {
                    return false;
                };
                let goes_on = gate.prove(admitted.number, id(peer), now) != Proved::Refused;
                gate.handle_ended(admitted.number);
                goes_on
            });
            begun.count() as u64
        };
        assert_eq!(begun(1, now), CONVERSATIONS.burst);
        assert_eq!(begun(2, now), CONVERSATIONS.burst);
        let later = now + Duration::from_secs(2);
        assert_eq!(begun(1, later), 2 * CONVERSATIONS.a_second);
        gate.retain(|_| false, later);
        assert!(gate.guests.contains_key(&id(1)), "it has spent");
        gate.retain(|_| false, later + Duration::from_secs(60));
        assert!(gate.guests.is_empty());
    }

    #[test]
    fn what_a_peer_sends_is_bounded_in_signatures_octets_and_writes() {
        for (cost, rate) in [
            (
                Cost {
                    signatures: 256,
                    ..Cost::default()
                },
                SIGNATURES,
            ),
            (
                Cost {
                    octets: 64 * 1024,
                    ..Cost::default()
                },
                OCTETS,
            ),
            (
                Cost {
                    writes: 1,
                    ..Cost::default()
                },
                WRITES,
            ),
        ] {
            let unit = cost.signatures + cost.octets + cost.writes;
            let mut gate = Gate::default();
            let start = Instant::now();
            let (mut now, mut spent) = (start, 0);
            let minute = Duration::from_secs(60);
            while now < start + minute {
                now += gate.charge(id(1), cost, now);
                spent += unit;
            }
            let most = rate.burst + 61 * rate.a_second + 2 * unit;
            assert!(spent <= most, "{spent} of {most}");
            assert!(spent >= rate.burst + 50 * rate.a_second, "{spent}");
            // Another peer's are its own.
            assert_eq!(gate.charge(id(2), cost, now), Duration::ZERO);
        }
        // However large, a debt is paid some day.
        let (mut gate, now) = (Gate::default(), Instant::now());
        let cost = Cost {
            octets: u64::MAX,
            ..Cost::default()
        };
        for _ in 0..10 {
            assert!(gate.charge(id(1), cost, now) <= MAX_WAIT);
        }
    }
}
