//! `meshctl status`.

use clap::{Args, ValueEnum};

use super::exit::CliError;
use super::{Globals, table};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{NodeState, PeerState, Status, SystemList};

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Exit with 0 if the check passes; otherwise print why and exit with 2: `live` = meshd answers, `ready` = joined and working
    #[arg(long, value_enum, value_name = "live|ready")]
    check: Option<Check>,
    /// List all changes that meshd made to the machine, and why
    #[arg(long)]
    system: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    Live,
    Ready,
}

pub(super) async fn run(arguments: &StatusArguments, globals: &Globals) -> Result<u8, CliError> {
    if arguments.system {
        let list: SystemList = globals.daemon().get("/v1/system").await?;
        if arguments.json {
            return table::json(&list);
        }
        let rows: Vec<Vec<String>> = list
            .entries
            .into_iter()
            .map(|e| vec![e.kind, e.what, e.why])
            .collect();
        table::table(&["KIND", "WHAT", "WHY"], &rows);
        return Ok(0);
    }
    let answer: Result<Status, CliError> = globals.daemon().get("/v1/status").await;
    if let Some(check) = arguments.check {
        return check_result(check, answer);
    }
    let status = answer?;
    if arguments.json {
        return table::json(&status);
    }
    print(&status);
    Ok(0)
}

fn check_result(check: Check, answer: Result<Status, CliError>) -> Result<u8, CliError> {
    let not_ready = |why: &str| CliError::new(ErrorCode::NotFound, format!("not ready: {why}"));
    match (check, answer) {
        // If meshd does not answer, the check has failed. A caller without permission learns nothing about meshd.
        (_, Err(error)) if error.code == ErrorCode::Unreachable.exit_code() => {
            Err(CliError::new(ErrorCode::NotFound, error.message))
        }
        (_, Err(error)) => Err(error),
        (Check::Live, Ok(_)) => Ok(0),
        (Check::Ready, Ok(status)) => status
            .why_not_ready()
            .map_or(Ok(0), |why| Err(not_ready(&why))),
    }
}

fn print(status: &Status) {
    let Some(node) = &status.node else {
        table::line(match status.state {
            NodeState::Joining => "joining",
            _ => "this node has not joined a mesh; run `meshctl join TOKEN`",
        });
        print_problems(status);
        return;
    };
    let removed = match status.state {
        NodeState::Removed => "  REMOVED FROM THE MESH",
        _ => "",
    };
    table::line(&format!(
        "{}.node.{}  {}  {}{removed}",
        node.name, node.domain, node.address_v4, node.address_v6
    ));
    print_parts(status);
    table::line(&format!(
        "services     {} on this node, {} in the mesh",
        status.services.local, status.services.mesh
    ));
    print_peers(status);
    print_problems(status);
}

/// Prints a line for the tunnel, the coordinator and the resolver, as far as the node has them.
fn print_parts(status: &Status) {
    if let Some(interface) = &status.interface {
        table::line(&format!(
            "tunnel       {} on UDP port {}, MTU {}",
            interface.name, interface.listen_port, interface.mtu
        ));
    }
    if let Some(coordinator) = &status.coordinator {
        let state = match (coordinator.connected, coordinator.synced_seconds_ago) {
            (true, _) => "connected".to_owned(),
            (false, Some(ago)) => format!("not reachable, last contact {ago:.0} s ago"),
            (false, None) => "not reachable".to_owned(),
        };
        table::line(&format!(
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
        table::line(&format!(
            "names        {} served at {}{split}",
            dns.records,
            listen.join(", ")
        ));
    }
}

fn print_peers(status: &Status) {
    if status.peers.is_empty() {
        return;
    }
    table::line("");
    let rows: Vec<Vec<String>> = status.peers.iter().map(peer_row).collect();
    table::table(
        &[
            "PEER",
            "ADDRESS",
            "STATE",
            "RTT",
            "LAST HEARD",
            "ENDPOINT",
            "RECEIVED",
            "SENT",
        ],
        &rows,
    );
    for peer in &status.peers {
        if let Some(reason) = &peer.reason {
            table::line(&format!("{}: {reason}", peer.name));
        }
    }
}

fn print_problems(status: &Status) {
    for problem in &status.problems {
        table::line(&format!(
            "\nproblem: {}\n  why: {}\n  fix: {}",
            problem.what, problem.why, problem.fix
        ));
    }
}

fn peer_row(peer: &crate::protocol::local::PeerStatus) -> Vec<String> {
    let state = match peer.state {
        PeerState::Direct => "direct",
        PeerState::Relay => "relay",
        PeerState::Stream => "stream",
        PeerState::Connecting => "connecting",
        PeerState::Idle => "idle",
        PeerState::Unreachable => "unreachable",
    };
    vec![
        peer.name.to_string(),
        peer.address_v4.to_string(),
        state.to_owned(),
        peer.rtt_ms
            .map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms")),
        peer.last_heard_seconds_ago
            .map_or_else(|| "never".into(), |ago| format!("{ago:.0} s ago")),
        peer.endpoint.map_or_else(|| "-".into(), |e| e.to_string()),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
    ]
}

/// A number of bytes, with the unit that leaves up to four digits.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_fails_with_the_reason_and_live_does_not() {
        let status = |state: NodeState, not_ready: Option<&str>| Status {
            schema: 1,
            version: "0".into(),
            state,
            not_ready: not_ready.map(str::to_owned),
            node: None,
            interface: None,
            coordinator: None,
            dns: None,
            peers: Vec::new(),
            services: crate::protocol::local::ServiceCounts::default(),
            problems: Vec::new(),
        };
        let code = |check, status| match check_result(check, Ok(status)) {
            Ok(code) => (code, String::new()),
            Err(error) => (error.code, error.message),
        };
        let up = status(NodeState::Up, None);
        assert_eq!(code(Check::Ready, up), (0, String::new()));
        let alone = status(NodeState::Up, Some("no peer was reached"));
        let (ended, why) = code(Check::Ready, alone.clone());
        assert_eq!((ended, why.as_str()), (2, "not ready: no peer was reached"));
        assert_eq!(code(Check::Live, alone).0, 0);
        let (ended, why) = code(Check::Ready, status(NodeState::Removed, None));
        assert!(ended == 2 && why.contains("removed"), "{why}");
    }

    #[test]
    fn bytes_are_shown_with_their_unit() {
        assert_eq!(
            [0, 1023, 1536, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
    }
}
