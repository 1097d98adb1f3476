//! One path to a peer, as it was found by probes: its round trip, its losses, and the burst of probes in progress.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::Path;

/// When the probes of a burst are sent, since its beginning. Most paths that work at all work at the first probe.
pub const BURST: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
    Duration::from_millis(640),
];
/// A burst ends when so many of its probes were answered.
pub const ENOUGH: u32 = 3;
/// The number of probes over which losses are counted. A path that loses one probe in seventeen on average loses a quarter of the last
/// twenty about once in a thousand probes, and a quarter of the last forty about once in sixty thousand.
pub const HISTORY: u32 = 40;
/// A path is lossy when so many of those probes were lost.
pub const LOSSY: u32 = HISTORY / 4;
/// A lossy path is good again after at least so many probes, when at most one of the last so many was lost.
const TRIAL: u32 = 10;
/// A round trip is much shorter than another one if it is less than half of it, and shorter by more than this.
const MUCH_SHORTER: Duration = Duration::from_millis(20);
/// After this time a probe without an answer is lost, unless the round trip is long.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// The maximum number of probes whose answers are waited for.
const MAX_PENDING: usize = 24;
/// A path is fresh for so long after an answer: somewhat longer than the time between two probes of a standby.
pub const FRESH: Duration = Duration::from_secs(15);

/// A path by which nothing came for so long is no longer a path of the peer, unless the peer says so.
pub const KEPT_FOR: Duration = Duration::from_secs(180);

/// How it is known that a peer may be reached by a path, the best evidence first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// An authentic datagram of the peer arrived by it.
    Heard,
    /// The operator of the peer configured it.
    Set,
    /// The router of the peer maps it.
    Mapped,
    /// It is an address of the peer's host, or one of the relays that the peer named.
    Host,
    /// Somebody saw the peer's datagrams come from there. Nothing is sent there before the peer consents, since a datagram
    /// that nobody waits for can spoil the address translation on the way.
    Observed,
}

/// A path, and what probes showed.
#[derive(Debug, Clone)]
pub struct Link {
    /// The path.
    pub path: Path,
    /// How it is known.
    pub evidence: Evidence,
    /// When an authentic datagram last arrived by it.
    pub heard: Option<Instant>,
    /// When a probe was last answered.
    pub answered: Option<Instant>,
    /// When another path last took over because this one failed.
    pub failed: Option<Instant>,
    /// The number of the data plane's count of answers.
    answers: u32,
    estimate: Estimate,
    /// When the burst in progress began, the number of its next probe, and how many of its probes were answered.
    burst: Option<(Instant, usize, u32)>,
    /// Whether nothing was answered since a burst ended without an answer.
    is_dead: bool,
    losses: Losses,
    /// Whether the peer consents to handshakes by it.
    pub consented: bool,
    /// How many samples in a row were clearly shorter than the round trip of the path in use.
    pub faster: u32,
}

/// The smoothed round trip (RFC 6298 section 2; the first samples are averaged).
///
/// A path that is not in use has three samples now and then, so a queue on it would count for minutes after it is empty. Therefore samples
/// that are much shorter than the estimate replace it when there are [`ENOUGH`] of them in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Estimate {
    /// The last sample that was counted.
    sampled: Option<Instant>,
    smoothed: Option<Duration>,
    samples: u32,
    /// The number of the last samples in a row that were much shorter, and their sum.
    shorter: (u32, Duration),
}

impl Estimate {
    /// Counts a sample, unless it was counted before. Returns whether it was not.
    fn take(&mut self, at: Instant, took: Duration) -> bool {
        if self.sampled.replace(at) == Some(at) {
            return false;
        }
        self.samples = self.samples.saturating_add(1);
        let weight = self.samples.min(8);
        let before = self.smoothed.unwrap_or(took);
        self.smoothed = Some((before * (weight - 1) + took) / weight);
        let gain = before.saturating_sub(took);
        let (count, sum) = self.shorter;
        self.shorter = if gain > MUCH_SHORTER && gain * 2 > before {
            (count + 1, sum + took)
        } else {
            (0, Duration::ZERO)
        };
        if let (ENOUGH.., sum) = self.shorter {
            self.smoothed = Some(sum / ENOUGH);
            self.samples = ENOUGH;
            self.shorter = (0, Duration::ZERO);
        }
        true
    }
}

/// The probes whose answers are waited for, and the last ones that were answered or lost.
#[derive(Debug, Clone, Default)]
struct Losses {
    pending: VecDeque<Instant>,
    /// The last probes, the newest in the lowest bit: 1 for a lost one.
    lost: u64,
    history: u32,
    /// If the path is lossy, the number of probes since it became lossy.
    trial: Option<u32>,
}

/// The mask for the bits of the last `probes` probes.
const fn last(probes: u32) -> u64 {
    (1 << probes) - 1
}

impl Losses {
    fn note(&mut self, is_lost: bool) {
        self.lost = ((self.lost << 1) | u64::from(is_lost)) & last(HISTORY);
        self.history = (self.history + 1).min(HISTORY);
        let lost = self.lost & last(TRIAL);
        match self.trial.map(|probes| probes.saturating_add(1)) {
            None => self.trial = (self.lost.count_ones() >= LOSSY).then_some(0),
            Some(TRIAL..) if lost.count_ones() <= 1 => {
                (self.lost, self.history, self.trial) = (lost, TRIAL, None);
            }
            probes => self.trial = probes,
        }
    }

    /// The path has failed. The probes that were lost since the last answer show that, and not that single datagrams are lost.
    fn forgive(&mut self) {
        let last = self.lost.trailing_ones().min(self.history);
        self.lost = self.lost.checked_shr(last).unwrap_or_default();
        self.history -= last;
        self.trial = self.trial.filter(|_| self.lost.count_ones() >= LOSSY);
        self.pending.clear();
    }
}

/// What the data plane knows of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkReport {
    /// The path.
    pub path: Path,
    /// When an authentic datagram last arrived by it.
    pub heard: Option<Instant>,
    /// When a probe was last answered.
    pub answered: Option<Instant>,
    /// The last round trip that measures the path alone: when it ended, and how long it took.
    pub sample: Option<(Instant, Duration)>,
    /// How many probes were answered.
    pub answers: u32,
}

impl Link {
    /// A path of which nothing else is known.
    #[must_use]
    pub fn new(path: Path, evidence: Evidence) -> Self {
        Self {
            path,
            evidence,
            heard: None,
            answered: None,
            failed: None,
            answers: 0,
            estimate: Estimate::default(),
            burst: None,
            is_dead: false,
            losses: Losses::default(),
            consented: false,
            faster: 0,
        }
    }

    /// The smoothed round trip.
    #[must_use]
    pub fn srtt(&self) -> Option<Duration> {
        self.estimate.smoothed
    }

    /// How many round trips were measured.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.estimate.samples
    }

    /// Whether probes may be sent by it without the consent of the peer.
    #[must_use]
    pub fn may_probe(&self) -> bool {
        self.evidence < Evidence::Observed || self.heard.is_some()
    }

    /// Another path takes over because this one does not work.
    pub fn handle_failed(&mut self, now: Instant) {
        self.failed = Some(now);
        self.losses.forgive();
    }

    /// Whether no probe was answered since another path took over.
    fn is_down(&self) -> bool {
        self.failed > self.answered
    }

    /// Whether a probe was answered lately, and since the path failed.
    #[must_use]
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.answered > self.failed
            && self
                .answered
                .is_some_and(|at| now.saturating_duration_since(at) < FRESH)
    }

    /// When a probe was last answered or a datagram arrived.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.answered.max(self.heard)
    }

    /// Whether something came by it lately.
    #[must_use]
    pub fn is_alive(&self, now: Instant) -> bool {
        self.last()
            .is_some_and(|at| now.saturating_duration_since(at) < KEPT_FOR)
    }

    /// Whether a probe was answered or a datagram arrived since then.
    #[must_use]
    pub fn works_since(&self, since: Instant) -> bool {
        self.last().is_some_and(|at| at >= since)
    }

    /// Whether probes by this path are not answered, and nothing was heard by it for some time before another path answered.
    #[must_use]
    pub fn is_silent(&self, answered: Option<Instant>) -> bool {
        let silence = answered
            .zip(self.last())
            .map(|(other, last)| other.saturating_duration_since(last));
        self.losses.pending.len() >= ENOUGH as usize
            && silence.is_none_or(|silence| silence >= FRESH)
    }

    /// Whether a burst of probes by it was in vain and no probe was ever answered. The peer is heard by it, if at all, and does not
    /// hear this node.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        self.is_dead && self.answered.is_none()
    }

    /// Whether too many probes were lost. A path stays lossy until nine of its last ten probes were answered. Otherwise the first answers
    /// would bring it back, and the next loss would drop it again.
    #[must_use]
    pub fn is_lossy(&self) -> bool {
        self.losses.trial.is_some()
    }

    /// The data plane reported the path. Returns a new sample, if there is one.
    pub fn handle_report(&mut self, report: &LinkReport) -> Option<Duration> {
        let (is_first, was_down) = (self.answered.is_none(), self.is_down());
        self.heard = self.heard.max(report.heard);
        self.answered = self.answered.max(report.answered);
        // The count begins again if the path was unknown to the data plane for a while.
        let answered = match report.answers.checked_sub(self.answers) {
            Some(answered) => answered,
            None => report.answers,
        };
        self.answers = report.answers;
        let begins = answered > 0 && (std::mem::take(&mut self.is_dead) || is_first);
        if begins {
            // The losses belong to a time in which the path did not work at all.
            self.losses = Losses::default();
        } else if answered > 0 && was_down {
            self.losses.pending.clear();
            self.losses.note(false);
        }
        for _ in 0..answered.min(HISTORY) {
            if begins || self.losses.pending.pop_front().is_some() {
                self.losses.note(false);
            }
        }
        if let Some((start, step, count)) = self.burst {
            let count = count.saturating_add(answered);
            self.burst = (count < ENOUGH).then_some((start, step, count));
        }
        let (at, took) = report.sample?;
        self.estimate.take(at, took).then_some(took)
    }

    /// The peer names the path again, perhaps for another reason than before. That a datagram arrived by it is better evidence than
    /// any reason.
    pub fn handle_candidate(&mut self, evidence: Evidence) {
        if self.evidence != Evidence::Heard {
            self.evidence = evidence;
        }
    }

    /// Begins a burst of probes, unless one is in progress.
    pub fn begin_burst(&mut self, now: Instant) {
        self.burst.get_or_insert((now, 0, 0));
    }

    /// A probe was sent by this path.
    pub fn handle_probed(&mut self, now: Instant) {
        let pending = &mut self.losses.pending;
        if pending.len() >= MAX_PENDING {
            pending.pop_front();
        }
        pending.push_back(now);
    }

    /// Whether a probe of the burst is due.
    pub fn poll(&mut self, now: Instant) -> bool {
        let patience = LOST_AFTER.max(self.srtt().unwrap_or_default() * 4);
        let is_lost = |sent: &Instant| now.saturating_duration_since(*sent) >= patience;
        let is_down = self.is_down();
        while self.losses.pending.front().is_some_and(is_lost) {
            self.losses.pending.pop_front();
            if !is_down {
                self.losses.note(true);
            }
        }
        let Some((start, step, count)) = self.burst else {
            return false;
        };
        let is_due = BURST.get(step).is_some_and(|offset| start + *offset <= now);
        if is_due {
            // A late poll does not send the missed probes at once.
            let mut next = step + 1;
            while BURST.get(next).is_some_and(|offset| start + *offset <= now) {
                next += 1;
            }
            self.burst = BURST.get(next).map(|_| (start, next, count));
            self.is_dead |= self.burst.is_none() && count == 0;
        }
        is_due
    }

    /// When the next probe of the burst is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (start, step, _) = self.burst?;
        BURST.get(step).map(|offset| start + *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn link() -> Link {
        Link::new(Path::Direct(([192, 0, 2, 1], 7).into()), Evidence::Host)
    }

    fn report(link: &Link, at: Instant, took: Duration, answers: u32) -> LinkReport {
        LinkReport {
            path: link.path,
            heard: Some(at),
            answered: Some(at),
            sample: Some((at, took)),
            answers,
        }
    }

    /// The milliseconds at which probes are sent, polled each millisecond for two seconds.
    fn run(link: &mut Link, start: Instant, mut each: impl FnMut(&mut Link, u64)) -> Vec<u64> {
        (0..2000)
            .filter(|n| {
                let is_due = link.poll(start + ms(*n));
                if is_due {
                    link.handle_probed(start + ms(*n));
                }
                each(link, *n);
                is_due
            })
            .collect()
    }

    #[test]
    fn a_burst_has_six_probes_and_then_the_path_is_quiet() {
        let (mut link, start) = (link(), Instant::now());
        link.begin_burst(start);
        assert_eq!(link.poll_timeout(), Some(start));
        let sent = run(&mut link, start, |_, _| {});
        assert_eq!(sent, [0, 40, 80, 160, 320, 640]);
        assert_eq!(link.poll_timeout(), None);
    }

    #[test]
    fn a_burst_ends_when_three_of_its_probes_were_answered() {
        let (mut link, start) = (link(), Instant::now());
        link.begin_burst(start);
        let sent = run(&mut link, start, |link, n| {
            let answers = [30, 70, 110].iter().position(|at| *at == n);
            if let Some(before) = answers {
                let report = report(link, start + ms(n), ms(30), before as u32 + 1);
                link.handle_report(&report);
            }
        });
        assert_eq!(sent, [0, 40, 80]);
        assert_eq!((link.srtt(), link.samples()), (Some(ms(30)), 3));
    }

    #[test]
    fn a_late_poll_sends_one_probe_of_the_burst() {
        let (mut link, start) = (link(), Instant::now());
        link.begin_burst(start);
        assert!(link.poll(start + ms(200)) && !link.poll(start + ms(200)));
        assert_eq!(link.poll_timeout(), Some(start + ms(320)));
    }

    #[test]
    fn a_path_is_lossy_when_a_quarter_of_its_last_probes_was_lost() {
        let start = Instant::now();
        for (lost, is_lossy) in [(3, false), (9, false), (10, true), (20, true)] {
            let mut link = link();
            for n in 0..HISTORY {
                let at = start + ms(u64::from(n) * 10_000);
                link.handle_probed(at);
                // The last ones are lost.
                if n < HISTORY - lost {
                    let report = report(&link, at + ms(5), ms(5), n + 1);
                    link.handle_report(&report);
                }
                link.poll(at + ms(9_000));
            }
            assert_eq!(link.is_lossy(), is_lossy, "{lost}");
        }
    }

    #[test]
    fn a_lossy_path_is_good_again_when_it_has_answered_nine_of_ten_probes() {
        let (mut link, start) = (link(), Instant::now());
        let mut answers = 0;
        let mut probe = |link: &mut Link, n: u64, is_lost: bool| {
            let at = start + ms(n * 10_000);
            link.handle_probed(at);
            if !is_lost {
                answers += 1;
                let report = report(link, at + ms(5), ms(5), answers);
                link.handle_report(&report);
            }
            link.poll(at + ms(9_000));
        };
        for n in 0..u64::from(HISTORY) {
            assert!(!link.is_lossy(), "{n}");
            probe(&mut link, n, n % 4 == 3);
        }
        for n in 40..50 {
            assert!(link.is_lossy(), "{n}");
            probe(&mut link, n, n == 44);
        }
        assert!(!link.is_lossy());
        // One more loss is not enough to leave it again.
        probe(&mut link, 50, true);
        assert!(!link.is_lossy());
    }

    #[test]
    fn losses_of_a_time_in_which_nothing_was_answered_do_not_count_afterwards() {
        let (mut link, start) = (link(), Instant::now());
        for round in 0..5 {
            let at = start + ms(round * 10_000);
            link.begin_burst(at);
            run(&mut link, at, |_, _| {});
        }
        link.poll(start + ms(100_000));
        assert!(link.is_lossy());
        let report = report(&link, start + ms(100_000), ms(5), 1);
        link.handle_report(&report);
        assert!(!link.is_lossy());
    }

    #[test]
    fn losses_of_a_path_that_failed_do_not_count_when_it_works_again() {
        let (mut link, start) = (link(), Instant::now());
        let at = |seconds: u64| start + ms(seconds * 1000);
        for n in 0..10 {
            link.handle_probed(at(n));
            let report = report(&link, at(n) + ms(5), ms(5), n as u32 + 1);
            link.handle_report(&report);
        }
        // It fails after three probes, and is tried now and then.
        for n in 10..13 {
            link.handle_probed(at(n));
            link.poll(at(n + 2));
        }
        link.handle_failed(at(15));
        for n in 15..25 {
            link.handle_probed(at(n));
            link.poll(at(n));
        }
        let report = report(&link, at(25), ms(5), 11);
        link.handle_report(&report);
        link.poll(at(60));
        assert!(link.is_fresh(at(26)) && !link.is_lossy());
        assert_eq!((link.losses.lost, link.losses.history), (0, 11));
    }

    #[test]
    fn probes_that_were_sent_before_a_path_was_open_are_no_losses_of_the_path() {
        let (mut link, start) = (link(), Instant::now());
        link.begin_burst(start);
        let mut answers = 0;
        // The peer opens its router after 300 ms, and more probes are sent and answered from then on.
        run(&mut link, start, |link, n| {
            if n > 300 && n % 100 == 0 {
                link.handle_probed(start + ms(n));
                answers += 1;
                let report = report(link, start + ms(n + 5), ms(5), answers);
                link.handle_report(&report);
            }
        });
        link.poll(start + ms(5000));
        assert!(link.losses.history >= TRIAL);
        assert!(!link.is_lossy(), "{link:?}");
    }

    #[test]
    fn a_round_trip_is_counted_once_and_smoothed() {
        let (mut link, start) = (link(), Instant::now());
        for n in 0..8 {
            let report = report(&link, start + ms(n), ms(100), n as u32);
            assert_eq!(link.handle_report(&report), Some(ms(100)));
            assert_eq!(link.handle_report(&report), None);
        }
        let report = report(&link, start + ms(9), ms(900), 9);
        link.handle_report(&report);
        assert_eq!(link.srtt(), Some(ms(200)));
    }

    #[test]
    fn a_queue_that_is_empty_again_counts_for_three_samples() {
        let (mut link, start) = (link(), Instant::now());
        let mut answers = 0;
        let mut take = |link: &mut Link, took| {
            answers += 1;
            let at = start + ms(u64::from(answers));
            let report = report(link, at, ms(took), answers);
            link.handle_report(&report);
        };
        for _ in 0..8 {
            take(&mut link, 300);
        }
        // Single samples are smoothed.
        for took in [2, 2, 300, 300, 2, 3] {
            take(&mut link, took);
        }
        assert!(link.srtt() > Some(ms(150)), "{:?}", link.srtt());
        take(&mut link, 4);
        assert_eq!((link.srtt(), link.samples()), (Some(ms(3)), 3));
        // A round trip of a few milliseconds is smoothed as before.
        let mut near = self::link();
        for took in [9, 9, 9, 3, 3, 3] {
            take(&mut near, took);
        }
        assert!(near.srtt() >= Some(ms(5)), "{:?}", near.srtt());
    }
}
