//! Splits a stream of JSON objects into lines, and limits their length. Pure.

/// The line is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// Keeps the incomplete line at the end of a stream until the rest of the line arrives.
#[derive(Debug)]
pub(super) struct NdjsonReader {
    rest: Vec<u8>,
    max: usize,
    skipping: bool,
}

impl NdjsonReader {
    /// A reader of lines with at most `max` bytes.
    #[must_use]
    pub(super) fn new(max: usize) -> Self {
        Self {
            rest: Vec::new(),
            max,
            skipping: false,
        }
    }

    /// Appends bytes to the stream. Returns the lines that are complete now, and an error for each line that is too
    /// long. Empty lines are left out.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Result<Vec<u8>, TooLong>> {
        let mut lines = Vec::new();
        let mut parts = bytes.split(|c| *c == b'\n');
        if let Some(first) = parts.next() {
            self.extend(first, &mut lines);
        }
        for part in parts {
            let line = std::mem::take(&mut self.rest);
            if !std::mem::take(&mut self.skipping) && !line.trim_ascii().is_empty() {
                lines.push(Ok(line));
            }
            self.extend(part, &mut lines);
        }
        lines
    }

    fn extend(&mut self, part: &[u8], lines: &mut Vec<Result<Vec<u8>, TooLong>>) {
        if self.skipping {
            return;
        }
        if self.rest.len() + part.len() > self.max {
            self.rest = Vec::new();
            self.skipping = true;
            lines.push(Err(TooLong));
        } else {
            self.rest.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_that_is_too_long_is_marked_once_and_the_next_is_whole() {
        let mut lines = NdjsonReader::new(4);
        assert_eq!(lines.push(b"ab"), []);
        assert_eq!(
            lines.push(b"c\n\nabcde"),
            [Ok(b"abc".to_vec()), Err(TooLong)]
        );
        assert_eq!(lines.push(b"fgh"), []);
        assert_eq!(lines.push(b"i\nxy\n"), [Ok(b"xy".to_vec())]);
    }

    proptest! {
        #[test]
        fn the_lines_do_not_depend_on_how_a_stream_is_split(text in "[a-c\n]{0,40}", cut in 0usize..40) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            let whole: Vec<_> = NdjsonReader::new(5).push(bytes);
            let mut lines = NdjsonReader::new(5);
            let mut parts = lines.push(&bytes[..cut]);
            parts.extend(lines.push(&bytes[cut..]));
            prop_assert_eq!(whole, parts);
        }
    }
}
