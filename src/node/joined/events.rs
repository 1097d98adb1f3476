//! The events of the tasks of a joined node.

use tokio::sync::{mpsc, watch};

use crate::containers::Report;
use crate::model::address::Block;
use crate::node::device::{DeviceEvents, PathEvents};
use crate::node::docker::{DockerEvents, Probe};
use crate::node::gossip::PeerEvent;
use crate::node::naming::NameAnswer;
use crate::node::replica::StreamEvent;
use crate::node::state::writer::Written;
use crate::node::streams::RelayStreamEvent;
use crate::node::stun::StunServer;
use crate::path::mapping::Answer;
use crate::services::checks::Outcome;
use crate::services::registry::InstanceKey;

/// The maximum number of reports about containers that make one event: what comes in a burst is published once.
const MAX_BURST: usize = 256;

/// An event of one of the tasks.
pub(in crate::node) enum NodeEvent {
    /// The control stream has an event.
    Stream(StreamEvent),
    /// A write to disk ended.
    Written(Written),
    /// A conversation with a peer has an event.
    Peer(PeerEvent),
    /// The health check of a service came to a verdict.
    Verdict(InstanceKey, Outcome),
    /// The name of a service outside the mesh was looked up.
    Named(NameAnswer),
    /// The container engine reports.
    Engine(Vec<Report>),
    /// Probes of containers came to verdicts.
    Probes(Vec<(Probe, Outcome)>),
    /// The firewall is applied, or was looked at.
    Firewall,
    /// Somebody changed something on this machine, and what belongs to meshd has been put back.
    Host,
    /// The kernel has removed the tunnel device.
    DeviceGone,
    /// The tunnel has news of the paths to peers.
    Paths,
    /// The stream to a relay has an event.
    RelayStream(RelayStreamEvent),
    /// The coordinator answered that this block is leased to this node, or did not answer for a reason.
    Leased(Result<Block, String>),
    /// The router was asked for a port.
    Mapping(Answer),
    /// The router was asked for a hole in its firewall for IPv6.
    Pinhole(Answer),
    /// The STUN servers were looked up.
    StunServers(Vec<StunServer>),
}

/// Where the events of the tasks arrive.
pub(in crate::node) struct Events {
    pub(in crate::node) stream: mpsc::Receiver<StreamEvent>,
    pub(in crate::node) writes: mpsc::Receiver<Written>,
    pub(in crate::node) services: ServiceEvents,
    pub(in crate::node) docker: Option<DockerEvents>,
    pub(in crate::node) firewall: watch::Receiver<u64>,
    pub(in crate::node) host: watch::Receiver<u64>,
    pub(in crate::node) peers: mpsc::Receiver<PeerEvent>,
    pub(in crate::node) device: DeviceEvents,
    pub(in crate::node) paths: PathEvents,
    pub(in crate::node) relay_streams: mpsc::Receiver<RelayStreamEvent>,
    /// The answers of the coordinator to requests for this node's lease.
    pub(in crate::node) leases: mpsc::Receiver<Result<Block, String>>,
    pub(in crate::node) reach: ReachEvents,
}

/// What arrives about the services that are registered on this node.
pub(in crate::node) struct ServiceEvents {
    verdicts: mpsc::Receiver<(InstanceKey, Outcome)>,
    /// What the names of services outside the mesh were answered with.
    names: mpsc::Receiver<NameAnswer>,
}

impl ServiceEvents {
    pub(in crate::node) fn new(
        verdicts: mpsc::Receiver<(InstanceKey, Outcome)>,
        names: mpsc::Receiver<NameAnswer>,
    ) -> Self {
        Self { verdicts, names }
    }
}

/// What arrives about the addresses of this node.
pub(in crate::node) struct ReachEvents {
    /// What the router answered when it was asked for a port.
    pub(in crate::node) mappings: mpsc::Receiver<Answer>,
    /// What the router answered when it was asked for a hole in its firewall for IPv6.
    pub(in crate::node) pinholes: mpsc::Receiver<Answer>,
    /// The addresses of STUN servers.
    pub(in crate::node) stun_servers: mpsc::Receiver<Vec<StunServer>>,
}

impl Events {
    /// The next event. Of several events any may be the next one, so that none of the tasks can keep the events of the others
    /// back.
    pub(in crate::node) async fn next(&mut self) -> NodeEvent {
        tokio::select! {
            Some(event) = self.stream.recv() => NodeEvent::Stream(event),
            Some(written) = self.writes.recv() => NodeEvent::Written(written),
            Some(event) = self.peers.recv() => NodeEvent::Peer(event),
            Some((key, outcome)) = self.services.verdicts.recv() => NodeEvent::Verdict(key, outcome),
            Some(answer) = self.services.names.recv() => NodeEvent::Named(answer),
            event = next_of_containers(&mut self.docker) => event,
            Ok(()) = self.firewall.changed() => NodeEvent::Firewall,
            Ok(()) = self.host.changed() => NodeEvent::Host,
            () = self.device.gone() => NodeEvent::DeviceGone,
            () = self.paths.news() => NodeEvent::Paths,
            Some(event) = self.relay_streams.recv() => NodeEvent::RelayStream(event),
            Some(answer) = self.leases.recv() => NodeEvent::Leased(answer),
            Some(answer) = self.reach.mappings.recv() => NodeEvent::Mapping(answer),
            Some(answer) = self.reach.pinholes.recv() => NodeEvent::Pinhole(answer),
            Some(servers) = self.reach.stun_servers.recv() => NodeEvent::StunServers(servers),
        }
    }
}

async fn next_of_containers(events: &mut Option<DockerEvents>) -> NodeEvent {
    let Some(DockerEvents { reports, probes }) = events else {
        return std::future::pending().await;
    };
    let (mut reported, mut verdicts) = (Vec::new(), Vec::new());
    tokio::select! {
        1.. = reports.recv_many(&mut reported, MAX_BURST) => NodeEvent::Engine(reported),
        1.. = probes.recv_many(&mut verdicts, MAX_BURST) => NodeEvent::Probes(verdicts),
        else => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::containers::ContainerId;

    /// An event that is ready is not among so many draws with a probability below 2^-100.
    const MANY: usize = 200;

    /// The next event. The test must not hang if it has none.
    async fn next(events: &mut Events) -> NodeEvent {
        let limit = Duration::from_secs(10);
        timeout(limit, events.next()).await.expect("an event")
    }

    #[tokio::test]
    async fn a_flood_of_one_kind_of_event_does_not_keep_the_others_back() {
        let (stream_sender, stream) = mpsc::channel(2 * MANY);
        let (report_sender, reports) = mpsc::channel(2 * MANY * MAX_BURST);
        let (lease_sender, leases) = mpsc::channel(1);
        let (probe_sender, probes) = mpsc::channel(1);
        let (_writer, writes) = mpsc::channel(1);
        let (_checker, verdicts) = mpsc::channel(1);
        let (_firewall, firewall) = watch::channel(0);
        let (_host, host) = watch::channel(0);
        let (_gossip, peers) = mpsc::channel(1);
        let (_dialer, relay_streams) = mpsc::channel(1);
        let (device, _gone) = std::io::pipe().expect("a pipe");
        let (paths, _news) = std::io::pipe().expect("a pipe");
        let mut events = Events {
            stream,
            writes,
            services: ServiceEvents::new(verdicts, mpsc::channel(1).1),
            docker: Some(DockerEvents { reports, probes }),
            firewall,
            host,
            peers,
            device: DeviceEvents::watch(device.into()).expect("a descriptor"),
            paths: PathEvents::watch(paths.into()).expect("a descriptor"),
            relay_streams,
            leases,
            reach: ReachEvents {
                mappings: mpsc::channel(1).1,
                pinholes: mpsc::channel(1).1,
                stun_servers: mpsc::channel(1).1,
            },
        };
        for _ in 0..2 * MANY {
            stream_sender.try_send(StreamEvent::Alive).expect("room");
        }
        for _ in 0..2 * MANY * MAX_BURST {
            report_sender
                .try_send(Report::InventoryKnown)
                .expect("room");
        }
        let block = Block {
            v4: "10.210.1.0/24".parse().expect("a network"),
            v6: "fd00:1::/64".parse().expect("a network"),
        };
        lease_sender.try_send(Ok(block)).expect("room");
        let probe = Probe {
            id: ContainerId::parse("c1").expect("hexadecimal"),
            is_v6: false,
        };
        probe_sender.try_send((probe, Ok(()))).expect("room");
        let (mut has_lease, mut has_probe) = (false, false);
        for _ in 0..2 * MANY {
            match next(&mut events).await {
                NodeEvent::Leased(_) => has_lease = true,
                NodeEvent::Probes(_) => has_probe = true,
                _ => {}
            }
        }
        assert!(has_lease && has_probe);
    }
}
