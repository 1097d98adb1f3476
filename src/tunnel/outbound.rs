//! From the TUN device to the peers.

use std::sync::Arc;
use std::time::Instant;

use super::device::{Shared, Table};
use super::drops::Drop;
use super::here::Here;
use super::noise::{padded, room_for};
use super::packet::Ip;
use super::peer::Peer;
use super::split::{VNET_HEADER, VnetHeader, largest_segment, split};
use super::too_big::{self, ErrorLimit, MAX_ERROR};
use super::udp::{Sender, Sockets};

/// Octets of a packet from the device at most, its header included.
const BUFFER: usize = VNET_HEADER + 65_536;
/// Packets read before what was sealed is sent: bounds how long the first one waits.
const BATCH: usize = 16;
/// Packets answered before the device is read again. To read one takes a small part of the time that its answer takes.
const ANSWERS: usize = 16;

pub(super) struct Outbound {
    /// Which of the device's queues is read, and which sockets are sent from.
    queue: usize,
    buffer: Vec<u8>,
    /// Where a segment is padded, if it is not a multiple of 16 octets.
    scratch: Vec<u8>,
    /// What is to be answered here. The device has room for few packets, and who asks may ask much at once.
    asked: Asked,
    /// What is answered here, before it is written back.
    answer: Vec<u8>,
    sender: Sender,
    errors: ErrorLimit,
}

impl Outbound {
    pub(super) fn new(queue: usize) -> Self {
        Self {
            queue,
            buffer: vec![0; BUFFER],
            scratch: vec![0; 65_536 + 16],
            asked: Asked::default(),
            answer: Vec::new(),
            sender: Sender::new(),
            errors: ErrorLimit::new(Instant::now()),
        }
    }

    /// Reads, seals and sends one batch; gives whether more may be waiting.
    pub(super) fn batch(&mut self, shared: &Shared) -> bool {
        let table = shared.table.load();
        let group = shared.sockets.load();
        let sockets = &group[self.queue];
        let now = Instant::now();
        let mut more = true;
        let mut passed = 0;
        while passed < BATCH && !self.asked.is_full() {
            match shared.tun[self.queue].read(&mut self.buffer) {
                Ok(Some((header, range))) => {
                    let length = range.len();
                    // A split packet grows by its headers and what sealing adds: at most by half again.
                    if self.sender.is_full(length + length / 2 + 65_536 / 4) {
                        self.sender.flush(sockets, &shared.drops);
                    }
                    let Some(ip) = self.buffer.get(range.clone()).and_then(Ip::parse) else {
                        passed += 1;
                        shared.drops.add(Drop::Malformed);
                        continue;
                    };
                    let here = table.here.as_ref();
                    if here.is_some_and(|here| here.has(ip.destination)) {
                        self.put_aside(shared, header, range);
                    } else {
                        passed += 1;
                        self.packet(shared, &table, sockets, header, (range, ip), now);
                    }
                }
                Ok(None) => {
                    more = false;
                    break;
                }
                Err(error) => {
                    // The device was taken away: nothing can be read until the process restarts.
                    tracing::warn!(%error, "cannot read the tunnel device");
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    more = false;
                    break;
                }
            }
        }
        self.sender.flush(sockets, &shared.drops);
        for _ in 0..ANSWERS {
            let Some(question) = self.asked.next() else {
                return more;
            };
            match &table.here {
                Some(here) => answer_one(shared, here, question, &mut self.answer),
                None => shared.drops.add(Drop::NoOwner),
            }
        }
        more || !self.asked.is_empty()
    }

    /// Keeps what is to be answered here: one packet, or several that the kernel merged.
    fn put_aside(&mut self, shared: &Shared, header: VnetHeader, range: std::ops::Range<usize>) {
        let split = split(header, &mut self.buffer[range], |one| {
            if !self.asked.put(one) {
                shared.drops.add(Drop::AnswersWaiting);
            }
        });
        if split.is_err() {
            shared.drops.add(Drop::Malformed);
        }
    }

    fn packet(
        &mut self,
        shared: &Shared,
        table: &Table,
        sockets: &Sockets,
        header: VnetHeader,
        (range, ip): (std::ops::Range<usize>, Ip),
        now: Instant,
    ) {
        let Self {
            buffer,
            scratch,
            sender,
            errors,
            ..
        } = self;
        let packet = &mut buffer[range];
        let owner = table.allowed.owner(ip.destination);
        let (Some(peer), Some(identity)) = (owner, owner.and_then(|peer| table.identity_of(peer)))
        else {
            shared.drops.add(Drop::NoOwner);
            return;
        };
        let peer: &Arc<Peer> = peer;
        let mut state = peer.lock();
        let Some(endpoint) = state.endpoint else {
            shared.drops.add(Drop::NoEndpoint);
            return;
        };
        let mtu = shared.mtu().min(usize::from(state.path_mtu));
        if mtu < shared.mtu()
            && let Some(fits) = too_big::refused(packet, largest_segment(header, packet), mtu)
        {
            drop(state);
            shared.drops.add(Drop::TooBig);
            if errors.admit(now) {
                refuse(shared, packet, &ip, fits);
            }
            return;
        }
        let noise = state.noise(identity, peer.index, now);
        let mut sent = 0;
        let split = split(header, packet, |segment| {
            let length = padded(segment.len(), mtu);
            if sender.is_full(room_for(length)) {
                sender.flush(sockets, &shared.drops);
            }
            let sealed = if length == segment.len() {
                noise.seal(segment, sender.space(), now)
            } else {
                scratch[..segment.len()].copy_from_slice(segment);
                scratch[segment.len()..length].fill(0);
                noise.seal(&scratch[..length], sender.space(), now)
            };
            if let Some((length, _)) = sealed {
                sent += length;
                sender.commit(length, endpoint);
            }
        });
        shared.drops.add_many(Drop::NoAnswer, noise.take_lost());
        drop(state);
        peer.count_tx(sent);
        if split.is_err() {
            shared.drops.add(Drop::Malformed);
        }
    }
}

/// Answers a packet, if there is an answer at once.
fn answer_one(shared: &Shared, here: &Here, packet: &[u8], answer: &mut Vec<u8>) {
    match here.answer(packet, answer) {
        Ok(true) => shared.inject(answer),
        Ok(false) => {}
        Err(reason) => shared.drops.add(reason),
    }
}

/// Packets put aside at most.
const QUESTIONS: usize = 512;

/// Packets put aside, in a ring of buffers that grows to what was needed once.
#[derive(Default)]
struct Asked {
    places: Vec<Vec<u8>>,
    first: usize,
    count: usize,
}

impl Asked {
    fn is_full(&self) -> bool {
        self.count == QUESTIONS
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a packet in; gives whether there was room.
    fn put(&mut self, packet: &[u8]) -> bool {
        if self.is_full() {
            return false;
        }
        if self.count == self.places.len() {
            // The ring grows at its seam.
            self.places.rotate_left(self.first);
            self.first = 0;
            self.places.push(Vec::new());
        }
        let at = (self.first + self.count) % self.places.len();
        let Some(place) = self.places.get_mut(at) else {
            return false;
        };
        place.clear();
        place.extend_from_slice(packet);
        self.count += 1;
        true
    }

    /// Takes out the packet that came first.
    fn next(&mut self) -> Option<&[u8]> {
        if self.count == 0 {
            return None;
        }
        let place = self.places.get(self.first)?;
        self.first = (self.first + 1) % self.places.len();
        self.count -= 1;
        Some(place)
    }
}

/// Tells the sender of `packet`, through the device it came from, what fits.
fn refuse(shared: &Shared, packet: &[u8], ip: &Ip, fits: u16) {
    let mut error = [0; MAX_ERROR];
    if let Some(length) = too_big::answer(packet, ip, fits, &mut error) {
        shared.inject(&error[..length]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_put_aside_comes_out_in_order(steps in prop::collection::vec((any::<bool>(), 0..40usize), 1..60)) {
            let (mut asked, mut model) = (Asked::default(), VecDeque::new());
            let mut number = 0u32;
            for (puts, count) in steps {
                for _ in 0..count {
                    if puts {
                        number += 1;
                        prop_assert!(asked.put(&number.to_be_bytes()));
                        model.push_back(number);
                    } else {
                        let wanted = model.pop_front().map(u32::to_be_bytes);
                        prop_assert_eq!(asked.next(), wanted.as_ref().map(|octets| &octets[..]));
                    }
                }
                prop_assert_eq!(asked.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn no_more_is_put_aside_than_there_is_room_for() {
        let mut asked = Asked::default();
        let taken = (0..=QUESTIONS).filter(|_| asked.put(b"one"));
        assert_eq!(taken.count(), QUESTIONS);
        let out = std::iter::from_fn(|| asked.next().map(<[u8]>::to_vec)).count();
        assert_eq!(out, QUESTIONS);
    }
}
