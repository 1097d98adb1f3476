//! Texts for people. Text from other programs becomes safe to print: one line without control sequences.

use std::fmt::Display;

/// The maximum length of a message from another program, in characters.
const MAX_MESSAGE: usize = 1024;

/// Returns the first `most` characters of `text`. A character that could start another line, control a terminal, or hide or reorder
/// the text around it is replaced by `?`.
#[must_use]
pub fn printable(text: &str, most: usize) -> String {
    let replace = |c| if is_harmful(c) { '?' } else { c };
    text.chars().take(most).map(replace).collect()
}

/// Returns a printable message of another program. An ellipsis at its end shows that it was cut off.
#[must_use]
pub fn message(text: &str) -> String {
    let mut message = printable(text, MAX_MESSAGE);
    if text.chars().nth(MAX_MESSAGE).is_some() {
        message.push('\u{2026}');
    }
    message
}

/// Joins the first `most` of `items` with commas, and names how many more there are: `a, b, 3 more`.
#[must_use]
pub fn listed<T: Display>(items: impl IntoIterator<Item = T>, most: usize) -> String {
    let mut items = items.into_iter();
    let mut shown: Vec<String> = items.by_ref().take(most).map(|i| i.to_string()).collect();
    let more = items.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown.join(", ")
}

/// Returns the one of `known` that is most similar to `word`, if it is at least as similar as `least`: from 0 to 1 (Jaro-Winkler).
#[must_use]
pub fn nearest<T: AsRef<str>>(
    word: &str,
    known: impl IntoIterator<Item = T>,
    least: f64,
) -> Option<T> {
    let scored = known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(word, known.as_ref()), known));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b));
    let near = best.filter(|(score, _)| *score >= least);
    near.map(|(_, known)| known)
}

/// A duration in seconds, with the largest unit of which there are two.
#[must_use]
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A number of bytes, with the unit that leaves up to four digits.
#[must_use]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{count} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Whether `c` is a control character, or an invisible one that separates lines, joins characters, carries other text or sets
/// the direction (UAX #9; `Default_Ignorable_Code_Point` in UAX #44).
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_one_line_without_control_sequences() {
        assert_eq!(
            message("no\nWARN forged\r\u{1b}[2J\u{9b}m\u{202e}\u{2028}x\u{0}"),
            "no?WARN forged??[2J?m??x?"
        );
        assert_eq!(message("a\u{61c}b\u{e0041}c\u{ad}d\u{fff9}e"), "a?b?c?d?e");
        assert_eq!(
            message("try again: \u{fc}ber 30\u{a0}s"),
            "try again: \u{fc}ber 30\u{a0}s"
        );
    }

    #[test]
    fn a_list_names_some_of_its_items_and_counts_the_others() {
        assert_eq!(listed(Vec::<String>::new(), 2), "");
        assert_eq!(listed(["a", "b"], 2), "a, b");
        assert_eq!(listed(["a", "b", "c", "d"], 2), "a, b, 2 more");
        assert_eq!(listed([1, 2], 0), "2 more");
    }

    #[test]
    fn the_nearest_word_is_named_only_if_it_is_similar() {
        let known = ["default", "strict", "groups"];
        assert_eq!(nearest("defualt", known, 0.7), Some("default"));
        assert_eq!(nearest("x", known, 0.7), None);
        assert_eq!(nearest("strict", known, 1.0), Some("strict"));
        assert_eq!(nearest("x", Vec::<String>::new(), 0.0), None);
    }

    #[test]
    fn a_message_has_a_bound_and_shows_that_it_was_cut_off() {
        let whole = "\u{e4}".repeat(MAX_MESSAGE);
        assert_eq!(message(&whole), whole);
        let cut = message(&"\u{e4}".repeat(MAX_MESSAGE + 1));
        assert_eq!(cut, format!("{whole}\u{2026}"));
    }

    #[test]
    fn ages_have_the_unit_that_says_enough() {
        assert_eq!(
            [3, 119, 120, 7_200, 172_800].map(age),
            ["3 s", "119 s", "2 min", "2 h", "2 d"]
        );
    }

    #[test]
    fn bytes_are_shown_with_their_unit() {
        assert_eq!(
            [0, 1023, 1536, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
    }
}
