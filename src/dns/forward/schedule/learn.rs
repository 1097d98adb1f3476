//! The lessons about the upstreams from the replies of a [`Schedule`], and from missing replies.

use std::time::{Duration, Instant};

use super::super::exchange::Form;
use super::super::memory::{Feature, LATE, Lesson};
use super::turn::{Attempt, End};
use super::{Schedule, Transport};

/// The minimum time in which a reply to an earlier form may come after the reply to a simpler form.
const SETTLE: Duration = Duration::from_millis(200);

impl Schedule {
    /// Learns that the form of an attempt works, and its round trip.
    pub(super) fn learn_answer(&mut self, attempt: usize, negative: bool, now: Instant) {
        let Some(Attempt {
            turn,
            form,
            transport,
            sent,
            ..
        }) = self.attempts.get(attempt)
        else {
            return;
        };
        let Some(state) = self.turns.get_mut(*turn) else {
            return;
        };
        let form = Form {
            // A case-sensitive server answers a question in mixed case too, but only that the name does not exist.
            mixed: form.mixed && !negative,
            // A firewall may drop datagrams with EDNS and let streams pass.
            edns: form.edns && *transport != Transport::Tcp,
        };
        if let Some((_, doubted)) = &mut state.doubt {
            doubted.retain(|feature| !feature.is_in(form));
        }
        let round_trip = now.saturating_duration_since(*sent);
        let lesson = Lesson::Answered { form, round_trip };
        self.lessons.push((state.candidate.place, lesson));
    }

    /// Learns from an answer to a simpler form that the upstream may not support the features that the form lacks: at once if an
    /// earlier reply refused them, and otherwise after a while without a reply to the earlier form.
    pub(super) fn learn_form(&mut self, turn: usize, attempt: usize, negative: bool, now: Instant) {
        let (Some(answered), Some(state)) = (self.attempts.get(attempt), self.turns.get(turn))
        else {
            return;
        };
        let (began, place) = (state.candidate.form, state.candidate.place);
        let round_trip = now.saturating_duration_since(answered.sent);
        let lacks = |f: &Feature| f.is_in(began) && !f.is_in(answered.form);
        let (mut shown, mut doubted) = (Vec::new(), Vec::new());
        for feature in Feature::ALL.into_iter().filter(lacks) {
            let with = |wanted: fn(End) -> bool| {
                self.attempts
                    .any(turn, |form, end| feature.is_in(form) && wanted(end))
            };
            let refused = match feature {
                Feature::Mixed => {
                    with(|end| end == End::LostCase) || (!negative && with(|e| e == End::Denied))
                }
                Feature::Edns => with(|end| end == End::NoEdns),
            };
            if refused {
                shown.push((place, Lesson::Without(feature)));
            } else if with(|end| end == End::Open) && !with(|end| end == End::Answered) {
                doubted.push(feature);
            }
        }
        self.lessons.extend(shown);
        let at = now + (2 * round_trip).clamp(SETTLE, LATE);
        if let Some(state) = self.turns.get_mut(turn)
            && !doubted.is_empty()
        {
            state.doubt = Some((at, doubted));
        }
    }

    /// Draws the conclusions that are due.
    pub(super) fn judge(&mut self, now: Instant) {
        for turn in &mut self.turns {
            let place = turn.candidate.place;
            if turn.judge_at.is_some_and(|at| now >= at) {
                turn.judge_at = None;
                turn.due.clear();
                if let Some(since) = turn.started.filter(|_| !turn.replied) {
                    self.lessons.push((place, Lesson::Silent { since }));
                }
            }
            if let Some((_, doubted)) = turn.doubt.take_if(|(at, _)| now >= *at) {
                let lesson = |feature| (place, Lesson::Without(feature));
                self.lessons.extend(doubted.into_iter().map(lesson));
            }
        }
    }
}
