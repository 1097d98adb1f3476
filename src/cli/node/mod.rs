//! `meshctl node`: list and remove nodes.

mod list;
mod remove;

use clap::Subcommand;

use super::exit::CliError;
use super::{Globals, mesh_key};
use crate::model::PublicKey;
use crate::model::time::{UnixSeconds, next_version};
use crate::os::clock;
use crate::protocol::admin::{Submit, Submitted};
use crate::records::Envelope;
use crate::records::kinds::{Record, Revocation, RevokedKind};

/// The commands about nodes.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all nodes
    List {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Remove a node permanently: all other nodes drop its packets
    Remove {
        /// The node's name
        name: String,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::List { json } => list::run(json, globals).await,
        Command::Remove { name } => remove::run(&name, globals).await,
    }
}

/// Revokes a token or a node. Of the nodes that the token admitted, those listed in `stays` stay members. If `stays` is
/// absent, the nodes stay that joined before now by their own clocks.
pub(super) async fn revoke(
    id: PublicKey,
    revoked: RevokedKind,
    stays: Option<Vec<PublicKey>>,
    globals: &Globals,
) -> Result<(), CliError> {
    let key = mesh_key::read(&globals.mesh_key)?;
    let now = clock::wall();
    let revocation = Revocation {
        id,
        version: next_version(0, now),
        revoked,
        at: UnixSeconds::from_system(now),
        stays,
    };
    let submit = Submit {
        mesh_key: None,
        records: vec![Envelope::seal(&Record::Revocation(revocation), &key)],
    };
    let _: Submitted = globals.coordinator().post("/v1/records", &submit).await?;
    Ok(())
}
