//! Whether every node knows: each is asked over the tunnel what its own DNS says of the instances. That is what its
//! clients are told, and needs no word of the coordinator's.

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
use crate::protocol::local::{PeerState, Status};

/// How long all nodes have to hear of it. It takes milliseconds.
const LIMIT: Duration = Duration::from_secs(15);
/// How long one may be silent before it is taken for one that answers no names.
const SILENCE: Duration = Duration::from_secs(4);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_millis(700);

/// What a node's DNS says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The instance gets no new clients.
    Knows,
    /// It still does.
    Behind,
    /// Nothing.
    Silent,
}

/// Waits until the DNS of every reachable node sends no new clients to `instances`. Gives lines that say how it went.
///
/// # Errors
/// One goes on doing so.
pub(super) async fn wait(
    daemon: &Client,
    instances: &BTreeSet<(Label, ServiceName)>,
    domain: &str,
) -> Result<Vec<String>, CliError> {
    let started = Instant::now();
    let mut known: BTreeSet<Label> = BTreeSet::new();
    let mut heard: BTreeSet<Label> = BTreeSet::new();
    loop {
        let status: Status = daemon.get("/v1/status").await?;
        let mut open: BTreeMap<Label, Word> = BTreeMap::new();
        for peer in &status.peers {
            if peer.state == PeerState::Unreachable || known.contains(&peer.name) {
                continue;
            }
            let server = SocketAddr::new(peer.address_v4.into(), 53);
            let word = ask_all(server, instances, domain).await;
            match word {
                Word::Knows => drop(known.insert(peer.name.clone())),
                Word::Behind => drop(heard.insert(peer.name.clone())),
                Word::Silent => {}
            }
            if word != Word::Knows {
                open.insert(peer.name.clone(), word);
            }
        }
        let elapsed = started.elapsed();
        let silent: Vec<String> = open
            .keys()
            .filter(|name| !heard.contains(name))
            .map(ToString::to_string)
            .collect();
        if open.is_empty() || (silent.len() == open.len() && elapsed >= SILENCE) {
            let mut notes = vec![format!("{} other node(s) know", known.len())];
            if !silent.is_empty() {
                notes.push(format!(
                    "no DNS on {}: taken to have heard of it from the coordinator",
                    silent.join(", ")
                ));
            }
            return Ok(notes);
        }
        if elapsed >= LIMIT {
            let names: Vec<String> = open.keys().map(ToString::to_string).collect();
            return Err(CliError::failed(format!(
                "{} still sends clients here after {} s; look at `meshctl status` there",
                names.join(", "),
                LIMIT.as_secs()
            )));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The least that `server` says of all.
async fn ask_all(
    server: SocketAddr,
    instances: &BTreeSet<(Label, ServiceName)>,
    domain: &str,
) -> Word {
    for (instance, service) in instances {
        let name = format!("{instance}.{service}.svc.{domain}.");
        let word = match ask(server, &name).await {
            Some(reply) => word(&reply),
            None => Word::Silent,
        };
        if word != Word::Knows {
            return word;
        }
    }
    Word::Knows
}

/// What a reply about an instance's TXT record means.
fn word(reply: &Message) -> Word {
    let still = reply.answers.iter().any(|record| {
        let text = record.data.to_string();
        !text.contains("health=draining")
    });
    match reply.metadata.response_code {
        ResponseCode::NoError if still => Word::Behind,
        ResponseCode::NoError | ResponseCode::NXDomain => Word::Knows,
        _ => Word::Silent,
    }
}

async fn ask(server: SocketAddr, name: &str) -> Option<Message> {
    let id = getrandom::u32().ok()?.to_be_bytes();
    let id = u16::from_be_bytes([id[0], id[1]]);
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).ok()?, RecordType::TXT));
    let octets = query.to_vec().ok()?;
    let exchange = async {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&octets).await.ok()?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await.ok()?;
            let reply = buffer.get(..length).and_then(|r| Message::from_vec(r).ok());
            if let Some(reply) = reply.filter(|reply| reply.metadata.id == id) {
                return Some(reply);
            }
        }
    };
    timeout(ANSWER, exchange).await.ok().flatten()
}
