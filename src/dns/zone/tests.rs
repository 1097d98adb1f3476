use super::*;
use crate::dns::answer::tests::{HEALTHY, id, label, netmap};
use crate::model::WireGuardKey;
use crate::records::kinds::{Port, Protocol, Source};
use proptest::prelude::*;

/// Services of any of three nodes: with a project or without, with an address of their own or without.
fn service(
    node: u8,
    name: &str,
    project: Option<&str>,
    claim: Option<u8>,
    instances: &[(u8, u8)],
) -> Service {
    let project = project.map(label);
    let port = |number: u16, name: Option<&str>| Port {
        number: number.try_into().expect("not zero"),
        protocol: Protocol::Tcp,
        name: name.map(label),
    };
    let instances = instances.iter().map(|(n, health)| Instance {
        id: label(&format!("i{n}")),
        addresses: vec![
            IpAddr::from([10, 210, node, *n]),
            IpAddr::from([10, 50, 0, *n]),
        ],
        ports: vec![port(80, None), port(81, None), port(90, Some("a"))],
        health: [Health::Healthy, Health::Unhealthy, Health::Draining][usize::from(health % 3)],
        weight: 10,
        priority: 0,
        source: Source::Cli,
        allow: vec![],
        public: vec![],
    });
    Service {
        id: Service::id_of(&id(node), project.as_ref(), &label(name)),
        version: 1,
        node: id(node),
        name: label(name),
        project,
        service_address: claim.map(|n| Ipv4Addr::new(10, 210, 0, 64 + n % 3)),
        instances: instances.collect(),
    }
}

fn any_service() -> impl Strategy<Value = Service> {
    (
        1u8..4,
        prop::sample::select(vec!["a", "b", "i1"]),
        prop::option::of(prop::sample::select(vec!["a", "p"])),
        prop::option::of(0u8..3),
        prop::collection::vec((1u8..5, 0u8..3), 0..4),
    )
        .prop_map(|(node, name, project, claim, mut instances)| {
            instances.sort_unstable();
            instances.dedup_by_key(|(n, _)| *n);
            service(node, name, project, claim, &instances)
        })
}

/// The unreachable nodes, the lingering names, the balanced addresses, and the service addresses that were assigned before.
type Nobody = (
    BTreeSet<PublicKey>,
    BTreeSet<String>,
    BTreeSet<Ipv4Addr>,
    ServiceAddresses,
);

fn input<'a>(
    netmap: &'a Netmap,
    groups: &'a BTreeMap<PublicKey, u8>,
    nobody: &'a Nobody,
) -> ZoneInput<'a> {
    ZoneInput {
        netmap,
        own: id(1),
        unreachable: &nobody.0,
        groups,
        when_none_usable: WhenNoneUsable::All,
        lingering: &nobody.1,
        balanced: &nobody.2,
        held: &nobody.3,
        serial: 7,
        most_addresses: MAX_ADDRESSES,
    }
}

/// The names with their entries, and the names of addresses.
type Shown<'a> = (Vec<(&'a str, &'a Entry)>, Vec<Option<Cow<'a, str>>>);

/// All of it, in an order.
fn shown(zone: &Zone) -> Shown<'_> {
    let mut names: Vec<_> = zone.names.iter().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let hosts = (0..4u8).flat_map(|node| (0..80u8).map(move |n| [10, 210, node, n]));
    let reverse = hosts.map(|host| zone.find_address(&host.into()));
    (names, reverse.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn a_changed_zone_equals_a_newly_built_one(
        changes in prop::collection::vec((any_service(), any::<bool>()), 1..12),
    ) {
        let mut netmap = netmap(HEALTHY);
        let groups = BTreeMap::from([(id(2), 6)]);
        let mut nobody = Nobody::default();
        let mut zone = Zone::build(&input(&netmap, &groups, &nobody));
        for (service, gone) in changes {
            let key = service.id.clone();
            let before = match gone || service.instances.is_empty() {
                true => netmap.services.remove(&key),
                false => netmap.services.insert(key.clone(), service),
            };
            let old = zone.clone();
            let as_before = format!("{:?}", shown(&old));
            let replaced = Replaced { before: before.as_ref(), now: netmap.services.get(&key) };
            let (next, left) = zone.replace(&input(&netmap, &groups, &nobody), &[replaced]);
            // A service keeps its address, so the assignment depends on the one before.
            nobody.3 = ServiceAddresses::clone(old.held_addresses());
            let anew = Zone::build(&input(&netmap, &groups, &nobody));
            prop_assert_eq!(next.held_addresses(), anew.held_addresses());
            prop_assert_eq!(shown(&next), shown(&anew));
            prop_assert_eq!(&*next.given, &*anew.given);
            for name in &left {
                prop_assert!(old.serves(name) && !anew.serves(name));
            }
            // Who reads the old one sees nothing of it.
            prop_assert_eq!(as_before, format!("{:?}", shown(&old)));
            zone = next;
        }
    }
}

#[test]
fn a_name_lingers_until_it_is_removed_and_so_do_its_parents() {
    let netmap = netmap(HEALTHY);
    let (groups, nobody) = Default::default();
    let mut zone = Zone::build(&input(&netmap, &groups, &nobody));
    zone.linger("db.shop.svc");
    assert!(zone.find("db.shop.svc").is_some() && zone.find("shop.svc").is_some());
    zone.forget("db.shop.svc");
    assert!(zone.find("db.shop.svc").is_none() && zone.find("shop.svc").is_none());
    assert!(zone.find("svc").is_some());
    zone.linger("web.svc");
    zone.forget("web.svc");
    assert!(zone.serves("web.svc"), "it has instances");
}

#[test]
fn a_node_without_ipv6_has_no_ipv6_address_and_the_others_keep_theirs() {
    let mut netmap = netmap(HEALTHY);
    let (round_trips, nobody) = Default::default();
    let without = id(2);
    if let Some(member) = netmap.members.get_mut(&without) {
        member.without_ipv6 = true;
    }
    let zone = Zone::build(&input(&netmap, &round_trips, &nobody));
    for member in netmap.members.values() {
        let entry = zone.find(&format!("{}.node", member.name)).expect("a node");
        let there = entry.addresses.iter().any(IpAddr::is_ipv6);
        assert_eq!(there, member.id != without, "{}", member.name);
        assert!(entry.addresses.iter().any(IpAddr::is_ipv4));
    }
}

#[test]
fn a_guest_has_a_name_while_its_door_hears_it_and_answers() {
    let mut netmap = netmap(HEALTHY);
    let (groups, nobody) = Default::default();
    let guest = |name: &str, host: u8, heard| GuestAt {
        name: label(name),
        key: WireGuardKey([host; 32]),
        tags: vec![],
        door: id(1),
        v4: [10, 210, 1, host].into(),
        v6: "fd00:1:2:1::fe".parse().expect("a literal"),
        heard,
    };
    netmap.guests = vec![guest("anna", 254, true), guest("bert", 253, false)];
    let zone = Zone::build(&input(&netmap, &groups, &nobody));
    let anna = zone.find("anna.guest").expect("it is heard");
    let addresses: Vec<String> = anna.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.210.1.254", "fd00:1:2:1::fe"]);
    let reverse = zone.find_address(&[10, 210, 1, 254].into());
    assert_eq!(reverse.as_deref(), Some("anna.guest"));
    assert!(zone.find("bert.guest").is_none());
    // A door that died says of its guests what it said last.
    let dead = BTreeSet::from([id(1)]);
    let own = ZoneInput {
        unreachable: &dead,
        ..input(&netmap, &groups, &nobody)
    };
    assert!(Zone::build(&own).find("anna.guest").is_some());
    let other = ZoneInput {
        own: id(2),
        unreachable: &dead,
        ..input(&netmap, &groups, &nobody)
    };
    assert!(Zone::build(&other).find("anna.guest").is_none());
    netmap.guests.clear();
    let zone = Zone::build(&input(&netmap, &groups, &nobody));
    assert!(zone.find("anna.guest").is_none() && zone.find("guest").is_none());
}
