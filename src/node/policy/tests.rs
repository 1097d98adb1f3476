use super::*;
use crate::records::kinds::{Instance, MeshPolicy, Token};
use crate::testbed::records as build;
use crate::testbed::records::{block, id, label};

const MESH: u8 = 1;
const TOKEN: u8 = 2;
const DENY: &str = "language = 1\ndefault = \"deny\"\n";
const LATER: &str = "language = 99\n";

fn record(version: u64, text: &str) -> Envelope {
    let record = Record::Policy(MeshPolicy::new(version, text));
    build::sealed(&record, MESH)
}

fn ledger(policies: &[(u64, &str)]) -> Ledger {
    let mut ledger = Ledger::new(id(MESH));
    for (version, text) in policies {
        ledger.apply(record(*version, text)).expect("it is newer");
    }
    ledger
}

fn start(stored: Option<Envelope>) -> PolicyInForce {
    PolicyInForce::new(stored, &id(MESH))
}

fn text(policy: &PolicyInForce) -> Option<&str> {
    policy.rules().policy().map(Policy::text)
}

#[test]
fn nothing_passes_before_the_records_are_read() {
    let policy = start(None);
    assert!(!policy.table().allows_everything());
    assert_eq!(*policy.rules(), Rules::Open);
}

#[test]
fn without_a_policy_everything_passes() {
    let mut policy = start(None);
    assert_eq!(policy.follow(&ledger(&[])), []);
    let netmap = ledger(&[]).netmap_under(policy.rules().clone());
    policy.compile(&netmap);
    assert!(policy.table().allows_everything());
    assert_eq!(policy.problem(), None);
}

#[test]
fn without_a_policy_not_everything_passes_to_an_instance_whose_owner_narrows_it() {
    let mut netmap = Netmap::default();
    let member = build::member(&id(1), "n1", block(1));
    netmap.members.insert(member.id, member);
    let address = block(1).v4.hosts().nth(70).expect("a /24");
    let mut policy = start(None);
    for (allow, is_open) in [(vec![], true), (vec!["tag:ops".to_owned()], false)] {
        let instance = Instance {
            allow,
            ..build::instance("db-1", vec![address.into()])
        };
        let service = build::service(&id(1), "db", vec![instance]);
        netmap.replace(&service.id, Some(&service));
        policy.compile(&netmap);
        assert_eq!(policy.table().allows_everything(), is_open);
    }
}

#[test]
fn the_policy_of_the_ledger_comes_into_force_once_and_is_written() {
    let mut policy = start(None);
    let ledger = ledger(&[(3, DENY)]);
    let change = policy.follow(&ledger);
    assert_eq!(change, [PolicyChange::InForce { version: 3 }]);
    assert_eq!(policy.follow(&ledger), []);
    assert_eq!(text(&policy), Some(DENY));
    let written = policy.unwritten().cloned().expect("it is new");
    policy.handle_written(&record(2, OPEN));
    assert!(policy.unwritten().is_some(), "another one was written");
    policy.handle_written(&written);
    assert_eq!(policy.unwritten(), None);
}

#[test]
fn another_policy_with_the_same_version_is_a_change() {
    let mut policy = start(None);
    policy.follow(&ledger(&[(3, DENY)]));
    let change = policy.follow(&ledger(&[(3, OPEN)]));
    assert_eq!(change, [PolicyChange::InForce { version: 3 }]);
    assert_eq!(text(&policy), Some(OPEN));
}

/// A ledger whose policy is [`OPEN`], and which tries another one.
fn trying(version: u64, tried: &str) -> Ledger {
    let record = Record::Policy(MeshPolicy::new(version, OPEN).trying(tried));
    let mut ledger = ledger(&[]);
    ledger
        .apply(build::sealed(&record, MESH))
        .expect("it is the first one");
    ledger
}

#[test]
fn a_policy_that_is_tried_is_forgotten_with_the_next_one_and_is_a_problem_if_it_is_not_understood()
{
    let mut policy = start(None);
    policy.follow(&trying(3, DENY));
    let netmap = ledger(&[]).netmap_under(policy.rules().clone());
    policy.compile(&netmap);
    assert!(policy.table().allows_everything());
    let tried = policy.tried_table().expect("it is tried");
    assert!(!tried.allows_everything());
    assert_eq!(policy.untried(), None);

    policy.follow(&trying(4, LATER));
    policy.compile(&netmap);
    assert!(policy.tried_table().is_none());
    let problem = policy.untried().expect("it is one");
    assert!(problem.why.starts_with("line 1, "), "{problem:?}");
    assert_eq!((policy.version(), policy.problem()), (Some(4), None));

    policy.follow(&ledger(&[(5, OPEN)]));
    policy.compile(&netmap);
    assert!(policy.tried_table().is_none());
    assert_eq!(policy.untried(), None);
}

#[test]
fn a_policy_that_is_tried_is_never_reported_as_one_in_force() {
    let mut policy = start(None);
    let tried = |version| PolicyChange::Tried { version };
    assert_eq!(policy.follow(&trying(3, DENY)), [tried(3)]);
    assert!(policy.is_trying());
    assert_eq!(policy.follow(&trying(3, DENY)), []);
    assert_eq!(policy.follow(&trying(4, OPEN)), [tried(4)]);
    let later = policy.follow(&trying(5, LATER));
    assert!(
        matches!(
            later.as_slice(),
            [PolicyChange::NotTried { version: 5, .. }]
        ),
        "{later:?}"
    );
    assert!(!policy.is_trying());
    // Applying it for real ends the trial.
    let in_force = |version| PolicyChange::InForce { version };
    assert_eq!(policy.follow(&ledger(&[(6, DENY)])), [in_force(6)]);
    // A node that was away receives another policy in force and one that is tried with it.
    let both = policy.follow(&trying(7, DENY));
    assert_eq!(both, [in_force(7), tried(7)]);
    // A restart reports nothing again.
    let record = policy.unwritten().cloned();
    let mut policy = start(record);
    assert_eq!(policy.follow(&trying(7, DENY)), []);
    assert!(policy.is_trying());
}

#[test]
fn a_policy_that_is_not_understood_leaves_the_one_before_in_force() {
    let mut policy = start(None);
    policy.follow(&ledger(&[(3, DENY)]));
    let change = policy.follow(&ledger(&[(4, LATER)]));
    let [
        PolicyChange::Ignored {
            version, in_force, ..
        },
    ] = change.as_slice()
    else {
        panic!("{change:?}");
    };
    assert_eq!((*version, *in_force, text(&policy)), (4, 3, Some(DENY)));
    let problem = policy.problem().expect("it is one");
    assert!(
        problem.what.contains("stays in force (version 3)"),
        "{problem:?}"
    );
    assert!(
        problem.why.starts_with("version 4 of the policy: line 1, "),
        "{problem:?}"
    );
    // One that is understood ends the problem.
    policy.follow(&ledger(&[(5, OPEN)]));
    assert_eq!((policy.version(), policy.problem()), (Some(5), None));
}

#[test]
fn if_none_was_understood_before_only_control_traffic_passes() {
    let mut policy = start(None);
    let ledger = ledger(&[(4, LATER)]);
    let change = policy.follow(&ledger);
    assert!(
        matches!(change.as_slice(), [PolicyChange::Closed { version: 4, .. }]),
        "{change:?}"
    );
    let netmap = ledger.netmap_under(policy.rules().clone());
    policy.compile(&netmap);
    assert!(!policy.table().allows_everything());
    assert!(
        policy
            .problem()
            .expect("it is one")
            .what
            .contains("nothing but the traffic")
    );
    assert_eq!(policy.unwritten(), None);
}

#[test]
fn a_restart_begins_with_the_last_policy_that_was_understood() {
    let mut policy = start(Some(record(3, DENY)));
    assert_eq!((text(&policy), policy.version()), (Some(DENY), Some(3)));
    assert_eq!(policy.unwritten(), None);
    // The later one in the ledger was not understood before the restart either.
    policy.follow(&ledger(&[(4, LATER)]));
    assert_eq!(text(&policy), Some(DENY));
    // The record was lost on disk with the others.
    let mut policy = start(Some(record(3, DENY)));
    assert_eq!(policy.follow(&ledger(&[])), []);
    assert_eq!(text(&policy), Some(DENY));
}

#[test]
fn an_earlier_version_of_meshd_reports_once_that_it_does_not_understand_the_policy_on_disk() {
    let mut policy = start(Some(record(4, LATER)));
    assert!(policy.problem().is_some());
    assert_eq!(*policy.rules(), Rules::Closed);
    let ledger = ledger(&[(4, LATER)]);
    let change = policy.follow(&ledger);
    assert!(
        matches!(change.as_slice(), [PolicyChange::Closed { version: 4, .. }]),
        "{change:?}"
    );
    assert_eq!(policy.follow(&ledger), []);
}

#[test]
fn a_file_that_the_mesh_key_did_not_sign_puts_nothing_in_force() {
    let open = Record::Policy(MeshPolicy::new(9, OPEN));
    let mut garbled = record(3, DENY);
    garbled.payload = garbled.payload.replace("deny", "allow");
    for stored in [build::sealed(&open, 7), garbled] {
        assert_eq!(text(&start(Some(stored))), None);
    }
}

/// A mesh of node 10, which has no tag, and node 11 with the tag `db`. Both offer `db`.
fn two_nodes(policy: &str) -> Ledger {
    let mut ledger = ledger(&[(1, policy)]);
    let mut apply = |record: Record, signer: u8| {
        ledger
            .apply(build::sealed(&record, signer))
            .expect("its signer may publish it");
    };
    apply(Record::Mesh(build::mesh()), MESH);
    for (n, token, tags) in [(10u8, TOKEN, vec![]), (11, TOKEN + 1, vec![label("db")])] {
        let token_record = Token {
            tags,
            ..build::token(&id(token))
        };
        apply(Record::Token(token_record), MESH);
        let membership = build::membership(&id(n), &id(token), &format!("n{n}"));
        apply(Record::Membership(membership), token);
        let block = block(n.into());
        apply(Record::Node(build::node(&id(n), block)), n);
        let address = block.v4.hosts().nth(70).expect("a /24");
        let instance = build::instance("db-1", vec![address.into()]);
        apply(
            Record::Service(build::service(&id(n), "db", vec![instance])),
            n,
        );
    }
    ledger
}

#[test]
fn a_service_without_the_right_to_its_name_is_no_subject() {
    let serve = "language = 1\n[[serve]]\nnames = [\"db\"]\nby = [\"tag:db\"]\n";
    let ledger = two_nodes(serve);
    let mut policy = start(None);
    policy.follow(&ledger);
    let netmap = ledger.netmap_under(policy.rules().clone());
    let served: Vec<PublicKey> = netmap.services.values().map(|s| s.node).collect();
    assert_eq!(served, [id(11)]);
    let unlawful: Vec<PublicKey> = netmap.unlawful.values().map(|u| u.node).collect();
    assert_eq!(unlawful, [id(10)]);
    let offering = subjects(&netmap);
    let offering = offering.iter().filter(|s| !s.services.is_empty());
    let nodes: Vec<&str> = offering.map(|s| s.node.as_str()).collect();
    assert_eq!(nodes, ["n11"]);
}

#[test]
fn under_a_policy_that_is_not_understood_nobody_serves_a_name() {
    let ledger = two_nodes(LATER);
    let mut policy = start(None);
    policy.follow(&ledger);
    let netmap = ledger.netmap_under(policy.rules().clone());
    assert!(netmap.services.is_empty());
    assert_eq!(netmap.unlawful.len(), 2);
}

#[test]
fn a_new_instance_reaches_nothing_while_its_change_waits_and_a_mesh_without_rules_waits_for_nothing()
 {
    let begun = Instant::now();
    let later = begun + std::time::Duration::from_millis(10);
    let ledger = two_nodes("language = 1\nallow = [{ from = [\"*\"], to = [\"*\"] }]\n");
    let mut policy = start_with(&ledger);
    let before = ledger.netmap_under(policy.rules().clone());
    assert!(policy.is_uncompiled() && policy.may_compile(&before, begun));
    policy.compile(&before);
    policy.handle_compiled(begun, later);
    assert!(!policy.may_compile(&before, later));
    assert!(policy.may_compile(&Netmap::default(), later));
    assert_eq!(policy.poll_timeout(), None);

    let new = block(10).v4.hosts().nth(71).expect("a /24");
    let old = block(10).v4.hosts().nth(70).expect("a /24");
    let mut now = before.clone();
    let instance = build::instance("new-1", vec![new.into()]);
    let service = build::service(&id(10), "web", vec![instance]);
    now.replace(&service.id, Some(&service));
    assert!(!policy.defer(Moved::between(&before, &now), &now));
    assert!(policy.poll_timeout().is_some_and(|at| at > later));
    let passes = |policy: &PolicyInForce| {
        let class = |address: std::net::Ipv4Addr| policy.table().class(address.into());
        let ping = crate::policy::Asked::Icmp;
        policy.table().allows(class(new), class(old), ping)
    };
    assert!(!passes(&policy));
    policy.compile(&now);
    assert!(passes(&policy));

    // The address of an instance that is exchanged for another one is closed until then.
    let mut exchanged = now.clone();
    let other = build::instance("other-1", vec![new.into()]);
    let other = build::service(&id(10), "web", vec![other]);
    exchanged.replace(&other.id, Some(&other));
    assert!(policy.defer(Moved::between(&now, &exchanged), &exchanged));
    assert!(!passes(&policy));
}

#[test]
fn under_a_policy_that_allows_everything_no_address_is_closed_while_a_change_waits() {
    let ledger = two_nodes(OPEN);
    let mut policy = start_with(&ledger);
    let before = ledger.netmap_under(policy.rules().clone());
    policy.compile(&before);
    let address = block(10).v4.hosts().nth(71).expect("a /24");
    let with = |allow: &[&str]| {
        let instance = Instance {
            allow: allow.iter().map(|text| (*text).to_owned()).collect(),
            ..build::instance("new-1", vec![address.into()])
        };
        let service = build::service(&id(10), "web", vec![instance]);
        let mut now = before.clone();
        now.replace(&service.id, Some(&service));
        (Moved::between(&before, &now), now)
    };
    let (moved, now) = with(&[]);
    assert!(!policy.defer(moved, &now) && policy.table().allows_everything());
    // The owner of this one narrows who reaches it.
    let (moved, now) = with(&["tag:ops"]);
    assert!(policy.defer(moved, &now) && !policy.table().allows_everything());
}

fn start_with(ledger: &Ledger) -> PolicyInForce {
    let mut policy = start(None);
    policy.follow(ledger);
    policy
}
