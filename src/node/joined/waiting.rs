//! Waits for the coordinator to confirm a change, and explains what becomes of one that it does not confirm.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::JoinedNode;
use crate::node::connections::Confirmation;
use crate::node::replica::Answer;
use crate::path::watch::Reach;
use crate::protocol::local::{Unpublished, UnpublishedState};

/// How long a change waits for the answer of the coordinator. After that the caller is told that the change follows later.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// What becomes of a change while no coordinator is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// The nodes send it to each other.
    PeersReceiveIt,
    /// Other nodes accept it from a coordinator alone.
    PeersWait,
}

/// A change that waits for the answer of the coordinator.
pub(super) struct Waiting {
    answer: oneshot::Receiver<Confirmation>,
    consequence: Consequence,
    /// Why no coordinator is connected, as far as that is known.
    failure: Option<String>,
    /// The number of peers that this node reaches, and of all its peers.
    reached: usize,
    peers: usize,
}

impl Waiting {
    /// The change whose answer is `answer` was published just now.
    pub(super) fn begin(
        node: &JoinedNode,
        answer: oneshot::Receiver<Confirmation>,
        consequence: Consequence,
    ) -> Self {
        let reach = node.paths.reach();
        Self {
            answer,
            consequence,
            failure: node.replica.link().failure().map(str::to_owned),
            reached: reach.values().filter(|r| **r == Reach::Reachable).count(),
            peers: node.netmap.members.len().saturating_sub(1),
        }
    }

    /// Waits for the answer. Returns none if the coordinator has stored the change, and otherwise what becomes of it.
    pub(super) async fn unpublished(self) -> Option<Unpublished> {
        let (state, note) = match timeout(PUBLISH_TIMEOUT, self.answer).await {
            Ok(Ok(Confirmation::Answered(Answer::Stored))) => return None,
            Ok(Ok(Confirmation::Answered(Answer::Settled | Answer::Refused))) => (
                UnpublishedState::Refused,
                "the coordinator refuses it; `meshctl status` shows the reason".to_owned(),
            ),
            Ok(Ok(Confirmation::Invalid(why))) => (
                UnpublishedState::Invalid,
                format!(
                    "no other node receives it, because the records of this node do not allow it ({why}); `meshctl status` shows what to do"
                ),
            ),
            Ok(Err(_)) => {
                let why = self
                    .failure
                    .map_or_else(String::new, |why| format!(" ({why})"));
                let then = consequence(self.consequence, self.reached, self.peers);
                (
                    UnpublishedState::Away,
                    format!("no coordinator is connected{why}: {then}"),
                )
            }
            Err(_) => (
                UnpublishedState::Unanswered,
                format!(
                    "the coordinator has not confirmed it within {} s; nothing needs to be done, since this node offers it again until it does",
                    PUBLISH_TIMEOUT.as_secs()
                ),
            ),
        };
        Some(Unpublished { state, note })
    }
}

/// What happens to a change while no coordinator is connected. This node reaches `reached` of its `peers`.
fn consequence(consequence: Consequence, reached: usize, peers: usize) -> String {
    match (consequence, reached) {
        (_, _) if peers == 0 => "a coordinator receives it when one is connected".to_owned(),
        (Consequence::PeersWait, _) => {
            "the other nodes receive it when a coordinator is connected".to_owned()
        }
        (Consequence::PeersReceiveIt, 0) => {
            "this node reaches no other node either, so they receive it when it reaches one of them or a coordinator".to_owned()
        }
        (Consequence::PeersReceiveIt, reached) => format!(
            "the nodes tell each other, beginning with the {reached} of {peers} that this node reaches"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::ledger::Refused;

    fn waiting(answer: oneshot::Receiver<Confirmation>) -> Waiting {
        Waiting {
            answer,
            consequence: Consequence::PeersReceiveIt,
            failure: Some("connection refused".to_owned()),
            reached: 2,
            peers: 3,
        }
    }

    async fn after(confirmation: Option<Confirmation>) -> Option<Unpublished> {
        let (sender, answer) = oneshot::channel();
        match confirmation {
            Some(confirmation) => drop(sender.send(confirmation)),
            None => drop(sender),
        }
        waiting(answer).unpublished().await
    }

    #[tokio::test]
    async fn a_change_that_no_coordinator_stored_says_why_and_what_becomes_of_it() {
        assert_eq!(
            after(Some(Confirmation::Answered(Answer::Stored))).await,
            None
        );
        for (confirmation, state, words) in [
            (None, UnpublishedState::Away, "the nodes tell each other"),
            (None, UnpublishedState::Away, "2 of 3"),
            (
                Some(Confirmation::Answered(Answer::Refused)),
                UnpublishedState::Refused,
                "refuses it",
            ),
            (
                Some(Confirmation::Invalid(Refused::NodeRevoked)),
                UnpublishedState::Invalid,
                "no other node receives it",
            ),
        ] {
            let unpublished = after(confirmation).await.expect("it is not stored");
            assert_eq!(unpublished.state, state);
            assert!(unpublished.note.contains(words), "{}", unpublished.note);
        }
        let away = after(None).await.expect("nobody is connected").note;
        assert!(away.contains("(connection refused)"), "{away}");
    }

    #[test]
    fn other_nodes_wait_for_what_they_accept_from_a_coordinator_alone() {
        let text = consequence(Consequence::PeersWait, 2, 3);
        assert_eq!(
            text,
            "the other nodes receive it when a coordinator is connected"
        );
        assert!(consequence(Consequence::PeersReceiveIt, 0, 3).contains("no other node"));
        assert!(!consequence(Consequence::PeersReceiveIt, 0, 0).contains("node"));
    }
}
