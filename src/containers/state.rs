//! The exposed containers of this node, as a state machine. Pure.
//!
//! The input is the engine's reports (which containers exist, their descriptions, their events), the results of probes,
//! and the time. The output is the instances to publish, the addresses to map, the ports to probe, and the problems.
//! Containers are identified by their id, since Compose passes a name from one container to the next while it replaces
//! them.
//!
//! An event is newer than a description that was requested before it. So a stop signal is remembered until the
//! container ends or is started again, whatever descriptions contain in the meantime. A run that has ended does not
//! continue; only the next run of the container is exposed again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Instant;

use ipnet::Ipv4Net;

use self::names::{contested, contested_names, served};
use self::networks::Networks;
use self::unused::UnusedLabels;
use super::container::{AppliedMappings, Attachment, Container, State};
use super::inspect::{
    Action, ContainerId, EngineNetwork, Inspected, Network, SIGKILL, SIGTERM, Status,
};
use super::labels::{self, OpenPorts, Rules, printable};
use super::leases::Leases;
use super::network;
use super::refusal::Refusal;
use crate::model::{Label, ServiceName};
use crate::protocol::local::{ContainerRow, ContainerState, Problem};
use crate::records::kinds::{Health, Instance, Protocol};

mod names;
mod networks;
mod unused;

/// The properties of the node that matter for its containers.
#[derive(Debug, Clone)]
pub struct NodeContext {
    /// The name of the node.
    pub node: Label,
    /// The node's mesh addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's block, from which instance addresses are leased.
    pub block: Ipv4Net,
    /// The settings about labels.
    pub rules: Rules,
    /// The network whose containers have mesh addresses of their own, if it is configured.
    pub network: Option<network::NativePlan>,
}

/// A mapping that the kernel is to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The container's own address.
    pub container: Ipv4Addr,
    /// The container's first process.
    pub pid: Option<u32>,
    /// The container's name.
    pub name: String,
    /// The ports on which it accepts connections. None: all ports.
    pub ports: Option<BTreeSet<(Protocol, NonZeroU16)>>,
}

/// The instances of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// The instances on this node.
    pub instances: Vec<Instance>,
    /// Whether the service has a service address.
    pub service_address: bool,
}

/// The exposed containers of this node.
#[derive(Debug)]
pub struct Containers {
    context: NodeContext,
    leases: Leases,
    held: BTreeMap<ContainerId, Container>,
    refused: BTreeMap<ContainerId, (String, Refusal)>,
    /// The names of containers that were refused for a new reason since they were last taken, with the reasons.
    newly_refused: Vec<(String, String)>,
    /// The containers that are not exposed and have labels of meshd.
    unused: UnusedLabels,
    /// The containers that received their stop signal and have not ended, as far as is known.
    stopping: BTreeSet<ContainerId>,
    networks: Networks,
}

impl Containers {
    /// No containers yet. `leases` are the leases stored on disk.
    #[must_use]
    pub fn new(
        context: NodeContext,
        leases: BTreeMap<ContainerId, Ipv4Addr>,
        now: Instant,
    ) -> Self {
        let networks = Networks::new(context.network);
        let leased = match context.network {
            Some(network) => network.rest(),
            None => context.block,
        };
        Self {
            leases: Leases::new(leased, leases, now),
            context,
            held: BTreeMap::new(),
            refused: BTreeMap::new(),
            newly_refused: Vec::new(),
            unused: UnusedLabels::default(),
            stopping: BTreeSet::new(),
            networks,
        }
    }

    /// Handles the id of the network whose containers have mesh addresses of their own. None if there is no such
    /// network.
    pub fn handle_native(&mut self, native: Option<String>) {
        self.networks.native = native;
    }

    /// Handles a list of all networks.
    pub fn handle_networks(&mut self, networks: Vec<EngineNetwork>) {
        self.networks.by_id = networks.into_iter().map(|n| (n.id.clone(), n)).collect();
    }

    /// Handles a list of all containers that exist, running or not.
    pub fn handle_listed(&mut self, existing: &BTreeSet<ContainerId>, now: Instant) {
        self.held.retain(|id, _| existing.contains(id));
        self.refused.retain(|id, _| existing.contains(id));
        self.unused.retain(existing);
        self.stopping.retain(|id| existing.contains(id));
        self.leases.retain(|id| existing.contains(id), now);
        self.name_instances();
    }

    /// Handles the description of a container.
    pub fn handle_inspected(&mut self, inspected: &Inspected, now: Instant) {
        let id = &inspected.id;
        if matches!(inspected.status, Status::Stopped | Status::Restarting) {
            if let Some(held) = self.held.get_mut(id) {
                held.name.clone_from(&inspected.name);
            }
            return self.handle_end(id, now);
        }
        let ended = |held: &Container| held.state() == State::Gone && held.run == inspected.run;
        if self.held.get(id).is_some_and(ended) {
            return;
        }
        let exposed = labels::exposed(
            &inspected.labels,
            inspected.image.labels.as_ref(),
            &inspected.facts,
            self.context.rules,
        );
        let outcome = match exposed {
            Ok(None) => {
                self.forget(id, now);
                return self.unused.note(inspected, self.context.rules);
            }
            Ok(Some(exposed)) => self.expose(inspected, exposed, now),
            Err(error) => Err(error.into()),
        };
        self.unused.remove(id);
        match outcome {
            Ok(()) => drop(self.refused.remove(id)),
            Err(refusal) => {
                self.held.remove(id);
                self.leases.idle(id, now);
                self.name_instances();
                let name = printable(&inspected.name);
                refuse(self, id, name, refusal);
            }
        }
    }

    /// Handles a container whose description cannot be used, for the reason `why`.
    pub fn handle_unreadable(&mut self, id: &ContainerId, why: String, now: Instant) {
        self.forget(id, now);
        refuse(self, id, id.short().to_owned(), Refusal::Unreadable(why));
    }

    fn expose(
        &mut self,
        inspected: &Inspected,
        exposed: labels::Exposed,
        now: Instant,
    ) -> Result<(), Refusal> {
        let id = &inspected.id;
        check_compose_name(&self.held, id, &exposed)?;
        let attachment = match &inspected.network {
            Network::Host => Attachment::Host,
            Network::Isolated => return Err(Refusal::Isolated),
            Network::Shared => return Err(Refusal::Shared),
            Network::Attached(_) => {
                let container = self
                    .networks
                    .own_address(inspected, exposed.network.as_deref())?;
                let native = self.networks.is_native(inspected, container)?;
                self.end_former_holder(id, container, now);
                let address = if native {
                    self.leases.release(id, now);
                    container
                } else {
                    self.leases.lease(id, now).map_err(Refusal::Full)?
                };
                Attachment::Mapped { address, container }
            }
        };
        match self.held.get_mut(id) {
            Some(held) if held.run == inspected.run => {
                held.handle_same_run(inspected, exposed, attachment);
            }
            Some(held) => held.handle_next_run(inspected, exposed, attachment, now),
            None => {
                let label = self.label_by_id(id);
                let container = Container::new(inspected, exposed, label, attachment, now);
                self.held.insert(id.clone(), container);
            }
        }
        self.name_instances();
        if self.stopping.contains(id)
            && let Some(held) = self.held.get_mut(id)
        {
            held.handle_stop_signal(now);
        }
        Ok(())
    }

    /// An engine may give the address of a container that ended to the next one at once. So the container that had the
    /// address before has ended, even if its event has not arrived yet.
    fn end_former_holder(&mut self, id: &ContainerId, address: Ipv4Addr, now: Instant) {
        let same = |held: &Container| matches!(held.attachment, Attachment::Mapped { container, .. } if container == address);
        let ended: Vec<ContainerId> = self
            .held
            .iter()
            .filter(|(other, held)| *other != id && held.is_mapped() && same(held))
            .map(|(other, _)| other.clone())
            .collect();
        for other in ended {
            self.handle_end(&other, now);
        }
    }

    /// Handles an event of a container.
    pub fn handle_event(&mut self, id: &ContainerId, action: Action, now: Instant) {
        match action {
            Action::Kill(signal) => {
                let held = self.held.get_mut(id);
                let own = held
                    .as_ref()
                    .map_or(SIGTERM, |held| held.process.stop_signal);
                if signal != own && signal != SIGTERM && signal != SIGKILL {
                    return;
                }
                self.stopping.insert(id.clone());
                if let Some(held) = held {
                    held.handle_stop_signal(now);
                }
            }
            Action::Die => self.handle_end(id, now),
            Action::Start => {
                self.stopping.remove(id);
            }
            Action::Destroy => {
                self.forget(id, now);
                self.leases.release(id, now);
            }
            Action::Pause | Action::Unpause => {
                if let Some(held) = self.held.get_mut(id) {
                    held.paused = action == Action::Pause;
                }
            }
            Action::Health(health) => {
                if let Some(held) = self.held.get_mut(id) {
                    held.handle_engine_health(health);
                }
            }
            Action::Changed => {}
        }
    }

    fn handle_end(&mut self, id: &ContainerId, now: Instant) {
        self.stopping.remove(id);
        self.refused.remove(id);
        self.unused.remove(id);
        self.leases.idle(id, now);
        if let Some(held) = self.held.get_mut(id) {
            held.handle_end(now);
            self.name_instances();
        }
    }

    fn forget(&mut self, id: &ContainerId, now: Instant) {
        self.refused.remove(id);
        self.unused.remove(id);
        self.stopping.remove(id);
        self.leases.idle(id, now);
        if self.held.remove(id).is_some() {
            self.name_instances();
        }
    }

    /// Handles a result of a probe.
    pub fn handle_probe(&mut self, id: &ContainerId, accepts: bool) {
        if let Some(held) = self.held.get_mut(id) {
            held.handle_probe(accepts);
        }
    }

    /// Checks all time limits. Returns whether the published instances or the mappings may have changed. This is to be
    /// called about twice a second.
    pub fn handle_time(&mut self, now: Instant) -> bool {
        let changed = self
            .held
            .values_mut()
            .fold(false, |changed, held| held.handle_time(now) | changed);
        if changed {
            self.name_instances();
        }
        changed
    }

    /// The instances to publish, by service. `drained` are the drained services. `applied` are the mappings that the
    /// kernel has.
    #[must_use]
    pub fn offers(
        &self,
        drained: &BTreeSet<ServiceName>,
        applied: &AppliedMappings,
        now: Instant,
    ) -> BTreeMap<ServiceName, Offer> {
        let mut offers: BTreeMap<ServiceName, Offer> = BTreeMap::new();
        let contested = contested(&self.held);
        for held in self.held.values() {
            let drained = served(held, &contested).any(|s| drained.contains(s));
            let node = &self.context.addresses;
            let Some(instance) = held.instance(drained, node, applied, now) else {
                continue;
            };
            for (index, service) in served(held, &contested).enumerate() {
                let offer = offers.entry(service.clone()).or_default();
                offer.service_address |= index == 0 && held.exposed.service_address;
                offer.instances.push(instance.clone());
            }
        }
        offers
    }

    /// The mappings to apply, by instance address.
    #[must_use]
    pub fn mappings(&self) -> BTreeMap<Ipv4Addr, Mapping> {
        self.held
            .values()
            .filter(|held| held.is_mapped())
            .filter_map(|held| match held.attachment {
                Attachment::Host => None,
                Attachment::Mapped { address, container } => Some((
                    address,
                    Mapping {
                        container,
                        pid: held.process.pid,
                        name: held.name.clone(),
                        ports: open_ports(held, self.context.rules),
                    },
                )),
            })
            .collect()
    }

    /// The bridges of the engine's networks, with their subnets.
    #[must_use]
    pub fn bridges(&self) -> BTreeMap<String, Vec<Ipv4Net>> {
        self.networks.bridges()
    }

    /// The addresses to probe.
    #[must_use]
    pub fn probes(&self) -> Vec<(ContainerId, SocketAddr)> {
        let node = self.context.addresses.first().copied();
        let node = node.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.held
            .iter()
            .filter_map(|(id, held)| Some((id.clone(), held.probe_target(node)?)))
            .collect()
    }

    /// The leases as they are stored on disk.
    #[must_use]
    pub fn leases(&self) -> BTreeMap<ContainerId, Ipv4Addr> {
        self.leases.stored()
    }

    /// The names of all services on this node.
    #[must_use]
    pub fn services(&self) -> BTreeSet<ServiceName> {
        let contested = contested(&self.held);
        let all = self.held.values();
        all.flat_map(|held| served(held, &contested).cloned())
            .collect()
    }

    /// The number of exposed containers that run.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held.values().filter(|held| held.is_mapped()).count()
    }

    /// Each exposed container that runs, for users and for `meshctl rollout`.
    #[must_use]
    pub fn rows(&self, drained: &BTreeSet<ServiceName>) -> Vec<ContainerRow> {
        let contested = contested(&self.held);
        self.held
            .iter()
            .filter(|(_, held)| held.is_mapped())
            .map(|(id, held)| ContainerRow {
                id: id.to_string(),
                name: printable(&held.name),
                instance: held.label.clone(),
                services: served(held, &contested).cloned().collect(),
                address: match held.attachment {
                    Attachment::Mapped { address, .. } => Some(address),
                    Attachment::Host => None,
                },
                state: match held.state() {
                    State::Starting => ContainerState::Starting,
                    State::Ready => ContainerState::Ready,
                    State::Draining { .. } | State::Gone => ContainerState::Draining,
                },
                health: if held.paused {
                    Health::Unhealthy
                } else {
                    held.health()
                },
                drained: served(held, &contested).any(|s| drained.contains(s)),
            })
            .collect()
    }

    /// All problems, with remedies.
    #[must_use]
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        let refused = self.refused.values().map(|(name, refusal)| Problem {
            what: format!("the container {name} is not exposed"),
            why: refusal.to_string(),
            fix: refusal.remedy().into(),
        });
        let problems = self.held.values().filter_map(|held| held.problem(now));
        refused
            .chain(problems)
            .chain(contested_names(&self.held))
            .chain(self.unused.problems(self.held.values()))
            .collect()
    }
}

/// Leases none of these addresses to containers from now on.
pub fn reserve(containers: &mut Containers, addresses: BTreeSet<Ipv4Addr>) {
    containers.leases.reserve(addresses);
}

/// Checks that the container's Compose service does not have the same DNS name as another one: the two would become one
/// service.
fn check_compose_name(
    held: &BTreeMap<ContainerId, Container>,
    id: &ContainerId,
    exposed: &labels::Exposed,
) -> Result<(), Refusal> {
    let Some(own) = &exposed.compose else {
        return Ok(());
    };
    let show = |compose: &labels::Compose| {
        printable(&format!("{} of {}", compose.service, compose.project))
    };
    let mut others = held.iter().filter(|(other, _)| *other != id);
    let ambiguous = others.find_map(|(_, held)| {
        let theirs = held.exposed.compose.as_ref()?;
        let same = theirs.service == own.service && theirs.project == own.project;
        (theirs.name == own.name && !same).then(|| show(theirs))
    });
    match ambiguous {
        Some(other) => Err(Refusal::AmbiguousName(show(own), other)),
        None => Ok(()),
    }
}

/// Why an instance of `containers` is unhealthy, draining or withdrawn. None if nothing is wrong with its container.
#[must_use]
pub fn why_unused(containers: &Containers, instance: &Label) -> Option<&'static str> {
    let mut held = containers.held.values();
    match held.find(|held| held.label == *instance) {
        Some(held) => held.why_unused(),
        None => Some("its container was removed, or is not exposed any more"),
    }
}

/// The ports on which a container accepts connections. None: all ports.
fn open_ports(held: &Container, rules: Rules) -> Option<BTreeSet<(Protocol, NonZeroU16)>> {
    match rules.ports {
        OpenPorts::All => None,
        OpenPorts::Declared => {
            let ports = held.exposed.ports.iter();
            Some(ports.map(|port| (port.protocol, port.number)).collect())
        }
    }
}

/// Stores that a container is not exposed.
fn refuse(containers: &mut Containers, id: &ContainerId, name: String, refusal: Refusal) {
    let why = refusal.to_string();
    let refused = (name.clone(), refusal);
    if containers.refused.get(id) != Some(&refused) {
        containers.newly_refused.push((name, why));
    }
    containers.refused.insert(id.clone(), refused);
}

/// The names of containers that were refused for a new reason since the last call, with the reasons.
pub fn take_newly_refused(containers: &mut Containers) -> Vec<(String, String)> {
    std::mem::take(&mut containers.newly_refused)
}

#[cfg(test)]
mod tests;
