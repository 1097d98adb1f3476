//! `meshctl leave`.

use std::time::Duration;

use super::Globals;
use super::exit::CliError;
use crate::wire::local::Status;

/// How long taking everything back may take.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) async fn run(globals: &Globals) -> Result<u8, CliError> {
    let status: Status = globals.daemon().get("/v1/status").await?;
    let _: serde_json::Value = globals
        .daemon()
        .within(LIMIT)
        .post("/v1/leave", &serde_json::json!({}))
        .await?;
    let name = status
        .node
        .map_or_else(|| "NAME".to_owned(), |node| node.name.to_string());
    eprintln!(
        "left the mesh; `meshctl node remove {name}` where it is administered frees the name and addresses"
    );
    Ok(0)
}
