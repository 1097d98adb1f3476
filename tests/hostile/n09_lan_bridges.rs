//! A node does not treat a machine on a LAN behind one of its bridges as a container: it answers none of its queries and forwards
//! none of its packets.

use hickory_proto::rr::RecordType;
use meshd::testbed::Host;

use crate::engine;
use crate::mesh::{Mesh, write};
use crate::query::ask;

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

/// Asserts that a machine on a LAN behind a node's bridge called `bridge` gets no answers and reaches no node through it. If
/// `by_engine`, the container engine has a network on that bridge.
fn assert_lan_is_kept_out(bridge: &str, by_engine: bool) {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    // The first node's only uplink becomes a port of the bridge. The coordinator's host is the machine on its LAN.
    let v4 = mesh.nodes[0].host.v4();
    for arguments in [
        &format!("link add {bridge} type bridge"),
        &format!("link set {bridge} up"),
        "address flush dev eth0",
        &format!("link set eth0 master {bridge}"),
        &format!("address add {v4}/24 dev {bridge}"),
    ] {
        mesh.ip(0, arguments);
    }
    if by_engine {
        // The vxlan device stands for a network card: the veth devices of the test's hosts look like those of containers.
        mesh.ip(0, "link add card type vxlan id 7 dstport 4789");
        mesh.ip(0, &format!("link set card master {bridge}"));
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
    mesh.wait_until("the nodes reach each other", || {
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
        mesh.wait_until("a problem names the bridge, which is left out", || {
            let containers = format!("containers on {bridge}");
            mesh.has_problem(0, &[&containers, "a bridge of its own"])
        });
    }
    for tcp in [false, true] {
        // The first is a name of the mesh. The second would have to be forwarded.
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
    engine::start_on_docker0(&mesh.nodes[0].host);
    let text = "[dns]\nlisten = [\"172.17.0.1\"]\n";
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", text);
    mesh.start_node_with(0, &["--config", &file]);
    for n in 0..2 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("the nodes reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
    let problem = || mesh.has_problem(0, &["containers on docker0", "a bridge of its own"]);
    assert!(!problem(), "the bridge has no machine of a LAN on it");

    // A vxlan connects that bridge to a machine that has an address of the containers' network.
    let lan = &mesh.coordinator_host;
    let at_lan = |arguments: &str| engine::ip(lan, arguments);
    let wire = |remote| format!("type vxlan id 7 dstport 4789 dev eth0 remote {remote}");
    at_lan(&format!("link add wire {}", wire(mesh.nodes[0].host.v4())));
    at_lan("address add 172.17.0.9/16 dev wire");
    at_lan("link set wire up");
    at_lan("route add 10.210.0.0/16 via 172.17.0.1");
    mesh.ip(0, &format!("link add card {}", wire(lan.v4())));
    mesh.ip(0, "link set card master docker0 up");
    mesh.wait_until("the vxlan works", || pings(lan, "172.17.0.1"));
    mesh.wait_until("a problem names the bridge, which is left out", problem);

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

    // Without the vxlan the bridge has only containers again.
    mesh.ip(0, "link del card");
    mesh.wait_until("the problem is gone", || !problem());
}
