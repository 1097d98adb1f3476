//! `meshctl service`: list the services of the mesh, add and change those of this node.

mod add;
mod drain;
mod list;
mod remove;

use clap::{Subcommand, ValueEnum};

use super::exit::CliError;
use super::{Globals, table};
use crate::protocol::local::ServiceChanged;
use crate::records::kinds::Protocol;

/// The commands about services.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all services of the mesh
    #[command(after_help = "\
Examples:
  meshctl service list
  meshctl service list --json")]
    List {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Add a service of this node, or change one
    Add(add::AddArguments),
    /// Remove a service of this node, or one of its ports
    Remove(remove::RemoveArguments),
    /// Stop sending new clients to a service of this node
    #[command(after_help = "\
Examples:
  meshctl service drain web
  meshctl service drain web.shop    the service web of the Compose project shop")]
    Drain(drain::DrainArguments),
    /// Send clients to it again
    #[command(after_help = "\
Examples:
  meshctl service undrain web")]
    Undrain(drain::DrainArguments),
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn as_str(self) -> &'static str {
        Protocol::from(self).as_str()
    }
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::List { json } => list::run(json, globals).await,
        Command::Add(arguments) => add::run(arguments, globals).await,
        Command::Remove(arguments) => remove::run(&arguments, globals).await,
        Command::Drain(arguments) => drain::run(&arguments, true, globals).await,
        Command::Undrain(arguments) => drain::run(&arguments, false, globals).await,
    }
}

/// Prints what has changed. `what` is a sentence for people.
fn report(changed: &ServiceChanged, what: &str, json: bool) -> Result<u8, CliError> {
    let later = table::later(changed.published, changed.unpublished.as_ref());
    eprintln!("{what}{later}");
    if json {
        return table::json(changed);
    }
    Ok(0)
}
