//! The view of the audit log: the last events of the program that shows the page.

use maud::{Markup, html};
use serde_json::Value;

use super::table::{MAX_ROWS, MAX_TEXT, Tone, heading, mark, table, text};
use crate::model::text::printable;
use crate::os::audit::line::Line;

/// The length of a key in hexadecimal digits, and the number of them that are shown.
const KEY: usize = 64;
const SHORT_KEY: usize = 12;

/// The last events, the latest first. None if this program keeps no log.
#[must_use]
pub fn view(lines: Option<&[Line]>) -> Markup {
    let Some(lines) = lines else {
        return html! {
            (heading("Audit"))
            p { "This program keeps no audit log." }
        };
    };
    let rows: Vec<Vec<Markup>> = lines.iter().take(MAX_ROWS).map(row).collect();
    let columns = ["Time in UTC", "Event", "Of", "Caused by", "Result"];
    html! {
        (heading("Audit"))
        p {
            "These are the last events of this program. " code { "meshctl audit --verify" }
            " on this server checks that nobody changed the log."
        }
        (table("Events, the latest first", &columns, &rows))
    }
}

fn row(line: &Line) -> Vec<Markup> {
    let (tone, result) = if line.result == "ok" {
        (Tone::Good, "ok")
    } else {
        (Tone::Bad, line.result.as_str())
    };
    let result = printable(result, MAX_TEXT);
    vec![
        text(&line.at),
        text(&line.what.replace('_', " ")),
        text(&shown(&line.object)),
        text(&shown(&line.who)),
        mark(tone, &result),
    ]
}

/// A value as people read it. Keys are as short as in all other outputs.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let is_key = text.len() == KEY && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            printable(text, if is_key { SHORT_KEY } else { MAX_TEXT })
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(shown).collect();
            values.join(", ")
        }
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(key, value)| format!("{key} {}", shown(value)));
            let fields: Vec<String> = fields.collect();
            fields.join(", ").replace('_', " ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::audit_line;

    #[test]
    fn an_event_has_its_time_its_object_its_cause_and_its_result() {
        let lines = [audit_line("token_made", "refused: it expired")];
        let page = view(Some(&lines)).into_string();
        for text in [
            "2026-11-30T13:27:44.123Z",
            ">token made<",
            "token abababababab, uses 3",
            "kind local, pid 42, uid 0",
            r#"<span class="bad">refused: it expired</span>"#,
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(view(None).into_string().contains("keeps no audit log"));
    }
}
