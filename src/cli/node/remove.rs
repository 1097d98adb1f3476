//! `meshctl node remove`.

use super::revoke;
use crate::cli::Globals;
use crate::cli::exit::CliError;
use crate::protocol::admin::NodeList;
use crate::protocol::api::ErrorCode;
use crate::records::kinds::RevokedKind;

pub(in crate::cli) async fn run(name: &str, globals: &Globals) -> Result<u8, CliError> {
    let list: NodeList = globals.coordinator().get("/v1/nodes").await?;
    let wanted = name.to_ascii_lowercase();
    let found: Vec<_> = list
        .nodes
        .iter()
        .filter(|node| node.name.as_str() == wanted || node.id.to_string() == wanted)
        .collect();
    match found.as_slice() {
        [node] => {
            revoke(node.id, RevokedKind::Node, None, globals).await?;
            eprintln!(
                "{} is removed: each other node drops its packets as soon as it receives the removal",
                node.name
            );
            Ok(0)
        }
        [] => Err(CliError::new(
            ErrorCode::NotFound,
            format!("there is no node {name}; `meshctl node list` shows all"),
        )),
        _ => Err(CliError::new(
            ErrorCode::BadRequest,
            format!(
                "several nodes have the name {name}; give the id that `meshctl node list --json` shows"
            ),
        )),
    }
}
