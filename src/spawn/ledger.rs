//! Which containers were spawned, whose they are and until when they exist. A value: it is changed with the present time as an argument,
//! and its contents are written to the state directory before the engine is asked for anything.
//!
//! ```text
//! reserved ──created──> held ──removed, expired, or ended with AutoRemove──> forgotten
//!     └────────────────the engine failed─────────────────────────────────────────┘
//! ```
//!
//! An entry counts for the quotas of its template from its reservation until it is forgotten, so two calls at once cannot both take the
//! last place. The labels of a container say only which entry it has. Whose it is stands here alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize};

use super::owner::{Granted, Owner};
use super::refused::Refused;
use super::template::Template;
use super::wanted::check_name;
use crate::model::time::{Now, UnixSeconds};
use crate::model::{ContainerId, Label};

/// The maximum number of entries, whatever the templates say. The file has at most a MiB with it.
const MAX_ENTRIES: usize = 1024;
/// The number of hexadecimal digits of an id.
const ID_DIGITS: usize = 32;
/// The least number of digits of the id of a container by which a caller may name it.
const MIN_PREFIX: usize = 4;
/// How long an entry that has no container may stay without one. A pull takes the longest.
const CREATE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The id of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SpawnId(String);

/// A container that was spawned, or that is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: SpawnId,
    pub template: Label,
    pub owner: Owner,
    /// The name that the caller gave.
    pub name: Option<String>,
    /// The name by which the engine has it.
    pub engine_name: String,
    /// The network of all containers that the owner spawned from the template.
    pub network: String,
    /// The image, as the caller named it.
    pub image: String,
    /// The limit of its memory, in bytes.
    pub memory: u64,
    /// None while the engine has not created it.
    pub container: Option<ContainerId>,
    pub created_at: UnixSeconds,
    /// When it is removed.
    pub expires_at: UnixSeconds,
}

/// A place for a container, as it is asked for.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    pub granted: &'a Granted,
    /// An id that no entry has.
    pub id: SpawnId,
    pub name: Option<&'a str>,
    pub image: String,
}

/// The contents of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLedger {
    entries: Vec<Entry>,
    /// When the last containers of each template were created, the oldest first.
    created: BTreeMap<Label, VecDeque<UnixSeconds>>,
}

impl StoredLedger {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A container that the engine has, with the value of its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub container: ContainerId,
    pub label: String,
}

/// The ledger.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: BTreeMap<SpawnId, Entry>,
    /// When each entry expires, by the clock that nobody sets.
    deadlines: BTreeMap<SpawnId, Instant>,
    created: BTreeMap<Label, VecDeque<UnixSeconds>>,
}

impl SpawnId {
    /// An id of random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; ID_DIGITS / 2]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |c: u8| c.is_ascii_digit() || matches!(c, b'a'..=b'f');
        let is_id = text.len() == ID_DIGITS && text.bytes().all(is_digit);
        is_id.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for SpawnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SpawnId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not the id of an entry"))
    }
}

impl Entry {
    /// The name of the container for its owner: the one that the owner gave, or else the one of the engine.
    #[must_use]
    pub fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.engine_name)
    }

    fn is_of(&self, granted: &[Granted]) -> bool {
        granted
            .iter()
            .any(|own| own.template.name == self.template && own.owner == self.owner)
    }
}

impl Ledger {
    /// The ledger as the file has it. An entry whose template is not in the configuration any more, or whose container was never
    /// created, expires at once.
    #[must_use]
    pub fn restore(stored: StoredLedger, templates: &[Arc<Template>], now: Now) -> Self {
        let mut ledger = Self::default();
        let wall = UnixSeconds::from_system(now.wall);
        for entry in stored.entries.into_iter().take(MAX_ENTRIES) {
            let template = templates
                .iter()
                .find(|template| template.name == entry.template);
            let left = entry.expires_at.0.saturating_sub(wall.0);
            // A clock that went back does not make a container older than its template permits.
            let left = template.map_or(Duration::ZERO, |template| {
                Duration::from_secs(left).min(template.quota.ttl)
            });
            let left = match entry.container {
                Some(_) => left,
                None => Duration::ZERO,
            };
            let deadline = now.monotonic.checked_add(left).unwrap_or(now.monotonic);
            ledger.deadlines.insert(entry.id.clone(), deadline);
            ledger.entries.insert(entry.id.clone(), entry);
        }
        let is_known = |name: &Label| templates.iter().any(|template| template.name == *name);
        let created = stored.created.into_iter();
        ledger.created = created.filter(|(name, _)| is_known(name)).collect();
        ledger
    }

    /// The contents for the file.
    #[must_use]
    pub fn stored(&self) -> StoredLedger {
        StoredLedger {
            entries: self.entries.values().cloned().collect(),
            created: self.created.clone(),
        }
    }

    /// Takes a place for a container.
    ///
    /// # Errors
    /// The name is taken or cannot be one, or a quota of the template is used up.
    pub fn reserve(&mut self, order: Order<'_>, now: Now) -> Result<Entry, Refused> {
        let Granted { template, owner } = order.granted;
        if let Some(name) = order.name {
            check_name(name)?;
            let is_taken = |entry: &Entry| {
                entry.owner == *owner
                    && entry.template == template.name
                    && entry.name.as_deref() == Some(name)
            };
            if self.entries.values().any(is_taken) {
                return Err(Refused::NameTaken(name.to_owned()));
            }
        }
        let wall = UnixSeconds::from_system(now.wall);
        self.check_quota(template, wall)?;
        let digest = owner.digest(&template.name);
        let short = digest.get(..8).unwrap_or(&digest);
        let own = order.name.map_or(order.id.to_string(), str::to_owned);
        let entry = Entry {
            engine_name: format!("meshd-{}-{short}-{own}", template.name),
            network: format!("meshd-spawn-{digest}"),
            id: order.id,
            template: template.name.clone(),
            owner: owner.clone(),
            name: order.name.map(str::to_owned),
            image: order.image,
            memory: template.limits.memory,
            container: None,
            created_at: wall,
            expires_at: wall.plus(template.quota.ttl),
        };
        let ttl = template.quota.ttl;
        let deadline = now.monotonic.checked_add(ttl).unwrap_or(now.monotonic);
        self.deadlines.insert(entry.id.clone(), deadline);
        self.entries.insert(entry.id.clone(), entry.clone());
        let created = self.created.entry(template.name.clone()).or_default();
        created.push_back(wall);
        while created.len() > count(template) {
            created.pop_front();
        }
        Ok(entry)
    }

    fn check_quota(&self, template: &Template, now: UnixSeconds) -> Result<(), Refused> {
        let (name, quota) = (&template.name, template.quota);
        if self.entries.len() >= MAX_ENTRIES {
            return Err(Refused::Everywhere(MAX_ENTRIES));
        }
        let entries = self.entries.values();
        let memory = entries.filter(|entry| entry.template == *name);
        let memory: Vec<u64> = memory.map(|entry| entry.memory).collect();
        if memory.len() >= usize::try_from(quota.max).unwrap_or(usize::MAX) {
            return Err(Refused::Full(name.clone(), quota.max));
        }
        let taken = memory.into_iter().fold(0, u64::saturating_add);
        if taken.saturating_add(template.limits.memory) > quota.memory_total {
            return Err(Refused::Memory(name.clone(), quota.memory_total));
        }
        // A date after the present one is from before the clock was set back, and says nothing.
        let since = now.0.saturating_sub(quota.rate.period.as_secs());
        let created = self.created.get(name).into_iter().flatten();
        let lately = created.filter(|at| at.0 > since && **at <= now);
        let lately: Vec<&UnixSeconds> = lately.collect();
        if let Some(first) = lately.first()
            && lately.len() >= count(template)
        {
            let wait = Duration::from_secs(first.0.saturating_sub(since));
            return Err(Refused::Rate(name.clone(), quota.rate.to_string(), wait));
        }
        Ok(())
    }

    /// The engine created the container of an entry.
    pub fn set_container(&mut self, id: &SpawnId, container: ContainerId) -> Option<Entry> {
        let entry = self.entries.get_mut(id)?;
        entry.container = Some(container);
        Some(entry.clone())
    }

    /// Forgets an entry, whose container does not exist any more.
    pub fn forget(&mut self, id: &SpawnId) -> Option<Entry> {
        self.deadlines.remove(id);
        self.entries.remove(id)
    }

    /// The entries of a caller.
    pub fn owned<'a>(&'a self, granted: &[Granted]) -> impl Iterator<Item = &'a Entry> {
        let entries = self.entries.values();
        entries.filter(move |entry| entry.container.is_some() && entry.is_of(granted))
    }

    /// Returns the entry of a caller with this id, or with this id of its container. If there is none, it returns the one with this name,
    /// or else the only one whose container has an id that begins with `text`. So a name never hides the id of another container.
    ///
    /// # Errors
    /// The caller has none, or containers of several templates have this name. Those of others are unknown to it.
    pub fn find(&self, granted: &[Granted], text: &str) -> Result<&Entry, Refused> {
        let text = text.strip_prefix('/').unwrap_or(text);
        let has_id = |entry: &&Entry| {
            let container = entry.container.as_ref().map(ContainerId::as_str);
            entry.id.0 == text || container == Some(text)
        };
        if let Some(found) = self.owned(granted).find(has_id) {
            return Ok(found);
        }
        let has_name =
            |entry: &&Entry| entry.name.as_deref() == Some(text) || entry.engine_name == text;
        let mut by_name = self.owned(granted).filter(has_name);
        match (by_name.next(), by_name.next()) {
            (Some(found), None) => return Ok(found),
            (Some(_), Some(_)) => {
                return Err(Refused::Ambiguous(crate::model::text::message(text)));
            }
            (None, _) => {}
        }
        let begins = |entry: &&Entry| {
            let id = entry.container.as_ref().map(ContainerId::as_str);
            text.len() >= MIN_PREFIX && id.is_some_and(|id| id.starts_with(text))
        };
        let mut by_id = self.owned(granted).filter(begins);
        match (by_id.next(), by_id.next()) {
            (Some(found), None) => Ok(found),
            _ => Err(Refused::Unknown(crate::model::text::message(text))),
        }
    }

    /// The entries whose time has come.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Vec<Entry> {
        let due = self.deadlines.iter().filter(|(_, at)| **at <= now);
        due.filter_map(|(id, _)| self.entries.get(id))
            .cloned()
            .collect()
    }

    /// When the next entry expires.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.values().min().copied()
    }

    /// The ids of the entries that have a container. They are read before the engine lists its containers, for [`Ledger::compare`].
    #[must_use]
    pub fn with_container(&self) -> BTreeSet<SpawnId> {
        let entries = self.entries.values();
        let held = entries.filter(|entry| entry.container.is_some());
        held.map(|entry| entry.id.clone()).collect()
    }

    /// Compares the ledger with the containers that the engine has. `before` had a container when the list was requested. Forgets and
    /// returns the entries whose container does not exist any more, and the containers that no entry has.
    #[must_use]
    pub fn compare(
        &mut self,
        before: &BTreeSet<SpawnId>,
        found: &[Found],
        now: Now,
    ) -> (Vec<Entry>, Vec<ContainerId>) {
        let exist: BTreeSet<&ContainerId> = found.iter().map(|found| &found.container).collect();
        let wall = UnixSeconds::from_system(now.wall);
        let is_gone = |entry: &&Entry| match &entry.container {
            Some(container) => before.contains(&entry.id) && !exist.contains(container),
            // A call that ended in the middle left it.
            None => entry.created_at.plus(CREATE_LIMIT) <= wall || entry.created_at > wall,
        };
        let gone: Vec<SpawnId> = self
            .entries
            .values()
            .filter(is_gone)
            .map(|entry| entry.id.clone())
            .collect();
        let gone = gone.iter().filter_map(|id| self.forget(id)).collect();
        let is_orphan = |found: &&Found| {
            let entry = SpawnId::parse(&found.label).and_then(|id| self.entries.get(&id));
            entry.is_none_or(|entry| {
                let own = entry.container.as_ref();
                own.is_some_and(|own| *own != found.container)
            })
        };
        let orphans = found.iter().filter(is_orphan);
        (gone, orphans.map(|found| found.container.clone()).collect())
    }

    /// The networks that an entry uses.
    #[must_use]
    pub fn networks(&self) -> BTreeSet<String> {
        let entries = self.entries.values();
        entries.map(|entry| entry.network.clone()).collect()
    }

    /// The number of entries of each template.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Label, usize> {
        let mut counts = BTreeMap::new();
        for entry in self.entries.values() {
            *counts.entry(entry.template.clone()).or_default() += 1;
        }
        counts
    }
}

/// The number of containers in the rate of a template.
fn count(template: &Template) -> usize {
    usize::try_from(template.quota.rate.count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
