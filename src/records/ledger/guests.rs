//! The guests among the records of a ledger. See [`crate::records::kinds::Guest`].

use std::collections::{BTreeMap, BTreeSet};

use super::table::Table;
use crate::model::{Label, WireGuardKey};
use crate::records::key::RecordKey;
use crate::records::kinds::{GUEST, GUEST_REMOVAL, Guest};

/// Whether `table` holds the removal of a guest.
#[must_use]
pub fn is_removed(table: &Table, id: &WireGuardKey) -> bool {
    let key = RecordKey::parse(GUEST_REMOVAL, &id.to_string());
    table.entry(&key).is_some()
}

/// Returns the guest whose record has the key `key`, removed or not. None if it is another record, or one that breaks the rules of guests.
#[must_use]
pub fn record_at(table: &Table, key: &RecordKey) -> Option<Guest> {
    if key.kind() != GUEST {
        return None;
    }
    let guest = Guest::parse(&table.entry(key)?.envelope.payload)?;
    (guest.id.to_string() == key.id()).then_some(guest)
}

/// Returns the guest with the WireGuard key `id`, removed or not.
#[must_use]
pub fn record_of(table: &Table, id: &WireGuardKey) -> Option<Guest> {
    record_at(table, &RecordKey::parse(GUEST, &id.to_string()))
}

/// Returns the guests that were not removed, by name. A guest with a WireGuard key that a node has proved to
/// be its own is left out; a node that only claims the key of a guest takes nothing from it. If two have one name, the one
/// that was made first has it, and the other one is left out. Guests that have expired are among them: a ledger has no clock.
#[must_use]
pub fn guests(table: &Table) -> BTreeMap<Label, Guest> {
    let mut guests: BTreeMap<Label, Guest> = BTreeMap::new();
    let lowest = RecordKey::Unknown {
        kind: GUEST.to_owned(),
        id: String::new(),
    };
    let all = table.envelopes_after(Some(&lowest));
    let all = all.take_while(|(key, _)| key.kind() == GUEST);
    let mut all: Vec<Guest> = all.filter_map(|(key, _)| record_at(table, key)).collect();
    if all.is_empty() {
        return guests;
    }
    let proven = table.nodes().filter(|node| node.key_proof.is_some());
    let keys: BTreeSet<WireGuardKey> = proven.map(|node| node.wireguard_key).collect();
    all.retain(|guest| !is_removed(table, &guest.id) && !keys.contains(&guest.id));
    all.sort_by_key(|guest| (guest.version, guest.id));
    for guest in all {
        guests.entry(guest.name.clone()).or_insert(guest);
    }
    guests
}

#[cfg(test)]
mod tests;
