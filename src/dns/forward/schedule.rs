//! The order of events while one question is answered: which upstream is asked when, in which form, over which transport,
//! and which reply is the answer. Pure: the caller brings the time and sends.
//!
//! - The upstreams are started in order, one after the other, each after a wait. An upstream that fails ends its wait at
//!   once, so an error that costs no time costs no turn. All of them are started early enough that one that takes
//!   1.5 s still answers within the client's patience.
//! - A started upstream is asked several times: in the form it is known to take, or in simpler forms. A later question does
//!   not end an earlier one. Every reply counts until the end.
//! - NXDOMAIN to mixed case is verified by the question as the client wrote it: some servers compare names
//!   case-sensitively.
//! - A negative answer of a later upstream waits a while for an earlier one that is still being asked: only the first one
//!   may know private names.
//! - After the answer the schedule goes on for a moment for the upstreams that did not answer, to learn whether they do.

use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};

use super::answer::Forwarded;
use super::exchange::{Form, Received};
use super::memory::{Candidate, Feature, LATE, Lesson};
use turn::{Attempt, End, Turn};

mod learn;
mod turn;

/// How long the search for an answer may take: Docker's resolver gives up after 4 s, glibc and musl after 5 s.
pub(super) const PATIENCE: Duration = Duration::from_millis(3_700);
/// All upstreams are started by then.
const START_BY: Duration = Duration::from_millis(1_100);
/// The least wait between the starts of two upstreams.
const MIN_NEXT: Duration = Duration::from_millis(50);
/// How long a stream may take, after a datagram lost the case of the name, before a datagram without mixed case is sent.
const STREAM_WAIT: Duration = Duration::from_millis(300);
/// Questions to one upstream at most.
const MAX_SENDS: usize = 8;

/// How a question is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
    /// Over an open connection if there is one, unless it has to be a new one.
    Tls {
        new: bool,
    },
}

/// A question to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Send {
    /// The number of the attempt, for [`Schedule::handle_reply`] and the like.
    pub(super) attempt: usize,
    /// The upstream's place in the configured order.
    pub(super) place: usize,
    pub(super) form: Form,
    pub(super) transport: Transport,
}

/// How it ended for the client.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Answer { place: usize, answer: Forwarded },
    Failed,
}

/// One question to all upstreams.
#[derive(Debug)]
pub(super) struct Schedule {
    started: Instant,
    next_start: Instant,
    turns: Vec<Turn>,
    attempts: Vec<Attempt>,
    /// A negative answer that waits for an earlier upstream, and the turn it is from.
    held: Option<(usize, Forwarded)>,
    outcome: Option<Outcome>,
    lessons: Vec<(usize, Lesson)>,
}

impl Schedule {
    pub(super) fn new(plan: Vec<Candidate>, now: Instant) -> Self {
        let turns = plan.into_iter().map(Turn::new).collect();
        let mut schedule = Self {
            started: now,
            next_start: now,
            turns,
            attempts: Vec::new(),
            held: None,
            outcome: None,
            lessons: Vec::new(),
        };
        for turn in schedule.turns.iter_mut().filter(|t| t.candidate.retry) {
            turn.start(now);
        }
        schedule
    }

    /// The next question to send now.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Send> {
        if self.outcome.is_none() {
            self.start_turns(now);
            self.give_second_chances(now);
            self.conclude(now);
        }
        self.judge(now);
        for (turn, state) in self.turns.iter_mut().enumerate() {
            let Some(at) = state.due.iter().position(|(at, ..)| *at <= now) else {
                continue;
            };
            let (_, form, transport) = state.due.remove(at);
            let place = state.candidate.place;
            let attempt = self.attempts.len();
            self.attempts.push(Attempt {
                turn,
                form,
                transport,
                sent: now,
                end: End::Open,
            });
            return Some(Send {
                attempt,
                place,
                form,
                transport,
            });
        }
        None
    }

    /// When [`Schedule::poll`] is to be called again, if nothing arrives before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = |turn: &Turn| turn.due.iter().map(|(at, ..)| *at).min();
        let times = self.turns.iter().flat_map(|turn| {
            let doubt = turn.doubt.as_ref().map(|(at, _)| *at);
            [due(turn), turn.judge_at, doubt]
        });
        let mut times: Vec<Instant> = times.flatten().collect();
        if self.outcome.is_none() {
            times.push(self.started + PATIENCE);
            times.extend(self.held_until());
            times.extend(self.second_chance_at());
            if self.held.is_none() && self.turns.iter().any(|t| t.started.is_none()) {
                times.push(self.next_start);
            }
        }
        times.into_iter().min()
    }

    /// How it ended, once it has.
    #[cfg(test)]
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Takes the outcome, once there is one. The schedule stays ended, but does not keep the answer.
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        Some(match self.outcome.as_mut()? {
            Outcome::Failed => Outcome::Failed,
            Outcome::Answer { place, answer } => Outcome::Answer {
                place: *place,
                answer: std::mem::take(answer),
            },
        })
    }

    /// Whether there is nothing left to learn either.
    pub(super) fn is_over(&self) -> bool {
        let settled = |turn: &Turn| turn.judge_at.is_none() && turn.doubt.is_none();
        match self.outcome {
            Some(Outcome::Answer { .. }) => self.turns.iter().all(settled),
            Some(Outcome::Failed) => true,
            None => false,
        }
    }

    /// What was learnt since the last call, with the place of the upstream.
    pub(super) fn lessons(&mut self) -> Vec<(usize, Lesson)> {
        std::mem::take(&mut self.lessons)
    }

    /// A reply to an attempt.
    pub(super) fn handle_reply(&mut self, attempt: usize, received: Received, now: Instant) {
        let Some((turn, form, transport)) = self.identify(attempt) else {
            return;
        };
        if let Some(turn) = self.turns.get_mut(turn) {
            turn.replied = true;
        }
        let plain = Form {
            mixed: false,
            ..form
        };
        match received {
            Received::Answer(answer) => self.handle_answer(attempt, answer, now),
            Received::Cut => {
                self.learn_answer(attempt, false, now);
                self.end(attempt, End::Answered);
                self.learn_form(turn, attempt, false, now);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.due.clear();
                }
                self.ask_once(turn, now, plain, Transport::Tcp);
            }
            Received::LostCase => {
                self.end(attempt, End::LostCase);
                self.give_up(turn, Feature::Mixed);
                self.ask_once(turn, now, plain, Transport::Tcp);
                self.ask_once(turn, now + STREAM_WAIT, plain, Transport::Udp);
            }
            Received::NoEdns => {
                self.end(attempt, End::NoEdns);
                self.give_up(turn, Feature::Edns);
                let without = Form {
                    edns: false,
                    ..form
                };
                self.ask_once(turn, now, without, transport);
            }
            Received::Failed => {
                self.end(attempt, End::Other);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.failed = true;
                    turn.due.clear();
                }
                self.next_start = now;
            }
            Received::Stray => {}
        }
    }

    /// An attempt cannot be sent, or its connection failed.
    pub(super) fn handle_error(&mut self, attempt: usize, now: Instant) {
        let Some((turn, _, transport)) = self.identify(attempt) else {
            return;
        };
        self.end(attempt, End::Other);
        let Some(state) = self.turns.get_mut(turn) else {
            return;
        };
        if transport == Transport::Tcp {
            // The datagram that is to follow if the stream is slow.
            for (at, ..) in &mut state.due {
                *at = now;
            }
            if state.due.is_empty() {
                self.next_start = now;
            }
            return;
        }
        state.due.clear();
        self.next_start = now;
        if !state.answered && !state.replied {
            state.judge_at = None;
            let lesson = (state.candidate.place, Lesson::Unreachable);
            self.lessons.push(lesson);
        }
    }

    /// An attempt was given up for a reason of this host's own, which says nothing about the upstream.
    pub(super) fn handle_given_up(&mut self, attempt: usize, now: Instant) {
        let Some((turn, ..)) = self.identify(attempt) else {
            return;
        };
        self.end(attempt, End::Other);
        if !self.is_open(turn) {
            self.next_start = now;
        }
    }

    fn handle_answer(&mut self, attempt: usize, answer: Forwarded, now: Instant) {
        let Some((turn, form, transport)) = self.identify(attempt) else {
            return;
        };
        let negative = is_negative(&answer);
        self.learn_answer(attempt, negative, now);
        if form.mixed && may_be_case(&answer) {
            self.end(attempt, End::Denied);
            self.verify(turn, form, now);
            return;
        }
        self.end(attempt, End::Answered);
        let Some(state) = self.turns.get_mut(turn) else {
            return;
        };
        state.answered = true;
        state.judge_at = None;
        state.due.clear();
        let place = state.candidate.place;
        if transport != Transport::Tcp {
            self.learn_form(turn, attempt, negative, now);
        }
        if self.outcome.is_some() {
            return;
        }
        if !negative || self.earlier_until(turn, now).is_none() {
            return self.finish(turn, answer, now);
        }
        let holder = self.held.as_ref().and_then(|(t, _)| self.turns.get(*t));
        if holder.is_none_or(|holder| place < holder.candidate.place) {
            self.held = Some((turn, answer));
        }
    }

    /// Asks as the client wrote it, unless such a question is on its way.
    fn verify(&mut self, turn: usize, form: Form, now: Instant) {
        self.give_up(turn, Feature::Mixed);
        let plain = Form {
            mixed: false,
            ..form
        };
        if self.ends(turn, |form, end| !form.mixed && end == End::Open) {
            return;
        }
        let again = self.turns.get(turn).map(|t| t.candidate.again);
        self.ask(turn, now, plain, Transport::Udp);
        self.ask(turn, now + again.unwrap_or_default(), plain, Transport::Udp);
    }

    fn start_turns(&mut self, now: Instant) {
        while now >= self.next_start && self.held.is_none() {
            let left = self.turns.iter().filter(|t| t.started.is_none()).count();
            let waiting = self.turns.iter_mut().find(|t| t.started.is_none());
            let Some(turn) = waiting else {
                return;
            };
            turn.start(now);
            let time = (self.started + START_BY).saturating_duration_since(now);
            let share = time / u32::try_from(left.max(2) - 1).unwrap_or(u32::MAX);
            self.next_start = now + turn.candidate.next.min(share).max(MIN_NEXT);
        }
    }

    fn second_chance_at(&self) -> Option<Instant> {
        let all_started = self.turns.iter().all(|t| t.started.is_some());
        let any = self.turns.iter().any(|t| t.failed && !t.second_chance);
        let open = (0..self.turns.len()).any(|turn| self.is_open(turn));
        match (all_started && any, open) {
            (false, _) => None,
            (true, true) => Some(self.started + START_BY),
            (true, false) => Some(self.started),
        }
    }

    /// Asks those that replied with an error once more in a simpler form, when nobody else is left.
    fn give_second_chances(&mut self, now: Instant) {
        if self.second_chance_at().is_none_or(|at| now < at) {
            return;
        }
        for turn in self.turns.iter_mut().filter(|t| t.failed) {
            let Candidate {
                form, tls, proven, ..
            } = turn.candidate;
            let simpler = Form {
                mixed: false,
                edns: form.edns && proven,
            };
            if !turn.second_chance && !tls && simpler != form {
                turn.failed = false;
                turn.due.push((now, simpler, Transport::Udp));
            }
            turn.second_chance = true;
        }
    }

    fn conclude(&mut self, now: Instant) {
        let late = now >= self.started + PATIENCE;
        let released = late || self.held_until().is_none_or(|until| now >= until);
        if let Some((turn, answer)) = self.held.take_if(|_| released) {
            return self.finish(turn, answer, now);
        }
        let waits = self.turns.iter().any(|t| t.started.is_none())
            || (0..self.turns.len()).any(|turn| self.is_open(turn));
        if late || !waits {
            self.outcome = Some(Outcome::Failed);
            for turn in &mut self.turns {
                turn.due.clear();
            }
        }
    }

    fn finish(&mut self, turn: usize, answer: Forwarded, now: Instant) {
        let Some(place) = self.turns.get(turn).map(|t| t.candidate.place) else {
            return;
        };
        self.outcome = Some(Outcome::Answer { place, answer });
        self.held = None;
        for other in 0..self.turns.len() {
            let open = self.is_open(other);
            let Some(state) = self.turns.get_mut(other) else {
                continue;
            };
            if state.failed && other != turn {
                let lesson = (state.candidate.place, Lesson::Failed);
                self.lessons.push(lesson);
            }
            let judged = other != turn && open && state.candidate.place < place && !state.answered;
            match state.started.filter(|_| judged) {
                Some(started) => state.judge_at = Some(started + LATE),
                None => state.due.clear(),
            }
        }
        self.judge(now);
    }

    /// Until when an answer of `turn` waits for an upstream before it.
    fn earlier_until(&self, turn: usize, now: Instant) -> Option<Instant> {
        let place = self.turns.get(turn)?.candidate.place;
        let turns = self.turns.iter().enumerate();
        let earlier = turns.filter(|(at, t)| {
            t.candidate.place < place && !t.candidate.behind && !t.answered && self.is_open(*at)
        });
        let until = earlier.filter_map(|(_, t)| Some(t.started? + LATE)).max();
        until.filter(|until| now < *until)
    }

    fn held_until(&self) -> Option<Instant> {
        let (turn, _) = self.held.as_ref()?;
        self.earlier_until(*turn, self.started)
    }

    /// Whether an upstream has been started and may still answer.
    fn is_open(&self, turn: usize) -> bool {
        let due = self.turns.get(turn).is_some_and(|t| !t.due.is_empty());
        due || self.ends(turn, |_, end| end == End::Open)
    }

    fn ends(&self, turn: usize, wanted: impl Fn(Form, End) -> bool) -> bool {
        let mut of_turn = self.attempts.iter().filter(|a| a.turn == turn);
        of_turn.any(|a| wanted(a.form, a.end))
    }

    fn identify(&self, attempt: usize) -> Option<(usize, Form, Transport)> {
        let attempt = self.attempts.get(attempt).filter(|a| a.end == End::Open)?;
        Some((attempt.turn, attempt.form, attempt.transport))
    }

    fn end(&mut self, attempt: usize, end: End) {
        if let Some(attempt) = self.attempts.get_mut(attempt) {
            attempt.end = end;
        }
    }

    /// Drops the questions to come that have `feature`.
    fn give_up(&mut self, turn: usize, feature: Feature) {
        if let Some(turn) = self.turns.get_mut(turn) {
            turn.due.retain(|(_, form, _)| !feature.is_in(*form));
        }
    }

    /// Asks unless the same was sent, or is to be sent as early.
    fn ask_once(&mut self, turn: usize, at: Instant, form: Form, transport: Transport) {
        let same = |f: Form, t: Transport| f == form && t == transport;
        let mut attempts = self.attempts.iter().filter(|a| a.turn == turn);
        let sent = attempts.any(|a| same(a.form, a.transport));
        let due = self.turns.get(turn).is_some_and(|t| {
            let mut due = t.due.iter();
            due.any(|(when, f, t)| *when <= at && same(*f, *t))
        });
        if !sent && !due {
            self.ask(turn, at, form, transport);
        }
    }

    fn ask(&mut self, turn: usize, at: Instant, form: Form, transport: Transport) {
        let sent = self.attempts.iter().filter(|a| a.turn == turn).count();
        let ended = self.outcome.is_some();
        if let Some(turn) = self.turns.get_mut(turn) {
            let wanted = !turn.answered && (!ended || turn.judge_at.is_some());
            if wanted && sent + turn.due.len() < MAX_SENDS {
                turn.due.push((at, form, transport));
            }
        }
    }
}

/// Whether the answer may be another one in another case. NODATA is not: the name was found.
pub(super) fn may_be_case(answer: &Forwarded) -> bool {
    let soa = |record: &Record| matches!(record.data, RData::SOA(_));
    let no_data = answer.code == ResponseCode::NoError && answer.authority.iter().any(soa);
    is_negative(answer) && !no_data
}

fn is_negative(answer: &Forwarded) -> bool {
    answer.code == ResponseCode::NXDomain || answer.answers.is_empty()
}

#[cfg(test)]
mod tests;
