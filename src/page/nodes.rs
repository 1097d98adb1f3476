//! The view of nodes: of a node the paths to its peers, and of a coordinator which nodes are connected.

use maud::{Markup, html};

use super::table::{
    Filter, MAX_ROWS, Tone, ago, date, heading, left_out, mark, optional, round_trip, table, text,
};
use crate::model::Label;
use crate::model::text::bytes;
use crate::protocol::admin::{NodeList, NodeRow};
use crate::protocol::local::{PeerState, PeerStatus, Status};

/// The peers of a node, with the paths to them. Those that are reached worst are first.
#[must_use]
pub fn of_node(status: &Status, filter: &Filter) -> Markup {
    let mut peers: Vec<&PeerStatus> = status.peers.iter().collect();
    peers.retain(|peer| filter.passes(&words_of_peer(peer)));
    peers.sort_by(|a, b| {
        let states = rank(a.state).cmp(&rank(b.state));
        let slower_first = slowness(b).total_cmp(&slowness(a));
        states.then(slower_first).then_with(|| a.name.cmp(&b.name))
    });
    let rows: Vec<Vec<Markup>> = peers.iter().take(MAX_ROWS).map(|p| peer_row(p)).collect();
    let columns = [
        "Node",
        "Path",
        "Round trip",
        "Last heard",
        "Traffic",
        "Address",
        "Version",
    ];
    html! {
        (heading("Nodes and paths"))
        @if let Some(node) = &status.node {
            p {
                "This is the node " strong { (text(&node.name)) } " at " (text(&node.address_v4)) ", with meshd "
                (text(&status.version)) "."
            }
        }
        @if let Some(why) = status.why_not_ready() {
            p class="bad" { "It is not ready: " (text(&why)) }
        }
        (counts(&status.peers))
        (table("The paths from this node, the worst ones first", &columns, &rows))
        (left_out(peers.len()))
    }
}

/// The number of peers in each state.
fn counts(peers: &[PeerStatus]) -> Markup {
    let mut states: Vec<(PeerState, usize)> = Vec::new();
    for peer in peers {
        match states.iter_mut().find(|(state, _)| *state == peer.state) {
            Some((_, count)) => *count += 1,
            None => states.push((peer.state, 1)),
        }
    }
    states.sort_by_key(|(state, _)| rank(*state));
    html! {
        p {
            (peers.len()) " other nodes"
            @for (place, (state, count)) in states.iter().enumerate() {
                @if place == 0 { ": " } @else { ", " }
                (count) " " (shown(*state).1)
            }
            "."
        }
    }
}

fn peer_row(peer: &PeerStatus) -> Vec<Markup> {
    let (tone, word) = shown(peer.state);
    let path = html! {
        (mark(tone, word))
        @if let Some(via) = &peer.via { " by way of " (text(via)) }
        @if let Some(reason) = &peer.reason { span class="reason" { (text(reason)) } }
    };
    let name = peer.name.as_str();
    vec![
        html! {
            a href={ "#why/" (name) } { (name) }
            (tags(&peer.tags))
        },
        path,
        html! { (round_trip(peer.rtt_ms)) },
        optional(peer.last_heard_seconds_ago.map(ago).as_ref()),
        html! { (bytes(peer.rx_bytes)) " in, " (bytes(peer.tx_bytes)) " out" },
        text(&peer.address_v4),
        optional(peer.version.as_ref()),
    ]
}

fn words_of_peer(peer: &PeerStatus) -> String {
    let mut words = format!(
        "{} {} {} {}",
        peer.name,
        shown(peer.state).1,
        peer.address_v4,
        peer.address_v6
    );
    let more = [&peer.reason, &peer.version].into_iter().flatten();
    for word in more
        .map(String::as_str)
        .chain(peer.tags.iter().map(Label::as_str))
    {
        words.push(' ');
        words.push_str(word);
    }
    words
}

/// The nodes of a mesh, as a coordinator knows them. Those that are not connected are first.
#[must_use]
pub fn of_coordinator(list: &NodeList, filter: &Filter) -> Markup {
    let mut nodes: Vec<&NodeRow> = list.nodes.iter().collect();
    nodes.retain(|node| filter.passes(&words_of_node(node)));
    nodes.sort_by(|a, b| (a.connected, &a.name).cmp(&(b.connected, &b.name)));
    let connected = list.nodes.iter().filter(|node| node.connected).count();
    let rows: Vec<Vec<Markup>> = nodes.iter().take(MAX_ROWS).map(|n| node_row(n)).collect();
    let columns = [
        "Node",
        "Control stream",
        "Last seen",
        "Joined",
        "Address",
        "Endpoints",
        "Version",
    ];
    html! {
        (heading("Nodes"))
        p { (connected) " of " (list.nodes.len()) " nodes are connected to this coordinator." }
        p {
            "A coordinator is in no path. The page of a node shows the paths that begin there."
        }
        (table("The nodes of the mesh, those without a connection first", &columns, &rows))
        (left_out(nodes.len()))
    }
}

fn node_row(node: &NodeRow) -> Vec<Markup> {
    let (tone, word) = if node.connected {
        (Tone::Good, "connected")
    } else {
        (Tone::Bad, "not connected")
    };
    let endpoints = node.endpoints.iter().map(ToString::to_string);
    let endpoints: Vec<String> = endpoints.collect();
    vec![
        html! { (text(&node.name)) (tags(&node.tags)) },
        mark(tone, word),
        optional(node.last_seen_at.map(date).as_ref()),
        text(&date(node.joined_at)),
        optional(node.address_v4.as_ref()),
        text(&endpoints.join(", ")),
        optional(node.version.as_ref()),
    ]
}

fn words_of_node(node: &NodeRow) -> String {
    let state = if node.connected {
        "connected"
    } else {
        "not connected"
    };
    let address = node.address_v4.map(|address| address.to_string());
    let tags: Vec<&str> = node.tags.iter().map(Label::as_str).collect();
    format!(
        "{} {state} {} {} {}",
        node.name,
        address.unwrap_or_default(),
        tags.join(" "),
        node.version.as_deref().unwrap_or_default()
    )
}

fn tags(tags: &[Label]) -> Markup {
    html! {
        @for tag in tags { " " span class="tag" { (text(tag)) } }
    }
}

/// How a state is shown.
#[must_use]
pub fn shown(state: PeerState) -> (Tone, &'static str) {
    match state {
        PeerState::Direct => (Tone::Good, "direct"),
        PeerState::Relay => (Tone::Warning, "relayed"),
        PeerState::Stream => (Tone::Warning, "over TLS"),
        PeerState::Connecting => (Tone::Warning, "connecting"),
        PeerState::Idle => (Tone::Plain, "idle"),
        PeerState::Unreachable => (Tone::Bad, "unreachable"),
    }
}

/// The place of a state in the order from the worst to the best.
#[must_use]
pub fn rank(state: PeerState) -> u8 {
    match state {
        PeerState::Unreachable => 0,
        PeerState::Connecting => 1,
        PeerState::Stream => 2,
        PeerState::Relay => 3,
        PeerState::Direct => 4,
        PeerState::Idle => 5,
    }
}

/// The round trip in milliseconds. A peer without one is slower than all others.
fn slowness(peer: &PeerStatus) -> f64 {
    peer.rtt_ms.unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::{node_list, peer, status};

    #[test]
    fn the_worst_paths_are_first_and_each_peer_leads_to_its_explanation() {
        let mut far = peer(1, "far");
        far.rtt_ms = Some(80.0);
        let mut near = peer(2, "near");
        near.rtt_ms = Some(0.4);
        let mut gone = peer(3, "gone");
        gone.state = PeerState::Unreachable;
        gone.reason = Some("it does not answer".to_owned());
        let page = of_node(&status(vec![near, far, gone]), &Filter::default()).into_string();
        let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}: {page}"));
        assert!(place(r##"href="#why/gone""##) < place(r##"href="#why/far""##));
        assert!(place(r##"href="#why/far""##) < place(r##"href="#why/near""##));
        assert!(page.contains(r#"<span class="bad">unreachable</span>"#));
        assert!(page.contains("it does not answer") && page.contains("80.0 ms"));
        assert!(
            page.contains("3 other nodes: 1 unreachable, 2 direct."),
            "{page}"
        );
    }

    #[test]
    fn a_filter_leaves_the_rows_with_its_words() {
        let peers = (1..=50).map(|n| peer(n, &format!("n{n}"))).collect();
        let page = of_node(&status(peers), &Filter::parse("n42")).into_string();
        assert!(page.contains("#why/n42"), "{page}");
        assert_eq!(page.matches("#why/").count(), 1);
    }

    #[test]
    fn nodes_without_a_connection_are_first() {
        let page = of_coordinator(&node_list(&["a", "b", "c"]), &Filter::default());
        let page = page.into_string();
        // The list has every second node connected, beginning with the first one.
        assert!(page.find(">b<") < page.find(">a<"), "{page}");
        assert!(page.contains("2 of 3 nodes are connected"), "{page}");
        let some = of_coordinator(
            &node_list(&["a", "b", "c"]),
            &Filter::parse("not connected"),
        );
        assert_eq!(some.into_string().matches("rowheader").count(), 1);
    }
}
