//! The relays that lead to the peers whose paths are chosen here. Pure.
//!
//! A relay is a member that offers to relay in its echoes. It leads to a peer if the peer names it in its record, or else it may
//! lead there. Which relays are tried for a peer depends on the round trips of both ends ([`shared_relays`]): a peer that is
//! reached through a relay sends the round trips to its relays.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::{NodeAddress, Path, PublicKey};
use crate::path::link::Evidence;
use crate::path::links::Candidate;
use crate::path::relays::{MeasuredRelay, PeerRelay, shared_relays};
use crate::tunnel::{PathReport, PathSeen, UsableRelay};

/// The maximum number of relays by which a peer is looked for.
const MAX_RELAYS: usize = 3;
/// The least time between two messages of one peer about its relays that are used. A peer sends them more rarely.
const HINT_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two attempts to get another tag from a relay by which peers do not answer.
const DOUBT_INTERVAL: Duration = Duration::from_secs(5);
/// A relay of which no round trip was measured yet is taken to be so far away.
const UNMEASURED: Duration = Duration::from_secs(10);

/// The relays that this node may use.
#[derive(Debug)]
pub(super) struct Relays {
    /// Whether peers are reached through relays.
    is_used: bool,
    offers: BTreeMap<PublicKey, Offer>,
    choices: BTreeMap<PublicKey, Choice>,
    /// Whether the relays have changed since they were last taken.
    has_changed: bool,
    /// The relays that gave another tag, or may be reached elsewhere, since they were last taken.
    renewed: Vec<NodeAddress>,
}

/// A member that offers to relay.
#[derive(Debug)]
struct Offer {
    relay: UsableRelay,
    /// How much of its capacity it uses: 0 is nothing, 255 is all.
    load: u8,
    /// How many sessions with it have begun.
    sessions: u32,
    /// When its tag was last doubted.
    doubted: Option<Instant>,
}

/// What the relays for one peer were chosen by.
#[derive(Debug, Default)]
struct Choice {
    /// The round trips of the peer to its relays, as it said last.
    hints: Vec<(NodeAddress, Duration)>,
    hinted: Option<Instant>,
    /// The relays that were chosen.
    chosen: Vec<PublicKey>,
}

impl Relays {
    /// No relays yet. Peers are reached through relays if `is_used`.
    pub(super) fn new(is_used: bool) -> Self {
        Self {
            is_used,
            offers: BTreeMap::new(),
            choices: BTreeMap::new(),
            has_changed: false,
            renewed: Vec::new(),
        }
    }

    /// The paths of the member with this address, as the tunnel has them. Returns whether a new session with a relay has begun:
    /// a relay that was started again does not accept the tag of before.
    pub(super) fn handle_report(
        &mut self,
        id: &PublicKey,
        node: NodeAddress,
        report: &PathReport,
    ) -> bool {
        let before = self.offers.get_mut(id);
        let Some((relay, load)) = offer_of(node, report) else {
            self.remove(id);
            return false;
        };
        let Some(offer) = before else {
            self.has_changed = true;
            self.renewed.push(node);
            let offer = Offer {
                relay,
                load,
                sessions: report.sessions,
                doubted: None,
            };
            self.offers.insert(*id, offer);
            return false;
        };
        offer.load = load;
        if offer.relay != relay {
            self.has_changed = true;
            if (offer.relay.tag, offer.relay.endpoint) != (relay.tag, relay.endpoint) {
                self.renewed.push(node);
            }
            offer.relay = relay;
        }
        std::mem::replace(&mut offer.sessions, report.sessions) != report.sessions
    }

    /// A member relays no more, or is gone.
    pub(super) fn remove(&mut self, id: &PublicKey) {
        self.has_changed |= self.offers.remove(id).is_some();
    }

    /// Forgets what was known of the way to a peer.
    pub(super) fn forget_peer(&mut self, id: &PublicKey) {
        self.choices.remove(id);
        self.remove(id);
    }

    /// A peer has sent the round trips to the relays that it can use. Returns whether they are taken over.
    pub(super) fn handle_hints(
        &mut self,
        peer: &PublicKey,
        hints: Vec<(NodeAddress, Duration)>,
        now: Instant,
    ) -> bool {
        let choice = self.choices.entry(*peer).or_default();
        let since = choice.hinted.map(|at| now.saturating_duration_since(at));
        let counts = since.is_none_or(|since| since >= HINT_INTERVAL) && choice.hints != hints;
        if counts {
            choice.hints = hints;
            choice.hinted = Some(now);
        }
        counts
    }

    /// The relays and the round trips to them. `trip` returns that of one relay, if it is known.
    pub(super) fn measured(
        &self,
        trip: impl Fn(&PublicKey) -> Option<Duration>,
    ) -> Vec<MeasuredRelay<PublicKey>> {
        let offers = self.offers.iter();
        let measured = offers.map(|(id, offer)| MeasuredRelay {
            relay: *id,
            rtt: trip(id).unwrap_or(UNMEASURED),
            load: offer.load,
        });
        measured.collect()
    }

    /// The paths through the best relays to a peer, which names `named`.
    pub(super) fn candidates(
        &mut self,
        peer: &PublicKey,
        named: &[PublicKey],
        measured: &[MeasuredRelay<PublicKey>],
    ) -> Vec<Candidate> {
        if !self.is_used || self.offers.is_empty() {
            return Vec::new();
        }
        let choice = self.choices.entry(*peer).or_default();
        let hint_of = |relay: &PublicKey| {
            let node = self.offers.get(relay)?.relay.node;
            let mut hints = choice.hints.iter();
            hints.find(|(of, _)| *of == node).map(|(_, rtt)| *rtt)
        };
        let known = measured.iter().filter_map(|of| {
            let rtt = hint_of(&of.relay);
            let relay = of.relay;
            (rtt.is_some() || named.contains(&relay)).then_some(PeerRelay { relay, rtt })
        });
        let theirs: Vec<PeerRelay<PublicKey>> = known.collect();
        let mut relays = shared_relays(measured, &theirs, &choice.chosen);
        relays.retain(|relay| relay != peer);
        relays.truncate(MAX_RELAYS);
        let nodes = relays.iter().filter_map(|relay| self.offers.get(relay));
        let candidates = nodes.map(|offer| Candidate {
            path: Path::Relay(offer.relay.node),
            evidence: Evidence::Host,
        });
        let candidates = candidates.collect();
        choice.chosen = relays;
        candidates
    }

    /// The relays among `nodes` whose tags may not be valid any more, as far as they were not doubted lately.
    pub(super) fn doubt(&mut self, nodes: &[NodeAddress], now: Instant) -> Vec<PublicKey> {
        let mut doubted = Vec::new();
        for (id, offer) in &mut self.offers {
            let since = offer.doubted.map(|at| now.saturating_duration_since(at));
            let is_due = since.is_none_or(|since| since >= DOUBT_INTERVAL);
            if is_due && nodes.contains(&offer.relay.node) {
                offer.doubted = Some(now);
                doubted.push(*id);
            }
        }
        doubted
    }

    /// All relays that are used, if they have changed since the last call, and those of them that are to be tried again.
    pub(super) fn take(&mut self) -> Option<(Vec<UsableRelay>, Vec<NodeAddress>)> {
        let renewed = std::mem::take(&mut self.renewed);
        if !std::mem::take(&mut self.has_changed) {
            return None;
        }
        let offers = self.offers.values().filter(|_| self.is_used);
        Some((offers.map(|offer| offer.relay.clone()).collect(), renewed))
    }
}

/// What a member with this address offers as a relay by its direct paths, and its load.
fn offer_of(node: NodeAddress, report: &PathReport) -> Option<(UsableRelay, u8)> {
    let direct = || {
        let paths = report.paths.iter();
        paths.filter_map(|seen| Some((seen, seen.path.endpoint()?)))
    };
    // The path in use is preferred, so that paths that are equally good do not take turns.
    let rank = |seen: &PathSeen| {
        let is_primary = Some(seen.path) == report.primary;
        (is_primary, seen.answered.map(|trip| trip.at))
    };
    let offers = direct().filter_map(|(seen, endpoint)| Some((seen, endpoint, seen.offer?)));
    let (_, endpoint, offer) = offers.max_by_key(|(seen, ..)| rank(seen))?;
    let others = direct().map(|(_, other)| other);
    let mut others: Vec<_> = others.filter(|other| *other != endpoint).collect();
    // The order in the tunnel changes as paths make room for others.
    others.sort_unstable();
    let relay = UsableRelay {
        node,
        endpoint,
        others,
        tag: offer.tag,
    };
    Some((relay, offer.load))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::path_messages::RelayOffer;
    use crate::testbed::records::id;
    use crate::tunnel::RoundTrip;

    fn node(n: u8) -> NodeAddress {
        NodeAddress([10, 210, n, 1].into())
    }

    /// Eight relays.
    fn relays(now: Instant) -> Relays {
        let mut relays = Relays::new(true);
        for n in 2..10 {
            let trip = RoundTrip {
                at: now,
                took: Duration::from_millis(20),
            };
            let path = Path::Direct(([192, 0, 2, n], 51820).into());
            let offer = RelayOffer { load: 0, tag: 1 };
            let report = PathReport::of(path, trip, Some(offer));
            assert!(!relays.handle_report(&id(n), node(n), &report));
            assert!(!relays.handle_report(&id(n), node(n), &report));
        }
        relays
    }

    /// The relays for the first peer, if the round trip to each of them is that of `trip`.
    fn chosen(relays: &mut Relays, named: &[u8], trip: impl Fn(u8) -> u64) -> Vec<NodeAddress> {
        let of = |relay: &PublicKey| (2..10).find(|n| id(*n) == *relay);
        let measured = relays.measured(|relay| Some(Duration::from_millis(trip(of(relay)?))));
        let named: Vec<PublicKey> = named.iter().map(|n| id(*n)).collect();
        let candidates = relays.candidates(&id(1), &named, &measured).into_iter();
        let mut nodes: Vec<_> = candidates.filter_map(|of| of.path.relay()).collect();
        nodes.sort_unstable();
        nodes
    }

    #[test]
    fn round_trips_that_vary_do_not_change_the_relays_by_which_a_peer_is_looked_for() {
        let mut relays = relays(Instant::now());
        let first = chosen(&mut relays, &[], |n| 20 + u64::from(n));
        assert_eq!(first, [2, 3, 4].map(node));
        for round in 0..50 {
            let jitter = |n: u8| 20 + (round * 7 + u64::from(n) * 3) % 5;
            assert_eq!(chosen(&mut relays, &[], jitter), first);
        }
        let near = |n: u8| if n == 9 { 10 } else { 20 };
        assert!(chosen(&mut relays, &[], near).contains(&node(9)));
    }

    #[test]
    fn the_relays_are_those_with_the_smallest_sum_of_both_round_trips() {
        let now = Instant::now();
        let mut relays = relays(now);
        let ms = Duration::from_millis;
        let hints = vec![
            (node(9), ms(5)),
            (node(8), ms(90)),
            (node(7), ms(10)),
            (node(6), ms(20)),
        ];
        assert!(relays.handle_hints(&id(1), hints.clone(), now));
        let all_far = |_| 30;
        assert_eq!(chosen(&mut relays, &[5], all_far), [6, 7, 9].map(node));
        // The round trips of a peer are taken over at most once a second, and only if they have changed.
        let later = now + HINT_INTERVAL;
        assert!(!relays.handle_hints(&id(1), Vec::new(), now + ms(999)));
        assert!(!relays.handle_hints(&id(1), hints, later));
        assert!(relays.handle_hints(&id(1), vec![(node(8), ms(1))], later));
        let relays = chosen(&mut relays, &[5], all_far);
        assert!(
            [5, 8].iter().all(|n| relays.contains(&node(*n))),
            "{relays:?}"
        );
    }

    #[test]
    fn a_relay_is_doubted_once_in_five_seconds() {
        let start = Instant::now();
        let mut relays = relays(start);
        let times = (0..20).filter(|second| {
            let now = start + Duration::from_secs(*second);
            let doubted = relays.doubt(&[node(4), node(100)], now);
            assert!(doubted.is_empty() || doubted == [id(4)]);
            !doubted.is_empty()
        });
        assert_eq!(times.collect::<Vec<u64>>(), [0, 5, 10, 15]);
    }
}
