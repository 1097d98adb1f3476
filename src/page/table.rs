//! What the views have in common: tables, the filter, and bounds.

use std::fmt::Display;
use std::time::{Duration, UNIX_EPOCH};

use maud::{Markup, html};

use crate::model::text::{age, printable};
use crate::model::time::{UnixSeconds, utc};

/// The maximum number of rows of a table. More rows cost the browser and the person more than a filter does.
pub const MAX_ROWS: usize = 200;
/// The maximum length of a text in a cell, in characters.
pub const MAX_TEXT: usize = 500;
/// The maximum length of a filter, in characters.
const MAX_FILTER: usize = 100;

/// The words that all rows of a view must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<String>);

impl Filter {
    /// Reads what the person wrote.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text: String = text.chars().take(MAX_FILTER).collect();
        let words = text.to_lowercase();
        Self(words.split_whitespace().map(str::to_owned).collect())
    }

    /// Whether a row with this text is shown.
    #[must_use]
    pub fn passes(&self, text: &str) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let text = text.to_lowercase();
        self.0.iter().all(|word| text.contains(word.as_str()))
    }
}

/// A text in a cell, as it is shown to a person.
#[must_use]
pub fn text(value: &impl Display) -> Markup {
    let shown = printable(&value.to_string(), MAX_TEXT);
    html! { (shown) }
}

/// A text in a cell, or a dash.
#[must_use]
pub fn optional(value: Option<&impl Display>) -> Markup {
    match value {
        Some(value) => text(value),
        None => html! { "–" },
    }
}

/// A word with a colour. The word says the same as the colour.
#[must_use]
pub fn mark(tone: Tone, word: &str) -> Markup {
    html! { span class=(tone.class()) { (word) } }
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    Bad,
    Warning,
    Good,
    Plain,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Warning => "warning",
            Self::Good => "good",
            Self::Plain => "plain",
        }
    }
}

/// A table. The first cell of each row is its header. The stylesheet shows a row as a card on a narrow screen, for which each cell has the
/// name of its column, and the roles keep the table one for a screen reader.
#[must_use]
pub fn table(caption: &str, columns: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        table role="table" {
            caption { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for column in columns {
                        th role="columnheader" scope="col" { (column) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (place, (cell, column)) in row.iter().zip(columns).enumerate() {
                            @if place == 0 {
                                th role="rowheader" scope="row" data-label=(column) { (cell) }
                            } @else {
                                td role="cell" data-label=(column) { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The heading of a view. The script moves the focus to it when the person opens the view.
#[must_use]
pub fn heading(title: &str) -> Markup {
    html! { h2 id="title" tabindex="-1" { (title) } }
}

/// A line about the rows that are not shown, in a view with a filter.
#[must_use]
pub fn left_out(all: usize) -> Markup {
    let more = all.saturating_sub(MAX_ROWS);
    html! {
        (cut(all))
        @if more > 0 {
            p class="more" { "Find the other " (more) " with the filter." }
        }
    }
}

/// A line about the rows that are not shown.
#[must_use]
pub fn cut(all: usize) -> Markup {
    html! {
        @if all > MAX_ROWS {
            p class="more" { "The first " (MAX_ROWS) " of " (all) " are shown." }
        }
    }
}

/// A date in UTC. The clock of another machine may have made it.
#[must_use]
pub fn date(at: UnixSeconds) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(at.0));
    let text = at.map(utc).unwrap_or_default();
    match text.get(..19) {
        Some(date) => format!("{} UTC", date.replace('T', " ")),
        None => "an unknown time".to_owned(),
    }
}

/// How long ago something was.
#[must_use]
pub fn ago(seconds: f64) -> String {
    // The cast is exact enough for an age, and saturates.
    format!("{} ago", age(seconds.round() as u64))
}

/// A round trip, or a dash.
#[must_use]
pub fn round_trip(milliseconds: Option<f64>) -> String {
    match milliseconds {
        Some(measured) => format!("{measured:.1} ms"),
        None => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_words_that_a_row_must_all_have() {
        let filter = Filter::parse("  Web n1 ");
        assert!(filter.passes("the WEB server on N1"));
        assert!(!filter.passes("the web server on n2"));
        assert!(Filter::parse(" ").passes(""));
        let long = Filter::parse(&"ä".repeat(10_000));
        assert!(long.passes(&"Ä".repeat(MAX_FILTER)));
    }

    #[test]
    fn a_table_has_a_caption_and_headers_for_its_rows_and_columns() {
        let row = vec![text(&"n1"), mark(Tone::Good, "up")];
        let table = table("Nodes", &["Node", "State"], &[row]).into_string();
        assert!(table.contains("<caption>Nodes</caption>"), "{table}");
        assert!(table.contains(r#"scope="col">State</th>"#), "{table}");
        let header = r#"scope="row" data-label="Node">n1</th>"#;
        assert!(table.contains(header), "{table}");
        let cell = r#"data-label="State"><span class="good">up</span></td>"#;
        assert!(table.contains(cell), "{table}");
    }

    #[test]
    fn a_date_of_a_wrong_clock_is_shown_and_ends_nothing() {
        assert_eq!(date(UnixSeconds(0)), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(UnixSeconds(1_796_045_264)), "2026-11-30 13:27:44 UTC");
        for wrong in [u64::MAX, i64::MAX.unsigned_abs(), 253_402_300_800] {
            assert!(!date(UnixSeconds(wrong)).is_empty());
        }
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        assert_eq!(left_out(MAX_ROWS).into_string(), "");
        let line = left_out(MAX_ROWS + 3).into_string();
        assert!(line.contains("of 203 are shown."), "{line}");
        assert!(line.contains("Find the other 3 with"), "{line}");
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!(ago(3.2), "3 s ago");
        assert_eq!(ago(600.0), "10 min ago");
        assert_eq!(ago(7200.0), "2 h ago");
        assert_eq!(round_trip(Some(0.84)), "0.8 ms");
        assert_eq!(round_trip(None), "–");
    }
}
