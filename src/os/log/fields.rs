//! Writes the message and the values of an event as text that a reader can take apart again.
//!
//! A value with a space, a quote, an equals sign or a character that is not printable is quoted, and what is not printable is
//! escaped. So a name from outside can neither begin a new line nor look like another value.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The message, then `key=value` for each value.
#[derive(Debug)]
pub(super) struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = TextVisitor {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct TextVisitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl TextVisitor<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        let name = field.name();
        // Events of the crate `log` have their origin in such fields.
        if self.result.is_err() || name.starts_with("log.") {
            return;
        }
        let space = if self.is_first { "" } else { " " };
        self.is_first = false;
        self.result = if name == "message" {
            write!(self.writer, "{space}{}", Escaped(value))
        } else {
            let name = name.strip_prefix("r#").unwrap_or(name);
            write!(self.writer, "{space}{name}={}", Quoted(value))
        };
    }
}

impl Visit for TextVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }
}

/// A text on one line: characters that are not printable are escaped.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_printable(c) {
                f.write_char(c)?;
            } else {
                write!(f, "{}", c.escape_debug())?;
            }
        }
        Ok(())
    }
}

/// A value, in quotes where it would be ambiguous without them.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain =
            |c: char| is_printable(c) && !c.is_whitespace() && !matches!(c, '"' | '=' | '\\');
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// Whether the character shows itself and changes nothing else: no control character, no line separator, no change of the
/// writing direction.
fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use crate::os::log::captured;

    #[test]
    fn values_are_quoted_where_they_would_be_ambiguous() {
        let lines = captured::lines(|| {
            let why = "it said \"no\"";
            tracing::warn!(node = %"web-1", n = 3, why, empty = "", "what happened");
        });
        assert_eq!(
            lines,
            [r#"WARN what happened node=web-1 n=3 why="it said \"no\"" empty="""#]
        );
    }

    #[test]
    fn a_value_from_outside_cannot_forge_a_line_or_another_value() {
        let hostile = "db\n<3>ERROR the disk is full\u{1b}[2J\u{202e} peer=web-9";
        let lines = captured::lines(|| tracing::info!(service = %hostile, "seen {hostile}"));
        assert_eq!(
            lines,
            [
                r#"INFO seen db\n<3>ERROR the disk is full\u{1b}[2J\u{202e} peer=web-9 service="db\n<3>ERROR the disk is full\u{1b}[2J\u{202e} peer=web-9""#
            ]
        );
    }
}
