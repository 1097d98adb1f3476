//! The subjects of the policy: the nodes, guests, instances and networks of the mesh, whose addresses packets come from and go to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::kinds::{Instance, POLICY_1, ROUTES_1, Service};
use super::ledger::Ledger;
use super::netmap::{GuestAt, Member, Netmap};
use crate::model::address::Block;
use crate::model::{Label, PublicKey};
use crate::policy::{Network, Offered, OfferedPort, Policy, Selector, Subject};

/// Returns the subjects of `netmap`: the nodes, the guests, the instances that have addresses of their own, and the networks to which nodes
/// route. An instance with an address of its node is a service that the node itself offers.
#[must_use]
pub fn subjects(netmap: &Netmap) -> Vec<Subject> {
    let mut subjects = Subjects::default();
    for member in netmap.members.values() {
        subjects.add_node(member);
    }
    for guest in &netmap.guests {
        subjects.add_guest(netmap, guest);
    }
    for service in netmap.services.values() {
        if let Some(member) = netmap.members.get(&service.node) {
            for instance in &service.instances {
                subjects.add_instance(member, service, instance);
            }
        }
    }
    subjects.all.extend(networks(netmap));
    subjects.all
}

/// The networks to which nodes route.
fn networks(netmap: &Netmap) -> impl Iterator<Item = Subject> {
    netmap.routes.iter().filter_map(|(prefix, gateways)| {
        let members = gateways.iter().filter_map(|id| netmap.members.get(id));
        let mut gateways: Vec<Label> = members.map(|member| member.name.clone()).collect();
        gateways.sort();
        Some(Subject {
            addresses: Vec::new(),
            node: gateways.first()?.clone(),
            tags: Vec::new(),
            services: Vec::new(),
            is_node: false,
            guest: None,
            network: Some(Network {
                prefix: IpNet::V4(*prefix),
                gateways,
            }),
        })
    })
}

/// Returns the members that keep to no policy, because their version of meshd knows none, in the order of their names.
#[must_use]
pub fn without_policies(ledger: &Ledger) -> Vec<Label> {
    without(ledger, POLICY_1)
}

/// Returns the members that would not keep to `policy`, because their version of meshd does not know what is in it, in the order of their
/// names.
#[must_use]
pub fn not_keeping_to(ledger: &Ledger, policy: &Policy) -> Vec<Label> {
    if policy.has_routes() {
        without(ledger, ROUTES_1)
    } else {
        without_policies(ledger)
    }
}

/// The members that do not understand what `word` stands for.
fn without(ledger: &Ledger, word: &str) -> Vec<Label> {
    let nodes = ledger.nodes().filter(|node| !node.speaks(word));
    let nodes: Vec<&PublicKey> = nodes.map(|node| &node.id).collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    let mut names = ledger.names();
    let names = nodes.into_iter().filter_map(|id| names.remove(id));
    let mut without: Vec<Label> = names.collect();
    without.sort();
    without
}

/// Returns the subject with this address, as [`subjects`] returns it. None if no node, no guest, no instance and no network of the mesh
/// has the address.
#[must_use]
pub fn subject_at(netmap: &Netmap, address: IpAddr) -> Option<Subject> {
    let Some(member) = netmap.owner_of(address) else {
        let has = |subject: &Subject| {
            let network = subject.network.as_ref();
            network.is_some_and(|network| network.prefix.contains(&address))
        };
        let networks = networks(netmap).filter(has);
        let length = |subject: &Subject| subject.network.as_ref().map(|n| n.prefix.prefix_len());
        return networks.max_by_key(length);
    };
    let mut subjects = Subjects::default();
    subjects.add_node(member);
    for guest in netmap.guests.iter().filter(|g| g.door == member.id) {
        subjects.add_guest(netmap, guest);
    }
    let services = netmap.services.values();
    for service in services.filter(|service| service.node == member.id) {
        for instance in &service.instances {
            subjects.add_instance(member, service, instance);
        }
    }
    let position = subjects.by_address.get(&address).copied()?;
    subjects.all.into_iter().nth(position)
}

/// Whether an instance has selectors of its own that restrict its callers ([`Instance::allow`]).
#[must_use]
pub fn is_narrowed(netmap: &Netmap) -> bool {
    let services = netmap.services.values();
    let mut instances = services.flat_map(|service| &service.instances);
    instances.any(|instance| !instance.allow.is_empty())
}

/// Whether [`subjects`] or the policy may be others in `now` than in `before`. Most changes of members are about their paths.
#[must_use]
pub fn changed(before: &Netmap, now: &Netmap) -> bool {
    let members = before.members.values().map(facts);
    let mut services = before.services.values().zip(now.services.values());
    before.rules != now.rules
        || !before
            .guests
            .iter()
            .map(of_guest)
            .eq(now.guests.iter().map(of_guest))
        || before.routes != now.routes
        || !members.eq(now.members.values().map(facts))
        || before.services.len() != now.services.len()
        || services.any(|(a, b)| a.id != b.id || differ(Some(a), Some(b)))
}

/// The parts of a member that its subjects have.
fn facts(member: &Member) -> (PublicKey, &Label, &[Label], Block) {
    (
        member.id,
        &member.name,
        member.tags.as_slice(),
        member.block,
    )
}

/// The parts of a guest that its subject has.
fn of_guest(guest: &GuestAt) -> (&Label, &[Label], PublicKey, [IpAddr; 2]) {
    let tags = guest.tags.as_slice();
    (&guest.name, tags, guest.door, guest.addresses())
}

/// Whether two versions of a service differ in a part that [`subjects`] reads. Most new versions only have another health.
#[must_use]
pub fn differ(before: Option<&Service>, now: Option<&Service>) -> bool {
    let (Some(before), Some(now)) = (before, now) else {
        return before.is_some() != now.is_some();
    };
    let is_same = |(a, b): (&Instance, &Instance)| {
        a.addresses == b.addresses && a.ports == b.ports && a.allow == b.allow
    };
    let mut pairs = before.instances.iter().zip(&now.instances);
    before.instances.len() != now.instances.len() || !pairs.all(is_same)
}

/// The owner of an address: a node, or one of its instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    node: PublicKey,
    instance: Option<Label>,
}

/// The addresses that owners lost and got between two maps of the mesh. The services that a node offers at its own addresses are left
/// out, because these addresses stay those of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    pub gone: Vec<(IpAddr, Owner)>,
    pub added: Vec<(IpAddr, Owner)>,
}

type Owned<'a> = BTreeSet<(IpAddr, PublicKey, Option<&'a Label>)>;

impl Moved {
    /// The addresses that moved between two maps.
    #[must_use]
    pub fn between(before: &Netmap, now: &Netmap) -> Self {
        Self::of(&owned(before), &owned(now))
    }

    /// The addresses that moved because these services were replaced in `netmap`, each with its id and its record before.
    #[must_use]
    pub fn by(replaced: &[(String, Option<Service>)], netmap: &Netmap) -> Self {
        let (mut before, mut now) = (Owned::new(), Owned::new());
        for (id, service) in replaced {
            if let Some(service) = service {
                before.extend(instances(service, netmap));
            }
            if let Some(service) = netmap.services.get(id) {
                now.extend(instances(service, netmap));
            }
        }
        Self::of(&before, &now)
    }

    fn of(before: &Owned<'_>, now: &Owned<'_>) -> Self {
        let owner = |(address, node, instance): &(IpAddr, PublicKey, Option<&Label>)| {
            let (node, instance) = (*node, instance.cloned());
            (*address, Owner { node, instance })
        };
        Self {
            gone: before.difference(now).map(owner).collect(),
            added: now.difference(before).map(owner).collect(),
        }
    }
}

/// The addresses of the nodes, of their guests and of their instances.
fn owned(netmap: &Netmap) -> Owned<'_> {
    let nodes = netmap.members.values().flat_map(|member| {
        let own = member.block.node_addresses();
        own.map(|address| (address, member.id, None))
    });
    let guests = netmap.guests.iter().flat_map(|guest| {
        let own = guest.addresses();
        own.map(|address| (address, guest.door, Some(&guest.name)))
    });
    let services = netmap.services.values();
    let instances = services.flat_map(|service| instances(service, netmap));
    nodes.chain(guests).chain(instances).collect()
}

/// The addresses of the instances of a service, without those of its node.
fn instances<'a>(
    service: &'a Service,
    netmap: &Netmap,
) -> impl Iterator<Item = (IpAddr, PublicKey, Option<&'a Label>)> + use<'a> {
    let member = netmap.members.get(&service.node);
    let own = member.map(|member| member.block.node_addresses());
    let node = service.node;
    let block = member.map(|member| member.block);
    let instances = service.instances.iter();
    let all = instances.flat_map(move |instance| {
        let addresses = addresses(block, instance).into_iter();
        addresses.map(move |address| (address, node, Some(&instance.id)))
    });
    all.filter(move |(address, _, _)| own.is_none_or(|own| !own.contains(address)))
}

/// The addresses of an instance of the node with this block. An IPv6 address beside one of IPv4 is published only while the program
/// accepts connections there. The container has it in any case and sends from it, so the policy is about it in any case.
fn addresses(block: Option<Block>, instance: &Instance) -> Vec<IpAddr> {
    let mut all = instance.addresses.clone();
    for address in &instance.addresses {
        if let (IpAddr::V4(v4), Some(block)) = (address, block)
            && let Some(v6) = block.instance_v6(*v4).map(IpAddr::V6)
            && !all.contains(&v6)
        {
            all.push(v6);
        }
    }
    all
}

#[derive(Default)]
struct Subjects {
    all: Vec<Subject>,
    /// The position in `all` of the subject with an address.
    by_address: BTreeMap<IpAddr, usize>,
}

impl Subjects {
    fn add_node(&mut self, member: &Member) {
        // A node may use an address of which it says that others cannot reach it.
        self.add(Subject {
            addresses: member.block.node_addresses().to_vec(),
            node: member.name.clone(),
            tags: member.tags.clone(),
            services: Vec::new(),
            is_node: true,
            guest: None,
            network: None,
        });
    }

    fn add_guest(&mut self, netmap: &Netmap, guest: &GuestAt) {
        if let Some(door) = netmap.members.get(&guest.door) {
            self.add(Subject {
                addresses: guest.addresses().to_vec(),
                node: door.name.clone(),
                tags: guest.tags.clone(),
                services: Vec::new(),
                is_node: false,
                guest: Some(guest.name.clone()),
                network: None,
            });
        }
    }

    fn add(&mut self, subject: Subject) {
        for address in &subject.addresses {
            self.by_address.insert(*address, self.all.len());
        }
        self.all.push(subject);
    }

    fn add_instance(&mut self, member: &Member, service: &Service, instance: &Instance) {
        let addresses = addresses(Some(member.block), instance);
        let held = |address: &IpAddr| self.by_address.get(address).copied();
        let mut positions: Vec<usize> = addresses.iter().filter_map(held).collect();
        positions.sort_unstable();
        positions.dedup();
        for position in positions {
            if let Some(subject) = self.all.get_mut(position) {
                subject.services.push(offered(service, instance));
            }
        }
        let is_new = |address: &IpAddr| !self.by_address.contains_key(address);
        let new: Vec<IpAddr> = addresses.into_iter().filter(is_new).collect();
        if !new.is_empty() {
            self.add(Subject {
                addresses: new,
                node: member.name.clone(),
                tags: member.tags.clone(),
                services: vec![offered(service, instance)],
                is_node: false,
                guest: None,
                network: None,
            });
        }
    }
}

fn offered(service: &Service, instance: &Instance) -> Offered {
    let ports = instance.ports.iter().map(|port| OfferedPort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.number.get(),
    });
    Offered {
        service: service.service_name(),
        ports: ports.collect(),
        allow: selectors(instance),
    }
}

/// The selectors of the subjects that may reach an instance. A text that this version does not understand selects nobody, so that it
/// does not open the instance to all.
fn selectors(instance: &Instance) -> Vec<Selector> {
    let texts = instance.allow.iter();
    texts
        .map(|text| Selector::parse(text).unwrap_or(Selector::Unknown))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceName};
    use crate::records::kinds::{Node, Record, Token};
    use crate::testbed::records as build;
    use crate::testbed::records::label;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    /// Node `n1` with block 1 and the tag `shop`.
    fn netmap() -> Netmap {
        let id = build::id(1);
        let member = Member {
            tags: vec![label("shop")],
            ..build::member(&id, "n1", build::block(1))
        };
        let mut netmap = Netmap::default();
        netmap.members.insert(id, member);
        netmap
    }

    fn serve(netmap: &mut Netmap, name: &str, project: Option<&str>, instances: Vec<Instance>) {
        let id = build::id(1);
        let project: Option<Label> = project.map(label);
        let service = Service {
            id: Service::id_of(&id, project.as_ref(), &label(name)),
            project,
            ..build::service(&id, name, instances)
        };
        netmap.replace(&service.id.clone(), Some(&service));
    }

    fn names(subject: &Subject) -> Vec<String> {
        let services = subject.services.iter();
        services
            .map(|offered| offered.service.to_string())
            .collect()
    }

    #[test]
    fn the_subject_at_an_address_is_the_one_among_all_that_has_it() {
        let mut netmap = netmap();
        let own = address("10.210.1.9");
        serve(
            &mut netmap,
            "web",
            Some("shop"),
            vec![build::instance("n1-80", vec![own])],
        );
        for subject in subjects(&netmap) {
            for address in &subject.addresses {
                assert_eq!(subject_at(&netmap, *address), Some(subject.clone()));
            }
        }
        for free in ["10.210.1.10", "10.210.2.1", "192.0.2.1"] {
            assert_eq!(subject_at(&netmap, address(free)), None, "{free}");
        }
    }

    #[test]
    fn a_node_is_a_subject_and_offers_what_has_its_addresses() {
        let mut netmap = netmap();
        let block = build::block(1);
        let own = vec![block.node_v4().into(), block.node_v6().into()];
        serve(
            &mut netmap,
            "web",
            None,
            vec![build::instance("n1-80", own.clone())],
        );
        let subjects = subjects(&netmap);
        assert_eq!(subjects.len(), 1);
        assert!(subjects[0].is_node);
        assert_eq!(subjects[0].addresses, own);
        assert_eq!(subjects[0].tags, [label("shop")]);
        let port = OfferedPort {
            name: None,
            protocol: Protocol::Tcp,
            port: 80,
        };
        let web = Offered {
            service: ServiceName::from(label("web")),
            ports: vec![port],
            allow: vec![],
        };
        assert_eq!(subjects[0].services, [web]);
    }

    #[test]
    fn a_guest_is_a_subject_of_its_door_and_its_going_is_a_change_while_its_silence_is_none() {
        let mut netmap = netmap();
        netmap.guests.push(GuestAt {
            name: label("anna"),
            key: crate::model::WireGuardKey([7; 32]),
            tags: vec![label("ops")],
            door: build::id(1),
            v4: [10, 210, 1, 254].into(),
            v6: "fd00:1:2:1::fe".parse().expect("a literal"),
            heard: true,
        });
        let own = address("10.210.1.254");
        let guest = subject_at(&netmap, own).expect("it is a guest");
        assert_eq!(guest.guest, Some(label("anna")));
        assert_eq!(guest.tags, [label("ops")]);
        assert!(!guest.is_node && subjects(&netmap).contains(&guest));
        let mut silent = netmap.clone();
        silent.guests[0].heard = false;
        assert!(!changed(&netmap, &silent));
        let mut gone = netmap.clone();
        gone.guests.clear();
        assert!(changed(&netmap, &gone));
        let moved = Moved::between(&netmap, &gone);
        let addresses: Vec<IpAddr> = moved.gone.iter().map(|(address, _)| *address).collect();
        assert_eq!(addresses, [own, address("fd00:1:2:1::fe")]);
        assert!(moved.added.is_empty());
    }

    #[test]
    fn a_network_is_a_subject_of_its_gateways_and_the_narrowest_one_has_an_address() {
        let mut netmap = netmap();
        let (one, two) = (build::id(1), build::id(2));
        let member = build::member(&two, "a2", build::block(2));
        netmap.members.insert(two, member);
        let without = netmap.clone();
        for (network, gateways) in [
            ("192.168.0.0/16", vec![one, two]),
            ("192.168.1.0/24", vec![one]),
            // Its gateway is no member.
            ("172.16.0.0/12", vec![build::id(3)]),
        ] {
            let network = network.parse().expect("a literal");
            netmap
                .routes
                .insert(network, gateways.into_iter().collect());
        }
        let gateways = |at: &str| Some(subject_at(&netmap, address(at))?.network?.gateways);
        assert_eq!(
            gateways("192.168.2.1"),
            Some(vec![label("a2"), label("n1")])
        );
        assert_eq!(gateways("192.168.1.1"), Some(vec![label("n1")]));
        assert_eq!(gateways("172.16.0.1"), None);
        let all = subjects(&netmap);
        let networks = all.iter().filter(|subject| subject.network.is_some());
        assert_eq!(networks.count(), 2);
        assert!(changed(&without, &netmap));
    }

    #[test]
    fn members_of_versions_that_know_no_policies_or_no_routes_are_named_in_order() {
        let mut ledger = Ledger::new(build::id(1));
        let token = Token {
            uses: 3,
            ..build::token(&build::id(2))
        };
        let mut records = vec![(Record::Mesh(build::mesh()), 1), (Record::Token(token), 1)];
        for (n, name, speaks) in [
            (3, "n3", &[POLICY_1][..]),
            (4, "b", &[][..]),
            (5, "a", &[POLICY_1, ROUTES_1][..]),
        ] {
            let id = build::id(n);
            let membership = build::membership(&id, &build::id(2), name);
            let node = Node {
                speaks: speaks.iter().map(|word| (*word).to_owned()).collect(),
                ..build::node(&id, build::block(n.into()))
            };
            records.push((Record::Membership(membership), 2));
            records.push((Record::Node(node), n));
        }
        for (record, signer) in records {
            ledger.apply(build::sealed(&record, signer)).expect("valid");
        }
        assert_eq!(without_policies(&ledger), [label("b")]);
        assert_eq!(without(&ledger, ROUTES_1), [label("b"), label("n3")]);
    }

    #[test]
    fn a_mesh_is_narrowed_by_the_selectors_of_one_instance() {
        let mut netmap = netmap();
        let open = build::instance("n1-db-1", vec![address("10.210.1.64")]);
        serve(&mut netmap, "db", None, vec![open.clone()]);
        assert!(!is_narrowed(&netmap));
        let narrow = Instance {
            allow: vec!["tag:ops".into()],
            ..build::instance("n1-db-2", vec![address("10.210.1.65")])
        };
        serve(&mut netmap, "db", None, vec![open, narrow]);
        assert!(is_narrowed(&netmap));
    }

    #[test]
    fn a_container_with_two_names_is_one_subject_with_both() {
        let mut netmap = netmap();
        let instance = build::instance("n1-db-1", vec![address("10.210.1.64")]);
        serve(&mut netmap, "db", None, vec![instance.clone()]);
        serve(&mut netmap, "database", Some("shop"), vec![instance]);
        let other = build::instance("n1-db-2", vec![address("10.210.1.65")]);
        serve(&mut netmap, "cache", None, vec![other]);
        let subjects = subjects(&netmap);
        assert_eq!(subjects.len(), 3);
        let of = |text: &str| {
            let mut with = subjects
                .iter()
                .filter(|s| s.addresses.contains(&address(text)));
            let one = with.next().expect("it is one");
            assert!(with.next().is_none(), "{text} is of one");
            one
        };
        assert_eq!(names(of("10.210.1.64")), ["db", "database.shop"]);
        assert_eq!(names(of("10.210.1.65")), ["cache"]);
        assert!(!of("10.210.1.64").is_node && of("10.210.1.64").node == label("n1"));
    }

    #[test]
    fn an_instance_has_its_ipv6_address_before_that_is_published_and_no_other_instance_has_it() {
        let v6 = address("fd00:1:2:1::40");
        for published in [
            vec![address("10.210.1.64")],
            vec![address("10.210.1.64"), v6],
        ] {
            let mut netmap = netmap();
            let instances = [
                build::instance("n1-db-1", published),
                build::instance("n1-db-2", vec![address("10.210.1.65")]),
            ];
            serve(&mut netmap, "db", None, instances.to_vec());
            let subject = subject_at(&netmap, v6).expect("it is of the instance");
            assert_eq!(subject.addresses, [address("10.210.1.64"), v6]);
            assert_eq!(names(&subject), ["db"]);
            let other = subject_at(&netmap, address("fd00:1:2:1::41")).expect("the other one");
            assert_eq!(other.addresses[0], address("10.210.1.65"));
            assert_eq!(subjects(&netmap).len(), 3);
        }
        // An instance with IPv6 alone has no IPv4 address.
        let mut netmap = netmap();
        serve(
            &mut netmap,
            "db",
            None,
            vec![build::instance("n1-db-1", vec![v6])],
        );
        let subject = subject_at(&netmap, v6).expect("it is of the instance");
        assert_eq!(subject.addresses, [v6]);
        assert_eq!(subject_at(&netmap, address("10.210.1.64")), None);
    }

    #[test]
    fn a_selector_of_a_later_version_admits_nobody() {
        let mut netmap = netmap();
        let instance = Instance {
            allow: vec!["tag:ops".into(), "moon:full".into(), String::new()],
            ..build::instance("n1-db-1", vec![address("10.210.1.64")])
        };
        serve(&mut netmap, "db", None, vec![instance]);
        let subjects = subjects(&netmap);
        let ops = Selector::parse("tag:ops").expect("a literal");
        assert_eq!(
            subjects[1].services[0].allow,
            [ops, Selector::Unknown, Selector::Unknown]
        );
    }

    #[test]
    fn only_what_rules_look_at_makes_two_versions_of_a_service_differ() {
        type Change = fn(&mut Instance);
        let service = |instance| build::service(&build::id(1), "db", vec![instance]);
        let instance = build::instance("n1-db-1", vec![address("10.210.1.64")]);
        let before = service(instance.clone());
        let changed: [(bool, Change); 5] = [
            (false, |i| {
                i.health = crate::records::kinds::Health::Unhealthy
            }),
            (false, |i| i.weight += 1),
            (true, |i| i.addresses = vec![address("10.210.1.65")]),
            (true, |i| i.ports = vec![build::port(81, None)]),
            (true, |i| i.allow = vec!["tag:ops".into()]),
        ];
        for (n, (expected, change)) in changed.into_iter().enumerate() {
            let mut instance = instance.clone();
            change(&mut instance);
            let now = service(instance);
            assert_eq!(differ(Some(&before), Some(&now)), expected, "{n}");
        }
        assert!(differ(Some(&before), None) && differ(None, Some(&before)));
        assert!(!differ(None, None));
    }

    #[test]
    fn addresses_move_with_their_instances_and_not_with_the_services_of_a_node() {
        let before = netmap();
        let at = |netmap: &Netmap, id: &str, last: u8| {
            let mut now = netmap.clone();
            let address = address(&format!("10.210.1.{last}"));
            serve(
                &mut now,
                "db",
                None,
                vec![build::instance(id, vec![address])],
            );
            now
        };
        let moved = |before: &Netmap, now: &Netmap| {
            let moved = Moved::between(before, now);
            let replaced: Vec<(String, Option<Service>)> = (now.services.keys())
                .map(|id| (id.clone(), before.services.get(id).cloned()))
                .collect();
            assert_eq!(Moved::by(&replaced, now), moved);
            let of = |side: &[(IpAddr, Owner)]| -> Vec<String> {
                let owners = side.iter().map(|(address, owner)| {
                    let instance = owner.instance.as_ref().map_or("", Label::as_str);
                    format!("{address} {instance}")
                });
                owners.collect()
            };
            (of(&moved.gone), of(&moved.added))
        };
        let one = at(&before, "one", 64);
        // An instance has the IPv6 address with the same number too.
        let both = |gone: &[&str], added: &[&str]| {
            let owned = |texts: &[&str]| -> Vec<String> {
                texts.iter().map(|text| (*text).to_owned()).collect()
            };
            (owned(gone), owned(added))
        };
        let of_one = ["10.210.1.64 one", "fd00:1:2:1::40 one"];
        assert_eq!(moved(&before, &one), both(&[], &of_one));
        assert_eq!(moved(&one, &one), both(&[], &[]));
        let other = at(&one, "other", 64);
        let exchanged = both(&of_one, &["10.210.1.64 other", "fd00:1:2:1::40 other"]);
        assert_eq!(moved(&one, &other), exchanged);
        let own = build::block(1).node_v4();
        let [.., last] = own.octets();
        assert_eq!(moved(&before, &at(&before, "own", last)), both(&[], &[]));
        let gone = Moved::between(&before, &Netmap::default()).gone;
        let owner = Owner {
            node: build::id(1),
            instance: None,
        };
        assert!(gone.contains(&(own.into(), owner)));
    }

    #[test]
    fn a_change_of_paths_leaves_the_subjects_as_they_are() {
        let mut before = netmap();
        let instance = build::instance("n1-db-1", vec![address("10.210.1.64")]);
        serve(&mut before, "db", None, vec![instance.clone()]);
        let after = |change: fn(&mut Member)| {
            let mut now = before.clone();
            now.members.values_mut().for_each(change);
            changed(&before, &now)
        };
        assert!(!after(
            |member| member.endpoints = vec!["192.0.2.7:1".parse().expect("a literal")]
        ));
        assert!(after(|member| member.tags.clear()));
        assert!(after(|member| member.name = label("n2")));
        assert!(after(|member| member.block = build::block(2)));
        let mut now = before.clone();
        let moved = build::instance("n1-db-1", vec![address("10.210.1.65")]);
        serve(&mut now, "db", None, vec![moved]);
        assert!(changed(&before, &now), "an instance has another address");
        now = netmap();
        serve(&mut now, "web", None, vec![instance.clone()]);
        assert!(changed(&before, &now), "a service has another name");
        now = before.clone();
        serve(&mut now, "web", None, vec![instance]);
        assert!(changed(&before, &now) && changed(&now, &before));
        now = before.clone();
        now.rules = crate::records::netmap::Rules::Closed;
        assert!(changed(&before, &now));
    }
}
