//! The registered services of this node: their instances, their health, and the records that publish them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::checks::{Outcome, Target};
use super::named::{MAX_NAMES, Named};
use super::outside::{Machine, Outside, OutsideMapping, Place, Refusal};
pub use super::registered::{InstanceKey, RegisteredInstance, Selection};
use crate::model::address::Block;
use crate::model::{HostName, Label, PublicKey, ServerAddress, ServiceName};
use crate::protocol::local::{Check, OwnInstance, Problem, ServiceChange};
use crate::records::kinds::{Health, Instance, Port, Protocol, Service, Source};

/// The maximum number of services of one node.
pub const MAX_SERVICES: usize = 10_000;

#[derive(Debug, Clone)]
struct Entry {
    registered: RegisteredInstance,
    source: Source,
    health: Health,
    /// Why it is unhealthy.
    why: Option<String>,
}

/// The services as they are stored on disk: instances added by command, and the drained services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredServices {
    /// The instances that were added with `meshctl service add`.
    #[serde(default)]
    pub services: Vec<RegisteredInstance>,
    /// The services that were drained with `meshctl service drain`.
    #[serde(default)]
    pub drained: BTreeSet<ServiceName>,
    /// The addresses of the host names of services outside the mesh, as they were looked up last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<HostName, Ipv4Addr>,
}

/// Why a service cannot be registered or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The instance is defined in the configuration.
    #[error("the service {0} on that port is in meshd.toml; change it there")]
    Configured(Label),
    /// There is no such service.
    #[error("this node has no service {0}; `meshctl service list` shows all")]
    Unknown(ServiceName),
    /// The service is there, and not with this port and protocol.
    #[error(
        "the service {0} is not on port {1} of this node; `meshctl service list` shows its ports"
    )]
    UnknownPort(Label, u16),
    /// This node cannot forward to the address.
    #[error(transparent)]
    Address(#[from] Refusal),
    /// The node already has the maximum number of services.
    #[error(
        "this node has {MAX_SERVICES} services, which is the maximum; remove one with `meshctl service remove`"
    )]
    Full,
}

/// The services of this node.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    entries: BTreeMap<(InstanceKey, Source), Entry>,
    drained: BTreeSet<ServiceName>,
    /// What decides where services outside the mesh can be.
    pub(crate) machine: Machine,
    /// The host names of services outside the mesh.
    pub(crate) named: Named,
    /// The instance addresses of services outside the mesh.
    outside: Outside,
}

impl Registry {
    /// Creates a registry with the services of the configuration and those stored on disk.
    #[must_use]
    pub fn new(configured: Vec<RegisteredInstance>, stored: StoredServices) -> Self {
        let mut registry = Self {
            drained: stored.drained,
            named: Named::new(stored.addresses),
            ..Self::default()
        };
        for (source, services) in [(Source::Config, configured), (Source::Cli, stored.services)] {
            for registered in services {
                registry.insert(registered, source);
            }
        }
        registry
    }

    fn insert(&mut self, registered: RegisteredInstance, source: Source) {
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
                why: None,
            },
        );
    }

    /// Adds or changes an instance by command, on the node that has `block`.
    ///
    /// # Errors
    /// The configuration defines it, this node cannot forward to its address, or there are too many.
    pub fn add(
        &mut self,
        registered: RegisteredInstance,
        block: &Block,
    ) -> Result<ServiceChange, RegistryError> {
        let own = (registered.key.clone(), Source::Cli);
        if let Some(address) = registered.address_outside_block(block) {
            self.target(address)?;
            // The instance may give up a name for this one.
            let others = self.entries.iter().filter(|(key, _)| **key != own);
            let others = others.filter_map(|(_, entry)| entry.registered.address.as_ref()?.name());
            if let Some(name) = address
                .name()
                .filter(|name| !self.named.has_room_beside(name, others))
            {
                return Err(Refusal::TooManyNames(name.clone(), MAX_NAMES).into());
            }
        }
        if self
            .entries
            .contains_key(&(registered.key.clone(), Source::Config))
        {
            return Err(RegistryError::Configured(registered.key.name));
        }
        let held = self.entries.get(&own);
        if held.is_none() && self.entries.len() >= MAX_SERVICES {
            return Err(RegistryError::Full);
        }
        let change = match held {
            None => ServiceChange::New,
            Some(held) if held.registered == registered => ServiceChange::Unchanged,
            Some(_) => ServiceChange::Changed,
        };
        if change != ServiceChange::Unchanged {
            self.insert(registered, Source::Cli);
            self.follow_names();
        }
        Ok(change)
    }

    /// Removes the instances that `selection` selects and that were added by command.
    ///
    /// # Errors
    /// There is no such instance, or only the configuration defines it.
    pub fn remove(&mut self, selection: &Selection) -> Result<(), RegistryError> {
        let before = self.entries.len();
        self.entries
            .retain(|(key, source), _| *source != Source::Cli || !selection.has(key));
        let name = &selection.name;
        if self.entries.len() == before {
            return Err(match selection.port {
                _ if self.entries.keys().any(|(key, _)| selection.has(key)) => {
                    RegistryError::Configured(name.clone())
                }
                Some(port) if self.has(name) => {
                    RegistryError::UnknownPort(name.clone(), port.get())
                }
                _ => RegistryError::Unknown(name.clone().into()),
            });
        }
        if !self.has(name) {
            self.drained.remove(&name.clone().into());
        }
        self.follow_names();
        Ok(())
    }

    /// Starts or stops draining `name`: DNS answers leave out the instances of a drained service.
    /// `container_services` are the services of containers, which are not registered here. Returns
    /// [`ServiceChange::Unchanged`] if the service was drained before: of two callers that drain it, one learns that it is not
    /// the first.
    ///
    /// # Errors
    /// There is no such service.
    pub fn set_drained(
        &mut self,
        name: &ServiceName,
        drained: bool,
        container_services: &BTreeSet<ServiceName>,
    ) -> Result<ServiceChange, RegistryError> {
        let registered = name.project.is_none() && self.has(&name.name);
        if !registered
            && !container_services.contains(name)
            && (drained || !self.drained.contains(name))
        {
            return Err(RegistryError::Unknown(name.clone()));
        }
        if !drained {
            self.drained.remove(name);
            return Ok(ServiceChange::Undrained);
        }
        Ok(if self.drained.insert(name.clone()) {
            ServiceChange::Drained
        } else {
            ServiceChange::Unchanged
        })
    }

    /// The drained services.
    #[must_use]
    pub fn drained(&self) -> &BTreeSet<ServiceName> {
        &self.drained
    }

    fn has(&self, name: &Label) -> bool {
        self.entries.keys().any(|(key, _)| key.name == *name)
    }

    /// The instances of `service`, with their health also while it is drained. `node_name` is part of their labels.
    pub fn own_instances(
        &self,
        node_name: &Label,
        service: &ServiceName,
    ) -> impl Iterator<Item = OwnInstance> {
        let entries = self.entries.values().filter(move |entry| {
            service.project.is_none() && entry.registered.key.name == service.name
        });
        each_once(entries).map(move |entry| OwnInstance {
            id: instance_label(node_name, &entry.registered.key),
            health: entry.health,
            check_ms: entry.registered.check.as_ref().map(Check::notices_within),
        })
    }

    /// Handles a verdict of a check.
    pub fn set_health(&mut self, key: &InstanceKey, outcome: &Outcome) {
        let health = if outcome.is_ok() {
            Health::Healthy
        } else {
            Health::Unhealthy
        };
        for ((held, _), entry) in &mut self.entries {
            if held == key && entry.registered.check.is_some() {
                entry.health = health;
                entry.why = outcome.clone().err();
            }
        }
    }

    /// Why an instance that is published, or was published until now, is unhealthy or withdrawn.
    #[must_use]
    pub fn why_unused(&self, service: &ServiceName, instance: &Instance) -> Option<String> {
        let port = instance.ports.first()?;
        let key = InstanceKey {
            name: service.name.clone(),
            port: port.number,
            protocol: port.protocol,
        };
        match self.entries.get(&(key, instance.source)) {
            Some(entry) => entry.why.clone(),
            None => Some(match instance.source {
                Source::Config => "it is not in meshd.toml any more".to_owned(),
                Source::Cli | Source::Docker => "removed with `meshctl service remove`".to_owned(),
            }),
        }
    }

    /// The checks to run on the node that has `block`.
    #[must_use]
    pub fn targets(&self, block: &Block) -> Vec<(InstanceKey, Target)> {
        let node = IpAddr::V4(block.node_v4());
        self.reachable(block)
            .filter_map(|entry| {
                let check = entry.registered.check.clone()?;
                let key = entry.registered.key.clone();
                let address = match entry.registered.address_outside_block(block) {
                    Some(outside) => IpAddr::V4(self.target(outside).ok()??),
                    None => {
                        let own = entry.registered.address.as_ref();
                        own.and_then(ServerAddress::ip).unwrap_or(node)
                    }
                };
                let target = Target {
                    address: SocketAddr::new(address, key.port.get()),
                    check,
                    eager: false,
                };
                Some((key, target))
            })
            .collect()
    }

    /// The services as they are stored on disk.
    #[must_use]
    pub fn stored(&self) -> StoredServices {
        let services = self
            .entries
            .values()
            .filter(|e| e.source == Source::Cli)
            .map(|e| e.registered.clone())
            .collect();
        StoredServices {
            services,
            drained: self.drained.clone(),
            addresses: self.named.addresses(),
        }
    }

    /// The number of instances, also those that are not published.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no instances.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where packets to services at `address`, which is outside the block of this node, are forwarded to. None if it is a name that has
    /// no address yet.
    fn target(&self, address: &ServerAddress) -> Result<Option<Ipv4Addr>, Refusal> {
        match address {
            ServerAddress::At(ip) => self.machine.check(*ip).map(Some),
            ServerAddress::Named(name) => {
                self.machine.check_name(name)?;
                let ip = self.named.address(name);
                ip.map(|ip| self.machine.check_answer(ip)).transpose()
            }
        }
    }

    /// Looks up the names of the services. Before the domain of the mesh is known, no name is looked up, since it may be one of the mesh.
    fn follow_names(&mut self) {
        if self.machine.domain.is_none() {
            return;
        }
        let addresses = self.entries.values().map(|entry| &entry.registered.address);
        let names = addresses.filter_map(|address| address.as_ref()?.name());
        let names = names.filter(|name| self.machine.check_name(name).is_ok());
        self.named.follow(names);
    }

    /// The entries with an address to which packets can be carried, each instance once.
    fn reachable<'a>(&'a self, block: &'a Block) -> impl Iterator<Item = &'a Entry> {
        each_once(self.entries.values().filter(move |entry| {
            let outside = entry.registered.address_outside_block(block);
            outside.is_none_or(|address| self.target(address).is_ok())
        }))
    }

    /// Sets the mesh and the addresses of this machine, from which it follows where services outside the mesh may be. Returns whether
    /// anything changed.
    pub fn set_machine(&mut self, machine: Machine) -> bool {
        let is_changed = self.machine != machine;
        self.machine = machine;
        if is_changed {
            self.follow_names();
        }
        is_changed
    }

    /// Whether there are services outside the mesh.
    #[must_use]
    pub fn has_outside(&self, block: &Block) -> bool {
        let mut entries = self.entries.values();
        entries.any(|entry| entry.registered.address_outside_block(block).is_some())
    }

    /// Assigns instance addresses of `pool` to the services outside the mesh, and returns what the firewall is to map. The addresses in
    /// `taken` belong to containers.
    pub fn map_outside(
        &mut self,
        block: &Block,
        pool: Ipv4Net,
        taken: &BTreeSet<Ipv4Addr>,
    ) -> BTreeMap<Ipv4Addr, OutsideMapping> {
        let mut wanted: BTreeMap<Place, Option<Ipv4Addr>> = BTreeMap::new();
        let mut mappings: BTreeMap<Place, OutsideMapping> = BTreeMap::new();
        for entry in self.entries.values() {
            let Some(address) = entry.registered.address_outside_block(block) else {
                continue;
            };
            let Ok(target) = self.target(address) else {
                continue;
            };
            let Some(place) = Place::of(address, target) else {
                continue;
            };
            wanted.insert(place.clone(), target);
            let Some(target) = target else {
                continue;
            };
            let key = &entry.registered.key;
            let mapping = mappings.entry(place).or_insert_with(|| OutsideMapping {
                target,
                names: key.name.to_string(),
                ports: BTreeSet::new(),
            });
            mapping.ports.insert((key.protocol, key.port));
        }
        self.outside.assign(&wanted, pool, taken);
        let mapped = mappings.into_iter().filter_map(|(place, mapping)| {
            let instance = self.outside.instance(&place)?;
            let is_mapped = self.outside.targets().contains_key(&instance);
            is_mapped.then_some((instance, mapping))
        });
        mapped.collect()
    }

    /// The instance addresses of services outside the mesh.
    #[must_use]
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Sets which instance addresses the kernel maps, each with the address to which it leads.
    pub fn set_mapped(&mut self, mapped: BTreeMap<Ipv4Addr, Ipv4Addr>) {
        self.outside.set_applied(mapped);
    }

    /// The addresses at which an instance is reached. None if the kernel does not map its instance address yet.
    fn addresses_of(
        &self,
        registered: &RegisteredInstance,
        node: &[IpAddr],
        block: &Block,
    ) -> Option<Vec<IpAddr>> {
        let address = match &registered.address {
            None => return Some(node.to_vec()),
            Some(ServerAddress::At(address)) if block.contains(*address) => *address,
            Some(ServerAddress::At(address)) => {
                let target = self.machine.check(*address).ok()?;
                let place = Place::At(target);
                let reached = self.outside.reached_at(&place, [target].into_iter());
                reached?.into()
            }
            // While the kernel still forwards to the address before, the service stays published.
            Some(ServerAddress::Named(name)) => {
                let place = Place::Named(name.clone());
                let reached = self.outside.reached_at(&place, self.named.targets(name));
                reached?.into()
            }
        };
        Some(vec![address])
    }

    /// A problem for each service at an address to which this node cannot forward: the configuration may be older than the block, or
    /// the machine may have got the address since. Such services are not published. The same for each name that is not answered.
    #[must_use]
    pub fn problems(&self, block: &Block) -> Vec<Problem> {
        let mut problems = Vec::new();
        for entry in self.entries.values() {
            let Some(address) = entry.registered.address_outside_block(block) else {
                continue;
            };
            let name = &entry.registered.key.name;
            if let Some(why) = why_unanswered(self, address) {
                problems.push(Problem {
                    what: format!("the service {name} on {address} is not answered"),
                    why,
                    fix: remedy(entry, block),
                });
            } else if let Some(host) = address.name()
                && let Some(why) = self.named.problem(host)
            {
                let what = match self.named.address(host) {
                    Some(at) => format!(
                        "the address of the service {name} may be wrong: {host} was {at} when it was answered last"
                    ),
                    None => format!("the service {name} on {host} is not answered"),
                };
                let fix = format!(
                    "run `meshctl resolve {host}` on this node, and correct the name, its records, or the upstreams of this node"
                );
                problems.push(Problem { what, why, fix });
            }
        }
        problems
    }

    /// The records of all services by id, without a version. `node_name` is part of the instances' names. Instances are
    /// reached at `addresses`, of `block`, unless they have an address of their own. Services outside the mesh are reached at their
    /// instance addresses, once the kernel maps these.
    #[must_use]
    pub fn records(
        &self,
        node: &PublicKey,
        node_name: &Label,
        addresses: &[IpAddr],
        block: &Block,
    ) -> BTreeMap<String, Service> {
        let mut records = BTreeMap::new();
        for entry in self.reachable(block) {
            let Some(reached) = self.addresses_of(&entry.registered, addresses, block) else {
                continue;
            };
            let key = &entry.registered.key;
            let id = Service::id_of(node, None, &key.name);
            let drained = self.drained.contains(&key.name.clone().into());
            let instance = Instance {
                id: instance_label(node_name, key),
                addresses: reached,
                ports: vec![Port {
                    number: key.port,
                    protocol: key.protocol,
                    name: entry.registered.port_name.clone(),
                }],
                health: if drained {
                    Health::Draining
                } else {
                    entry.health
                },
                weight: entry.registered.weight,
                priority: entry.registered.priority,
                source: entry.source,
                allow: entry.registered.allow.clone(),
                public: entry.registered.public.clone(),
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
            service.instances.push(instance);
        }
        records
    }
}

/// Leaves out the first of two `entries` for one instance, which was added by command before it was configured. Both lie next to each
/// other.
fn each_once<'a>(entries: impl Iterator<Item = &'a Entry>) -> impl Iterator<Item = &'a Entry> {
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        let mut entry = entries.next()?;
        while let Some(configured) =
            entries.next_if(|next| next.registered.key == entry.registered.key)
        {
            entry = configured;
        }
        Some(entry)
    })
}

/// Why services at `address`, which is outside the mesh, are not answered, whatever its name is answered with.
fn why_unanswered(registry: &Registry, address: &ServerAddress) -> Option<String> {
    let target = match registry.target(address) {
        Ok(target) => target,
        Err(refusal) => return Some(refusal.to_string()),
    };
    if let Some(name) = address
        .name()
        .filter(|name| !registry.named.has_room_for(name))
    {
        return Some(Refusal::TooManyNames(name.clone(), MAX_NAMES).to_string());
    }
    let place = Place::of(address, target)?;
    if registry.outside.is_full_for(&place) {
        let why = "all instance addresses of this node that are for services outside are in use";
        return Some(why.to_owned());
    }
    let other = registry.outside.mapped_instead(&place)?;
    Some(format!(
        "{address} has the same address as {other} now, and this node forwards to an address for one of them only"
    ))
}

/// What to do about a service at an address to which this node cannot forward.
fn remedy(entry: &Entry, block: &Block) -> String {
    let (name, own) = (&entry.registered.key.name, block.node_v4());
    match entry.source {
        Source::Config => format!(
            "correct `address` of the [[service]] {name} in meshd.toml, or remove it and let the program listen on {own}"
        ),
        Source::Cli | Source::Docker => format!(
            "run `meshctl service remove {name}`, and add it again with the right --address, or without one if the program listens on {own}"
        ),
    }
}

/// `web-1-80`, or `web-1-53-udp`.
fn instance_label(node: &Label, key: &InstanceKey) -> Label {
    match key.protocol {
        Protocol::Tcp => node.with_suffix(&key.port.to_string()),
        Protocol::Udp => node.with_suffix(&format!("{}-udp", key.port)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::protocol::local::CheckProbe;
    use crate::records::kinds::default_weight;
    use crate::services::named::Answered;
    use crate::testbed::records as build;

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    /// Lets the registry know the mesh, and that this machine has the address 10.0.0.9.
    fn set_machine(registry: &mut Registry) {
        let own = "10.0.0.9".parse().expect("a literal");
        registry.set_machine(Machine {
            mesh: Some(build::plan()),
            domain: Some(label("mesh")),
            own: BTreeSet::from([own]),
            containers: BTreeSet::new(),
        });
    }

    fn machine() -> Registry {
        let mut registry = Registry::default();
        set_machine(&mut registry);
        registry
    }

    fn registered(name: &str, port: u16, check: bool) -> RegisteredInstance {
        RegisteredInstance {
            key: InstanceKey {
                name: label(name),
                port: port.try_into().expect("not zero"),
                protocol: Protocol::Tcp,
            },
            address: None,
            check: check.then(|| Check::new(CheckProbe::Tcp)),
            weight: default_weight(),
            priority: 0,
            port_name: None,
            allow: vec![],
            public: vec![],
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

    /// The addresses of each instance that is published.
    fn published(registry: &Registry) -> Vec<Vec<IpAddr>> {
        let own = [block().node_v4().into()];
        let records = registry.records(&NODE, &label("n1"), &own, &block());
        let instances = records.into_values().flat_map(|service| service.instances);
        instances.map(|instance| instance.addresses).collect()
    }

    /// The addresses that are checked.
    fn checked(registry: &Registry) -> Vec<String> {
        let targets = registry.targets(&block());
        let addresses = targets.iter().map(|(_, target)| target.address.to_string());
        addresses.collect()
    }

    #[test]
    fn the_health_of_a_drained_service_is_still_known() {
        let mut registry = Registry::default();
        let web = registered("web", 80, true);
        registry.add(web.clone(), &block()).expect("room");
        let service = ServiceName::from(label("web"));
        registry
            .set_drained(&service, true, &BTreeSet::new())
            .expect("it is registered");
        registry.set_health(&web.key, &Ok(()));
        assert_eq!(
            health(&registry, "web"),
            [("n1-80".into(), Health::Draining)]
        );
        let own: Vec<OwnInstance> = registry.own_instances(&label("n1"), &service).collect();
        assert_eq!(
            own,
            [OwnInstance {
                id: label("n1-80"),
                health: Health::Healthy,
                // Two tries fail in a row: each after 5.5 seconds at most, and each takes 2 seconds.
                check_ms: Some(15_000),
            }]
        );
    }

    #[test]
    fn each_port_has_a_label_of_its_own_whatever_the_length_of_the_nodes_name() {
        let node = label(&"n".repeat(63));
        let of = |port: u16, protocol| {
            let key = InstanceKey {
                protocol,
                ..registered("web", port, false).key
            };
            instance_label(&node, &key)
        };
        let both = [Protocol::Tcp, Protocol::Udp];
        let labels: BTreeSet<Label> = (65_530..=65_535)
            .flat_map(|port| both.map(|protocol| of(port, protocol)))
            .collect();
        assert_eq!(labels.len(), 12, "{labels:?}");
        let web = InstanceKey {
            protocol: Protocol::Udp,
            ..registered("web", 53, false).key
        };
        assert_eq!(instance_label(&label("n1"), &web), label("n1-53-udp"));
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
        registry.set_health(&registered("web", 81, true).key, &Ok(()));
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
    fn one_port_of_a_service_is_removed_and_the_others_stay() {
        let mut registry = Registry::default();
        let udp = |registered: RegisteredInstance| RegisteredInstance {
            key: InstanceKey {
                protocol: Protocol::Udp,
                ..registered.key
            },
            ..registered
        };
        let web = |port| registered("web", port, false);
        for added in [web(80), web(81), udp(web(80))] {
            assert_eq!(registry.add(added, &block()), Ok(ServiceChange::New));
        }
        let only = |port: u16, protocol| Selection {
            name: label("web"),
            port: port.try_into().ok(),
            protocol,
        };
        assert_eq!(
            registry.remove(&only(82, None)),
            Err(RegistryError::UnknownPort(label("web"), 82))
        );
        assert_eq!(registry.remove(&only(80, Some(Protocol::Udp))), Ok(()));
        let ids = |registry: &Registry| -> Vec<String> {
            let found = health(registry, "web").into_iter();
            found.map(|(id, _)| id).collect()
        };
        assert_eq!(ids(&registry), ["n1-80", "n1-81"]);
        assert_eq!(registry.remove(&only(80, None)), Ok(()));
        assert_eq!(ids(&registry), ["n1-81"]);
    }

    #[test]
    fn an_added_service_is_new_or_changed_or_as_it_was() {
        let mut registry = Registry::default();
        let plain = registered("web", 80, false);
        let named = RegisteredInstance {
            port_name: Some(label("http")),
            ..plain.clone()
        };
        let mut add = |registered: &RegisteredInstance| registry.add(registered.clone(), &block());
        assert_eq!(add(&plain), Ok(ServiceChange::New));
        assert_eq!(add(&plain), Ok(ServiceChange::Unchanged));
        assert_eq!(add(&named), Ok(ServiceChange::Changed));
        let records = registry.records(&NODE, &label("n1"), &[], &block());
        let mut ports = records
            .values()
            .flat_map(|s| &s.instances)
            .flat_map(|i| &i.ports);
        assert_eq!(
            ports.next().and_then(|port| port.name.clone()),
            Some(label("http"))
        );
    }

    #[test]
    fn a_drained_service_is_drained_whatever_its_check_finds() {
        let mut registry = Registry::default();
        registry
            .add(registered("web", 80, true), &block())
            .expect("room");
        registry
            .set_drained(&label("web").into(), true, &BTreeSet::new())
            .expect("it is there");
        registry.set_health(&registered("web", 80, true).key, &Ok(()));
        assert_eq!(health(&registry, "web")[0].1, Health::Draining);
        registry
            .set_drained(&label("web").into(), false, &BTreeSet::new())
            .expect("it is there");
        assert_eq!(health(&registry, "web")[0].1, Health::Healthy);
        assert_eq!(
            registry.set_drained(&label("db").into(), true, &BTreeSet::new()),
            Err(RegistryError::Unknown(label("db").into()))
        );
        let container_services = BTreeSet::from([label("db").into()]);
        assert_eq!(
            registry.set_drained(&label("db").into(), true, &container_services),
            Ok(ServiceChange::Drained)
        );
        assert_eq!(
            registry.set_drained(&label("db").into(), false, &BTreeSet::new()),
            Ok(ServiceChange::Undrained),
            "its containers may be gone by then"
        );
    }

    #[test]
    fn who_drains_a_drained_service_learns_that_another_one_was_first() {
        let web = ServiceName::from(label("web"));
        let container_services = BTreeSet::from([web.clone()]);
        let mut registry = Registry::default();
        let mut drain = || registry.set_drained(&web, true, &container_services);
        assert_eq!(drain(), Ok(ServiceChange::Drained));
        assert_eq!(drain(), Ok(ServiceChange::Unchanged));
    }

    #[test]
    fn an_instance_that_is_added_and_configured_is_checked_and_published_once() {
        let stored = StoredServices {
            services: vec![registered("web", 80, true)],
            ..StoredServices::default()
        };
        let configured = RegisteredInstance {
            weight: 7,
            ..registered("web", 80, true)
        };
        let registry = Registry::new(vec![configured, registered("web", 81, true)], stored);
        assert_eq!(registry.targets(&block()).len(), 2);
        let ids: Vec<String> = (health(&registry, "web").into_iter())
            .map(|(id, _)| id)
            .collect();
        assert_eq!(ids, ["n1-80", "n1-81"]);
        let service = ServiceName::from(label("web"));
        assert_eq!(registry.own_instances(&label("n1"), &service).count(), 2);
        let records = registry.records(&NODE, &label("n1"), &[], &block());
        let instances = records.values().flat_map(|service| &service.instances);
        let published: Vec<(Source, u16)> = instances.map(|i| (i.source, i.weight)).collect();
        let configured = |weight| (Source::Config, weight);
        assert_eq!(published, [configured(7), configured(default_weight())]);
    }

    #[test]
    fn a_full_registry_takes_no_other_service_and_changes_those_it_has() {
        let mut registry = Registry::default();
        for n in 0..MAX_SERVICES {
            let added = registry.add(registered(&format!("s{n}"), 80, false), &block());
            assert_eq!(added, Ok(ServiceChange::New));
        }
        let mut add = |name: &str| registry.add(registered(name, 80, true), &block());
        assert_eq!(add("another"), Err(RegistryError::Full));
        assert_eq!(add("s7"), Ok(ServiceChange::Changed));
    }

    #[test]
    fn an_instance_moves_to_another_name_although_no_other_name_can_be_added() {
        let at = |service: &str, host: &str| RegisteredInstance {
            address: Some(format!("{host}.example.net").parse().expect("a literal")),
            ..registered(service, 80, true)
        };
        let mut registry = machine();
        for n in 0..MAX_NAMES {
            let added = registry.add(at(&format!("s{n}"), &format!("h{n}")), &block());
            assert_eq!(added, Ok(ServiceChange::New));
        }
        let refused = registry.add(at("another", "other"), &block());
        let host: HostName = "other.example.net".parse().expect("a literal");
        let full = RegistryError::from(Refusal::TooManyNames(host.clone(), MAX_NAMES));
        assert_eq!(refused, Err(full.clone()));
        // Two instances at one name: it stays in use when one of them moves.
        let shared = registry.add(at("another", "h7"), &block());
        assert_eq!(shared, Ok(ServiceChange::New));
        assert_eq!(registry.add(at("s7", "other"), &block()), Err(full));
        let moved = registry.add(at("s8", "other"), &block());
        assert_eq!(moved, Ok(ServiceChange::Changed));
        assert!(registry.named.poll(Instant::now()).contains(&host));
    }

    #[test]
    fn a_configured_service_cannot_be_changed_by_command() {
        let mut registry = Registry::new(
            vec![registered("web", 80, false)],
            StoredServices::default(),
        );
        assert_eq!(
            registry.add(registered("web", 80, true), &block()),
            Err(RegistryError::Configured(label("web")))
        );
        assert_eq!(
            registry.remove(&label("web").into()),
            Err(RegistryError::Configured(label("web")))
        );
        assert_eq!(
            registry.remove(&label("db").into()),
            Err(RegistryError::Unknown(label("db").into()))
        );
    }

    #[test]
    fn a_service_at_an_address_to_which_nothing_is_forwarded_is_refused_or_reported_and_never_published()
     {
        let at = |name: &str, address: &str| RegisteredInstance {
            address: Some(address.parse().expect("a literal")),
            ..registered(name, 80, true)
        };
        let mut registry = machine();
        for address in ["10.0.0.9", "10.210.2.1", "169.254.169.254", "2001:db8::5"] {
            let refused = registry.add(at("web", address), &block());
            assert!(
                matches!(refused, Err(RegistryError::Address(..))),
                "{address}: {refused:?}"
            );
        }
        for (name, address) in [("a", "10.210.1.1"), ("b", "fd00:1:2:1::1")] {
            let added = registry.add(at(name, address), &block());
            assert_eq!(added, Ok(ServiceChange::New), "{address}");
        }
        assert_eq!(registry.problems(&block()), []);
        // A file of an earlier version with such a service does not prevent the node from starting.
        let stored = StoredServices {
            services: vec![at("old", "10.210.9.1"), registered("web", 80, false)],
            ..StoredServices::default()
        };
        let mut registry = Registry::new(vec![at("postgres", "10.0.0.9")], stored);
        set_machine(&mut registry);
        assert_eq!(health(&registry, "postgres"), []);
        assert_eq!(health(&registry, "old"), []);
        assert_eq!(health(&registry, "web").len(), 1);
        assert_eq!(registry.targets(&block()).len(), 0);
        let problems = registry.problems(&block());
        let whats: Vec<&str> = problems.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(
            whats,
            [
                "the service old on 10.210.9.1 is not answered",
                "the service postgres on 10.0.0.9 is not answered"
            ]
        );
        assert!(problems[1].fix.contains("meshd.toml"), "{problems:?}");
    }

    #[test]
    fn a_service_outside_is_checked_where_it_is_and_published_at_its_instance_address_once_that_is_mapped()
     {
        let at = |name: &str, port: u16| RegisteredInstance {
            address: Some("10.0.0.5".parse().expect("a literal")),
            ..registered(name, port, true)
        };
        let mut registry = machine();
        for added in [at("postgres", 5432), at("pgbouncer", 6432)] {
            assert_eq!(registry.add(added, &block()), Ok(ServiceChange::New));
        }
        assert_eq!(checked(&registry), ["10.0.0.5:6432", "10.0.0.5:5432"]);
        let mapped = registry.map_outside(&block(), block().v4, &BTreeSet::new());
        let (instance, mapping) = mapped.first_key_value().expect("a mapping");
        assert_eq!(mapped.len(), 1, "services at one address share one");
        let ports: Vec<u16> = mapping.ports.iter().map(|(_, port)| port.get()).collect();
        assert_eq!(ports, [5432, 6432]);
        assert!(published(&registry).is_empty(), "nothing is mapped yet");
        registry.set_mapped(BTreeMap::from([(*instance, mapping.target)]));
        let expected: Vec<IpAddr> = vec![(*instance).into()];
        assert_eq!(published(&registry), [expected.clone(), expected]);
        assert_eq!(registry.problems(&block()), []);
        registry.set_mapped(BTreeMap::new());
        assert!(published(&registry).is_empty());
    }

    #[test]
    fn a_service_at_a_name_follows_the_address_of_the_name_and_keeps_its_instance_address() {
        let at = |address: &str| RegisteredInstance {
            address: Some(address.parse().expect("a literal")),
            ..registered("postgres", 5432, true)
        };
        let mut registry = machine();
        let refused = registry.add(at("db.svc.mesh"), &block());
        assert!(
            matches!(refused, Err(RegistryError::Address(Refusal::NameOfMesh(_)))),
            "{refused:?}"
        );
        let named = at("db.example.net");
        assert_eq!(
            registry.add(named.clone(), &block()),
            Ok(ServiceChange::New)
        );
        let host: HostName = "db.example.net".parse().expect("a literal");
        let answer = |registry: &mut Registry, address: &str, now: Instant| {
            assert_eq!(registry.named.poll(now), std::slice::from_ref(&host));
            let answered = Answered {
                addresses: BTreeSet::from([address.parse().expect("a literal")]),
                ttl: Duration::ZERO,
            };
            let machine = &registry.machine;
            registry
                .named
                .handle_answer(&host, &answered, machine, now)
                .expect("another address");
            let mapped = registry.map_outside(&block(), block().v4, &BTreeSet::new());
            let mapped = mapped.iter().map(|(instance, to)| (*instance, to.target));
            mapped.collect::<BTreeMap<Ipv4Addr, Ipv4Addr>>()
        };
        // Without an address it is neither checked nor published.
        let mapped = registry.map_outside(&block(), block().v4, &BTreeSet::new());
        assert!(mapped.is_empty() && checked(&registry).is_empty());
        let now = Instant::now();
        let first = answer(&mut registry, "10.0.0.5", now);
        let instances: Vec<IpAddr> = first.keys().map(|at| IpAddr::V4(*at)).collect();
        assert_eq!(instances.len(), 1);
        assert_eq!(checked(&registry), ["10.0.0.5:5432"]);
        assert!(published(&registry).is_empty(), "nothing is mapped yet");
        registry.set_mapped(first.clone());
        assert_eq!(published(&registry), std::slice::from_ref(&instances));

        // It stays published while the kernel still forwards to the address before.
        let second = answer(&mut registry, "10.0.0.6", now + Duration::from_secs(5));
        assert!(first.keys().eq(second.keys()));
        assert_eq!(checked(&registry), ["10.0.0.6:5432"]);
        assert_eq!(published(&registry), std::slice::from_ref(&instances));
        registry.set_mapped(second);
        assert_eq!(published(&registry), [instances]);
        assert_eq!(registry.problems(&block()), []);

        // The address is known after a restart, before the name is answered.
        let mut again = Registry::new(vec![named], registry.stored());
        set_machine(&mut again);
        assert_eq!(checked(&again), ["10.0.0.6:5432"]);
    }

    #[test]
    fn a_service_added_by_command_survives_a_restart() {
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
