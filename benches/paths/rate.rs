//! The rate through a relay beside the direct one.

use std::time::{Duration, Instant};

use meshd::protocol::local::PeerState;
use meshd::testbed::Nat;

use crate::Settings;
use crate::lab::Lab;
use crate::median::median;
use crate::read::process_cpu;
use crate::report::print;

/// How long the rate is measured in one round.
const ROUND: Duration = Duration::from_secs(4);
/// A stream is that fast after this time.
const WARM: Duration = Duration::from_secs(1);

pub(crate) fn relayed_and_direct(settings: &Settings) {
    let mut lab = Lab::new();
    let relay = lab.public("relay");
    let (one, other) = (
        lab.behind(Nat::Plain, "one"),
        lab.behind(Nat::Plain, "other"),
    );
    lab.join();
    let are = |state| move |lab: &Lab| lab.are(one, other, state);
    let (mut direct, mut relayed, mut cost) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = settings.runs.min(8);
    let mut port = 7100;
    for _ in 0..rounds {
        for (state, rates) in [
            (PeerState::Direct, &mut direct),
            (PeerState::Relay, &mut relayed),
        ] {
            let ways = lab.ways(one, other);
            let cuts = if state == PeerState::Relay {
                &ways[..]
            } else {
                &[]
            };
            lab.world.set_cuts(cuts).expect("nft");
            // The nodes notice a cut only when they send.
            let stream = lab.nodes[one].stream(&lab.nodes[other], port, None);
            port += 1;
            lab.wait("the path is the one to measure", are(state));
            std::thread::sleep(WARM);
            let daemon = lab.nodes[relay].daemon.as_ref().expect("it runs");
            let (cpu, bytes, began) = (process_cpu(daemon), stream.received(), Instant::now());
            std::thread::sleep(ROUND);
            let bytes = (stream.received() - bytes) as f64;
            rates.push(bytes * 8.0 / 1e9 / began.elapsed().as_secs_f64());
            if state == PeerState::Relay {
                let used = process_cpu(daemon) - cpu;
                cost.push(used.as_secs_f64() / (bytes / 1e9));
            }
            stream.stop();
        }
    }
    let (direct, relayed, cost) = (median(&direct), median(&relayed), median(&cost));
    let share = relayed / direct;
    print(
        "A7",
        "one TCP stream through a relay",
        &format!(
            "{relayed:.2} Gbit/s, direct {direct:.2}: {share:.2} of it; medians of {rounds} rounds in turn"
        ),
        ">= 0.85 of the direct rate",
        share >= 0.85,
    );
    print(
        "A7",
        "the relay's processor",
        &format!("{cost:.2} s/GB"),
        "<= 0.4 s/GB",
        cost <= 0.4,
    );
}
