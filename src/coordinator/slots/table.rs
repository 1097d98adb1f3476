//! Decides which of the coordinator's connections are served, which ones wait, and which ones have to close. This module is
//! pure: the clock is an argument.
//!
//! A connection is *waiting* until the coordinator reads from it, and *opening* until its sender has proved its identity. Then
//! it is an *unverified* node's or a *member's*, or it is *joining* if its sender presents a token. Except for members, the coordinator
//! knows little more about a sender than its source. So each of these kinds has two bounds: one for all sources together, and
//! one for each source. The remaining connections are reserved for members.
//!
//! - If a source has the maximum number of opening connections, its further connections wait. They are served when slots become
//!   free, the newest first, because the sender of an older one may have given up. An opening connection that takes longer
//!   than [`GRACE`] has to close if another one of its source waits.
//! - If the bound for all sources is reached, the source with the most connections loses its oldest one. So a source that opens
//!   few connections is served, even if others open many.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::model::address::link_of;
use crate::model::rate::{Bucket, Rate};

/// How long an opening connection may keep others of its source waiting. It is several times the round trip to the most distant
/// node.
const GRACE: Duration = Duration::from_secs(2);
/// How long the connection of an unverified node is protected from being closed for that of another one.
const UNVERIFIED_GRACE: Duration = Duration::from_secs(5);
/// The rate at which connections of one source begin to be served. A connection that turns out to be a member's is not counted,
/// and neither is a join that is granted: the rate limits handshakes that lead to nothing.
const BEGUN: Rate = Rate {
    per_second: 100.0,
    burst: 512.0,
};
/// The shortest time between two attempts to serve the connections that wait.
const SOON: Duration = Duration::from_millis(1);
/// The maximum number of sources whose rate is stored.
const MAX_RATES: usize = 4096;
/// The maximum number of connections that were ordered to close and are still open.
const MAX_LEAVING: usize = 64;

/// The origin of a connection: an IPv4 address, or the first 64 bits of an IPv6 address, since one customer has at least such a
/// prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        Self(link_of(address))
    }
}

/// The maximum numbers of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// All connections together.
    pub all: usize,
    pub waiting: Bound,
    pub opening: Bound,
    pub joining: Bound,
    pub unverified: Bound,
}

/// The maximum number of connections of one kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub all: usize,
    pub per_source: usize,
}

impl Bounds {
    /// The bounds for `all` connections. More than half of these are reserved for members.
    pub(super) fn of(all: usize) -> Self {
        let bound = |all: usize, per_source: usize| Bound {
            all: all.max(1),
            per_source: per_source.min(all).max(1),
        };
        Self {
            all,
            waiting: bound(all / 8, 224),
            opening: bound(all / 8, 32),
            joining: bound(all / 8, 224),
            unverified: bound((all / 16).min(64), 8),
        }
    }
}

/// What a connection has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Wait,
    Serve,
    Leave,
}

/// All connections, with the queues of those that are not members'.
#[derive(Debug)]
pub(super) struct Table {
    bounds: Bounds,
    all: usize,
    last: u64,
    waiting: Queue,
    opening: Queue,
    joining: Queue,
    unverified: Queue,
    begun: HashMap<Source, Bucket>,
}

/// Identifies a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    source: Source,
    number: u64,
}

impl Table {
    pub(super) fn new(bounds: Bounds) -> Self {
        let queue = |bound| Queue {
            bound,
            by_source: HashMap::new(),
            count: 0,
        };
        Self {
            bounds,
            all: 0,
            last: 0,
            waiting: queue(bounds.waiting),
            opening: queue(bounds.opening),
            joining: queue(bounds.joining),
            unverified: queue(bounds.unverified),
            begun: HashMap::new(),
        }
    }

    /// A connection was accepted. Returns none if there is no slot for it.
    pub(super) fn handle_arrived(
        &mut self,
        source: Source,
        now: Instant,
    ) -> Option<(Number, watch::Receiver<Order>)> {
        if self.all >= self.bounds.all {
            let made_room = self.all < self.bounds.all + MAX_LEAVING
                && (self.waiting.end_of_greediest() || self.opening.end_of_greediest());
            if !made_room {
                return None;
            }
        }
        self.last += 1;
        let number = Number {
            source,
            number: self.last,
        };
        let begins = self.begin(source, now);
        let (orders, order) = watch::channel(if begins { Order::Serve } else { Order::Wait });
        let entry = Entry {
            number: number.number,
            since: now,
            orders,
        };
        if begins {
            self.opening.push(source, entry);
        } else {
            self.waiting.make_room_for(source);
            self.waiting.push(source, entry);
        }
        self.all += 1;
        Some((number, order))
    }

    /// Serves as many waiting connections of `source` as there is room for. Returns when to try again if some still wait.
    pub(super) fn poll(&mut self, source: Source, now: Instant) -> Option<Instant> {
        while self.waiting.of(source) > 0 {
            if !self.begin(source, now) {
                let is_over = self.opening.of(source) >= self.opening.bound.per_source;
                let oldest = self.opening.oldest(source).filter(|_| is_over);
                let bucket = self.begun.get(&source);
                let next = oldest.map(|since| since + GRACE);
                let next = next.max(bucket.map(|bucket| bucket.ready(1.0)));
                // The caller has to pause even if a rounded fraction of a token makes the time `now`.
                return next.map(|next| next.max(now) + SOON);
            }
            if let Some(newest) = self.waiting.pop_newest(source) {
                newest.orders.send_replace(Order::Serve);
                self.opening.push(
                    source,
                    Entry {
                        since: now,
                        ..newest
                    },
                );
            }
        }
        None
    }

    /// Whether one more connection of `source` may begin to be served. If so, room for it is made.
    fn begin(&mut self, source: Source, now: Instant) -> bool {
        if self.opening.of(source) >= self.opening.bound.per_source {
            let oldest = self.opening.oldest(source);
            if oldest.is_none_or(|since| now < since + GRACE) {
                return false;
            }
        }
        if self.begun.len() >= MAX_RATES && !self.begun.contains_key(&source) {
            self.begun.retain(|_, bucket| !bucket.is_full(now));
            if self.begun.len() >= MAX_RATES {
                self.forget_least_charged();
            }
        }
        let begun = self.begun.entry(source);
        let begins = begun.or_insert_with(|| Bucket::full(BEGUN, now)).take(now);
        if begins {
            self.opening.make_room_for(source);
        }
        begins
    }

    /// Forgets the rates of a quarter of the sources: of those that are full again first. So a sender with many sources cannot
    /// make the table forget the source that it has used most.
    fn forget_least_charged(&mut self) {
        let mut sources: Vec<(Instant, Source)> = self
            .begun
            .iter()
            .map(|(source, bucket)| (bucket.ready(BEGUN.burst), *source))
            .collect();
        sources.sort_unstable_by_key(|(full, _)| *full);
        for (_, source) in sources.iter().take(MAX_RATES / 4) {
            self.begun.remove(source);
        }
    }

    /// The sender has proved its identity and is not a member. Returns false if there is no slot for another unverified node.
    pub(super) fn handle_unverified(&mut self, number: Number, now: Instant) -> bool {
        let Number { source, number } = number;
        let is_full = self.unverified.count >= self.unverified.bound.all;
        let is_over = self.unverified.of(source) >= self.unverified.bound.per_source;
        let rests_until = if is_over {
            self.unverified.oldest(source)
        } else if is_full {
            self.unverified.oldest_of_greediest()
        } else {
            None
        };
        if rests_until.is_some_and(|since| now < since + UNVERIFIED_GRACE) {
            return false;
        }
        let Some(entry) = self.opening.remove(source, number) else {
            return false;
        };
        self.unverified.make_room_for(source);
        self.unverified.push(
            source,
            Entry {
                since: now,
                ..entry
            },
        );
        self.poll(source, now);
        true
    }

    /// The sender has proved that it is a member, so its connection is in no queue from now on.
    pub(super) fn handle_member(&mut self, number: Number, now: Instant) {
        let Number { source, number } = number;
        if self.opening.remove(source, number).is_some()
            || self.unverified.remove(source, number).is_some()
        {
            self.give_back(source);
            self.poll(source, now);
        }
    }

    /// The sender asks to join, and has a known token. Its connection no longer counts as opening: what is left to do depends on
    /// the disk, and not on the sender.
    pub(super) fn handle_joining(&mut self, number: Number, now: Instant) {
        let Number { source, number } = number;
        if let Some(entry) = self.opening.remove(source, number) {
            self.joining.make_room_for(source);
            self.joining.push(source, entry);
            self.poll(source, now);
        }
    }

    /// The sender's join was granted.
    pub(super) fn handle_joined(&mut self, number: Number) {
        self.give_back(number.source);
    }

    /// Cancels the charge of one connection of `source`.
    fn give_back(&mut self, source: Source) {
        if let Some(bucket) = self.begun.get_mut(&source) {
            bucket.give_back();
        }
    }

    /// A connection was closed.
    pub(super) fn handle_closed(&mut self, number: Number, now: Instant) {
        self.all = self.all.saturating_sub(1);
        let Number { source, number } = number;
        for queue in [
            &mut self.waiting,
            &mut self.opening,
            &mut self.joining,
            &mut self.unverified,
        ] {
            queue.remove(source, number);
        }
        self.poll(source, now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all == 0
    }
}

impl Number {
    pub(super) fn source(self) -> Source {
        self.source
    }
}

/// Connections of one kind, the oldest of each source first.
#[derive(Debug)]
struct Queue {
    bound: Bound,
    by_source: HashMap<Source, VecDeque<Entry>>,
    count: usize,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    orders: watch::Sender<Order>,
}

impl Queue {
    fn of(&self, source: Source) -> usize {
        self.by_source.get(&source).map_or(0, VecDeque::len)
    }

    fn oldest(&self, source: Source) -> Option<Instant> {
        Some(self.by_source.get(&source)?.front()?.since)
    }

    fn push(&mut self, source: Source, entry: Entry) {
        self.by_source.entry(source).or_default().push_back(entry);
        self.count += 1;
    }

    fn pop_newest(&mut self, source: Source) -> Option<Entry> {
        let newest = self.by_source.get_mut(&source)?.pop_back();
        self.note_removed(source, newest)
    }

    fn remove(&mut self, source: Source, number: u64) -> Option<Entry> {
        let entries = self.by_source.get_mut(&source)?;
        let at = entries.iter().position(|entry| entry.number == number)?;
        let removed = entries.remove(at);
        self.note_removed(source, removed)
    }

    fn note_removed(&mut self, source: Source, removed: Option<Entry>) -> Option<Entry> {
        if removed.is_some() {
            self.count -= 1;
        }
        if self.of(source) == 0 {
            self.by_source.remove(&source);
        }
        removed
    }

    /// Orders a connection to close if one more of `source` would exceed a bound.
    fn make_room_for(&mut self, source: Source) {
        if self.of(source) >= self.bound.per_source {
            self.end_oldest(source);
        } else if self.count >= self.bound.all {
            self.end_of_greediest();
        }
    }

    /// Orders the oldest connection of the source with the most to close. False if there is none.
    fn end_of_greediest(&mut self) -> bool {
        match self.greediest() {
            Some(source) => self.end_oldest(source),
            None => false,
        }
    }

    fn end_oldest(&mut self, source: Source) -> bool {
        let oldest = self
            .by_source
            .get_mut(&source)
            .and_then(VecDeque::pop_front);
        match self.note_removed(source, oldest) {
            Some(entry) => {
                entry.orders.send_replace(Order::Leave);
                true
            }
            None => false,
        }
    }

    fn oldest_of_greediest(&self) -> Option<Instant> {
        self.oldest(self.greediest()?)
    }

    /// The source with the most connections. Of several such sources it is the one whose oldest connection is the oldest.
    fn greediest(&self) -> Option<Source> {
        let oldest = |entries: &VecDeque<Entry>| entries.front().map(|entry| entry.since);
        self.by_source
            .iter()
            .max_by_key(|(_, entries)| (entries.len(), std::cmp::Reverse(oldest(entries))))
            .map(|(source, _)| *source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Connection = (Number, watch::Receiver<Order>);

    const SECOND: Duration = Duration::from_secs(1);

    fn source(n: u32) -> Source {
        Source::of(IpAddr::from(n.to_be_bytes()))
    }

    fn table() -> Table {
        Table::new(Bounds::of(8192))
    }

    fn arrive(table: &mut Table, from: u32, count: usize, now: Instant) -> Vec<Connection> {
        (0..count)
            .filter_map(|_| table.handle_arrived(source(from), now))
            .collect()
    }

    fn count(connections: &[Connection], order: Order) -> usize {
        let has = |(_, orders): &&Connection| *orders.borrow() == order;
        connections.iter().filter(has).count()
    }

    #[test]
    fn a_source_is_an_ipv4_address_however_it_is_written_and_a_64_bit_prefix_of_ipv6() {
        let of = |text: &str| Source::of(text.parse().expect("a literal"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("::ffff:192.0.2.1"), of("::ffff:192.0.2.2"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    }

    #[test]
    fn two_hundred_nodes_behind_one_address_are_all_served_in_turn() {
        let (mut table, now) = (table(), Instant::now());
        let nodes = arrive(&mut table, 1, 200, now);
        assert_eq!(nodes.len(), 200);
        assert_eq!(count(&nodes, Order::Serve), 32);
        assert_eq!(count(&nodes, Order::Wait), 168);
        let mut members = 0;
        while members < nodes.len() {
            let served: Vec<&Connection> = nodes
                .iter()
                .filter(|(number, orders)| {
                    *orders.borrow() == Order::Serve
                        && table.opening.by_source[&source(1)]
                            .iter()
                            .any(|entry| entry.number == number.number)
                })
                .collect();
            assert!(!served.is_empty() && served.len() <= 32);
            for (number, _) in &served {
                table.handle_member(*number, now);
            }
            members += served.len();
        }
        assert_eq!(count(&nodes, Order::Leave), 0);
        // Members' connections no longer count against their source.
        assert_eq!(count(&arrive(&mut table, 1, 32, now), Order::Serve), 32);
    }

    #[test]
    fn a_source_that_opens_and_says_nothing_has_32_places_and_224_that_wait() {
        let (mut table, start) = (table(), Instant::now());
        let silent = arrive(&mut table, 1, 10_000, start);
        assert_eq!(count(&silent, Order::Serve), 32);
        assert_eq!(count(&silent, Order::Wait), 224);
        assert!(silent.len() <= 8192 + MAX_LEAVING);
    }

    #[test]
    fn joins_that_wait_for_the_disk_keep_no_others_of_their_source_waiting() {
        let (mut table, now) = (table(), Instant::now());
        let joins = arrive(&mut table, 1, 200, now);
        // Each pass handles the connections that are served by then.
        for _ in 0..joins.len() {
            for (number, _) in &joins {
                table.handle_joining(*number, now);
            }
        }
        assert_eq!(count(&joins, Order::Serve), 200);
        assert_eq!(count(&arrive(&mut table, 1, 32, now), Order::Serve), 32);
        assert_eq!(count(&joins, Order::Serve), 200);
    }

    #[test]
    fn a_newcomer_is_served_before_older_ones_that_wait() {
        let (mut table, start) = (table(), Instant::now());
        arrive(&mut table, 1, 100, start);
        let honest = arrive(&mut table, 1, 1, start + SECOND);
        assert_eq!(count(&honest, Order::Wait), 1);
        let next = table.poll(source(1), start + SECOND).expect("it waits");
        assert_eq!(next, start + GRACE + SOON);
        table.poll(source(1), next);
        assert_eq!(count(&honest, Order::Serve), 1);
    }

    #[test]
    fn many_sources_do_not_keep_one_out_that_has_few() {
        let (mut table, start) = (table(), Instant::now());
        let honest = arrive(&mut table, 0, 1, start);
        for from in 1..200 {
            arrive(&mut table, from, 40, start);
        }
        assert_eq!(table.opening.count, 1024);
        assert_eq!(count(&honest, Order::Serve), 1);
        assert_eq!(count(&arrive(&mut table, 1000, 1, start), Order::Serve), 1);
        assert_eq!(count(&honest, Order::Serve), 1);
    }

    #[test]
    fn members_have_most_of_all_places_and_the_rest_too_if_nobody_else_comes() {
        let (mut table, now) = (Table::new(Bounds::of(64)), Instant::now());
        let mut members = Vec::new();
        for from in 0..64 {
            let [(number, orders)] = arrive(&mut table, from, 1, now)
                .try_into()
                .expect("there is room");
            table.handle_member(number, now);
            members.push((number, orders));
        }
        assert!(arrive(&mut table, 1, 1, now).is_empty());
        for (number, _) in members.drain(..48) {
            table.handle_closed(number, now);
        }
        let mut others = Vec::new();
        for from in 100..200 {
            others.extend(arrive(&mut table, from, 10, now));
            for (number, _) in others.extract_if(.., |(_, orders)| *orders.borrow() == Order::Leave)
            {
                table.handle_closed(number, now);
            }
        }
        assert!((8..=16).contains(&others.len()), "{}", others.len());
        assert_eq!(count(&members, Order::Leave), 0);
    }

    #[test]
    fn unverified_nodes_of_one_source_do_not_keep_others_out() {
        let (mut table, start) = (table(), Instant::now());
        let admit = |table: &mut Table, from: u32, now: Instant| {
            let (number, orders) = arrive(table, from, 1, now).remove(0);
            table
                .handle_unverified(number, now)
                .then_some((number, orders))
        };
        let mut unverified: Vec<Connection> = (0..20)
            .filter_map(|_| admit(&mut table, 1, start))
            .collect();
        assert_eq!(unverified.len(), 8);
        for from in 2..80 {
            unverified.extend(admit(&mut table, from, start));
        }
        assert_eq!(unverified.len(), 64);
        let later = start + UNVERIFIED_GRACE;
        assert!(admit(&mut table, 100, later).is_some());
        assert_eq!(count(&unverified, Order::Leave), 1);
        // A connection that was ordered to close is closed without effect on the others.
        let gone = unverified
            .iter()
            .find(|(_, orders)| *orders.borrow() == Order::Leave);
        let number = gone.expect("the greediest source's").0;
        assert_eq!(number.source(), source(1));
        table.handle_closed(number, later);
        assert_eq!(table.unverified.count, 64);
    }

    #[test]
    fn handshakes_for_nothing_are_limited_and_those_of_members_are_not() {
        let (mut table, now) = (table(), Instant::now());
        let begin = |table: &mut Table, is_member| {
            let [(number, orders)] = arrive(table, 1, 1, now).try_into().expect("there is room");
            let begun = *orders.borrow() == Order::Serve;
            if begun && is_member {
                table.handle_member(number, now);
            }
            table.handle_closed(number, now);
            begun
        };
        assert!((0..5000).all(|_| begin(&mut table, true)));
        let begun = (0..5000).filter(|_| begin(&mut table, false)).count();
        assert_eq!(begun, 512);
    }

    #[test]
    fn many_sources_do_not_make_the_table_forget_the_one_that_is_charged_most() {
        let (mut table, now) = (table(), Instant::now());
        let begun = |table: &mut Table, from: u32| {
            let connections = arrive(table, from, 1, now);
            for (number, _) in &connections {
                table.handle_closed(*number, now);
            }
            count(&connections, Order::Serve)
        };
        assert_eq!((0..600).map(|_| begun(&mut table, 1)).sum::<usize>(), 512);
        for from in 2..10_000 {
            begun(&mut table, from);
        }
        assert_eq!(begun(&mut table, 1), 0, "its rate is still exceeded");
    }

    #[test]
    fn what_is_remembered_of_sources_is_bounded() {
        let (mut table, now) = (table(), Instant::now());
        for from in 0..20_000 {
            for (number, _) in arrive(&mut table, from, 1, now) {
                table.handle_closed(number, now);
            }
        }
        assert!(table.begun.len() <= MAX_RATES);
        assert!(table.is_empty() && table.opening.by_source.is_empty());
    }
}
