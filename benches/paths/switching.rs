//! Packets that are lost while two nodes change between a relay and a direct path.

use std::time::Duration;

use meshd::protocol::local::PeerState;
use meshd::testbed::Nat;

use crate::Settings;
use crate::flow::Flow;
use crate::lab::Lab;
use crate::report::{note, print};

/// A direct path with this delay in each direction is worse than the relay.
const DELAY: Duration = Duration::from_millis(150);
/// The nodes notice that within this time: the path in use is measured every ten seconds, and the direct one, while it is not in use,
/// three times.
const LIMIT: Duration = Duration::from_secs(60);
/// The maximum number of switches in each direction. A direct path that lasts for less than a minute is tried again after ever longer
/// pauses, so each switch back takes longer than the one before, up to half a minute.
const SWITCHES: usize = 5;
/// The rate of the TCP stream in bytes a second.
const RATE: f64 = 2e6;

pub(crate) fn losses(settings: &Settings) {
    let mut lab = Lab::new();
    lab.public("relay");
    let (one, other) = (
        lab.behind(Nat::Plain, "one"),
        lab.behind(Nat::Plain, "other"),
    );
    lab.join();
    let are = |state| move |lab: &Lab| lab.are(one, other, state);
    lab.wait("the two reach each other directly", are(PeerState::Direct));
    let flow = Flow::start(&lab.nodes[one], &lab.nodes[other], settings.packets);
    let stream = lab.nodes[other].stream(&lab.nodes[one], 7001, Some(RATE));
    let switches = settings.runs.min(SWITCHES);
    let (mut to_relay, mut to_direct) = (0, 0);
    for _ in 0..switches {
        let routers = [lab.router(one), lab.router(other)];
        let delay = lab.world.delay(routers[0], routers[1], DELAY);
        let delay = delay.expect("root, and the device /dev/net/tun");
        to_relay += usize::from(lab.wait_for(LIMIT, are(PeerState::Relay)).is_some());
        std::thread::sleep(Duration::from_secs(1));
        drop(delay);
        to_direct += usize::from(lab.wait_for(LIMIT, are(PeerState::Direct)).is_some());
        std::thread::sleep(Duration::from_secs(1));
    }
    let is_whole = stream.stop();
    let flown = flow.stop();
    let lost = flown.lost();
    print(
        "A4",
        "UDP packets lost at switches between relay and direct",
        &format!(
            "{lost} of {}, at {to_relay} switches to the relay and {to_direct} back, of {switches} each",
            flown.sent
        ),
        "0 of 100,000, at 20,000 packets a second",
        lost == 0 && to_relay == switches && to_direct == switches,
    );
    note(
        "A4",
        "the load",
        &format!(
            "{} packets a second, which is what this machine carries for three nodes and their routers, beside TCP with {} MB/s",
            settings.packets,
            RATE / 1e6
        ),
    );
    print(
        "A4",
        "the TCP stream",
        if is_whole {
            "all bytes arrived"
        } else {
            "it broke"
        },
        "0 resets",
        is_whole,
    );
}
