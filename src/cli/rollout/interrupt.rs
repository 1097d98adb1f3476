//! The signals that request this program to end. Before it ends, it has to undrain the services.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::exit::CliError;

/// Receives the signals from the moment when it is made.
#[derive(Debug)]
pub(super) struct Interrupt {
    pub(super) terminal: Signal,
    pub(super) terminate: Signal,
    /// The terminal is gone. None if `nohup` asked to ignore that.
    hangup: Option<Signal>,
}

impl Interrupt {
    pub(super) fn new() -> Result<Self, CliError> {
        let receive = |kind| signal(kind).map_err(CliError::failed);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = if ignores_hangup(&status) {
            None
        } else {
            Some(receive(SignalKind::hangup())?)
        };
        Ok(Self {
            terminal: receive(SignalKind::interrupt())?,
            terminate: receive(SignalKind::terminate())?,
            hangup,
        })
    }

    pub(super) async fn received(&mut self) {
        let hangup = self.hangup.as_mut();
        let hung_up = async {
            match hangup {
                Some(hangup) => {
                    let _ = hangup.recv().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminal.recv() => {}
            _ = self.terminate.recv() => {}
            () = hung_up => {}
        }
    }
}

/// Whether a process with this `/proc/PID/status` ignores SIGHUP, which is signal 1 and has the lowest bit.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_under_nohup_outlives_its_terminal() {
        assert!(ignores_hangup("SigBlk:\t0\nSigIgn:\t0000000000001001\n"));
        assert!(!ignores_hangup("SigBlk:\t1\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
