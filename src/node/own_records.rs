//! What of this node's own records cannot be published, and why. Pure.
//!
//! A record has bounds (instances, octets). A service that is larger than they allow is published with as many of its
//! instances as fit, in the order in which they are given: what is left out is a problem that names the service. Any other
//! record of this node that its own ledger refuses is a problem too, for as long as it is refused.

use std::collections::BTreeMap;

use crate::model::ServiceName;
use crate::model::record::{Header, Health, Instance, MAX_INSTANCES, Record, RecordKey, Service};
use crate::wire::Envelope;
use crate::wire::envelope::MAX_PAYLOAD;
use crate::wire::ledger::Refused;
use crate::wire::local::Problem;

/// Refused records that are named one by one at most.
const MAX_NAMED: usize = 8;

/// What is wrong with this node's own records.
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
    /// Cuts services to what a record may be.
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

    /// The node record and those of services are about to be brought up to date.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// They were: a record that was not refused this time is either published or not wanted any more.
    pub(super) fn end_round(&mut self) {
        let round = self.round;
        self.refused
            .retain(|key, refusal| refusal.round == round || key.kind == "name");
    }

    /// This node's own ledger refused a record.
    pub(super) fn handle_refused(&mut self, envelope: &Envelope, why: Refused) {
        let Ok(Header { kind, id, .. }) = serde_json::from_str(&envelope.payload) else {
            return;
        };
        let key = RecordKey { kind, id };
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

    /// What is wrong, with remedies.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let cut = self.cut.iter().map(|(name, cut)| Problem {
            what: format!(
                "{} of {} instances of the service {name} are not published",
                cut.all - cut.published,
                cut.all
            ),
            why: format!(
                "the record of a service on one node holds {MAX_INSTANCES} instances and {MAX_PAYLOAD} octets at most"
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
            fix: "mend the others first".into(),
        });
        cut.chain(refused).chain(more).collect()
    }
}

/// A record as people call it.
fn name_of(key: &RecordKey) -> String {
    match (key.kind.as_str(), key.id.split_once('/')) {
        ("service", Some((_, name))) => {
            let name: Vec<&str> = name.rsplit('/').collect();
            format!("the service {} of this node", name.join("."))
        }
        ("node", _) => "where this node is reached".into(),
        ("name", _) => "the new name of this node".into(),
        (kind, _) => format!("this node's record of the kind {kind}"),
    }
}

fn remedy(why: &Refused) -> &'static str {
    match why {
        Refused::NodeRevoked | Refused::NotAMember => {
            "run `meshctl leave`, and join again with a new token"
        }
        Refused::BlockTaken(_) | Refused::ForeignBlock(_) | Refused::ForeignAddress(_) => {
            "another node has these addresses: run `meshctl leave` here, and join again with a new token"
        }
        Refused::Full(_) => "run fewer services on this node",
        _ => {
            "restart meshd; if that does not help, report it with the output of `meshctl status --json`"
        }
    }
}

/// How many of the first instances fit into the record.
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
        let octets = octets(instance);
        let fits = octets <= room;
        room = room.saturating_sub(octets);
        fits
    };
    let instances = service.instances.iter().take(MAX_INSTANCES);
    instances.take_while(fits).count()
}

/// Octets of an instance in a record at most, whatever its health: how many fit does not change with it.
fn octets(instance: &Instance) -> usize {
    let longest = Instance {
        health: Health::Unhealthy,
        ..instance.clone()
    };
    // With a comma.
    1 + serde_json::to_string(&longest).map_or(MAX_PAYLOAD, |text| text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::{MAX_PORTS, Port, Protocol, Source};
    use crate::model::{Label, PublicKey, SigningKey};
    use crate::wire::Ledger;

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
            let header: Header = serde_json::from_str(&envelope.payload).expect("a header");
            RecordKey {
                kind: header.kind,
                id: header.id,
            }
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
}
