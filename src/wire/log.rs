//! What every daemon says, and to whom: its log on stderr, its watchdog to systemd.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// boringtun calls it an error that the session of an idle peer ends.
const DEFAULT: &str = "info,boringtun=off";

/// Logs to stderr, at `info` unless `RUST_LOG` says otherwise. Under systemd the journal adds the time.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let result = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    // Only a second call in one process fails, and then the log is there.
    let _ = result;
}

/// Tells systemd at half the interval it set that the program's runtime turns. Without a watchdog, waits for ever.
pub async fn feed_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(interval / 2).await;
    }
}
