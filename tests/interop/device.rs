//! `meshd wireguard` continues when its interface is moved or renamed, and ends when it is deleted.

use std::time::Duration;

use crate::pair::{Kind, Pair};

#[test]
fn an_interface_that_is_renamed_and_moved_to_another_namespace_still_works() {
    let Some(mut pair) = Pair::start(Kind::Meshd, Kind::Meshd) else {
        return;
    };
    assert!(pair.pings(0, "10.9.0.2", 56));
    pair.ip(0, "link set wg0 down");
    pair.ip(0, "link set wg0 name container0");
    pair.move_device(0, "container0");
    // Longer than a look-up by name would take to notice.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(pair.still_runs(0));
    pair.ip_inside(0, "addr add 10.9.0.1/24 dev container0");
    pair.ip_inside(0, "link set container0 mtu 1420 up");
    assert!(pair.pings_inside(0, "10.9.0.2"), "out of the namespace");
    // The sockets are where they were: the other end still finds them.
    assert!(pair.pings(1, "10.9.0.1", 56), "into the namespace");
    assert!(pair.wg(0, &["show", "wg0"]).contains("latest handshake"));
    pair.end_namespace(0);
    assert!(
        pair.ends_at_once(0),
        "the interface goes with the namespace"
    );
}

#[test]
fn a_deleted_interface_ends_its_process_at_once_and_a_new_one_may_have_its_name_and_port() {
    let Some(mut pair) = Pair::start(Kind::Meshd, Kind::Meshd) else {
        return;
    };
    for _ in 0..3 {
        assert!(pair.pings(1, "10.9.0.1", 56));
        pair.ip(0, "link del wg0");
        // Without waiting for the first to end.
        pair.start_beside(0);
        assert!(pair.ends_at_once(0), "{}", pair.log(0));
        pair.take_over(0);
        assert!(pair.pings(0, "10.9.0.2", 56));
    }
}

#[test]
fn a_packet_within_a_raised_mtu_is_padded_like_any_other() {
    let Some(pair) = Pair::start(Kind::Meshd, Kind::Meshd) else {
        return;
    };
    for n in [0, 1] {
        pair.ip(n, "link set wg0 mtu 1600");
    }
    assert!(pair.pings(0, "10.9.0.2", 56));
    // 1,501 bytes with the IP and ICMP headers: 1,504 are sealed (WireGuard section 5.4.6), and 32 added.
    pair.wait_until(|| {
        let before = pair.sent(0);
        assert!(pair.pings(0, "10.9.0.2", 1473));
        pair.sent(0) - before == 1536
    });
}
