//! Decides which of this node's own records are published, and stores which cannot be published and why. Pure.
//!
//! [`Draft`] collects the records that this node publishes anew, with their versions.
//!
//! A record has a maximum number of instances and of bytes. A service that exceeds one of them is published with as many of
//! its instances as fit, in the order in which they are given, and a problem names the service. Any other record of this
//! node that its own ledger refuses is a problem too, for as long as it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use super::replica::acceptance::{Acceptance, name_of};
use crate::model::time::next_version;
use crate::model::{Label, PublicKey, ServiceName};
use crate::protocol::local::Problem;
use crate::records::Envelope;
use crate::records::envelope::MAX_PAYLOAD;
use crate::records::kinds::{
    Health, Instance, MAX_INSTANCES, Name, Node, Record, RecordKey, Service,
};
use crate::records::ledger::Refused;

/// The maximum number of refused records that get a problem of their own.
const MAX_NAMED: usize = 8;
/// The maximum number of services that this node has withdrawn, and that stay in the mesh as records without instances. With
/// more of them the node removes their records, which count towards its bound of records.
const MAX_WITHDRAWN: usize = 256;

/// The records that this node publishes anew.
pub(super) struct Draft<'a> {
    id: PublicKey,
    acceptance: &'a Acceptance,
    now: Instant,
    wall: SystemTime,
    /// The lowest version that a service of this node may have.
    floor: u64,
    /// The new floor that removes the withdrawn services, if there are too many.
    raised: Option<u64>,
    services: Vec<Service>,
    node: Option<Node>,
    name: Option<Name>,
}

impl<'a> Draft<'a> {
    /// Starts a draft for the node `id`, whose node record has `services_from` equal to `floor`.
    pub(super) fn new(
        id: PublicKey,
        floor: u64,
        acceptance: &'a Acceptance,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        Self {
            id,
            acceptance,
            now,
            wall,
            floor,
            raised: None,
            services: Vec::new(),
            node: None,
            name: None,
        }
    }

    fn version_of_service(&self, id: &str, held: u64) -> u64 {
        let key = service_key(id);
        let last = self.acceptance.last_version(&key, held);
        next_version(last.max(self.floor.saturating_sub(1)), self.wall)
    }

    /// Adds the services whose records in the ledger, `held`, differ from those in `wanted`, which has them by id.
    pub(super) fn services<'s>(
        &mut self,
        held: impl Iterator<Item = &'s Service>,
        mut wanted: BTreeMap<String, Service>,
    ) {
        let (mut known, mut live, mut withdrawn) = (BTreeSet::new(), Vec::new(), 0);
        let mut highest = 0;
        for held in held {
            let key = service_key(&held.id);
            known.insert(held.id.clone());
            let empty = || Service {
                instances: Vec::new(),
                service_address: None,
                ..held.clone()
            };
            let service = Service {
                version: held.version,
                ..wanted.remove(&held.id).unwrap_or_else(empty)
            };
            highest = highest.max(self.acceptance.last_version(&key, held.version));
            if service.instances.is_empty() {
                withdrawn += 1;
            } else {
                live.push(service.clone());
            }
            if service != *held || self.acceptance.is_overruled(&key, self.now) {
                let version = self.version_of_service(&held.id, held.version);
                self.services.push(Service { version, ..service });
            }
        }
        for service in wanted.into_values() {
            known.insert(service.id.clone());
            let version = self.version_of_service(&service.id, 0);
            if !service.instances.is_empty() {
                live.push(service.clone());
            }
            self.services.push(Service { version, ..service });
        }
        for service in self.acceptance.foreign_services(&self.id, &known, self.now) {
            let version = self.version_of_service(&service.id, 0);
            withdrawn += 1;
            self.services.push(Service { version, ..service });
        }
        let highest = self.services.iter().fold(highest, |h, s| h.max(s.version));
        if withdrawn > MAX_WITHDRAWN && highest < u64::MAX - 1 {
            // Every service that stays gets the version of the new floor, and is published before the node record.
            let floor = next_version(highest, self.wall);
            self.raised = Some(floor);
            let live = live.into_iter();
            self.services = live
                .map(|service| Service {
                    version: floor,
                    ..service
                })
                .collect();
        }
    }

    /// Adds the node record if it has to be published. With `is_new` it differs from the record in the ledger.
    pub(super) fn node(&mut self, node: Node, is_new: bool) {
        let key = RecordKey::Node(node.id);
        if is_new || self.raised.is_some() || self.acceptance.is_overruled(&key, self.now) {
            let last = self.acceptance.last_version(&key, node.version);
            self.node = Some(Node {
                version: next_version(last, self.wall),
                services_from: self.raised.unwrap_or(node.services_from),
                ..node
            });
        }
    }

    /// Adds the name record if it has to be published: this node `has_new_name`, or another machine published a name record with
    /// this node's key. `own` is the name of this node, and `held` is the record in the ledger.
    pub(super) fn name(&mut self, held: Option<&Name>, own: &Label, has_new_name: bool) {
        let key = RecordKey::Name(self.id);
        if !has_new_name && !self.acceptance.is_overruled(&key, self.now) {
            return;
        }
        let last = self
            .acceptance
            .last_version(&key, held.map_or(0, |held| held.version));
        let name = held
            .filter(|_| !has_new_name)
            .map_or(own, |held| &held.name);
        self.name = Some(Name {
            id: self.id,
            version: next_version(last, self.wall),
            name: name.clone(),
        });
    }

    /// Returns the records in the order in which they are to be published.
    pub(super) fn finish(self) -> Vec<Record> {
        let node = self.node.map(Record::Node);
        let (first, last) = if self.raised.is_some() {
            (None, node)
        } else {
            (node, None)
        };
        let services = self.services.into_iter().map(Record::Service);
        let name = self.name.map(Record::Name);
        let all = first.into_iter().chain(services).chain(last);
        all.chain(name).collect()
    }
}

fn service_key(id: &str) -> RecordKey {
    RecordKey::parse("service", id)
}

/// The problems of this node's own records.
#[derive(Debug, Default)]
pub(super) struct OwnRecords {
    cut: BTreeMap<ServiceName, Cut>,
    refused: BTreeMap<RecordKey, Refusal>,
    round: u64,
}

/// A service of which not all instances are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    published: usize,
    all: usize,
}

#[derive(Debug)]
struct Refusal {
    why: Refused,
    round: u64,
}

impl OwnRecords {
    /// Drops the instances that do not fit into the record of their service.
    pub(super) fn fit(
        &mut self,
        mut services: BTreeMap<String, Service>,
    ) -> BTreeMap<String, Service> {
        let mut cut = BTreeMap::new();
        for service in services.values_mut() {
            let all = service.instances.len();
            let published = fitting(service);
            if published == all {
                continue;
            }
            service.instances.truncate(published);
            let name = service.service_name();
            let entry = Cut { published, all };
            if !self.cut.contains_key(&name) {
                tracing::warn!(service = %name, published, all, "a service has more instances than one record holds");
            }
            cut.insert(name, entry);
        }
        self.cut = cut;
        services
    }

    /// Begins a round, in which the node record and the records of services are brought up to date.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// Ends a round. A record that was not refused in this round is either published or no longer wanted.
    pub(super) fn end_round(&mut self) {
        let round = self.round;
        self.refused
            .retain(|key, refusal| refusal.round == round || matches!(key, RecordKey::Name(_)));
    }

    /// This node's own ledger refused a record.
    pub(super) fn handle_refused(&mut self, envelope: &Envelope, why: Refused) {
        let Some(key) = envelope.key() else {
            return;
        };
        if self.refused.get(&key).is_none_or(|held| held.why != why) {
            tracing::warn!(record = %key, %why, "this node's own record is refused");
        }
        let round = self.round;
        self.refused.insert(key, Refusal { why, round });
    }

    /// This node's own ledger accepted a record.
    pub(super) fn handle_accepted(&mut self, key: &RecordKey) {
        self.refused.remove(key);
    }

    /// All problems, with remedies.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let cut = self.cut.iter().map(|(name, cut)| Problem {
            what: format!(
                "{} of {} instances of the service {name} are not published",
                cut.all - cut.published,
                cut.all
            ),
            why: format!(
                "the record of a service on one node holds at most {MAX_INSTANCES} instances and {MAX_PAYLOAD} bytes"
            ),
            fix: "run them on several nodes, give containers shorter names, or name fewer ports of each".into(),
        });
        let refused = self.refused.iter().take(MAX_NAMED);
        let refused = refused.map(|(key, refusal)| Problem {
            what: format!("{} is not published", name_of(key)),
            why: refusal.why.to_string(),
            fix: remedy(&refusal.why).into(),
        });
        let more = self.refused.len().saturating_sub(MAX_NAMED);
        let more = (more > 0).then(|| Problem {
            what: format!("{more} more records of this node are not published"),
            why: "they are refused as well".into(),
            fix: "correct the others first".into(),
        });
        cut.chain(refused).chain(more).collect()
    }
}

fn remedy(why: &Refused) -> &'static str {
    match why {
        Refused::NodeRevoked | Refused::NotAMember => {
            "run `meshctl leave`, and join again with a new token"
        }
        Refused::BlockTaken(_) | Refused::ForeignBlock(_) | Refused::ForeignAddress(_) => {
            "another node has these addresses: run `meshctl leave` on this node, and join again with a new token"
        }
        Refused::Full(_) => "run fewer services on this node",
        _ => {
            "restart meshd; if that does not help, report it with the output of `meshctl status --json`"
        }
    }
}

/// How many instances fit into the record, counted from the first.
fn fitting(service: &Service) -> usize {
    let empty = Record::Service(Service {
        id: service.id.clone(),
        version: u64::MAX,
        node: service.node,
        name: service.name.clone(),
        project: service.project.clone(),
        service_address: service.service_address,
        instances: Vec::new(),
    });
    let mut room = MAX_PAYLOAD.saturating_sub(empty.payload().len());
    let fits = |instance: &&Instance| {
        let bytes = bytes(instance);
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    };
    let instances = service.instances.iter().take(MAX_INSTANCES);
    instances.take_while(fits).count()
}

/// The maximum size of an instance in a record, in bytes. It does not depend on the health, so that the number of instances
/// that fit does not change with it.
fn bytes(instance: &Instance) -> usize {
    let longest = Instance {
        health: Health::Unhealthy,
        ..instance.clone()
    };
    // One byte is for the comma.
    1 + serde_json::to_string(&longest).map_or(MAX_PAYLOAD, |text| text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::Block;
    use crate::model::{Label, PublicKey, SigningKey, WireGuardKey};
    use crate::records::Ledger;
    use crate::records::kinds::{MAX_PORTS, Port, Protocol, Source};

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    /// A service with so many instances, each with names as long as they may be and so many ports.
    fn service(name: &str, instances: u16, ports: usize) -> Service {
        let node = PublicKey([1; 32]);
        let project = Some(label(&"p".repeat(63)));
        let name = label(name);
        let instances = (0..instances).map(|n| Instance {
            id: label(&format!("{n:x<63}")),
            addresses: vec![std::net::Ipv4Addr::new(10, 210, 100, 100).into(); 4],
            ports: (0..ports)
                .map(|port| Port {
                    number: (60_000 + port as u16).try_into().expect("not zero"),
                    protocol: Protocol::Tcp,
                    name: Some(label(&format!("{port:q<63}"))),
                })
                .collect(),
            health: Health::Healthy,
            weight: u16::MAX,
            priority: u16::MAX,
            source: Source::Docker,
            allow: vec![],
            public: vec![],
        });
        Service {
            id: Service::id_of(&node, project.as_ref(), &name),
            version: 0,
            node,
            name,
            project,
            service_address: Some([10, 210, 0, 64].into()),
            instances: instances.collect(),
        }
    }

    fn fit(own: &mut OwnRecords, service: Service) -> Service {
        let mut fitted = own.fit(BTreeMap::from([(service.id.clone(), service)]));
        fitted.pop_first().expect("it is still there").1
    }

    fn whats(own: &OwnRecords) -> Vec<String> {
        own.problems().into_iter().map(|p| p.what).collect()
    }

    #[test]
    fn a_service_that_is_larger_than_a_record_is_published_as_far_as_it_fits_and_named() {
        let mut own = OwnRecords::default();
        for (instances, ports) in [(253, MAX_PORTS), (60, MAX_PORTS), (253, 2), (300, 1)] {
            let mut fitted = fit(&mut own, service("db", instances, ports));
            let count = fitted.instances.len();
            assert!(count > 0 && count < usize::from(instances), "{count}");
            assert_eq!(own.problems().len(), 1);
            assert!(
                whats(&own)[0].contains(&format!("of {instances} instances of the service db.p")),
                "{:?}",
                whats(&own)
            );
            for health in [Health::Healthy, Health::Unhealthy] {
                fitted.version = u64::MAX;
                fitted.instances.iter_mut().for_each(|i| i.health = health);
                let payload = Record::Service(fitted.clone()).payload();
                assert!(payload.len() <= MAX_PAYLOAD, "{}", payload.len());
                Record::parse(&payload).expect("within its bounds");
            }
        }
        let whole = service("db", 20, 1);
        assert_eq!(fit(&mut own, whole.clone()), whole);
        assert_eq!(whats(&own), Vec::<String>::new());
    }

    #[test]
    fn a_record_that_the_ledger_refuses_is_a_problem_until_it_is_not_refused_any_more() {
        let key = SigningKey::from_seed(&[1; 32]);
        let mut own = OwnRecords::default();
        let refuse = |own: &mut OwnRecords, name: &str| {
            let envelope = Envelope::seal(&Record::Service(service(name, 1, 1)), &key);
            let why = Ledger::new(key.public())
                .apply(envelope.clone())
                .expect_err("nobody is a member");
            own.handle_refused(&envelope, why);
            envelope.key().expect("a header")
        };
        own.begin_round();
        let db = refuse(&mut own, "db");
        refuse(&mut own, "web");
        own.end_round();
        let project = "p".repeat(63);
        assert_eq!(
            whats(&own),
            [
                format!("the service db.{project} of this node is not published"),
                format!("the service web.{project} of this node is not published")
            ]
        );
        own.handle_accepted(&db);
        assert_eq!(own.problems().len(), 1);
        own.begin_round();
        own.end_round();
        assert_eq!(
            whats(&own),
            Vec::<String>::new(),
            "web is not wanted any more"
        );
        for n in 0..20 {
            refuse(&mut own, &format!("s{n}"));
        }
        assert_eq!(own.problems().len(), MAX_NAMED + 1);
    }

    fn acceptance() -> Acceptance {
        Acceptance::new(&PublicKey([1; 32]), 1_800_000_000_000)
    }

    /// The records that a node with the records in `held` publishes for the services in `wanted`.
    fn drafted(
        acceptance: &Acceptance,
        held: &[Service],
        wanted: Vec<Service>,
        node: &Node,
        clock: SystemTime,
    ) -> Vec<Record> {
        let now = Instant::now();
        let mut draft = Draft::new(node.id, node.services_from, acceptance, now, clock);
        let wanted = wanted.into_iter().map(|s| (s.id.clone(), s));
        draft.services(held.iter(), wanted.collect());
        draft.node(node.clone(), false);
        draft.name(None, &label("n1"), false);
        draft.finish()
    }

    fn node() -> Node {
        Node {
            id: PublicKey([1; 32]),
            version: 5,
            wireguard_key: WireGuardKey([7; 32]),
            key_proof: None,
            block: Block {
                v4: "10.210.1.0/24".parse().expect("a literal"),
                v6: "fd00:1:2:1::/64".parse().expect("a literal"),
            },
            endpoints: Vec::new(),
            without_ipv6: false,
            services_from: 0,
            program_version: None,
            speaks: vec![],
            relays: vec![],
            observed: vec![],
            mapped: vec![],
            stream: None,
            guest_key: None,
            guests: vec![],
            routes: vec![],
        }
    }

    fn empty(name: &str, version: u64) -> Service {
        Service {
            version,
            service_address: None,
            instances: Vec::new(),
            ..service(name, 1, 1)
        }
    }

    #[test]
    fn a_new_name_is_published_above_the_held_one_and_no_other_name_is() {
        let (acceptance, now) = (acceptance(), Instant::now());
        let id = node().id;
        let held = Name {
            id,
            version: u64::MAX / 2,
            name: label("old"),
        };
        let published = |has_new_name| {
            let mut draft = Draft::new(id, 0, &acceptance, now, SystemTime::UNIX_EPOCH);
            draft.name(Some(&held), &label("new"), has_new_name);
            draft.finish()
        };
        assert_eq!(published(false), []);
        assert_eq!(
            published(true),
            [Record::Name(Name {
                id,
                version: held.version + 1,
                name: label("new"),
            })]
        );
    }

    #[test]
    fn only_what_changed_is_published_and_with_a_version_above() {
        let clock = SystemTime::UNIX_EPOCH;
        let held = [
            Service {
                version: 40,
                ..service("db", 1, 1)
            },
            Service {
                version: 50,
                ..service("web", 1, 1)
            },
        ];
        let same = drafted(&acceptance(), &held, held.to_vec(), &node(), clock);
        assert_eq!(same, []);
        let published = drafted(&acceptance(), &held, vec![held[0].clone()], &node(), clock);
        assert_eq!(published, [Record::Service(empty("web", 51))]);
    }

    #[test]
    fn withdrawn_services_are_cleared_away_once_they_are_many_and_live_ones_stay() {
        let clock = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(700);
        let mut held: Vec<Service> = (0..MAX_WITHDRAWN as u64)
            .map(|n| empty(&format!("gone{n}"), n + 1))
            .collect();
        held.push(Service {
            version: 900,
            ..service("db", 1, 1)
        });
        held.push(Service {
            version: 1000,
            ..service("web", 1, 1)
        });
        let wanted = held[MAX_WITHDRAWN..].to_vec();
        assert_eq!(drafted(&acceptance(), &held, wanted, &node(), clock), []);
        // One more service is withdrawn, and one is new.
        let wanted = vec![held[MAX_WITHDRAWN].clone(), service("new", 1, 1)];
        let published = drafted(&acceptance(), &held, wanted, &node(), clock);
        let [
            Record::Service(db),
            Record::Service(new),
            Record::Node(node),
        ] = &published[..]
        else {
            panic!("{published:?}")
        };
        // The record that withdraws `web` would have had version 1001.
        let floor = node.services_from;
        assert_eq!((floor, db.version, new.version), (1002, 1002, 1002));
        assert_eq!(db.instances, held[MAX_WITHDRAWN].instances);
        assert!(node.version > 5);

        // The next service is above the floor even if the clock went back.
        let held = [db.clone(), new.clone()];
        let wanted = vec![db.clone(), new.clone(), service("later", 1, 1)];
        let published = drafted(&acceptance(), &held, wanted, node, SystemTime::UNIX_EPOCH);
        let [Record::Service(later)] = &published[..] else {
            panic!("{published:?}")
        };
        assert!(later.version >= floor);
    }

    #[test]
    fn what_another_machine_published_is_published_again_with_a_version_above() {
        let now = Instant::now();
        let (mut acceptance, node) = (acceptance(), node());
        let mut stolen = |kind: &str, record: &Record, version| {
            let key = match record {
                Record::Service(service) => service_key(&service.id),
                _ => RecordKey::parse(kind, &node.id.to_string()),
            };
            acceptance.handle_foreign(key, record, version, Some(node.wireguard_key), now);
        };
        stolen("node", &Record::Node(node.clone()), 70);
        stolen("service", &Record::Service(service("db", 3, 1)), 71);
        stolen("service", &Record::Service(service("evil", 1, 1)), 72);
        let name = Name {
            id: node.id,
            version: 73,
            name: label("thief"),
        };
        stolen("name", &Record::Name(name), 73);
        let held = [Service {
            version: 40,
            ..service("db", 1, 1)
        }];
        let published = drafted(
            &acceptance,
            &held,
            held.to_vec(),
            &node,
            SystemTime::UNIX_EPOCH,
        );
        let db = Service {
            version: 72,
            ..held[0].clone()
        };
        let evil = empty("evil", 73);
        assert_eq!(
            published,
            [
                Record::Node(Node {
                    version: 71,
                    ..node.clone()
                }),
                Record::Service(db),
                Record::Service(evil),
                Record::Name(Name {
                    id: node.id,
                    version: 74,
                    name: label("n1")
                }),
            ]
        );
    }
}
