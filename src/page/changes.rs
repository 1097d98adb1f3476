//! Counts the changes of what the page shows. However many pages follow the changes, one of them at a time looks for them.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::model::{Label, PublicKey};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{PeerState, Status};
use crate::records::fingerprint::Fingerprint;

/// The shortest time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The maximum number of pages that follow the changes at once. Each has a connection of its own, and the API needs connections too.
const MAX_FOLLOWERS: usize = 128;

/// The changes of a state. A clone refers to the same state.
#[derive(Debug, Clone)]
pub struct Changes<T> {
    looked: Arc<Mutex<Looked<T>>>,
    followers: Arc<Semaphore>,
}

impl<T: PartialEq> Changes<T> {
    /// Counts from `first` on. If a program that starts again counts from a higher number, a page that was connected to it before learns
    /// that something has changed.
    #[must_use]
    pub fn new(first: u64) -> Self {
        Self {
            looked: Arc::new(Mutex::new(Looked {
                last: None,
                number: first,
            })),
            followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
        }
    }

    /// Takes the place of a page that follows the changes. The place is free again when it is dropped.
    ///
    /// # Errors
    /// Too many pages follow them.
    pub fn follow(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let place = Arc::clone(&self.followers).try_acquire_owned();
        place.map_err(|_| {
            let text = "too many pages follow the changes; ask for a view now and then";
            ApiError::new(ErrorCode::Busy, text)
        })
    }

    /// Returns the number of the last change. `look` returns the present state.
    ///
    /// # Errors
    /// `look` failed.
    pub async fn number<E>(&self, look: impl Future<Output = Result<T, E>>) -> Result<u64, E> {
        let mut looked = self.looked.lock().await;
        let now = Instant::now();
        if !looked.is_recent(now) {
            let state = look.await?;
            looked.handle(state, now);
        }
        Ok(looked.number)
    }
}

/// What was found at the last look. Pure.
#[derive(Debug)]
struct Looked<T> {
    last: Option<(Instant, T)>,
    number: u64,
}

impl<T: PartialEq> Looked<T> {
    fn is_recent(&self, now: Instant) -> bool {
        let last = self.last.as_ref();
        last.is_some_and(|(at, _)| now.saturating_duration_since(*at) < LOOK_INTERVAL)
    }

    fn handle(&mut self, state: T, now: Instant) {
        let before = self.last.as_ref().map(|(_, before)| before);
        if before.is_some_and(|before| *before != state) {
            self.number = self.number.saturating_add(1);
        }
        self.last = Some((now, state));
    }
}

/// What the page of a node shows, without the ages, numbers of bytes and round trips, which are always different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownByNode {
    records: Fingerprint,
    peers: Vec<(PublicKey, PeerState, Option<Label>)>,
    is_connected: bool,
    is_ready: bool,
    problems: Vec<String>,
}

impl ShownByNode {
    /// The state of a node with these records.
    #[must_use]
    pub fn of(status: &Status, records: Fingerprint) -> Self {
        let peers = status.peers.iter();
        let problems = status.problems.iter();
        let coordinator = status.coordinator.as_ref();
        Self {
            records,
            peers: peers
                .map(|peer| (peer.id, settled(peer.state), peer.via.clone()))
                .collect(),
            is_connected: coordinator.is_some_and(|coordinator| coordinator.connected),
            is_ready: status.why_not_ready().is_none(),
            problems: problems.map(|problem| problem.what.clone()).collect(),
        }
    }
}

/// A path rests whenever its peer has nothing to send. With many peers one of them always does.
fn settled(state: PeerState) -> PeerState {
    match state {
        PeerState::Idle => PeerState::Direct,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::page::tests::{peer, status};
    use crate::protocol::local::Problem;

    #[tokio::test]
    async fn of_ten_thousand_pages_that_follow_few_cost_a_look() {
        let changes = Changes::new(7);
        let looks = Arc::new(AtomicUsize::new(0));
        let pages = (0..10_000).map(|_| {
            let looks = Arc::clone(&looks);
            changes.number(async move {
                looks.fetch_add(1, Ordering::Relaxed);
                Ok::<_, ()>("a state")
            })
        });
        let numbers = futures_util::future::join_all(pages).await;
        assert!(numbers.into_iter().all(|number| number == Ok(7)));
        assert!(looks.load(Ordering::Relaxed) < 100);
    }

    #[test]
    fn some_pages_follow_and_the_others_are_told_that_there_are_too_many() {
        let changes = Changes::<u64>::new(7);
        let all: Vec<_> = (0..10_000).map(|_| changes.follow()).collect();
        assert_eq!(all.iter().flatten().count(), MAX_FOLLOWERS);
        let refused = all.into_iter().find_map(Result::err);
        assert_eq!(refused.map(|error| error.code), Some(ErrorCode::Busy));
        assert!(changes.follow().is_ok(), "all places are free again");
    }

    #[tokio::test]
    async fn a_look_that_failed_is_told_to_its_page_and_the_next_page_looks_again() {
        let changes = Changes::new(7);
        assert_eq!(changes.number(async { Err("away") }).await, Err("away"));
        assert_eq!(changes.number(async { Ok::<_, ()>(1) }).await, Ok(7));
    }

    #[test]
    fn each_other_state_is_a_change() {
        let mut looked = Looked {
            last: None,
            number: 7,
        };
        let start = Instant::now();
        let mut numbers = Vec::new();
        for state in ["a", "a", "b", "b", "a"] {
            looked.handle(state, start);
            numbers.push(looked.number);
        }
        assert_eq!(numbers, [7, 7, 8, 8, 9]);
        assert!(looked.is_recent(start));
        assert!(!looked.is_recent(start + LOOK_INTERVAL));
    }

    #[test]
    fn a_path_a_problem_and_a_record_are_changes_and_a_round_trip_is_none() {
        let before = status(vec![peer(1, "n2")]);
        let state = |status: &Status| ShownByNode::of(status, Fingerprint::default());
        let mut measured = before.clone();
        let of_peer = &mut measured.peers[0];
        of_peer.rtt_ms = Some(9.0);
        of_peer.last_heard_seconds_ago = Some(1.0);
        of_peer.rx_bytes += 1;
        of_peer.state = PeerState::Idle;
        assert_eq!(state(&measured), state(&before));

        let mut lost = before.clone();
        lost.peers[0].state = PeerState::Unreachable;
        assert_ne!(state(&lost), state(&before));
        let mut relayed = before.clone();
        relayed.peers[0].via = Some(Label::parse("n3").expect("a literal"));
        assert_ne!(state(&relayed), state(&before));
        let mut troubled = before.clone();
        troubled.problems.push(Problem {
            what: "names are not answered".to_owned(),
            why: String::new(),
            fix: String::new(),
        });
        assert_ne!(state(&troubled), state(&before));
        let other = format!("\"{}\"", "ab".repeat(16));
        let other = serde_json::from_str(&other).expect("a fingerprint");
        assert_ne!(ShownByNode::of(&before, other), state(&before));
    }
}
