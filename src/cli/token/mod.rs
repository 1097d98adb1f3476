//! `meshctl token`: creates, lists and revokes join tokens.

mod create;
mod list;
mod revoke;

use clap::Subcommand;

use super::Globals;
use super::exit::CliError;

/// The commands about tokens.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a join token and print it
    Create(create::CreateArguments),
    /// List all tokens
    List {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token, so that it admits no more nodes
    Revoke {
        /// The token's id, or the beginning of it
        id: String,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::Create(arguments) => create::run(arguments, globals).await,
        Command::List { json } => list::run(json, globals).await,
        Command::Revoke { id } => revoke::run(&id, globals).await,
    }
}
