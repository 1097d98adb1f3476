//! `meshctl token`: creates, lists and revokes join tokens.

mod create;
mod list;
mod revoke;

use clap::Subcommand;
use clap_complete::ArgValueCandidates;

use super::exit::CliError;
use super::{Globals, names};

/// The commands about tokens.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a join token and print it
    Create(create::CreateArguments),
    /// List all tokens
    #[command(after_help = "\
Examples:
  meshctl token list
  meshctl token list --json")]
    List {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token, so that it admits no more nodes
    #[command(after_help = "\
Examples:
  meshctl token revoke 3f2a91

`meshctl token list` shows the ids. Nodes that the token admitted stay members.")]
    Revoke {
        /// The token's id, or the beginning of it
        #[arg(value_name = "ID", value_parser = revoke::parse_id, add = ArgValueCandidates::new(names::tokens))]
        id: String,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::Create(arguments) => create::run(arguments, globals).await,
        Command::List { json } => list::run(json, globals).await,
        Command::Revoke { id, json } => revoke::run(&id, json, globals).await,
    }
}
