//! How far a rollout is: what follows from the entries of its journal. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::Label;

/// An entry of the journal. Those that announce a step are written before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum Entry {
    /// The node is about to be drained.
    Drain { node: Label },
    /// The node was drained before, and not by this rollout, which therefore does not publish it.
    Foreign { node: Label },
    /// The command is about to run for the node.
    Run { node: Label },
    /// The node gets clients again.
    Published { node: Label },
    /// The node has the new version, and all nodes send clients to it.
    Changed { node: Label },
    /// The canary nodes were watched long enough.
    Soaked,
    /// The rollout stopped, because of this node or for another reason.
    Failed { node: Option<Label>, why: String },
    /// The rollback is about to run for the node.
    Revert { node: Label },
    /// The node has the old version again, and all nodes send clients to it.
    Reverted { node: Label },
    /// The rollback of the node has failed.
    NotReverted { node: Label, why: String },
    /// There is nothing more to do.
    Ended,
}

/// The version that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Version {
    /// The command has not run.
    #[default]
    Old,
    /// The command was started. Nobody knows whether the new version works.
    Unsure,
    /// The new version works.
    New,
    /// The rollback was started.
    Reverting,
    /// The old version works again.
    Reverted,
    /// The rollback has failed.
    NotReverted,
}

/// Why the rollout stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) node: Option<Label>,
    pub(super) why: String,
}

/// The state of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Course {
    versions: BTreeMap<Label, Version>,
    /// The nodes for which the command was started, oldest first.
    started: Vec<Label>,
    /// The nodes that may be drained.
    drained: BTreeSet<Label>,
    is_soaked: bool,
    failure: Option<Failure>,
    has_ended: bool,
}

impl Course {
    /// The state after `entries`.
    pub(super) fn after<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut course = Self::default();
        for entry in entries {
            course.apply(entry);
        }
        course
    }

    pub(super) fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Drain { node } => drop(self.drained.insert(node.clone())),
            Entry::Run { node } => {
                if !self.started.contains(node) {
                    self.started.push(node.clone());
                }
                self.set(node, Version::Unsure);
            }
            Entry::Published { node } | Entry::Foreign { node } => {
                self.drained.remove(node);
            }
            Entry::Changed { node } => self.set(node, Version::New),
            Entry::Soaked => self.is_soaked = true,
            Entry::Failed { node, why } => {
                self.failure = Some(Failure {
                    node: node.clone(),
                    why: why.clone(),
                });
            }
            Entry::Revert { node } => self.set(node, Version::Reverting),
            Entry::Reverted { node } => self.set(node, Version::Reverted),
            Entry::NotReverted { node, .. } => self.set(node, Version::NotReverted),
            Entry::Ended => self.has_ended = true,
        }
    }

    fn set(&mut self, node: &Label, version: Version) {
        self.versions.insert(node.clone(), version);
    }

    pub(super) fn version(&self, node: &Label) -> Version {
        self.versions.get(node).copied().unwrap_or_default()
    }

    /// The nodes with this version, in the order of their names.
    pub(super) fn with_version(&self, version: Version) -> impl Iterator<Item = &Label> {
        let all = self.versions.iter();
        all.filter(move |(_, own)| **own == version)
            .map(|(node, _)| node)
    }

    /// The nodes that may be drained.
    pub(super) fn drained(&self) -> &BTreeSet<Label> {
        &self.drained
    }

    pub(super) fn is_soaked(&self) -> bool {
        self.is_soaked
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Whether the rollout has stopped, and takes back what it changed.
    pub(super) fn is_back(&self) -> bool {
        self.failure.is_some()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The node whose rollback is next: the newest one that may have the new version.
    pub(super) fn newest_changed(&self) -> Option<&Label> {
        let mut newest = self.started.iter().rev();
        newest.find(|node| self.is_changed(node))
    }

    /// Whether the node may have the new version.
    pub(super) fn is_changed(&self, node: &Label) -> bool {
        matches!(
            self.version(node),
            Version::Unsure | Version::New | Version::Reverting
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    #[test]
    fn the_rollback_begins_with_the_newest_node_and_leaves_out_those_that_are_done() {
        let run = |node: &str| Entry::Run { node: label(node) };
        let changed = |node: &str| Entry::Changed { node: label(node) };
        let mut course = Course::after(&[run("n2"), changed("n2"), run("n1")]);
        assert_eq!(course.newest_changed(), Some(&label("n1")));
        course.apply(&Entry::Reverted { node: label("n1") });
        assert_eq!(course.newest_changed(), Some(&label("n2")));
        course.apply(&Entry::NotReverted {
            node: label("n2"),
            why: "no".into(),
        });
        assert_eq!(course.newest_changed(), None);
    }

    #[test]
    fn an_entry_is_one_line_of_json_and_is_read_again() {
        let entries = [
            Entry::Drain { node: label("n1") },
            Entry::Soaked,
            Entry::Failed {
                node: None,
                why: "a\nb".into(),
            },
        ];
        for entry in entries {
            let line = serde_json::to_string(&entry).expect("a document");
            assert!(!line.contains('\n'), "{line}");
            let read: Entry = serde_json::from_str(&line).expect("an entry");
            assert_eq!(read, entry);
        }
        let line = serde_json::to_string(&Entry::Drain { node: label("n1") });
        assert_eq!(line.expect("a document"), r#"{"step":"drain","node":"n1"}"#);
    }
}
