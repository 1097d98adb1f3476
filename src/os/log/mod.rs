//! The log of every daemon, on stderr: one line for each event, as text or as JSON.
//!
//! Under systemd each line begins with its priority, as sd-daemon(3) describes (`<4>` for a warning), which the journal
//! removes and stores. The journal's native protocol is not used: it stores values in fields of their own, which
//! `journalctl` does not print, so an operator would see messages without their values. The prefix works for text and for
//! JSON, keeps the order with everything else on stderr, and needs no further crate.
//!
//! Values from outside cannot forge a line: [`fields`] quotes and escapes them, and JSON is escaped by its encoder.

use std::io::IsTerminal as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::Deserialize;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use self::fields::TextFields;
use self::journal::Stderr;
use super::repeats::Repeats;

#[cfg(test)]
pub mod captured;
mod fields;
mod journal;

/// The target of lines about transitions, such as a peer that is lost. The state machine that logs them bounds their
/// number, so they are not suppressed when many peers are lost at once.
pub const TRANSITION: &str = "meshd::transition";

/// The table `[log]` of both configuration files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// The least severe lines that are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Time, level, message, and `key=value` for each value.
    #[default]
    Text,
    /// One JSON object with `timestamp`, `level`, `message` and the values.
    Json,
}

impl LogSettings {
    /// The filter. Libraries log for each packet and query below `info`, so `debug` and `trace` concern this program only.
    ///
    /// boringtun logs the end of an idle peer's session as an error. hickory warns about each datagram that is not an
    /// answer, and anyone can send many of those.
    fn directives(self) -> String {
        let (libraries, own) = match self.level {
            LogLevel::Error => ("error", "error"),
            LogLevel::Warn => ("warn", "warn"),
            LogLevel::Info => ("info", "info"),
            LogLevel::Debug => ("info", "debug"),
            LogLevel::Trace => ("info", "trace"),
        };
        format!("{libraries},meshd={own},boringtun=off,hickory_net=error")
    }
}

/// The format after [`to_stderr`] was called.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Logs to stderr as `settings` say. The environment variable `RUST_LOG` overrides the level. Repeated warnings are
/// suppressed. Under systemd the journal adds the time.
pub fn to_stderr(settings: LogSettings) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(settings.directives()));
    let is_journal = journal::is_stderr();
    let lines = lines(settings.format, is_journal, std::io::stderr().is_terminal());
    let subscriber = tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(Bounded::default());
    // Only a second call in one process fails, and the log is set up then.
    if subscriber.try_init().is_ok() {
        let _ = FORMAT.set(settings.format);
        if is_journal || settings.format == LogFormat::Json {
            log_panics();
        }
    }
}

/// Writes why `program` ends: in the format of the log if the log is set up, and as one line of text otherwise.
/// The numbers that the standard library adds to errors of the system are left out.
pub fn report_failure(program: &str, message: &str) {
    let message = &super::usage::without_numbers(message);
    if FORMAT.get() == Some(&LogFormat::Json) {
        tracing::error!(target: TRANSITION, "{message}");
        return;
    }
    let prefix = if journal::is_stderr() {
        journal::prefix(Level::ERROR)
    } else {
        ""
    };
    eprintln!("{prefix}{program}: {}", fields::Escaped(message));
}

/// Writes lines to stderr.
fn lines(
    format: LogFormat,
    is_journal: bool,
    is_terminal: bool,
) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = fmt::layer()
        .with_writer(Stderr { is_journal })
        .with_target(false)
        .with_ansi(is_terminal);
    match (format, is_journal) {
        (LogFormat::Json, _) => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
        (LogFormat::Text, true) => lines.fmt_fields(TextFields).without_time().boxed(),
        (LogFormat::Text, false) => lines.fmt_fields(TextFields).boxed(),
    }
}

/// Logs a panic as one line, where a reader expects a priority or JSON on each line. The hook of the standard library
/// writes several lines.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(
            place = place.as_deref().unwrap_or("unknown"),
            thread = thread.name().unwrap_or("unnamed"),
            reason = panic.payload_as_str().unwrap_or("unknown"),
            "a thread panicked, because of a defect in meshd"
        );
    }));
}

/// Suppresses warnings and errors of a place in the code that has logged too many.
#[derive(Default)]
struct Bounded(Mutex<Repeats<Identifier>>);

impl<S: Subscriber> Layer<S> for Bounded {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN
            || [module_path!(), TRANSITION].contains(&metadata.target())
        {
            return true;
        }
        let admitted = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(metadata.callsite(), Instant::now());
        if let Some(count @ 1..) = admitted {
            tracing::warn!(count, "lines like the next one were suppressed");
        }
        admitted.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::repeats::BURST;

    #[test]
    fn a_repeated_warning_is_suppressed_and_others_are_not() {
        let lines = captured::lines(|| {
            for n in 0..1000 {
                tracing::warn!(n, "the same");
                tracing::warn!(target: TRANSITION, n, "a transition");
                tracing::info!("no warning");
            }
            tracing::error!("another");
        });
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("the same"), BURST as usize);
        assert_eq!(count("a transition"), 1000);
        assert_eq!(count("no warning"), 1000);
        assert_eq!(count("another"), 1);
    }

    #[test]
    fn a_level_of_the_configuration_concerns_this_program_and_never_the_packets_of_libraries() {
        let directives = |level| {
            let format = LogFormat::Text;
            LogSettings { level, format }.directives()
        };
        assert_eq!(
            directives(LogLevel::Warn),
            "warn,meshd=warn,boringtun=off,hickory_net=error"
        );
        assert_eq!(
            directives(LogLevel::Trace),
            "info,meshd=trace,boringtun=off,hickory_net=error"
        );
    }

    #[test]
    fn the_settings_are_words_in_lower_case() {
        let parsed: LogSettings =
            toml::from_str("level = \"warn\"\nformat = \"json\"").expect("known words");
        let expected = LogSettings {
            level: LogLevel::Warn,
            format: LogFormat::Json,
        };
        assert_eq!(parsed, expected);
        assert_eq!(
            toml::from_str::<LogSettings>(""),
            Ok(LogSettings::default())
        );
        assert!(toml::from_str::<LogSettings>("level = \"loud\"").is_err());
    }
}
