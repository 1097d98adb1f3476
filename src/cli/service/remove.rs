//! `meshctl service remove`.

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::Transport;
use crate::cli::exit::CliError;
use crate::cli::{Globals, names};
use crate::model::Label;
use crate::os::arguments;
use crate::protocol::local::ServiceChanged;

/// The arguments of `meshctl service remove`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl service remove db                 all ports of db on this node
  meshctl service remove db --port 5432     one port; the others stay")]
pub(in crate::cli) struct RemoveArguments {
    /// The service
    #[arg(value_name = "NAME", value_parser = arguments::label, add = ArgValueCandidates::new(names::own_services))]
    name: Label,
    /// Only this port
    #[arg(long, value_name = "P", value_parser = arguments::port, allow_hyphen_values = true)]
    port: Option<u16>,
    /// Only this transport protocol
    #[arg(long, value_enum, requires = "port")]
    protocol: Option<Transport>,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) async fn run(
    arguments: &RemoveArguments,
    globals: &Globals,
) -> Result<u8, CliError> {
    let mut path = format!("/v1/services/{}", arguments.name);
    if let Some(port) = arguments.port {
        path = format!("{path}/{port}");
    }
    if let Some(protocol) = arguments.protocol {
        path = format!("{path}/{}", protocol.as_str());
    }
    let changed: ServiceChanged = globals.daemon().delete(&path).await?;
    let port = arguments
        .port
        .map_or_else(String::new, |port| format!(" on port {port}"));
    super::report(
        &changed,
        &format!("{}{port} is removed from this node", changed.name),
        arguments.json,
    )
}
