//! Waiting for the answer to a probe.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shared::Shared;

/// How often the answer is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// An answer that has not arrived yet.
pub struct Waiting {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: [u8; 32],
    pub(super) since: Instant,
}

impl Waiting {
    /// Waits for at most `limit`. Returns the round trip, if the answer arrived, and the endpoint of the peer.
    #[must_use]
    pub fn wait(self, limit: Duration) -> (Option<Duration>, Option<SocketAddr>) {
        loop {
            let table = self.shared.table.load();
            let Some(peer) = table.sending_peer_of(&self.peer) else {
                return (None, None);
            };
            let endpoint = peer.lock().paths.primary().and_then(|path| path.endpoint());
            let answered = peer.probes().answered();
            if let Some(trip) = answered.filter(|trip| trip.at >= self.since) {
                return (Some(trip.took), endpoint);
            }
            if self.since.elapsed() >= limit || self.shared.stopping() {
                return (None, endpoint);
            }
            drop(table);
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}
