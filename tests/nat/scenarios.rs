//! What happens at a router while nodes are connected.

use meshd::protocol::local::PeerState;
use meshd::testbed::{Fault, Nat};

use crate::lab::Lab;

/// A node with a public address and one behind a router of this kind, which reach each other.
fn connected(nat: Nat) -> Option<(Lab, usize, usize)> {
    let mut lab = Lab::new()?;
    let (public, home) = (lab.public("public"), lab.behind(nat, "home"));
    lab.join_all();
    lab.wait_until("the two reach each other", || {
        lab.reaches(public, home) && lab.reaches(home, public)
    });
    Some((lab, public, home))
}

#[test]
fn nodes_behind_one_router_reach_each_other_in_its_network() {
    let Some(mut lab) = Lab::new() else { return };
    let first = lab.behind(Nat::Plain, "first");
    let router = lab.nodes[first].router.expect("it is behind one");
    let second = lab.beside(router, "second");
    lab.join_all();
    lab.wait_until("the two reach each other", || {
        lab.reaches(first, second) && lab.reaches(second, first)
    });
    for (from, to) in [(first, second), (second, first)] {
        let endpoint = lab.peer(from, to).endpoint.map(|endpoint| endpoint.ip());
        assert_eq!(endpoint, Some(lab.nodes[to].host.v4().into()));
        assert!(lab.pings(from, to));
    }
}

#[test]
fn a_router_that_is_rebound_in_the_middle_of_a_flow_interrupts_it_for_a_moment() {
    for nat in [Nat::Plain, Nat::Cgnat] {
        let Some((lab, public, home)) = connected(nat) else {
            return;
        };
        let before = lab.peer(public, home).endpoint;
        lab.router(home).rebind().expect("the programs are there");
        lab.wait_until("packets pass both ways again", || {
            lab.pings(home, public) && lab.pings(public, home)
        });
        let after = lab.peer(public, home).endpoint;
        assert_ne!(before, after, "{nat:?}: the router uses another port");
        assert_eq!(
            before.map(|endpoint| endpoint.ip()),
            after.map(|endpoint| endpoint.ip())
        );
    }
}

#[test]
fn a_node_that_hears_nothing_any_more_says_so_and_is_back_after_the_loss() {
    let Some((lab, public, home)) = connected(Nat::Plain) else {
        return;
    };
    let router = lab.router(home);
    for fault in [
        Fault::LoseInward(100),
        Fault::LoseOutward(100),
        Fault::DropUdp,
    ] {
        router.set_fault(Some(fault)).expect("nft");
        // The end that receives nothing.
        let (deaf, other) = match fault {
            Fault::LoseOutward(_) => (public, home),
            Fault::LoseInward(_) | Fault::DropUdp => (home, public),
        };
        // What is sent shows the silence sooner.
        lab.wait_until("the end without packets notices that", || {
            let _ = lab.on(deaf, &["ping", lab.name(other), "-c", "1"]);
            let state = lab.peer(deaf, other).state;
            matches!(state, PeerState::Connecting | PeerState::Unreachable)
        });
        let reason = lab.peer(deaf, other).reason;
        assert!(reason.is_some_and(|why| why.contains("last packet was received")));
        router.set_fault(None).expect("nft");
        lab.wait_until("packets pass both ways again", || {
            lab.pings(home, public) && lab.pings(public, home)
        });
    }
}

#[test]
fn a_tunnel_passes_packets_while_a_third_of_them_is_lost_in_one_direction() {
    let Some((lab, public, home)) = connected(Nat::Plain) else {
        return;
    };
    let router = lab.router(home);
    router.set_fault(Some(Fault::LoseInward(33))).expect("nft");
    lab.wait_until("packets pass both ways", || {
        lab.pings(home, public) && lab.pings(public, home)
    });
}

#[test]
fn nodes_behind_routers_find_each_other_again_without_a_coordinator() {
    let Some(mut lab) = Lab::new() else { return };
    lab.public("public");
    let one = lab.behind(Nat::Plain, "one");
    let other = lab.behind(Nat::Cgnat, "other");
    lab.join_all();
    lab.wait_until("the two have a direct path", || {
        let state = |from, to| lab.peer(from, to).state;
        [state(one, other), state(other, one)] == [PeerState::Direct; 2]
    });
    lab.stop_coordinator();
    lab.router(one).rebind().expect("the programs are there");
    lab.wait_until("packets pass both ways again", || {
        lab.pings(one, other) && lab.pings(other, one)
    });
}
