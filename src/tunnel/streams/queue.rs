//! The datagrams that wait to be written to a stream. Pure.

use crate::protocol::stream::{Frame, first_length};

/// The maximum number of bytes that wait. More would only add delay: the connections inside the tunnel slow down when datagrams are
/// lost, and not when they are late.
pub(super) const MAX_WAITING: usize = 64 * 1024;

/// Frames, the oldest first. A new one displaces the oldest ones if there is no room.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    bytes: Vec<u8>,
    /// Where the first frame begins. What is before it was taken or displaced.
    start: usize,
}

impl SendQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    fn waiting(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Adds a frame. Returns how many frames are lost for it: those that it displaces, or itself if it fits into no queue.
    pub(super) fn push(&mut self, frame: Frame<'_>) -> usize {
        let Some(header) = frame.header() else {
            return 1;
        };
        let size = header.len() + frame.datagram.len();
        if size > MAX_WAITING {
            return 1;
        }
        let mut lost = 0;
        while self.waiting() + size > MAX_WAITING {
            self.start += self.first();
            lost += 1;
        }
        if self.start > MAX_WAITING {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(frame.datagram);
        lost
    }

    /// The size of the first frame.
    fn first(&self) -> usize {
        first_length(self.bytes.get(self.start..).unwrap_or_default())
    }

    /// Takes the oldest frames: as many as have `most` bytes, but at least one, if there is one.
    pub(super) fn take(&mut self, most: usize) -> Vec<u8> {
        let begin = self.start;
        while !self.is_empty() {
            let first = self.first();
            if self.start > begin && self.start - begin + first > most {
                break;
            }
            self.start += first;
        }
        if self.is_empty() {
            let mut all = std::mem::take(&mut self.bytes);
            self.start = 0;
            all.drain(..begin);
            return all;
        }
        self.bytes
            .get(begin..self.start)
            .unwrap_or_default()
            .to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::stream::{FRAME_HEADER, Frames};

    fn frame(datagram: &[u8]) -> Frame<'_> {
        Frame {
            label: Some(Ipv4Addr::new(10, 210, 1, 1)),
            datagram,
        }
    }

    fn lengths(message: &[u8]) -> Vec<usize> {
        let frames = Frames::parse(message).expect("whole frames");
        frames.map(|frame| frame.datagram.len()).collect()
    }

    #[test]
    fn frames_are_taken_in_their_order_and_in_messages_of_a_size() {
        let mut queue = SendQueue::default();
        for length in [100, 200, 300, 4000, 50] {
            assert_eq!(queue.push(frame(&vec![1; length])), 0);
        }
        assert_eq!(lengths(&queue.take(620)), [100, 200, 300]);
        assert_eq!(lengths(&queue.take(1)), [4000], "at least one");
        assert_eq!(queue.push(frame(&[2; 60])), 0);
        assert_eq!(lengths(&queue.take(1000)), [50, 60]);
        assert!(queue.is_empty() && queue.take(1000).is_empty());
    }

    #[test]
    fn the_oldest_frames_make_room_for_new_ones() {
        let mut queue = SendQueue::default();
        let fits = MAX_WAITING / (1000 + FRAME_HEADER);
        let lost: usize = (0..fits + 10).map(|_| queue.push(frame(&[1; 1000]))).sum();
        assert_eq!(lost, 10);
        let large = vec![2; MAX_WAITING - FRAME_HEADER];
        assert_eq!(queue.push(frame(&large)), fits);
        assert_eq!(lengths(&queue.take(1)), [large.len()]);
        assert_eq!(queue.push(frame(&[])), 1, "no frame");
        assert_eq!(queue.push(frame(&vec![1; MAX_WAITING])), 1, "too large");
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn what_waits_is_bounded_and_the_newest_is_never_lost(steps in vec((1usize..20_000, any::<bool>()), 1..200)) {
            let mut queue = SendQueue::default();
            let mut expected: Vec<usize> = Vec::new();
            for (length, takes) in steps {
                let lost = queue.push(frame(&vec![1; length]));
                expected.push(length);
                expected.drain(..lost);
                prop_assert!(queue.waiting() <= MAX_WAITING);
                prop_assert!(queue.bytes.len() <= 3 * MAX_WAITING);
                if takes {
                    let taken = lengths(&queue.take(16_384));
                    let rest = expected.split_off(taken.len());
                    prop_assert_eq!(&taken, &expected);
                    expected = rest;
                }
            }
            let waiting: usize = expected.iter().map(|length| length + FRAME_HEADER).sum();
            prop_assert_eq!(queue.waiting(), waiting);
        }
    }
}
