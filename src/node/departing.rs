//! Sends pre-signed departures to a coordinator, for former nodes of this machine: a node left while no coordinator was
//! reachable, or its join failed after it was admitted. The departures stay in the state directory until a coordinator
//! has stored them, also across restarts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::control::stream::{Stream, StreamConfig};
use super::replica::departures::is_settled;
use super::replica::{Position, StreamEvent as Event};
use super::state::StateDir;
use super::state::departing::Departing;
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::control::Refusal;

/// How long the task tries to send one departure before it continues with the next one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a round in which a departure could not be sent. It doubles with each further one.
const MIN_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// An older departure is dropped if no coordinator accepts it. By then an administrator has removed the node.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The task that sends departures to a coordinator. Dropping this value ends the task.
pub(super) struct DepartureSender {
    wake: Arc<Notify>,
    _task: AbortOnDrop,
}

impl DepartureSender {
    /// Starts the task for the departures in `dir`.
    pub(super) fn start(dir: StateDir) -> Self {
        let wake = Arc::new(Notify::new());
        let task = run(dir, Arc::clone(&wake));
        let task = Tasks::current().spawn("sender of departures", task);
        Self {
            wake,
            _task: task.abort_on_drop(),
        }
    }

    /// Wakes the task after a departure was added to the directory.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }
}

async fn run(dir: StateDir, wake: Arc<Notify>) {
    let mut pause = MIN_PAUSE;
    loop {
        for departing in dir.departing() {
            let id = departing.id();
            let attempt = timeout(ATTEMPT_TIMEOUT, deposit_departure(&departing));
            let is_stored = attempt.await.unwrap_or(false);
            let now = UnixSeconds::from_system(clock::wall());
            match after(is_stored, departing.since, now) {
                Outcome::Stored => {
                    tracing::info!(
                        node = id.short(),
                        "a coordinator has stored the departure; name and addresses are free"
                    );
                    dir.remove_departing(&id);
                }
                Outcome::TooOld => {
                    tracing::warn!(
                        node = id.short(),
                        "no coordinator accepted a departure within 30 days; it is dropped"
                    );
                    dir.remove_departing(&id);
                }
                Outcome::Kept => {}
            }
        }
        if dir.departing().is_empty() {
            wake.notified().await;
            pause = MIN_PAUSE;
        } else if timeout(pause, wake.notified()).await.is_ok() {
            pause = MIN_PAUSE;
        } else {
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// What becomes of a departure after an attempt to send it.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Stored,
    Kept,
    TooOld,
}

/// The outcome for a departure that was signed at `since`. It is sent at least once, however old it seems: the clock of this machine may have
/// been wrong when it was signed, and may have been set since.
fn after(is_stored: bool, since: UnixSeconds, now: UnixSeconds) -> Outcome {
    if is_stored {
        Outcome::Stored
    } else if now > since.plus(MAX_AGE) {
        Outcome::TooOld
    } else {
        Outcome::Kept
    }
}

/// Sends one departure to a coordinator, over a control stream of its own. Returns whether the departure is no longer
/// needed.
async fn deposit_departure(departing: &Departing) -> bool {
    const SEQUENCE: u64 = 1;
    let (sender, mut events) = mpsc::channel(16);
    let config = StreamConfig {
        urls: departing.way.urls.clone(),
        pin: departing.way.pin,
        identity: departing.identity.clone(),
    };
    let stream = Stream::start(config, Position::default(), sender);
    while let Some(event) = events.recv().await {
        match event {
            Event::Opened { .. } => {
                stream.publish(SEQUENCE, vec![departing.envelope()]);
            }
            Event::Published {
                sequence, refused, ..
            } if sequence == SEQUENCE => {
                return is_settled(&refused);
            }
            Event::Closed { refusal, .. } => match refusal {
                Some(Refusal::Revoked) => return true,
                Some(Refusal::Clone) => return false,
                _ => {}
            },
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_departure_is_dropped_only_if_it_is_old_and_no_coordinator_has_stored_it() {
        let signed = UnixSeconds(1_000);
        let old = UnixSeconds(1_001).plus(MAX_AGE);
        for (is_stored, now, outcome) in [
            (true, signed, Outcome::Stored),
            (false, signed, Outcome::Kept),
            (false, signed.plus(MAX_AGE), Outcome::Kept),
            (false, old, Outcome::TooOld),
            // The clock stood in 1970 when the departure was signed.
            (true, old, Outcome::Stored),
        ] {
            assert_eq!(after(is_stored, signed, now), outcome, "{now:?}");
        }
    }
}
