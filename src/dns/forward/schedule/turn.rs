//! One upstream's turn within a [`Schedule`](super::Schedule): what it is to be asked, and what came of it.

use std::time::Instant;

use super::super::exchange::Form;
use super::super::memory::{Candidate, Feature};
use super::Transport;

/// One upstream's turn.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) candidate: Candidate,
    pub(super) started: Option<Instant>,
    pub(super) due: Vec<(Instant, Form, Transport)>,
    /// A reply of any kind arrived.
    pub(super) replied: bool,
    /// An answer arrived.
    pub(super) answered: bool,
    /// It replied with an error.
    pub(super) failed: bool,
    /// It was asked once more after that.
    pub(super) second_chance: bool,
    /// It is silent if it has not answered by then.
    pub(super) judge_at: Option<Instant>,
    /// It cannot take these if no reply to a question with them arrives by then.
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

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Open,
    Answered,
    /// A negative answer to mixed case that is not verified.
    Denied,
    LostCase,
    NoEdns,
    /// No reply that says anything about the form.
    Other,
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

    /// Lays down when it is asked in which form, if no reply changes that.
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
