//! One thread for the queries that the fast path leaves: answers of many records, messages that have to be taken apart, and
//! names of elsewhere before they are forwarded.
//!
//! The threads that carry packets and those that receive datagrams hand such a query over and go on; nothing of it is done
//! there, whatever the zone holds. The queue has a place for each query that the limits admit, so that it is never full: each
//! client has few places of its own, and a share of the core ([`super::limits`]).

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use super::limits::Pool;
use super::message::Transport;
use super::resolver::{Admitted, InFull, Reply, Resolver};

/// What sends the reply, once there is one.
pub(super) type Deliver = Box<dyn FnOnce(Reply) + Send>;

/// A query that waits.
pub(super) struct Job {
    pub(super) query: Box<[u8]>,
    pub(super) transport: Transport,
    pub(super) admitted: Admitted,
    pub(super) deliver: Deliver,
}

/// The way to the thread. The thread ends when this is dropped.
pub(super) struct FullPath {
    jobs: SyncSender<Job>,
}

impl FullPath {
    /// Starts the thread. What it forwards, the runtime does that this is called in.
    pub(super) fn start(resolver: &Arc<Resolver>) -> Self {
        let (jobs, waiting) = sync_channel(Pool::FullPath.size() + Pool::Forwards.size());
        let (resolver, runtime) = (Arc::downgrade(resolver), Handle::try_current().ok());
        let thread = std::thread::Builder::new().name("dns-full".into());
        if let Err(error) = thread.spawn(move || serve(&waiting, &resolver, runtime.as_ref())) {
            tracing::error!(%error, "cannot start the thread that answers queries in full");
        }
        Self { jobs }
    }

    /// Gives whether the query was taken.
    pub(super) fn push(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }
}

fn serve(waiting: &Receiver<Job>, resolver: &Weak<Resolver>, runtime: Option<&Handle>) {
    while let (Ok(job), Some(resolver)) = (waiting.recv(), resolver.upgrade()) {
        let deliver = job.deliver;
        match resolver.answer_in_full(&job.query, job.transport, job.admitted) {
            InFull::Reply(reply) => deliver(reply),
            InFull::Forward(forwarding) => {
                if let Some(runtime) = runtime {
                    runtime.spawn(async move { deliver(resolver.forward(forwarding).await) });
                }
            }
            InFull::Silent => {}
        }
    }
}
