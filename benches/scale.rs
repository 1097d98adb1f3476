//! `meshd wireguard` with many peers, with forged handshakes, and among many nodes at once.
//!
//! ```text
//! cargo bench --bench scale [-- peers | flood | mesh]
//! ```
//!
//! Needs root, iperf3, ping and `wg`. `BIN_MESHD` names another build of meshd.

mod flood;
mod rig;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use meshd::testbed::{Running, World, as_root};

use flood::Flood;
use rig::{
    Flow, Keys, Node, Peer, listen, machine_cpu, median, print_table, process_cpu, resident_kib,
    send,
};

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| part == name);
    match as_root(|| {
        if wanted("peers") {
            many_peers();
        }
        if wanted("flood") {
            forged_handshakes();
        }
        if wanted("mesh") {
            all_to_all();
        }
        0
    }) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts meshd on `node`.
fn start(node: &Node, peers: &[Peer], logs: &Path) -> Running {
    let program = std::env::var("BIN_MESHD");
    let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_meshd"));
    let mut command = node.command(program);
    command.args(["wireguard", rig::DEVICE]);
    node.start(command, peers, logs)
}

/// Peers that never come.
fn strangers(count: u32) -> impl Iterator<Item = Peer> {
    (0..count).map(|n| Peer {
        key: Keys::new().public,
        endpoint: None,
        allowed: format!("{}/24", Ipv4Addr::from((10 << 24) + (100 << 16) + (n << 8))),
    })
}

/// One flow between two nodes with 1,000 peers each, ten of them active, and between two with one.
fn many_peers() {
    const PEERS: u32 = 1000;
    const ACTIVE: u8 = 10;
    const ROUNDS: usize = 5;
    const SECONDS: u32 = 4;
    let world = World::new().expect("root may make namespaces");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let node = |name: &str, a, b| Node::new(&world, name, Ipv4Addr::new(10, a, 0, b));
    let few = [node("few-a", 8, 1), node("few-b", 8, 2)];
    let hub = node("many-a", 9, 1);
    let spokes: Vec<Node> = (0..ACTIVE)
        .map(|n| node(&format!("many-{n}"), 9, 10 + n))
        .collect();
    let mut idle_rows = Vec::new();

    let few_daemons = [
        start(&few[0], &[few[1].as_peer()], logs.path()),
        start(&few[1], &[few[0].as_peer()], logs.path()),
    ];
    let rest = PEERS - u32::from(ACTIVE);
    let peers: Vec<Peer> = spokes
        .iter()
        .map(Node::as_peer)
        .chain(strangers(rest))
        .collect();
    let hub_daemon = start(&hub, &peers, logs.path());
    let spoke_daemons: Vec<Running> = spokes
        .iter()
        .map(|spoke| {
            let peers: Vec<Peer> = std::iter::once(hub.as_peer())
                .chain(strangers(PEERS - 1))
                .collect();
            start(spoke, &peers, logs.path())
        })
        .collect();
    for spoke in &spokes {
        assert!(hub.reaches(spoke.address, 15), "a session with each");
    }
    assert!(few[0].reaches(few[1].address, 15), "a session");

    // The first seconds after a handshake have keepalives in them.
    std::thread::sleep(Duration::from_secs(12));
    for (name, daemon) in [
        ("1 peer", &few_daemons[0]),
        ("1,000 peers, 10 active", &hub_daemon),
    ] {
        let before = process_cpu(daemon);
        let began = Instant::now();
        std::thread::sleep(Duration::from_secs(10));
        let used = (process_cpu(daemon) - before).as_secs_f64() / began.elapsed().as_secs_f64();
        idle_rows.push((name, used * 100.0, resident_kib(daemon) / 1024.0));
    }

    let mut port = 5200;
    let (mut rates, mut costs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (which, from, to) in [(0, &few[0], &few[1]), (1, &hub, &spokes[0])] {
            let others: Vec<Running> = spokes[1..]
                .iter()
                .filter(|_| which == 1)
                .map(|spoke| {
                    let mut ping = spoke.command("ping");
                    ping.args(["-q", &hub.address.to_string()]);
                    let log = logs.path().join("ping");
                    spoke.host.start(&mut ping, &log).expect("ping")
                })
                .collect();
            port += 1;
            let _server = listen(to, to.address, port, logs.path());
            let before = machine_cpu().0;
            let flow = send(from, to.address, port, &format!("-t {SECONDS} -C cubic"));
            costs[which].push((machine_cpu().0 - before) / (flow.bytes / 1e9));
            rates[which].push(flow.gbps);
            drop(others);
        }
    }
    let rows: Vec<Vec<String>> = idle_rows
        .iter()
        .zip([&few_daemons[0], &hub_daemon])
        .enumerate()
        .map(|(which, ((name, idle, resident), daemon))| {
            vec![
                (*name).to_owned(),
                format!("{:.2}", median(&rates[which])),
                format!("{:.2}", median(&costs[which])),
                format!("{idle:.3}"),
                format!("{resident:.1}"),
                format!("{:.1}", resident_kib(daemon) / 1024.0),
            ]
        })
        .collect();
    println!("one flow, {ROUNDS} rounds of {SECONDS} s in turn, medians");
    let head = [
        "configured",
        "Gbit/s",
        "machine CPU s/GB",
        "idle CPU, % of a core",
        "idle MiB",
        "MiB after",
    ];
    print_table(&head, &rows);
    println!(
        "1,000 peers to 1 peer: {:.3} of the rate, {:.3} of the CPU per GB\n",
        median(&rates[1]) / median(&rates[0]),
        median(&costs[1]) / median(&costs[0])
    );
    drop(spoke_daemons);
}

/// 50,000 forged handshake initiations a second, while a flow goes on and a new peer comes.
fn forged_handshakes() {
    const RATE: u32 = 50_000;
    const SECONDS: u32 = 20;
    let world = World::new().expect("root may make namespaces");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let node = |name: &str, last| Node::new(&world, name, Ipv4Addr::new(10, 9, 0, last));
    let (victim, peer, newcomer, attacker) = (
        node("victim", 1),
        node("peer", 2),
        node("newcomer", 3),
        node("attacker", 4),
    );
    let peers = [peer.as_peer(), newcomer.as_peer()];
    let victim_daemon = start(&victim, &peers, logs.path());
    let _peer_daemon = start(&peer, &[victim.as_peer()], logs.path());
    // Answers to forged sources go back to where the datagrams came from, rather than nowhere.
    let way_back = format!("route add default via {}", attacker.host.v4());
    victim.run("ip", &way_back);
    let loose = victim
        .host
        .inside(|| {
            ["all", "eth0"].map(|device| {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0")
            })
        })
        .expect("a namespace");
    if let Some(error) = loose.into_iter().find_map(Result::err) {
        eprintln!("the victim's kernel may drop forged sources itself: {error}");
    }
    assert!(peer.reaches(victim.address, 15), "a session");
    let flood = Flood::new(&victim.keys.public, victim.host.v4());

    let mut rows = Vec::new();
    for (name, rate) in [("no flood", 0), ("flood", RATE)] {
        let server = listen(&victim, victim.address, 5201, logs.path());
        let (cpu, memory) = (process_cpu(&victim_daemon), resident_kib(&victim_daemon));
        let before = victim_udp(&victim_daemon);
        let (flow, sent, connected, most) = std::thread::scope(|scope| {
            let flow = scope.spawn(|| {
                let paced = format!("-u -b 16M -l 1000 -t {SECONDS}");
                send(&peer, victim.address, 5201, &paced)
            });
            let sent = scope.spawn(|| {
                let run = || flood.send(rate, Duration::from_secs(SECONDS.into()));
                attacker.host.inside(run).expect("a namespace")
            });
            let connected = scope.spawn(|| {
                (rate > 0).then(|| {
                    std::thread::sleep(Duration::from_secs(5));
                    let _daemon = start(&newcomer, &[victim.as_peer()], logs.path());
                    let began = Instant::now();
                    newcomer
                        .reaches(victim.address, 10)
                        .then(|| began.elapsed())
                })
            });
            let mut most = memory;
            while !flow.is_finished() {
                std::thread::sleep(Duration::from_millis(200));
                most = most.max(resident_kib(&victim_daemon));
            }
            let join = "no thread panics";
            (
                flow.join().expect(join),
                sent.join().expect(join),
                connected.join().expect(join),
                most,
            )
        });
        drop(server);
        let after = victim_udp(&victim_daemon);
        let used = (process_cpu(&victim_daemon) - cpu).as_secs_f64() / f64::from(SECONDS);
        rows.push(vec![
            name.to_owned(),
            format!("{:.0}", sent as f64 / f64::from(SECONDS)),
            format!("{:.0}", (after.0 - before.0) / f64::from(SECONDS)),
            format!("{:.0}", after.1 - before.1),
            format!("{:.0}", flow.sent),
            format!("{:.0}", flow.lost),
            match connected {
                None => "-".to_owned(),
                Some(None) => "not in 10 s".to_owned(),
                Some(Some(took)) => format!("{:.2} s", took.as_secs_f64()),
            },
            format!("{:.0}", used * 100.0),
            format!("{:.0}", most - memory),
        ]);
    }
    println!("{SECONDS} s of forged handshake initiations, every one from another source");
    let head = [
        "",
        "forged/s sent",
        "datagrams/s received",
        "buffer overruns",
        "flow sent",
        "flow lost",
        "newcomer connected after",
        "daemon CPU %",
        "memory grew KiB",
    ];
    print_table(&head, &rows);
    println!();
}

/// UDP datagrams delivered and not delivered for want of buffers in the network of `daemon`.
fn victim_udp(daemon: &Running) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", daemon.pid()))
        .expect("/proc is mounted");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let field = |name: &str| {
        names
            .split_whitespace()
            .zip(values.split_whitespace())
            .find(|(other, _)| *other == name)
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or(f64::NAN)
    };
    (field("InDatagrams"), field("RcvbufErrors"))
}

/// Every node sends to every other at once: two of them, and all eight, in turn.
fn all_to_all() {
    const NODES: usize = 8;
    const ROUNDS: usize = 3;
    const SECONDS: u32 = 6;
    let world = World::new().expect("root may make namespaces");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let nodes: Vec<Node> = (1..=NODES as u8)
        .map(|n| Node::new(&world, &format!("n{n}"), Ipv4Addr::new(10, 9, 0, n)))
        .collect();
    let daemons: Vec<Running> = nodes
        .iter()
        .map(|node| {
            let others = nodes.iter().filter(|other| other.address != node.address);
            let peers: Vec<Peer> = others.map(Node::as_peer).collect();
            start(node, &peers, logs.path())
        })
        .collect();
    for (a, b) in pairs(&nodes) {
        assert!(a.reaches(b.address, 15), "a session between any two");
    }
    let one_way = [(&nodes[0], &nodes[1])];
    let cases: [(&str, Vec<(&Node, &Node)>); 3] = [
        ("2 nodes, one flow", one_way.to_vec()),
        ("2 nodes, one flow each way", pairs(&nodes[..2])),
        ("8 nodes, 56 flows", pairs(&nodes)),
    ];
    let mut rates = [const { Vec::new() }; 3];
    let mut costs = [const { Vec::new() }; 3];
    let mut least = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (n, (_, flows)) in cases.iter().enumerate() {
            let before = machine_cpu().0;
            let through = at_once(flows, SECONDS, logs.path());
            let bytes: f64 = through.iter().map(|flow| flow.bytes).sum();
            costs[n].push((machine_cpu().0 - before) / (bytes / 1e9));
            rates[n].push(through.iter().map(|flow| flow.gbps).sum());
            least[n].push(
                through
                    .iter()
                    .map(|flow| flow.gbps)
                    .fold(f64::MAX, f64::min)
                    * 1e3,
            );
        }
    }
    let rows: Vec<Vec<String>> = cases
        .iter()
        .enumerate()
        .map(|(n, (name, _))| {
            vec![
                (*name).to_owned(),
                format!("{:.2}", median(&rates[n])),
                format!("{:.2}", median(&rates[n]) / median(&rates[0])),
                format!("{:.2}", median(&rates[n]) / median(&rates[1])),
                format!("{:.2}", median(&costs[n])),
                format!("{:.1}", median(&least[n])),
            ]
        })
        .collect();
    println!("all to all, {ROUNDS} rounds of {SECONDS} s in turn, medians");
    let head = [
        "",
        "sum Gbit/s",
        "to one flow",
        "to two flows",
        "machine CPU s/GB",
        "least flow Mbit/s",
    ];
    print_table(&head, &rows);
    println!();
    drop(daemons);
}

/// Each node with each other, in both directions.
fn pairs(nodes: &[Node]) -> Vec<(&Node, &Node)> {
    let all = nodes
        .iter()
        .flat_map(|from| nodes.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.address != to.address)
        .collect()
}

/// A flow for each pair, all at the same time.
fn at_once(pairs: &[(&Node, &Node)], seconds: u32, logs: &Path) -> Vec<Flow> {
    let port = |n: usize| 5300 + n as u16;
    let _servers: Vec<Running> = pairs
        .iter()
        .enumerate()
        .map(|(n, (_, to))| listen(to, to.address, port(n), logs))
        .collect();
    let arguments = format!("-t {seconds} -C cubic");
    std::thread::scope(|scope| {
        let clients: Vec<_> = pairs
            .iter()
            .enumerate()
            .map(|(n, (from, to))| {
                let arguments = &arguments;
                scope.spawn(move || send(from, to.address, port(n), arguments))
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("no thread panics"))
            .collect()
    })
}
