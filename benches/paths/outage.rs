//! How long packets do not arrive when a path fails.

use std::time::{Duration, Instant};

use meshd::protocol::local::PeerState;
use meshd::testbed::Nat;

use crate::Settings;
use crate::flow::Flow;
use crate::lab::Lab;
use crate::report::{Times, ms, note, print};

/// The packets in a second, in each direction.
const PACKETS: u32 = 200;
/// An outage that lasts longer is one without an end.
const LIMIT: Duration = Duration::from_secs(15);
/// Before a path fails, both ends have used it for so long.
const STEADY: Duration = Duration::from_secs(3);
/// A direct path comes back within this time.
const BACK: Duration = Duration::from_secs(90);

/// The longest gap of two flows around what `fail` does, in either direction.
fn outage(lab: &mut Lab, nodes: [usize; 2], fail: impl FnOnce(&mut Lab)) -> Option<Duration> {
    let [one, other] = nodes;
    let flows = [(one, other), (other, one)]
        .map(|(from, to)| Flow::start(&lab.nodes[from], &lab.nodes[to], PACKETS));
    std::thread::sleep(STEADY);
    let failed = Instant::now();
    fail(lab);
    // Until both flows go on, and for a second more.
    let goes_on = |flow: &Flow| failed.elapsed() > ms(1500) && flow.last().elapsed() < ms(50);
    while failed.elapsed() < LIMIT && !flows.iter().all(goes_on) {
        std::thread::sleep(ms(20));
    }
    std::thread::sleep(ms(1000));
    let end = Instant::now() - ms(100);
    let gaps = flows.map(|flow| flow.stop().longest_gap(failed, end));
    let [Some(one), Some(other)] = gaps else {
        return None;
    };
    Some(one.max(other))
}

/// A relay, and two nodes behind plain routers with a direct path.
fn direct_pair() -> (Lab, [usize; 2]) {
    let mut lab = Lab::new();
    lab.public("relay");
    let nodes = [
        lab.behind(Nat::Plain, "one"),
        lab.behind(Nat::Plain, "other"),
    ];
    lab.join();
    (lab, nodes)
}

/// Waits for a direct path. Returns whether it came.
fn is_direct(lab: &Lab, [one, other]: [usize; 2]) -> bool {
    let direct = |lab: &Lab| lab.are(one, other, PeerState::Direct);
    lab.wait_for(BACK, direct).is_some()
}

pub(crate) fn cuts_and_kills(settings: &Settings) {
    const GOAL: &str = "p50 <= 700 ms, p99 <= 1 s";
    let is_met =
        |times: &Times| times.percentile(50) <= ms(700) && times.percentile(99) <= ms(1000);
    let (mut lab, nodes) = direct_pair();
    let [one, other] = nodes;
    let (mut times, mut late) = (Times::default(), 0);
    for _ in 0..settings.runs {
        late += usize::from(!is_direct(&lab, nodes));
        let cut = |lab: &mut Lab| {
            let ways = lab.ways(one, other);
            lab.world.set_cuts(&ways).expect("nft");
        };
        times.add(outage(&mut lab, nodes, cut));
        lab.world.set_cuts(&[]).expect("nft");
    }
    print(
        "A5",
        "direct path cut: outage",
        &times.shown(),
        GOAL,
        is_met(&times),
    );
    if late > 0 {
        let text = format!("{late} times, in {} s", BACK.as_secs());
        note("A5", "the direct path did not come back", &text);
    }
    drop(lab);

    let mut lab = Lab::new();
    let relays = [lab.public("relay-1"), lab.public("relay-2")];
    let nodes = [Nat::Symmetric, Nat::Symmetric];
    let names = ["one", "other"];
    let [one, other] = [0, 1].map(|n: usize| lab.behind(nodes[n], names[n]));
    lab.join();
    let mut times = Times::default();
    for _ in 0..settings.runs {
        lab.wait("both relays lead to the peer", |lab| {
            let reaches = |node| {
                relays
                    .iter()
                    .all(|relay| lab.are(node, *relay, PeerState::Direct))
            };
            reaches(one) && reaches(other) && lab.are(one, other, PeerState::Relay)
        });
        // The other relay is probed by then.
        std::thread::sleep(Duration::from_secs(12));
        let mut killed = None;
        let kill = |lab: &mut Lab| {
            let via = lab.peer(one, other).via.expect("it is relayed");
            let used = relays
                .iter()
                .find(|relay| lab.nodes[**relay].name == via.as_str());
            killed = used.copied();
            lab.kill(killed.expect("one of the two"));
        };
        times.add(outage(&mut lab, [one, other], kill));
        let killed = killed.expect("it was killed");
        lab.start(killed);
        lab.await_start(killed);
    }
    print(
        "A5",
        "relay killed: outage",
        &times.shown(),
        GOAL,
        is_met(&times),
    );
}

pub(crate) fn one_way(settings: &Settings) {
    let (mut lab, nodes) = direct_pair();
    let [one, other] = nodes;
    let mut times = Times::default();
    for _ in 0..settings.runs {
        is_direct(&lab, nodes);
        let cut = |lab: &mut Lab| {
            let [way, _] = lab.ways(one, other);
            lab.world.set_cuts(&[way]).expect("nft");
        };
        times.add(outage(&mut lab, nodes, cut));
        lab.world.set_cuts(&[]).expect("nft");
    }
    print(
        "A6",
        "one direction lost: both are back",
        &times.shown(),
        "<= 1.5 s",
        times.percentile(100) <= ms(1500),
    );
    is_direct(&lab, nodes);
    let [way, _] = lab.ways(one, other);
    lab.world.set_cuts(&[way]).expect("nft");
    let flows = [(one, other), (other, one)]
        .map(|(from, to)| Flow::start(&lab.nodes[from], &lab.nodes[to], PACKETS));
    // The change to the relay does not count.
    std::thread::sleep(Duration::from_secs(5));
    let before = lab.changes(one, other) + lab.changes(other, one);
    std::thread::sleep(settings.calm);
    let changes = lab.changes(one, other) + lab.changes(other, one) - before;
    drop(flows.map(Flow::stop));
    print(
        "A6",
        "changes of paths while the direction stays lost",
        &format!("{changes} in {} s", settings.calm.as_secs()),
        "none in 300 s",
        changes == 0,
    );
}
