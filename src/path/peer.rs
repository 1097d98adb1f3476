//! The paths to one peer as a state machine: which path packets are sent by, and what is probed to know it.
//!
//!     Cold --a packet is sent or a probe is due--> Opening --the peer is heard--> Open --silence--> Suspect --another path answers--> Open
//!                                                     ^------------- nothing answers: Lost, with retries that become rarer -------------'
//!
//! The data plane reports what it knows of the paths ([`Report`]), and this returns what the data plane is to do ([`Action`]).
//! A path is used only when a probe by it was answered, but for the first one: the data plane adopts the first path
//! by which the peer is heard. Each end chooses its own path, and accepts datagrams by any.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::link::{ENOUGH, Evidence, Link, LinkReport};
use crate::model::Path;
use crate::model::path::MAX_PATHS;

/// The largest number of candidates of a peer that are accepted.
pub const MAX_CANDIDATES: usize = 16;
/// The number of candidates that are probed at a time. The other places are for paths by which the peer is heard.
const MAX_PROBED: usize = MAX_PATHS - 2;
/// The number of relays by which an initiation is sent at once.
const OPENING_RELAYS: usize = 2;
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
/// A path of the same kind is better if its round trip is shorter by more than this, and by more than a fifth.
pub const LEAST_GAIN: Duration = Duration::from_millis(2);
/// A direct path whose round trip is longer than twice that of a relay, and than this besides, is not used.
pub const LEAST_LOSS: Duration = Duration::from_millis(20);
/// After a choice there is no other one for this time, in which the data plane waits for a gap between packets.
const CHOICE_INTERVAL: Duration = Duration::from_millis(600);

/// A path by which a peer may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The path.
    pub path: Path,
    /// How it is known.
    pub evidence: Evidence,
}

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
        /// Whether all other paths are probed as well.
        is_wide: bool,
    },
    /// Nothing answers.
    Lost {
        /// When the next attempt begins.
        again: Instant,
        /// The number of attempts so far.
        tries: u32,
    },
}

/// The paths to one peer. It reads no clock: each call passes the time.
#[derive(Debug)]
pub struct Peer {
    state: State,
    primary: Option<Path>,
    links: Vec<Link>,
    candidates: Vec<Candidate>,
    /// The place in the candidates from which those are taken that are probed.
    first_candidate: usize,
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

impl Peer {
    /// A peer of which nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Cold,
            primary: None,
            links: Vec::new(),
            candidates: Vec::new(),
            first_candidate: 0,
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
        self.primary
    }

    /// What is known of each path.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The path that is used if the one in use fails: a relay, if there is one.
    #[must_use]
    pub fn standby(&self, now: Instant) -> Option<Path> {
        let others = self.others().filter(|link| link.answered.is_some());
        let rank = |link: &&Link| {
            let is_direct = link.path.relay().is_none();
            (
                !link.is_fresh(now),
                is_direct,
                link.path.kind(),
                link.srtt(),
            )
        };
        Some(others.min_by_key(rank)?.path)
    }

    fn others(&self) -> impl Iterator<Item = &Link> {
        let primary = self.primary;
        let links = self.links.iter();
        links.filter(move |link| Some(link.path) != primary)
    }

    fn link(&self, path: Option<Path>) -> Option<&Link> {
        let path = path?;
        self.links.iter().find(|link| link.path == path)
    }

    fn link_mut(&mut self, path: Path) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.path == path)
    }

    /// Sets the paths by which the peer may be reached, of which the first [`MAX_CANDIDATES`] are accepted.
    pub fn set_candidates(&mut self, mut candidates: Vec<Candidate>, now: Instant) {
        candidates.truncate(MAX_CANDIDATES);
        // Those with equal evidence stay in the order of the peer.
        candidates.sort_by_key(|candidate| candidate.evidence);
        if candidates == self.candidates && !candidates.is_empty() {
            return;
        }
        self.candidates = candidates;
        self.first_candidate = 0;
        self.renew_links();
        if let State::Open = self.state {
            let is_new = |link: &&mut Link| link.answered.is_none();
            let links = self.links.iter_mut().filter(is_new);
            links
                .filter(|link| may_probe(link))
                .for_each(|link| link.begin_burst(now));
        }
    }

    /// Makes the links those of the candidates, besides the ones that work, and offers them to the data plane.
    fn renew_links(&mut self) {
        let primary = self.primary;
        let is_candidate = |path: Path| self.candidates.iter().any(|c| c.path == path);
        self.links.retain(|link| {
            Some(link.path) == primary || link.answered.is_some() || is_candidate(link.path)
        });
        let count = self.candidates.len();
        for n in 0..count {
            let at = (self.first_candidate + n) % count;
            let Some(candidate) = self.candidates.get(at).copied() else {
                continue;
            };
            if self.link(Some(candidate.path)).is_none() && self.links.len() < MAX_PROBED {
                self.links
                    .push(Link::new(candidate.path, candidate.evidence));
            }
        }
        self.offer();
    }

    /// Tells the data plane which paths there are.
    fn offer(&mut self) {
        let paths = self.links.iter().map(|link| link.path).collect();
        let asked = |link: &&Link| may_probe(link);
        let direct = self
            .links
            .iter()
            .filter(asked)
            .filter(|link| link.path.relay().is_none());
        let relays = self
            .links
            .iter()
            .filter(asked)
            .filter(|link| link.path.relay().is_some());
        let opens = direct
            .chain(relays.take(OPENING_RELAYS))
            .map(|link| link.path);
        self.actions.push(Action::Offer(paths, opens.collect()));
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
        if let Some(link) = self.primary.and_then(|path| self.link_mut(path)) {
            link.handle_probed(now);
        }
    }

    /// The network of this node or of the peer changed: all paths may have changed with it.
    pub fn handle_network_changed(&mut self, now: Instant) {
        self.upgrades = 0;
        match self.state {
            State::Cold | State::Opening { .. } => {}
            State::Open | State::Suspect { .. } => self.probe_all(now),
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
            (self.state, self.standby(now))
        {
            self.use_path(standby, None, now);
        }
    }

    /// The peer waits for probes by these paths, or sends probes there itself.
    pub fn handle_consent(&mut self, paths: &[Path], now: Instant) {
        for path in paths.iter().take(MAX_CANDIDATES) {
            if self.link(Some(*path)).is_none() && self.links.len() < MAX_PATHS {
                self.links.push(Link::new(*path, Evidence::Observed));
                self.offer();
            }
            if let Some(link) = self.link_mut(*path) {
                link.begin_burst(now);
            }
        }
    }

    /// The data plane reports what it knows.
    pub fn handle_report(&mut self, report: &Report, now: Instant) {
        let is_sent = report.sent > self.sent;
        self.sent = self.sent.max(report.sent);
        if self.primary != report.primary {
            self.primary = report.primary;
            self.links.iter_mut().for_each(|link| link.faster = 0);
        }
        for seen in &report.links {
            self.handle_link(seen, now);
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

    /// Takes over what is known of one path.
    fn handle_link(&mut self, seen: &LinkReport, now: Instant) {
        let in_use = self.link(self.primary).and_then(Link::srtt);
        let is_primary = self.primary == Some(seen.path);
        let is_open = matches!(self.state, State::Open | State::Suspect { .. });
        if self.link(Some(seen.path)).is_none() {
            if seen.heard.is_none() && seen.answered.is_none() && !is_primary {
                return;
            }
            self.make_room();
            let mut link = Link::new(seen.path, Evidence::Heard);
            if is_open {
                // The peer is heard by another path than before: whether it works both ways is shown by a probe, and so is
                // whether the path in use still does.
                link.begin_burst(now);
                let primary = self.primary.and_then(|path| self.link_mut(path));
                primary.into_iter().for_each(|link| link.begin_burst(now));
            }
            self.links.push(link);
        }
        let Some(link) = self.link_mut(seen.path) else {
            return;
        };
        if let (Some(sample), false, Some(in_use)) = (link.handle_report(seen), is_primary, in_use)
        {
            let gain = in_use.saturating_sub(sample);
            let is_faster = gain > LEAST_GAIN && gain * 5 > in_use;
            link.faster = if is_faster { link.faster + 1 } else { 0 };
        }
    }

    /// Makes room for a link: the one that is least useful is removed.
    fn make_room(&mut self) {
        if self.links.len() < MAX_PATHS {
            return;
        }
        let primary = self.primary;
        let others = self.links.iter().enumerate();
        let least = others
            .filter(|(_, link)| Some(link.path) != primary)
            .min_by_key(|(_, link)| (link.answered, link.heard));
        if let Some((at, _)) = least {
            self.links.remove(at);
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
                    self.probe_all(now);
                }
            }
            State::Open => {
                let patience = self
                    .watched
                    .map_or(self.patience(), |(patience, ..)| patience);
                let due = report.waits_since.map(|since| since + patience);
                if due.is_some_and(|due| due <= now) {
                    self.state = State::Suspect {
                        since: now,
                        probes: 0,
                        is_wide: false,
                    };
                }
            }
            State::Suspect { since, .. } => {
                let primary = self.link(self.primary);
                if primary.is_some_and(|link| link.works_since(since)) {
                    self.state = State::Open;
                }
            }
        }
        self.choose(now);
    }

    /// How long the path in use may be silent while packets are sent.
    fn patience(&self) -> Duration {
        let srtt = self.link(self.primary).and_then(Link::srtt);
        LEAST_PATIENCE.max(srtt.unwrap_or_default() * 4)
    }

    /// The path in use works from now on.
    fn open(&mut self, now: Instant) {
        self.state = State::Open;
        self.upgrade = Some(now + retry_pause(self.upgrades));
        self.standby_at = Some(now + STANDBY_INTERVAL);
    }

    /// Begins a burst by each path that may be probed.
    fn probe_all(&mut self, now: Instant) {
        let links = self.links.iter_mut().filter(|link| may_probe(link));
        links.for_each(|link| link.begin_burst(now));
    }

    fn use_path(&mut self, path: Path, gap: Option<Duration>, now: Instant) {
        let was_direct = self.primary.is_some_and(|path| path.relay().is_none());
        let is_young = |at: Instant| now.saturating_duration_since(at) < STEADY;
        if was_direct && path.relay().is_some() && !self.chosen.is_some_and(is_young) {
            self.upgrades = 0;
        }
        self.actions.push(Action::Use(path, gap));
        self.chosen = Some(now);
        if gap.is_none() {
            self.primary = Some(path);
        }
        self.links.iter_mut().for_each(|link| link.faster = 0);
        self.open(now);
    }

    /// Moves to a better path, if there is one.
    fn choose(&mut self, now: Instant) {
        let rests = |at: Instant| now.saturating_duration_since(at) < CHOICE_INTERVAL;
        if !matches!(self.state, State::Open) || self.chosen.is_some_and(rests) {
            return;
        }
        let primary = self.link(self.primary);
        let relay = self.relay_srtt(now);
        let better = self.others().filter(|link| match primary {
            Some(primary) => beats(link, primary, relay, now),
            None => link.is_fresh(now),
        });
        let Some(best) = better.min_by_key(|link| (link.path.kind(), link.srtt())) else {
            return;
        };
        let before = primary.and_then(Link::srtt);
        let gain = before.zip(best.srtt()).map(|(a, b)| a.saturating_sub(b));
        let gap = gain.filter(|gain| !gain.is_zero()).map(|gain| gain / 2);
        self.use_path(best.path, gap, now);
    }

    /// The shortest round trip over a relay that answers.
    fn relay_srtt(&self, now: Instant) -> Option<Duration> {
        let relays = self.links.iter().filter(|link| link.path.relay().is_some());
        relays
            .filter(|link| link.is_fresh(now))
            .filter_map(Link::srtt)
            .min()
    }

    /// Returns what is due. The last report is not older than this call.
    pub fn poll(&mut self, budget: &mut Budget, now: Instant) -> Vec<Action> {
        self.choose(now);
        let mut probes = Vec::new();
        match self.state {
            State::Cold => {}
            State::Opening { since } => {
                if now.saturating_duration_since(since) >= LOST_AFTER {
                    self.lose(0, now);
                }
            }
            State::Open => self.poll_open(&mut probes, now),
            State::Suspect {
                since,
                probes: sent,
                is_wide,
            } => self.poll_suspect(&mut probes, (since, sent, is_wide), now),
            State::Lost { again, tries } => {
                if again <= now {
                    self.try_again(tries, now);
                }
            }
        }
        for link in &mut self.links {
            if link.poll(now) && !probes.contains(&link.path) {
                probes.push(link.path);
            }
        }
        for path in probes {
            if budget.take(&path, now) {
                if let Some(link) = self.link_mut(path) {
                    link.handle_probed(now);
                }
                self.actions.push(Action::Probe(path));
            }
        }
        self.watch(now);
        std::mem::take(&mut self.actions)
    }

    fn poll_open(&mut self, probes: &mut Vec<Path>, now: Instant) {
        if self.standby_at.is_some_and(|at| at <= now) {
            self.standby_at = Some(now + STANDBY_INTERVAL);
            if !self.is_used(now) {
                // The next packet is reported, and lets it go on.
                self.standby_at = None;
            } else if let Some(standby) = self.standby(now) {
                probes.extend(self.primary);
                probes.push(standby);
            }
        }
        let is_direct = self.primary.is_some_and(|path| path.relay().is_none());
        if !is_direct && self.upgrade.is_some_and(|at| at <= now) {
            self.upgrades = self.upgrades.saturating_add(1);
            self.upgrade = Some(now + retry_pause(self.upgrades));
            self.turn_candidates();
            let links = self.links.iter_mut().filter(|link| may_probe(link));
            let direct = links.filter(|link| link.path.relay().is_none());
            direct.for_each(|link| link.begin_burst(now));
        }
    }

    /// If there are more candidates than may be probed at a time, lets others have their turn.
    fn turn_candidates(&mut self) {
        if self.candidates.len() > MAX_PROBED {
            self.first_candidate = (self.first_candidate + 4) % self.candidates.len();
            let primary = self.primary;
            self.links
                .retain(|link| Some(link.path) == primary || link.answered.is_some());
            self.renew_links();
        }
    }

    fn poll_suspect(
        &mut self,
        probes: &mut Vec<Path>,
        (since, sent, is_wide): (Instant, u32, bool),
        now: Instant,
    ) {
        let next = since + SUSPECT_INTERVAL * sent;
        if sent < SUSPECT_PROBES && next <= now {
            probes.extend(self.primary);
            let mut is_wide = is_wide;
            // The first probe is most often answered, so the others are asked from the second one on.
            if sent > 0 && !is_wide {
                match self.standby(now) {
                    Some(standby) => probes.push(standby),
                    None => {
                        is_wide = true;
                        self.probe_others(now);
                    }
                }
            }
            self.state = State::Suspect {
                since,
                probes: sent + 1,
                is_wide,
            };
        }
        if now < self.fails_at(since) {
            return;
        }
        let answering = self.others().filter(|link| link.answered >= Some(since));
        if let Some(best) = answering.min_by_key(|link| (link.path.kind(), link.srtt())) {
            let path = best.path;
            self.use_path(path, None, now);
        } else if now.saturating_duration_since(since) >= LOST_AFTER {
            self.lose(0, now);
        } else if !is_wide && sent >= SUSPECT_PROBES {
            self.state = State::Suspect {
                since,
                probes: sent,
                is_wide: true,
            };
            self.probe_others(now);
        }
    }

    fn probe_others(&mut self, now: Instant) {
        let primary = self.primary;
        let others = self
            .links
            .iter_mut()
            .filter(|link| Some(link.path) != primary);
        others
            .filter(|link| may_probe(link))
            .for_each(|link| link.begin_burst(now));
    }

    /// When a path that is suspect since then has failed, unless it answers before.
    fn fails_at(&self, since: Instant) -> Instant {
        let srtt = self.link(self.primary).and_then(Link::srtt);
        since + (SUSPECT_INTERVAL * SUSPECT_PROBES).max(srtt.unwrap_or_default() * 3)
    }

    fn lose(&mut self, tries: u32, now: Instant) {
        self.state = State::Lost {
            again: now + retry_pause(tries),
            tries: tries.saturating_add(1),
        };
    }

    fn try_again(&mut self, tries: u32, now: Instant) {
        self.turn_candidates();
        self.probe_all(now);
        self.actions.push(Action::Open);
        self.lose(tries, now);
    }

    /// Whether a packet was sent lately.
    fn is_used(&self, now: Instant) -> bool {
        self.sent
            .is_some_and(|at| now.saturating_duration_since(at) < IN_USE)
    }

    /// Asks the data plane for the reports that are needed.
    fn watch(&mut self, now: Instant) {
        let is_closed = matches!(
            self.state,
            State::Cold | State::Opening { .. } | State::Lost { .. }
        );
        let wanted = (self.patience(), is_closed, !self.is_used(now));
        if self.watched != Some(wanted) {
            self.watched = Some(wanted);
            let (patience, heard, sent) = wanted;
            self.actions.push(Action::Watch(patience, heard, sent));
        }
    }

    /// When [`Peer::poll`] is due, after a fresh report.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Cold => None,
            State::Opening { since } => Some(since + LOST_AFTER),
            State::Open => {
                let is_direct = self.primary.is_some_and(|path| path.relay().is_none());
                earliest([self.upgrade.filter(|_| !is_direct), self.standby_at])
            }
            State::Suspect {
                since,
                probes,
                is_wide,
            } => {
                let probe = (probes < SUSPECT_PROBES).then(|| since + SUSPECT_INTERVAL * probes);
                let fails = (!is_wide || probe.is_some()).then(|| self.fails_at(since));
                earliest([probe, fails, Some(since + LOST_AFTER)])
            }
            State::Lost { again, .. } => Some(again),
        };
        let probes = self.links.iter().filter_map(Link::poll_timeout).min();
        earliest([own, probes])
    }
}

impl Default for Peer {
    fn default() -> Self {
        Self::new()
    }
}

fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}

/// Whether probes may be sent by a path without the consent of the peer.
fn may_probe(link: &Link) -> bool {
    link.evidence < Evidence::Observed || link.heard.is_some()
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
