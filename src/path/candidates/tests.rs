use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::protocol::path_messages::{Nat, NatBehaviour};
use crate::testbed::records::plan;

fn host<'a>(interface: &'a str, address: &str) -> HostAddress<'a> {
    HostAddress {
        interface,
        address: address.parse().expect("a literal"),
        is_tunnel: interface.starts_with("tun"),
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a literal")
}

/// What is offered of these addresses, with bridges of the engine and of guests, and exclusions of the configuration.
fn offered(
    found: &[HostAddress<'_>],
    engine: &[&str],
    guests: &[&str],
    settings: &[Exclude],
) -> Vec<String> {
    let exclusions = Exclusions {
        own: "mesh0",
        mesh: &plan(),
        engine: &names(engine),
        guests: &names(guests),
        settings,
    };
    let offered = host_addresses(found, exclusions);
    offered.iter().map(ToString::to_string).collect()
}

#[test]
fn host_addresses_are_those_at_which_another_machine_can_reach_this_one() {
    let found = [
        host("lo", "127.0.0.1"),
        host("eth0", "2001:db8::5"),
        host("eth0", "fe80::1"),
        host("eth0", "198.51.100.5"),
        host("docker0", "172.17.0.1"),
        host("backend", "172.18.0.1"),
        host("mesh0", "10.210.1.1"),
        host("eth1", "10.210.9.9"),
        host("wan", "198.51.100.5"),
    ];
    let bridges = ["docker0", "backend"];
    let both = ["198.51.100.5", "2001:db8::5"];
    assert_eq!(offered(&found, &bridges[1..], &bridges, &[]), both);
}

#[test]
fn a_bridge_is_offered_where_it_is_the_only_uplink_and_its_name_does_not_matter() {
    let found = [host("br-lan", "192.0.2.5"), host("br-0a1b", "172.18.0.1")];
    for guests in [&["br-0a1b"][..], &["br-0a1b", "br-lan"]] {
        assert_eq!(offered(&found, &["br-0a1b"], guests, &[]), ["192.0.2.5"]);
    }
    assert_eq!(
        offered(&found[1..], &["br-0a1b"], &["br-0a1b"], &[]),
        Vec::<String>::new(),
        "bridges of the engine are never offered"
    );
}

#[test]
fn tunnels_of_other_programs_are_not_offered_unless_there_is_nothing_else() {
    let found = [
        host("wg0", "10.9.0.2"),
        host("tailscale0", "100.100.1.2"),
        host("wt0", "100.101.1.2"),
        host("tun7", "10.8.0.6"),
        host("wgreen", "192.0.2.6"),
        host("wt", "192.0.2.7"),
    ];
    assert_eq!(offered(&found, &[], &[], &[]), ["192.0.2.6", "192.0.2.7"]);
    assert_eq!(offered(&found[3..4], &[], &[], &[]), ["10.8.0.6"]);
}

#[test]
fn what_the_operator_excludes_is_not_offered_even_if_nothing_else_is_left() {
    let found = [host("eth0", "192.0.2.5"), host("eth2", "192.0.2.6")];
    let interface = Exclude::Interface("eth2".into());
    assert_eq!(
        offered(&found, &[], &[], std::slice::from_ref(&interface)),
        ["192.0.2.5"]
    );
    let prefix = Exclude::Prefix("192.0.2.4/31".parse().expect("a literal"));
    assert_eq!(offered(&found, &[], &[], &[interface, prefix]), [""; 0]);
}

#[test]
fn candidates_are_ordered_by_their_evidence_and_each_address_is_one() {
    let (set, mapped) = ([at("203.0.113.7:1000")], [at("203.0.113.7:51820")]);
    let host = ["192.0.2.5".parse().expect("a literal")];
    let observed = [
        at("203.0.113.7:51820"),
        at("203.0.113.7:4242"),
        at("10.210.3.1:51820"),
        at("192.0.2.5:51820"),
    ];
    let own = OwnAddresses {
        set: &set,
        mapped: &mapped,
        host: &host,
        port: 51820,
        observed: &observed,
    };
    let found = own.candidates(&plan()).into_iter();
    let found: Vec<String> = found
        .map(|c| format!("{} {}", c.kind.as_str(), c.address))
        .collect();
    assert_eq!(
        found,
        [
            "set 203.0.113.7:1000",
            "mapped 203.0.113.7:51820",
            "host 192.0.2.5:51820",
            "observed 203.0.113.7:4242",
        ]
    );
    let many: Vec<SocketAddr> = (1..100)
        .map(|n| SocketAddr::from(([198, 51, 100, n], 1)))
        .collect();
    let own = OwnAddresses { set: &many, ..own };
    assert_eq!(own.candidates(&plan()).len(), MAX_CANDIDATES);
}

/// Lets each of these witnesses see an address.
fn see(observed: &mut Observed<u8>, observations: &[(u8, &str)], now: Instant) {
    for (witness, address) in observations {
        observed.handle_seen(*witness, at(address), now);
    }
}

#[test]
fn an_observed_address_is_named_to_peers_at_once_and_recorded_when_two_agreed_for_a_minute() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut observed = Observed::default();
    see(&mut observed, &[(1, "203.0.113.7:4000")], start);
    assert_eq!(observed.addresses(&[]), [at("203.0.113.7:4000")]);
    assert!(!observed.refresh_record(after(200)), "one witness");
    see(
        &mut observed,
        &[(2, "203.0.113.7:4000"), (3, "198.51.100.9:9")],
        after(200),
    );
    assert_eq!(
        observed.addresses(&[]),
        [at("203.0.113.7:4000")],
        "two agree"
    );
    let known = [at("203.0.113.7:4000")];
    assert_eq!(observed.addresses(&known), [at("198.51.100.9:9")]);
    assert!(!observed.refresh_record(after(259)));
    assert!(observed.refresh_record(after(260)));
    assert_eq!(observed.recorded(), [at("203.0.113.7:4000")]);
    // The observation of the first witness is too old after five minutes, and the address leaves the record a minute later.
    assert!(!observed.refresh_record(after(299)));
    assert!(!observed.refresh_record(after(358)));
    assert!(observed.refresh_record(after(359)));
    assert_eq!(observed.recorded(), []);
}

#[test]
fn another_network_makes_what_was_seen_before_void() {
    let start = Instant::now();
    let mut observed = Observed::default();
    see(
        &mut observed,
        &[(1, "203.0.113.7:4000"), (2, "203.0.113.7:4000")],
        start,
    );
    observed.handle_network_change();
    assert_eq!(observed.addresses(&[]), []);
    assert!(!observed.refresh_record(start + Duration::from_secs(100)));
}

#[test]
fn an_observation_of_a_single_witness_that_is_newer_than_those_of_the_others_is_used_as_well() {
    let start = Instant::now();
    let mut observed = Observed::default();
    let before = "203.0.113.7:4000";
    see(
        &mut observed,
        &[(3, "203.0.113.7:7"), (1, before), (2, before)],
        start,
    );
    let later = start + Duration::from_secs(1);
    see(&mut observed, &[(1, before)], later);
    assert_eq!(observed.addresses(&[]), [at(before)]);
    // The router gives another port, which only a relay sees, because all other paths are broken.
    let later = start + Duration::from_secs(2);
    see(&mut observed, &[(3, "203.0.113.7:5000")], later);
    assert_eq!(
        observed.addresses(&[]),
        [at(before), at("203.0.113.7:5000")]
    );
    assert!(!observed.refresh_record(later));
}

#[test]
fn the_observations_of_the_witnesses_show_how_the_nat_maps() {
    let own = ["192.0.2.5".parse().expect("a literal")];
    let nat = |observations: &[(u8, &str)]| {
        let mut observed = Observed::default();
        see(&mut observed, observations, Instant::now());
        observed.nat(&own, 51820)
    };
    let found = |mapping, ports_kept| Nat {
        mapping,
        filtering: NatBehaviour::Unknown,
        ports_kept,
    };
    assert_eq!(nat(&[]), Nat::default());
    assert_eq!(
        nat(&[(1, "192.0.2.5:51820")]),
        found(NatBehaviour::Absent, None)
    );
    assert_eq!(
        nat(&[(1, "203.0.113.7:51820")]),
        found(NatBehaviour::Unknown, Some(true))
    );
    assert_eq!(
        nat(&[
            (1, "203.0.113.7:4000"),
            (2, "203.0.113.7:4000"),
            (3, "192.0.2.5:51820")
        ]),
        found(NatBehaviour::EndpointIndependent, Some(false))
    );
    assert_eq!(
        nat(&[(1, "203.0.113.7:51820"), (2, "203.0.113.7:4001")]),
        found(NatBehaviour::AddressAndPortDependent, Some(false))
    );
}

proptest! {
    /// Whatever witnesses say, the state is bounded, and the record changes at most once a minute and never because of one of them.
    #[test]
    fn lying_witnesses_change_the_record_seldom(observations in vec((any::<u8>(), 1u8..5, 1u16..4, 0u64..20), 1..300)) {
        let (mut now, mut observed) = (Instant::now(), Observed::default());
        let mut last: Option<Instant> = None;
        for (witness, host, port, seconds) in observations {
            now += Duration::from_secs(seconds);
            observed.handle_seen(witness, SocketAddr::from(([198, 51, 100, host], port)), now);
            if observed.refresh_record(now) {
                prop_assert!(last.is_none_or(|last| now - last >= Duration::from_secs(60)));
                last = Some(now);
            }
            prop_assert!(observed.recorded().len() <= 4 && observed.addresses(&[]).len() <= 4);
        }
        let mut one = Observed::default();
        for _ in 0..100 {
            one.handle_seen(7, at("198.51.100.1:1"), now);
            now += Duration::from_secs(10);
            prop_assert!(!one.refresh_record(now));
        }
    }
}
