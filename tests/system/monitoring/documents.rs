//! Compares what is scraped with what the documents, the alerts and the dashboard name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{read, repository};
use crate::tool::find_program;

/// The metrics that Prometheus itself makes.
const OF_PROMETHEUS: [&str; 2] = ["up", "ALERTS"];

/// The names of the alerts.
pub(super) fn alerts(rules: &str) -> Vec<&str> {
    let lines = rules
        .lines()
        .map(|line| line.trim_start().trim_start_matches("- "));
    lines
        .filter_map(|line| line.strip_prefix("alert: "))
        .collect()
}

/// The metrics of a page with their types.
fn metrics(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let heads = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    heads.filter_map(|head| head.split_once(' '))
}

/// The labels of the samples of each metric of a page. The samples of a histogram have names of their own.
fn labels(page: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let metrics: BTreeMap<&str, &str> = metrics(page).collect();
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = sample.split_once(['{', ' ']).expect("a sample");
        let mut parts = ["_bucket", "_sum", "_count"].into_iter();
        let whole = parts.find_map(|part| name.strip_suffix(part));
        let whole = whole.filter(|whole| metrics.get(whole) == Some(&"histogram"));
        let of_metric = labels.entry(whole.unwrap_or(name)).or_default();
        if let Some((inside, _)) = rest.split_once('}').filter(|_| sample.contains('{')) {
            let pairs = inside.split("\",");
            of_metric.extend(pairs.filter_map(|pair| Some(pair.split_once("=\"")?.0)));
        }
    }
    labels
}

/// The rows of the tables in `docs/metrics.md`: name, type and labels.
fn documented(text: &str) -> BTreeMap<&str, (&str, BTreeSet<&str>)> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`'));
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`'), (cells[2], labels))
    });
    rows.collect()
}

/// The words of an expression that may be names of metrics.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(move |c| !is_word(c));
    words.filter(|word| {
        word.starts_with("meshd_")
            || word.starts_with("mesh_coordinator_")
            || word.starts_with("process_")
    })
}

/// Holds that the table of metrics, the alerts and the dashboard name metrics of `pages`, and the table all of them.
pub(super) fn check(pages: &[String]) {
    let scraped: BTreeMap<&str, &str> = pages.iter().flat_map(|page| metrics(page)).collect();
    let text = read("docs/metrics.md");
    let table = documented(&text);
    let types: BTreeMap<&str, &str> = table
        .iter()
        .map(|(name, (kind, _))| (*name, *kind))
        .collect();
    assert_eq!(types, scraped, "docs/metrics.md and what is scraped");
    for (name, seen) in pages.iter().flat_map(|page| labels(page)) {
        assert_eq!(table[name].1, seen, "the labels of {name}");
    }
    for file in [
        "monitoring/alerts.yml",
        "monitoring/alerts.test.yml",
        "monitoring/dashboard.json",
    ] {
        let text = read(file);
        for name in named(&text) {
            let is_metric = scraped.contains_key(name);
            assert!(is_metric, "{file} names {name}, which is not scraped");
        }
    }
}

/// Holds that promtool accepts a page.
pub(super) fn check_with_promtool(page: &str) {
    let program = find_program("promtool").expect("the caller has looked");
    let mut command = Command::new(program);
    command.args(["check", "metrics"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = command.spawn().expect("a program");
    let mut input = running.stdin.take().expect("it is piped");
    input.write_all(page.as_bytes()).expect("it reads");
    drop(input);
    let output = running.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{page}");
}

#[test]
fn the_dashboard_is_for_any_data_source_and_each_panel_has_an_expression() {
    let text = read("monitoring/dashboard.json");
    let board: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = board["panels"].as_array().expect("a list");
    let mut ids = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        let targets = panel["targets"].as_array().expect("a list");
        for target in targets {
            let expression = target["expr"].as_str().expect("a text");
            let is_known = named(expression).count() > 0
                || OF_PROMETHEUS.iter().any(|name| expression.contains(name));
            assert!(is_known, "{expression}");
        }
        assert!(!targets.is_empty(), "{panel}");
        assert!(panel["description"].is_string(), "{panel}");
        assert!(ids.insert(panel["id"].to_string()), "{panel}");
    }
    assert!(ids.len() > 20, "the dashboard has lost its panels");
}

#[test]
fn each_alert_says_what_happened_and_what_to_do() {
    let rules = read("monitoring/alerts.yml");
    let names = alerts(&rules);
    assert!(names.len() > 15, "the scan has lost the alerts: {names:?}");
    let once: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(once.len(), names.len(), "an alert stands there twice");
    for word in ["summary: ", "description: ", "severity: "] {
        assert_eq!(rules.matches(word).count(), names.len(), "{word}");
    }
}

#[test]
fn each_line_that_the_document_of_the_log_lists_is_in_the_source() {
    let text = read("docs/logs.md");
    let rows = text.lines().filter(|line| {
        ["| info | ", "| warn | "]
            .iter()
            .any(|start| line.starts_with(start) && line.matches('|').count() == 5)
    });
    let messages: BTreeSet<&str> = rows
        .filter_map(|row| row.split('|').nth(2))
        .map(str::trim)
        .collect();
    assert!(
        messages.len() > 15,
        "the scan has lost the table: {messages:?}"
    );
    let mut source = String::new();
    let mut folders = vec![repository("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                source.push_str(&std::fs::read_to_string(path).expect("src is text"));
            }
        }
    }
    for message in messages {
        let literal = format!("\"{message}\"");
        assert!(source.contains(&literal), "no line of the log is {literal}");
    }
}
