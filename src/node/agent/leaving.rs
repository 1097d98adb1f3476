//! Leaving: a joined node signs its departure, and a join under way gives back what it may have been granted.
//!
//! The departure is in the state directory before it is sent, and the identity is deleted after. So a meshd that is killed
//! in between finishes at its next start.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::{Agent, Phase};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::node::api::Reply;
use crate::node::joined::{JoinedNode, NodeEvent};
use crate::node::joining;
use crate::node::replica::Answer;
use crate::node::report;
use crate::node::state::StateDir;
use crate::node::state::departing::Departing;
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{DepartureState, Left, NodeState, Problem, SCHEMA, Status};
use crate::records::Envelope;

/// How long the coordinator may take to acknowledge a departure.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(5);
/// How long the caller waits for the departure of a join that was given up.
const GIVE_BACK_LIMIT: Duration = Duration::from_secs(3);
/// The maximum number of peers to which a node hands its departure when it leaves. Each of them costs a socket; the others
/// receive it from these.
const MAX_DEPARTURE_PEERS: usize = 256;
const GIVE_BACK_LOOK: Duration = Duration::from_millis(50);

/// Finishes a leave that was cut off by a kill.
///
/// # Errors
/// The disk refuses.
pub(super) fn finish(dir: &StateDir) -> Result<(), ApiError> {
    let departing: Vec<PublicKey> = dir.departing().iter().map(Departing::id).collect();
    if departing.is_empty() {
        return Ok(());
    }
    if dir
        .identity()?
        .is_some_and(|identity| departing.contains(&identity.keys.identity.public()))
    {
        tracing::info!("finishes leaving the mesh");
        dir.clear();
    }
    if dir
        .pending()?
        .is_some_and(|pending| departing.contains(&pending.keys.identity.public()))
    {
        dir.clear_pending();
    }
    Ok(())
}

/// Why a node that nobody asked to join is joining.
pub(super) fn interrupted() -> Problem {
    Problem {
        what: "a join that was interrupted is not finished yet".to_owned(),
        why: "a coordinator may have admitted this node, and none has answered since meshd started"
            .to_owned(),
        fix: "nothing, if a coordinator is back soon; `meshctl leave` gives the join up".to_owned(),
    }
}

impl Agent {
    pub(super) async fn leave(&mut self, reply: Reply<Left>) {
        match &mut self.phase {
            Phase::Up(..) => {
                let left = self.leave_mesh().await;
                let _ = reply.send(left);
            }
            Phase::Joining(_) | Phase::Unjoined => self.leave_join(reply),
        }
    }

    async fn leave_mesh(&mut self) -> Result<Left, ApiError> {
        let node = self.node()?;
        let name = node.identity.name.clone();
        let left = |departure, peers_reached| Left {
            schema: SCHEMA,
            name: Some(name),
            departure,
            peers_reached,
        };
        if let Some(silent) = stays_silent(node) {
            self.take_down().await;
            self.dir.clear();
            tracing::info!("left the mesh");
            return Ok(left(silent, 0));
        }
        let departing = departing_of(node);
        let departure = departing.envelope();
        if let Err(error) = self.dir.add_departing(&departing) {
            tracing::warn!(%error, "the departure is not kept on disk; a restart before a coordinator has it leaves the name taken");
        }
        let published = timeout(
            ACKNOWLEDGE_LIMIT,
            is_acknowledged(&mut self.phase, &departure),
        )
        .await
        .unwrap_or(false);
        let mut peers_reached = 0;
        if let (false, Phase::Up(node, _)) = (published, &self.phase) {
            peers_reached = send_departure(node, &departure).await;
        }
        self.take_down().await;
        self.dir.clear();
        if published {
            self.dir.remove_departing(&departing.id());
            tracing::info!("left the mesh");
            return Ok(left(DepartureState::Published, 0));
        }
        self.courier.wake();
        tracing::info!(
            peers_reached,
            "left the mesh; no coordinator has the departure yet"
        );
        Ok(left(DepartureState::Pending, peers_reached))
    }

    /// Gives up a join under way, or one that has failed and may have been granted.
    fn leave_join(&mut self, reply: Reply<Left>) {
        let was_joining = match std::mem::replace(&mut self.phase, Phase::Unjoined) {
            Phase::Joining(joining) => {
                joining.task.abort();
                self.join_problem = None;
                if let Some(joiner) = joining.reply {
                    let _ = joiner.send(Err(ApiError::new(ErrorCode::Conflict, joining::GIVEN_UP)));
                }
                true
            }
            phase => {
                self.phase = phase;
                false
            }
        };
        let pending = self.dir.pending().ok().flatten();
        let granted = pending.as_ref().is_some_and(|pending| pending.asked);
        if !was_joining && !granted {
            let _ = reply.send(Err(ApiError::new(
                ErrorCode::Conflict,
                "this node has not joined a mesh; there is nothing to leave",
            )));
            return;
        }
        let id = pending.as_ref().map(|p| p.keys.identity.public());
        if let Some(pending) = pending
            && let Err(error) = joining::abandon(&self.dir, &pending)
        {
            let _ = reply.send(Err(error));
            return;
        }
        self.courier.wake();
        let dir = self.dir.clone();
        Tasks::current().spawn_child("reply to a leave", async move {
            let departure = match id.filter(|_| granted) {
                None => DepartureState::Unneeded,
                Some(id) if is_brought(&dir, &id).await => DepartureState::Published,
                Some(_) => DepartureState::Pending,
            };
            let _ = reply.send(Ok(Left {
                schema: SCHEMA,
                name: None::<Label>,
                departure,
                peers_reached: 0,
            }));
        });
    }

    /// A join that went on after a restart came to nothing.
    pub(super) fn handle_not_resumed(&mut self, error: ApiError) {
        tracing::warn!(%error, "an interrupted join cannot be finished");
        if let Ok(Some(pending)) = self.dir.pending()
            && let Err(error) = joining::abandon(&self.dir, &pending)
        {
            tracing::warn!(%error, "it is tried again at the next start");
        }
        self.courier.wake();
        self.join_problem = Some(Problem {
            what: "a join that was interrupted cannot be finished".to_owned(),
            why: error.message,
            fix: "mend that and run `meshctl join TOKEN`, with a new token if the one before has no use left".to_owned(),
        });
    }
}

/// The node was admitted and cannot take its place: gives the place back.
pub(super) fn give_back(dir: &StateDir, error: ApiError) -> ApiError {
    let Ok(Some(pending)) = dir.pending() else {
        return error;
    };
    let error = joining::depart_after(dir, &pending, error);
    if dir.pending().is_ok_and(|pending| pending.is_none()) {
        dir.clear();
    }
    error
}

/// The status of a node that is no member.
pub(super) fn bare_status(agent: &Agent, state: NodeState) -> Status {
    Status {
        problems: agent.join_problem.iter().cloned().collect(),
        ..report::bare_status(state)
    }
}

/// Publishes the departure as soon as the stream is open, and takes stream events in until the coordinator has answered.
/// False at once, if the coordinator is away.
async fn is_acknowledged(phase: &mut Phase, departure: &Envelope) -> bool {
    let mut answer: Option<oneshot::Receiver<Answer>> = None;
    loop {
        let Phase::Up(node, events) = phase else {
            return false;
        };
        match &mut answer {
            None if node.replica.link().is_connected() => {
                match publish_departure(node, departure.clone()) {
                    Some(receiver) => answer = Some(receiver),
                    None => return false,
                }
            }
            None if node.replica.link().is_away() => return node.replica.link().is_revoked(),
            None => {}
            Some(receiver) => match receiver.try_recv() {
                Ok(answer) => return answer != Answer::Refused,
                Err(oneshot::error::TryRecvError::Closed) => answer = None,
                Err(oneshot::error::TryRecvError::Empty) => {}
            },
        }
        if answer.is_none() && node.replica.link().is_away() {
            continue;
        }
        tokio::select! {
            event = events.stream.recv() => match event {
                Some(event) => node.replica.handle_stream(event, clock::now()),
                None => return false,
            },
            Some(written) = events.writes.recv() => {
                // A node that leaves does not move to another address block, and no write can end with an error here.
                let _ = node.handle_event(NodeEvent::Written(written)).await;
            }
        }
        node.settle();
    }
}

/// Whether a coordinator took a departure within a short time.
async fn is_brought(dir: &StateDir, id: &PublicKey) -> bool {
    let end = Instant::now() + GIVE_BACK_LIMIT;
    while dir
        .departing()
        .iter()
        .any(|departing| departing.id() == *id)
    {
        if Instant::now() >= end {
            return false;
        }
        sleep(GIVE_BACK_LOOK).await;
    }
    true
}

/// Why a node signs no departure, if it does not: another machine with its keys is a member, or it is removed already.
fn stays_silent(node: &JoinedNode) -> Option<DepartureState> {
    if node.replica.link().is_called_duplicate() {
        Some(DepartureState::Copy)
    } else if node.replica.is_removed() {
        Some(DepartureState::Unneeded)
    } else {
        None
    }
}

/// The departure of a node, for the coordinators that it knows of.
fn departing_of(node: &JoinedNode) -> Departing {
    let now = UnixSeconds::from_system(clock::wall());
    let mut departing = Departing::of(&node.identity, now);
    departing.way.urls = node.replica.coordinators();
    departing
}

/// Publishes the departure over the open stream. Returns an event for the answer of the coordinator, or none if no stream is
/// open.
fn publish_departure(
    node: &mut JoinedNode,
    departure: Envelope,
) -> Option<oneshot::Receiver<Answer>> {
    let sequence = node.replica.publish_departure(departure)?;
    let answer = node.connections.answer_to(sequence);
    node.settle();
    Some(answer)
}

/// Hands the departure to the peers that are not known to be away. Returns how many received it.
fn send_departure(node: &JoinedNode, departure: &Envelope) -> impl Future<Output = usize> + use<> {
    let away = |id: &PublicKey| node.paths.reach().get(id) == Some(&Reach::Unreachable);
    let own = node.id();
    let peers = node.netmap.members.values();
    let peers = peers.filter(|peer| peer.id != own && !away(&peer.id));
    let peers = peers.map(|peer| (peer.id, peer.block.node_v4()));
    let peers = peers.take(MAX_DEPARTURE_PEERS).collect();
    node.connections.gossip.hand_over(departure, peers)
}
