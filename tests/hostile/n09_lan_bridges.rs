//! No machine on the LAN of a node's bridge is taken for a container: it gets no names and no way into the mesh.

use hickory_proto::rr::RecordType;

use crate::engine;
use crate::mesh::{Mesh, write};
use crate::query::ask;

fn ip(mesh: &Mesh, n: usize, arguments: &str) {
    let words: Vec<&str> = arguments.split(' ').collect();
    assert!(mesh.succeeds(n, "ip", &words), "ip {arguments}");
}

fn has_problem(mesh: &Mesh, n: usize, words: &[&str]) -> bool {
    mesh.status(n).problems.iter().any(|problem| {
        let text = format!("{} {} {}", problem.what, problem.why, problem.fix);
        words.iter().all(|word| text.contains(word))
    })
}

#[test]
fn a_lan_behind_a_bridge_called_br_lan_is_not_taken_for_containers() {
    assert_lan_is_kept_out(false);
}

#[test]
fn a_lan_whose_bridge_the_engine_uses_as_well_is_not_taken_for_containers() {
    assert_lan_is_kept_out(true);
}

/// A machine on the LAN of a node's bridge gets no names and no way into the mesh, also where the engine says, if `by_engine`,
/// that it has a network on that bridge.
fn assert_lan_is_kept_out(by_engine: bool) {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    // The first node's only uplink becomes a bridge; the coordinator's host is the machine on its LAN.
    let v4 = mesh.nodes[0].host.v4();
    for arguments in [
        "link add br-lan type bridge",
        "link set br-lan up",
        "address flush dev eth0",
        "link set eth0 master br-lan",
        &format!("address add {v4}/24 dev br-lan"),
    ] {
        ip(&mesh, 0, arguments);
    }
    if by_engine {
        // What stands for a network card: the cables of these machines look like those of containers.
        ip(&mesh, 0, "link add card type vxlan id 7 dstport 4789");
        ip(&mesh, 0, "link set card master br-lan");
        engine::start(&mesh.nodes[0].host, "br-lan", "198.51.100.0/24", None);
    }
    assert!(mesh.succeeds(0, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]));
    mesh.kill_node(0);
    let text = format!("[dns]\nlisten = [\"{v4}\"]\n");
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    for n in 0..2 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("they reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
    let records = std::fs::read_to_string(mesh.nodes[1].host.path("/run/state/records.jsonl"));
    let endpoint = format!("{v4}:51820");
    assert!(
        records
            .expect("the host's own file system")
            .contains(&endpoint),
        "the bridge's address is offered as an endpoint"
    );

    let lan = &mesh.coordinator_host;
    let via = ["route", "add", "10.210.0.0/16", "via", &v4.to_string()];
    let mut command = lan.command("ip").expect("a namespace");
    assert!(
        command
            .args(via)
            .status()
            .is_ok_and(|status| status.success())
    );
    let own = &mesh.nodes[0].host;
    let (at_lan, at_mesh) = (v4.into(), "10.210.0.53".parse().expect("a literal"));
    mesh.wait_until("the host itself is answered", || {
        ask(own, at_mesh, "n1.node.mesh.", RecordType::A, false).is_some()
            && ask(own, at_lan, "n1.node.mesh.", RecordType::A, false).is_some()
    });
    if by_engine {
        mesh.wait_until("the bridge is left out, and named", || {
            has_problem(&mesh, 0, &["containers on br-lan", "a bridge of its own"])
        });
    }
    for tcp in [false, true] {
        // A name of the mesh, and one that would have to be asked for elsewhere.
        for name in ["n1.node.mesh.", "example.org."] {
            for address in [at_lan, at_mesh] {
                let answer = ask(lan, address, name, RecordType::A, tcp);
                assert_eq!(answer, None, "{name} at {address}, tcp: {tcp}");
            }
        }
    }
    let pings = |address: &str| {
        let mut command = lan.command("ping").expect("a namespace");
        command.args(["-c", "2", "-i", "0.2", "-w", "2", address]);
        command.output().is_ok_and(|output| output.status.success())
    };
    let [(first, _), (second, _)] = [mesh.addresses(0), mesh.addresses(1)];
    assert!(mesh.pings(0, &second.to_string()));
    assert!(
        !pings(&second.to_string()),
        "packets are forwarded as the node's"
    );
    assert!(!pings(&first.to_string()));
}
