//! Probes to peers: for `meshctl doctor` to all of them, and for `meshctl ping` to one.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::peers::{contact_of, member_of, milliseconds, others};
use super::policy::policy_problems;
use super::problems::contested;
use crate::containers::running_containers::running_containers;
use crate::model::Label;
use crate::node::api::Reply;
use crate::node::contact::Contact;
use crate::node::joined::JoinedNode;
use crate::node::resolver::Dns;
use crate::os::tasks::Tasks;
use crate::protocol::local::{Checkup, Ping, Pong, SCHEMA, TunnelCheck};
use crate::records::netmap::Member;
use crate::tunnel::Waiting;

/// How long the container engine may take to list the running containers for `meshctl doctor`.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to a probe of `meshctl doctor` may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Replies with the facts for `meshctl doctor`.
pub(in crate::node) fn checkup(node: &JoinedNode, reply: Reply<Checkup>) {
    let domain = node.names.zone().load().domain.clone();
    let dns = node.resolver.dns.as_ref();
    let checkup = Checkup {
        schema: SCHEMA,
        name: format!("{}.node.{domain}", node.identity.name),
        expected: node.identity.block.node_v4(),
        dns: dns.and_then(|_| node.replica.ledger().mesh().map(|m| m.addresses.dns_v4())),
        split_dns: dns.map_or("none", Dns::split_dns).to_owned(),
        containers: Vec::new(),
        problems: [
            node.device.network.route_problems(),
            contested(&node.netmap),
            policy_problems(node),
        ]
        .concat(),
        removed: node.replica.is_removed(),
        tunnels: Vec::new(),
    };
    let probes = probe_all(node);
    let sockets = node.workloads.engine_sockets();
    Tasks::current().spawn_child("checkup", async move {
        let waiting = move || probes.into_iter().map(check_of).collect();
        let tunnels = tokio::task::spawn_blocking(waiting);
        let containers = timeout(ENGINE_TIMEOUT, running_containers(&sockets)).await;
        let _ = reply.send(Ok(Checkup {
            containers: containers.unwrap_or_default(),
            tunnels: tunnels.await.unwrap_or_default(),
            ..checkup
        }));
    });
}

/// A probe that was sent to a peer, and the facts about the path to the peer when it was sent.
struct Probed {
    name: Label,
    contact: Contact,
    waiting: Waiting,
}

/// Probes all other members at once.
fn probe_all(node: &JoinedNode) -> Vec<Probed> {
    let now = Instant::now();
    let probe = |member: &Member| {
        let key = member.wireguard_key.0;
        let contact = contact_of(node, member, node.device.tunnel.peer(&key).as_ref(), now);
        let [own, _] = node.identity.addresses();
        Probed {
            name: member.name.clone(),
            contact,
            waiting: node
                .device
                .tunnel
                .probing()
                .ping(key, own, member.block.node_v4().into()),
        }
    };
    others(node).into_iter().map(probe).collect()
}

/// Waits for the answer. All probes are sent at about the same time, so together they take no longer than one.
fn check_of(probed: Probed) -> TunnelCheck {
    let (rtt, endpoint) = probed.waiting.wait(PROBE_TIMEOUT);
    let (why, fix) = match rtt {
        Some(_) => (None, None),
        None => {
            let (why, fix) = probed.contact.failure(probed.name.as_str());
            (Some(why), Some(fix))
        }
    };
    TunnelCheck {
        peer: probed.name,
        endpoint,
        rtt_ms: rtt.map(milliseconds),
        why,
        fix,
    }
}

/// Sends a probe to a peer, and replies when its answer has arrived or its time is over.
pub(in crate::node) fn ping(node: &JoinedNode, ping: &Ping, reply: Reply<Pong>) {
    let member = match member_of(node, &ping.node) {
        Ok(member) => member.clone(),
        Err(none) => return drop(reply.send(Err(none))),
    };
    let target = IpAddr::V4(member.block.node_v4());
    let pong = Pong {
        node: member.name.clone(),
        address: target,
        endpoint: None,
        rtt_ms: None,
        problems: if node.device.network.bypasses_tunnel(&member.addresses()) {
            node.device.network.route_problems()
        } else {
            Vec::new()
        },
    };
    if member.id == node.id() {
        return drop(reply.send(Ok(Pong {
            rtt_ms: Some(0.0),
            ..pong
        })));
    }
    let limit = Duration::from_millis(ping.timeout_ms.clamp(1, 60_000));
    let waiting = node.device.tunnel.probing().ping(
        member.wireguard_key.0,
        node.identity.addresses()[0],
        target,
    );
    Tasks::current().spawn_child("ping", async move {
        let waited = tokio::task::spawn_blocking(move || waiting.wait(limit)).await;
        let (rtt, endpoint) = waited.unwrap_or_default();
        let _ = reply.send(Ok(Pong {
            rtt_ms: rtt.map(milliseconds),
            endpoint,
            ..pong
        }));
    });
}
