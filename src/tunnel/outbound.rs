//! From the TUN device to the peers.

use std::sync::Arc;
use std::time::Instant;

use super::device::{Shared, Table};
use super::drops::DropReason;
use super::local_service::LocalService;
use super::noise::{padded, room_for};
use super::packet::Ip;
use super::peer::Peer;
use super::split::{VNET_HEADER, VnetHeader, largest_segment, split};
use super::too_big::{self, ErrorLimit, MAX_ERROR};
use super::tun::{Lanes, is_removal};
use super::udp::{Sender, Sockets};

/// Octets of a packet from the device at most, its header included.
const BUFFER: usize = VNET_HEADER + 65_536;
/// Packets after which, once each lane has had its turn, what was sealed is sent and the lanes that had nothing are looked at
/// again: bounds how long the first one waits.
const BATCH: usize = 16;

pub(super) struct Outbound {
    /// Whose lanes of the device are read, and which sockets are sent from.
    queue: usize,
    buffer: Vec<u8>,
    /// Where a segment is padded, if it is not a multiple of 16 octets.
    scratch: Vec<u8>,
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
        let device = shared.device.load();
        let tun = &device.queues[self.queue];
        let mut lanes = tun.ready();
        let mut packets = 0;
        while !lanes.is_empty() && packets < BATCH {
            for lane in lanes {
                match tun.read(lane, &mut self.buffer) {
                    Ok(Some((header, range))) => {
                        let length = range.len();
                        packets += 1;
                        // A split packet grows by its headers and what sealing adds: at most by half again.
                        if self.sender.is_full(length + length / 2 + 65_536 / 4) {
                            self.sender.flush(sockets, &shared.drops);
                        }
                        self.packet(shared, &table, sockets, header, range, now);
                    }
                    Ok(None) => lanes.remove(lane),
                    Err(error) => {
                        if is_removal(&error) {
                            shared.note_gone(&device);
                        } else {
                            tracing::warn!(%error, "cannot read the tunnel device");
                            std::thread::sleep(std::time::Duration::from_millis(100));
                        }
                        lanes = Lanes::NONE;
                        break;
                    }
                }
            }
        }
        self.sender.flush(sockets, &shared.drops);
        !lanes.is_empty()
    }

    fn packet(
        &mut self,
        shared: &Shared,
        table: &Table,
        sockets: &Sockets,
        header: VnetHeader,
        range: std::ops::Range<usize>,
        now: Instant,
    ) {
        let Self {
            buffer,
            scratch,
            answer,
            sender,
            errors,
            ..
        } = self;
        let packet = &mut buffer[range];
        let Some(ip) = Ip::parse(packet) else {
            shared.drops.add(DropReason::Malformed);
            return;
        };
        let owner = table.allowed.owner(ip.destination);
        let (Some(peer), Some(identity)) = (owner, owner.and_then(|peer| table.identity_of(peer)))
        else {
            // Nobody owns what is answered here, so packets to peers are not looked at twice.
            match &table.here {
                Some(here) if here.has(ip.destination) => {
                    answer_here(shared, here, header, packet, answer);
                }
                _ => shared.drops.add(DropReason::NoOwner),
            }
            return;
        };
        let peer: &Arc<Peer> = peer;
        let mut state = peer.lock();
        let Some(endpoint) = state.endpoint() else {
            shared.drops.add(DropReason::NoEndpoint);
            return;
        };
        let mtu = shared.mtu().min(usize::from(state.path_mtu));
        if mtu < shared.mtu()
            && let Some(fits) = too_big::refused(packet, largest_segment(header, packet), mtu)
        {
            drop(state);
            shared.drops.add(DropReason::TooBig);
            if errors.admit(now) {
                refuse(shared, packet, &ip, fits);
            }
            return;
        }
        state.last_send = Some(now);
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
        shared
            .drops
            .add_many(DropReason::NoAnswer, noise.take_lost());
        drop(state);
        peer.count_tx(sent);
        if split.is_err() {
            shared.drops.add(DropReason::Malformed);
        }
    }
}

/// Answers what `packet` holds: one packet, or several that the kernel merged.
fn answer_here(
    shared: &Shared,
    here: &LocalService,
    header: VnetHeader,
    packet: &mut [u8],
    answer: &mut Vec<u8>,
) {
    let split = split(header, packet, |one| match here.answer(one, answer) {
        Ok(true) => shared.inject(answer),
        Ok(false) => {}
        Err(reason) => shared.drops.add(reason),
    });
    if split.is_err() {
        shared.drops.add(DropReason::Malformed);
    }
}

/// Tells the sender of `packet`, through the device it came from, what fits.
fn refuse(shared: &Shared, packet: &[u8], ip: &Ip, fits: u16) {
    let mut error = [0; MAX_ERROR];
    if let Some(length) = too_big::answer(packet, ip, fits, &mut error) {
        shared.inject(&error[..length]);
    }
}
