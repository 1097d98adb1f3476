//! Messages about paths that a peer sent. They came by a session, so it is certain which peer sent them, and nothing else is.

use std::net::IpAddr;
use std::time::Instant;

use super::endpoint::Endpoint;
use super::messages::{self, MAX_PACKET};
use super::noise::room_for;
use super::packet::Ip;
use super::peer::Peer;
use super::probe::Probes;
use super::relaying::Relaying;
use super::round::Round;
use super::udp::Sender;
use crate::protocol::path_messages::{Echo, Message, PathMessage, Probe};

/// Handles the message in `packet`, which came by `from`, by the session with this number.
pub(super) fn handle(
    round: &Round<'_>,
    peer: &Peer,
    (packet, session): (&[u8], u8),
    from: Endpoint,
    sender: &mut Sender,
) {
    let Some(ip) = Ip::parse(packet) else { return };
    let payload = messages::payload(packet, &ip).unwrap_or_default();
    let Ok(PathMessage { nonce, message }) = PathMessage::parse(payload) else {
        return;
    };
    match message {
        Message::Probe(probe) => {
            peer.lock().paths.wait.handle_probe(session);
            if probe.pays_for_its_echo() {
                answer(round, peer, (&ip, nonce, probe), from, sender);
            }
        }
        other => {
            let is_news = note(&mut peer.probes(), nonce, other, from, round.now);
            if is_news {
                round.shared.wakes.news.add(peer.member);
            }
        }
    }
}

/// Takes over what a peer says. Returns whether the part that chooses paths wants to know.
pub(super) fn note(
    probes: &mut Probes,
    nonce: u64,
    message: Message,
    from: Endpoint,
    now: Instant,
) -> bool {
    match message {
        Message::Probe(_) => false,
        Message::Echo(echo) => {
            let Some(rtt) = probes.round_trip(nonce, now) else {
                return false;
            };
            probes.handle_echo(from.path(), &echo);
            probes.handle_answer(nonce, from.path(), rtt, now);
            true
        }
        Message::Paths(paths) => {
            probes.handle_paths(paths);
            true
        }
        Message::Bye(reason) => {
            probes.handle_bye(reason);
            true
        }
        Message::Call(call) => probes.handle_call(call),
        Message::AskRow(after) => probes.handle_row_asked(after),
        Message::Row(part) => probes.handle_row(part),
    }
}

/// The echo of a probe of the member with this address.
pub(super) fn echo_of(
    relaying: &Relaying,
    (member, probe): (IpAddr, Probe),
    from: Endpoint,
    now: Instant,
) -> Echo {
    // A member that is reached through a relay is not offered another one.
    let offer = match (from.via, member) {
        (None, IpAddr::V4(member)) => relaying.offer(member, from.address, now),
        _ => None,
    };
    Echo {
        path: probe.path,
        sent_us: probe.sent_us,
        seen: from.via.is_none().then_some(from.address),
        via: from.via.map(|via| via.relay.0),
        relay: offer,
    }
}

/// Sends the echo of a probe back by the path on which it came.
fn answer(
    round: &Round<'_>,
    peer: &Peer,
    (ip, nonce, probe): (&Ip, u64, Probe),
    from: Endpoint,
    sender: &mut Sender,
) {
    let asked = (ip.source, probe);
    let echo = echo_of(&round.shared.relaying, asked, from, round.now);
    let message = PathMessage {
        nonce,
        message: Message::Echo(echo),
    };
    let mut packet = [0; MAX_PACKET];
    let Some(length) = messages::write(ip.destination, ip.source, &message, &mut packet) else {
        return;
    };
    if sender.is_full(room_for(length)) {
        sender.flush(round.sockets, &round.shared.drops);
    }
    let mut state = peer.lock();
    let to = state.paths.endpoint_of(&from.path());
    let peer = (peer, &mut *state);
    let packet = &packet[..length];
    (round.shared).send_own(round.table, peer, to, packet, sender, round.now);
}
