//! Nodes in networks that drop UDP: streams over TLS, behind a reverse proxy, and through an HTTP proxy.

use std::process::Command;
use std::time::Instant;

use meshd::protocol::local::{PathKind, PathState, PeerState, UdpState};
use meshd::testbed::{Fault, Nat, skip_test};

use crate::lab::Lab;
use crate::tool::find_program;

/// A proxy that passes what its clients ask for with CONNECT, and nothing else. It prints the name of each host.
const PROXY: &str = r#"
import socket, sys, threading
def copy(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(client):
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(4096)
        if not data: return
        head += data
    method, where = head.split(b" ")[:2]
    host, port = where.decode().rsplit(":", 1)
    if method != b"CONNECT": client.close(); return
    print("CONNECT", host, port, flush=True)
    other = socket.create_connection((host, int(port)))
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    threading.Thread(target=copy, args=(client, other), daemon=True).start()
    copy(other, client)
listener = socket.create_server(("0.0.0.0", 3128))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

/// Waits until the two reach each other, the first one over TLS, and packets pass both ways.
fn wait_over_tls(lab: &Lab, blocked: usize, other: usize) {
    lab.wait_until("the two reach each other", || {
        lab.peer(blocked, other).state == PeerState::Stream && lab.reaches(other, blocked)
    });
    assert!(lab.pings(blocked, other) && lab.pings(other, blocked));
}

#[test]
fn a_node_without_udp_reaches_a_relay_and_the_nodes_behind_it_and_says_why_over_tls() {
    let Some(mut lab) = Lab::new() else { return };
    let (relay, home) = (lab.relay("relay"), lab.behind(Nat::Symmetric, "home"));
    let other = lab.behind(Nat::UdpBlocked, "other");
    lab.join_all();
    lab.wait_until("the others reach each other", || {
        lab.reaches(home, relay) && lab.reaches(home, other)
    });
    let blocked = lab.behind(Nat::UdpBlocked, "blocked");
    let address = lab.peer(relay, home).address_v4.to_string();
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let join = scope.spawn(|| lab.join(&[blocked]));
        lab.wait_until("a packet passes", || lab.pings_at(blocked, &address));
        println!(
            "the first answer to a ping {:?} after the begin of the join",
            begin.elapsed()
        );
        join.join().expect("no panic");
    });
    for peer in [relay, home, other] {
        wait_over_tls(&lab, blocked, peer);
    }
    let seen = lab.peer(blocked, home);
    assert_eq!(seen.via.as_ref().map(|via| via.as_str()), Some("relay"));
    let reason = seen.reason.unwrap_or_default();
    assert!(
        reason.contains("drops UDP") && reason.contains("over TLS to relay"),
        "{reason}"
    );
    assert_eq!(lab.peer(home, blocked).state, PeerState::Relay);
    let (direct, back) = (lab.peer(blocked, relay), lab.peer(relay, blocked));
    assert_eq!((direct.via, direct.state), (None, PeerState::Stream));
    assert_eq!((back.via, back.state), (None, PeerState::Stream));
    let why = lab.why(blocked, home);
    let first = why.paths.first().expect("a path");
    assert_eq!(
        (first.kind, first.state),
        (PathKind::Stream, PathState::InUse)
    );
    let netcheck = lab.netcheck(blocked);
    assert_eq!(netcheck.udp.state, UdpState::Unanswered);
    let relays: Vec<(&str, PathKind)> = netcheck
        .relays
        .iter()
        .map(|relay| (relay.name.as_str(), relay.kind))
        .collect();
    assert_eq!(relays, [("relay", PathKind::Stream)]);
}

#[test]
fn a_network_that_begins_to_drop_udp_and_ends_it_is_followed() {
    let Some(mut lab) = Lab::new() else { return };
    let (relay, home) = (lab.relay("relay"), lab.behind(Nat::Plain, "home"));
    lab.join_all();
    lab.wait_until("the two reach each other directly", || {
        lab.peer(home, relay).state == PeerState::Direct && lab.reaches(relay, home)
    });
    let router = lab.router(home);
    router.set_fault(Some(Fault::DropUdp)).expect("nft");
    lab.wait_until("packets go over TLS", || {
        lab.pings(home, relay) && lab.peer(home, relay).state == PeerState::Stream
    });
    assert!(lab.pings(home, relay) && lab.pings(relay, home));
    router.set_fault(None).expect("nft");
    lab.wait_until("packets go directly again", || {
        lab.peer(home, relay).state == PeerState::Direct
    });
    assert!(lab.pings(home, relay) && lab.pings(relay, home));
}

#[test]
fn a_relay_that_is_restarted_is_reached_again() {
    let Some(mut lab) = Lab::new() else { return };
    let (relay, blocked) = (lab.relay("relay"), lab.behind(Nat::UdpBlocked, "blocked"));
    lab.join_all();
    wait_over_tls(&lab, blocked, relay);
    lab.restart(relay);
    lab.wait_until("packets pass again", || lab.pings(blocked, relay));
}

#[test]
fn a_node_that_is_removed_loses_its_stream() {
    let Some(mut lab) = Lab::new() else { return };
    let (relay, blocked) = (lab.relay("relay"), lab.behind(Nat::UdpBlocked, "blocked"));
    lab.join_all();
    wait_over_tls(&lab, blocked, relay);
    let streams = || {
        let mut command = lab.nodes[relay].host.command("ss").expect("a namespace");
        command.args(["-Htn", "state", "established", "sport", "=", ":443"]);
        let output = command.output().expect("ss");
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    assert_eq!(streams(), 1);
    let removed = lab.admin(&["node", "remove", "blocked", "--yes"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    lab.wait_until("the stream is closed", || streams() == 0);
}

#[test]
fn a_relay_behind_nginx_is_reached_over_its_tls() {
    let Some(nginx) = find_program("nginx") else {
        skip_test("nginx is neither installed nor unpacked (tests/run does that)");
        return;
    };
    let Some(mut lab) = Lab::new() else { return };
    let host = lab.host("relay");
    let (address, run) = (host.v4(), host.path("/run"));
    let settings = format!(
        "[relay]\nlisten = \"http://127.0.0.1:8443\"\npublic_url = \"wss://{address}/meshd\"\n"
    );
    let key = rcgen::generate_simple_self_signed(vec![address.to_string()]).expect("a key");
    std::fs::write(run.join("web.crt"), key.cert.pem()).expect("our directory");
    std::fs::write(run.join("web.key"), key.signing_key.serialize_pem()).expect("our directory");
    // The settings of docs/howto/relay-over-tls.md.
    let page = include_str!("../../docs/howto/relay-over-tls.md");
    let mut blocks = page.split("```");
    let location = blocks.find_map(|block| block.strip_prefix("text\nlocation"));
    let location = location.expect("the page has a block for nginx");
    let conf = format!(
        "user root;\ndaemon off;\nmaster_process off;\npid /run/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
         client_body_temp_path /run/n1;\nproxy_temp_path /run/n2;\nfastcgi_temp_path /run/n3;\nuwsgi_temp_path /run/n4;\nscgi_temp_path /run/n5;\n\
         server {{\nlisten 443 ssl;\nssl_certificate /run/web.crt;\nssl_certificate_key /run/web.key;\nlocation{location}\n}}\n}}\n"
    );
    std::fs::write(run.join("nginx.conf"), conf).expect("our directory");
    let mut command = host
        .command(nginx.to_str().expect("a plain path"))
        .expect("a namespace");
    command.args(["-p", "/run", "-c", "/run/nginx.conf", "-e", "stderr"]);
    let _nginx = lab.start_program(&host, &mut command, "nginx");
    let relay = lab.public_on("relay", host, &settings);
    let variables = [("SSL_CERT_FILE", "/run/web.crt")];
    let blocked = lab.behind_with(Nat::UdpBlocked, "blocked", "", &variables);
    let blocked_run = lab.nodes[blocked].host.path("/run");
    std::fs::write(blocked_run.join("web.crt"), key.cert.pem()).expect("our directory");
    lab.join_all();
    wait_over_tls(&lab, blocked, relay);
}

#[test]
fn a_node_whose_network_has_only_an_http_proxy_reaches_relays_through_it() {
    let Some(mut lab) = Lab::new() else { return };
    let (relay, home) = (lab.relay("relay"), lab.behind(Nat::Plain, "home"));
    let proxy = lab.host("proxy");
    std::fs::write(proxy.path("/run/proxy.py"), PROXY).expect("our directory");
    let mut command: Command = proxy.command("python3").expect("a namespace");
    let running = lab.start_program(&proxy, command.arg("/run/proxy.py"), "proxy");
    let settings = format!("[relay]\nproxy = \"http://{}:3128\"\n", proxy.v4());
    let blocked = lab.behind_with(Nat::UdpBlocked, "blocked", &settings, &[]);
    // The relay is reached through the proxy alone, and so is the coordinator.
    let router = lab.router(blocked);
    router.let_out_only_to(proxy.v4()).expect("nft");
    lab.join_all();
    for peer in [relay, home] {
        wait_over_tls(&lab, blocked, peer);
    }
    let log = running.log();
    let relay = format!("CONNECT {} 443", lab.nodes[relay].host.v4());
    assert!(log.contains(&relay) && log.contains(" 7443"), "{log}");
}
