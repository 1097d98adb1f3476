//! Streams over TCP, by which datagrams pass where UDP does not.
//!
//! Another part of the program owns the connections, and carries messages of frames between each of them and its end here
//! (`stream_end`). A data thread gives a datagram to the queue of a stream where it would hand others to the kernel (`udp`), and takes
//! what arrived in a batch of its own, so paths over UDP cost no more than without streams.

mod queue;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use self::queue::SendQueue;
use super::endpoint::{Carrier, Via};
use super::relay::HEADER;
use crate::model::NodeAddress;
use crate::protocol::stream::{FULL_MESSAGE, Frame, Frames, NoFrames};

/// The maximum number of bytes of a stream that wait for a data thread, besides one message. While there are more, nothing is read from
/// the stream.
const MAX_ARRIVED: usize = 128 * 1024;

/// What the node at the other end of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OtherEnd {
    /// It relays for this node: the labels of its frames name their sources.
    Relay,
    /// This node relays for it: the labels of its frames name their destinations.
    Member,
}

/// The open streams of a tunnel.
pub(super) struct Streams {
    open: ArcSwap<HashMap<(NodeAddress, OtherEnd), Arc<Stream>>>,
    /// The streams from which frames wait, for each pair of data threads.
    arrived: Vec<Arrived>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Arrived {
    /// Whether there is one. It is read for each batch of datagrams.
    any: AtomicBool,
    streams: Mutex<Vec<Arc<Stream>>>,
}

/// A stream.
pub(super) struct Stream {
    pub(super) node: NodeAddress,
    pub(super) other: OtherEnd,
    waiting: Mutex<SendQueue>,
    /// There is something to write, or the stream was replaced.
    written: Notify,
    is_replaced: AtomicBool,
    arrived: Mutex<Vec<u8>>,
    /// There is room for what arrives.
    room: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    fn new(node: NodeAddress, other: OtherEnd) -> Arc<Self> {
        Arc::new(Self {
            node,
            other,
            waiting: Mutex::default(),
            written: Notify::new(),
            is_replaced: AtomicBool::new(false),
            arrived: Mutex::default(),
            room: Notify::new(),
        })
    }

    /// Waits for datagrams, and returns a message with them. None if another stream has taken the place of this one.
    pub(super) async fn outgoing(&self) -> Option<Vec<u8>> {
        loop {
            if self.is_replaced.load(Ordering::Acquire) {
                return None;
            }
            let message = lock(&self.waiting).take(FULL_MESSAGE);
            if !message.is_empty() {
                return Some(message);
            }
            self.written.notified().await;
        }
    }

    /// Adds a message that arrived, once there is room for it. Returns whether no other one waits.
    pub(super) async fn incoming(&self, message: &[u8]) -> Result<bool, NoFrames> {
        Frames::parse(message)?;
        loop {
            {
                let mut arrived = lock(&self.arrived);
                if arrived.len() < MAX_ARRIVED {
                    let is_first = arrived.is_empty();
                    arrived.extend_from_slice(message);
                    return Ok(is_first);
                }
            }
            self.room.notified().await;
        }
    }

    /// Takes what arrived.
    pub(super) fn take(&self) -> Vec<u8> {
        let taken = std::mem::take(&mut *lock(&self.arrived));
        self.room.notify_one();
        taken
    }

    /// The sender of a frame that arrived, if the frame is for this node.
    pub(super) fn sender_of(&self, frame: &Frame<'_>) -> Option<Via> {
        let source = match (self.other, frame.label) {
            (_, None) => self.node.0,
            (OtherEnd::Relay, Some(source)) => source,
            (OtherEnd::Member, Some(_)) => return None,
        };
        Some(Via::streamed(self.node, source))
    }
}

impl Streams {
    /// For so many pairs of data threads.
    pub(super) fn new(pairs: usize) -> Arc<Self> {
        Arc::new(Self {
            open: ArcSwap::default(),
            arrived: (0..pairs).map(|_| Arrived::default()).collect(),
        })
    }

    /// The streams from which frames wait for this pair of data threads.
    #[inline]
    pub(super) fn take_arrived(&self, pair: usize) -> Vec<Arc<Stream>> {
        match self.arrived.get(pair) {
            Some(arrived) if arrived.any.load(Ordering::Acquire) => {
                arrived.any.store(false, Ordering::Release);
                std::mem::take(&mut *lock(&arrived.streams))
            }
            _ => Vec::new(),
        }
    }

    /// Gives datagrams to the stream that `via` names. Each of them follows [`HEADER`] bytes that are for relays over UDP. Returns how
    /// many datagrams are lost because the stream is slower, or not open.
    pub(super) fn send<'a>(&self, via: &Via, frames: impl Iterator<Item = &'a [u8]>) -> usize {
        let open = self.open.load();
        let label = via.header.label;
        let is_own = label == via.relay.0;
        let relay = || open.get(&(via.relay, OtherEnd::Relay));
        let member = || open.get(&(via.relay, OtherEnd::Member));
        let stream = match via.carrier {
            Carrier::Udp => None,
            Carrier::Stream if is_own => relay().or_else(member),
            Carrier::Stream => relay(),
            Carrier::Member => member(),
        };
        let Some(stream) = stream else {
            return frames.count();
        };
        let label = (!is_own).then_some(label);
        let mut waiting = lock(&stream.waiting);
        let mut lost = 0;
        for frame in frames {
            let datagram = frame.get(HEADER..).unwrap_or_default();
            lost += waiting.push(Frame { label, datagram });
        }
        drop(waiting);
        stream.written.notify_one();
        lost
    }

    /// Opens a stream, which takes the place of another one to the same node.
    pub(super) fn open(&self, node: NodeAddress, other: OtherEnd) -> Arc<Stream> {
        let stream = Stream::new(node, other);
        let before = self.open.rcu(|open| {
            let mut open = HashMap::clone(open);
            open.insert((node, other), Arc::clone(&stream));
            open
        });
        if let Some(before) = before.get(&(node, other)) {
            before.is_replaced.store(true, Ordering::Release);
            before.written.notify_one();
        }
        stream
    }

    /// Closes a stream. One that has taken its place stays.
    pub(super) fn close(&self, stream: &Arc<Stream>) {
        let key = (stream.node, stream.other);
        self.open.rcu(|open| {
            let mut open = HashMap::clone(open);
            if open.get(&key).is_some_and(|of| Arc::ptr_eq(of, stream)) {
                open.remove(&key);
            }
            open
        });
    }

    /// Something has arrived by a stream. Returns the pair of data threads that takes it, and is to be woken.
    pub(super) fn announce(&self, stream: &Arc<Stream>) -> usize {
        let hash = stream.node.0.to_bits().wrapping_mul(0x9e37_79b1) >> 16;
        let pair = hash as usize % self.arrived.len().max(1);
        if let Some(arrived) = self.arrived.get(pair) {
            lock(&arrived.streams).push(Arc::clone(stream));
            arrived.any.store(true, Ordering::Release);
        }
        pair
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::tunnel::relay::Header;

    fn node(n: u8) -> NodeAddress {
        NodeAddress(Ipv4Addr::new(10, 210, n, 1))
    }

    fn message(label: Option<Ipv4Addr>, datagram: &[u8]) -> Vec<u8> {
        let header = Frame { label, datagram }.header().expect("it fits");
        [&header[..], datagram].concat()
    }

    /// A datagram as the sender of the data plane has it.
    const SENT: [u8; HEADER + 3] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];

    #[tokio::test]
    async fn a_datagram_goes_by_the_stream_to_its_relay_or_of_the_member_that_it_is_for() {
        let streams = Streams::new(1);
        let relay = streams.open(node(1), OtherEnd::Relay);
        let member = streams.open(node(2), OtherEnd::Member);
        let send = |via: Via| streams.send(&via, [&SENT[..]].into_iter());
        assert_eq!(send(Via::streamed(node(1), node(1).0)), 0);
        assert_eq!(relay.outgoing().await, Some(message(None, &[1, 2, 3])));
        assert_eq!(send(Via::streamed(node(1), node(9).0)), 0);
        let expected = message(Some(node(9).0), &[1, 2, 3]);
        assert_eq!(relay.outgoing().await, Some(expected));
        assert_eq!(send(Via::streamed(node(2), node(2).0)), 0);
        assert_eq!(member.outgoing().await, Some(message(None, &[1, 2, 3])));
        // A member does not relay for this node.
        assert_eq!(send(Via::streamed(node(2), node(9).0)), 1);
        assert_eq!(send(Via::streamed(node(3), node(3).0)), 1);
        let forwarded = Via {
            relay: node(2),
            header: Header {
                label: node(9).0,
                tag: None,
            },
            carrier: Carrier::Member,
        };
        assert_eq!(send(forwarded), 0);
        let expected = message(Some(node(9).0), &[1, 2, 3]);
        assert_eq!(member.outgoing().await, Some(expected));
    }

    #[tokio::test]
    async fn a_stream_that_is_replaced_ends_and_the_end_of_it_leaves_the_other_one_open() {
        let streams = Streams::new(1);
        let first = streams.open(node(1), OtherEnd::Relay);
        let second = streams.open(node(1), OtherEnd::Relay);
        assert_eq!(first.outgoing().await, None);
        streams.close(&first);
        let via = Via::streamed(node(1), node(1).0);
        assert_eq!(streams.send(&via, [&SENT[..]].into_iter()), 0);
        assert!(second.outgoing().await.is_some());
        streams.close(&second);
        assert_eq!(streams.send(&via, [&SENT[..]].into_iter()), 1);
    }

    #[tokio::test]
    async fn what_arrives_is_bounded_until_a_data_thread_takes_it() {
        let streams = Streams::new(1);
        let stream = streams.open(node(1), OtherEnd::Member);
        assert!(stream.incoming(&[0; 7]).await.is_err(), "no frames");
        let large = message(None, &[7; 60_000]);
        assert_eq!(stream.incoming(&large).await, Ok(true));
        assert_eq!(streams.announce(&stream), 0);
        for _ in 0..2 {
            assert_eq!(stream.incoming(&large).await, Ok(false));
        }
        let waits = async {
            tokio::task::yield_now().await;
            let taken = streams.take_arrived(0);
            assert_eq!(taken.len(), 1);
            assert_eq!(taken[0].take().len(), 3 * large.len());
        };
        let (added, ()) = tokio::join!(stream.incoming(&large), waits);
        assert_eq!(added, Ok(true));
        assert!(streams.take_arrived(0).is_empty());
    }

    #[test]
    fn only_a_relay_names_the_source_of_a_frame() {
        let streams = Streams::new(1);
        let frame = |label: Option<NodeAddress>| Frame {
            label: label.map(|label| label.0),
            datagram: &[1],
        };
        let relay = streams.open(node(1), OtherEnd::Relay);
        let of = |n| Some(Via::streamed(node(1), node(n).0));
        assert_eq!(relay.sender_of(&frame(None)), of(1));
        assert_eq!(relay.sender_of(&frame(Some(node(9)))), of(9));
        let member = streams.open(node(1), OtherEnd::Member);
        assert_eq!(member.sender_of(&frame(None)), of(1));
        assert_eq!(member.sender_of(&frame(Some(node(9)))), None);
    }
}
