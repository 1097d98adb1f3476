//! Port 7444: no other program on a node takes the place of that node's meshd at its peers, and the work for what a peer sends is
//! bounded.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::kit::{PeerLink, record};
use crate::mesh::Mesh;
use crate::node_kit::stolen_keys;

/// Keeps connections from node `from` to the node at `to` open, on which nothing is sent, for as long as `goes_on`.
fn be_silent(mesh: &Mesh, from: usize, to: Ipv4Addr, goes_on: &AtomicBool) {
    let mut held = Vec::new();
    while goes_on.load(Ordering::Relaxed) {
        held.retain(|link: &PeerLink| is_open(link));
        while held.len() < 6 {
            let Ok(link) = PeerLink::connect(&mesh.nodes[from].host, to.into()) else {
                break;
            };
            held.push(link);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn is_open(link: &PeerLink) -> bool {
    let _ = link.0.set_nonblocking(true);
    let open = match link.0.peek(&mut [0]) {
        Ok(bytes) => bytes > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    };
    let _ = link.0.set_nonblocking(false);
    open
}

#[test]
fn silent_connections_of_programs_on_both_machines_do_not_keep_news_from_peers() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    mesh.coordinator.take().expect("it runs").kill();
    let addresses = [mesh.addresses(0).0, mesh.addresses(1).0];
    let goes_on = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let mesh = &mesh;
        for (from, to) in [(0, addresses[1]), (1, addresses[0])] {
            let goes_on = &goes_on;
            scope.spawn(move || be_silent(mesh, from, to, goes_on));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for name in ["web", "db", "cache"] {
                let added = mesh.on(0, &["service", "add", name, "--port", "80"]);
                assert_eq!(added.code, 0, "{added:?}");
                let began = Instant::now();
                mesh.wait_until("the peer has the new service", || {
                    mesh.on(1, &["service", "list"]).stdout.contains(name)
                });
                eprintln!("the peer had the news after {:?}", began.elapsed());
            }
        }));
        goes_on.store(false, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_peer_that_sends_forged_and_foreign_records_for_ever_is_few_lines_in_the_log() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let thief = stolen_keys(&mesh, 0).keys.identity;
    let victim = stolen_keys(&mesh, 1).keys.identity.public();
    let to: IpAddr = mesh.addresses(1).0.into();
    let foreign = |n: u64| record::token(thief.public()).version(n).signed_by(&thief);
    let forged = |n: u64| record::unknown("noise", n).forged(&thief, victim);
    let nobodys = |n: u64| {
        let stranger = crate::kit::Identity::of(u8::try_from(n % 200).unwrap_or_default());
        record::service(stranger.id(), "x", &[]).signed_by(stranger.key())
    };
    let mut conversations = 0;
    for round in 0..12 {
        // The conversations follow each other, since a second one of the same peer ends the first.
        let Ok(mut link) = PeerLink::connect(&mesh.nodes[0].host, to) else {
            continue;
        };
        if link.greet(&thief, victim).is_err() {
            continue;
        }
        conversations += 1;
        for message in 0..4 {
            let numbers = (message * 64)..(message * 64 + 64);
            let records = match round % 3 {
                0 => numbers.map(foreign).collect(),
                1 => numbers.map(forged).collect(),
                _ => numbers.map(nobodys).collect(),
            };
            if link.send_records(records).is_err() {
                break;
            }
        }
        // The node closes the connection at once or after its timeout.
        let _ = link.0.shutdown(std::net::Shutdown::Write);
        while link.hear().is_ok() {}
    }
    assert!(conversations > 3, "{conversations}");
    let log = || std::fs::read_to_string(mesh.log(1)).expect("its log");
    mesh.wait_until("the log has a line about the refused records", || {
        log().contains("records that a peer sent were refused")
    });
    let log = log();
    let lines = log.lines().filter(|line| line.contains("refused")).count();
    assert!(lines <= 5, "{lines} lines:\n{log}");
    // The node's own meshd still reaches its peer and sends it records.
    assert!(mesh.pings(0, &to.to_string()));
    let added = mesh.on(0, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    mesh.wait_until("the peer has the new service", || {
        mesh.on(1, &["service", "list"]).stdout.contains("web")
    });
}
