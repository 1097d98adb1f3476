//! The containers of this node: what the engine reports and the probes find, what is published, and what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::config;
use super::state::StateDir;
use crate::containers::engine::EngineFault;
use crate::containers::inspect::Engine;
use crate::containers::{
    ContainerId, Containers, EngineTask, Mapping, Offer, Report, Surroundings, Wired, network,
};
use crate::model::ServiceName;
use crate::protocol::local::{Check, CheckProbe, ContainerRow, Problem};
use crate::services::Checker;
use crate::services::checks::Target;

/// How long what was published before the start is left as it is, while the engine has not said what runs.
const PATIENCE: Duration = Duration::from_secs(10);
/// Milliseconds a probe of a container may take: it is on this machine.
const PROBE_TIMEOUT: u64 = 1_000;

/// The containers of this node.
pub(super) struct Docker {
    containers: Containers,
    prober: Checker<ContainerId>,
    required: bool,
    engine: Option<Engine>,
    fault: Option<EngineFault>,
    network: Option<network::Plan>,
    /// Whether the network is there; none, as long as that is not known.
    native: Option<Result<(), network::Unusable>>,
    settled: bool,
    started: Instant,
    kept: BTreeMap<ContainerId, Ipv4Addr>,
    _task: EngineTask,
}

/// What comes back as events.
pub(super) struct DockerEvents {
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) probes: mpsc::Receiver<(ContainerId, bool)>,
}

impl Docker {
    /// Follows the engine from now on.
    pub(super) fn start(
        config: &config::DockerSettings,
        surroundings: Surroundings,
        dir: &StateDir,
    ) -> (Self, DockerEvents) {
        let (report, reports) = mpsc::channel(1024);
        let (verdict, probes) = mpsc::channel(256);
        let now = Instant::now();
        let network = surroundings.network;
        let containers = Containers::new(surroundings, dir.leases(), now);
        let docker = Self {
            kept: containers.leases(),
            containers,
            prober: Checker::new(verdict),
            required: config.required,
            engine: None,
            fault: None,
            network,
            native: None,
            settled: false,
            started: now,
            _task: EngineTask::start(config.sockets.clone(), config.rules, network, report),
        };
        (docker, DockerEvents { reports, probes })
    }

    /// The engine says something.
    pub(super) fn handle_reports(&mut self, reports: Vec<Report>) {
        let now = Instant::now();
        for report in reports {
            match report {
                Report::Engine(engine) => {
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
                        tracing::warn!(why = %unusable.why, "there is no network of mesh addresses");
                    }
                    self.native = Some(native);
                }
                Report::Listed(existing) => self.containers.handle_listed(&existing, now),
                Report::Inspected(inspected) => self.containers.handle_inspected(&inspected, now),
                Report::Unreadable(id, why) => self.containers.handle_unreadable(&id, why, now),
                Report::Happened(id, action) => self.containers.handle_event(&id, action, now),
                Report::Settled => self.settled = true,
                Report::Lost(fault) => {
                    if !matches!(fault, EngineFault::Absent(_)) {
                        tracing::warn!(%fault, "the container engine cannot be followed; what runs stays as it is");
                    } else if self.engine.is_none() {
                        // No engine, so no containers.
                        self.settled = true;
                    }
                    self.fault = Some(fault);
                }
            }
        }
        self.set_probes();
    }

    /// Probes came to verdicts.
    pub(super) fn handle_probes(&mut self, verdicts: Vec<(ContainerId, bool)>) {
        for (id, accepts) in verdicts {
            self.containers.handle_probe(&id, accepts);
        }
    }

    fn set_probes(&mut self) {
        let check = Check {
            timeout_ms: PROBE_TIMEOUT,
            ..Check::new(CheckProbe::Tcp)
        };
        let targets = self.containers.probes().into_iter().map(|(id, address)| {
            let target = Target {
                address,
                check: check.clone(),
                eager: true,
            };
            (id, target)
        });
        self.prober.set(targets.collect());
    }

    /// Time went by; gives whether that changed anything.
    pub(super) fn handle_time(&mut self, now: Instant) -> bool {
        let patience_ended =
            !self.settled && now.saturating_duration_since(self.started) >= PATIENCE;
        self.settled |= patience_ended;
        self.containers.handle_time(now) | patience_ended
    }

    /// Whether it is known what runs; until then, what was published before the start stands.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// What to publish; `wired` is what the kernel does by now.
    pub(super) fn offers(
        &self,
        drained: &BTreeSet<ServiceName>,
        wired: Wired,
    ) -> BTreeMap<ServiceName, Offer> {
        let wired = if self.is_rootless() {
            Wired::Impossible
        } else {
            wired
        };
        self.containers.offers(drained, &wired, Instant::now())
    }

    /// The node is called so from now on.
    pub(super) fn set_node_name(&mut self, node: crate::model::Label) {
        self.containers.handle_node_name(node);
    }

    /// Whether there is an engine, as far as is known.
    pub(super) fn is_followed(&self) -> bool {
        self.engine.is_some()
    }

    /// Whether the engine's networks are not those of this host.
    fn is_rootless(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.rootless)
    }

    /// What to map.
    pub(super) fn mappings(&self) -> BTreeMap<Ipv4Addr, Mapping> {
        if self.is_rootless() {
            return BTreeMap::new();
        }
        self.containers.mappings()
    }

    /// The bridges of the engine's networks.
    pub(super) fn bridges(&self) -> BTreeMap<String, Vec<ipnet::Ipv4Net>> {
        if self.is_rootless() {
            return BTreeMap::new();
        }
        self.containers.bridges()
    }

    /// The network whose containers have mesh addresses of their own, if it is there.
    pub(super) fn native(&self) -> Option<network::Plan> {
        let there = matches!(self.native, Some(Ok(())));
        self.network.filter(|_| there)
    }

    /// The services here.
    pub(super) fn services(&self) -> BTreeSet<ServiceName> {
        self.containers.services()
    }

    /// How many containers are exposed.
    pub(super) fn len(&self) -> usize {
        self.containers.count()
    }

    /// Each exposed container.
    pub(super) fn rows(&self, drained: &BTreeSet<ServiceName>) -> Vec<ContainerRow> {
        self.containers.rows(drained)
    }

    /// The addresses of containers, if they differ from those on disk: a restart is not to move them.
    pub(super) fn unwritten(&self) -> Option<BTreeMap<ContainerId, Ipv4Addr>> {
        let leases = self.containers.leases();
        (leases != self.kept).then_some(leases)
    }

    /// These addresses of containers were written.
    pub(super) fn handle_written(&mut self, leases: BTreeMap<ContainerId, Ipv4Addr>) {
        self.kept = leases;
    }

    /// What is wrong, with remedies.
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
                what: "containers are not reached at addresses of their own".into(),
                why: "the engine runs rootless: its networks are not those of this host".into(),
                fix: "publish their ports on this node's address, or run the engine as root".into(),
            });
        }
        problems
    }

    fn engine_problem(&self, fault: &EngineFault) -> Option<Problem> {
        // Absent from the beginning, and not asked for: this host has no containers.
        let absent = matches!(fault, EngineFault::Absent(_));
        if absent && !self.required && self.engine.is_none() {
            return None;
        }
        let fix = match fault {
            EngineFault::Absent(_) | EngineFault::Refused(_) => {
                "start it (`systemctl start docker`), or name its socket in [docker] of meshd.toml"
            }
            EngineFault::Permission(_) => {
                "run meshd as root, or as a member of the group that the socket belongs to"
            }
            _ => "look at its log (`journalctl -u docker`) and restart it",
        };
        Some(Problem {
            what: "the container engine cannot be followed; containers stay as they were".into(),
            why: fault.to_string(),
            fix: fix.into(),
        })
    }
}

/// What the containers have around them.
pub(super) fn surroundings(
    config: &config::DockerSettings,
    node: &crate::model::Label,
    addresses: &[IpAddr],
    block: ipnet::Ipv4Net,
    network: Option<network::Plan>,
) -> Surroundings {
    Surroundings {
        node: node.clone(),
        addresses: addresses.to_vec(),
        block,
        rules: config.rules,
        network,
    }
}
