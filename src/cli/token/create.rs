//! `meshctl token create`.

use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cli::exit::CliError;
use crate::cli::{Globals, mesh_key, table};
use crate::model::time::{UnixSeconds, next_version};
use crate::model::{Label, PublicKey, SigningKey};
use crate::os::{arguments, clock, random};
use crate::protocol::JoinToken;
use crate::protocol::admin::{MeshState, Submit, Submitted};
use crate::protocol::api::ErrorCode;
use crate::protocol::token::MAX_URLS;
use crate::records::Envelope;
use crate::records::kinds::{MAX_COORDINATORS, Mesh, Record, Token};

/// Options of the new token.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl token create                          one node, within an hour
  meshctl token create --uses 3 --ttl 1d        three nodes, within a day
  meshctl token create --tag web --ephemeral    nodes with a tag, which are removed when they stay away

The token is the only text on stdout. Whoever has it can join: pass it on in a file or on stdin.")]
pub(in crate::cli) struct CreateArguments {
    /// The number of nodes it may admit
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = arguments::number(1u32, 100_000, 3), allow_hyphen_values = true)]
    uses: u32,
    /// How long it is valid: 30m, 1h, 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = arguments::duration("1s", "3650d", "30m, 1h or 7d"), allow_hyphen_values = true)]
    ttl: Duration,
    /// A tag of its nodes; may be given several times
    #[arg(long = "tag", value_name = "T", value_parser = arguments::label)]
    tags: Vec<Label>,
    /// Remove its nodes when they are not connected for some time
    #[arg(long)]
    ephemeral: bool,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Created {
    schema: u32,
    id: PublicKey,
    token: String,
    expires_at: UnixSeconds,
}

pub(in crate::cli) async fn run(
    arguments: CreateArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let coordinator = globals.coordinator();
    let state: MeshState = coordinator.get("/v1/mesh").await?;
    let (held, key) = mesh_key::of_mesh(&state, &globals.mesh_key)?;
    if state.urls.is_empty() {
        return Err(CliError::new(
            ErrorCode::Configuration,
            "the coordinator does not know its own URL for nodes; set public_urls in coordinator.toml, or --public-url",
        ));
    }
    for problem in &state.url_problems {
        eprintln!(
            "warning: {} is in the token and does not lead to this coordinator: {}; {}",
            problem.url, problem.why, problem.fix
        );
    }
    let mut seed = Zeroizing::new([0u8; 32]);
    random::fill(seed.as_mut_slice()).map_err(CliError::failed)?;
    let token_key = SigningKey::from_seed(&seed);
    let now = clock::wall();
    let created_at = UnixSeconds::from_system(now);
    let record = Token {
        id: token_key.public(),
        version: next_version(0, now),
        tags: arguments.tags,
        uses: arguments.uses,
        created_at,
        expires_at: created_at.plus(arguments.ttl),
        ephemeral: arguments.ephemeral,
    };
    let expires_at = record.expires_at;
    let mut records = vec![Envelope::seal(&Record::Token(record), &key)];
    records.extend(changed_mesh(&state, &key, now));
    let submit = Submit {
        mesh_key: None,
        records,
    };
    let _: Submitted = coordinator.post("/v1/records", &submit).await?;
    let id = token_key.public();
    let token = JoinToken {
        urls: state.urls.into_iter().take(MAX_URLS).collect(),
        pin: state.pin,
        mesh_key: held,
        key: token_key,
    };
    let created = Created {
        schema: 1,
        id,
        token: token.to_string(),
        expires_at,
    };
    if arguments.json {
        return table::json(&created);
    }
    table::line(&created.token);
    Ok(0)
}

/// The record of the mesh with the present addresses of the coordinators, if they have changed. Nodes accept them only
/// if the mesh key has signed them, and this command has that key.
fn changed_mesh(state: &MeshState, key: &SigningKey, now: SystemTime) -> Option<Envelope> {
    let mesh = state.mesh.as_ref()?;
    let coordinators: Vec<String> = state.urls.iter().map(ToString::to_string).collect();
    if mesh.coordinators == coordinators || coordinators.len() > MAX_COORDINATORS {
        return None;
    }
    let mesh = Mesh {
        version: next_version(mesh.version, now),
        coordinators,
        ..mesh.clone()
    };
    Some(Envelope::seal(&Record::Mesh(mesh), key))
}
