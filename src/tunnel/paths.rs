//! The paths to one peer. Pure.
//!
//! The path by which a datagram of the peer arrived, and the path by which datagrams to the peer are sent, are two things. The
//! latter is the *primary* path. Who chooses it is the [`Choice`]:
//!
//! - `Roaming`: the primary path is the one by which the last authentic datagram arrived (WireGuard section 2.1). There is
//!   no other path.
//! - `Steered`: another part of the program chooses. A datagram that arrives by another path does not change the choice, except in
//!   two cases. Nothing ever arrived by any path: then the one by which something does is better. Or the datagram is from
//!   another port of the same address, and nothing arrived by the primary path for some time: then an address translator on
//!   the way has most probably given the peer another port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::path_entries::Entries;
use super::path_entry::Entry;
use super::path_wait::Wait;
use crate::model::path::{MAX_PATHS, Path};

/// How long nothing may arrive by the primary path, while packets are sent by it, before that is reported.
pub(super) const LEAST_PATIENCE: Duration = Duration::from_millis(400);
/// The least time between two reports that datagrams arrive by another path than the primary one.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two reports about paths that were not known before: a peer that sends from many ports must not keep
/// this node busy.
const NEW_INTERVAL: Duration = Duration::from_millis(20);
/// A move to a faster path waits for a gap between packets, but not for longer than this.
pub(super) const LONGEST_MOVE: Duration = Duration::from_millis(500);

/// Who chooses the primary path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Roaming,
    Steered,
}

/// What follows from a received datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Received {
    /// The route from the source of the path is to be looked up.
    pub(super) wants_route: bool,
    /// The part that chooses the path wants to know.
    pub(super) is_news: bool,
}

/// A change of the primary path that waits for a gap between packets.
#[derive(Debug, Clone, Copy)]
struct Move {
    to: Path,
    gap: Duration,
    until: Instant,
}

/// The paths to a peer, at most [`MAX_PATHS`].
#[derive(Debug, Clone)]
pub(super) struct PathTable {
    entries: Entries,
    pub(super) choice: Choice,
    next: Option<Move>,
    /// Whether an initiation was sent since the last authentic datagram.
    unanswered: bool,
    /// The wait for a datagram by the primary path.
    pub(super) wait: Wait,
    pub(super) reports: Reports,
}

/// What is reported to the part of the program that chooses the path.
#[derive(Debug, Clone)]
pub(super) struct Reports {
    /// How long a packet waits before the silence of the primary path is reported. It is not less than [`LEAST_PATIENCE`].
    pub(super) patience: Duration,
    /// Whether the next authentic datagram is reported.
    pub(super) heard: bool,
    /// Whether the next packet of the device is reported.
    pub(super) sent: bool,
    /// When a path that was not known before was last reported.
    new: Option<Instant>,
}

impl Reports {
    /// Whether it is to be reported that a datagram arrived by this path, which is not the primary one.
    fn is_due(&mut self, entry: &mut Entry, now: Instant) -> bool {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let is_due = match since(entry.reported) {
            Some(since) => since >= REPORT_INTERVAL,
            None => since(self.new).is_none_or(|since| since >= NEW_INTERVAL),
        };
        if is_due {
            if entry.reported.is_none() {
                self.new = Some(now);
            }
            entry.reported = Some(now);
        }
        is_due
    }
}

impl PathTable {
    /// A table with the path to `endpoint`, whose primary path follows the peer.
    pub(super) fn new(endpoint: Option<Endpoint>) -> Self {
        Self {
            entries: Entries::new(endpoint),
            choice: Choice::Roaming,
            next: None,
            unanswered: false,
            wait: Wait::default(),
            reports: Reports {
                patience: LEAST_PATIENCE,
                heard: false,
                sent: false,
                new: None,
            },
        }
    }

    /// The paths as the successor of the peer has them: nothing was sent to it yet.
    pub(super) fn for_successor(&self) -> Self {
        let mut table = self.clone();
        table.wait = Wait::default();
        table.unanswered = false;
        for entry in table.entries_mut() {
            // The routes are looked up for the successor as well.
            entry.forget_route();
        }
        table
    }

    /// Who chooses the primary path from now on.
    pub(super) fn set_choice(&mut self, choice: Choice) {
        if self.choice != choice {
            self.choice = choice;
            self.next = None;
            if choice == Choice::Roaming {
                self.entries.forget_others();
            }
        }
    }

    /// Where datagrams are sent.
    #[inline]
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        Some(self.entries.primary()?.endpoint)
    }

    /// The primary path.
    pub(super) fn primary(&self) -> Option<Path> {
        self.endpoint().map(|endpoint| endpoint.path())
    }

    /// Where datagrams by `path` are sent.
    pub(super) fn endpoint_of(&self, path: &Path) -> Option<Endpoint> {
        Some(self.entries.of(path)?.endpoint)
    }

    /// What is known of a path.
    pub(super) fn entry_mut(&mut self, path: &Path) -> Option<&mut Entry> {
        self.entries.of_mut(path)
    }

    pub(super) fn entries(&self) -> &[Entry] {
        self.entries.all()
    }

    pub(super) fn entries_mut(&mut self) -> &mut [Entry] {
        self.entries.all_mut()
    }

    /// The size in bytes of the largest packet that fits through the primary path. The device's MTU applies as well.
    #[inline]
    pub(super) fn mtu(&self) -> u16 {
        let primary = self.entries.primary();
        primary.and_then(|entry| entry.mtu).unwrap_or(u16::MAX)
    }

    /// Sets the size of the largest packet that fits through the primary path.
    pub(super) fn set_mtu(&mut self, bytes: u16) {
        if let Some(primary) = self.entries.primary_mut() {
            primary.mtu = Some(bytes);
        }
    }

    /// The path to `endpoint`, which is added if it is not known.
    fn admit(&mut self, endpoint: Endpoint) -> &mut Entry {
        let next = self.next.map(|next| next.to);
        self.entries.admit(endpoint, next)
    }

    /// Sends to this endpoint from now on. Nothing is known of the path yet. If it leads nowhere, a path that follows the peer
    /// changes with the next datagram, and otherwise the part that chooses the path does.
    pub(super) fn set_endpoint(&mut self, endpoint: Option<Endpoint>) {
        self.next = None;
        if self.choice == Choice::Roaming {
            let mtu = self.entries.primary().and_then(|entry| entry.mtu);
            self.entries = Entries::new(endpoint);
            if let Some(entry) = self.entries.primary_mut() {
                entry.mtu = mtu;
            }
        } else if let Some(endpoint) = endpoint {
            let entry = self.admit(endpoint);
            entry.heard = None;
            entry.forget_source();
            self.move_to(&endpoint.path());
        }
    }

    /// Adds paths that the peer may be reached by. Initiations are sent by all of those that `opens` has. Other paths by which
    /// the peer was not heard lately are removed.
    pub(super) fn offer(&mut self, paths: &[Endpoint], opens: &[Endpoint], now: Instant) {
        for entry in self.entries_mut() {
            entry.opens = false;
        }
        let offered: BTreeSet<Path> = paths.iter().chain(opens).map(Endpoint::path).collect();
        let next = self.next.map(|next| next.to);
        self.entries.make_room(&offered, next, now);
        for endpoint in paths.iter().chain(opens).take(2 * MAX_PATHS) {
            self.admit(*endpoint).renew(endpoint);
        }
        for endpoint in opens {
            if let Some(entry) = self.entries.of_mut(&endpoint.path()) {
                entry.opens = true;
            }
        }
    }

    /// Makes `path` the primary one: at once, or at the first gap of this length between packets. Returns whether it is known.
    pub(super) fn use_path(&mut self, path: &Path, gap: Option<Duration>, now: Instant) -> bool {
        if self.entries.of(path).is_none() {
            return false;
        }
        match gap {
            Some(gap) if self.primary() != Some(*path) => {
                self.next = Some(Move {
                    to: *path,
                    gap,
                    until: now + LONGEST_MOVE,
                });
            }
            _ => self.move_to(path),
        }
        true
    }

    fn move_to(&mut self, to: &Path) {
        self.next = None;
        // Until the size of the other path is known, the one in use is the best guess.
        let mtu = self.entries.primary().and_then(|entry| entry.mtu);
        if !self.entries.set_primary(to) {
            return;
        }
        self.wait.end();
        if let Some(entry) = self.entries.primary_mut() {
            entry.mtu = entry.mtu.or(mtu);
        }
    }

    /// A packet of the device is about to be sent; the one before was sent at `last`. Returns whether that is to be reported.
    #[inline]
    pub(super) fn handle_sent(&mut self, last: Option<Instant>, now: Instant) -> bool {
        self.wait.handle_sent(now);
        let moved = self.next.is_some() && self.move_at_gap(last, now);
        std::mem::take(&mut self.reports.sent) || moved
    }

    #[cold]
    fn move_at_gap(&mut self, last: Option<Instant>, now: Instant) -> bool {
        let Some(next) = self.next else { return false };
        let is_gap = last.is_none_or(|at| now.saturating_duration_since(at) >= next.gap);
        if is_gap || now >= next.until {
            self.move_to(&next.to);
            self.wait.handle_sent(now);
        }
        self.next.is_none()
    }

    /// Makes a move that has waited for long enough. Returns whether there is something to report, such as the silence of the
    /// primary path, or when there may be.
    pub(super) fn handle_time(&mut self, now: Instant) -> (bool, Option<Instant>) {
        if let Some(next) = self.next.filter(|next| now >= next.until) {
            self.move_to(&next.to);
            return (true, None);
        }
        match self.choice {
            Choice::Roaming => (false, None),
            Choice::Steered => self.wait.poll(self.reports.patience, now),
        }
    }

    /// An authentic datagram arrived from there.
    #[inline]
    pub(super) fn handle_received(&mut self, from: Endpoint, now: Instant) -> Received {
        self.unanswered = false;
        let is_news = std::mem::take(&mut self.reports.heard);
        if let Some(primary) = self.entries.primary_mut()
            && primary.endpoint == from
        {
            primary.heard = Some(now);
            self.wait.handle_received();
            return Received {
                wants_route: false,
                is_news,
            };
        }
        let other = match self.choice {
            Choice::Roaming => self.roam(from, now),
            Choice::Steered => self.handle_other(from, now),
        };
        Received {
            is_news: other.is_news || is_news,
            ..other
        }
    }

    /// The peer is there from now on, and datagrams to it leave from the address at which this one arrived.
    fn roam(&mut self, from: Endpoint, now: Instant) -> Received {
        self.wait.end();
        let wants_route = match self.entries.primary_mut() {
            Some(entry) => {
                entry.heard = Some(now);
                entry.learn(from)
            }
            None => {
                self.entries = Entries::new(Some(from));
                from.source.is_some()
            }
        };
        Received {
            wants_route,
            is_news: false,
        }
    }

    /// A datagram arrived by another path than the primary one, or at another address of this host.
    #[cold]
    fn handle_other(&mut self, from: Endpoint, now: Instant) -> Received {
        let path = from.path();
        self.wait.handle_other();
        let is_known = self.entries.of(&path).is_some();
        let is_first = self.entries().iter().all(|entry| entry.heard.is_none());
        let before = self.entries.primary().map(|entry| {
            let silent = entry.heard.map(|at| now.saturating_duration_since(at));
            (entry.endpoint.path(), silent)
        });
        let entry = self.admit(from);
        let wants_route = entry.learn(from) || (!is_known && from.source.is_some());
        entry.heard = Some(now);
        if before.is_some_and(|(primary, _)| primary == path) {
            self.wait.handle_received();
            return Received {
                wants_route,
                is_news: false,
            };
        }
        let adopts = is_first
            || before.is_none_or(|(primary, silent)| {
                let is_silent = silent.is_none_or(|silent| silent >= self.reports.patience);
                primary.is_rebound(&path) && is_silent
            });
        if adopts {
            self.move_to(&path);
        }
        let entry = self.entries.of_mut(&path);
        let is_due = entry.is_some_and(|entry| self.reports.is_due(entry, now));
        Received {
            wants_route,
            is_news: adopts || is_due,
        }
    }

    /// An initiation is sent. If the one before was not answered, the source may be the reason, so the kernel chooses another
    /// one.
    pub(super) fn handle_initiation(&mut self) {
        if std::mem::replace(&mut self.unanswered, true)
            && let Some(primary) = self.entries.primary_mut()
        {
            primary.forget_source();
        }
    }

    /// Nothing answers by the primary path, so that initiations are sent by all that were offered for it, without a pause.
    pub(super) fn open(&mut self) {
        self.unanswered = true;
        self.entries_mut().iter_mut().for_each(Entry::end_rest);
    }

    /// Where an initiation is sent that is made for `to`: there first, and by the paths that were offered for it unless the primary
    /// path works. A path whose peer is steered and was never heard by it is tried more and more rarely, and `admit` limits the
    /// initiations to its address. The table need not have `to`: a handshake may go back by the path on which the peer has just sent.
    pub(super) fn openings(
        &mut self,
        to: &Endpoint,
        mut admit: impl FnMut(IpAddr) -> bool,
        now: Instant,
    ) -> Vec<Endpoint> {
        let primary = self.entries.primary();
        let works = primary.is_some_and(|entry| entry.heard.is_some()) && !self.unanswered;
        let (first, is_steered) = (to.path(), self.choice == Choice::Steered);
        let mut endpoints = Vec::new();
        let mut new = self.entries.of(&first).is_none().then(|| Entry::new(*to));
        for entry in new.iter_mut().chain(self.entries_mut()) {
            let is_first = entry.endpoint.path() == first;
            let is_meant = is_first || (!works && entry.opens);
            if is_meant && (!is_steered || entry.may_open(&mut admit, now)) {
                let at = if is_first { 0 } else { endpoints.len() };
                endpoints.insert(at, entry.endpoint);
            }
        }
        endpoints
    }
}

#[cfg(test)]
mod tests;
