//! Follows the engine: its events, the description of each container that an event is about, and a list of all
//! containers from time to time.
//!
//! The stream of events is opened before the first list is requested, so that no change is missed. A description is
//! reported only if no event arrived after it was requested; otherwise it is requested again. A description that does not arrive in
//! time changes nothing, and is requested again after the next list. If the engine stops, its containers may continue to run. Only
//! containers whose process has ended are reported as ended, and the connection is retried.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::api;
pub use super::client::EngineFault;
use super::client::{MAX_DESCRIPTION, MAX_LIST, Stream, follow, get, get_required, networks};
use super::inspect::{Action, ContainerId, Engine, EngineNetwork, Event, Inspected};
use super::labels::{Labels, Rules, concerns};
use super::ndjson::{NdjsonReader, TooLong};
use super::network::{self, Unusable, keeper};
use crate::os::tasks::{AbortOnDrop, Tasks};

/// The interval of full lists, even if there are no events.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// The first and the longest wait after the engine stopped. Each wait is twice as long as the one before.
const MIN_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long the first list waits for the stream of events to open.
const STREAM_TIMEOUT: Duration = Duration::from_millis(300);
/// The maximum number of simultaneous requests to the engine.
const MAX_REQUESTS: usize = 8;
/// The maximum size of an event in bytes. An event contains the container's labels. After an event that is longer, a
/// list is requested.
const MAX_EVENT: usize = 1 << 20;
/// The maximum number of images whose labels are cached.
const MAX_IMAGES: usize = 1024;

const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

/// A report about the engine.
#[derive(Debug)]
pub enum Report {
    /// The engine is reachable.
    Engine(Engine),
    /// The networks of the engine.
    Networks(Vec<EngineNetwork>),
    /// The id of the network whose containers have mesh addresses of their own, or why there is none.
    Native(Result<String, Unusable>),
    /// The containers that exist. All others were removed.
    Listed(BTreeSet<ContainerId>),
    /// The description of a container.
    Inspected(Box<Inspected>),
    /// The description of a container cannot be used, for this reason.
    Unreadable(ContainerId, String),
    /// An event of a container.
    Event(ContainerId, Action),
    /// All containers that exist have been reported.
    InventoryKnown,
    /// The engine is not reachable.
    Lost(EngineFault),
}

/// The handle of the task. Dropping it ends the task.
#[derive(Debug)]
pub struct EngineTask {
    _task: AbortOnDrop,
}

impl EngineTask {
    /// Follows the engine behind the first of `sockets` that exists, and sends reports to `reports`. With `network`,
    /// the task creates that network through the engine.
    #[must_use]
    pub fn start(
        sockets: Vec<PathBuf>,
        rules: Rules,
        network: Option<network::NativePlan>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let wanted = Wanted { rules, network };
        // The task ends when the receiver of its reports is dropped.
        let task = Tasks::current().spawn_finite("container engine", run(sockets, wanted, reports));
        Self {
            _task: task.abort_on_drop(),
        }
    }
}

/// The settings from the configuration.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    rules: Rules,
    network: Option<network::NativePlan>,
}

/// Why a session ended.
enum Ended {
    /// The receiver of the reports was dropped.
    NoReceiver,
    Fault(EngineFault),
}

impl From<EngineFault> for Ended {
    fn from(fault: EngineFault) -> Self {
        Self::Fault(fault)
    }
}

/// The state that is kept between sessions.
#[derive(Default)]
struct Memory {
    images: HashMap<String, Labels>,
    /// The first processes of containers, while they run.
    processes: HashMap<ContainerId, u32>,
}

async fn run(sockets: Vec<PathBuf>, wanted: Wanted, reports: mpsc::Sender<Report>) {
    let mut memory = Memory::default();
    let mut wait = MIN_RETRY;
    let mut reported: Option<EngineFault> = None;
    loop {
        let mut fault = None;
        for socket in &sockets {
            let mut inventory_known = false;
            match session(socket, wanted, &reports, &mut memory, &mut inventory_known).await {
                Ended::NoReceiver => return,
                Ended::Fault(ended) => {
                    if inventory_known {
                        wait = MIN_RETRY;
                        reported = None;
                    }
                    let absent = matches!(ended, EngineFault::Absent(_));
                    fault.get_or_insert(ended);
                    if !absent {
                        break;
                    }
                }
            }
        }
        if fault != reported {
            if let Some(fault) = fault.clone()
                && reports.send(Report::Lost(fault)).await.is_err()
            {
                return;
            }
            reported = fault;
        }
        let ended: Vec<ContainerId> = memory
            .processes
            .iter()
            .filter(|(_, pid)| !runs(**pid))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            memory.processes.remove(&id);
            if reports.send(Report::Event(id, Action::Die)).await.is_err() {
                return;
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(MAX_RETRY);
    }
}

fn runs(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Handles one stream of events, from its opening to its end.
async fn session(
    socket: &Path,
    wanted: Wanted,
    reports: &mpsc::Sender<Report>,
    memory: &mut Memory,
    inventory_known: &mut bool,
) -> Ended {
    let mut session = Session {
        socket: socket.to_owned(),
        rules: wanted.rules,
        network: wanted.network,
        reports,
        memory,
        requests: JoinSet::new(),
        waiting: VecDeque::new(),
        busy: HashMap::new(),
        changed_since_list: None,
        changed_since_networks: None,
    };
    match session.follow(inventory_known).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

enum Events {
    Opening(Pin<Box<dyn Future<Output = Result<Stream, EngineFault>> + Send>>),
    Open(Stream),
}

impl Events {
    /// Returns the next bytes. Dropping the future loses none.
    async fn next(&mut self) -> Result<Bytes, EngineFault> {
        if let Self::Opening(opening) = self {
            let stream = opening.await?;
            *self = Self::Open(stream);
        }
        let Self::Open(stream) = self else {
            return std::future::pending().await;
        };
        let ended = || EngineFault::Broken("the stream of events ended".into());
        stream.next().await?.ok_or_else(ended)
    }
}

/// The networks, and the id of the wanted network or the reason why there is none.
type FoundNetworks = (Vec<EngineNetwork>, Option<Result<String, Unusable>>);

/// An answer of the engine.
enum Answer {
    List(Result<Vec<u8>, EngineFault>),
    Networks(Box<Result<FoundNetworks, EngineFault>>),
    Container(ContainerId, Result<Option<Box<Described>>, EngineFault>),
}

/// A container's description, and the labels of its image if they were requested.
struct Described {
    inspected: Inspected,
    image: Option<Labels>,
}

struct Session<'a> {
    socket: PathBuf,
    rules: Rules,
    network: Option<network::NativePlan>,
    reports: &'a mpsc::Sender<Report>,
    memory: &'a mut Memory,
    requests: JoinSet<Answer>,
    waiting: VecDeque<ContainerId>,
    /// The containers whose description is being requested, and whether an event arrived since.
    busy: HashMap<ContainerId, bool>,
    /// The containers with events since the list was requested, until its answer arrives.
    changed_since_list: Option<HashSet<ContainerId>>,
    /// Whether the networks changed since they were requested, until the answer arrives.
    changed_since_networks: Option<bool>,
}

impl Session<'_> {
    async fn follow(
        &mut self,
        inventory_known: &mut bool,
    ) -> Result<std::convert::Infallible, Ended> {
        let engine = self.engine().await?;
        self.report(Report::Engine(engine.clone())).await?;
        let networks =
            networks_and_native(self.socket.clone(), engine.clone(), self.network).await?;
        self.report_networks(networks).await?;

        let socket = self.socket.clone();
        let mut events = Events::Opening(Box::pin(async move { follow(&socket, EVENTS).await }));
        if let Events::Opening(opening) = &mut events
            && let Ok(stream) = timeout(STREAM_TIMEOUT, opening).await
        {
            events = Events::Open(stream?);
        }
        self.request_list();
        let mut lines = NdjsonReader::new(MAX_EVENT);
        let mut resync = interval(RESYNC_INTERVAL);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        resync.reset();
        loop {
            tokio::select! {
                biased;
                bytes = events.next() => {
                    for line in lines.push(&bytes?) {
                        self.handle_line(line, &engine).await?;
                    }
                }
                Some(answer) = self.requests.join_next() => {
                    if let Ok(answer) = answer {
                        self.handle_answer(answer, &engine).await?;
                    }
                }
                _ = resync.tick() => {
                    self.request_networks(&engine);
                    self.request_list();
                }
            }
            self.request_containers();
            if !*inventory_known && self.requests.is_empty() {
                *inventory_known = true;
                self.report(Report::InventoryKnown).await?;
            }
        }
    }

    async fn report(&self, report: Report) -> Result<(), Ended> {
        let sent = self.reports.send(report).await;
        sent.map_err(|_| Ended::NoReceiver)
    }

    async fn engine(&self) -> Result<Engine, EngineFault> {
        let version = get_required(&self.socket, "/version", 1 << 20).await?;
        // A filtering proxy may refuse this request. The facts are useful but not necessary.
        let facts = get(&self.socket, "/info", 4 << 20).await.ok().flatten();
        api::engine(&version, facts.as_deref())
            .map_err(|e| EngineFault::Malformed("/version".into(), e.to_string()))
    }

    async fn handle_line(
        &mut self,
        line: Result<Vec<u8>, TooLong>,
        engine: &Engine,
    ) -> Result<(), Ended> {
        let Ok(line) = line else {
            self.request_list();
            return Ok(());
        };
        let event = api::event(&line)
            .map_err(|e| EngineFault::Malformed("/events".into(), e.to_string()))?;
        match event {
            Event::Other => {}
            Event::Networks => self.request_networks(engine),
            Event::Container(id, action) => {
                if let Some(changed) = &mut self.changed_since_list {
                    changed.insert(id.clone());
                }
                if let Some(came) = self.busy.get_mut(&id) {
                    *came = true;
                }
                if matches!(action, Action::Die | Action::Destroy) {
                    self.memory.processes.remove(&id);
                }
                self.report(Report::Event(id.clone(), action)).await?;
                if matches!(action, Action::Start | Action::Changed) {
                    self.request_later(id);
                }
            }
        }
        Ok(())
    }

    fn request_later(&mut self, id: ContainerId) {
        if !self.busy.contains_key(&id) && !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
    }

    fn request_list(&mut self) {
        if self.changed_since_list.is_none() {
            self.changed_since_list = Some(HashSet::new());
            let socket = self.socket.clone();
            self.requests.spawn(async move {
                let list = get_required(&socket, "/containers/json?all=true", MAX_LIST).await;
                Answer::List(list.map(Vec::from))
            });
        }
    }

    /// Requests the networks. While an answer is outstanding, one more request follows it, however many changes there are.
    fn request_networks(&mut self, engine: &Engine) {
        if let Some(changed) = &mut self.changed_since_networks {
            *changed = true;
            return;
        }
        self.changed_since_networks = Some(false);
        let found = networks_and_native(self.socket.clone(), engine.clone(), self.network);
        self.requests
            .spawn(async move { Answer::Networks(Box::new(found.await)) });
    }

    async fn report_networks(&self, (networks, native): FoundNetworks) -> Result<(), Ended> {
        self.report(Report::Networks(networks)).await?;
        match native {
            Some(native) => self.report(Report::Native(native)).await,
            None => Ok(()),
        }
    }

    fn request_containers(&mut self) {
        while self.requests.len() < MAX_REQUESTS
            && let Some(id) = self.waiting.pop_front()
        {
            self.busy.insert(id.clone(), false);
            let (socket, rules) = (self.socket.clone(), self.rules);
            let known: HashSet<String> = self.memory.images.keys().cloned().collect();
            self.requests.spawn(async move {
                let described = describe(&socket, &id, rules, &known).await;
                Answer::Container(id, described)
            });
        }
    }

    async fn handle_answer(&mut self, answer: Answer, engine: &Engine) -> Result<(), Ended> {
        match answer {
            Answer::Networks(found) => {
                let is_outdated = self.changed_since_networks.take() == Some(true);
                self.report_networks((*found)?).await?;
                if is_outdated {
                    self.request_networks(engine);
                }
                Ok(())
            }
            Answer::List(text) => {
                let changed = self.changed_since_list.take().unwrap_or_default();
                let listed = api::list(&text?).map_err(|e| {
                    EngineFault::Malformed("/containers/json".into(), e.to_string())
                })?;
                let existing: BTreeSet<ContainerId> =
                    listed.iter().map(|(id, _)| id.clone()).collect();
                self.memory.processes.retain(|id, _| existing.contains(id));
                for (id, labels) in listed {
                    match labels {
                        Some(labels) if concerns(&labels, self.rules) => self.request_later(id),
                        Some(_) => {}
                        // The container does not run. If it did at the last list, its end was missed.
                        None if !changed.contains(&id) => {
                            self.report(Report::Event(id, Action::Die)).await?;
                        }
                        None => {}
                    }
                }
                let existing = existing.into_iter().chain(changed).collect();
                self.report(Report::Listed(existing)).await
            }
            Answer::Container(id, described) => self.handle_described(id, described).await,
        }
    }

    async fn handle_described(
        &mut self,
        id: ContainerId,
        described: Result<Option<Box<Described>>, EngineFault>,
    ) -> Result<(), Ended> {
        if self.busy.remove(&id) == Some(true) {
            self.request_later(id);
            return Ok(());
        }
        let Described {
            mut inspected,
            image,
        } = match described {
            // It was removed between the event and the request.
            Ok(None) => return Ok(()),
            Ok(Some(described)) => *described,
            Err(
                fault @ (EngineFault::Status(..)
                | EngineFault::TooLong(..)
                | EngineFault::Malformed(..)),
            ) => return self.report(Report::Unreadable(id, fault.to_string())).await,
            // An engine can fail to describe one container while it describes all others. If it answers nothing, the next
            // list ends the session.
            Err(EngineFault::Silent) => {
                let container = id.short();
                tracing::warn!(
                    container,
                    "the engine does not describe a container; it is asked again"
                );
                return Ok(());
            }
            Err(fault) => return Err(fault.into()),
        };
        if let Some(labels) = image {
            if self.memory.images.len() >= MAX_IMAGES {
                self.memory.images.clear();
            }
            self.memory
                .images
                .insert(inspected.image.id.clone(), labels);
        }
        inspected.image.labels = self.memory.images.get(&inspected.image.id).cloned();
        if let Some(pid) = inspected.pid.filter(|pid| runs(*pid)) {
            self.memory.processes.insert(id, pid);
        }
        self.report(Report::Inspected(Box::new(inspected))).await
    }
}

/// Requests a container's description and, if they matter and are not `known`, the labels of its image.
async fn describe(
    socket: &Path,
    id: &ContainerId,
    rules: Rules,
    known: &HashSet<String>,
) -> Result<Option<Box<Described>>, EngineFault> {
    let path = format!("/containers/{id}/json");
    let Some(text) = get(socket, &path, MAX_DESCRIPTION).await? else {
        return Ok(None);
    };
    let inspected =
        api::container(&text).map_err(|e| EngineFault::Malformed(path, e.to_string()))?;
    let image = &inspected.image.id;
    let plain = !image.is_empty()
        && image
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b':');
    let wanted = plain
        && !rules.trust_image_labels
        && !known.contains(image)
        && concerns(&inspected.labels, rules);
    if !wanted {
        return Ok(Some(Box::new(Described {
            inspected,
            image: None,
        })));
    }
    let path = format!("/images/{image}/json");
    let image = match get(socket, &path, MAX_DESCRIPTION).await? {
        None => None,
        Some(text) => Some(
            api::image_labels(&text).map_err(|e| EngineFault::Malformed(path, e.to_string()))?,
        ),
    };
    Ok(Some(Box::new(Described { inspected, image })))
}

/// Lists the networks, and creates the wanted one if necessary.
async fn networks_and_native(
    socket: PathBuf,
    engine: Engine,
    wanted: Option<network::NativePlan>,
) -> Result<FoundNetworks, EngineFault> {
    let there = networks(&socket, engine.podman).await?;
    let Some(plan) = wanted else {
        return Ok((there, None));
    };
    let (native, there) = keeper::keep(&socket, &engine, &plan, there).await?;
    Ok((there, Some(native)))
}

#[cfg(test)]
mod tests;
