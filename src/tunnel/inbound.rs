//! The `in` thread: from the peers to the TUN device.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::coalesce::{Coalescer, MAX_SEGMENTS};
use super::device::{Shared, Table};
use super::drops::Drop;
use super::noise::{Identity, Message, Opened, room_for};
use super::packet::Ip;
use super::peer::Peer;
use super::probe::{self, Probe};
use super::udp::{Receiver, Sender, Sockets};

/// Octets of opened packets waiting to be written at most.
const ARENA: usize = 768 * 1024;
/// Packets waiting to be written at most.
const WAITING: usize = 512;
/// How often a lost session is looked into at most, for the node.
const REVIVE: Duration = Duration::from_millis(50);
/// And for one peer.
const REVIVE_PEER: Duration = Duration::from_secs(1);

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared) {
    let mut receiver = Receiver::new();
    let mut inbound = Inbound {
        arena: vec![0; ARENA],
        used: 0,
        coalescer: Coalescer::new(shared.tun.merges_udp()),
        sender: Sender::new(),
        recent: None,
    };
    while !shared.stopping() {
        let sockets = shared.sockets.load_full();
        let [v4, v6] = sockets.descriptors();
        if !wait(&[v4, v6, shared.wake_in()]) {
            continue;
        }
        drain(shared.wake_in());
        for fd in [v4, v6] {
            let mut more = fd >= 0;
            while more && !shared.stopping() {
                let table = shared.table.load();
                let batch = Batch {
                    shared,
                    table: &table,
                    sockets: &sockets,
                    now: Instant::now(),
                };
                more = match receiver.receive(fd, |datagram, source| {
                    inbound.datagram(&batch, datagram, source)
                }) {
                    Ok(more) => more,
                    Err(error) => {
                        // An ICMP error about an earlier datagram, most often: the next call goes on.
                        tracing::debug!(%error, "cannot receive");
                        false
                    }
                };
                inbound.flush(&batch);
            }
        }
    }
}

/// What holds for one batch.
struct Batch<'a> {
    shared: &'a Shared,
    table: &'a Table,
    sockets: &'a Sockets,
    now: Instant,
}

struct Inbound {
    arena: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
    sender: Sender,
    /// The peer of the last datagram: the next one is most often the same's.
    recent: Option<Arc<Peer>>,
}

impl Inbound {
    fn datagram(&mut self, batch: &Batch<'_>, datagram: &[u8], source: SocketAddr) {
        let drops = &batch.shared.drops;
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(reason) => return drops.add(reason),
        };
        let Some(identity) = &batch.table.identity else {
            return drops.add(Drop::NoSession);
        };
        if self.used + room_for(datagram.len()) > ARENA || self.coalescer.len() >= WAITING {
            self.flush(batch);
        }
        if self.sender.is_full(room_for(datagram.len())) {
            self.sender.flush(batch.sockets, drops);
        }
        match message {
            Message::Data(index) => self.data(batch, index, datagram, source),
            Message::Initiation | Message::Response(_) => {
                let admitted = identity.is_for_us(datagram) && {
                    let mut limiter = batch
                        .shared
                        .limiter
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    limiter.admit(source.ip(), batch.now)
                };
                if admitted {
                    self.handshake(batch, identity, message, datagram, source)
                } else {
                    drops.add(Drop::HandshakeLimit)
                }
            }
            Message::Cookie(_) => self.handshake(batch, identity, message, datagram, source),
        }
    }

    fn handshake(
        &mut self,
        batch: &Batch<'_>,
        identity: &Identity,
        message: Message,
        datagram: &[u8],
        source: SocketAddr,
    ) {
        let peer = match message {
            Message::Initiation => identity
                .initiator(datagram)
                .and_then(|key| batch.table.by_key.get(&key)),
            Message::Response(index) | Message::Cookie(index) | Message::Data(index) => {
                batch.table.by_index.get(&index)
            }
        };
        let Some(peer) = peer else {
            return batch.shared.drops.add(Drop::UnknownPeer);
        };
        let mut state = peer.lock();
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
                self.sender.commit(length, source);
                if state.endpoint.is_none() {
                    state.endpoint = Some(source);
                }
            }
            Opened::Established(length) => {
                peer.count_rx(datagram.len());
                peer.count_tx(length);
                state.heard(source, batch.now);
                state.last_handshake = Some(std::time::SystemTime::now());
                self.sender.commit(length, source);
                loop {
                    if self.sender.is_full(room_for(65_536)) {
                        self.sender.flush(batch.sockets, &batch.shared.drops);
                    }
                    let Some(length) = state
                        .noise(identity, peer.index, batch.now)
                        .next_waiting(self.sender.space())
                    else {
                        break;
                    };
                    peer.count_tx(length);
                    self.sender.commit(length, source);
                }
            }
            Opened::Refused(reason) => batch.shared.drops.add(reason),
            Opened::Packet(_) | Opened::Keepalive | Opened::Nothing => {}
        }
    }

    fn data(&mut self, batch: &Batch<'_>, index: u32, datagram: &[u8], source: SocketAddr) {
        let drops = &batch.shared.drops;
        if self.recent.as_ref().is_none_or(|peer| peer.index != index) {
            self.recent = batch.table.by_index.get(&index).cloned();
        }
        let Some(peer) = self.recent.clone() else {
            drops.add(Drop::NoSession);
            return self.revive(batch, source);
        };
        let mut state = peer.lock();
        let opened = match &mut state.noise {
            Some(noise) => noise.open(Message::Data(index), datagram, &mut self.arena[self.used..]),
            None => Opened::Refused(Drop::NoSession),
        };
        match opened {
            Opened::Packet(length) => {
                state.heard(source, batch.now);
                peer.count_rx(datagram.len());
                let packet = &mut self.arena[self.used..self.used + length];
                let Some(ip) = Ip::parse(packet) else {
                    return drops.add(Drop::Malformed);
                };
                if batch
                    .table
                    .allowed
                    .owner(ip.source)
                    .is_none_or(|owner| !Arc::ptr_eq(owner, &peer))
                {
                    return drops.add(Drop::ForeignSource);
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
                    Some(Probe::Reply {
                        size: Some(size), ..
                    }) if batch.shared.local.load().contains(&ip.destination) => {
                        state.answered_size = state.answered_size.max(Some(size));
                    }
                    Some(Probe::Reply { sent, size: None })
                        if batch.shared.local.load().contains(&ip.destination) =>
                    {
                        let elapsed = batch.now.saturating_duration_since(batch.shared.started);
                        state.rtt = elapsed.checked_sub(sent).or(state.rtt);
                        state.answered = Some(batch.now);
                    }
                    _ => {
                        drop(state);
                        if batch.shared.tun.merges() {
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
                state.heard(source, batch.now);
                peer.count_rx(datagram.len());
            }
            Opened::Refused(Drop::NoSession) => {
                drop(state);
                drops.add(Drop::NoSession);
                self.revive(batch, source);
            }
            Opened::Refused(reason) => drops.add(reason),
            Opened::Reply(_) | Opened::Established(_) | Opened::Nothing => {}
        }
    }

    /// Data came under a session we do not have: this end was restarted. If the source is a peer's endpoint, a new
    /// handshake tells it so at once, rather than after its 15 s. Anybody can forge such a datagram, so this is
    /// rare by construction.
    fn revive(&mut self, batch: &Batch<'_>, source: SocketAddr) {
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
            if state.endpoint == Some(source) {
                if state
                    .revived
                    .is_none_or(|at| batch.now.saturating_duration_since(at) >= REVIVE_PEER)
                {
                    state.revived = Some(batch.now);
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
            let header = header.octets();
            let empty: &[u8] = &[];
            let mut slices = [IoSlice::new(empty); MAX_SEGMENTS + 1];
            slices[0] = IoSlice::new(&header);
            let mut count = 1;
            for (start, end) in parts.take(MAX_SEGMENTS) {
                slices[count] = IoSlice::new(&arena[start..end]);
                count += 1;
            }
            if shared.tun.write(&slices[..count]).is_err() {
                shared.drops.add(Drop::WriteFailed);
            }
        });
        self.used = 0;
    }

    fn write_plain(&self, batch: &Batch<'_>, length: usize) {
        let packet = &self.arena[self.used..self.used + length];
        if batch
            .shared
            .tun
            .write(&[IoSlice::new(&[]), IoSlice::new(packet)])
            .is_err()
        {
            batch.shared.drops.add(Drop::WriteFailed);
        }
    }
}

/// Waits until one of `descriptors` can be read; negative ones are passed over.
pub(super) fn wait(descriptors: &[RawFd]) -> bool {
    let mut polled = [libc::pollfd {
        fd: -1,
        events: libc::POLLIN,
        revents: 0,
    }; 4];
    for (slot, fd) in polled.iter_mut().zip(descriptors) {
        slot.fd = *fd;
    }
    // SAFETY: `polled` is an array of so many valid entries.
    let ready = unsafe {
        libc::poll(
            polled.as_mut_ptr(),
            descriptors.len().min(4) as libc::nfds_t,
            -1,
        )
    };
    ready > 0
}

/// Takes a pending wake-up away.
pub(super) fn drain(event: RawFd) {
    let mut polled = libc::pollfd {
        fd: event,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry; an eventfd is read in 8 octets, for which there is room.
    unsafe {
        if libc::poll(&raw mut polled, 1, 0) > 0 {
            let mut count = 0u64;
            libc::read(event, (&raw mut count).cast(), 8);
        }
    }
}
