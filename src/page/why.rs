//! The view that explains the path to a node.

use maud::{Markup, html};

use super::nodes::shown;
use super::table::{Tone, ago, heading, mark, optional, round_trip, table, text};
use crate::model::text::bytes;
use crate::protocol::local::{PathKind, PathRow, PathState, Why};

/// The path to a node, all others that are known, and what to do.
#[must_use]
pub fn view(why: &Why) -> Markup {
    let (tone, word) = shown(why.state);
    let rows: Vec<Vec<Markup>> = why.paths.iter().map(path_row).collect();
    let columns = [
        "Path",
        "State",
        "Round trip",
        "Answers",
        "Packet size",
        "Last heard",
        "Reason",
    ];
    html! {
        (heading(&format!("From {} to {}", why.from, why.to)))
        p {
            "The path is " (mark(tone, word))
            @if let Some(via) = &why.via { " by way of " (text(via)) }
            @if let Some(since) = why.since_seconds_ago { ", chosen " (ago(since)) }
            "."
        }
        @if let Some(reason) = &why.reason { p { (text(reason)) } }
        @if !why.mend.is_empty() {
            h3 { "What to do" }
            ul { @for step in &why.mend { li { (text(step)) } } }
        }
        dl {
            dt { "Round trip" } dd { (round_trip(why.rtt_ms)) }
            dt { "Last packet from it" } dd { (optional(why.last_heard_seconds_ago.map(ago).as_ref())) }
            dt { "Last packet to it" } dd { (optional(why.last_sent_seconds_ago.map(ago).as_ref())) }
            dt { "Last handshake" } dd { (optional(why.last_handshake_seconds_ago.map(ago).as_ref())) }
            dt { "Received" } dd { (bytes(why.rx_bytes)) }
            @if let Some(call) = &why.call {
                dt { "Last call to open the routers" }
                dd {
                    (ago(call.sent_seconds_ago)) ", "
                    @match call.answered_seconds_ago {
                        Some(answered) => { "answered " (ago(answered)) }
                        None => { "not answered" }
                    }
                }
            }
        }
        (table("All paths that this node knows, the one in use first", &columns, &rows))
        p { a href="#nodes" { "All nodes" } }
    }
}

fn path_row(path: &PathRow) -> Vec<Markup> {
    let kind = match path.kind {
        PathKind::Direct => "direct",
        PathKind::Relay => "relayed",
        PathKind::Stream => "over TLS",
        PathKind::Other => "other",
    };
    let (tone, state) = match path.state {
        PathState::InUse => (Tone::Good, "in use"),
        PathState::Standby => (Tone::Good, "standby"),
        PathState::Trying => (Tone::Warning, "trying"),
        PathState::Untried => (Tone::Plain, "untried"),
        PathState::Failed => (Tone::Bad, "failed"),
        PathState::Unusable => (Tone::Bad, "unusable"),
        PathState::Other => (Tone::Plain, "other"),
    };
    vec![
        html! {
            (kind)
            @if let Some(endpoint) = &path.endpoint { " to " (text(endpoint)) }
            @if let Some(via) = &path.via { " by way of " (text(via)) }
        },
        mark(tone, state),
        html! { (round_trip(path.rtt_ms)) },
        html! { (path.answers) " of " (path.probes) },
        optional(path.mtu.as_ref()),
        optional(path.last_heard_seconds_ago.map(ago).as_ref()),
        optional(path.reason.as_ref()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::why;

    #[test]
    fn the_path_in_use_the_others_and_the_remedy_are_shown() {
        let page = view(&why("open UDP port 51820")).into_string();
        assert!(page.contains("From n1 to n2"), "{page}");
        assert!(page.contains("<li>open UDP port 51820</li>"), "{page}");
        assert!(
            page.contains(r#"<span class="good">in use</span>"#),
            "{page}"
        );
        assert!(page.contains("direct to 192.0.2.7:51820"), "{page}");
        assert!(page.contains("3 of 4"), "{page}");
    }
}
