//! The state of each upstream, as earlier questions showed it: how fast it answers, whether it answers at all, and which forms
//! of a question it supports. Pure: the caller passes the time.
//!
//! There is one entry for each configured upstream. A downgrade (no mixed case, no EDNS) expires. An upstream that answered a
//! form before loses that form only after several contrary replies in a row, so that one lost packet, or one domain of an
//! attacker, does not switch a protection off.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::exchange::Form;
use super::server::Server;

/// An upstream that answers later than this, while another one answers, is asked after the others.
pub(super) const LATE: Duration = Duration::from_millis(1_200);
/// The interval at which such an upstream gets a question in parallel to the others, to find out whether it answers again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Error replies in a row, to questions that another upstream answered, after which an upstream is asked after the others.
const MAX_FAILURES: u8 = 3;
/// The number of questions in a row without a reply after which an upstream that answered before is asked after the others. One
/// question may be about a slow name.
const MAX_SILENCES: u8 = 2;
/// Contrary replies in a row after which a form that worked before is avoided.
const MAX_CONTRARY: u8 = 4;
/// How long a form is avoided the first time, and the maximum. Each time is four times as long as the one before.
const FIRST_SPELL: Duration = Duration::from_secs(60);
const MAX_SPELL: Duration = Duration::from_secs(3_600);
/// The wait before a question is sent again to an upstream whose round trip is not known, and the limits when it is known.
const RESEND_WAIT: Duration = Duration::from_millis(300);
const MAX_RESEND_WAIT: Duration = Duration::from_millis(500);
/// The minimum and the maximum wait before the next upstream is asked.
const NEXT_WAIT: Duration = Duration::from_millis(500);
const MAX_NEXT_WAIT: Duration = Duration::from_secs(1);
/// A TLS handshake takes several round trips.
const TLS_RESEND_WAIT: Duration = Duration::from_millis(700);

/// A feature of a question that an upstream may not support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feature {
    /// A name in mixed case.
    Mixed,
    /// An OPT record.
    Edns,
}

impl Feature {
    pub(super) const ALL: [Self; 2] = [Self::Mixed, Self::Edns];

    pub(super) fn is_in(self, form: Form) -> bool {
        match self {
            Self::Mixed => form.mixed,
            Self::Edns => form.edns,
        }
    }
}

/// A fact about an upstream that a question showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lesson {
    /// The upstream answered a question of this form.
    Answered { form: Form, round_trip: Duration },
    /// The upstream cannot be reached.
    Unreachable,
    /// The upstream did not answer a question that was sent at this time, and another one did.
    Silent { since: Instant },
    /// The upstream replied with an error, and another one answered.
    Failed,
    /// The upstream answered only a question without this feature.
    Without(Feature),
}

/// An upstream to ask, and how to ask it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The position of the upstream in the configured order.
    pub(super) place: usize,
    pub(super) tls: bool,
    /// The form of the first question.
    pub(super) form: Form,
    /// The upstream answered this form before.
    pub(super) proven: bool,
    /// The upstream did not answer lately, so the others come first.
    pub(super) behind: bool,
    /// The upstream is asked in parallel to the first one, to find out whether it answers again.
    pub(super) retry: bool,
    /// The wait before the upstream is asked again.
    pub(super) again: Duration,
    /// The wait before the next upstream is asked.
    pub(super) next: Duration,
}

/// The states of all upstreams.
#[derive(Debug, Default)]
pub(super) struct Memory {
    states: HashMap<SocketAddr, ServerState>,
}

#[derive(Debug, Default)]
struct ServerState {
    round_trip: Option<Duration>,
    /// If the upstream is asked after the others: when it is next asked in parallel to them.
    behind: Option<Instant>,
    last_answer: Option<Instant>,
    failures: u8,
    silences: u8,
    mixed: Ability,
    edns: Ability,
}

/// Whether an upstream supports a [`Feature`].
#[derive(Debug, Default)]
struct Ability {
    proven: bool,
    contrary: u8,
    avoid_until: Option<Instant>,
    spell: Duration,
}

impl Memory {
    /// Removes the states of all upstreams that are not in `servers`.
    pub(super) fn retain(&mut self, servers: &[Server]) {
        self.states
            .retain(|address, _| servers.iter().any(|s| s.address == *address));
    }

    /// Returns `servers` in the order in which they are to be asked now: as configured, but those that did not answer lately come
    /// last.
    pub(super) fn plan(&mut self, servers: &[Server], now: Instant) -> Vec<Candidate> {
        let behind = |memory: &Self, server: &Server| {
            let state = memory.states.get(&server.address);
            state.is_some_and(|s| s.behind.is_some())
        };
        let first = servers.iter().position(|s| !behind(self, s));
        let mut plan: Vec<Candidate> = servers
            .iter()
            .enumerate()
            .map(|(place, server)| {
                let state = self.states.entry(server.address).or_default();
                let preferred = first.is_some_and(|first| place < first);
                state.candidate(place, server.name.is_some(), preferred, now)
            })
            .collect();
        plan.sort_by_key(|candidate| (candidate.behind, candidate.place));
        plan
    }

    /// Stores a lesson. An upstream that is no longer configured is ignored.
    pub(super) fn learn(&mut self, server: SocketAddr, lesson: Lesson, now: Instant) {
        let Some(state) = self.states.get_mut(&server) else {
            return;
        };
        match lesson {
            Lesson::Answered { form, round_trip } => state.answered(form, round_trip, now),
            Lesson::Unreachable => state.fall_behind(now),
            Lesson::Silent { since } if state.last_answer.is_some_and(|at| at >= since) => {}
            Lesson::Silent { .. } => {
                state.silences = state.silences.saturating_add(1);
                if state.silences >= MAX_SILENCES || state.last_answer.is_none() {
                    state.fall_behind(now);
                }
            }
            Lesson::Failed => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= MAX_FAILURES {
                    state.fall_behind(now);
                }
            }
            Lesson::Without(Feature::Mixed) => state.mixed.contradict(now),
            Lesson::Without(Feature::Edns) => state.edns.contradict(now),
        }
    }
}

impl ServerState {
    fn candidate(&mut self, place: usize, tls: bool, preferred: bool, now: Instant) -> Candidate {
        let retry = preferred && self.behind.is_some_and(|at| now >= at);
        if retry {
            self.behind = Some(now + RETRY_INTERVAL);
        }
        let form = Form {
            // Nobody can forge a reply over TLS, so mixed case protects nothing there.
            mixed: !tls && self.mixed.is_usable(now),
            edns: self.edns.is_usable(now),
        };
        let proven = (!form.mixed || self.mixed.proven) && (!form.edns || self.edns.proven);
        let round_trip = self.round_trip.unwrap_or_default();
        Candidate {
            place,
            tls,
            form,
            proven: proven && self.round_trip.is_some(),
            behind: self.behind.is_some(),
            retry,
            again: match tls {
                true => TLS_RESEND_WAIT,
                false => (2 * round_trip).clamp(RESEND_WAIT, MAX_RESEND_WAIT),
            },
            next: (3 * round_trip).clamp(NEXT_WAIT, MAX_NEXT_WAIT),
        }
    }

    fn fall_behind(&mut self, now: Instant) {
        self.behind.get_or_insert(now + RETRY_INTERVAL);
    }

    fn answered(&mut self, form: Form, round_trip: Duration, now: Instant) {
        self.round_trip = Some(match self.round_trip {
            // RFC 6298 section 2.
            Some(smoothed) => (smoothed * 7 + round_trip) / 8,
            None => round_trip,
        });
        self.last_answer = Some(now);
        self.silences = 0;
        self.failures = 0;
        if round_trip < LATE {
            self.behind = None;
        }
        if form.mixed {
            self.mixed = Ability::proven();
        }
        if form.edns {
            self.edns = Ability::proven();
        }
    }
}

impl Ability {
    fn proven() -> Self {
        Self {
            proven: true,
            ..Self::default()
        }
    }

    fn is_usable(&self, now: Instant) -> bool {
        self.avoid_until.is_none_or(|until| now >= until)
    }

    fn contradict(&mut self, now: Instant) {
        self.contrary = self.contrary.saturating_add(1);
        let enough = !self.proven || self.contrary >= MAX_CONTRARY;
        // Several questions in progress at once count as one piece of evidence.
        if enough && self.is_usable(now) {
            self.spell = (self.spell * 4).clamp(FIRST_SPELL, MAX_SPELL);
            self.avoid_until = Some(now + self.spell);
            self.proven = false;
            self.contrary = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Form = Form {
        mixed: true,
        edns: true,
    };

    fn servers() -> Vec<Server> {
        let address = |n: u8| SocketAddr::from(([192, 0, 2, n], 53));
        (1..=3).map(|n| Server::from(address(n))).collect()
    }

    fn places(plan: &[Candidate]) -> Vec<usize> {
        plan.iter().map(|c| c.place).collect()
    }

    fn answered(milliseconds: u64) -> Lesson {
        Lesson::Answered {
            form: FULL,
            round_trip: Duration::from_millis(milliseconds),
        }
    }

    #[test]
    fn a_silent_upstream_is_queried_last_and_tried_again_in_parallel_until_it_answers() {
        let (servers, start, mut memory) = (servers(), Instant::now(), Memory::default());
        let first = servers[0].address;
        assert_eq!(places(&memory.plan(&servers, start)), [0, 1, 2]);
        memory.learn(first, Lesson::Silent { since: start }, start);
        let plan = memory.plan(&servers, start);
        assert_eq!(places(&plan), [1, 2, 0]);
        assert!(plan.iter().all(|c| !c.retry));
        let due = start + RETRY_INTERVAL;
        assert!(memory.plan(&servers, due)[2].retry);
        assert!(!memory.plan(&servers, due)[2].retry, "one at a time");
        assert!(memory.plan(&servers, due + RETRY_INTERVAL)[2].retry);
        memory.learn(first, answered(1_500), due);
        assert_eq!(places(&memory.plan(&servers, due)), [1, 2, 0]);
        memory.learn(first, answered(5), due);
        assert_eq!(places(&memory.plan(&servers, due)), [0, 1, 2]);
    }

    #[test]
    fn one_slow_name_does_not_change_the_order() {
        let (servers, start, mut memory) = (servers(), Instant::now(), Memory::default());
        let first = servers[0].address;
        let silent = |since| Lesson::Silent { since };
        memory.plan(&servers, start);
        memory.learn(first, answered(5), start);
        for seconds in 1..10 {
            let now = start + Duration::from_secs(seconds);
            memory.learn(first, answered(5), now);
            memory.learn(first, silent(start), now);
            memory.learn(first, silent(now), now);
            assert_eq!(places(&memory.plan(&servers, now)), [0, 1, 2]);
        }
        let later = start + Duration::from_secs(20);
        memory.learn(first, silent(later), later);
        assert_eq!(places(&memory.plan(&servers, later)), [0, 1, 2]);
        memory.learn(first, silent(later), later);
        assert_eq!(places(&memory.plan(&servers, later)), [1, 2, 0]);
    }

    #[test]
    fn an_upstream_that_replies_with_errors_is_queried_last_after_several_in_a_row() {
        let (servers, now, mut memory) = (servers(), Instant::now(), Memory::default());
        let first = servers[0].address;
        memory.plan(&servers, now);
        for lesson in [Lesson::Failed, Lesson::Failed, answered(5)] {
            memory.learn(first, lesson, now);
        }
        for _ in 1..MAX_FAILURES {
            memory.learn(first, Lesson::Failed, now);
            assert_eq!(places(&memory.plan(&servers, now)), [0, 1, 2]);
        }
        memory.learn(first, Lesson::Failed, now);
        assert_eq!(places(&memory.plan(&servers, now)), [1, 2, 0]);
    }

    #[test]
    fn a_downgrade_expires_and_lasts_longer_each_time() {
        let (servers, start, mut memory) = (servers(), Instant::now(), Memory::default());
        let form = |memory: &mut Memory, now| memory.plan(&servers, now)[0].form;
        assert_eq!(form(&mut memory, start), FULL);
        let mut now = start;
        for spell in [60, 240, 960, 3_600, 3_600].map(Duration::from_secs) {
            memory.learn(servers[0].address, Lesson::Without(Feature::Mixed), now);
            let almost = now + spell - Duration::from_secs(1);
            assert!(!form(&mut memory, almost).mixed);
            assert!(form(&mut memory, almost).edns);
            now += spell;
            assert_eq!(form(&mut memory, now), FULL);
        }
    }

    #[test]
    fn a_form_of_query_that_worked_is_dropped_only_after_several_contrary_replies_in_a_row() {
        let (servers, now, mut memory) = (servers(), Instant::now(), Memory::default());
        let contrary = || Lesson::Without(Feature::Edns);
        let address = servers[0].address;
        memory.plan(&servers, now);
        memory.learn(address, answered(5), now);
        for _ in 1..MAX_CONTRARY {
            memory.learn(address, contrary(), now);
        }
        memory.learn(address, answered(5), now);
        for _ in 1..MAX_CONTRARY {
            memory.learn(address, contrary(), now);
            assert_eq!(memory.plan(&servers, now)[0].form, FULL);
        }
        memory.learn(address, contrary(), now);
        assert!(!memory.plan(&servers, now)[0].form.edns);
    }

    #[test]
    fn the_memory_holds_the_configured_upstreams_alone() {
        let (servers, now, mut memory) = (servers(), Instant::now(), Memory::default());
        memory.plan(&servers, now);
        memory.retain(&servers[1..]);
        memory.learn(servers[0].address, Lesson::Unreachable, now);
        assert_eq!(memory.states.len(), 2);
    }
}
