//! Whatever a member writes into its own records, other members keep the names of their instances, the addresses of their services
//! and their share of every answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hickory_proto::rr::{RData, RecordType};
use meshd::dns::Zone;
use meshd::model::address::{Block, MeshAddresses, unique_local_prefix};
use meshd::model::{PublicKey, ServiceName, SigningKey};
use meshd::records::service_address::ServiceAddresses;
use meshd::records::{Envelope, Ledger};
use serde_json::{Value, json};

use crate::kit::{Identity, ledger_of, record};
use crate::zones::{addresses, ask, zone};

/// A mesh in the test's process. Its nodes n1, n2, ... joined one after the other, each with its own list of tags.
struct Mesh {
    plan: MeshAddresses,
    nodes: Vec<Identity>,
    ledger: Ledger,
}

impl Mesh {
    fn of(tags: &[&[&str]]) -> Self {
        let mesh_key = SigningKey::from_seed(&[200; 32]);
        let plan = record::plan(unique_local_prefix(&mesh_key.public()));
        let mut records = vec![record::mesh(&plan).signed_by(&mesh_key)];
        let mut nodes = Vec::new();
        for (n, tags) in (1u8..).zip(tags) {
            let (token, node) = (SigningKey::from_seed(&[100 + n; 32]), Identity::of(n));
            let block = plan.block(n.into()).expect("in the plan");
            records.push(
                record::token(token.public())
                    .with("tags", tags)
                    .signed_by(&mesh_key),
            );
            let membership = record::membership(token.public(), &node, &format!("n{n}"));
            let issued_at = record::now() - 60 + u64::from(n);
            records.push(
                membership
                    .with("tags", tags)
                    .with("issued_at", issued_at)
                    .signed_by(&token),
            );
            records
                .push(record::node(node.id(), node.wireguard_key(), &block).signed_by(node.key()));
            nodes.push(node);
        }
        Self {
            plan,
            nodes,
            ledger: ledger_of(mesh_key.public(), records),
        }
    }

    fn untagged(count: usize) -> Self {
        Self::of(&vec![&[][..]; count])
    }

    fn block(&self, n: u8) -> Block {
        self.plan.block(n.into()).expect("in the plan")
    }

    fn id(&self, n: u8) -> PublicKey {
        self.nodes[usize::from(n) - 1].id()
    }

    /// Node `n` signs the draft, and the ledger accepts it.
    fn say(&mut self, n: u8, draft: &record::Draft) {
        let signed: Envelope = draft.signed_by(self.nodes[usize::from(n) - 1].key());
        self.ledger.apply(signed).expect("it is its own");
    }

    fn serve(&mut self, n: u8, service: &str, instances: &[Value]) {
        self.say(n, &record::service(self.id(n), service, instances));
    }

    /// Node `n` publishes a service with one instance that claims `address` as its service address.
    fn claim(&mut self, n: u8, service: &str, address: &str) {
        let instance = record::instance(&format!("n{n}-80"), self.block(n).node_v4(), 80);
        let draft = record::service(self.id(n), service, &[instance]);
        self.say(n, &draft.with("service_address", address));
    }

    /// The zone of a node that serves nothing and has given out the service addresses in `held` before.
    fn zone(&self, held: &ServiceAddresses) -> Zone {
        let every: BTreeSet<Ipv4Addr> = (64..255)
            .map(|host| Ipv4Addr::new(10, 210, 0, host))
            .collect();
        zone(&self.ledger.netmap(), &every, held)
    }
}

/// The port, weight and target of each SRV record in the answer.
fn services(zone: &Zone, name: &str, turn: u64) -> Vec<(u16, u64, String)> {
    let answered = ask(zone, name, RecordType::SRV, turn).into_iter();
    answered
        .filter_map(|data| match data {
            RData::SRV(srv) => Some((srv.port, srv.weight.into(), srv.target.to_string())),
            _ => None,
        })
        .collect()
}

#[test]
fn many_instances_of_one_member_leave_another_node_its_share_of_every_answer() {
    let mut mesh = Mesh::untagged(2);
    let honest = mesh.block(1).node_v4();
    mesh.serve(1, "db", &[record::instance("n1-5432", honest, 5432)]);
    let crowd: Vec<Value> = (1..=254)
        .map(|host| record::instance(&format!("n2-{host}"), [10, 210, 2, host], 5432))
        .collect();
    mesh.serve(2, "db", &crowd);
    let zone = mesh.zone(&ServiceAddresses::default());
    let mut first = 0;
    for turn in 0..200 {
        let answered = addresses(&zone, "db.svc.mesh.", turn);
        assert_eq!(answered.len(), 8);
        assert!(answered.contains(&honest), "turn {turn}: {answered:?}");
        first += usize::from(answered.first() == Some(&honest));
    }
    assert!((60..=140).contains(&first), "first in {first} of 200");
}

#[test]
fn neither_many_ports_nor_a_large_weight_take_srv_records_from_another_node() {
    let mut mesh = Mesh::untagged(3);
    let honest = mesh.block(1).node_v4();
    mesh.serve(1, "db", &[record::instance("n1-5432", honest, 5432)]);
    for n in [2, 3] {
        let crowd: Vec<Value> = (1..=60)
            .map(|host| {
                let ports: Vec<Value> = (1..=16)
                    .map(|port| json!({"number": port, "protocol": "tcp"}))
                    .collect();
                let mut instance = record::instance(&format!("n{n}-{host}"), [10, 210, n, host], 1);
                instance["ports"] = ports.into();
                instance["weight"] = u16::MAX.into();
                instance
            })
            .collect();
        mesh.serve(n, "db", &crowd);
    }
    let zone = mesh.zone(&ServiceAddresses::default());
    for turn in 0..100 {
        let answered = services(&zone, "db.svc.mesh.", turn);
        assert_eq!(answered.len(), 32);
        let all: u64 = answered.iter().map(|(_, weight, _)| weight).sum();
        let own = answered.iter().find(|(port, _, _)| *port == 5432);
        let (_, weight, _) = own.expect("in every answer");
        // The honest node is one of three, and a weight makes another node count at most ten times as much.
        assert!(weight * 22 >= all, "{weight} of {all}");
    }
}

#[test]
fn an_instance_with_another_nodes_id_does_not_get_its_name_and_both_are_reached() {
    // Ids of instances begin with the name of their node. n1 joined before n2, whose id it copies.
    let mut mesh = Mesh::untagged(2);
    let (thief, honest) = (mesh.block(1).node_v4(), mesh.block(2).node_v4());
    mesh.serve(1, "db", &[record::instance("n2-app-db-1", thief, 6666)]);
    mesh.serve(2, "db", &[record::instance("n2-app-db-1", honest, 5432)]);
    let zone = mesh.zone(&ServiceAddresses::default());
    assert_eq!(addresses(&zone, "n2-app-db-1.db.svc.mesh.", 0), [honest]);
    let mut reached = BTreeMap::new();
    for (port, _, target) in services(&zone, "db.svc.mesh.", 0) {
        reached.insert(port, addresses(&zone, &target, 0));
    }
    let expected = BTreeMap::from([(5432, vec![honest]), (6666, vec![thief])]);
    assert_eq!(reached, expected);
}

#[test]
fn two_nodes_with_containers_of_one_name_are_both_reached_despite_false_claims() {
    // The ids do not begin with a node's name, so the node that joined first has the name. A third node claims both names, the
    // short one and the one that has the key of n2 in it.
    let mut mesh = Mesh::untagged(3);
    for n in [1, 2] {
        mesh.serve(
            n,
            "db",
            &[record::instance(
                "app-db-1",
                mesh.block(n).node_v4(),
                5430 + u16::from(n),
            )],
        );
    }
    let qualified = format!("app-db-1-{}", mesh.id(2).short());
    let thief = mesh.block(3).node_v4();
    let both = ["app-db-1", &qualified].map(|id| record::instance(id, thief, 6666));
    mesh.serve(3, "db", &both);
    let zone = mesh.zone(&ServiceAddresses::default());
    let name = |label: &str| format!("{label}.db.svc.mesh.");
    assert_eq!(
        addresses(&zone, &name("app-db-1"), 0),
        [mesh.block(1).node_v4()]
    );
    assert_eq!(
        addresses(&zone, &name(&qualified), 0),
        [mesh.block(2).node_v4()]
    );
    for (port, _, target) in services(&zone, "db.svc.mesh.", 0) {
        let leads_to = addresses(&zone, &target, 0);
        assert_eq!(leads_to[0] == thief, port == 6666, "{port} {target}");
    }
}

#[test]
fn a_service_of_a_project_does_not_push_an_instance_out_of_its_services_answers() {
    // `n1-80` of the project `shop` has the name of the instance `n1-80` of the service `shop`.
    let mut mesh = Mesh::untagged(2);
    let honest = mesh.block(1).node_v4();
    mesh.serve(1, "shop", &[record::instance("n1-80", honest, 80)]);
    let thief = record::instance("x", mesh.block(2).node_v4(), 6666);
    let id = format!("{}/shop/n1-80", mesh.id(2));
    let draft = record::service(mesh.id(2), "n1-80", &[thief]);
    mesh.say(2, &draft.with("id", id).with("project", "shop"));
    let zone = mesh.zone(&ServiceAddresses::default());
    let answered = services(&zone, "shop.svc.mesh.", 0);
    assert_eq!(answered.len(), 1);
    assert_eq!(addresses(&zone, &answered[0].2, 0), [honest]);
}

#[test]
fn a_service_address_stays_with_its_service_whoever_claims_it() {
    let mut mesh = Mesh::untagged(3);
    mesh.claim(2, "db", "10.210.0.99");
    let before = mesh.zone(&ServiceAddresses::default());
    let address = addresses(&before, "db.svc.mesh.", 0);
    assert_eq!(address, [Ipv4Addr::new(10, 210, 0, 99)]);
    // A member that joined earlier claims the address for a service whose name sorts before `db`. A member that joined later claims
    // another address for `db`.
    mesh.claim(1, "aa", "10.210.0.99");
    mesh.claim(3, "db", "10.210.0.64");
    let after = mesh.zone(before.held_addresses());
    assert_eq!(addresses(&after, "db.svc.mesh.", 0), address);
    assert_ne!(addresses(&after, "aa.svc.mesh.", 0), address);
    // A node that has given out no addresses yet gives this one to one of the services, and never to both.
    let fresh = mesh.zone(&ServiceAddresses::default());
    let both = ["aa", "db"].map(|name| addresses(&fresh, &format!("{name}.svc.mesh."), 0));
    assert_ne!(both[0], both[1]);
}

#[test]
fn a_member_that_claims_every_service_address_leaves_others_room() {
    let mut mesh = Mesh::untagged(2);
    for host in 64..255 {
        mesh.claim(1, &format!("hog-{host}"), &format!("10.210.0.{host}"));
    }
    let hogged = mesh.zone(&ServiceAddresses::default());
    mesh.claim(2, "db", "10.210.0.99");
    let zone = mesh.zone(hogged.held_addresses());
    let name = ServiceName::parse("db").expect("a literal");
    assert!(zone.held_addresses().find(&name).is_some());
    assert!(addresses(&zone, "db.svc.mesh.", 0)[0].octets()[2] == 0);
}

#[test]
fn a_service_address_leads_only_into_the_block_of_the_node_that_serves() {
    let mut mesh = Mesh::untagged(2);
    let outside = ["169.254.169.254", "172.17.0.2", "192.168.1.1", "8.8.8.8"];
    let mut instances: Vec<Value> = outside
        .iter()
        .map(|address| {
            let address: Ipv4Addr = address.parse().expect("a literal");
            record::instance(&format!("n1-{}", address.octets()[0]), address, 80)
        })
        .collect();
    instances.push(record::instance("n1-80", mesh.block(1).node_v4(), 80));
    let draft = record::service(mesh.id(1), "meta", &instances);
    mesh.say(1, &draft.with("service_address", "169.254.169.254"));
    let zone = mesh.zone(&ServiceAddresses::default());
    let balanced = zone.service_addresses();
    assert_eq!(balanced.len(), 1);
    for (address, leads_to) in balanced {
        assert_eq!(address.octets()[..3], [10, 210, 0]);
        assert_eq!(leads_to, [mesh.block(1).node_v4()]);
    }
}

#[test]
fn a_name_that_nodes_without_a_common_tag_serve_is_shown_with_its_nodes() {
    let mut mesh = Mesh::of(&[&["db"], &["db"], &["ci"]]);
    for n in [1, 2] {
        mesh.serve(
            n,
            "db",
            &[record::instance("x", mesh.block(n).node_v4(), 80)],
        );
    }
    assert!(mesh.ledger.netmap().contested().is_empty());
    mesh.serve(
        3,
        "db",
        &[record::instance("y", mesh.block(3).node_v4(), 80)],
    );
    let netmap = mesh.ledger.netmap();
    let shown: Vec<(String, Vec<String>)> = netmap
        .contested()
        .iter()
        .map(|contested| {
            let nodes = contested.nodes.iter().map(ToString::to_string);
            (contested.service.to_string(), nodes.collect())
        })
        .collect();
    let nodes = ["n1", "n2", "n3"].map(str::to_owned).to_vec();
    assert_eq!(shown, [("db".to_owned(), nodes)]);
}

#[test]
fn a_contested_service_is_a_problem_in_the_status_and_for_the_doctor() {
    let Some(mesh) = crate::mesh::Mesh::start(2) else {
        return;
    };
    for (n, tag) in [(0, "db"), (1, "ci")] {
        let token = mesh.token(&["--tag", tag]);
        let joined = mesh.on(n, &["join", &token]);
        assert_eq!(joined.code, 0, "{joined:?}");
        let added = mesh.on(n, &["service", "add", "db", "--port", "5432"]);
        assert_eq!(added.code, 0, "{added:?}");
    }
    let what = "the service db is served by nodes that have no tag in common: n1, n2";
    mesh.wait_until("the first node shows the conflict", || {
        let problems = mesh.status(0).problems;
        problems.iter().any(|problem| problem.what == what)
    });
    let doctor = mesh.on(0, &["doctor", "--json"]);
    assert!(doctor.stdout.contains(what), "{doctor:?}");
}
