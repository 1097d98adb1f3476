//! `meshd wireguard` against wireguard-go and against itself, configured by the ordinary `wg` tool.
//!
//! Needs root, `wg` and `wireguard-go`; without them `tests/run` lists each test as skipped.

mod device;
mod pair;
mod sources;

use std::time::Duration;

use pair::{Kind, Pair};

/// Every pair of implementations with meshd on at least one side.
const PAIRS: [(Kind, Kind); 3] = [
    (Kind::Meshd, Kind::Meshd),
    (Kind::Meshd, Kind::WireguardGo),
    (Kind::WireguardGo, Kind::Meshd),
];

#[test]
fn packets_of_every_size_pass_in_both_families_with_a_preshared_key() {
    for (a, b) in PAIRS {
        let Some(pair) = Pair::start(a, b) else {
            return;
        };
        for to in ["10.9.0.2", "fd09::2"] {
            assert!(pair.pings(0, to, 56), "{a:?} to {b:?}: {to}");
            // 1,420 bytes with the IP and ICMP headers, and one more, which goes in pieces.
            let headers = if to.contains(':') { 48 } else { 28 };
            for size in [0, 1, 15, 16, 17, 1420 - headers, 1421 - headers, 8000] {
                assert!(
                    pair.pings(0, to, size),
                    "{a:?} to {b:?}: {to} with {size} bytes"
                );
            }
        }
        assert!(pair.pings(1, "10.9.0.1", 1392), "{b:?} to {a:?}");
        let shown = pair.wg(0, &["show"]);
        assert!(
            shown.contains("latest handshake") && shown.contains("preshared key"),
            "{shown}"
        );
    }
}

#[test]
fn the_received_bytes_are_those_that_were_sent() {
    for (a, b) in PAIRS {
        let Some(pair) = Pair::start(a, b) else {
            return;
        };
        for (from, to) in [(0, "10.9.0.2"), (1, "10.9.0.1"), (0, "fd09::2")] {
            pair.assert_same_bytes_over_tcp(from, to.parse().expect("a literal"), 24 << 20);
            pair.assert_same_bytes_over_udp(from, to.parse().expect("a literal"));
        }
    }
}

#[test]
fn either_end_may_move_to_another_port_and_address() {
    for (a, b) in PAIRS {
        let Some(pair) = Pair::start(a, b) else {
            return;
        };
        assert!(pair.pings(0, "10.9.0.2", 56));
        for (mover, to) in [(0, "10.9.0.2"), (1, "10.9.0.1")] {
            pair.wg(mover, &["set", "wg0", "listen-port", "40404"]);
            assert!(
                pair.pings(mover, to, 56),
                "{a:?} and {b:?}: end {mover} on another port"
            );
            assert!(
                pair.pings(
                    1 - mover,
                    if mover == 0 { "10.9.0.1" } else { "10.9.0.2" },
                    56
                ),
                "and the other end has followed"
            );
            pair.move_to_another_address(mover);
            assert!(
                pair.pings(mover, to, 56),
                "{a:?} and {b:?}: end {mover} at another address"
            );
            assert!(
                pair.pings(
                    1 - mover,
                    if mover == 0 { "10.9.0.1" } else { "10.9.0.2" },
                    56
                ),
                "and the other end has followed"
            );
        }
    }
}

#[test]
fn a_restarted_peer_is_reached_again_when_both_send() {
    for (a, b) in PAIRS {
        let Some(mut pair) = Pair::start(a, b) else {
            return;
        };
        assert!(pair.pings(0, "10.9.0.2", 56));
        for restarted in [0, 1] {
            pair.restart(restarted);
            // Both ends talk; `ping` waits for at most 5 s, the time is printed.
            let back = pair.time_until_both_talk();
            eprintln!(
                "{a:?} and {b:?}: end {restarted} restarted, traffic back after {} ms",
                back.as_millis()
            );
            assert!(
                back < Duration::from_secs(10),
                "{a:?} and {b:?}: end {restarted}"
            );
        }
    }
}

#[test]
fn a_session_is_replaced_while_packets_go_on() {
    // REKEY_AFTER_TIME is 120 s (WireGuard section 6.1).
    let pairs: Vec<Pair> = PAIRS
        .iter()
        .filter_map(|(a, b)| Pair::start(*a, *b))
        .collect();
    let began: Vec<u64> = pairs
        .iter()
        .map(|pair| {
            assert!(pair.pings(0, "10.9.0.2", 56));
            pair.last_handshake(0)
        })
        .collect();
    let floods: Vec<_> = pairs
        .iter()
        .map(|pair| pair.start_pings(0, "10.9.0.2", 650))
        .collect();
    for ((pair, began), mut flood) in pairs.iter().zip(began).zip(floods) {
        let status = flood
            .wait(Duration::from_secs(200))
            .expect("650 pings take 130 s");
        assert!(status.success());
        let log = flood.log();
        assert!(
            log.contains("650 packets transmitted, 650 received"),
            "{log}"
        );
        assert!(pair.last_handshake(0) > began, "a new session after 120 s");
    }
}

#[test]
fn the_socket_returns_its_configuration_and_refuses_malformed_input() {
    let Some(pair) = Pair::start(Kind::Meshd, Kind::Meshd) else {
        return;
    };
    let dump = pair.wg(0, &["show", "wg0", "dump"]);
    let peer = dump.lines().nth(1).expect("one peer");
    let fields: Vec<&str> = peer.split('\t').collect();
    assert_eq!(
        fields.get(3).copied(),
        Some("10.9.0.2/32,fd09::2/128"),
        "{dump}"
    );
    assert_eq!(fields.get(7).copied(), Some("off"));
    let public = fields.first().copied().expect("a key").to_owned();
    pair.wg(
        0,
        &[
            "set",
            "wg0",
            "peer",
            &public,
            "persistent-keepalive",
            "9",
            "allowed-ips",
            "10.9.0.0/24",
        ],
    );
    let dump = pair.wg(0, &["show", "wg0", "dump"]);
    assert!(
        dump.contains("10.9.0.0/24") && dump.trim_end().ends_with('9'),
        "{dump}"
    );
    pair.wg(0, &["set", "wg0", "peer", &public, "remove"]);
    assert_eq!(pair.wg(0, &["show", "wg0", "dump"]).lines().count(), 1);
    pair.assert_survives_nonsense(0);
}

#[test]
fn a_peer_cannot_use_an_address_that_is_not_its_own() {
    for (a, b) in [(Kind::Meshd, Kind::Meshd), (Kind::WireguardGo, Kind::Meshd)] {
        let Some(pair) = Pair::start(a, b) else {
            return;
        };
        assert!(pair.pings(0, "10.9.0.2", 56));
        pair.add_address(0, "10.9.0.77/32");
        assert!(
            !pair.pings_from(0, "10.9.0.77", "10.9.0.2"),
            "from an address that is nobody's"
        );
        assert!(pair.pings(0, "10.9.0.2", 56));
    }
}
