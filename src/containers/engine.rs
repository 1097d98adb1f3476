//! Follows the engine: its events, a look at each container they are about, and a list of everything now and then.
//!
//! The stream of events is opened before the first list, so that nothing falls between. A description is handed on only if
//! no event came since it was asked for; else it is asked for again. When the engine goes away the containers need not:
//! nothing is taken back but what has no process any more, and the engine is tried again.

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
use super::client::{MAX_DESCRIPTION, MAX_LIST, Stream, follow, get, networks, whole};
use super::inspect::{Action, ContainerId, Engine, EngineNetwork, Event, Inspected};
use super::labels::{Labels, Rules, may_expose};
use super::lines::{Lines, Overlong};
use super::network::{self, Unusable, keeper};
use crate::os::tasks::{AbortOnDrop, Tasks};

/// A list of everything, though nothing seems to have happened.
const RESYNC: Duration = Duration::from_secs(30);
/// The first wait after the engine went away, and the longest: each is twice the one before.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long the list waits for the stream of events to begin.
const STREAM_WAIT: Duration = Duration::from_millis(300);
/// Questions to the engine at once.
const AT_ONCE: usize = 8;
/// Octets of an event at most: it carries the container's labels. One that is longer is made up for by a list.
const MAX_EVENT: usize = 1 << 20;
/// Images whose labels are remembered at most.
const MAX_IMAGES: usize = 1024;

const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

/// What the engine says.
#[derive(Debug)]
pub enum Report {
    /// It is there.
    Engine(Engine),
    /// These networks are there.
    Networks(Vec<EngineNetwork>),
    /// The id of the network whose containers have mesh addresses of their own, or why there is none.
    Native(Result<String, Unusable>),
    /// These containers exist; all others are gone.
    Listed(BTreeSet<ContainerId>),
    /// What a container is like.
    Inspected(Box<Inspected>),
    /// A container's description cannot be used, and why.
    Unreadable(ContainerId, String),
    /// Something happened to a container.
    Happened(ContainerId, Action),
    /// Everything there was has been reported.
    Settled,
    /// It is away.
    Lost(EngineFault),
}

/// The running task. Dropping it ends it.
#[derive(Debug)]
pub struct EngineTask {
    _task: AbortOnDrop,
}

impl EngineTask {
    /// Follows the engine behind the first of `sockets` that is there; reports go to `reports`. With `network`, has the
    /// engine make that.
    #[must_use]
    pub fn start(
        sockets: Vec<PathBuf>,
        rules: Rules,
        network: Option<network::Plan>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let wanted = Wanted { rules, network };
        // It ends when nobody receives its reports any more.
        let task = Tasks::current().spawn_finite("container engine", run(sockets, wanted, reports));
        Self {
            _task: task.abort_on_drop(),
        }
    }
}

/// What the configuration says.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    rules: Rules,
    network: Option<network::Plan>,
}

/// Why a session ended.
enum Ended {
    /// Nobody hears the reports any more.
    Unheard,
    Fault(EngineFault),
}

impl From<EngineFault> for Ended {
    fn from(fault: EngineFault) -> Self {
        Self::Fault(fault)
    }
}

/// What outlives a session.
#[derive(Default)]
struct Memory {
    images: HashMap<String, Labels>,
    /// First processes, as long as they are seen.
    processes: HashMap<ContainerId, u32>,
}

async fn run(sockets: Vec<PathBuf>, wanted: Wanted, reports: mpsc::Sender<Report>) {
    let mut memory = Memory::default();
    let mut wait = RETRY_FIRST;
    let mut said: Option<EngineFault> = None;
    loop {
        let mut fault = None;
        for socket in &sockets {
            let mut settled = false;
            match session(socket, wanted, &reports, &mut memory, &mut settled).await {
                Ended::Unheard => return,
                Ended::Fault(ended) => {
                    if settled {
                        wait = RETRY_FIRST;
                        said = None;
                    }
                    let absent = matches!(ended, EngineFault::Absent(_));
                    fault.get_or_insert(ended);
                    if !absent {
                        break;
                    }
                }
            }
        }
        if fault != said {
            if let Some(fault) = fault.clone()
                && reports.send(Report::Lost(fault)).await.is_err()
            {
                return;
            }
            said = fault;
        }
        let ended: Vec<ContainerId> = memory
            .processes
            .iter()
            .filter(|(_, pid)| !runs(**pid))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ended {
            memory.processes.remove(&id);
            if reports
                .send(Report::Happened(id, Action::Die))
                .await
                .is_err()
            {
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

/// One stream of events, from its opening to its end.
async fn session(
    socket: &Path,
    wanted: Wanted,
    reports: &mpsc::Sender<Report>,
    memory: &mut Memory,
    settled: &mut bool,
) -> Ended {
    let mut session = Session {
        socket: socket.to_owned(),
        rules: wanted.rules,
        network: wanted.network,
        reports,
        memory,
        asked: JoinSet::new(),
        waiting: VecDeque::new(),
        busy: HashMap::new(),
        news: None,
    };
    match session.follow(settled).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

enum Events {
    Opening(Pin<Box<dyn Future<Output = Result<Stream, EngineFault>> + Send>>),
    Open(Stream),
}

impl Events {
    /// The next octets. What has come is not lost when this is dropped.
    async fn next(&mut self) -> Result<Bytes, EngineFault> {
        if let Self::Opening(opening) = self {
            let stream = opening.await?;
            *self = Self::Open(stream);
        }
        let Self::Open(stream) = self else {
            return std::future::pending().await;
        };
        let ended = || EngineFault::Broken("its stream of events ended".into());
        stream.next().await?.ok_or_else(ended)
    }
}

/// The networks, and what has become of the one that is wanted.
type Looked = (Vec<EngineNetwork>, Option<Result<String, Unusable>>);

/// An answer of the engine's.
enum Answer {
    List(Result<Vec<u8>, EngineFault>),
    Networks(Box<Result<Looked, EngineFault>>),
    Container(ContainerId, Result<Option<Box<Described>>, EngineFault>),
}

/// A container's description, and the labels of its image where they were asked for.
struct Described {
    inspected: Inspected,
    image: Option<Labels>,
}

struct Session<'a> {
    socket: PathBuf,
    rules: Rules,
    network: Option<network::Plan>,
    reports: &'a mpsc::Sender<Report>,
    memory: &'a mut Memory,
    asked: JoinSet<Answer>,
    waiting: VecDeque<ContainerId>,
    /// Containers asked about, and whether an event came since.
    busy: HashMap<ContainerId, bool>,
    /// Containers with events since the list was asked for, while its answer is awaited.
    news: Option<HashSet<ContainerId>>,
}

impl Session<'_> {
    async fn follow(&mut self, settled: &mut bool) -> Result<std::convert::Infallible, Ended> {
        let engine = self.engine().await?;
        tracing::info!(version = %engine.version, podman = engine.podman, "connected to the container engine");
        self.report(Report::Engine(engine.clone())).await?;
        let networks = looked(self.socket.clone(), engine.clone(), self.network).await?;
        self.report_networks(networks).await?;

        let socket = self.socket.clone();
        let mut events = Events::Opening(Box::pin(async move { follow(&socket, EVENTS).await }));
        if let Events::Opening(opening) = &mut events
            && let Ok(stream) = timeout(STREAM_WAIT, opening).await
        {
            events = Events::Open(stream?);
        }
        self.ask_for_list();
        let mut lines = Lines::new(MAX_EVENT);
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        resync.reset();
        loop {
            tokio::select! {
                biased;
                octets = events.next() => {
                    for line in lines.push(&octets?) {
                        self.handle_line(line, &engine).await?;
                    }
                }
                Some(answer) = self.asked.join_next() => {
                    if let Ok(answer) = answer {
                        self.handle_answer(answer).await?;
                    }
                }
                _ = resync.tick() => {
                    self.ask_for_networks(&engine);
                    self.ask_for_list();
                }
            }
            self.ask_for_containers();
            if !*settled && self.asked.is_empty() {
                *settled = true;
                self.report(Report::Settled).await?;
            }
        }
    }

    async fn report(&self, report: Report) -> Result<(), Ended> {
        let sent = self.reports.send(report).await;
        sent.map_err(|_| Ended::Unheard)
    }

    async fn engine(&self) -> Result<Engine, EngineFault> {
        let version = whole(&self.socket, "/version", 1 << 20).await?;
        // Behind a filtering proxy this may be closed; it is worth knowing, no more.
        let facts = get(&self.socket, "/info", 4 << 20).await.ok().flatten();
        api::engine(&version, facts.as_deref())
            .map_err(|e| EngineFault::NotUnderstood("/version".into(), e.to_string()))
    }

    async fn handle_line(
        &mut self,
        line: Result<Vec<u8>, Overlong>,
        engine: &Engine,
    ) -> Result<(), Ended> {
        let Ok(line) = line else {
            self.ask_for_list();
            return Ok(());
        };
        let event = api::event(&line)
            .map_err(|e| EngineFault::NotUnderstood("/events".into(), e.to_string()))?;
        match event {
            Event::Other => {}
            Event::Networks => self.ask_for_networks(engine),
            Event::Container(id, action) => {
                if let Some(news) = &mut self.news {
                    news.insert(id.clone());
                }
                if let Some(came) = self.busy.get_mut(&id) {
                    *came = true;
                }
                if matches!(action, Action::Die | Action::Destroy) {
                    self.memory.processes.remove(&id);
                }
                self.report(Report::Happened(id.clone(), action)).await?;
                if matches!(action, Action::Start | Action::Changed) {
                    self.want(id);
                }
            }
        }
        Ok(())
    }

    fn want(&mut self, id: ContainerId) {
        if !self.busy.contains_key(&id) && !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
    }

    fn ask_for_list(&mut self) {
        if self.news.is_none() {
            self.news = Some(HashSet::new());
            let socket = self.socket.clone();
            self.asked.spawn(async move {
                let list = whole(&socket, "/containers/json?all=true", MAX_LIST).await;
                Answer::List(list.map(Vec::from))
            });
        }
    }

    fn ask_for_networks(&mut self, engine: &Engine) {
        let look = looked(self.socket.clone(), engine.clone(), self.network);
        self.asked
            .spawn(async move { Answer::Networks(Box::new(look.await)) });
    }

    async fn report_networks(&self, (networks, native): Looked) -> Result<(), Ended> {
        self.report(Report::Networks(networks)).await?;
        match native {
            Some(native) => self.report(Report::Native(native)).await,
            None => Ok(()),
        }
    }

    fn ask_for_containers(&mut self) {
        while self.asked.len() < AT_ONCE
            && let Some(id) = self.waiting.pop_front()
        {
            self.busy.insert(id.clone(), false);
            let (socket, rules) = (self.socket.clone(), self.rules);
            let known: HashSet<String> = self.memory.images.keys().cloned().collect();
            self.asked.spawn(async move {
                let described = describe(&socket, &id, rules, &known).await;
                Answer::Container(id, described)
            });
        }
    }

    async fn handle_answer(&mut self, answer: Answer) -> Result<(), Ended> {
        match answer {
            Answer::Networks(looked) => self.report_networks((*looked)?).await,
            Answer::List(text) => {
                let news = self.news.take().unwrap_or_default();
                let listed = api::list(&text?).map_err(|e| {
                    EngineFault::NotUnderstood("/containers/json".into(), e.to_string())
                })?;
                let existing: BTreeSet<ContainerId> =
                    listed.iter().map(|(id, _)| id.clone()).collect();
                self.memory.processes.retain(|id, _| existing.contains(id));
                for (id, labels) in listed {
                    match labels {
                        Some(labels) if may_expose(&labels, self.rules) => self.want(id),
                        Some(_) => {}
                        // It does not run; if it did when it was looked at last, its end was missed.
                        None if !news.contains(&id) => {
                            self.report(Report::Happened(id, Action::Die)).await?;
                        }
                        None => {}
                    }
                }
                let existing = existing.into_iter().chain(news).collect();
                self.report(Report::Listed(existing)).await
            }
            Answer::Container(id, described) => {
                if self.busy.remove(&id) == Some(true) {
                    self.want(id);
                    return Ok(());
                }
                let Described {
                    mut inspected,
                    image,
                } = match described {
                    // Gone between the event and the look at it.
                    Ok(None) => return Ok(()),
                    Ok(Some(described)) => *described,
                    Err(
                        fault @ (EngineFault::Status(..)
                        | EngineFault::TooLong(..)
                        | EngineFault::NotUnderstood(..)),
                    ) => return self.report(Report::Unreadable(id, fault.to_string())).await,
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
    }
}

/// A container's description and, where that matters and is not `known`, the labels of its image.
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
        api::container(&text).map_err(|e| EngineFault::NotUnderstood(path, e.to_string()))?;
    let image = &inspected.image.id;
    let plain = !image.is_empty()
        && image
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b':');
    let wanted = plain
        && !rules.trust_image_labels
        && !known.contains(image)
        && may_expose(&inspected.labels, rules);
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
            api::image_labels(&text)
                .map_err(|e| EngineFault::NotUnderstood(path, e.to_string()))?,
        ),
    };
    Ok(Some(Box::new(Described { inspected, image })))
}

/// Looks at the networks, and brings the one that is wanted about.
async fn looked(
    socket: PathBuf,
    engine: Engine,
    wanted: Option<network::Plan>,
) -> Result<Looked, EngineFault> {
    let there = networks(&socket, engine.podman).await?;
    let Some(plan) = wanted else {
        return Ok((there, None));
    };
    let (native, there) = keeper::keep(&socket, &engine, &plan, there).await?;
    Ok((there, Some(native)))
}

#[cfg(test)]
mod tests;
