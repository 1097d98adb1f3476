//! The full path: hickory-server's request handler over the zone and the upstreams.
//!
//! A [`Names`] answers one request for one client. The request comes from any of the ways in, and the response goes into a
//! [`Responder`], so no socket of hickory-server is involved. [`handle`] does the same with a zone alone and is pure.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use hickory_proto::op::ResponseCode;
use hickory_resolver::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};

use super::drop_reason::DropReason;
use super::fast_path::{self, FastPath};
use super::forward::{Asker, Forwarded};
use super::limits::{Pool, Share};
use super::query::{Decision, Parsed, Question, Silence, decide, parse};
use super::reply::{Response, encode, respond};
use super::resolver::Resolver;
use super::transport::Transport;
use super::zone::Zone;

/// The work to parse a message and encode another one, in visited instances.
pub(super) const MESSAGE: usize = 150;

/// Answers one request.
pub(super) struct Names {
    resolver: Arc<Resolver>,
    /// The instances that an answer may visit, which the client pays for.
    visited: usize,
    progress: Mutex<Progress>,
}

/// What became of the request.
pub(super) struct Progress {
    /// The place of the request: in [`Pool::Forwards`] if it is forwarded.
    pub(super) place: Share,
    /// The response is the answer of an upstream.
    pub(super) forwarded: bool,
}

impl Names {
    pub(super) fn new(resolver: Arc<Resolver>, place: Share, visited: usize) -> Self {
        let progress = Progress {
            place,
            forwarded: false,
        };
        Self {
            resolver,
            visited,
            progress: Mutex::new(progress),
        }
    }

    pub(super) fn into_progress(self) -> Progress {
        let progress = self.progress.into_inner();
        progress.unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the upstreams, unless the client gets no recursion or forwards too much.
    async fn forward(&self, question: &Question) -> Response {
        let client = self.with_progress(|progress| progress.place.client());
        let counts = self.resolver.counts();
        if !client.may_recurse() {
            counts.drop(DropReason::Recursion);
            return refused();
        }
        if !self.takes_place() {
            return answered(question, Forwarded::failure());
        }
        self.resolver.charge(client, self.visited + MESSAGE, 0);
        leave_thread().await;
        counts.forwarded.fetch_add(1, Ordering::Relaxed);
        let asker = Asker {
            limits: Arc::clone(self.resolver.limits()),
            client,
        };
        let upstream = self.resolver.upstream();
        let mut forwarded = upstream.ask_as(question, Some(asker)).await;
        if forwarded.strip(&self.resolver.zone()).is_any() {
            counts.rebound.fetch_add(1, Ordering::Relaxed);
        }
        self.with_progress(|progress| progress.forwarded = true);
        answered(question, forwarded)
    }

    /// Takes a place among the forwarded requests, unless the fast path has taken one already.
    fn takes_place(&self) -> bool {
        self.with_progress(|progress| {
            if progress.place.pool() == Pool::Forwards {
                return true;
            }
            let place = self.resolver.admit_forward(progress.place.client());
            place.is_some_and(|place| {
                progress.place = place;
                true
            })
        })
    }

    fn with_progress<T>(&self, take: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        take(&mut progress)
    }
}

#[async_trait]
impl RequestHandler for Names {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut handler: R,
    ) -> ResponseInfo {
        let entropy = self.resolver.entropy();
        let decision = decide(&self.resolver.zone(), request, entropy);
        let response = match decision {
            Decision::Reply(response) => response,
            Decision::Forward(question) => self.forward(&question).await,
        };
        respond(request, response, &mut handler).await
    }
}

/// Returns control once, so that the thread of the full path goes on with its next query and the runtime continues with this one.
async fn leave_thread() {
    let mut left = false;
    poll_fn(|context| {
        if std::mem::replace(&mut left, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Returns the response to a client that gets no recursion.
fn refused() -> Response {
    Response {
        prohibited: true,
        ..Response::of(ResponseCode::Refused)
    }
}

/// Returns the response with the answer of an upstream.
fn answered(question: &Question, mut forwarded: Forwarded) -> Response {
    // The answer has the name in the case in which the upstream was asked. Some clients compare it with theirs (RFC 4343).
    for record in &mut forwarded.answers {
        if record.name == question.name {
            record.name = question.name.clone();
        }
    }
    // The client understands the AD flag (RFC 6840 section 5.8).
    let understood = question.authentic || question.dnssec_ok;
    Response {
        authentic: forwarded.authentic && understood,
        answers: forwarded.answers,
        authority: forwarded.authority,
        ..Response::of(forwarded.code)
    }
}

/// What is to be done with a message.
#[derive(Debug)]
pub enum Outcome {
    /// Send this reply.
    Reply(Vec<u8>),
    /// Ask the upstreams, and then [`Pending::finish`].
    Forward(Box<Pending>),
    /// Send nothing.
    Silence(Silence),
}

/// A request that waits for the upstreams.
#[derive(Debug)]
pub struct Pending {
    request: Request,
    /// The question for the upstreams.
    pub question: Question,
}

impl Pending {
    /// Returns the reply to a client that gets no recursion.
    #[must_use]
    pub fn refuse(&self) -> Vec<u8> {
        encode(&self.request, refused())
    }

    /// Returns the reply with the answer of an upstream.
    #[must_use]
    pub fn finish(&self, forwarded: Forwarded) -> Vec<u8> {
        encode(&self.request, answered(&self.question, forwarded))
    }
}

/// Answers a message from `zone` by the fast path, and otherwise by the full path.
#[must_use]
pub fn answer(zone: &Zone, message: &[u8], transport: Transport, entropy: u64) -> Outcome {
    let mut reply = Vec::new();
    match fast_path::answer(zone, message, transport, entropy, &mut reply) {
        FastPath::Replied => Outcome::Reply(reply),
        FastPath::Forward | FastPath::NeedsFullParse => handle(zone, message, transport, entropy),
    }
}

/// Answers a message from `zone` by the full path.
#[must_use]
pub fn handle(zone: &Zone, message: &[u8], transport: Transport, entropy: u64) -> Outcome {
    let source = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let request = match parse(message, source, transport) {
        Parsed::Request(request) => request,
        Parsed::Reply(reply) => return Outcome::Reply(reply),
        Parsed::Silence(why) => return Outcome::Silence(why),
    };
    match decide(zone, &request, entropy) {
        Decision::Reply(response) => Outcome::Reply(encode(&request, response)),
        Decision::Forward(question) => Outcome::Forward(Box::new(Pending {
            request: *request,
            question,
        })),
    }
}

#[cfg(test)]
mod probes;
#[cfg(test)]
mod tests;
