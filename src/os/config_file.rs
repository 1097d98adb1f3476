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

use crate::model::text;

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
    /// The position of the first byte of the wrong text. None if the error has no place in the file.
    pub at: Option<usize>,
    /// The error and the remedy.
    pub message: String,
}

/// Collects the errors that are found in the values of a file that was parsed.
#[derive(Debug)]
pub struct Findings<'a> {
    file: &'a ConfigFile,
    found: Vec<Finding>,
}

impl<'a> Findings<'a> {
    /// No errors in `file` yet.
    #[must_use]
    pub fn new(file: &'a ConfigFile) -> Self {
        Self {
            file,
            found: Vec::new(),
        }
    }

    /// Adds an error of the value of `key`, which is a path as for [`ConfigFile::locate`].
    pub fn add(&mut self, key: &str, error: impl std::fmt::Display) {
        self.add_at(key, format!("`{key}`: {error}"));
    }

    /// Adds an error at the place of `key`. The message names the key itself.
    pub fn add_at(&mut self, key: &str, message: String) {
        self.found.push(Finding {
            at: self.file.locate(key),
            message,
        });
    }

    /// # Errors
    /// All errors that were added, in the order of the file.
    pub fn into_result(self) -> Result<(), ConfigError> {
        if self.found.is_empty() {
            Ok(())
        } else {
            Err(self.file.error(self.found))
        }
    }
}

impl ConfigFile {
    /// Reads `path`. Returns an empty text if the file does not exist and is not `required`.
    ///
    /// # Errors
    /// It cannot be read, is not text, or is larger than 1 MiB.
    pub fn open(path: &Path, required: bool) -> Result<Self, ConfigError> {
        use std::io::Read as _;
        let unreadable = |error: std::io::Error| unreadable(path, &error);
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
                .map(|error| (error.span().map_or(0, |span| span.start), error))
                .filter(|(at, _)| lines.insert(self.line(*at)))
                .map(|(at, error)| Finding {
                    at: Some(at),
                    message: one_line(error.message()),
                })
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
                    at: Some(span.start),
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
        let lines = findings.iter().map(|finding| match finding.at {
            Some(at) => format!("line {}: {}", self.line(at), finding.message),
            None => finding.message.clone(),
        });
        let lines: Vec<String> = lines.collect();
        ConfigError(format!("{}, {}", self.path.display(), lines.join("; ")))
    }

    /// The position of the key with this path, such as `mesh.domain`, or `service.1.port` with the number of an entry. If the file
    /// does not have the key, it is the position of the innermost table around it that the file has.
    #[must_use]
    pub fn locate(&self, path: &str) -> Option<usize> {
        let (document, _) = DeTable::parse_recoverable(&self.text);
        position(document.get_ref(), path)
    }

    /// The line of the byte at `at`, counted from 1.
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// The position of `path` in `table`, or of the innermost table around it.
fn position(table: &DeTable<'_>, path: &str) -> Option<usize> {
    let (name, rest) = next_step(path);
    let (key, value) = table.iter().find(|(key, _)| *key.get_ref() == name)?;
    let inner = match (value.get_ref(), rest) {
        (DeValue::Table(table), Some(rest)) => position(table, rest),
        (DeValue::Array(entries), Some(rest)) => {
            let (index, rest) = next_step(rest);
            let index: Option<usize> = index.parse().ok();
            let entry = index.and_then(|index| entries.get(index));
            entry.and_then(|entry| {
                let inner = match (entry.get_ref(), rest) {
                    (DeValue::Table(table), Some(rest)) => position(table, rest),
                    _ => None,
                };
                inner.or(Some(entry.span().start))
            })
        }
        _ => None,
    };
    inner.or(Some(key.span().start))
}

fn next_step(path: &str) -> (&str, Option<&str>) {
    match path.split_once('.') {
        Some((step, rest)) => (step, Some(rest)),
        None => (path, None),
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

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    use std::io::ErrorKind;
    let reason = match error.kind() {
        ErrorKind::NotFound => "there is no such file; name the file with --config".to_owned(),
        ErrorKind::IsADirectory => {
            "it is a directory; name the file in it with --config".to_owned()
        }
        ErrorKind::InvalidData => "it is not text; name the right file with --config".to_owned(),
        ErrorKind::PermissionDenied => {
            "it is not permitted; let the user of this program read the file".to_owned()
        }
        _ => error.to_string(),
    };
    ConfigError(format!("cannot read {}: {reason}", path.display()))
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
            Some(key) => format!("`{key}`: {}", plain(&message)),
            None => plain(&message),
        };
    };
    // "unknown field `x`, expected one of `a`, `b`": every second part is a name.
    let mut names = rest.split('`').step_by(2);
    let unknown = names.next().unwrap_or_default();
    let shown = key.unwrap_or(unknown);
    let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    match text::nearest(unknown, known, 0.0) {
        Some(nearest) => format!("unknown key `{shown}`; the nearest known key is `{nearest}`"),
        None => format!("unknown key `{shown}`"),
    }
}

/// A message about a value, with the words of TOML for the types of Rust.
fn plain(message: &str) -> String {
    let known = match message {
        "invalid socket address syntax" => {
            Some("it is no IP address with a port, such as 192.0.2.7:7443 or [2001:db8::7]:7443")
        }
        "invalid IP address syntax" => {
            Some("it is no IP address, such as 192.0.2.7, and no network, such as 192.0.2.0/24")
        }
        "wanted string or table" => Some("it must be a word in quotes"),
        _ => None,
    };
    if let Some(known) = known {
        return known.to_owned();
    }
    if let Some(rest) = message.strip_prefix("unknown variant ")
        && let Some((found, known)) = rest.rsplit_once(", expected ")
    {
        let known = known.strip_prefix("one of ").unwrap_or(known);
        return format!("{found} is none of its values, which are {known}");
    }
    let wrong = ["invalid type: ", "invalid value: "];
    let rest = wrong.iter().find_map(|start| message.strip_prefix(start));
    let Some((found, expected)) = rest.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let found = match found {
        "sequence" => "a list".to_owned(),
        "map" => "a table".to_owned(),
        found => format!("the {found}"),
    };
    let expected = match expected {
        "u8" => "a number from 0 to 255",
        "u16" => "a number from 0 to 65535",
        "a nonzero u16" => "a number from 1 to 65535",
        "u32" => "a number from 0 to 4294967295",
        "u64" | "usize" => "a number that is not negative",
        "a sequence" => "a list",
        "a map" => "a table",
        "path string" => "a path in quotes",
        expected if expected.starts_with("struct ") => "a table",
        expected => expected,
    };
    format!("it is {found}, and must be {expected}")
}

/// An example configuration with its keys in force: in the examples, a `#` without a space after it precedes a key or a table.
#[cfg(test)]
pub(crate) fn uncommented(example: &str) -> String {
    let is_key =
        |rest: &&str| rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '[');
    let lines = example.lines();
    lines
        .map(|line| line.strip_prefix('#').filter(is_key).unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
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
        word: Word,
        address: Option<std::net::IpAddr>,
        directory: PathBuf,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        #[default]
        One,
        Two,
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
            "x.toml, line 3: `table.enabled`: it is the string \"yes\", and must be a boolean"
        );
    }

    #[test]
    fn a_wrong_address_and_a_wrong_path_are_named_in_the_words_of_users() {
        assert_eq!(
            error("[table]\naddress = \"x\"\ndirectory = 3\nword = 1"),
            "x.toml, line 2: `table.address`: it is no IP address, such as 192.0.2.7, and no network, such as 192.0.2.0/24; \
             line 3: `table.directory`: it is the integer `3`, and must be a path in quotes; \
             line 4: `table.word`: it must be a word in quotes"
        );
    }

    #[test]
    fn a_wrong_word_is_named_with_those_that_are_known() {
        assert_eq!(
            error("[table]\nword = \"three\""),
            "x.toml, line 2: `table.word`: `three` is none of its values, which are `one` or `two`"
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once_in_the_order_of_the_file() {
        assert_eq!(
            error(
                "statedir = \"b\"\nlisten = 3\n[table]\nports = [1, 99999, 2, \"x\"]\n[[item]]\nnam = \"a\"\nport = 1\n[[item]]\nname = \"b\"\n"
            ),
            "x.toml, line 1: unknown key `statedir`; the nearest known key is `state_dir`; \
             line 2: `listen`: it is the integer `3`, and must be a string; \
             line 4: `table.ports`: it is the integer `99999`, and must be a number from 0 to 65535; \
             line 4: `table.ports`: it is the string \"x\", and must be a number from 0 to 65535; \
             line 6: unknown key `item.nam`; the nearest known key is `name`; \
             line 8: a `item` entry lacks `port`"
        );
    }

    #[test]
    fn an_error_in_a_value_names_its_line_in_tables_and_in_their_entries() {
        let text = "listen = \"a\"\n[table]\nports = [1,\n 2]\n[[item]]\nname = \"a\"\n[[item]]\nname = \"b\"\nport = 3\n";
        let file = ConfigFile::from_text(text, Path::new("x.toml"));
        let line = |path| file.locate(path).map(|at| file.line(at));
        for (path, expected) in [
            ("listen", Some(1)),
            ("table.ports", Some(3)),
            ("table.enabled", Some(2)),
            ("item.1.port", Some(9)),
            ("item.0.port", Some(5)),
            ("state_dir", None),
        ] {
            assert_eq!(line(path), expected, "{path}");
        }
        let mut findings = Findings::new(&file);
        findings.add("item.1.port", "no");
        findings.add("listen", "neither");
        findings.add("state_dir", "nowhere");
        assert_eq!(
            findings.into_result().expect_err("three").to_string(),
            "x.toml, `state_dir`: nowhere; line 1: `listen`: neither; line 9: `item.1.port`: no"
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
        assert_eq!(
            read::<Example>(missing, true),
            Err(ConfigError(
                "cannot read /nonexistent/x.toml: there is no such file; name the file with --config"
                    .to_owned()
            ))
        );
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
