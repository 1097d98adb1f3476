//! The status as text: the verdict first, then problems, this node, and its peers, those without a connection first.

use crate::cli::style::{BAD, GOOD, Output, WARNING};
use crate::cli::table;
use crate::cli::why::age;
use crate::model::Label;
use crate::model::text::{bytes, listed};
use crate::protocol::local::{
    GuestStatus, NodeState, NodeStatus, OutsideName, PeerState, PeerStatus, PolicyStatus, RouteRow,
    RouteState, Status,
};

const HEADINGS: [&str; 10] = [
    "PEER",
    "STATE",
    "LAST HEARD",
    "RTT",
    "ADDRESS",
    "TAGS",
    "VERSION",
    "ENDPOINT",
    "RECEIVED",
    "SENT",
];

/// The maximum number of guests that the line about guests names.
const MAX_NAMED: usize = 8;

/// The lines of a status.
pub(super) fn lines(status: &Status, output: Output) -> Vec<String> {
    let mut lines = output.wrap("", &verdict(status, output));
    lines.extend(problems(status, output));
    if let Some(node) = &status.node {
        lines.push(String::new());
        lines.extend(parts(status, node));
    }
    lines.extend(peers(status, output));
    lines.extend(routes(&status.routes));
    lines.extend(outside(&status.outside));
    lines
}

/// The networks outside the mesh, each with the nodes that route to it.
fn routes(routes: &[RouteRow]) -> Vec<String> {
    if routes.is_empty() {
        return Vec::new();
    }
    let rows = routes.iter().map(|route| {
        let state = match route.state {
            RouteState::Own => "this node",
            RouteState::InUse => "in use",
            RouteState::Standby => "standby",
            RouteState::Unreachable => "unreachable",
            RouteState::NotUsed => "not used",
        };
        vec![
            route.network.to_string(),
            route.node.to_string(),
            state.to_owned(),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut lines = vec![String::new()];
    lines.extend(table::lines(&["NETWORK", "BEHIND", "STATE"], &rows));
    lines
}

/// The host names of services outside the mesh, each with the address to which this node forwards.
fn outside(names: &[OutsideName]) -> Vec<String> {
    if names.is_empty() {
        return Vec::new();
    }
    let rows = names.iter().map(|row| {
        let address = row.address.map(|address| address.to_string());
        let address = address.unwrap_or_else(|| "not answered yet".to_owned());
        vec![row.name.to_string(), address]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut lines = vec![String::new()];
    lines.extend(table::lines(&["SERVICES OUTSIDE", "ADDRESS"], &rows));
    lines
}

/// `ready: ...` or `not ready: ...`.
fn verdict(status: &Status, output: Output) -> String {
    let problems = match status.problems.len() {
        0 => String::new(),
        1 => "; 1 problem".to_owned(),
        count => format!("; {count} problems"),
    };
    if let Some(why) = status.why_not_ready() {
        // The reason of a node that has not joined is its first problem.
        let is_problem = status.state == NodeState::Unjoined;
        let problems = if is_problem { "" } else { &problems };
        return format!("{}: {why}{problems}", output.paint(BAD, "not ready"));
    }
    let name = status
        .node
        .as_ref()
        .map_or("this node", |node| node.name.as_str());
    let total = status.peers.len();
    let reached = status.peers.iter().filter(|peer| is_reached(peer)).count();
    let reach = match total {
        0 => format!("{name} is the only node of the mesh"),
        _ => format!("{name} reaches {reached} of {total} other node(s)"),
    };
    let style = if reached == total && status.problems.is_empty() {
        GOOD
    } else {
        WARNING
    };
    format!("{}: {reach}{problems}", output.paint(style, "ready"))
}

fn is_reached(peer: &PeerStatus) -> bool {
    !matches!(peer.state, PeerState::Unreachable | PeerState::Connecting)
}

fn problems(status: &Status, output: Output) -> Vec<String> {
    let mut lines = Vec::new();
    for problem in &status.problems {
        lines.push(String::new());
        let title = output.paint(WARNING, "problem");
        lines.extend(output.wrap("", &format!("{title}: {}", problem.what)));
        lines.extend(output.wrap("  ", &format!("why: {}", problem.why)));
        lines.extend(output.wrap("  ", &format!("fix: {}", problem.fix)));
    }
    lines
}

/// A line for each part that the node has.
fn parts(status: &Status, node: &NodeStatus) -> Vec<String> {
    let tags = match node.tags.as_slice() {
        [] => String::new(),
        tags => format!("  tags {}", joined(tags)),
    };
    let mut lines = vec![format!(
        "node         {}.node.{}  {}  {}{tags}  version {}",
        node.name, node.domain, node.address_v4, node.address_v6, status.version
    )];
    if let Some(interface) = &status.interface {
        lines.push(format!(
            "tunnel       {} on UDP port {}, MTU {}",
            interface.name, interface.listen_port, interface.mtu
        ));
    }
    if let Some(coordinator) = &status.coordinator {
        let state = match (coordinator.connected, coordinator.synced_seconds_ago) {
            (true, _) => "connected".to_owned(),
            (false, Some(ago)) => format!("not reachable, last contact {} ago", age(ago)),
            (false, None) => "not reachable".to_owned(),
        };
        lines.push(format!(
            "coordinator  {} {state}, revision {}",
            coordinator.url, coordinator.revision
        ));
    }
    if let Some(dns) = &status.dns {
        let listen: Vec<String> = dns.listen.iter().map(ToString::to_string).collect();
        let split = match dns.split_dns.as_str() {
            "none" => String::new(),
            program => format!("; {program} sends queries there"),
        };
        lines.push(format!(
            "names        {} served at {}{split}",
            dns.records,
            listen.join(", ")
        ));
    }
    lines.extend(status.policy.as_ref().map(policy));
    lines.extend(guests(&node.guests));
    let services = &status.services;
    let of = |services: usize, instances: usize| {
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        format!(
            "{services} service{} with {instances} instance{}",
            plural(services),
            plural(instances)
        )
    };
    lines.push(format!(
        "services     {} on this node; {} in the mesh",
        of(services.local, services.local_instances),
        of(services.mesh, services.mesh_instances)
    ));
    lines
}

/// The line about the guests of the node, if it has any.
fn guests(guests: &[GuestStatus]) -> Option<String> {
    let here = guests.iter().filter(|guest| guest.is_here);
    let here: Vec<&str> = here.map(|guest| guest.name.as_str()).collect();
    let names = match here.as_slice() {
        [] => "none of them here".to_owned(),
        here => format!("here: {}", listed(here, MAX_NAMED)),
    };
    (!guests.is_empty()).then(|| format!("guests       {}, {names}", guests.len()))
}

fn policy(policy: &PolicyStatus) -> String {
    let in_force = format!("policy       version {}", policy.version);
    match &policy.tried {
        None => format!("{in_force} in force"),
        Some(tried) => {
            let since = match tried.since_seconds_ago {
                Some(ago) => format!("since {} ago", age(ago)),
                None => "at present".to_owned(),
            };
            format!(
                "{in_force} tries another policy {since}: nothing is denied by it, and `meshctl policy denied` lists what would be"
            )
        }
    }
}

fn peers(status: &Status, output: Output) -> Vec<String> {
    if status.peers.is_empty() {
        return Vec::new();
    }
    let mut peers: Vec<&PeerStatus> = status.peers.iter().collect();
    peers.sort_by_key(|peer| (rank(peer.state), &peer.name));
    let rows: Vec<Vec<String>> = peers.iter().map(|peer| row(peer)).collect();
    let mut lines = vec![String::new()];
    for (number, line) in table::fitted(&HEADINGS, &rows, output)
        .into_iter()
        .enumerate()
    {
        let state = number
            .checked_sub(1)
            .and_then(|at| peers.get(at))
            .map(|peer| peer.state);
        lines.push(match state {
            Some(PeerState::Unreachable) => output.paint(BAD, &line),
            Some(PeerState::Connecting) => output.paint(WARNING, &line),
            _ => line,
        });
    }
    let reasons = peers
        .iter()
        .filter_map(|peer| Some((&peer.name, peer.reason.as_ref()?)));
    lines.extend(reasons.flat_map(|(name, reason)| output.wrap("", &format!("{name}: {reason}"))));
    lines
}

/// Peers that are not reached come first.
fn rank(state: PeerState) -> u8 {
    match state {
        PeerState::Unreachable => 0,
        PeerState::Connecting => 1,
        PeerState::Stream => 2,
        PeerState::Relay => 3,
        PeerState::Direct | PeerState::Idle => 4,
    }
}

fn row(peer: &PeerStatus) -> Vec<String> {
    let state = match peer.state {
        PeerState::Direct => "direct",
        PeerState::Relay => "relay",
        PeerState::Stream => "stream",
        PeerState::Connecting => "connecting",
        PeerState::Idle => "idle",
        PeerState::Unreachable => "unreachable",
    };
    let dash = || "-".to_owned();
    let state = match &peer.via {
        Some(via) => format!("{state} via {via}"),
        None => state.to_owned(),
    };
    vec![
        peer.name.to_string(),
        state,
        peer.last_heard_seconds_ago
            .map_or_else(|| "never".into(), |ago| format!("{} ago", age(ago))),
        peer.rtt_ms.map_or_else(dash, |ms| format!("{ms:.1} ms")),
        peer.address_v4.to_string(),
        if peer.tags.is_empty() {
            dash()
        } else {
            joined(&peer.tags)
        },
        peer.version.clone().unwrap_or_else(dash),
        peer.endpoint.map_or_else(dash, |e| e.to_string()),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
    ]
}

fn joined(tags: &[Label]) -> String {
    let tags: Vec<&str> = tags.iter().map(Label::as_str).collect();
    tags.join(",")
}

/// A status for tests: the peers by name, state and age of their last packet, and the number of problems.
#[cfg(test)]
pub(super) fn sample(peers: &[(&str, &str, Option<f64>)], problems: usize) -> Status {
    let key = "01".repeat(32);
    let wireguard = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let peers: Vec<serde_json::Value> = peers
        .iter()
        .map(|(name, state, heard)| {
            serde_json::json!({
                "id": key, "name": name, "tags": ["web", "eu"],
                "address_v4": "10.210.2.1", "address_v6": "fd00::1", "state": state,
                "endpoint": "192.0.2.7:51820", "last_handshake_seconds_ago": null,
                "last_heard_seconds_ago": heard, "version": "0.2.0",
                "reason": if *state == "unreachable" { Some("no answer to 5 probes") } else { None },
                "rtt_ms": heard.map(|_| 0.84), "rx_bytes": 2048, "tx_bytes": 7
            })
        })
        .collect();
    let problem = serde_json::json!({"what": "w", "why": "y", "fix": "f"});
    let value = serde_json::json!({
        "schema": 1, "version": "0.2.0", "state": "up",
        "node": {"id": key, "name": "n1", "tags": ["db"], "address_v4": "10.210.1.1", "address_v6": "fd00::1",
            "block_v4": "10.210.1.0/24", "block_v6": "fd00::/64", "public_key": wireguard, "domain": "mesh"},
        "interface": {"name": "mesh0", "mtu": 1420, "listen_port": 51820},
        "coordinator": {"url": "https://c:7443", "connected": false, "revision": 17, "synced_seconds_ago": 7300.0},
        "dns": {"listen": ["10.210.0.53:53"], "records": 12, "split_dns": "none"},
        "peers": peers, "services": {"local": 1, "mesh": 2, "local_instances": 1, "mesh_instances": 5},
        "problems": vec![problem; problems]
    });
    serde_json::from_value(value).expect("a status")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::TriedPolicy;

    #[test]
    fn guests_are_counted_and_those_that_are_here_are_named() {
        let guest = |name: &str, is_here| GuestStatus {
            name: Label::parse(name).expect("a literal"),
            key: crate::model::WireGuardKey([1; 32]),
            address_v4: [10, 210, 1, 254].into(),
            address_v6: "fd00::fe".parse().expect("a literal"),
            is_here,
            last_heard_seconds_ago: None,
            endpoint: None,
        };
        assert_eq!(guests(&[]), None);
        let said = guests(&[guest("anna", true), guest("bert", false)]);
        assert_eq!(said.as_deref(), Some("guests       2, here: anna"));
        let said = guests(&[guest("bert", false)]);
        assert_eq!(said.as_deref(), Some("guests       1, none of them here"));
    }

    #[test]
    fn the_verdict_is_first_problems_follow_and_unreachable_peers_lead_the_table() {
        let status = sample(&[("a", "direct", Some(3.2)), ("z", "unreachable", None)], 1);
        assert_eq!(
            lines(&status, Output::PLAIN).join("\n"),
            "\
ready: n1 reaches 1 of 2 other node(s); 1 problem

problem: w
  why: y
  fix: f

node         n1.node.mesh  10.210.1.1  fd00::1  tags db  version 0.2.0
tunnel       mesh0 on UDP port 51820, MTU 1420
coordinator  https://c:7443 not reachable, last contact 2 h ago, revision 17
names        12 served at 10.210.0.53:53
services     1 service with 1 instance on this node; 2 services with 5 instances in the mesh

PEER  STATE        LAST HEARD  RTT     ADDRESS     TAGS    VERSION  ENDPOINT         RECEIVED  SENT
z     unreachable  never       -       10.210.2.1  web,eu  0.2.0    192.0.2.7:51820  2.0 KiB   7 B
a     direct       3 s ago     0.8 ms  10.210.2.1  web,eu  0.2.0    192.0.2.7:51820  2.0 KiB   7 B
z: no answer to 5 probes"
        );
    }

    #[test]
    fn the_verdict_says_why_a_node_is_not_ready() {
        let mut alone = sample(&[], 0);
        assert_eq!(
            verdict(&alone, Output::PLAIN),
            "ready: n1 is the only node of the mesh"
        );
        alone.not_ready = Some("no peer was reached".into());
        assert_eq!(
            verdict(&alone, Output::PLAIN),
            "not ready: no peer was reached"
        );
        alone.state = NodeState::Removed;
        alone.not_ready = None;
        alone.problems = sample(&[], 2).problems;
        assert_eq!(
            verdict(&alone, Output::PLAIN),
            "not ready: this node was removed from the mesh; 2 problems"
        );
    }

    #[test]
    fn a_policy_that_is_tried_is_not_shown_as_one_that_denies() {
        let shown = |tried| policy(&PolicyStatus { version: 7, tried });
        assert_eq!(shown(None), "policy       version 7 in force");
        let tried = |since_seconds_ago| {
            Some(TriedPolicy {
                version: 7,
                since_seconds_ago,
            })
        };
        assert_eq!(
            shown(tried(Some(7300.0))),
            "policy       version 7 tries another policy since 2 h ago: nothing is denied by it, and `meshctl policy denied` lists what would be"
        );
        assert!(shown(tried(None)).contains(" at present: nothing is denied by it"));
    }
}
