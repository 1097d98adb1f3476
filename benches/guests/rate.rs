//! The rate of a TCP stream of a guest to a node behind its door, beside the direct one: to a node that is the door itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use meshd::testbed::{Host, World};

use crate::Settings;
use crate::bed::{await_peers, programs, wait};
use crate::bulk::Stream;
use crate::control::meshctl;
use crate::device::{Device, resolves};
use crate::median::median;
use crate::mesh::{Member, Mesh};
use crate::read::process_cpu;
use crate::report::{note, print};

/// How long the rate is measured in one round.
const ROUND: Duration = Duration::from_secs(3);
/// A stream is that fast after this time.
const WARM: Duration = Duration::from_secs(1);
/// The measurements of new paths between the nodes are over by then.
const SETTLED: Duration = Duration::from_secs(20);

pub(crate) fn through_a_door(settings: &Settings) {
    let world = World::new().expect("a network");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let mesh = Mesh::start(&world, programs());
    let door = mesh.add("door", "");
    let web = mesh.add("web", "[[service]]\nname = \"web\"\nport = 80\n");
    let guest = world.host("guest").expect("a namespace");
    await_peers(&door.host, 1);
    wait("the door resolves the name", || resolves(&door.host));
    std::thread::sleep(SETTLED);
    let added = meshctl(
        &mesh.coordinator_host,
        &[
            "guest", "add", "anna", "--door", "door", "--door", "web", "--json",
        ],
    );
    let added: serde_json::Value = serde_json::from_str(&added).expect("a document");
    let config = |n: usize| -> String {
        let config = added["configurations"][n]["config"].as_str();
        config.expect("one for each door").to_owned()
    };
    let [by_door, by_web] = [0, 1].map(config);
    let (mut through, mut direct, mut cost) = (Vec::new(), Vec::new(), Vec::new());
    let mut port = 7100;
    for _ in 0..settings.runs {
        for is_direct in [true, false] {
            let config = if is_direct { &by_web } else { &by_door };
            let _device = Device::up(&guest, config, logs.path());
            assert!(resolves(&guest), "the guest reaches its door");
            let cpu = process_cpu(&door.daemon);
            let measured = rate(&guest, &web, port);
            let used = process_cpu(&door.daemon) - cpu;
            if is_direct {
                direct.push(measured.gbps);
            } else {
                through.push(measured.gbps);
                cost.push(used.as_secs_f64() / measured.gigabytes);
            }
            port += 1;
        }
    }
    let (through, direct, cost) = (median(&through), median(&direct), median(&cost));
    let (share, rounds) = (through / direct, settings.runs);
    print(
        "F1",
        "one TCP stream of a guest through its door",
        &format!(
            "{through:.2} Gbit/s, direct {direct:.2}: {share:.2} of it; medians of {rounds} rounds in turn"
        ),
        ">= 0.75 of the direct rate",
        share >= 0.75,
    );
    note(
        "F1",
        "the door's processor",
        &format!(
            "{cost:.2} s/GB; the guest, its door and the node share the cores of this machine"
        ),
    );
}

/// What a stream carried.
struct Measured {
    gbps: f64,
    /// From its first byte to its last one.
    gigabytes: f64,
}

fn rate(from: &Host, to: &Member, port: u16) -> Measured {
    let target = SocketAddr::from((to.address, port));
    let stream = Stream::start(from, &to.host, target, None);
    std::thread::sleep(WARM);
    let (bytes, began) = (stream.received(), Instant::now());
    std::thread::sleep(ROUND);
    let bits = (stream.received() - bytes) as f64 * 8.0;
    let gbps = bits / 1e9 / began.elapsed().as_secs_f64();
    let gigabytes = stream.received() as f64 / 1e9;
    assert!(stream.stop(), "all bytes arrive");
    Measured { gbps, gigabytes }
}
