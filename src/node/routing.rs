//! The networks outside the mesh to which members route: by which member this node reaches each of them, and which it reaches without
//! the mesh. Pure.
//!
//! A network is reached by the nearest member that answers. While two of them are equally near, the one in use stays in use. A network
//! that this machine is in itself, or that would take datagrams of the tunnel away from their way to a peer, is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::transitions::routes::RouteChange;
use crate::model::address::is_public;
use crate::model::text::listed;
use crate::model::{Label, PublicKey, prefix};
use crate::protocol::local::{Problem, RouteRow, RouteState};
use crate::records::netmap::{Member, Netmap, permitted};

/// The maximum number of networks that a problem names.
const MAX_NAMED: usize = 8;

/// What is known of the way to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Standing {
    /// Whether it does not answer.
    pub is_silent: bool,
    /// How far it is: members with equal numbers are equally near, and a smaller number is nearer.
    pub group: u8,
}

/// Why this node does not send packets for a network to the members that route to it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hindrance {
    /// This machine is in the network, by the interface with this name.
    OwnLan(String),
    /// The member with this name is reached at an address in the network, so its datagrams would be sent through the tunnel.
    Endpoint(Label),
}

/// What the ways to networks depend on besides the map of the mesh.
pub(super) struct RoutingInput<'a> {
    pub own: PublicKey,
    /// The interfaces of this machine other than the tunnel device, each with the network that it is in.
    pub interfaces: &'a [(String, IpNet)],
    /// What is known of the way to a member.
    pub standing: &'a dyn Fn(&PublicKey) -> Standing,
}

/// The networks outside the mesh, as this node reaches them.
#[derive(Debug, Default)]
pub(super) struct Routing {
    /// The networks to which the configuration offers to route.
    offered: Vec<IpNet>,
    /// The networks to which this node routes for others.
    own: BTreeSet<Ipv4Net>,
    /// The member by which each network is reached.
    chosen: BTreeMap<Ipv4Net, PublicKey>,
    hindered: BTreeMap<Ipv4Net, Hindrance>,
    /// The changes that were not taken yet.
    changes: Vec<RouteChange>,
}

impl Routing {
    /// This node offers to route to these networks.
    pub(super) fn new(offered: Vec<IpNet>) -> Self {
        Self {
            offered,
            ..Self::default()
        }
    }

    /// The networks that this node offers in its record.
    pub(super) fn offered(&self) -> &[IpNet] {
        &self.offered
    }

    /// The networks to which this node routes for others, by the policy.
    pub(super) fn own(&self) -> &BTreeSet<Ipv4Net> {
        &self.own
    }

    /// The member by which each network is reached.
    pub(super) fn chosen(&self) -> &BTreeMap<Ipv4Net, PublicKey> {
        &self.chosen
    }

    /// The networks as the tunnel is to know them: each with the member by which it is reached, and without the networks in it that this
    /// machine is in or routes to itself. The kernel never sends packets to those into the tunnel, so the member has none to send from
    /// there, and could only pretend to be a host of them.
    pub(super) fn through_tunnel(
        &self,
        interfaces: &[(String, IpNet)],
    ) -> Vec<(Ipv4Net, PublicKey)> {
        let interfaces = interfaces.iter().filter_map(|(_, net)| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        });
        let near: Vec<Ipv4Net> = interfaces.chain(self.own.iter().copied()).collect();
        let parts = self.chosen.iter().flat_map(|(network, id)| {
            let within = near.iter().filter(|net| network.contains(*net));
            let within: Vec<Ipv4Net> = within.copied().collect();
            let parts = prefix::without(*network, &within).into_iter();
            parts.map(move |part| (part, *id))
        });
        parts.collect()
    }

    /// Whether there are no networks, so that nothing depends on the ways to members.
    pub(super) fn is_idle(&self, netmap: &Netmap) -> bool {
        let has_none = self.chosen.is_empty() && self.own.is_empty() && self.hindered.is_empty();
        netmap.routes.is_empty() && has_none
    }

    /// Whether each network is still reached by the right member, if only the ways to members changed.
    pub(super) fn is_current(
        &self,
        netmap: &Netmap,
        standing: impl Fn(&PublicKey) -> Standing,
    ) -> bool {
        self.chosen.iter().all(|(network, current)| {
            let gateways = netmap.routes.get(network).into_iter().flatten();
            let gateways = gateways.map(|id| (*id, standing(id)));
            choose(gateways, Some(current)) == Some(*current)
        })
    }

    /// Follows the map of the mesh and the ways to its members. Returns whether anything changed.
    pub(super) fn follow(&mut self, netmap: &Netmap, input: &RoutingInput<'_>) -> bool {
        let own: BTreeSet<Ipv4Net> = netmap.routes_of(&input.own).collect();
        let mut hindered = BTreeMap::new();
        let mut chosen = BTreeMap::new();
        for (network, gateways) in &netmap.routes {
            if own.contains(network) {
                continue;
            }
            if let Some(hindrance) = hindrance(*network, netmap, input) {
                hindered.insert(*network, hindrance);
                continue;
            }
            let current = self.chosen.get(network);
            let gateways = gateways.iter().map(|id| (*id, (input.standing)(id)));
            if let Some(gateway) = choose(gateways, current) {
                chosen.insert(*network, gateway);
            }
        }
        let is_changed = own != self.own || chosen != self.chosen;
        self.note_changes(&chosen, netmap);
        (self.own, self.chosen, self.hindered) = (own, chosen, hindered);
        is_changed
    }

    fn note_changes(&mut self, chosen: &BTreeMap<Ipv4Net, PublicKey>, netmap: &Netmap) {
        let name = |id: &PublicKey| netmap.members.get(id).map(|member| member.name.clone());
        let networks: BTreeSet<Ipv4Net> =
            self.chosen.keys().chain(chosen.keys()).copied().collect();
        for network in networks {
            let (before, now) = (self.chosen.get(&network), chosen.get(&network));
            if before != now {
                self.changes.push(RouteChange {
                    network,
                    by: now.and_then(name),
                });
            }
        }
    }

    /// The changes of ways since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<RouteChange> {
        std::mem::take(&mut self.changes)
    }

    /// The networks for users. `standing` is what is known of the way to a member.
    pub(super) fn rows(
        &self,
        netmap: &Netmap,
        own: &PublicKey,
        standing: impl Fn(&PublicKey) -> Standing,
    ) -> Vec<RouteRow> {
        let mut rows = Vec::new();
        for (network, gateways) in &netmap.routes {
            for id in gateways {
                let Some(member) = netmap.members.get(id) else {
                    continue;
                };
                let state = if id == own {
                    RouteState::Own
                } else if self.own.contains(network) || self.hindered.contains_key(network) {
                    RouteState::NotUsed
                } else if standing(id).is_silent {
                    RouteState::Unreachable
                } else if self.chosen.get(network) == Some(id) {
                    RouteState::InUse
                } else {
                    RouteState::Standby
                };
                rows.push(RouteRow {
                    network: *network,
                    node: member.name.clone(),
                    state,
                });
            }
        }
        rows
    }

    /// The problems, with remedies: offers that the policy does not permit, and networks that are left out here. `name` is the name of
    /// this node.
    pub(super) fn problems(&self, netmap: &Netmap, name: &Label) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.unpermitted(netmap, name).into_iter().collect();
        problems.extend(self.hindered.iter().map(|(network, hindrance)| {
            let what = format!("this node does not reach {network} through the mesh");
            match hindrance {
                Hindrance::OwnLan(interface) => Problem {
                    what,
                    why: format!(
                        "this machine is in that network itself, by its interface {interface}, and reaches it without the mesh"
                    ),
                    fix: "nothing, if it is the same network; otherwise give one of the two networks other addresses".into(),
                },
                Hindrance::Endpoint(member) => Problem {
                    what,
                    why: format!(
                        "{member} is reached at an address in that network, so the packets of the tunnel to {member} would go into the tunnel"
                    ),
                    fix: format!(
                        "permit a network without the addresses of {member} with `[[route]]` in the policy"
                    ),
                },
            }
        }));
        problems
    }

    /// The problem of networks that this node offers without permission.
    fn unpermitted(&self, netmap: &Netmap, name: &Label) -> Option<Problem> {
        let mesh = netmap.mesh.as_ref()?;
        let is_permitted = |offer: &IpNet| {
            let policy = netmap.rules.policy();
            let permissions = policy.into_iter().flat_map(|policy| policy.routes_of(name));
            !permitted(&[*offer], permissions, &mesh.addresses).is_empty()
        };
        let refused: Vec<&IpNet> = self.offered.iter().filter(|o| !is_permitted(o)).collect();
        let first = refused.first()?;
        Some(Problem {
            what: format!(
                "this node offers to route to {}, and no node of the mesh sends packets there",
                listed(&refused, MAX_NAMED)
            ),
            why: "the policy of the mesh does not permit it".into(),
            fix: format!(
                "add `[[route]] node = \"{name}\" prefix = \"{first}\"` to the policy and apply it with `meshctl policy apply`, or remove the network from [route] advertise in meshd.toml"
            ),
        })
    }
}

/// The member by which a network is reached: one that answers, the nearest of them, and of equally near ones the one in use.
fn choose(
    gateways: impl Iterator<Item = (PublicKey, Standing)>,
    current: Option<&PublicKey>,
) -> Option<PublicKey> {
    let rank = |(id, standing): &(PublicKey, Standing)| (*standing, Some(id) != current, *id);
    gateways.min_by_key(rank).map(|(id, _)| id)
}

/// Why this node does not send packets for `network` into the tunnel, if there is a reason.
fn hindrance(network: Ipv4Net, netmap: &Netmap, input: &RoutingInput<'_>) -> Option<Hindrance> {
    let net = IpNet::V4(network);
    // If the network is larger than the one of the interface, the kernel prefers the interface for its own part.
    let mut interfaces = input.interfaces.iter();
    if let Some((name, _)) = interfaces.find(|(_, own)| own.contains(&net)) {
        return Some(Hindrance::OwnLan(name.clone()));
    }
    let others = netmap.members.values();
    let mut others = others.filter(|member| member.id != input.own);
    let member = others.find(|member| takes_endpoints(network, member))?;
    Some(Hindrance::Endpoint(member.name.clone()))
}

/// Whether a member would not be reached any more if packets to `network` went into the tunnel. Private addresses of a member that has
/// others too, or that others saw at a router, are those of its local network: from there it is not reached anyway.
fn takes_endpoints(network: Ipv4Net, member: &Member) -> bool {
    let is_in =
        |endpoint: &SocketAddr| matches!(endpoint.ip(), IpAddr::V4(ip) if network.contains(&ip));
    let endpoints = member.endpoints.iter().chain(&member.at_router.observed);
    let mut taken = endpoints.clone().filter(|endpoint| is_in(endpoint));
    let is_public_taken = taken.any(|endpoint| is_public(endpoint.ip()));
    let mut others = endpoints.clone().filter(|endpoint| !is_in(endpoint));
    let is_all = endpoints.count() > 0 && others.next().is_none();
    is_all || is_public_taken
}

#[cfg(test)]
mod tests;
