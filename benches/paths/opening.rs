//! From the start of two nodes to their first packet and to a direct path; what that costs a relay; and the probes of two nodes that
//! find no direct path.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshd::protocol::local::PeerState;
use meshd::testbed::Nat;

use crate::Settings;
use crate::flow::Flow;
use crate::lab::{Lab, read_counter};
use crate::report::{Times, ms, note, print};

/// The packets in a second, in each direction, by which the first one and the last one through the relay are found.
const PACKETS: u32 = 1000;
/// A direct path that is not there after this time does not come.
const LIMIT: Duration = Duration::from_secs(20);
/// The packets that a relay receives are counted over this time.
const WINDOW: Duration = Duration::from_millis(10);
/// A relay that forwards one of the flows receives more packets than this in [`WINDOW`]. It also receives some probes.
const FEW: u64 = 4;
/// After the relay was quiet for so long, both directions are direct.
const QUIET: Duration = Duration::from_millis(500);

/// A relay, and two nodes behind routers of this kind.
fn pair(nat: Nat) -> (Lab, [usize; 3]) {
    let mut lab = Lab::new();
    let relay = lab.public("relay");
    let (one, other) = (lab.behind(nat, "one"), lab.behind(nat, "other"));
    lab.join();
    (lab, [relay, one, other])
}

/// Ends both nodes, and lets their routers forget them.
fn end_both(lab: &mut Lab, nodes: [usize; 2]) {
    for node in nodes {
        lab.kill(node);
        lab.router(node).forget().expect("root");
    }
}

pub(crate) fn first_packets(settings: &Settings) {
    for nat in &settings.kinds {
        let (mut lab, [relay, one, other]) = pair(*nat);
        lab.wait("the two reach each other directly", |lab| {
            lab.are(one, other, PeerState::Direct)
        });
        let (mut first, mut direct) = (Times::default(), Times::default());
        for _ in 0..settings.runs {
            let run = opening(&mut lab, relay, [one, other]);
            run.first.iter().for_each(|time| first.add(*time));
            direct.add(run.direct);
        }
        let both = format!("both ends behind {}", nat.as_str());
        print(
            "A1",
            &format!("{both}: first packet"),
            &first.shown(),
            "p50 <= 50 ms",
            first.percentile(50) <= ms(50),
        );
        print(
            "A1",
            &format!("{both}: direct"),
            &direct.shown(),
            "p50 <= 150 ms, p99 <= 500 ms, in each run",
            direct.percentile(50) <= ms(150)
                && direct.percentile(99) <= ms(500)
                && direct.missing == 0,
        );
    }
}

/// The times of one start, from the moment when both nodes have a route to the mesh.
struct Opening {
    /// To the first packet in each direction.
    first: [Option<Duration>; 2],
    /// To the last packet through the relay.
    direct: Option<Duration>,
}

fn opening(lab: &mut Lab, relay: usize, nodes: [usize; 2]) -> Opening {
    end_both(lab, nodes);
    let [one, other] = nodes;
    let flows = [(one, other), (other, one)]
        .map(|(from, to)| Flow::start(&lab.nodes[from], &lab.nodes[to], PACKETS));
    let file = lab.counter_file(relay, "rx_packets");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sampler = std::thread::spawn(move || sample(&file, &stopped));
    for node in nodes {
        lab.start(node);
    }
    let began = Instant::now();
    let has_begun = |flows: &[Flow; 2]| flows.iter().all(|flow| flow.last() > began);
    while began.elapsed() < LIMIT && !has_begun(&flows) {
        std::thread::sleep(ms(10));
    }
    nodes.iter().for_each(|node| lab.await_start(*node));
    let are_direct = lab.wait_for(LIMIT, |lab| lab.are(one, other, PeerState::Direct));
    std::thread::sleep(QUIET);
    stop.store(true, Ordering::Relaxed);
    let samples = sampler.join().expect("no thread panics");
    let flown = flows.map(Flow::stop);
    let zero = flown.iter().filter_map(|flown| flown.first_sent).max();
    let zero = zero.unwrap_or(began);
    let first = flown.each_ref().map(|flown| {
        let mut times = flown.arrived.iter().map(|(_, at)| *at);
        times.find(|at| *at >= zero).map(|at| at - zero)
    });
    let direct = are_direct.and(last_busy(&samples, zero));
    Opening { first, direct }
}

/// Reads a counter again and again.
fn sample(file: &Path, stop: &AtomicBool) -> Vec<(Instant, u64)> {
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        samples.push((Instant::now(), read_counter(file)));
        std::thread::sleep(ms(2));
    }
    samples
}

/// How long after `zero` the counter grew quickly for the last time, unless it still does. Zero if it never did.
fn last_busy(samples: &[(Instant, u64)], zero: Instant) -> Option<Duration> {
    let is_busy = |(at, count): &&(Instant, u64)| {
        let before = samples.partition_point(|(other, _)| *other + WINDOW < *at);
        samples
            .get(before)
            .is_some_and(|(_, before)| count - before > FEW)
    };
    let last = samples.iter().rfind(is_busy).map(|(at, _)| *at);
    let (end, _) = samples.last()?;
    let last = last.unwrap_or(zero);
    (last + QUIET / 2 < *end).then(|| last.saturating_duration_since(zero))
}

pub(crate) fn bytes_and_probes(settings: &Settings) {
    let (mut lab, [relay, one, other]) = pair(Nat::Restricted);
    let mut bytes = Vec::new();
    let runs = settings.runs.min(20);
    for _ in 0..runs {
        end_both(&mut lab, [one, other]);
        let before = lab.metric(relay, "meshd_relay_bytes_total");
        for node in [one, other] {
            lab.start(node);
        }
        for node in [one, other] {
            lab.await_start(node);
        }
        lab.wait("the two reach each other directly", |lab| {
            lab.are(one, other, PeerState::Direct)
        });
        // What is sent at the end of a punch.
        std::thread::sleep(Duration::from_secs(2));
        bytes.push(lab.metric(relay, "meshd_relay_bytes_total") - before);
    }
    bytes.sort_by(f64::total_cmp);
    let (middle, most) = (bytes[bytes.len() / 2], bytes[bytes.len() - 1]);
    print(
        "A10",
        "bytes through the relay until a path is direct",
        &format!("median {middle:.0}, most {most:.0}, of {runs}"),
        "<= 3,000 bytes",
        most <= 3000.0,
    );
    drop(lab);

    let (lab, [_, one, other]) = pair(Nat::Symmetric);
    lab.wait("the two reach each other through the relay", |lab| {
        lab.are(one, other, PeerState::Relay)
    });
    std::thread::sleep(Duration::from_secs(60));
    lab.world.count(&lab.ways(one, other)).expect("nft");
    std::thread::sleep(settings.calm);
    let (packets, _) = lab.world.counted().expect("nft");
    // Both nodes send.
    let rate = packets as f64 / 2.0 / settings.calm.as_secs_f64();
    print(
        "A10",
        "datagrams a second of a node to one it cannot reach",
        &format!("{rate:.3}, from 60 s on, for {} s", settings.calm.as_secs()),
        "<= 1 a second",
        rate <= 1.0,
    );
    note("A10", "", "no packets of programs are sent meanwhile");
}
