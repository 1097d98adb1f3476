//! `meshctl node`: list and remove nodes.

mod list;
mod remove;

use clap::Subcommand;
use clap_complete::ArgValueCandidates;

use super::exit::CliError;
use super::{Globals, mesh_key, names};
use crate::model::PublicKey;
use crate::model::time::{UnixSeconds, next_version};
use crate::os::clock;
use crate::protocol::admin::{Submit, Submitted};
use crate::records::Envelope;
use crate::records::kinds::{Record, Revocation, RevokedKind};

/// The commands about nodes.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all nodes, with when the coordinator last saw them and their versions
    #[command(after_help = "\
Examples:
  meshctl node list
  meshctl node list --json")]
    List {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Remove a node permanently: all other nodes drop its packets
    #[command(after_help = "\
Examples:
  meshctl node remove web-2          asks first, on a terminal
  meshctl node remove web-2 --yes

The node can join again with a new token. A node that still runs leaves with `meshctl leave` instead.")]
    Remove {
        /// The node's name, or its whole id
        #[arg(value_name = "NAME", value_parser = remove::parse_node, add = ArgValueCandidates::new(names::members))]
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::List { json } => list::run(json, globals).await,
        Command::Remove { name, yes, json } => {
            let options = remove::Options { yes, json };
            remove::run(&name, options, globals).await
        }
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
