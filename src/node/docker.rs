//! The containers of this node: handles reports of the engine and results of probes, and returns the instances to publish
//! and the problems.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::config;
use super::state::StateDir;
use super::transitions::engine::{ContainerRefused, EngineChange};
use crate::containers;
use crate::containers::engine::EngineFault;
use crate::containers::inspect::Engine;
use crate::containers::{
    AppliedMappings, ContainerId, Containers, EngineTask, Mapping, NodeContext, Offer, Report,
    network,
};
use crate::model::ServiceName;
use crate::model::address::Block;
use crate::os::audit::Audit;
use crate::protocol::local::{Check, CheckProbe, ContainerRow, Problem};
use crate::services::Checker;
use crate::services::checks::{Outcome, Target};

/// How long the records that were published before the start are left unchanged while the engine has not reported all
/// containers.
const INVENTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit of a probe in milliseconds. The container is on this machine.
const PROBE_TIMEOUT: u64 = 1_000;

/// A probe of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Probe {
    pub(super) id: ContainerId,
    /// Whether it is at the IPv6 address of a container that has an IPv4 address too.
    pub(super) is_v6: bool,
}

/// The containers of this node.
pub(super) struct Docker {
    /// What the engine reported, and the leases of addresses.
    pub(super) containers: Containers,
    prober: Checker<Probe>,
    required: bool,
    engine: Option<Engine>,
    fault: Option<EngineFault>,
    network: Option<network::NativePlan>,
    /// Whether the network exists. None until that is known.
    native: Option<Result<(), network::Unusable>>,
    inventory_known: bool,
    started: Instant,
    stored: BTreeMap<ContainerId, Ipv4Addr>,
    audit: Audit,
    _task: EngineTask,
}

/// The receivers of events.
pub(super) struct DockerEvents {
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) probes: mpsc::Receiver<(Probe, Outcome)>,
}

impl Docker {
    /// Starts to follow the engine.
    pub(super) fn start(
        config: &config::DockerSettings,
        context: NodeContext,
        dir: &StateDir,
    ) -> (Self, DockerEvents) {
        let (report, reports) = mpsc::channel(1024);
        let (verdict, probes) = mpsc::channel(256);
        let now = Instant::now();
        let network = context.network;
        let containers = Containers::new(context, dir.leases(), now);
        let docker = Self {
            stored: containers.leases.stored(),
            containers,
            prober: Checker::new(verdict),
            required: config.required,
            engine: None,
            fault: None,
            network,
            native: None,
            inventory_known: false,
            started: now,
            audit: dir.audit.clone(),
            _task: EngineTask::start(config.sockets.clone(), config.rules, network, report),
        };
        (docker, DockerEvents { reports, probes })
    }

    /// Handles reports of the engine.
    pub(super) fn handle_reports(&mut self, reports: Vec<Report>) {
        let now = Instant::now();
        for report in reports {
            match report {
                Report::Engine(engine) => {
                    let change = EngineChange::Connected {
                        version: &engine.version,
                        podman: engine.podman,
                    };
                    self.audit.note(&change);
                    self.engine = Some(engine);
                    self.fault = None;
                }
                Report::Networks(networks) => self.containers.handle_networks(networks),
                Report::Native(native) => {
                    self.containers.handle_native(native.clone().ok());
                    let native = native.map(drop);
                    if let Err(unusable) = &native
                        && self.native.as_ref() != Some(&native)
                    {
                        tracing::warn!(why = %unusable.why, "containers have no mesh addresses of their own");
                    }
                    self.native = Some(native);
                }
                Report::Listed(existing) => self.containers.handle_listed(&existing, now),
                Report::Inspected(inspected) => self.containers.handle_inspected(&inspected, now),
                Report::Unreadable(id, why) => self.containers.handle_unreadable(&id, why, now),
                Report::Event(id, action) => self.containers.handle_event(&id, action, now),
                Report::InventoryKnown => self.inventory_known = true,
                Report::Lost(fault) => {
                    let is_absent = matches!(fault, EngineFault::Absent(_));
                    // Without an engine there are no containers.
                    self.inventory_known |= is_absent && self.engine.is_none();
                    let is_expected = !is_absent || self.is_connected().is_some();
                    if is_expected && self.fault.as_ref() != Some(&fault) {
                        let why = fault.to_string();
                        self.audit.note(&EngineChange::Lost { why: &why });
                    }
                    self.fault = Some(fault);
                }
            }
        }
        for (name, why) in containers::take_newly_refused(&mut self.containers) {
            let (name, why) = (&name, &why);
            self.audit.note(&ContainerRefused { name, why });
        }
        self.set_probes();
    }

    /// Handles results of probes.
    pub(super) fn handle_probes(&mut self, verdicts: Vec<(Probe, Outcome)>) {
        for (Probe { id, is_v6 }, outcome) in verdicts {
            if is_v6 {
                containers::handle_probe_v6(&mut self.containers, &id, outcome.is_ok());
            } else {
                self.containers.handle_probe(&id, outcome.is_ok());
            }
        }
    }

    fn set_probes(&mut self) {
        let check = Check {
            timeout_ms: PROBE_TIMEOUT,
            ..Check::new(CheckProbe::Tcp)
        };
        let main = self.containers.probes().into_iter();
        let main = main.map(|(id, address)| (Probe { id, is_v6: false }, address));
        let v6 = containers::probes_v6(&self.containers).into_iter();
        let v6 = v6.map(|(id, address)| (Probe { id, is_v6: true }, address));
        let targets = main.chain(v6).map(|(probe, address)| {
            let target = Target {
                address,
                check: check.clone(),
                eager: true,
            };
            (probe, target)
        });
        self.prober.set(targets.collect());
    }

    /// Handles that time has passed. Returns whether that has changed anything.
    pub(super) fn handle_time(&mut self, now: Instant) -> bool {
        let timed_out = !self.inventory_known
            && now.saturating_duration_since(self.started) >= INVENTORY_TIMEOUT;
        self.inventory_known |= timed_out;
        self.containers.handle_time(now) | timed_out
    }

    /// Whether the engine has reported all containers. Until then, the records that were published before the start are
    /// left unchanged.
    pub(super) fn inventory_known(&self) -> bool {
        self.inventory_known
    }

    /// The instances to publish. `applied` are the mappings that the kernel has.
    pub(super) fn offers(
        &self,
        drained: &BTreeSet<ServiceName>,
        applied: AppliedMappings,
    ) -> BTreeMap<ServiceName, Offer> {
        let applied = if self.is_rootless() {
            AppliedMappings::Unavailable
        } else {
            applied
        };
        self.containers.offers(drained, &applied, Instant::now())
    }

    /// Handles a new name of the node.
    pub(super) fn set_node_name(&mut self, node: crate::model::Label) {
        self.containers.handle_node_name(node);
    }

    /// Why the instance of a container is unhealthy, draining or withdrawn.
    pub(super) fn why_unused(&self, instance: &crate::model::Label) -> Option<&'static str> {
        containers::why_unused(&self.containers, instance)
    }

    /// Whether the engine is connected. None if there never was one and the configuration does not require it.
    pub(super) fn is_connected(&self) -> Option<bool> {
        let is_expected = self.required || self.engine.is_some();
        is_expected.then_some(self.engine.is_some() && self.fault.is_none())
    }

    /// Whether an engine was reachable at some time.
    pub(super) fn is_followed(&self) -> bool {
        self.engine.is_some()
    }

    /// Whether the engine's networks are in another network namespace.
    fn is_rootless(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.rootless)
    }

    /// The mappings to apply.
    pub(super) fn mappings(&self) -> BTreeMap<Ipv4Addr, Mapping> {
        if self.is_rootless() {
            return BTreeMap::new();
        }
        self.containers.mappings()
    }

    /// The mappings to apply for IPv6.
    pub(super) fn mappings_v6(&self) -> BTreeMap<Ipv6Addr, Mapping<Ipv6Addr>> {
        if self.is_rootless() {
            return BTreeMap::new();
        }
        containers::mappings_v6(&self.containers)
    }

    pub(super) fn bridges(&self) -> BTreeMap<String, Vec<ipnet::Ipv4Net>> {
        if self.is_rootless() {
            return BTreeMap::new();
        }
        self.containers.bridges()
    }

    /// The subnets of IPv6 of the same bridges.
    pub(super) fn bridges_v6(&self) -> BTreeMap<String, Vec<ipnet::Ipv6Net>> {
        if self.is_rootless() {
            return BTreeMap::new();
        }
        containers::bridges_v6(&self.containers)
    }

    /// The part of the node's block from which addresses are leased to mapped containers, if it is not the whole block.
    pub(super) fn pool(&self) -> Option<ipnet::Ipv4Net> {
        self.network.map(|network| network.rest())
    }

    /// The network whose containers have mesh addresses of their own, if it exists.
    pub(super) fn native(&self) -> Option<network::NativePlan> {
        let there = matches!(self.native, Some(Ok(())));
        self.network.filter(|_| there)
    }

    /// The services of the containers.
    pub(super) fn services(&self) -> BTreeSet<ServiceName> {
        self.containers.services()
    }

    /// The number of exposed containers.
    pub(super) fn len(&self) -> usize {
        self.containers.count()
    }

    pub(super) fn rows(&self, drained: &BTreeSet<ServiceName>) -> Vec<ContainerRow> {
        self.containers.rows(drained)
    }

    /// The addresses of containers, if they differ from those on disk, so that a restart does not change them.
    pub(super) fn unwritten(&self) -> Option<BTreeMap<ContainerId, Ipv4Addr>> {
        let leases = self.containers.leases.stored();
        (leases != self.stored).then_some(leases)
    }

    /// Handles that these addresses were written.
    pub(super) fn handle_written(&mut self, leases: BTreeMap<ContainerId, Ipv4Addr>) {
        self.stored = leases;
    }

    /// All problems, with remedies.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.containers.problems(Instant::now());
        problems.extend(
            self.fault
                .as_ref()
                .and_then(|fault| self.engine_problem(fault)),
        );
        if let Some(Err(unusable)) = &self.native {
            problems.push(unusable.problem());
        }
        if self.is_rootless() {
            problems.push(Problem {
                what: "containers have no addresses of their own in the mesh".into(),
                why: "the engine runs rootless, so its networks are in another network namespace"
                    .into(),
                fix: "publish their ports on this node's address, or run the engine as root".into(),
            });
        }
        problems
    }

    fn engine_problem(&self, fault: &EngineFault) -> Option<Problem> {
        // The engine was never there and is not required: this host has no containers.
        let absent = matches!(fault, EngineFault::Absent(_));
        if absent && !self.required && self.engine.is_none() {
            return None;
        }
        Some(Problem {
            what: "the container engine is not reachable; containers stay as they were".into(),
            why: fault.to_string(),
            fix: remedy(fault),
        })
    }
}

fn remedy(fault: &EngineFault) -> String {
    match fault {
        EngineFault::Absent(_) | EngineFault::NotListening(_) => {
            "start it (`systemctl start docker`), or name its socket in [docker] of meshd.toml"
                .into()
        }
        EngineFault::Permission(_, Some((group, user))) => format!(
            "run `sudo usermod -aG {group} {user} && sudo systemctl restart meshd`; without containers set `[docker] enabled = false`"
        ),
        EngineFault::Permission(_, None) => {
            "give the socket a group of its own, and add the user as which meshd runs to it".into()
        }
        _ => "look at its log (`journalctl -u docker`), and restart it".into(),
    }
}

/// The context of the containers.
pub(super) fn context(
    config: &config::DockerSettings,
    node: &crate::model::Label,
    addresses: &[IpAddr],
    block: Block,
    network: Option<network::NativePlan>,
) -> NodeContext {
    NodeContext {
        node: node.clone(),
        addresses: addresses.to_vec(),
        block,
        rules: config.rules,
        network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_meshd_may_not_open_has_a_remedy_with_the_exact_command() {
        let socket = || "/var/run/docker.sock".to_owned();
        let named = EngineFault::Permission(socket(), Some(("docker".into(), "meshd".into())));
        assert!(
            remedy(&named)
                .contains("`sudo usermod -aG docker meshd && sudo systemctl restart meshd`")
        );
        // A member of the group root could change much more than containers.
        assert!(!remedy(&EngineFault::Permission(socket(), None)).contains("usermod"));
    }
}
