//! The tunnel device, when somebody deletes it or moves it away.

use std::time::Duration;

use hickory_proto::rr::RecordType;
use meshd::tunnel::Tunnel;

use crate::mesh::{Mesh, world, write};
use crate::{host_dns, query, tunnels};

/// The state of a node's tunnel device: addresses, routes, whether it is up, and the firewall rules that name it.
fn device(mesh: &Mesh, n: usize) -> Vec<String> {
    let shown = |program: &str, arguments: &str| {
        let mut command = mesh.nodes[n].host.command(program).expect("a namespace");
        command.args(arguments.split(' '));
        let output = command.output().expect("a program");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    let mut all: Vec<String> = [
        ("ip", "-br addr show dev mesh0 scope global"),
        ("ip", "route show dev mesh0"),
        // The kernel's own routes are not all there at once.
        ("ip", "-6 route show dev mesh0 proto static"),
        ("nft", "list ruleset"),
    ]
    .into_iter()
    .flat_map(|(program, arguments)| -> Vec<String> { shown(program, arguments) })
    .filter(|line| !line.contains("counter"))
    .collect();
    all.sort();
    all
}

/// The queueing discipline of the device.
fn discipline(mesh: &Mesh) -> String {
    let mut command = mesh.nodes[0].host.command("tc").expect("a namespace");
    command.args(["qdisc", "show", "dev", "mesh0"]);
    let output = command.output().expect("a program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The text after it is a different number each time.
    text.split_whitespace().take(2).collect()
}

/// Whether node `n` gets an answer at the DNS address, which is inside the device.
fn resolves(mesh: &Mesh, n: usize, name: &str) -> bool {
    let server = "10.210.0.53".parse().expect("a literal");
    let answer = query::ask(&mesh.nodes[n].host, server, name, RecordType::A, false);
    answer.is_some_and(|answer| answer.data.len() == 1)
}

#[test]
fn a_deleted_tunnel_device_is_made_again_with_everything_on_it() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let before = device(&mesh, 0);
    assert!(before.len() > 6, "{before:?}");
    let addresses = [0, 1].map(|n| mesh.addresses(n).0.to_string());
    for _ in 0..3 {
        assert!(mesh.succeeds(0, "ip", &["link", "del", "mesh0"]));
        mesh.wait_until("all is on the device again", || device(&mesh, 0) == before);
        assert_eq!(discipline(&mesh), "qdiscpfifo_fast");
        assert!(mesh.pings(0, &addresses[1]) && mesh.pings(1, &addresses[0]));
        assert!(resolves(&mesh, 0, "n2.node.mesh."));
    }
    mesh.wait_until("peers can speak to the node as before", || {
        let to = std::net::SocketAddr::new(addresses[0].parse().expect("an address"), 7444);
        let limit = Duration::from_secs(1);
        let connect = || std::net::TcpStream::connect_timeout(&to, limit).is_ok();
        mesh.nodes[1].host.inside(connect).expect("a namespace")
    });
    assert_eq!(mesh.on(0, &["status", "--check", "ready"]).code, 0);
    let log = std::fs::read_to_string(mesh.log(0)).expect("a log");
    assert_eq!(log.matches("somebody deleted the tunnel device").count(), 3);
    assert!(log.matches(" WARN ").count() < 20, "{log}");
}

#[test]
fn a_device_that_cannot_be_made_again_ends_meshd_in_order() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    let before = "nameserver 198.51.100.9\n";
    mesh.kill_node(0);
    host_dns::own_etc(&mesh, 0, before);
    let file = write(
        &mesh.nodes[0].host,
        "/run/meshd.toml",
        "[dns]\nmanage_resolv_conf = true\n",
    );
    mesh.start_node_with(0, &["--config", &file]);
    let resolv_conf = mesh.nodes[0].host.path("/run/etc/resolv.conf");
    let text = || std::fs::read_to_string(&resolv_conf).unwrap_or_default();
    mesh.wait_until("resolv.conf is meshd's", || text().contains("10.210.0.53"));
    let hidden = ["--bind", "/dev/null", "/dev/net/tun"];
    assert!(mesh.succeeds(0, "mount", &hidden));
    assert!(mesh.succeeds(0, "ip", &["link", "del", "mesh0"]));
    let daemon = mesh.nodes[0].daemon.as_mut().expect("it runs");
    let status = daemon.wait(Duration::from_secs(30)).expect("it ends");
    let log = daemon.log();
    assert!(status.code().is_some_and(|code| code != 0), "{log}");
    assert!(log.contains("meshd: the tunnel device mesh0 was deleted, and cannot be made again"));
    assert_eq!(text(), before);
}

#[test]
fn a_tunnel_device_in_another_namespace_is_a_problem_and_no_end() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let problem = |mesh: &Mesh| {
        let problems = mesh.status(0).problems;
        problems
            .iter()
            .any(|p| p.what.contains("in another network namespace"))
    };
    let before = device(&mesh, 0);
    let other = mesh.nodes[1].host.pid().to_string();
    assert!(mesh.succeeds(0, "ip", &["link", "set", "mesh0", "name", "moved0"]));
    assert!(mesh.succeeds(0, "ip", &["link", "set", "moved0", "netns", &other]));
    mesh.wait_until("the problem is shown", || problem(&mesh));
    assert!(mesh.succeeds(1, "ip", &["link", "set", "moved0", "name", "mesh9"]));
    let own = mesh.nodes[0].host.pid().to_string();
    assert!(mesh.succeeds(1, "ip", &["link", "set", "mesh9", "netns", &own]));
    assert!(mesh.succeeds(0, "ip", &["link", "set", "mesh9", "name", "mesh0"]));
    mesh.wait_until("all is as before", || {
        !problem(&mesh) && mesh.reaches(0) == 1 && device(&mesh, 0) == before
    });
    assert!(mesh.pings(0, &mesh.addresses(1).0.to_string()));
    let log = std::fs::read_to_string(mesh.log(0)).expect("a log");
    assert!(log.matches(" WARN ").count() < 20, "{log}");
}

#[test]
fn peers_and_their_sessions_are_kept_when_a_device_is_made_again() {
    let Some(world) = world() else { return };
    let (a, b) = (
        world.host("a").expect("a namespace"),
        world.host("b").expect("a namespace"),
    );
    let at = |host: &meshd::testbed::Host| Some((host.v4(), 51820).into());
    let one = tunnels::start(&a, 1, &[(2, at(&b))]);
    let two = tunnels::start(&b, 2, &[(1, at(&a))]);
    let limit = Duration::from_secs(10);
    assert!(tunnels::answers(&two, 2, &tunnels::key(1), limit));
    let peer = |tunnel: &Tunnel| tunnel.peers().pop().expect("one peer");
    let session = peer(&one).last_handshake.expect("a session");
    let index = one.index();

    let mut command = a.command("ip").expect("a namespace");
    let deleted = command.args(["link", "del", "mesh0"]).status();
    assert!(deleted.is_ok_and(|status| status.success()));
    let mut count = [0; 8];
    let end = std::time::Instant::now() + limit;
    while nix::unistd::read(one.gone_event(), &mut count).is_err() {
        assert!(std::time::Instant::now() < end, "the kernel's notice");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(u64::from_ne_bytes(count), 1);
    assert!(one.is_gone());
    // Without a device it still answers what needs none.
    assert!(tunnels::answers(&two, 2, &tunnels::key(1), limit));
    a.inside(|| one.reopen())
        .expect("a namespace")
        .expect("another device");
    assert!(!one.is_gone() && one.index() != index);
    assert!(tunnels::answers(&two, 2, &tunnels::key(1), limit));
    let now = peer(&one).last_handshake.expect("a session");
    let apart = now.duration_since(session).unwrap_or_default();
    assert!(apart < Duration::from_millis(500), "it is the same session");
    assert_eq!(one.listen_port(), 51820);
}
