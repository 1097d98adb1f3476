//! The queues of the TUN device: which queue a flow belongs to, and sets of queues.

use super::packet::{TCP, flow};

/// The maximum number of queues that one pair of threads reads in turn. Packets of a flow that fills its queue are lost there,
/// while the other queues go on.
pub(super) const MAX_QUEUES: usize = 16;

/// The maximum number of queues that the kernel gives a device (MAX_TAP_QUEUES).
const MAX_DEVICE_QUEUES: usize = 256;

/// The number of queues of each pair of threads, for so many pairs.
pub(super) fn queues_of_a_pair(pairs: usize) -> usize {
    (MAX_DEVICE_QUEUES / pairs).clamp(1, MAX_QUEUES)
}

/// One queue of a pair of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queue(usize);

impl Queue {
    pub(super) const FIRST: Self = Self(0);

    /// The queue, of so many, in which the answers to a packet arrive. The last quarter of the queues is for TCP, the only
    /// protocol that increases its rate until packets are lost.
    #[inline]
    pub(super) fn of(packet: &[u8], queues: usize) -> Self {
        let tcp = queues / 4;
        let others = queues - tcp;
        let flow = flow(packet);
        let hash = usize::from(flow.hash);
        Self(match flow.protocol {
            TCP if tcp > 0 => others + hash % tcp,
            _ => hash % others,
        })
    }

    #[inline]
    pub(super) fn number(self) -> usize {
        self.0
    }
}

/// A set of queues, with a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueSet(u16);

impl QueueSet {
    pub(super) const NONE: Self = Self(0);

    /// The queues with these numbers.
    #[inline]
    pub(super) fn of(numbers: impl Iterator<Item = u64>) -> Self {
        Self(numbers.fold(0, |set, number| set | 1 << number))
    }

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    pub(super) fn remove(&mut self, queue: Queue) {
        self.0 &= !(1 << queue.0);
    }
}

impl Iterator for QueueSet {
    type Item = Queue;

    #[inline]
    fn next(&mut self) -> Option<Queue> {
        let queue = Queue(self.0.checked_ilog2()? as usize);
        self.remove(queue);
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::UDP;
    use super::*;

    /// An IPv4 packet with ports.
    fn packet(protocol: u8, last: u8, port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend([10, 210, 1, 1, 10, 210, 2, last]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 53, 0, 8, 0, 0]);
        packet
    }

    #[test]
    fn tcp_has_queues_of_its_own() {
        for port in 0..1000 {
            assert!(Queue::of(&packet(TCP, 1, port), 16).0 >= 12);
            assert!(Queue::of(&packet(UDP, 1, port), 16).0 < 12);
            assert_eq!(Queue::of(&packet(TCP, 1, port), 1), Queue::FIRST);
        }
    }

    #[test]
    fn flows_are_spread_evenly_by_their_ports_and_by_their_addresses() {
        let by_port = (0..1200).map(|n| packet(UDP, 1, 32_768 + n)).collect();
        let by_address = (0..240).map(|n| packet(UDP, n, 53)).collect();
        let all: [Vec<Vec<u8>>; 2] = [by_port, by_address];
        for packets in all {
            let mut counts = [0; 12];
            for packet in &packets {
                counts[Queue::of(packet, 16).0] += 1;
            }
            let fair = packets.len() / counts.len();
            let even = fair / 2..fair * 2;
            assert!(
                counts.iter().all(|count| even.contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_device_has_queues_for_as_many_pairs_as_can_be_configured() {
        for pairs in 1..=32 {
            let each = queues_of_a_pair(pairs);
            assert!(
                each > 3 && pairs * each <= MAX_DEVICE_QUEUES,
                "{pairs} pairs: {each}"
            );
        }
    }

    #[test]
    fn a_set_gives_each_of_its_queues_once() {
        let mut queues = QueueSet(0b1000_0000_0000_0101);
        assert_eq!(queues.map(|queue| queue.0).collect::<Vec<_>>(), [15, 2, 0]);
        queues.remove(Queue(2));
        assert_eq!(queues, QueueSet(0b1000_0000_0000_0001));
        assert!(!queues.is_empty() && QueueSet(0).is_empty());
    }
}
