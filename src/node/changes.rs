//! The changes that are answered only once they are on disk: of services, of the tunnel's key, of the name, of the address block.
//! A change that cannot be written is not made: it would be lost silently at the next start.
//!
//! One change is written at a time. The next one begins when it has ended, so that each sees the state that the one before left.

use std::collections::{BTreeSet, VecDeque};

use super::api::Reply;
use crate::model::address::{Block, is_never_remote};
use crate::model::name::LabelError;
use crate::model::{Label, ServerAddress, ServiceName};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    AddService, CheckProbe, KeyRotated, RemoveService, Renamed, ServiceChange as Change,
    ServiceChanged,
};
use crate::records::kinds::{Protocol, default_weight, parse_allowed, parse_public};
use crate::services::registry::{
    InstanceKey, RegisteredInstance, Registry, RegistryError, Selection,
};

/// The maximum number of changes that wait for the disk.
const MAX_WAITING: usize = 64;

/// A request for a change.
pub(super) enum ChangeRequest {
    /// Add, remove or drain a service.
    Services(ServiceChange, Reply<ServiceChanged>),
    /// Give the tunnel a new key.
    Key(Reply<KeyRotated>),
    /// Change the name of this node.
    Name(Label, Reply<Renamed>),
    /// Keep the name that this node has now, because another node has the one that it wanted.
    KeepName,
    /// Move to another address block.
    Block(Block),
    /// Store the addresses of the names of services outside the mesh.
    Addresses,
}

impl ChangeRequest {
    pub(super) fn refuse(self, error: ApiError) {
        match self {
            Self::Services(_, reply) => drop(reply.send(Err(error))),
            Self::Key(reply) => drop(reply.send(Err(error))),
            Self::Name(_, reply) => drop(reply.send(Err(error))),
            Self::KeepName => {
                tracing::warn!(%error, "the name that this node has now is not on disk");
            }
            // At the next start their services are answered only once the names are.
            Self::Addresses => {
                tracing::warn!(%error, "the addresses of services outside are not on disk");
            }
            // The coordinator is asked again a minute later.
            Self::Block(_) => {
                tracing::warn!(%error, "this node does not move to another address block, since its state cannot be written");
            }
        }
    }
}

/// The changes that wait, and the one that is being written.
#[derive(Default)]
pub(super) struct Changes {
    waiting: VecDeque<ChangeRequest>,
    written: Option<ChangeRequest>,
}

impl Changes {
    /// Adds a request. It is refused if too many wait.
    pub(super) fn add(&mut self, request: ChangeRequest) {
        // The addresses are read when the write begins. Records outside the mesh cause these requests, which must leave room for commands.
        let is_of_addresses = |request: &ChangeRequest| matches!(request, ChangeRequest::Addresses);
        if is_of_addresses(&request) && self.waiting.iter().any(is_of_addresses) {
            return;
        }
        if self.waiting.len() >= MAX_WAITING {
            let text = "too many changes wait for the disk; try again later";
            return request.refuse(ApiError::new(ErrorCode::Conflict, text));
        }
        self.waiting.push_back(request);
    }

    /// The next request, unless a change is being written.
    pub(super) fn poll(&mut self) -> Option<ChangeRequest> {
        if self.is_writing() {
            return None;
        }
        self.waiting.pop_front()
    }

    /// The write of a change was begun.
    pub(super) fn handle_begun(&mut self, request: ChangeRequest) {
        self.written = Some(request);
    }

    /// The write of the change ended.
    pub(super) fn handle_ended(&mut self) -> Option<ChangeRequest> {
        self.written.take()
    }

    /// Whether a change is being written.
    pub(super) fn is_writing(&self) -> bool {
        self.written.is_some()
    }
}

/// A change of the services of this node.
#[derive(Debug, Clone)]
pub(super) enum ServiceChange {
    Add(RegisteredInstance),
    Remove(Selection),
    Drain(ServiceName, bool),
}

impl ServiceChange {
    /// # Errors
    /// The request cannot be carried out on any node.
    pub(super) fn add(add: AddService) -> Result<Self, ApiError> {
        let bad = |text: &str| ApiError::new(ErrorCode::BadRequest, text);
        let name = parse_name(&add.name)?;
        let port = add
            .port
            .try_into()
            .map_err(|_| bad("a port is a number from 1 to 65535"))?;
        let ip = add.address.as_ref().and_then(ServerAddress::ip);
        if ip.is_some_and(is_never_remote) {
            return Err(bad(
                "give an address that other nodes can reach, or none for this node's mesh address",
            ));
        }
        if add.check.is_some() && add.protocol == Protocol::Udp {
            return Err(bad(
                "a check is for TCP: a UDP port accepts no connections; leave the check out, or change the protocol",
            ));
        }
        if let Some(check) = &add.check {
            if !(100..=3_600_000).contains(&check.interval_ms)
                || !(100..=60_000).contains(&check.timeout_ms)
            {
                return Err(bad(
                    "a check's interval is 100 ms to 1 h, its timeout 100 ms to 60 s",
                ));
            }
            if matches!(&check.probe, CheckProbe::Http(path) if !path.starts_with('/')) {
                return Err(bad("the path of an HTTP check begins with `/`"));
            }
        }
        let allow = match &add.allow {
            None => Vec::new(),
            Some(allow) => parse_allowed(allow).map_err(|e| bad(&format!("allow: {e}")))?,
        };
        let public = match &add.public {
            None => Vec::new(),
            Some(_) if add.protocol == Protocol::Udp => {
                return Err(bad(
                    "host names are for web servers, which have a TCP port; leave them out, or change the protocol",
                ));
            }
            Some(public) => parse_public(public).map_err(|e| bad(&format!("public: {e}")))?,
        };
        Ok(Self::Add(RegisteredInstance {
            key: InstanceKey {
                name,
                port,
                protocol: add.protocol,
            },
            address: add.address,
            check: add.check,
            weight: add.weight.unwrap_or_else(default_weight),
            priority: add.priority.unwrap_or_default(),
            port_name: add.port_name,
            allow,
            public,
        }))
    }

    /// # Errors
    /// It is no name, no port or no protocol.
    pub(super) fn remove(remove: &RemoveService) -> Result<Self, ApiError> {
        let bad = |text: &str| ApiError::new(ErrorCode::BadRequest, text);
        let port = remove.port.as_ref().map(|port| port.parse());
        let port = port.transpose();
        Ok(Self::Remove(Selection {
            name: parse_name(&remove.name)?,
            port: port.map_err(|_| bad("a port is a number from 1 to 65535"))?,
            protocol: match remove.protocol.as_deref() {
                None => None,
                Some("tcp") => Some(Protocol::Tcp),
                Some("udp") => Some(Protocol::Udp),
                Some(_) => return Err(bad("a protocol is tcp or udp")),
            },
        }))
    }

    /// # Errors
    /// It is no name.
    pub(super) fn drain(name: &str, is_drained: bool) -> Result<Self, ApiError> {
        let name = ServiceName::parse(name).map_err(bad_name)?;
        Ok(Self::Drain(name, is_drained))
    }

    /// The service that is changed.
    pub(super) fn name(&self) -> ServiceName {
        match self {
            Self::Add(registered) => registered.key.name.clone().into(),
            Self::Remove(selection) => selection.name.clone().into(),
            Self::Drain(name, _) => name.clone(),
        }
    }

    /// Makes the change in `registry`. `block` is the block of this node, and `container_services` are the services of its containers.
    ///
    /// # Errors
    /// The registry does not allow it, and is as before.
    pub(super) fn apply(
        &self,
        registry: &mut Registry,
        block: &Block,
        container_services: &BTreeSet<ServiceName>,
    ) -> Result<Change, ApiError> {
        match self {
            Self::Add(registered) => registry.add(registered.clone(), block).map_err(refused),
            Self::Remove(selection) => match registry.remove(selection) {
                Err(RegistryError::Unknown(name)) if container_services.contains(&name) => {
                    Err(of_containers(&name))
                }
                result => result.map(|()| Change::Removed).map_err(refused),
            },
            Self::Drain(name, is_drained) => registry
                .set_drained(name, *is_drained, container_services)
                .map_err(refused),
        }
    }
}

pub(super) fn parse_name(name: &str) -> Result<Label, ApiError> {
    Label::parse(name).map_err(bad_name)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it stands in for a closure in map_err"
)]
fn bad_name(error: LabelError) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string())
}

fn of_containers(name: &ServiceName) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!(
            "{name} is a service of containers; stop them, or start them without the label mesh.service"
        ),
    )
}

fn refused(error: RegistryError) -> ApiError {
    let code = match error {
        RegistryError::Unknown(_) | RegistryError::UnknownPort(..) => ErrorCode::NotFound,
        RegistryError::Address(..) => ErrorCode::BadRequest,
        RegistryError::Configured(_) | RegistryError::Full => ErrorCode::Conflict,
    };
    ApiError::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn changes_are_written_one_after_the_other_and_a_flood_of_them_is_refused() {
        let mut changes = Changes::default();
        let block = Block {
            v4: "10.210.1.0/24".parse().expect("a network"),
            v6: "fd00:1::/64".parse().expect("a network"),
        };
        for _ in 0..MAX_WAITING {
            changes.add(ChangeRequest::Block(block));
        }
        let removal = || {
            ServiceChange::remove(&RemoveService {
                name: "db".into(),
                port: None,
                protocol: None,
            })
            .expect("a name")
        };
        let (reply, mut answer) = oneshot::channel();
        changes.add(ChangeRequest::Services(removal(), reply));
        let error = answer.try_recv().expect("an answer").expect_err("refused");
        assert_eq!(error.code, ErrorCode::Conflict);

        assert!(matches!(changes.poll(), Some(ChangeRequest::Block(_))));
        let (reply, mut answer) = oneshot::channel();
        changes.handle_begun(ChangeRequest::Services(removal(), reply));
        assert!(changes.is_writing() && changes.poll().is_none());
        let change = changes.handle_ended().expect("it was written");
        change.refuse(ApiError::new(ErrorCode::Internal, "the disk is full"));
        let error = answer.try_recv().expect("an answer").expect_err("refused");
        assert_eq!(error.message, "the disk is full");
        assert!(changes.poll().is_some() && changes.handle_ended().is_none());
    }

    #[test]
    fn addresses_of_names_wait_for_the_disk_once_however_often_they_change() {
        let mut changes = Changes::default();
        for _ in 0..2 * MAX_WAITING {
            changes.add(ChangeRequest::Addresses);
        }
        let request = changes.poll().expect("one waits");
        assert!(changes.poll().is_none());
        changes.handle_begun(request);
        // What changes while they are written is written after it.
        changes.add(ChangeRequest::Addresses);
        assert!(changes.handle_ended().is_some());
        assert!(matches!(changes.poll(), Some(ChangeRequest::Addresses)));
    }
}
