//! Counts what was sent to each endpoint of a peer, and what came from there, so that an operator can see what was tried.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::model::PublicKey;

/// The maximum number of endpoints that are remembered for one peer. It is twice the number that a peer can publish.
const MAX_ENDPOINTS: usize = 32;

/// What happened at one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// The number of probes and handshakes sent there.
    pub probes: u64,
    /// The number of them after which a datagram came from there.
    pub answers: u64,
    /// When the last one was sent.
    pub sent: Option<Instant>,
    /// When the last authentic datagram came from there.
    pub heard: Option<Instant>,
    is_answered: bool,
}

impl Attempts {
    /// When the endpoint was last of use.
    fn last(&self) -> Option<Instant> {
        self.sent.max(self.heard)
    }
}

/// The endpoints of all peers. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct Tried {
    peers: BTreeMap<PublicKey, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    endpoints: BTreeMap<SocketAddr, Attempts>,
    /// The endpoint in use.
    current: Option<SocketAddr>,
    /// When the endpoint in use was chosen.
    since: Option<Instant>,
}

impl Tried {
    /// Removes the peers that are not known any more.
    pub fn retain(&mut self, is_known: impl Fn(&PublicKey) -> bool) {
        self.peers.retain(|id, _| is_known(id));
    }

    /// The tunnel sends to `endpoint`, and last received something of the peer at `heard`.
    pub fn handle_status(
        &mut self,
        id: PublicKey,
        endpoint: SocketAddr,
        heard: Option<Instant>,
        now: Instant,
    ) {
        let peer = self.peers.entry(id).or_default();
        if peer.current != Some(endpoint) {
            peer.current = Some(endpoint);
            peer.since = Some(now);
        }
        let Some(heard) = heard else { return };
        let attempts = peer.attempts(endpoint);
        if attempts.heard.is_some_and(|before| before >= heard) {
            return;
        }
        // A datagram that came before this endpoint was in use came from another one.
        let is_older = attempts.heard.is_none() && attempts.sent.is_some_and(|sent| sent > heard);
        if is_older {
            return;
        }
        attempts.heard = Some(heard);
        let is_new_answer = attempts.sent.is_some() && !attempts.is_answered;
        attempts.answers += u64::from(is_new_answer);
        attempts.is_answered = true;
    }

    /// A probe is sent to the endpoint in use, or a handshake to `endpoint`, which is used from now on.
    pub fn handle_sent(&mut self, id: PublicKey, endpoint: Option<SocketAddr>, now: Instant) {
        let peer = self.peers.entry(id).or_default();
        if endpoint.is_some() && peer.current != endpoint {
            peer.current = endpoint;
            peer.since = Some(now);
        }
        let Some(endpoint) = endpoint.or(peer.current) else {
            return;
        };
        let attempts = peer.attempts(endpoint);
        attempts.probes += 1;
        attempts.sent = Some(now);
        attempts.is_answered = false;
    }

    /// What happened at the endpoints of a peer.
    pub fn of(&self, id: &PublicKey) -> impl Iterator<Item = (SocketAddr, Attempts)> {
        let endpoints = self.peers.get(id).map(|peer| peer.endpoints.iter());
        endpoints.into_iter().flatten().map(|(at, of)| (*at, *of))
    }

    /// When the endpoint in use was chosen.
    #[must_use]
    pub fn since(&self, id: &PublicKey) -> Option<Instant> {
        self.peers.get(id)?.since
    }
}

impl Peer {
    /// The attempts at an endpoint. A new one takes the place of the one that was not of use for the longest time.
    fn attempts(&mut self, endpoint: SocketAddr) -> &mut Attempts {
        if self.endpoints.len() >= MAX_ENDPOINTS && !self.endpoints.contains_key(&endpoint) {
            let oldest = self.endpoints.iter().min_by_key(|(_, of)| of.last());
            if let Some(oldest) = oldest.map(|(at, _)| *at) {
                self.endpoints.remove(&oldest);
            }
        }
        self.endpoints.entry(endpoint).or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ID: PublicKey = PublicKey([1; 32]);

    fn endpoint(n: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], n))
    }

    fn at(tried: &Tried, n: u16) -> (u64, u64) {
        let found = tried.of(&ID).find(|(at, _)| *at == endpoint(n));
        found.map_or((0, 0), |(_, of)| (of.probes, of.answers))
    }

    #[test]
    fn probes_are_counted_where_they_were_sent_and_answered_at_most_once_each() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        tried.handle_status(ID, endpoint(1), None, start);
        tried.handle_sent(ID, None, second(1));
        tried.handle_sent(ID, None, second(2));
        assert_eq!(at(&tried, 1), (2, 0));
        tried.handle_sent(ID, Some(endpoint(2)), second(3));
        assert_eq!(tried.since(&ID), Some(second(3)));
        tried.handle_status(ID, endpoint(2), Some(second(4)), second(5));
        tried.handle_status(ID, endpoint(2), Some(second(5)), second(6));
        assert_eq!((at(&tried, 1), at(&tried, 2)), ((2, 0), (1, 1)));
        assert_eq!(tried.since(&ID), Some(second(3)));
        tried.retain(|_| false);
        assert_eq!(tried.of(&ID).count(), 0);
    }

    #[test]
    fn an_earlier_datagram_from_elsewhere_is_no_answer() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        let second = |n| start + Duration::from_secs(n);
        tried.handle_sent(ID, Some(endpoint(1)), second(5));
        tried.handle_status(ID, endpoint(1), Some(second(1)), second(6));
        assert_eq!(at(&tried, 1), (1, 0));
    }

    #[test]
    fn a_peer_that_moves_for_ever_does_not_fill_the_memory() {
        let (mut tried, start) = (Tried::default(), Instant::now());
        for n in 1..1000 {
            let now = start + Duration::from_secs(u64::from(n));
            tried.handle_status(ID, endpoint(n), Some(now), now);
        }
        assert_eq!(tried.of(&ID).count(), MAX_ENDPOINTS);
        assert!(tried.of(&ID).any(|(at, _)| at == endpoint(999)));
    }
}
