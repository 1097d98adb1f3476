//! One exposed container: its address, its state, and the instance that is published for it. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::inspect::{EngineHealth, Inspected, Published, Status};
use super::labels::{Exposed, HealthSource, printable};
use crate::model::Label;
use crate::protocol::local::Problem;
use crate::records::kinds::{Health, Instance, Port, Protocol, Source};

/// A container that is not ready after this time is published as starting. Before, nothing is published, so that a
/// container that fails at each start does not cause records for the whole mesh.
pub const PUBLISH_DELAY: Duration = Duration::from_secs(2);
/// A container that is not ready after this time is a problem.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A container that ends within this time after its start, without a stop signal, is a problem.
const EARLY_END: Duration = Duration::from_secs(10);
/// The period in which ends are counted, and the number of ends that is a loop of restarts.
const LOOP_WINDOW: Duration = Duration::from_secs(120);
const LOOP_ENDS: usize = 3;

/// The state of a container.
///
/// ```text
/// starting ──healthy──> ready ──stop signal──> draining ──ended, or drained long enough──> gone
///     └──────────stop signal──────────────────────┘                    started again ──> starting
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its address is mapped, so that its own connections have the right source. It is not published.
    Starting,
    /// Published.
    Ready,
    /// It is not in DNS answers any more, but its address is still mapped.
    Draining {
        /// When draining began.
        since: Instant,
    },
    /// Its address is not mapped.
    Gone,
}

/// How a container is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// By instance addresses, which are mapped to the container's own addresses.
    Mapped(Places),
    /// By the host's addresses.
    Host,
}

/// Where a container is reached, in one family at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places {
    pub v4: Option<Place<Ipv4Addr>>,
    pub v6: Option<Place<Ipv6Addr>>,
}

/// An instance address, and what it is mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<A> {
    /// The instance address.
    pub address: A,
    /// The address on its bridge. The two are the same if the engine assigns mesh addresses.
    pub container: A,
}

impl Places {
    /// The places of both families, that of IPv4 first.
    fn all(&self) -> impl Iterator<Item = Place<IpAddr>> + use<> {
        let v4 = self.v4.map(|place| Place {
            address: place.address.into(),
            container: place.container.into(),
        });
        let v6 = self.v6.map(|place| Place {
            address: place.address.into(),
            container: place.container.into(),
        });
        v4.into_iter().chain(v6)
    }

    /// The container's own address that decides about its health: that of IPv4, if there is one.
    fn main(&self) -> Option<IpAddr> {
        self.all().next().map(|place| place.container)
    }

    /// The container's own IPv6 address.
    fn own_v6(&self) -> Option<Ipv6Addr> {
        self.v6.map(|place| place.container)
    }

    /// Whether one of these addresses is the container's own one.
    pub(super) fn is_at(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> bool {
        let own_v4 = self.v4.map(|place| place.container);
        (v4.is_some() && v4 == own_v4) || (v6.is_some() && v6 == self.own_v6())
    }
}

/// The mappings that the kernel applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppliedMappings {
    /// The kernel maps these instance addresses to containers' own addresses. A container that is not mapped yet is not
    /// published.
    Mapped(BTreeMap<IpAddr, IpAddr>),
    /// The kernel cannot map addresses. Containers are reached at the ports that they publish on the host.
    Unavailable,
}

/// An exposed container.
#[derive(Debug, Clone)]
pub struct Container {
    pub(super) name: String,
    pub(super) label: Label,
    pub(super) exposed: Exposed,
    pub(super) attachment: Attachment,
    pub(super) run: String,
    pub(super) process: Process,
    pub(super) paused: bool,
    published: Vec<Published>,
    state: State,
    /// The result of its HEALTHCHECK.
    engine_health: Option<EngineHealth>,
    probes: Probes,
    history: History,
}

/// Whether the last probes could connect.
#[derive(Debug, Clone, Copy, Default)]
struct Probes {
    /// At the address that decides about the health.
    main: Option<bool>,
    /// At the IPv6 address of a container that has an IPv4 address too.
    v6: Option<bool>,
}

/// The first process of a container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) pid: Option<u32>,
    /// The signal with which the engine stops it.
    pub(super) stop_signal: u32,
}

/// When the container was started and when it ended.
#[derive(Debug, Clone)]
struct History {
    started: Instant,
    /// The ends within [`LOOP_WINDOW`] without a stop signal.
    ends: Vec<Instant>,
    ended_early: bool,
    /// Whether it was noticed that [`PUBLISH_DELAY`] has passed since the start.
    is_delay_over: bool,
}

impl Container {
    /// A running container that was not known before.
    pub(super) fn new(
        inspected: &Inspected,
        exposed: Exposed,
        label: Label,
        attachment: Attachment,
        now: Instant,
    ) -> Self {
        let mut container = Self {
            name: inspected.name.clone(),
            label,
            exposed,
            attachment,
            run: inspected.run.clone(),
            process: Process {
                pid: inspected.pid,
                stop_signal: inspected.stop_signal,
            },
            paused: inspected.status == Status::Paused,
            published: inspected.published.clone(),
            state: State::Starting,
            engine_health: inspected.health,
            probes: Probes::default(),
            history: History {
                started: now,
                ends: Vec::new(),
                ended_early: false,
                is_delay_over: false,
            },
        };
        container.update_readiness();
        container
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Handles a description of the run that is known already.
    pub(super) fn handle_same_run(
        &mut self,
        inspected: &Inspected,
        exposed: Exposed,
        attachment: Attachment,
    ) {
        let before = self.places();
        self.attachment = attachment;
        let now = self.places();
        // A probe whose address stays goes on, and reports nothing until its verdict changes.
        if before.main() != now.main() {
            self.probes.main = None;
        }
        if before.own_v6() != now.own_v6() {
            self.probes.v6 = None;
        }
        self.name.clone_from(&inspected.name);
        self.exposed = exposed;
        self.process.pid = inspected.pid;
        self.paused = inspected.status == Status::Paused;
        self.published.clone_from(&inspected.published);
        self.engine_health = inspected.health;
        self.update_readiness();
    }

    /// Handles the next start of the container.
    pub(super) fn handle_next_run(
        &mut self,
        inspected: &Inspected,
        exposed: Exposed,
        attachment: Attachment,
        now: Instant,
    ) {
        let mut next = Self::new(inspected, exposed, self.label.clone(), attachment, now);
        next.history.ends = std::mem::take(&mut self.history.ends);
        *self = next;
    }

    /// Handles a stop signal.
    pub(super) fn handle_stop_signal(&mut self, now: Instant) {
        if matches!(self.state, State::Starting | State::Ready) {
            self.transition_to(State::Draining { since: now });
        }
    }

    /// Handles the end of the container.
    pub(super) fn handle_end(&mut self, now: Instant) {
        if self.state == State::Gone {
            return;
        }
        let was_requested = matches!(self.state, State::Draining { .. });
        self.history.ended_early =
            !was_requested && now.saturating_duration_since(self.history.started) < EARLY_END;
        if !was_requested {
            self.history
                .ends
                .retain(|end| now.saturating_duration_since(*end) < LOOP_WINDOW);
            self.history.ends.push(now);
        }
        self.transition_to(State::Gone);
    }

    /// Handles a new result of its HEALTHCHECK.
    pub(super) fn handle_engine_health(&mut self, health: EngineHealth) {
        self.engine_health = Some(health);
        self.update_readiness();
    }

    /// Handles a new result of a probe.
    pub(super) fn handle_probe(&mut self, accepts: bool) {
        self.probes.main = Some(accepts);
        self.update_readiness();
    }

    /// Handles a new result of a probe at [`Container::probe_target_v6`].
    pub(super) fn handle_probe_v6(&mut self, accepts: bool) {
        self.probes.v6 = Some(accepts);
    }

    /// Checks the time limits of draining and of starting. Returns whether the published instances or the mappings
    /// may have changed.
    pub(super) fn handle_time(&mut self, now: Instant) -> bool {
        match (self.state, self.exposed.drain) {
            (State::Draining { since }, Some(most))
                if now.saturating_duration_since(since) >= most =>
            {
                self.transition_to(State::Gone);
                true
            }
            // The container is published as starting once this delay is over.
            (State::Starting, _) if !self.history.is_delay_over => {
                let age = now.saturating_duration_since(self.history.started);
                self.history.is_delay_over = age >= PUBLISH_DELAY;
                self.history.is_delay_over
            }
            _ => false,
        }
    }

    /// Changes from starting to ready with the first good result.
    fn update_readiness(&mut self) {
        if self.state == State::Starting && self.health().is_usable() {
            self.transition_to(State::Ready);
        }
    }

    fn transition_to(&mut self, state: State) {
        tracing::debug!(container = %self.name, from = ?self.state, to = ?state, "container");
        self.state = state;
    }

    /// The health, whether the container is published or not.
    pub(super) fn health(&self) -> Health {
        if matches!(self.state, State::Draining { .. } | State::Gone) {
            return Health::Draining;
        }
        let verdict = match self.exposed.health {
            HealthSource::None => return Health::Unknown,
            HealthSource::Tcp(_) => self.probes.main,
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
            // An engine that was restarted begins its checks again. This is no sign of a problem of the container.
            (None, _) => Health::Healthy,
        }
    }

    /// Why its instance is unhealthy, draining or withdrawn. None if nothing is wrong with the container.
    pub(super) fn why_unused(&self) -> Option<&'static str> {
        match (self.state, self.health()) {
            (State::Gone, _) if self.history.ended_early => {
                Some("its container ended within seconds of its start")
            }
            (State::Gone, _) => Some("its container ended"),
            (State::Draining { .. }, _) => Some("its container received its stop signal"),
            _ if self.paused => Some("its container is paused"),
            (_, Health::Unhealthy) => match self.exposed.health {
                HealthSource::Tcp(_) => Some("its port accepts no connection"),
                _ => Some("the HEALTHCHECK of its container fails"),
            },
            _ => None,
        }
    }

    /// Where it is reached. A container in the host's network has no place of its own.
    pub(super) fn places(&self) -> Places {
        match self.attachment {
            Attachment::Mapped(places) => places,
            Attachment::Host => Places::default(),
        }
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.state != State::Gone
    }

    /// The address to probe, if the container's health is determined by a TCP connection. `node` is the address of the
    /// host.
    pub(super) fn probe_target(&self, node: IpAddr) -> Option<SocketAddr> {
        let HealthSource::Tcp(port) = self.exposed.health else {
            return None;
        };
        let address = match self.attachment {
            Attachment::Mapped(places) => places.main()?,
            Attachment::Host => node,
        };
        let target = SocketAddr::new(address, port.get());
        self.is_running().then_some(target)
    }

    /// The IPv6 address to probe, if the container has an IPv4 address too.
    pub(super) fn probe_target_v6(&self) -> Option<SocketAddr> {
        let port = port_v6(&self.exposed).filter(|_| self.is_running())?;
        let places = self.places();
        let v6 = places.v6.filter(|_| places.v4.is_some())?;
        Some(SocketAddr::new(v6.container.into(), port.get()))
    }

    /// Whether its program may accept connections.
    fn is_running(&self) -> bool {
        matches!(self.state, State::Starting | State::Ready) && !self.paused
    }

    /// Whether the IPv6 address of a container at `places` is published. A program may listen on IPv4 alone. So an IPv6 address beside
    /// one of IPv4 is published only after a probe connected there, if there is a port to probe.
    fn serves_v6(&self, places: Places) -> bool {
        let is_probed = port_v6(&self.exposed).is_some();
        !is_probed || places.v4.is_none() || self.probes.v6 == Some(true)
    }

    /// The instance to publish, if there is one. `drained` says whether an operator drained the service. `node` are the
    /// addresses of the host.
    pub(super) fn instance(
        &self,
        drained: bool,
        node: &[IpAddr],
        applied: &AppliedMappings,
        now: Instant,
    ) -> Option<Instance> {
        let young = now.saturating_duration_since(self.history.started) < PUBLISH_DELAY;
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
        let (addresses, ports) = self.reached_at(node, applied)?;
        Some(Instance {
            id: self.label.clone(),
            addresses,
            ports,
            health,
            weight: self.exposed.weight,
            priority: self.exposed.priority,
            source: Source::Docker,
            allow: self.exposed.allow.clone(),
            public: self.exposed.public.clone(),
        })
    }

    /// The addresses and ports at which other nodes reach it. None if they cannot.
    fn reached_at(
        &self,
        node: &[IpAddr],
        applied: &AppliedMappings,
    ) -> Option<(Vec<IpAddr>, Vec<Port>)> {
        let ports = self.exposed.ports.clone();
        match (self.attachment, applied) {
            (Attachment::Host, _) => Some((node.to_vec(), ports)),
            (Attachment::Mapped(places), AppliedMappings::Mapped(mapped)) => {
                let is_mapped =
                    |place: &Place<IpAddr>| mapped.get(&place.address) == Some(&place.container);
                let serves_v6 = self.serves_v6(places);
                let there = places.all().filter(is_mapped);
                let there = there.filter(|place| place.address.is_ipv4() || serves_v6);
                let there: Vec<IpAddr> = there.map(|place| place.address).collect();
                (!there.is_empty()).then_some((there, ports))
            }
            (Attachment::Mapped(_), AppliedMappings::Unavailable) => {
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

    /// The problem of the container and its remedy, if there is a problem.
    pub(super) fn problem(&self, now: Instant) -> Option<Problem> {
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
                "look at `docker logs` for the reason",
            ),
            State::Gone if self.history.ended_early => problem(
                "it ended within seconds of its start".into(),
                "look at `docker logs` for the reason",
            ),
            State::Gone | State::Draining { .. } => None,
            _ if self.paused => problem("it is paused".into(), "run `docker unpause`"),
            State::Starting if age >= START_TIMEOUT => problem(
                self.slowness(),
                "look at `docker logs`; if this is not the port of the service, set the right one with the label mesh.port",
            ),
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

/// The port to probe at the IPv6 address of a container that has an IPv4 address too. A HEALTHCHECK does not tell in which family the
/// program listens.
fn port_v6(exposed: &Exposed) -> Option<NonZeroU16> {
    match exposed.health {
        HealthSource::Tcp(port) => Some(port),
        HealthSource::Engine => {
            let mut ports = exposed.ports.iter();
            let tcp = ports.find(|port| port.protocol == Protocol::Tcp);
            tcp.map(|port| port.number)
        }
        HealthSource::None => None,
    }
}
