//! `meshctl rename`.

use clap::Args;

use super::Globals;
use super::exit::CliError;
use crate::protocol::local::{Rename, Renamed};

/// The command line.
#[derive(Debug, Args)]
pub(super) struct RenameArguments {
    /// The new name: letters, digits and hyphens
    name: String,
}

pub(super) async fn run(arguments: RenameArguments, globals: &Globals) -> Result<u8, CliError> {
    let rename = Rename {
        name: arguments.name,
    };
    let renamed: Renamed = globals.daemon().post("/v1/rename", &rename).await?;
    let later = if renamed.published {
        ""
    } else {
        "; the coordinator is away and hears of it when it is back"
    };
    eprintln!("this node is {}{later}", renamed.name);
    Ok(0)
}
