//! The exposed containers of this node: a state machine. Pure.
//!
//! In come what the engine says (what exists, what each is like, what happens to it), verdicts of probes, and the time.
//! Out come the instances to publish, the addresses to map, the ports to probe, and what is wrong. Containers are known
//! by id, since names move from one to the next while Compose replaces them.
//!
//! An event is news, a description is a state that may be older than the news. So the stop signal is remembered until the
//! container ends or is started again, whatever descriptions say in between; and a run that has ended never comes back
//! to life, only the next one does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use ipnet::Ipv4Net;

use self::names::{contested, contested_names, served};
use self::networks::Networks;
use super::container::{Container, Place, State, Wired};
use super::inspect::{
    Action, ContainerId, EngineNetwork, Inspected, Network, SIGKILL, SIGTERM, Status,
};
use super::labels::{self, Rules, printable};
use super::leases::Leases;
use super::network;
use super::refusal::Refusal;
use crate::model::{Label, ServiceName};
use crate::protocol::local::{ContainerRow, ContainerState, Problem};
use crate::records::kinds::{Health, Instance};

mod names;
mod networks;

/// What the machine around the containers is like.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The node's name.
    pub node: Label,
    /// Its mesh addresses.
    pub addresses: Vec<IpAddr>,
    /// Its block, of which instances get addresses.
    pub block: Ipv4Net,
    /// What the configuration says of labels.
    pub rules: Rules,
    /// The network whose containers have mesh addresses of their own, where there is to be one.
    pub network: Option<network::Plan>,
}

/// A container's address as the kernel is to map it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The container's own address.
    pub container: Ipv4Addr,
    /// Its first process.
    pub pid: Option<u32>,
    /// Its name.
    pub name: String,
}

/// The instances of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// What runs here.
    pub instances: Vec<Instance>,
    /// Whether it is to have a service address.
    pub service_address: bool,
}

/// The exposed containers of this node.
#[derive(Debug)]
pub struct Containers {
    surroundings: Surroundings,
    leases: Leases,
    held: BTreeMap<ContainerId, Container>,
    refused: BTreeMap<ContainerId, (String, Refusal)>,
    /// Sent their stop signal, and not known to have ended.
    stopping: BTreeSet<ContainerId>,
    networks: Networks,
}

impl Containers {
    /// None yet; `leases` are those kept on disk.
    #[must_use]
    pub fn new(
        surroundings: Surroundings,
        leases: BTreeMap<ContainerId, Ipv4Addr>,
        now: Instant,
    ) -> Self {
        let networks = Networks::new(surroundings.network);
        let leased = match surroundings.network {
            Some(network) => network.rest(),
            None => surroundings.block,
        };
        Self {
            leases: Leases::new(leased, leases, now),
            surroundings,
            held: BTreeMap::new(),
            refused: BTreeMap::new(),
            stopping: BTreeSet::new(),
            networks,
        }
    }

    /// The network whose containers have mesh addresses of their own has this id; or there is none.
    pub fn handle_native(&mut self, native: Option<String>) {
        self.networks.native = native;
    }

    /// These networks are there.
    pub fn handle_networks(&mut self, networks: Vec<EngineNetwork>) {
        self.networks.by_id = networks.into_iter().map(|n| (n.id.clone(), n)).collect();
    }

    /// These containers exist, running or not; all others are gone.
    pub fn handle_listed(&mut self, existing: &BTreeSet<ContainerId>, now: Instant) {
        self.held.retain(|id, _| existing.contains(id));
        self.refused.retain(|id, _| existing.contains(id));
        self.stopping.retain(|id| existing.contains(id));
        self.leases.retain(|id| existing.contains(id), now);
        self.name_instances();
    }

    /// A container is described.
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
            self.surroundings.rules,
        );
        let outcome = match exposed {
            Ok(None) => return self.forget(id, now),
            Ok(Some(exposed)) => self.expose(inspected, exposed, now),
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(()) => drop(self.refused.remove(id)),
            Err(refusal) => {
                self.held.remove(id);
                self.leases.idle(id, now);
                self.name_instances();
                let name = printable(&inspected.name);
                if self.refused.get(id) != Some(&(name.clone(), refusal.clone())) {
                    tracing::warn!(container = %name, %refusal, "a container is not exposed");
                }
                self.refused.insert(id.clone(), (name, refusal));
            }
        }
    }

    /// A container's description cannot be used, and why.
    pub fn handle_unreadable(&mut self, id: &ContainerId, why: String, now: Instant) {
        self.forget(id, now);
        let refusal = Refusal::Unreadable(why);
        self.refused
            .insert(id.clone(), (id.short().to_owned(), refusal));
    }

    fn expose(
        &mut self,
        inspected: &Inspected,
        exposed: labels::Exposed,
        now: Instant,
    ) -> Result<(), Refusal> {
        let id = &inspected.id;
        refuse_confusion(&self.held, id, &exposed)?;
        let place = match &inspected.network {
            Network::Host => Place::Host,
            Network::Isolated => return Err(Refusal::Isolated),
            Network::Shared => return Err(Refusal::Shared),
            Network::Attached(_) => {
                let container = self
                    .networks
                    .own_address(inspected, exposed.network.as_deref())?;
                let native = self.networks.is_native(inspected, container)?;
                self.end_namesakes(id, container, now);
                let address = if native {
                    self.leases.release(id, now);
                    container
                } else {
                    self.leases.lease(id, now).map_err(Refusal::Full)?
                };
                Place::Mapped { address, container }
            }
        };
        match self.held.get_mut(id) {
            Some(held) if held.run == inspected.run => {
                held.handle_same_run(inspected, exposed, place);
            }
            Some(held) => held.handle_next_run(inspected, exposed, place, now),
            None => {
                let label = self.label_by_id(id);
                let container = Container::new(inspected, exposed, label, place, now);
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

    /// Engines give the address of a container that ended to the next at once: who had it before has ended, though the
    /// news is still on its way.
    fn end_namesakes(&mut self, id: &ContainerId, address: Ipv4Addr, now: Instant) {
        let same = |held: &Container| matches!(held.place, Place::Mapped { container, .. } if container == address);
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

    /// Something happened to a container.
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
        self.leases.idle(id, now);
        if let Some(held) = self.held.get_mut(id) {
            held.handle_end(now);
            self.name_instances();
        }
    }

    fn forget(&mut self, id: &ContainerId, now: Instant) {
        self.refused.remove(id);
        self.stopping.remove(id);
        self.leases.idle(id, now);
        if self.held.remove(id).is_some() {
            self.name_instances();
        }
    }

    /// A probe's verdict.
    pub fn handle_probe(&mut self, id: &ContainerId, accepts: bool) {
        if let Some(held) = self.held.get_mut(id) {
            held.handle_probe(accepts);
        }
    }

    /// Time went by; gives whether that changed anything. To be called about twice a second.
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

    /// What to publish, by service; `drained` are the services that are to get no new clients, `wired` is what the kernel
    /// does by now.
    #[must_use]
    pub fn offers(
        &self,
        drained: &BTreeSet<ServiceName>,
        wired: &Wired,
        now: Instant,
    ) -> BTreeMap<ServiceName, Offer> {
        let mut offers: BTreeMap<ServiceName, Offer> = BTreeMap::new();
        let contested = contested(&self.held);
        for held in self.held.values() {
            let drained = served(held, &contested).any(|s| drained.contains(s));
            let node = &self.surroundings.addresses;
            let Some(instance) = held.instance(drained, node, wired, now) else {
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

    /// What to map: instance addresses to containers.
    #[must_use]
    pub fn mappings(&self) -> BTreeMap<Ipv4Addr, Mapping> {
        self.held
            .values()
            .filter(|held| held.is_mapped())
            .filter_map(|held| match held.place {
                Place::Host => None,
                Place::Mapped { address, container } => Some((
                    address,
                    Mapping {
                        container,
                        pid: held.process.pid,
                        name: held.name.clone(),
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

    /// What to probe, where.
    #[must_use]
    pub fn probes(&self) -> Vec<(ContainerId, SocketAddr)> {
        let node = self.surroundings.addresses.first().copied();
        let node = node.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        self.held
            .iter()
            .filter_map(|(id, held)| Some((id.clone(), held.probe_target(node)?)))
            .collect()
    }

    /// What goes to disk.
    #[must_use]
    pub fn leases(&self) -> BTreeMap<ContainerId, Ipv4Addr> {
        self.leases.stored()
    }

    /// The names of all services here.
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

    /// Each exposed container that runs, for people and for `meshctl rollout`.
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
                address: match held.place {
                    Place::Mapped { address, .. } => Some(address),
                    Place::Host => None,
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

    /// What is wrong, with remedies.
    #[must_use]
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        let refused = self.refused.values().map(|(name, refusal)| Problem {
            what: format!("the container {name} is not exposed"),
            why: refusal.to_string(),
            fix: refusal.remedy().into(),
        });
        let faults = self.held.values().filter_map(|held| held.fault(now));
        refused
            .chain(faults)
            .chain(contested_names(&self.held))
            .collect()
    }
}

/// Refuses a Compose service whose name makes the same label as that of another one: two services would become one.
fn refuse_confusion(
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
    let confused = others.find_map(|(_, held)| {
        let theirs = held.exposed.compose.as_ref()?;
        let same = theirs.service == own.service && theirs.project == own.project;
        (theirs.name == own.name && !same).then(|| show(theirs))
    });
    match confused {
        Some(other) => Err(Refusal::Confused(show(own), other)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
