//! Values for the tests of the views, and tests of all views together: what members wrote stays text, and the size is bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use maud::Markup;

use super::services::Place;
use super::table::Filter;
use super::{audit, nodes, policy, problems, services, why};
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, ServiceName};
use crate::os::audit::line::Line;
use crate::protocol::admin::{NodeList, NodeRow};
use crate::protocol::local::{
    DeniedDirection, DeniedEnd, DeniedList, DeniedRow, EndpointSource, InstanceRow, NodeState,
    PathKind, PathRow, PathState, PeerState, PeerStatus, Problem, SCHEMA, ServiceCounts,
    ServiceList, ServiceRow, Status, Why,
};
use crate::records::kinds::{Health, Protocol, Source};
use crate::testbed::records::label;

/// What a hostile member would like a browser to run.
const HOSTILE: &str = r#"<script>alert(1)</script>"><img src=x onerror=alert(1)>'"#;

pub(super) fn peer(n: u8, name: &str) -> PeerStatus {
    PeerStatus {
        id: PublicKey([n; 32]),
        name: label(name),
        tags: vec![label("web")],
        address_v4: Ipv4Addr::new(10, 210, n, 1),
        address_v6: Ipv6Addr::LOCALHOST,
        state: PeerState::Direct,
        via: None,
        reason: None,
        last_heard_seconds_ago: Some(3.0),
        version: Some("0.1.0".to_owned()),
        endpoint: None,
        last_handshake_seconds_ago: None,
        rtt_ms: Some(1.0),
        path_mtu: None,
        rx_bytes: 1_000,
        tx_bytes: 2_000,
    }
}

pub(super) fn status(peers: Vec<PeerStatus>) -> Status {
    Status {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        state: NodeState::Up,
        not_ready: None,
        node: None,
        interface: None,
        coordinator: None,
        dns: None,
        policy: None,
        peers,
        routes: Vec::new(),
        outside: Vec::new(),
        services: ServiceCounts::default(),
        problems: Vec::new(),
    }
}

/// Nodes with these names. Every second one is connected, beginning with the first one.
pub(super) fn node_list(names: &[&str]) -> NodeList {
    let row = |(place, name): (usize, &&str)| NodeRow {
        id: PublicKey([7; 32]),
        name: label(name),
        tags: Vec::new(),
        address_v4: Some(Ipv4Addr::new(10, 210, 1, 1)),
        address_v6: None,
        endpoints: Vec::new(),
        connected: place.is_multiple_of(2),
        joined_at: UnixSeconds(1_796_045_264),
        last_seen_at: None,
        version: None,
    };
    NodeList {
        schema: 1,
        nodes: names.iter().enumerate().map(row).collect(),
    }
}

/// The explanation of a path from n1 to n2, with this remedy.
pub(super) fn why(mend: &str) -> Why {
    Why {
        schema: SCHEMA,
        from: label("n1"),
        to: label("n2"),
        state: PeerState::Direct,
        via: None,
        reason: None,
        since_seconds_ago: Some(60.0),
        rtt_ms: Some(1.5),
        mtu: Some(1420),
        last_heard_seconds_ago: Some(1.0),
        last_sent_seconds_ago: None,
        last_handshake_seconds_ago: None,
        rx_bytes: 10,
        call: None,
        paths: vec![PathRow {
            kind: PathKind::Direct,
            endpoint: "192.0.2.7:51820".parse().ok(),
            via: None,
            source: Some(EndpointSource::Host),
            state: PathState::InUse,
            probes: 4,
            answers: 3,
            rtt_ms: Some(1.5),
            mtu: None,
            last_heard_seconds_ago: None,
            last_sent_seconds_ago: None,
            reason: None,
        }],
        mend: vec![mend.to_owned()],
    }
}

pub(super) fn instance_row(id: &str, health: Health) -> InstanceRow {
    let address = IpAddr::from([10, 210, 1, 9]);
    InstanceRow {
        id: label(id),
        node: label("n1"),
        address,
        addresses: vec![address],
        port: 80,
        protocol: Protocol::Tcp,
        port_name: None,
        health,
        reachable: true,
        source: Source::Docker,
        public: Vec::new(),
    }
}

pub(super) fn service_list(name: &str, instances: Vec<InstanceRow>) -> ServiceList {
    let service = ServiceRow {
        name: label(name),
        project: None,
        instances,
    };
    ServiceList {
        schema: SCHEMA,
        services: vec![service],
    }
}

/// Packets of the node `from` to the service `to` that were denied.
pub(super) fn denied_row(from: &str, to: &str) -> DeniedRow {
    DeniedRow {
        from: DeniedEnd {
            address: IpAddr::from([10, 210, 1, 9]),
            node: Some(label(from)),
            services: Vec::new(),
            guest: None,
        },
        to: DeniedEnd {
            address: IpAddr::from([10, 210, 2, 9]),
            node: None,
            services: vec![ServiceName::parse(to).expect("a literal")],
            guest: None,
        },
        asked: "5432/tcp".to_owned(),
        direction: DeniedDirection::Incoming,
        passed: false,
        count: 3,
        first_at: UnixSeconds(1),
        last_at: UnixSeconds(2),
    }
}

pub(super) fn audit_line(what: &str, result: &str) -> Line {
    let line = serde_json::json!({
        "n": 7, "at": "2026-11-30T13:27:44.123Z", "what": what, "result": result,
        "who": {"kind": "local", "uid": 0, "pid": 42},
        "object": {"token": "ab".repeat(32), "uses": 3}, "prev": "0".repeat(64),
    });
    serde_json::from_value(line).expect("a line")
}

/// Asserts that the hostile text is on the page, as text.
#[track_caller]
fn assert_escaped(view: Markup) {
    let page = view.into_string();
    assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
    for markup in ["<script", "<img"] {
        assert!(!page.contains(markup), "{markup}: {page}");
    }
}

#[test]
fn nothing_that_a_member_wrote_becomes_markup() {
    let hostile = || HOSTILE.to_owned();
    let filter = Filter::default();

    let mut of_peer = peer(1, "n2");
    of_peer.reason = Some(hostile());
    of_peer.version = Some(hostile());
    assert_escaped(nodes::of_node(&status(vec![of_peer]), &filter));

    let mut unready = status(Vec::new());
    unready.not_ready = Some(hostile());
    assert_escaped(nodes::of_node(&unready, &filter));

    let mut list = node_list(&["n1"]);
    list.nodes[0].version = Some(hostile());
    assert_escaped(nodes::of_coordinator(&list, &filter));

    let mut of_path = why(HOSTILE);
    of_path.paths[0].reason = Some(hostile());
    assert_escaped(why::view(&of_path));

    let problem = Problem {
        what: hostile(),
        why: hostile(),
        fix: hostile(),
    };
    assert_escaped(problems::view(&[problem]));

    let mut denied = denied_row("n1", "db");
    denied.asked = hostile();
    let facts = policy::PolicyFacts {
        denied: Some(DeniedList {
            schema: 1,
            policy: None,
            denied: vec![denied],
        }),
        ..policy::PolicyFacts::default()
    };
    assert_escaped(policy::view(&facts));

    let mut line = audit_line(HOSTILE, HOSTILE);
    line.at = hostile();
    line.object = serde_json::json!({HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]});
    line.who = serde_json::json!(HOSTILE);
    assert_escaped(audit::view(Some(&[line])));
}

#[test]
fn names_of_members_cannot_be_markup_at_all() {
    for text in [HOSTILE, "<b>", "a b", "\"x\""] {
        assert!(Label::parse(text).is_err(), "{text}");
    }
}

#[test]
fn the_comment_in_a_policy_stays_text() {
    let text = format!("# {HOSTILE}\nlanguage = 1\n");
    let parsed = crate::policy::Policy::parse(&text).expect("a policy");
    let facts = policy::PolicyFacts {
        rules: crate::records::netmap::Rules::Policy(parsed.into()),
        ..policy::PolicyFacts::default()
    };
    assert_escaped(policy::view(&facts));
}

/// The maximum size of a view, in bytes.
const MAX_VIEW: usize = 256 * 1024;

#[test]
fn a_view_of_a_large_mesh_is_bounded_and_says_what_it_leaves_out() {
    let peers = (0..500u16).map(|n| peer(1, &format!("n{n}"))).collect();
    let page = nodes::of_node(&status(peers), &Filter::default()).into_string();
    assert!(page.len() < MAX_VIEW, "{} bytes", page.len());
    assert!(page.contains("of 500 are shown"), "the rest is mentioned");

    let names: Vec<String> = (0..200).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let page = nodes::of_coordinator(&node_list(&names), &Filter::default()).into_string();
    assert!(page.len() < MAX_VIEW, "{} bytes", page.len());
    assert!(!page.contains("are shown"), "200 nodes are all there");

    let services = (0..2000).map(|n| {
        let id = |i: usize| format!("i{n}-{i}");
        let instances = (0..3).map(|i| instance_row(&id(i), Health::Healthy));
        ServiceRow {
            name: label(&format!("s{n}")),
            project: None,
            instances: instances.collect(),
        }
    });
    let list = ServiceList {
        schema: SCHEMA,
        services: services.collect(),
    };
    let page = services::view(&list, &Filter::default(), Place::Node).into_string();
    assert!(page.len() < MAX_VIEW, "{} bytes", page.len());
    assert!(page.contains("of 6000 are shown"), "the rest is mentioned");
    let one = services::view(&list, &Filter::parse("s1999 i1999-2"), Place::Node).into_string();
    assert_eq!(one.matches("rowheader").count(), 1);
}

#[test]
fn long_texts_of_a_member_are_cut() {
    let mut of_peer = peer(1, "n2");
    of_peer.reason = Some("x".repeat(1_000_000));
    let lines: Vec<Line> = (0..10_000)
        .map(|_| audit_line("token_made", "ok"))
        .collect();
    for page in [
        nodes::of_node(&status(vec![of_peer]), &Filter::default()),
        audit::view(Some(&lines)),
    ] {
        let size = page.into_string().len();
        assert!(size < MAX_VIEW, "{size} bytes");
    }
}

/// The relative luminance of a colour such as `#0e1217` (WCAG 2.2).
fn luminance(colour: &str) -> f64 {
    let part = |from: usize| {
        let digits = &colour[from..from + 2];
        let value = u8::from_str_radix(digits, 16).expect("hexadecimal digits");
        let value = f64::from(value) / 255.0;
        if value <= 0.04045 {
            value / 12.92
        } else {
            ((value + 0.055) / 1.055).powf(2.4)
        }
    };
    0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
}

#[test]
fn each_colour_of_a_text_has_enough_contrast_in_both_schemes() {
    let style = include_str!("style.css");
    let schemes: Vec<&str> = style.split(":root {").skip(1).collect();
    assert_eq!(schemes.len(), 2, "a light scheme and a dark one");
    for scheme in schemes {
        let colour = |name: &str| {
            let start = format!("--{name}: ");
            let found = scheme
                .lines()
                .find_map(|line| line.trim().strip_prefix(&start));
            luminance(found.unwrap_or_else(|| panic!("{name} has no colour")))
        };
        for text in ["text", "quiet", "link", "bad", "warning", "good"] {
            for back in ["back", "raised"] {
                let (a, b) = (colour(text), colour(back));
                let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                assert!(contrast >= 4.5, "{text} on {back}: {contrast:.2}");
            }
        }
    }
}
