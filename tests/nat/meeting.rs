//! Nodes behind routers that no relay connects. They meet by way of the coordinator, or of a peer that both reach.

use meshd::protocol::local::{Netcheck, PeerState};
use meshd::testbed::Nat;

use crate::lab::Lab;

/// The address and port from which a server sees the tunnel, and what the server is called.
fn seen(check: &Netcheck) -> Vec<(String, std::net::SocketAddr)> {
    let seen = check.nat.seen.iter();
    let seen = seen.filter_map(|of| Some((of.by.clone(), (of.address, of.port?).into())));
    seen.collect()
}

#[test]
fn a_node_that_no_peer_reaches_learns_its_address_from_the_coordinator() {
    let Some(mut lab) = Lab::new() else { return };
    let home = lab.behind(Nat::Plain, "home");
    let cloud = lab.behind(Nat::Symmetric, "cloud");
    lab.join_all();
    for node in [home, cloud] {
        lab.wait_until("the coordinator tells the address", || {
            !seen(&lab.netcheck(node)).is_empty()
        });
        let check = lab.netcheck(node);
        let found = seen(&check);
        let [(by, address)] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(*by, check.coordinator);
        assert_eq!(address.ip(), lab.router(node).public_v4());
        // The port is that of the tunnel as the router translates it, and not that of another socket.
        if node == home {
            assert_eq!(address.port(), check.udp.port);
        }
    }
}

/// The settings of a node that neither relays nor uses relays.
const WITHOUT_RELAYS: &str = "[relay]\nuse = false\noffer = false\n";

/// Two nodes behind routers of these kinds, and nothing else but the coordinator.
fn alone(kinds: [Nat; 2]) -> Option<(Lab, usize, usize)> {
    let mut lab = Lab::new()?;
    let first = lab.behind_with(kinds[0], "first", WITHOUT_RELAYS, &[]);
    let second = lab.behind_with(kinds[1], "second", WITHOUT_RELAYS, &[]);
    lab.join_all();
    Some((lab, first, second))
}

#[test]
fn two_nodes_behind_routers_meet_by_a_call_over_the_coordinator() {
    for kinds in [
        [Nat::Plain, Nat::Plain],
        [Nat::Cone, Nat::Plain],
        [Nat::Cone, Nat::Symmetric],
    ] {
        let Some((lab, first, second)) = alone(kinds) else {
            return;
        };
        lab.wait_until("the two reach each other", || {
            lab.reaches(first, second) && lab.reaches(second, first)
        });
        for (from, to) in [(first, second), (second, first)] {
            assert_eq!(lab.peer(from, to).state, PeerState::Direct, "{kinds:?}");
            assert!(lab.pings(from, to), "{kinds:?}");
        }
        let endpoint = lab.peer(second, first).endpoint.map(|at| at.ip());
        assert_eq!(endpoint, Some(lab.router(first).public_v4().into()));
    }
}

#[test]
fn two_nodes_that_met_by_a_call_find_each_other_again_after_a_rebinding_and_without_a_coordinator()
{
    // The first router gives each destination another port from then on.
    let Some((mut lab, first, second)) = alone([Nat::Plain, Nat::Cone]) else {
        return;
    };
    lab.wait_until("the two reach each other", || {
        lab.reaches(first, second) && lab.reaches(second, first)
    });
    lab.router(first).rebind().expect("the programs are there");
    lab.wait_until("packets pass both ways again", || {
        lab.pings(first, second) && lab.pings(second, first)
    });
    lab.stop_coordinator();
    assert!(lab.pings(first, second) && lab.pings(second, first));
}

#[test]
fn two_nodes_behind_routers_meet_by_a_call_by_way_of_a_peer_while_the_coordinator_is_away() {
    for kinds in [[Nat::Plain, Nat::Plain], [Nat::Cone, Nat::Symmetric]] {
        let Some(mut lab) = Lab::new() else { return };
        let host = lab.host("public");
        let public = lab.public_on("public", host, WITHOUT_RELAYS);
        let first = lab.behind_with(kinds[0], "first", WITHOUT_RELAYS, &[]);
        let second = lab.behind_with(kinds[1], "second", WITHOUT_RELAYS, &[]);
        lab.join_all();
        lab.wait_until("all know and reach each other", || {
            lab.reaches(first, second) && lab.reaches(second, first) && lab.reaches(public, first)
        });
        lab.stop_coordinator();
        // After a restart neither one knows where the other one's router is, and each reaches the public node alone.
        assert!(lab.stop(first) && lab.stop(second));
        lab.restart(first);
        lab.restart(second);
        lab.wait_until("the two reach each other again", || {
            lab.reaches(first, second) && lab.reaches(second, first)
        });
        for (from, to) in [(first, second), (second, first)] {
            assert_eq!(lab.peer(from, to).state, PeerState::Direct, "{kinds:?}");
            assert!(lab.pings(from, to), "{kinds:?}");
            assert!(!lab.netcheck(from).coordinator_connected);
        }
        let calls = [lab.why(first, second).call, lab.why(second, first).call];
        let mut calls = calls.iter().flatten();
        assert!(
            calls.any(|call| call.by_peers > 0 && !call.by_coordinator),
            "{kinds:?}: {calls:?}"
        );
    }
}
