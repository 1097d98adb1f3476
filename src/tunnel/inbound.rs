//! From the peers to the TUN device.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::coalesce::{Coalescer, MAX_SEGMENTS};
use super::device::{Shared, Table};
use super::drops::DropReason;
use super::endpoint::Endpoint;
use super::limiter::Admission;
use super::noise::{HANDSHAKE, Message, Opened, StaticKeys, room_for};
use super::packet::Ip;
use super::peer::{Peer, PeerState};
use super::probe::{self, Probe};
use super::tun::Tun;
use super::udp::{Receiver, Sender, Sockets};

/// Octets of opened packets waiting to be written at most.
const ARENA: usize = 768 * 1024;
/// Packets waiting to be written at most.
const WAITING: usize = 512;
/// How often a lost session is looked into at most, for the node.
const REVIVE: Duration = Duration::from_millis(50);
/// And for one peer.
const REVIVE_PEER: Duration = Duration::from_secs(1);
/// Admitted handshakes that wait for their turn at most.
const HANDSHAKES: usize = 512;
/// Handshakes handled after a batch at most. Each costs what a hundred packets cost: more at once, and the packets that
/// come meanwhile are lost.
const HANDSHAKES_AT_ONCE: usize = 4;

/// What holds for one batch.
struct Batch<'a> {
    shared: &'a Shared,
    tun: &'a Tun,
    table: &'a Table,
    sockets: &'a Sockets,
    now: Instant,
}

impl Batch<'_> {
    /// An authentic datagram of a peer came from there.
    fn heard(&self, state: &mut PeerState, from: Endpoint) {
        if state.heard(from, self.now) {
            self.shared.recheck.wake();
        }
    }
}

pub(super) struct Inbound {
    /// Whose lanes of the device are written, and which sockets are read.
    queue: usize,
    receiver: Option<Receiver>,
    arena: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
    sender: Sender,
    /// The peer of the last datagram: the next one is most often the same's.
    recent: Option<Arc<Peer>>,
    /// Handshakes that were admitted: packets come first.
    handshakes: VecDeque<Handshake>,
}

/// A handshake message that was admitted.
struct Handshake {
    /// Which of this node's keys it is for.
    identity: Arc<StaticKeys>,
    message: Message,
    octets: [u8; HANDSHAKE],
    length: usize,
    from: Endpoint,
}

impl Inbound {
    pub(super) fn new(queue: usize, shared: &Shared) -> Self {
        Self {
            queue,
            receiver: Some(Receiver::new()),
            arena: vec![0; ARENA],
            used: 0,
            coalescer: Coalescer::new(shared.device.load().queues[queue].merges_udp()),
            sender: Sender::new(),
            recent: None,
            handshakes: VecDeque::new(),
        }
    }

    /// Receives, opens and writes one batch from `fd`; gives whether more may be waiting, there or here.
    pub(super) fn batch(&mut self, shared: &Shared, sockets: &Sockets, fd: RawFd) -> bool {
        let Some(mut receiver) = self.receiver.take() else {
            return false;
        };
        let table = shared.table.load();
        let device = shared.device.load();
        // Who has left the table is not to be found by what was found before.
        self.recent = None;
        let batch = Batch {
            shared,
            tun: &device.queues[self.queue],
            table: &table,
            sockets,
            now: Instant::now(),
        };
        let more =
            match receiver.receive(fd, |datagram, from| self.datagram(&batch, datagram, from)) {
                Ok(more) => more,
                Err(error) => {
                    // An ICMP error about an earlier datagram, most often: the next call goes on.
                    tracing::debug!(%error, "cannot receive");
                    false
                }
            };
        self.receiver = Some(receiver);
        self.flush(&batch);
        self.answer_handshakes(&batch);
        more || !self.handshakes.is_empty()
    }

    fn datagram(&mut self, batch: &Batch<'_>, datagram: &[u8], from: Endpoint) {
        let drops = &batch.shared.drops;
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(reason) => return drops.add(reason),
        };
        if batch.table.identity.is_none() {
            return drops.add(DropReason::NoSession);
        }
        if self.used + room_for(datagram.len()) > ARENA || self.coalescer.len() >= WAITING {
            self.flush(batch);
        }
        if self.sender.is_full(room_for(datagram.len())) {
            self.sender.flush(batch.sockets, drops);
        }
        match message {
            Message::Data(index) => self.data(batch, index, datagram, from),
            Message::Initiation | Message::Response(_) => {
                self.admit(batch, message, datagram, from)
            }
            Message::Cookie(_) => self.handshake(batch, None, message, datagram, from),
        }
    }

    /// Decides about a handshake message, at the cost of a hash or three: no peer is looked at.
    fn admit(&mut self, batch: &Batch<'_>, message: Message, datagram: &[u8], from: Endpoint) {
        let drops = &batch.shared.drops;
        let Some(identity) = batch.table.meant(datagram) else {
            return drops.add(DropReason::NotAuthentic);
        };
        let admission = batch
            .shared
            .limiter
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .admit(identity.reply_key(), datagram, from.address, batch.now);
        match admission {
            Admission::Pass if self.handshakes.len() < HANDSHAKES => {
                let mut octets = [0; HANDSHAKE];
                let Some(place) = octets.get_mut(..datagram.len()) else {
                    return drops.add(DropReason::NotWireGuard);
                };
                place.copy_from_slice(datagram);
                self.handshakes.push_back(Handshake {
                    identity: Arc::clone(identity),
                    message,
                    octets,
                    length: datagram.len(),
                    from,
                });
            }
            Admission::Pass | Admission::Refuse => drops.add(DropReason::HandshakeLimit),
            Admission::Prove(reply) => {
                self.sender.space()[..reply.len()].copy_from_slice(&reply);
                self.sender.commit(reply.len(), from);
                drops.add(DropReason::Challenged);
            }
        }
    }

    /// Handles some of the handshakes that wait.
    fn answer_handshakes(&mut self, batch: &Batch<'_>) {
        for _ in 0..HANDSHAKES_AT_ONCE {
            let Some(next) = self.handshakes.pop_front() else {
                break;
            };
            if self.sender.is_full(room_for(HANDSHAKE)) {
                self.sender.flush(batch.sockets, &batch.shared.drops);
            }
            self.handshake(
                batch,
                Some(&next.identity),
                next.message,
                &next.octets[..next.length],
                next.from,
            );
        }
        self.sender.flush(batch.sockets, &batch.shared.drops);
    }

    fn handshake(
        &mut self,
        batch: &Batch<'_>,
        meant: Option<&Arc<StaticKeys>>,
        message: Message,
        datagram: &[u8],
        from: Endpoint,
    ) {
        let drops = &batch.shared.drops;
        let peer = match message {
            Message::Initiation => {
                let Some((meant, key)) =
                    meant.and_then(|meant| Some((meant, meant.initiator(datagram)?)))
                else {
                    return drops.add(DropReason::NotAuthentic);
                };
                batch.table.initiator(meant, &key)
            }
            Message::Response(index) | Message::Cookie(index) | Message::Data(index) => {
                batch.table.by_index.get(&index)
            }
        };
        let Some(peer) = peer else {
            return drops.add(DropReason::UnknownPeer);
        };
        let Some(identity) = batch.table.identity_of(peer) else {
            return drops.add(DropReason::NoSession);
        };
        let mut state = peer.lock();
        // Only an initiation begins anything: to anything else there was a question of ours before.
        if message != Message::Initiation && state.noise.is_none() {
            return drops.add(DropReason::NoSession);
        }
        let opened = state.noise(identity, peer.index, batch.now).open(
            message,
            datagram,
            self.sender.space(),
        );
        match opened {
            Opened::Reply(length) => {
                // The answer goes to where the question came from; the endpoint moves once the peer has shown,
                // with what it sends next, that it is there.
                peer.count_rx(datagram.len());
                peer.count_tx(length);
                self.sender.commit(length, from);
                peer.probes().handle_handshake();
                if state.endpoint().is_none() {
                    state.set_endpoint(Some(from));
                }
            }
            Opened::Established(length) => {
                peer.count_rx(datagram.len());
                peer.count_tx(length);
                batch.heard(&mut state, from);
                state.last_handshake = Some(std::time::SystemTime::now());
                peer.probes().handle_handshake();
                self.sender.commit(length, from);
                self.send_waiting(batch, peer, &mut state, from);
            }
            Opened::Refused(reason) => drops.add(reason),
            Opened::Packet(_) | Opened::Keepalive | Opened::Nothing => {}
        }
    }

    /// Sends what waited for a session.
    fn send_waiting(
        &mut self,
        batch: &Batch<'_>,
        peer: &Peer,
        state: &mut PeerState,
        endpoint: Endpoint,
    ) {
        let Some(noise) = &mut state.noise else {
            return;
        };
        while noise.waiting() > 0 {
            if self.sender.is_full(room_for(65_536)) {
                self.sender.flush(batch.sockets, &batch.shared.drops);
            }
            let Some(length) = noise.next_waiting(self.sender.space()) else {
                break;
            };
            peer.count_tx(length);
            self.sender.commit(length, endpoint);
        }
    }

    fn data(&mut self, batch: &Batch<'_>, index: u32, datagram: &[u8], from: Endpoint) {
        let drops = &batch.shared.drops;
        if self.recent.as_ref().is_none_or(|peer| peer.index != index) {
            self.recent = batch.table.by_index.get(&index).cloned();
        }
        let Some(peer) = self.recent.clone() else {
            drops.add(DropReason::NoSession);
            return self.revive(batch, from);
        };
        let mut state = peer.lock();
        let opened = match &mut state.noise {
            Some(noise) => noise.open(Message::Data(index), datagram, &mut self.arena[self.used..]),
            None => Opened::Refused(DropReason::NoSession),
        };
        match opened {
            Opened::Packet(length) => {
                batch.heard(&mut state, from);
                peer.count_rx(datagram.len());
                // The peer began the session that ours was to be.
                self.send_waiting(batch, &peer, &mut state, from);
                let packet = &mut self.arena[self.used..self.used + length];
                let Some(ip) = Ip::parse(packet) else {
                    return drops.add(DropReason::Malformed);
                };
                if batch
                    .table
                    .allowed
                    .owner(ip.source)
                    .is_none_or(|owner| !Arc::ptr_eq(owner, &peer) && owner.member != peer.member)
                {
                    return drops.add(DropReason::ForeignSource);
                }
                if !batch.table.takes_in(ip.destination) {
                    return drops.add(DropReason::ForeignDestination);
                }
                match probe::parse(packet, &ip) {
                    Some(Probe::Request) if batch.shared.local.load().contains(&ip.destination) => {
                        let length = probe::answer(packet, &ip);
                        batch.shared.send_own(
                            batch.table,
                            &peer,
                            &mut state,
                            &packet[..length],
                            &mut self.sender,
                            batch.now,
                        );
                    }
                    Some(Probe::Reply(nonce))
                        if batch.shared.local.load().contains(&ip.destination) =>
                    {
                        drop(state);
                        peer.probes().handle_answer(nonce, batch.now);
                    }
                    _ => {
                        drop(state);
                        if batch.tun.merges() {
                            self.coalescer
                                .push(&self.arena, self.used, self.used + length);
                        } else {
                            self.write_plain(batch, length);
                        }
                        self.used += length;
                    }
                }
            }
            Opened::Keepalive => {
                batch.heard(&mut state, from);
                peer.count_rx(datagram.len());
                self.send_waiting(batch, &peer, &mut state, from);
            }
            Opened::Refused(DropReason::NoSession) => {
                drop(state);
                drops.add(DropReason::NoSession);
                self.revive(batch, from);
            }
            Opened::Refused(reason) => drops.add(reason),
            Opened::Reply(_) | Opened::Established(_) | Opened::Nothing => {}
        }
    }

    /// Data came under a session we do not have: this end was restarted. If the source is a peer's endpoint, a new
    /// handshake tells it so at once, rather than after its 15 s. Anybody can forge such a datagram, so this is
    /// rare by construction. The handshake leaves from the address that the datagram came to, if no other is known.
    fn revive(&mut self, batch: &Batch<'_>, from: Endpoint) {
        let since = batch
            .now
            .saturating_duration_since(batch.shared.started)
            .as_millis() as u64;
        let last = batch.shared.revived.load(Ordering::Relaxed);
        if since < last + REVIVE.as_millis() as u64 {
            return;
        }
        batch.shared.revived.store(since, Ordering::Relaxed);
        for peer in batch.table.by_key.values() {
            let mut state = peer.lock();
            let endpoint = state.endpoint();
            if let Some(endpoint) = endpoint.filter(|known| known.address == from.address) {
                if state
                    .revived
                    .is_none_or(|at| batch.now.saturating_duration_since(at) >= REVIVE_PEER)
                {
                    state.revived = Some(batch.now);
                    if endpoint.source.is_none() {
                        state.set_endpoint(Some(from));
                    }
                    batch.shared.initiate(
                        batch.table,
                        peer,
                        &mut state,
                        &mut self.sender,
                        batch.now,
                    );
                }
                return;
            }
        }
    }

    fn flush(&mut self, batch: &Batch<'_>) {
        self.sender.flush(batch.sockets, &batch.shared.drops);
        if self.coalescer.is_empty() {
            self.used = 0;
            return;
        }
        // The arena is written to by the merge and read by the write: each run's headers are final before its
        // parts are taken.
        let arena = self.arena.as_mut_slice();
        let shared = batch.shared;
        self.coalescer.flush(arena, |arena, header, parts| {
            let header = header.to_bytes();
            let empty: &[u8] = &[];
            let mut slices = [IoSlice::new(empty); MAX_SEGMENTS + 1];
            slices[0] = IoSlice::new(&header);
            let mut count = 1;
            // The first part is a whole packet, each further one what another adds.
            for (start, end) in parts.take(MAX_SEGMENTS) {
                slices[count] = IoSlice::new(&arena[start..end]);
                count += 1;
            }
            if batch.tun.write(&slices[..count]).is_err() {
                shared.drops.add_many(DropReason::WriteFailed, count - 1);
            }
        });
        self.used = 0;
    }

    fn write_plain(&self, batch: &Batch<'_>, length: usize) {
        let packet = &self.arena[self.used..self.used + length];
        if batch
            .tun
            .write(&[IoSlice::new(&[]), IoSlice::new(packet)])
            .is_err()
        {
            batch.shared.drops.add(DropReason::WriteFailed);
        }
    }
}
