//! The services of this node: what was registered, how it is, and the records that say so. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::checks::Target;
use crate::model::address::Block;
use crate::model::{Label, PublicKey, ServiceName};
use crate::protocol::local::{Check, Problem};
use crate::records::kinds::{Health, Instance, Port, Protocol, Service, Source, default_weight};

/// Services of one node at most.
pub const MAX_SERVICES: usize = 10_000;

/// What tells one registered instance from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The service.
    pub name: Label,
    /// The port it listens on.
    pub port: NonZeroU16,
    /// Over what.
    pub protocol: Protocol,
}

/// An instance as registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Which.
    pub key: Key,
    /// Where it listens; absent: at the node's mesh addresses.
    pub address: Option<IpAddr>,
    /// How its health is known.
    pub check: Option<Check>,
    /// SRV weight.
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// SRV priority: the least is asked first.
    #[serde(default)]
    pub priority: u16,
}

impl Registered {
    /// Its address, if it is none of those to which packets are carried on the node that has `block`.
    fn uncarried(&self, block: &Block) -> Option<IpAddr> {
        self.address.filter(|address| !block.contains(*address))
    }
}

#[derive(Debug, Clone)]
struct Entry {
    registered: Registered,
    source: Source,
    health: Health,
}

/// What is kept on disk: what was registered by hand, and what is drained.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Registered with `meshctl service add`.
    #[serde(default)]
    pub services: Vec<Registered>,
    /// Drained with `meshctl service drain`.
    #[serde(default)]
    pub drained: BTreeSet<ServiceName>,
}

/// Why a service cannot be registered or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It stands in the configuration.
    #[error("the service {0} on that port is in meshd.toml; change it there")]
    Configured(Label),
    /// There is none.
    #[error("this node has no service {0}; `meshctl service list` shows all")]
    Unknown(ServiceName),
    /// Nothing carries packets to its address.
    #[error(
        "nothing carries packets to {0}: this node has {1} of the mesh; leave the address out, and have the program listen on \
         the node's mesh address"
    )]
    NotCarried(IpAddr, String),
    /// There are too many.
    #[error("this node has {MAX_SERVICES} services, as many as there may be")]
    Full,
}

/// The services of this node.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    entries: BTreeMap<(Key, Source), Entry>,
    drained: BTreeSet<ServiceName>,
}

impl Registry {
    /// With the services of the configuration and those kept on disk.
    #[must_use]
    pub fn new(configured: Vec<Registered>, stored: Stored) -> Self {
        let mut registry = Self {
            drained: stored.drained,
            ..Self::default()
        };
        for (source, services) in [(Source::Config, configured), (Source::Cli, stored.services)] {
            for registered in services {
                registry.insert(registered, source);
            }
        }
        registry
    }

    fn insert(&mut self, registered: Registered, source: Source) {
        let health = if registered.check.is_some() {
            Health::Starting
        } else {
            Health::Unknown
        };
        self.entries.insert(
            (registered.key.clone(), source),
            Entry {
                registered,
                source,
                health,
            },
        );
    }

    /// Registers an instance by hand, or changes one, on the node that has `block`.
    ///
    /// # Errors
    /// The configuration has it already, nothing carries packets to its address, or there are too many.
    pub fn add(&mut self, registered: Registered, block: &Block) -> Result<(), RegistryError> {
        if let Some(address) = registered.uncarried(block) {
            let own = format!("{} and {}", block.v4, block.v6);
            return Err(RegistryError::NotCarried(address, own));
        }
        if self
            .entries
            .contains_key(&(registered.key.clone(), Source::Config))
        {
            return Err(RegistryError::Configured(registered.key.name));
        }
        if self.entries.len() >= MAX_SERVICES {
            return Err(RegistryError::Full);
        }
        let same = self
            .entries
            .get(&(registered.key.clone(), Source::Cli))
            .is_some_and(|held| held.registered == registered);
        if !same {
            self.insert(registered, Source::Cli);
        }
        Ok(())
    }

    /// Takes all instances of `name` away that were registered by hand.
    ///
    /// # Errors
    /// There is none, or only the configuration has it.
    pub fn remove(&mut self, name: &Label) -> Result<(), RegistryError> {
        let before = self.entries.len();
        self.entries
            .retain(|(key, source), _| key.name != *name || *source != Source::Cli);
        if self.entries.len() == before {
            return Err(if self.has(name) {
                RegistryError::Configured(name.clone())
            } else {
                RegistryError::Unknown(name.clone().into())
            });
        }
        if !self.has(name) {
            self.drained.remove(&name.clone().into());
        }
        Ok(())
    }

    /// Sends no new clients to `name`, or sends them again; `contained` are the services of containers, which are not
    /// registered here.
    ///
    /// # Errors
    /// There is none.
    pub fn set_drained(
        &mut self,
        name: &ServiceName,
        drained: bool,
        contained: &BTreeSet<ServiceName>,
    ) -> Result<(), RegistryError> {
        let registered = name.project.is_none() && self.has(&name.name);
        if !registered && !contained.contains(name) && (drained || !self.drained.contains(name)) {
            return Err(RegistryError::Unknown(name.clone()));
        }
        if drained {
            self.drained.insert(name.clone());
        } else {
            self.drained.remove(name);
        }
        Ok(())
    }

    /// The services that are to get no new clients.
    #[must_use]
    pub fn drained(&self) -> &BTreeSet<ServiceName> {
        &self.drained
    }

    fn has(&self, name: &Label) -> bool {
        self.entries.keys().any(|(key, _)| key.name == *name)
    }

    /// A check's verdict.
    pub fn set_health(&mut self, key: &Key, healthy: bool) {
        let health = if healthy {
            Health::Healthy
        } else {
            Health::Unhealthy
        };
        for ((held, _), entry) in &mut self.entries {
            if held == key && entry.registered.check.is_some() {
                entry.health = health;
            }
        }
    }

    /// What is to be checked, where, on the node that has `block`.
    #[must_use]
    pub fn targets(&self, block: &Block) -> Vec<(Key, Target)> {
        let node = IpAddr::V4(block.node_v4());
        self.carried(block)
            .filter_map(|entry| {
                let check = entry.registered.check.clone()?;
                let key = entry.registered.key.clone();
                let address =
                    SocketAddr::new(entry.registered.address.unwrap_or(node), key.port.get());
                let target = Target {
                    address,
                    check,
                    eager: false,
                };
                Some((key, target))
            })
            .collect()
    }

    /// What goes to disk.
    #[must_use]
    pub fn stored(&self) -> Stored {
        let services = self
            .entries
            .values()
            .filter(|e| e.source == Source::Cli)
            .map(|e| e.registered.clone())
            .collect();
        Stored {
            services,
            drained: self.drained.clone(),
        }
    }

    /// How many instances there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn carried<'a>(&'a self, block: &'a Block) -> impl Iterator<Item = &'a Entry> {
        let entries = self.entries.values();
        entries.filter(|entry| entry.registered.uncarried(block).is_none())
    }

    /// Services that were registered with an address to which nothing carries packets: a configuration may be older than the
    /// node's block. They are not published.
    #[must_use]
    pub fn problems(&self, block: &Block) -> Vec<Problem> {
        let entries = self.entries.values();
        let uncarried =
            entries.filter_map(|entry| Some((entry, entry.registered.uncarried(block)?)));
        uncarried
            .map(|(entry, address)| {
                let name = &entry.registered.key.name;
                Problem {
                    what: format!("the service {name} on {address} is not answered"),
                    why: format!(
                        "nothing carries packets to {address}: this node has {} and {} of the mesh",
                        block.v4, block.v6
                    ),
                    fix: match entry.source {
                        Source::Config => format!(
                            "take `address` out of the [[service]] {name} in meshd.toml, and have the program listen on {}",
                            block.node_v4()
                        ),
                        Source::Cli | Source::Docker => format!(
                            "have the program listen on {}; then `meshctl service remove {name}`, and add it without --address",
                            block.node_v4()
                        ),
                    },
                }
            })
            .collect()
    }

    /// The records that say all this, by id, without a version. `node_name` names the instances, which are reached at
    /// `addresses`, of `block`, unless they were registered with one.
    #[must_use]
    pub fn records(
        &self,
        node: &PublicKey,
        node_name: &Label,
        addresses: &[IpAddr],
        block: &Block,
    ) -> BTreeMap<String, Service> {
        let mut records = BTreeMap::new();
        for entry in self.carried(block) {
            let key = &entry.registered.key;
            let id = Service::id_of(node, None, &key.name);
            let drained = self.drained.contains(&key.name.clone().into());
            let instance = Instance {
                id: instance_label(node_name, key),
                addresses: entry
                    .registered
                    .address
                    .map_or_else(|| addresses.to_vec(), |address| vec![address]),
                ports: vec![Port {
                    number: key.port,
                    protocol: key.protocol,
                    name: None,
                }],
                health: if drained {
                    Health::Draining
                } else {
                    entry.health
                },
                weight: entry.registered.weight,
                priority: entry.registered.priority,
                source: entry.source,
            };
            let service = records.entry(id.clone()).or_insert_with(|| Service {
                id,
                version: 0,
                node: *node,
                name: key.name.clone(),
                project: None,
                service_address: None,
                instances: Vec::new(),
            });
            // One instance, if the configuration and the command line both have it.
            if !service.instances.iter().any(|i| i.id == instance.id) {
                service.instances.push(instance);
            }
        }
        records
    }
}

/// `web-1-80`, or `web-1-53-udp`.
fn instance_label(node: &Label, key: &Key) -> Label {
    let labelled = node.with_suffix(&key.port.to_string());
    match key.protocol {
        Protocol::Tcp => labelled,
        Protocol::Udp => labelled.with_suffix("udp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::CheckProbe;

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn registered(name: &str, port: u16, check: bool) -> Registered {
        Registered {
            key: Key {
                name: label(name),
                port: port.try_into().expect("not zero"),
                protocol: Protocol::Tcp,
            },
            address: None,
            check: check.then(|| Check::new(CheckProbe::Tcp)),
            weight: default_weight(),
            priority: 0,
        }
    }

    const NODE: PublicKey = PublicKey([1; 32]);

    fn block() -> Block {
        Block {
            v4: "10.210.1.0/24".parse().expect("a literal"),
            v6: "fd00:1:2:1::/64".parse().expect("a literal"),
        }
    }

    fn health(registry: &Registry, name: &str) -> Vec<(String, Health)> {
        let records = registry.records(
            &NODE,
            &label("n1"),
            &["10.210.1.1".parse().expect("a literal")],
            &block(),
        );
        let id = Service::id_of(&NODE, None, &label(name));
        records
            .get(&id)
            .map(|s| {
                s.instances
                    .iter()
                    .map(|i| (i.id.to_string(), i.health))
                    .collect()
            })
            .unwrap_or_default()
    }

    #[test]
    fn instances_of_one_name_are_one_record() {
        let mut registry = Registry::default();
        registry
            .add(registered("web", 80, false), &block())
            .expect("room");
        registry
            .add(registered("web", 81, true), &block())
            .expect("room");
        assert_eq!(
            health(&registry, "web"),
            [
                ("n1-80".into(), Health::Unknown),
                ("n1-81".into(), Health::Starting)
            ]
        );
        registry.set_health(&registered("web", 81, true).key, true);
        assert_eq!(health(&registry, "web")[1].1, Health::Healthy);
        registry
            .add(registered("web", 81, true), &block())
            .expect("the same again");
        assert_eq!(
            health(&registry, "web")[1].1,
            Health::Healthy,
            "nothing changed"
        );
    }

    #[test]
    fn drained_is_drained_whatever_the_check_says() {
        let mut registry = Registry::default();
        registry
            .add(registered("web", 80, true), &block())
            .expect("room");
        registry
            .set_drained(&label("web").into(), true, &BTreeSet::new())
            .expect("it is there");
        registry.set_health(&registered("web", 80, true).key, true);
        assert_eq!(health(&registry, "web")[0].1, Health::Draining);
        registry
            .set_drained(&label("web").into(), false, &BTreeSet::new())
            .expect("it is there");
        assert_eq!(health(&registry, "web")[0].1, Health::Healthy);
        assert_eq!(
            registry.set_drained(&label("db").into(), true, &BTreeSet::new()),
            Err(RegistryError::Unknown(label("db").into()))
        );
        let contained = BTreeSet::from([label("db").into()]);
        assert_eq!(
            registry.set_drained(&label("db").into(), true, &contained),
            Ok(())
        );
        assert_eq!(
            registry.set_drained(&label("db").into(), false, &BTreeSet::new()),
            Ok(()),
            "its containers may be gone by then"
        );
    }

    #[test]
    fn what_the_configuration_has_is_changed_there() {
        let mut registry = Registry::new(vec![registered("web", 80, false)], Stored::default());
        assert_eq!(
            registry.add(registered("web", 80, true), &block()),
            Err(RegistryError::Configured(label("web")))
        );
        assert_eq!(
            registry.remove(&label("web")),
            Err(RegistryError::Configured(label("web")))
        );
        assert_eq!(
            registry.remove(&label("db")),
            Err(RegistryError::Unknown(label("db").into()))
        );
    }

    #[test]
    fn a_service_at_an_address_that_nothing_carries_is_refused_or_reported_and_never_published() {
        let at = |name: &str, address: &str| Registered {
            address: Some(address.parse().expect("a literal")),
            ..registered(name, 80, true)
        };
        let mut registry = Registry::default();
        for address in ["10.0.0.5", "10.210.2.1", "169.254.169.254", "2001:db8::5"] {
            let refused = registry.add(at("web", address), &block());
            assert!(
                matches!(refused, Err(RegistryError::NotCarried(..))),
                "{address}: {refused:?}"
            );
        }
        for (name, address) in [("a", "10.210.1.1"), ("b", "fd00:1:2:1::1")] {
            let carried = registry.add(at(name, address), &block());
            assert_eq!(carried, Ok(()), "{address}");
        }
        assert_eq!(registry.problems(&block()), []);
        // What stands in a file of an earlier version does not keep the node from its work.
        let stored = Stored {
            services: vec![at("old", "10.0.0.6"), registered("web", 80, false)],
            drained: BTreeSet::new(),
        };
        let registry = Registry::new(vec![at("postgres", "10.0.0.5")], stored);
        assert_eq!(health(&registry, "postgres"), []);
        assert_eq!(health(&registry, "old"), []);
        assert_eq!(health(&registry, "web").len(), 1);
        assert_eq!(registry.targets(&block()).len(), 0);
        let problems = registry.problems(&block());
        let whats: Vec<&str> = problems.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(
            whats,
            [
                "the service old on 10.0.0.6 is not answered",
                "the service postgres on 10.0.0.5 is not answered"
            ]
        );
        assert!(problems[1].fix.contains("meshd.toml"), "{problems:?}");
    }

    #[test]
    fn what_was_added_by_hand_survives_a_restart() {
        let mut registry = Registry::default();
        registry
            .add(registered("web", 80, true), &block())
            .expect("room");
        registry
            .set_drained(&label("web").into(), true, &BTreeSet::new())
            .expect("it is there");
        let again = Registry::new(vec![], registry.stored());
        assert_eq!(again.stored(), registry.stored());
        assert_eq!(health(&again, "web"), [("n1-80".into(), Health::Draining)]);
    }
}
