//! The open requests to STUN servers. Pure.
//!
//! An answer is believed if it comes from the server that was asked and has the random number of the request. It is believed once:
//! the request is over with it. All other STUN messages are dropped as datagrams that are not WireGuard's.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::protocol::stun::{Transaction, is_stun, parse_answer};

/// The maximum number of requests that are open at a time. The part that chooses the servers has fewer.
const MAX_REQUESTS: usize = 32;

/// What a server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StunAnswer {
    /// The server.
    pub server: SocketAddr,
    /// The address from which it saw the request come.
    pub seen: SocketAddr,
}

/// The open requests, and the answers that nobody has taken.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Whether a request is open: without one, no message is looked at.
    is_open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<(SocketAddr, Transaction)>,
    answers: Vec<StunAnswer>,
}

impl Requests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a request in place of another one to the same server. Returns false if there are too many.
    pub(super) fn open(&self, server: SocketAddr, transaction: Transaction) -> bool {
        let mut state = self.state();
        state.open.retain(|(open, _)| *open != server);
        let has_room = state.open.len() < MAX_REQUESTS;
        if has_room {
            state.open.push((server, transaction));
            self.is_open.store(true, Ordering::Relaxed);
        }
        has_room
    }

    /// The number of the open request to a server.
    pub(super) fn transaction(&self, server: &SocketAddr) -> Option<Transaction> {
        let state = self.state();
        let request = state.open.iter().find(|(open, _)| open == server);
        request.map(|(_, transaction)| *transaction)
    }

    pub(super) fn close(&self, server: &SocketAddr) {
        let mut state = self.state();
        state.open.retain(|(open, _)| open != server);
        let is_open = !state.open.is_empty();
        self.is_open.store(is_open, Ordering::Relaxed);
    }

    /// The answers since the last call.
    pub(super) fn take_answers(&self) -> Vec<StunAnswer> {
        std::mem::take(&mut self.state().answers)
    }

    /// Takes a datagram that is no WireGuard message. Returns whether it answers an open request.
    pub(super) fn handle(&self, datagram: &[u8], from: SocketAddr) -> bool {
        if !self.is_open.load(Ordering::Relaxed) || !is_stun(datagram) {
            return false;
        }
        // Two threads may have received two answers, so the request is found and closed under one lock.
        let mut state = self.state();
        let request = state.open.iter().position(|(open, _)| *open == from);
        let answer = request.and_then(|at| {
            let (_, transaction) = state.open.get(at)?;
            Some((at, parse_answer(datagram, transaction)?))
        });
        let Some((at, seen)) = answer else {
            return false;
        };
        state.open.swap_remove(at);
        let is_open = !state.open.is_empty();
        self.is_open.store(is_open, Ordering::Relaxed);
        state.answers.retain(|answer| answer.server != from);
        let has_room = state.answers.len() < MAX_REQUESTS;
        if has_room {
            state.answers.push(StunAnswer { server: from, seen });
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::stun::{REQUEST, request, write_answer};

    const FIRST: Transaction = *b"transaction1";
    const SECOND: Transaction = *b"transaction2";

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a literal")
    }

    fn answer(transaction: &Transaction, seen: &str) -> Vec<u8> {
        let mut out = [0; REQUEST];
        let length = write_answer(transaction, at(seen), REQUEST, &mut out);
        out[..length.expect("there is room")].to_vec()
    }

    #[test]
    fn an_answer_is_believed_once_and_only_of_the_server_that_was_asked() {
        let requests = Requests::default();
        let (server, liar) = (at("192.0.2.1:7443"), at("192.0.2.66:7443"));
        let seen = answer(&FIRST, "203.0.113.7:4000");
        assert!(!requests.handle(&seen, server), "nobody was asked");
        assert!(requests.open(server, FIRST));
        assert!(!requests.handle(&seen, liar), "another server");
        assert!(
            !requests.handle(&seen, at("192.0.2.1:7444")),
            "another port"
        );
        let guessed = answer(&SECOND, "198.51.100.66:1");
        assert!(!requests.handle(&guessed, server), "another request");
        assert!(!requests.handle(&request(&FIRST), server), "no answer");
        assert_eq!(requests.take_answers(), []);
        assert!(requests.handle(&seen, server));
        let lie = answer(&FIRST, "198.51.100.66:1");
        assert!(!requests.handle(&lie, server), "a second answer");
        let expected = StunAnswer {
            server,
            seen: at("203.0.113.7:4000"),
        };
        assert_eq!(requests.take_answers(), [expected]);
    }

    #[test]
    fn a_request_that_is_over_or_replaced_gets_no_answer() {
        let requests = Requests::default();
        let server = at("192.0.2.1:7443");
        requests.open(server, FIRST);
        requests.open(server, SECOND);
        assert!(!requests.handle(&answer(&FIRST, "203.0.113.7:1"), server));
        requests.close(&server);
        assert!(!requests.handle(&answer(&SECOND, "203.0.113.7:1"), server));
        assert!(!requests.is_open.load(Ordering::Relaxed));
    }

    #[test]
    fn the_numbers_of_requests_and_of_answers_are_bounded() {
        let requests = Requests::default();
        let server = |n: usize| SocketAddr::from(([192, 0, 2, 1], 1000 + n as u16));
        let opened = (0..100).filter(|n| requests.open(server(*n), FIRST));
        assert_eq!(opened.count(), MAX_REQUESTS);
        let seen = answer(&FIRST, "203.0.113.7:1");
        for n in 0..MAX_REQUESTS {
            assert!(requests.handle(&seen, server(n)));
        }
        assert!(requests.open(server(99), FIRST));
        assert!(!requests.handle(&seen, server(99)), "nobody takes them");
        assert_eq!(requests.take_answers().len(), MAX_REQUESTS);
    }
}
