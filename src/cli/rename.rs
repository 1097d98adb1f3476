//! `meshctl rename`.

use clap::Args;

use super::exit::CliError;
use super::{Globals, table};
use crate::model::Label;
use crate::os::arguments;
use crate::protocol::local::{Rename, Renamed};

/// The arguments of `meshctl rename`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl rename web-2    this node is web-2.node.mesh from now on")]
pub(super) struct RenameArguments {
    /// The new name: letters, digits and hyphens
    #[arg(value_name = "NAME", value_parser = arguments::label)]
    name: Label,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: RenameArguments, globals: &Globals) -> Result<u8, CliError> {
    let rename = Rename {
        name: arguments.name.to_string(),
    };
    let renamed: Renamed = globals.daemon().post("/v1/rename", &rename).await?;
    let later = table::later(renamed.published, renamed.unpublished.as_ref());
    eprintln!("this node is called {}{later}", renamed.name);
    if arguments.json {
        return table::json(&renamed);
    }
    Ok(0)
}
