//! Sends pre-signed departures to a coordinator, for nodes of this machine that are out already: a node left while no
//! coordinator was there, or its join failed after it was admitted. The departures stay in the state directory until a
//! coordinator has them, also across restarts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::control::stream::{Stream, StreamConfig};
use super::replica::departures::is_settled;
use super::replica::{Position, StreamEvent as Event};
use super::state::StateDir;
use super::state::departing::Departing;
use crate::model::time::UnixSeconds;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::protocol::control::Refusal;

/// How long this task tries to send one departure before the next one has its turn.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a round in which a departure could not be sent. It doubles with each further one.
const PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// A departure that is older is given up. By then an administrator has removed the node.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The task that sends departures to a coordinator. Dropping this value ends the task.
pub(super) struct Courier {
    wake: Arc<Notify>,
    _task: AbortOnDrop,
}

impl Courier {
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

    /// A departure was added to the directory.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }
}

async fn run(dir: StateDir, wake: Arc<Notify>) {
    let mut pause = PAUSE;
    loop {
        for departing in dir.departing() {
            let now = UnixSeconds::from_system(SystemTime::now());
            let id = departing.id();
            if now > departing.since.plus(MAX_AGE) {
                tracing::warn!(
                    node = id.short(),
                    "no coordinator took a departure in 30 days; it is given up"
                );
                dir.remove_departing(&id);
            } else if timeout(ATTEMPT_TIMEOUT, deposit_departure(&departing))
                .await
                .unwrap_or(false)
            {
                tracing::info!(
                    node = id.short(),
                    "a coordinator has the departure; name and addresses are free"
                );
                dir.remove_departing(&id);
            }
        }
        if dir.departing().is_empty() {
            wake.notified().await;
            pause = PAUSE;
        } else if timeout(pause, wake.notified()).await.is_ok() {
            pause = PAUSE;
        } else {
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// Sends one departure to a coordinator, over a stream of its own that is opened again when it breaks. Returns whether the
/// coordinator needs it no longer.
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
