//! The paths to one peer as a state machine: which path packets are sent by, and what is probed to know it.
//!
//! ```text
//! Cold --a packet is sent or a probe is due--> Opening --the peer is heard--> Open --silence--> Suspect --another path answers--> Open
//!                                                 ^------------- nothing answers: Lost, with retries that become rarer -------------'
//! ```
//!
//! The data plane reports what it knows of the paths ([`Report`]), and this returns what the data plane is to do ([`Action`]).
//! A path is used only when a probe by it was answered, but for the first one: the data plane adopts the first path
//! by which the peer is heard. If probes by that path are not answered, it gives way to any path whose probes are. Each end
//! chooses its own path, and accepts datagrams by any.

use std::time::{Duration, Instant};

use self::choice::{beats, has_failed};
use self::silence::{is_heard_since, is_left, is_refuted, patience};
use super::link::{Link, LinkReport};
use super::links::{Candidate, Links, MAX_CANDIDATES, abandoned, is_open_to_probes, probe_open};
use crate::model::{NodeAddress, Path};
use crate::protocol::path_messages::ByeReason;

mod choice;
mod silence;
mod state;
#[cfg(test)]
mod tests;

pub use silence::LEAST_PATIENCE;
pub use state::{
    FIRST_RETRY, LAST_RETRY, RARE_RETRY, SUSPECT_INTERVAL, SUSPECT_PROBES, State, retry_pause,
};

/// After so long without an answer, a peer is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(7);
/// How often the path in use and the standby are probed while packets are sent.
pub const STANDBY_INTERVAL: Duration = Duration::from_secs(10);
/// After so long without a packet, the standby is not probed any more.
pub const IN_USE: Duration = Duration::from_secs(30);
/// A direct path that lasted for so long has shown that it works, and the pauses begin with the first one again.
const STEADY: Duration = Duration::from_secs(60);
/// A direct path whose round trip is longer than twice that of a relay, and than this besides, is not used.
pub const LEAST_LOSS: Duration = Duration::from_millis(20);
/// After a choice there is no other one for this time, in which the data plane waits for a gap between packets.
const CHOICE_INTERVAL: Duration = Duration::from_millis(600);
/// How long handshakes are sent by paths to which a peer without a session consents: two of them, as WireGuard repeats one after 5 s.
const CONSENT_FOR: Duration = Duration::from_secs(8);
/// The least time between two questions whether the path in use works though the peer sends by another one.
const DOUBT_INTERVAL: Duration = Duration::from_secs(10);
/// The least time between two good-byes of a peer that are followed.
const BYE_INTERVAL: Duration = Duration::from_secs(10);

/// What the data plane knows of the paths to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whether the paths that were offered are known.
    pub is_offered: bool,
    /// The path by which packets are sent.
    pub primary: Option<Path>,
    /// All paths.
    pub links: Vec<LinkReport>,
    /// Since when packets are sent without a datagram that arrives by this path. Probes of the peer do not count.
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

/// The paths to one peer. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct PeerPaths {
    state: State,
    links: Links,
    sent: Option<Instant>,
    standby_at: Option<Instant>,
    /// The next attempt to find a direct path, and how many there were.
    upgrade: Option<Instant>,
    upgrades: u32,
    chosen: Option<Instant>,
    /// When the peer last said that it stops or changes its network.
    bye: Option<Instant>,
    /// Until when handshakes are sent by the paths to which the peer consents.
    consents: Option<Instant>,
    /// When the path in use was last asked because the peer sends by another one.
    doubted: Option<Instant>,
    watched: Option<(Duration, bool, bool)>,
    actions: Vec<Action>,
}

impl PeerPaths {
    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
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
        self.actions.push(offer(&self.links, false));
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
            State::Lost { since, .. } => {
                self.state = State::Lost {
                    since,
                    again: now,
                    tries: 0,
                };
            }
        }
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
        let primary = self.links.primary();
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
            State::Lost { since, .. } => {
                self.state = State::Lost {
                    since,
                    again: now,
                    tries: 0,
                }
            }
        }
    }

    /// The peer stops or changes its network. The standby is used at once, and a peer that stops is tried again from then on.
    /// Returns whether that counts: a peer that says so again and again is not followed.
    pub fn handle_bye(&mut self, reason: ByeReason, now: Instant) -> bool {
        let is_open = matches!(self.state, State::Open | State::Suspect { .. });
        let since = self.bye.map(|at| now.saturating_duration_since(at));
        if !is_open || since.is_some_and(|since| since < BYE_INTERVAL) {
            return false;
        }
        self.bye = Some(now);
        self.use_standby(now);
        if reason == ByeReason::Stopping {
            self.state = State::lost(0, now);
        }
        true
    }

    /// The relay with this address forwards nothing any more. Returns whether packets were sent through it.
    pub fn handle_relay_gone(&mut self, relay: NodeAddress, now: Instant) -> bool {
        let is_used = self.links.primary().and_then(|path| path.relay()) == Some(relay);
        let is_open = matches!(self.state, State::Open | State::Suspect { .. });
        if is_used && is_open {
            self.use_standby(now);
        }
        is_used
    }

    /// The standby takes over from the path in use, if there is one.
    fn use_standby(&mut self, now: Instant) {
        if let Some(standby) = self.links.standby(now) {
            self.replace(standby, now);
        }
    }

    /// The relay with this address accepts packets again that it may not have accepted before. Returns whether the peer is tried
    /// again by it.
    pub fn handle_relay_renewed(&mut self, relay: NodeAddress, now: Instant) -> bool {
        let links = self.links.all().iter().map(|link| link.path);
        let paths: Vec<Path> = links.filter(|path| path.relay() == Some(relay)).collect();
        match &mut self.state {
            State::Suspect { .. } => self.links.probe(|link| paths.contains(&link.path), now),
            State::Opening { .. } if !paths.is_empty() => self.actions.push(Action::Open),
            State::Lost { again, .. } if !paths.is_empty() => *again = now,
            State::Cold | State::Opening { .. } | State::Open | State::Lost { .. } => return false,
        }
        true
    }

    /// A new session with the peer has begun. What it said by the session before may not hold any more, so it is asked again.
    pub fn handle_session(&mut self, now: Instant) {
        let is_direct = |link: &Link| link.path.relay().is_none() && link.is_alive(now);
        probe_open(&mut self.links, is_direct, now);
    }

    /// Somebody else doubts that the peer answers, so it is asked as if its path were silent.
    pub fn handle_doubt(&mut self, now: Instant) {
        if self.state == State::Open {
            self.state = State::suspect(now);
        }
    }

    /// The peer waits for probes by these paths, or sends probes there itself. While it does not answer there may be no session, and
    /// handshakes are sent there instead.
    pub fn handle_consent(&mut self, paths: &[Path], now: Instant) {
        let is_open = matches!(self.state, State::Open | State::Suspect { .. });
        for path in paths.iter().take(MAX_CANDIDATES) {
            if self.links.add_observed(*path, now) && is_open {
                self.actions.push(offer(&self.links, false));
            }
            if let Some(link) = self.links.of_mut(*path) {
                link.begin_burst(now);
                link.consented = !is_open;
            }
        }
        if is_open || paths.is_empty() {
            return;
        }
        if self.state == State::Cold {
            self.state = State::Opening { since: now };
        }
        self.consents = Some(now + CONSENT_FOR);
        self.actions
            .extend([offer(&self.links, false), Action::Open]);
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
            self.actions.push(offer(&self.links, false));
            self.handle_wanted(now);
        }
    }

    /// Changes the state after a report.
    fn follow(&mut self, report: &Report, now: Instant) {
        let patience = self
            .watched
            .map_or(patience(&self.links), |(patience, ..)| patience);
        let is_silent = report
            .waits_since
            .is_some_and(|since| since + patience <= now);
        match self.state {
            State::Cold | State::Opening { .. } | State::Lost { .. } => {
                let since = match self.state {
                    State::Opening { since } | State::Lost { since, .. } => Some(since),
                    _ => None,
                };
                if report
                    .heard
                    .is_some_and(|at| since.is_none_or(|since| at >= since))
                {
                    self.open(now);
                    probe_open(&mut self.links, |_| true, now);
                }
            }
            State::Open => {
                let rests = |at: Instant| now.saturating_duration_since(at) < DOUBT_INTERVAL;
                let is_doubted = !self.doubted.is_some_and(rests) && is_left(&self.links);
                if is_doubted {
                    self.doubted = Some(now);
                }
                if is_doubted || is_silent {
                    self.state = State::suspect(now);
                }
            }
            State::Suspect { since, .. } => {
                if is_refuted(self.state, since, &self.links, is_silent, now) {
                    self.state = State::Open;
                } else {
                    // The peer is heard by another path, which may work in both directions by now.
                    let primary = self.links.primary();
                    let is_heard = |link: &Link| {
                        Some(link.path) != primary
                            && link.heard >= Some(since)
                            && link.heard > link.answered
                    };
                    self.links.probe(is_heard, now);
                }
            }
        }
        self.choose(now);
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
        let primary = self.links.primary();
        if let Some(failed) = primary.and_then(|path| self.links.of_mut(path)) {
            failed.handle_failed(now);
            if !abandoned(&self.links).is_empty() {
                self.actions.push(offer(&self.links, false));
            }
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
        if primary.is_some_and(|primary| has_failed(primary, best)) {
            self.replace(path, now);
        } else {
            self.use_path(path, gap, now);
        }
    }

    /// Returns what is due. The last report is not older than this call. `admit` says whether a probe by a path may be sent now.
    pub fn poll(&mut self, mut admit: impl FnMut(&Path) -> bool, now: Instant) -> Vec<Action> {
        self.choose(now);
        if self.consents.take_if(|until| *until <= now).is_some() {
            self.links.end_consent();
            self.actions.push(offer(&self.links, false));
        }
        let mut probes = Vec::new();
        match self.state {
            State::Cold => {}
            State::Opening { since } => {
                if now.saturating_duration_since(since) >= LOST_AFTER {
                    self.state = State::lost(0, now);
                }
            }
            State::Open => self.poll_open(&mut probes, now),
            State::Suspect { .. } => self.poll_suspect(&mut probes, now),
            State::Lost { again, tries, .. } => {
                if again <= now {
                    self.try_again(tries, now);
                }
            }
        }
        probes.extend(self.links.poll(now));
        // The end of a burst may show that the path in use does not work.
        self.choose(now);
        probes.sort_unstable();
        probes.dedup();
        probes.retain(|path| admit(path));
        for path in &probes {
            if let Some(link) = self.links.of_mut(*path) {
                link.handle_probed(now);
            }
            self.actions.push(Action::Probe(*path));
        }
        let primary = self.links.primary();
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
                probes.extend(self.links.primary());
                probes.push(standby);
            }
        }
        if !self.links.is_direct() && self.upgrade.is_some_and(|at| at <= now) {
            self.upgrades = self.upgrades.saturating_add(1);
            self.upgrade = Some(now + retry_pause(self.upgrades));
            if self.links.turn_candidates(now) {
                self.actions.push(offer(&self.links, false));
            }
            let kind = self.links.primary().map_or(1, |path| path.kind());
            let better = open_paths(&self.links, kind, now);
            self.links.probe(|link| better.contains(&link.path), now);
        }
    }

    fn poll_suspect(&mut self, probes: &mut Vec<Path>, now: Instant) {
        let srtt = self.links.trip_in_use();
        if let State::Suspect { since, .. } = self.state
            && is_heard_since(&self.links, since)
            && self.state.renewed_at(srtt).is_some_and(|at| at <= now)
        {
            // The peer is heard by the path and answers by none, so all are asked once more.
            self.state = State::suspect(now);
        }
        let fails = self.state.fails_at(srtt);
        let primary = self.links.primary();
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
                        probe_open(&mut self.links, |link| Some(link.path) != primary, now);
                    }
                }
            }
        }
        let is_heard = is_heard_since(&self.links, *since);
        let is_late = now.saturating_duration_since(*since) >= LOST_AFTER && !is_heard;
        if fails.is_none_or(|at| now < at) && !is_late {
            return;
        }
        let is_first = !std::mem::replace(is_over, true);
        let (since, sent) = (*since, *sent);
        let answering = self
            .links
            .others()
            .filter(|link| link.answered >= Some(since));
        if let Some(best) = answering.min_by_key(|link| (link.path.kind(), link.srtt())) {
            let path = best.path;
            self.replace(path, now);
            return;
        }
        if is_late {
            self.state = State::lost(0, now);
            return;
        }
        if is_first {
            // A peer that was started again does not know the session, and answers only a handshake.
            if !is_heard {
                self.actions.push(Action::Open);
            }
            // A path that failed may work again, and there is none by which the peer could agree to try it.
            let failed = abandoned(&self.links);
            self.links.probe(|link| failed.contains(&link.path), now);
        }
        if let State::Suspect { is_wide, .. } = &mut self.state
            && sent >= SUSPECT_PROBES
            && !std::mem::replace(is_wide, true)
        {
            probe_open(&mut self.links, |link| Some(link.path) != primary, now);
        }
    }

    fn try_again(&mut self, tries: u32, now: Instant) {
        if self.links.turn_candidates(now) || !abandoned(&self.links).is_empty() {
            self.actions.push(offer(&self.links, true));
        }
        self.links.probe(|_| true, now);
        self.actions.push(Action::Open);
        self.state = State::lost(tries, now);
    }

    /// Asks the data plane for the reports that are needed.
    fn watch(&mut self, now: Instant) {
        let is_closed = matches!(
            self.state,
            State::Cold | State::Opening { .. } | State::Lost { .. }
        );
        let wanted = (patience(&self.links), is_closed, !is_used(self.sent, now));
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
                let srtt = self.links.trip_in_use();
                let fails = self.state.fails_at(srtt).filter(|_| waits);
                let ends = match is_heard_since(&self.links, since) {
                    true => self.state.renewed_at(srtt),
                    false => Some(since + LOST_AFTER),
                };
                earliest([probe, fails, ends])
            }
            State::Lost { again, .. } => Some(again),
        };
        earliest([own, self.consents, self.links.poll_timeout()])
    }
}

/// Tells the data plane which paths there are. See [`Links::offers`].
fn offer(links: &Links, is_lost: bool) -> Action {
    let (all, opens) = links.offers(is_lost);
    Action::Offer(all, opens)
}

/// The paths of a better kind by which probes may be sent though nobody agreed on them now.
fn open_paths(links: &Links, kind: u8, now: Instant) -> Vec<Path> {
    let better = links.all().iter().filter(|link| link.path.kind() < kind);
    let open = better.filter(|link| is_open_to_probes(links, link, now));
    open.map(|link| link.path).collect()
}

/// Whether a packet was sent lately.
fn is_used(sent: Option<Instant>, now: Instant) -> bool {
    sent.is_some_and(|at| now.saturating_duration_since(at) < IN_USE)
}

fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}
