//! The rate between nodes whose network drops UDP, through a relay over TLS, beside the direct one.

use std::time::{Duration, Instant};

use meshd::protocol::local::PeerState;
use meshd::testbed::Nat;

use crate::Settings;
use crate::lab::{Lab, Node};
use crate::median::median;
use crate::report::{Times, ms, print};

/// The pings in one round, and the time between two of them. The rate is measured meanwhile.
const PINGS: u32 = 40;
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// A stream is that fast after this time.
const WARM: Duration = Duration::from_secs(1);

pub(crate) fn over_tls_and_direct(settings: &Settings) {
    let mut lab = Lab::new();
    lab.configured("relay", "[relay]\nlisten = \"0.0.0.0:443\"\n");
    let mut pair = |nat, names: [&str; 2]| names.map(|name| lab.behind(nat, name));
    let direct = pair(Nat::Plain, ["one", "other"]);
    let blocked = pair(Nat::UdpBlocked, ["office-1", "office-2"]);
    lab.join();
    for ([one, other], state) in [(direct, PeerState::Direct), (blocked, PeerState::Stream)] {
        lab.wait("the path is the one to measure", |lab| {
            lab.are(one, other, state)
        });
    }
    let rounds = settings.runs.min(8);
    let (mut direct_rates, mut stream_rates, mut trips) =
        (Vec::new(), Vec::new(), Times::default());
    for round in 0..rounds {
        let port = 7200 + round as u16;
        let mut ignored = Times::default();
        direct_rates.push(rate(&lab, direct, port, &mut ignored));
        stream_rates.push(rate(&lab, blocked, port, &mut trips));
    }
    let (direct, stream) = (median(&direct_rates), median(&stream_rates));
    let share = stream / direct;
    print(
        "A8",
        "one TCP stream through a relay over TLS",
        &format!(
            "{stream:.2} Gbit/s, direct {direct:.2}: {share:.2} of it; medians of {rounds} rounds in turn"
        ),
        ">= 0.25 of the direct rate",
        share >= 0.25,
    );
    print(
        "A8",
        "round trips under that load",
        &trips.shown(),
        "p99 <= 100 ms",
        trips.percentile(99) <= ms(100),
    );
}

/// The rate of a TCP stream between two nodes in Gbit/s. Adds the round trips of pings beside it.
fn rate(lab: &Lab, [from, to]: [usize; 2], port: u16, trips: &mut Times) -> f64 {
    let (from, to) = (&lab.nodes[from], &lab.nodes[to]);
    let stream = from.stream(to, port, None);
    std::thread::sleep(WARM);
    let (bytes, began) = (stream.received(), Instant::now());
    ping(from, to, trips);
    let bits = (stream.received() - bytes) as f64 * 8.0;
    let rate = bits / 1e9 / began.elapsed().as_secs_f64();
    stream.stop();
    rate
}

/// Adds the round trip of each ping. One that was not answered is missing.
fn ping(from: &Node, to: &Node, trips: &mut Times) {
    let mut command = from.host.command("ping").expect("a namespace");
    command.args(["-c", &PINGS.to_string()]);
    command.args(["-i", &PING_INTERVAL.as_secs_f64().to_string()]);
    command.args(["-W", "2", &to.address.to_string()]);
    let output = command.output().expect("ping is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let times = text.lines().filter_map(|line| {
        let (_, time) = line.split_once("time=")?;
        let milliseconds: f64 = time.split(' ').next()?.parse().ok()?;
        Some(Duration::from_secs_f64(milliseconds / 1000.0))
    });
    let times: Vec<Duration> = times.collect();
    for n in 0..PINGS as usize {
        trips.add(times.get(n).copied());
    }
}
