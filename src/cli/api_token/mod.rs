//! `meshctl api-token`: creates, lists and revokes tokens for programs that call the API over the network.

mod create;
mod list;
mod made;
mod revoke;

use clap::Subcommand;

use super::Globals;
use super::exit::CliError;

/// The commands about API tokens.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create an API token and print it
    Create(create::CreateArguments),
    /// List the API tokens that were made with this mesh key on this machine
    #[command(after_help = "\
Examples:
  meshctl api-token list
  meshctl api-token list --json

The list is a file beside the mesh key. It has no token: whoever reads it can use none of them.")]
    List {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Revoke an API token, so that it permits nothing any more
    #[command(after_help = "\
Examples:
  meshctl api-token revoke ci
  meshctl api-token revoke 3f2a91

`meshctl api-token list` shows names and ids. A token that another machine made is revoked by its whole id.")]
    Revoke {
        /// The name of the token, its id, or the beginning of its id
        #[arg(value_name = "TOKEN", value_parser = revoke::parse_token)]
        token: String,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::Create(arguments) => create::run(arguments, globals).await,
        Command::List { json } => list::run(json, globals).await,
        Command::Revoke { token, json } => revoke::run(&token, json, globals).await,
    }
}
