//! Configuration files in TOML, read strictly. All errors are reported at once.
//!
//! An unknown key is an error that names the key, its file and line, and the nearest known key. A value of the wrong
//! type is an error that names its key, its line and the expected type. For that, the types that are read must have
//! `deny_unknown_fields`, and their tables must have defaults.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// The maximum size of a configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// The maximum number of errors that are reported at once. A file with more errors is probably another kind of file.
const MAX_ERRORS: usize = 20;

/// All errors of a file, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Reads `path`. Returns defaults if the file does not exist and the user did not name it.
///
/// # Errors
/// It cannot be read or parsed.
pub fn read<T: DeserializeOwned + Default>(path: &Path, required: bool) -> Result<T, ConfigError> {
    ConfigFile::open(path, required)?.parse()
}

/// Parses the text of `path`.
///
/// # Errors
/// Each error with its line and, for an unknown key, the nearest known one.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    ConfigFile::from_text(text, path).parse()
}

/// The text of a configuration file. It is kept so that errors which are found later can name their lines.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    path: PathBuf,
    text: String,
}

/// An error and its position, in bytes from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The position of the first byte of the wrong text.
    pub at: usize,
    /// The error and the remedy.
    pub message: String,
}

impl ConfigFile {
    /// Reads `path`. Returns an empty text if the file does not exist and is not `required`.
    ///
    /// # Errors
    /// It cannot be read, is not text, or is larger than 1 MiB.
    pub fn open(path: &Path, required: bool) -> Result<Self, ConfigError> {
        use std::io::Read as _;
        let unreadable =
            |error: std::io::Error| ConfigError(format!("cannot read {}: {error}", path.display()));
        let mut text = String::new();
        match std::fs::File::open(path) {
            Ok(file) => file
                .take(MAX_FILE + 1)
                .read_to_string(&mut text)
                .map_err(unreadable)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => 0,
            Err(error) => return Err(unreadable(error)),
        };
        if text.len() as u64 > MAX_FILE {
            return Err(ConfigError(format!(
                "{} is larger than 1 MiB; is it the right file?",
                path.display()
            )));
        }
        Ok(Self::from_text(&text, path))
    }

    /// A file at `path` with the content `text`.
    #[must_use]
    pub fn from_text(text: &str, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Parses the text.
    ///
    /// # Errors
    /// All errors, up to 20.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let (document, syntax) = DeTable::parse_recoverable(&self.text);
        if !syntax.is_empty() {
            // One error for each line is reported, since further errors on a line are mostly consequences of the first.
            let mut lines = BTreeSet::new();
            let findings = syntax
                .iter()
                .map(|error| Finding {
                    at: error.span().map_or(0, |span| span.start),
                    message: one_line(error.message()),
                })
                .filter(|finding| lines.insert(self.line(finding.at)))
                .collect();
            return Err(self.error(findings));
        }
        let mut rest = document.clone();
        let mut findings = Vec::new();
        let mut cut: Vec<Range<usize>> = Vec::new();
        // Deserialization stops at its first error. The key or value of this error is removed, and the rest is tried
        // again.
        while findings.len() < MAX_ERRORS {
            let error = match T::deserialize(toml::Deserializer::from(rest.clone())) {
                Ok(value) if findings.is_empty() => return Ok(value),
                Ok(_) => break,
                Err(error) => error,
            };
            let span = error.span().unwrap_or_default();
            let consequence = is_missing_field(error.message()) && cut.contains(&span);
            let whole = rest.span();
            let removed = remove(rest.get_mut(), &whole, &span);
            if !consequence {
                let key = removed.as_ref().map(|r| r.key.as_str());
                findings.push(Finding {
                    at: span.start,
                    message: explain(error.message(), key),
                });
            }
            match removed {
                Some(removed) => cut.push(removed.table),
                None => break,
            }
        }
        Err(self.error(findings))
    }

    /// Joins `findings` into one error, in the order of the file.
    #[must_use]
    pub fn error(&self, mut findings: Vec<Finding>) -> ConfigError {
        findings.sort();
        let said: Vec<String> = findings
            .iter()
            .map(|finding| format!("line {}: {}", self.line(finding.at), finding.message))
            .collect();
        ConfigError(format!("{}, {}", self.path.display(), said.join("; ")))
    }

    /// The line of the byte at `at`, counted from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// The key or value that [`remove`] removed.
struct Removed {
    /// The dotted name, such as `dns.listen`.
    key: String,
    /// The span of the table that it was in.
    table: Range<usize>,
}

/// Removes the innermost key or value at `span` from `table`.
fn remove(table: &mut DeTable<'_>, whole: &Range<usize>, span: &Range<usize>) -> Option<Removed> {
    let mut removed = None;
    let mut emptied = None;
    for (key, value) in table.iter_mut() {
        let at = value.span();
        let inner = remove_within(value.get_mut(), &at, span);
        if let Some(mut inner) = inner {
            inner.key = if inner.key.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{}.{}", key.get_ref(), inner.key)
            };
            return Some(inner);
        }
        if key.span() == *span || at == *span {
            emptied = Some(key.get_ref().to_string());
            removed = Some(Removed {
                key: key.get_ref().to_string(),
                table: whole.clone(),
            });
            break;
        }
    }
    if let Some(key) = emptied {
        table.remove(key.as_str());
    }
    removed
}

fn remove_within(
    value: &mut DeValue<'_>,
    whole: &Range<usize>,
    span: &Range<usize>,
) -> Option<Removed> {
    match value {
        DeValue::Table(table) => remove(table, whole, span),
        DeValue::Array(array) => {
            for item in array.iter_mut() {
                let at = item.span();
                if let Some(removed) = remove_within(item.get_mut(), &at, span) {
                    return Some(removed);
                }
            }
            let index = array.iter().position(|item| item.span() == *span)?;
            *array = array
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != index)
                .map(|(_, item)| item.clone())
                .collect();
            Some(Removed {
                key: String::new(),
                table: whole.clone(),
            })
        }
        _ => None,
    }
}

fn is_missing_field(message: &str) -> bool {
    message.starts_with("missing field")
}

fn one_line(message: &str) -> String {
    message.replace('\n', ", ")
}

/// Translates a deserializer's message for users: it names the key and, if that is unknown, the nearest known key.
fn explain(message: &str, key: Option<&str>) -> String {
    let message = one_line(message);
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return match key {
            _ if is_missing_field(&message) => match key {
                Some(key) => format!(
                    "a `{key}` entry lacks {}",
                    &message["missing field ".len()..]
                ),
                None => message,
            },
            Some(key) => format!("`{key}`: {message}"),
            None => message,
        };
    };
    // "unknown field `x`, expected one of `a`, `b`": every second part is a name.
    let mut names = rest.split('`').step_by(2);
    let unknown = names.next().unwrap_or_default();
    let shown = key.unwrap_or(unknown);
    let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    let nearest = known.iter().max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    });
    match nearest {
        Some(nearest) => format!("unknown key `{shown}`; the nearest known key is `{nearest}`"),
        None => format!("unknown key `{shown}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        listen: String,
        state_dir: String,
        table: Table,
        item: Vec<Item>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Table {
        enabled: bool,
        ports: Vec<u16>,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Item {
        name: String,
        port: u16,
    }

    fn error(text: &str) -> String {
        parse::<Example>(text, Path::new("x.toml"))
            .expect_err("wrong on purpose")
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_file_line_and_the_nearest_key() {
        assert_eq!(
            error("listen = \"a\"\n\nstatedir = \"b\"\n"),
            "x.toml, line 3: unknown key `statedir`; the nearest known key is `state_dir`"
        );
    }

    #[test]
    fn an_unknown_key_in_a_table_is_named_with_its_table() {
        assert_eq!(
            error("[table]\nenable = true\n"),
            "x.toml, line 2: unknown key `table.enable`; the nearest known key is `enabled`"
        );
    }

    #[test]
    fn a_wrong_type_names_key_line_and_what_is_expected() {
        assert_eq!(
            error("\n[table]\nenabled = \"yes\""),
            "x.toml, line 3: `table.enabled`: invalid type: string \"yes\", expected a boolean"
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once_in_the_order_of_the_file() {
        assert_eq!(
            error(
                "statedir = \"b\"\nlisten = 3\n[table]\nports = [1, 99999, 2, \"x\"]\n[[item]]\nnam = \"a\"\nport = 1\n[[item]]\nname = \"b\"\n"
            ),
            "x.toml, line 1: unknown key `statedir`; the nearest known key is `state_dir`; \
             line 2: `listen`: invalid type: integer `3`, expected a string; \
             line 4: `table.ports`: invalid value: integer `99999`, expected u16; \
             line 4: `table.ports`: invalid type: string \"x\", expected u16; \
             line 6: unknown key `item.nam`; the nearest known key is `name`; \
             line 8: a `item` entry lacks `port`"
        );
    }

    #[test]
    fn broken_syntax_names_each_line() {
        let said = error("listen\nstate_dir = ]\n");
        assert!(said.starts_with("x.toml, line 1: "), "{said}");
        assert!(said.contains("line 2: "), "{said}");
        let unclosed = error("listen = \"a\"\nstate_dir = \"x\n");
        assert!(unclosed.starts_with("x.toml, line 2: "), "{unclosed}");
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_only_if_it_was_asked_for() {
        let missing = Path::new("/nonexistent/x.toml");
        assert_eq!(read::<Example>(missing, false), Ok(Example::default()));
        assert!(read::<Example>(missing, true).is_err());
    }

    #[test]
    fn a_file_too_large_is_refused_before_it_is_parsed() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "#".repeat(1024 * 1024 + 1)).expect("writable");
        let error = read::<Example>(file.path(), true).expect_err("too large");
        assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
    }

    #[test]
    fn a_file_with_endless_errors_says_some_of_them() {
        let text: String = (0..500).map(|i| format!("key{i} = {i}\n")).collect();
        assert_eq!(error(&text).matches("unknown key").count(), MAX_ERRORS);
    }

    proptest! {
        #[test]
        fn any_text_is_a_configuration_or_an_error(text in "[ -~\n]{0,200}") {
            let _ = parse::<Example>(&text, Path::new("x.toml"));
        }

        #[test]
        fn near_misses_are_a_configuration_or_an_error(
            text in "((listen|table|item|name|port|\\[table\\]|\\[\\[item\\]\\]|=|\"a\"|1|\\{|\\}|\\[|\\]|,|\\.| |\n){0,30})"
        ) {
            let _ = parse::<Example>(&text, Path::new("x.toml"));
        }
    }
}
