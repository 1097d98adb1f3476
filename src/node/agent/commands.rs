//! The commands of the local API.

use tokio::sync::mpsc;

use super::joining::JoinEnded;
use super::leaving::bare_status;
use super::{Agent, Phase};
use crate::node::api::{Command, Reply};
use crate::node::changes::{ChangeRequest, ServiceChange, parse_name};
use crate::node::joined::JoinedNode;
use crate::node::{metrics, report, unattended};
use crate::protocol::api::ApiError;
use crate::protocol::local::{NodeState, ServiceChanged, Status};

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
            Command::Metrics(reply) => drop(reply.send(Ok(metrics::text(self.joined())))),
            Command::Join(join, reply) => self.begin_join(join, reply, ended.clone()),
            Command::Leave(reply) => Box::pin(self.leave(reply)).await,
            Command::Unattended(problem) => {
                if !matches!(self.phase, Phase::Up(..)) {
                    self.join_problem = Some(problem);
                }
            }
            Command::RotateKey(reply) => match self.node() {
                Ok(node) => node.change(ChangeRequest::Key(reply)),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Rename(request, reply) => {
                match self
                    .node()
                    .and_then(|node| Ok((node, parse_name(&request.name)?)))
                {
                    Ok((node, name)) => node.change(ChangeRequest::Name(name, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::AddService(add, reply) => {
                self.change_services(reply, || ServiceChange::add(add));
            }
            Command::RemoveService(name, reply) => {
                self.change_services(reply, || ServiceChange::remove(&name));
            }
            Command::Drain(name, is_drained, reply) => {
                self.change_services(reply, || ServiceChange::drain(&name, is_drained));
            }
            Command::Services(reply) => {
                let _ = reply.send(self.node().map(|node| report::services(node)));
            }
            Command::Containers(reply) => {
                let _ = reply.send(self.node().map(|node| report::containers(node)));
            }
            Command::Checkup(reply) => match self.node() {
                Ok(node) => report::checkup(node, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Ping(ping, reply) => match self.node() {
                Ok(node) => report::ping(node, &ping, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Resolve(resolve, reply) => match self.node() {
                Ok(node) => report::resolve(node, resolve, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
        }
    }

    fn change_services(
        &mut self,
        reply: Reply<ServiceChanged>,
        change: impl FnOnce() -> Result<ServiceChange, ApiError>,
    ) {
        match self.node().and_then(|node| Ok((node, change()?))) {
            Ok((node, change)) => node.change(ChangeRequest::Services(change, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn joined(&self) -> Option<&JoinedNode> {
        match &self.phase {
            Phase::Up(node, _) => Some(node),
            Phase::Unjoined | Phase::Joining(_) => None,
        }
    }

    fn status(&self) -> Status {
        let mut status = match &self.phase {
            Phase::Up(node, _) => report::status(node, self.damaged_services.as_deref()),
            Phase::Unjoined => bare_status(self, NodeState::Unjoined),
            Phase::Joining(_) => bare_status(self, NodeState::Joining),
        };
        let token_file = self.config.token_file.as_deref();
        status
            .problems
            .extend(token_file.and_then(unattended::exposed));
        status
    }
}
