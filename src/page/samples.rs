//! What is measured for the graphs of a node and of a coordinator. Pure.

use std::time::Instant;

use super::history::{Chart, Sample};
use crate::protocol::local::{PeerState, Status};

/// The graphs of a node, in the order of [`NodeSamples::sample`].
pub const OF_NODE: &[Chart] = &[
    chart("Nodes that are reached", ""),
    chart("Median round trip", "ms"),
    chart("Received", "kB/s"),
    chart("Sent", "kB/s"),
    chart("Instances in the mesh", ""),
    chart("Problems", ""),
];

/// The graphs of a coordinator, in the order of [`CoordinatorSamples::sample`].
pub const OF_COORDINATOR: &[Chart] = &[
    chart("Open control streams", ""),
    chart("Nodes of the mesh", ""),
    chart("Records", ""),
    chart("New revisions", "per minute"),
];

const fn chart(title: &'static str, unit: &'static str) -> Chart {
    Chart { title, unit }
}

/// Measures a node.
#[derive(Debug, Default)]
pub struct NodeSamples {
    received: Rate,
    sent: Rate,
}

impl NodeSamples {
    /// The measurement of a status.
    pub fn sample(&mut self, status: &Status, now: Instant) -> Sample {
        let is_reached =
            |state: PeerState| !matches!(state, PeerState::Unreachable | PeerState::Connecting);
        let reached = status.peers.iter().filter(|peer| is_reached(peer.state));
        let mut round_trips: Vec<f64> = status.peers.iter().filter_map(|p| p.rtt_ms).collect();
        round_trips.sort_by(f64::total_cmp);
        let total = |bytes: fn(u64, u64) -> u64| {
            let peers = status.peers.iter();
            peers.fold(0u64, |sum, peer| {
                sum.saturating_add(bytes(peer.rx_bytes, peer.tx_bytes))
            })
        };
        let kilobytes = |per_second: Option<f64>| per_second.map(|bytes| bytes / 1000.0);
        vec![
            Some(count(reached.count())),
            round_trips.get(round_trips.len() / 2).copied(),
            kilobytes(self.received.handle(total(|received, _| received), now)),
            kilobytes(self.sent.handle(total(|_, sent| sent), now)),
            Some(count(status.services.mesh_instances)),
            Some(count(status.problems.len())),
        ]
    }
}

/// The size of a mesh, as its coordinator knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshSize {
    pub connections: usize,
    pub members: usize,
    pub records: usize,
    pub revision: u64,
}

/// Measures a coordinator.
#[derive(Debug, Default)]
pub struct CoordinatorSamples {
    revisions: Rate,
}

impl CoordinatorSamples {
    /// The measurement of a size.
    pub fn sample(&mut self, size: MeshSize, now: Instant) -> Sample {
        let revisions = self.revisions.handle(size.revision, now);
        vec![
            Some(count(size.connections)),
            Some(count(size.members)),
            Some(count(size.records)),
            revisions.map(|per_second| per_second * 60.0),
        ]
    }
}

/// The growth of a number that only grows.
#[derive(Debug, Default)]
struct Rate(Option<(Instant, u64)>);

impl Rate {
    /// Handles the present number. Returns its growth in a second since the last call. None if it became smaller, because a peer left
    /// or the store is another one.
    fn handle(&mut self, number: u64, now: Instant) -> Option<f64> {
        let (then, before) = self.0.replace((now, number))?;
        let growth = u32::try_from(number.checked_sub(before)?).unwrap_or(u32::MAX);
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        (seconds > 0.0).then(|| f64::from(growth) / seconds)
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::page::tests::{peer, status};

    #[test]
    fn a_node_is_measured_by_its_peers_and_by_what_they_sent_since_the_last_time() {
        let start = Instant::now();
        let mut samples = NodeSamples::default();
        let peers = |received: u64| {
            let mut near = peer(1, "near");
            (near.rtt_ms, near.rx_bytes) = (Some(0.5), received);
            let mut gone = peer(2, "gone");
            (gone.rtt_ms, gone.state) = (None, PeerState::Unreachable);
            status(vec![near, gone])
        };
        let first = samples.sample(&peers(1_000), start);
        assert_eq!(first.len(), OF_NODE.len());
        assert_eq!(first[..3], [Some(1.0), Some(0.5), None]);
        let second = samples.sample(&peers(21_000), start + Duration::from_secs(10));
        assert_eq!(second[2], Some(2.0));
        let smaller = samples.sample(&peers(0), start + Duration::from_secs(20));
        assert_eq!(smaller[2], None);
    }

    #[test]
    fn a_coordinator_is_measured_by_its_size_and_its_revisions() {
        let start = Instant::now();
        let mut samples = CoordinatorSamples::default();
        let size = |revision| MeshSize {
            connections: 2,
            members: 3,
            records: 12,
            revision,
        };
        let first = samples.sample(size(100), start);
        assert_eq!(first.len(), OF_COORDINATOR.len());
        assert_eq!(first, [Some(2.0), Some(3.0), Some(12.0), None]);
        let second = samples.sample(size(105), start + Duration::from_secs(10));
        assert_eq!(second.last(), Some(&Some(30.0)));
    }
}
