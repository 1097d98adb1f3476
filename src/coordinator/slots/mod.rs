//! The places of connections. Each connection has one from its first byte to its last, as a stream too; the rules are in
//! [`table`].

mod table;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use self::table::{Bounds, Number, Order, Source, Table};

/// How long the whole opening may take, from the accepted TCP connection to the welcome: TLS, HTTP, hello and proof. For
/// a request that opens no stream it is the time until the answer is sent. A node gives up earlier.
const OPENING_LIMIT: Duration = Duration::from_secs(15);
/// How long a connection waits to be served at most. A node gives a TLS handshake 5 seconds.
const WAIT_LIMIT: Duration = Duration::from_secs(4);

/// All places.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Notified when the last connection is closed.
    empty: Notify,
}

/// A connection's place; given back when the last copy goes.
#[derive(Debug, Clone)]
pub(super) struct Slot(Arc<Held>);

#[derive(Debug)]
struct Held {
    slots: Slots,
    number: Number,
    orders: watch::Receiver<Order>,
    /// The end of the opening.
    deadline: Instant,
}

impl Slots {
    /// Places for `all` connections.
    pub(super) fn new(all: usize) -> Self {
        Self(Arc::new(Shared {
            table: Mutex::new(Table::new(Bounds::of(all))),
            empty: Notify::new(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic under the lock is a bug in a count; serving goes on.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `address`, if there is one.
    pub(super) fn arrive(&self, address: IpAddr) -> Option<Slot> {
        let now = Instant::now();
        let source = Source::of(address);
        let (number, orders) = self.table().handle_arrived(source, now.into_std())?;
        Some(Slot(Arc::new(Held {
            slots: self.clone(),
            number,
            orders,
            deadline: now + OPENING_LIMIT,
        })))
    }

    /// Waits until all connections are closed. None may arrive any more.
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
    /// Waits until the connection is to be served; false if it is not.
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

    /// Waits until the connection has to leave for another one. A member's never has to.
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

    /// When the opening must be over.
    pub(super) fn deadline(&self) -> Instant {
        self.0.deadline
    }

    /// The sender has proved an identity and is no member; false, if there are too many of these.
    pub(super) fn handle_stranger(&self) -> bool {
        let held = &self.0;
        let now = std::time::Instant::now();
        held.slots.table().handle_stranger(held.number, now)
    }

    /// The sender has proved that it is a member.
    pub(super) fn handle_member(&self) {
        let held = &self.0;
        let now = std::time::Instant::now();
        held.slots.table().handle_member(held.number, now);
    }

    /// The sender asks to join, and has a token.
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
