//! `meshctl guest remove`.

use serde::Serialize;

use super::list::unknown;
use crate::cli::exit::CliError;
use crate::cli::live::Live;
use crate::cli::{Globals, confirmed, mesh_key, table};
use crate::model::{Label, SigningKey, WireGuardKey};
use crate::protocol::admin::{MeshState, Submit, Submitted};
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
    let state: MeshState = globals.coordinator().get("/v1/mesh").await?;
    let (held, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    let live = Live::of_mesh(held, globals).await?;
    let mut all = guests::guests(live.ledger());
    let guest = all.remove(name).ok_or_else(|| unknown("remove", name))?;
    let question = format!("remove the guest {name} for good? Its key never works again.");
    if !options.yes && !confirmed::is_confirmed(&question)? {
        return Err(CliError::failed(format!("{name} was not removed")));
    }
    submit(guest.id, &key, globals).await?;
    eprintln!("{name} is removed: its door ends its session as soon as it receives the removal");
    if options.json {
        return table::json(&RemovedGuest {
            schema: 1,
            name: guest.name,
            key: guest.id,
        });
    }
    Ok(0)
}

/// Signs the removal of a guest, and sends it to the coordinator.
pub(super) async fn submit(
    id: WireGuardKey,
    key: &SigningKey,
    globals: &Globals,
) -> Result<(), CliError> {
    let submit = Submit {
        mesh_key: None,
        records: vec![Envelope::seal_payload(Guest::removal_payload(id), key)],
    };
    let _: Submitted = globals.coordinator().post("/v1/records", &submit).await?;
    Ok(())
}
