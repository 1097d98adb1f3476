//! The slots of connections. Each connection holds one from its first byte to its last, also after it became a stream. The rules
//! are in [`table`].

mod table;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use self::table::{Bounds, Number, Order, Source, Table};

/// How long the whole opening may take, from the accepted TCP connection to the `welcome`: TLS, HTTP, `hello` and `proof`. A
/// request that opens no stream has this time until its answer is sent. A node gives up earlier.
const OPENING_LIMIT: Duration = Duration::from_secs(15);
/// The longest time that a connection waits to be served. A node gives up a TLS handshake after 5 seconds.
const WAIT_LIMIT: Duration = Duration::from_secs(4);

/// All slots.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Notified when the last connection is closed.
    empty: Notify,
}

/// A connection's slot. It is free again when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Slot(Arc<Held>);

#[derive(Debug)]
struct Held {
    slots: Slots,
    /// The address of the sender.
    address: IpAddr,
    number: Number,
    orders: watch::Receiver<Order>,
    /// When the opening must be over.
    deadline: Instant,
}

impl Slots {
    /// Slots for `all` connections.
    pub(super) fn new(all: usize) -> Self {
        Self(Arc::new(Shared {
            table: Mutex::new(Table::new(Bounds::of(all))),
            empty: Notify::new(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic under the lock leaves at most a wrong count, so the coordinator continues to serve.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a slot for a connection from `address`, if one is free or can be freed.
    pub(super) fn arrive(&self, address: IpAddr) -> Option<Slot> {
        let now = Instant::now();
        let source = Source::of(address);
        let (number, orders) = self.table().handle_arrived(source, now.into_std())?;
        Some(Slot(Arc::new(Held {
            slots: self.clone(),
            address,
            number,
            orders,
            deadline: now + OPENING_LIMIT,
        })))
    }

    /// Waits until all connections are closed. The caller accepts no new ones.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.0.empty.notified();
            if self.table().is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

impl Slot {
    /// Waits for the connection's turn to be served. False if it has to close instead.
    pub(super) async fn served(&self) -> bool {
        let held = &self.0;
        let mut orders = held.orders.clone();
        let end = Instant::now() + WAIT_LIMIT;
        loop {
            match *orders.borrow_and_update() {
                Order::Serve => return true,
                Order::Leave => return false,
                Order::Wait => {}
            }
            let source = held.number.source();
            let next = held.slots.table().poll(source, std::time::Instant::now());
            let next = next.map_or(end, Instant::from_std).min(end);
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return false },
                () = sleep_until(next) => if next == end { return false },
            }
        }
    }

    /// Waits until the connection has to close so that another one gets its slot. A member's connection never has to.
    pub(super) async fn revoked(&self) {
        let mut orders = self.0.orders.clone();
        if orders
            .wait_for(|order| *order == Order::Leave)
            .await
            .is_err()
        {
            std::future::pending().await
        }
    }

    /// The address of the sender.
    pub(super) fn address(&self) -> IpAddr {
        self.0.address
    }

    /// When the opening must be over.
    pub(super) fn deadline(&self) -> Instant {
        self.0.deadline
    }

    /// The sender has proved its identity and is not a member. False if too many such senders are connected.
    pub(super) fn handle_unverified(&self) -> bool {
        let held = &self.0;
        let now = std::time::Instant::now();
        held.slots.table().handle_unverified(held.number, now)
    }

    /// The sender has proved that it is a member.
    pub(super) fn handle_member(&self) {
        let held = &self.0;
        let now = std::time::Instant::now();
        held.slots.table().handle_member(held.number, now);
    }

    /// The sender asks to join, and has a token that the coordinator knows.
    pub(super) fn handle_joining(&self) {
        let now = std::time::Instant::now();
        self.0.slots.table().handle_joining(self.0.number, now);
    }

    /// The sender's join was granted.
    pub(super) fn handle_joined(&self) {
        self.0.slots.table().handle_joined(self.0.number);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        table.handle_closed(self.number, std::time::Instant::now());
        if table.is_empty() {
            self.slots.0.empty.notify_waiters();
        }
    }
}
