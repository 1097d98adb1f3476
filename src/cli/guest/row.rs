//! A guest as `meshctl guest list` and `meshctl guest show` print it. Pure.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, WireGuardKey};
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
    /// No door that lets it in is connected to the coordinator.
    DoorAway,
    /// No door has leased addresses to it.
    Waiting,
    /// None of its doors is a node of the mesh any more.
    DoorRemoved,
    /// It has expired.
    Expired,
}

impl GuestState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Away => "away",
            Self::DoorAway => "its door is away",
            Self::Waiting => "waiting for its door",
            Self::DoorRemoved => "its door was removed",
            Self::Expired => "expired",
        }
    }
}

/// The guests that were not removed, in the order of their names. `connected` are the nodes that are connected to the coordinator: the others
/// cannot say of a guest that it is not there any more.
pub(super) fn rows(
    ledger: &Ledger,
    netmap: &Netmap,
    connected: &BTreeSet<PublicKey>,
    now: UnixSeconds,
) -> Vec<GuestRow> {
    let guests = guests::guests(ledger).into_values();
    guests
        .map(|guest| row(guest, netmap, connected, now))
        .collect()
}

fn row(
    guest: Guest,
    netmap: &Netmap,
    connected: &BTreeSet<PublicKey>,
    now: UnixSeconds,
) -> GuestRow {
    let at = netmap.guests.iter().filter(|at| at.key == guest.id);
    let at: Vec<_> = at.collect();
    let doors = guest.doors.iter().map(|door| {
        let member = netmap.members.get(&door.node);
        let at = at.iter().find(|at| at.door == door.node);
        DoorRow {
            node: member.map(|member| member.name.clone()),
            address_v4: at.map(|at| at.v4),
            address_v6: at.map(|at| at.v6),
        }
    });
    let doors: Vec<DoorRow> = doors.collect();
    let mut present = at.iter().filter(|at| connected.contains(&at.door));
    let state = if guest.is_expired(now) {
        GuestState::Expired
    } else if doors.iter().all(|door| door.node.is_none()) {
        GuestState::DoorRemoved
    } else if at.is_empty() {
        GuestState::Waiting
    } else if present.clone().any(|at| at.heard) {
        GuestState::Here
    } else if present.next().is_some() {
        GuestState::Away
    } else {
        GuestState::DoorAway
    };
    GuestRow {
        doors,
        state,
        name: guest.name,
        key: guest.id,
        tags: guest.tags,
        expires_at: guest.expires_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::kinds::Door;
    use crate::records::netmap::GuestAt;
    use crate::testbed::records as build;
    use crate::testbed::records::label;

    /// The guest `anna` of the doors 10 and 11, which expires at 100.
    fn anna() -> Guest {
        let id = WireGuardKey([7; 32]);
        let door = |n: u8| Door::seal(build::id(n), &id, &[1; 32], &[n; 32]).expect("a key");
        Guest {
            id,
            version: 1,
            name: label("anna"),
            tags: vec![],
            doors: vec![door(10), door(11)],
            preshared_hash: Guest::hash_of(&[1; 32]),
            expires_at: Some(UnixSeconds(100)),
        }
    }

    /// A map with these nodes, and with leases to `anna`: the door, and whether it has heard her.
    fn netmap(members: &[u8], leases: &[(u8, bool)]) -> Netmap {
        let mut netmap = Netmap::default();
        for n in members {
            let member = build::member(&build::id(*n), &format!("n{n}"), build::block((*n).into()));
            netmap.members.insert(member.id, member);
        }
        netmap.guests = leases
            .iter()
            .map(|(n, heard)| GuestAt {
                name: label("anna"),
                key: anna().id,
                tags: vec![],
                door: build::id(*n),
                v4: [10, 210, *n, 254].into(),
                v6: "fd00::fe".parse().expect("a literal"),
                heard: *heard,
            })
            .collect();
        netmap
    }

    #[test]
    fn the_state_of_a_guest_is_what_a_connected_door_says() {
        let state = |members: &[u8], leases: &[(u8, bool)], connected: &[u8]| {
            let connected = connected.iter().map(|n| build::id(*n)).collect();
            row(
                anna(),
                &netmap(members, leases),
                &connected,
                UnixSeconds(99),
            )
            .state
        };
        let both: &[u8] = &[10, 11];
        let heard: &[(u8, bool)] = &[(10, true), (11, false)];
        assert_eq!(state(both, heard, both), GuestState::Here);
        // A door that died says of its guests what it said last.
        assert_eq!(state(both, heard, &[11]), GuestState::Away);
        assert_eq!(state(both, heard, &[]), GuestState::DoorAway);
        assert_eq!(state(both, &[], both), GuestState::Waiting);
        assert_eq!(state(&[], &[], both), GuestState::DoorRemoved);
        let expired = row(
            anna(),
            &netmap(both, heard),
            &BTreeSet::new(),
            UnixSeconds(100),
        );
        assert_eq!(expired.state, GuestState::Expired);
    }
}
