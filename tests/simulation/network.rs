//! The network between machines: streams that keep the order of their messages, with delays, and that break.
//!
//! A stream behaves as TCP does. Its messages arrive in order or not at all. While the path between its two ends is cut, nothing
//! arrives; if the path is whole again before an end gives up, everything arrives late.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meshd::protocol::api::ApiError;
use meshd::protocol::control::{FromCoordinator, FromNode};
use meshd::protocol::gossip::PeerMessage;
use meshd::protocol::join::{JoinRequest, JoinResponse};

use super::random::Random;

/// Virtual time since the simulation began.
pub(crate) type At = Duration;

/// A program on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Node(usize),
    Coordinator(usize),
}

/// The number of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

/// What two programs use a stream for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A node's control stream.
    Control,
    /// One request of a node that joins, or that asks for its lease again.
    Join,
    /// One conversation of two nodes.
    Gossip,
}

#[derive(Debug, Clone)]
pub(crate) enum Message {
    ToCoordinator(FromNode),
    ToNode(FromCoordinator),
    Peer(PeerMessage),
    Join(JoinRequest),
    Joined(Box<Result<JoinResponse, ApiError>>),
    /// A ping of either side.
    Ping,
    /// The sender has closed the stream. Nothing follows.
    End,
}

/// One of the two ends of a stream: 0 is the end that dialled.
pub(crate) type Side = usize;

#[derive(Debug)]
struct Lane {
    queue: VecDeque<(At, Message)>,
    last: At,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) purpose: Purpose,
    pub(crate) ends: [Place; 2],
    /// The messages that are on their way to each side.
    lanes: [Lane; 2],
    /// Whether nothing that is sent arrives any more.
    is_broken: bool,
    /// Which sides still use the stream.
    pub(crate) open: [bool; 2],
}

/// A message that is to be delivered, for the event queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: At,
    pub(crate) stream: StreamId,
    pub(crate) to: Side,
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    streams: BTreeMap<StreamId, Stream>,
    last: u64,
    cuts: BTreeSet<(Place, Place)>,
    /// The longest delay of one message.
    pub(crate) slowest: Duration,
}

/// The shortest delay of one message.
const FASTEST: Duration = Duration::from_millis(1);
/// TCP sends again after about this long.
const RETRANSMISSION: Duration = Duration::from_millis(900);

impl Network {
    pub(crate) fn new(slowest: Duration) -> Self {
        Self {
            slowest,
            ..Self::default()
        }
    }

    pub(crate) fn stream(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(&id)
    }

    /// Whether no packet passes between the two.
    pub(crate) fn is_cut(&self, one: Place, other: Place) -> bool {
        self.cuts.contains(&ordered(one, other))
    }

    pub(crate) fn cut(&mut self, one: Place, other: Place) {
        self.cuts.insert(ordered(one, other));
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
    }

    /// The streams that have an end at `place`.
    pub(crate) fn streams_of(&self, place: Place) -> Vec<(StreamId, Side)> {
        let ends = self.streams.iter().flat_map(|(id, stream)| {
            let ends = stream.ends.iter().enumerate();
            let ends = ends.filter(|(side, end)| **end == place && stream.open[*side]);
            ends.map(|(side, _)| (*id, side)).collect::<Vec<_>>()
        });
        ends.collect()
    }

    pub(crate) fn all(&self) -> Vec<StreamId> {
        self.streams.keys().copied().collect()
    }

    pub(crate) fn open(&mut self, from: Place, to: Place, purpose: Purpose) -> StreamId {
        self.last += 1;
        let lane = || Lane {
            queue: VecDeque::new(),
            last: At::ZERO,
        };
        let stream = Stream {
            purpose,
            ends: [from, to],
            lanes: [lane(), lane()],
            is_broken: false,
            open: [true, true],
        };
        self.streams.insert(StreamId(self.last), stream);
        StreamId(self.last)
    }

    /// Sends a message from one side to the other. Returns when it is due.
    pub(crate) fn send(
        &mut self,
        id: StreamId,
        from: Side,
        message: Message,
        now: At,
        random: &mut Random,
    ) -> Option<Due> {
        let delay = FASTEST + self.slowest.mul_f64(random.below(1000) as f64 / 1000.0);
        let stream = self.streams.get_mut(&id)?;
        if !stream.open[from] || stream.is_broken {
            return None;
        }
        let to = 1 - from;
        let lane = &mut stream.lanes[to];
        lane.last = lane.last.max(now + delay);
        let at = lane.last;
        lane.queue.push_back((at, message));
        Some(Due { at, stream: id, to })
    }

    /// The next message to this side, if it has arrived; or when to look again, if the path is cut.
    pub(crate) fn arrive(
        &mut self,
        id: StreamId,
        to: Side,
        now: At,
    ) -> Result<Option<Message>, Due> {
        let Some(stream) = self.streams.get(&id) else {
            return Ok(None);
        };
        if self.is_cut(stream.ends[0], stream.ends[1]) {
            let at = now + RETRANSMISSION;
            return Err(Due { at, stream: id, to });
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(None);
        };
        let is_open = stream.open[to];
        let lane = &mut stream.lanes[to];
        if lane.queue.front().is_none_or(|(at, _)| *at > now) {
            return Ok(None);
        }
        let message = lane.queue.pop_front().map(|(_, message)| message);
        Ok(message.filter(|_| is_open))
    }

    /// Loses what is on its way to `to`, but for a part at the front, which still arrives.
    pub(crate) fn lose(&mut self, id: StreamId, to: Side, kept: usize) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.lanes[to].queue.truncate(kept);
        }
    }

    /// Nothing that is sent on the stream from now on arrives.
    pub(crate) fn break_off(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.is_broken = true;
        }
    }

    pub(crate) fn on_the_way(&self, id: StreamId, to: Side) -> usize {
        let stream = self.streams.get(&id);
        stream.map_or(0, |stream| stream.lanes[to].queue.len())
    }

    /// One side does not use the stream any more. The stream is forgotten once both have closed it.
    pub(crate) fn close(&mut self, id: StreamId, side: Side) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.open[side] = false;
            stream.lanes[side].queue.clear();
            if stream.open == [false, false] {
                self.streams.remove(&id);
            }
        }
    }
}

fn ordered(one: Place, other: Place) -> (Place, Place) {
    (one.min(other), one.max(other))
}
