//! The connections of this node to coordinators and peers, and the callers that wait for an answer of a coordinator.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::control::join::join;
use super::control::stream::Stream;
use super::gossip::Gossip;
use super::replica::acceptance::NodeRecord;
use super::replica::{Answer, Effect, Replica};
use super::state::writer::Writer;
use crate::model::PublicKey;
use crate::model::address::Block;
use crate::os::tasks::Tasks;
use crate::protocol::call::Call;
use crate::protocol::control::FromNode;
use crate::protocol::join::JoinRequest;
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::RecordKey;
use crate::records::ledger::Refused;

/// The outcome of a wait for the coordinator to accept this node's record: the reason, if it has not accepted it.
pub(super) type Accepted = Result<(), String>;

/// The outcome of an attempt to publish the records of this node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Published {
    /// No record has changed since the last publication. A coordinator that is connected has all of them.
    Nothing { is_connected: bool },
    /// They are offered to the coordinator, in the publication with this number.
    Offered(u64),
}

/// What became of a record that this node published. The event of a caller is dropped if no coordinator is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// The coordinator answered the publication.
    Answered(Answer),
    /// This node's own ledger refused the record, so it was sent to nobody.
    Invalid(Refused),
}

impl Confirmation {
    /// Whether the coordinator has stored the records, or does not need them.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self, Self::Answered(Answer::Stored | Answer::Settled))
    }
}

/// The connections, and the callers that wait.
pub(super) struct Connections {
    control: Stream,
    pub(super) gossip: Gossip,
    /// The key of the coordinators.
    pin: SpkiPin,
    /// Receives the answers of the coordinator to requests for this node's lease.
    lease_answers: mpsc::Sender<Result<Block, String>>,
    /// The callers that wait for the answer to a publication, by its number.
    waiting: HashMap<u64, Vec<oneshot::Sender<Confirmation>>>,
    /// The callers that wait for the answer to the next publication of this node's records, each with the record of its change.
    next: Vec<(RecordKey, oneshot::Sender<Confirmation>)>,
    /// Until when a join waits for the coordinator to accept this node's record, and where the outcome is sent.
    acceptance: Option<(Instant, oneshot::Sender<Accepted>)>,
}

impl Connections {
    pub(super) fn new(
        control: Stream,
        gossip: Gossip,
        pin: SpkiPin,
        lease_answers: mpsc::Sender<Result<Block, String>>,
    ) -> Self {
        Self {
            control,
            gossip,
            pin,
            lease_answers,
            waiting: HashMap::new(),
            next: Vec::new(),
            acceptance: None,
        }
    }

    /// Carries out all that the replica wants to be done.
    pub(super) fn carry_out_all(&mut self, replica: &mut Replica, writer: &Writer) {
        while let Some(effect) = replica.poll_effect() {
            self.carry_out(effect, writer);
        }
    }

    /// Calls another member over the coordinator.
    pub(super) fn call(&self, to: PublicKey, call: Call) -> bool {
        self.control.try_send(FromNode::Call { to, call })
    }

    fn carry_out(&mut self, effect: Effect, writer: &Writer) {
        match effect {
            Effect::Send(message) => drop(self.control.send(message)),
            Effect::SetPosition(position) => self.control.set_position(position),
            Effect::Reopen => self.control.reopen(),
            Effect::SetUrls(urls) => self.control.set_urls(urls),
            Effect::Write(request) => writer.write(request),
            Effect::Dial { peer, opening } => self.gossip.dial(peer, opening),
            Effect::AskLease { urls, request } => self.ask_lease(urls, request),
            Effect::Answered { sequence, answer } => {
                for waiting in self.waiting.remove(&sequence).unwrap_or_default() {
                    let _ = waiting.send(Confirmation::Answered(answer));
                }
            }
            Effect::Unanswered => self.waiting.clear(),
        }
    }

    fn ask_lease(&self, urls: Vec<CoordinatorUrl>, request: JoinRequest) {
        let (pin, answers) = (self.pin, self.lease_answers.clone());
        let request = async move {
            let response = join(&urls, pin, &request).await;
            let answer = response.map(|response| response.block);
            let _ = answers
                .send(answer.map_err(|error| error.to_string()))
                .await;
        };
        Tasks::current().spawn_child("request for the lease", request);
    }

    /// Returns an event for the answer of the coordinator to the publication with this number. The event is dropped if the
    /// stream closes before.
    pub(super) fn answer_to(&mut self, sequence: u64) -> oneshot::Receiver<Confirmation> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.entry(sequence).or_default().push(sender);
        receiver
    }

    /// Returns an event for what becomes of the record with `key` in the next publication of this node's records. The event is
    /// dropped if no coordinator is connected.
    pub(super) fn when_published(&mut self, key: RecordKey) -> oneshot::Receiver<Confirmation> {
        let (sender, receiver) = oneshot::channel();
        self.next.push((key, sender));
        receiver
    }

    /// The records of this node were published. `refused` are those that its own ledger refused.
    pub(super) fn handle_published(
        &mut self,
        published: Published,
        refused: &[(RecordKey, Refused)],
    ) {
        for (key, caller) in std::mem::take(&mut self.next) {
            let own = refused.iter().find(|(refused, _)| *refused == key);
            match (own, published) {
                (Some((_, why)), _) => drop(caller.send(Confirmation::Invalid(why.clone()))),
                (None, Published::Offered(sequence)) => {
                    self.waiting.entry(sequence).or_default().push(caller);
                }
                (None, Published::Nothing { is_connected: true }) => {
                    let _ = caller.send(Confirmation::Answered(Answer::Stored));
                }
                (None, Published::Nothing { .. }) => {}
            }
        }
    }

    /// Returns an event that fires when the coordinator has accepted or refused this node's record, or when `limit` is over.
    pub(super) fn when_accepted(
        &mut self,
        limit: Duration,
        now: Instant,
    ) -> oneshot::Receiver<Accepted> {
        let (sender, receiver) = oneshot::channel();
        self.acceptance = Some((now + limit, sender));
        receiver
    }

    /// When [`Connections::poll_accepted`] has to be called at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.acceptance.as_ref().map(|(until, _)| *until)
    }

    /// Answers the join that waits for [`Connections::when_accepted`], if its outcome is known by now.
    pub(super) fn poll_accepted(&mut self, replica: &Replica, now: Instant) {
        let Some((until, sender)) = self.acceptance.take() else {
            return;
        };
        let outcome = match replica.acceptance().node_record() {
            NodeRecord::Accepted => Ok(()),
            NodeRecord::Refused(why) => Err(format!("the coordinator refuses the record: {why}")),
            NodeRecord::Unanswered if now >= until => Err(replica
                .link()
                .failure()
                .unwrap_or("the coordinator does not answer")
                .to_owned()),
            NodeRecord::Unanswered => {
                self.acceptance = Some((until, sender));
                return;
            }
        };
        let _ = sender.send(outcome);
    }
}
