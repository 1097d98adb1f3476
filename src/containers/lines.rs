//! Cuts a stream into lines, within a bound. Pure.

/// A line is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overlong;

/// The rest of a stream that is no whole line yet.
#[derive(Debug)]
pub(super) struct Lines {
    rest: Vec<u8>,
    most: usize,
    skipping: bool,
}

impl Lines {
    /// Lines of up to `most` octets.
    #[must_use]
    pub(super) fn new(most: usize) -> Self {
        Self {
            rest: Vec::new(),
            most,
            skipping: false,
        }
    }

    /// Takes octets in; gives the lines that are whole now, and a mark for each that was too long. Empty lines are left
    /// out.
    pub(super) fn push(&mut self, octets: &[u8]) -> Vec<Result<Vec<u8>, Overlong>> {
        let mut lines = Vec::new();
        let mut parts = octets.split(|c| *c == b'\n');
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

    fn extend(&mut self, part: &[u8], lines: &mut Vec<Result<Vec<u8>, Overlong>>) {
        if self.skipping {
            return;
        }
        if self.rest.len() + part.len() > self.most {
            self.rest = Vec::new();
            self.skipping = true;
            lines.push(Err(Overlong));
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
        let mut lines = Lines::new(4);
        assert_eq!(lines.push(b"ab"), []);
        assert_eq!(
            lines.push(b"c\n\nabcde"),
            [Ok(b"abc".to_vec()), Err(Overlong)]
        );
        assert_eq!(lines.push(b"fgh"), []);
        assert_eq!(lines.push(b"i\nxy\n"), [Ok(b"xy".to_vec())]);
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_lines_are_the_same(text in "[a-c\n]{0,40}", cut in 0usize..40) {
            let octets = text.as_bytes();
            let cut = cut.min(octets.len());
            let whole: Vec<_> = Lines::new(5).push(octets);
            let mut lines = Lines::new(5);
            let mut parts = lines.push(&octets[..cut]);
            parts.extend(lines.push(&octets[cut..]));
            prop_assert_eq!(whole, parts);
        }
    }
}
