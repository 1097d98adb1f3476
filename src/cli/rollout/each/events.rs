//! The events of a rollout: a line for people, or a JSON document in one line for programs. Pure.

use std::fmt;

use serde::Serialize;

use crate::model::text::listed;
use crate::model::{Label, ServiceName};

/// The maximum number of nodes that a line names.
const MAX_NAMED: usize = 10;

/// What has just happened, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// The rollout begins, or continues.
    Started {
        service: ServiceName,
        nodes: Vec<Label>,
        resumed: bool,
    },
    /// The nodes are about to be drained.
    Draining { nodes: Vec<Label> },
    /// No node sends new clients any more.
    Drained {
        nodes: Vec<Label>,
        resolvers: usize,
        /// The nodes whose DNS does not answer.
        silent: Vec<Label>,
    },
    /// Clients may still have earlier answers.
    Waiting { seconds: u64 },
    /// The command is about to run.
    Running { nodes: Vec<Label>, rollback: bool },
    /// The commands have ended.
    Checking { nodes: Vec<Label> },
    /// The node has the new version, and all nodes send clients to it.
    Changed { node: Label, done: usize, of: usize },
    /// The canary nodes are watched.
    Soaking { nodes: Vec<Label>, seconds: u64 },
    /// The canary nodes were healthy all the time.
    Soaked,
    /// The rollout stops.
    Failed { node: Option<Label>, why: String },
    /// The nodes get clients again, with what still runs on them.
    Released { nodes: Vec<Label> },
    /// The node could not be published.
    StillDrained { node: Label, why: String },
    /// The node has the old version again.
    Reverted { node: Label },
    /// The rollback has failed.
    NotReverted { node: Label, why: String },
    /// The journal cannot be written, and the rollout goes on to its end without it.
    JournalLost { why: String },
    /// All nodes have the new version.
    Done { nodes: usize },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |nodes: &[Label]| listed(nodes, MAX_NAMED);
        match self {
            Self::Started {
                service,
                nodes,
                resumed,
            } => {
                let verb = if *resumed { "resuming" } else { "rolling out" };
                write!(f, "{verb} {service} on {}", names(nodes))
            }
            Self::Draining { nodes } => write!(f, "{}: draining", names(nodes)),
            Self::Drained {
                nodes,
                resolvers,
                silent,
            } => {
                let (nodes, silent) = (names(nodes), without_dns(silent));
                write!(
                    f,
                    "{nodes}: {resolvers} node(s) send no new clients{silent}"
                )
            }
            Self::Waiting { seconds } => write!(
                f,
                "waiting {seconds} s until clients have dropped earlier answers"
            ),
            Self::Running { nodes, rollback } => {
                let what = if *rollback { "rollback" } else { "command" };
                write!(f, "{}: running the {what}", names(nodes))
            }
            Self::Checking { nodes } => write!(
                f,
                "{}: waiting until the new instances are healthy",
                names(nodes)
            ),
            Self::Changed { node, done, of } => {
                write!(
                    f,
                    "{node}: published, and all nodes send clients ({done} of {of} done)"
                )
            }
            Self::Soaking { nodes, seconds } => {
                write!(f, "{}: watching for {seconds} s", names(nodes))
            }
            Self::Soaked => f.write_str("the canary stayed healthy"),
            Self::Failed {
                node: Some(node),
                why,
            } => write!(f, "{node}: failed: {why}"),
            Self::Failed { node: None, why } => write!(f, "failed: {why}"),
            Self::Released { nodes } => {
                write!(f, "{}: gets clients again", names(nodes))
            }
            Self::StillDrained { node, why } => {
                write!(
                    f,
                    "{node}: may still be drained, as it was not published: {why}"
                )
            }
            Self::Reverted { node } => write!(f, "{node}: rolled back"),
            Self::NotReverted { node, why } => write!(f, "{node}: not rolled back: {why}"),
            Self::JournalLost { why } => write!(
                f,
                "the journal is not complete, so that this rollout cannot be resumed: {why}"
            ),
            Self::Done { nodes } => write!(f, "{nodes} node(s) have the new version; done"),
        }
    }
}

/// The end of a line about nodes whose DNS does not answer.
fn without_dns(silent: &[Label]) -> String {
    if silent.is_empty() {
        return String::new();
    }
    let silent = listed(silent, MAX_NAMED);
    format!("; no DNS on {silent}: assumed to have received the drain")
}

/// An event as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) event: &'a Event,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::SCHEMA;

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    #[test]
    fn an_event_is_a_line_for_people_and_a_document_for_programs() {
        let event = Event::Changed {
            node: label("n1"),
            done: 1,
            of: 6,
        };
        assert_eq!(
            event.to_string(),
            "n1: published, and all nodes send clients (1 of 6 done)"
        );
        let document = Document {
            schema: SCHEMA,
            event: &event,
        };
        assert_eq!(
            serde_json::to_string(&document).expect("a document"),
            r#"{"schema":1,"event":"changed","node":"n1","done":1,"of":6}"#
        );
    }

    #[test]
    fn a_node_without_dns_is_named() {
        let event = Event::Drained {
            nodes: vec![label("n1")],
            resolvers: 2,
            silent: vec![label("n3")],
        };
        assert_eq!(
            event.to_string(),
            "n1: 2 node(s) send no new clients; no DNS on n3: assumed to have received the drain"
        );
    }
}
