//! No machine on the LAN of a node's bridge is taken for a container: it gets no names and no way into the mesh.

use hickory_proto::rr::RecordType;
use meshd::lab::Host;

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
    assert_lan_is_kept_out("br-lan", false);
}

#[test]
fn a_lan_behind_a_bridge_called_docker0_is_not_taken_for_containers() {
    assert_lan_is_kept_out("docker0", false);
}

#[test]
fn a_lan_whose_bridge_the_engine_uses_as_well_is_not_taken_for_containers() {
    assert_lan_is_kept_out("br-lan", true);
}

/// A machine on the LAN of a node's bridge called `bridge` gets no names and no way into the mesh, also where the engine says, if
/// `by_engine`, that it has a network on that bridge.
fn assert_lan_is_kept_out(bridge: &str, by_engine: bool) {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    // The first node's only uplink becomes a bridge; the coordinator's host is the machine on its LAN.
    let v4 = mesh.nodes[0].host.v4();
    for arguments in [
        &format!("link add {bridge} type bridge"),
        &format!("link set {bridge} up"),
        "address flush dev eth0",
        &format!("link set eth0 master {bridge}"),
        &format!("address add {v4}/24 dev {bridge}"),
    ] {
        ip(&mesh, 0, arguments);
    }
    if by_engine {
        // What stands for a network card: the cables of these machines look like those of containers.
        ip(&mesh, 0, "link add card type vxlan id 7 dstport 4789");
        ip(&mesh, 0, &format!("link set card master {bridge}"));
        engine::start(&mesh.nodes[0].host, bridge, "198.51.100.0/24", None);
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
            let containers = format!("containers on {bridge}");
            has_problem(&mesh, 0, &[&containers, "a bridge of its own"])
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
    let [(first, _), (second, _)] = [mesh.addresses(0), mesh.addresses(1)];
    assert!(mesh.pings(0, &second.to_string()));
    assert!(
        !pings(lan, &second.to_string()),
        "packets are forwarded as the node's"
    );
    assert!(!pings(lan, &first.to_string()));
}

/// Whether an echo from `host` to `address` is answered.
fn pings(host: &Host, address: &str) -> bool {
    let mut command = host.command("ping").expect("a namespace");
    command.args(["-c", "2", "-i", "0.2", "-w", "2", address]);
    command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_lan_that_is_joined_to_a_bridge_of_containers_later_is_not_taken_for_containers() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    mesh.kill_node(0);
    for arguments in [
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
    ] {
        ip(&mesh, 0, arguments);
    }
    engine::start(
        &mesh.nodes[0].host,
        "docker0",
        "172.17.0.0/16",
        Some("172.17.0.2"),
    );
    let text = "[dns]\nlisten = [\"172.17.0.1\"]\n";
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", text);
    mesh.start_node_with(0, &["--config", &file]);
    for n in 0..2 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("they reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
    let problem = || has_problem(&mesh, 0, &["containers on docker0", "a bridge of its own"]);
    assert!(!problem(), "the bridge has no machine of a LAN on it");

    // A wire between that bridge and a machine that takes an address of the containers' network.
    let lan = &mesh.coordinator_host;
    let at_lan = |arguments: &str| {
        let mut command = lan.command("ip").expect("a namespace");
        let status = command.args(arguments.split(' ')).status();
        assert!(status.is_ok_and(|status| status.success()), "{arguments}");
    };
    let wire = |remote| format!("type vxlan id 7 dstport 4789 dev eth0 remote {remote}");
    at_lan(&format!("link add wire {}", wire(mesh.nodes[0].host.v4())));
    at_lan("address add 172.17.0.9/16 dev wire");
    at_lan("link set wire up");
    at_lan("route add 10.210.0.0/16 via 172.17.0.1");
    ip(&mesh, 0, &format!("link add card {}", wire(lan.v4())));
    ip(&mesh, 0, "link set card master docker0 up");
    mesh.wait_until("the wire is there", || pings(lan, "172.17.0.1"));
    mesh.wait_until("the bridge is left out, and named", problem);

    let [(first, _), (second, _)] = [mesh.addresses(0), mesh.addresses(1)];
    let resolvers = ["172.17.0.1", "10.210.0.53"].map(|a| a.parse().expect("a literal"));
    for address in resolvers.into_iter().chain([first.into()]) {
        let answer = ask(lan, address, "n1.node.mesh.", RecordType::A, false);
        assert_eq!(answer, None, "{address}");
    }
    let answer = ask(lan, resolvers[0], "n1.node.mesh.", RecordType::A, true);
    assert_eq!(answer, None, "over TCP");
    assert!(!pings(lan, &second.to_string()));
    assert!(mesh.pings(0, &second.to_string()));

    // Once the wire is cut the bridge is one of containers again.
    ip(&mesh, 0, "link del card");
    mesh.wait_until("the problem is gone", || !problem());
}
