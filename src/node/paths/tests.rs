use super::*;
use crate::model::NodeAddress;
use crate::path::link::Evidence;
use crate::path::links::Candidate;
use crate::path::watch::{ANSWER_LIMIT, PROBE_INTERVAL, UNREACHABLE_AFTER};
use crate::tunnel::{PeerConfig, RoundTrip};
use std::time::SystemTime;

const MTU: u16 = 1420;
const PEER: PublicKey = PublicKey([2; 32]);

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

fn peer() -> PathPeer {
    PathPeer {
        id: PEER,
        endpoints: vec![endpoint(1), endpoint(2)],
        serves: true,
        steered: None,
    }
}

/// A peer from which a packet came at `heard`.
fn status(heard: Option<Instant>) -> PeerStatus {
    PeerStatus {
        config: PeerConfig {
            public_key: [2; 32],
            preshared_key: None,
            endpoint: Some(endpoint(1)),
            allowed_ips: vec![],
            persistent_keepalive: None,
        },
        endpoint: Some(endpoint(1)),
        path: Some(crate::model::Path::Direct(endpoint(1))),
        last_handshake: heard.map(|_| SystemTime::now()),
        last_receive: heard,
        rx_bytes: 0,
        tx_bytes: 0,
        last_send: None,
        round_trip: None,
        path_mtu: MTU,
    }
}

/// Polls every half second for `seconds`, with a peer that was last heard at `heard`. Returns the actions, and the seconds at
/// which the names were to be computed again.
fn run(
    paths: &mut Paths,
    start: Instant,
    seconds: u32,
    heard: impl Fn(Instant) -> Option<Instant>,
) -> (Vec<PathAction>, Vec<u32>) {
    let (mut actions, mut regrouped) = (Vec::new(), Vec::new());
    for half in 0..seconds * 2 {
        let now = start + POLL_INTERVAL * half;
        let limit = paths.handle_peer_status(PEER, true, &status(heard(now)), None, now);
        actions.extend(limit);
        let (due, is_other) = paths.poll(now);
        actions.extend(due);
        if is_other {
            regrouped.push(half / 2);
        }
    }
    (actions, regrouped)
}

#[test]
fn without_peers_nothing_is_due() {
    let now = Instant::now();
    let mut paths = Paths::new(MTU, true);
    assert_eq!(paths.poll_timeout(), None);
    paths.set_peers(vec![peer()], now);
    assert_eq!(paths.poll_timeout(), Some(now));
    let _ = paths.poll(now);
    let next = Some(now + PROBE_INTERVAL);
    assert_eq!(paths.poll_timeout(), next, "when the next probe is due");
    paths.set_peers(vec![peer()], now);
    assert_eq!(
        paths.poll_timeout(),
        next,
        "the same peers again do not bring the next poll forward"
    );
    let other = PathPeer {
        id: PublicKey([3; 32]),
        ..peer()
    };
    paths.set_peers(vec![peer(), other], now);
    assert_eq!(paths.poll_timeout(), Some(now), "a new peer is probed now");
    paths.set_peers(vec![], now);
    assert_eq!(paths.poll_timeout(), None);
}

#[test]
fn a_silent_peer_is_probed_tried_elsewhere_and_then_unreachable() {
    let start = Instant::now();
    let mut paths = Paths::new(MTU, true);
    paths.set_peers(vec![peer()], start);
    let (actions, regrouped) = run(&mut paths, start, 10, |_| None);
    assert_eq!(actions.first(), Some(&PathAction::Probe(PEER)));
    assert!(
        actions.contains(&PathAction::Try(PEER, endpoint(2))),
        "{actions:?}"
    );
    let lost =
        u32::try_from((UNREACHABLE_AFTER - PROBE_INTERVAL).as_secs()).expect("a few seconds");
    assert_eq!(regrouped, [lost], "the names are computed again once");
    assert_eq!(paths.unreachable(), &BTreeSet::from([PEER]));
    assert_eq!(paths.reach().get(&PEER), Some(&Reach::Unreachable));
}

#[test]
fn a_peer_that_is_heard_is_reachable_and_the_size_of_its_path_is_searched() {
    let start = Instant::now();
    let mut paths = Paths::new(MTU, true);
    paths.set_peers(vec![peer()], start);
    let (actions, regrouped) = run(&mut paths, start, 3, Some);
    assert_eq!(regrouped, [] as [u32; 0]);
    assert_eq!(paths.reach().get(&PEER), Some(&Reach::Reachable));
    assert!(paths.is_searching(&PEER));
    let sizes = actions.iter().any(
        |action| matches!(action, PathAction::ProbeSizes(PEER, sizes) if sizes.contains(&MTU)),
    );
    assert!(sizes, "{actions:?}");
}

#[test]
fn a_limit_that_the_tunnel_does_not_have_yet_is_an_action() {
    let now = Instant::now();
    let mut paths = Paths::new(MTU, true);
    paths.set_peers(vec![peer()], now);
    let fresh = PeerStatus {
        path_mtu: u16::MAX,
        ..status(Some(now))
    };
    let limit = paths.handle_peer_status(PEER, true, &fresh, None, now);
    assert_eq!(limit, Some(PathAction::Limit(PEER, MTU)));
    let limit = paths.handle_peer_status(PEER, true, &status(Some(now)), None, now);
    assert_eq!(limit, None);
}

#[test]
fn a_peer_that_left_is_forgotten() {
    let start = Instant::now();
    let mut paths = Paths::new(MTU, true);
    paths.set_peers(vec![peer()], start);
    let _ = run(&mut paths, start, 10, |_| None);
    paths.set_peers(vec![], start + Duration::from_secs(10));
    let (actions, is_other) = paths.poll(start + Duration::from_secs(10));
    assert_eq!(actions, []);
    assert!(is_other, "the set of unreachable nodes changed");
    assert!(paths.reach().is_empty() && paths.unreachable().is_empty());
}

#[test]
fn a_path_is_suspect_when_probes_of_an_idle_peer_are_not_answered_though_no_packet_is_sent() {
    let start = Instant::now();
    let mut paths = Paths::new(MTU, true);
    let path = Path::Direct(endpoint(1));
    let candidate = Candidate {
        path,
        evidence: Evidence::Host,
    };
    let steered = SteeredPeer {
        address: NodeAddress([10, 210, 2, 1].into()),
        direct: vec![candidate],
        relays: vec![],
    };
    let steered = PathPeer {
        steered: Some(steered),
        ..peer()
    };
    paths.set_peers(vec![steered], start);
    let trip = RoundTrip {
        at: start,
        took: Duration::from_millis(5),
    };
    let mut report = PathReport::of(path, trip, None);
    report.paths[0].answers = 3;
    paths.poll_steered(start);
    let mut probed = Vec::new();
    for half in 0..=10 {
        let now = start + POLL_INTERVAL * half;
        paths.handle_peer_status(PEER, true, &status(Some(start)), None, now);
        paths.handle_report(&PEER, &report, now);
        paths.poll(now);
        let actions = paths.poll_steered(now);
        let is_probe = |action: &SteerAction| matches!(action, SteerAction::Steer(_, Steer::Probe(to)) if *to == path);
        // The first second is that of the burst by a new path.
        if half > 2 && actions.iter().any(is_probe) {
            probed.push(POLL_INTERVAL * half);
        }
    }
    assert_eq!(probed.first(), Some(&(PROBE_INTERVAL + ANSWER_LIMIT)));
}
