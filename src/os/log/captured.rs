//! Captures the lines that a test logs.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;

use super::fields::TextFields;
use super::{Bounded, EnvFilter, LogLevel, LogSettings};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test panics here").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `work` logs on this thread at level `info` and above: the level, the message and the values, as they are
/// written in text.
///
/// # Panics
/// The log is not text.
pub fn lines(work: impl FnOnce()) -> Vec<String> {
    let written = Written::default();
    let writer = written.clone();
    let settings = LogSettings {
        level: LogLevel::Info,
        ..LogSettings::default()
    };
    let subscriber = tracing_subscriber::registry()
        .with(
            fmt::layer()
                .with_writer(move || writer.clone())
                .with_target(false)
                .with_ansi(false)
                .without_time()
                .fmt_fields(TextFields),
        )
        .with(EnvFilter::new(settings.directives()))
        .with(Bounded::default());
    tracing::subscriber::with_default(subscriber, work);
    let bytes = written.0.lock().expect("no test panics here").clone();
    let text = String::from_utf8(bytes).expect("text");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Holds that `document` has a row with the level, the message and the names of the values of `line`.
///
/// # Panics
/// It has none.
pub fn assert_documented(line: &str, document: &str) {
    let (level, rest) = line.split_once(' ').expect("a level");
    let mut keys = Vec::new();
    let mut message = None;
    let mut is_quoted = false;
    for (at, byte) in rest.bytes().enumerate() {
        if byte == b'"' && !rest[..at].ends_with('\\') {
            is_quoted = !is_quoted;
        }
        if byte == b'=' && !is_quoted {
            let start = rest[..at].rfind(' ').expect("a message comes first");
            message.get_or_insert(&rest[..start]);
            keys.push(&rest[start + 1..at]);
        }
    }
    let message = message.unwrap_or(rest);
    let row = format!(
        "| {} | {message} | {} |",
        level.to_lowercase(),
        keys.join(", ")
    );
    assert!(document.contains(&row), "docs/logs.md has no row: {row}");
}
