//! Joins a mesh for the agent: a task runs the join, and its end is an event of the agent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::leaving::give_back;
use super::{Agent, Phase};
use crate::model::Label;
use crate::node::api::Reply;
use crate::node::boot;
use crate::node::join_problem::JoinProblem;
use crate::node::joined::JoinedNode;
use crate::node::joining::{self, Admitted, Attempt, JoinContext};
use crate::node::state::ServicesFault;
use crate::os::audit::{Event, What, Who};
use crate::os::tasks::{TaskHandle, Tasks};
use crate::protocol::JoinToken;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{Join, Joined, Problem, SCHEMA};
use crate::services::registry::{Registry, StoredServices};

/// How long a join waits until the coordinator has accepted this node's record.
const ACCEPTANCE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a join may take if its caller gives no limit that can be used.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A join under way.
pub(super) struct Joining {
    /// The number of this join. The event of an earlier join, which was ended, may still arrive.
    number: u64,
    pub(super) task: TaskHandle,
    /// The channel for the outcome. None if the join continues after a restart.
    pub(super) reply: Option<Reply<Joined>>,
}

/// The end of a join, with or without success.
pub(super) struct JoinEnded {
    number: u64,
    result: Result<Admitted, ApiError>,
}

impl Agent {
    pub(super) fn begin_join(
        &mut self,
        join: Join,
        reply: Reply<Joined>,
        ended: mpsc::Sender<JoinEnded>,
    ) {
        // The request is read before a join that continues after a restart is ended. A mistake in it ends nothing.
        let (token, name) = match read(&join) {
            Ok(read) => read,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Some(text) = refusal(self) {
            let _ = reply.send(Err(ApiError::new(ErrorCode::Conflict, text)));
            return;
        }
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default();
        let attempt = Attempt {
            context: join_context(self),
            token,
            name: name.or_else(|| self.config.name.clone()),
            fallback: Label::from_host_name(&host),
        };
        let limit = Duration::try_from_secs_f64(join.timeout_seconds.clamp(1.0, 600.0))
            .unwrap_or(DEFAULT_TIMEOUT);
        self.start_join(Some(reply), ended, async move {
            timeout(limit, joining::run(attempt)).await.unwrap_or_else(|_| {
                Err(ApiError::new(ErrorCode::Unreachable, format!("not joined within {} s; run the same command again, the token is not lost", limit.as_secs())))
            })
        });
    }

    fn start_join(
        &mut self,
        reply: Option<Reply<Joined>>,
        ended: mpsc::Sender<JoinEnded>,
        join: impl Future<Output = Result<Admitted, ApiError>> + Send + 'static,
    ) {
        self.joins += 1;
        let number = self.joins;
        // A panic in this task ends meshd. Otherwise the node would be joining forever.
        let task = Tasks::current().spawn_finite("join", async move {
            let result = join.await;
            let _ = ended.send(JoinEnded { number, result }).await;
        });
        self.phase = Phase::Joining(Joining {
            number,
            task,
            reply,
        });
    }

    /// Continues a join that a restart interrupted after the coordinator may have admitted this node.
    pub(super) fn resume_join(&mut self, ended: &mpsc::Sender<JoinEnded>) {
        if !matches!(self.phase, Phase::Unjoined) {
            return;
        }
        let pending = match self.dir.pending() {
            Ok(Some(pending)) => pending,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "it is not known whether a join was interrupted");
                self.join_problem = Some(JoinProblem::unreadable(error.to_string()));
                return;
            }
        };
        if let (true, Some(way)) = (pending.asked, pending.way.clone()) {
            tracing::info!("continuing a join that was interrupted");
            self.join_problem = Some(interrupted().into());
            let join = joining::resume(join_context(self), pending, way);
            self.start_join(None, ended.clone(), join);
        }
    }

    pub(super) async fn handle_join_ended(&mut self, ended: JoinEnded) {
        let reply = match &mut self.phase {
            Phase::Joining(joining) if joining.number == ended.number => joining.reply.take(),
            _ => return,
        };
        self.phase = Phase::Unjoined;
        let result = match ended.result {
            Ok(admitted) => match Box::pin(self.come_up(admitted)).await {
                Err(error) => Err(give_back(&self.dir, error)),
                joined => joined,
            },
            Err(error) => Err(error),
        };
        if result.is_ok() {
            self.join_problem = None;
        } else {
            self.departure_sender.wake();
        }
        match (reply, result) {
            (Some(reply), Ok(joined)) => match &mut self.phase {
                Phase::Up(node, _) => reply_when_accepted(node, joined, reply),
                Phase::Unjoined | Phase::Joining(_) => drop(reply.send(Ok(joined))),
            },
            (Some(reply), failed) => drop(reply.send(failed)),
            (None, Err(error)) => self.handle_not_resumed(error),
            (None, Ok(_)) => {}
        }
    }

    async fn come_up(&mut self, admitted: Admitted) -> Result<Joined, ApiError> {
        let (stored, fault) = self.dir.services::<StoredServices>();
        // The file was read at the start as well. A damaged one is kept under another name since then.
        let put_aside = |fault: &ServicesFault| matches!(fault, ServicesFault::Damaged(_));
        self.services_fault = fault.or_else(|| self.services_fault.take().filter(put_aside));
        let registry = Registry::new(self.config.services.clone(), stored);
        let identity = admitted.identity.clone();
        let (node, events) = Box::pin(boot::start(
            Arc::clone(&self.config),
            self.dir.clone(),
            identity,
            registry,
            Some(&admitted.ledger),
        ))
        .await?;
        // The identity is stored last. Until then, the same join can be requested again.
        if let Err(error) = self.dir.set_identity(&admitted.identity) {
            Box::new(node).stop(events).await;
            return Err(error.into());
        }
        self.dir.clear_pending();
        let [v4, v6] = [
            admitted.identity.block.node_v4().to_string(),
            admitted.identity.block.node_v6().to_string(),
        ];
        tracing::info!(name = %admitted.identity.name, %v4, %v6, "joined");
        let what = What::Joined {
            node: admitted.identity.name.clone(),
            id: admitted.identity.keys.identity.public(),
            address: admitted.identity.block.node_v4(),
        };
        self.dir.audit.record(Event::done(Who::Daemon, what));
        let without = node
            .device
            .network
            .ipv6()
            .problem(&self.config.tunnel.interface);
        let notes = without.map(|p| format!("{}: {}", p.what, p.why));
        let joined = Joined {
            schema: SCHEMA,
            name: admitted.identity.name,
            address_v4: admitted.identity.block.node_v4(),
            address_v6: admitted.identity.block.node_v6(),
            notes: admitted.notes.into_iter().chain(notes).collect(),
            published: false,
        };
        self.phase = Phase::Up(Box::new(node), events);
        Ok(joined)
    }
}

/// The token and the name of a request to join.
///
/// # Errors
/// One of them is malformed.
fn read(join: &Join) -> Result<(JoinToken, Option<Label>), ApiError> {
    let bad = |why: String| ApiError::new(ErrorCode::BadRequest, why);
    let token = JoinToken::parse(&join.token).map_err(|error| bad(error.to_string()))?;
    let name = join.name.as_deref().map(Label::parse).transpose();
    Ok((token, name.map_err(|error| bad(error.to_string()))?))
}

/// The reason why no join can begin now. None if one can begin. A join that continues after a restart is ended. With
/// the same token the new join continues it, otherwise the node departs for it.
fn refusal(agent: &mut Agent) -> Option<String> {
    match &agent.phase {
        Phase::Unjoined => None,
        Phase::Joining(joining) if joining.reply.is_none() => {
            joining.task.abort();
            agent.join_problem = None;
            None
        }
        Phase::Joining(_) => {
            Some("this node is joining already; wait until that has ended".to_owned())
        }
        Phase::Up(node, _) => Some(format!(
            "this node is {} of a mesh already; run `meshctl leave` first to join another",
            node.identity.name
        )),
    }
}

/// The problem of a join that continues after a restart.
fn interrupted() -> Problem {
    Problem {
        what: "a join that was interrupted is not finished yet".to_owned(),
        why: "a coordinator may have admitted this node, and no coordinator has answered since meshd started"
            .to_owned(),
        fix: "nothing, if a coordinator is reachable soon; the log of meshd has the reason of the last failure; `meshctl leave` ends the join"
            .to_owned(),
    }
}

fn join_context(agent: &Agent) -> JoinContext {
    JoinContext {
        dir: agent.dir.clone(),
        interface: agent.config.tunnel.interface.clone(),
        listen_port: agent.config.tunnel.listen_port,
    }
}

/// Replies to a join once the coordinator has accepted this node's record, without which no other node can reach it.
fn reply_when_accepted(node: &mut JoinedNode, mut joined: Joined, reply: Reply<Joined>) {
    let accepted = node
        .connections
        .when_accepted(ACCEPTANCE_TIMEOUT, Instant::now());
    Tasks::current().spawn_child("reply to a join", async move {
        let why = match accepted.await {
            Ok(outcome) => outcome.err(),
            Err(_) => Some("meshd stopped, or this node left the mesh".to_owned()),
        };
        joined.published = why.is_none();
        joined.notes.extend(why.map(|why| {
            format!(
                "the coordinator has not accepted the record with this node's addresses, so no other node reaches this node yet: {why}; meshd offers the record again, and `meshctl status` shows the problem"
            )
        }));
        let _ = reply.send(Ok(joined));
    });
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::path::Path;

    use clap::Parser as _;
    use tokio::sync::oneshot;

    use super::*;
    use crate::model::{PublicKey, SigningKey};
    use crate::node::config::{Arguments, Config};
    use crate::node::state::{Keys, Pending, StateDir, Way};
    use crate::protocol::token::SpkiPin;
    use crate::records::Envelope;
    use crate::records::kinds::{Departure, Record};

    /// A node that is in no mesh, with its state below `directory`.
    async fn agent(directory: &Path) -> Agent {
        let file = directory.join("meshd.toml");
        std::fs::write(&file, "").expect("writable");
        let file = file.to_str().expect("a plain path");
        let arguments = Arguments::try_parse_from(["meshd", "--config", file]);
        let config = Config::load(&arguments.expect("valid arguments")).expect("it is valid");
        let dir = StateDir::open(&directory.join("state")).expect("a new directory");
        let agent = Agent::start(Arc::new(config), dir).await;
        agent.expect("it starts without a mesh")
    }

    fn token() -> String {
        let token = JoinToken {
            urls: vec!["https://192.0.2.1:7443".parse().expect("a literal")],
            pin: SpkiPin([1; 32]),
            mesh_key: PublicKey([1; 32]),
            key: SigningKey::from_seed(&[1; 32]),
        };
        token.to_string()
    }

    /// A join about which a coordinator was asked. Nobody listens on the discard port of this host.
    fn asked() -> Pending {
        let identity = SigningKey::from_seed(&[2; 32]);
        Pending {
            membership: Envelope::seal(
                &Record::Departure(Departure::of(identity.public())),
                &identity,
            ),
            keys: Keys {
                identity,
                wireguard: [3; 32].into(),
            },
            token: PublicKey([1; 32]),
            asked: true,
            way: Some(Way {
                mesh_key: PublicKey([1; 32]),
                urls: vec!["https://127.0.0.1:9".parse().expect("a literal")],
                pin: SpkiPin([1; 32]),
            }),
        }
    }

    #[tokio::test]
    async fn a_request_that_cannot_be_read_ends_no_join_that_continues_after_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut agent = agent(directory.path()).await;
        let (ended, _events) = mpsc::channel(1);
        agent.join_problem = Some(interrupted().into());
        agent.start_join(None, ended.clone(), pending());
        for (token, name) in [("mesh1_mistyped".to_owned(), None), (token(), Some("a.b"))] {
            let join = Join {
                token,
                name: name.map(str::to_owned),
                timeout_seconds: 1.0,
            };
            let (reply, answer) = oneshot::channel();
            agent.begin_join(join, reply, ended.clone());
            let refused = answer.await.expect("an answer").expect_err("refused");
            assert_eq!(refused.code, ErrorCode::BadRequest);
            assert!(agent.join_problem.is_some(), "the join goes on");
        }
        let Phase::Joining(joining) = &agent.phase else {
            panic!("the join has ended")
        };
        tokio::task::yield_now().await;
        assert!(joining.reply.is_none() && !joining.task.is_finished());
    }

    #[tokio::test]
    async fn a_join_that_was_ended_and_cannot_be_read_is_a_problem_until_it_is_left() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut agent = agent(directory.path()).await;
        let (ended, _events) = mpsc::channel(1);
        agent.join_problem = Some(interrupted().into());
        agent.start_join(None, ended, pending());
        let path = agent.dir.path("pending.json");
        std::fs::create_dir(&path).expect("its own directory");
        let (reply, answer) = oneshot::channel();
        agent.leave(reply).await;
        let refused = answer.await.expect("an answer").expect_err("unreadable");
        assert!(refused.message.contains("pending.json"), "{refused:?}");
        assert!(matches!(agent.phase, Phase::Unjoined));
        let problem = agent.join_problem.as_ref().expect("there is one");
        assert!(problem.problem.why.contains("pending.json"), "{problem:?}");

        std::fs::remove_dir(&path).expect("it is empty");
        agent
            .dir
            .set_pending(&asked())
            .expect("a writable directory");
        let (reply, _answer) = oneshot::channel();
        agent.leave(reply).await;
        assert_eq!(agent.dir.departing().len(), 1);
        assert_eq!(agent.join_problem, None);
    }
}
