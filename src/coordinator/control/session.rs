//! The table of sessions: each node has at most one. Of two machines with the same keys, the one that answers keeps its stream.
//!
//! Each start of a node's program draws a random name, its instance. A second stream of a node that comes from the same
//! instance replaces the first one: it is the same program, whose old connection broke. A stream from another instance comes
//! from the node after a restart if the old stream does not answer a ping. Otherwise it comes from a duplicate: a copied disk, or
//! a machine that was restored twice. The duplicate is refused, and stays refused when the original is away for a moment. The
//! refusal carries the original's signature over the instance of the duplicate, which the duplicate verifies (see
//! [`crate::protocol::control`]). An original of a version that gives no signature keeps its session all the same.
//!
//! Streams of early versions name no instance. All of them count as one instance whose name is empty, so the next such stream
//! replaces the one before. So a node always has at most one stream.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::end::End;
use crate::model::PublicKey;
use crate::protocol::call::Call;
use crate::protocol::control::{Refusal, copy_message};
use crate::records::envelope::{Purpose, Signature};

/// How long a stream that is alive may take to answer a ping.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum number of duplicates that are stored. Each had a member's keys.
const MAX_DUPLICATES: usize = 1024;
/// The maximum number of calls that wait until a stream has sent them. Others are dropped, and their callers call again.
const MAX_CALLS: usize = 16;
/// The maximum length of an instance's name, in characters.
const MAX_INSTANCE: usize = 64;

/// The sessions of all nodes.
#[derive(Debug, Clone, Default)]
pub(super) struct SessionTable(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<PublicKey, Claimed>,
    duplicates: VecDeque<Duplicate>,
    last: u64,
}

/// A machine that is known to have the keys of another one.
#[derive(Debug)]
struct Duplicate {
    node: PublicKey,
    instance: String,
    /// The original's signature.
    proof: Option<Signature>,
}

#[derive(Debug, Clone)]
struct Claimed {
    number: u64,
    node: PublicKey,
    instance: String,
    orders: watch::Sender<Order>,
    /// Becomes true when another stream of the node takes the session.
    lost: watch::Sender<bool>,
    heard: watch::Receiver<u64>,
    proof: watch::Receiver<Option<DuplicateProof>>,
    /// Whether the coordinator does not read from the stream at present.
    paused: watch::Receiver<bool>,
    calls: mpsc::Sender<(PublicKey, Call)>,
}

/// An instance, and the original's signature which states that it is another machine.
type DuplicateProof = (String, Signature);

/// What a stream has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Continue.
    None,
    /// Ask the node for an answer, and for a proof that this instance is another machine.
    ProveDuplicate(String),
    /// Pass on the call of this member.
    PassCall(PublicKey, Call),
}

/// The session of a stream. It ends when this value is dropped.
#[derive(Debug)]
pub(super) struct NodeSession {
    sessions: SessionTable,
    node: PublicKey,
    number: u64,
    orders: watch::Receiver<Order>,
    lost: watch::Receiver<bool>,
    heard: watch::Sender<u64>,
    proof: watch::Sender<Option<DuplicateProof>>,
    paused: watch::Sender<bool>,
    calls: mpsc::Receiver<(PublicKey, Call)>,
}

impl SessionTable {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing is done under the lock that could leave the table half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the session of `node` for a stream of `instance`.
    ///
    /// # Errors
    /// Another machine with the keys of the node has the session, or it is not known whether it does.
    pub(super) async fn claim(&self, node: PublicKey, instance: &str) -> Result<NodeSession, End> {
        if instance.len() > MAX_INSTANCE {
            return Err(End::Refuse(
                Refusal::Protocol,
                format!("an instance has at most {MAX_INSTANCE} characters"),
            ));
        }
        loop {
            let mut other = {
                let mut table = self.table();
                let mut duplicates = table.duplicates.iter();
                if let Some(known) = duplicates.find(|c| c.node == node && c.instance == instance) {
                    return Err(End::DuplicateIdentity(known.proof));
                }
                match table.sessions.get(&node) {
                    Some(taken) if taken.instance != instance => taken.clone(),
                    taken => {
                        if let Some(taken) = taken {
                            taken.lost.send_replace(true);
                        }
                        return Ok(self.session(&mut table, node, instance));
                    }
                }
            };
            let answer = other.ask_about(instance).await;
            let mut table = self.table();
            // Another stream may have claimed the session meanwhile. Then the claim begins again.
            if table.sessions.get(&node).map(|t| t.number) != Some(other.number) {
                continue;
            }
            if let Answer::Unknown = answer {
                return Err(End::Refuse(
                    Refusal::Busy,
                    "another stream of this node is open, and the coordinator has not processed all of its messages; try again"
                        .to_owned(),
                ));
            }
            if let Answer::Alive(proof) = answer {
                // An empty name is not remembered: the next stream without a name may come from the original.
                if !instance.is_empty() {
                    if table.duplicates.len() >= MAX_DUPLICATES {
                        table.duplicates.pop_front();
                    }
                    table.duplicates.push_back(Duplicate {
                        node,
                        instance: instance.to_owned(),
                        proof,
                    });
                }
                tracing::warn!(
                    node = node.short(),
                    "a second machine with this node's keys is refused"
                );
                return Err(End::DuplicateIdentity(proof));
            }
            other.lost.send_replace(true);
            return Ok(self.session(&mut table, node, instance));
        }
    }

    fn session(&self, table: &mut Table, node: PublicKey, instance: &str) -> NodeSession {
        table.last += 1;
        let (order_sender, orders) = watch::channel(Order::None);
        let (lost_sender, lost) = watch::channel(false);
        let (heard, heard_receiver) = watch::channel(0);
        let (proof, proof_receiver) = watch::channel(None);
        let (paused, paused_receiver) = watch::channel(false);
        let (call_sender, calls) = mpsc::channel(MAX_CALLS);
        let taken = Claimed {
            number: table.last,
            node,
            instance: instance.to_owned(),
            orders: order_sender,
            lost: lost_sender,
            heard: heard_receiver,
            proof: proof_receiver,
            paused: paused_receiver,
            calls: call_sender,
        };
        table.sessions.insert(node, taken);
        NodeSession {
            sessions: self.clone(),
            node,
            number: table.last,
            orders,
            lost,
            heard,
            proof,
            paused,
            calls,
        }
    }

    /// Passes a call of `from` to the stream of the node `to`. Returns false if it has none, or if too many calls wait there.
    pub(super) fn pass_call(&self, from: PublicKey, to: &PublicKey, call: Call) -> bool {
        let table = self.table();
        let session = table.sessions.get(to);
        session.is_some_and(|session| session.calls.try_send((from, call)).is_ok())
    }
}

/// How the node of a stream answers the question about another instance.
enum Answer {
    /// It does not answer.
    Silent,
    /// The coordinator does not read the node's answer now, since the node has used up its allowance.
    Unknown,
    /// It answers. It signs that the other instance is another machine, if its version can do that.
    Alive(Option<Signature>),
}

impl Claimed {
    /// Asks the stream's node for an answer, and for its signature that `instance` is another machine.
    async fn ask_about(&mut self, instance: &str) -> Answer {
        self.heard.mark_unchanged();
        self.orders
            .send_replace(Order::ProveDuplicate(instance.to_owned()));
        if !matches!(
            timeout(ANSWER_TIMEOUT, self.heard.changed()).await,
            Ok(Ok(()))
        ) {
            return if *self.paused.borrow() {
                Answer::Unknown
            } else {
                Answer::Silent
            };
        }
        let is_valid_proof = |proof: &Option<DuplicateProof>| {
            proof.as_ref().is_some_and(|(other, signature)| {
                other == instance
                    && signature.holds(&self.node, Purpose::DuplicateProof, &copy_message(other))
            })
        };
        let proof = timeout(ANSWER_TIMEOUT, self.proof.wait_for(is_valid_proof)).await;
        Answer::Alive(match proof {
            Ok(Ok(proof)) => proof.as_ref().map(|(_, signature)| *signature),
            _ => None,
        })
    }
}

impl NodeSession {
    /// The node has sent something.
    pub(super) fn handle_heard(&self) {
        self.heard
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The node has signed that `instance` is another machine.
    pub(super) fn handle_duplicate_proof(&self, instance: &str, signature: Signature) {
        if instance.len() <= MAX_INSTANCE {
            self.proof
                .send_replace(Some((instance.to_owned(), signature)));
        }
    }

    /// Records whether the coordinator does not read from the stream at present.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused
            .send_if_modified(|was| std::mem::replace(was, paused) != paused);
    }

    /// Waits for the next order.
    pub(super) async fn order(&mut self) -> Order {
        tokio::select! {
            Ok(()) = self.orders.changed() => self.orders.borrow_and_update().clone(),
            Some((from, call)) = self.calls.recv() => Order::PassCall(from, call),
            // Another stream has taken the session, so this stream ends.
            else => std::future::pending().await,
        }
    }

    /// A receiver that becomes true when another stream of the node takes the session.
    pub(super) fn lost(&self) -> watch::Receiver<bool> {
        self.lost.clone()
    }
}

impl Drop for NodeSession {
    fn drop(&mut self) {
        let mut table = self.sessions.table();
        if table
            .sessions
            .get(&self.node)
            .is_some_and(|taken| taken.number == self.number)
        {
            table.sessions.remove(&self.node);
        }
    }
}

/// The message that a duplicate receives.
pub(super) const DUPLICATE_IDENTITY: &str = "another machine with this node's keys is connected and goes on; this one is a copy of it: run `meshctl leave` here and join with a new token";

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::SigningKey;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    /// A stream whose node answers until another stream takes the session. The node signs with the key `signs`, if there is one.
    fn answering_with(
        mut session: NodeSession,
        signs: Option<SigningKey>,
    ) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let mut lost = session.lost();
            let answer = async {
                while let Order::ProveDuplicate(instance) = session.order().await {
                    session.handle_heard();
                    if let Some(key) = &signs {
                        let message = copy_message(&instance);
                        let signature = Signature::make(key, Purpose::DuplicateProof, &message);
                        session.handle_duplicate_proof(&instance, signature);
                    }
                }
            };
            tokio::select! {
                () = answer => {}
                _ = lost.wait_for(|lost| *lost) => {}
            }
        })
    }

    fn answering(session: NodeSession) -> tokio::task::JoinHandle<()> {
        answering_with(session, Some(key()))
    }

    fn is_duplicate(result: Result<NodeSession, End>) -> bool {
        matches!(result, Err(End::DuplicateIdentity(Some(proof))) if proof.holds(&key().public(), Purpose::DuplicateProof, &copy_message("b")))
    }

    async fn claimed(sessions: &SessionTable, instance: &str) -> NodeSession {
        let node = key().public();
        sessions
            .claim(node, instance)
            .await
            .ok()
            .expect("no duplicate")
    }

    #[tokio::test]
    async fn an_original_that_does_not_sign_keeps_its_session_and_no_signature_is_made_up() {
        let with = async |signs| {
            let sessions = SessionTable::default();
            let original = answering_with(claimed(&sessions, "a").await, signs);
            let refused = sessions.claim(key().public(), "b").await;
            assert!(matches!(refused, Err(End::DuplicateIdentity(None))));
            assert!(!original.is_finished());
        };
        let other = SigningKey::from_seed(&[2; 32]);
        tokio::join!(with(None), with(Some(other)));
    }

    #[tokio::test]
    async fn a_duplicate_is_refused_and_the_original_keeps_its_session() {
        let sessions = SessionTable::default();
        let original = answering(claimed(&sessions, "a").await);
        assert!(is_duplicate(sessions.claim(key().public(), "b").await));
        assert!(!original.is_finished());
        // The original is away for a moment, and its duplicate does not get the session.
        original.abort();
        let _ = original.await;
        assert!(is_duplicate(sessions.claim(key().public(), "b").await));
        // The original was restarted.
        claimed(&sessions, "c").await;
    }

    #[tokio::test]
    async fn a_node_that_lost_its_connection_claims_its_session_again() {
        let sessions = SessionTable::default();
        let silent = claimed(&sessions, "a").await;
        let again = claimed(&sessions, "a").await;
        assert!(*silent.lost().borrow());
        drop(silent);
        // The node was restarted after a loss of power, so nothing arrives on the old stream any more.
        let _restarted = claimed(&sessions, "b").await;
        drop(again);
        assert!(!sessions.table().sessions.is_empty());
    }

    #[tokio::test]
    async fn of_streams_without_an_instance_the_last_has_the_session_and_no_duplicate_is_stored() {
        let sessions = SessionTable::default();
        let mut taken = vec![claimed(&sessions, "").await];
        for _ in 0..12 {
            taken.push(claimed(&sessions, "").await);
        }
        let lost = taken
            .iter()
            .filter(|session| *session.lost().borrow())
            .count();
        assert_eq!(lost, 12);
        drop(taken);
        let original = answering(claimed(&sessions, "a").await);
        assert!(matches!(
            sessions.claim(key().public(), "").await,
            Err(End::DuplicateIdentity(_))
        ));
        original.abort();
        let _ = original.await;
        claimed(&sessions, "").await;
    }

    #[tokio::test]
    async fn calls_reach_the_stream_of_their_node_and_too_many_are_dropped() {
        let sessions = SessionTable::default();
        let (from, to) = (SigningKey::from_seed(&[2; 32]), key().public());
        let call = |at| Call::sign(&from, &to, true, Vec::new(), at);
        assert!(
            !sessions.pass_call(from.public(), &to, call(0)),
            "nobody is there"
        );
        let mut session = claimed(&sessions, "a").await;
        let passed = (0..100).filter(|at| sessions.pass_call(from.public(), &to, call(*at)));
        assert_eq!(passed.count(), MAX_CALLS);
        for at in 0..MAX_CALLS as u64 {
            let order = session.order().await;
            assert_eq!(order, Order::PassCall(from.public(), call(at)));
        }
        drop(session);
        assert!(!sessions.pass_call(from.public(), &to, call(99)));
    }

    #[tokio::test]
    async fn a_stream_that_is_not_read_from_keeps_its_session_until_it_is() {
        let sessions = SessionTable::default();
        let original = claimed(&sessions, "a").await;
        original.set_paused(true);
        let refused = sessions.claim(key().public(), "b").await;
        assert!(matches!(refused, Err(End::Refuse(Refusal::Busy, _))));
        original.set_paused(false);
        claimed(&sessions, "b").await;
        assert!(*original.lost().borrow());
    }
}
