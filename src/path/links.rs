//! All paths to one peer: which of its candidates are probed, and what is known of each path.

use std::time::{Duration, Instant};

use super::link::{Evidence, FRESH, KEPT_FOR, Link, LinkReport};
use crate::model::Path;
use crate::model::path::MAX_PATHS;

/// The largest number of candidates of a peer that are accepted.
pub const MAX_CANDIDATES: usize = 16;
/// The number of candidates that are probed at a time. The other places are for paths by which the peer is heard.
const MAX_PROBED: usize = MAX_PATHS - 2;
/// The number of paths that are kept beside the one in use if they are no candidates and the candidates need their places.
const MAX_OTHERS: usize = MAX_PATHS - MAX_PROBED;
/// If there are more candidates, so many of them change places with others at each attempt.
const TURN: usize = 4;
/// The number of relays by which an initiation is sent at once.
const OPENING_RELAYS: usize = 2;
/// A path of the same kind is better if its round trip is shorter by more than this, and by more than a fifth.
pub const LEAST_GAIN: Duration = Duration::from_millis(2);

/// A path by which a peer may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The path.
    pub path: Path,
    /// How it is known.
    pub evidence: Evidence,
}

/// The paths to one peer, at most [`MAX_PATHS`].
#[derive(Debug, Default)]
pub struct Links {
    /// The path by which packets are sent.
    primary: Option<Path>,
    links: Vec<Link>,
    candidates: Vec<Candidate>,
    /// The place in the candidates from which those are taken that are probed.
    first_candidate: usize,
}

impl Links {
    /// What is known of each path.
    #[must_use]
    pub fn all(&self) -> &[Link] {
        &self.links
    }

    /// The path by which packets are sent.
    #[must_use]
    pub fn primary(&self) -> Option<Path> {
        self.primary
    }

    /// The round trip by the path in use, or zero if it was not measured.
    pub(super) fn trip_in_use(&self) -> Duration {
        let srtt = self.in_use().and_then(Link::srtt);
        srtt.unwrap_or_default()
    }

    /// The path with this address.
    pub(super) fn of(&self, path: Path) -> Option<&Link> {
        self.links.iter().find(|link| link.path == path)
    }

    pub(super) fn of_mut(&mut self, path: Path) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.path == path)
    }

    /// The path in use.
    pub(super) fn in_use(&self) -> Option<&Link> {
        self.of(self.primary?)
    }

    /// Whether packets are sent to the peer itself.
    pub(super) fn is_direct(&self) -> bool {
        self.primary.is_some_and(|path| path.relay().is_none())
    }

    /// The paths that are not in use.
    pub(super) fn others(&self) -> impl Iterator<Item = &Link> {
        let primary = self.primary;
        let links = self.links.iter();
        links.filter(move |link| Some(link.path) != primary)
    }

    /// The path that is used if the one in use fails: a relay, if there is one.
    #[must_use]
    pub fn standby(&self, now: Instant) -> Option<Path> {
        let others = self.others().filter(|link| link.answered.is_some());
        let others = others.filter(|link| is_open_to_probes(self, link, now));
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

    /// The shortest round trip over a relay that answers.
    pub(super) fn relay_srtt(&self, now: Instant) -> Option<Duration> {
        let relays = self.links.iter().filter(|link| link.path.relay().is_some());
        let fresh = relays.filter(|link| link.is_fresh(now));
        fresh.filter_map(Link::srtt).min()
    }

    /// Sets the candidates, of which the first [`MAX_CANDIDATES`] are accepted. Returns the paths that were no candidates before or
    /// may be probed only now, or nothing if the candidates are the same, in whichever order.
    pub(super) fn set_candidates(
        &mut self,
        mut candidates: Vec<Candidate>,
        now: Instant,
    ) -> Option<Vec<Path>> {
        candidates.truncate(MAX_CANDIDATES);
        // Those with equal evidence stay in the order of the peer.
        candidates.sort_by_key(|candidate| candidate.evidence);
        let before = std::mem::replace(&mut self.candidates, candidates);
        let is_same = before.iter().all(|of| self.candidates.contains(of))
            && self.candidates.iter().all(|of| before.contains(of));
        if is_same && !before.is_empty() {
            return None;
        }
        self.first_candidate = 0;
        self.renew(now);
        let is_known = |of: &Candidate, before: &Candidate| {
            let was_observed = before.evidence == Evidence::Observed;
            of.path == before.path && (!was_observed || of.evidence == Evidence::Observed)
        };
        let candidates = self.candidates.iter();
        let new = candidates.filter(|of| !before.iter().any(|before| is_known(of, before)));
        Some(new.map(|of| of.path).collect())
    }

    fn is_candidate(&self, path: Path) -> bool {
        self.candidates.iter().any(|of| of.path == path)
    }

    /// Makes the links those of the candidates, besides the ones that work. A peer that moves leaves its former addresses behind,
    /// so these give their places to the new ones.
    fn renew(&mut self, now: Instant) {
        let mut links = std::mem::take(&mut self.links);
        links.retain(|link| {
            let is_primary = Some(link.path) == self.primary;
            is_primary || link.is_alive(now) || self.is_candidate(link.path)
        });
        self.links = links;
        let candidates = self.candidates.iter();
        let missing = candidates.filter(|of| self.of(of.path).is_none()).count();
        while self.links.len() + missing > MAX_PROBED
            && let Some(at) = self.least_other()
        {
            self.links.remove(at);
        }
        let turned = self.candidates.iter().cycle().skip(self.first_candidate);
        let turned: Vec<Candidate> = turned.take(self.candidates.len()).copied().collect();
        for candidate in turned {
            if let Some(link) = self.of_mut(candidate.path) {
                link.handle_candidate(candidate.evidence);
            } else if self.links.len() < MAX_PROBED {
                let link = Link::new(candidate.path, candidate.evidence);
                self.links.push(link);
            }
        }
    }

    /// If there are more candidates than may be probed at a time, lets others have their turn. Returns whether there are.
    pub(super) fn turn_candidates(&mut self, now: Instant) -> bool {
        let is_turned = self.candidates.len() > MAX_PROBED;
        if is_turned {
            self.first_candidate = (self.first_candidate + TURN) % self.candidates.len();
            let primary = self.primary;
            self.links
                .retain(|link| Some(link.path) == primary || link.is_alive(now));
            self.renew(now);
        }
        is_turned
    }

    /// The paths for the data plane: all of them, and those by which initiations are sent. If the peer `is_lost`, these are by all
    /// that may work.
    pub(super) fn offers(&self, is_lost: bool) -> (Vec<Path>, Vec<Path>) {
        let may_open = |link: &&Link| {
            link.consented || link.may_probe() && (is_lost || !is_abandoned(self, link))
        };
        let asked = || self.links.iter().filter(may_open);
        let direct = asked().filter(|link| link.path.relay().is_none());
        let relays = asked().filter(|link| link.path.relay().is_some());
        let opens = direct.chain(relays.take(OPENING_RELAYS));
        let all = self.links.iter().map(|link| link.path);
        (all.collect(), opens.map(|link| link.path).collect())
    }

    /// Adds a path to which the peer consents. Returns whether it is new.
    pub(super) fn add_observed(&mut self, path: Path, now: Instant) -> bool {
        if self.of(path).is_none() && self.links.len() >= MAX_PATHS {
            let is_idle = |link: &Link| !link.is_alive(now) && link.poll_timeout().is_none();
            let mut links = self.links.iter();
            let idle = links.position(|link| {
                let is_primary = Some(link.path) == self.primary;
                !is_primary && !self.is_candidate(link.path) && is_idle(link)
            });
            idle.map(|at| self.links.remove(at));
        }
        let is_new = self.of(path).is_none() && self.links.len() < MAX_PATHS;
        if is_new {
            self.links.push(Link::new(path, Evidence::Observed));
        }
        is_new
    }

    /// Handshakes are sent only by those paths again to which no consent is needed.
    pub(super) fn end_consent(&mut self) {
        self.links
            .iter_mut()
            .for_each(|link| link.consented = false);
    }

    /// Another path is in use from now on.
    pub(super) fn set_primary(&mut self, path: Option<Path>) {
        if self.primary != path {
            self.primary = path;
            self.forget_comparison();
        }
    }

    /// The paths are compared with the one in use anew.
    pub(super) fn forget_comparison(&mut self) {
        self.links.iter_mut().for_each(|link| link.faster = 0);
    }

    /// Takes over what the data plane knows of one path. `is_open` says whether another path works.
    pub(super) fn handle_report(&mut self, seen: &LinkReport, is_open: bool, now: Instant) {
        let in_use = self.in_use().and_then(Link::srtt);
        let is_primary = self.primary == Some(seen.path);
        if self.of(seen.path).is_none() {
            // The data plane may still have a path that was given up here.
            let last = seen.heard.max(seen.answered);
            let is_alive = last.is_some_and(|at| now.saturating_duration_since(at) < KEPT_FOR);
            if !is_alive && !is_primary {
                return;
            }
            self.make_room();
            self.links.push(Link::new(seen.path, Evidence::Heard));
            if is_open {
                // The peer is heard by another path than before: whether it works both ways is shown by a probe, and so is
                // whether the path in use still does.
                let primary = self.primary;
                let both = self.links.iter_mut();
                both.filter(|link| link.path == seen.path || Some(link.path) == primary)
                    .for_each(|link| link.begin_burst(now));
            }
        }
        let Some(link) = self.of_mut(seen.path) else {
            return;
        };
        if let (Some(sample), false, Some(in_use)) = (link.handle_report(seen), is_primary, in_use)
        {
            let gain = in_use.saturating_sub(sample);
            let is_faster = gain > LEAST_GAIN && gain * 5 > in_use;
            link.faster = if is_faster { link.faster + 1 } else { 0 };
        }
    }

    /// The link that is least useful among those that are neither in use nor candidates, if there are many of them.
    fn least_other(&self) -> Option<usize> {
        let links = self.links.iter().enumerate();
        let others = links
            .filter(|(_, link)| Some(link.path) != self.primary && !self.is_candidate(link.path));
        let is_many = others.clone().count() > MAX_OTHERS;
        let least = others.min_by_key(|(_, link)| link.last());
        least.filter(|_| is_many).map(|(at, _)| at)
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
        let least = self.least_other().or(least.map(|(at, _)| at));
        least.map(|at| self.links.remove(at));
    }

    /// Begins a burst by each path that may be probed and is one of `which`.
    pub(super) fn probe(&mut self, which: impl Fn(&Link) -> bool, now: Instant) {
        let links = self.links.iter_mut();
        let links = links.filter(|link| link.may_probe() && which(link));
        links.for_each(|link| link.begin_burst(now));
    }

    /// The paths by which a probe of a burst is due.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Path> {
        let links = self.links.iter_mut();
        let due = links.filter_map(|link| link.poll(now).then_some(link.path));
        due.collect()
    }

    /// When [`Links::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.links.iter().filter_map(Link::poll_timeout).min()
    }
}

/// Whether `link` has failed and leads through an address translator, which may have another port for the peer now: then a datagram
/// to the old one can spoil the next punch, so nothing is sent by it before the peer agrees.
fn is_abandoned(links: &Links, link: &Link) -> bool {
    let is_failed = link.failed > link.last();
    is_failed && link.path.relay().is_none() && !is_named(links, link)
}

/// The paths by which nothing is sent before the peer agrees.
#[must_use]
pub fn abandoned(links: &Links) -> Vec<Path> {
    let abandoned = links.links.iter().filter(|link| is_abandoned(links, link));
    abandoned.map(|link| link.path).collect()
}

/// Begins a burst by each path that `which` selects and that is not one of [`abandoned`].
pub(super) fn probe_open(links: &mut Links, which: impl Fn(&Link) -> bool, now: Instant) {
    let abandoned = abandoned(links);
    links.probe(|link| which(link) && !abandoned.contains(&link.path), now);
}

/// Whether the peer names `link` as one by which it may be reached at any time.
fn is_named(links: &Links, link: &Link) -> bool {
    let mut candidates = links.candidates.iter();
    candidates.any(|of| of.path == link.path && of.evidence < Evidence::Observed)
}

/// Whether probes may be sent by `link`, which is not in use, though nobody agreed on them now.
pub(super) fn is_open_to_probes(links: &Links, link: &Link, now: Instant) -> bool {
    let is_recent = |at: Instant| now.saturating_duration_since(at) < FRESH;
    let is_heard = link.last().is_some_and(is_recent) && !is_abandoned(links, link);
    link.path.relay().is_some() || is_named(links, link) || is_heard
}
