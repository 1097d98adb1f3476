//! `meshctl node list`.

use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::protocol::admin::NodeList;

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: NodeList = globals.coordinator().get("/v1/nodes").await?;
    if json {
        return table::json(&list);
    }
    let rows: Vec<Vec<String>> = list
        .nodes
        .iter()
        .map(|node| {
            let tags: Vec<&str> = node.tags.iter().map(crate::model::Label::as_str).collect();
            vec![
                node.name.to_string(),
                node.address_v4
                    .map_or_else(|| "-".into(), |a| a.to_string()),
                if node.connected { "connected" } else { "away" }.into(),
                node.endpoints
                    .first()
                    .map_or_else(|| "-".into(), ToString::to_string),
                tags.join(","),
                node.id.short(),
            ]
        })
        .collect();
    table::table(
        &["NAME", "ADDRESS", "STATE", "ENDPOINT", "TAGS", "ID"],
        &rows,
    );
    Ok(0)
}
