//! Stores a permitted record, and drops the records that it makes void.

use std::collections::HashSet;

use super::names::Claim;
use super::table::Entry;
use super::usage::owner;
use super::{Ledger, Replaced};
use crate::model::PublicKey;
use crate::records::RecordKey;
use crate::records::kinds::{Membership, Node, Record, Revocation, RevokedKind};

/// Stores a permitted record and updates the indexes.
pub(super) fn store(ledger: &mut Ledger, key: RecordKey, entry: Entry) -> Replaced {
    let mut dropped = Vec::new();
    match &entry.record {
        Record::Membership(membership) => admit(ledger, membership),
        Record::Revocation(revocation) => {
            dropped = match revocation.revoked {
                RevokedKind::Node => expel(ledger, revocation.id),
                RevokedKind::Token => withdraw_memberships(ledger, revocation),
            };
        }
        Record::Departure(departure) => dropped = expel(ledger, departure.id),
        Record::Node(node) => {
            dropped = make_way_for(ledger, node);
            let before = ledger.table.node(&node.id);
            ledger.addresses.replace(before, node);
        }
        Record::Name(name) => {
            if let Some(before) = ledger.table.wanted_name(&name.id) {
                ledger.names.remove(&before.name, name.id, Claim::Wanted);
            }
            ledger.names.add(&name.name, name.id, Claim::Wanted);
        }
        Record::Mesh(_)
        | Record::Token(_)
        | Record::Service(_)
        | Record::Policy(_)
        | Record::Unknown => {}
    }
    ledger.usages.add(&entry);
    let before = ledger.table.insert(key.clone(), entry);
    if let Some(before) = &before {
        ledger.usages.remove(before);
    }
    Replaced {
        key,
        before,
        dropped,
    }
}

/// Indexes a membership, which may replace another one of the same node.
fn admit(ledger: &mut Ledger, membership: &Membership) {
    if let Some(before) = ledger.table.membership(&membership.id).cloned() {
        release_claims(ledger, &before);
        // Only memberships that are held count as uses of their tokens, so that a ledger that receives only the last membership of
        // a node counts the same.
        if before.token != membership.token
            && let Some(nodes) = ledger.admitted.get_mut(&before.token)
        {
            nodes.remove(&before.id);
        }
    }
    ledger
        .admitted
        .entry(membership.token)
        .or_default()
        .insert(membership.id);
    // The WireGuard key and the name of a removed node are free.
    if !ledger.removed.contains(&membership.id) {
        let node = membership.id;
        ledger
            .addresses
            .add_membership(membership.wireguard_key, node);
        ledger.names.add(&membership.name, node, Claim::Joined);
    }
}

/// Frees the WireGuard key and the name of a membership.
fn release_claims(ledger: &mut Ledger, membership: &Membership) {
    let node = membership.id;
    ledger
        .addresses
        .remove_membership(&membership.wireguard_key, &node);
    ledger.names.remove(&membership.name, node, Claim::Joined);
}

/// Drops the records that a new node record makes void: the record of another node that has the WireGuard key without a proof,
/// and the node's own services with versions below `services_from`.
fn make_way_for(ledger: &mut Ledger, node: &Node) -> Vec<RecordKey> {
    let mut dropped = Vec::new();
    let holder = ledger.addresses.holder_of_key(&node.wireguard_key);
    if let Some(other) = holder.filter(|holder| *holder != node.id) {
        dropped.extend(drop_record(ledger, RecordKey::Node(other)));
    }
    let held = ledger.table.node(&node.id);
    let floor = held.map_or(0, |held| held.services_from);
    if node.services_from > floor {
        let cleared: Vec<RecordKey> = ledger
            .table
            .services_of(&node.id)
            .filter(|service| service.version < node.services_from)
            .map(|service| RecordKey::Service(service.service_id()))
            .collect();
        dropped.extend(
            cleared
                .into_iter()
                .filter_map(|key| drop_record(ledger, key)),
        );
    }
    dropped
}

/// Removes a node, and drops its records except for its membership and its departure.
fn expel(ledger: &mut Ledger, node: PublicKey) -> Vec<RecordKey> {
    ledger.removed.insert(node);
    if let Some(membership) = ledger.table.membership(&node).cloned() {
        release_claims(ledger, &membership);
    }
    drop_records(ledger, |held| {
        let stays = matches!(held.record, Record::Membership(_) | Record::Departure(_));
        !stays && owner(&held.envelope.signer, &held.record) == Some(node)
    })
}

/// Drops the memberships that the revocation of their token does not spare, with all other records of their nodes.
fn withdraw_memberships(ledger: &mut Ledger, revocation: &Revocation) -> Vec<RecordKey> {
    // A revocation of an earlier version lists no nodes. Such a revocation removes no member: its date would have to be
    // compared with the date of a membership, which comes from the clock of a node.
    if revocation.stays.is_none() {
        return Vec::new();
    }
    let withdrawn: Vec<Membership> = ledger
        .table
        .memberships()
        .filter(|m| m.token == revocation.id && !revocation.spares(m))
        .cloned()
        .collect();
    for membership in &withdrawn {
        release_claims(ledger, membership);
        if let Some(nodes) = ledger.admitted.get_mut(&membership.token) {
            nodes.remove(&membership.id);
        }
        let revoked = ledger.table.revocation(&membership.id);
        if revoked.is_none_or(|revocation| revocation.revoked != RevokedKind::Node) {
            ledger.removed.remove(&membership.id);
        }
    }
    let nodes: HashSet<PublicKey> = withdrawn.iter().map(|m| m.id).collect();
    drop_records(ledger, |held| {
        owner(&held.envelope.signer, &held.record).is_some_and(|node| nodes.contains(&node))
    })
}

/// Drops all records that are void. Returns their keys.
fn drop_records(ledger: &mut Ledger, is_void: impl Fn(&Entry) -> bool) -> Vec<RecordKey> {
    let void = ledger.table.keys_of(is_void);
    void.into_iter()
        .filter_map(|key| drop_record(ledger, key))
        .collect()
}

/// Drops a record and removes it from the indexes. Returns its key if it was held.
fn drop_record(ledger: &mut Ledger, key: RecordKey) -> Option<RecordKey> {
    let held = ledger.table.remove(&key)?;
    match &held.record {
        Record::Node(node) => ledger.addresses.remove(node),
        Record::Name(name) => ledger.names.remove(&name.name, name.id, Claim::Wanted),
        _ => {}
    }
    ledger.usages.remove(&held);
    Some(key)
}

/// Undoes the last change of a ledger, as [`Ledger::put_back`] describes.
pub(super) fn put_back(ledger: &mut Ledger, replaced: Replaced) -> bool {
    let Replaced {
        key,
        before,
        dropped,
    } = replaced;
    if !dropped.is_empty() {
        return false;
    }
    let Some(held) = ledger.table.remove(&key) else {
        return false;
    };
    match (&held.record, before.as_ref().map(|entry| &entry.record)) {
        (Record::Service(_), _) => {}
        (Record::Node(node), Some(Record::Node(before))) => {
            ledger.addresses.replace(Some(node), before);
        }
        (Record::Node(node), _) => ledger.addresses.remove(node),
        _ => {
            ledger.table.insert(key, held);
            return false;
        }
    }
    ledger.usages.remove(&held);
    if let Some(before) = before {
        ledger.usages.add(&before);
        ledger.table.insert(key, before);
    }
    true
}
