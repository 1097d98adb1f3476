//! The part of one upstream in a [`Schedule`](super::Schedule): the questions to come, the attempts, and their results.

use std::time::Instant;

use super::super::exchange::Form;
use super::super::memory::{Candidate, Feature};
use super::Transport;

/// The part of one upstream.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) candidate: Candidate,
    pub(super) started: Option<Instant>,
    pub(super) due: Vec<(Instant, Form, Transport)>,
    /// A reply of any kind arrived.
    pub(super) replied: bool,
    /// An answer arrived.
    pub(super) answered: bool,
    /// The upstream replied with an error.
    pub(super) failed: bool,
    /// The upstream was asked once more after an error.
    pub(super) second_chance: bool,
    /// The upstream counts as silent if it has not answered at this time.
    pub(super) judge_at: Option<Instant>,
    /// The upstream does not support these features if no reply to a question with them arrives until this time.
    pub(super) doubt: Option<(Instant, Vec<Feature>)>,
}

/// A question that was sent.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) turn: usize,
    pub(super) form: Form,
    pub(super) transport: Transport,
    pub(super) sent: Instant,
    pub(super) end: End,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Open,
    Answered,
    /// A negative answer to mixed case that is not verified.
    Denied,
    LostCase,
    NoEdns,
    /// There was no reply that is evidence about the form.
    Other,
}

/// The attempts of a schedule, by number.
#[derive(Debug, Default)]
pub(super) struct Attempts(Vec<Attempt>);

impl Attempts {
    /// Adds an attempt, and returns its number.
    pub(super) fn push(&mut self, attempt: Attempt) -> usize {
        self.0.push(attempt);
        self.0.len() - 1
    }

    pub(super) fn get(&self, attempt: usize) -> Option<&Attempt> {
        self.0.get(attempt)
    }

    /// Returns the turn, the form and the transport of an attempt that has not ended.
    pub(super) fn open(&self, attempt: usize) -> Option<(usize, Form, Transport)> {
        let attempt = self.get(attempt).filter(|a| a.end == End::Open)?;
        Some((attempt.turn, attempt.form, attempt.transport))
    }

    pub(super) fn end(&mut self, attempt: usize, end: End) {
        if let Some(attempt) = self.0.get_mut(attempt) {
            attempt.end = end;
        }
    }

    pub(super) fn of_turn(&self, turn: usize) -> impl Iterator<Item = &Attempt> {
        self.0.iter().filter(move |attempt| attempt.turn == turn)
    }

    /// Returns whether an attempt of a turn has this form and this end.
    pub(super) fn any(&self, turn: usize, wanted: impl Fn(Form, End) -> bool) -> bool {
        self.of_turn(turn).any(|a| wanted(a.form, a.end))
    }
}

impl Turn {
    pub(super) fn new(candidate: Candidate) -> Self {
        Self {
            candidate,
            started: None,
            due: Vec::new(),
            replied: false,
            answered: false,
            failed: false,
            second_chance: false,
            judge_at: None,
            doubt: None,
        }
    }

    /// Drops the questions to come that have `feature`.
    pub(super) fn give_up(&mut self, feature: Feature) {
        self.due.retain(|(_, form, _)| !feature.is_in(*form));
    }

    /// Plans when the upstream is asked in which form, if no reply changes that.
    pub(super) fn start(&mut self, now: Instant) {
        self.started = Some(now);
        let Candidate { form, again, .. } = self.candidate;
        if self.candidate.tls {
            let ask = |at, new| (at, form, Transport::Tls { new });
            self.due = vec![ask(now, false), ask(now + again, true)];
            return;
        }
        let simplest = Form {
            mixed: false,
            edns: false,
        };
        let second = match form {
            _ if self.candidate.proven => vec![form],
            Form {
                mixed: true,
                edns: true,
            } => vec![
                Form {
                    mixed: true,
                    edns: false,
                },
                Form {
                    mixed: false,
                    edns: true,
                },
            ],
            _ => vec![simplest],
        };
        let first = std::iter::once((now, form));
        let second = second.into_iter().map(|form| (now + again, form));
        let third = std::iter::once((now + 2 * again, simplest));
        let all = first.chain(second).chain(third);
        self.due = all.map(|(at, form)| (at, form, Transport::Udp)).collect();
    }
}
