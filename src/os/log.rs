//! The log of every daemon, on stderr.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::repeats::Repeats;

/// boringtun logs the end of an idle peer's session as an error. hickory warns about each datagram that is not an
/// answer, and anyone can send many of those.
const DEFAULT: &str = "info,boringtun=off,hickory_net=error";

/// Suppresses warnings and errors of a place in the code that has logged too many.
#[derive(Default)]
struct Bounded(Mutex<Repeats<Identifier>>);

impl<S: Subscriber> Layer<S> for Bounded {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target() == module_path!() {
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

/// Logs to stderr, at level `info` unless `RUST_LOG` sets another one. Repeated warnings are suppressed. Under systemd
/// the journal adds the time.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let result = if std::env::var_os("JOURNAL_STREAM").is_some() {
        let subscriber = builder.without_time().finish();
        subscriber.with(Bounded::default()).try_init()
    } else {
        builder.finish().with(Bounded::default()).try_init()
    };
    // Only a second call in one process fails, and the log is set up then.
    let _ = result;
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use super::*;
    use crate::os::repeats::BURST;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_repeated_warning_is_suppressed_and_others_are_not() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .finish()
            .with(Bounded::default());
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..1000 {
                tracing::warn!(n, "the same");
                tracing::info!("no warning");
            }
            tracing::error!("another");
        });
        let text = lines.0.lock().expect("one thread").clone();
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text.matches("the same").count(), BURST as usize);
        assert_eq!(text.matches("no warning").count(), 1000);
        assert_eq!(text.matches("another").count(), 1);
    }
}
