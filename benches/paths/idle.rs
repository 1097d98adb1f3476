//! What nodes cost that send nothing.

use std::path::PathBuf;
use std::time::Duration;

use meshd::protocol::local::PeerState;

use crate::Settings;
use crate::lab::Lab;
use crate::read::resident_kib;
use crate::report::{note, print};

/// Searches and measurements of the beginning are over by then.
const SETTLED: Duration = Duration::from_secs(45);

/// The packets that a node sends in a second for each peer, and the memory of a node in KiB.
fn idle(nodes: usize, calm: Duration, programs: Option<PathBuf>) -> (f64, f64) {
    let mut lab = Lab::with_programs(programs);
    for number in 0..nodes {
        lab.public(&format!("n{number}"));
    }
    lab.join();
    let is_direct = |lab: &Lab, n: usize| {
        let peers = lab.status(n).peers;
        peers.iter().all(|peer| peer.state == PeerState::Direct)
    };
    lab.wait("all reach each other", |lab| {
        (0..nodes).all(|n| is_direct(lab, n))
    });
    std::thread::sleep(SETTLED);
    let sent = |lab: &Lab| -> u64 { (0..nodes).map(|n| lab.counter(n, "tx_packets")).sum() };
    let before = sent(&lab);
    std::thread::sleep(calm);
    let packets = (sent(&lab) - before) as f64;
    let pairs = (nodes * (nodes - 1)) as f64;
    let memory = lab.nodes.iter().map(|node| {
        let daemon = node.daemon.as_ref().expect("it runs");
        resident_kib(daemon)
    });
    let memory: f64 = memory.sum();
    (packets / pairs / calm.as_secs_f64(), memory / nodes as f64)
}

pub(crate) fn packets_and_memory(settings: &Settings) {
    let (few, many, calm) = (2, settings.nodes, settings.calm);
    let measure = |programs: Option<PathBuf>| {
        let (_, small) = idle(few, Duration::from_secs(1), programs.clone());
        let (packets, large) = idle(many, calm, programs);
        (packets, (large - small) / (many - few) as f64)
    };
    let (packets, memory) = measure(None);
    let seconds = calm.as_secs();
    note(
        "A12",
        &format!("{many} idle nodes, {seconds} s"),
        &format!("{packets:.3} packets a second to a peer; {memory:.1} KiB a peer"),
    );
    let Some(earlier) = std::env::var_os("MESHD_EARLIER").map(PathBuf::from) else {
        note(
            "A12",
            "",
            "without MESHD_EARLIER there is nothing to compare with",
        );
        return;
    };
    let (before, memory_before) = measure(Some(earlier));
    let added = packets / before - 1.0;
    print(
        "A12",
        "packets of idle nodes",
        &format!(
            "{:+.1} % of the {before:.3} of the earlier version",
            added * 100.0
        ),
        "at most 10 % more",
        added <= 0.1,
    );
    print(
        "A12",
        "memory of a peer",
        &format!("{memory:.1} KiB, {memory_before:.1} KiB in the earlier version"),
        "at most 2 KiB more",
        memory - memory_before <= 2.0,
    );
}
