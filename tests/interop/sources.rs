//! From which of its addresses a host with several answers, and what becomes of that when addresses and routes change.

use crate::pair::{Kind, Pair};

fn meshd() -> Option<Pair> {
    Pair::start(Kind::Meshd, Kind::Meshd)
}

/// Addresses of end 0 besides its first, in the network below: the kernel chooses neither of its own accord.
const SECOND: [&str; 2] = ["198.51.100.210", "2001:db8:51::210"];

fn port(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]:51820")
    } else {
        format!("{address}:51820")
    }
}

#[test]
fn a_reply_leaves_from_the_address_that_was_asked() {
    let Some(pair) = meshd() else { return };
    for asked in SECOND {
        let length = if asked.contains(':') { 64 } else { 24 };
        pair.ip(0, &format!("addr add {asked}/{length} dev eth0 nodad"));
        // The kernel prefers the address added last in IPv6: another one comes after it.
        if asked.contains(':') {
            pair.ip(0, "addr add 2001:db8:51::211/64 dev eth0 nodad");
        }
        pair.set_endpoint(1, &port(asked));
        // In a session that exists, with merged datagrams both ways, and in a new one.
        for _ in 0..2 {
            assert!(pair.pings(1, "10.9.0.1", 56), "{asked}");
            assert_eq!(pair.endpoint(1), port(asked));
            pair.assert_same_bytes_over_tcp(1, "10.9.0.1".parse().expect("a literal"), 4 << 20);
            assert_eq!(pair.endpoint(1), port(asked), "after a transfer");
            pair.renew_keys(1);
            pair.set_endpoint(1, &port(asked));
        }
    }
}

#[test]
fn an_address_that_is_gone_is_replaced_and_nothing_has_to_be_asked() {
    let Some(pair) = meshd() else { return };
    for asked in SECOND {
        let length = if asked.contains(':') { 64 } else { 24 };
        pair.ip(0, &format!("addr add {asked}/{length} dev eth0 nodad"));
        pair.set_endpoint(1, &port(asked));
        assert!(pair.pings(1, "10.9.0.1", 56));
        assert_eq!(pair.endpoint(1), port(asked));
        pair.ip(0, &format!("addr del {asked}/{length} dev eth0"));
        // Only end 0 knows where the other is: it sends from another address, and is followed there.
        assert!(pair.pings(0, "10.9.0.2", 56), "without {asked}");
        assert_ne!(pair.endpoint(1), port(asked));
    }
}

#[test]
fn the_source_is_chosen_again_when_the_route_changes_or_an_endpoint_is_set() {
    let Some(pair) = meshd() else { return };
    let [asked, _] = SECOND;
    pair.ip(0, &format!("addr add {asked}/24 dev eth0"));
    let own = port(&pair.underlay(0));
    pair.set_endpoint(1, &port(asked));
    assert!(pair.pings(1, "10.9.0.1", 56));
    assert_eq!(pair.endpoint(1), port(asked));
    pair.set_endpoint(0, &port(&pair.underlay(1)));
    assert!(pair.pings(0, "10.9.0.2", 56));
    assert_eq!(pair.endpoint(1), own, "the endpoint was set");

    pair.set_endpoint(1, &port(asked));
    assert!(pair.pings(1, "10.9.0.1", 56));
    assert_eq!(pair.endpoint(1), port(asked));
    // The way to the peer leaves by another interface, which has an address of its own.
    pair.second_way(0);
    pair.wait_until(|| pair.pings(0, "10.9.0.2", 56) && pair.endpoint(1) == port("198.51.100.220"));
}

#[test]
fn an_address_of_another_interface_in_the_same_network_is_answered_from() {
    let Some(pair) = meshd() else { return };
    // The route to the network stays that of the first interface, although the second one receives the packets.
    pair.second_interface(0);
    for _ in 0..2 {
        pair.set_endpoint(1, &port("198.51.100.220"));
        assert!(pair.pings(1, "10.9.0.1", 56));
        assert_eq!(pair.endpoint(1), port("198.51.100.220"));
        // Nor does a route to somewhere else change it.
        pair.ip(0, "route replace blackhole 203.0.113.0/24");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}
