//! `meshctl service remove`.

use crate::cli::Globals;
use crate::cli::exit::CliError;
use crate::model::Label;
use crate::protocol::local::ServiceChanged;

pub(in crate::cli) async fn run(name: &Label, globals: &Globals) -> Result<u8, CliError> {
    let changed: ServiceChanged = globals
        .daemon()
        .delete(&format!("/v1/services/{}", name))
        .await?;
    Ok(super::report(&changed, "is removed from this node"))
}
