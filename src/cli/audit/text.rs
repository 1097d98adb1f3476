//! An event as one line of text. The file may have been changed by anybody, so no text of it reaches the terminal as it is.

use serde_json::Value;

use crate::cli::style::{BAD, HEADING, Output};
use crate::model::text::printable;
use crate::os::audit::line::Line;
use crate::os::rights::user_name;

/// The maximum length of a value, in characters. The texts of events are shorter.
const MAX_VALUE: usize = 500;
/// The length of a key in hexadecimal digits, and the number of them that are shown.
const KEY: usize = 64;
const SHORT_KEY: usize = 12;

/// The line of an event.
pub(super) fn event(line: &Line, output: Output) -> String {
    let what = printable(&line.what, MAX_VALUE).replace('_', " ");
    let mut parts = vec![printable(&line.at, MAX_VALUE), output.paint(HEADING, &what)];
    if let Value::Object(fields) = &line.object {
        parts.extend(fields.iter().map(|(key, value)| {
            let key = printable(key, MAX_VALUE);
            format!("{key}={}", quoted(&shown(value)))
        }));
    }
    parts.extend(who(&line.who).map(|who| format!("by {who}")));
    if line.result != "ok" {
        let result = printable(&line.result, MAX_VALUE);
        parts.push(output.paint(BAD, &result));
    }
    parts.join("  ")
}

/// Who caused an event. None if the daemon itself did.
fn who(who: &Value) -> Option<String> {
    let text = |key: &str| who.get(key).map(shown);
    match who.get("kind")?.as_str()? {
        "daemon" => None,
        "administrator" => Some("the administrator".to_owned()),
        "local" => {
            let uid = who
                .get("uid")?
                .as_u64()
                .and_then(|uid| u32::try_from(uid).ok())?;
            let pid = text("pid").unwrap_or_else(|| "-".to_owned());
            Some(format!("{} (uid {uid}, pid {pid})", user_name(uid)))
        }
        "joiner" => {
            let token = text("token").map(|token| format!(" with token {token}"));
            Some(format!("{}{}", text("address")?, token.unwrap_or_default()))
        }
        "api_caller" => {
            let token = text("token").map(|token| {
                let name = text("name").unwrap_or_default();
                format!(" with API token {name} ({token})")
            });
            Some(format!("{}{}", text("address")?, token.unwrap_or_default()))
        }
        "member" => Some(format!("{} ({})", text("name")?, text("id")?)),
        _ => Some(shown(who)),
    }
}

/// A value as people read it. Keys are as short as in all other outputs.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let is_key = text.len() == KEY && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            printable(text, if is_key { SHORT_KEY } else { MAX_VALUE })
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(shown).collect();
            values.join(",")
        }
        other => printable(&other.to_string(), MAX_VALUE),
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains([' ', '"', '=']) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(who: &Value, object: &Value, result: &str) -> Line {
        let line = serde_json::json!({
            "n": 7, "at": "2026-11-30T13:27:44.123Z", "who": who, "what": "token_made",
            "object": object, "result": result, "prev": "0".repeat(64),
        });
        serde_json::from_value(line).expect("a line")
    }

    #[test]
    fn an_event_is_one_line_with_its_object_its_cause_and_its_result() {
        let object = serde_json::json!({"token": "ab".repeat(32), "uses": 3, "tags": ["a", "b"]});
        let local = serde_json::json!({"kind": "local", "uid": 0, "pid": 42});
        let member = serde_json::json!({"kind": "member", "name": "web-1", "id": "cd".repeat(32)});
        let joiner = serde_json::json!({"kind": "joiner", "address": "192.0.2.7"});
        let daemon = serde_json::json!({"kind": "daemon"});
        let caller = serde_json::json!(
            {"kind": "api_caller", "address": "10.210.1.9", "name": "ci", "token": "ef".repeat(32)}
        );
        let begin = "2026-11-30T13:27:44.123Z  token made  tags=a,b  token=abababababab  uses=3";
        let text = |who, result| event(&line(who, &object, result), Output::PLAIN);
        assert_eq!(
            text(&local, "ok"),
            format!("{begin}  by root (uid 0, pid 42)")
        );
        assert_eq!(
            text(&member, "ok"),
            format!("{begin}  by web-1 (cdcdcdcdcdcd)")
        );
        assert_eq!(text(&daemon, "ok"), begin);
        assert_eq!(
            text(&caller, "ok"),
            format!("{begin}  by 10.210.1.9 with API token ci (efefefefefef)")
        );
        assert_eq!(
            text(&joiner, "refused: it expired"),
            format!("{begin}  by 192.0.2.7  refused: it expired")
        );
    }

    #[test]
    fn a_line_that_somebody_made_up_reaches_no_terminal() {
        let object = serde_json::json!({"x\u{1b}[2J": "a b\n\u{202e}=", "y": {"z": "\u{9b}"}});
        let text = event(
            &line(&serde_json::json!(["\u{7}"]), &object, "\u{1b}]0;x"),
            Output::PLAIN,
        );
        assert!(
            text.chars().all(|c| !c.is_control() && c != '\u{202e}'),
            "{text:?}"
        );
    }
}
