//! A line on the terminal while something takes longer than a second. It is on stderr, is replaced each second, and is gone
//! when the work has ended. Without a terminal there is no line.

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long work may take before the line appears, and the time between two updates.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows the line until it is dropped.
#[derive(Debug)]
#[must_use = "the line is gone when this value is dropped"]
pub struct ProgressLine(Option<(Sender<()>, JoinHandle<()>)>);

impl ProgressLine {
    /// Shows `what`, such as `joining`, with the seconds since now.
    pub fn start(what: impl Into<String>) -> Self {
        if !is_shown() {
            return Self(None);
        }
        let what = what.into();
        let (end, ended) = channel::<()>();
        let draw = move || {
            let began = Instant::now();
            let mut is_drawn = false;
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let _ = write!(std::io::stderr(), "{}", line(&what, began.elapsed()));
                is_drawn = true;
            }
            if is_drawn {
                let _ = write!(std::io::stderr(), "{CLEAR}");
            }
        };
        let thread = std::thread::Builder::new().name("progress".into());
        // Without a thread there is no line, and the work is the same.
        Self(thread.spawn(draw).ok().map(|thread| (end, thread)))
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

/// Returns to the start of the line and erases it (ECMA-48 8.3.41).
const CLEAR: &str = "\r\u{1b}[K";

fn line(what: &str, elapsed: Duration) -> String {
    format!("{CLEAR}{what} ({} s)", elapsed.as_secs())
}

/// Whether stderr is a terminal that can erase a line.
fn is_shown() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_replaces_the_one_before_it() {
        assert_eq!(
            line("joining", Duration::from_millis(2400)),
            "\r\u{1b}[Kjoining (2 s)"
        );
    }

    #[test]
    fn nothing_waits_for_the_line_to_end() {
        let (began, progress) = (Instant::now(), ProgressLine::start("working"));
        drop(progress);
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
