//! A mesh below which there is IPv6 and no IPv4.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::RecordType;
use meshd::testbed::Host;

use crate::mesh::{Mesh, programs};
use crate::query::{ask, fetch, serve_page};

const PAGE: &str = "the page\n";

/// Takes all IPv4 addresses from the network of a host. Returns whether it has one of IPv6 there.
fn has_ipv6_alone(host: &Host) -> bool {
    let run = |words: &str| {
        let mut command = host.command("ip").expect("a namespace");
        let output = command.args(words.split(' ')).output().expect("a program");
        assert!(output.status.success(), "ip {words}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run("-4 address flush dev eth0");
    assert_eq!(run("-4 -o address show dev eth0"), "");
    !run("-6 -o address show dev eth0 scope global").is_empty()
}

#[test]
fn nodes_join_ping_and_resolve_names_where_there_is_only_ipv6() {
    let Some(mut mesh) = Mesh::hosts(programs(), 2) else {
        return;
    };
    let nodes = mesh.nodes.iter().map(|node| &node.host);
    let hosts: Vec<&Host> = nodes.chain([&mesh.coordinator_host]).collect();
    if !hosts.into_iter().all(has_ipv6_alone) {
        return meshd::testbed::skip_test("this machine has no IPv6");
    }
    mesh.start_coordinator();
    for n in [0, 1] {
        mesh.start_node(n);
    }
    assert_eq!(mesh.admin(&["init"]).code, 0);
    for n in [0, 1] {
        // The coordinator has found its URL by itself, and the token has it.
        let ended = mesh.on(n, &["join", &mesh.token(&[])]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("the nodes reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
    let status = mesh.status(0);
    let far = SocketAddr::from((mesh.nodes[1].host.v6(), 51820));
    assert_eq!(status.peers[0].endpoint, Some(far));
    assert!(status.coordinator.is_some_and(|c| c.connected));

    for (from, to) in [(0, 1), (1, 0)] {
        let (v4, v6) = mesh.addresses(to);
        assert!(mesh.pings(from, &v4.to_string()), "from {from} to {v4}");
        assert!(mesh.pings(from, &v6.to_string()), "from {from} to {v6}");
    }

    serve_page(&mesh.nodes[1].host, 8080, PAGE);
    let ended = mesh.on(1, &["service", "add", "web", "--port", "8080"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let (v4, v6) = mesh.addresses(1);
    let own = mesh.addresses(0);
    let host = &mesh.nodes[0].host;
    for server in [IpAddr::V4(own.0), IpAddr::V6(own.1)] {
        let answered = |name, record_type| {
            let answer = ask(host, server, name, record_type, false);
            answer.map(|answer| answer.data).unwrap_or_default()
        };
        mesh.wait_until("the name is known", || {
            answered("web.svc.mesh.", RecordType::A) == [v4.to_string()]
        });
        let found = answered("web.svc.mesh.", RecordType::AAAA);
        assert_eq!(found, [v6.to_string()], "asked at {server}");
        let found = answered("n2.node.mesh.", RecordType::AAAA);
        assert_eq!(found, [v6.to_string()], "asked at {server}");
    }
    let page = fetch(host, SocketAddr::new(v4.into(), 8080)).expect("the way through the tunnel");
    assert_eq!(page, PAGE);

    // A coordinator that comes back is found again.
    mesh.coordinator.take().expect("it runs").kill();
    mesh.start_coordinator();
    mesh.wait_until("all nodes are connected again", || {
        [0, 1]
            .iter()
            .all(|n| mesh.status(*n).coordinator.is_some_and(|c| c.connected))
    });
}
