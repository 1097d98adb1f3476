//! The state that all control streams share, and the limits on their writes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::allowance::Allowances;
use super::frames::Bound;
use super::session::SessionTable;
use crate::coordinator::hub::Hub;
use crate::coordinator::reply::crashed;
use crate::protocol::api::ApiError;
use crate::protocol::control::{MAX_FROM_NODE, PING_SECONDS};

/// The maximum number of writers that wait for the store at once. Each has a thread, and they write one after the other.
const MAX_WRITERS: usize = 16;
/// The maximum number of these writers that work for nodes that are not members: for joins, and for records of unverified nodes.
const MAX_UNVERIFIED_WRITERS: usize = 4;
/// How long one message of a member may take, and how long a member may send nothing.
pub(super) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(3 * PING_SECONDS);
/// How long one message of an unverified node may take. Nodes of this version send short messages until they are members.
const UNVERIFIED_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of large messages of unverified nodes that are received at once. Nodes of earlier versions send these: they
/// offer all records that they hold.
const MAX_LARGE: usize = 3;

/// The state that all connections share.
#[derive(Clone)]
pub(in crate::coordinator) struct Served {
    /// The coordinator's state.
    pub hub: Arc<Hub>,
    /// Becomes true when the coordinator stops.
    pub(super) stop: watch::Receiver<bool>,
    pub(super) sessions: SessionTable,
    pub(super) allowances: Allowances,
    writers: Arc<Semaphore>,
    unverified_writers: Arc<Semaphore>,
    /// Permits for large messages of unverified nodes.
    large: Arc<Semaphore>,
}

impl Served {
    pub(in crate::coordinator) fn new(hub: Arc<Hub>, stop: watch::Receiver<bool>) -> Self {
        Self {
            hub,
            stop,
            sessions: SessionTable::default(),
            allowances: Allowances::default(),
            writers: Arc::new(Semaphore::new(MAX_WRITERS)),
            unverified_writers: Arc::new(Semaphore::new(MAX_UNVERIFIED_WRITERS)),
            large: Arc::new(Semaphore::new(MAX_LARGE)),
        }
    }

    /// Runs a write for a member in a thread of its own, since it waits for the disk. The write keeps its turn until it ends,
    /// even if the connection that it is for ends before.
    pub(in crate::coordinator) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Hub) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let writers = Arc::clone(&self.writers);
        let turn = writers.acquire_owned().await.map_err(|_| crashed())?;
        let hub = Arc::clone(&self.hub);
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            write(&hub)
        })
        .await
        .unwrap_or_else(|_| Err(crashed()))
    }

    /// Runs a write for a node that is not a member. All of these writes together use only a few of the writers' turns.
    pub(in crate::coordinator) async fn write_for_unverified<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Hub) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let writers = Arc::clone(&self.unverified_writers);
        let turn = writers.acquire_owned().await.map_err(|_| crashed())?;
        self.write(move |hub| {
            let _turn = turn;
            write(hub)
        })
        .await
    }

    pub(super) fn bound_of_member() -> Bound {
        Bound {
            message: MAX_FROM_NODE,
            time: MESSAGE_TIMEOUT,
            large: None,
        }
    }

    pub(super) fn bound_of_unverified(&self) -> Bound {
        Bound {
            message: MAX_FROM_NODE,
            time: UNVERIFIED_MESSAGE_TIMEOUT,
            large: Some(Arc::clone(&self.large)),
        }
    }
}
