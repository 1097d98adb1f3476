//! Creates, finds, starts and removes containers for callers.
//!
//! A container has an entry in the ledger on disk before the engine is asked to create it. So a meshd that ends in the middle leaves a
//! container that the next start finds and removes. A task carries a change out, so a caller that hangs up does not leave half of one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};

use super::changes::{Changes, MAX_OF_CONTAINER};
use super::failed::Failed;
use crate::containers::control::{EngineControl, ImageFound};
use crate::model::ContainerId;
use crate::node::config::Config;
use crate::node::state::{StateDir, spawned};
use crate::node::transitions::spawn::{SpawnRefused, SpawnTurn, SpawnedChange};
use crate::os::audit::{Audit, Who};
use crate::os::tasks::Tasks;
use crate::os::{clock, random};
use crate::protocol::api_token::ApiCaller;
use crate::spawn::body::ID_LABEL;
use crate::spawn::ledger::{Found, Order};
use crate::spawn::request::Asked;
use crate::spawn::{
    Entry, Granted, ImageName, Ledger, Refused, SpawnId, Template, Wanted, body, create, granted,
    request,
};

/// The least time between two comparisons with the engine that calls cause.
const COMPARE_PAUSE: Duration = Duration::from_millis(250);

/// A call, with who makes it. The check of the API made both of the same request.
#[derive(Debug, Clone)]
pub(in crate::node) struct Call {
    pub by: Who,
    pub caller: ApiCaller,
}

/// A change of the state of a container.
#[derive(Debug)]
pub(in crate::node) enum StateChange {
    Start,
    /// It ends: with a signal first, and after this time without one.
    Stop(Duration),
    /// Its first process receives the signal with this name or number.
    Kill(String),
}

/// The spawned containers of this node. A clone refers to the same ones.
#[derive(Debug, Clone)]
pub(in crate::node) struct Spawner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    templates: Vec<Arc<Template>>,
    engine: EngineControl,
    ledger: Mutex<Ledger>,
    changes: Changes,
    /// The directory of the file, which one task at a time writes.
    dir: AsyncMutex<StateDir>,
    /// Held while a network is created, or removed because no entry uses it.
    networks: AsyncMutex<()>,
    /// When a call last caused a comparison with the engine.
    compared: AsyncMutex<Option<Instant>>,
    audit: Audit,
    tasks: Tasks,
    /// The ledger has a new entry.
    added: Notify,
}

impl Spawner {
    /// Reads the ledger. None if the configuration has no template, and nothing is left of earlier ones.
    pub(in crate::node) fn open(config: &Config, dir: &StateDir, tasks: &Tasks) -> Option<Self> {
        let docker = config.docker.as_ref()?;
        let templates = config.api.templates.clone();
        let stored = spawned::read(dir);
        if templates.is_empty() && stored.is_empty() {
            return None;
        }
        if !templates.is_empty() && !config.api.is_on_network {
            tracing::warn!(
                "no caller reaches the templates of [[spawn]] in meshd.toml; set `enabled = true` in [api]"
            );
        }
        let ledger = Ledger::restore(stored, &templates, clock::now());
        Some(Self(Arc::new(Shared {
            templates,
            engine: EngineControl::new(docker.sockets.clone()),
            ledger: Mutex::new(ledger),
            changes: Changes::default(),
            dir: AsyncMutex::new(dir.clone()),
            networks: AsyncMutex::new(()),
            compared: AsyncMutex::new(None),
            audit: dir.audit.clone(),
            tasks: tasks.clone(),
            added: Notify::new(),
        })))
    }

    pub(in crate::node) fn engine(&self) -> &EngineControl {
        &self.0.engine
    }

    /// The templates that the caller may use, at least one.
    ///
    /// # Errors
    /// There is none. The refusal is noted.
    pub(in crate::node) fn granted(&self, call: &Call) -> Result<Vec<Granted>, Failed> {
        let granted = self.grants(call);
        granted.inspect_err(|failed| self.note_failed(call, "find a template", failed))
    }

    /// Creates a container with the body of one of Docker's programs, and does not start it.
    ///
    /// # Errors
    /// The body asks for more than a template permits, a quota is used up, or the engine cannot do it.
    pub(in crate::node) async fn create(
        &self,
        call: &Call,
        name: Option<&str>,
        body: &[u8],
    ) -> Result<Entry, Failed> {
        let read = || -> Result<Asked, Failed> {
            let (granted, wanted) = create::read(body, &self.grants(call)?)?;
            Ok(Asked {
                granted,
                wanted,
                name: name.map(str::to_owned),
            })
        };
        let asked = read().inspect_err(|failed| self.note_failed(call, "create", failed))?;
        self.create_asked(call, asked, false).await
    }

    /// Creates a container with the body of meshd's own call, and starts it.
    ///
    /// # Errors
    /// As [`Spawner::create`].
    pub(in crate::node) async fn spawn(&self, call: &Call, body: &[u8]) -> Result<Entry, Failed> {
        let read = || -> Result<Asked, Failed> { Ok(request::read(body, &self.grants(call)?)?) };
        let asked = read().inspect_err(|failed| self.note_failed(call, "create", failed))?;
        self.create_asked(call, asked, true).await
    }

    /// The container of the caller with this id or name.
    ///
    /// # Errors
    /// The caller has none.
    pub(in crate::node) fn find(&self, call: &Call, text: &str) -> Result<Entry, Failed> {
        let granted = self.grants(call)?;
        Ok(self.ledger().find(&granted, text)?.clone())
    }

    /// The containers of the caller.
    ///
    /// # Errors
    /// No template is for the caller.
    pub(in crate::node) fn owned(&self, call: &Call) -> Result<Vec<Entry>, Failed> {
        let granted = self.grants(call)?;
        Ok(self.ledger().owned(&granted).cloned().collect())
    }

    /// Changes the state of a container of the caller.
    ///
    /// # Errors
    /// The engine cannot do it, or too many starts and stops of the container run.
    pub(in crate::node) async fn change(
        &self,
        call: &Call,
        entry: &Entry,
        change: StateChange,
    ) -> Result<(), Failed> {
        let place = match &change {
            StateChange::Start | StateChange::Stop(_) => {
                let place = self.0.changes.take(&entry.id);
                Some(place.ok_or(Failed::TooManyChanges(MAX_OF_CONTAINER))?)
            }
            // A signal can end a container whose stop takes long.
            StateChange::Kill(_) => None,
        };
        let (spawner, by, entry) = (self.clone(), call.by.clone(), entry.clone());
        self.finish("change of a spawned container", async move {
            let _place = place;
            let (engine, container) = (&spawner.0.engine, container_of(&entry)?);
            let turn = match &change {
                StateChange::Start => {
                    engine.start(container).await?;
                    SpawnTurn::Started
                }
                StateChange::Stop(grace) => {
                    engine.stop(container, *grace).await?;
                    SpawnTurn::Stopped
                }
                StateChange::Kill(signal) => {
                    engine.kill(container, signal).await?;
                    SpawnTurn::Killed { signal }
                }
            };
            spawner.note(&entry, &by, turn);
            Ok::<_, Failed>(())
        })
        .await
    }

    /// Ends and removes a container of the caller.
    ///
    /// # Errors
    /// The caller has none with this name, or the engine cannot do it.
    pub(in crate::node) async fn remove(&self, call: &Call, text: &str) -> Result<Entry, Failed> {
        let entry = self.find(call, text)?;
        let (spawner, call) = (self.clone(), call.clone());
        self.finish("removal of a spawned container", async move {
            spawner.0.engine.remove(container_of(&entry)?).await?;
            spawner.forget(&entry, &call.by, SpawnTurn::Removed).await;
            Ok::<_, Failed>(entry)
        })
        .await
    }

    /// The image, if a template of the caller permits it.
    ///
    /// # Errors
    /// None does.
    pub(in crate::node) fn permits_image(
        &self,
        call: &Call,
        image: &str,
    ) -> Result<ImageName, Failed> {
        let image = ImageName::parse(image).map_err(Refused::from)?;
        create::by_image(&image, &self.grants(call)?)?;
        Ok(image)
    }

    /// An image that a template of the caller permits. It is downloaded if the node does not have it.
    ///
    /// # Errors
    /// No template permits it, or the engine cannot download it.
    pub(in crate::node) async fn image(
        &self,
        call: &Call,
        image: &str,
    ) -> Result<ImageFound, Failed> {
        let image = self.permits_image(call, image)?;
        image_named(&self.0.engine, &image).await
    }

    /// Notes that the caller starts a further process in its container.
    pub(in crate::node) fn note_exec(&self, call: &Call, entry: &Entry, command: &[String]) {
        let command = command.join(" ");
        self.note(entry, &call.by, SpawnTurn::Exec { command: &command });
    }

    /// Notes that a call was refused, if the caller is at fault. `what` is what it would have done.
    pub(in crate::node) fn note_failed(&self, call: &Call, what: &'static str, failed: &Failed) {
        if let Failed::Refused(refused) = failed {
            let reason = refused.to_string();
            self.0.audit.note(&SpawnRefused {
                by: &call.by,
                what,
                reason: &reason,
            });
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic under the lock leaves at most an entry whose container the keeper removes.
        let ledger = self.0.ledger.lock();
        ledger.unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an entry, whose container does not exist any more, and removes its network if no other entry has it.
    pub(super) async fn forget(&self, entry: &Entry, by: &Who, turn: SpawnTurn<'_>) {
        let was_there = self.ledger().forget(&entry.id).is_some();
        if was_there {
            self.note(entry, by, turn);
        }
        self.remove_unused([entry.network.clone()].into()).await;
        if let Err(error) = self.write().await {
            tracing::warn!(%error, "a spawned container is gone, and still on the list on disk");
        }
    }

    /// Removes those of these networks that no entry has.
    pub(super) async fn remove_unused(&self, networks: BTreeSet<String>) {
        let _held = self.0.networks.lock().await;
        let used = self.ledger().networks();
        for network in networks.difference(&used) {
            if let Err(error) = self.0.engine.remove_network(network).await {
                tracing::debug!(%error, network, "a network of spawned containers stays for now");
            }
        }
    }

    /// Writes the ledger.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) async fn write(&self) -> Result<(), Failed> {
        let dir = self.0.dir.lock().await;
        // The contents are read under the lock of the file, so that an older state never replaces a newer one.
        let stored = self.ledger().stored();
        let to = dir.clone();
        let written = tokio::task::spawn_blocking(move || spawned::write(&to, &stored)).await;
        drop(dir);
        match written {
            Ok(written) => written.map_err(|error| Failed::Unwritten(error.to_string())),
            Err(_) => Err(Failed::Stopping),
        }
    }

    /// Returns when the ledger has a new entry.
    pub(super) async fn added(&self) {
        self.0.added.notified().await;
    }

    pub(super) fn note(&self, entry: &Entry, by: &Who, turn: SpawnTurn<'_>) {
        self.0.audit.note(&SpawnedChange { entry, by, turn });
    }

    fn grants(&self, call: &Call) -> Result<Vec<Granted>, Failed> {
        Ok(granted(&self.0.templates, &call.caller)?)
    }

    /// Runs a change to its end, even if the caller hangs up. It is answered after its events are on disk.
    async fn finish<T: Send + 'static>(
        &self,
        name: &'static str,
        change: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Failed> {
        let (done, ended) = oneshot::channel();
        let audit = self.0.audit.clone();
        self.0.tasks.spawn_child(name, async move {
            let result = change.await;
            audit.flushed().await;
            // The caller may have hung up.
            let _ = done.send(result);
        });
        ended.await.unwrap_or(Err(Failed::Stopping))
    }

    async fn create_asked(&self, call: &Call, asked: Asked, start: bool) -> Result<Entry, Failed> {
        let (spawner, call) = (self.clone(), call.clone());
        self.finish("creation of a spawned container", async move {
            let created = spawner.reserve_and_create(&call, asked, start).await;
            created.inspect_err(|failed| spawner.note_failed(&call, "create", failed))
        })
        .await
    }

    async fn reserve_and_create(
        &self,
        call: &Call,
        asked: Asked,
        start: bool,
    ) -> Result<Entry, Failed> {
        let mut bytes = [0; 16];
        random::fill(&mut bytes).map_err(|_| Failed::NoRandom)?;
        let order = Order {
            granted: &asked.granted,
            id: SpawnId::from_bytes(bytes),
            name: asked.name.as_deref(),
            image: asked.wanted.image.shown(),
        };
        let reserved = self.ledger().reserve(order.clone(), clock::now());
        let entry = match reserved {
            Err(Refused::NameTaken(_) | Refused::Full(..) | Refused::Memory(..)) => {
                // The engine may have removed a container that ended a moment ago.
                compare_again(self).await;
                self.ledger().reserve(order, clock::now())?
            }
            reserved => reserved?,
        };
        let template = &asked.granted.template;
        let created = self.create_reserved(template, &asked.wanted, &entry, start);
        match created.await {
            Ok(entry) => {
                self.0.added.notify_one();
                self.note(&entry, &call.by, SpawnTurn::Created);
                Ok(entry)
            }
            Err(failed) => {
                self.ledger().forget(&entry.id);
                self.remove_unused([entry.network].into()).await;
                // The entry on disk has no container, so the next start forgets it too.
                let _ = self.write().await;
                Err(failed)
            }
        }
    }

    async fn create_reserved(
        &self,
        template: &Template,
        wanted: &Wanted,
        entry: &Entry,
        start: bool,
    ) -> Result<Entry, Failed> {
        self.write().await?;
        let image = image_named(&self.0.engine, &wanted.image).await?;
        if let Some(network) =
            body::network(template, entry).filter(|_| wanted.has_network(template))
        {
            let _held = self.0.networks.lock().await;
            let engine = &self.0.engine;
            engine.create_network(&entry.network, &network).await?;
        }
        let document = body::container(wanted, template, entry, &image.id);
        let created = self.0.engine.create(&entry.engine_name, &document).await;
        let container = created?;
        let finished = self.settle(entry, &container, start).await;
        if finished.is_err() {
            // If this fails too, the keeper removes it, since no entry has it.
            let _ = self.0.engine.remove(&container).await;
        }
        finished
    }

    /// Gives an entry the container that the engine created for it.
    async fn settle(
        &self,
        entry: &Entry,
        container: &ContainerId,
        start: bool,
    ) -> Result<Entry, Failed> {
        let held = self.ledger().set_container(&entry.id, container.clone());
        let held = held.ok_or(Failed::TooLate)?;
        self.write().await?;
        if start {
            self.0.engine.start(container).await?;
        }
        Ok(held)
    }
}

/// Compares the ledger with the engine, if a call has not caused that a moment ago.
async fn compare_again(spawner: &Spawner) {
    let mut compared = spawner.0.compared.lock().await;
    let is_due = compared.is_none_or(|at| at.elapsed() >= COMPARE_PAUSE);
    if is_due {
        // The keeper reports an engine that does not answer.
        let _ = compare(spawner).await;
        *compared = Some(Instant::now());
    }
}

/// Forgets the entries whose container the engine does not have any more. Returns the containers that no entry has.
///
/// # Errors
/// The engine does not answer, or the ledger cannot be written.
pub(super) async fn compare(spawner: &Spawner) -> Result<Vec<ContainerId>, Failed> {
    let before = spawner.ledger().with_container();
    let found = spawner.engine().labelled(ID_LABEL).await?;
    let found: Vec<Found> = found
        .into_iter()
        .map(|found| Found {
            container: found.id,
            label: found.labels.get(ID_LABEL).cloned().unwrap_or_default(),
        })
        .collect();
    let now = clock::now();
    let (gone, orphans) = spawner.ledger().compare(&before, &found, now);
    for entry in &gone {
        spawner.note(entry, &Who::Daemon, SpawnTurn::Gone);
    }
    if !gone.is_empty() {
        spawner.write().await?;
    }
    Ok(orphans)
}

/// An image that the engine has, or else downloads.
async fn image_named(engine: &EngineControl, image: &ImageName) -> Result<ImageFound, Failed> {
    let name = image.to_string();
    if let Some(found) = engine.image(&name).await? {
        return Ok(found);
    }
    engine.pull(&name).await?;
    let found = engine.image(&name).await?;
    found.ok_or_else(|| Failed::NoImage(image.shown()))
}

/// The container of an entry. An entry without one is unknown to its caller.
fn container_of(entry: &Entry) -> Result<&ContainerId, Failed> {
    let container = entry.container.as_ref();
    let unknown = || Failed::from(Refused::Unknown(entry.id.to_string()));
    container.ok_or_else(unknown)
}
