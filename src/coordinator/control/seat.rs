//! One seat a node: of two machines with the same keys, the one that is there keeps its stream.
//!
//! Each start of a node's program draws a random name, its instance. A second stream of a node that comes from the same
//! instance takes the first one's place: it is the same program, whose old connection broke. One from another instance
//! is the node after a restart, if the old stream is dead, which a ping tells; else it is a clone: a copied disk or a
//! machine restored twice. The clone is refused, and stays refused when the original is away for a moment.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::End;
use crate::model::PublicKey;
use crate::wire::control::Refusal;

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
    clones: VecDeque<(PublicKey, String)>,
    last: u64,
}

#[derive(Debug, Clone)]
struct Taken {
    number: u64,
    instance: String,
    orders: watch::Sender<Order>,
    heard: watch::Receiver<u64>,
}

/// What a stream is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Go on.
    None,
    /// Send a ping: somebody wants to know whether the node is there.
    Ping,
    /// End: the node has opened another stream.
    Leave,
}

/// A stream's seat; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    node: PublicKey,
    number: u64,
    orders: watch::Receiver<Order>,
    heard: watch::Sender<u64>,
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
        let known = (node, instance.to_owned());
        loop {
            let mut other = {
                let mut table = self.table();
                if table.clones.contains(&known) {
                    return Err(clone_refused());
                }
                match table.seats.get(&node) {
                    Some(taken) if taken.instance != instance => taken.clone(),
                    taken => {
                        if let Some(taken) = taken {
                            taken.orders.send_replace(Order::Leave);
                        }
                        return Ok(self.seat(&mut table, node, instance));
                    }
                }
            };
            let alive = other.answers().await;
            let mut table = self.table();
            // Somebody else may have come meanwhile; then all begins again.
            if table.seats.get(&node).map(|t| t.number) != Some(other.number) {
                continue;
            }
            if alive {
                if table.clones.len() >= MAX_CLONES {
                    table.clones.pop_front();
                }
                table.clones.push_back(known);
                tracing::warn!(
                    node = node.short(),
                    "a second machine with this node's keys is refused"
                );
                return Err(clone_refused());
            }
            other.orders.send_replace(Order::Leave);
            return Ok(self.seat(&mut table, node, instance));
        }
    }

    fn seat(&self, table: &mut Table, node: PublicKey, instance: &str) -> Seat {
        table.last += 1;
        let (order_sender, orders) = watch::channel(Order::None);
        let (heard, heard_receiver) = watch::channel(0);
        let taken = Taken {
            number: table.last,
            instance: instance.to_owned(),
            orders: order_sender,
            heard: heard_receiver,
        };
        table.seats.insert(node, taken);
        Seat {
            seats: self.clone(),
            node,
            number: table.last,
            orders,
            heard,
        }
    }
}

impl Taken {
    /// Whether the stream's node answers now.
    async fn answers(&mut self) -> bool {
        self.heard.mark_unchanged();
        self.orders.send_replace(Order::Ping);
        matches!(
            timeout(ANSWER_LIMIT, self.heard.changed()).await,
            Ok(Ok(()))
        )
    }
}

impl Seat {
    /// The node was heard.
    pub(super) fn handle_heard(&self) {
        self.heard
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The next order; for a stream whose seat is gone, to leave.
    pub(super) async fn order(&mut self) -> Order {
        match self.orders.changed().await {
            Ok(()) => *self.orders.borrow_and_update(),
            Err(_) => Order::Leave,
        }
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

fn clone_refused() -> End {
    End::Refuse(
        Refusal::Clone,
        "another machine with this node's keys is connected and goes on; this one is a copy of it: run `meshctl leave` here and join with a new token".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: PublicKey = PublicKey([1; 32]);

    /// A stream whose node answers pings, until it is told to leave.
    fn answering(mut seat: Seat) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            while seat.order().await == Order::Ping {
                seat.handle_heard();
            }
        })
    }

    fn is_clone(result: Result<Seat, End>) -> bool {
        matches!(result, Err(End::Refuse(Refusal::Clone, _)))
    }

    async fn seated(seats: &Seats, instance: &str) -> Seat {
        seats.take(NODE, instance).await.ok().expect("no clone")
    }

    #[tokio::test]
    async fn a_clone_is_refused_and_the_original_goes_on() {
        let seats = Seats::default();
        let original = answering(seated(&seats, "a").await);
        assert!(is_clone(seats.take(NODE, "b").await));
        assert!(!original.is_finished());
        // The original is away for a moment, and its copy does not get the seat.
        original.abort();
        let _ = original.await;
        assert!(is_clone(seats.take(NODE, "b").await));
        // It was restarted.
        seated(&seats, "c").await;
    }

    #[tokio::test]
    async fn a_node_that_lost_its_connection_gets_its_seat_back() {
        let seats = Seats::default();
        let mut silent = seated(&seats, "a").await;
        let again = seated(&seats, "a").await;
        assert_eq!(silent.order().await, Order::Leave);
        drop(silent);
        // Restarted after a loss of power: the old stream hears nothing any more.
        let _restarted = seated(&seats, "b").await;
        drop(again);
        assert!(!seats.table().seats.is_empty());
    }
}
