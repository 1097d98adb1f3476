//! One thread for the queries that the fast path does not answer: answers with many records, messages that need a full
//! parse, and names outside the mesh before they are forwarded.
//!
//! The threads that carry packets and the threads that receive datagrams put such a query in a queue and go on. They do no
//! other work for it, whatever the zone holds. The queue has room for every query that the limits admit, so it is never
//! full. Each client has few places of its own, and a share of a core ([`super::limits`]).
//!
//! The thread parses the query as a request of hickory-server and runs the request handler, [`Names`]. An answer from the zone
//! is ready at once. A handler that has to wait for an upstream becomes a task of the runtime. There are as many such tasks as
//! there are places for forwarded queries.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};

use hickory_proto::op::ResponseCode;
use hickory_resolver::net::runtime::TokioTime;
use hickory_server::server::RequestHandler as _;
use tokio::runtime::Handle;

use super::drop_reason::DropReason;
use super::fast_path::{self, FastPath};
use super::job::{Job, Reply};
use super::limits::{Pool, Share};
use super::names::{MESSAGE, Names, Progress};
use super::query::{Parsed, Silence, parse};
use super::reply::{Responder, Response, encode};
use super::resolver::Resolver;
use super::transport::MAX_QUERY;
use crate::os::tasks::Tasks;

/// A forwarded reply with more bytes than this has a place in [`Pool::Memory`]. Smaller replies are bounded by their number.
const LARGE: usize = 4 * 1024;
/// The work to receive, filter and encode a forwarded record, in visited instances.
const FORWARDED_RECORD: usize = 10;

/// Starts the thread, if it is not started yet. The first call has to be made inside the runtime that forwards queries.
pub(super) fn start(resolver: &Arc<Resolver>) -> &SyncSender<Job> {
    resolver.queue().get_or_init(|| {
        let (jobs, waiting) = sync_channel(Pool::FullPath.size() + Pool::Forwards.size());
        let (resolver, runtime) = (Arc::downgrade(resolver), Runtime::current());
        let thread = std::thread::Builder::new().name("dns-full".into());
        if let Err(error) = thread.spawn(move || serve(&waiting, &resolver, runtime.as_ref())) {
            tracing::error!(%error, "cannot start the thread that answers queries in full");
        }
        jobs
    })
}

/// The runtime that forwards queries, and the tasks that it belongs to.
struct Runtime {
    handle: Handle,
    tasks: Tasks,
}

impl Runtime {
    fn current() -> Option<Self> {
        let handle = Handle::try_current().ok()?;
        let tasks = Tasks::current();
        Some(Self { handle, tasks })
    }

    fn spawn(&self, rest: Rest) {
        let _entered = self.handle.enter();
        self.tasks.spawn_child("a forwarded DNS query", rest);
    }
}

/// Puts a query in the queue of the thread.
pub(super) fn hand_over(resolver: &Arc<Resolver>, job: Job) {
    if start(resolver).try_send(job).is_err() {
        resolver.counts().drop(DropReason::Queue);
    }
}

/// Returns the part of `query` that the thread needs: one byte more than the maximum shows that a query is too long.
pub(super) fn clipped(query: &[u8]) -> Box<[u8]> {
    query.get(..=MAX_QUERY).unwrap_or(query).into()
}

fn serve(waiting: &Receiver<Job>, resolver: &Weak<Resolver>, runtime: Option<&Runtime>) {
    while let (Ok(job), Some(resolver)) = (waiting.recv(), resolver.upgrade()) {
        // A defect that one query meets must not take the answers of all others. The panic itself is written to the log.
        let begun = catch_unwind(AssertUnwindSafe(|| begin(resolver, job)));
        match (begun, runtime) {
            (Ok(Some(rest)), Some(runtime)) => runtime.spawn(rest),
            (Ok(_), _) => {}
            (Err(_), _) => {
                tracing::error!("a query could not be answered, because of a defect in meshd")
            }
        }
    }
}

/// The rest of the work for a query that is forwarded.
type Rest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Answers a query, unless it is forwarded.
pub(super) fn begin(resolver: Arc<Resolver>, job: Job) -> Option<Rest> {
    let mut answer: Rest = Box::pin(answer(resolver, job));
    let mut context = Context::from_waker(Waker::noop());
    answer
        .as_mut()
        .poll(&mut context)
        .is_pending()
        .then_some(answer)
}

/// Answers a query without a bound on the work, and charges its client for the work. Waits only if the query is forwarded.
async fn answer(resolver: Arc<Resolver>, job: Job) {
    let Job {
        query,
        source,
        transport,
        place,
        deliver,
    } = job;
    let client = place.client();
    let (visited, fast) = {
        let zone = resolver.zone();
        let visited = fast_path::walked(&zone, &query);
        let mut message = Vec::new();
        let fast = place.pool() != Pool::Forwards
            && fast_path::answer(&zone, &query, transport, resolver.entropy(), &mut message)
                == FastPath::Replied;
        (visited, fast.then_some(message))
    };
    if let Some(message) = fast {
        return deliver(finished(&resolver, message, visited, place));
    }
    let request = match parse(&query, source, transport) {
        Parsed::Request(request) => request,
        Parsed::Reply(message) => {
            return deliver(finished(&resolver, message, visited + MESSAGE, place));
        }
        Parsed::Silence(why) => {
            resolver.charge(client, visited + MESSAGE, 0);
            return resolver.counts().drop(match why {
                Silence::NoHeader => DropReason::Malformed,
                Silence::IsReply => DropReason::Reply,
            });
        }
    };
    resolver.counts().queries.fetch_add(1, Ordering::Relaxed);
    let names = Names::new(Arc::clone(&resolver), place, visited);
    let responder = Responder::new(&request);
    let info = names
        .handle_request::<_, TokioTime>(&request, responder.clone())
        .await;
    let mut message = responder.into_reply(&request);
    let Progress { place, forwarded } = names.into_progress();
    let counts = info.counts();
    let records = usize::from(counts.answers) + usize::from(counts.authorities);
    let work = match forwarded {
        true => MESSAGE + records * FORWARDED_RECORD,
        false => visited + MESSAGE,
    };
    resolver.charge(client, work, message.len());
    let mut memory = None;
    if forwarded && message.len() > LARGE {
        memory = resolver.reserve(client, message.len());
        if memory.is_none() {
            message = encode(&request, Response::of(ResponseCode::ServFail));
        }
    }
    deliver(Reply {
        message,
        _place: place,
        _memory: memory,
    });
}

/// Charges the client for a reply that is ready.
fn finished(resolver: &Resolver, message: Vec<u8>, visited: usize, place: Share) -> Reply {
    resolver.counts().queries.fetch_add(1, Ordering::Relaxed);
    resolver.charge(place.client(), visited, message.len());
    Reply {
        message,
        _place: place,
        _memory: None,
    }
}
