//! Received handshake messages. Those that are admitted wait, since packets come first.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::drops::DropReason;
use super::endpoint::Endpoint;
use super::keys::StaticKeys;
use super::limiter::Admission;
use super::noise::{HANDSHAKE, Message, Noise, Opened, room_for};
use super::paths::Choice;
use super::peer::Peer;
use super::replies::Replied;
use super::round::Round;
use super::udp::Sender;
use crate::os::clock;

/// The maximum number of admitted handshakes that wait.
const MAX_WAITING: usize = 512;
/// The maximum number of handshakes that are handled after a batch. Each costs as much as a hundred packets: with more of them at
/// once, packets that arrive in that time would be lost.
const MAX_AT_ONCE: usize = 4;

/// How long after a response copies of it arrive.
const COPIES_ARRIVE: Duration = Duration::from_secs(10);

/// The handshake messages that were admitted and wait.
#[derive(Default)]
pub(super) struct Handshakes(VecDeque<Handshake>);

struct Handshake {
    /// The keys of this node that it is addressed to.
    keys: Arc<StaticKeys>,
    message: Message,
    bytes: [u8; HANDSHAKE],
    length: usize,
    from: Endpoint,
}

impl Handshakes {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Decides whether a handshake message is handled. That costs one to three hashes, and looks up no peer.
    pub(super) fn admit(
        &mut self,
        round: &Round<'_>,
        sender: &mut Sender,
        message: Message,
        datagram: &[u8],
        from: Endpoint,
    ) {
        let drops = &round.shared.drops;
        let Some(keys) = round.table.keys_for(datagram) else {
            return drops.add(DropReason::NotAuthentic);
        };
        let limiter = &round.shared.limits.handshakes;
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = limiter.admit(keys.reply_key(), datagram, from.origin(), round.now);
        drop(limiter);
        match admission {
            Admission::Pass if self.0.len() < MAX_WAITING => {
                let mut bytes = [0; HANDSHAKE];
                let Some(space) = bytes.get_mut(..datagram.len()) else {
                    return drops.add(DropReason::NotWireGuard);
                };
                space.copy_from_slice(datagram);
                self.0.push_back(Handshake {
                    keys: Arc::clone(keys),
                    message,
                    bytes,
                    length: datagram.len(),
                    from,
                });
            }
            Admission::Pass | Admission::Refuse => drops.add(DropReason::HandshakeLimit),
            Admission::Prove(reply) => {
                sender.space_to(&from)[..reply.len()].copy_from_slice(&reply);
                sender.commit(reply.len(), from);
                drops.add(DropReason::Challenged);
            }
        }
    }

    /// Handles some of the handshakes that wait, and sends the replies.
    pub(super) fn handle_some(&mut self, round: &Round<'_>, sender: &mut Sender) {
        for _ in 0..MAX_AT_ONCE {
            let Some(next) = self.0.pop_front() else {
                break;
            };
            if sender.is_full(room_for(HANDSHAKE)) {
                sender.flush(round.sockets, &round.shared.drops);
            }
            let datagram = &next.bytes[..next.length];
            handle(
                round,
                sender,
                Some(&next.keys),
                next.message,
                datagram,
                next.from,
            );
        }
        sender.flush(round.sockets, &round.shared.drops);
    }
}

/// Handles a handshake message or a cookie. `keys` are the keys of this node that an initiation is addressed to.
pub(super) fn handle(
    round: &Round<'_>,
    sender: &mut Sender,
    keys: Option<&Arc<StaticKeys>>,
    message: Message,
    datagram: &[u8],
    from: Endpoint,
) {
    let drops = &round.shared.drops;
    let peer = match find_peer(round, keys, message, datagram) {
        Ok(peer) => peer,
        Err(reason) => return drops.add(reason),
    };
    if !round.is_from(&from, peer) {
        return drops.add(DropReason::ForeignSource);
    }
    let Some(keys) = round.table.keys_of(peer) else {
        return drops.add(DropReason::NoSession);
    };
    let mut state = peer.lock();
    // Only an initiation starts a session. Any other message answers one of this node.
    if message != Message::Initiation && state.noise.is_none() {
        return drops.add(DropReason::NoSession);
    }
    let state = &mut *state;
    if message == Message::Initiation
        && let Some(replied) = &mut state.replied
        && let Some(reply) = replied.again(datagram, round.now)
    {
        peer.count_rx(datagram.len());
        peer.count_tx(reply.len());
        sender.space_to(&from)[..reply.len()].copy_from_slice(reply);
        return sender.commit(reply.len(), from);
    }
    let is_steered = state.paths.choice == Choice::Steered;
    let noise = state.noise(keys, peer.index, round.now);
    match noise.open(message, datagram, sender.space_to(&from)) {
        Opened::Reply(length) => {
            if is_steered {
                let reply = &sender.space_to(&from)[..length];
                state.replied = Replied::new(datagram, reply, round.now);
            }
            // The reply goes to the address that the initiation came from. The endpoint changes only once the peer has shown,
            // with its next datagram, that it is there.
            peer.count_rx(datagram.len());
            peer.count_tx(length);
            sender.commit(length, from);
            peer.probes().handle_handshake();
            // The session is used once the peer has sent by it.
            state.paths.reports.heard |= is_steered;
            if state.endpoint().is_none() {
                state.paths.set_endpoint(Some(from));
            }
        }
        Opened::Established(length) => {
            peer.count_rx(datagram.len());
            peer.count_tx(length);
            round.note_received(peer, state, from);
            state.last_handshake = Some(clock::wall());
            peer.probes().handle_handshake();
            if is_steered {
                round.shared.wakes.news.add(peer.member);
            }
            sender.commit(length, from);
            round.send_waiting(peer, state, from, sender);
        }
        // The peer answers each copy of an initiation that was sent by several paths.
        Opened::Refused(_) if is_steered && is_copy(noise, message) => {}
        Opened::Refused(reason) => drops.add(reason),
        Opened::Packet(_) | Opened::Keepalive | Opened::Nothing => {}
    }
}

/// Whether a response that was refused may be a copy of the one that began the session in use.
fn is_copy(noise: &Noise, message: Message) -> bool {
    let age = noise.session_age();
    matches!(message, Message::Response(_)) && age.is_some_and(|age| age < COPIES_ARRIVE)
}

/// The peer that a message is from.
fn find_peer<'a>(
    round: &Round<'a>,
    keys: Option<&Arc<StaticKeys>>,
    message: Message,
    datagram: &[u8],
) -> Result<&'a Arc<Peer>, DropReason> {
    let peer = match message {
        Message::Initiation => {
            let keys = keys.ok_or(DropReason::NotAuthentic)?;
            let key = keys.initiator(datagram).ok_or(DropReason::NotAuthentic)?;
            round.table.initiator(keys, &key)
        }
        Message::Response(index) | Message::Cookie(index) | Message::Data(index) => {
            round.table.by_index.get(&index)
        }
    };
    peer.ok_or(DropReason::UnknownPeer)
}
