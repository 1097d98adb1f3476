//! Ports that routers map on request: by the program miniupnpd, and by a router that lies.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meshd::protocol::local::{EndpointSource, Netcheck, PathState, PeerState, PortMappingState};
use meshd::testbed::{Nat, Router};

use crate::lab::Lab;

/// The mapping of a node is proven.
fn is_proven(lab: &Lab, n: usize) -> bool {
    lab.netcheck(n).port_mapping.state == PortMappingState::Proven
}

/// How long after the router reported a mapping, and a peer was first heard, a peer has proven it, as far as the answers of the
/// program tell.
fn time_to_proof(lab: &Lab, n: usize) -> Duration {
    let mut reported = None;
    lab.wait_until("a peer proves the mapping", || {
        let now = Instant::now();
        let ended = lab.on(n, &["netcheck", "--json"]);
        let Ok(check) = serde_json::from_str::<Netcheck>(&ended.stdout) else {
            return false;
        };
        if check.port_mapping.endpoint.is_some() && check.udp.heard > 0 {
            reported.get_or_insert(now);
        }
        check.port_mapping.state == PortMappingState::Proven
    });
    reported.map_or(Duration::ZERO, |at| at.elapsed())
}

#[test]
fn a_port_that_the_router_maps_is_proven_by_a_peer_and_leads_a_symmetric_one_straight_in() {
    for (protocols, expected) in [((true, true), "pcp"), ((false, true), "upnp")] {
        let Some(mut lab) = Lab::new() else { return };
        let router = lab.add_router(Nat::Plain);
        let Some(_served) = lab.serve_mappings(router, protocols) else {
            return;
        };
        let public = lab.public("public");
        let far = lab.behind(Nat::Symmetric, "far");
        lab.join_all();
        let home = lab.beside(router, "home");
        let token = lab.token();
        let took = std::thread::scope(|scope| {
            let join = scope.spawn(|| lab.on(home, &["join", &token]));
            let took = time_to_proof(&lab, home);
            let ended = join.join().expect("no panic");
            assert_eq!(ended.code, 0, "{ended:?}");
            took
        });
        let found = lab.netcheck(home).port_mapping;
        println!(
            "{expected}: proven {took:.0?} after netcheck first showed the mapping and a peer: {found:?}"
        );
        let proven = found.proven_seconds_ago.expect("it is proven");
        let session = lab.why(home, public).last_handshake_seconds_ago;
        println!(
            "{expected}: {proven} s ago; the session with the public node began {session:?} s ago"
        );
        assert_eq!(found.protocol.as_deref(), Some(expected));
        let endpoint = found.endpoint.expect("an endpoint");
        assert_eq!(endpoint.ip(), lab.router(home).mapping_v4());
        assert_ne!(endpoint.port(), 51820);
        // A router with another port for each peer never learns where the node behind the plain one is, but by the mapping.
        lab.wait_until("the symmetric one sends to the mapping", || {
            let why = lab.why(far, home);
            let mut rows = why.paths.iter();
            let row = rows.find(|row| row.endpoint == Some(endpoint));
            let is_used = row.is_some_and(|row| {
                row.source == Some(EndpointSource::Mapped) && row.state == PathState::InUse
            });
            why.state == PeerState::Direct && is_used
        });
        assert!(lab.pings(far, home) && lab.pings(home, far) && lab.pings(public, home));
        assert_eq!(lab.router(home).mappings().expect("nft").lines().count(), 1);
        // It is deleted when the node stops.
        assert!(lab.stop(home));
        assert_eq!(lab.router(home).mappings().expect("nft"), "");
    }
}

#[test]
fn a_mapping_lets_two_nodes_behind_routers_meet_that_no_other_node_connects() {
    let Some(mut lab) = Lab::new() else { return };
    let router = lab.add_router(Nat::Plain);
    let Some(_served) = lab.serve_mappings(router, (true, true)) else {
        return;
    };
    let home = lab.beside(router, "home");
    let far = lab.behind(Nat::Symmetric, "far");
    lab.join_all();
    lab.wait_until("the two reach each other", || {
        lab.reaches(home, far) && lab.reaches(far, home)
    });
    lab.wait_until("the mapping is proven", || is_proven(&lab, home));
    assert_eq!(lab.peer(far, home).state, PeerState::Direct);
    assert!(lab.pings(home, far) && lab.pings(far, home));
}

/// The requests for a port that a router received: when, and for which outer port.
type Requests = Arc<Mutex<Vec<(Instant, u16)>>>;

/// Lets a router answer NAT-PMP as if it had the outer address `outer` and mapped what it is asked for, which it does not.
fn lie(router: &Router, outer: Ipv4Addr) -> Requests {
    let socket = router.inside(|| UdpSocket::bind(("192.168.1.1", 5351)));
    let socket = socket.expect("a namespace").expect("a socket");
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let answer = match &buffer[..length] {
                [0, 0] => [&[0, 128, 0, 0, 0, 0, 0, 1][..], &outer.octets()].concat(),
                [0, 1, _, _, inner @ .., _, _, _, _] if length == 12 => {
                    let port = u16::from_be_bytes([inner[2], inner[3]]);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.push((Instant::now(), port));
                    let head = &[0, 129, 0, 0, 0, 0, 0, 1][..];
                    [head, inner, &7200_u32.to_be_bytes()].concat()
                }
                _ => vec![0, 128, 0, 1, 0, 0, 0, 1],
            };
            let _ = socket.send_to(&answer, from);
        }
    });
    requests
}

#[test]
fn a_router_that_reports_a_mapping_which_it_does_not_have_is_found_out_within_a_minute() {
    let Some(mut lab) = Lab::new() else { return };
    let router = lab.add_router(Nat::Plain);
    let outer = lab.routers()[router].mapping_v4();
    let requests = lie(&lab.routers()[router], outer);
    let public = lab.public("public");
    let home = lab.beside(router, "home");
    lab.join_all();
    lab.wait_until("the router is asked for another mapping", || {
        // The deletion is a request as well, for the port 0.
        let requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!is_proven(&lab, home), "nothing came through it");
        requests.iter().filter(|(_, port)| *port != 0).count() >= 2
    });
    let found = lab.netcheck(home).port_mapping;
    let requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
    let asked: Vec<(Instant, u16)> = requests
        .iter()
        .filter(|(_, port)| *port != 0)
        .copied()
        .collect();
    let took = asked[1].0.duration_since(asked[0].0);
    println!("the lie was noticed and the mapping made anew after {took:.1?}: {found:?}");
    assert!(took < Duration::from_secs(60), "a hang, or no doubt at all");
    assert_ne!(asked[0].1, asked[1].1, "another port is asked for");
    assert!(
        requests.iter().any(|(_, port)| *port == 0),
        "the dead mapping is deleted"
    );
    assert!(
        found
            .reason
            .is_some_and(|why| why.contains("did not get through"))
    );
    // The peers are not told of it, and reach the node as if there were no mapping.
    assert!(lab.pings(public, home));
    let lying = lab.why(public, home).paths.into_iter();
    let lying = lying.filter(|row| row.source == Some(EndpointSource::Mapped));
    assert_eq!(lying.count(), 0);
}

/// Lets a router answer requests of PCP over IPv6 with the result `code`, while it never opens its firewall. Returns the lifetimes in the
/// requests.
fn lie_about_ipv6(router: &Router, code: u8) -> Arc<Mutex<Vec<u32>>> {
    let socket = router.inside(|| UdpSocket::bind("[::]:5351"));
    let socket = socket.expect("a namespace").expect("a socket");
    let lifetimes = Arc::<Mutex<Vec<u32>>>::default();
    let seen = Arc::clone(&lifetimes);
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            if length != 60 || answer[..2] != [2, 1] {
                continue;
            }
            let lifetime = u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]);
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push(lifetime);
            answer[1] |= 0x80;
            answer[3] = code;
            answer[8..24].fill(0);
            let _ = socket.send_to(&answer, from);
        }
    });
    lifetimes
}

#[test]
fn a_hole_in_an_ipv6_firewall_is_asked_for_and_not_believed_while_nothing_came_through_it() {
    let Some(mut lab) = Lab::new() else { return };
    for (name, code) in [("home", 0), ("strict", 2)] {
        let router = lab.add_router(Nat::Firewall6);
        let lifetimes = lie_about_ipv6(&lab.routers()[router], code);
        let home = lab.beside(router, name);
        let ended = lab.on(home, &["join", &lab.token()]);
        assert_eq!(ended.code, 0, "{ended:?}");
        lab.wait_until("the router has answered", || {
            let hole = lab.netcheck(home).ipv6_pinhole;
            hole.is_some_and(|hole| {
                let is_refused = hole.reason.is_some_and(|why| why.contains("not allow it"));
                hole.state == PortMappingState::Unproven || is_refused
            })
        });
        let hole = lab.netcheck(home).ipv6_pinhole.expect("it has an address");
        println!("{name}: {hole:?}");
        let own = SocketAddr::from((lab.nodes[home].host.v6(), 51820));
        let (state, endpoint) = match code {
            0 => (PortMappingState::Unproven, Some(own)),
            _ => (PortMappingState::None, None),
        };
        assert_eq!((hole.state, hole.endpoint), (state, endpoint));
        assert!(lab.stop(home));
        let lifetimes = lifetimes.lock().unwrap_or_else(PoisonError::into_inner);
        // When the node stops, it closes a hole that the router claimed to open: its last request has the lifetime 0.
        assert_eq!(lifetimes.last() == Some(&0), code == 0, "{lifetimes:?}");
    }
}

#[test]
fn an_outer_address_that_is_private_or_shared_is_no_mapping_and_netcheck_says_so() {
    let Some(mut lab) = Lab::new() else { return };
    for (outer, name, words) in [
        (
            [192, 168, 178, 20],
            "double",
            "another router between it and the Internet",
        ),
        ([100, 64, 0, 9], "shared", "shared by the customers"),
        (
            [127, 0, 0, 1],
            "loopback",
            "not one at which others reach it",
        ),
    ] {
        let router = lab.add_router(Nat::Plain);
        let requests = lie(&lab.routers()[router], outer.into());
        let home = lab.beside(router, name);
        let ended = lab.on(home, &["join", &lab.token()]);
        assert_eq!(ended.code, 0, "{ended:?}");
        lab.wait_until("the router has answered", || {
            let found = lab.netcheck(home).port_mapping;
            found.reason.is_some_and(|why| why.contains(words))
        });
        let found = lab.netcheck(home);
        assert_eq!(found.port_mapping.state, PortMappingState::None);
        assert!(found.port_mapping.endpoint.is_none());
        let remedies = found.mend.join("\n");
        assert!(
            remedies.contains("forward UDP port") || remedies.contains("IPv6"),
            "{remedies}"
        );
        let requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(requests.is_empty(), "no port is asked for");
    }
}

/// Lets a router answer the search of UPnP with this place for its description.
fn describe_at(router: &Router, location: String) {
    let socket = router.inside(|| UdpSocket::bind(("192.168.1.1", 1900)));
    let socket = socket.expect("a namespace").expect("a socket");
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: {location}\r\n\r\n"
            );
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    });
}

#[test]
fn a_description_without_end_is_cut_off_and_one_at_another_host_is_not_read() {
    let Some(mut lab) = Lab::new() else { return };
    let (endless, elsewhere) = (lab.add_router(Nat::Plain), lab.add_router(Nat::Plain));
    // One router begins a document that never ends.
    let listener = lab.routers()[endless].inside(|| TcpListener::bind(("192.168.1.1", 5000)));
    let listener = listener.expect("a namespace").expect("a socket");
    let written = Arc::new(Mutex::new(Vec::new()));
    let counts = Arc::clone(&written);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = 0;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n\r\n<root>");
            while stream.write_all(&[b'a'; 4096]).is_ok() {
                bytes += 4096;
            }
            counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(bytes);
        }
    });
    describe_at(
        &lab.routers()[endless],
        "http://192.168.1.1:5000/root.xml".into(),
    );
    // The other one sends its hosts to somebody else.
    let public = lab.public("public");
    let victim = lab.nodes[public].host.v4();
    let asked = lab.nodes[public]
        .host
        .inside(|| TcpListener::bind((victim, 80)));
    let asked = asked.expect("a namespace").expect("a socket");
    asked.set_nonblocking(true).expect("a socket");
    describe_at(
        &lab.routers()[elsewhere],
        format!("http://{victim}/root.xml"),
    );
    let homes = [
        lab.beside(endless, "endless"),
        lab.beside(elsewhere, "elsewhere"),
    ];
    lab.join_all();
    for home in homes {
        lab.wait_until("the router has answered", || {
            let found = lab.netcheck(home).port_mapping;
            found
                .reason
                .is_some_and(|why| why.contains("answers neither"))
        });
    }
    let written = written
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    println!("bytes sent of a description without end: {written:?}");
    // A megabyte is read; what the kernel holds on the way comes on top.
    assert!(!written.is_empty() && written.iter().all(|bytes| *bytes < 16 << 20));
    let refused = asked.accept().map(|_| ()).map_err(|error| error.kind());
    assert_eq!(refused, Err(std::io::ErrorKind::WouldBlock));
}
