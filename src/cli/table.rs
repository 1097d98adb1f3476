//! Printing: aligned tables for people, a JSON document for programs.

use std::io::Write as _;

use serde::Serialize;

use super::exit::CliError;
use super::style::{HEADING, Output};
pub(super) use crate::model::text::age;
use crate::protocol::local::Unpublished;

/// Prints one JSON document.
///
/// # Errors
/// The value cannot be serialized.
pub(super) fn json<T: Serialize>(value: &T) -> Result<u8, CliError> {
    let text = serde_json::to_string_pretty(value).map_err(CliError::failed)?;
    line(&text);
    Ok(0)
}

/// Prints a line.
pub(super) fn line(text: &str) {
    raw(format!("{text}\n").as_bytes());
}

/// Writes to stdout. If the reader has closed the pipe, the program ends without a message, as other tools do. After
/// another error it ends with a message.
pub(super) fn raw(bytes: &[u8]) {
    let mut stdout = std::io::stdout();
    let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) else {
        return;
    };
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    let _ = writeln!(
        std::io::stderr(),
        "meshctl: cannot write to standard output: {error}"
    );
    std::process::exit(1);
}

/// Prints one JSON document in one line.
///
/// # Errors
/// The value cannot be serialized.
pub(super) fn json_line<T: Serialize>(value: &T) -> Result<u8, CliError> {
    line(&serde_json::to_string(value).map_err(CliError::failed)?);
    Ok(0)
}

/// Prints rows under headings, each column as wide as its widest cell.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) {
    for text in fitted(headings, rows, Output::stdout()) {
        line(&text);
    }
}

/// The lines of a table on `output`. On a terminal, columns at the right end that have no room are left out, and named in a
/// last line. The first three columns always stay.
pub(super) fn fitted(headings: &[&str], rows: &[Vec<String>], output: Output) -> Vec<String> {
    let mut shown = headings.len();
    let mut text = lines(headings, rows);
    let width = |text: &[String]| text.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    while let Some(room) = output.width.filter(|_| shown > 3) {
        if width(&text) <= room {
            break;
        }
        shown -= 1;
        let cut: Vec<Vec<String>> = rows
            .iter()
            .map(|r| r.iter().take(shown).cloned().collect())
            .collect();
        text = lines(headings.get(..shown).unwrap_or(headings), &cut);
    }
    if let Some(first) = text.first_mut() {
        *first = output.paint(HEADING, first);
    }
    let left_out = headings.get(shown..).unwrap_or_default();
    if !left_out.is_empty() {
        text.push(format!(
            "(not shown, as the terminal is too narrow: {})",
            left_out.join(", ")
        ));
    }
    text
}

/// The end of a sentence about a change that no coordinator has stored yet. A meshd of an earlier version sends no note.
pub(super) fn later(published: bool, unpublished: Option<&Unpublished>) -> String {
    match unpublished {
        _ if published => String::new(),
        Some(unpublished) => format!("; {}", unpublished.note),
        None => "; the coordinator is not reachable: the nodes send this change to each other, and to the coordinator when it is reachable again".to_owned(),
    }
}

/// The lines of a table.
pub(super) fn lines(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain(headings.get(column).map(|h| h.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![render(&mut headings.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| render(&mut row.iter().map(String::as_str))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_have_no_room_on_the_terminal_are_named() {
        let row = ["web-1", "10.210.1.1", "direct", "192.0.2.1:51820", "7 s"];
        let rows = [row.map(str::to_owned).to_vec()];
        let headings = ["PEER", "ADDRESS", "STATE", "ENDPOINT", "RTT"];
        let narrow = Output {
            is_coloured: false,
            width: Some(30),
        };
        assert_eq!(
            fitted(&headings, &rows, narrow),
            [
                "PEER   ADDRESS     STATE",
                "web-1  10.210.1.1  direct",
                "(not shown, as the terminal is too narrow: ENDPOINT, RTT)"
            ]
        );
        assert_eq!(
            fitted(&headings, &rows, Output::PLAIN),
            lines(&headings, &rows)
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["web-1".to_owned(), "x".to_owned()],
            vec!["a".to_owned(), "yy".to_owned()],
        ];
        assert_eq!(
            lines(&["NAME", "B"], &rows),
            ["NAME   B", "web-1  x", "a      yy"]
        );
    }
}
