//! The parts of a joined node that [`settle`](crate::node::settle) brings in step.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::{JoinedNode, guests, mapping, publishing, relaying, routing, streaming, writes};
use crate::dns::Replaced;
use crate::model::address::is_routable;
use crate::model::{NodeAddress, Path, PublicKey};
use crate::node::change_times::Stage;
use crate::node::host;
use crate::node::names::NamesInput;
use crate::node::paths::{PathPeer, Paths, SteeredPeer};
use crate::node::replica::Changes;
use crate::node::settle::Stages;
use crate::node::transitions::members;
use crate::os::clock;
use crate::path::link::Evidence;
use crate::path::links::Candidate;
use crate::path::watch::keepalive_seconds;
use crate::records::kinds::Service;
use crate::records::netmap::{Member, Netmap};
use crate::records::subjects::{self, Moved};
use crate::tunnel::PeerConfig;

impl Stages for JoinedNode {
    /// The ids of the services, each with its record before.
    type Replaced = Vec<(String, Option<Service>)>;

    fn follow_ledger(&mut self) -> Changes {
        self.connections
            .carry_out_all(&mut self.replica, &self.disk.writer);
        let mut changes = self.replica.take_changes();
        if let Some(name) = changes.name.take() {
            writes::follow_name(self, name);
            // Instances are called after their node.
            changes.own = true;
        }
        changes
    }

    fn apply_members(&mut self) -> bool {
        let now = Instant::now();
        let changes = self.device.policy.follow(self.replica.ledger());
        let rules = self.device.policy.rules().clone();
        let netmap = self.replica.ledger().netmap_under(rules);
        let before = std::mem::replace(&mut self.netmap, netmap);
        // The policy is set before the peers, so that it has the addresses of a new peer when the first packet of the peer arrives. Another
        // policy waits neither for the rest between compilations nor for the log.
        let concerns_firewall = if !changes.is_empty() || self.device.policy.is_uncompiled() {
            enforce_policy(self)
        } else {
            subjects::changed(&before, &self.netmap)
                && follow_subjects(self, |now| Moved::between(&before, now))
        };
        for change in &changes {
            self.disk.audit.note(change);
        }
        if !changes.is_empty() {
            self.disk.write_policy(&self.device.policy);
        }
        let concerns_firewall = guests::follow(self, clock::now()) || concerns_firewall;
        let id = self.id();
        for change in members::changes(&before, &self.netmap, &id, self.replica.ledger()) {
            self.disk.audit.note(&change);
        }
        // A member that claims the key of a guest has no tunnel here, and chooses no path for the guest.
        let guests = &self.device.guests;
        let is_other = |member: &&Member| member.id != id && !guests.lets_in(&member.wireguard_key);
        let others: Vec<&Member> = self.netmap.members.values().filter(is_other).collect();
        for member in &others {
            if let Some(before) = before.members.get(&member.id)
                && before.wireguard_key != member.wireguard_key
            {
                self.device.tunnel.keys().replace_key(
                    &before.wireguard_key.0,
                    member.wireguard_key.0,
                    now,
                );
            }
        }
        let serving: BTreeSet<PublicKey> = self.netmap.services.values().map(|s| s.node).collect();
        // Those that route are watched as closely as those that serve.
        let routers: BTreeSet<PublicKey> = self.netmap.routes.values().flatten().copied().collect();
        let paths = others.iter().map(|member| PathPeer {
            id: member.id,
            endpoints: member.endpoints.clone(),
            serves: serving.contains(&member.id) || routers.contains(&member.id),
            steered: member.speaks_paths.then(|| steered(member)),
        });
        self.paths.set_peers(paths.collect(), now);
        let is_duplicate = self.replica.link().is_duplicate();
        let peers = others.iter().filter(|_| !is_duplicate);
        let peers = peers.map(|member| PeerConfig {
            public_key: member.wireguard_key.0,
            preshared_key: None,
            endpoint: self.paths.watch().endpoint(&member.id),
            allowed_ips: vec![IpNet::V4(member.block.v4), IpNet::V6(member.block.v6)],
            persistent_keepalive: Some(keepalive_seconds(&member.id)),
        });
        let block = (!is_duplicate).then_some(&self.identity.block);
        let guests = block.map_or_else(Vec::new, |block| self.device.guests.peers(block));
        let keys = self.device.tunnel.keys();
        keys.set_peers_and_guests(peers.collect(), guests);
        let addresses = others.iter().map(|m| (m.block.node_v4(), m.id));
        self.connections.gossip.set_peers(addresses.collect());
        let ways = others.iter().map(|m| (m.name.to_string(), m.addresses()));
        let ways = ways.collect();
        self.device.network.set(|wanted| wanted.peers = ways);
        streaming::set_members(self);
        concerns_firewall
    }

    fn renew_services(&mut self, ids: &BTreeSet<String>) -> (Self::Replaced, bool) {
        let ledger = self.replica.ledger();
        let (mut replaced, mut concerns_members) = (Vec::new(), false);
        for id in ids {
            let Some(node) = ledger.service(id).map(|service| service.node) else {
                concerns_members = true;
                continue;
            };
            let served = self.netmap.serves(&node);
            replaced.push((id.clone(), ledger.renew(&mut self.netmap, id)));
            // Nodes that serve are watched more closely.
            concerns_members |= served != self.netmap.serves(&node);
        }
        (replaced, concerns_members)
    }

    fn apply_policy(&mut self, replaced: &Self::Replaced) -> bool {
        let differs = |(id, before): &(String, Option<Service>)| {
            subjects::differ(before.as_ref(), self.netmap.services.get(id))
        };
        replaced.iter().any(differs) && follow_subjects(self, |now| Moved::by(replaced, now))
    }

    fn rebuild_zone(&mut self) -> bool {
        let now = Instant::now();
        let input = names_input(&self.netmap, &self.paths);
        let concerns_firewall = self.names.rebuild(&input, now);
        self.workloads.times.note(Stage::Zone, now.elapsed());
        // The ways to networks depend on the same members and paths.
        routing::follow(self) || concerns_firewall
    }

    fn replace_in_zone(&mut self, replaced: Self::Replaced) -> bool {
        let now = Instant::now();
        let replaced: Vec<Replaced<'_>> = replaced
            .iter()
            .map(|(id, before)| Replaced {
                before: before.as_ref(),
                now: self.netmap.services.get(id),
            })
            .collect();
        let input = names_input(&self.netmap, &self.paths);
        let concerns_firewall = self.names.replace(&input, &replaced, now);
        self.workloads.times.note(Stage::Zone, now.elapsed());
        concerns_firewall
    }

    fn list_interfaces(&mut self) {
        // Without descriptors left, the system returns an error. That is no change of the network.
        let interfaces = host::interfaces().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the addresses of this machine; those of the last list are kept");
            self.device.interfaces.clone()
        });
        let own = self.device.tunnel.interface();
        let listed = routable(&interfaces, own);
        if listed != routable(&self.device.interfaces, own) {
            let now = Instant::now();
            relaying::say_roaming(self, &listed);
            self.paths.handle_network_changed(now);
            self.device.reach.handle_network_changed(now);
            self.device.pinhole.state.handle_network_changed(now);
            self.device.streams.handle_network_changed(now);
            self.device.asked.calls.punching.handle_network_change();
        }
        self.device.interfaces = interfaces;
        if let Some(mesh) = self.replica.ledger().mesh() {
            let (block, interfaces) = (&self.identity.block, &self.device.interfaces);
            self.workloads.set_machine(mesh, block, interfaces);
        }
        mapping::handle_listed(self, Instant::now());
        routing::follow(self);
        self.resolver.set_upstreams(&self.device.interfaces);
        if let Some(scope) = self.scope() {
            let (bridges, interfaces) = (self.workloads.bridges(), &self.device.interfaces);
            self.resolver.set_allowed(&scope, bridges, interfaces);
        }
    }

    fn apply_firewall(&mut self) {
        if let Some(mesh) = self.replica.ledger().mesh() {
            let service_addresses = self.names.zone().load().service_addresses();
            self.workloads.apply_firewall(
                &mesh.addresses,
                &self.identity.block,
                self.device.network.ipv6(),
                (service_addresses, self.device.routing.own()),
                self.device.policy.table(),
            );
        }
    }

    fn publish_own(&mut self, has_new_name: bool) {
        publishing::publish_own(self, has_new_name);
    }
}

/// Compiles the policy for the map of the mesh, and sets it in the tunnel. Returns whether something is denied, or was before.
pub(super) fn enforce_policy(node: &mut JoinedNode) -> bool {
    let policy = &mut node.device.policy;
    let was_open = policy.table().allows_everything();
    let began = Instant::now();
    policy.compile(&node.netmap);
    policy.handle_compiled(began, Instant::now());
    let is_open = policy.table().allows_everything();
    set_policy(node);
    !(was_open && is_open)
}

/// Compiles the policy for other subjects, or defers that if the last compilation was just before. `moved` returns the addresses that
/// moved. Returns whether that concerns the firewall.
fn follow_subjects(node: &mut JoinedNode, moved: impl FnOnce(&Netmap) -> Moved) -> bool {
    let policy = &mut node.device.policy;
    if policy.may_compile(&node.netmap, Instant::now()) {
        return enforce_policy(node);
    }
    let closes_more = policy.defer(moved(&node.netmap), &node.netmap);
    if closes_more {
        set_policy(node);
    }
    closes_more
}

fn set_policy(node: &JoinedNode) {
    let policy = &node.device.policy;
    let (table, tried) = (policy.table(), policy.tried_table());
    let filter = node.device.tunnel.filter();
    filter.set_policy(Arc::clone(table), tried.cloned());
}

/// The paths that the record of a member offers.
fn steered(member: &Member) -> SteeredPeer {
    let endpoints = member.endpoints.iter();
    let of = |endpoint: &SocketAddr, evidence| Candidate {
        path: Path::Direct(*endpoint),
        evidence,
    };
    let endpoints = endpoints.map(|endpoint| {
        let is_mapped = member.at_router.mapped.contains(endpoint);
        let evidence = if is_mapped {
            Evidence::Mapped
        } else {
            Evidence::Host
        };
        of(endpoint, evidence)
    });
    let observed = member.at_router.observed.iter();
    let observed = observed.map(|endpoint| of(endpoint, Evidence::Observed));
    let direct = endpoints.chain(observed);
    SteeredPeer {
        address: NodeAddress(member.block.node_v4()),
        direct: direct.collect(),
        relays: member.relays.clone(),
    }
}

/// The addresses of this machine that others may reach.
fn routable(interfaces: &[host::Interface], own: &str) -> BTreeSet<IpAddr> {
    let others = interfaces.iter().filter(|i| i.name != own);
    let addresses = others.map(|interface| interface.address);
    addresses.filter(|address| is_routable(*address)).collect()
}

/// The input of the zone.
fn names_input<'a>(netmap: &'a Netmap, paths: &'a Paths) -> NamesInput<'a> {
    NamesInput {
        netmap,
        unreachable: paths.unreachable(),
        groups: paths.distances().groups(),
    }
}
