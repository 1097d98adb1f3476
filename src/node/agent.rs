//! The agent: one task that owns the node and takes events in turn. It never waits for the network.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::api::{Command, Reply};
use super::config::Config;
use super::departing::Courier;
use super::docker::{Docker, DockerEvents};
use super::gossip::PeerEvent;
use super::joining::{self, Admitted, Attempt, Ground};
use super::mesh::{Events, Mesh};
use super::replica::{Answer, StreamEvent, WriteOutcome};
use super::report;
use super::state::StateDir;
use crate::containers::{ContainerId, Report};
use crate::model::address::{Block, is_never_remote};
use crate::model::name::LabelError;
use crate::model::{Label, ServiceName};
use crate::os::watchdog::{Look, Watchdog};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    AddService, Join, Joined, KeyRotated, NodeState, Problem, Renamed, SCHEMA, ServiceChanged,
};
use crate::records::kinds::default_weight;
use crate::services::registry::{Key, Registered, Registry, RegistryError, Stored};
use crate::tunnel::Tunnel;

mod leaving;

/// What is returned to the caller of a join that `meshctl leave` ended.
pub(super) const GIVEN_UP: &str = "the join was given up: somebody ran `meshctl leave`";

const TICK: Duration = Duration::from_millis(500);
const RECONCILE: Duration = Duration::from_secs(15);
/// How long a change of a service waits for the coordinator's word before it is said that it follows later.
const PUBLISH_WAIT: Duration = Duration::from_secs(2);
/// How long a join waits until the coordinator has accepted this node's record.
const TAKEN_WAIT: Duration = Duration::from_secs(8);

/// The node, joined or not.
pub(super) struct Agent {
    config: Arc<Config>,
    dir: StateDir,
    phase: Phase,
    /// What was wrong with the services' file.
    damaged_services: Option<String>,
    courier: Courier,
    /// What keeps this node from joining by itself.
    join_problem: Option<Problem>,
    /// Joins begun since the start.
    joins: u64,
    /// The readiness that the service manager was last sent.
    readiness: String,
    /// None if the service manager expects no watchdog messages.
    watchdog: Option<Watchdog>,
    /// The threads that had made no progress at the last check.
    stuck: Vec<String>,
}

enum Phase {
    Unjoined,
    Joining(Joining),
    Up(Box<Mesh>, Events),
}

/// A join under way.
struct Joining {
    /// Which one: one that was given up may end all the same.
    number: u64,
    task: AbortHandle,
    /// Who waits for it; nobody, if it goes on after a restart.
    reply: Option<Reply<Joined>>,
}

/// A join that ended, one way or the other.
struct JoinEnded {
    number: u64,
    result: Result<Admitted, ApiError>,
}

/// What happened next.
enum Happened {
    Command(Box<Command>),
    Stream(StreamEvent),
    Written(WriteOutcome),
    Verdict(Key, bool),
    Engine(Vec<Report>),
    Probes(Vec<(ContainerId, bool)>),
    Wired,
    Host,
    Peers(PeerEvent),
    DeviceGone,
    Leased(Block),
    JoinEnded(Box<JoinEnded>),
    Tick,
    Reconcile,
    Stop,
}

impl Agent {
    /// Starts unjoined, or from what is on disk.
    ///
    /// # Errors
    /// What is on disk cannot be used, or the machine does not allow it.
    pub(super) async fn start(config: Arc<Config>, dir: StateDir) -> Result<Self, ApiError> {
        leaving::finish(&dir)?;
        let (stored, damaged_services) = dir.services::<Stored>();
        let phase = match dir.identity()? {
            None => Phase::Unjoined,
            Some(identity) => {
                let registry = Registry::new(config.services.clone(), stored);
                let (mesh, events) =
                    Mesh::start(Arc::clone(&config), dir.clone(), identity, registry, None).await?;
                Phase::Up(Box::new(mesh), events)
            }
        };
        Ok(Self {
            courier: Courier::start(dir.clone()),
            config,
            dir,
            phase,
            damaged_services,
            join_problem: None,
            joins: 0,
            readiness: String::new(),
            watchdog: sd_notify::watchdog_enabled()
                .map(|interval| Watchdog::new(interval, Instant::now())),
            stuck: Vec::new(),
        })
    }

    /// Takes events in turn until told to stop.
    ///
    /// # Errors
    /// The tunnel device was removed and cannot be made again.
    pub(super) async fn run(
        &mut self,
        mut commands: mpsc::Receiver<Command>,
        mut stop: oneshot::Receiver<()>,
    ) -> Result<(), ApiError> {
        let (ended_sender, mut ended) = mpsc::channel(1);
        self.resume_join(&ended_sender);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconciles = interval(RECONCILE);
        reconciles.set_missed_tick_behavior(MissedTickBehavior::Delay);
        reconciles.reset();
        self.show_readiness();
        loop {
            self.feed_watchdog();
            let happened = tokio::select! {
                biased;
                _ = &mut stop => Happened::Stop,
                Some(event) = next_event(&mut self.phase) => event,
                Some(command) = commands.recv() => Happened::Command(Box::new(command)),
                Some(join) = ended.recv() => Happened::JoinEnded(Box::new(join)),
                _ = ticks.tick() => Happened::Tick,
                _ = reconciles.tick() => Happened::Reconcile,
            };
            match happened {
                Happened::Stop => return Ok(()),
                Happened::Command(command) => self.handle_command(*command, &ended_sender).await,
                Happened::JoinEnded(join) => self.handle_join_ended(*join).await,
                Happened::Stream(event) => self.with_mesh(|mesh| mesh.handle_stream(event)),
                Happened::Written(outcome) => {
                    self.with_mesh(|mesh| mesh.handle_written(&outcome));
                }
                Happened::Verdict(key, healthy) => self.with_mesh(|mesh| {
                    mesh.registry.set_health(&key, healthy);
                    mesh.publish_own();
                }),
                Happened::Engine(reports) => self.with_mesh(|mesh| mesh.handle_engine(reports)),
                Happened::Probes(verdicts) => self.with_mesh(|mesh| mesh.handle_probes(verdicts)),
                Happened::Wired => self.with_mesh(Mesh::handle_wired),
                Happened::Host => {
                    if let Phase::Up(mesh, _) = &mut self.phase {
                        mesh.handle_host().await;
                    }
                }
                Happened::Peers(event) => self.with_mesh(|mesh| mesh.handle_peer_event(event)),
                Happened::DeviceGone => {
                    if let Phase::Up(mesh, _) = &mut self.phase {
                        mesh.restore_device().await?;
                    }
                }
                Happened::Leased(block) => self.handle_lease(block).await?,
                Happened::Tick => self.with_mesh(Mesh::tick),
                Happened::Reconcile => {
                    if let Phase::Up(mesh, _) = &mut self.phase {
                        mesh.reconcile().await;
                    }
                    self.show_readiness();
                }
            }
        }
    }

    /// Sends the service manager a watchdog message while the loops that do the work make progress: the loop of the agent, which
    /// calls this, and the threads of the tunnel.
    fn feed_watchdog(&mut self) {
        let now = Instant::now();
        let Some(watchdog) = self.watchdog.as_mut().filter(|w| w.is_due(now)) else {
            return;
        };
        let tunnel = match &self.phase {
            Phase::Up(mesh, _) => Some(&mesh.tunnel),
            Phase::Unjoined | Phase::Joining(_) => None,
        };
        let loops = tunnel.map_or(&[][..], Tunnel::progress);
        let stuck = match watchdog.look(loops, now) {
            Look::Alive => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                Vec::new()
            }
            Look::Stuck(stuck) => stuck,
        };
        if let Some(tunnel) = tunnel {
            tunnel.wake_threads();
        }
        if stuck != self.stuck && !stuck.is_empty() {
            let threads = stuck.join(", ");
            tracing::error!(%threads, "threads make no progress; if this lasts, the service manager ends meshd");
        }
        self.stuck = stuck;
    }

    /// Shows the service manager, and the log, whether the node is ready, when that changed. The unit counts as started
    /// before: meshd runs unjoined as well.
    fn show_readiness(&mut self) {
        let readiness = match &self.phase {
            Phase::Up(mesh, _) => report::not_ready(mesh)
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

    /// Takes back what was put on the machine.
    pub(super) async fn stop(mut self) {
        self.take_down().await;
    }

    async fn take_down(&mut self) {
        if let Phase::Up(mesh, events) = std::mem::replace(&mut self.phase, Phase::Unjoined) {
            mesh.stop(events).await;
        }
    }

    fn with_mesh(&mut self, act: impl FnOnce(&mut Mesh)) {
        if let Phase::Up(mesh, _) = &mut self.phase {
            act(mesh);
        }
    }

    fn mesh(&mut self) -> Result<&mut Mesh, ApiError> {
        match &mut self.phase {
            Phase::Up(mesh, _) => Ok(mesh),
            Phase::Unjoined => Err(ApiError::new(
                ErrorCode::Conflict,
                "this node has not joined a mesh; run `meshctl join TOKEN`",
            )),
            Phase::Joining(_) => Err(ApiError::new(
                ErrorCode::Conflict,
                "this node is joining; try again in a moment",
            )),
        }
    }

    async fn handle_command(&mut self, command: Command, ended: &mpsc::Sender<JoinEnded>) {
        match command {
            Command::Status(reply) => {
                let mut status = match &self.phase {
                    Phase::Up(mesh, _) => report::status(mesh, self.damaged_services.as_deref()),
                    Phase::Unjoined => self.bare_status(NodeState::Unjoined),
                    Phase::Joining(_) => self.bare_status(NodeState::Joining),
                };
                let token_file = self.config.token_file.as_deref();
                let exposed = token_file.and_then(super::unattended::exposed);
                status.problems.extend(exposed);
                let _ = reply.send(Ok(status));
            }
            Command::System(reply) => {
                let mesh = if let Phase::Up(mesh, _) = &self.phase {
                    Some(&**mesh)
                } else {
                    None
                };
                let _ = reply.send(Ok(report::system(&self.config, mesh)));
            }
            Command::Metrics(reply) => {
                let mesh = if let Phase::Up(mesh, _) = &self.phase {
                    Some(&**mesh)
                } else {
                    None
                };
                let _ = reply.send(Ok(super::metrics::text(mesh)));
            }
            Command::Join(join, reply) => self.begin_join(join, reply, ended.clone()),
            Command::Leave(reply) => self.leave(reply).await,
            Command::Unattended(problem) => {
                if !matches!(self.phase, Phase::Up(..)) {
                    self.join_problem = Some(problem);
                }
            }
            Command::RotateKey(reply) => match self.mesh().and_then(Mesh::rotate_key) {
                Err(error) => drop(reply.send(Err(error))),
                Ok((public_key, word)) => drop(tokio::spawn(async move {
                    let _ = reply.send(Ok(KeyRotated {
                        schema: SCHEMA,
                        public_key,
                        published: is_confirmed(word).await,
                    }));
                })),
            },
            Command::Rename(rename, reply) => {
                let result = self.mesh().and_then(|mesh| {
                    let name = parse_name(&rename.name)?;
                    let published = mesh.rename(name.clone())?;
                    let domain = mesh.names.zone().load().domain.clone();
                    Ok((format!("{name}.node.{domain}"), published))
                });
                match result {
                    Err(error) => drop(reply.send(Err(error))),
                    Ok((name, published)) => drop(tokio::spawn(async move {
                        let published = is_confirmed(published).await;
                        let _ = reply.send(Ok(Renamed {
                            schema: SCHEMA,
                            name,
                            published,
                        }));
                    })),
                }
            }
            Command::Services(reply) => {
                let _ = reply.send(self.mesh().map(|mesh| report::services(mesh)));
            }
            Command::Containers(reply) => {
                let _ = reply.send(self.mesh().map(|mesh| report::containers(mesh)));
            }
            Command::AddService(add, reply) => {
                let block = self.mesh().map(|mesh| mesh.identity.block);
                self.change_services(reply, |registry| {
                    let (name, registered) = parse_service(add)?;
                    registry.add(registered, &block?).map_err(refused)?;
                    Ok(name.into())
                });
            }
            Command::RemoveService(name, reply) => {
                let contained = self.contained();
                self.change_services(reply, |registry| {
                    let name = parse_name(&name)?;
                    match registry.remove(&name) {
                        Err(RegistryError::Unknown(name)) if contained.contains(&name) => {
                            Err(of_containers(&name))
                        }
                        result => result.map_err(refused),
                    }?;
                    Ok(name.into())
                });
            }
            Command::Drain(name, drained, reply) => {
                let contained = self.contained();
                self.change_services(reply, |registry| {
                    let name = ServiceName::parse(&name).map_err(bad_name)?;
                    registry
                        .set_drained(&name, drained, &contained)
                        .map_err(refused)?;
                    Ok(name)
                });
            }
            Command::Checkup(reply) => match self.mesh() {
                Ok(mesh) => report::checkup(mesh, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Ping(ping, reply) => match self.mesh() {
                Ok(mesh) => report::ping(mesh, &ping, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Resolve(resolve, reply) => match self.mesh() {
                Ok(mesh) => report::resolve(mesh, resolve, reply),
                Err(error) => drop(reply.send(Err(error))),
            },
        }
    }

    /// The services of this node's containers.
    fn contained(&self) -> BTreeSet<ServiceName> {
        let docker = match &self.phase {
            Phase::Up(mesh, _) => mesh.docker.as_ref(),
            Phase::Unjoined | Phase::Joining(_) => None,
        };
        docker.map(Docker::services).unwrap_or_default()
    }

    fn change_services(
        &mut self,
        reply: Reply<ServiceChanged>,
        change: impl FnOnce(&mut Registry) -> Result<ServiceName, ApiError>,
    ) {
        let result = self.mesh().and_then(|mesh| {
            let before = mesh.registry.clone();
            let name = change(&mut mesh.registry)?;
            // What cannot be kept is not done: after a restart it would be gone without a word.
            let published = mesh
                .services_changed()
                .inspect_err(|_| mesh.registry = before)?;
            let domain = mesh.names.zone().load().domain.clone();
            let connected = mesh.replica.link().is_connected();
            Ok((format!("{name}.svc.{domain}"), published, connected))
        });
        match result {
            Err(error) => drop(reply.send(Err(error))),
            Ok((name, published, connected)) => drop(tokio::spawn(async move {
                let published = match published {
                    Some(published) => is_confirmed(Some(published)).await,
                    // Nothing had to be said, or nobody hears it.
                    None => connected,
                };
                let _ = reply.send(Ok(ServiceChanged {
                    schema: SCHEMA,
                    name,
                    published,
                }));
            })),
        }
    }

    fn begin_join(&mut self, join: Join, reply: Reply<Joined>, ended: mpsc::Sender<JoinEnded>) {
        let refusal = match &self.phase {
            Phase::Unjoined => None,
            // What goes on after a restart gives way: it is the same join, or its place is given back.
            Phase::Joining(joining) if joining.reply.is_none() => {
                joining.task.abort();
                self.join_problem = None;
                None
            }
            Phase::Joining(_) => {
                Some("this node is joining already; wait for that to end".to_owned())
            }
            Phase::Up(mesh, _) => Some(format!(
                "this node is {} of a mesh already; run `meshctl leave` first to join another",
                mesh.identity.name
            )),
        };
        if let Some(text) = refusal {
            let _ = reply.send(Err(ApiError::new(ErrorCode::Conflict, text)));
            return;
        }
        let name = match join.name.as_deref().map(Label::parse).transpose() {
            Ok(name) => name.or_else(|| self.config.name.clone()),
            Err(error) => {
                return drop(
                    reply.send(Err(ApiError::new(ErrorCode::BadRequest, error.to_string()))),
                );
            }
        };
        let host = nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default();
        let attempt = Attempt {
            ground: self.ground(),
            token: join.token,
            name,
            fallback: Label::from_host_name(&host),
        };
        let limit = Duration::try_from_secs_f64(join.timeout_seconds.clamp(1.0, 600.0))
            .unwrap_or(Duration::from_secs(30));
        self.start_join(Some(reply), ended, async move {
            timeout(limit, joining::run(attempt)).await.unwrap_or_else(|_| {
                Err(ApiError::new(ErrorCode::Unreachable, format!("not joined within {} s; run the same command again, the token is not lost", limit.as_secs())))
            })
        });
    }

    fn ground(&self) -> Ground {
        Ground {
            dir: self.dir.clone(),
            interface: self.config.tunnel.interface.clone(),
            listen_port: self.config.tunnel.listen_port,
        }
    }

    fn start_join(
        &mut self,
        reply: Option<Reply<Joined>>,
        ended: mpsc::Sender<JoinEnded>,
        join: impl Future<Output = Result<Admitted, ApiError>> + Send + 'static,
    ) {
        self.joins += 1;
        let number = self.joins;
        let task = tokio::spawn(async move {
            let result = join.await;
            let _ = ended.send(JoinEnded { number, result }).await;
        });
        self.phase = Phase::Joining(Joining {
            number,
            task: task.abort_handle(),
            reply,
        });
    }

    /// Goes on with a join that a restart cut off after the coordinator may have admitted this node.
    fn resume_join(&mut self, ended: &mpsc::Sender<JoinEnded>) {
        if !matches!(self.phase, Phase::Unjoined) {
            return;
        }
        let Ok(Some(pending)) = self.dir.pending() else {
            return;
        };
        if let (true, Some(way)) = (pending.asked, pending.way.clone()) {
            tracing::info!("goes on with a join that was interrupted");
            self.join_problem = Some(leaving::interrupted());
            let join = joining::resume(self.ground(), pending, way);
            self.start_join(None, ended.clone(), join);
        }
    }

    async fn handle_join_ended(&mut self, ended: JoinEnded) {
        let reply = match &mut self.phase {
            Phase::Joining(joining) if joining.number == ended.number => joining.reply.take(),
            _ => return,
        };
        self.phase = Phase::Unjoined;
        let result = match ended.result {
            Ok(admitted) => match self.come_up(admitted).await {
                Err(error) => Err(self.give_back(error)),
                joined => joined,
            },
            Err(error) => Err(error),
        };
        if result.is_ok() {
            self.join_problem = None;
        } else {
            self.courier.wake();
        }
        match (reply, result) {
            (Some(reply), Ok(joined)) => self.reply_when_taken(joined, reply),
            (Some(reply), failed) => drop(reply.send(failed)),
            (None, Err(error)) => self.handle_not_resumed(error),
            (None, Ok(_)) => {}
        }
    }

    /// Replies to a join once the coordinator has accepted this node's record, without which no other node can reach it.
    fn reply_when_taken(&mut self, mut joined: Joined, reply: Reply<Joined>) {
        let Ok(mesh) = self.mesh() else {
            return drop(reply.send(Ok(joined)));
        };
        let taken = mesh.when_taken(TAKEN_WAIT);
        tokio::spawn(async move {
            let why = match taken.await {
                Ok(outcome) => outcome.err(),
                Err(_) => Some("meshd stopped, or this node left the mesh".to_owned()),
            };
            joined.published = why.is_none();
            joined.notes.extend(why.map(|why| {
                format!(
                    "the coordinator has not accepted the record with this node's addresses, so no other node reaches this node yet: {why}; meshd offers the record again, and `meshctl status` shows what is wrong"
                )
            }));
            let _ = reply.send(Ok(joined));
        });
    }

    /// The coordinator answered which block is leased to this node. If the node moves to that block, the mesh is set up anew.
    async fn handle_lease(&mut self, block: Block) -> Result<(), ApiError> {
        let Phase::Up(mesh, _) = &mut self.phase else {
            return Ok(());
        };
        let Some(identity) = mesh.handle_lease(block) else {
            return Ok(());
        };
        // The coordinator is asked again a minute later.
        if let Err(error) = self.dir.set_identity(&identity) {
            tracing::warn!(%error, "this node does not move to another address block, since its state cannot be written");
            return Ok(());
        }
        let registry = mesh.registry.clone();
        self.take_down().await;
        let (config, dir) = (Arc::clone(&self.config), self.dir.clone());
        let (mesh, events) = Mesh::start(config, dir, identity, registry, None).await?;
        self.phase = Phase::Up(Box::new(mesh), events);
        Ok(())
    }

    async fn come_up(&mut self, admitted: Admitted) -> Result<Joined, ApiError> {
        let (stored, _) = self.dir.services::<Stored>();
        let registry = Registry::new(self.config.services.clone(), stored);
        let identity = admitted.identity.clone();
        let (mesh, events) = Mesh::start(
            Arc::clone(&self.config),
            self.dir.clone(),
            identity,
            registry,
            Some(&admitted.ledger),
        )
        .await?;
        // Only now is there something worth starting from; until here the join can be asked for again.
        if let Err(error) = self.dir.set_identity(&admitted.identity) {
            mesh.stop(events).await;
            return Err(error.into());
        }
        self.dir.clear_pending();
        let [v4, v6] = [
            admitted.identity.block.node_v4().to_string(),
            admitted.identity.block.node_v6().to_string(),
        ];
        tracing::info!(name = %admitted.identity.name, %v4, %v6, "joined");
        let without = mesh.network.ipv6().problem(&self.config.tunnel.interface);
        let notes = without.map(|p| format!("{}: {}", p.what, p.why));
        let joined = Joined {
            schema: SCHEMA,
            name: admitted.identity.name,
            address_v4: admitted.identity.block.node_v4(),
            address_v6: admitted.identity.block.node_v6(),
            notes: admitted.notes.into_iter().chain(notes).collect(),
            published: false,
        };
        self.phase = Phase::Up(Box::new(mesh), events);
        Ok(joined)
    }
}

/// The next thing that a joined node's other tasks tell.
async fn next_event(phase: &mut Phase) -> Option<Happened> {
    match phase {
        Phase::Up(_, events) => tokio::select! {
            event = events.stream.recv() => event.map(Happened::Stream),
            Some(outcome) = events.writes.recv() => Some(Happened::Written(outcome)),
            verdict = events.verdicts.recv() => verdict.map(|(key, healthy)| Happened::Verdict(key, healthy)),
            happened = next_of_containers(&mut events.docker) => happened,
            Ok(()) = events.firewall.changed() => Some(Happened::Wired),
            Ok(()) = events.host.changed() => Some(Happened::Host),
            Some(event) = events.peers.recv() => Some(Happened::Peers(event)),
            () = events.device.gone() => Some(Happened::DeviceGone),
            Some(block) = events.leases.recv() => Some(Happened::Leased(block)),
        },
        Phase::Unjoined | Phase::Joining(_) => std::future::pending().await,
    }
}

/// What containers are told of at once at most: what comes in a burst is published in one go.
const BURST: usize = 256;

/// The next that is told of containers.
async fn next_of_containers(events: &mut Option<DockerEvents>) -> Option<Happened> {
    let Some(DockerEvents { reports, probes }) = events else {
        return std::future::pending().await;
    };
    let (mut told, mut verdicts) = (Vec::new(), Vec::new());
    tokio::select! {
        biased;
        1.. = reports.recv_many(&mut told, BURST) => Some(Happened::Engine(told)),
        1.. = probes.recv_many(&mut verdicts, BURST) => Some(Happened::Probes(verdicts)),
        else => std::future::pending().await,
    }
}

/// Whether the coordinator confirms in time that it has stored the records of a publication.
async fn is_confirmed(answer: Option<oneshot::Receiver<Answer>>) -> bool {
    match answer {
        Some(answer) => timeout(PUBLISH_WAIT, answer)
            .await
            .is_ok_and(|answer| answer == Ok(Answer::Stored)),
        None => false,
    }
}

fn parse_name(name: &str) -> Result<Label, ApiError> {
    Label::parse(name).map_err(bad_name)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it stands in for a closure in map_err"
)]
fn bad_name(error: LabelError) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string())
}

fn parse_service(add: AddService) -> Result<(Label, Registered), ApiError> {
    let bad = |text: &str| ApiError::new(ErrorCode::BadRequest, text);
    let name = parse_name(&add.name)?;
    let port = add
        .port
        .try_into()
        .map_err(|_| bad("a port is a number from 1 to 65535"))?;
    let address = add.address.map(|address| address.to_canonical());
    if address.is_some_and(is_never_remote) {
        return Err(bad(
            "give an address that other nodes can reach, or none for this node's mesh address",
        ));
    }
    if let Some(check) = &add.check {
        if !(100..=3_600_000).contains(&check.interval_ms)
            || !(100..=60_000).contains(&check.timeout_ms)
        {
            return Err(bad(
                "a check's interval is 100 ms to 1 h, its timeout 100 ms to 60 s",
            ));
        }
        if matches!(&check.probe, crate::protocol::local::CheckProbe::Http(path) if !path.starts_with('/'))
        {
            return Err(bad("the path of an HTTP check begins with `/`"));
        }
    }
    let key = Key {
        name: name.clone(),
        port,
        protocol: add.protocol,
    };
    Ok((
        name,
        Registered {
            key,
            address,
            check: add.check,
            weight: default_weight(),
            priority: 0,
        },
    ))
}

fn of_containers(name: &ServiceName) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!(
            "{name} is a service of containers; stop them, or start them without the label mesh.service"
        ),
    )
}

fn refused(error: RegistryError) -> ApiError {
    let code = match error {
        RegistryError::Unknown(_) => ErrorCode::NotFound,
        RegistryError::NotCarried(..) => ErrorCode::BadRequest,
        RegistryError::Configured(_) | RegistryError::Full => ErrorCode::Conflict,
    };
    ApiError::new(code, error.to_string())
}
