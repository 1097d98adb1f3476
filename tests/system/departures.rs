//! How fast what cannot be used is out of the answers: a node that is killed, a service that fails its checks. The times
//! are printed; only a hang fails.

use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;

use crate::mesh::{Mesh, write};
use crate::query::ask;

/// The addresses that node `n` answers for `web`, sorted.
fn web(mesh: &Mesh, n: usize, server: IpAddr) -> Vec<String> {
    let host = &mesh.nodes[n].host;
    ask(host, server, "web.svc.mesh.", RecordType::A, false)
        .map(|answer| answer.data)
        .unwrap_or_default()
}

/// Waits until every one of `nodes` answers `wanted`; gives how long that took.
fn until_all_answer(mesh: &Mesh, nodes: &[(usize, IpAddr)], wanted: &[String]) -> Duration {
    let start = Instant::now();
    mesh.wait_until(&format!("all answer {wanted:?}"), || {
        nodes
            .iter()
            .all(|(n, server)| web(mesh, *n, *server) == wanted)
    });
    start.elapsed()
}

#[test]
fn a_killed_node_is_out_of_every_others_answers_with_the_coordinator_dead_throughout() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    for n in 0..2 {
        let ended = mesh.on(n, &["service", "add", "web", "--port", "80"]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let own = |n: usize| mesh.addresses(n).0;
    let addresses: Vec<String> = (0..2).map(|n| own(n).to_string()).collect();
    let others = [(0, IpAddr::V4(own(0))), (2, IpAddr::V4(own(2)))];
    let all = [others[0], (1, IpAddr::V4(own(1))), others[1]];
    until_all_answer(&mesh, &all, &addresses);
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(1);
    let out = until_all_answer(&mesh, &others, &addresses[..1]);
    println!(
        "out of the answers of the others {:.1} s after it was killed",
        out.as_secs_f64()
    );
    mesh.start_node(1);
    let back = until_all_answer(&mesh, &all, &addresses);
    println!("back {:.1} s after it was started", back.as_secs_f64());
}

#[test]
fn a_service_that_fails_its_checks_is_out_of_every_others_answers() {
    let Some(mut mesh) = Mesh::start(3) else {
        return;
    };
    mesh.kill_node(0);
    let text = "[[service]]\nname = \"web\"\nport = 80\n\
        check = { tcp = true, interval = \"1s\", timeout = \"500ms\", fall = 2 }\n";
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", text);
    mesh.start_node_with(0, &["--config", &file]);
    let listen = |mesh: &Mesh| {
        let host = &mesh.nodes[0].host;
        host.inside(|| TcpListener::bind("0.0.0.0:80"))
            .expect("a namespace")
            .expect("a free port")
    };
    let listener = listen(&mesh);
    let token = mesh.token(&["--uses", "3"]);
    for n in 0..3 {
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    // Another one, without which the failing one would be answered for want of a better.
    let ended = mesh.on(1, &["service", "add", "web", "--port", "80"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let own = |n: usize| mesh.addresses(n).0;
    let addresses: Vec<String> = (0..2).map(|n| own(n).to_string()).collect();
    let others = [(1, IpAddr::V4(own(1))), (2, IpAddr::V4(own(2)))];
    until_all_answer(&mesh, &others, &addresses);
    drop(listener);
    let out = until_all_answer(&mesh, &others, &addresses[1..]);
    println!(
        "out {:.1} s after it stopped, checked every second, two failures in a row",
        out.as_secs_f64()
    );
    let _listener = listen(&mesh);
    let back = until_all_answer(&mesh, &others, &addresses);
    println!("back {:.1} s after it listens again", back.as_secs_f64());
}
