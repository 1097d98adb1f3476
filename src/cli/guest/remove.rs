//! `meshctl guest remove`.

use serde::Serialize;

use super::list::unknown;
use crate::cli::client::Daemon;
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, confirmed, mesh_key, table};
use crate::model::{Label, SigningKey, WireGuardKey};
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::protocol::local::{GuestKeys, GuestRemoved, RemoveGuest};
use crate::records::Envelope;
use crate::records::kinds::Guest;
use crate::records::ledger::guests;

/// The options of `meshctl guest remove`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) yes: bool,
    pub(super) json: bool,
}

/// `meshctl guest remove --json`.
#[derive(Debug, Serialize)]
struct RemovedGuest {
    schema: u32,
    name: Label,
    key: WireGuardKey,
}

pub(super) async fn run(name: &Label, options: Options, globals: &Globals) -> Result<u8, CliError> {
    let Found { id, key, daemon } = find(name, globals).await?;
    let question = format!("remove the guest {name} for good? Its key never works again.");
    if !options.yes && !confirmed::is_confirmed(&question)? {
        return Err(CliError::failed(format!("{name} was not removed")));
    }
    match daemon {
        Daemon::Coordinator => {
            submit(id, &key, globals).await?;
            eprintln!(
                "{name} is removed: its door ends its session as soon as it receives the removal"
            );
        }
        Daemon::Meshd => {
            let remove = RemoveGuest {
                record: removal(id, &key),
            };
            let node = globals.daemon();
            let _: GuestRemoved = node.post("/v1/guests/remove", &remove).await?;
            eprintln!(
                "{name} is removed: no coordinator is on this machine, so this node passes the removal on to the others, and its door ends its session as soon as it receives it"
            );
        }
    }
    if options.json {
        return table::json(&RemovedGuest {
            schema: 1,
            name: name.clone(),
            key: id,
        });
    }
    Ok(0)
}

/// A guest that is to be removed, with the mesh key and the daemon that gets the removal.
struct Found {
    id: WireGuardKey,
    key: SigningKey,
    daemon: Daemon,
}

/// Finds the guest at the coordinator, or at the node on this machine if no coordinator answers.
async fn find(name: &Label, globals: &Globals) -> Result<Found, CliError> {
    let state: Result<MeshState, CliError> = globals.coordinator().get("/v1/mesh").await;
    let state = match state {
        Ok(state) => state,
        Err(error) if error.code == ErrorCode::Unreachable.exit_code() => {
            return find_at_node(name, error, globals).await;
        }
        Err(error) => return Err(error),
    };
    let (held, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let live = Live::of_mesh(held, globals).await?;
    let mut all = guests::guests(live.ledger());
    let guest = all.remove(name).ok_or_else(|| unknown("remove", name))?;
    Ok(Found {
        id: guest.id,
        key,
        daemon: Daemon::Coordinator,
    })
}

/// `away` is the error of the coordinator, which counts if there is no node either.
async fn find_at_node(name: &Label, away: CliError, globals: &Globals) -> Result<Found, CliError> {
    let list: Result<GuestKeys, CliError> = globals.daemon().get("/v1/guests").await;
    let Ok(list) = list else {
        return Err(away);
    };
    let key = mesh_key::read(&globals.mesh_key)?;
    mesh_key::check(&key, list.mesh_key, &globals.mesh_key)?;
    let guest = list.guests.into_iter().find(|guest| guest.name == *name);
    let guest = guest.ok_or_else(|| unknown("remove", name))?;
    Ok(Found {
        id: guest.key,
        key,
        daemon: Daemon::Meshd,
    })
}

/// The removal of a guest, signed.
fn removal(id: WireGuardKey, key: &SigningKey) -> Envelope {
    Envelope::seal_payload(Guest::removal_payload(id), key)
}

/// Signs the removal of a guest, and sends it to the coordinator.
pub(super) async fn submit(
    id: WireGuardKey,
    key: &SigningKey,
    globals: &Globals,
) -> Result<(), CliError> {
    let submit = Submit {
        mesh_key: None,
        records: vec![removal(id, key)],
    };
    let _: Submitted = globals.coordinator().post("/v1/records", &submit).await?;
    Ok(())
}
