//! A guest as `meshctl guest list` and `meshctl guest show` print it. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::model::time::UnixSeconds;
use crate::model::{Label, WireGuardKey};
use crate::records::Ledger;
use crate::records::kinds::Guest;
use crate::records::ledger::guests;
use crate::records::netmap::Netmap;

/// A guest.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct GuestRow {
    pub(super) name: Label,
    /// The public half of the key of its tunnel.
    pub(super) key: WireGuardKey,
    pub(super) tags: Vec<Label>,
    /// The nodes through which it reaches the mesh.
    pub(super) doors: Vec<DoorRow>,
    /// The time from which no door lets it in. It is null if it stays until it is removed.
    pub(super) expires_at: Option<UnixSeconds>,
    pub(super) state: GuestState,
}

/// A door of a guest.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct DoorRow {
    /// The name of the node. It is null if the node is no member any more.
    pub(super) node: Option<Label>,
    /// The addresses that the node leased to the guest. They are null until it did.
    pub(super) address_v4: Option<Ipv4Addr>,
    pub(super) address_v6: Option<Ipv6Addr>,
}

/// Whether a guest is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GuestState {
    /// A door has heard it in the last three minutes.
    Here,
    /// A door lets it in, and has not heard it lately.
    Away,
    /// No door has leased addresses to it.
    Waiting,
    /// It has expired.
    Expired,
}

impl GuestState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Away => "away",
            Self::Waiting => "waiting for its door",
            Self::Expired => "expired",
        }
    }
}

/// The guests that were not removed, in the order of their names.
pub(super) fn rows(ledger: &Ledger, netmap: &Netmap, now: UnixSeconds) -> Vec<GuestRow> {
    let guests = guests::guests(ledger).into_values();
    guests.map(|guest| row(guest, netmap, now)).collect()
}

fn row(guest: Guest, netmap: &Netmap, now: UnixSeconds) -> GuestRow {
    let at: Vec<_> = netmap
        .guests
        .iter()
        .filter(|at| at.key == guest.id)
        .collect();
    let doors = guest.doors.iter().map(|door| {
        let member = netmap.members.get(&door.node);
        let at = at.iter().find(|at| at.door == door.node);
        DoorRow {
            node: member.map(|member| member.name.clone()),
            address_v4: at.map(|at| at.v4),
            address_v6: at.map(|at| at.v6),
        }
    });
    let state = if guest.is_expired(now) {
        GuestState::Expired
    } else if at.iter().any(|at| at.heard) {
        GuestState::Here
    } else if at.is_empty() {
        GuestState::Waiting
    } else {
        GuestState::Away
    };
    GuestRow {
        doors: doors.collect(),
        state,
        name: guest.name,
        key: guest.id,
        tags: guest.tags,
        expires_at: guest.expires_at,
    }
}
