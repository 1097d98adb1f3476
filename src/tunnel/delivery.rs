//! Opened packets on their way to the TUN device.

use std::io::IoSlice;

use super::coalesce::{Coalescer, MAX_SEGMENTS};
use super::drops::{DropCounters, DropReason};
use super::tun::Tun;

/// The maximum number of bytes of opened packets that wait to be written.
const ARENA: usize = 768 * 1024;
/// The maximum number of packets that wait to be written.
const MAX_PACKETS: usize = 512;

/// Collects opened packets in one buffer, and writes those of a flow that follow each other as one.
pub(super) struct Delivery {
    arena: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
}

impl Delivery {
    /// For a device that accepts merged UDP packets or not.
    pub(super) fn new(merges_udp: bool) -> Self {
        Self {
            arena: vec![0; ARENA],
            used: 0,
            coalescer: Coalescer::new(merges_udp),
        }
    }

    /// Whether `bytes` more would not fit.
    #[inline]
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        self.used + bytes > ARENA || self.coalescer.len() >= MAX_PACKETS
    }

    /// The space into which the next packet is opened.
    #[inline]
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Adds the first `length` bytes of the space as a packet. A device without offloads gets it at once.
    #[inline]
    pub(super) fn push(&mut self, length: usize, tun: &Tun, drops: &DropCounters) {
        let (start, end) = (self.used, self.used + length);
        if tun.merges() {
            self.coalescer.push(&self.arena, start, end);
        } else {
            let parts = [IoSlice::new(&[]), IoSlice::new(&self.arena[start..end])];
            if tun.write(&parts).is_err() {
                drops.add(DropReason::WriteFailed);
            }
        }
        self.used = end;
    }

    /// Writes all packets to the device.
    pub(super) fn flush(&mut self, tun: &Tun, drops: &DropCounters) {
        if self.coalescer.is_empty() {
            self.used = 0;
            return;
        }
        // The coalescer writes the headers of a run into the arena before it passes the parts of that run.
        let arena = self.arena.as_mut_slice();
        self.coalescer.flush(arena, |arena, header, parts| {
            let header = header.to_bytes();
            let empty: &[u8] = &[];
            let mut slices = [IoSlice::new(empty); MAX_SEGMENTS + 1];
            slices[0] = IoSlice::new(&header);
            let mut count = 1;
            // The first part is a whole packet, each further part the payload of another one.
            for (start, end) in parts.take(MAX_SEGMENTS) {
                slices[count] = IoSlice::new(&arena[start..end]);
                count += 1;
            }
            if tun.write(&slices[..count]).is_err() {
                drops.add_many(DropReason::WriteFailed, count - 1);
            }
        });
        self.used = 0;
    }
}
