//! `meshctl policy denied`.

use super::explain::selector_of;
use crate::cli::exit::CliError;
use crate::cli::{Globals, table};
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::protocol::local::{DeniedDirection, DeniedEnd, DeniedList, DeniedRow};

pub(in crate::cli) async fn run(json: bool, globals: &Globals) -> Result<u8, CliError> {
    let list: DeniedList = globals.daemon().get("/v1/policy/denied").await?;
    if json {
        return table::json(&list);
    }
    let now = UnixSeconds::from_system(clock::wall());
    let rows: Vec<Vec<String>> = list.denied.iter().map(|d| row(d, now)).collect();
    table::table(&HEADINGS, &rows);
    if rows.is_empty() {
        eprintln!(
            "the policy denied nothing that this node sent or received since meshd was started"
        );
    }
    Ok(0)
}

const HEADINGS: [&str; 8] = [
    "FROM", "TO", "ASKED", "WAY", "RESULT", "COUNT", "FIRST", "LAST",
];

fn row(denied: &DeniedRow, now: UnixSeconds) -> Vec<String> {
    let ago = |at: UnixSeconds| format!("{} ago", table::age(now.0.saturating_sub(at.0)));
    let direction = match denied.direction {
        DeniedDirection::Outgoing => "out",
        DeniedDirection::Incoming => "in",
        DeniedDirection::Other => "-",
    };
    let result = if denied.passed {
        "would be denied"
    } else {
        "denied"
    };
    vec![
        shown(&denied.from),
        shown(&denied.to),
        denied.asked.clone(),
        direction.to_owned(),
        result.to_owned(),
        denied.count.to_string(),
        ago(denied.first_at),
        ago(denied.last_at),
    ]
}

/// A source or destination: the names that rules have for it, and its address.
fn shown(end: &DeniedEnd) -> String {
    let names: Vec<String> = end.services.iter().map(selector_of).collect();
    if let Some(guest) = &end.guest {
        return format!("guest:{guest} ({})", end.address);
    }
    match (&end.node, names.is_empty()) {
        (_, false) => format!("{} ({})", names.join(" "), end.address),
        (Some(node), true) => format!("node:{node} ({})", end.address),
        (None, true) => end.address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceName;
    use crate::testbed::records::label;

    #[test]
    fn a_refusal_is_one_row_with_the_names_that_rules_have() {
        let end = |address: &str, node: Option<&str>, services: &[&str]| DeniedEnd {
            address: address.parse().expect("a literal"),
            node: node.map(label),
            services: services
                .iter()
                .map(|s| ServiceName::parse(s).expect("a literal"))
                .collect(),
            guest: None,
        };
        let denied = DeniedRow {
            from: end("10.210.1.1", Some("web-1"), &[]),
            to: end("10.210.2.64", Some("db-1"), &["db", "database.shop"]),
            asked: "5432/tcp".into(),
            direction: DeniedDirection::Incoming,
            passed: false,
            count: 3,
            first_at: UnixSeconds(1000),
            last_at: UnixSeconds(1060),
        };
        assert_eq!(
            row(&denied, UnixSeconds(1063)),
            [
                "node:web-1 (10.210.1.1)",
                "db shop/database (10.210.2.64)",
                "5432/tcp",
                "in",
                "denied",
                "3",
                "63 s ago",
                "3 s ago"
            ]
        );
        assert_eq!(shown(&end("192.0.2.7", None, &[])), "192.0.2.7");
        let guest = DeniedEnd {
            guest: Some(label("anna")),
            ..end("10.210.1.254", Some("web-1"), &[])
        };
        assert_eq!(shown(&guest), "guest:anna (10.210.1.254)");
    }
}
