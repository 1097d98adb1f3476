//! Tables that people write by hand and that the code decides.

use std::collections::BTreeSet;

use meshd::protocol::api::ErrorCode;
use meshd::protocol::web::calls::{ApiCall, OF_COORDINATOR, OF_NODE};

use crate::read;

/// The first cells of a page's table, without backticks.
fn first_cells(page: &str) -> BTreeSet<String> {
    let text = read(page);
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    rows.filter_map(|row| row.split(" |").next())
        .map(|cell| cell.replace('`', ""))
        .collect()
}

/// The texts in quotes in a source file, up to its tests.
fn literals(path: &str) -> BTreeSet<String> {
    let text = read(path);
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let quoted = code.split('"').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

#[test]
fn the_page_of_labels_has_every_label_and_no_other() {
    let listed = first_cells("docs/reference/labels.md");
    let known: BTreeSet<String> = literals("src/containers/labels.rs")
        .into_iter()
        .filter(|text| {
            text.strip_prefix("mesh.")
                .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'.'))
        })
        .map(|text| match text.strip_suffix('.') {
            Some(prefix) => format!("{prefix}.<name>"),
            None => text,
        })
        .filter(|text| text != "mesh.<name>" && text != "mesh.")
        .collect();
    assert!(known.len() >= 10, "{known:?}");
    let labels = listed.into_iter().filter(|cell| cell.starts_with("mesh."));
    assert_eq!(labels.collect::<BTreeSet<_>>(), known);
}

#[test]
fn the_page_of_exit_codes_has_every_code_and_no_other() {
    let listed: BTreeSet<u8> = first_cells("docs/reference/exit-codes.md")
        .iter()
        .filter_map(|cell| cell.parse().ok())
        .collect();
    let codes = [
        ErrorCode::BadRequest,
        ErrorCode::Unauthorized,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::Conflict,
        ErrorCode::Unreachable,
        ErrorCode::Configuration,
        ErrorCode::Permission,
        ErrorCode::Version,
        ErrorCode::Busy,
        ErrorCode::Internal,
        ErrorCode::Unknown,
    ];
    let mut known: BTreeSet<u8> = codes.into_iter().map(ErrorCode::exit_code).collect();
    known.insert(0);
    assert_eq!(listed, known);
}

#[test]
fn the_page_of_the_api_has_every_call_with_its_scope_and_no_other() {
    let page = read("docs/reference/api.md");
    let is_call = |line: &&str| {
        let methods = ["GET", "POST", "DELETE"];
        methods
            .iter()
            .any(|method| line.starts_with(&format!("| `{method} ")))
    };
    let listed: BTreeSet<String> = page.lines().filter(is_call).map(str::to_owned).collect();
    let row = |call: &ApiCall| {
        format!(
            "| `{} {}` | `{}` | {} |",
            call.method, call.path, call.scope, call.about
        )
    };
    let known: BTreeSet<String> = OF_NODE.iter().chain(OF_COORDINATOR).map(row).collect();
    assert_eq!(listed, known);
}

#[test]
fn the_page_of_ports_has_the_ports_of_the_code() {
    let page = read("docs/reference/ports.md");
    let gossip = meshd::protocol::gossip::PORT;
    let coordinator = meshd::protocol::url::DEFAULT_PORT;
    for port in [
        format!("| TCP {coordinator} |"),
        format!("| UDP {coordinator} |"),
        format!("| TCP {gossip} |"),
        format!("| UDP {} |", meshd::protocol::path_messages::PORT),
        "| UDP 51820 |".to_owned(),
        format!("| TCP {} |", meshd::protocol::stream::StreamUrl::PORT),
        "| UDP 53, TCP 53 |".to_owned(),
        format!("| TCP {} |", meshd::protocol::web::PORT),
        "| TCP 9560 |".to_owned(),
        "| TCP 9561 |".to_owned(),
    ] {
        assert!(page.contains(&port), "{port}");
    }
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| TCP") || line.starts_with("| UDP"));
    assert_eq!(rows.count(), 10);
    for (file, values) in [
        (
            "config/meshd.toml",
            ["listen_port = 51820", "127.0.0.1:9560"],
        ),
        ("config/coordinator.toml", ["[::]:7443", "127.0.0.1:9561"]),
    ] {
        let text = read(file);
        for value in values {
            assert!(text.contains(value), "{file}: {value}");
        }
    }
}
