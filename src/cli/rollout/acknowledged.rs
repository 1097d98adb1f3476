//! Checks whether every node has received the drain: each node's own DNS is queried over the tunnel for the instances.
//! This is the answer that its clients get, and it does not depend on the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::Client;
use super::super::exit::CliError;
use super::resolvers::{Expect, Resolver, query_node};
use crate::model::{Label, ServiceName};
use crate::protocol::local::{PeerState, Status};

/// How long all nodes may take to receive the drain. It usually takes milliseconds.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a node may be silent before it counts as a node without DNS.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(4);

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
        let mut open: BTreeMap<Label, Resolver> = BTreeMap::new();
        for peer in &status.peers {
            if peer.state == PeerState::Unreachable || drained.contains(&peer.name) {
                continue;
            }
            let state = query_node(peer.address_v4, instances, domain, Expect::Drained).await;
            match state {
                Resolver::Reached => drop(drained.insert(peer.name.clone())),
                Resolver::Behind => drop(answering.insert(peer.name.clone())),
                Resolver::Silent => {}
            }
            if state != Resolver::Reached {
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
