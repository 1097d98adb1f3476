//! `meshctl service`: list the services of the mesh, add and change those of this node.

mod add;
mod drain;
mod list;
mod remove;

use clap::Subcommand;

use super::Globals;
use super::exit::CliError;
use crate::model::{Label, ServiceName};
use crate::protocol::local::ServiceChanged;

/// The commands about services.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List all services of the mesh
    List {
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Add a service of this node, or change one
    Add(add::AddArguments),
    /// Remove a service of this node
    Remove {
        /// The service
        #[arg(value_parser = parse_name)]
        name: Label,
    },
    /// Stop sending new clients to a service of this node
    Drain {
        /// The service, as `web` or `web.project`
        #[arg(value_parser = parse_service)]
        name: ServiceName,
    },
    /// Send clients to it again
    Undrain {
        /// The service, as `web` or `web.project`
        #[arg(value_parser = parse_service)]
        name: ServiceName,
    },
}

pub(super) async fn run(command: Command, globals: &Globals) -> Result<u8, CliError> {
    match command {
        Command::List { json } => list::run(json, globals).await,
        Command::Add(arguments) => add::run(arguments, globals).await,
        Command::Remove { name } => remove::run(&name, globals).await,
        Command::Drain { name } => drain::run(&name, true, globals).await,
        Command::Undrain { name } => drain::run(&name, false, globals).await,
    }
}

fn parse_name(text: &str) -> Result<Label, String> {
    Label::parse(text).map_err(|error| error.to_string())
}

fn parse_service(text: &str) -> Result<ServiceName, String> {
    ServiceName::parse(text).map_err(|error| error.to_string())
}

fn report(changed: &ServiceChanged, what: &str) -> u8 {
    let later = if changed.published {
        ""
    } else {
        "; the coordinator is not reachable, so the other nodes receive the change later"
    };
    eprintln!("{} {what}{later}", changed.name);
    0
}
