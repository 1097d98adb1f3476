//! The pages of the reference that are written from the code: each is compared with what the code has now.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::{UPDATE, is_update, program, read, repository, walk};

/// The types of the configuration files. The first of each list has the type `File`.
const NODE_TYPES: [&str; 3] = [
    "src/node/config/file.rs",
    "src/os/log.rs",
    "src/os/log/mod.rs",
];
const COORDINATOR_TYPES: [&str; 3] = [
    "src/coordinator/config.rs",
    "src/os/log.rs",
    "src/os/log/mod.rs",
];

/// Compares a page of the reference with `text`, or writes it.
pub(crate) fn check(path: &str, text: &str) {
    let file = repository(path);
    if is_update() {
        std::fs::create_dir_all(file.parent().expect("in a folder")).expect("the repository");
        return std::fs::write(file, text).expect("the repository");
    }
    let there = std::fs::read_to_string(file).unwrap_or_default();
    let differs = there
        .lines()
        .zip(text.lines())
        .position(|(there, new)| there != new)
        .unwrap_or_else(|| there.lines().count().min(text.lines().count()));
    assert!(
        there == text,
        "{path} is not what the code has, from line {} on: {:?}\nto write it again: {UPDATE}",
        differs + 1,
        text.lines().nth(differs).unwrap_or_default()
    );
}

/// A text as a cell of a table: a bar does not end the cell, and an angle bracket is no HTML.
pub(crate) fn cell(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(n, part)| {
        let part = part.replace('|', "\\|");
        match n % 2 {
            0 => part.replace('<', "&lt;"),
            _ => part,
        }
    });
    parts.collect::<Vec<_>>().join("`")
}

#[test]
fn a_cell_of_a_table_keeps_its_text() {
    assert_eq!(cell("a|b <c> `<d>`"), "a\\|b &lt;c> `<d>`");
}

/// The first lines of a page.
pub(crate) fn head(title: &str, sources: &str) -> String {
    format!("# {title}\n\nThis page is written from {sources}. A test compares the two.\n")
}

#[test]
fn the_reference_of_the_command_line_is_that_of_the_programs() {
    let mut page = head("Command line", "the programs' own `--help`");
    for name in ["meshctl", "meshd", "mesh-coordinator"] {
        add_command(&mut page, &[name]);
    }
    check("docs/reference/cli.md", &page);
}

/// Adds the help of a command and of the commands below it.
fn add_command(page: &mut String, words: &[&str]) {
    let (name, arguments) = words.split_first().expect("a program at least");
    let output = program(name)
        .args(arguments)
        .arg("--help")
        .output()
        .expect("it is built");
    assert!(output.status.success(), "{words:?}: {output:?}");
    let help = String::from_utf8(output.stdout).expect("a text");
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n## {}\n\n```text\n{}\n```\n",
        words.join(" "),
        lines.join("\n")
    );
    for below in commands_in(&help) {
        add_command(page, &[words, &[below]].concat());
    }
}

/// The commands that a help lists, under one heading or under several.
fn commands_in(help: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_list = false;
    for line in help.lines() {
        if !line.starts_with(' ') {
            let is_heading = line.ends_with(':') && !line.starts_with("Usage");
            let other = [
                "Arguments:",
                "Options:",
                "Examples:",
                "Global options:",
                "Exit codes:",
            ];
            is_list = is_heading && !other.contains(&line);
        } else if is_list
            && line.starts_with("  ")
            && !line.starts_with("   ")
            && let Some(word) = line.split_whitespace().next()
            && word != "help"
            && !word.starts_with('-')
        {
            found.push(word);
        }
    }
    found
}

#[test]
fn the_commands_of_a_help_are_found() {
    let help = "About\n\nUsage: x [OPTIONS] <COMMAND>\n\nCommands:\n  init         Create\n  rollout      Drain\n               ones\n  help         Print\n\nOptions:\n      --a  B\n";
    assert_eq!(commands_in(help), ["init", "rollout"]);
}

#[test]
fn the_reference_of_the_configuration_is_that_of_the_types_and_the_examples() {
    let mut page = head(
        "Configuration",
        "`config/meshd.toml` and `config/coordinator.toml`, which have every key of the programs",
    );
    page.push_str(
        "\nA file may have any of the keys, or none. An unknown key is an error, which names the nearest known key. `meshd --check-config` and\n`mesh-coordinator --check-config` check a file.\n",
    );
    for (file, types) in [
        ("config/meshd.toml", NODE_TYPES),
        ("config/coordinator.toml", COORDINATOR_TYPES),
    ] {
        let rows = example(&read(file));
        let shown: BTreeSet<String> = rows.iter().map(Row::key).collect();
        assert_eq!(shown, keys(&types), "{file} and {}", types[0]);
        let name = file.trim_start_matches("config/");
        let _ = write!(page, "\n## /etc/meshd/{name}\n");
        let mut section = None;
        for row in &rows {
            if section != Some(&row.section) {
                section = Some(&row.section);
                let title = match row.section.as_str() {
                    "" => "At the top".to_owned(),
                    text => format!("`[{text}]`"),
                };
                let _ = write!(page, "\n### {title}\n");
                if !row.about_section.is_empty() {
                    let _ = write!(page, "\n{}\n", row.about_section);
                }
                page.push_str("\n| key | default | meaning |\n|---|---|---|\n");
            }
            let default = match row.is_default {
                true => format!("`{}`", row.value),
                false => "none".to_owned(),
            };
            let mut about = row.about.clone();
            if !row.is_default && !about.contains(&row.value) {
                let space = if about.is_empty() { "" } else { " " };
                let _ = write!(about, "{space}Example: `{}`", row.value);
            }
            let _ = writeln!(page, "| `{}` | {default} | {about} |", row.name);
        }
    }
    check("docs/reference/configuration.md", &page);
}

/// A key of an example file.
struct Row {
    /// Without the outer brackets; empty at the top of the file.
    section: String,
    about_section: String,
    name: String,
    value: String,
    /// Whether the value is the default. A key that is commented out has an example as its value.
    is_default: bool,
    about: String,
}

impl Row {
    fn key(&self) -> String {
        match self.section.trim_matches(['[', ']']) {
            "" => self.name.clone(),
            section => format!("{section}.{}", self.name),
        }
    }
}

/// Reads the keys and their comments from an example file. A key without a default is commented out, or its comment says that the value
/// is an example. A file in which all keys are commented out begins these lines with `#` and no space.
fn example(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut section, mut about_section) = (String::new(), String::new());
    let mut about: Vec<&str> = Vec::new();
    for line in text.lines() {
        let comment = line.strip_prefix("# ");
        let bare = line.trim_start_matches('#').trim_start();
        let code = if is_key(bare) || is_section(bare) {
            bare
        } else {
            line
        };
        if line.trim().is_empty() {
            about.clear();
        } else if is_section(code) {
            let inner = code
                .trim()
                .strip_prefix('[')
                .and_then(|t| t.strip_suffix(']'));
            section = inner.expect("a section").to_owned();
            about_section = std::mem::take(&mut about).join(" ");
        } else if is_key(code) {
            let (name, rest) = code.split_once(" = ").expect("a key");
            let (value, trailing) = match rest.split_once(" #") {
                Some((value, comment)) => (value.trim(), comment.trim()),
                None => (rest.trim(), ""),
            };
            let mut words: Vec<&str> = std::mem::take(&mut about);
            words.extend(Some(trailing).filter(|t| !t.is_empty()));
            let words = words.join(" ");
            let comments = format!("{about_section} {words}");
            let is_example = comments.contains("Example") || comments.contains("an example");
            rows.push(Row {
                section: section.clone(),
                about_section: cell(&about_section),
                name: name.to_owned(),
                value: value.to_owned(),
                is_default: comment.is_none() && !is_example,
                about: cell(&words),
            });
        } else if let Some(text) = comment {
            about.push(text);
        }
    }
    // A key may be shown twice, such as with two values. The first is the default.
    let mut seen = BTreeSet::new();
    rows.retain(|row| seen.insert(row.key()));
    rows
}

fn is_key(text: &str) -> bool {
    text.split_once(" = ").is_some_and(|(name, _)| {
        name.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    })
}

fn is_section(text: &str) -> bool {
    text.starts_with('[') && text.trim_end().ends_with(']')
}

#[test]
fn an_example_file_is_read() {
    let text = "# The file.\n\n# A.\n# B.\na = 1\n# b = \"x\"   # C\n\n# S.\n[s]\nkind = \"k\"\n# kind = \"l\"\n\n#[[t]]\n#c = 2\n# Example.\n#d = 3\n";
    let rows: Vec<_> = example(text)
        .iter()
        .map(|r| (r.key(), r.value.clone(), r.is_default, r.about.clone()))
        .collect();
    let row = |k: &str, v: &str, d, a: &str| (k.to_owned(), v.to_owned(), d, a.to_owned());
    assert_eq!(
        rows,
        [
            row("a", "1", true, "A. B."),
            row("b", "\"x\"", false, "C"),
            row("s.kind", "\"k\"", true, ""),
            row("t.c", "2", true, ""),
            row("t.d", "3", false, "Example."),
        ]
    );
}

/// The keys of the type `File` in the first of these files, whose sections may be types of the others.
fn keys(files: &[&str]) -> BTreeSet<String> {
    let mut structs: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for path in files {
        let Ok(text) = std::fs::read_to_string(repository(path)) else {
            continue;
        };
        for item in syn::parse_file(&text).expect("it compiles").items {
            let syn::Item::Struct(item) = item else {
                continue;
            };
            let fields = item.fields.iter().filter_map(|field| {
                let name = crate::schema::serde(&field.attrs, "rename");
                let name = name.or_else(|| Some(field.ident.as_ref()?.to_string()))?;
                Some((name, crate::schema::inner_type(&field.ty)))
            });
            structs.insert(item.ident.to_string(), fields.collect());
        }
    }
    let mut keys = BTreeSet::new();
    for (name, kind) in structs.get("File").expect("the type of the file") {
        match structs.get(kind) {
            Some(fields) => keys.extend(fields.iter().map(|(field, _)| format!("{name}.{field}"))),
            None => {
                keys.insert(name.clone());
            }
        }
    }
    keys
}

#[test]
fn the_reference_of_the_metrics_is_that_of_running_programs() {
    let Some(mesh) = walk::running_mesh() else {
        return;
    };
    let mut page = head("Metrics", "what the programs serve");
    page.push_str(
        "\nUnits are seconds and bytes; names of counters end in `_total`, and counters begin at 0 when the program starts.\n[Monitor a mesh](../howto/monitoring.md) says which ones to watch.\n",
    );
    for (program, text) in [
        ("meshd", &mesh.meshd),
        ("mesh-coordinator", &mesh.coordinator),
    ] {
        let _ = write!(
            page,
            "\n## {program}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
        );
        for metric in metrics(text) {
            let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                metric.name,
                metric.kind,
                labels.join(", "),
                cell(&metric.help)
            );
        }
        for metric in metrics(text).iter().filter(|m| !m.values.is_empty()) {
            let values: Vec<String> = metric.values.iter().map(|v| format!("`{v}`")).collect();
            let label = &metric.labels[0];
            let _ = write!(
                page,
                "\nValues of `{label}` of `{}`: {}.\n",
                metric.name,
                values.join(", ")
            );
        }
    }
    check("docs/reference/metrics.md", &page);
}

struct Metric {
    name: String,
    kind: String,
    help: String,
    labels: Vec<String>,
    /// The values of its label, if the label is one of a few words.
    values: Vec<String>,
}

/// Labels whose values are words of the program and not names of servers or services.
const CLOSED: [&str; 4] = ["reason", "result", "stage", "state"];

/// Reads Prometheus's text format.
fn metrics(text: &str) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            metrics.push(Metric {
                name: name.to_owned(),
                kind: String::new(),
                help: help.to_owned(),
                labels: Vec::new(),
                values: Vec::new(),
            });
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '))
        {
            let metric = metrics.last_mut().expect("its help stands before it");
            assert_eq!(metric.name, name);
            metric.kind = kind.to_owned();
        } else if let Some((_, rest)) = line.split_once('{') {
            let metric = metrics.last_mut().expect("its help stands before it");
            let inner = rest.split('}').next().unwrap_or_default();
            for pair in inner.split("\",") {
                let Some((label, value)) = pair.split_once("=\"") else {
                    continue;
                };
                if !metric.labels.iter().any(|l| l == label) {
                    metric.labels.push(label.to_owned());
                }
                let value = value.trim_end_matches('"').to_owned();
                if CLOSED.contains(&label) && !metric.values.contains(&value) {
                    metric.values.push(value);
                }
            }
        }
    }
    metrics
}

#[test]
fn metrics_are_read_with_their_labels() {
    let text = "# HELP a_total Queries.\n# TYPE a_total counter\na_total{reason=\"x\"} 1\na_total{reason=\"y\"} 0\n# HELP b B.\n# TYPE b gauge\nb{peer=\"n\",id=\"3\"} 1\n";
    let read: Vec<_> = metrics(text)
        .into_iter()
        .map(|m| (m.name, m.kind, m.labels.join(" "), m.values.join(" ")))
        .collect();
    let row = |a: &str, b: &str, c: &str, d: &str| (a.into(), b.into(), c.into(), d.into());
    assert_eq!(
        read,
        [
            row("a_total", "counter", "reason", "x y"),
            row("b", "gauge", "peer id", "")
        ]
    );
}
