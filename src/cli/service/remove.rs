//! `meshctl service remove`.

use crate::cli::Globals;
use crate::cli::client::segment;
use crate::cli::exit::CliError;
use crate::wire::local::ServiceChanged;

pub(in crate::cli) async fn run(name: &str, globals: &Globals) -> Result<u8, CliError> {
    let changed: ServiceChanged = globals
        .daemon()
        .delete(&format!("/v1/services/{}", segment(name)))
        .await?;
    Ok(super::say(&changed, "is removed from this node"))
}
