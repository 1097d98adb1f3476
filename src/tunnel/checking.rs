//! The check of the policy, where the data threads meet it.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Instant;

use super::drops::DropReason;
use super::guard::{Denial, Direction, Guard, Members, Memo, Sender, Verdict};
use super::packet::Ip;
use super::peer::Peer;
use super::shared::Shared;
use super::table::Table;
use crate::policy::Asked;

/// What the tunnel knows about the members of the mesh.
struct Known<'a> {
    shared: &'a Shared,
    table: &'a Table,
}

impl Members for Known<'_> {
    fn is_own(&self, address: IpAddr) -> bool {
        self.shared.local_addresses.load().contains(&address)
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.table.allowed.is_first_host(address)
    }

    fn share_node(&self, one: IpAddr, other: IpAddr) -> bool {
        let member = |address| self.table.allowed.owner(address).map(|peer| peer.member);
        member(one).is_some_and(|one| member(other) == Some(one))
    }
}

/// Whether a packet passes that `peer` sent. A packet that does not is counted and listed.
#[inline]
pub(super) fn passes_in(
    (shared, table): (&Shared, &Table),
    peer: &Peer,
    packet: &[u8],
    memo: &mut Memo,
    now: Instant,
) -> bool {
    match &table.guard {
        None => true,
        Some(guard) => is_allowed_in(guard, (shared, table), peer, packet, memo, now),
    }
}

fn is_allowed_in(
    guard: &Guard,
    (shared, table): (&Shared, &Table),
    peer: &Peer,
    packet: &[u8],
    memo: &mut Memo,
    now: Instant,
) -> bool {
    let Some(ip) = Ip::parse(packet) else {
        shared.drops.add(DropReason::Malformed);
        return false;
    };
    let known = Known { shared, table };
    let verdict = guard.check(Direction::Incoming, (packet, &ip), &known, memo, now);
    passes(verdict, |asked, is_tried| {
        let denial = Denial {
            from: ip.source,
            to: ip.destination,
            asked,
            direction: Direction::Incoming,
            is_tried,
        };
        note(shared, denial, Sender::Member(peer.member), now);
    })
}

/// Whether a packet from the device passes, whose header is `ip`. A packet that does not is counted and listed.
#[inline]
pub(super) fn passes_out(
    (shared, table): (&Shared, &Table),
    (packet, ip): (&[u8], &Ip),
    memo: &mut Memo,
    now: Instant,
) -> bool {
    match &table.guard {
        None => true,
        Some(guard) => is_allowed_out(guard, (shared, table), (packet, ip), memo, now),
    }
}

fn is_allowed_out(
    guard: &Guard,
    (shared, table): (&Shared, &Table),
    (packet, ip): (&[u8], &Ip),
    memo: &mut Memo,
    now: Instant,
) -> bool {
    let known = Known { shared, table };
    let verdict = guard.check(Direction::Outgoing, (packet, ip), &known, memo, now);
    passes(verdict, |asked, is_tried| {
        let denial = Denial {
            from: ip.source,
            to: ip.destination,
            asked,
            direction: Direction::Outgoing,
            is_tried,
        };
        note(shared, denial, Sender::Own(ip.source), now);
    })
}

/// Whether a packet with this verdict passes. `note` lists what is denied, or would be.
#[inline]
fn passes(verdict: Verdict, note: impl FnOnce(Asked, bool)) -> bool {
    match verdict {
        Verdict::Pass => true,
        Verdict::WouldDeny(asked) => {
            note(asked, true);
            true
        }
        Verdict::Deny(asked) => {
            note(asked, false);
            false
        }
    }
}

#[cold]
fn note(shared: &Shared, denial: Denial, sender: Sender, now: Instant) {
    if !denial.is_tried {
        shared.drops.add(DropReason::Policy);
    }
    let denials = shared.wakes.denials.lock();
    let mut denials = denials.unwrap_or_else(PoisonError::into_inner);
    if denials.note(denial, sender, now) {
        drop(denials);
        shared.wakes.news.raise();
    }
}
