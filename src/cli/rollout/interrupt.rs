//! The signals that request this program to end. Before it ends, it has to undrain the services.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::exit::CliError;

/// Receives the signals from the moment when it is made.
#[derive(Debug)]
pub(super) struct Interrupt {
    pub(super) terminal: Signal,
    pub(super) terminate: Signal,
    /// The terminal is gone.
    hangup: Signal,
}

impl Interrupt {
    pub(super) fn new() -> Result<Self, CliError> {
        let receive = |kind| signal(kind).map_err(CliError::failed);
        Ok(Self {
            terminal: receive(SignalKind::interrupt())?,
            terminate: receive(SignalKind::terminate())?,
            hangup: receive(SignalKind::hangup())?,
        })
    }

    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminal.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
