//! The size of the largest packet that fits through the path to each peer: datagram packetization layer path MTU discovery
//! (RFC 8899).
//!
//! ICMP errors of routers are ignored, since they are often lost and can be forged. Only an answer to a probe of a size shows that
//! the size fits (section 4.6 allows that). A *search* begins with one probe of the largest size. On most paths it is
//! answered, and the search ends. Otherwise probes of several sizes between the least size and the refused one are sent at once,
//! and the gap between the largest answered size and the least refused one is divided until it is small. Probes are
//! never fragmented on the way.
//!
//! A path is searched when the peer is first reachable, when it begins to be used, and every [`RAISE_INTERVAL`]. A path through a
//! relay is searched only after [`SETTLED_AFTER`], because the probes cost the relay more than everything else by which two nodes
//! find a direct path, and the direct path is most often found before. While packets are sent to the peer, the size in use is
//! confirmed every [`CONFIRM_INTERVAL`], so that a path that became narrower is not a black hole for longer. Until a search ends, the result of the one before stays valid. If a peer answers no probe of any size, the
//! result does not change.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::path::MAX_PATHS;
use crate::model::{self, PublicKey};

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5), which is tried first. BASE_PLPMTU of RFC 8899 is about as
/// large.
pub const LEAST_IPV6: u16 = 1280;
/// The size that every IPv4 host accepts (RFC 791 section 3.1). Smaller sizes are not tried.
pub const LEAST: u16 = 576;
/// How long to wait for an answer: the least time that RFC 8899 section 5.1.1 allows.
const PROBE_TIMER: Duration = Duration::from_secs(1);
/// How often a single probe is sent (MAX_PROBES, section 5.1.2).
const TRIES: u8 = 3;
/// How often probes of several sizes are sent: a lost one costs only a few bytes of accuracy.
const SERIES_TRIES: u8 = 2;
/// The maximum number of probes that are sent at once.
const MAX_SERIES: u16 = 8;
/// The number of bytes by which the result may be too low.
const RESOLUTION: u16 = 20;
/// How long after a search the largest size is tried again (PMTU_RAISE_TIMER, section 5.1.1).
pub const RAISE_INTERVAL: Duration = Duration::from_secs(600);
/// A path through a relay that is in use for so long is searched. A direct path is found in half a second at the first attempt, and
/// the second one begins after a second.
pub const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// How often the size in use is confirmed while packets are sent to the peer (CONFIRMATION_TIMER, section 5.1.1).
pub const CONFIRM_INTERVAL: Duration = Duration::from_secs(30);
/// After so many bytes since the last search, packets are being sent to the peer. Keepalives and probes alone are fewer.
const IN_USE: u64 = 64 * 1024;

/// A request to send probes of these sizes, in bytes of the packet in the tunnel, to this peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(pub PublicKey, pub Vec<u16>);

/// The path to a peer as the data plane reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The path in use.
    pub path: Option<model::Path>,
    /// Whether the peer is reachable.
    pub reachable: bool,
    /// The number of bytes sent to it so far.
    pub sent: u64,
}

impl Way {
    fn is_relayed(&self) -> bool {
        self.path.is_some_and(|path| path.relay().is_some())
    }
}

#[derive(Debug)]
struct Path {
    way: Way,
    limit: u16,
    state: State,
    /// The results for the paths that were used before, the oldest first.
    before: VecDeque<(model::Path, u16)>,
}

#[derive(Debug)]
enum State {
    /// A search begins as soon as the peer is reachable.
    New,
    /// The path leads through a relay, and a search begins if it is still in use then.
    Settling {
        until: Instant,
    },
    Searching(Search),
    /// A search has ended.
    Known {
        raised: Instant,
        confirmed: Instant,
        sent: u64,
    },
}

#[derive(Debug)]
struct Search {
    /// When the largest size was last tried; none if this search does that.
    raised: Option<Instant>,
    fits: Option<u16>,
    refused: Option<u16>,
    /// The sizes of the probes that were sent, smallest first. It is never empty.
    sizes: Vec<u16>,
    tries: u8,
    probed: Instant,
}

/// The result of a round of probes.
enum Next {
    Series(Vec<u16>),
    Found(u16),
    Nothing,
}

/// The state machine of all paths. It reads no clock: each call passes the time.
#[derive(Debug)]
pub struct PathMtu {
    widest: u16,
    paths: BTreeMap<PublicKey, Path>,
}

impl PathMtu {
    /// For a tunnel device with an MTU of `widest` bytes: no packet is larger.
    #[must_use]
    pub fn new(widest: u16) -> Self {
        Self {
            widest,
            paths: BTreeMap::new(),
        }
    }

    /// Removes all peers that are not `known`.
    pub fn retain(&mut self, known: impl Fn(&PublicKey) -> bool) {
        self.paths.retain(|id, _| known(id));
    }

    /// The data plane reported the path to `id`. A path whose endpoint changed or that broke is searched again.
    pub fn handle_way(&mut self, id: PublicKey, way: Way) {
        let path = self.paths.entry(id).or_insert_with(|| Path {
            way,
            limit: self.widest,
            state: State::New,
            before: VecDeque::new(),
        });
        if way.path != path.way.path {
            path.change(way.path);
        }
        if way.path != path.way.path || !way.reachable {
            path.state = State::New;
        }
        path.way = way;
    }

    /// `id` answered a probe of `size` bytes.
    pub fn handle_answer(&mut self, id: &PublicKey, size: u16) {
        if let Some(State::Searching(search)) = self.paths.get_mut(id).map(|p| &mut p.state)
            && search.sizes.contains(&size)
        {
            search.fits = search.fits.max(Some(size));
        }
    }

    /// The size in bytes of the largest packet that fits through the path to `id`, as far as known.
    #[must_use]
    pub fn limit(&self, id: &PublicKey) -> u16 {
        self.paths.get(id).map_or(self.widest, |path| path.limit)
    }

    /// Whether a search for the path to `id` is in progress.
    #[must_use]
    pub fn is_searching(&self, id: &PublicKey) -> bool {
        self.paths
            .get(id)
            .is_some_and(|path| matches!(path.state, State::Searching(_)))
    }

    /// When [`PathMtu::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let paths = self.paths.values();
        paths.filter_map(|path| path.next(now)).min()
    }

    /// The probes to send now.
    pub fn poll(&mut self, now: Instant) -> Vec<Sizes> {
        let widest = self.widest;
        self.paths
            .iter_mut()
            .filter_map(|(id, path)| path.poll(widest, now).map(|sizes| Sizes(*id, sizes)))
            .collect()
    }
}

impl Path {
    /// Another path is used from now on. Its own result is valid if there is one, otherwise the one of the path before.
    fn change(&mut self, to: Option<model::Path>) {
        if let Some(used) = self.way.path {
            self.before.retain(|(path, _)| *path != used);
            if self.before.len() >= MAX_PATHS {
                self.before.pop_front();
            }
            self.before.push_back((used, self.limit));
        }
        let known = self.before.iter().find(|(path, _)| Some(*path) == to);
        self.limit = known.map_or(self.limit, |(_, limit)| *limit);
    }

    /// When it is polled next.
    fn next(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::New => self.way.reachable.then_some(now),
            State::Settling { until } => Some(*until),
            State::Searching(search) if search.unanswered().next().is_none() => Some(now),
            State::Searching(search) => Some(search.probed + PROBE_TIMER),
            State::Known {
                raised,
                confirmed,
                sent,
            } => {
                let confirm = self.confirm_at(*confirmed, *sent);
                let raise = *raised + RAISE_INTERVAL;
                Some(confirm.map_or(raise, |at| at.min(raise)))
            }
        }
    }

    /// When the limit is confirmed again: only if the path is in use.
    fn confirm_at(&self, confirmed: Instant, sent: u64) -> Option<Instant> {
        let is_in_use = self.way.sent.saturating_sub(sent) >= IN_USE;
        is_in_use.then(|| confirmed + CONFIRM_INTERVAL)
    }

    fn poll(&mut self, widest: u16, now: Instant) -> Option<Vec<u16>> {
        match &mut self.state {
            State::New if !self.way.reachable => None,
            State::New if self.way.is_relayed() => {
                let until = now + SETTLED_AFTER;
                self.state = State::Settling { until };
                None
            }
            State::Settling { until } if *until > now => None,
            State::New | State::Settling { .. } => Some(self.search(widest, None, now)),
            State::Known { raised, .. } if now.duration_since(*raised) >= RAISE_INTERVAL => {
                Some(self.search(widest, None, now))
            }
            State::Known {
                raised,
                confirmed,
                sent,
            } => {
                let (raised, confirmed, sent) = (*raised, *confirmed, *sent);
                let at = self.confirm_at(confirmed, sent);
                at.filter(|at| *at <= now)
                    .map(|_| self.search(self.limit, Some(raised), now))
            }
            State::Searching(search) => {
                if !search.is_over(now) {
                    return search.again(now);
                }
                let raised = search.raised.unwrap_or(now);
                match search.next() {
                    Next::Series(sizes) => return Some(search.begin(sizes, now)),
                    Next::Found(size) => self.limit = size,
                    Next::Nothing => {}
                }
                self.state = State::Known {
                    raised,
                    confirmed: now,
                    sent: self.way.sent,
                };
                None
            }
        }
    }

    fn search(&mut self, size: u16, raised: Option<Instant>, now: Instant) -> Vec<u16> {
        let sizes = vec![size];
        self.state = State::Searching(Search {
            raised,
            fits: None,
            refused: None,
            sizes: sizes.clone(),
            tries: 1,
            probed: now,
        });
        sizes
    }
}

impl Search {
    fn is_over(&self, now: Instant) -> bool {
        let tries = if self.sizes.len() > 1 {
            SERIES_TRIES
        } else {
            TRIES
        };
        let waited = now.duration_since(self.probed) >= PROBE_TIMER;
        self.unanswered().next().is_none() || (waited && self.tries >= tries)
    }

    /// The sizes above the largest answered one.
    fn unanswered(&self) -> impl Iterator<Item = u16> {
        let fits = self.fits;
        self.sizes
            .iter()
            .copied()
            .filter(move |size| Some(*size) > fits)
    }

    fn again(&mut self, now: Instant) -> Option<Vec<u16>> {
        if now.duration_since(self.probed) < PROBE_TIMER {
            return None;
        }
        self.probed = now;
        self.tries += 1;
        Some(self.unanswered().collect())
    }

    fn begin(&mut self, sizes: Vec<u16>, now: Instant) -> Vec<u16> {
        self.sizes.clone_from(&sizes);
        self.tries = 1;
        self.probed = now;
        sizes
    }

    fn next(&mut self) -> Next {
        self.refused = self.unanswered().min().or(self.refused);
        match (self.fits, self.refused) {
            (Some(fits), None) => Next::Found(fits),
            (Some(fits), Some(refused)) if refused.saturating_sub(fits) <= RESOLUTION => {
                Next::Found(fits)
            }
            (Some(fits), Some(refused)) => {
                Next::Series(sizes_between(fits, refused).skip(1).collect())
            }
            (None, Some(refused)) if refused > LEAST_IPV6 => {
                Next::Series(sizes_between(LEAST_IPV6, refused).collect())
            }
            (None, Some(refused)) if refused > LEAST => {
                Next::Series(sizes_between(LEAST, refused).collect())
            }
            (None, _) => Next::Nothing,
        }
    }
}

/// Evenly spaced sizes from `least` to below `refused`.
fn sizes_between(least: u16, refused: u16) -> impl Iterator<Item = u16> {
    let step = refused.saturating_sub(least).div_ceil(MAX_SERIES).max(1);
    (least..refused).step_by(usize::from(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: PublicKey = PublicKey([7; 32]);

    fn way(n: u8, reachable: bool, sent: u64) -> Way {
        Way {
            path: Some(model::Path::Direct(([192, 0, 2, n], 51820).into())),
            reachable,
            sent,
        }
    }

    /// Polls every half second from `from` for `seconds` over a path with an MTU of `carries`, and returns which probes were sent when.
    fn run(
        mtu: &mut PathMtu,
        from: Instant,
        seconds: u64,
        carries: u16,
    ) -> Vec<(Duration, Vec<u16>)> {
        let mut log = Vec::new();
        for half in 0..seconds * 2 {
            let after = Duration::from_millis(half * 500);
            for Sizes(id, sizes) in mtu.poll(from + after) {
                for size in sizes.iter().filter(|size| **size <= carries) {
                    mtu.handle_answer(&id, *size);
                }
                log.push((after, sizes));
            }
        }
        log
    }

    #[test]
    fn a_path_with_the_full_mtu_is_probed_once() {
        let start = Instant::now();
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, way(1, false, 0));
        assert_eq!(
            run(&mut mtu, start, 5, 1420),
            [],
            "the peer is not reachable"
        );
        mtu.handle_way(ID, way(1, true, 0));
        let log = run(&mut mtu, start, 590, 1420);
        assert_eq!(log, [(Duration::ZERO, vec![1420])]);
        assert_eq!(mtu.limit(&ID), 1420);
        let log = run(&mut mtu, start + RAISE_INTERVAL, 10, 1420);
        assert_eq!(log.len(), 1, "once more after {RAISE_INTERVAL:?}");
    }

    #[test]
    fn a_narrow_path_is_found_within_six_seconds() {
        let start = Instant::now();
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, way(1, true, 0));
        let log = run(&mut mtu, start, 3, 1340);
        assert_eq!(
            mtu.limit(&ID),
            1420,
            "the limit stays until the search ends"
        );
        assert!(log.iter().all(|(_, sizes)| *sizes == [1420]), "{log:?}");
        run(&mut mtu, start + Duration::from_secs(3), 3, 1340);
        assert_eq!(mtu.limit(&ID), 1334);
    }

    #[test]
    fn a_path_that_became_narrower_while_in_use_is_noticed() {
        let start = Instant::now();
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, way(1, true, 0));
        run(&mut mtu, start, 60, 1420);
        let later = start + Duration::from_secs(60);
        assert_eq!(run(&mut mtu, later, 60, 1300), [], "no packets are sent");
        mtu.handle_way(ID, way(1, true, 1 << 20));
        run(&mut mtu, later + Duration::from_secs(60), 8, 1300);
        assert!((1280..=1300).contains(&mtu.limit(&ID)));
    }

    #[test]
    fn a_path_that_became_wider_is_noticed_and_the_raise_is_not_put_off_by_confirmations() {
        let start = Instant::now();
        let mut mtu = PathMtu::new(1420);
        let mut sent = 0;
        for second in 0..602 {
            sent += IN_USE;
            mtu.handle_way(ID, way(1, true, sent));
            let carries = if second < 100 { 1300 } else { 1420 };
            run(&mut mtu, start + Duration::from_secs(second), 1, carries);
            if second == 590 {
                assert!(mtu.limit(&ID) <= 1300);
            }
        }
        for second in 602..620 {
            run(&mut mtu, start + Duration::from_secs(second), 1, 1420);
        }
        assert_eq!(mtu.limit(&ID), 1420);
    }

    #[test]
    fn a_new_endpoint_is_searched_at_once_and_the_old_result_is_valid_until_then() {
        let start = Instant::now();
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, way(1, true, 0));
        run(&mut mtu, start, 10, 1300);
        let narrow = mtu.limit(&ID);
        mtu.handle_way(ID, way(2, true, 0));
        assert_eq!(mtu.limit(&ID), narrow);
        let log = run(&mut mtu, start + Duration::from_secs(10), 2, 1420);
        assert_eq!(log, [(Duration::ZERO, vec![1420])]);
        assert_eq!(mtu.limit(&ID), 1420);
    }

    #[test]
    fn a_path_through_a_relay_is_searched_only_if_no_direct_path_replaces_it_soon() {
        let start = Instant::now();
        let relayed = Way {
            path: Some(model::Path::Relay(model::NodeAddress(
                [10, 210, 1, 1].into(),
            ))),
            ..way(1, true, 0)
        };
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, relayed);
        assert_eq!(run(&mut mtu, start, 1, 1420), []);
        mtu.handle_way(ID, way(1, true, 0));
        let log = run(&mut mtu, start + Duration::from_secs(1), 1, 1420);
        assert_eq!(log, [(Duration::ZERO, vec![1420])]);
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, relayed);
        let log = run(&mut mtu, start, 10, 1420);
        assert_eq!(log, [(SETTLED_AFTER, vec![1420])]);
    }

    #[test]
    fn a_peer_that_answers_no_probe_changes_nothing() {
        let start = Instant::now();
        let mut mtu = PathMtu::new(1420);
        mtu.handle_way(ID, way(1, true, 0));
        let log = run(&mut mtu, start, 30, 0);
        assert_eq!(mtu.limit(&ID), 1420);
        assert_eq!(log.len(), usize::from(TRIES + 2 * SERIES_TRIES));
        assert!(!mtu.is_searching(&ID));
    }

    proptest! {
        #[test]
        fn the_result_fits_and_is_close_to_the_mtu_of_the_path(widest in 1280u16..=9000, carries in 576u16..=9000) {
            let start = Instant::now();
            let mut mtu = PathMtu::new(widest);
            mtu.handle_way(ID, way(1, true, 0));
            run(&mut mtu, start, 30, carries);
            let (limit, best) = (mtu.limit(&ID), carries.min(widest));
            prop_assert!(limit <= best && best - limit < RESOLUTION, "{} of {}", limit, best);
        }
    }
}
