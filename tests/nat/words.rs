//! What an operator is told about paths: why a peer is not reached, and which port to open.

use meshd::protocol::local::{
    EndpointSource, NatMapping, PathKind, PathState, PeerState, UdpState,
};
use meshd::testbed::Nat;

use crate::lab::Lab;

/// Whether the status of node `n` has a problem with all of `words` in its text.
fn has_problem(lab: &Lab, n: usize, words: &[&str]) -> bool {
    lab.status(n).problems.iter().any(|problem| {
        let text = format!("{} {} {}", problem.what, problem.why, problem.fix);
        words.iter().all(|word| text.contains(word))
    })
}

#[test]
fn two_nodes_behind_routers_are_told_on_both_sides_which_port_to_open_and_where_to_forward_it() {
    let Some(mut lab) = Lab::new() else { return };
    let (home, office) = (
        // One gives each destination another port, and the other one lets only known ports in: a call does not help.
        lab.behind(Nat::Symmetric, "nas"),
        lab.behind(Nat::Cgnat, "web-1"),
    );
    let joins = lab.join_all();
    for (n, peer) in [(home, office), (office, home)] {
        lab.wait_until("the peer is given up", || {
            lab.peer(n, peer).state == PeerState::Unreachable
        });
        let name = lab.name(peer).to_owned();
        assert!(
            has_problem(
                &lab,
                n,
                &["no packet was ever received from", &name, "UDP port 51820"]
            ),
            "{:?}",
            lab.status(n).problems
        );
        let ready = lab.on(n, &["status", "--check", "ready"]);
        assert_eq!(ready.code, 2, "{ready:?}");
        assert!(ready.stderr.contains("UDP port 51820"), "{ready:?}");
        let why = lab.why(n, peer);
        assert_eq!(
            (why.from.as_str(), why.to.as_str()),
            (lab.name(n), name.as_str())
        );
        assert_eq!(why.state, PeerState::Unreachable);
        let mend = why.mend.join("\n");
        for end in [name.as_str(), lab.name(n)] {
            let forward = format!("on {end}'s router");
            assert!(mend.contains(&forward), "{mend}");
        }
        assert!(mend.contains("forward UDP 51820 to 192.168.1.10"), "{mend}");
        let outer = lab.router(n).public_v4().to_string();
        assert!(mend.contains(&outer), "{outer}: {mend}");
        // Both networks have the same addresses.
        let is_same = |reason: &String| reason.contains("same address");
        let mut paths = why.paths.iter();
        let path = paths.find(|path| path.reason.as_ref().is_some_and(is_same));
        let path = path.unwrap_or_else(|| panic!("the address that both have: {why:?}"));
        assert_eq!(
            (path.kind, path.state),
            (PathKind::Direct, PathState::Unusable)
        );
        assert!(path.probes > 0 && path.answers == 0, "{path:?}");
    }
    // The second one to join found the other one, and was told at once.
    let warned = joins
        .iter()
        .any(|join| join.stderr.contains("is not reached"));
    assert!(warned, "{joins:?}");
}

#[test]
fn a_path_that_works_is_shown_from_both_ends_with_its_endpoint_and_where_it_was_seen() {
    let Some(mut lab) = Lab::new() else { return };
    let (public, home) = (lab.public("public"), lab.behind(Nat::Plain, "nas"));
    let third = lab.behind(Nat::Plain, "third");
    lab.join_all();
    lab.wait_until("the two reach each other", || {
        lab.reaches(public, home) && lab.reaches(home, public) && lab.reaches(third, public)
    });
    let there = lab.why(home, public);
    let first = there.paths.first().expect("a path");
    assert_eq!(
        (first.state, first.source),
        (PathState::InUse, Some(EndpointSource::Host))
    );
    assert!(first.probes > 0 && first.answers > 0, "{first:?}");
    assert!(
        there.mtu.is_some() && there.last_heard_seconds_ago.is_some(),
        "{there:?}"
    );
    assert_eq!(there.mend, Vec::<String>::new());
    let back = lab.why(public, home);
    let first = back.paths.first().expect("a path");
    assert_eq!(
        (first.state, first.source),
        (PathState::InUse, Some(EndpointSource::Observed))
    );
    let outer = lab.router(home).public_v4();
    assert_eq!(first.endpoint, Some((outer, 51820).into()));

    let check = lab.netcheck(home);
    assert_eq!(check.udp.state, UdpState::Works);
    assert_eq!(check.nat.mapping, NatMapping::Translated);
    let seen = check.nat.seen.first().expect("the coordinator told");
    assert_eq!(seen.address, std::net::IpAddr::from(outer));
    assert_eq!(lab.netcheck(public).nat.mapping, NatMapping::None);

    // Each node knows its own paths only, and says where to ask.
    let other = lab.on(public, &["why", "nas", "third"]);
    assert_eq!(other.code, 1, "{other:?}");
    assert!(
        other.stderr.contains("run `meshctl why third` on nas"),
        "{other:?}"
    );
    let reversed = lab.on(public, &["why", "nas", "public"]);
    assert!(
        reversed.stdout.starts_with("public -> nas   direct"),
        "{reversed:?}"
    );
    let unknown = lab.on(public, &["why", "nobody"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    let itself = lab.on(public, &["why", "public"]);
    assert_eq!(itself.code, 64, "{itself:?}");
}

#[test]
fn a_node_in_a_network_without_udp_joins_and_is_told_that_nothing_answers() {
    let Some(mut lab) = Lab::new() else { return };
    let (public, blocked) = (lab.public("public"), lab.behind(Nat::UdpBlocked, "office"));
    lab.join_all();
    lab.wait_until("the peer is given up on both sides", || {
        let given_up = |n, peer| lab.peer(n, peer).state == PeerState::Unreachable;
        given_up(blocked, public) && given_up(public, blocked)
    });
    for (n, peer) in [(blocked, "public"), (public, "office")] {
        assert!(
            has_problem(&lab, n, &[peer, "UDP port 51820"]),
            "{:?}",
            lab.status(n).problems
        );
        assert_eq!(lab.on(n, &["status", "--check", "ready"]).code, 2);
    }
    let check = lab.netcheck(blocked);
    assert_eq!(check.udp.state, UdpState::Unanswered);
    let mend = lab.why(blocked, public).mend.join("\n");
    assert!(mend.contains("because no peer answers at all"), "{mend}");
    let mend = lab.why(public, blocked).mend.join("\n");
    assert!(mend.contains("its network lets UDP out"), "{mend}");
}
