//! What the lines have in common: the programs, the status of a node, and what is waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use meshd::protocol::local::{PeerState, Status};
use meshd::testbed::Host;

use crate::control::meshctl;

/// How long something may take that always happens.
const HANG: Duration = Duration::from_secs(120);

/// The directory of the programs of this build.
pub(crate) fn programs() -> &'static Path {
    let directory = Path::new(env!("CARGO_BIN_EXE_meshd")).parent();
    directory.expect("a program is in a directory")
}

pub(crate) fn status(host: &Host) -> Status {
    let text = meshctl(host, &["status", "--json"]);
    serde_json::from_str(&text).expect("a status")
}

/// Waits until a node has direct paths to so many peers.
pub(crate) fn await_peers(host: &Host, count: usize) {
    wait("the nodes reach each other", || {
        let peers = status(host).peers;
        let direct = peers.iter().filter(|peer| peer.state == PeerState::Direct);
        direct.count() == count
    });
}

/// Waits for something that always happens.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
