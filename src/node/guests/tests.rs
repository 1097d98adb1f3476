use std::time::SystemTime;

use super::*;
use crate::records::Envelope;
use crate::records::kinds::{Door, Node, Record};
use crate::testbed::records as build;
use crate::testbed::records::label;

const MESH: u8 = 1;
const OWN: u8 = 10;

/// The door with its ledger, at a time that a test chooses.
struct World {
    ledger: Ledger,
    guests: Guests,
    taken: BTreeSet<Ipv4Addr>,
    native: Option<Ipv4Net>,
    start: Instant,
}

impl World {
    fn new() -> Self {
        let mut ledger = Ledger::new(build::id(MESH));
        let (id, token) = (build::id(OWN), build::id(2));
        for (record, signer) in [
            (Record::Mesh(build::mesh()), MESH),
            (Record::Token(build::token(&token)), MESH),
            (
                Record::Membership(build::membership(&id, &token, "web-1")),
                2,
            ),
            (Record::Node(build::node(&id, build::block(1))), OWN),
        ] {
            ledger.apply(build::sealed(&record, signer)).expect("valid");
        }
        Self {
            ledger,
            guests: Guests::default(),
            taken: BTreeSet::new(),
            native: None,
            start: Instant::now(),
        }
    }

    fn apply(&mut self, payload: String) {
        let envelope = Envelope::seal_payload(payload, &build::key(MESH));
        self.ledger.apply(envelope).expect("the mesh key's");
    }

    fn add(&mut self, n: u8, expires_at: Option<u64>) {
        self.apply(guest(n, OWN, expires_at).payload());
    }

    fn remove(&mut self, n: u8) {
        self.apply(Guest::removal_payload(WireGuardKey([n; 32])));
    }

    /// Follows the records after so many seconds.
    fn follow(&mut self, seconds: u64) -> Vec<String> {
        let own = build::key(OWN);
        let door = DoorFacts {
            own: &own,
            block: &build::block(1),
            ledger: &self.ledger,
            taken: &self.taken,
            native: self.native,
        };
        let now = Now {
            monotonic: self.start + Duration::from_secs(seconds),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + seconds),
        };
        let changes = self.guests.follow(&door, now);
        let said = changes.iter().map(|change| match &change.turn {
            GuestTurn::Added(_) => format!("{} added", change.guest),
            GuestTurn::Removed => format!("{} removed", change.guest),
            GuestTurn::Expired => format!("{} expired", change.guest),
            GuestTurn::Seen(_) => format!("{} seen", change.guest),
        });
        said.collect()
    }

    /// Publishes the leases in the record of this node.
    fn publish(&mut self, version: u64) {
        let node = Node {
            version,
            guests: self.guests.leases(),
            ..build::node(&build::id(OWN), build::block(1))
        };
        let envelope = build::sealed(&Record::Node(node), OWN);
        self.ledger.apply(envelope).expect("its own");
    }

    fn hosts(&self) -> Vec<(u8, u16)> {
        let leases = self.guests.leases().into_iter();
        leases.map(|lease| (lease.key.0[0], lease.host)).collect()
    }
}

fn guest(n: u8, door: u8, expires_at: Option<u64>) -> Guest {
    let id = WireGuardKey([n; 32]);
    let door = Door::seal(build::id(door), &id, &[n; 32], &[n; 32]).expect("a key");
    Guest {
        id,
        version: n.into(),
        name: label(&format!("g{n}")),
        tags: vec![],
        doors: vec![door],
        preshared_hash: Guest::hash_of(&[n; 32]),
        expires_at: expires_at.map(UnixSeconds),
    }
}

#[test]
fn a_guest_of_this_door_gets_addresses_from_the_end_of_the_block_and_one_of_another_door_none() {
    let mut world = World::new();
    world.add(7, None);
    world.add(8, None);
    world.apply(guest(9, 11, None).payload());
    assert_eq!(world.follow(0), ["g7 added", "g8 added"]);
    assert_eq!(world.hosts(), [(7, 254), (8, 253)]);
    let peers = world.guests.peers(&build::block(1));
    let nets = |n: usize| peers[n].allowed_ips.iter().map(ToString::to_string);
    assert_eq!(
        nets(0).collect::<Vec<_>>(),
        ["10.210.1.254/32", "fd00:1:2:1::fe/128"]
    );
    assert_eq!(peers[1].preshared_key, Some([8; 32]));
    assert!(world.follow(1).is_empty(), "nothing changed");
}

#[test]
fn a_guest_that_is_removed_or_expires_is_no_peer_any_more() {
    let mut world = World::new();
    world.add(7, None);
    world.add(8, Some(1060));
    assert_eq!(world.follow(0).len(), 2);
    world.remove(7);
    assert_eq!(world.follow(1), ["g7 removed"]);
    assert!(!world.guests.has_expired(UnixSeconds(1059)));
    assert!(world.guests.has_expired(UnixSeconds(1060)));
    assert_eq!(world.follow(60), ["g8 expired"]);
    assert!(world.guests.peers(&build::block(1)).is_empty());
    assert_eq!(world.guests.poll_timeout(world.start), None);
}

#[test]
fn a_guest_has_the_same_address_after_a_restart_whoever_came_meanwhile() {
    let mut world = World::new();
    world.add(7, None);
    world.add(8, None);
    world.follow(0);
    world.publish(2);
    world.remove(7);
    world.guests = Guests::default();
    world.add(3, None);
    let said = world.follow(1);
    assert_eq!(said, ["g3 added"], "the other one was there before");
    assert_eq!(world.hosts(), [(3, 252), (8, 253)]);
}

#[test]
fn an_address_is_leased_again_after_a_minute_and_never_one_of_a_container() {
    let mut world = World::new();
    world.taken = [Ipv4Addr::new(10, 210, 1, 254)].into();
    world.add(7, None);
    world.follow(0);
    world.publish(2);
    assert_eq!(world.hosts(), [(7, 253)]);
    world.remove(7);
    world.follow(1);
    world.publish(3);
    world.add(8, None);
    world.follow(2);
    assert_eq!(world.hosts(), [(8, 252)]);
    world.add(9, None);
    world.follow(70);
    assert_eq!(world.hosts(), [(8, 252), (9, 253)]);
}

#[test]
fn a_door_lets_no_more_guests_in_than_it_may_and_names_the_others() {
    let mut world = World::new();
    for n in 20..=84 {
        world.add(n, None);
    }
    world.follow(0);
    assert_eq!(world.hosts().len(), MAX_GUESTS);
    let problems = world.guests.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].what, "the guest g84 is not let in");
    world.remove(20);
    assert_eq!(world.follow(1), ["g20 removed", "g84 added"]);
    assert!(world.guests.problems().is_empty());
}

#[test]
fn a_guest_whose_preshared_key_is_for_another_node_is_named() {
    let mut world = World::new();
    let mut odd = guest(7, 11, None);
    odd.doors[0].node = build::id(OWN);
    world.apply(odd.payload());
    assert!(world.follow(0).is_empty());
    assert!(world.guests.problems()[0].why.contains("preshared key"));
}

#[test]
fn a_guest_is_heard_for_three_minutes_after_its_last_datagram() {
    let mut world = World::new();
    world.add(7, None);
    world.follow(0);
    let at = world.start;
    let endpoint = "192.0.2.9:4000".parse().ok();
    let mut look = |last: Option<Instant>, now: Instant| {
        let last = last.map(|at| (at, endpoint));
        let (changes, is_changed) = world.guests.handle_heard(|_| last, now);
        let heard = world.guests.leases()[0].heard;
        (changes.len(), is_changed, heard)
    };
    assert_eq!(look(None, at), (0, false, false));
    assert_eq!(look(Some(at), at), (1, true, true));
    assert_eq!(look(Some(at), at + HEARD / 2), (0, false, true));
    assert_eq!(look(Some(at), at + HEARD), (0, true, false));
    assert_eq!(look(Some(at + HEARD), at + HEARD), (1, true, true));
}

#[test]
fn a_guest_gets_no_address_from_the_range_of_the_container_engine() {
    let mut world = World::new();
    world.native = "10.210.1.0/25".parse().ok();
    world.taken = (130..255).map(|n| Ipv4Addr::new(10, 210, 1, n)).collect();
    world.add(7, None);
    world.add(8, None);
    world.add(9, None);
    assert_eq!(world.follow(0), ["g7 added", "g8 added"]);
    assert_eq!(world.hosts(), [(7, 129), (8, 128)]);
    let problems = world.guests.problems();
    assert!(problems[0].why.contains("all addresses"), "{problems:?}");
}

#[test]
fn a_guest_with_another_preshared_key_keeps_its_address_and_not_its_old_key() {
    let mut world = World::new();
    world.add(7, None);
    world.follow(0);
    world.publish(2);
    let id = WireGuardKey([7; 32]);
    let door = Door::seal(build::id(OWN), &id, &[70; 32], &[71; 32]).expect("a key");
    let renewed = Guest {
        version: 100,
        doors: vec![door],
        preshared_hash: Guest::hash_of(&[70; 32]),
        ..guest(7, OWN, None)
    };
    world.apply(renewed.payload());
    assert!(world.follow(1).is_empty(), "it neither came nor went");
    assert_eq!(world.hosts(), [(7, 254)]);
    let peers = world.guests.peers(&build::block(1));
    assert_eq!(peers[0].preshared_key, Some([70; 32]));
}

#[test]
fn a_configuration_that_two_devices_use_is_a_problem_that_names_both_places() {
    let mut world = World::new();
    world.add(7, None);
    world.follow(0);
    let mut look = |seconds: u64, place: u8| {
        let now = world.start + Duration::from_secs(seconds);
        let endpoint = SocketAddr::from(([192, 0, 2, place], 4000));
        world
            .guests
            .handle_heard(|_| Some((now, Some(endpoint))), now);
        world.guests.problems()
    };
    assert!(look(0, 1).is_empty());
    for turn in 1..6_u64 {
        let place = if turn % 2 == 0 { 1 } else { 2 };
        let problems = look(12 * turn, place);
        assert_eq!(problems.len(), usize::from(turn == 5), "{turn}");
    }
    let problems = look(61, 2);
    let said = &problems[0];
    assert_eq!(said.what, "the guest g7 sends from two places in turns");
    for part in ["192.0.2.1:4000", "192.0.2.2:4000"] {
        assert!(said.why.contains(part), "{}", said.why);
    }
    assert!(said.fix.contains("meshctl guest remove g7"), "{}", said.fix);
    assert!(look(400, 2).is_empty(), "the other device is off");
}
