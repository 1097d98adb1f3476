//! The values that hold for one batch of received datagrams.

use std::net::IpAddr;
use std::time::Instant;

use super::endpoint::Endpoint;
use super::noise::room_for;
use super::paths::Received;
use super::peer::{Peer, PeerState};
use super::shared::Shared;
use super::sockets::Sockets;
use super::table::Table;
use super::tun::Tun;
use super::udp::Sender;

/// The values that are loaded once for a batch.
pub(super) struct Round<'a> {
    pub(super) shared: &'a Shared,
    pub(super) tun: &'a Tun,
    pub(super) table: &'a Table,
    pub(super) sockets: &'a Sockets,
    pub(super) now: Instant,
}

impl Round<'_> {
    /// An authentic datagram of a peer was received from there.
    #[inline]
    pub(super) fn note_received(&self, peer: &Peer, state: &mut PeerState, from: Endpoint) {
        let received = state.handle_received(from, self.now);
        if received != Received::default() {
            if received.wants_route {
                self.shared.wakes.recheck.wake();
            }
            if received.is_news {
                self.shared.wakes.news.add(peer.member);
            }
        }
    }

    /// Whether a datagram from there may be one of `peer`. A relay names the sender, and it must not name another one: replies
    /// would go there.
    #[inline]
    pub(super) fn is_from(&self, from: &Endpoint, peer: &Peer) -> bool {
        from.label().is_none_or(|label| {
            let owner = self.table.allowed.owner(IpAddr::V4(label));
            owner.is_some_and(|owner| owner.member == peer.member)
        })
    }

    /// Sends the packets that waited for a session.
    #[inline]
    pub(super) fn send_waiting(
        &self,
        peer: &Peer,
        state: &mut PeerState,
        endpoint: Endpoint,
        sender: &mut Sender,
    ) {
        let noise = state.noise.as_ref();
        if noise.is_some_and(|noise| noise.waiting() > 0) {
            self.send_all_waiting(peer, state, endpoint, sender);
        }
    }

    #[cold]
    fn send_all_waiting(
        &self,
        peer: &Peer,
        state: &mut PeerState,
        endpoint: Endpoint,
        sender: &mut Sender,
    ) {
        let Some(noise) = &mut state.noise else {
            return;
        };
        while noise.waiting() > 0 {
            if sender.is_full(room_for(65_536)) {
                sender.flush(self.sockets, &self.shared.drops);
            }
            let Some(length) = noise.next_waiting(sender.space_to(&endpoint)) else {
                break;
            };
            peer.count_tx(length);
            sender.commit(length, endpoint);
        }
    }
}
