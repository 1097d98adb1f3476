use super::*;
use crate::model::address::MeshAddresses;
use crate::model::time::UnixSeconds;
use crate::model::{Label, WireGuardKey};
use crate::records::kinds::{Health, Instance, MESH_ID, Mesh, Port, Protocol, Service, Source};
use crate::records::netmap::{AtRouter, Member};

const OWN: PublicKey = PublicKey([1; 32]);
const PEER: PublicKey = PublicKey([2; 32]);
const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 210, 0, 64);

fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

/// The nodes n1, which is this node, and n2.
fn netmap() -> Netmap {
    let addresses = MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
        node_block_v4: 24,
        node_block_v6: 64,
    };
    let mesh = Mesh {
        id: MESH_ID.into(),
        version: 1,
        domain: label("mesh"),
        addresses,
        coordinators: vec![],
    };
    let members = [OWN, PEER].map(|id| {
        let n = id.0[0];
        let member = Member {
            id,
            name: label(&format!("n{n}")),
            issued_at: UnixSeconds(n.into()),
            tags: vec![],
            wireguard_key: WireGuardKey([n; 32]),
            block: addresses.block(n.into()).expect("in the plan"),
            endpoints: vec![],
            without_ipv6: false,
            speaks_paths: false,
            relays: vec![],
            at_router: AtRouter::default(),
            stream: None,
        };
        (id, member)
    });
    Netmap {
        mesh: Some(mesh),
        members: members.into(),
        ..Netmap::default()
    }
}

/// The service `web` of the peer, with one instance.
fn web(service_address: Option<Ipv4Addr>) -> Service {
    let port = Port {
        number: 80.try_into().expect("not zero"),
        protocol: Protocol::Tcp,
        name: None,
    };
    Service {
        id: Service::id_of(&PEER, None, &label("web")),
        version: 1,
        node: PEER,
        name: label("web"),
        project: None,
        service_address,
        instances: vec![Instance {
            id: label("one"),
            addresses: vec![[10, 210, 2, 2].into()],
            ports: vec![port],
            health: Health::Healthy,
            weight: 10,
            priority: 0,
            source: Source::Docker,
            allow: vec![],
            public: vec![],
        }],
    }
}

/// A netmap, and the names computed from it.
struct World {
    netmap: Netmap,
    unreachable: BTreeSet<PublicKey>,
    groups: BTreeMap<PublicKey, u8>,
    names: Names,
    start: Instant,
}

impl World {
    fn new() -> Self {
        let config = NamesConfig {
            own: OWN,
            when_none_usable: WhenNoneUsable::All,
            max_addresses: 8,
        };
        let mut world = Self {
            netmap: netmap(),
            unreachable: BTreeSet::new(),
            groups: BTreeMap::new(),
            names: Names::new(config, ServiceAddresses::default()),
            start: Instant::now(),
        };
        world.rebuild(0);
        world
    }

    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn rebuild(&mut self, seconds: u64) -> bool {
        let now = self.at(seconds);
        let input = NamesInput {
            netmap: &self.netmap,
            unreachable: &self.unreachable,
            groups: &self.groups,
        };
        self.names.rebuild(&input, now)
    }

    /// Replaces the record of `web`, at the cost of that record.
    fn replace(&mut self, service: Option<Service>, seconds: u64) -> bool {
        let now = self.at(seconds);
        let id = web(None).id;
        let before = match service {
            Some(service) => self.netmap.services.insert(id.clone(), service),
            None => self.netmap.services.remove(&id),
        };
        let input = NamesInput {
            netmap: &self.netmap,
            unreachable: &self.unreachable,
            groups: &self.groups,
        };
        let replaced = Replaced {
            before: before.as_ref(),
            now: self.netmap.services.get(&id),
        };
        self.names.replace(&input, &[replaced], now)
    }

    /// Whether `web.svc` has instances, and whether it exists.
    fn web(&self) -> (bool, bool) {
        let zone = self.names.zone().load();
        let entry = zone.find("web.svc");
        (zone.serves("web.svc"), entry.is_some())
    }
}

#[test]
fn a_name_lingers_for_a_minute_after_its_last_instance_left() {
    let mut world = World::new();
    assert_eq!(world.web(), (false, false));
    world.replace(Some(web(None)), 0);
    assert_eq!(world.web(), (true, true));
    assert_eq!(world.names.poll_timeout(), None);

    world.replace(None, 10);
    assert_eq!(world.web(), (false, true), "it lingers");
    assert_eq!(world.names.poll_timeout(), Some(world.at(70)));
    world.names.handle_time(world.at(69));
    world.rebuild(69);
    assert_eq!(
        world.web(),
        (false, true),
        "a rebuild does not end it early"
    );
    world.names.handle_time(world.at(70));
    assert_eq!(world.web(), (false, false));
    assert_eq!(world.names.poll_timeout(), None);
}

#[test]
fn a_name_that_is_back_does_not_end_with_its_old_date() {
    let mut world = World::new();
    world.replace(Some(web(None)), 0);
    world.replace(None, 10);
    world.replace(Some(web(None)), 20);
    assert_eq!(world.names.poll_timeout(), None);
    world.names.handle_time(world.at(80));
    assert_eq!(world.web(), (true, true));
}

#[test]
fn a_rebuild_and_a_replacement_lead_to_the_same_names() {
    let (mut one, mut other) = (World::new(), World::new());
    one.replace(Some(web(None)), 0);
    other.netmap = one.netmap.clone();
    other.rebuild(0);
    assert_eq!(one.web(), other.web());
    one.replace(None, 1);
    other.netmap = one.netmap.clone();
    other.rebuild(1);
    assert_eq!(one.web(), (false, true));
    assert_eq!(other.web(), (false, true));
    assert_eq!(
        one.names.poll_timeout().map(|at| at - one.start),
        other.names.poll_timeout().map(|at| at - other.start)
    );
}

#[test]
fn a_change_of_service_addresses_is_reported_so_that_the_kernel_follows() {
    let mut world = World::new();
    assert!(
        !world.replace(Some(web(None)), 0),
        "it has no service address"
    );
    assert!(!world.rebuild(0));
    assert!(world.replace(Some(web(Some(SERVICE_ADDRESS))), 1));
    assert!(!world.rebuild(2), "nothing changed since");
    assert!(world.replace(None, 3));
    world
        .netmap
        .services
        .insert("x".into(), web(Some(SERVICE_ADDRESS)));
    assert!(world.rebuild(4));
}

#[test]
fn service_addresses_are_unwritten_until_they_are_written() {
    let mut world = World::new();
    assert_eq!(world.names.unwritten(), None);
    world.replace(Some(web(Some(SERVICE_ADDRESS))), 0);
    assert_eq!(
        world.names.unwritten(),
        Some(world.names.service_addresses())
    );
    let written = world.names.service_addresses().clone();
    world.names.handle_written(&ServiceAddresses::default());
    assert!(world.names.unwritten().is_some(), "others were written");
    world.names.handle_written(&written);
    assert_eq!(world.names.unwritten(), None);
}

#[test]
fn the_serial_number_grows_with_each_zone() {
    let mut world = World::new();
    let serial = |world: &World| world.names.zone().load().serial;
    let before = serial(&world);
    world.rebuild(1);
    world.replace(Some(web(None)), 2);
    assert_eq!(serial(&world), before.wrapping_add(2));
}

#[test]
fn balanced_addresses_that_are_the_same_are_no_change() {
    let mut world = World::new();
    assert!(!world.names.set_balanced(BTreeSet::new()));
    assert!(world.names.set_balanced([SERVICE_ADDRESS].into()));
    assert!(!world.names.set_balanced([SERVICE_ADDRESS].into()));
}
