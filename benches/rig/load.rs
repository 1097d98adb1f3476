//! Traffic by iperf3.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use meshd::testbed::Running;

use super::Node;

/// The load that arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// Bytes of payload received.
    pub(crate) bytes: f64,
    /// Payload received in Gbit/s.
    pub(crate) gbps: f64,
    /// Datagrams sent; 0 with TCP.
    pub(crate) sent: f64,
    /// Datagrams of those that did not arrive.
    pub(crate) lost: f64,
}

/// A server at `address` of `node` for one client.
pub(crate) fn listen(node: &Node, address: Ipv4Addr, port: u16, logs: &Path) -> Running {
    let mut command = node.command("iperf3");
    command.args(["-s", "-1", "-B", &address.to_string()]);
    command.args(["-p", &port.to_string()]);
    let log = logs.join(format!("{}-{port}", node.host.name()));
    let server = node.host.start(&mut command, &log).expect("iperf3");
    let began = Instant::now();
    // State 0A is LISTEN.
    let (local, state) = (format!(":{port:04X} "), " 0A ");
    let listens = || {
        std::fs::read_to_string(format!("/proc/{}/net/tcp", server.pid())).is_ok_and(|text| {
            text.lines()
                .any(|line| line.contains(&local) && line.contains(state))
        })
    };
    while !listens() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "iperf3 does not listen: {}",
            server.log()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    server
}

/// Sends from `node` to a server, for as long as `arguments` say.
pub(crate) fn send(node: &Node, to: Ipv4Addr, port: u16, arguments: &str) -> Flow {
    let output = node
        .command("iperf3")
        .args(["-J", "-c", &to.to_string(), "-p", &port.to_string()])
        .args(arguments.split_whitespace())
        .output()
        .expect("iperf3");
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("iperf3 writes JSON");
    if let Some(error) = report["error"].as_str() {
        eprintln!("iperf3 from {} to {to}: {error}", node.host.name());
    }
    let end = &report["end"];
    let number = |part: &str, name: &str| end[part][name].as_f64();
    // With UDP older versions have one sum, which counts what was sent and the share that was lost.
    let (sent, lost) = (
        number("sum", "packets").unwrap_or(0.0),
        number("sum", "lost_packets").unwrap_or(0.0),
    );
    match (
        number("sum_received", "bytes"),
        number("sum_received", "bits_per_second"),
    ) {
        (Some(bytes), Some(rate)) => Flow {
            bytes,
            gbps: rate / 1e9,
            sent,
            lost,
        },
        _ => {
            let arrived = if sent > 0.0 { 1.0 - lost / sent } else { 0.0 };
            Flow {
                bytes: number("sum", "bytes").unwrap_or(0.0) * arrived,
                gbps: number("sum", "bits_per_second").unwrap_or(0.0) * arrived / 1e9,
                sent,
                lost,
            }
        }
    }
}
