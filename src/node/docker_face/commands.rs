//! The calls about commands in containers (`docker exec`).

use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::answer::{self, Failure};
use super::prepared::MAX_OF_CONTAINER;
use super::{Asked, documents};
use crate::containers::control::{EngineFault, ExecDescribed, ExecId};
use crate::model::ContainerId;
use crate::node::spawn::Failed;
use crate::spawn::{Entry, exec};

/// The body of a request that starts a command. Its other fields have no effect on what the command may do.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Start {
    // Null is false.
    detach: Option<bool>,
    tty: Option<bool>,
}

/// Prepares a command in a container of the caller.
pub(super) async fn create(
    asked: &Asked,
    entry: &Entry,
    id: &ContainerId,
) -> Result<Response, Failure> {
    asked.query(&[])?;
    let granted = asked.spawner.granted(&asked.call)?;
    let granted = granted
        .iter()
        .find(|granted| granted.template.name == entry.template);
    let removed = || {
        let text = "the template of this container is not permitted to the caller any more";
        Failure::not_found(text)
    };
    let granted = granted.ok_or_else(removed)?;
    let wanted = exec::read(&asked.body, &granted.template).map_err(Failed::Refused);
    let noted = |failed: &Failed| asked.spawner.note_failed(&asked.call, "exec", failed);
    let wanted = wanted.inspect_err(noted)?;
    if !asked.prepared.has_place(id) {
        return Err(Failure::too_many_commands(MAX_OF_CONTAINER));
    }
    let created = asked.engine().exec_create(id, &wanted.body()).await?;
    asked.prepared.insert(id, created.clone());
    asked.spawner.note_exec(&asked.call, entry, &wanted.command);
    Ok(answer::created(&json!({"Id": created.as_str()})))
}

/// Starts a command in a container of the caller.
pub(super) async fn start(asked: Asked, id: &ExecId) -> Result<Response, Failure> {
    asked.query(&[])?;
    let start: Start = if asked.body.is_empty() {
        Start::default()
    } else {
        let unreadable = |error: serde_json::Error| {
            Failure::bad_request(format!("the body of the request cannot be read: {error}"))
        };
        serde_json::from_slice(&asked.body).map_err(unreadable)?
    };
    let (entry, described) = own(&asked, id).await?;
    if start.detach.unwrap_or_default() {
        let tty = described.process.tty;
        let started = asked.engine().exec_start_detached(id, tty).await;
        note_start(&asked, &described, id, &started);
        started?;
        return Ok(answer::started());
    }
    let place = asked.stream_of(&entry)?;
    let tty = start.tty.unwrap_or_default();
    let started = asked.engine().exec_start(id, tty).await;
    note_start(&asked, &described, id, &started);
    let engine = started?;
    Ok(asked.connection.attach(engine, place))
}

/// Notes that a command does not wait to be started any more. One that conflicts with the state of its container still does.
fn note_start<T>(
    asked: &Asked,
    described: &ExecDescribed,
    id: &ExecId,
    started: &Result<T, EngineFault>,
) {
    if !matches!(started, Err(EngineFault::Rejected(409, _))) {
        asked.prepared.remove(&described.container, id);
    }
}

/// Describes a command in a container of the caller.
pub(super) async fn inspect(asked: &Asked, id: &ExecId) -> Result<Response, Failure> {
    asked.query(&[])?;
    let (_, described) = own(asked, id).await?;
    Ok(answer::json(&documents::exec(id.as_str(), &described)))
}

/// The command with its container, if that is one of the caller.
async fn own(asked: &Asked, id: &ExecId) -> Result<(Entry, ExecDescribed), Failure> {
    let missing = || Failure::not_found("there is no such command in a container of this caller");
    let described = asked.engine().exec_inspect(id).await?;
    let described = described.ok_or_else(missing)?;
    let entry = asked.holds(&described.container).ok_or_else(missing)?;
    Ok((entry, described))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_read_with_null_for_false_and_with_fields_that_have_no_effect() {
        let read = |text: &str| serde_json::from_str::<Start>(text);
        let start = read(r#"{"Detach":true,"Tty":null,"ConsoleSize":[40,120],"Later":{}}"#);
        let start = start.expect("a start");
        assert_eq!((start.detach, start.tty), (Some(true), None));
        assert!(read(r#"{"Detach":"x"}"#).is_err());
        assert!(read(r#"{"Detach":false,"Detach":true}"#).is_err());
    }
}
