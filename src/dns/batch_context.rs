//! The fast path with access control, limits and counts, for the queries of one batch.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;

use super::access::{Allowed, Client};
use super::choice::mixed;
use super::drop_reason::DropReason;
use super::fast_path::{self, FEW_INSTANCES, FastPath};
use super::limits::{Refusal, Share};
use super::resolver::{Resolver, STEP};
use super::transport::Transport;
use super::zone::Zone;

/// The outcome of a query on the fast path.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The reply is written.
    Replied,
    /// The query has this place on the full path and has to be handed over to it ([`super::full_path::hand_over`]).
    FullPath(Share),
    /// There is no place for the query now, or its client has spent its share of a core. Over a stream the query can wait.
    Busy,
    /// There will be no reply.
    Silent,
}

/// What the queries of a batch are answered from. It is not to be kept longer, since it does not show changes.
pub(super) struct QueryContext<'a> {
    resolver: &'a Resolver,
    zone: Guard<Arc<Zone>>,
    allowed: Guard<Arc<Allowed>>,
    now_ns: u64,
    entropy: u64,
    queries: u64,
}

impl<'a> QueryContext<'a> {
    pub(super) fn new(resolver: &'a Resolver) -> Self {
        Self {
            resolver,
            zone: resolver.zone(),
            allowed: resolver.allowed(),
            now_ns: resolver.now_ns(),
            entropy: resolver.entropy(),
            queries: 0,
        }
    }

    /// Processes a query on the fast path, without waiting and with a bounded amount of work.
    pub(super) fn answer(
        &mut self,
        query: &[u8],
        source: IpAddr,
        transport: Transport,
        reply: &mut Vec<u8>,
    ) -> Outcome {
        let resolver = self.resolver;
        let Some(client) = self.allowed.client(source) else {
            return self.silent(DropReason::Foreign);
        };
        let streamed = transport == Transport::Tcp;
        let limits = resolver.limits();
        if !limits.admits(client, self.now_ns) {
            return match streamed {
                true => Outcome::Busy,
                false => self.silent(DropReason::Rate),
            };
        }
        if streamed && !limits.admit_streamed(client, self.now_ns) {
            return Outcome::Busy;
        }
        self.entropy = mixed(self.entropy.wrapping_add(STEP));
        let (most, entropy) = (FEW_INSTANCES, self.entropy);
        match fast_path::answer_within(most, &self.zone, query, transport, entropy, reply) {
            FastPath::Replied => {
                self.queries += 1;
                Outcome::Replied
            }
            FastPath::Forward => self.forward(query, client, reply),
            FastPath::NeedsFullParse => {
                reply.clear();
                match limits.admit_full_path(client, self.now_ns) {
                    Ok(share) => Outcome::FullPath(share),
                    Err(why) => {
                        if !streamed {
                            resolver.count_refusal(why);
                        }
                        Outcome::Busy
                    }
                }
            }
        }
    }

    /// Decides whether a query is forwarded. That is known before the message is parsed in full.
    fn forward(&mut self, query: &[u8], client: Client, reply: &mut Vec<u8>) -> Outcome {
        if !client.may_recurse() {
            self.queries += 1;
            self.resolver.counts().drop(DropReason::Recursion);
            fast_path::refuse(query, reply);
            return Outcome::Replied;
        }
        match self.resolver.limits().admit_forward(client, self.now_ns) {
            Ok(share) => Outcome::FullPath(share),
            Err(why) => self.fail(query, why, reply),
        }
    }

    fn fail(&mut self, query: &[u8], why: Refusal, reply: &mut Vec<u8>) -> Outcome {
        self.resolver.count_refusal(why);
        self.queries += 1;
        fast_path::fail(query, reply);
        Outcome::Replied
    }

    fn silent(&self, reason: DropReason) -> Outcome {
        self.resolver.counts().drop(reason);
        Outcome::Silent
    }
}

impl Drop for QueryContext<'_> {
    fn drop(&mut self) {
        let counts = self.resolver.counts();
        counts.queries.fetch_add(self.queries, Ordering::Relaxed);
    }
}
