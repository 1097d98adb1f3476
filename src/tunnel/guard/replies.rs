//! The requests that this node sent. An answer of another member passes if it belongs to one of them. Pure.
//!
//! Only packets that this node sends and that the policy allows are noted, so no other member can fill the table. Programs of
//! this node can fill it. The table is divided into sets by a keyed hash, and in a full set the address with the most requests loses
//! its oldest one. So a container that sends to many ports loses its own answers, and not those of its neighbours.

use std::array;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is expected.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// The number of sets, and of requests in each: together 32,768 requests in about 2 MiB.
const SETS: usize = 4096;
const WAYS: usize = 8;

/// A request for which an answer is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Request {
    /// The address that sent it.
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    pub(super) protocol: Answered,
}

/// A protocol with answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answered {
    Udp { client: u16, server: u16 },
    Echo { identifier: u16 },
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    request: Request,
    at: Instant,
}

impl Entry {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= LIFETIME
    }
}

type Set = [Option<Entry>; WAYS];

/// The table. The threads of both directions use it.
#[derive(Debug)]
pub(super) struct Replies {
    sets: Box<[Mutex<Set>]>,
    hasher: RandomState,
}

impl Default for Replies {
    fn default() -> Self {
        let sets = (0..SETS).map(|_| Mutex::new([None; WAYS]));
        Self {
            sets: sets.collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Replies {
    /// Notes a request that leaves. Its answers are expected from now on.
    pub(super) fn note(&self, request: Request, now: Instant) {
        let Some(mut set) = self.set(&request) else {
            return;
        };
        let same = |entry: &Entry| entry.request == request;
        let known = set.iter().position(|e| e.as_ref().is_some_and(same));
        let at = known.unwrap_or_else(|| place(&set, request.client, now));
        if let Some(entry) = set.get_mut(at) {
            *entry = Some(Entry { request, at: now });
        }
    }

    /// Whether an answer to this request is expected.
    pub(super) fn expects(&self, request: &Request, now: Instant) -> bool {
        let expected = |entry: &Entry| entry.request == *request && !entry.is_over(now);
        self.set(request)
            .is_some_and(|set| set.iter().flatten().any(expected))
    }

    fn set(&self, request: &Request) -> Option<MutexGuard<'_, Set>> {
        let at = self.hasher.hash_one(request) as usize % SETS;
        let set = self.sets.get(at)?;
        Some(set.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The number of requests whose answers are expected.
    #[cfg(test)]
    pub(super) fn len(&self, now: Instant) -> usize {
        let count = |set: &Mutex<Set>| {
            let set = set.lock().unwrap_or_else(PoisonError::into_inner);
            set.iter().flatten().filter(|e| !e.is_over(now)).count()
        };
        self.sets.iter().map(count).sum()
    }
}

/// The place for another request of `client`: a free one, or else that of the oldest request of the address that has the most.
fn place(set: &Set, client: IpAddr, now: Instant) -> usize {
    let is_free = |entry: &Option<Entry>| entry.as_ref().is_none_or(|entry| entry.is_over(now));
    if let Some(free) = set.iter().position(is_free) {
        return free;
    }
    let clients: [Option<IpAddr>; WAYS] =
        array::from_fn(|at| set.get(at).copied().flatten().map(|e| e.request.client));
    // The new request counts as well, so a client that has as many as another one loses its own.
    let count = |of: IpAddr| {
        let has = clients.iter().filter(|client| **client == Some(of)).count();
        has + usize::from(of == client)
    };
    let order = |(_, entry): &(usize, &Entry)| {
        let age = now.saturating_duration_since(entry.at);
        (count(entry.request.client), age)
    };
    let entries = set.iter().enumerate();
    entries
        .filter_map(|(at, entry)| Some((at, entry.as_ref()?)))
        .max_by_key(order)
        .map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(client: u8, port: u16) -> Request {
        Request {
            client: [10, 210, 1, client].into(),
            server: [10, 210, 2, 2].into(),
            protocol: Answered::Udp {
                client: port,
                server: 53,
            },
        }
    }

    #[test]
    fn an_answer_is_expected_for_a_minute_after_the_last_request() {
        let (replies, start) = (Replies::default(), Instant::now());
        let asked = request(2, 4000);
        assert!(!replies.expects(&asked, start));
        replies.note(asked, start);
        let almost = start + LIFETIME - Duration::from_millis(1);
        assert!(replies.expects(&asked, almost));
        assert!(!replies.expects(&asked, start + LIFETIME));
        replies.note(asked, almost);
        assert!(replies.expects(&asked, start + LIFETIME));
        assert!(!replies.expects(&request(2, 4001), almost));
        assert_eq!(replies.len(almost), 1);
    }

    #[test]
    fn a_client_that_asks_from_all_ports_loses_its_own_answers_and_not_those_of_others() {
        let (replies, start) = (Replies::default(), Instant::now());
        let quiet: Vec<Request> = (0..50).map(|port| request(3, port)).collect();
        for asked in &quiet {
            replies.note(*asked, start);
        }
        let later = start + Duration::from_secs(1);
        for server in 0..4 {
            for port in 0..=u16::MAX {
                let mut flood = request(2, port);
                flood.server = [10, 210, 9, server].into();
                replies.note(flood, later);
            }
        }
        assert!(replies.len(later) <= SETS * WAYS);
        assert!(quiet.iter().all(|asked| replies.expects(asked, later)));
    }

    #[test]
    fn requests_that_are_over_make_room() {
        let (replies, start) = (Replies::default(), Instant::now());
        for port in 0..=u16::MAX {
            replies.note(request(2, port), start);
        }
        let later = start + LIFETIME;
        assert_eq!(replies.len(later), 0);
        replies.note(request(2, 1), later);
        assert_eq!(replies.len(later), 1);
    }
}
