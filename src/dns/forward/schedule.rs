//! The order of events while one question is answered: which upstream is asked when, in which form and over which transport,
//! and which reply is the answer. Pure: the caller passes the time and sends the questions.
//!
//! - The upstreams are started in order, each some time after the one before. If an upstream fails, the next one is started at
//!   once, so that a failure that takes no time delays nothing. All of them are started so early that an upstream that takes
//!   1.5 s still answers before the client gives up.
//! - A started upstream is asked several times, in the form that it is known to support or in simpler forms. A later question
//!   does not cancel an earlier one. Every reply counts until the end.
//! - NXDOMAIN to a name in mixed case is verified by the question as the client wrote it, because some servers compare names
//!   case-sensitively.
//! - A negative answer of a later upstream is held back for a while if an earlier one is still being asked, because only the
//!   first one may know private names.
//! - After the answer the schedule continues for a moment, to learn whether the other upstreams answer.

use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};

use super::answer::Forwarded;
use super::exchange::{Form, Received};
use super::memory::{Candidate, Feature, LATE, Lesson};
use turn::{Attempt, Attempts, End, Turn};

mod learn;
mod turn;

/// The maximum time of the search for an answer. Docker's resolver gives up after 4 s, glibc and musl after 5 s.
pub(super) const SEARCH_TIMEOUT: Duration = Duration::from_millis(3_700);
/// The time after which all upstreams are started.
const START_BY: Duration = Duration::from_millis(1_100);
/// The minimum wait between the starts of two upstreams.
const MIN_NEXT: Duration = Duration::from_millis(50);
/// How long a stream may take, after a datagram lost the case of the name, before a datagram without mixed case is sent.
const STREAM_WAIT: Duration = Duration::from_millis(300);
/// The maximum number of questions to one upstream.
const MAX_SENDS: usize = 8;

/// How a question is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
    /// Over the open connection if there is one, unless `new` demands another one.
    Tls {
        new: bool,
    },
}

/// A question to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Send {
    /// The number of the attempt, which [`Schedule::handle_reply`] and the other handlers take.
    pub(super) attempt: usize,
    /// The position of the upstream in the configured order.
    pub(super) place: usize,
    pub(super) form: Form,
    pub(super) transport: Transport,
}

/// The result for the client.
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
    attempts: Attempts,
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
            attempts: Attempts::default(),
            held: None,
            outcome: None,
            lessons: Vec::new(),
        };
        for turn in schedule.turns.iter_mut().filter(|t| t.candidate.retry) {
            turn.start(now);
        }
        schedule
    }

    /// Returns the next question that has to be sent now.
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
            let attempt = self.attempts.push(Attempt {
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

    /// Returns when [`Schedule::poll`] has to be called again, if nothing arrives before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = |turn: &Turn| turn.due.iter().map(|(at, ..)| *at).min();
        let times = self.turns.iter().flat_map(|turn| {
            let doubt = turn.doubt.as_ref().map(|(at, _)| *at);
            [due(turn), turn.judge_at, doubt]
        });
        let mut times: Vec<Instant> = times.flatten().collect();
        if self.outcome.is_none() {
            times.push(self.started + SEARCH_TIMEOUT);
            times.extend(self.held_until());
            times.extend(self.second_chance_at());
            if self.held.is_none() && self.turns.iter().any(|t| t.started.is_none()) {
                times.push(self.next_start);
            }
        }
        times.into_iter().min()
    }

    /// Returns the outcome, once there is one.
    #[cfg(test)]
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Takes the answer out of the outcome, once there is one. The outcome itself stays.
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        Some(match self.outcome.as_mut()? {
            Outcome::Failed => Outcome::Failed,
            Outcome::Answer { place, answer } => Outcome::Answer {
                place: *place,
                answer: std::mem::take(answer),
            },
        })
    }

    /// Returns whether the schedule has its outcome and has nothing left to learn.
    pub(super) fn is_over(&self) -> bool {
        let settled = |turn: &Turn| turn.judge_at.is_none() && turn.doubt.is_none();
        match self.outcome {
            Some(Outcome::Answer { .. }) => self.turns.iter().all(settled),
            Some(Outcome::Failed) => true,
            None => false,
        }
    }

    /// Returns the lessons since the last call, each with the position of the upstream.
    pub(super) fn lessons(&mut self) -> Vec<(usize, Lesson)> {
        std::mem::take(&mut self.lessons)
    }

    /// Handles the reply to an attempt.
    pub(super) fn handle_reply(&mut self, attempt: usize, received: Received, now: Instant) {
        let Some((turn, form, transport)) = self.attempts.open(attempt) else {
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
                self.attempts.end(attempt, End::Answered);
                self.learn_form(turn, attempt, false, now);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.due.clear();
                }
                self.ask_once(turn, now, plain, Transport::Tcp);
            }
            Received::LostCase => {
                self.attempts.end(attempt, End::LostCase);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.give_up(Feature::Mixed);
                }
                self.ask_once(turn, now, plain, Transport::Tcp);
                self.ask_once(turn, now + STREAM_WAIT, plain, Transport::Udp);
            }
            Received::NoEdns => {
                self.attempts.end(attempt, End::NoEdns);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.give_up(Feature::Edns);
                }
                let without = Form {
                    edns: false,
                    ..form
                };
                self.ask_once(turn, now, without, transport);
            }
            Received::Failed => {
                self.attempts.end(attempt, End::Other);
                if let Some(turn) = self.turns.get_mut(turn) {
                    turn.failed = true;
                    turn.due.clear();
                }
                self.next_start = now;
            }
            Received::Stray => {}
        }
    }

    /// Handles an attempt that could not be sent, or whose connection failed.
    pub(super) fn handle_error(&mut self, attempt: usize, now: Instant) {
        let Some((turn, _, transport)) = self.attempts.open(attempt) else {
            return;
        };
        self.attempts.end(attempt, End::Other);
        let Some(state) = self.turns.get_mut(turn) else {
            return;
        };
        if transport == Transport::Tcp {
            // A datagram was to follow in case the stream is slow. It is sent at once.
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

    /// Handles an attempt that this host gave up for a reason of its own, which says nothing about the upstream.
    pub(super) fn handle_given_up(&mut self, attempt: usize, now: Instant) {
        let Some((turn, ..)) = self.attempts.open(attempt) else {
            return;
        };
        self.attempts.end(attempt, End::Other);
        if !self.is_open(turn) {
            self.next_start = now;
        }
    }

    fn handle_answer(&mut self, attempt: usize, answer: Forwarded, now: Instant) {
        let Some((turn, form, transport)) = self.attempts.open(attempt) else {
            return;
        };
        let negative = is_negative(&answer);
        self.learn_answer(attempt, negative, now);
        if form.mixed && may_be_case(&answer) {
            self.attempts.end(attempt, End::Denied);
            self.verify(turn, form, now);
            return;
        }
        self.attempts.end(attempt, End::Answered);
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

    /// Asks for the name as the client wrote it, unless such a question is in progress.
    fn verify(&mut self, turn: usize, form: Form, now: Instant) {
        if let Some(turn) = self.turns.get_mut(turn) {
            turn.give_up(Feature::Mixed);
        }
        let plain = Form {
            mixed: false,
            ..form
        };
        if self
            .attempts
            .any(turn, |form, end| !form.mixed && end == End::Open)
        {
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

    /// Asks the upstreams that replied with an error once more in a simpler form, when no other upstream is left.
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
        let late = now >= self.started + SEARCH_TIMEOUT;
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

    /// Returns until when an answer of `turn` is held back for an upstream before it.
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

    /// Returns whether an upstream has been started and may still answer.
    fn is_open(&self, turn: usize) -> bool {
        let due = self.turns.get(turn).is_some_and(|t| !t.due.is_empty());
        due || self.attempts.any(turn, |_, end| end == End::Open)
    }

    /// Asks, unless the same question was sent or is to be sent as early.
    fn ask_once(&mut self, turn: usize, at: Instant, form: Form, transport: Transport) {
        let same = |f: Form, t: Transport| f == form && t == transport;
        let sent = self
            .attempts
            .of_turn(turn)
            .any(|a| same(a.form, a.transport));
        let due = self.turns.get(turn).is_some_and(|t| {
            let mut due = t.due.iter();
            due.any(|(when, f, t)| *when <= at && same(*f, *t))
        });
        if !sent && !due {
            self.ask(turn, at, form, transport);
        }
    }

    fn ask(&mut self, turn: usize, at: Instant, form: Form, transport: Transport) {
        let sent = self.attempts.of_turn(turn).count();
        let ended = self.outcome.is_some();
        if let Some(turn) = self.turns.get_mut(turn) {
            let wanted = !turn.answered && (!ended || turn.judge_at.is_some());
            if wanted && sent + turn.due.len() < MAX_SENDS {
                turn.due.push((at, form, transport));
            }
        }
    }
}

/// Returns whether the answer may be different for the name in another case. That is not so for NODATA, because the name exists.
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
