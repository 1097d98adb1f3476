//! When this node asks STUN servers for its address. Pure.
//!
//! It queries servers while no peer reports the address. Each round looks up the names of the servers, and sends a request to each of
//! them. A request is repeated a few times until it is answered (RFC 8489 section 6.2.1). An address translator removes a mapping that is
//! not used, so behind one the rounds follow each other closely. Servers that do not answer are queried more and more rarely.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::time::retry_pause;

/// The maximum number of servers that are asked in a round.
pub const MAX_SERVERS: usize = 16;
/// How long this node waits for a peer that reports the address before it queries servers: sessions with peers may be about to begin.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first pause between two requests of a round. Each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The number of requests to one server in a round. The specification proposes 7, of which the last ones would wait for half a minute.
const MAX_REQUESTS: u32 = 5;
/// How long an answer to the last request is waited for: 16 times the first pause.
const LAST_PAUSE: Duration = Duration::from_secs(8);
/// How long after an answer the next round begins, if an address translator is in between: many of them forget a port after 30 s.
const KEEP_INTERVAL: Duration = Duration::from_secs(25);
/// How long after an answer the next round begins, if this node has the address itself. The observation of a server is used for
/// somewhat longer.
const CALM_INTERVAL: Duration = Duration::from_secs(240);
/// How long after a round without an answer the next one begins, at first and at most.
const RETRIES: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(300)];

/// Something that the caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StunAction {
    /// Look up the servers, and pass their addresses to [`StunRounds::handle_servers`].
    LookUp,
    /// Send a new request to this server.
    Ask(SocketAddr),
    /// Send the same request again.
    Repeat(SocketAddr),
    /// Accept no answer of this server any more.
    Close(SocketAddr),
}

/// How often servers were asked, and what they answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StunCounts {
    /// The requests that were sent, repeated ones included.
    pub requests: u64,
    /// The answers with an address that this node does not have.
    pub translated: u64,
    /// The answers with an address of this node.
    pub own: u64,
    /// The servers that answered none of the requests of a round.
    pub silent: u64,
}

/// The rounds of requests. It reads no clock: each call passes the time.
#[derive(Debug, Default)]
pub struct StunRounds {
    is_needed: bool,
    /// When the next round begins.
    next: Option<Instant>,
    open: BTreeMap<SocketAddr, Request>,
    /// Whether a server of this round has answered, and one saw an address that this node does not have.
    is_answered: bool,
    is_translated: bool,
    /// The number of rounds without an answer since the last one with an answer.
    failures: u32,
    counts: StunCounts,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    sent: u32,
    next: Instant,
}

impl StunRounds {
    /// Sets whether no peer reports the address of this node.
    pub fn set_needed(&mut self, is_needed: bool, now: Instant) {
        if is_needed && !self.is_needed {
            self.next = Some(now + PATIENCE);
            self.failures = 0;
        }
        self.is_needed = is_needed;
        self.next = self.next.filter(|_| is_needed);
    }

    /// The network of this node has changed.
    pub fn handle_network_changed(&mut self, now: Instant) {
        if self.is_needed {
            self.next = Some(now + PATIENCE);
            self.failures = 0;
        }
    }

    /// The servers have these addresses. They are asked in this round.
    pub fn handle_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        if !self.is_needed {
            return;
        }
        (self.is_answered, self.is_translated) = (false, false);
        for server in servers.iter().take(MAX_SERVERS) {
            let request = Request { sent: 0, next: now };
            self.open.entry(*server).or_insert(request);
        }
        if self.open.is_empty() {
            self.end_round(now);
        }
    }

    /// A server has answered. `is_translated` says that this node does not have the address that the server saw.
    pub fn handle_answer(&mut self, server: SocketAddr, is_translated: bool, now: Instant) {
        if self.open.remove(&server).is_some() {
            self.is_answered = true;
            self.is_translated |= is_translated;
            if is_translated {
                self.counts.translated += 1;
            } else {
                self.counts.own += 1;
            }
            if self.open.is_empty() {
                self.end_round(now);
            }
        }
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Instant) -> Vec<StunAction> {
        let mut actions = Vec::new();
        if !self.is_needed {
            let open = std::mem::take(&mut self.open).into_keys();
            actions.extend(open.map(StunAction::Close));
            return actions;
        }
        if self.next.is_some_and(|at| at <= now) {
            // If the names cannot be looked up at all, the next round is a retry.
            self.next = Some(now + RETRIES[0]);
            let open = std::mem::take(&mut self.open).into_keys();
            actions.extend(open.map(StunAction::Close));
            actions.push(StunAction::LookUp);
        }
        let had_requests = !self.open.is_empty();
        let counts = &mut self.counts;
        self.open.retain(|server, request| {
            if request.next > now {
                return true;
            }
            if request.sent >= MAX_REQUESTS {
                actions.push(StunAction::Close(*server));
                counts.silent += 1;
                return false;
            }
            actions.push(match request.sent {
                0 => StunAction::Ask(*server),
                _ => StunAction::Repeat(*server),
            });
            counts.requests += 1;
            let pause = FIRST_PAUSE * (1 << request.sent);
            request.sent += 1;
            let is_last = request.sent == MAX_REQUESTS;
            request.next = now + if is_last { LAST_PAUSE } else { pause };
            true
        });
        if had_requests && self.open.is_empty() {
            self.end_round(now);
        }
        actions
    }

    fn end_round(&mut self, now: Instant) {
        let pause = match (self.is_answered, self.is_translated) {
            (true, true) => KEEP_INTERVAL,
            (true, false) => CALM_INTERVAL,
            (false, _) => retry_pause(RETRIES[0], self.failures, RETRIES[1]),
        };
        self.failures = match self.is_answered {
            true => 0,
            false => self.failures.saturating_add(1),
        };
        self.next = Some(now + pause);
    }

    /// How often servers were asked, and what they answered.
    #[must_use]
    pub fn counts(&self) -> StunCounts {
        self.counts
    }

    /// When [`StunRounds::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let requests = self.open.values().map(|request| request.next);
        requests.chain(self.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 7443))
    }

    /// A world in which each lookup finds these servers, and a server answers its request with this number, if any.
    struct World {
        rounds: StunRounds,
        start: Instant,
        now: Instant,
        servers: Vec<SocketAddr>,
        answers: Option<usize>,
        is_translated: bool,
    }

    impl World {
        fn new(servers: u8, answers: Option<usize>) -> Self {
            let now = Instant::now();
            let mut rounds = StunRounds::default();
            rounds.set_needed(true, now);
            Self {
                rounds,
                start: now,
                now,
                servers: (1..=servers).map(server).collect(),
                answers,
                is_translated: true,
            }
        }

        /// Runs for some seconds. Returns what was done, and after how many milliseconds since the beginning.
        fn run(&mut self, seconds: u64) -> Vec<(u64, StunAction)> {
            let end = self.now + Duration::from_secs(seconds);
            let mut log = Vec::new();
            let mut sent: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            while let Some(due) = self.rounds.poll_timeout().filter(|at| *at < end) {
                self.now = self.now.max(due);
                let actions = self.rounds.poll(self.now);
                assert!(!actions.is_empty(), "it is not polled in vain");
                for action in actions {
                    log.push(((self.now - self.start).as_millis() as u64, action));
                    let (StunAction::Ask(to) | StunAction::Repeat(to)) = action else {
                        if action == StunAction::LookUp {
                            self.rounds.handle_servers(&self.servers, self.now);
                            sent.clear();
                        }
                        continue;
                    };
                    let count = sent.entry(to).or_default();
                    *count += 1;
                    if self.answers == Some(*count) {
                        self.rounds.handle_answer(to, self.is_translated, self.now);
                    }
                }
            }
            self.now = end;
            log
        }
    }

    fn times(log: &[(u64, StunAction)], wanted: StunAction) -> Vec<u64> {
        let found = log.iter().filter(|(_, action)| *action == wanted);
        found.map(|(ms, _)| *ms).collect()
    }

    #[test]
    fn a_request_is_repeated_with_doubling_pauses_and_given_up() {
        let mut world = World::new(1, None);
        let log = world.run(20);
        let expected = [
            (1000, StunAction::LookUp),
            (1000, StunAction::Ask(server(1))),
            (1500, StunAction::Repeat(server(1))),
            (2500, StunAction::Repeat(server(1))),
            (4500, StunAction::Repeat(server(1))),
            (8500, StunAction::Repeat(server(1))),
            (16_500, StunAction::Close(server(1))),
        ];
        assert_eq!(log, expected);
    }

    #[test]
    fn requests_and_their_answers_are_counted() {
        let mut silent = World::new(2, None);
        let _ = silent.run(20);
        let expected = StunCounts {
            requests: 10,
            silent: 2,
            ..StunCounts::default()
        };
        assert_eq!(silent.rounds.counts(), expected);
        let mut answering = World::new(2, Some(2));
        let _ = answering.run(5);
        answering.is_translated = false;
        let _ = answering.run(25);
        let expected = StunCounts {
            requests: 8,
            translated: 2,
            own: 2,
            silent: 0,
        };
        assert_eq!(answering.rounds.counts(), expected);
    }

    #[test]
    fn servers_that_do_not_answer_are_asked_more_and_more_rarely() {
        let mut world = World::new(2, None);
        let log = world.run(3600);
        let rounds = times(&log, StunAction::LookUp);
        let pauses: Vec<u64> = rounds.windows(2).map(|of| (of[1] - of[0]) / 1000).collect();
        assert_eq!(pauses[..5], [45, 75, 135, 255, 315]);
        assert!(pauses[5..].iter().all(|pause| *pause == 315));
    }

    #[test]
    fn behind_a_translator_the_port_is_kept_and_without_one_the_servers_have_calm() {
        for (is_translated, pause) in [(true, 25), (false, 240)] {
            let mut world = World::new(2, Some(2));
            world.is_translated = is_translated;
            let log = world.run(1000);
            let rounds = times(&log, StunAction::LookUp);
            let mut pauses = rounds.windows(2).map(|of| (of[1] - of[0]) / 1000);
            assert!(pauses.all(|between| between == pause), "{rounds:?}");
            let asked = times(&log, StunAction::Ask(server(2)));
            assert_eq!(asked, rounds);
        }
    }

    #[test]
    fn nobody_is_asked_while_a_peer_tells_the_address() {
        let mut world = World::new(1, None);
        world.rounds.set_needed(false, world.now);
        assert_eq!(world.run(1000), []);
        world.rounds.set_needed(true, world.now);
        let _ = world.run(2);
        // A peer tells it in the middle of a round.
        world.rounds.set_needed(false, world.now);
        let closed = world.rounds.poll(world.now);
        assert_eq!(closed, [StunAction::Close(server(1))]);
        assert_eq!(world.run(1000), []);
        world.rounds.handle_servers(&[server(1)], world.now);
        assert_eq!(world.rounds.poll_timeout(), None);
    }

    #[test]
    fn another_network_begins_another_round_at_once() {
        let mut world = World::new(1, Some(1));
        let _ = world.run(10);
        world.rounds.handle_network_changed(world.now);
        let log = world.run(2);
        assert_eq!(times(&log, StunAction::LookUp), [11_000]);
    }

    #[test]
    fn a_mesh_without_servers_looks_them_up_rarely_and_the_number_of_servers_is_bounded() {
        let mut world = World::new(0, None);
        assert!(times(&world.run(3600), StunAction::LookUp).len() < 20);
        let mut world = World::new(200, None);
        let log = world.run(2);
        let asked = log
            .iter()
            .filter(|(_, of)| matches!(of, StunAction::Ask(_)));
        assert_eq!(asked.count(), MAX_SERVERS);
    }

    #[test]
    fn an_answer_that_nobody_waits_for_changes_nothing() {
        let mut world = World::new(1, None);
        let _ = world.run(2);
        world.rounds.handle_answer(server(9), true, world.now);
        assert!(!world.rounds.is_answered);
    }
}
