//! Handles the commands of the local API.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::joining::JoinEnded;
use super::{Agent, Phase};
use crate::model::ServiceName;
use crate::node::api::{ApiQuery, Command, Reply};
use crate::node::changes::{ChangeRequest, ServiceChange, parse_name};
use crate::node::disk::audit_problem;
use crate::node::joined::{JoinedNode, ask_rows, guests};
use crate::node::{metrics, report, unattended};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{NodeState, Reserve, Reserved, SCHEMA, ServiceChanged, Status};
use crate::services::reservations::ReservationError;

impl Agent {
    pub(super) async fn handle_command(
        &mut self,
        command: Command,
        ended: &mpsc::Sender<JoinEnded>,
    ) {
        match command {
            Command::Status(reply) => drop(reply.send(Ok(self.status()))),
            Command::System(reply) => {
                let _ = reply.send(Ok(report::system(&self.config, self.joined())));
            }
            Command::Api(query) => answer_api(self, query),
            Command::Metrics(reply) => drop(reply.send(Ok(metrics_page(self)))),
            Command::Ready(reply) => drop(reply.send(Ok(not_ready(self)))),
            Command::Join(join, reply) => self.begin_join(join, reply, ended.clone()),
            Command::Leave(reply) => Box::pin(self.leave(reply)).await,
            Command::Unattended(_) if matches!(self.phase, Phase::Up(..)) => {}
            Command::Unattended(problem) => self.join_problem = Some(problem),
            Command::ApiProblems(problems) => self.api_problems = problems,
            Command::RotateKey(reply) => carry_out(self.node(), reply, |node, reply| {
                node.change(ChangeRequest::Key(reply));
            }),
            Command::Rename(request, reply) => {
                let name = parse_name(&request.name);
                let wanted = self.node().and_then(|node| Ok((node, name?)));
                carry_out(wanted, reply, |(node, name), reply| {
                    node.change(ChangeRequest::Name(name, reply));
                });
            }
            Command::AddService(add, reply) => {
                self.change_services(reply, || ServiceChange::add(add));
            }
            Command::RemoveService(remove, reply) => {
                self.change_services(reply, || ServiceChange::remove(&remove));
            }
            Command::Drain(name, is_drained, reply) => {
                self.change_services(reply, || ServiceChange::drain(&name, is_drained));
            }
            Command::Instances(name, reply) => carry_out(self.node(), reply, |node, reply| {
                let _ = reply.send(report::own_instances(node, &name));
            }),
            Command::Reserve(name, request, reply) => {
                carry_out(self.node(), reply, |node, reply| {
                    let _ = reply.send(reserve(node, &name, &request));
                })
            }
            Command::Services(reply) => answer(self.node(), reply, report::services),
            Command::Targets(reply) => answer(self.node(), reply, report::targets),
            Command::Sites(reply) => answer(self.node(), reply, report::sites),
            Command::Containers(reply) => answer(self.node(), reply, report::containers),
            Command::Checkup(reply) => carry_out(self.node(), reply, |node, reply| {
                report::checkup(node, reply);
            }),
            Command::Ping(ping, reply) => carry_out(self.node(), reply, |node, reply| {
                report::ping(node, &ping, reply);
            }),
            Command::Why(request, reply) => carry_out(self.node(), reply, |node, reply| {
                let _ = reply.send(report::why(node, &request));
            }),
            Command::Netcheck(reply) => answer(self.node(), reply, report::netcheck),
            Command::Guests(reply) => answer(self.node(), reply, guests::keys),
            Command::RemoveGuest(remove, reply) => carry_out(self.node(), reply, |node, reply| {
                let _ = reply.send(guests::remove(node, &remove));
            }),
            Command::ReadDenials(reply) => answer(self.node(), reply, report::read_denials),
            Command::Denied(reply) => answer(self.node(), reply, report::denied),
            Command::Resolve(resolve, reply) => carry_out(self.node(), reply, |node, reply| {
                report::resolve(node, resolve, reply);
            }),
        }
    }

    fn change_services(
        &mut self,
        reply: Reply<ServiceChanged>,
        change: impl FnOnce() -> Result<ServiceChange, ApiError>,
    ) {
        let wanted = self.node().and_then(|node| Ok((node, change()?)));
        carry_out(wanted, reply, |(node, change), reply| {
            node.change(ChangeRequest::Services(change, reply));
        });
    }

    fn joined(&self) -> Option<&JoinedNode> {
        match &self.phase {
            Phase::Up(node, _) => Some(node),
            Phase::Unjoined | Phase::Joining(_) => None,
        }
    }

    fn status(&self) -> Status {
        let mut status = match &self.phase {
            Phase::Up(node, _) => report::status(node, self.services_fault.as_ref()),
            Phase::Unjoined => bare_status(self, NodeState::Unjoined),
            Phase::Joining(_) => bare_status(self, NodeState::Joining),
        };
        let token_file = self.config.token_file.as_deref();
        status
            .problems
            .extend(token_file.and_then(unattended::exposed));
        status.problems.extend(self.api_problems.iter().cloned());
        status
    }
}

/// Reserves a service for a rollout. `name` is as in a request.
fn reserve(node: &mut JoinedNode, name: &str, request: &Reserve) -> Result<Reserved, ApiError> {
    let service = ServiceName::parse(name)
        .map_err(|error| ApiError::new(ErrorCode::BadRequest, error.to_string()))?;
    let (time, now) = (Duration::from_secs(request.seconds), Instant::now());
    let reservations = &mut node.workloads.reservations;
    let reserved = reservations.reserve(&service, &request.holder, time, now);
    let reserved = reserved.map(|()| Reserved { schema: SCHEMA });
    reserved.map_err(|error| {
        let code = match error {
            ReservationError::Holder => ErrorCode::BadRequest,
            ReservationError::Taken(..) | ReservationError::Full => ErrorCode::Conflict,
        };
        ApiError::new(code, error.to_string())
    })
}

/// Replies with what `report` reads from the node, or with the error if it has not joined.
fn answer<T>(
    node: Result<&mut JoinedNode, ApiError>,
    reply: Reply<T>,
    report: impl FnOnce(&JoinedNode) -> T,
) {
    let _ = reply.send(node.map(|node| report(node)));
}

/// Calls `action` with what the command needs and the channel for the reply, or replies with the error if that is missing.
fn carry_out<N, T>(needed: Result<N, ApiError>, reply: Reply<T>, action: impl FnOnce(N, Reply<T>)) {
    match needed {
        Ok(needed) => action(needed, reply),
        Err(error) => drop(reply.send(Err(error))),
    }
}

fn answer_api(agent: &mut Agent, query: ApiQuery) {
    match query {
        ApiQuery::Addresses(reply) => answer(agent.node(), reply, |node| {
            node.identity.addresses().to_vec()
        }),
        ApiQuery::Revision(reply) => {
            answer(agent.node(), reply, |node| node.replica.position().revision)
        }
        ApiQuery::Records(reply) => {
            answer(agent.node(), reply, |node| {
                node.replica.ledger().fingerprint()
            });
        }
        ApiQuery::Paths(reply) => carry_out(agent.node(), reply, |node, reply| {
            ask_rows(node, Instant::now());
            let _ = reply.send(Ok(report::paths_between(node)));
        }),
        ApiQuery::Policy(reply) => answer(agent.node(), reply, report::policy_facts),
        ApiQuery::Facts(token, address, reply) => {
            let facts = agent.node();
            let facts = facts.and_then(|node| report::api_facts(node, token.as_ref(), address));
            let _ = reply.send(facts);
        }
    }
}

/// The page of metrics.
fn metrics_page(agent: &Agent) -> String {
    let token_file = agent.config.token_file.as_deref();
    let exposed = token_file.and_then(unattended::exposed);
    let join = match &agent.phase {
        Phase::Up(..) => None,
        Phase::Unjoined | Phase::Joining(_) => agent.join_problem.as_ref(),
    };
    metrics::text(&metrics::Scrape {
        node: agent.joined(),
        settings: agent.config.metrics,
        services_fault: agent.services_fault.as_ref(),
        api_problems: agent.api_problems.len(),
        join_problems: usize::from(exposed.is_some()) + usize::from(join.is_some()),
    })
}

/// Why the node is not ready. None if it is ready.
fn not_ready(agent: &Agent) -> Option<String> {
    match &agent.phase {
        Phase::Up(node, _) => report::not_ready(node),
        Phase::Unjoined => bare_status(agent, NodeState::Unjoined).why_not_ready(),
        Phase::Joining(_) => bare_status(agent, NodeState::Joining).why_not_ready(),
    }
}

/// The status of a node that is not in a mesh.
fn bare_status(agent: &Agent, state: NodeState) -> Status {
    let (problem, now) = (agent.join_problem.iter(), Instant::now());
    let problem = problem.map(|problem| problem.shown(now));
    Status {
        problems: problem.chain(audit_problem(&agent.dir.audit)).collect(),
        ..report::bare_status(state)
    }
}
