//! The problem of a join that nobody waits for, as `meshctl status` shows it. Pure.

use std::time::Instant;

use crate::protocol::local::Problem;

/// A problem of a join that nobody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinProblem {
    pub(super) problem: Problem,
    /// When the join is tried again. None if that has no certain time.
    pub(super) next: Option<Instant>,
}

impl JoinProblem {
    /// The problem of a file of a join that cannot be read.
    pub(super) fn unreadable(why: String) -> Self {
        Self::from(Problem {
            what: "it is not known whether a join was interrupted".to_owned(),
            why,
            fix: "correct that, then restart meshd, which finishes such a join, or run `meshctl leave`, which ends it; a coordinator may have admitted this node, so its name may be taken"
                .to_owned(),
        })
    }

    /// The problem for `meshctl status`, with the time until the next attempt.
    pub(super) fn shown(&self, now: Instant) -> Problem {
        let Some(next) = self.next else {
            return self.problem.clone();
        };
        let left = next.saturating_duration_since(now).as_secs_f64().ceil();
        let when = if left > 0.0 {
            format!("the next attempt is in {left} s, or at once when the file changes")
        } else {
            "an attempt is under way".to_owned()
        };
        Problem {
            fix: format!("{}; {when}", self.problem.fix),
            ..self.problem.clone()
        }
    }
}

impl From<Problem> for JoinProblem {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            next: None,
        }
    }
}
