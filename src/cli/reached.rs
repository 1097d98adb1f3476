//! Reports which peers a node reaches right after it joined.

use std::time::{Duration, Instant};

use super::Globals;
use crate::model::text::listed;
use crate::os::progress::ProgressLine;
use crate::protocol::local::{PeerState, PeerStatus, Status};

/// How long the command waits for the first packets of all peers.
const ALL_PEERS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the command waits for the others once one peer was reached, so that a peer that is off does not delay every
/// join.
const OTHER_PEERS_TIMEOUT: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(50);
/// The maximum number of peers that a line names.
const MAX_NAMED: usize = 5;

/// Waits for packets of the peers, and prints which peers this node reaches. The node has joined in any case.
pub(super) async fn report(globals: &Globals) {
    let start = Instant::now();
    let progress = ProgressLine::start("joined; waiting for the first packets of the other nodes");
    loop {
        let Ok(status) = globals.daemon().get::<Status>("/v1/status").await else {
            return;
        };
        if is_complete(&status, start.elapsed()) {
            drop(progress);
            return lines(&status).iter().for_each(|line| eprintln!("{line}"));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether the members of the mesh are known: the control stream sends them first.
fn is_synced(status: &Status) -> bool {
    let coordinator = status.coordinator.as_ref();
    coordinator.is_some_and(|coordinator| coordinator.revision > 0)
}

fn is_reached(peer: &&PeerStatus) -> bool {
    peer.last_heard_seconds_ago.is_some()
}

fn is_complete(status: &Status, waited: Duration) -> bool {
    let reached = status.peers.iter().filter(is_reached).count();
    waited >= ALL_PEERS_TIMEOUT
        || (is_synced(status) && reached == status.peers.len())
        || (reached > 0 && waited >= OTHER_PEERS_TIMEOUT)
}

fn lines(status: &Status) -> Vec<String> {
    if !is_synced(status) {
        return vec![
            "warning: the coordinator has not sent the other nodes yet; `meshctl status` shows which nodes this node reaches"
                .to_owned(),
        ];
    }
    if status.peers.is_empty() {
        return vec!["the mesh has no other node yet".to_owned()];
    }
    let (reached, silent): (Vec<&PeerStatus>, Vec<&PeerStatus>) =
        status.peers.iter().partition(is_reached);
    let mut lines = Vec::new();
    if !reached.is_empty() {
        let named = reached
            .iter()
            .map(|peer| match (peer.state, &peer.via, peer.endpoint) {
                (PeerState::Relay, Some(via), _) => format!("{} relayed by {via}", peer.name),
                (PeerState::Stream, Some(via), _) => {
                    format!("{} relayed by {via} over TLS", peer.name)
                }
                (PeerState::Stream, None, _) => format!("{} over TLS", peer.name),
                (_, _, Some(endpoint)) => format!("{} directly at {endpoint}", peer.name),
                (_, _, None) => peer.name.to_string(),
            });
        let named = listed(named, MAX_NAMED);
        lines.push(format!(
            "reached {} of {} other node(s): {named}",
            reached.len(),
            status.peers.len()
        ));
    }
    for peer in silent.iter().take(MAX_NAMED) {
        let reason = peer
            .reason
            .as_deref()
            .unwrap_or("no packet from it has arrived yet");
        lines.push(format!("warning: {} is not reached: {reason}", peer.name));
    }
    if !silent.is_empty() {
        let port = status.interface.as_ref().map_or(0, |i| i.listen_port);
        lines.push(format!(
            "warning: {} of {} other node(s) not reached yet; open UDP port {port} of this host in both directions, and their UDP ports; `meshctl status` shows when they are reached",
            silent.len(),
            status.peers.len()
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(revision: u64, heard: &[Option<f64>]) -> Status {
        let peers: Vec<serde_json::Value> = heard
            .iter()
            .zip(2..)
            .map(|(heard, n)| {
                serde_json::json!({
                    "id": format!("{n:064x}"), "name": format!("n{n}"), "tags": [],
                    "address_v4": "10.210.2.1", "address_v6": "fd00::1", "state": "direct",
                    "endpoint": format!("192.0.2.{n}:51820"), "last_handshake_seconds_ago": null,
                    "last_heard_seconds_ago": heard, "reason": "it is blocked",
                    "rtt_ms": null, "rx_bytes": 0, "tx_bytes": 0
                })
            })
            .collect();
        let value = serde_json::json!({
            "schema": 1, "version": "0", "state": "up", "node": null, "dns": null,
            "interface": {"name": "mesh0", "mtu": 1420, "listen_port": 51820},
            "coordinator": {"url": "https://c:7443", "connected": true, "revision": revision, "synced_seconds_ago": 0.1},
            "peers": peers, "services": {"local": 0, "mesh": 0}, "problems": []
        });
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn reached_and_unreached_peers_are_named_with_their_endpoints() {
        assert_eq!(
            lines(&status(7, &[Some(0.1), None])),
            [
                "reached 1 of 2 other node(s): n2 directly at 192.0.2.2:51820",
                "warning: n3 is not reached: it is blocked",
                "warning: 1 of 2 other node(s) not reached yet; open UDP port 51820 of this host in both directions, and their UDP ports; `meshctl status` shows when they are reached",
            ]
        );
        let mut relayed = status(7, &[Some(0.1), Some(0.1)]);
        for (peer, state) in relayed
            .peers
            .iter_mut()
            .zip([PeerState::Relay, PeerState::Stream])
        {
            (peer.state, peer.via) = (state, "fra-1".parse().ok());
        }
        assert_eq!(
            lines(&relayed),
            ["reached 2 of 2 other node(s): n2 relayed by fra-1, n3 relayed by fra-1 over TLS"]
        );
        assert_eq!(lines(&status(7, &[])), ["the mesh has no other node yet"]);
        let many = lines(&status(7, &[Some(1.0); 100]));
        assert!(
            many.concat().ends_with("192.0.2.6:51820, 95 more"),
            "{many:?}"
        );
    }

    #[test]
    fn a_join_waits_for_all_peers_or_shortly_for_one_and_has_a_limit() {
        let after = |revision, heard: &[Option<f64>], seconds| {
            is_complete(&status(revision, heard), Duration::from_secs(seconds))
        };
        assert!(!after(0, &[], 1), "the members are not known yet");
        assert!(after(7, &[], 0) && after(7, &[Some(0.1)], 0));
        assert!(!after(7, &[Some(0.1), None], 1) && after(7, &[Some(0.1), None], 2));
        assert!(!after(7, &[None], 4) && after(7, &[None], 5) && after(0, &[], 5));
    }
}
