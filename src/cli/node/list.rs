//! `meshctl node list`.

use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::model::Label;
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::protocol::admin::{NodeList, NodeRow};

const HEADINGS: [&str; 8] = [
    "NAME",
    "ADDRESS",
    "STATE",
    "LAST SEEN",
    "TAGS",
    "VERSION",
    "ENDPOINT",
    "ID",
];

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: NodeList = globals.coordinator().get("/v1/nodes").await?;
    if json {
        return table::json(&list);
    }
    let now = UnixSeconds::from_system(clock::wall());
    let rows: Vec<Vec<String>> = list.nodes.iter().map(|node| row(node, now)).collect();
    table::table(&HEADINGS, &rows);
    if list.nodes.is_empty() {
        eprintln!("no node has joined yet; `meshctl token create` makes a token for one");
    }
    Ok(0)
}

fn row(node: &NodeRow, now: UnixSeconds) -> Vec<String> {
    let dash = || "-".to_owned();
    let tags: Vec<&str> = node.tags.iter().map(Label::as_str).collect();
    let last_seen = match node.last_seen_at {
        _ if node.connected => "now".to_owned(),
        Some(at) => format!("{} ago", table::age(now.0.saturating_sub(at.0))),
        // The coordinator has not seen it since it was started.
        None => "not since the start".to_owned(),
    };
    vec![
        node.name.to_string(),
        node.address_v4.map_or_else(dash, |a| a.to_string()),
        if node.connected { "connected" } else { "away" }.into(),
        last_seen,
        if tags.is_empty() {
            dash()
        } else {
            tags.join(",")
        },
        node.version.clone().unwrap_or_else(dash),
        node.endpoints
            .first()
            .map_or_else(dash, ToString::to_string),
        node.id.short(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_listed_with_when_it_was_seen_and_its_version() {
        let node = |connected, last_seen_at, version: Option<&str>| NodeRow {
            id: crate::model::PublicKey([7; 32]),
            name: Label::parse("web-1").expect("a literal"),
            tags: vec![Label::parse("web").expect("a literal")],
            address_v4: "10.210.1.1".parse().ok(),
            address_v6: None,
            endpoints: Vec::new(),
            connected,
            joined_at: UnixSeconds(1),
            last_seen_at,
            version: version.map(str::to_owned),
        };
        let shown = |node: &NodeRow| row(node, UnixSeconds(100_000)).join(" ");
        let id = "0707070707";
        let there = shown(&node(true, None, Some("0.2.0")));
        assert!(
            there.starts_with(&format!("web-1 10.210.1.1 connected now web 0.2.0 - {id}")),
            "{there}"
        );
        let away = shown(&node(false, Some(UnixSeconds(92_800)), None));
        assert!(
            away.starts_with(&format!("web-1 10.210.1.1 away 2 h ago web - - {id}")),
            "{away}"
        );
        let unknown = shown(&node(false, None, None));
        assert!(unknown.contains("away not since the start"), "{unknown}");
    }
}
