//! `meshctl service drain` and `undrain`.

use crate::cli::Globals;
use crate::cli::exit::CliError;
use crate::model::ServiceName;
use crate::protocol::local::ServiceChanged;

pub(in crate::cli) async fn run(
    name: &ServiceName,
    drain: bool,
    globals: &Globals,
) -> Result<u8, CliError> {
    let verb = if drain { "drain" } else { "undrain" };
    let path = format!("/v1/services/{}/{verb}", name);
    let changed: ServiceChanged = globals.daemon().post(&path, &serde_json::json!({})).await?;
    Ok(super::report(
        &changed,
        if drain {
            "gets no new clients on this node"
        } else {
            "gets clients on this node again"
        },
    ))
}
