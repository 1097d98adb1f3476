//! Printing: aligned tables for people, a JSON document for programs.

use std::io::Write as _;

use serde::Serialize;

use super::exit::CliError;

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

/// Prints rows under headings, each column as wide as its widest cell.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) {
    for text in lines(headings, rows) {
        line(&text);
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
