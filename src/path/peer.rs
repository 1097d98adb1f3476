//! The paths to one peer as a state machine: which path packets are sent by, and what is probed to know it.
//!
//! ```text
//! Cold --a packet is sent or a probe is due--> Opening --the peer is heard--> Open --silence--> Suspect --another path answers--> Open
//!                                                 ^------------- nothing answers: Lost, with retries that become rarer -------------'
//! ```
//!
//! The data plane reports what it knows of the paths ([`Report`]), and this returns what the data plane is to do ([`Action`]).
//! A path is used only when a probe by it was answered, but for the first one: the data plane adopts the first path
//! by which the peer is heard. Each end chooses its own path, and accepts datagrams by any.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::link::{ENOUGH, Link, LinkReport};
use super::links::{Candidate, Links, MAX_CANDIDATES};
use crate::model::Path;

/// After so long without an answer, a peer is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(7);
/// The least silence, while packets are sent, that makes a path suspect.
pub const LEAST_PATIENCE: Duration = Duration::from_millis(400);
/// The number of probes by a suspect path, and the time between two of them.
pub const SUSPECT_PROBES: u32 = 3;
/// The time between two probes by a suspect path.
pub const SUSPECT_INTERVAL: Duration = Duration::from_millis(80);
/// How often the path in use and the standby are probed while packets are sent.
pub const STANDBY_INTERVAL: Duration = Duration::from_secs(10);
/// After so long without a packet, the standby is not probed any more.
pub const IN_USE: Duration = Duration::from_secs(30);
/// The first and the last pause between two attempts to find a better path than a relay, or to reach a lost peer. Each pause is
/// twice the one before.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// See [`FIRST_RETRY`].
pub const LAST_RETRY: Duration = Duration::from_secs(64);
/// The pause after that.
pub const RARE_RETRY: Duration = Duration::from_secs(300);
/// A direct path that lasted for so long has shown that it works, and the pauses begin with the first one again.
const STEADY: Duration = Duration::from_secs(60);
/// A direct path whose round trip is longer than twice that of a relay, and than this besides, is not used.
pub const LEAST_LOSS: Duration = Duration::from_millis(20);
/// After a choice there is no other one for this time, in which the data plane waits for a gap between packets.
const CHOICE_INTERVAL: Duration = Duration::from_millis(600);

/// What the data plane knows of the paths to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whether the paths that were offered are known.
    pub is_offered: bool,
    /// The path by which packets are sent.
    pub primary: Option<Path>,
    /// All paths.
    pub links: Vec<LinkReport>,
    /// Since when packets are sent without a datagram that arrives by this path.
    pub waits_since: Option<Instant>,
    /// When a packet was last sent.
    pub sent: Option<Instant>,
    /// When a datagram last arrived, by whichever path.
    pub heard: Option<Instant>,
}

/// Something that the data plane is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Know these paths. Send initiations by all of the second ones while none is known to work.
    Offer(Vec<Path>, Vec<Path>),
    /// Send an initiation by all paths that were offered for it.
    Open,
    /// Send a probe by this path.
    Probe(Path),
    /// Send packets by this path: at once, or from the first gap of this length between packets.
    Use(Path, Option<Duration>),
    /// Report when the path in use is silent for so long while packets are sent, the next datagram if the second value is
    /// true, and the next packet if the third one is.
    Watch(Duration, bool, bool),
}

/// The state of a peer's paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing was sent to the peer yet.
    Cold,
    /// Initiations are sent by all paths that may work.
    Opening {
        /// When that began.
        since: Instant,
    },
    /// The path in use works.
    Open,
    /// Packets are sent by the path in use, and nothing arrives by it.
    Suspect {
        /// When it became suspect.
        since: Instant,
        /// The number of probes that were sent by it.
        probes: u32,
        /// When the next one is due.
        next: Instant,
        /// Whether all other paths are probed as well.
        is_wide: bool,
        /// Whether its time to answer is over, so that the next answer by another path is enough.
        is_over: bool,
    },
    /// Nothing answers.
    Lost {
        /// When the next attempt begins.
        again: Instant,
        /// The number of attempts so far.
        tries: u32,
    },
}

impl State {
    /// The path in use is suspect from now on.
    fn suspect(now: Instant) -> Self {
        Self::Suspect {
            since: now,
            probes: 0,
            next: now,
            is_wide: false,
            is_over: false,
        }
    }

    /// The state after the probes that were due were sent. `is_sent` says whether one left by the path in use: otherwise that path
    /// had no chance to answer, and is asked again.
    fn after_probes(self, is_sent: bool, now: Instant) -> Self {
        match self {
            Self::Suspect {
                since,
                probes,
                next,
                is_wide,
                is_over,
            } if probes < SUSPECT_PROBES && next <= now => Self::Suspect {
                since,
                probes: probes + u32::from(is_sent),
                next: if is_sent { next } else { now } + SUSPECT_INTERVAL,
                is_wide,
                is_over,
            },
            other => other,
        }
    }
}

/// The paths to one peer. It reads no clock: each call passes the time.
#[derive(Debug)]
pub struct PeerPaths {
    state: State,
    links: Links,
    sent: Option<Instant>,
    standby_at: Option<Instant>,
    /// The next attempt to find a direct path, and how many there were.
    upgrade: Option<Instant>,
    upgrades: u32,
    chosen: Option<Instant>,
    watched: Option<(Duration, bool, bool)>,
    actions: Vec<Action>,
}

/// The pause before the attempt with this number.
#[must_use]
pub fn retry_pause(tries: u32) -> Duration {
    match 1u32.checked_shl(tries).map(|factor| FIRST_RETRY * factor) {
        Some(pause) if pause <= LAST_RETRY => pause,
        _ => RARE_RETRY,
    }
}

impl PeerPaths {
    /// A peer of which nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Cold,
            links: Links::default(),
            sent: None,
            standby_at: None,
            upgrade: None,
            upgrades: 0,
            chosen: None,
            watched: None,
            actions: Vec::new(),
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The path by which packets are sent.
    #[must_use]
    pub fn primary(&self) -> Option<Path> {
        self.links.primary
    }

    /// What is known of each path.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Sets the paths by which the peer may be reached, of which the first [`MAX_CANDIDATES`] are accepted.
    pub fn set_candidates(&mut self, candidates: Vec<Candidate>, now: Instant) {
        let Some(new) = self.links.set_candidates(candidates, now) else {
            return;
        };
        self.offer();
        if new.is_empty() {
            return;
        }
        match self.state {
            State::Cold | State::Suspect { .. } => {}
            State::Opening { .. } => self.actions.push(Action::Open),
            State::Open => {
                let is_new = |link: &Link| link.answered.is_none() && new.contains(&link.path);
                self.links.probe(is_new, now);
            }
            // There may be a path now where there was none.
            State::Lost { .. } => {
                self.state = State::Lost {
                    again: now,
                    tries: 0,
                };
            }
        }
    }

    /// Tells the data plane which paths there are.
    fn offer(&mut self) {
        let (all, opens) = self.links.offers();
        self.actions.push(Action::Offer(all, opens));
    }

    /// A packet is sent to the peer, or it is to be reached for another reason.
    pub fn handle_wanted(&mut self, now: Instant) {
        if self.state == State::Cold {
            self.state = State::Opening { since: now };
            self.actions.push(Action::Open);
        }
    }

    /// A probe was sent by the path in use, for another reason than this machine has.
    pub fn handle_probed(&mut self, now: Instant) {
        let primary = self.links.primary;
        if let Some(link) = primary.and_then(|path| self.links.of_mut(path)) {
            link.handle_probed(now);
        }
    }

    /// The network of this node or of the peer changed: all paths may have changed with it.
    pub fn handle_network_changed(&mut self, now: Instant) {
        self.upgrades = 0;
        match self.state {
            State::Cold | State::Opening { .. } => {}
            State::Open | State::Suspect { .. } => self.links.probe(|_| true, now),
            State::Lost { .. } => {
                self.state = State::Lost {
                    again: now,
                    tries: 0,
                }
            }
        }
    }

    /// The peer stops or changes its network. The standby is used at once.
    pub fn handle_bye(&mut self, now: Instant) {
        if let (State::Open | State::Suspect { .. }, Some(standby)) =
            (self.state, self.links.standby(now))
        {
            self.replace(standby, now);
        }
    }

    /// Somebody else doubts that the peer answers, so it is asked as if its path were silent.
    pub fn handle_doubt(&mut self, now: Instant) {
        if self.state == State::Open {
            self.state = State::suspect(now);
        }
    }

    /// The peer waits for probes by these paths, or sends probes there itself.
    pub fn handle_consent(&mut self, paths: &[Path], now: Instant) {
        for path in paths.iter().take(MAX_CANDIDATES) {
            if self.links.add_observed(*path, now) {
                self.offer();
            }
            if let Some(link) = self.links.of_mut(*path) {
                link.begin_burst(now);
            }
        }
    }

    /// The data plane reports what it knows.
    pub fn handle_report(&mut self, report: &Report, now: Instant) {
        let is_sent = report.sent > self.sent;
        self.sent = self.sent.max(report.sent);
        self.links.set_primary(report.primary);
        let is_open = matches!(self.state, State::Open | State::Suspect { .. });
        for seen in &report.links {
            self.links.handle_report(seen, is_open, now);
        }
        if is_sent {
            self.handle_wanted(now);
            self.standby_at.get_or_insert(now + STANDBY_INTERVAL);
        }
        self.follow(report, now);
        // What was asked for is reported once.
        self.watched = None;
        if !report.is_offered && !matches!(self.state, State::Cold | State::Opening { .. }) {
            // The data plane does not know the peer any more, or knows it anew.
            self.state = State::Cold;
            self.offer();
            self.handle_wanted(now);
        }
    }

    /// Changes the state after a report.
    fn follow(&mut self, report: &Report, now: Instant) {
        match self.state {
            State::Cold | State::Opening { .. } | State::Lost { .. } => {
                let since = match self.state {
                    State::Opening { since } => Some(since),
                    State::Lost { again, tries } => {
                        again.checked_sub(retry_pause(tries.saturating_sub(1)))
                    }
                    _ => None,
                };
                if report
                    .heard
                    .is_some_and(|at| since.is_none_or(|since| at >= since))
                {
                    self.open(now);
                    self.links.probe(|_| true, now);
                }
            }
            State::Open => {
                let patience = self
                    .watched
                    .map_or(self.patience(), |(patience, ..)| patience);
                let due = report.waits_since.map(|since| since + patience);
                if due.is_some_and(|due| due <= now) {
                    self.state = State::suspect(now);
                }
            }
            State::Suspect { since, .. } => {
                let primary = self.links.in_use();
                if primary.is_some_and(|link| link.works_since(since)) {
                    self.state = State::Open;
                }
            }
        }
        self.choose(now);
    }

    /// How long the path in use may be silent while packets are sent.
    fn patience(&self) -> Duration {
        let srtt = self.links.in_use().and_then(Link::srtt);
        LEAST_PATIENCE.max(srtt.unwrap_or_default() * 4)
    }

    /// The path in use works from now on.
    fn open(&mut self, now: Instant) {
        self.state = State::Open;
        self.upgrade = Some(now + retry_pause(self.upgrades));
        self.standby_at = Some(now + STANDBY_INTERVAL);
    }

    fn use_path(&mut self, path: Path, gap: Option<Duration>, now: Instant) {
        let was_direct = self.links.is_direct();
        let is_young = |at: Instant| now.saturating_duration_since(at) < STEADY;
        if was_direct && path.relay().is_some() && !self.chosen.is_some_and(is_young) {
            self.upgrades = 0;
        }
        self.actions.push(Action::Use(path, gap));
        self.chosen = Some(now);
        if gap.is_none() {
            self.links.set_primary(Some(path));
        }
        self.links.forget_comparison();
        self.open(now);
    }

    /// The path in use has failed, and this one takes over.
    fn replace(&mut self, path: Path, now: Instant) {
        let primary = self.links.primary;
        if let Some(failed) = primary.and_then(|path| self.links.of_mut(path)) {
            failed.failed = Some(now);
        }
        self.use_path(path, None, now);
    }

    /// Moves to a better path, if there is one.
    fn choose(&mut self, now: Instant) {
        let rests = |at: Instant| now.saturating_duration_since(at) < CHOICE_INTERVAL;
        if !matches!(self.state, State::Open) || self.chosen.is_some_and(rests) {
            return;
        }
        let primary = self.links.in_use();
        let relay = self.links.relay_srtt(now);
        let better = self.links.others().filter(|link| match primary {
            Some(primary) => beats(link, primary, relay, now),
            None => link.is_fresh(now),
        });
        let Some(best) = better.min_by_key(|link| (link.path.kind(), link.srtt())) else {
            return;
        };
        let before = primary.and_then(Link::srtt);
        let gain = before.zip(best.srtt()).map(|(a, b)| a.saturating_sub(b));
        let gap = gain.filter(|gain| !gain.is_zero()).map(|gain| gain / 2);
        let path = best.path;
        self.use_path(path, gap, now);
    }

    /// Returns what is due. The last report is not older than this call.
    pub fn poll(&mut self, budget: &mut Budget, now: Instant) -> Vec<Action> {
        self.choose(now);
        let mut probes = Vec::new();
        match self.state {
            State::Cold => {}
            State::Opening { since } => {
                if now.saturating_duration_since(since) >= LOST_AFTER {
                    self.state = lost(0, now);
                }
            }
            State::Open => self.poll_open(&mut probes, now),
            State::Suspect { .. } => self.poll_suspect(&mut probes, now),
            State::Lost { again, tries } => {
                if again <= now {
                    self.try_again(tries, now);
                }
            }
        }
        probes.extend(self.links.poll(now));
        probes.sort_unstable();
        probes.dedup();
        probes.retain(|path| budget.take(path, now));
        for path in &probes {
            if let Some(link) = self.links.of_mut(*path) {
                link.handle_probed(now);
            }
            self.actions.push(Action::Probe(*path));
        }
        let primary = self.links.primary;
        let is_sent = primary.is_none_or(|path| probes.contains(&path));
        self.state = self.state.after_probes(is_sent, now);
        self.watch(now);
        std::mem::take(&mut self.actions)
    }

    fn poll_open(&mut self, probes: &mut Vec<Path>, now: Instant) {
        if self.standby_at.is_some_and(|at| at <= now) {
            self.standby_at = Some(now + STANDBY_INTERVAL);
            if !is_used(self.sent, now) {
                // The next packet is reported, and lets it go on.
                self.standby_at = None;
            } else if let Some(standby) = self.links.standby(now) {
                probes.extend(self.links.primary);
                probes.push(standby);
            }
        }
        if !self.links.is_direct() && self.upgrade.is_some_and(|at| at <= now) {
            self.upgrades = self.upgrades.saturating_add(1);
            self.upgrade = Some(now + retry_pause(self.upgrades));
            if self.links.turn_candidates(now) {
                self.offer();
            }
            self.links.probe(|link| link.path.relay().is_none(), now);
        }
    }

    fn poll_suspect(&mut self, probes: &mut Vec<Path>, now: Instant) {
        let fails = self.fails_at();
        let primary = self.links.primary;
        let State::Suspect {
            since,
            probes: sent,
            next,
            is_wide,
            is_over,
        } = &mut self.state
        else {
            return;
        };
        if *sent < SUSPECT_PROBES && *next <= now {
            probes.extend(primary);
            // The first probe is most often answered, so the others are asked from the second one on.
            if *next > *since && !*is_wide {
                match self.links.standby(now) {
                    Some(standby) => probes.push(standby),
                    None => {
                        *is_wide = true;
                        self.links.probe(|link| Some(link.path) != primary, now);
                    }
                }
            }
        }
        let is_late = now.saturating_duration_since(*since) >= LOST_AFTER;
        if fails.is_none_or(|at| now < at) && !is_late {
            return;
        }
        *is_over = true;
        let (since, sent) = (*since, *sent);
        let answering = self
            .links
            .others()
            .filter(|link| link.answered >= Some(since));
        if let Some(best) = answering.min_by_key(|link| (link.path.kind(), link.srtt())) {
            let path = best.path;
            self.replace(path, now);
        } else if is_late {
            self.state = lost(0, now);
        } else if let State::Suspect { is_wide, .. } = &mut self.state
            && sent >= SUSPECT_PROBES
            && !std::mem::replace(is_wide, true)
        {
            self.links.probe(|link| Some(link.path) != primary, now);
        }
    }

    /// When a path that is suspect has failed, unless it answers before. Each probe that could not be sent makes it later.
    fn fails_at(&self) -> Option<Instant> {
        let State::Suspect { probes, next, .. } = self.state else {
            return None;
        };
        let srtt = self.links.in_use().and_then(Link::srtt);
        let patience = (SUSPECT_INTERVAL * SUSPECT_PROBES).max(srtt.unwrap_or_default() * 3);
        Some(next + patience.saturating_sub(SUSPECT_INTERVAL * probes))
    }

    fn try_again(&mut self, tries: u32, now: Instant) {
        if self.links.turn_candidates(now) {
            self.offer();
        }
        self.links.probe(|_| true, now);
        self.actions.push(Action::Open);
        self.state = lost(tries, now);
    }

    /// Asks the data plane for the reports that are needed.
    fn watch(&mut self, now: Instant) {
        let is_closed = matches!(
            self.state,
            State::Cold | State::Opening { .. } | State::Lost { .. }
        );
        let wanted = (self.patience(), is_closed, !is_used(self.sent, now));
        if self.watched != Some(wanted) {
            self.watched = Some(wanted);
            let (patience, heard, sent) = wanted;
            self.actions.push(Action::Watch(patience, heard, sent));
        }
    }

    /// When [`PeerPaths::poll`] is due, after a fresh report.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Cold => None,
            State::Opening { since } => Some(since + LOST_AFTER),
            State::Open => {
                let is_direct = self.links.is_direct();
                earliest([self.upgrade.filter(|_| !is_direct), self.standby_at])
            }
            State::Suspect {
                since,
                probes,
                next,
                is_wide,
                is_over,
            } => {
                let probe = (probes < SUSPECT_PROBES).then_some(next);
                let waits = !is_over || !is_wide;
                let fails = self.fails_at().filter(|_| waits);
                earliest([probe, fails, Some(since + LOST_AFTER)])
            }
            State::Lost { again, .. } => Some(again),
        };
        earliest([own, self.links.poll_timeout()])
    }
}

impl Default for PeerPaths {
    fn default() -> Self {
        Self::new()
    }
}

/// The state after an attempt that was in vain; there were `tries` before.
fn lost(tries: u32, now: Instant) -> State {
    State::Lost {
        again: now + retry_pause(tries),
        tries: tries.saturating_add(1),
    }
}

/// Whether a packet was sent lately.
fn is_used(sent: Option<Instant>, now: Instant) -> bool {
    sent.is_some_and(|at| now.saturating_duration_since(at) < IN_USE)
}

fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}

/// Whether a direct path is so bad that a relay is better.
fn is_bad(link: &Link, relay: Option<Duration>) -> bool {
    let is_slow = match (link.srtt(), relay) {
        (Some(srtt), Some(relay)) => srtt > relay * 2 + LEAST_LOSS,
        _ => false,
    };
    link.path.relay().is_none() && (link.is_lossy() || is_slow)
}

/// Whether `link` is better than the path in use. `relay` is the shortest round trip over a relay.
fn beats(link: &Link, primary: &Link, relay: Option<Duration>, now: Instant) -> bool {
    if !link.is_fresh(now) {
        return false;
    }
    if primary.is_silent(link.answered) {
        return true;
    }
    match link.path.kind().cmp(&primary.path.kind()) {
        Ordering::Less => !is_bad(link, relay),
        Ordering::Equal => {
            let is_better = is_bad(primary, relay) && !is_bad(link, relay);
            is_better || (link.faster >= ENOUGH && !is_bad(link, relay))
        }
        Ordering::Greater => is_bad(primary, relay),
    }
}

#[cfg(test)]
mod tests;
