//! `meshctl node remove`.

use serde::Serialize;

use super::revoke;
use crate::cli::exit::CliError;
use crate::cli::{Globals, confirmed, table};
use crate::model::{Label, PublicKey};
use crate::protocol::admin::{NodeList, NodeRow};
use crate::protocol::api::ErrorCode;
use crate::records::kinds::RevokedKind;

/// The options of `meshctl node remove`.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Options {
    pub(in crate::cli) yes: bool,
    pub(in crate::cli) json: bool,
}

/// `meshctl node remove --json`.
#[derive(Debug, Serialize)]
struct Removed {
    schema: u32,
    id: PublicKey,
    name: Label,
}

pub(in crate::cli) fn parse_node(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(
            "it is the name of a node, which `meshctl node list` shows, such as web-2".into(),
        );
    }
    Ok(text.to_owned())
}

pub(in crate::cli) async fn run(
    name: &str,
    options: Options,
    globals: &Globals,
) -> Result<u8, CliError> {
    let list: NodeList = globals.coordinator().get("/v1/nodes").await?;
    let wanted = name.to_ascii_lowercase();
    let found: Vec<_> = list
        .nodes
        .iter()
        .filter(|node| node.name.as_str() == wanted || node.id.to_string() == wanted)
        .collect();
    match found.as_slice() {
        [node] => {
            if !options.yes && !is_confirmed(node)? {
                return Err(CliError::failed(format!("{} was not removed", node.name)));
            }
            revoke(node.id, RevokedKind::Node, None, globals).await?;
            eprintln!(
                "{} is removed: each other node drops its packets as soon as it receives the removal",
                node.name
            );
            if options.json {
                return table::json(&Removed {
                    schema: 1,
                    id: node.id,
                    name: node.name.clone(),
                });
            }
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

/// Asks the person at the terminal, if there is one.
fn is_confirmed(node: &NodeRow) -> Result<bool, CliError> {
    let state = if node.connected {
        "connected now"
    } else {
        "away"
    };
    confirmed::is_confirmed(&format!(
        "remove {} ({state}) from the mesh for good? It can only join again with a new token.",
        node.name
    ))
}
