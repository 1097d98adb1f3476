//! Reads the values of a TOML document, and collects errors with their lines and columns.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use crate::model::text;
use crate::policy::error::{PolicyError, printable};

/// The maximum number of errors that are reported at once. A text with more errors is probably something else than a policy.
const MAX_ERRORS: usize = 20;

/// How similar a known word must be to a wrong one to be the one that was meant.
const SIMILAR: f64 = 0.7;

/// A text inside the document, and its position in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<'a> {
    pub(super) at: usize,
    pub(super) text: &'a str,
}

/// A table inside the document, and its position in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) at: usize,
    /// The name with which messages call it, such as `[[allow]]`.
    pub(super) name: &'static str,
    pub(super) table: &'a DeTable<'a>,
}

/// Collects errors.
#[derive(Debug)]
pub(super) struct Errors<'a> {
    text: &'a str,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
    found: Vec<PolicyError>,
}

impl<'a> Errors<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            text,
            lines: std::iter::once(0)
                .chain(after_breaks.map(|(at, _)| at + 1))
                .collect(),
            found: Vec::new(),
        }
    }

    /// The line at a position, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    pub(super) fn add(&mut self, at: usize, message: String) {
        if self.found.len() < MAX_ERRORS {
            let line = self.line(at);
            let start = line.checked_sub(1).and_then(|n| self.lines.get(n));
            let before = self.text.get(start.copied().unwrap_or_default()..at);
            self.found.push(PolicyError {
                line,
                column: before.map_or(0, |before| before.chars().count()) + 1,
                message,
                newer: false,
            });
        }
    }

    /// Adds the error that the policy is in a later version of the language.
    pub(super) fn add_newer(&mut self, at: usize, message: String) {
        self.add(at, message);
        if let Some(last) = self.found.last_mut() {
            last.newer = true;
        }
    }

    /// Adds the errors of the TOML parser. One error for each line is reported, since further errors on a line are mostly
    /// consequences of the first.
    pub(super) fn add_syntax(&mut self, errors: &[toml::de::Error]) {
        let mut lines = BTreeSet::new();
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            if lines.insert(self.line(at)) {
                self.add(at, error.message().replace('\n', ", "));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The errors in the order of the text.
    pub(super) fn into_sorted(mut self) -> Vec<PolicyError> {
        self.found.sort_by_key(|error| (error.line, error.column));
        self.found
    }

    /// Adds an error for each key of `entry` that is not `known`.
    pub(super) fn check_keys(&mut self, entry: Entry<'_>, known: &[&str]) {
        for (key, _) in entry.table {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let is_of_top = matches!(name, "strict" | "language" | "default");
            let remedy = match nearest(name, known) {
                _ if is_of_top && entry.name != TOP => {
                    format!("`{name}` stands at the top, before the first `[...]`")
                }
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("the keys here are {}", quoted(known)),
            };
            let name = printable(name);
            let place = match entry.name {
                TOP => String::new(),
                place => format!(" in `{place}`"),
            };
            self.add(
                key.span().start,
                format!("unknown key `{name}`{place}; {remedy}"),
            );
        }
    }

    /// The words of the list `key`, which must have one at least.
    pub(super) fn words<'t>(&mut self, entry: Entry<'t>, key: &str) -> Vec<Word<'t>> {
        let Some((at, value)) = self.required(entry, key) else {
            return Vec::new();
        };
        self.list(at, value, key)
    }

    /// The words of a list, which must have one at least.
    pub(super) fn list<'t>(
        &mut self,
        at: usize,
        value: &'t DeValue<'t>,
        key: &str,
    ) -> Vec<Word<'t>> {
        let key = printable(key);
        let DeValue::Array(array) = value else {
            let message = match value {
                DeValue::String(text) => {
                    let text = printable(text);
                    format!("`{key}` is a list; write [\"{text}\"]")
                }
                other => format!("`{key}` is a list of texts, not {}", kind_of(other)),
            };
            self.add(at, message);
            return Vec::new();
        };
        if array.is_empty() {
            self.add(
                at,
                format!("`{key}` is empty, so it names nobody; name one at least"),
            );
        }
        let mut words = Vec::new();
        for item in array {
            let at = item.span().start;
            match item.get_ref() {
                DeValue::String(text) => words.push(Word { at, text }),
                other => self.add(
                    at,
                    format!("`{key}` is a list of texts; this is {}", kind_of(other)),
                ),
            }
        }
        words
    }

    /// The text of `key`, which must be there.
    pub(super) fn word<'t>(&mut self, entry: Entry<'t>, key: &str) -> Option<Word<'t>> {
        let (at, value) = self.required(entry, key)?;
        match value {
            DeValue::String(text) => Some(Word { at, text }),
            other => {
                self.add(at, format!("`{key}` is a text, not {}", kind_of(other)));
                None
            }
        }
    }

    /// The tables `[[key]]`.
    pub(super) fn entries<'t>(
        &mut self,
        top: &'t DeTable<'t>,
        key: &str,
        name: &'static str,
    ) -> Vec<Entry<'t>> {
        let Some(value) = top.get(key) else {
            return Vec::new();
        };
        let DeValue::Array(array) = value.get_ref() else {
            let message = match value.get_ref() {
                DeValue::Table(_) => format!("`{key}` is a list of tables; write `{name}`"),
                other => format!("`{key}` is a list of tables, not {}", kind_of(other)),
            };
            self.add(value.span().start, message);
            return Vec::new();
        };
        let mut entries = Vec::new();
        for item in array {
            let at = item.span().start;
            match item.get_ref() {
                DeValue::Table(table) => entries.push(Entry { at, name, table }),
                other => self.add(
                    at,
                    format!("`{key}` is a list of tables; this is {}", kind_of(other)),
                ),
            }
        }
        entries
    }

    fn required<'t>(&mut self, entry: Entry<'t>, key: &str) -> Option<(usize, &'t DeValue<'t>)> {
        let Some(value) = entry.table.get(key) else {
            self.add(entry.at, format!("this `{}` lacks `{key}`", entry.name));
            return None;
        };
        Some((value.span().start, value.get_ref()))
    }
}

/// The name of the table that is the whole document.
pub(super) const TOP: &str = "";

/// The known word that is most similar to a wrong one, if one is.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    text::nearest(word, known.iter().copied(), SIMILAR)
}

/// The words in quotes, with commas between them.
fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

/// What a value is, for a message.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
