//! One seat a node: of two machines with the same keys, the one that is there keeps its stream.
//!
//! Each start of a node's program draws a random name, its instance. A second stream of a node that comes from the same
//! instance takes the first one's place: it is the same program, whose old connection broke. One from another instance
//! is the node after a restart, if the old stream is dead, which a ping tells; else it is a clone: a copied disk or a
//! machine restored twice. The clone is refused, and stays refused when the original is away for a moment. What makes it
//! believe that is the original's signature over its instance (see [`crate::protocol::control`]); an original of a version
//! that gives none keeps its seat all the same.
//!
//! Streams of early versions name no instance. All of them count as one instance whose name is empty, so the next such stream
//! takes the place of the one before. So a node always has at most one stream.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::End;
use crate::model::PublicKey;
use crate::protocol::control::{Refusal, copy_message};
use crate::records::envelope::{Purpose, Signature};

/// How long a stream that is alive may take to answer a ping.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Clones remembered at most; each had a member's keys.
const MAX_CLONES: usize = 1024;
/// Characters of an instance's name at most.
const MAX_INSTANCE: usize = 64;

/// All seats.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    seats: HashMap<PublicKey, Taken>,
    clones: VecDeque<Copied>,
    last: u64,
}

/// A machine known to be a copy.
#[derive(Debug)]
struct Copied {
    node: PublicKey,
    instance: String,
    /// The original's word.
    proof: Option<Signature>,
}

#[derive(Debug, Clone)]
struct Taken {
    number: u64,
    node: PublicKey,
    instance: String,
    orders: watch::Sender<Order>,
    /// Becomes true when another stream of the node takes the seat.
    lost: watch::Sender<bool>,
    heard: watch::Receiver<u64>,
    vouched: watch::Receiver<Option<Vouched>>,
    /// Whether the coordinator does not read from the stream at present.
    paused: watch::Receiver<bool>,
}

/// An instance that is another machine, by the original's word.
type Vouched = (String, Signature);

/// What a stream is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Go on.
    None,
    /// Ask the node whether it is there, and whether this instance is another machine.
    Vouch(String),
}

/// A stream's seat; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    node: PublicKey,
    number: u64,
    orders: watch::Receiver<Order>,
    lost: watch::Receiver<bool>,
    heard: watch::Sender<u64>,
    vouched: watch::Sender<Option<Vouched>>,
    paused: watch::Sender<bool>,
}

impl Seats {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is done under the lock that could leave the table half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats a stream of `node`, if it is not a clone of one that is there.
    pub(super) async fn take(&self, node: PublicKey, instance: &str) -> Result<Seat, End> {
        if instance.len() > MAX_INSTANCE {
            return Err(End::Refuse(
                Refusal::Protocol,
                format!("an instance has at most {MAX_INSTANCE} characters"),
            ));
        }
        loop {
            let mut other = {
                let mut table = self.table();
                let mut clones = table.clones.iter();
                if let Some(known) = clones.find(|c| c.node == node && c.instance == instance) {
                    return Err(End::Copy(known.proof));
                }
                match table.seats.get(&node) {
                    Some(taken) if taken.instance != instance => taken.clone(),
                    taken => {
                        if let Some(taken) = taken {
                            taken.lost.send_replace(true);
                        }
                        return Ok(self.seat(&mut table, node, instance));
                    }
                }
            };
            let answer = other.ask_about(instance).await;
            let mut table = self.table();
            // Somebody else may have come meanwhile; then all begins again.
            if table.seats.get(&node).map(|t| t.number) != Some(other.number) {
                continue;
            }
            if let Answer::Unknown = answer {
                return Err(End::Refuse(
                    Refusal::Busy,
                    "another stream of this node is open, and the coordinator has not processed all of its messages; try again"
                        .to_owned(),
                ));
            }
            if let Answer::Alive(proof) = answer {
                // An empty name is not remembered: the next stream without a name may come from the original.
                if !instance.is_empty() {
                    if table.clones.len() >= MAX_CLONES {
                        table.clones.pop_front();
                    }
                    table.clones.push_back(Copied {
                        node,
                        instance: instance.to_owned(),
                        proof,
                    });
                }
                tracing::warn!(
                    node = node.short(),
                    "a second machine with this node's keys is refused"
                );
                return Err(End::Copy(proof));
            }
            other.lost.send_replace(true);
            return Ok(self.seat(&mut table, node, instance));
        }
    }

    fn seat(&self, table: &mut Table, node: PublicKey, instance: &str) -> Seat {
        table.last += 1;
        let (order_sender, orders) = watch::channel(Order::None);
        let (lost_sender, lost) = watch::channel(false);
        let (heard, heard_receiver) = watch::channel(0);
        let (vouched, vouched_receiver) = watch::channel(None);
        let (paused, paused_receiver) = watch::channel(false);
        let taken = Taken {
            number: table.last,
            node,
            instance: instance.to_owned(),
            orders: order_sender,
            lost: lost_sender,
            heard: heard_receiver,
            vouched: vouched_receiver,
            paused: paused_receiver,
        };
        table.seats.insert(node, taken);
        Seat {
            seats: self.clone(),
            node,
            number: table.last,
            orders,
            lost,
            heard,
            vouched,
            paused,
        }
    }
}

/// What the node of a stream says to another instance of it.
enum Answer {
    /// Nothing.
    Silent,
    /// The coordinator does not read the node's answer now, since the node has used up its allowance.
    Unknown,
    /// It is there, and signs that the other is not it, if it can.
    Alive(Option<Signature>),
}

impl Taken {
    /// Asks the stream's node whether it is there, and for its word that `instance` is another machine.
    async fn ask_about(&mut self, instance: &str) -> Answer {
        self.heard.mark_unchanged();
        self.orders.send_replace(Order::Vouch(instance.to_owned()));
        if !matches!(
            timeout(ANSWER_LIMIT, self.heard.changed()).await,
            Ok(Ok(()))
        ) {
            return if *self.paused.borrow() {
                Answer::Unknown
            } else {
                Answer::Silent
            };
        }
        let is_meant = |vouched: &Option<Vouched>| {
            vouched.as_ref().is_some_and(|(other, signature)| {
                other == instance
                    && signature.holds(&self.node, Purpose::DuplicateProof, &copy_message(other))
            })
        };
        let vouched = timeout(ANSWER_LIMIT, self.vouched.wait_for(is_meant)).await;
        Answer::Alive(match vouched {
            Ok(Ok(vouched)) => vouched.as_ref().map(|(_, signature)| *signature),
            _ => None,
        })
    }
}

impl Seat {
    /// The node was heard.
    pub(super) fn handle_heard(&self) {
        self.heard
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The node says that `instance` is another machine.
    pub(super) fn handle_vouched(&self, instance: &str, signature: Signature) {
        if instance.len() <= MAX_INSTANCE {
            self.vouched
                .send_replace(Some((instance.to_owned(), signature)));
        }
    }

    /// Records whether the coordinator does not read from the stream at present.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused
            .send_if_modified(|was| std::mem::replace(was, paused) != paused);
    }

    /// Waits for the next order.
    pub(super) async fn order(&mut self) -> Order {
        match self.orders.changed().await {
            Ok(()) => self.orders.borrow_and_update().clone(),
            // Another stream has taken the seat, so this stream ends.
            Err(_) => std::future::pending().await,
        }
    }

    /// A receiver that becomes true when another stream of the node takes the seat.
    pub(super) fn lost(&self) -> watch::Receiver<bool> {
        self.lost.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.seats.table();
        if table
            .seats
            .get(&self.node)
            .is_some_and(|taken| taken.number == self.number)
        {
            table.seats.remove(&self.node);
        }
    }
}

/// What a copy is told.
pub(super) const COPY: &str = "another machine with this node's keys is connected and goes on; this one is a copy of it: run `meshctl leave` here and join with a new token";

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::SigningKey;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    /// A stream whose node answers, until it is told to leave; `signs` with its key, or another's.
    fn answering_with(mut seat: Seat, signs: Option<SigningKey>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let mut lost = seat.lost();
            let answer = async {
                while let Order::Vouch(instance) = seat.order().await {
                    seat.handle_heard();
                    if let Some(key) = &signs {
                        let message = copy_message(&instance);
                        let signature = Signature::make(key, Purpose::DuplicateProof, &message);
                        seat.handle_vouched(&instance, signature);
                    }
                }
            };
            tokio::select! {
                () = answer => {}
                _ = lost.wait_for(|lost| *lost) => {}
            }
        })
    }

    fn answering(seat: Seat) -> tokio::task::JoinHandle<()> {
        answering_with(seat, Some(key()))
    }

    fn is_clone(result: Result<Seat, End>) -> bool {
        matches!(result, Err(End::Copy(Some(proof))) if proof.holds(&key().public(), Purpose::DuplicateProof, &copy_message("b")))
    }

    async fn seated(seats: &Seats, instance: &str) -> Seat {
        let node = key().public();
        seats.take(node, instance).await.ok().expect("no clone")
    }

    #[tokio::test]
    async fn an_original_that_does_not_sign_keeps_its_seat_and_nothing_is_made_up() {
        let with = async |signs| {
            let seats = Seats::default();
            let original = answering_with(seated(&seats, "a").await, signs);
            let refused = seats.take(key().public(), "b").await;
            assert!(matches!(refused, Err(End::Copy(None))));
            assert!(!original.is_finished());
        };
        let stranger = SigningKey::from_seed(&[2; 32]);
        tokio::join!(with(None), with(Some(stranger)));
    }

    #[tokio::test]
    async fn a_clone_is_refused_and_the_original_goes_on() {
        let seats = Seats::default();
        let original = answering(seated(&seats, "a").await);
        assert!(is_clone(seats.take(key().public(), "b").await));
        assert!(!original.is_finished());
        // The original is away for a moment, and its copy does not get the seat.
        original.abort();
        let _ = original.await;
        assert!(is_clone(seats.take(key().public(), "b").await));
        // It was restarted.
        seated(&seats, "c").await;
    }

    #[tokio::test]
    async fn a_node_that_lost_its_connection_gets_its_seat_back() {
        let seats = Seats::default();
        let silent = seated(&seats, "a").await;
        let again = seated(&seats, "a").await;
        assert!(*silent.lost().borrow());
        drop(silent);
        // Restarted after a loss of power: the old stream hears nothing any more.
        let _restarted = seated(&seats, "b").await;
        drop(again);
        assert!(!seats.table().seats.is_empty());
    }

    #[tokio::test]
    async fn of_streams_without_an_instance_the_last_has_the_seat_and_no_copy_is_remembered() {
        let seats = Seats::default();
        let mut taken = vec![seated(&seats, "").await];
        for _ in 0..12 {
            taken.push(seated(&seats, "").await);
        }
        let lost = taken.iter().filter(|seat| *seat.lost().borrow()).count();
        assert_eq!(lost, 12);
        drop(taken);
        let original = answering(seated(&seats, "a").await);
        assert!(matches!(
            seats.take(key().public(), "").await,
            Err(End::Copy(_))
        ));
        original.abort();
        let _ = original.await;
        seated(&seats, "").await;
    }

    #[tokio::test]
    async fn a_stream_that_is_not_read_from_keeps_its_seat_until_it_is() {
        let seats = Seats::default();
        let original = seated(&seats, "a").await;
        original.set_paused(true);
        let refused = seats.take(key().public(), "b").await;
        assert!(matches!(refused, Err(End::Refuse(Refusal::Busy, _))));
        original.set_paused(false);
        seated(&seats, "b").await;
        assert!(*original.lost().borrow());
    }
}
