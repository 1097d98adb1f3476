//! What every daemon says, and to whom: its log on stderr, its watchdog to systemd.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::repeats::Repeats;

/// boringtun calls it an error that the session of an idle peer ends. hickory warns about each datagram that is no answer, and of
/// those anyone can send many.
const DEFAULT: &str = "info,boringtun=off,hickory_net=error";

/// Leaves out warnings and errors of a place that has written too many.
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
            tracing::warn!(count, "lines like the next one were left out");
        }
        admitted.is_some()
    }
}

/// Logs to stderr, at `info` unless `RUST_LOG` says otherwise, no warning without a limit. Under systemd the journal adds
/// the time.
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
    // Only a second call in one process fails, and then the log is there.
    let _ = result;
}

/// Notifies the service manager's watchdog again and again, each time after a call of `works` has returned. If no watchdog is
/// configured, this function waits forever.
pub async fn feed_watchdog(works: impl Fn() + Send + Sync + 'static) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let works = Arc::new(works);
    loop {
        let works = Arc::clone(&works);
        // The call has a thread of its own, since it may wait for a lock. If it never returns, no further notification is sent.
        if tokio::task::spawn_blocking(move || works()).await.is_ok() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        tokio::time::sleep(interval / 3).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

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
    fn a_warning_that_is_repeated_for_ever_is_not_written_for_ever_and_others_are() {
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
