use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const LIMIT: RelayLimit = RelayLimit {
    bits_per_second: 8_000_000,
};

/// The members and what the data plane knows about them. A member's path is its number.
struct World {
    relay: Relay,
    start: Instant,
}

fn member(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 210, n, 1)
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

impl World {
    /// A relay for the members 1 and 2, each with one path.
    fn new() -> Self {
        let start = Instant::now();
        let mut relay = Relay::new([7; 32], Some(LIMIT), start);
        for n in [1, 2] {
            relay.handle_paths(member(n), &[endpoint(n)], start);
        }
        Self { relay, start }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn header(&self, from: u8, to: u8) -> Header {
        Header {
            label: member(to),
            tag: self.relay.tag(member(from), endpoint(from), self.start),
        }
    }

    /// What happens to a run of frames that comes from an endpoint at this second. All members were heard at the start.
    fn decide(
        &mut self,
        header: Header,
        from: SocketAddr,
        second: u64,
    ) -> Result<Forward<u8>, RelayDrop> {
        let now = self.at(second);
        let heard = Some(self.start);
        let find = |address: Ipv4Addr, _: &dyn Fn(SocketAddr) -> bool| {
            let number = (1..=2).find(|n| member(*n) == address);
            number.map(|path| Destination { path, heard })
        };
        self.relay.decide(header, from, 1000, find, now)
    }
}

/// A keepalive: the smallest WireGuard message.
fn message() -> Vec<u8> {
    let mut message = vec![0; 32];
    message[0] = 4;
    message
}

fn framed(header: Header, message: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], message].concat()
}

#[test]
fn a_frame_of_a_member_is_forwarded_with_the_label_of_its_source_and_without_a_tag() {
    let mut world = World::new();
    let header = world.header(1, 2);
    assert_eq!(
        world.decide(header, endpoint(1), 0),
        Ok(Forward {
            to: 2,
            header: Header {
                label: member(1),
                tag: None
            }
        })
    );
    let bytes = framed(header, &message());
    assert_eq!(&bytes[..8], [0x4d, 1, 0, 0, 10, 210, 2, 1]);
    let frame = Frame::parse(&bytes).expect("just written");
    assert_eq!((frame.header, frame.message), (header, &message()[..]));
    assert!(is_frame(&bytes) && !is_frame(&message()) && !is_frame(&[]));
}

#[test]
fn a_datagram_that_is_no_frame_with_a_wireguard_message_is_malformed() {
    let good = framed(World::new().header(1, 2), &message());
    assert!(Frame::parse(&good).is_ok());
    for length in 0..good.len() {
        assert_eq!(
            Frame::parse(&good[..length]),
            Err(RelayDrop::Malformed),
            "{length}"
        );
    }
    for changed in 0..4 {
        let mut bytes = good.clone();
        bytes[changed] ^= 2;
        assert_eq!(
            Frame::parse(&bytes),
            Err(RelayDrop::Malformed),
            "byte {changed}"
        );
    }
    // A frame within a frame, which would go through two relays.
    let twice = framed(World::new().header(1, 2), &good);
    assert_eq!(Frame::parse(&twice), Err(RelayDrop::Malformed));
}

#[test]
fn a_node_that_does_not_relay_forwards_nothing_and_gives_no_tags() {
    let mut world = World::new();
    let header = world.header(1, 2);
    world.relay.set_limit(None, world.start);
    assert_eq!(
        world.decide(header, endpoint(1), 0),
        Err(RelayDrop::NotOffered)
    );
    assert_eq!(world.relay.tag(member(1), endpoint(1), world.start), None);
    assert!(!world.relay.is_offered());
    world.relay.set_limit(Some(LIMIT), world.start);
    assert!(world.decide(header, endpoint(1), 0).is_ok());
}

#[test]
fn frames_from_an_endpoint_without_a_member_are_dropped() {
    let mut world = World::new();
    let header = world.header(1, 2);
    assert_eq!(
        world.decide(header, endpoint(9), 0),
        Err(RelayDrop::UnknownSource)
    );
}

#[test]
fn a_former_path_is_accepted_for_ten_seconds() {
    let mut world = World::new();
    let header = world.header(1, 2);
    let moved = SocketAddr::from(([192, 0, 2, 77], 1));
    world.relay.handle_paths(member(1), &[moved], world.at(5));
    assert!(world.decide(header, endpoint(1), 15).is_ok());
    // The former path is reported again as absent, which does not make it younger.
    world.relay.handle_paths(member(1), &[moved], world.at(15));
    assert_eq!(
        world.decide(header, endpoint(1), 16),
        Err(RelayDrop::UnknownSource)
    );
    assert_eq!(
        world.decide(header, moved, 16),
        Err(RelayDrop::BadTag),
        "the tag is that of another endpoint"
    );
    // A path that comes back is a present one.
    let both = [moved, endpoint(1)];
    world.relay.handle_paths(member(1), &both, world.at(17));
    assert!(world.decide(header, endpoint(1), 100).is_ok());
    world.relay.handle_paths(member(1), &[], world.at(100));
    world.relay.handle_timeout(world.at(111));
    assert_eq!(
        world.decide(header, endpoint(1), 111),
        Err(RelayDrop::UnknownSource)
    );
}

#[test]
fn nothing_is_forwarded_to_a_member_whose_paths_have_failed() {
    let mut world = World::new();
    let header = world.header(1, 2);
    world.relay.handle_paths(member(2), &[], world.at(5));
    assert_eq!(
        world.decide(header, endpoint(1), 5),
        Err(RelayDrop::UnknownDestination)
    );
    // What it sent before is under way.
    let back = world.header(2, 1);
    assert!(world.decide(back, endpoint(2), 15).is_ok());
    let there = [endpoint(2)];
    world.relay.handle_paths(member(2), &there, world.at(17));
    assert!(world.decide(header, endpoint(1), 17).is_ok());
}

#[test]
fn of_several_paths_only_those_are_present_that_have_not_failed() {
    let mut world = World::new();
    let header = world.header(1, 2);
    let now = world.at(5);
    world.relay.handle_paths(member(2), &[endpoint(7)], now);
    let mut present = Vec::new();
    let find = |_: Ipv4Addr, is_present: &dyn Fn(SocketAddr) -> bool| {
        present = [1, 2, 7].map(|n| is_present(endpoint(n))).to_vec();
        Some(Destination {
            path: (),
            heard: Some(now),
        })
    };
    let decided = world.relay.decide(header, endpoint(1), 1, find, now);
    assert!(decided.is_ok());
    assert_eq!(present, [false, false, true]);
}

#[test]
fn a_tag_is_valid_for_its_member_its_endpoint_and_five_to_ten_minutes() {
    let mut world = World::new();
    let header = world.header(1, 2);
    let bad = Err(RelayDrop::BadTag);
    let none = Header {
        tag: None,
        ..header
    };
    assert_eq!(world.decide(none, endpoint(1), 0), bad);
    let of_other = Header {
        tag: world.header(2, 1).tag,
        ..header
    };
    assert_eq!(world.decide(of_other, endpoint(1), 0), bad);
    assert_eq!(world.decide(header, endpoint(2), 0), bad);
    let decide = |world: &mut World, second| {
        let now = world.at(second);
        let found = Destination {
            path: (),
            heard: Some(now),
        };
        let find = |_: Ipv4Addr, _: &dyn Fn(SocketAddr) -> bool| Some(found);
        let decided = world.relay.decide(header, endpoint(1), 1, find, now);
        decided.map(|_| ())
    };
    assert_eq!(decide(&mut world, 299), Ok(()));
    assert_eq!(decide(&mut world, 599), Ok(()));
    assert_eq!(decide(&mut world, 600), Err(RelayDrop::BadTag));
}

#[test]
fn a_member_that_forges_the_endpoint_of_another_neither_sends_in_its_name_nor_silences_it() {
    let mut world = World::new();
    let header = world.header(1, 2);
    for n in 3..9 {
        let paths = [endpoint(1)];
        world.relay.handle_paths(member(n), &paths, world.start);
        world.relay.handle_paths(member(n), &[], world.start);
        world.relay.handle_timeout(world.at(11));
    }
    world
        .relay
        .handle_paths(member(9), &[endpoint(1)], world.start);
    let forwarded = world.decide(header, endpoint(1), 12);
    assert_eq!(forwarded.map(|f| f.header.label), Ok(member(1)));
    let own = Header {
        tag: world.relay.tag(member(9), endpoint(9), world.start),
        ..header
    };
    assert_eq!(world.decide(own, endpoint(1), 12), Err(RelayDrop::BadTag));
}

#[test]
fn a_member_that_others_displaced_at_its_endpoint_sends_again_once_its_paths_are_reported() {
    let mut world = World::new();
    let header = world.header(1, 2);
    for n in 3..7 {
        world
            .relay
            .handle_paths(member(n), &[endpoint(1)], world.start);
    }
    assert!(world.decide(header, endpoint(1), 1).is_err());
    for _ in 0..2 {
        world
            .relay
            .handle_paths(member(1), &[endpoint(1)], world.at(2));
        assert!(world.decide(header, endpoint(1), 2).is_ok());
    }
    assert_eq!(world.relay.sizes().2, 4);
}

#[test]
fn the_destination_is_another_member_that_was_heard_on_a_path_of_its_own() {
    let mut world = World::new();
    let unknown = Header {
        label: member(8),
        ..world.header(1, 2)
    };
    assert_eq!(
        world.decide(unknown, endpoint(1), 0),
        Err(RelayDrop::UnknownDestination)
    );
    let own = world.header(1, 1);
    assert_eq!(world.decide(own, endpoint(1), 0), Err(RelayDrop::ToSender));
    let header = world.header(1, 2);
    assert!(world.decide(header, endpoint(1), 180).is_ok());
    assert_eq!(
        world.decide(header, endpoint(1), 181),
        Err(RelayDrop::NotHeard)
    );
    let never = |_: Ipv4Addr, _: &dyn Fn(SocketAddr) -> bool| {
        Some(Destination {
            path: (),
            heard: None,
        })
    };
    let decided = world
        .relay
        .decide(header, endpoint(1), 1, never, world.start);
    assert_eq!(decided, Err(RelayDrop::NotHeard));
}

#[test]
fn a_member_with_a_stream_needs_no_tag_and_is_one_until_its_last_stream_is_closed() {
    let mut world = World::new();
    let now = world.start;
    let find = |path: Ipv4Addr, _: &dyn Fn(SocketAddr) -> bool| {
        Some(Destination {
            path,
            heard: Some(now),
        })
    };
    let decide = |relay: &mut Relay, from: u8, to: u8| {
        let header = Header {
            label: member(to),
            tag: None,
        };
        let decided = relay.decide(header, Source::Stream(member(from)), 100, find, now);
        decided.map(|forward| (forward.to, forward.header.label))
    };
    let relay = &mut world.relay;
    assert_eq!(decide(relay, 3, 2), Err(RelayDrop::UnknownSource));
    for _ in 0..2 {
        relay.handle_stream_opened(member(3), now);
    }
    assert_eq!(decide(relay, 3, 2), Ok((member(2), member(3))));
    assert_eq!(decide(relay, 3, 3), Err(RelayDrop::ToSender));
    let back = Header {
        label: member(3),
        tag: relay.tag(member(1), endpoint(1), now),
    };
    let forwarded = relay.decide(back, endpoint(1), 100, find, now);
    assert_eq!(forwarded.map(|forward| forward.to), Ok(member(3)));
    relay.handle_stream_closed(member(3), now);
    assert!(decide(relay, 3, 2).is_ok());
    relay.handle_stream_closed(member(3), now);
    assert_eq!(decide(relay, 3, 2), Err(RelayDrop::UnknownSource));
    relay.handle_stream_opened(member(3), now);
    relay.set_limit(None, now);
    assert_eq!(decide(relay, 3, 2), Err(RelayDrop::NotOffered));
}

#[test]
fn a_member_sends_no_more_than_its_limit_and_takes_nothing_from_the_others() {
    let mut world = World::new();
    let (first, second) = (world.header(1, 2), world.header(2, 1));
    let mut forwarded = 0;
    let mut dropped = 0;
    for second in 0..10 {
        // Two megabytes a second, of one that is allowed.
        for _ in 0..2000 {
            match world.decide(first, endpoint(1), second) {
                Ok(_) => forwarded += 1,
                Err(reason) => {
                    assert_eq!(reason, RelayDrop::Limit);
                    dropped += 1;
                }
            }
        }
    }
    // The burst is a tenth of a second, so no burst at the start of a second passes whole.
    assert_eq!((forwarded, dropped), (1000, 19_000));
    assert!(world.decide(second, endpoint(2), 9).is_ok());
    assert!(world.relay.load(world.at(9)) > 0);
    assert_eq!(world.relay.load(world.at(60)), 0);
}

#[test]
fn what_a_member_claims_is_bounded() {
    let mut world = World::new();
    for n in 0..10_000u32 {
        let forged = SocketAddr::from(([198, 51, (n >> 8) as u8, n as u8], 1));
        world.relay.handle_paths(member(1), &[forged], world.start);
    }
    for n in 3..200 {
        world
            .relay
            .handle_paths(member(n), &[endpoint(1)], world.start);
    }
    let (members, endpoints, most) = world.relay.sizes();
    assert_eq!(members, 199);
    assert!(endpoints <= 27 && most <= 4, "{endpoints} {most}");
}

/// What a member does in the property test.
#[derive(Debug, Clone)]
enum Step {
    Move(u8, u8),
    Send {
        to: u8,
        from: u8,
        tag: (u8, u8, bool),
    },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 1u8..5;
    prop_oneof![
        (number.clone(), number.clone()).prop_map(|(n, at)| Step::Move(n, at)),
        (
            number.clone(),
            number.clone(),
            (number.clone(), number, any::<bool>())
        )
            .prop_map(|(to, from, tag)| Step::Send { to, from, tag }),
        (0u64..400).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever members send: a frame is forwarded once at most, to one member that is not its sender, only with a tag that this
    /// relay gave to that sender for that endpoint, and no relay forwards what a relay has forwarded.
    #[test]
    fn no_frame_goes_in_a_circle_or_becomes_more(steps in vec(step(), 1..60)) {
        let start = Instant::now();
        let mut relay = Relay::new([7; 32], Some(LIMIT), start);
        let mut other = Relay::new([8; 32], Some(LIMIT), start);
        let mut now = start;
        for step in steps {
            match step {
                Step::Move(n, at) => {
                    relay.handle_paths(member(n), &[endpoint(at)], now);
                    other.handle_paths(member(n), &[endpoint(at)], now);
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Send { to, from, tag: (owner, at, is_own) } => {
                    let giver = if is_own { &relay } else { &other };
                    let tag = giver.tag(member(owner), endpoint(at), now);
                    let header = Header { label: member(to), tag };
                    let find = |path: Ipv4Addr, _: &dyn Fn(SocketAddr) -> bool| {
                        Some(Destination { path, heard: Some(now) })
                    };
                    let decided = relay.decide(header, endpoint(from), 100, find, now);
                    let Ok(forward) = decided else { continue };
                    prop_assert!(is_own && at == from && owner != to);
                    prop_assert_eq!(forward.to, member(to));
                    prop_assert_eq!(forward.header, Header { label: member(owner), tag: None });
                    let frame = framed(forward.header, &message());
                    prop_assert_eq!(frame.len(), framed(header, &message()).len());
                    for endpoint in (1..5).map(endpoint) {
                        for relay in [&mut relay, &mut other] {
                            let again = relay.decide(forward.header, endpoint, 100, find, now);
                            prop_assert!(again.is_err());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..64), start in any::<bool>()) {
        let mut bytes = bytes;
        if start && bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&[0x4d, 1, 0, 0]);
        }
        if let Ok(frame) = Frame::parse(&bytes) {
            prop_assert_eq!(framed(frame.header, frame.message), bytes);
        }
    }
}
