//! A joined node: it passes each event to the part that handles it, and marks which other parts depend on that.
//!
//! After each event the agent calls [`JoinedNode::settle`], which brings the marked parts in step in one order. See
//! [`super::settle`].

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub(super) use self::calling::may_call;
pub(super) use self::events::{Events, NodeEvent, ReachEvents, ServiceEvents};
pub(super) use self::relaying::measured_relay;
pub(super) use self::routing::standing;
pub(super) use self::rows::{ask_rows, own_row};
use super::change_times::Stage;
use super::changes::ChangeRequest;
use super::connections::{Confirmation, Connections};
use super::device::Device;
use super::disk::Disk;
use super::gossip::PeerEvent;
use super::host::Ipv6;
use super::names::Names;
use super::own_records::OwnRecords;
use super::paths::Paths;
use super::replica::{self, Replica, StreamEvent};
use super::resolver::{NodeResolver, ResolverScope};
use super::settle::{self, Dirty};
use super::state::Identity;
use super::timers::{Timer, Timers};
use super::workloads::Workloads;
use crate::model::PublicKey;
use crate::os::clock;
use crate::protocol::api::ApiError;
use crate::records::RecordKey;
use crate::records::netmap::Netmap;
use crate::tunnel::{Denial, Direction};

mod calling;
mod events;
pub(super) mod guests;
mod mapping;
mod messages;
mod naming;
mod pinhole;
mod probing;
mod publishing;
mod relaying;
mod routing;
mod rows;
mod stages;
mod streaming;
mod stun;
mod waiting;
mod writes;

/// The interval at which the tunnel is asked whether old keys have expired. A new session is used only after that.
const KEYS_INTERVAL: Duration = Duration::from_millis(500);
/// The interval at which containers compare their deadlines with the clock.
const CONTAINERS_INTERVAL: Duration = Duration::from_millis(500);

/// A joined node.
pub(super) struct JoinedNode {
    pub(super) identity: Identity,
    /// The records, and what is offered, requested and sent to peers.
    pub(super) replica: Replica,
    /// The map of the mesh, as far as it is applied to the other parts.
    pub(super) netmap: Netmap,
    pub(super) device: Device,
    pub(super) paths: Paths,
    pub(super) names: Names,
    pub(super) resolver: NodeResolver,
    pub(super) workloads: Workloads,
    pub(super) connections: Connections,
    pub(super) disk: Disk,
    pub(super) own_records: OwnRecords,
    pub(super) dirty: Dirty,
}

impl JoinedNode {
    /// Brings everything in step for the first time.
    pub(super) fn begin(&mut self) {
        writes::write_again(self);
        self.mark_machine();
        self.settle();
        self.workloads.set_checks(&self.identity.block);
        for problem in self.workloads.registry.problems(&self.identity.block) {
            tracing::warn!(why = %problem.why, "{}", problem.what);
        }
    }

    /// Brings everything in step that is marked. The agent calls this after each event.
    pub(super) fn settle(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        settle::settle(&mut dirty, self);
        self.dirty = dirty;
        for turn in replica::take_link_turns(&mut self.replica) {
            self.disk.audit.note(&turn);
        }
        self.connections
            .poll_accepted(&self.replica, Instant::now());
    }

    /// Enters the deadlines of the parts into `timers`.
    pub(super) fn set_timers(&self, timers: &mut Timers, now: Instant) {
        let punch = self.device.reach.punching.poll_timeout();
        let streams = self.device.streams.poll_timeout();
        let stun = self.device.reach.stun.rounds.poll_timeout();
        let calls = calling::poll_timeout(self, now);
        let due = [self.paths.poll_timeout(), punch, streams, stun, calls];
        let paths = due.into_iter().flatten().min();
        timers.set(Timer::Paths, paths);
        let mapping = self.device.reach.mapping.state.poll_timeout();
        let pinhole = self.device.pinhole.state.poll_timeout();
        timers.set(Timer::Mapping, mapping.into_iter().chain(pinhole).min());
        timers.set(Timer::Replica, self.replica.poll_timeout());
        timers.set(Timer::Names, self.names.poll_timeout());
        timers.set(Timer::Policy, self.device.policy.poll_timeout());
        timers.set(Timer::Guests, self.device.guests.poll_timeout(now));
        let named = &self.workloads.registry.named;
        timers.set(Timer::Outside, named.poll_timeout(now));
        timers.set(Timer::Acceptance, self.connections.poll_timeout());
        timers.start(Timer::Keys, now + KEYS_INTERVAL);
        if self.workloads.docker.is_some() {
            timers.start(Timer::Containers, now + CONTAINERS_INTERVAL);
        }
    }

    /// A timer of one of the parts is due.
    pub(super) fn handle_timer(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Keys => writes::end_rotation(self, now),
            Timer::Paths => self.dirty.reach |= probing::poll_paths(self, now),
            Timer::Mapping => {
                mapping::poll(self, now);
                pinhole::poll(self, now);
            }
            Timer::Replica => self.replica.handle_time(clock::now()),
            Timer::Names => self.names.handle_time(now),
            Timer::Policy => self.dirty.firewall |= stages::enforce_policy(self),
            Timer::Guests => guests::poll(self, clock::now()),
            Timer::Containers => {
                if self.workloads.handle_time(now) {
                    self.containers_changed();
                }
            }
            Timer::Outside => naming::poll(self, now),
            // The first needs nothing but `settle`, and the others belong to the agent.
            Timer::Acceptance | Timer::Reconcile | Timer::Watchdog => {}
        }
    }

    /// This node's identity key.
    pub(super) fn id(&self) -> PublicKey {
        self.identity.keys.identity.public()
    }

    /// An event of one of the tasks. Returns a new identity if this node moves to another address block: then it has to be
    /// started again.
    ///
    /// # Errors
    /// The tunnel device was removed and cannot be made again.
    pub(super) async fn handle_event(
        &mut self,
        event: NodeEvent,
    ) -> Result<Option<Identity>, ApiError> {
        match event {
            NodeEvent::Stream(StreamEvent::Called { from, call }) => {
                calling::handle_call(self, from, &call, Instant::now());
            }
            NodeEvent::Stream(event) => self.handle_stream(event),
            NodeEvent::Written(written) => return Ok(writes::handle_written(self, written)),
            NodeEvent::Peer(event) => self.handle_peer_event(event),
            NodeEvent::Verdict(key, outcome) => {
                self.workloads.registry.set_health(&key, &outcome);
                self.dirty.own = true;
            }
            NodeEvent::Named(answer) => naming::handle_answer(self, answer, Instant::now()),
            NodeEvent::Engine(reports) => {
                if self.workloads.handle_engine(reports) {
                    self.containers_changed();
                }
            }
            NodeEvent::Probes(verdicts) => {
                if self.workloads.handle_probes(verdicts) {
                    self.containers_changed();
                }
            }
            NodeEvent::Firewall => {
                self.workloads.handle_firewall();
                self.note_local_denials();
                // An instance that is mapped now can be published, and a service address that is balanced now can be answered.
                self.dirty.reach |= self.names.set_balanced(self.workloads.balanced());
                self.dirty.own = true;
            }
            NodeEvent::Host => {
                // For example, the machine may no longer forward, or a bridge of containers may have got a port to another
                // machine.
                self.workloads.firewall.request_check();
                self.mark_machine();
            }
            NodeEvent::DeviceGone => {
                if self.device.restore().await? {
                    self.configure_device();
                    self.reconcile().await;
                }
            }
            NodeEvent::Mapping(answer) => mapping::handle_answer(self, answer, Instant::now()),
            NodeEvent::Pinhole(answer) => pinhole::handle_answer(self, answer, Instant::now()),
            NodeEvent::StunServers(servers) => stun::handle_servers(self, servers, Instant::now()),
            NodeEvent::Paths => probing::handle_news(self, Instant::now()),
            NodeEvent::RelayStream(event) => {
                streaming::handle_event(self, event, Instant::now());
                probing::poll_steered(self, Instant::now());
            }
            NodeEvent::Leased(answer) => {
                if let Some(block) = self.replica.handle_leased(answer) {
                    self.change(ChangeRequest::Block(block));
                }
            }
        }
        Ok(None)
    }

    /// An event of the control stream.
    fn handle_stream(&mut self, event: StreamEvent) {
        let now = clock::now();
        let times = &mut self.workloads.times;
        let mut has_records = false;
        match &event {
            StreamEvent::Changes { records, .. } => has_records = !records.is_empty(),
            StreamEvent::Published { sequence, .. } => {
                times.handle_stored(*sequence, now.monotonic);
            }
            StreamEvent::Closed { .. } => times.handle_closed(),
            _ => {}
        }
        self.replica.handle_stream(event, now);
        if has_records {
            times.note(Stage::Verify, now.monotonic.elapsed());
        }
    }

    /// An event of a conversation with a peer.
    fn handle_peer_event(&mut self, event: PeerEvent) {
        let now = clock::now();
        match event {
            PeerEvent::Request(request, reply) => {
                if let Some(answer) = self.replica.handle_request(request, now) {
                    let _ = reply.send(answer);
                }
            }
            PeerEvent::Ended(peer, succeeded) => {
                self.replica
                    .handle_conversation_ended(&peer, succeeded, now);
            }
        }
    }

    fn containers_changed(&mut self) {
        self.follow_bridges();
        self.dirty.firewall = true;
        self.dirty.own |= self.workloads.has_other_offers();
        if let Some(docker) = &self.workloads.docker {
            self.disk.write_leases(docker);
        }
    }

    /// Compares everything on this machine with what it is to be: the addresses, the resolvers, the firewall. The agent calls
    /// this every few seconds.
    pub(super) async fn reconcile(&mut self) {
        self.disk.write_service_addresses(&self.names);
        self.disk.write_calls(&self.device.asked.calls);
        self.disk.write_policy(&self.device.policy);
        if self.device.check_namespace().await {
            self.configure_device();
        }
        writes::write_again(self);
        self.mark_machine();
    }

    /// Adds to the refusals what the firewall denied between addresses of this node.
    pub(super) fn note_local_denials(&self) {
        for denied in self.workloads.firewall.take_denials() {
            let denial = Denial {
                from: denied.from,
                to: denied.to,
                asked: denied.asked,
                direction: Direction::Outgoing,
                is_tried: false,
            };
            let filter = self.device.tunnel.filter();
            filter.note_local(denial, denied.count, denied.age);
        }
    }

    /// Something on this machine may have changed: addresses, bridges, resolvers.
    fn mark_machine(&mut self) {
        self.follow_bridges();
        let has_ipv6 = self.device.network.ipv6() == Ipv6::On;
        self.resolver.listen(&self.identity.block, has_ipv6);
        self.dirty.interfaces = true;
        self.dirty.firewall = true;
        self.dirty.own = true;
    }

    /// Lets those ask for names that are on the engine's bridges. The addresses of this machine depend on the bridges.
    fn follow_bridges(&mut self) {
        let outer = self.device.network.external_bridges();
        if self.workloads.follow_bridges(&outer) {
            self.dirty.interfaces = true;
            self.dirty.own = true;
        }
    }

    /// Renews what belongs to the index of the device, after it was made again or came back: the settings of systemd-resolved and
    /// the listener of the peers.
    fn configure_device(&mut self) {
        if let Some(scope) = self.scope() {
            self.resolver
                .configure_device(self.device.tunnel.index(), &scope);
        }
        self.connections.gossip.listen_again();
    }

    /// What the resolver has to know of the mesh.
    fn scope(&self) -> Option<ResolverScope> {
        let mesh = self.replica.ledger().mesh()?;
        Some(ResolverScope {
            addresses: mesh.addresses,
            domain: mesh.domain.clone(),
            block: self.identity.block,
        })
    }

    /// Makes a change as soon as it is on disk, and answers it once the coordinator has it.
    pub(super) fn change(&mut self, request: ChangeRequest) {
        writes::change(self, request);
    }

    /// Marks the records of this node. Returns an event for what becomes of the record with `key`, which is dropped if no coordinator
    /// is connected.
    fn publish_soon(&mut self, key: RecordKey) -> oneshot::Receiver<Confirmation> {
        self.dirty.own = true;
        self.connections.when_published(key)
    }

    /// Takes back what other programs were told, and what was put on the machine.
    pub(super) async fn stop(mut self: Box<Self>, mut events: Events) {
        writes::flush(&mut self, &mut events.writes).await;
        let device = &mut self.device;
        tokio::join!(device.reach.mapping.stop(), device.pinhole.stop());
        self.resolver.stop().await;
        self.workloads.stop().await;
        self.disk.stop().await;
        // This is the last message, since the peers expect nothing after it.
        relaying::say_bye(&self.identity, &self.netmap, &self.device.tunnel);
    }
}
