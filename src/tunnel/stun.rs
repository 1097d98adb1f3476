//! STUN from the sockets of the tunnel, so that a server sees the address translation that peers see.

use std::net::SocketAddr;

use super::shared::Shared;
use super::stun_requests::StunAnswer;
use crate::os::random;
use crate::protocol::stun::{Transaction, request};

/// Asks STUN servers.
pub struct StunClient<'a>(pub(super) &'a Shared);

impl StunClient<'_> {
    /// Sends a new request to `server`.
    pub fn ask(&self, server: SocketAddr) {
        let mut transaction = Transaction::default();
        if random::fill(&mut transaction).is_ok() && self.0.wakes.stun.open(server, transaction) {
            self.send(server, &transaction);
        }
    }

    /// Sends the open request to `server` once more (RFC 8489 section 6.2.1).
    pub fn repeat(&self, server: SocketAddr) {
        if let Some(transaction) = self.0.wakes.stun.transaction(&server) {
            self.send(server, &transaction);
        }
    }

    /// An answer of `server` is not believed any more.
    pub fn close(&self, server: SocketAddr) {
        self.0.wakes.stun.close(&server);
    }

    /// The answers since the last call. [`super::Steering::news_event`] tells when there are some.
    #[must_use]
    pub fn take_answers(&self) -> Vec<StunAnswer> {
        self.0.wakes.stun.take_answers()
    }

    fn send(&self, server: SocketAddr, transaction: &Transaction) {
        if let Some(sockets) = self.0.sockets.load().first() {
            sockets.send_whole(server, &request(transaction));
        }
    }
}

impl std::fmt::Debug for StunClient<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StunClient").finish_non_exhaustive()
    }
}
