//! Leaving: a joined node signs its departure. A join under way is ended, and the node signs a departure for it if a
//! coordinator may have admitted the node.
//!
//! The departure is stored in the state directory before it is sent, and the identity is deleted afterwards. If meshd is
//! killed in between, it finishes at its next start.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::{Agent, Phase};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey};
use crate::node::api::Reply;
use crate::node::connections::Confirmation;
use crate::node::join_problem::JoinProblem;
use crate::node::joined::{JoinedNode, NodeEvent};
use crate::node::joining;
use crate::node::state::StateDir;
use crate::node::state::departing::Departing;
use crate::os::audit::{Event, What, Who};
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{DepartureState, Left, Problem, SCHEMA};
use crate::records::Envelope;

/// How long the coordinator may take to acknowledge a departure.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the reply to a leave waits until a coordinator has stored the departure of an unfinished join.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum number of peers to which a node sends its departure when it leaves. Each of them costs a socket. The other
/// peers receive it from these.
const MAX_DEPARTURE_PEERS: usize = 256;
/// The interval at which the state directory is checked for that departure.
const DELIVERY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Finishes a leave that was interrupted because meshd was killed.
///
/// # Errors
/// The files in the state directory cannot be read.
pub(super) fn finish(dir: &StateDir) -> Result<(), ApiError> {
    let departing: Vec<PublicKey> = dir.departing().iter().map(Departing::id).collect();
    if departing.is_empty() {
        return Ok(());
    }
    let identity = dir.identity()?;
    if let Some(identity) =
        identity.filter(|identity| departing.contains(&identity.keys.identity.public()))
    {
        tracing::info!("finishing an interrupted leave");
        record_left(dir, identity.name, identity.keys.identity.public());
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

fn record_left(dir: &StateDir, node: Label, id: PublicKey) {
    let event = Event::done(Who::Daemon, What::Left { node, id });
    dir.audit.record(event);
}

impl Agent {
    pub(super) async fn leave(&mut self, reply: Reply<Left>) {
        match &mut self.phase {
            Phase::Up(node, _) => {
                let (name, id) = (node.identity.name.clone(), node.id());
                let left = Box::pin(self.leave_mesh()).await;
                if left.is_ok() {
                    record_left(&self.dir, name, id);
                }
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
            tracing::warn!(%error, "cannot store the departure on disk; if meshd restarts before a coordinator has the departure, the name stays taken");
        }
        let published = timeout(
            ACKNOWLEDGE_TIMEOUT,
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
        self.departure_sender.wake();
        tracing::info!(
            peers_reached,
            "left the mesh; no coordinator has the departure yet"
        );
        Ok(left(DepartureState::Pending, peers_reached))
    }

    /// Ends a join under way, or drops one that has failed although a coordinator may have admitted the node.
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
        let pending = match self.dir.pending() {
            Ok(pending) => pending,
            // A coordinator may have admitted this node, so there may be something to leave.
            Err(error) => {
                if self.join_problem.is_none() {
                    self.join_problem = Some(JoinProblem::unreadable(error.to_string()));
                }
                return drop(reply.send(Err(error.into())));
            }
        };
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
        // A problem of the token file stays: with that file, the node tries again to join.
        if self
            .join_problem
            .as_ref()
            .is_some_and(|held| held.next.is_none())
        {
            self.join_problem = None;
        }
        self.departure_sender.wake();
        let dir = self.dir.clone();
        Tasks::current().spawn_child("reply to a leave", async move {
            let departure = match id.filter(|_| granted) {
                None => DepartureState::Unneeded,
                Some(id) if is_delivered(&dir, &id).await => DepartureState::Published,
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

    /// Handles that a join which continued after a restart has failed.
    pub(super) fn handle_not_resumed(&mut self, error: ApiError) {
        tracing::warn!(%error, "an interrupted join cannot be finished");
        if let Ok(Some(pending)) = self.dir.pending()
            && let Err(error) = joining::abandon(&self.dir, &pending)
        {
            tracing::warn!(%error, "the departure cannot be stored; the join is completed at the next start");
        }
        self.departure_sender.wake();
        let problem = Problem {
            what: "a join that was interrupted cannot be finished".to_owned(),
            why: error.message,
            fix: "correct that, then run `meshctl join -`, with a new token if the previous one has no use left".to_owned(),
        };
        self.join_problem = Some(problem.into());
    }
}

/// Departs from a mesh that has admitted this node, if the node cannot be started because of `error`.
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

/// Publishes the departure as soon as the stream is open, and handles events of the stream until the coordinator has
/// answered. Returns whether the departure is stored or not needed. It does not wait for a coordinator that is
/// not reachable.
async fn is_acknowledged(phase: &mut Phase, departure: &Envelope) -> bool {
    let mut answer: Option<oneshot::Receiver<Confirmation>> = None;
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
                Ok(answer) => return answer.is_settled(),
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

/// Waits a short time until a coordinator has stored the departure of `id`. Returns whether it has.
async fn is_delivered(dir: &StateDir, id: &PublicKey) -> bool {
    let end = Instant::now() + DELIVERY_TIMEOUT;
    while dir
        .departing()
        .iter()
        .any(|departing| departing.id() == *id)
    {
        if Instant::now() >= end {
            return false;
        }
        sleep(DELIVERY_POLL_INTERVAL).await;
    }
    true
}

/// The reason why a node signs no departure: another machine with its keys is connected, or the node is removed already. None
/// if it signs one.
fn stays_silent(node: &JoinedNode) -> Option<DepartureState> {
    if node.replica.link().is_called_duplicate() {
        Some(DepartureState::Copy)
    } else if node.replica.is_removed() {
        Some(DepartureState::Unneeded)
    } else {
        None
    }
}

/// The departure of a node, with the URLs of all coordinators that it knows.
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
) -> Option<oneshot::Receiver<Confirmation>> {
    let sequence = node.replica.publish_departure(departure)?;
    let answer = node.connections.answer_to(sequence);
    node.settle();
    Some(answer)
}

/// Sends the departure to the peers that are not known to be unreachable. Returns how many received it.
fn send_departure(node: &JoinedNode, departure: &Envelope) -> impl Future<Output = usize> + use<> {
    let away = |id: &PublicKey| node.paths.reach().get(id) == Some(&Reach::Unreachable);
    let own = node.id();
    let peers = node.netmap.members.values();
    let peers = peers.filter(|peer| peer.id != own && !away(&peer.id));
    let peers = peers.map(|peer| (peer.id, peer.block.node_v4()));
    let peers = peers.take(MAX_DEPARTURE_PEERS).collect();
    node.connections.gossip.hand_over(departure, peers)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;

    use super::*;
    use crate::node::config::{Arguments, Config};

    #[tokio::test]
    async fn a_join_that_cannot_be_read_is_not_reported_as_nothing_to_leave() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("meshd.toml");
        std::fs::write(&file, "").expect("writable");
        let file = file.to_str().expect("a plain path");
        let arguments = Arguments::try_parse_from(["meshd", "--config", file]);
        let config = Config::load(&arguments.expect("valid arguments")).expect("it is valid");
        let dir = StateDir::open(&directory.path().join("state")).expect("a new directory");
        let pending = dir.path("pending.json");
        let agent = Agent::start(Arc::new(config), dir).await;
        let mut agent = agent.expect("it starts without a mesh");
        let mut leave = || {
            let (reply, mut answer) = oneshot::channel();
            agent.leave_join(reply);
            let refused = answer.try_recv().expect("an answer");
            refused.expect_err("there is no join").message
        };
        assert!(leave().contains("nothing to leave"));
        std::fs::create_dir(&pending).expect("its own directory");
        let why = leave();
        assert!(why.contains("pending.json"), "{why}");
    }
}
