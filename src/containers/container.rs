//! One exposed container: its place on the network, its state, and what is said of it. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::inspect::{EngineHealth, Inspected, Published, Status};
use super::labels::{Exposed, HealthSource, printable};
use crate::model::Label;
use crate::protocol::local::Problem;
use crate::records::kinds::{Health, Instance, Port, Source};

/// A container that has not come up for this long is shown to the mesh as starting. Before, nothing is said: one that
/// dies at once, again and again, is not to keep the whole mesh busy.
pub const SHOWN_AFTER: Duration = Duration::from_secs(2);
/// A container that does not accept connections for this long is a problem.
const SLOW: Duration = Duration::from_secs(30);
/// One that ends within this of its start, and was not asked to, is a problem.
const YOUNG: Duration = Duration::from_secs(10);
/// Ends within this, and how many of them are a loop.
const LOOP_WINDOW: Duration = Duration::from_secs(120);
const LOOP_ENDS: usize = 3;

/// What a container is at.
///
/// ```text
/// starting ──healthy──> ready ──stop signal──> draining ──ended, or drained long enough──> gone
///     └──────────stop signal──────────────────────┘                    started again ──> starting
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Mapped, so that it is known as itself to whom it calls; not published.
    Starting,
    /// Published.
    Ready,
    /// Out of the answers, still mapped.
    Draining {
        /// Since when.
        since: Instant,
    },
    /// Unmapped.
    Gone,
}

/// Where a container is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At an instance address, mapped to its own.
    Mapped {
        /// In the node's block.
        address: Ipv4Addr,
        /// On its bridge; the same, where the engine gives out mesh addresses.
        container: Ipv4Addr,
    },
    /// In the host's network.
    Host,
}

/// What the kernel does for instance addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wired {
    /// It maps these to the containers' own addresses. One that it does not map yet is not published.
    Mapped(BTreeMap<Ipv4Addr, Ipv4Addr>),
    /// It cannot map any: containers are reached at ports that they publish, where they do.
    Impossible,
}

/// An exposed container.
#[derive(Debug, Clone)]
pub struct Container {
    pub(super) name: String,
    pub(super) label: Label,
    pub(super) exposed: Exposed,
    pub(super) place: Place,
    pub(super) run: String,
    pub(super) process: Process,
    pub(super) paused: bool,
    published: Vec<Published>,
    state: State,
    /// The result of the HEALTHCHECK.
    engine_health: Option<EngineHealth>,
    /// Whether the last probe could connect.
    probe: Option<bool>,
    history: History,
}

/// The first process of a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) pid: Option<u32>,
    /// The signal that asks it to end.
    pub(super) stop_signal: u32,
}

/// When the container was started and when it ended.
#[derive(Debug, Clone)]
struct History {
    started: Instant,
    /// The ends within [`LOOP_WINDOW`] that nobody asked for.
    ends: Vec<Instant>,
    ended_young: bool,
}

impl Container {
    /// One seen for the first time, running.
    pub(super) fn new(
        inspected: &Inspected,
        exposed: Exposed,
        label: Label,
        place: Place,
        now: Instant,
    ) -> Self {
        let mut container = Self {
            name: inspected.name.clone(),
            label,
            exposed,
            place,
            run: inspected.run.clone(),
            process: Process {
                pid: inspected.pid,
                stop_signal: inspected.stop_signal,
            },
            paused: inspected.status == Status::Paused,
            published: inspected.published.clone(),
            state: State::Starting,
            engine_health: inspected.health,
            probe: None,
            history: History {
                started: now,
                ends: Vec::new(),
                ended_young: false,
            },
        };
        container.settle();
        container
    }

    /// What it is at.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The engine describes the run that is known already.
    pub(super) fn handle_same_run(
        &mut self,
        inspected: &Inspected,
        exposed: Exposed,
        place: Place,
    ) {
        if self.place != place {
            self.probe = None;
        }
        self.place = place;
        self.name.clone_from(&inspected.name);
        self.exposed = exposed;
        self.process.pid = inspected.pid;
        self.paused = inspected.status == Status::Paused;
        self.published.clone_from(&inspected.published);
        self.engine_health = inspected.health;
        self.settle();
    }

    /// It was started again.
    pub(super) fn handle_next_run(
        &mut self,
        inspected: &Inspected,
        exposed: Exposed,
        place: Place,
        now: Instant,
    ) {
        let mut next = Self::new(inspected, exposed, self.label.clone(), place, now);
        next.history.ends = std::mem::take(&mut self.history.ends);
        *self = next;
    }

    /// Asked to end.
    pub(super) fn handle_stop_signal(&mut self, now: Instant) {
        if matches!(self.state, State::Starting | State::Ready) {
            self.transition_to(State::Draining { since: now });
        }
    }

    /// It ended.
    pub(super) fn handle_end(&mut self, now: Instant) {
        if self.state == State::Gone {
            return;
        }
        let asked = matches!(self.state, State::Draining { .. });
        self.history.ended_young =
            !asked && now.saturating_duration_since(self.history.started) < YOUNG;
        if !asked {
            self.history
                .ends
                .retain(|end| now.saturating_duration_since(*end) < LOOP_WINDOW);
            self.history.ends.push(now);
        }
        self.transition_to(State::Gone);
    }

    /// Its HEALTHCHECK says something else.
    pub(super) fn handle_engine_health(&mut self, health: EngineHealth) {
        self.engine_health = Some(health);
        self.settle();
    }

    /// A probe's verdict.
    pub(super) fn handle_probe(&mut self, accepts: bool) {
        self.probe = Some(accepts);
        self.settle();
    }

    /// Whether something follows from the time alone.
    pub(super) fn handle_time(&mut self, now: Instant) -> bool {
        match (self.state, self.exposed.drain) {
            (State::Draining { since }, Some(most))
                if now.saturating_duration_since(since) >= most =>
            {
                self.transition_to(State::Gone);
                true
            }
            // Once, when the time has come for it to be shown.
            (State::Starting, _) => {
                let age = now.saturating_duration_since(self.history.started);
                (SHOWN_AFTER..SHOWN_AFTER + Duration::from_secs(2)).contains(&age)
            }
            _ => false,
        }
    }

    /// Starting becomes ready with the first good word.
    fn settle(&mut self) {
        if self.state == State::Starting && self.health().is_usable() {
            self.transition_to(State::Ready);
        }
    }

    fn transition_to(&mut self, state: State) {
        tracing::debug!(container = %self.name, from = ?self.state, to = ?state, "container");
        self.state = state;
    }

    /// How it is, whether it is published or not.
    pub(super) fn health(&self) -> Health {
        if matches!(self.state, State::Draining { .. } | State::Gone) {
            return Health::Draining;
        }
        let verdict = match self.exposed.health {
            HealthSource::None => return Health::Unknown,
            HealthSource::Tcp(_) => self.probe,
            HealthSource::Engine => match self.engine_health {
                Some(EngineHealth::Healthy) => Some(true),
                Some(EngineHealth::Unhealthy) => Some(false),
                Some(EngineHealth::Starting) | None => None,
            },
        };
        match (verdict, self.state) {
            (Some(true), _) => Health::Healthy,
            (_, State::Starting) => Health::Starting,
            (Some(false), _) => Health::Unhealthy,
            // An engine that was restarted begins its checks afresh; that says nothing against the container.
            (None, _) => Health::Healthy,
        }
    }

    /// Whether its address is mapped.
    pub(super) fn is_mapped(&self) -> bool {
        self.state != State::Gone
    }

    /// Where a connection shows whether it is up, if that is how its health is known; `node` stands for the host.
    pub(super) fn probe_target(&self, node: IpAddr) -> Option<SocketAddr> {
        let HealthSource::Tcp(port) = self.exposed.health else {
            return None;
        };
        if !matches!(self.state, State::Starting | State::Ready) || self.paused {
            return None;
        }
        let address = match self.place {
            Place::Mapped { container, .. } => IpAddr::V4(container),
            Place::Host => node,
        };
        Some(SocketAddr::new(address, port.get()))
    }

    /// What the mesh is told of it, if anything; `drained` if the operator wants no new clients for it. `node` are the
    /// addresses of the host.
    pub(super) fn instance(
        &self,
        drained: bool,
        node: &[IpAddr],
        wired: &Wired,
        now: Instant,
    ) -> Option<Instance> {
        let young = now.saturating_duration_since(self.history.started) < SHOWN_AFTER;
        match self.state {
            State::Gone => return None,
            State::Starting if young => return None,
            _ if self.paused => return None,
            _ => {}
        }
        let health = match self.health() {
            Health::Starting => Health::Starting,
            _ if drained => Health::Draining,
            health => health,
        };
        let (addresses, ports) = self.reached_at(node, wired)?;
        Some(Instance {
            id: self.label.clone(),
            addresses,
            ports,
            health,
            weight: self.exposed.weight,
            priority: self.exposed.priority,
            source: Source::Docker,
        })
    }

    /// Its addresses and ports as others see them; none if there is no way to it.
    fn reached_at(&self, node: &[IpAddr], wired: &Wired) -> Option<(Vec<IpAddr>, Vec<Port>)> {
        let ports = self.exposed.ports.clone();
        match (self.place, wired) {
            (Place::Host, _) => Some((node.to_vec(), ports)),
            (Place::Mapped { address, container }, Wired::Mapped(mapped)) => {
                (mapped.get(&address) == Some(&container)).then(|| (vec![address.into()], ports))
            }
            (Place::Mapped { .. }, Wired::Impossible) => {
                let own = *node.first()?;
                let ports: Vec<Port> = ports
                    .into_iter()
                    .filter_map(|port| {
                        let there = self.published.iter().find(|published| {
                            published.protocol == port.protocol
                                && published.port == port.number
                                && published.address.is_none_or(|at| at == own)
                        })?;
                        Some(Port {
                            number: there.host_port,
                            ..port
                        })
                    })
                    .collect();
                (!ports.is_empty()).then(|| (vec![own], ports))
            }
        }
    }

    /// What is wrong with it, and what to do.
    pub(super) fn fault(&self, now: Instant) -> Option<Problem> {
        let name = printable(&self.name);
        let problem = |why: String, fix: &str| {
            Some(Problem {
                what: format!("the container {name} is not in use"),
                why,
                fix: fix.into(),
            })
        };
        let loops = self
            .history
            .ends
            .iter()
            .filter(|end| now.saturating_duration_since(**end) < LOOP_WINDOW)
            .count();
        let age = now.saturating_duration_since(self.history.started);
        match self.state {
            _ if loops >= LOOP_ENDS => problem(
                format!("it ended {loops} times within two minutes"),
                "look at `docker logs` for why",
            ),
            State::Gone if self.history.ended_young => problem(
                "it ended within seconds of its start".into(),
                "look at `docker logs` for why",
            ),
            State::Gone | State::Draining { .. } => None,
            _ if self.paused => problem("it is paused".into(), "run `docker unpause`"),
            State::Starting if age >= SLOW => problem(
                self.slowness(),
                "look at `docker logs`; if the port is not the service's, name the right one with the label mesh.port",
            ),
            _ if !self.exposed.unknown.is_empty() => Some(Problem {
                what: format!("a label of the container {name} has no effect"),
                why: format!("meshd knows no label {}", self.exposed.unknown.join(", ")),
                fix: "take it away or put it right".into(),
            }),
            _ => None,
        }
    }

    fn slowness(&self) -> String {
        match self.exposed.health {
            HealthSource::Tcp(port) => {
                format!("its port {port} has not accepted a connection since it was started")
            }
            _ => "its HEALTHCHECK has not passed since it was started".into(),
        }
    }
}
