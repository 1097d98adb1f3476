//! From the peers to the TUN device.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use super::checking;
use super::decision::{Decision, decide};
use super::delivery::Delivery;
use super::drops::DropReason;
use super::endpoint::{Carrier, Endpoint, Via};
use super::forward::Forwarding;
use super::guard::Memo;
use super::handshakes::{self, Handshakes};
use super::incoming;
use super::noise::{Message, Opened, room_for, session_of};
use super::packet::Ip;
use super::peer::{Peer, PeerState};
use super::probe;
use super::relay::{Frame, HEADER, Header, RelayDrop, Source, is_frame};
use super::round::Round;
use super::shared::Shared;
use super::sockets::Sockets;
use super::streams::Stream;
use super::udp::{Receiver, Sender};
use super::used_relays;
use crate::os::batch::Segments;
use crate::protocol::stream::{Frame as StreamFrame, Frames};

/// The least time between two handshakes with one peer that used an unknown session.
const REVIVAL_INTERVAL_OF_PEER: Duration = Duration::from_secs(1);

/// One end of the direction from the peers to the device.
pub(super) struct Inbound {
    /// The number of the pair of threads: which queues of the device are written.
    pair: usize,
    receiver: Option<Receiver>,
    delivery: Delivery,
    sender: Sender,
    /// The last packet that the policy let pass.
    memo: Memo,
    forwarding: Forwarding,
    handshakes: Handshakes,
    /// Whether this thread wakes itself because handshakes wait that arrived by streams.
    is_woken: bool,
}

impl Inbound {
    pub(super) fn new(pair: usize, shared: &Shared) -> Self {
        Self {
            pair,
            receiver: Some(Receiver::new()),
            delivery: Delivery::new(shared.device.load().pairs[pair].merges_udp()),
            sender: Sender::new(),
            memo: Memo::default(),
            forwarding: Forwarding::new(Instant::now()),
            handshakes: Handshakes::default(),
            is_woken: false,
        }
    }

    /// Receives, opens and writes one batch of `socket`. Returns whether there may be more, in the socket or here.
    pub(super) fn batch(
        &mut self,
        shared: &Shared,
        sockets: &Sockets,
        socket: BorrowedFd<'_>,
    ) -> bool {
        let Some(mut receiver) = self.receiver.take() else {
            return false;
        };
        let table = shared.table.load();
        let device = shared.device.load();
        self.memo.clear();
        self.forwarding.begin();
        let round = Round {
            shared,
            tun: &device.pairs[self.pair],
            table: &table,
            sockets,
            now: Instant::now(),
        };
        let received = receiver.receive(socket, |merged, from| {
            self.datagrams(&round, merged, from);
        });
        let more = received.unwrap_or_else(|error| {
            // Most often it is an ICMP error about an earlier datagram, and the next call succeeds.
            tracing::debug!(%error, "cannot receive");
            false
        });
        self.receiver = Some(receiver);
        self.flush(&round);
        self.handshakes.handle_some(&round, &mut self.sender);
        more || !self.handshakes.is_empty()
    }

    /// Handles what arrived by streams. If handshakes wait then, this thread is woken again. It begins and ends as [`Self::batch`] does;
    /// one generic function for both cost up to 11 % more processor time for each byte of a TCP stream on one of two machines.
    pub(super) fn streams(&mut self, shared: &Shared, sockets: &Sockets) {
        let streams = shared.wakes.streams.take_arrived(self.pair);
        if streams.is_empty() && !std::mem::take(&mut self.is_woken) {
            return;
        }
        let table = shared.table.load();
        let device = shared.device.load();
        self.memo.clear();
        self.forwarding.begin();
        let round = Round {
            shared,
            tun: &device.pairs[self.pair],
            table: &table,
            sockets,
            now: Instant::now(),
        };
        for stream in streams {
            for frame in Frames::of(&stream.take()) {
                self.streamed(&round, &stream, frame);
            }
        }
        self.flush(&round);
        self.handshakes.handle_some(&round, &mut self.sender);
        self.is_woken = !self.handshakes.is_empty();
        if self.is_woken {
            let _ = shared.wakes.pairs[self.pair].first.write(1);
        }
    }

    /// A frame that arrived by a stream: for this node, or for another one if this node relays for the sender.
    fn streamed(&mut self, round: &Round<'_>, stream: &Stream, frame: StreamFrame<'_>) {
        let datagram = frame.datagram;
        let Ok(message) = Message::parse(datagram) else {
            return round.shared.drops.add(DropReason::NotWireGuard);
        };
        if let Some(via) = stream.sender_of(&frame) {
            let from = Endpoint::streamed(via);
            self.message(round, message, datagram, &mut nothing(), from);
            return;
        }
        if let Some(label) = frame.label {
            let header = Header { label, tag: None };
            // A frame that is dropped is counted.
            let _ = self.forward(round, Source::Stream(stream.node.0), header, datagram);
        }
    }

    /// Datagrams from one sender.
    fn datagrams(&mut self, round: &Round<'_>, mut merged: Segments<'_>, from: Endpoint) {
        let mut next = merged.next();
        while let Some(datagram) = next {
            next = self.datagram(round, datagram, &mut merged, from);
        }
    }

    /// A datagram, and as many of `rest` as can be handled together with it. Returns the one after them.
    fn datagram<'d>(
        &mut self,
        round: &Round<'_>,
        datagram: &'d [u8],
        rest: &mut Segments<'d>,
        from: Endpoint,
    ) -> Option<&'d [u8]> {
        let shared = round.shared;
        match Message::parse(datagram) {
            Ok(message) => return self.message(round, message, datagram, rest, from),
            Err(_) if is_frame(datagram) => self.frame(round, datagram, from),
            Err(_) if shared.wakes.stun.handle(datagram, from.address) => shared.wakes.news.raise(),
            Err(reason) => shared.drops.add(reason),
        }
        rest.next()
    }

    /// A frame to this node as a relay, or from a relay.
    #[inline(never)]
    fn frame(&mut self, round: &Round<'_>, datagram: &[u8], from: Endpoint) {
        let relaying = &round.shared.relaying;
        let Frame { header, message } = match Frame::parse(datagram) {
            Ok(frame) => frame,
            Err(reason) => return relaying.drop(reason),
        };
        if header.tag.is_some() {
            let source = Source::Endpoint(from.address);
            let forwarded = self.forward(round, source, header, message);
            if let Err(RelayDrop::UnknownSource | RelayDrop::BadTag) = forwarded {
                // This node was started again, and so the member needs a session and another tag.
                self.revive(round, from);
            }
            return;
        }
        // Only a relay that this node knows may name another sender than itself.
        let Some(from) = used_relays::sender_of(&round.table.relays, header, from) else {
            return relaying.drop(RelayDrop::UnknownSource);
        };
        if let Ok(kind) = Message::parse(message) {
            self.message(round, kind, message, &mut nothing(), from);
        }
    }

    /// Forwards a message as a relay, or returns why it is dropped.
    #[inline(never)]
    fn forward(
        &mut self,
        round: &Round<'_>,
        from: Source,
        header: Header,
        message: &[u8],
    ) -> Result<(), RelayDrop> {
        let bytes = message.len();
        let Round { table, now, .. } = *round;
        let relaying = &round.shared.relaying;
        let (to, header) = relaying.forward(table, header, from, bytes, now)?;
        let length = HEADER + bytes;
        if self.sender.is_full(length) {
            self.sender.flush(round.sockets, &round.shared.drops);
        }
        if let Some(via) = to.stream() {
            let to = Endpoint::streamed(Via {
                header,
                carrier: Carrier::Member,
                ..*via
            });
            self.sender.space_to(&to)[..bytes].copy_from_slice(message);
            self.sender.commit(bytes, to);
            return Ok(());
        }
        let space = &mut self.sender.space_to(&to)[..length];
        let (head, body) = space.split_at_mut(HEADER);
        head.copy_from_slice(&header.to_bytes());
        body.copy_from_slice(message);
        self.sender.commit(length, to);
        Ok(())
    }

    /// A WireGuard message, whichever path it came by, and as many of `rest` as can be handled together with it. Returns the datagram
    /// after them.
    fn message<'d>(
        &mut self,
        round: &Round<'_>,
        message: Message,
        datagram: &'d [u8],
        rest: &mut Segments<'d>,
        from: Endpoint,
    ) -> Option<&'d [u8]> {
        let drops = &round.shared.drops;
        if round.table.keys.is_none() {
            drops.add(DropReason::NoSession);
            return rest.next();
        }
        if self.delivery.is_full(room_for(datagram.len())) {
            self.flush(round);
        }
        if self.sender.is_full(room_for(datagram.len())) {
            self.sender.flush(round.sockets, drops);
        }
        let sender = &mut self.sender;
        match message {
            Message::Data(index) => return self.data(round, (index, datagram), rest, from),
            Message::Initiation | Message::Response(_) => {
                self.handshakes
                    .admit(round, sender, message, datagram, from);
            }
            Message::Cookie(_) => {
                handshakes::handle(round, sender, None, message, datagram, from);
            }
        }
        rest.next()
    }

    /// A data message of the peer with this index, and those of `rest` that follow it and are of the same peer. The lock of the peer is
    /// taken once for all of them: with one lock for each, a thread that seals would take it in between for a whole run of packets, and
    /// this direction would get a packet for each run of the other one.
    fn data<'d>(
        &mut self,
        round: &Round<'_>,
        (index, mut datagram): (u32, &'d [u8]),
        rest: &mut Segments<'d>,
        from: Endpoint,
    ) -> Option<&'d [u8]> {
        let drops = &round.shared.drops;
        let Some(peer) = round.table.by_index.get(&index) else {
            drops.add(DropReason::NoSession);
            self.revive(round, from);
            return rest.next();
        };
        if !round.is_from(&from, peer) {
            drops.add(DropReason::ForeignSource);
            return rest.next();
        }
        // An answer to a guest takes the lock itself. A device that merges nothing is written to with each packet.
        let keeps_lock = round.tun.merges() && !peer.is_guest;
        let mut state = peer.lock();
        let mut bytes = 0;
        let next = loop {
            let space = self.delivery.space();
            let opened = match &mut state.noise {
                Some(noise) => noise.open(Message::Data(index), datagram, space),
                None => Opened::Refused(DropReason::NoSession),
            };
            if matches!(opened, Opened::Packet(_) | Opened::Keepalive) {
                round.note_received(peer, &mut state, from);
                bytes += datagram.len();
                // It may be that the peer started the session that packets wait for here.
                round.send_waiting(peer, &mut state, from, &mut self.sender);
            }
            let local = &round.shared.local_addresses;
            let is_local = |destination| local.load().contains(&destination);
            let decision = decide(opened, space, peer, round.table, is_local, round.now);
            let (Decision::Deliver, Opened::Packet(length)) = (decision, opened) else {
                let decided = (decision, opened);
                self.handle_other(round, (peer, state), decided, (datagram, from));
                break rest.next();
            };
            if !keeps_lock {
                drop(state);
                self.deliver(round, peer, length);
                break rest.next();
            }
            self.deliver(round, peer, length);
            match rest.next() {
                Some(next) if self.has_room_for(next, index) => datagram = next,
                next => break next,
            }
        };
        peer.count_rx(bytes);
        next
    }

    /// Whether `datagram` is a data message of the peer with this index, and there is room for it.
    #[inline]
    fn has_room_for(&self, datagram: &[u8], index: u32) -> bool {
        let room = room_for(datagram.len());
        Message::parse(datagram) == Ok(Message::Data(index))
            && !self.delivery.is_full(room)
            && !self.sender.is_full(room)
    }

    /// Carries out any other decision about a data message of `peer` than to deliver its packet.
    #[inline(never)]
    fn handle_other(
        &mut self,
        round: &Round<'_>,
        (peer, mut state): (&Arc<Peer>, MutexGuard<'_, PeerState>),
        (decision, opened): (Decision, Opened),
        (datagram, from): (&[u8], Endpoint),
    ) {
        let drops = &round.shared.drops;
        match decision {
            Decision::Deliver | Decision::Keepalive => {}
            Decision::Forward | Decision::Serve => {
                drop(state);
                self.pass_on(round, (peer, decision), opened);
            }
            Decision::AnswerProbe => {
                state.paths.wait.handle_probe(session_of(datagram));
                let space = self.delivery.space();
                if let Some(ip) = Ip::parse(space) {
                    let length = probe::answer(space, &ip);
                    let (sender, answer) = (&mut self.sender, &space[..length]);
                    // The answer goes back by the path on which the probe came.
                    let to = state.paths.endpoint_of(&from.path());
                    let Round { table, now, .. } = *round;
                    round
                        .shared
                        .send_own(table, (peer, &mut state), to, answer, sender, now);
                }
            }
            Decision::Measured { nonce, rtt } => {
                drop(state);
                let by = from.path();
                peer.probes().handle_answer(nonce, by, rtt, round.now);
                round.shared.wakes.news.add(peer.member);
            }
            Decision::ReadMessage => {
                drop(state);
                if let Opened::Packet(length) = opened {
                    let packet = (&self.delivery.space()[..length], session_of(datagram));
                    incoming::handle(round, peer, packet, from, &mut self.sender);
                }
            }
            Decision::Drop(DropReason::NoSession) => {
                drop(state);
                drops.add(DropReason::NoSession);
                self.revive(round, from);
            }
            Decision::Drop(reason) => drops.add(reason),
        }
    }

    /// Passes the packet of `peer` that was opened to the device, if the policy lets it pass.
    #[inline]
    fn deliver(&mut self, round: &Round<'_>, peer: &Peer, length: usize) {
        let within = (round.shared, round.table);
        let packet = &self.delivery.space()[..length];
        if checking::passes_in(within, peer, packet, &mut self.memo, round.now) {
            self.delivery.push(length, round.tun, &round.shared.drops);
        } else if peer.is_guest {
            self.forwarding.deny(round, &mut self.sender, packet);
        }
    }

    /// Passes a packet on that `peer` sent, which is of a guest or for one.
    #[inline(never)]
    fn pass_on(&mut self, round: &Round<'_>, from: (&Peer, Decision), opened: Opened) {
        if let Opened::Packet(length) = opened {
            let (space, memo) = (self.delivery.space(), &mut self.memo);
            let sender = &mut self.sender;
            (self.forwarding).handle(round, sender, from, (space, length), memo);
        }
    }

    /// Starts a handshake with the peer whose endpoint used a session or a tag that this node does not have: this node was
    /// restarted. The handshake shows that to the peer at once, rather than after the peer's timeout of 15 s. Anybody can forge such a
    /// datagram, so this is limited. The handshake leaves from the address at which the datagram arrived, if no other one
    /// is known.
    #[cold]
    fn revive(&mut self, round: &Round<'_>, from: Endpoint) {
        if !round.shared.limits.revivals.admit(round.now) {
            return;
        }
        if let Some(via) = from.stream() {
            // A stream names the peer, so the path need not be known.
            let owner = round.table.allowed.owner(via.header.label.into());
            if let Some(peer) = owner {
                self.revive_peer(round, peer, &mut peer.lock(), from);
            }
            return;
        }
        for peer in round.table.by_key.values() {
            let mut state = peer.lock();
            let known = state.paths.endpoint_of(&from.path());
            if known.is_some_and(|known| known.label() == from.label()) {
                return self.revive_peer(round, peer, &mut state, from);
            }
        }
    }

    /// Starts a handshake with the peer that used a session which this node does not have, unless there was one just before.
    #[cold]
    fn revive_peer(
        &mut self,
        round: &Round<'_>,
        peer: &Peer,
        state: &mut PeerState,
        from: Endpoint,
    ) {
        let last = state.revived;
        let since = last.map(|at| round.now.saturating_duration_since(at));
        if since.is_none_or(|since| since >= REVIVAL_INTERVAL_OF_PEER) {
            state.revived = Some(round.now);
            let entry = state.paths.entry_mut(&from.path());
            let to = entry.map_or(from, |entry| entry.learn_missing(from));
            let Round { table, now, .. } = *round;
            let sender = &mut self.sender;
            (round.shared).initiate(table, (peer, state), Some(to), sender, now);
        }
    }

    /// Sends and writes everything.
    fn flush(&mut self, round: &Round<'_>) {
        let drops = &round.shared.drops;
        self.sender.flush(round.sockets, drops);
        self.delivery.flush(round.tun, drops);
    }
}

/// No datagrams: those that come in a frame are not merged.
fn nothing<'d>() -> Segments<'d> {
    let none: &[u8] = &[];
    None.into_iter().chain(none.chunks(1))
}
