//! Lets the data threads check packets against the policy, and lists those that it denies.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Instant;

use super::drops::DropReason;
use super::guard::{Denial, Direction, Guard, Members, Memo, Sender, Verdict};
use super::packet::Ip;
use super::peer::Peer;
use super::shared::Shared;
use super::table::Table;

/// The members of the mesh, as the tunnel knows them.
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
        let member = |address| self.table.owner(address).map(|peer| peer.member);
        member(one).is_some_and(|one| member(other) == Some(one))
    }
}

/// Whether a packet passes that `peer` sent. Packets that the policy denies are counted and listed.
#[inline]
pub(super) fn passes_in(
    within: (&Shared, &Table),
    peer: &Peer,
    packet: &[u8],
    memo: &mut Memo,
    now: Instant,
) -> bool {
    match &within.1.guard {
        None => true,
        Some(guard) => is_allowed_in(guard, within, peer, packet, memo, now),
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
    let sender = Sender::Member(peer.member);
    is_allowed(guard, (shared, table), sender, (packet, &ip), memo, now)
}

/// Whether a packet from the device passes, whose header is `ip`. Packets that the policy denies are counted and listed.
#[inline]
pub(super) fn passes_out(
    within: (&Shared, &Table),
    (packet, ip): (&[u8], &Ip),
    memo: &mut Memo,
    now: Instant,
) -> bool {
    match &within.1.guard {
        None => true,
        Some(guard) => {
            let sender = Sender::Own(ip.source);
            is_allowed(guard, within, sender, (packet, ip), memo, now)
        }
    }
}

fn is_allowed(
    guard: &Guard,
    (shared, table): (&Shared, &Table),
    sender: Sender,
    (packet, ip): (&[u8], &Ip),
    memo: &mut Memo,
    now: Instant,
) -> bool {
    let direction = match sender {
        Sender::Member(_) => Direction::Incoming,
        Sender::Own(_) => Direction::Outgoing,
    };
    let known = Known { shared, table };
    let (asked, is_tried) = match guard.check(direction, (packet, ip), &known, memo, now) {
        Verdict::Pass => return true,
        Verdict::WouldDeny(asked) => (asked, true),
        Verdict::Deny(asked) => (asked, false),
    };
    let denial = Denial {
        from: ip.source,
        to: ip.destination,
        asked,
        direction,
        is_tried,
    };
    note(shared, denial, sender, now);
    is_tried
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
