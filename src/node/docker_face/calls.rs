//! The calls about containers.

use std::io;
use std::time::Duration;

use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{self, Failure};
use super::query::Query;
use super::routes::Action;
use super::streams::{body_later, body_of};
use super::{Asked, PROGRAM, commands, documents, shown};
use crate::containers::control::{AttachWanted, Labelled, LogsWanted, WaitUntil};
use crate::model::ContainerId;
use crate::node::spawn::StateChange;
use crate::spawn::Entry;
use crate::spawn::body::ID_LABEL;

/// How long a container may take to end after the signal to stop, if the caller does not say it.
const GRACE: Duration = Duration::from_secs(10);
/// The longest such time that a caller may set.
const MAX_GRACE: Duration = Duration::from_secs(300);
/// The maximum length of the name of a signal.
const MAX_SIGNAL: usize = 16;

/// Counts the containers of the caller.
pub(super) async fn info(asked: &Asked) -> Result<Response, Failure> {
    let rows = own_rows(asked).await?;
    let running = rows.iter().filter(|(_, row)| runs(row)).count();
    Ok(answer::json(&documents::info(PROGRAM, rows.len(), running)))
}

/// Lists the containers of the caller, the newest first.
pub(super) async fn list(asked: &Asked) -> Result<Response, Failure> {
    let query = asked.query(&["all", "limit", "filters"])?;
    let filters = query.filters(&["id", "name", "label", "status"])?;
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok());
    let shows_all = query.flag("all") || limit.is_some() || filters.has("status");
    let mut rows = own_rows(asked).await?;
    rows.retain(|(entry, row)| {
        let name = entry.shown();
        (shows_all || runs(row))
            && filters.passes("id", |id| row.id.as_str().starts_with(id))
            && filters.passes("name", |part| is_named(name, part))
            && filters.passes("status", |status| row.state == status)
            && filters.passes_labels(&row.labels)
    });
    rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.created));
    let rows = rows.iter().take(limit.unwrap_or(usize::MAX));
    let rows = rows.map(|(entry, row)| documents::row(row, &shown(entry)));
    Ok(answer::json(&Value::Array(rows.collect())))
}

/// The containers of the caller, as the engine lists them.
async fn own_rows(asked: &Asked) -> Result<Vec<(Entry, Labelled)>, Failure> {
    let owned = asked.spawner.owned(&asked.call)?;
    let listed = asked.engine().labelled(ID_LABEL).await?;
    let own = |row: Labelled| {
        let is_it = |entry: &&Entry| entry.container.as_ref() == Some(&row.id);
        let entry = owned.iter().find(is_it)?.clone();
        Some((entry, row))
    };
    Ok(listed.into_iter().filter_map(own).collect())
}

fn runs(row: &Labelled) -> bool {
    matches!(row.state.as_str(), "running" | "paused" | "restarting")
}

/// Whether a name has `part` in it, where `^` and `$` stand for its beginning and its end, as clients write it.
fn is_named(name: &str, part: &str) -> bool {
    let begins = part.starts_with('^');
    let part = part.strip_prefix('^').unwrap_or(part);
    let ends = part.ends_with('$');
    let part = part.strip_suffix('$').unwrap_or(part);
    let part = part.strip_prefix('/').unwrap_or(part);
    match (begins, ends) {
        (true, true) => name == part,
        (true, false) => name.starts_with(part),
        (false, true) => name.ends_with(part),
        (false, false) => name.contains(part),
    }
}

/// Creates a container.
pub(super) async fn create(asked: &Asked) -> Result<Response, Failure> {
    let query = asked.query(&["name"])?;
    let name = query.text("name").map(|name| name.trim_start_matches('/'));
    // The image may have to be downloaded.
    asked.connection.long.set();
    let created = asked.spawner.create(&asked.call, name, &asked.body);
    let entry = created.await?;
    let document = json!({"Id": entry.container, "Warnings": []});
    Ok(answer::created(&document))
}

/// A call about one container.
pub(super) async fn container(
    asked: Asked,
    action: Action,
    name: &str,
) -> Result<Response, Failure> {
    // Whoever has no container of this name learns nothing else.
    let (entry, id) = asked.own(name)?;
    match action {
        Action::Inspect => inspect(&asked, &entry, &id).await,
        Action::Start => start(&asked, &entry).await,
        Action::Stop => stop(&asked, &entry).await,
        Action::Kill => kill(&asked, &entry).await,
        Action::Remove => remove(&asked, name, &id).await,
        Action::Wait => wait(&asked, &entry, &id).await,
        Action::Logs => logs(&asked, &entry, &id).await,
        Action::Attach => attach(asked, &entry, &id).await,
        Action::Archive => archive(&asked, &entry, &id).await,
        Action::Exec => commands::create(&asked, &entry, &id).await,
    }
}

async fn inspect(asked: &Asked, entry: &Entry, id: &ContainerId) -> Result<Response, Failure> {
    asked.query(&[])?;
    let described = asked.engine().inspect(id).await?;
    let described = described.ok_or_else(gone)?;
    let document = documents::container(&described, &shown(entry));
    Ok(answer::json(&document))
}

async fn start(asked: &Asked, entry: &Entry) -> Result<Response, Failure> {
    // The keys are those of the caller's terminal.
    asked.query(&["detachKeys"])?;
    change(asked, entry, StateChange::Start).await
}

async fn stop(asked: &Asked, entry: &Entry) -> Result<Response, Failure> {
    let grace = grace(&asked.query(&["t"])?)?;
    asked.connection.long.set();
    change(asked, entry, StateChange::Stop(grace)).await
}

async fn change(asked: &Asked, entry: &Entry, change: StateChange) -> Result<Response, Failure> {
    asked.spawner.change(&asked.call, entry, change).await?;
    Ok(answer::done())
}

/// How long the caller wants to wait for the end of a container. A negative number is the longest time.
fn grace(query: &Query) -> Result<Duration, Failure> {
    let Some(seconds) = query.number("t")? else {
        return Ok(GRACE);
    };
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    Ok(Duration::from_secs(seconds).min(MAX_GRACE))
}

async fn kill(asked: &Asked, entry: &Entry) -> Result<Response, Failure> {
    let query = asked.query(&["signal"])?;
    let signal = query.text("signal").unwrap_or("SIGKILL");
    if !is_signal(signal) {
        let text = "the parameter signal is no signal; send its name or number, such as SIGTERM";
        return Err(Failure::bad_request(text));
    }
    change(asked, entry, StateChange::Kill(signal.to_owned())).await
}

fn is_signal(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-');
    (1..=MAX_SIGNAL).contains(&text.len()) && text.bytes().all(plain)
}

async fn remove(asked: &Asked, name: &str, id: &ContainerId) -> Result<Response, Failure> {
    // Anonymous volumes are removed in any case.
    let query = asked.query(&["force", "v"])?;
    if !query.flag("force") {
        let described = asked.engine().inspect(id).await?;
        if described.is_some_and(|described| described.state.running) {
            let text = "the container runs; stop it first, or remove it with force";
            return Err(Failure::conflict(text));
        }
    }
    asked.spawner.remove(&asked.call, name).await?;
    Ok(answer::done())
}

async fn wait(asked: &Asked, entry: &Entry, id: &ContainerId) -> Result<Response, Failure> {
    let query = asked.query(&["condition"])?;
    let until = match query.text("condition").unwrap_or("not-running") {
        "not-running" => WaitUntil::NotRunning,
        "next-exit" => WaitUntil::NextExit,
        "removed" => WaitUntil::Removed,
        _ => {
            let text = "the parameter condition is unknown; send not-running, next-exit or removed";
            return Err(Failure::bad_request(text));
        }
    };
    let place = asked.stream_of(entry)?;
    // The client starts the container when the head of this answer arrives, so the engine has to wait already.
    let waiting = asked.engine().begin_wait(id, until).await?;
    let text = async move {
        let code = waiting.exit_code().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(json!({"StatusCode": code}).to_string())
    };
    Ok(answer::json_stream(body_later(text, place)))
}

async fn logs(asked: &Asked, entry: &Entry, id: &ContainerId) -> Result<Response, Failure> {
    let query = asked.query(&[
        "stdout",
        "stderr",
        "follow",
        "timestamps",
        "tail",
        "since",
        "until",
    ])?;
    let wanted = LogsWanted {
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail: tail(&query)?,
        since: query.time("since")?,
        until: query.time("until")?,
    };
    if !wanted.stdout && !wanted.stderr {
        let text = "no output is chosen; send stdout=1, stderr=1 or both";
        return Err(Failure::bad_request(text));
    }
    let place = asked.stream_of(entry)?;
    let stream = asked.engine().logs(id, &wanted).await?;
    let kind = stream.content_type().map(str::to_owned);
    Ok(answer::output(kind.as_deref(), body_of(stream, place)))
}

/// The number of lines before the end at which to begin. None for all.
fn tail(query: &Query) -> Result<Option<u64>, Failure> {
    if query.text("tail") == Some("all") {
        return Ok(None);
    }
    // A negative number stands for all.
    Ok(query.number("tail")?.and_then(|n| u64::try_from(n).ok()))
}

async fn attach(asked: Asked, entry: &Entry, id: &ContainerId) -> Result<Response, Failure> {
    let query = asked.query(&["stdin", "stdout", "stderr", "logs", "stream", "detachKeys"])?;
    let wanted = AttachWanted {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        logs: query.flag("logs"),
        stream: query.flag("stream"),
    };
    let place = asked.stream_of(entry)?;
    let engine = asked.engine().attach(id, wanted).await?;
    Ok(asked.connection.attach(engine, place))
}

async fn archive(asked: &Asked, entry: &Entry, id: &ContainerId) -> Result<Response, Failure> {
    let query = asked.query(&["path"])?;
    let Some(path) = query.text("path") else {
        let text = "the parameter path is missing; send the path of a file or folder";
        return Err(Failure::bad_request(text));
    };
    let place = asked.stream_of(entry)?;
    let archive = asked.engine().archive(id, path).await?;
    let body = body_of(archive.content, place);
    Ok(answer::archive(archive.stat.as_deref(), body))
}

/// The container was removed in the meantime.
fn gone() -> Failure {
    Failure::not_found("the container is gone; it was removed, or it has expired")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_of_names_is_read_as_clients_write_it() {
        for (part, passes) in [
            ("job", true),
            ("ob", true),
            ("/job", true),
            ("^/job$", true),
            ("^job", true),
            ("job$", true),
            ("^ob", false),
            ("jo$", false),
            ("x", false),
        ] {
            assert_eq!(is_named("job", part), passes, "{part}");
        }
    }

    #[test]
    fn a_signal_is_a_name_or_a_number_and_a_grace_has_a_limit() {
        assert!(["SIGTERM", "9", "SIGRTMIN+3"].into_iter().all(is_signal));
        for wrong in ["", "a b", "KILL&force=1", "SIGTERM\n", "ABCDEFGHIJKLMNOPQ"] {
            assert!(!is_signal(wrong), "{wrong}");
        }
        let of = |text: &str| {
            let query = Query::parse(Some(text), &["t"]).expect("a query");
            grace(&query).map(|grace| grace.as_secs())
        };
        assert_eq!(of(""), Ok(10));
        assert_eq!(of("t=3"), Ok(3));
        assert_eq!(of("t=-1"), Ok(300));
        assert_eq!(of("t=99999"), Ok(300));
        assert!(of("t=x").is_err());
    }

    #[test]
    fn the_number_of_lines_is_a_number_or_all() {
        let of = |text: &str| {
            let query = Query::parse(Some(text), &["tail"]).expect("a query");
            tail(&query)
        };
        assert_eq!(of("tail=all"), Ok(None));
        assert_eq!(of("tail=-1"), Ok(None));
        assert_eq!(of("tail=7"), Ok(Some(7)));
        assert!(of("tail=7%26follow=1").is_err());
    }
}
