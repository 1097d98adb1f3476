//! Starts, follows and removes containers through the engine, for containers that meshd starts itself.
//!
//! Every answer has a limit for its size and its time. An answer without an end, such as the output of a container, is read in parts,
//! and the caller decides how long. Nothing that a caller of meshd sent gets into a path without being parsed or percent-encoded.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::client::{
    ANSWER_TIMEOUT, MAX_DESCRIPTION, MAX_LIST, exchange, get, get_required, open, switch,
};
pub use super::client::{EngineFault, Stream};
use super::described::event;
pub use super::described::{
    Config, ContainerEvent, Described, ExecDescribed, ExecId, ExecProcess, ImageFound, Labelled,
    NetworkEnd, NetworkSettings, State,
};
use super::inspect::ContainerId;
use super::ndjson::NdjsonReader;
use crate::model::percent::encoded;
use crate::model::text;
pub use crate::os::http::SwitchedStream;
use crate::os::http::{Limits, Method};

/// The maximum size of an answer without a list or a description, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// The maximum size of an event or of a line about the progress of a download, in bytes.
const MAX_LINE: usize = 1 << 20;
/// How long the download of an image may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the engine may take to create or start a container. A disk that is busy with a download takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long events, and output that is followed, may take to begin. Podman sends nothing before the first event or line.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The header with the name, the size and the kind of a file in an answer with its content.
const PATH_STAT: &str = "x-docker-container-path-stat";
/// The maximum length of that header.
const MAX_PATH_STAT: usize = 4096;

/// The engine. A clone is cheap.
#[derive(Debug, Clone)]
pub struct EngineControl {
    requests: Requests,
}

/// Sends the requests whose answers are read as a whole.
#[derive(Debug, Clone)]
struct Requests {
    sockets: Arc<[PathBuf]>,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitUntil {
    /// The container does not run, now or later.
    NotRunning,
    /// The container ends after it runs the next time.
    NextExit,
    /// The container is gone.
    Removed,
}

/// A wait that the engine has begun.
#[derive(Debug)]
pub struct Waiting(Stream);

/// The output to read of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogsWanted {
    pub stdout: bool,
    pub stderr: bool,
    /// Whether to read on until the container ends.
    pub follow: bool,
    pub timestamps: bool,
    /// The number of lines before the end at which to begin. None for all.
    pub tail: Option<u64>,
    /// The first and the last time, in seconds since 1970.
    pub since: Option<u64>,
    pub until: Option<u64>,
}

/// What to attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachWanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Whether the output so far comes first.
    pub logs: bool,
    /// Whether the output from now on follows.
    pub stream: bool,
}

/// A file or a folder of a container, as a tar archive.
#[derive(Debug)]
pub struct Archive {
    pub content: Stream,
    /// Its name, size and kind: JSON in base64, for the header of the answer.
    pub stat: Option<String>,
}

/// The events of all containers.
#[derive(Debug)]
pub struct Events {
    stream: Stream,
    lines: NdjsonReader,
}

impl EngineControl {
    /// The engine behind the first of `sockets` that exists.
    #[must_use]
    pub fn new(sockets: Vec<PathBuf>) -> Self {
        let sockets = sockets.into();
        Self {
            requests: Requests { sockets },
        }
    }

    /// Creates a container, which does not run yet. The name has the characters of the engine's names only.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn create(&self, name: &str, body: &Value) -> Result<ContainerId, EngineFault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: ContainerId,
        }
        let path = format!("/containers/create?name={}", encoded(name));
        let answer = self
            .requests
            .post(&path, body.to_string(), START_TIMEOUT)
            .await?;
        let created: Created = parsed(&path, &answer)?;
        Ok(created.id)
    }

    /// Starts a container. One that runs already continues to run.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn start(&self, id: &ContainerId) -> Result<(), EngineFault> {
        let path = format!("/containers/{id}/start");
        let started = self
            .requests
            .post(&path, String::new(), START_TIMEOUT)
            .await;
        started.map(drop)
    }

    /// Ends a container: with a signal first, and after `grace` without one. One that has ended already stays so.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), EngineFault> {
        let path = format!("/containers/{id}/stop?t={}", grace.as_secs());
        let time = grace.saturating_add(ANSWER_TIMEOUT);
        self.requests
            .post(&path, String::new(), time)
            .await
            .map(drop)
    }

    /// Sends a signal to the first process of a container, by its name or its number.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn kill(&self, id: &ContainerId, signal: &str) -> Result<(), EngineFault> {
        let path = format!("/containers/{id}/kill?signal={}", encoded(signal));
        let killed = self
            .requests
            .post(&path, String::new(), ANSWER_TIMEOUT)
            .await;
        killed.map(drop)
    }

    /// Ends and removes a container with its anonymous volumes. One that is gone already is no error.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn remove(&self, id: &ContainerId) -> Result<(), EngineFault> {
        self.requests
            .delete(&format!("/containers/{id}?force=true&v=true"))
            .await
    }

    /// Waits, at most for `limit`. Returns the exit code.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or the time is over.
    pub async fn wait(
        &self,
        id: &ContainerId,
        until: WaitUntil,
        limit: Duration,
    ) -> Result<i64, EngineFault> {
        let waited = async { self.begin_wait(id, until).await?.exit_code().await };
        timeout(limit, waited)
            .await
            .unwrap_or(Err(EngineFault::Silent))
    }

    /// Begins to wait. From then on, the engine misses no end of the container.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn begin_wait(
        &self,
        id: &ContainerId,
        until: WaitUntil,
    ) -> Result<Waiting, EngineFault> {
        let condition = match until {
            WaitUntil::NotRunning => "not-running",
            WaitUntil::NextExit => "next-exit",
            WaitUntil::Removed => "removed",
        };
        let path = format!("/containers/{id}/wait?condition={condition}");
        let stream = open(self.requests.socket()?, Method::POST, &path, ANSWER_TIMEOUT).await?;
        Ok(Waiting(stream))
    }

    /// The description of a container. None if there is no such container.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn inspect(&self, id: &ContainerId) -> Result<Option<Described>, EngineFault> {
        self.requests
            .described(&format!("/containers/{id}/json"))
            .await
    }

    /// All containers that have a label, `key` or `key=value`, whether they run or not.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn labelled(&self, label: &str) -> Result<Vec<Labelled>, EngineFault> {
        let path = format!("/containers/json?all=true&filters={}", by_label(label));
        self.requests.list(&path).await
    }

    /// An image that the engine has, by any of its names. None if it does not have it.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn image(&self, reference: &str) -> Result<Option<ImageFound>, EngineFault> {
        self.requests
            .described(&format!("/images/{}/json", in_path(reference)))
            .await
    }

    /// All images that the engine has.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn images(&self) -> Result<Vec<ImageFound>, EngineFault> {
        self.requests.list("/images/json?digests=true").await
    }

    /// Downloads an image, by its tag or its digest, without credentials.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, the registry refuses, or it takes too long.
    pub async fn pull(&self, reference: &str) -> Result<(), EngineFault> {
        let path = format!("/images/create?{}", pull_query(reference));
        let pulled = async {
            // The head of the answer arrives when the download begins.
            let stream = open(self.requests.socket()?, Method::POST, &path, PULL_TIMEOUT).await?;
            progress(stream).await
        };
        timeout(PULL_TIMEOUT, pulled)
            .await
            .unwrap_or(Err(EngineFault::Silent))
    }

    /// Creates a network. One with this name that exists already is no error.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn create_network(&self, name: &str, body: &Value) -> Result<(), EngineFault> {
        // Docker creates a second network of the same name.
        let existing = get(
            self.requests.socket()?,
            &network_path(name),
            MAX_DESCRIPTION,
        )
        .await?;
        if existing.is_some() {
            return Ok(());
        }
        let created = self
            .requests
            .post("/networks/create", body.to_string(), START_TIMEOUT);
        match created.await {
            Err(EngineFault::Rejected(409, _)) => Ok(()),
            created => created.map(drop),
        }
    }

    /// Removes a network. One that is gone already is no error.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn remove_network(&self, name: &str) -> Result<(), EngineFault> {
        self.requests.delete(&network_path(name)).await
    }

    /// The names of all networks that have a label, `key` or `key=value`.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn networks_labelled(&self, label: &str) -> Result<Vec<String>, EngineFault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Named {
            name: String,
        }
        let path = format!("/networks?filters={}", by_label(label));
        let networks: Vec<Named> = self.requests.list(&path).await?;
        Ok(networks.into_iter().map(|network| network.name).collect())
    }

    /// The output of a container.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn logs(&self, id: &ContainerId, wanted: &LogsWanted) -> Result<Stream, EngineFault> {
        let path = format!("/containers/{id}/logs?{}", wanted.query());
        let head = if wanted.follow {
            FOLLOW_TIMEOUT
        } else {
            ANSWER_TIMEOUT
        };
        open(self.requests.socket()?, Method::GET, &path, head).await
    }

    /// Attaches to a container.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn attach(
        &self,
        id: &ContainerId,
        wanted: AttachWanted,
    ) -> Result<SwitchedStream, EngineFault> {
        let path = format!("/containers/{id}/attach?{}", wanted.query());
        switch(self.requests.socket()?, &path, String::new()).await
    }

    /// Prepares a command in a container.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn exec_create(&self, id: &ContainerId, body: &Value) -> Result<ExecId, EngineFault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let path = format!("/containers/{id}/exec");
        let answer = self
            .requests
            .post(&path, body.to_string(), ANSWER_TIMEOUT)
            .await?;
        let created: Created = parsed(&path, &answer)?;
        let malformed = || EngineFault::Malformed(path.clone(), "the id is none".to_owned());
        ExecId::parse(&created.id).ok_or_else(malformed)
    }

    /// Starts a command, and attaches to it.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn exec_start(&self, id: &ExecId, tty: bool) -> Result<SwitchedStream, EngineFault> {
        let path = format!("/exec/{}/start", id.as_str());
        let body = json!({"Detach": false, "Tty": tty});
        switch(self.requests.socket()?, &path, body.to_string()).await
    }

    /// Starts a command whose output nobody reads.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn exec_start_detached(&self, id: &ExecId, tty: bool) -> Result<(), EngineFault> {
        let path = format!("/exec/{}/start", id.as_str());
        let body = json!({"Detach": true, "Tty": tty});
        let started = self
            .requests
            .post(&path, body.to_string(), START_TIMEOUT)
            .await;
        started.map(drop)
    }

    /// The description of a command. None if there is no such command.
    ///
    /// # Errors
    /// The engine is not reachable or refuses, or its answer cannot be parsed.
    pub async fn exec_inspect(&self, id: &ExecId) -> Result<Option<ExecDescribed>, EngineFault> {
        self.requests
            .described(&format!("/exec/{}/json", id.as_str()))
            .await
    }

    /// A file or a folder of a container.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn archive(&self, id: &ContainerId, of: &str) -> Result<Archive, EngineFault> {
        let path = format!("/containers/{id}/archive?path={}", encoded(of));
        let content = open(self.requests.socket()?, Method::GET, &path, START_TIMEOUT).await?;
        let stat = content.header(PATH_STAT).filter(|stat| is_stat(stat));
        let stat = stat.map(str::to_owned);
        Ok(Archive { content, stat })
    }

    /// The events of all containers between two times, in seconds since 1970.
    ///
    /// # Errors
    /// The engine is not reachable or refuses.
    pub async fn events(
        &self,
        since: Option<u64>,
        until: Option<u64>,
    ) -> Result<Events, EngineFault> {
        let filters = encoded(r#"{"type":["container"]}"#);
        let mut path = format!("/events?filters={filters}");
        push_times(&mut path, since, until);
        let stream = open(self.requests.socket()?, Method::GET, &path, FOLLOW_TIMEOUT).await?;
        let lines = NdjsonReader::new(MAX_LINE);
        Ok(Events { stream, lines })
    }
}

impl Requests {
    fn socket(&self) -> Result<&Path, EngineFault> {
        let existing = self.sockets.iter().find(|socket| socket.exists());
        let socket = existing.or_else(|| self.sockets.first());
        socket
            .map(PathBuf::as_path)
            .ok_or_else(|| EngineFault::Absent("socket of an engine".to_owned()))
    }

    async fn post(&self, path: &str, text: String, time: Duration) -> Result<Bytes, EngineFault> {
        let limits = Limits {
            body: MAX_ANSWER,
            time,
        };
        exchange(self.socket()?, Method::POST, path, text, limits).await
    }

    async fn delete(&self, path: &str) -> Result<(), EngineFault> {
        let limits = Limits {
            body: MAX_ANSWER,
            time: START_TIMEOUT,
        };
        let deleted = exchange(self.socket()?, Method::DELETE, path, String::new(), limits);
        match deleted.await {
            Err(EngineFault::Rejected(404, _) | EngineFault::Status(404, _)) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    async fn described<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, EngineFault> {
        let text = get(self.socket()?, path, MAX_DESCRIPTION).await?;
        text.map(|text| parsed(path, &text)).transpose()
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, EngineFault> {
        let text = get_required(self.socket()?, path, MAX_LIST).await?;
        parsed(path, &text)
    }
}

impl Waiting {
    /// Waits for the exit code, without a limit for the time.
    ///
    /// # Errors
    /// The engine stopped, or its answer cannot be parsed.
    pub async fn exit_code(self) -> Result<i64, EngineFault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Ended {
            status_code: i64,
        }
        let path = "/containers/wait";
        let text = self.0.rest(path, MAX_ANSWER).await?;
        let ended: Ended = parsed(path, &text)?;
        Ok(ended.status_code)
    }
}

impl Events {
    /// The next events, or `None` at the end. A line that cannot be read is left out.
    ///
    /// # Errors
    /// The engine stopped.
    pub async fn next(&mut self) -> Result<Option<Vec<ContainerEvent>>, EngineFault> {
        let Some(bytes) = self.stream.next().await? else {
            return Ok(None);
        };
        let lines = self.lines.push(&bytes).into_iter().flatten();
        let events = lines.filter_map(|line| event(&line).ok().flatten());
        Ok(Some(events.collect()))
    }
}

impl LogsWanted {
    fn query(&self) -> String {
        let mut query = format!(
            "stdout={}&stderr={}&follow={}&timestamps={}",
            self.stdout, self.stderr, self.follow, self.timestamps
        );
        if let Some(lines) = self.tail {
            query.push_str(&format!("&tail={lines}"));
        }
        push_times(&mut query, self.since, self.until);
        query
    }
}

impl AttachWanted {
    fn query(self) -> String {
        format!(
            "stdin={}&stdout={}&stderr={}&logs={}&stream={}",
            self.stdin, self.stdout, self.stderr, self.logs, self.stream
        )
    }
}

/// Appends the limits of a time to a query that is not empty.
fn push_times(query: &mut String, since: Option<u64>, until: Option<u64>) {
    for (name, time) in [("since", since), ("until", until)] {
        if let Some(time) = time {
            query.push_str(&format!("&{name}={time}"));
        }
    }
}

fn parsed<T: DeserializeOwned>(path: &str, text: &[u8]) -> Result<T, EngineFault> {
    serde_json::from_slice(text).map_err(|e| EngineFault::Malformed(path.into(), e.to_string()))
}

fn by_label(label: &str) -> String {
    encoded(&json!({"label": [label]}).to_string())
}

fn network_path(name: &str) -> String {
    format!("/networks/{}", encoded(name))
}

/// A name of an image as a part of a path. The engine takes it with its slashes and colons.
fn in_path(reference: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let is_plain = reference.chars().all(plain) && !reference.contains("..");
    if is_plain {
        reference.to_owned()
    } else {
        encoded(reference)
    }
}

/// The query that downloads an image: its repository, and its tag or digest.
fn pull_query(reference: &str) -> String {
    let (repository, tag) = match reference.split_once('@') {
        Some((name, digest)) => (without_tag(name).0, digest),
        None => {
            let (repository, tag) = without_tag(reference);
            (repository, tag.unwrap_or("latest"))
        }
    };
    format!("fromImage={}&tag={}", encoded(repository), encoded(tag))
}

/// Splits the tag from a name. A colon before a slash begins the port of a registry.
fn without_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

/// Reads the progress of a download to its end.
async fn progress(mut stream: Stream) -> Result<(), EngineFault> {
    let mut lines = NdjsonReader::new(MAX_LINE);
    while let Some(bytes) = stream.next().await? {
        for line in lines.push(&bytes).into_iter().flatten() {
            if let Some(why) = failure_of(&line) {
                return Err(EngineFault::Rejected(500, why));
            }
        }
    }
    // The last line may have no end.
    for line in lines.push(b"\n").into_iter().flatten() {
        if let Some(why) = failure_of(&line) {
            return Err(EngineFault::Rejected(500, why));
        }
    }
    Ok(())
}

/// The reason in a line that says that a download failed. The status of the answer was sent before.
fn failure_of(line: &[u8]) -> Option<String> {
    let line: Value = serde_json::from_slice(line).ok()?;
    Some(text::message(line.get("error")?.as_str()?))
}

fn is_stat(stat: &str) -> bool {
    let is_base64 = |c: u8| c.is_ascii_alphanumeric() || b"+/=-_".contains(&c);
    stat.len() <= MAX_PATH_STAT && stat.bytes().all(is_base64)
}

#[cfg(test)]
mod tests;
