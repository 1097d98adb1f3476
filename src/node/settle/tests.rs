//! A node that only notes which of its parts is called.

use super::*;
use crate::model::PublicKey;

#[derive(Default)]
struct Noted {
    calls: Vec<String>,
    /// What the ledger returns, one value for each call.
    changes: Vec<Changes>,
    /// What changes in the ledger with the next publication.
    published: Changes,
    /// Whether a change of services is one of members, too.
    concerns_members: bool,
    concerns_firewall: bool,
    /// Whether the policy that is enforced changes.
    changes_policy: bool,
}

impl Noted {
    fn note(&mut self, call: &str) {
        self.calls.push(call.to_owned());
    }

    /// Settles, and returns the calls.
    fn settle(&mut self, dirty: &mut Dirty) -> Vec<String> {
        settle(dirty, self);
        std::mem::take(&mut self.calls)
    }
}

impl Stages for Noted {
    type Replaced = Vec<String>;

    fn follow_ledger(&mut self) -> Changes {
        self.note("ledger");
        self.changes.pop().unwrap_or_default()
    }

    fn apply_members(&mut self) -> bool {
        self.note("members");
        self.changes_policy
    }

    fn renew_services(&mut self, ids: &BTreeSet<String>) -> (Vec<String>, bool) {
        self.note("services");
        let names = ids.iter().filter_map(|id| id.rsplit('/').next());
        (names.map(str::to_owned).collect(), self.concerns_members)
    }

    fn apply_policy(&mut self, _: &Vec<String>) -> bool {
        self.note("policy");
        self.changes_policy
    }

    fn rebuild_zone(&mut self) -> bool {
        self.note("zone");
        self.concerns_firewall
    }

    fn replace_in_zone(&mut self, replaced: Vec<String>) -> bool {
        self.note(&format!("zone {}", replaced.join(" ")));
        self.concerns_firewall
    }

    fn list_interfaces(&mut self) {
        self.note("interfaces");
    }

    fn apply_firewall(&mut self) {
        self.note("firewall");
    }

    fn publish_own(&mut self, has_new_name: bool) {
        self.note(if has_new_name { "own with name" } else { "own" });
        let published = std::mem::take(&mut self.published);
        self.changes.push(published);
    }
}

/// The record of a service of one node.
fn service(name: &str) -> RecordKey {
    RecordKey::parse("service", &format!("{}/{name}", PublicKey([1; 32])))
}

fn records(records: &[RecordKey]) -> Changes {
    Changes {
        records: records.to_vec(),
        ..Changes::default()
    }
}

#[test]
fn all_parts_are_brought_in_step_in_the_one_order() {
    let mut node = Noted::default();
    let mut dirty = Dirty::all();
    assert_eq!(
        node.settle(&mut dirty),
        [
            "ledger",
            "members",
            "zone",
            "interfaces",
            "firewall",
            "own",
            "ledger"
        ]
    );
    assert_eq!(dirty, Dirty::default());
    assert_eq!(node.settle(&mut dirty), ["ledger"]);
}

#[test]
fn a_change_of_services_alone_costs_only_these_services() {
    let mut node = Noted {
        changes: vec![records(&[service("b"), service("a")])],
        ..Noted::default()
    };
    let mut dirty = Dirty::default();
    assert_eq!(
        node.settle(&mut dirty),
        ["ledger", "services", "policy", "zone a b"]
    );
    // Services in the zone from which the firewall balances connections.
    node.changes = vec![records(&[service("a")])];
    node.concerns_firewall = true;
    assert_eq!(
        node.settle(&mut dirty),
        ["ledger", "services", "policy", "zone a", "firewall"]
    );
    // The first service of a node: the node is watched more closely from now on.
    node.changes = vec![records(&[service("a")])];
    node.concerns_members = true;
    assert_eq!(
        node.settle(&mut dirty),
        [
            "ledger", "services", "policy", "members", "zone", "firewall"
        ]
    );
}

#[test]
fn the_first_service_of_a_node_changes_what_the_policy_is_compiled_to() {
    let mut node = Noted {
        changes: vec![records(&[service("a")])],
        concerns_members: true,
        changes_policy: true,
        ..Noted::default()
    };
    // The services are in the map of the mesh already when members are applied, which therefore finds no difference.
    assert_eq!(
        node.settle(&mut Dirty::default()),
        [
            "ledger", "services", "policy", "members", "zone", "firewall"
        ]
    );
}

#[test]
fn a_change_of_the_policy_is_applied_to_the_tunnel_before_the_zone_and_to_the_firewall_after_it() {
    let mut node = Noted {
        changes: vec![records(&[RecordKey::Policy])],
        changes_policy: true,
        ..Noted::default()
    };
    let mut dirty = Dirty::default();
    let all = ["ledger", "members", "zone", "firewall", "own", "ledger"];
    assert_eq!(node.settle(&mut dirty), all);
    // A container that comes or goes changes what the same policy is compiled to.
    node.changes = vec![records(&[service("a")])];
    let services = ["ledger", "services", "policy", "zone a", "firewall"];
    assert_eq!(node.settle(&mut dirty), services);
}

#[test]
fn a_change_of_members_computes_the_whole_zone_once() {
    let mut node = Noted {
        changes: vec![records(&[service("a"), RecordKey::Mesh])],
        ..Noted::default()
    };
    let mut dirty = Dirty {
        reach: true,
        ..Dirty::default()
    };
    assert_eq!(node.settle(&mut dirty), ["ledger", "members", "zone"]);
    // As does a node that became a duplicate of another machine.
    node.changes = vec![Changes {
        duplicate: true,
        ..Changes::default()
    }];
    assert_eq!(node.settle(&mut dirty), ["ledger", "members", "zone"]);
}

#[test]
fn records_that_were_published_are_applied_and_published_once_only() {
    let mut node = Noted {
        // A record of this node that another machine overruled stays due.
        published: Changes {
            own: true,
            ..records(&[service("own")])
        },
        ..Noted::default()
    };
    let mut dirty = Dirty {
        own: true,
        name: true,
        ..Dirty::default()
    };
    assert_eq!(
        node.settle(&mut dirty),
        [
            "ledger",
            "own with name",
            "ledger",
            "services",
            "policy",
            "zone own"
        ]
    );
    assert!(dirty.own, "it is published with the next event");
    assert_eq!(node.settle(&mut dirty), ["ledger", "own", "ledger"]);
    assert_eq!(dirty, Dirty::default());
}

/// The marks are those of the handlers in `joined`. A container is published only once it is mapped, so its start changes what
/// this node offers only after the firewall was applied.
#[test]
fn the_start_of_a_container_is_published_once_and_lists_the_interfaces_once() {
    let mut node = Noted::default();
    // The engine reports the container and its new bridge.
    let mut dirty = Dirty {
        interfaces: true,
        firewall: true,
        ..Dirty::default()
    };
    let mut calls = node.settle(&mut dirty);
    // The kernel maps it.
    dirty.own = true;
    node.published = records(&[service("web")]);
    calls.extend(node.settle(&mut dirty));
    assert_eq!(
        calls,
        [
            "ledger",
            "interfaces",
            "firewall",
            "ledger",
            "own",
            "ledger",
            "services",
            "policy",
            "zone web"
        ]
    );
}
