//! Checks whether every node has received the drain: each node's own DNS is queried over the tunnel for the instances.
//! This is the answer that its clients get, and it does not depend on the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

use super::super::Client;
use super::super::exit::CliError;
use crate::model::{Label, ServiceName};
use crate::os::random;
use crate::protocol::local::{PeerState, Status};

/// How long all nodes may take to receive the drain. It usually takes milliseconds.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node may be silent before it counts as a node without DNS.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(4);
/// The time limit of one reply.
const REPLY_TIMEOUT: Duration = Duration::from_millis(700);

/// What a node's DNS answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DrainState {
    /// The node sends no new clients to the instances.
    Drained,
    /// The node still sends new clients to an instance.
    Behind,
    /// The node does not answer.
    Silent,
}

/// Waits until the DNS of every reachable node sends no new clients to `instances`. Returns messages about the result.
///
/// # Errors
/// A node still sends clients.
pub(super) async fn wait(
    daemon: &Client,
    instances: &BTreeSet<(Label, ServiceName)>,
    domain: &str,
) -> Result<Vec<String>, CliError> {
    let started = Instant::now();
    let mut drained: BTreeSet<Label> = BTreeSet::new();
    let mut answering: BTreeSet<Label> = BTreeSet::new();
    loop {
        let status: Status = daemon.get("/v1/status").await?;
        let mut open: BTreeMap<Label, DrainState> = BTreeMap::new();
        for peer in &status.peers {
            if peer.state == PeerState::Unreachable || drained.contains(&peer.name) {
                continue;
            }
            let server = SocketAddr::new(peer.address_v4.into(), 53);
            let state = query_all(server, instances, domain).await;
            match state {
                DrainState::Drained => drop(drained.insert(peer.name.clone())),
                DrainState::Behind => drop(answering.insert(peer.name.clone())),
                DrainState::Silent => {}
            }
            if state != DrainState::Drained {
                open.insert(peer.name.clone(), state);
            }
        }
        let elapsed = started.elapsed();
        let silent: Vec<String> = open
            .keys()
            .filter(|name| !answering.contains(name))
            .map(ToString::to_string)
            .collect();
        if open.is_empty() || (silent.len() == open.len() && elapsed >= SILENCE_TIMEOUT) {
            let mut notes = vec![format!(
                "{} other node(s) send no new clients",
                drained.len()
            )];
            if !silent.is_empty() {
                notes.push(format!(
                    "no DNS on {}: assumed to have received the drain from the coordinator",
                    silent.join(", ")
                ));
            }
            return Ok(notes);
        }
        if elapsed >= DRAIN_TIMEOUT {
            let names: Vec<String> = open.keys().map(ToString::to_string).collect();
            return Err(CliError::failed(format!(
                "{} still sends clients here after {} s; look at `meshctl status` there",
                names.join(", "),
                DRAIN_TIMEOUT.as_secs()
            )));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The result for all instances: [`DrainState::Drained`] only if it holds for each of them.
async fn query_all(
    server: SocketAddr,
    instances: &BTreeSet<(Label, ServiceName)>,
    domain: &str,
) -> DrainState {
    for (instance, service) in instances {
        let name = format!("{instance}.{service}.svc.{domain}.");
        let state = match query(server, &name).await {
            Some(reply) => state_in(&reply),
            None => DrainState::Silent,
        };
        if state != DrainState::Drained {
            return state;
        }
    }
    DrainState::Drained
}

/// The meaning of a reply with an instance's TXT record.
fn state_in(reply: &Message) -> DrainState {
    let sends_clients = reply.answers.iter().any(|record| {
        let text = record.data.to_string();
        !text.contains("health=draining")
    });
    match reply.metadata.response_code {
        ResponseCode::NoError if sends_clients => DrainState::Behind,
        ResponseCode::NoError | ResponseCode::NXDomain => DrainState::Drained,
        _ => DrainState::Silent,
    }
}

async fn query(server: SocketAddr, name: &str) -> Option<Message> {
    let id = random::u32().ok()?.to_be_bytes();
    let id = u16::from_be_bytes([id[0], id[1]]);
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).ok()?, RecordType::TXT));
    let bytes = query.to_vec().ok()?;
    let exchange = async {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&bytes).await.ok()?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await.ok()?;
            let reply = buffer.get(..length).and_then(|r| Message::from_vec(r).ok());
            if let Some(reply) = reply.filter(|reply| reply.metadata.id == id) {
                return Some(reply);
            }
        }
    };
    timeout(REPLY_TIMEOUT, exchange).await.ok().flatten()
}
