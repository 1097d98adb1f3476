//! The agent: one task that owns the node and receives events in turn. While the node is up it waits neither for the network nor
//! for the disk, except when it leaves the mesh or moves to another address block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep_until;

use self::joining::{JoinEnded, Joining};
use super::api::Command;
use super::boot;
use super::config::Config;
use super::departing::DepartureSender;
use super::join_problem::JoinProblem;
use super::joined::{Events, JoinedNode, NodeEvent};
use super::report;
use super::state::{Identity, ServicesFault, StateDir};
use super::timers::{Timer, Timers};
use crate::os::proxy::{self, Proxies};
use crate::os::watchdog::ServiceWatchdog;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::Problem;
use crate::services::registry::{Registry, StoredServices};
use crate::tunnel::Tunnel;

mod commands;
mod joining;
mod leaving;

/// The interval at which the tunnel device, the resolvers and the firewall are compared with the wanted state.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(15);
/// The interval at which the agent checks whether the watchdog has to be notified.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(500);

/// The node, joined or not.
pub(super) struct Agent {
    config: Arc<Config>,
    dir: StateDir,
    phase: Phase,
    /// Why the services that were added by command are not known, if they are not.
    services_fault: Option<ServicesFault>,
    departure_sender: DepartureSender,
    /// The problem of a join that nobody waits for: one that continues after a restart, or one with the token file.
    join_problem: Option<JoinProblem>,
    /// The problems of the API over the network.
    api_problems: Vec<Problem>,
    /// The number of joins since the start of meshd.
    joins: u64,
    /// The readiness that was last sent to the service manager.
    readiness: String,
    watchdog: ServiceWatchdog,
    timers: Timers,
}

enum Phase {
    Unjoined,
    Joining(Joining),
    Up(Box<JoinedNode>, Events),
}

/// An event that the agent handles.
enum AgentEvent {
    Command(Box<Command>),
    Node(NodeEvent),
    JoinEnded(Box<JoinEnded>),
    Timers,
    Stop,
}

impl Agent {
    /// Starts the node from the state directory. Without an identity there, the node is unjoined.
    ///
    /// # Errors
    /// The files in the state directory cannot be used, or the node cannot be started on this machine.
    pub(super) async fn start(config: Arc<Config>, dir: StateDir) -> Result<Self, ApiError> {
        let proxy = config.relay.proxy.clone();
        proxy::set_of_process(Proxies::from_environment(proxy));
        leaving::finish(&dir)?;
        let (stored, services_fault) = dir.services::<StoredServices>();
        let phase = match dir.identity()? {
            None => Phase::Unjoined,
            Some(identity) => {
                let registry = Registry::new(config.services.clone(), stored);
                let (node, events) = Box::pin(boot::start(
                    Arc::clone(&config),
                    dir.clone(),
                    identity,
                    registry,
                    None,
                ))
                .await?;
                Phase::Up(Box::new(node), events)
            }
        };
        Ok(Self {
            departure_sender: DepartureSender::start(dir.clone()),
            config,
            dir,
            phase,
            services_fault,
            join_problem: None,
            api_problems: Vec::new(),
            joins: 0,
            readiness: String::new(),
            watchdog: ServiceWatchdog::from_environment(Instant::now()),
            timers: Timers::default(),
        })
    }

    /// Handles events until `stop` arrives.
    ///
    /// # Errors
    /// The tunnel device was removed and cannot be created again.
    pub(super) async fn run(
        &mut self,
        mut commands: mpsc::Receiver<Command>,
        mut stop: oneshot::Receiver<()>,
    ) -> Result<(), ApiError> {
        let (ended_sender, mut ended) = mpsc::channel(1);
        self.resume_join(&ended_sender);
        self.start_timers();
        self.show_readiness();
        self.settle();
        loop {
            let deadline = self.timers.poll_timeout();
            // `select!` chooses at random among the events that are ready, so many events of one kind cannot block the others.
            let event = tokio::select! {
                _ = &mut stop => AgentEvent::Stop,
                event = next_of_node(&mut self.phase) => AgentEvent::Node(event),
                Some(command) = commands.recv() => AgentEvent::Command(Box::new(command)),
                Some(join) = ended.recv() => AgentEvent::JoinEnded(Box::new(join)),
                () = until(deadline) => AgentEvent::Timers,
            };
            match event {
                AgentEvent::Stop => return Ok(()),
                AgentEvent::Command(command) => self.handle_command(*command, &ended_sender).await,
                AgentEvent::JoinEnded(join) => Box::pin(self.handle_join_ended(*join)).await,
                AgentEvent::Node(event) => self.handle_node_event(event).await?,
                AgentEvent::Timers => self.handle_timers().await,
            }
            self.settle();
        }
    }

    /// Applies the changes of an event to all parts of the node, and sets the timers that they need.
    fn settle(&mut self) {
        if let Phase::Up(node, _) = &mut self.phase {
            node.settle();
            node.set_timers(&mut self.timers, Instant::now());
        }
    }

    async fn handle_node_event(&mut self, event: NodeEvent) -> Result<(), ApiError> {
        let Phase::Up(node, _) = &mut self.phase else {
            return Ok(());
        };
        match node.handle_event(event).await? {
            Some(identity) => Box::pin(self.move_to(identity)).await,
            None => Ok(()),
        }
    }

    /// Starts the node again with `identity`, which is on disk and has another address block.
    async fn move_to(&mut self, identity: Identity) -> Result<(), ApiError> {
        let Phase::Up(node, _) = &self.phase else {
            return Ok(());
        };
        let registry = node.workloads.registry.clone();
        self.take_down().await;
        let (config, dir) = (Arc::clone(&self.config), self.dir.clone());
        let (node, events) = Box::pin(boot::start(config, dir, identity, registry, None)).await?;
        self.phase = Phase::Up(Box::new(node), events);
        Ok(())
    }

    fn start_timers(&mut self) {
        let now = Instant::now();
        let next = now + RECONCILE_INTERVAL;
        self.timers.set(Timer::Reconcile, Some(next));
        let watchdog = self.watchdog.pause().map(|_| now);
        self.timers.set(Timer::Watchdog, watchdog);
    }

    async fn handle_timers(&mut self) {
        let now = Instant::now();
        while let Some(timer) = self.timers.poll(now) {
            match timer {
                Timer::Watchdog => {
                    self.feed_watchdog(now);
                    self.timers.set(timer, Some(now + WATCHDOG_INTERVAL));
                }
                Timer::Reconcile => {
                    if let Phase::Up(node, _) = &mut self.phase {
                        node.reconcile().await;
                    }
                    self.show_readiness();
                    self.timers.set(timer, Some(now + RECONCILE_INTERVAL));
                }
                _ => {
                    if let Phase::Up(node, _) = &mut self.phase {
                        node.handle_timer(timer, now);
                    }
                }
            }
        }
    }

    /// Notifies the service manager's watchdog while the loops that do the work make progress: the loop of the agent, which
    /// calls this, and the threads of the tunnel.
    fn feed_watchdog(&mut self, now: Instant) {
        let tunnel = match &self.phase {
            Phase::Up(node, _) => Some(&node.device.tunnel),
            Phase::Unjoined | Phase::Joining(_) => None,
        };
        let loops = tunnel.map_or(&[][..], Tunnel::progress);
        if self.watchdog.feed(loops, now)
            && let Some(tunnel) = tunnel
        {
            tunnel.wake_threads();
        }
    }

    /// Sends the readiness to the service manager and to the log, if it has changed. It does not decide when the unit counts
    /// as started, because meshd runs without a mesh as well.
    fn show_readiness(&mut self) {
        let readiness = match &self.phase {
            Phase::Up(node, _) => report::not_ready(node)
                .map_or_else(|| "ready".to_owned(), |why| format!("not ready: {why}")),
            Phase::Unjoined => "not joined to a mesh".to_owned(),
            Phase::Joining(_) => "joining a mesh".to_owned(),
        };
        if readiness != self.readiness {
            tracing::info!("the node is {readiness}");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&readiness)]);
            self.readiness = readiness;
        }
    }

    /// Stops the node and undoes its changes to the machine.
    pub(super) async fn stop(mut self) {
        self.take_down().await;
    }

    async fn take_down(&mut self) {
        if let Phase::Up(node, events) = std::mem::replace(&mut self.phase, Phase::Unjoined) {
            node.stop(events).await;
        }
    }

    fn node(&mut self) -> Result<&mut JoinedNode, ApiError> {
        match &mut self.phase {
            Phase::Up(node, _) => Ok(node),
            Phase::Unjoined => Err(ApiError::new(
                ErrorCode::Conflict,
                "this node has not joined a mesh; run `meshctl join -` and give it a token, which `meshctl token create` prints where the mesh key is",
            )),
            Phase::Joining(_) => Err(ApiError::new(
                ErrorCode::Conflict,
                "this node is joining; try again in a moment",
            )),
        }
    }
}

/// The next event of a joined node's tasks.
async fn next_of_node(phase: &mut Phase) -> NodeEvent {
    match phase {
        Phase::Up(_, events) => events.next().await,
        Phase::Unjoined | Phase::Joining(_) => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
