//! Each transition has one line in the log, and `docs/logs.md` lists it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::coordinator::LinkChange;
use super::denials::FirstDenial;
use super::engine::{ContainerRefused, EngineChange};
use super::guests::{GuestChange, GuestTurn};
use super::instances::{InstanceChange, InstanceTurn, turns};
use super::local::LocalChange;
use super::members::{MemberChange, MemberTurn, changes};
use super::peers::{PeerChange, PeerTurn, PeerTurns};
use super::policy::PolicyChange;
use super::routes::RouteChange;
use super::spawn::{OrphanRemoved, SpawnRefused, SpawnTurn, SpawnedChange};
use crate::model::{ContainerId, Protocol, PublicKey, ServiceName, WireGuardKey};
use crate::os::audit::{LocalCall, Outcome, Text, Transition as _, What, Who};
use crate::os::log::captured;
use crate::path::watch::Reach;
use crate::policy::Asked;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::records::Ledger;
use crate::records::kinds::{Departure, Health, Instance, Name, Record, RevokedKind};
use crate::spawn::Entry;
use crate::testbed::records::{
    block, id, instance, label, membership, mesh, node, revocation, sealed, token,
};
use crate::tunnel::{Denial, Direction};

const MESH: u8 = 1;
const TOKEN: u8 = 2;
const OWN: u8 = 3;

/// The line of each transition, as `docs/logs.md` has it.
const DOCUMENT: &str = include_str!("../../../docs/logs.md");

#[test]
fn each_transition_of_a_peer_is_one_line() {
    let peer = label("web-2");
    let endpoint = "192.0.2.7:51820".parse().ok();
    let why = "its last packet was received 9 s ago";
    let lines = captured::lines(|| {
        for turn in [
            PeerTurn::Reached,
            PeerTurn::NotReached,
            PeerTurn::Lost,
            PeerTurn::Back(Duration::from_millis(12_340)),
        ] {
            let change = PeerChange {
                peer: &peer,
                turn,
                endpoint,
                why,
            };
            change.log();
        }
    });
    assert_lines(
        &lines,
        &[
            "INFO peer reached peer=web-2 endpoint=192.0.2.7:51820",
            "WARN peer not reached peer=web-2 endpoint=192.0.2.7:51820 reason=\"its last packet was received 9 s ago\"",
            "WARN peer lost peer=web-2 endpoint=192.0.2.7:51820 reason=\"its last packet was received 9 s ago\"",
            "INFO peer back peer=web-2 endpoint=192.0.2.7:51820 away_seconds=12.3",
        ],
    );
}

#[test]
fn the_first_denied_packet_between_two_addresses_is_one_line() {
    let (db, web, anna) = (label("db-1"), label("web-2"), label("anna"));
    let asked = Asked::Port(Protocol::Tcp, 5432);
    let mut events = Vec::new();
    let lines = captured::lines(|| {
        for (direction, asked, from_guest) in [
            (Direction::Incoming, asked, None),
            (Direction::Outgoing, Asked::Icmp, Some(&anna)),
        ] {
            let denial = Denial {
                from: [10, 210, 2, 7].into(),
                to: [10, 210, 1, 2].into(),
                asked,
                direction,
                is_tried: false,
            };
            let first = FirstDenial {
                denial: &denial,
                from_node: Some(&web),
                to_node: Some(&db),
                from_guest,
                to_guest: None,
            };
            first.log();
            events.extend(first.event().map(|event| event.what));
        }
    });
    assert_lines(
        &lines,
        &[
            "WARN denied by the policy from=10.210.2.7 from_node=web-2 to=10.210.1.2 to_node=db-1 port=5432/tcp direction=in",
            "WARN denied by the policy from=10.210.2.7 from_node=web-2 to=10.210.1.2 to_node=db-1 port=icmp direction=out",
        ],
    );
    let from = |text: &str| What::PairDenied {
        from: Text::of(&text),
        to: Text::of(&"10.210.1.2 of db-1"),
        port: Text::of(&"icmp"),
        direction: "out",
    };
    assert_eq!(
        events.last(),
        Some(&from("10.210.2.7 of the guest anna")),
        "and not of its door"
    );
}

#[test]
fn a_peer_is_lost_once_and_back_once_however_often_it_is_polled() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut peers = PeerTurns::default();
    let mut seen = Vec::new();
    let polls = [
        (Reach::Unknown, None),
        (Reach::Reachable, Some(0)),
        (Reach::Reachable, Some(1)),
        (Reach::Unknown, Some(1)),
        (Reach::Unreachable, Some(1)),
        (Reach::Unreachable, Some(1)),
        (Reach::Unknown, Some(1)),
        (Reach::Reachable, Some(7)),
        (Reach::Reachable, Some(8)),
    ];
    for (second, (reach, heard)) in (0..).zip(polls) {
        let heard = heard.map(at);
        seen.extend(peers.handle_reach(id(9), reach, heard, at(second)));
    }
    let away = Duration::from_secs(6);
    assert_eq!(
        seen,
        [PeerTurn::Reached, PeerTurn::Lost, PeerTurn::Back(away)]
    );
    // A peer that leaves the mesh and joins again is a new one.
    peers.retain(&BTreeSet::new());
    let mut handle = |reach| peers.handle_reach(id(9), reach, None, at(20));
    assert_eq!(handle(Reach::Unreachable), Some(PeerTurn::NotReached));
    assert_eq!(handle(Reach::Unreachable), None);
    assert_eq!(handle(Reach::Reachable), Some(PeerTurn::Reached));
}

#[test]
fn each_transition_of_an_instance_is_one_line() {
    let service = ServiceName::from(label("db"));
    let of = |health| Instance {
        health,
        ..instance("web-1-5432", Vec::new())
    };
    let lines = captured::lines(|| {
        let instance = of(Health::Starting);
        for (turn, why) in [
            (InstanceTurn::Published(Health::Starting), None),
            (InstanceTurn::Health(Health::Healthy), None),
            (InstanceTurn::Health(Health::Unhealthy), Some("no answer")),
            (InstanceTurn::Health(Health::Draining), Some("drained")),
            (InstanceTurn::Health(Health::Starting), None),
            (InstanceTurn::Health(Health::Unknown), None),
            (InstanceTurn::Withdrawn, Some("its container ended")),
        ] {
            let change = InstanceChange {
                service: &service,
                instance: &instance,
                turn,
                why,
            };
            change.log();
        }
    });
    assert_lines(
        &lines,
        &[
            "INFO service published service=db instance=web-1-5432 health=starting source=cli",
            "INFO service healthy service=db instance=web-1-5432",
            "WARN service unhealthy service=db instance=web-1-5432 reason=\"no answer\"",
            "INFO service draining service=db instance=web-1-5432 reason=drained",
            "INFO service starting service=db instance=web-1-5432",
            "INFO service not checked service=db instance=web-1-5432",
            "INFO service withdrawn service=db instance=web-1-5432 reason=\"its container ended\"",
        ],
    );
}

#[test]
fn only_instances_whose_health_changed_or_that_come_or_go_have_a_transition() {
    let of = |id: &str, health| Instance {
        health,
        ..instance(id, Vec::new())
    };
    let before = [
        of("a", Health::Healthy),
        of("b", Health::Healthy),
        of("c", Health::Healthy),
    ];
    let after = [
        of("d", Health::Starting),
        of("b", Health::Unhealthy),
        of("a", Health::Healthy),
    ];
    let seen: Vec<(String, InstanceTurn)> = turns(&before, &after)
        .into_iter()
        .map(|(instance, turn)| (instance.id.to_string(), turn))
        .collect();
    assert_eq!(
        seen,
        [
            ("b".to_owned(), InstanceTurn::Health(Health::Unhealthy)),
            ("c".to_owned(), InstanceTurn::Withdrawn),
            ("d".to_owned(), InstanceTurn::Published(Health::Starting)),
        ]
    );
    assert_eq!(turns(&after, &after), []);
}

#[test]
fn each_transition_of_the_policy_is_one_line() {
    let why = "line 1, column 12: no".to_owned();
    let lines = captured::lines(|| {
        for change in [
            PolicyChange::InForce { version: 7 },
            PolicyChange::Tried { version: 8 },
            PolicyChange::NotTried {
                version: 8,
                why: why.clone(),
            },
            PolicyChange::Ignored {
                version: 8,
                in_force: 7,
                why: why.clone(),
            },
            PolicyChange::Closed { version: 8, why },
        ] {
            change.log();
        }
    });
    assert_lines(
        &lines,
        &[
            "INFO policy in force version=7",
            "INFO policy tried, nothing is denied by it version=8",
            "WARN policy not tried version=8 reason=\"line 1, column 12: no\"",
            "WARN policy not understood, the one before stays in force version=8 in_force=7 reason=\"line 1, column 12: no\"",
            "WARN policy not understood, only control traffic passes version=8 reason=\"line 1, column 12: no\"",
        ],
    );
}

#[test]
fn each_change_of_the_way_to_a_network_is_one_line() {
    let lines = captured::lines(|| {
        for by in [Some(label("nas")), None] {
            let network = "192.168.1.0/24".parse().expect("a literal");
            RouteChange { network, by }.log();
        }
    });
    assert_lines(
        &lines,
        &[
            "INFO network routed network=192.168.1.0/24 node=nas",
            "INFO network not routed any more network=192.168.1.0/24",
        ],
    );
}

#[test]
fn each_transition_of_a_member_is_one_line() {
    let short = id(9).short();
    let lines = captured::lines(|| {
        for turn in [
            MemberTurn::Joined([10, 210, 2, 1].into()),
            MemberTurn::Left,
            MemberTurn::Removed,
            MemberTurn::Renamed(label("old")),
        ] {
            let (node, id) = (label("web-2"), id(9));
            MemberChange { node, id, turn }.log();
        }
    });
    assert_lines(
        &lines,
        &[
            &format!("INFO node joined node=web-2 id={short} address=10.210.2.1"),
            &format!("INFO node left node=web-2 id={short}"),
            &format!("INFO node removed node=web-2 id={short}"),
            &format!("INFO node renamed node=web-2 id={short} before=old"),
        ],
    );
}

/// A mesh with this node and the members `others`, each with a node record.
fn ledger(others: &[(u8, &str)]) -> Ledger {
    let mut ledger = Ledger::new(id(MESH));
    let mut apply = |record: &Record, signer| {
        let envelope = sealed(record, signer);
        ledger.apply(envelope).expect("a valid record");
    };
    apply(&Record::Mesh(mesh()), MESH);
    let token = crate::records::kinds::Token {
        uses: 9,
        ..token(&id(TOKEN))
    };
    apply(&Record::Token(token), MESH);
    for (n, name) in [(OWN, "own")].iter().chain(others) {
        let membership = membership(&id(*n), &id(TOKEN), name);
        apply(&Record::Membership(membership), TOKEN);
        apply(&Record::Node(node(&id(*n), block((*n).into()))), *n);
    }
    ledger
}

#[test]
fn members_that_join_leave_are_removed_or_renamed_are_told_apart() {
    let mut ledger = ledger(&[(10, "left"), (11, "removed"), (12, "old")]);
    let before = ledger.netmap();
    let own = id(OWN);
    let start = crate::records::netmap::Netmap::default();
    assert_eq!(changes(&start, &before, &own, &ledger), []);
    assert_eq!(changes(&before, &before, &own, &ledger), []);

    let departure = Record::Departure(Departure::of(id(10)));
    ledger.apply(sealed(&departure, 10)).expect("its own");
    let removal = Record::Revocation(revocation(&id(11), RevokedKind::Node));
    ledger.apply(sealed(&removal, MESH)).expect("permitted");
    let name = Record::Name(Name {
        id: id(12),
        version: 1,
        name: label("new"),
    });
    ledger.apply(sealed(&name, 12)).expect("its own");
    let joined = Record::Membership(membership(&id(13), &id(TOKEN), "joined"));
    ledger.apply(sealed(&joined, TOKEN)).expect("permitted");
    let joined = Record::Node(node(&id(13), block(13)));
    ledger.apply(sealed(&joined, 13)).expect("its own");

    let mut seen: Vec<(String, MemberTurn)> = changes(&before, &ledger.netmap(), &own, &ledger)
        .into_iter()
        .map(|change| (change.node.to_string(), change.turn))
        .collect();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        seen,
        [
            ("joined".to_owned(), MemberTurn::Joined(block(13).node_v4())),
            ("left".to_owned(), MemberTurn::Left),
            ("new".to_owned(), MemberTurn::Renamed(label("old"))),
            ("removed".to_owned(), MemberTurn::Removed),
        ]
    );
}

#[test]
fn each_transition_of_the_coordinator_and_of_the_container_engine_is_one_line() {
    let url = "https://coord.example.com:7443";
    let lines = captured::lines(|| {
        let url = url.to_owned();
        LinkChange::Connected { url: url.clone() }.log();
        let why = "connection refused".to_owned();
        let lost = LinkChange::Away {
            url: url.clone(),
            why,
        };
        lost.log();
        let away = Duration::from_secs(61);
        LinkChange::Back { url, away }.log();
        let version = "28.5";
        let podman = false;
        EngineChange::Connected { version, podman }.log();
        EngineChange::Lost { why: "it ended" }.log();
    });
    assert_lines(
        &lines,
        &[
            "INFO coordinator connected url=https://coord.example.com:7443",
            "WARN coordinator away; names and tunnels go on url=https://coord.example.com:7443 reason=\"connection refused\"",
            "INFO coordinator back url=https://coord.example.com:7443 away_seconds=61.0",
            "INFO container engine connected version=28.5 podman=false",
            "WARN container engine lost; containers stay as they are reason=\"it ended\"",
        ],
    );
}

#[test]
fn each_call_that_changes_something_and_each_refused_container_is_one_line() {
    let by = Who::Local {
        uid: 1000,
        pid: Some(42),
    };
    let error = ApiError::new(ErrorCode::Conflict, "it exists");
    let change = |result| LocalChange {
        by: &by,
        call: LocalCall::AddService,
        of: Some("db"),
        result,
    };
    let refused = ContainerRefused {
        name: "web",
        why: "it has no network",
    };
    let lines = captured::lines(|| {
        change(Ok(())).log();
        change(Err(&error)).log();
        refused.log();
    });
    assert_lines(
        &lines,
        &[
            "INFO changed by a local caller call=add_service name=db uid=1000 pid=42",
            "INFO a change by a local caller failed call=add_service name=db uid=1000 pid=42 reason=\"it exists\"",
            "WARN a container is not exposed container=web reason=\"it has no network\"",
        ],
    );
    let caller = Who::ApiCaller {
        address: "10.210.1.9".parse().expect("a literal"),
        token: Some(PublicKey([7; 32])),
        name: None,
    };
    let with_token = |result| LocalChange {
        by: &caller,
        ..change(result)
    };
    let lines = captured::lines(|| {
        with_token(Ok(())).log();
        with_token(Err(&error)).log();
    });
    let values = "call=add_service name=db address=10.210.1.9 token=070707070707";
    assert_lines(
        &lines,
        &[
            &format!("INFO changed with an API token {values}"),
            &format!("INFO a change with an API token failed {values} reason=\"it exists\""),
        ],
    );
    let event = change(Err(&error)).event().expect("it has one");
    assert_eq!(event.who, by);
    assert_eq!(event.result, Outcome::Failed(Text::from("it exists")));
}

#[test]
fn each_transition_of_a_guest_is_one_line() {
    let endpoint = "192.0.2.9:4000".parse().ok();
    let lines = captured::lines(|| {
        for turn in [
            GuestTurn::Added(None),
            GuestTurn::Seen(endpoint),
            GuestTurn::Removed,
            GuestTurn::Expired,
        ] {
            GuestChange::new(&label("anna"), WireGuardKey([1; 32]), turn).log();
        }
    });
    assert_lines(
        &lines,
        &[
            "INFO guest let in guest=anna",
            "INFO guest seen guest=anna endpoint=192.0.2.9:4000",
            "INFO guest not let in any more guest=anna reason=\"the administrator removed it\"",
            "INFO guest not let in any more guest=anna reason=\"it expired\"",
        ],
    );
}

/// Compares the lines, and holds that the document lists the message and the values of each.
fn spawned() -> Entry {
    let text = r#"{"id":"01010101010101010101010101010101","template":"ci-job","owner":"service:runner.ci","name":"one","engine_name":"meshd-ci-job-0a0b0c0d-one","network":"meshd-spawn-1","image":"alpine:3.20","memory":1,"container":"0a","created_at":1,"expires_at":2}"#;
    serde_json::from_str(text).expect("an entry")
}

#[test]
fn each_transition_of_a_spawned_container_is_one_line_and_one_event() {
    let entry = spawned();
    let by = Who::ApiCaller {
        address: "10.210.1.9".parse().expect("a literal"),
        token: None,
        name: None,
    };
    let turns = [
        SpawnTurn::Created,
        SpawnTurn::Exec { command: "sh -c x" },
        SpawnTurn::Started,
        SpawnTurn::Stopped,
        SpawnTurn::Killed { signal: "SIGHUP" },
        SpawnTurn::Removed,
        SpawnTurn::Expired,
        SpawnTurn::Gone,
    ];
    let changes = turns.map(|turn| SpawnedChange {
        entry: &entry,
        by: &by,
        turn,
    });
    let container = ContainerId::parse("0a0b0c0d0e0f01").expect("digits");
    let refused = SpawnRefused {
        by: &by,
        what: "create",
        reason: "HostConfig.Privileged: no template permits this field; leave it out",
    };
    let orphan = OrphanRemoved {
        container: &container,
    };
    let lines = captured::lines(|| {
        for change in &changes {
            change.log();
        }
        refused.log();
        orphan.log();
    });
    let of = "template=ci-job owner=service:runner.ci container=meshd-ci-job-0a0b0c0d-one";
    let ended = |why: &str| format!("INFO a spawned container ended {of} why={why}");
    let expected = [
        format!("INFO a container was spawned {of} image=alpine:3.20"),
        format!("INFO a process was started in a spawned container {of} command=\"sh -c x\""),
        format!("INFO a spawned container was started {of}"),
        format!("INFO a spawned container was stopped {of}"),
        format!("INFO a spawned container received a signal {of} signal=SIGHUP"),
        ended("removed"),
        ended("expired"),
        ended("gone"),
        "WARN spawning refused call=create source=10.210.1.9 reason=\"HostConfig.Privileged: no template permits this field; leave it out\"".to_owned(),
        "WARN a container with the label of spawned ones was nobody's, and was removed container=0a0b0c0d0e0f".to_owned(),
    ];
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_lines(&lines, &expected);
    let whats = changes.iter().filter_map(SpawnedChange::event);
    let whats: Vec<String> = whats
        .map(|event| serde_json::json!(event.what)["what"].to_string())
        .collect();
    let kinds = [
        "spawned",
        "spawn_exec",
        "spawn_started",
        "spawn_stopped",
        "spawn_killed",
        "spawn_removed",
        "spawn_expired",
        "spawn_removed",
    ];
    assert_eq!(whats, kinds.map(|kind| format!("\"{kind}\"")));
}

fn assert_lines(lines: &[String], expected: &[&str]) {
    assert_eq!(lines, expected);
    for line in lines {
        captured::assert_documented(line, DOCUMENT);
    }
}
