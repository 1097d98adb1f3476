//! Colour and width. Both depend on the terminal: without one, the output is plain and complete. `NO_COLOR`,
//! `CLICOLOR_FORCE` and `TERM=dumb` are respected.

use anstream::ColorChoice;
use anstyle::{AnsiColor, Style};

/// Something good, such as a node that is ready.
pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// A failure.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
/// A problem that leaves the rest working.
pub(super) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// The headings of a table.
pub(super) const HEADING: Style = Style::new().bold();

/// How stdout is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    /// Whether there are colours.
    pub(super) is_coloured: bool,
    /// The columns of the terminal. None if there is no terminal.
    pub(super) width: Option<usize>,
}

impl Output {
    /// Without colours, and as wide as it is.
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self {
        is_coloured: false,
        width: None,
    };

    /// The properties of stdout.
    pub(super) fn stdout() -> Self {
        let choice = anstream::AutoStream::choice(&std::io::stdout());
        // This looks at stdout alone: the width of another stream is not that of a file.
        let size = terminal_size::terminal_size_of(std::io::stdout());
        Self {
            is_coloured: choice != ColorChoice::Never,
            width: size
                .map(|(width, _)| usize::from(width.0))
                .filter(|width| *width > 0),
        }
    }

    /// `text` in `style`, if there are colours.
    pub(super) fn paint(self, style: Style, text: &str) -> String {
        if self.is_coloured {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// The lines of `text`, each after `indent`, broken between words where the terminal ends. The text may have colours.
    pub(super) fn wrap(self, indent: &str, text: &str) -> Vec<String> {
        let room = self.width.map_or(usize::MAX, |width| {
            width.saturating_sub(indent.len()).max(20)
        });
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        for word in text.split(' ') {
            if !line.is_empty() && columns(&line) + 1 + columns(word) > room {
                lines.push(format!("{indent}{line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(format!("{indent}{line}"));
        lines
    }
}

/// The columns that a text takes on a terminal: escape sequences take none.
fn columns(text: &str) -> usize {
    let plain = anstream::adapter::strip_str(text);
    plain.map(|part| part.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_the_end_of_a_terminal_and_nowhere_else() {
        let text = "open UDP port 51820 of this host in both directions";
        let narrow = Output {
            is_coloured: false,
            width: Some(30),
        };
        assert_eq!(
            narrow.wrap("  ", text),
            ["  open UDP port 51820 of this", "  host in both directions"]
        );
        assert_eq!(Output::PLAIN.wrap("", text), [text]);
        let painted = format!("{BAD}not ready{BAD:#}: none of the peers was reached");
        let lines = [
            format!("{BAD}not ready{BAD:#}: none of the peers"),
            "was reached".into(),
        ];
        assert_eq!(narrow.wrap("", &painted), lines);
    }

    #[test]
    fn colours_are_on_the_terminal_alone() {
        assert_eq!(Output::PLAIN.paint(GOOD, "ready"), "ready");
        let coloured = Output {
            is_coloured: true,
            width: None,
        };
        assert_eq!(
            coloured.paint(GOOD, "ready"),
            "\u{1b}[1m\u{1b}[32mready\u{1b}[0m"
        );
    }
}
