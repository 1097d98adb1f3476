//! `meshctl rename`.

use clap::Args;

use super::Globals;
use super::exit::CliError;
use crate::protocol::local::{Rename, Renamed};

/// The arguments of `meshctl rename`.
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
        "; the coordinator is not reachable and receives the name later"
    };
    eprintln!("this node is called {}{later}", renamed.name);
    Ok(0)
}
