//! The departures that this node publishes for peers that left while no coordinator was there, and the removals of guests that the
//! administrator made meanwhile.
//!
//! A node that left does not offer its departure again when the coordinator is back. So each peer that received one from
//! another node publishes it, now or when its stream opens. After a restart this node publishes all departures that it holds
//! once, since the disk does not tell which of them a coordinator has. Departures that the coordinator could not store are
//! published again after a pause.
//!
//! The administrator passes the removal of a guest to any node. It is published in the same way by each node that received it, but not
//! again after a restart: removals stay for good, and the other nodes have it as well.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::model::time::retry_pause;
use crate::records::kinds::{Guest, RecordKey};
use crate::records::ledger::Refused;
use crate::records::{Envelope, Ledger};

/// The pause after the coordinator could not store departures. It doubles with each further failure.
const MIN_PAUSE: Duration = Duration::from_secs(15);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The departures that are not published yet.
#[derive(Debug, Default)]
pub(super) struct Departures {
    unpublished: BTreeSet<RecordKey>,
    /// The number of the publication that contains them.
    offered: Option<u64>,
    /// How often in a row the coordinator could not store them.
    failures: u32,
    /// When they are published again that the coordinator could not store.
    again: Option<Instant>,
}

impl Departures {
    /// All departures that `ledger` holds are to be published.
    pub(super) fn held_in(ledger: &Ledger) -> Self {
        Self {
            unpublished: ledger.departures().cloned().collect(),
            ..Self::default()
        }
    }

    /// Records of a peer were accepted.
    pub(super) fn handle_from_peer(&mut self, changed: &[RecordKey]) {
        let is_passed_on = |key: &&RecordKey| {
            matches!(key, RecordKey::Departure(_)) || Guest::removed_by(key).is_some()
        };
        let new = changed.iter().filter(is_passed_on);
        self.unpublished.extend(new.cloned());
    }

    /// The departures that are to be published.
    pub(super) fn unpublished(&self, ledger: &Ledger) -> Vec<Envelope> {
        let held = |key: &RecordKey| ledger.entry(key).map(|entry| entry.envelope.clone());
        self.unpublished.iter().filter_map(held).collect()
    }

    /// The departures are published with the number `sequence`.
    pub(super) fn handle_offered(&mut self, sequence: u64) {
        self.offered = Some(sequence);
    }

    /// The coordinator has answered. `settled` is whether another offer of the records would change nothing.
    pub(super) fn handle_published(&mut self, sequence: u64, settled: bool, now: Instant) {
        if self.offered.take_if(|at| *at == sequence).is_none() {
            return;
        }
        if settled {
            self.unpublished.clear();
            self.failures = 0;
        } else {
            self.again = Some(now + retry_pause(MIN_PAUSE, self.failures, MAX_PAUSE));
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// Whether the departures are to be published again now.
    pub(super) fn poll_again(&mut self, now: Instant) -> bool {
        self.again.take_if(|again| *again <= now).is_some()
    }

    /// The stream closed, so the publication gets no answer.
    pub(super) fn handle_closed(&mut self) {
        self.offered = None;
        self.again = None;
    }
}

/// Whether another offer of a departure would change nothing: the coordinator stored it, or the departure is of a node that the
/// coordinator never admitted or has removed already. A failure of the coordinator's store is neither.
pub(in crate::node) fn is_settled(refused: &[String]) -> bool {
    let settled = [Refused::NotAMember, Refused::NodeRevoked].map(|refused| refused.to_string());
    refused.iter().all(|why| settled.contains(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PublicKey;

    #[test]
    fn only_departures_of_peers_are_published_and_until_they_are_acknowledged() {
        let mut departures = Departures::default();
        let departure = RecordKey::Departure(PublicKey([1; 32]));
        let others = [RecordKey::Node(PublicKey([2; 32])), departure.clone()];
        departures.handle_from_peer(&others);
        assert_eq!(departures.unpublished, [departure].into());
        departures.handle_offered(7);
        let now = Instant::now();
        departures.handle_published(6, true, now);
        departures.handle_closed();
        departures.handle_published(7, true, now);
        assert_eq!(departures.unpublished.len(), 1, "the answer was lost");
        departures.handle_offered(8);
        departures.handle_published(8, false, now);
        assert_eq!(departures.unpublished.len(), 1, "the disk was full");
        assert!(!departures.poll_again(now));
        assert!(departures.poll_again(now + MIN_PAUSE));
        assert!(!departures.poll_again(now + MAX_PAUSE), "they are offered");
        departures.handle_offered(9);
        departures.handle_published(9, true, now);
        assert!(departures.unpublished.is_empty());
    }

    #[test]
    fn a_departure_that_the_coordinator_could_not_store_is_published_again() {
        assert!(is_settled(&[]));
        assert!(is_settled(&[Refused::NotAMember.to_string()]));
        assert!(is_settled(&[Refused::NodeRevoked.to_string()]));
        assert!(!is_settled(&["the coordinator's store failed".to_owned()]));
    }
}
