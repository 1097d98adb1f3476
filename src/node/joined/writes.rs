//! Changes that wait for the disk, and the ends of writes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::JoinedNode;
use super::waiting::{Consequence, Waiting};
use crate::model::time::UnixSeconds;
use crate::model::{Label, ServiceName};
use crate::node::api::Reply;
use crate::node::changes::{ChangeRequest, ServiceChange};
use crate::node::docker::Docker;
use crate::node::keys;
use crate::node::replica::Effect;
use crate::node::state::Identity;
use crate::node::state::writer::{Content, StateFile, Written};
use crate::node::unwritten::Part;
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::protocol::api::ApiError;
use crate::protocol::local::{KeyRotated, Renamed, SCHEMA, ServiceChanged};
use crate::records::RecordKey;
use crate::records::kinds::ServiceId;

/// How long a node that stops waits until its last changes are on disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that are due within this time are made when the node stops.
const FLUSH_AHEAD: Duration = Duration::from_secs(2);

/// Makes a change as soon as it is on disk, and answers it.
pub(super) fn change(node: &mut JoinedNode, request: ChangeRequest) {
    node.disk.changes.add(request);
    begin_next(node);
}

/// Begins to write the next change, unless one is being written.
fn begin_next(node: &mut JoinedNode) {
    while let Some(request) = node.disk.changes.poll() {
        match content_of(node, &request) {
            Ok(content) => {
                node.disk.changes.handle_begun(request);
                node.disk.write_change(content);
            }
            Err(error) => request.refuse(error),
        }
    }
}

/// The content that is written for a change.
fn content_of(node: &JoinedNode, request: &ChangeRequest) -> Result<Content, ApiError> {
    let identity = match request {
        ChangeRequest::Services(change, _) => {
            let mut registry = node.workloads.registry.clone();
            change.apply(
                &mut registry,
                &node.identity.block,
                &container_services(node),
            )?;
            return Ok(Content::Services(registry.stored()));
        }
        ChangeRequest::Key(_) => {
            let is_rotating = node.device.tunnel.keys().is_rotating();
            let now = UnixSeconds::from_system(clock::wall());
            keys::rotated(&node.identity, is_rotating, now)?
        }
        ChangeRequest::Name(name, _) => keys::renamed(&node.identity, &node.replica, name)?,
        ChangeRequest::KeepName => node.identity.clone(),
        ChangeRequest::Addresses => {
            return Ok(Content::Services(node.workloads.registry.stored()));
        }
        ChangeRequest::Block(block) => Identity {
            block: *block,
            ..node.identity.clone()
        },
    };
    Ok(Content::Identity(Box::new(identity)))
}

/// The services of the containers of this node.
fn container_services(node: &JoinedNode) -> BTreeSet<ServiceName> {
    let docker = node.workloads.docker.as_ref();
    docker.map(Docker::services).unwrap_or_default()
}

/// A write ended. Returns a new identity if the node moves to another address block.
pub(super) fn handle_written(node: &mut JoinedNode, written: Written) -> Option<Identity> {
    let (file, content, result) = match written {
        Written::Replica(outcome) => {
            node.disk.handle_records(&outcome, &mut node.replica);
            return None;
        }
        Written::State(file, content, result) => (file, content, result),
    };
    node.disk.handle_ended(file);
    let mut moved = None;
    match (file, content) {
        (StateFile::Change, content) => {
            if let Some(request) = node.disk.changes.handle_ended() {
                match result {
                    Ok(()) => moved = make(node, request, content),
                    Err(error) => request.refuse(error.into()),
                }
            }
            // A node that moves is started again. Another change would write its former block.
            if moved.is_none() {
                begin_next(node);
            }
        }
        (StateFile::OldKey, _) => node.disk.note(Part::OldKey, result),
        (StateFile::Leases, Content::Leases(leases)) => {
            let is_written = result.is_ok();
            node.disk.note(Part::Leases, result);
            if let Some(docker) = node.workloads.docker.as_mut().filter(|_| is_written) {
                docker.handle_written(leases);
                node.disk.write_leases(docker);
            }
        }
        (StateFile::ServiceAddresses, Content::ServiceAddresses(addresses)) => {
            if result.is_ok() {
                node.names.handle_written(&addresses);
            }
            node.disk.note(Part::ServiceAddresses, result);
        }
        (StateFile::Calls, Content::Calls(calls)) => {
            if result.is_ok() {
                node.device.asked.calls.received.handle_written(&calls);
            }
            node.disk.note(Part::Calls, result);
        }
        (StateFile::Policy, Content::Policy(record)) => {
            let is_written = result.is_ok();
            node.disk.note(Part::Policy, result);
            if is_written {
                node.device.policy.handle_written(&record);
                node.disk.write_policy(&node.device.policy);
            }
        }
        _ => {}
    }
    moved
}

/// Makes a change that is on disk, and answers it once the coordinator has it.
fn make(node: &mut JoinedNode, request: ChangeRequest, content: Content) -> Option<Identity> {
    match (request, content) {
        (ChangeRequest::Services(change, reply), _) => change_services(node, &change, reply),
        (ChangeRequest::Key(reply), Content::Identity(identity)) => {
            node.identity.keys = identity.keys;
            node.identity.previous = identity.previous;
            // The tunnel has the key before it is published: a peer that receives it begins a session with it at once.
            let key = node.identity.keys.wireguard.clone();
            node.device.tunnel.keys().rotate(key, Instant::now());
            let public_key = node.identity.keys.wireguard_public();
            tracing::info!(key = %public_key, "the tunnel has a new key");
            let answer = node.publish_soon(RecordKey::Node(node.id()));
            let waiting = Waiting::begin(node, answer, Consequence::PeersReceiveIt);
            Tasks::current().spawn_child("reply to a new key", async move {
                let unpublished = waiting.unpublished().await;
                let _ = reply.send(Ok(KeyRotated {
                    schema: SCHEMA,
                    public_key,
                    published: unpublished.is_none(),
                    unpublished,
                }));
            });
        }
        (ChangeRequest::Name(name, reply), _) => {
            set_name(node, name.clone());
            // Instances are called after their node, so their services are published with the name.
            node.dirty.name = true;
            let domain = node.names.zone().load().domain.clone();
            let answer = node.publish_soon(RecordKey::Name(node.id()));
            let waiting = Waiting::begin(node, answer, Consequence::PeersWait);
            Tasks::current().spawn_child("reply to a new name", async move {
                let unpublished = waiting.unpublished().await;
                let _ = reply.send(Ok(Renamed {
                    schema: SCHEMA,
                    name: format!("{name}.node.{domain}"),
                    published: unpublished.is_none(),
                    unpublished,
                }));
            });
        }
        (ChangeRequest::Block(_), Content::Identity(identity)) => return Some(*identity),
        // This node has the name and the addresses already. The content of the others is that of the request.
        (
            ChangeRequest::KeepName
            | ChangeRequest::Addresses
            | ChangeRequest::Key(_)
            | ChangeRequest::Block(_),
            _,
        ) => {}
    }
    None
}

/// Makes a change of the services that is on disk.
fn change_services(node: &mut JoinedNode, change: &ServiceChange, reply: Reply<ServiceChanged>) {
    let services = container_services(node);
    let block = node.identity.block;
    // It was allowed before it was written, and no other change came in between.
    let changed = match change.apply(&mut node.workloads.registry, &block, &services) {
        Ok(changed) => changed,
        Err(error) => {
            let _ = reply.send(Err(error));
            return;
        }
    };
    node.workloads.set_checks(&block);
    // A service outside the mesh needs an instance address.
    node.dirty.firewall |= node.workloads.concerns_firewall(&block);
    let domain = node.names.zone().load().domain.clone();
    let name = change.name();
    let id = ServiceId::new(node.id(), name.project.as_ref(), &name.name);
    let answer = node.publish_soon(RecordKey::Service(id));
    let waiting = Waiting::begin(node, answer, Consequence::PeersReceiveIt);
    Tasks::current().spawn_child("reply to a change of services", async move {
        let unpublished = waiting.unpublished().await;
        let _ = reply.send(Ok(ServiceChanged {
            schema: SCHEMA,
            name: format!("{name}.svc.{domain}"),
            published: unpublished.is_none(),
            unpublished,
            change: Some(changed),
        }));
    });
}

/// This node has another name, because another node has the one that it wanted.
pub(super) fn follow_name(node: &mut JoinedNode, name: Label) {
    set_name(node, name);
    change(node, ChangeRequest::KeepName);
}

fn set_name(node: &mut JoinedNode, name: Label) {
    node.identity.name = name.clone();
    if let Some(docker) = &mut node.workloads.docker {
        docker.set_node_name(name);
    }
}

/// Removes the old key from disk, once the tunnel does not accept it any more.
pub(super) fn end_rotation(node: &mut JoinedNode, now: Instant) {
    node.device.tunnel.keys().settle(now);
    // A change that is being written may contain the old key: the old key is removed after it.
    if node.identity.previous.is_some()
        && !node.device.tunnel.keys().is_rotating()
        && !node.disk.changes.is_writing()
    {
        node.identity.previous = None;
        node.disk.remove_old_key(&node.identity);
    }
}

/// Writes what the disk refused before.
pub(super) fn write_again(node: &mut JoinedNode) {
    if node.disk.has_old_key() && !node.disk.changes.is_writing() {
        node.disk.remove_old_key(&node.identity);
    }
    if let Some(docker) = &node.workloads.docker {
        node.disk.write_leases(docker);
    }
}

/// Waits until all is written. The node stops.
pub(super) async fn flush(node: &mut JoinedNode, writes: &mut mpsc::Receiver<Written>) {
    node.disk.write_service_addresses(&node.names);
    node.disk.write_calls(&node.device.asked.calls);
    node.disk.write_policy(&node.device.policy);
    if timeout(FLUSH_TIMEOUT, flush_all(node, writes))
        .await
        .is_err()
    {
        tracing::warn!("the disk does not answer; the last changes are not written");
    }
}

async fn flush_all(node: &mut JoinedNode, writes: &mut mpsc::Receiver<Written>) {
    let mut now = clock::now();
    now.monotonic += FLUSH_AHEAD;
    node.replica.handle_time(now);
    loop {
        while let Some(effect) = node.replica.poll_effect() {
            if let Effect::Write(request) = effect {
                node.disk.writer.write(request);
            }
        }
        if !node.replica.is_writing() && !node.disk.is_writing() {
            return;
        }
        match writes.recv().await {
            // The node starts with a new block, if it was to move to one.
            Some(written) => drop(handle_written(node, written)),
            None => return,
        }
    }
}
