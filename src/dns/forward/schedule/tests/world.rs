//! Simulated upstreams on a virtual clock.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};

use super::super::super::answer::Forwarded;
use super::super::super::exchange::{Form, Received};
use super::super::super::memory::Memory;
use super::super::super::server::Server;
use super::super::{MAX_SENDS, Outcome, SEARCH_TIMEOUT, Schedule, Send, Transport, is_negative};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Good,
    /// Nothing arrives.
    Silent,
    /// Sending fails at once, as without a route.
    Unreachable,
    /// An error arrives after a round trip, as ICMP does.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edns {
    Handled,
    Dropped,
    FormErr,
}

/// How a simulated upstream behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behaviour {
    pub(super) reach: Reach,
    pub(super) stream: Reach,
    pub(super) delay: u64,
    pub(super) edns: Edns,
    pub(super) loses_case: bool,
    pub(super) case_sensitive: bool,
    pub(super) drops_mixed: bool,
    pub(super) cuts: bool,
    pub(super) fails: bool,
    /// Datagrams of each question that are lost.
    pub(super) lost: usize,
}

pub(super) const GOOD: Behaviour = Behaviour {
    reach: Reach::Good,
    stream: Reach::Good,
    delay: 20,
    edns: Edns::Handled,
    loses_case: false,
    case_sensitive: false,
    drops_mixed: false,
    cuts: false,
    fails: false,
    lost: 0,
};

pub(super) const SILENT: Behaviour = Behaviour {
    reach: Reach::Silent,
    ..GOOD
};

impl Behaviour {
    /// Whether the upstream answers within the time limit of a query, independently of the others.
    pub(super) fn is_usable(&self) -> bool {
        let stream = !self.cuts || (self.stream == Reach::Good && self.delay <= 700);
        self.reach == Reach::Good && !self.fails && stream && self.lost == 0 && self.delay <= 1_500
    }

    /// What comes of a question, and when.
    pub(super) fn reply(
        &self,
        send: Send,
        exists: bool,
    ) -> Option<(Duration, Result<Received, ()>)> {
        let delay = Duration::from_millis(self.delay);
        let stream = send.transport == Transport::Tcp;
        match if stream && self.reach == Reach::Good {
            self.stream
        } else {
            self.reach
        } {
            Reach::Good => {}
            Reach::Silent => return None,
            Reach::Unreachable => return Some((Duration::ZERO, Err(()))),
            Reach::Refused => return Some((delay, Err(()))),
        }
        let Form { mixed, edns } = send.form;
        let mixed = mixed && !stream;
        if mixed && self.drops_mixed || edns && !stream && self.edns == Edns::Dropped {
            return None;
        }
        let received = match () {
            () if mixed && self.loses_case => Received::LostCase,
            () if edns && self.edns == Edns::FormErr => Received::NoEdns,
            () if self.fails => Received::Failed,
            () if self.cuts && !stream => Received::Cut,
            () => Received::Answer(answer(exists && !(mixed && self.case_sensitive))),
        };
        Some((delay, Ok(received)))
    }
}

pub(super) fn answer(exists: bool) -> Forwarded {
    let name = || Name::from_ascii("example.org.").expect("a literal");
    if exists {
        let data = RData::A(A::new(192, 0, 2, 1));
        return Forwarded {
            answers: vec![Record::from_rdata(name(), 60, data)],
            ..Forwarded::default()
        };
    }
    let soa = RData::SOA(SOA::new(name(), name(), 1, 1, 1, 1, 20));
    Forwarded {
        code: ResponseCode::NXDomain,
        authority: vec![Record::from_rdata(name(), 900, soa)],
        ..Forwarded::default()
    }
}

/// Upstreams, what is known about them, and a clock.
pub(super) struct World {
    pub(super) servers: Vec<Server>,
    pub(super) behaviours: Vec<Behaviour>,
    pub(super) memory: Memory,
    pub(super) now: Instant,
}

/// What came of one question.
#[derive(Debug)]
pub(super) struct Question {
    /// The place of the upstream that answered, and whether it gave an address.
    pub(super) found: Option<(usize, bool)>,
    pub(super) after: Duration,
    pub(super) sends: Vec<(Duration, Send)>,
}

impl Question {
    pub(super) fn places(&self) -> Vec<usize> {
        self.sends.iter().map(|(_, send)| send.place).collect()
    }

    pub(super) fn forms(&self) -> Vec<Form> {
        self.sends.iter().map(|(_, send)| send.form).collect()
    }
}

impl World {
    pub(super) fn new(behaviours: &[Behaviour]) -> Self {
        let address = |n: usize| SocketAddr::from(([192, 0, 2, 53], 1 + n as u16));
        Self {
            servers: (0..behaviours.len()).map(|n| address(n).into()).collect(),
            behaviours: behaviours.to_vec(),
            memory: Memory::default(),
            now: Instant::now(),
        }
    }

    pub(super) fn wait(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }

    /// Asks for a name that exists or not, and goes on until nothing is left to learn.
    pub(super) fn ask(&mut self, exists: bool) -> Question {
        let start = self.now;
        let mut schedule = Schedule::new(self.memory.plan(&self.servers, start), start);
        let mut lost: Vec<usize> = self.behaviours.iter().map(|b| b.lost).collect();
        let mut arriving: Vec<(Instant, usize, Result<Received, ()>)> = Vec::new();
        let (mut sends, mut found, mut turns) = (Vec::new(), None, 0);
        loop {
            while let Some(send) = schedule.poll(self.now) {
                sends.push((self.now - start, send));
                let lost = &mut lost[send.place];
                if *lost > 0 && send.transport == Transport::Udp {
                    *lost -= 1;
                } else if let Some((delay, reply)) = self.behaviours[send.place].reply(send, exists)
                {
                    arriving.push((self.now + delay, send.attempt, reply));
                }
            }
            for (place, lesson) in schedule.lessons() {
                self.memory
                    .learn(self.servers[place].address, lesson, self.now);
            }
            if let Some(outcome) = schedule.outcome()
                && found.is_none()
            {
                let answered = match outcome {
                    Outcome::Answer { place, answer } => Some((*place, !is_negative(answer))),
                    Outcome::Failed => None,
                };
                found = Some((answered, self.now - start));
            }
            if schedule.is_over() {
                break;
            }
            let next = arriving.iter().enumerate().min_by_key(|(_, (at, ..))| *at);
            let next = next.map(|(index, (at, ..))| (index, *at));
            let timeout = schedule.poll_timeout().expect("it waits for something");
            match next.filter(|(_, at)| *at <= timeout) {
                Some((index, at)) => {
                    self.now = self.now.max(at);
                    let (_, attempt, reply) = arriving.remove(index);
                    match reply {
                        Ok(received) => schedule.handle_reply(attempt, received, self.now),
                        Err(()) => schedule.handle_error(attempt, self.now),
                    }
                }
                None => self.now = self.now.max(timeout),
            }
            turns += 1;
            assert!(turns < 1_000, "it makes no progress: {schedule:#?}");
        }
        let (found, after) = found.expect("it is over");
        assert!(after <= SEARCH_TIMEOUT);
        assert!(sends.len() <= MAX_SENDS * self.servers.len());
        Question {
            found,
            after,
            sends,
        }
    }
}
