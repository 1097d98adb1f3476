//! A mesh whose coordinator is away: the nodes tell each other what changes.

use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use meshd::protocol::gossip::PORT;

use crate::mesh::Mesh;
use crate::query::ask;

const NODES: usize = 20;
/// How long a coordinator whose store was emptied may take until it holds its members again. It waits half a minute for them, and
/// nodes connect again within another quarter of a minute.
const REFILL: Duration = Duration::from_secs(90);

/// Whether node `n` answers `name` with an address.
fn resolves(mesh: &Mesh, n: usize, own: std::net::Ipv4Addr, name: &str) -> bool {
    let host = &mesh.nodes[n].host;
    ask(host, own.into(), name, RecordType::A, false).is_some_and(|a| !a.data.is_empty())
}

/// Waits until the nodes `among` answer `name`, or no longer; gives how long that took.
fn wait_for(
    mesh: &Mesh,
    own: &[std::net::Ipv4Addr],
    among: std::ops::Range<usize>,
    name: &str,
    there: bool,
) -> Duration {
    let began = Instant::now();
    for n in among {
        mesh.wait_until(name, || resolves(mesh, n, own[n], name) == there);
    }
    began.elapsed()
}

#[test]
fn services_change_and_nodes_restart_with_no_coordinator_and_an_emptied_one_is_filled_again() {
    let Some(mut mesh) = Mesh::joined(NODES) else {
        return;
    };
    let own: Vec<_> = (0..NODES).map(|n| mesh.addresses(n).0).collect();
    let add = |mesh: &Mesh, n: usize, name: &str, port: &str| {
        let ended = mesh.on(n, &["service", "add", name, "--port", port]);
        assert_eq!(ended.code, 0, "{ended:?}");
    };
    mesh.coordinator.take().expect("it runs").kill();

    add(&mesh, 0, "web", "80");
    let took = wait_for(&mesh, &own, 1..NODES, "web.svc.mesh.", true);
    eprintln!("a service added on node 1 resolves on nodes 2 to {NODES} after {took:?}");

    // A node that was off while things changed, and every other one restarted since: what it missed, others tell.
    mesh.kill_node(4);
    add(&mesh, 0, "db", "5432");
    add(&mesh, 1, "cache", "11211");
    assert_eq!(mesh.on(0, &["service", "remove", "web"]).code, 0);
    let took = wait_for(&mesh, &own, 5..NODES, "cache.svc.mesh.", true);
    eprintln!("a service added on node 2 resolves on nodes 6 to {NODES} after {took:?}");
    // Node 1 is killed next. No other node could send the changes that it has not sent yet.
    wait_for(&mesh, &own, 5..NODES, "db.svc.mesh.", true);
    wait_for(&mesh, &own, 5..NODES, "web.svc.mesh.", false);
    mesh.kill_node(0);
    mesh.start_node(4);
    mesh.wait_until("the node that was off hears what node 1 said", || {
        resolves(&mesh, 4, own[4], "db.svc.mesh.")
            && resolves(&mesh, 4, own[4], "cache.svc.mesh.")
            && !resolves(&mesh, 4, own[4], "web.svc.mesh.")
    });
    mesh.start_node(0);
    add(&mesh, 4, "late", "80");
    wait_for(&mesh, &own, 0..NODES, "late.svc.mesh.", true);

    // The coordinator comes back with its keys and no records; the administrator makes the mesh again with its key.
    let store = mesh.coordinator_host.path("/run/coordinator");
    for name in ["records.db", "records.db-wal", "records.db-shm"] {
        let _ = std::fs::remove_file(store.join(name));
    }
    mesh.start_coordinator();
    let began = Instant::now();
    assert_eq!(mesh.admin(&["init"]).code, 0);
    // For some time the coordinator admits nobody and only learns which nodes were removed.
    mesh.wait_within(
        REFILL,
        "the coordinator knows all nodes and their blocks again",
        || {
            let listed = mesh.admin(&["node", "list"]).stdout;
            own.iter()
                .all(|address| listed.contains(&address.to_string()))
        },
    );
    eprintln!("refilled {:?} after its start", began.elapsed());
    mesh.wait_within(REFILL, "all are connected", || {
        (0..NODES).all(|n| mesh.status(n).coordinator.is_some_and(|c| c.connected))
    });
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["leave"]).code, 0);
    let joined = mesh.on(0, &["join", &token, "--name", "anew"]);
    assert_eq!(joined.code, 0, "{joined:?}");
    assert!(!own.contains(&mesh.addresses(0).0));
    mesh.wait_until("what changed meanwhile came with the records", || {
        resolves(&mesh, 0, mesh.addresses(0).0, "cache.svc.mesh.")
    });
}

#[test]
fn only_peers_speak_to_a_node_about_records_and_only_inside_the_tunnel() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let address = std::net::SocketAddr::new(mesh.addresses(1).0.into(), PORT);
    let connect = |n: usize, to: std::net::SocketAddr| {
        let host = &mesh.nodes[n].host;
        host.inside(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)))
            .expect("a namespace")
    };
    // A program on a member's machine reaches the port, and gets nothing: it has no key.
    // So does one on the machine itself, which is nobody's peer.
    for n in [0, 1] {
        let mut stream = connect(n, address).expect("a way to the address");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut text);
        assert!(text.is_empty());
    }
    // It is not at the address outside the tunnel.
    let outer = mesh.nodes[1].host.v4();
    assert!(connect(0, std::net::SocketAddr::new(outer.into(), PORT)).is_err());
    // A neighbour that sends to the mesh address around the tunnel gets no answer.
    let route = format!("{}/32", address.ip());
    let outer = outer.to_string();
    let host = &mesh.coordinator_host;
    let mut command = host.command("ip").expect("a namespace");
    let added = command
        .args(["route", "add", &route, "via", &outer])
        .status();
    assert!(added.is_ok_and(|status| status.success()));
    let around = host
        .inside(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)))
        .expect("a namespace");
    assert!(around.is_err());
}
