//! What paths there are between two nodes, by the kinds of their routers and by what is cut.

use std::collections::BTreeSet;

use super::nat::Kind;
use super::plan::{Fault, Plan};

/// What is known of the direct path between two nodes, without asking their programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direct {
    /// There is one.
    Possible,
    Impossible,
    /// Whether there is one depends on the order of events.
    Unclear,
}

/// The state of the network.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    pub(crate) killed: BTreeSet<usize>,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self {
            cuts: BTreeSet::new(),
            killed: BTreeSet::new(),
        }
    }

    pub(crate) fn handle_fault(&mut self, fault: Fault) {
        match fault {
            Fault::Cut(one, other) => self.cuts.extend([(one, other), (other, one)]),
            Fault::CutOneWay(one, other) => self.cuts.extend([(one, other)]),
            Fault::Heal => self.cuts.clear(),
            Fault::Rebind(_) => {}
            Fault::Kill(node) => {
                self.killed.insert(node);
            }
        }
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cuts.contains(&(one, other)) || self.cuts.contains(&(other, one))
    }

    /// Whether some node relays for these two.
    fn has_relay(&self, plan: &Plan, one: usize, other: usize) -> bool {
        (0..plan.homes.len()).any(|relay| {
            let site = plan.homes[relay];
            let reaches = |node: usize| !self.is_cut(plan.homes[node], site);
            relay != one
                && relay != other
                && plan.sites[site].kind == Kind::Public
                && !self.killed.contains(&relay)
                && reaches(one)
                && reaches(other)
        })
    }

    /// Whether packets pass between two nodes that use the paths which they may find.
    pub(crate) fn has_path(&self, plan: &Plan, one: usize, other: usize) -> bool {
        let kind = |node: usize| plan.sites[plan.homes[node]].kind;
        let is_dead = |node: usize| self.killed.contains(&node);
        if is_dead(one) || is_dead(other) {
            return false;
        }
        let is_local = plan.homes[one] == plan.homes[other];
        if is_local {
            return true;
        }
        if kind(one) == Kind::UdpBlocked || kind(other) == Kind::UdpBlocked {
            return false;
        }
        let is_cut = self.is_cut(plan.homes[one], plan.homes[other]);
        let is_open = [one, other].map(kind).contains(&Kind::Public) && !is_cut;
        is_open || self.has_relay(plan, one, other)
    }

    pub(crate) fn direct(&self, plan: &Plan, one: usize, other: usize) -> Direct {
        if plan.homes[one] == plan.homes[other] {
            return Direct::Possible;
        }
        let sites = [one, other].map(|node| &plan.sites[plan.homes[node]]);
        let kinds = sites.map(|site| site.kind);
        let is_cut = self.is_cut(plan.homes[one], plan.homes[other]);
        if is_cut || kinds.contains(&Kind::UdpBlocked) {
            return Direct::Impossible;
        }
        if kinds.contains(&Kind::Public) {
            return Direct::Possible;
        }
        // Two nodes agree through a relay.
        if !self.has_relay(plan, one, other) {
            return Direct::Unclear;
        }
        // Of two hosts with one port, connection tracking keeps it for the first that sends to a peer.
        let is_shared = [one, other].iter().any(|node| {
            let home = plan.homes[*node];
            let kind = plan.sites[home].kind;
            let count = plan.homes.iter().filter(|other| **other == home).count();
            matches!(kind, Kind::Plain | Kind::PlainOpen) && count > 1
        });
        if is_shared {
            return Direct::Unclear;
        }
        let [left, right] = sites;
        match (left.kind.has_one_port(), right.kind.has_one_port()) {
            (true, true) => Direct::Possible,
            (false, false) => Direct::Impossible,
            (true, false) => from_any_port(left.kind, left.has_carrier),
            (false, true) => from_any_port(right.kind, right.has_carrier),
        }
    }
}

/// Whether a peer reaches a host whatever port the peer's router gives it.
fn from_any_port(kind: Kind, has_carrier: bool) -> Direct {
    let is_lax = matches!(kind, Kind::Cone | Kind::AddressRestricted);
    if is_lax && !has_carrier {
        Direct::Possible
    } else {
        Direct::Impossible
    }
}
