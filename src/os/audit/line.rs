//! The lines of the audit log and the chain through them. Pure.
//!
//! A line is one JSON object with the keys `n`, `at`, `who`, `what`, `object`, `result` and `prev`. `n` counts the lines from 1,
//! over all files. `prev` is the SHA-256 of the line before, as its bytes stand in the file, without the line break. The first
//! line has 64 zeros.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::LineDigest;
use super::event::{Event, Outcome, Who};
use crate::model::time::utc;

/// The maximum length of a line in bytes, without its line break. Events are shorter, since their texts are bounded.
pub const MAX_LINE: usize = 16 * 1024;

/// The end of the chain: the next line continues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The number of the last line; 0 before the first one.
    pub last: u64,
    /// The digest of the last line.
    pub digest: LineDigest,
}

impl Chain {
    /// A chain without lines.
    pub const EMPTY: Self = Self {
        last: 0,
        digest: LineDigest::ZERO,
    };

    /// Appends a line to the chain, and returns it with its line break.
    #[must_use]
    pub fn append(&mut self, at: SystemTime, event: &Event) -> Vec<u8> {
        let n = self.last.saturating_add(1);
        let at = utc(at);
        let (what, mut object) = parts(event);
        if event.repeats > 0
            && let Value::Object(fields) = &mut object
        {
            fields.insert("repeats".to_owned(), event.repeats.into());
        }
        let line = |object: &Value| {
            let written = Written {
                n,
                at: &at,
                who: &event.who,
                what: &what,
                object,
                result: &event.result,
                prev: self.digest,
            };
            serde_json::to_vec(&written).unwrap_or_default()
        };
        let mut bytes = line(&object);
        if bytes.len() > MAX_LINE {
            // The longest objects are tokens with many tags. The event itself must not be missing.
            bytes = line(&serde_json::json!({"left_out_bytes": bytes.len()}));
        }
        *self = Self {
            last: n,
            digest: LineDigest::of(&bytes),
        };
        bytes.push(b'\n');
        bytes
    }
}

/// The values `what` and `object` of an event.
fn parts(event: &Event) -> (String, Value) {
    let mut tagged = serde_json::to_value(&event.what).unwrap_or_default();
    let mut take = |key: &str| tagged.get_mut(key).map(Value::take).unwrap_or_default();
    let what = take("what").as_str().unwrap_or_default().to_owned();
    (what, take("object"))
}

#[derive(Serialize)]
struct Written<'a> {
    n: u64,
    at: &'a str,
    who: &'a Who,
    what: &'a str,
    object: &'a Value,
    result: &'a Outcome,
    prev: LineDigest,
}

/// A line as it is read. A later version may have written it, so nothing is known of its event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub n: u64,
    /// The time in UTC with milliseconds, such as `2026-11-30T13:27:44.123Z`.
    pub at: String,
    pub who: Value,
    pub what: String,
    pub object: Value,
    pub result: String,
    pub prev: LineDigest,
}

impl Line {
    /// Parses the bytes of a line, without its line break.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The last number in the oldest file and the digest of that line, if this line records that the file was removed.
    #[must_use]
    pub fn trimmed(&self) -> Option<Chain> {
        if self.what != "log_trimmed" {
            return None;
        }
        let digest = self.object.get("digest")?.as_str()?;
        Some(Chain {
            last: self.object.get("through")?.as_u64()?,
            digest: LineDigest::parse(digest)?,
        })
    }
}

/// The number and the digest of the last line, as the file beside the log has them. It shows whether lines at the end are missing.
#[must_use]
pub fn head_text(chain: Chain) -> String {
    format!("{:020} {}\n", chain.last, chain.digest)
}

/// Parses the text of [`head_text`].
#[must_use]
pub fn parse_head(text: &str) -> Option<Chain> {
    let (last, digest) = text.strip_suffix('\n')?.split_once(' ')?;
    Some(Chain {
        last: last.parse().ok()?,
        digest: LineDigest::parse(digest)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::audit::event::{Text, What};

    fn event() -> Event {
        let who = Who::Local {
            uid: 0,
            pid: Some(7),
        };
        let what = What::StoreWentBack {
            reason: Text::from("a\nb"),
        };
        Event {
            repeats: 3,
            ..Event::done(who, what)
        }
    }

    #[test]
    fn a_line_has_seven_keys_and_continues_the_chain() {
        let mut chain = Chain::EMPTY;
        let first = chain.append(SystemTime::UNIX_EPOCH, &event());
        let text = String::from_utf8(first.clone()).expect("JSON");
        assert_eq!(
            text,
            concat!(
                r#"{"n":1,"at":"1970-01-01T00:00:00.000Z","who":{"kind":"local","uid":0,"pid":7},"what":"store_went_back","#,
                r#""object":{"reason":"a?b","repeats":3},"result":"ok","#,
                r#""prev":"0000000000000000000000000000000000000000000000000000000000000000"}"#,
                "\n"
            )
        );
        let second = chain.append(SystemTime::UNIX_EPOCH, &event());
        let second = Line::parse(second.trim_ascii_end()).expect("just made");
        assert_eq!(second.n, 2);
        assert_eq!(second.prev, LineDigest::of(first.trim_ascii_end()));
    }

    #[test]
    fn a_line_that_would_be_too_long_is_written_without_its_object() {
        let tag = crate::model::Label::parse(&"t".repeat(63)).expect("a label");
        let id = crate::model::SigningKey::from_seed(&[1; 32]).public();
        let what = What::TokenMade {
            token: id,
            uses: 1,
            tags: vec![tag; 1000],
            ephemeral: false,
            expires_at: crate::model::time::UnixSeconds(0),
        };
        let line = Chain::EMPTY.clone_append(&Event::done(Who::Daemon, what));
        assert!(line.len() < MAX_LINE);
        let line = Line::parse(line.trim_ascii_end()).expect("just made");
        assert_eq!(line.what, "token_made");
        assert!(line.object.get("left_out_bytes").is_some());
    }

    impl Chain {
        fn clone_append(mut self, event: &Event) -> Vec<u8> {
            self.append(SystemTime::UNIX_EPOCH, event)
        }
    }

    #[test]
    fn the_head_is_read_as_it_was_written_and_nothing_else_is_read() {
        let chain = Chain {
            last: 42,
            digest: LineDigest::of(b"x"),
        };
        assert_eq!(parse_head(&head_text(chain)), Some(chain));
        let text = head_text(chain);
        for odd in [
            "",
            "42 00\n",
            text.trim_end(),
            &text.to_uppercase(),
            &format!("{text}x"),
        ] {
            assert_eq!(parse_head(odd), None, "{odd}");
        }
    }
}
