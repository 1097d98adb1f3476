//! Gives up the name that this node wants, if another node has it.
//!
//! Two nodes can take one name at the same time, and a coordinator whose store lost records can give the name of a node to another
//! one. The coordinator then refuses the name record of this node, while the ledger of this node refuses that of the other one. So
//! this node takes another name. A coordinator alone cannot cause that: there has to be a signed record in which another node claims
//! the name.

use std::time::{Duration, Instant};

use super::conflicts::Conflicts;
use crate::model::{Label, PublicKey};
use crate::protocol::local::Problem;
use crate::records::Ledger;

/// How long the status shows that this node gave up a name.
const SHOWN: Duration = Duration::from_secs(24 * 3600);

/// A name that this node gave up.
#[derive(Debug)]
struct GivenUp {
    lost: Label,
    /// The name that this node has instead.
    instead: Label,
    at: Instant,
}

/// The names that this node had.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// The name before the one that this node wants.
    former: Option<Label>,
    given_up: Option<GivenUp>,
}

impl Naming {
    /// This node publishes a record in which it wants the name `wanted`. `former` is its name before that.
    pub(super) fn handle_wanted(&mut self, wanted: &Label, former: Option<Label>) {
        if self.given_up.as_ref().is_some_and(|g| g.instead != *wanted) {
            self.given_up = None;
        }
        if former.as_ref() != Some(wanted) {
            self.former = former;
        }
    }

    /// The coordinator refused the name that this node, `own`, wants. Returns another name for it, if another node claims the
    /// refused one.
    pub(super) fn give_up(
        &mut self,
        own: &PublicKey,
        ledger: &Ledger,
        conflicts: &Conflicts,
        now: Instant,
    ) -> Option<Label> {
        let is_taken =
            |name: &Label| ledger.is_name_of_another(name, own) || conflicts.claims_name(name, own);
        let lost = &ledger.wanted_name(own)?.name;
        let joined = &ledger.membership(own)?.name;
        if !is_taken(lost) {
            return None;
        }
        let distinct = joined.with_suffix(&own.short());
        let candidates = self.former.iter().chain([joined, &distinct]);
        let mut free = candidates.filter(|&name| name != lost && !is_taken(name));
        let name = free.next()?.clone();
        tracing::warn!(%lost, %name, "another node has the name that this node wants; this node gives it up");
        self.given_up = Some(GivenUp {
            lost: lost.clone(),
            instead: name.clone(),
            at: now,
        });
        Some(name)
    }

    /// The problem that the status shows after this node gave up a name.
    pub(super) fn problem(&self, now: Instant) -> Option<Problem> {
        let given_up = self.given_up.as_ref()?;
        (now.saturating_duration_since(given_up.at) < SHOWN).then(|| Problem {
            what: format!("this node could not keep the name {}", given_up.lost),
            why: format!(
                "another node has the name, and the coordinator stored its record first; this node is called {} now",
                given_up.instead
            ),
            fix: "do nothing, or choose another name with `meshctl rename`".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::records::label;

    #[test]
    fn a_name_that_was_given_up_is_shown_for_a_day() {
        let at = Instant::now();
        let naming = Naming {
            former: None,
            given_up: Some(GivenUp {
                lost: label("web"),
                instead: label("db"),
                at,
            }),
        };
        let last = at + SHOWN - Duration::from_nanos(1);
        assert!(naming.problem(last).is_some());
        assert!(naming.problem(at + SHOWN).is_none());
    }
}
