//! Passes packets of guests and for guests on to the peers that own their destinations, in the thread that opened them.

use std::time::Instant;

use super::checking;
use super::decision::Decision;
use super::drops::DropReason;
use super::guard::Memo;
use super::icmp_errors::{self, ErrorLimit, MAX_ERROR, Reason};
use super::noise::{padded, room_for};
use super::packet::Ip;
use super::peer::Peer;
use super::reset::{self, MAX_RESET};
use super::round::Round;
use super::shared::Shared;
use super::too_big;
use super::udp::Sender;

/// The maximum number of bytes by which a packet is padded.
const PADDING: usize = 16;

/// What one thread needs to pass packets on.
pub(super) struct Forwarding {
    /// The last packet that the policy let leave this node.
    memo: Memo,
    /// A packet that this node made: the answer of the local service, or an error.
    made: Vec<u8>,
    errors: ErrorLimit,
}

impl Forwarding {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            memo: Memo::default(),
            made: Vec::new(),
            errors: ErrorLimit::new(now),
        }
    }

    /// Forgets what holds for one batch only.
    pub(super) fn begin(&mut self) {
        self.memo.clear();
    }

    /// Carries out the decision about the packet of `peer` in the first `length` bytes of `space`. There is room behind it for padding.
    /// `memo` is the last packet that the policy let arrive.
    pub(super) fn handle(
        &mut self,
        round: &Round<'_>,
        sender: &mut Sender,
        (peer, decision): (&Peer, Decision),
        (space, length): (&mut [u8], usize),
        memo: &mut Memo,
    ) {
        match decision {
            Decision::Serve => self.serve(round, sender, space.get(..length).unwrap_or_default()),
            _ => self.forward(round, sender, peer, (space, length), memo),
        }
    }

    fn forward(
        &mut self,
        round: &Round<'_>,
        sender: &mut Sender,
        peer: &Peer,
        (space, length): (&mut [u8], usize),
        memo: &mut Memo,
    ) {
        let Round {
            shared, table, now, ..
        } = *round;
        let packet = space.get(..length).unwrap_or_default();
        let Some(ip) = Ip::parse(packet) else {
            return shared.drops.add(DropReason::Malformed);
        };
        // The packet arrives here and leaves again. The second check notes the request, so that the answer passes when it arrives.
        if !checking::passes_in((shared, table), peer, packet, memo, now)
            || !checking::passes_out((shared, table), (packet, &ip), &mut self.memo, now)
        {
            if peer.is_guest {
                self.deny(round, sender, packet);
            }
            return;
        }
        let Some(fits) = send(round, sender, &ip, space, length) else {
            return;
        };
        shared.drops.add(DropReason::TooBig);
        let mut error = [0; MAX_ERROR];
        let packet = space.get(..length).unwrap_or_default();
        if self.errors.admit(now)
            && let Some(length) = icmp_errors::answer(packet, &ip, Reason::TooBig(fits), &mut error)
        {
            self.made.clear();
            self.made.extend_from_slice(&error[..length]);
            self.send_made(round, sender);
        }
    }

    /// Tells a guest that the policy denies its packet, so that its programs fail at once, like those of this machine.
    #[cold]
    pub(super) fn deny(&mut self, round: &Round<'_>, sender: &mut Sender, packet: &[u8]) {
        let Some(ip) = Ip::parse(packet) else { return };
        if !self.errors.admit(round.now) {
            return;
        }
        let (mut reset, mut error) = ([0; MAX_RESET], [0; MAX_ERROR]);
        let made = match reset::answer(packet, &ip, &mut reset) {
            Some(length) => reset.get(..length),
            None => icmp_errors::answer(packet, &ip, Reason::Prohibited, &mut error)
                .and_then(|length| error.get(..length)),
        };
        if let Some(made) = made {
            self.made.clear();
            self.made.extend_from_slice(made);
            self.send_made(round, sender);
        }
    }

    /// Lets the local service answer a packet.
    fn serve(&mut self, round: &Round<'_>, sender: &mut Sender, packet: &[u8]) {
        let Some(service) = &round.table.local_service else {
            return;
        };
        match service.answer(packet, &mut self.made) {
            Ok(true) => self.send_made(round, sender),
            Ok(false) => {}
            Err(reason) => round.shared.drops.add(reason),
        }
    }

    /// Sends the packet that this node made.
    fn send_made(&mut self, round: &Round<'_>, sender: &mut Sender) {
        let length = self.made.len();
        let Some(ip) = Ip::parse(&self.made) else {
            return;
        };
        self.made.resize(length + PADDING, 0);
        if send(round, sender, &ip, &mut self.made, length).is_some() {
            round.shared.drops.add(DropReason::TooBig);
        }
    }
}

/// Seals the first `length` bytes of `space`, a packet with the header `ip`, for the peer that owns its destination. Returns the largest size
/// that fits if the packet is too large for the path, and was not sent.
fn send(
    round: &Round<'_>,
    sender: &mut Sender,
    ip: &Ip,
    space: &mut [u8],
    length: usize,
) -> Option<u16> {
    let Round {
        shared, table, now, ..
    } = *round;
    let Some(peer) = table.allowed.owner(ip.destination) else {
        shared.drops.add(DropReason::NoOwner);
        return None;
    };
    let mut state = peer.lock();
    let mtu = shared.mtu().min(usize::from(state.paths.mtu()));
    if let Some(fits) = too_big::refused(space, length, mtu) {
        return Some(fits);
    }
    let last = state.last_send.replace(now);
    if state.paths.handle_sent(last, now) {
        shared.wakes.news.add(peer.member);
    }
    let end = padded(length, mtu).min(space.len());
    if let Some(padding) = space.get_mut(length..end) {
        padding.fill(0);
    }
    if sender.is_full(room_for(end)) {
        sender.flush(round.sockets, &shared.drops);
    }
    let endpoint = state.endpoint();
    let packet = space.get(..end).unwrap_or_default();
    shared.send_own(table, (peer, &mut state), endpoint, packet, sender, now);
    None
}

/// Sends a packet that another part of this program made for a guest. Returns whether it is for a guest; otherwise it is for the kernel.
pub(super) fn to_guest(shared: &Shared, packet: &[u8], now: Instant) -> bool {
    let table = shared.table.load();
    if !table.door.has_guests {
        return false;
    }
    let owner = Ip::parse(packet).and_then(|ip| table.allowed.owner(ip.destination));
    let Some(peer) = owner.filter(|owner| owner.is_guest) else {
        return false;
    };
    let group = shared.sockets.load();
    let Some(sockets) = group.first() else {
        return true;
    };
    let mut sender = Sender::new_small();
    let mut state = peer.lock();
    let endpoint = state.endpoint();
    shared.send_own(
        &table,
        (peer, &mut state),
        endpoint,
        packet,
        &mut sender,
        now,
    );
    drop(state);
    sender.flush(sockets, &shared.drops);
    true
}
