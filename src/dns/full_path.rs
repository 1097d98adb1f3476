//! One thread for the queries that the fast path does not answer: answers with many records, messages that need a full
//! parse, and names outside the mesh before they are forwarded.
//!
//! The threads that carry packets and the threads that receive datagrams put such a query in a queue and go on. They do no
//! other work for it, whatever the zone holds. The queue has room for every query that the limits admit, so it is never
//! full. Each client has few places of its own, and a share of a core ([`super::limits`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use super::limits::Pool;
use super::resolver::{Admitted, InFull, Reply, Resolver};
use super::transport::Transport;

/// Sends the reply when it is ready.
pub(super) type Deliver = Box<dyn FnOnce(Reply) + Send>;

/// A query that waits for the thread.
pub(super) struct Job {
    pub(super) query: Box<[u8]>,
    pub(super) transport: Transport,
    pub(super) admitted: Admitted,
    pub(super) deliver: Deliver,
}

/// The sending side of the queue. The thread ends when this is dropped.
pub(super) struct FullPath {
    jobs: SyncSender<Job>,
}

impl FullPath {
    /// Starts the thread. Queries are forwarded by the runtime in which this function is called.
    pub(super) fn start(resolver: &Arc<Resolver>) -> Self {
        let (jobs, waiting) = sync_channel(Pool::FullPath.size() + Pool::Forwards.size());
        let (resolver, runtime) = (Arc::downgrade(resolver), Handle::try_current().ok());
        let thread = std::thread::Builder::new().name("dns-full".into());
        if let Err(error) = thread.spawn(move || serve(&waiting, &resolver, runtime.as_ref())) {
            tracing::error!(%error, "cannot start the thread that answers queries in full");
        }
        Self { jobs }
    }

    /// Puts a query in the queue. Returns whether the queue took it.
    pub(super) fn push(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }
}

fn serve(waiting: &Receiver<Job>, resolver: &Weak<Resolver>, runtime: Option<&Handle>) {
    while let (Ok(job), Some(resolver)) = (waiting.recv(), resolver.upgrade()) {
        let Job {
            query,
            transport,
            admitted,
            deliver,
        } = job;
        // A defect that one query meets must not take the answers of all others. The panic itself is written to the log.
        let answer = AssertUnwindSafe(|| resolver.answer_in_full(&query, transport, admitted));
        match catch_unwind(answer) {
            Ok(InFull::Reply(reply)) => deliver(reply),
            Ok(InFull::Forward(forwarding)) => {
                if let Some(runtime) = runtime {
                    runtime.spawn(async move { deliver(resolver.forward(forwarding).await) });
                }
            }
            Ok(InFull::Silent) => {}
            Err(_) => {
                tracing::error!("a query could not be answered, because of a defect in meshd")
            }
        }
    }
}
