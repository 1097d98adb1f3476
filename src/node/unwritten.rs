//! The parts of a node's state that could not be written to disk, until they are written. Pure.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::protocol::local::Problem;

/// A part of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The verified records.
    Records,
    /// The position in the changes of the coordinator's store.
    Position,
    /// The addresses of containers.
    Leases,
    /// Which memberships this node holds back or accepted on trust.
    Newcomers,
    /// When this node was last in step with a coordinator.
    InStep,
    /// The identity without the tunnel's old key.
    OldKey,
    /// The record of the policy in force.
    Policy,
    /// Which service has which service address.
    ServiceAddresses,
    /// The time of the last call of each member.
    Calls,
}

impl Part {
    /// The problem while the part is not written, and its consequence if meshd ends before.
    fn consequence(self) -> (&'static str, &'static str) {
        match self {
            Self::Records => (
                "records are not written to disk",
                "after a restart meshd would begin with older records",
            ),
            Self::Position => (
                "the position in the coordinator's changes is not written to disk",
                "after a restart meshd would request more records than it needs",
            ),
            Self::Leases => (
                "the addresses of containers are not written to disk",
                "after a restart of meshd containers would get other addresses",
            ),
            Self::Newcomers => (
                "the memberships that this node holds back or accepted on trust are not written to disk",
                "after a restart meshd might vouch for memberships that it accepted on trust",
            ),
            Self::InStep => (
                "the time at which this node was last in step with the coordinator is not written to disk",
                "after a restart meshd would accept memberships that it should hold back",
            ),
            Self::OldKey => (
                "the former key of the tunnel is not removed from disk",
                "until then it can be read there",
            ),
            Self::Policy => (
                "the policy in force is not written to disk",
                "after a restart an earlier policy could be in force until the coordinator or a peer sends the present one",
            ),
            Self::ServiceAddresses => (
                "the service addresses of this node are not written to disk",
                "after a restart of meshd services could get other service addresses",
            ),
            Self::Calls => (
                "the times of the last calls of members are not written to disk",
                "after a restart meshd would follow a call of the last hour once more",
            ),
        }
    }
}

/// The parts that could not be written, with the reasons.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    parts: BTreeMap<Part, String>,
    /// The number of attempts that failed.
    failures: u64,
}

impl Unwritten {
    /// Notes the result of an attempt to write `part`. Logs a failure once, until the reason changes or a write succeeds.
    pub(super) fn note(&mut self, part: Part, result: Result<(), impl Display>) {
        match result {
            Ok(()) => {
                if self.parts.remove(&part).is_some() {
                    tracing::info!(?part, "the disk accepts writes again");
                }
            }
            Err(error) => {
                self.failures += 1;
                let why = error.to_string();
                if self.parts.get(&part) != Some(&why) {
                    let (what, _) = part.consequence();
                    tracing::error!(%error, "{what}");
                }
                self.parts.insert(part, why);
            }
        }
    }

    /// Whether the last attempt to write `part` failed.
    pub(super) fn has(&self, part: Part) -> bool {
        self.parts.contains_key(&part)
    }

    /// The number of attempts to write that failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// One problem for each part.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.parts.iter().map(|(part, why)| {
            let (what, consequence) = part.consequence();
            Problem {
                what: what.into(),
                why: why.clone(),
                fix: format!("make room on the file system of the state directory; {consequence}"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_the_disk_refuses_is_a_problem_until_it_is_written() {
        let mut unwritten = Unwritten::default();
        let full = || Err("No space left on device");
        for part in [Part::Position, Part::Records, Part::Calls, Part::OldKey] {
            unwritten.note(part, full());
            unwritten.note(part, full());
            assert!(unwritten.has(part));
        }
        let problems: Vec<Problem> = unwritten.problems().collect();
        assert_eq!(problems.len(), 4);
        assert!(
            problems
                .iter()
                .all(|p| p.why.contains("No space left") && p.fix.contains("make room"))
        );

        assert_eq!(unwritten.failures(), 8);
        unwritten.note(Part::Position, Ok::<(), &str>(()));
        assert!(!unwritten.has(Part::Position) && unwritten.has(Part::Records));
        assert_eq!(unwritten.problems().count(), 3);
    }
}
