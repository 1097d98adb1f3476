//! `meshctl why`.

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::exit::CliError;
use super::ping::parse_node;
use super::style::Output;
use super::{Globals, names, table};
use crate::protocol::local::{
    CallCheck, EndpointSource, PathKind, PathRow, PathState, PeerState, Why, WhyRequest,
};

/// The arguments of `meshctl why`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl why web-1        the path from this node to web-1, what was tried, and what to mend
  meshctl why nas web-1    the same on nas; each node knows only the paths that begin or end at itself")]
pub(super) struct WhyArguments {
    /// Name of a node, or one of its mesh addresses; with one node alone, the path from this node to it
    #[arg(value_name = "A", value_parser = parse_node, add = ArgValueCandidates::new(names::peers))]
    from: String,
    /// Name of the other node, or one of its mesh addresses
    #[arg(value_name = "B", value_parser = parse_node, add = ArgValueCandidates::new(names::peers))]
    to: Option<String>,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: WhyArguments, globals: &Globals) -> Result<u8, CliError> {
    let request = match arguments.to {
        Some(to) => WhyRequest {
            from: Some(arguments.from),
            to,
        },
        None => WhyRequest {
            from: None,
            to: arguments.from,
        },
    };
    let why: Why = globals.daemon().post("/v1/why", &request).await?;
    if arguments.json {
        return table::json(&why);
    }
    for line in lines(&why, Output::stdout()) {
        table::line(&line);
    }
    Ok(0)
}

/// The path in use in one line, a line for each path, and what to mend.
fn lines(why: &Why, output: Output) -> Vec<String> {
    let mut lines = vec![summary(why)];
    if let Some(reason) = &why.reason {
        lines.extend(output.wrap("  ", reason));
    }
    let is_reached = !matches!(why.state, PeerState::Connecting | PeerState::Unreachable);
    if let Some(call) = why.call.as_ref().filter(|_| !is_reached) {
        lines.extend(output.wrap("  ", &called(call)));
    }
    if !why.paths.is_empty() {
        let rows: Vec<Vec<String>> = why.paths.iter().map(row).collect();
        let table = table::fitted(&HEADINGS, &rows, output);
        lines.extend(table.into_iter().map(|line| format!("  {line}")));
    }
    for remedy in &why.mend {
        lines.extend(output.wrap("", &format!("to mend: {remedy}")));
    }
    lines
}

const HEADINGS: [&str; 6] = ["PATH", "FROM", "STATE", "PROBES", "RTT", "WHY"];

fn summary(why: &Why) -> String {
    let via = why
        .via
        .as_ref()
        .map_or_else(String::new, |via| format!(" by {via}"));
    let rtt = why
        .rtt_ms
        .map_or_else(String::new, |ms| format!(", {ms:.1} ms"));
    let state = match why.state {
        PeerState::Direct | PeerState::Idle => "direct",
        PeerState::Relay => "relayed",
        PeerState::Stream => "relayed over TLS",
        PeerState::Connecting => "no path yet",
        PeerState::Unreachable => "not reached",
    };
    let mut parts = vec![format!("{} -> {}   {state}{via}{rtt}", why.from, why.to)];
    if let Some(ago) = why.since_seconds_ago {
        parts.push(format!("for {}", age(ago)));
    }
    parts.push(match why.last_heard_seconds_ago {
        Some(ago) => format!("heard {} ago", age(ago)),
        None => "never heard".to_owned(),
    });
    if let Some(ago) = why.last_sent_seconds_ago {
        parts.push(format!("sent {} ago", age(ago)));
    }
    match why.last_handshake_seconds_ago {
        Some(ago) => parts.push(format!("handshake {} ago", age(ago))),
        None if why.rx_bytes > 0 => parts.push("handshakes arrive, none is completed".to_owned()),
        None => {}
    }
    parts.extend(why.mtu.map(|mtu| format!("mtu {mtu}")));
    parts.join(", ")
}

/// The ways by which a call was sent, and its answer.
fn called(call: &CallCheck) -> String {
    let coordinator = call
        .by_coordinator
        .then(|| "over the coordinator".to_owned());
    let members = match call.by_peers {
        0 => None,
        1 => Some("by 1 member".to_owned()),
        count => Some(format!("by {count} members")),
    };
    let ways: Vec<String> = coordinator.into_iter().chain(members).collect();
    let ways = if ways.is_empty() {
        "by nobody, since no way was left".to_owned()
    } else {
        ways.join(" and ")
    };
    let answer = match call.answered_seconds_ago {
        Some(ago) => format!("answered {} ago", age(ago)),
        None => "not answered".to_owned(),
    };
    format!("called {} ago {ways}, {answer}", age(call.sent_seconds_ago))
}

fn row(path: &PathRow) -> Vec<String> {
    let dash = || "-".to_owned();
    let place = match (path.endpoint, &path.via) {
        (_, Some(via)) => via.to_string(),
        (Some(endpoint), None) => endpoint.to_string(),
        (None, None) => dash(),
    };
    let kind = match path.kind {
        PathKind::Direct => match path.source {
            Some(EndpointSource::Set) => "set",
            Some(EndpointSource::Mapped) => "mapped",
            Some(EndpointSource::Host) => "host",
            Some(EndpointSource::Observed) => "observed",
            Some(EndpointSource::Other) | None => "direct",
        },
        PathKind::Relay => "relay",
        PathKind::Stream => "stream",
        PathKind::Other => "other",
    };
    let state = match path.state {
        PathState::InUse => "in use",
        PathState::Standby => "standby",
        PathState::Trying => "trying",
        PathState::Untried => "untried",
        PathState::Failed => "no answer",
        PathState::Unusable => "unusable",
        PathState::Other => "other",
    };
    vec![
        place,
        kind.to_owned(),
        state.to_owned(),
        match path.probes {
            0 => dash(),
            probes => format!("{} of {probes} answered", path.answers),
        },
        path.rtt_ms.map_or_else(dash, |ms| format!("{ms:.1} ms")),
        path.reason.clone().unwrap_or_else(dash),
    ]
}

pub(super) fn age(seconds: f64) -> String {
    // The cast is exact enough for an age, and saturates.
    table::age(seconds.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::SCHEMA;

    fn path(endpoint: &str, state: PathState) -> PathRow {
        PathRow {
            kind: PathKind::Direct,
            endpoint: endpoint.parse().ok(),
            via: None,
            source: Some(EndpointSource::Host),
            state,
            probes: 0,
            answers: 0,
            rtt_ms: None,
            mtu: None,
            last_heard_seconds_ago: None,
            last_sent_seconds_ago: None,
            reason: None,
        }
    }

    fn why(state: PeerState, paths: Vec<PathRow>) -> Why {
        Why {
            schema: SCHEMA,
            from: "nas".parse().expect("a label"),
            to: "web-1".parse().expect("a label"),
            state,
            via: None,
            reason: None,
            since_seconds_ago: None,
            rtt_ms: None,
            mtu: None,
            last_heard_seconds_ago: None,
            last_sent_seconds_ago: None,
            last_handshake_seconds_ago: None,
            rx_bytes: 0,
            call: None,
            paths,
            mend: Vec::new(),
        }
    }

    #[test]
    fn what_was_tried_is_shown_with_its_reason_and_the_remedy() {
        let tried = PathRow {
            probes: 6,
            reason: Some("an address of web-1's private network".into()),
            ..path("10.0.7.2:51820", PathState::Failed)
        };
        let without = PathRow {
            reason: Some("no IPv6 here".into()),
            ..path("[2001:db8::7]:51820", PathState::Unusable)
        };
        let why = Why {
            reason: Some("no packet from it was received yet".into()),
            last_sent_seconds_ago: Some(2.1),
            mend: vec!["on web-1's router forward UDP 51820 to 10.0.7.2".into()],
            ..why(PeerState::Unreachable, vec![tried, without])
        };
        assert_eq!(
            lines(&why, Output::PLAIN).join("\n"),
            "\
nas -> web-1   not reached, never heard, sent 2 s ago
  no packet from it was received yet
  PATH                 FROM  STATE      PROBES           RTT  WHY
  10.0.7.2:51820       host  no answer  0 of 6 answered  -    an address of web-1's private network
  [2001:db8::7]:51820  host  unusable   -                -    no IPv6 here
to mend: on web-1's router forward UDP 51820 to 10.0.7.2"
        );
    }

    #[test]
    fn a_call_to_a_node_that_is_not_reached_is_shown_with_its_ways_and_its_answer() {
        let call = |by_coordinator, by_peers, answered_seconds_ago| {
            let call = CallCheck {
                sent_seconds_ago: 12.0,
                by_coordinator,
                by_peers,
                answered_seconds_ago,
            };
            let why = Why {
                call: Some(call),
                ..why(PeerState::Unreachable, Vec::new())
            };
            lines(&why, Output::PLAIN).remove(1)
        };
        assert_eq!(
            [
                call(true, 2, None),
                call(true, 0, Some(11.0)),
                call(false, 1, None),
            ],
            [
                "  called 12 s ago over the coordinator and by 2 members, not answered",
                "  called 12 s ago over the coordinator, answered 11 s ago",
                "  called 12 s ago by 1 member, not answered",
            ]
        );
        let reached = Why {
            call: Some(CallCheck {
                sent_seconds_ago: 12.0,
                by_coordinator: true,
                by_peers: 0,
                answered_seconds_ago: None,
            }),
            ..why(PeerState::Direct, Vec::new())
        };
        assert_eq!(lines(&reached, Output::PLAIN).len(), 1);
    }

    #[test]
    fn paths_over_relays_have_their_node_and_their_round_trip() {
        let relay = |via: &str, state, rtt| PathRow {
            kind: PathKind::Relay,
            endpoint: None,
            via: via.parse().ok(),
            source: None,
            rtt_ms: Some(rtt),
            ..path("", state)
        };
        let rows = vec![
            relay("fra-1", PathState::InUse, 31.2),
            relay("ams-2", PathState::Standby, 38.0),
        ];
        let why = Why {
            via: "fra-1".parse().ok(),
            since_seconds_ago: Some(130.0),
            rtt_ms: Some(31.2),
            mtu: Some(1408),
            last_heard_seconds_ago: Some(0.2),
            last_handshake_seconds_ago: Some(40.0),
            ..why(PeerState::Relay, rows)
        };
        assert_eq!(
            lines(&why, Output::PLAIN).join("\n"),
            "\
nas -> web-1   relayed by fra-1, 31.2 ms, for 2 min, heard 0 s ago, handshake 40 s ago, mtu 1408
  PATH   FROM   STATE    PROBES  RTT      WHY
  fra-1  relay  in use   -       31.2 ms  -
  ams-2  relay  standby  -       38.0 ms  -"
        );
    }
}
