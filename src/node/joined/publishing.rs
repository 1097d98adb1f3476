//! Publishes the records of this node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use super::JoinedNode;
use crate::node::change_times::Stage;
use crate::node::connections::Published;
use crate::node::host::Ipv6;
use crate::node::own_records::Draft;
use crate::node::reach::Underlay;
use crate::node::transitions::instances::{self, InstanceChange};
use crate::os::clock;
use crate::records::kinds::{Node, Record, RecordKey, SPOKEN, Service};
use crate::records::ledger::Refused;

/// Publishes what `node` has and serves, where that has changed. With `has_new_name` its name is published as well.
pub(super) fn publish_own(node: &mut JoinedNode, has_new_name: bool) {
    let (now, wall) = (Instant::now(), clock::wall());
    let id = node.id();
    let own_node = node_record(node);
    let mut services = node.workloads.wanted_services(
        &node.identity,
        node.replica.ledger(),
        node.names.service_addresses(),
    );
    leave_out_ipv6(node, &mut services);
    let wanted = node.own_records.fit(services);
    node.own_records.begin_round();
    let ledger = node.replica.ledger();
    let floor = ledger.node(&id).map_or(0, |held| held.services_from);
    let mut draft = Draft::new(id, floor, node.replica.acceptance(), now, wall);
    draft.services(ledger.services_of(&id), wanted);
    if let Some((record, is_new)) = own_node {
        draft.node(record, is_new);
    }
    let name = &node.identity.name;
    draft.name(ledger.wanted_name(&id), name, has_new_name);
    let records = draft.finish();
    publish(node, records, now);
    node.own_records.end_round();
}

/// Signs records of `node`, applies them to its ledger and offers them. This node began to collect them at `begun`.
fn publish(node: &mut JoinedNode, records: Vec<Record>, begun: Instant) {
    if records.is_empty() {
        let is_connected = node.replica.link().is_connected();
        let published = Published::Nothing { is_connected };
        return node.connections.handle_published(published, &[]);
    }
    let ledger = node.replica.ledger();
    let services = records.iter().filter_map(|record| match record {
        Record::Service(service) => Some((ledger.service(&service.id).cloned(), service.clone())),
        _ => None,
    });
    let services: Vec<(Option<Service>, Service)> = services.collect();
    let publication = node.replica.publish(records, clock::now());
    let times = &mut node.workloads.times;
    let now = Instant::now();
    times.note(Stage::Sign, now.saturating_duration_since(begun));
    if let Some(sequence) = publication.sequence {
        times.handle_offered(sequence, now);
    }
    for key in &publication.accepted {
        node.own_records.handle_accepted(key);
    }
    let is_connected = node.replica.link().is_connected();
    let published = publication
        .sequence
        .map_or(Published::Nothing { is_connected }, Published::Offered);
    let refused = publication.refused.iter();
    let refused: Vec<(RecordKey, Refused)> = refused
        .filter_map(|(envelope, why)| Some((envelope.key()?, why.clone())))
        .collect();
    node.connections.handle_published(published, &refused);
    for (before, now) in services {
        let key = RecordKey::Service(now.service_id());
        if publication.accepted.contains(&key) {
            log_instances(node, before.as_ref(), &now);
        }
    }
    for (envelope, refused) in publication.refused {
        node.own_records.handle_refused(&envelope, refused);
    }
}

/// Logs what changed with the instances of a service.
fn log_instances(node: &JoinedNode, before: Option<&Service>, now: &Service) {
    let before = before.map_or(&[][..], |before| &before.instances);
    let service = now.service_name();
    for (instance, turn) in instances::turns(before, &now.instances) {
        let why = node.workloads.why_unused(&service, instance);
        let change = InstanceChange {
            service: &service,
            instance,
            turn,
            why: why.as_deref(),
        };
        node.disk.audit.note(&change);
    }
}

/// The record of `node`, and whether it differs from the one in the ledger.
fn node_record(node: &mut JoinedNode) -> Option<(Node, bool)> {
    let id = node.id();
    let ledger = node.replica.ledger();
    let mesh = ledger.mesh()?;
    let network = &node.device.network;
    let tunnel = &node.device.tunnel;
    let underlay = Underlay {
        own: tunnel.interface(),
        port: tunnel.listen_port(),
        mesh: &mesh.addresses,
        engine: &node.workloads.engine_bridges(),
        guests: &network.guest_bridges(),
    };
    let reach = &mut node.device.reach;
    let own = reach.own_addresses(&node.device.interfaces, underlay, Instant::now());
    let member = node.netmap.members.get(&id);
    let may_relay = member.is_none_or(|member| node.netmap.rules.may_offer_relay(member));
    let limit = reach.relay_limit(own.public()).filter(|_| may_relay);
    let relay = tunnel.steering().own_relay();
    relay.set_limit(limit, Instant::now());
    let streams = &mut node.device.streams;
    streams.set_relaying(limit.is_some());
    let stream = limit.and_then(|_| streams.offer(own.public()));
    let held = ledger.node(&id);
    let wireguard_key = node.identity.keys.wireguard_public();
    let proof = held.filter(|held| held.wireguard_key == wireguard_key);
    let proof = proof.and_then(|held| held.key_proof);
    let record = Node {
        id,
        version: held.map_or(0, |n| n.version),
        wireguard_key,
        block: node.identity.block,
        endpoints: own.endpoints,
        without_ipv6: network.ipv6() != Ipv6::On,
        key_proof: proof.or_else(|| node.identity.keys.prove_wireguard()),
        services_from: held.map_or(0, |n| n.services_from),
        program_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        speaks: SPOKEN.iter().map(|word| (*word).to_owned()).collect(),
        relays: node.device.reach.chosen_relays().to_vec(),
        observed: own.observed,
        mapped: own.mapped,
        stream,
        guest_key: Some(node.identity.keys.guest_public()),
        guests: node.device.guests.leases(),
        routes: node.device.routing.offered().to_vec(),
    };
    let is_new = held != Some(&record);
    Some((record, is_new))
}

/// Removes this node's IPv6 address from services, if its machine has no IPv6.
fn leave_out_ipv6(node: &JoinedNode, services: &mut BTreeMap<String, Service>) {
    if node.device.network.ipv6() == Ipv6::On {
        return;
    }
    let own = IpAddr::V6(node.identity.block.node_v6());
    for instance in services.values_mut().flat_map(|s| &mut s.instances) {
        if instance.addresses.iter().any(|address| *address != own) {
            instance.addresses.retain(|address| *address != own);
        }
    }
}
