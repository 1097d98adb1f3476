//! The services and containers of this node, their health checks, and the firewall that leads to the containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;

use super::change_times::ChangeTimes;
use super::config::Config;
use super::docker::{Docker, Probe};
use super::host::{Interface, Ipv6};
use super::state::Identity;
use crate::containers::{AppliedMappings, ContainerId, Mapping, Offer, Report, network};
use crate::firewall::{Firewall, FirewallState, LocalPolicy, Mapped, Native, Outside, StateV6};
use crate::model::address::Block;
use crate::model::{MeshAddresses, ServiceName};
use crate::policy::Table;
use crate::protocol::local::Problem;
use crate::records::Ledger;
use crate::records::kinds::{Instance, Mesh, Service, Source};
use crate::records::service_address::ServiceAddresses;
use crate::services::checks::Outcome;
use crate::services::outside::Machine;
use crate::services::registry::{InstanceKey, Registry};
use crate::services::{Checker, Reservations};

pub(super) mod block;

/// The services and containers of this node.
pub(super) struct Workloads {
    config: Arc<Config>,
    /// The services of the configuration and of the command line.
    pub(super) registry: Registry,
    checker: Checker<InstanceKey>,
    /// Which rollouts may change the services.
    pub(super) reservations: Reservations,
    /// None if the configuration names no container engine.
    pub(super) docker: Option<Docker>,
    pub(super) firewall: Firewall,
    /// The bridges of the engine's networks, with their subnets, without those that other machines are on.
    bridges: BTreeMap<String, Vec<Ipv4Net>>,
    /// The instances of containers that [`Workloads::wanted_services`] returned last. None before the inventory was known.
    offered: Option<BTreeMap<ServiceName, Offer>>,
    /// The problem while other machines are on bridges of the engine's networks.
    external: Option<Problem>,
    /// The addresses of this node's guests.
    guests: BTreeSet<Ipv4Addr>,
    /// How long the parts of changes take.
    pub(super) times: ChangeTimes,
}

impl Workloads {
    /// Verdicts of the health checks go to `verdicts`.
    pub(super) fn new(
        config: Arc<Config>,
        registry: Registry,
        docker: Option<Docker>,
        firewall: Firewall,
        verdicts: mpsc::Sender<(InstanceKey, Outcome)>,
    ) -> Self {
        Self {
            config,
            registry,
            checker: Checker::new(verdicts),
            reservations: Reservations::default(),
            docker,
            firewall,
            bridges: BTreeMap::new(),
            offered: None,
            external: None,
            guests: BTreeSet::new(),
            times: ChangeTimes::default(),
        }
    }

    /// Follows the addresses of this machine and of its containers, from which it follows where services outside the mesh may be.
    pub(super) fn set_machine(&mut self, mesh: &Mesh, block: &Block, interfaces: &[Interface]) {
        let own = interfaces.iter().map(|interface| interface.address);
        let own = own.filter(|address| !mesh.addresses.contains(*address));
        let machine = Machine {
            mesh: Some(mesh.addresses),
            domain: Some(mesh.domain.clone()),
            own: own.collect(),
            containers: self.bridges.values().flatten().copied().collect(),
        };
        if self.registry.set_machine(machine) && self.registry.has_outside(block) {
            self.set_checks(block);
        }
    }

    /// Whether a change of services concerns the firewall, because there are services outside the mesh, or were.
    pub(super) fn concerns_firewall(&self, block: &Block) -> bool {
        self.registry.has_outside(block) || !self.registry.outside().instances().is_empty()
    }

    /// Checks the health of the services that are registered now. `block` is the block of this node.
    pub(super) fn set_checks(&mut self, block: &Block) {
        self.checker.set(self.registry.targets(block));
    }

    /// Reports of the engine. Returns whether this node follows an engine.
    pub(super) fn handle_engine(&mut self, reports: Vec<Report>) -> bool {
        let Some(docker) = &mut self.docker else {
            return false;
        };
        self.times.handle_reports(&reports, Instant::now());
        docker.handle_reports(reports);
        true
    }

    /// Verdicts of the probes of containers. Returns whether this node follows an engine.
    pub(super) fn handle_probes(&mut self, verdicts: Vec<(Probe, Outcome)>) -> bool {
        let Some(docker) = &mut self.docker else {
            return false;
        };
        let main = verdicts.iter().filter(|(probe, _)| !probe.is_v6);
        let main = main.map(|(probe, outcome)| (probe.id.clone(), outcome.clone()));
        let main: Vec<(ContainerId, Outcome)> = main.collect();
        self.times.handle_probes(&main, Instant::now());
        docker.handle_probes(verdicts);
        true
    }

    /// Time has passed. Returns whether that changed anything.
    pub(super) fn handle_time(&mut self, now: Instant) -> bool {
        self.docker.as_mut().is_some_and(|d| d.handle_time(now))
    }

    /// The bridges whose containers belong to the mesh, with their subnets, as of [`Workloads::follow_bridges`].
    pub(super) fn bridges(&self) -> &BTreeMap<String, Vec<Ipv4Net>> {
        &self.bridges
    }

    /// All bridges of the engine's networks.
    pub(super) fn engine_bridges(&self) -> BTreeSet<String> {
        let bridges = self.docker.as_ref().map(Docker::bridges);
        bridges.unwrap_or_default().into_keys().collect()
    }

    /// Notes which bridges the engine's networks have. Bridges in `external` are left out, since other machines are on them, and
    /// are a problem. Returns whether the bridges changed.
    pub(super) fn follow_bridges(&mut self, external: &BTreeSet<String>) -> bool {
        // Without a report of an engine there are no container networks: the name of a bridge opens nothing.
        let mut bridges = self
            .docker
            .as_ref()
            .map(Docker::bridges)
            .unwrap_or_default();
        let left_out = bridges.extract_if(.., |name, _| external.contains(name));
        let left_out: Vec<String> = left_out.map(|(name, _)| name).collect();
        self.external = (!left_out.is_empty()).then(|| Problem {
            what: format!(
                "containers on {} have no way into the mesh, and no names of it",
                left_out.join(", ")
            ),
            why: "an interface that leads out of this machine is a port of the same bridge, so other machines would have them too".into(),
            fix: "give these containers a network with a bridge of its own".into(),
        });
        let is_changed = bridges != self.bridges;
        self.bridges = bridges;
        is_changed
    }

    /// Hands the wanted state of the kernel to the firewall. `block` is the block of this node, `ipv6` is whether its device has IPv6,
    /// `service_addresses` are the usable instance addresses by service address, and `routes` the networks to which this node routes.
    pub(super) fn apply_firewall(
        &mut self,
        mesh: &MeshAddresses,
        block: &Block,
        ipv6: Ipv6,
        (service_addresses, routes): (BTreeMap<Ipv4Addr, Vec<Ipv4Addr>>, &BTreeSet<Ipv4Net>),
        policy: &Table,
    ) {
        let outside = block::map_outside(self, block);
        let docker = self.docker.as_ref();
        // Rules from before a restart of meshd are right until it is known what runs.
        if docker.is_some_and(|docker| !docker.inventory_known()) {
            return;
        }
        let mut mappings = mapped(docker.map(Docker::mappings).unwrap_or_default());
        let instances = outside.keys().copied().collect();
        mappings.extend(outside);
        // A kernel without IPv6 has nothing of it to guard.
        let v6 = (ipv6 != Ipv6::Absent).then(|| self.state_v6(mesh, block, ipv6));
        let of_v4 = mappings.keys().map(|address| IpAddr::V4(*address));
        let of_v6 = v6.iter().flat_map(|v6| v6.mappings.keys());
        let of_v6 = of_v6.map(|address| IpAddr::V6(*address));
        let own = block.node_addresses();
        let addresses: BTreeSet<IpAddr> = of_v4.chain(of_v6).chain(own).collect();
        let is_new = self.firewall.set(FirewallState {
            interface: self.config.tunnel.interface.clone(),
            prefix: mesh.prefix_v4,
            block: block.v4,
            node: block.node_v4(),
            bridges: self.bridges.clone(),
            mappings,
            service_addresses,
            outside: Outside {
                instances,
                routes: routes.iter().copied().collect(),
            },
            policy: LocalPolicy::of(policy, &addresses),
            guests: self.guests.clone(),
            native: docker.and_then(Docker::native).map(|plan| Native {
                bridge: network::BRIDGE.into(),
                range: plan.range(),
            }),
            v6,
        });
        if is_new {
            self.times.handle_wanted(Instant::now());
        }
    }

    /// The part of that state for IPv6. Without addresses on the device, containers have none either.
    fn state_v6(&self, mesh: &MeshAddresses, block: &Block, ipv6: Ipv6) -> StateV6 {
        let docker = self.docker.as_ref();
        let mut networks = docker.map(Docker::bridges_v6).unwrap_or_default();
        networks.retain(|bridge, _| self.bridges.contains_key(bridge));
        let mappings = docker.filter(|_| ipv6 == Ipv6::On);
        StateV6 {
            prefix: mesh.prefix_v6,
            block: block.v6,
            node: block.node_v6(),
            networks,
            mappings: mapped(mappings.map(Docker::mappings_v6).unwrap_or_default()),
            guests: self
                .guests
                .iter()
                .filter_map(|guest| block.instance_v6(*guest))
                .collect(),
        }
    }

    /// The kernel was compared with the wanted state, or brought to it.
    pub(super) fn handle_firewall(&mut self) {
        if self.firewall.is_applied() {
            self.times.handle_applied(Instant::now());
        }
    }

    /// The service addresses that the kernel balances now.
    pub(super) fn balanced(&self) -> BTreeSet<Ipv4Addr> {
        let applied = self
            .firewall
            .applied_state()
            .filter(|_| self.firewall.is_active());
        applied.map_or_else(BTreeSet::new, |state| {
            state.service_addresses.keys().copied().collect()
        })
    }

    /// The records of this node's services, by id, without a version. `ledger` has those that are published now, and `addresses`
    /// are the service addresses that this node has assigned.
    pub(super) fn wanted_services(
        &mut self,
        identity: &Identity,
        ledger: &Ledger,
        addresses: &ServiceAddresses,
    ) -> BTreeMap<String, Service> {
        let id = identity.keys.identity.public();
        let own = identity.addresses();
        let mapped = block::mapped(self, ledger, &id);
        self.registry.set_mapped(mapped);
        let mut wanted = self
            .registry
            .records(&id, &identity.name, &own, &identity.block);
        if self.docker.is_none() {
            return wanted;
        }
        let mut merge = |name: ServiceName, instances: Vec<Instance>, address| {
            let id_of = Service::id_of(&id, name.project.as_ref(), &name.name);
            let service = wanted.entry(id_of.clone()).or_insert_with(|| Service {
                id: id_of,
                version: 0,
                node: id,
                name: name.name,
                project: name.project,
                service_address: None,
                instances: Vec::new(),
            });
            service.service_address = address;
            service.instances.extend(instances);
        };
        let offers = self.offers();
        self.offered.clone_from(&offers);
        let Some(offers) = offers else {
            // As far as is known, the containers from before the start of meshd still run.
            for held in ledger.services_of(&id) {
                let instances = held.instances.iter();
                let from_containers: Vec<Instance> = instances
                    .filter(|i| i.source == Source::Docker)
                    .cloned()
                    .collect();
                if !from_containers.is_empty() {
                    merge(held.service_name(), from_containers, held.service_address);
                }
            }
            return wanted;
        };
        let mut addresses = addresses.clone();
        let plan = ledger.mesh().map(|mesh| mesh.addresses);
        for (name, offer) in offers {
            let address = plan
                .filter(|_| offer.service_address)
                .and_then(|plan| addresses.choose(&plan, name.clone()));
            merge(name, offer.instances, address);
        }
        wanted
    }

    /// Whether other instances of containers are to be published than before. A container that has just started is not: it is
    /// published once the firewall maps it.
    pub(super) fn has_other_offers(&self) -> bool {
        self.docker.is_some() && self.offers() != self.offered
    }

    /// The instances of containers. None before it is known which containers run, and before the firewall is applied.
    fn offers(&self) -> Option<BTreeMap<ServiceName, Offer>> {
        let docker = self
            .docker
            .as_ref()
            .filter(|docker| docker.inventory_known())?;
        Some(docker.offers(self.registry.drained(), self.applied_mappings()?))
    }

    /// What the kernel does for containers. None before it was brought to a wanted state for the first time.
    fn applied_mappings(&self) -> Option<AppliedMappings> {
        let applied = self.firewall.applied_state()?;
        if !self.firewall.is_active() {
            return Some(AppliedMappings::Unavailable);
        }
        let v4 = applied.mappings.iter();
        let v4 = v4.map(|(address, mapped)| (IpAddr::V4(*address), IpAddr::V4(mapped.container)));
        let v6 = applied.v6.as_ref();
        let v6 = v6.filter(|_| self.firewall.is_active_v6());
        let v6 = v6.iter().flat_map(|v6| &v6.mappings);
        let v6 = v6.map(|(address, mapped)| (IpAddr::V6(*address), IpAddr::V6(mapped.container)));
        Some(AppliedMappings::Mapped(v4.chain(v6).collect()))
    }

    /// The instance address of the container that has the address `own` on its bridge, if the kernel maps it. A guard drops what others
    /// send from this address.
    pub(super) fn instance_of(&self, own: IpAddr) -> Option<IpAddr> {
        let AppliedMappings::Mapped(mappings) = self.applied_mappings()? else {
            return None;
        };
        let applied = self.firewall.applied_state()?;
        block::container_at(&mappings, &applied.outside.instances, own)
    }

    /// Why an instance of this node is unhealthy, draining or withdrawn, as far as that is known.
    pub(super) fn why_unused(&self, service: &ServiceName, instance: &Instance) -> Option<String> {
        if self.registry.drained().contains(service) {
            return Some("drained with `meshctl service drain`".to_owned());
        }
        match instance.source {
            Source::Docker => {
                let why = self.docker.as_ref()?.why_unused(&instance.id)?;
                Some(why.to_owned())
            }
            Source::Cli | Source::Config => self.registry.why_unused(service, instance),
        }
    }

    /// The problem with the bridges of the engine's networks.
    pub(super) fn external_bridges(&self) -> Option<Problem> {
        self.external.clone()
    }

    /// The problems of services and containers, with remedies. `block` is the block of this node.
    pub(super) fn problems(&self, block: &Block) -> Vec<Problem> {
        let mut problems = self.registry.problems(block);
        problems.extend(self.docker.iter().flat_map(Docker::problems));
        // Without containers the guards alone are worth having, but nobody needs to install anything for them.
        let has_engine = self.docker.as_ref().is_some_and(Docker::is_followed);
        let applied = self.firewall.applied_state();
        let has_routes = applied.is_some_and(|state| !state.outside.routes.is_empty());
        let has_outside = has_routes || self.registry.has_outside(block);
        if has_engine || has_outside || self.firewall.is_contested() {
            problems.extend(self.firewall.problems());
        }
        problems
    }

    /// The sockets at which the container engine may listen.
    pub(super) fn engine_sockets(&self) -> Vec<PathBuf> {
        let docker = self.config.docker.as_ref();
        docker
            .map(|docker| docker.sockets.clone())
            .unwrap_or_default()
    }

    /// Takes back what was put on the machine for containers.
    pub(super) async fn stop(self) {
        self.firewall.stop().await;
        drop(self.docker);
        if let Some(docker) = self.config.docker.as_ref().filter(|d| d.network) {
            network::remove_network(&docker.sockets).await;
        }
    }
}

/// The mappings of containers as the firewall takes them.
fn mapped<A: Ord>(mappings: BTreeMap<A, Mapping<A>>) -> BTreeMap<A, Mapped<A>> {
    let mappings = mappings.into_iter().map(|(address, mapping)| {
        let mapped = Mapped {
            container: mapping.container,
            pid: mapping.pid,
            name: mapping.name,
            ports: mapping.ports,
        };
        (address, mapped)
    });
    mappings.collect()
}
