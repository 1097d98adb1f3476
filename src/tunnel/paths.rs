//! The paths to one peer. Pure.
//!
//! The path by which a datagram of the peer arrived, and the path by which datagrams to the peer are sent, are two things. The
//! latter is the *primary* path. Who chooses it is the [`Choice`]:
//!
//! - `Roaming`: the primary path is the one by which the last authentic datagram arrived (WireGuard section 2.1). There is
//!   no other path.
//! - `Steered`: another part of the program chooses. A datagram that arrives by another path does not change the choice, except in
//!   two cases. Nothing ever arrived by the primary path: then any other path is better. Or the datagram is from
//!   another port of the same address, and nothing arrived by the primary path for some time: then an address translator on
//!   the way has most probably given the peer another port.
//!
//! An index into the table stays valid while the path is in use, so the path of a packet is one word.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::path_entry::Entry;
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

/// A path that is not offered is kept for so long after the peer was heard by it.
const KEPT_FOR: Duration = Duration::from_secs(180);

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
    to: usize,
    gap: Duration,
    until: Instant,
}

/// The paths to a peer, at most [`MAX_PATHS`].
#[derive(Debug, Clone)]
pub(super) struct PathTable {
    entries: Vec<Entry>,
    /// The index of the primary path.
    primary: usize,
    pub(super) choice: Choice,
    next: Option<Move>,
    /// Whether an initiation was sent since the last authentic datagram.
    unanswered: bool,
    /// When the first packet was sent of those that are not followed by a datagram on the primary path.
    pub(super) waits_since: Option<Instant>,
    pub(super) reports: Reports,
}

/// What is reported to the part of the program that chooses the path.
#[derive(Debug, Clone)]
pub(super) struct Reports {
    /// How long a packet waits before the silence of the primary path is reported. It is not less than [`LEAST_PATIENCE`].
    pub(super) patience: Duration,
    is_silent: bool,
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

/// The index of a path.
fn position(entries: &[Entry], path: &Path) -> Option<usize> {
    let mut entries = entries.iter();
    entries.position(|entry| entry.endpoint.path() == *path)
}

impl PathTable {
    /// A table with the path to `endpoint`, whose primary path follows the peer.
    pub(super) fn new(endpoint: Option<Endpoint>) -> Self {
        Self {
            entries: endpoint.map(Entry::new).into_iter().collect(),
            primary: 0,
            choice: Choice::Roaming,
            next: None,
            unanswered: false,
            waits_since: None,
            reports: Reports {
                patience: LEAST_PATIENCE,
                is_silent: false,
                heard: false,
                sent: false,
                new: None,
            },
        }
    }

    /// The paths as the successor of the peer has them: nothing was sent to it yet.
    pub(super) fn for_successor(&self) -> Self {
        let mut table = self.clone();
        table.waits_since = None;
        table.unanswered = false;
        for entry in &mut table.entries {
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
                let primary = self.entries.get(self.primary).cloned();
                self.entries = primary.into_iter().collect();
                self.primary = 0;
            }
        }
    }

    /// Where datagrams are sent.
    #[inline]
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        Some(self.entries.get(self.primary)?.endpoint)
    }

    /// The primary path.
    pub(super) fn primary(&self) -> Option<Path> {
        self.endpoint().map(|endpoint| endpoint.path())
    }

    /// Where datagrams by `path` are sent.
    pub(super) fn endpoint_of(&self, path: &Path) -> Option<Endpoint> {
        let at = position(&self.entries, path)?;
        Some(self.entries.get(at)?.endpoint)
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// The size in bytes of the largest packet that fits through the primary path. The device's MTU applies as well.
    #[inline]
    pub(super) fn mtu(&self) -> u16 {
        let primary = self.entries.get(self.primary);
        primary.and_then(|entry| entry.mtu).unwrap_or(u16::MAX)
    }

    /// Sets the size of the largest packet that fits through the primary path.
    pub(super) fn set_mtu(&mut self, bytes: u16) {
        if let Some(primary) = self.entries.get_mut(self.primary) {
            primary.mtu = Some(bytes);
        }
    }

    /// The index of the path to `endpoint`, which is added if it is not known. The path that is least useful makes room.
    fn admit(&mut self, endpoint: Endpoint) -> usize {
        if let Some(known) = position(&self.entries, &endpoint.path()) {
            return known;
        }
        if self.entries.len() < MAX_PATHS {
            self.entries.push(Entry::new(endpoint));
            return self.entries.len() - 1;
        }
        let next = self.next.map(|next| next.to);
        let candidates = self.entries.iter().enumerate();
        let least = candidates
            .filter(|(at, _)| *at != self.primary && Some(*at) != next)
            .min_by_key(|(_, entry)| (entry.heard, entry.opens))
            .map_or(0, |(at, _)| at);
        if let Some(entry) = self.entries.get_mut(least) {
            *entry = Entry::new(endpoint);
        }
        least
    }

    /// Sends to this endpoint from now on. Nothing is known of the path yet, so a datagram by another one changes it.
    pub(super) fn set_endpoint(&mut self, endpoint: Option<Endpoint>) {
        self.next = None;
        if self.choice == Choice::Roaming {
            let mtu = self.entries.get(self.primary).and_then(|entry| entry.mtu);
            let mut entry = endpoint.map(Entry::new);
            if let Some(entry) = &mut entry {
                entry.mtu = mtu;
            }
            self.entries = entry.into_iter().collect();
            self.primary = 0;
        } else if let Some(endpoint) = endpoint {
            let at = self.admit(endpoint);
            self.move_to(at);
            if let Some(entry) = self.entries.get_mut(at) {
                entry.heard = None;
                entry.forget_source();
            }
        }
    }

    /// Adds paths that the peer may be reached by. Initiations are sent by all of those that `opens` has. Other paths by which
    /// the peer was not heard lately are removed.
    pub(super) fn offer(&mut self, paths: &[Endpoint], opens: &[Endpoint], now: Instant) {
        for entry in &mut self.entries {
            entry.opens = false;
        }
        let offered: BTreeSet<Path> = paths.iter().chain(opens).map(Endpoint::path).collect();
        self.remove_others(&offered, now);
        for endpoint in paths.iter().chain(opens).take(2 * MAX_PATHS) {
            let at = self.admit(*endpoint);
            if let Some(entry) = self.entries.get_mut(at) {
                entry.renew(endpoint);
            }
        }
        for endpoint in opens {
            let path = endpoint.path();
            if let Some(entry) =
                position(&self.entries, &path).and_then(|at| self.entries.get_mut(at))
            {
                entry.opens = true;
            }
        }
    }

    /// Removes the paths that were not heard lately, and as many others as it takes to make room for those that are offered.
    fn remove_others(&mut self, offered: &BTreeSet<Path>, now: Instant) {
        let is_old = |entry: &Entry| {
            let silent = entry.heard.map(|at| now.saturating_duration_since(at));
            silent.is_none_or(|silent| silent >= KEPT_FOR)
        };
        loop {
            let known = offered
                .iter()
                .filter(|path| position(&self.entries, path).is_some());
            let new = offered.len() - known.count();
            let is_crowded = self.entries.len() + new > MAX_PATHS;
            let next = self.next.map(|next| next.to);
            let others = self.entries.iter().enumerate().filter(|(at, entry)| {
                let is_used = *at == self.primary || Some(*at) == next;
                !is_used && !offered.contains(&entry.endpoint.path())
            });
            let least = others.min_by_key(|(_, entry)| entry.heard);
            let least = least.filter(|(_, entry)| is_crowded || is_old(entry));
            let Some((at, _)) = least else { return };
            // Those behind it move up.
            self.entries.remove(at);
            self.primary -= usize::from(self.primary > at);
            if let Some(next) = &mut self.next {
                next.to -= usize::from(next.to > at);
            }
        }
    }

    /// Makes `path` the primary one: at once, or at the first gap of this length between packets. Returns whether it is known.
    pub(super) fn use_path(&mut self, path: &Path, gap: Option<Duration>, now: Instant) -> bool {
        let Some(to) = position(&self.entries, path) else {
            return false;
        };
        match gap {
            Some(gap) if to != self.primary => {
                self.next = Some(Move {
                    to,
                    gap,
                    until: now + LONGEST_MOVE,
                });
            }
            _ => self.move_to(to),
        }
        true
    }

    fn move_to(&mut self, to: usize) {
        self.next = None;
        if to == self.primary {
            return;
        }
        // Until the size of the other path is known, the one in use is the best guess.
        let mtu = self.entries.get(self.primary).and_then(|entry| entry.mtu);
        self.primary = to;
        self.waits_since = None;
        self.reports.is_silent = false;
        if let Some(entry) = self.entries.get_mut(to) {
            entry.mtu = entry.mtu.or(mtu);
        }
    }

    /// A packet of the device is about to be sent; the one before was sent at `last`. Returns whether that is to be reported.
    #[inline]
    pub(super) fn handle_sent(&mut self, last: Option<Instant>, now: Instant) -> bool {
        if self.waits_since.is_none() {
            self.waits_since = Some(now);
        }
        let moved = self.next.is_some() && self.move_at_gap(last, now);
        std::mem::take(&mut self.reports.sent) || moved
    }

    #[cold]
    fn move_at_gap(&mut self, last: Option<Instant>, now: Instant) -> bool {
        let Some(next) = self.next else { return false };
        let is_gap = last.is_none_or(|at| now.saturating_duration_since(at) >= next.gap);
        if is_gap || now >= next.until {
            self.move_to(next.to);
            self.waits_since = Some(now);
        }
        self.next.is_none()
    }

    /// Makes a move that has waited for long enough. Returns whether there is something to report, such as the silence of the
    /// primary path, or when there may be.
    pub(super) fn handle_time(&mut self, now: Instant) -> (bool, Option<Instant>) {
        if let Some(next) = self.next.filter(|next| now >= next.until) {
            self.move_to(next.to);
            return (true, None);
        }
        let deadline = self.waits_since.map(|since| since + self.reports.patience);
        let deadline = deadline.filter(|_| !self.reports.is_silent);
        match deadline.filter(|_| self.choice == Choice::Steered) {
            Some(at) if at <= now => {
                self.reports.is_silent = true;
                (true, None)
            }
            deadline => (false, deadline),
        }
    }

    /// An authentic datagram arrived from there.
    #[inline]
    pub(super) fn handle_received(&mut self, from: Endpoint, now: Instant) -> Received {
        self.unanswered = false;
        let is_news = std::mem::take(&mut self.reports.heard);
        if let Some(primary) = self.entries.get_mut(self.primary)
            && primary.endpoint == from
        {
            primary.heard = Some(now);
            self.waits_since = None;
            self.reports.is_silent = false;
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
        self.waits_since = None;
        let wants_route = match self.entries.get_mut(self.primary) {
            Some(entry) => {
                entry.heard = Some(now);
                entry.learn(from)
            }
            None => {
                self.primary = self.entries.len();
                self.entries.push(Entry::new(from));
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
        let is_known = position(&self.entries, &path).is_some();
        let before = self.entries.get(self.primary).map(|entry| {
            let silent = entry.heard.map(|at| now.saturating_duration_since(at));
            (entry.endpoint.path(), silent)
        });
        let at = self.admit(from);
        let Some(entry) = self.entries.get_mut(at) else {
            return Received::default();
        };
        let wants_route = entry.learn(from) || (!is_known && from.source.is_some());
        entry.heard = Some(now);
        if at == self.primary && before.is_some_and(|(primary, _)| primary == path) {
            self.waits_since = None;
            self.reports.is_silent = false;
            return Received {
                wants_route,
                is_news: false,
            };
        }
        let adopts = match before {
            None | Some((_, None)) => true,
            Some((primary, Some(silent))) => {
                primary.is_rebound(&path) && silent >= self.reports.patience
            }
        };
        if adopts {
            self.move_to(at);
        }
        let entry = self.entries.get_mut(at);
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
            && let Some(primary) = self.entries.get_mut(self.primary)
        {
            primary.forget_source();
        }
    }

    /// Nothing answers by the primary path, so that initiations are sent by all that were offered for it.
    pub(super) fn open(&mut self) {
        self.unanswered = true;
    }

    /// The other paths by which an initiation is sent: none while the primary path works.
    pub(super) fn opening(&self) -> impl Iterator<Item = Endpoint> {
        let primary = self.entries.get(self.primary);
        let works = primary.is_some_and(|entry| entry.heard.is_some()) && !self.unanswered;
        let entries = self.entries.iter().enumerate();
        entries
            .filter(move |(at, entry)| !works && entry.opens && *at != self.primary)
            .map(|(_, entry)| entry.endpoint)
    }
}

#[cfg(test)]
mod tests;
