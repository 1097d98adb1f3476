//! Decides whether a signer may publish a record, given all records that a ledger holds.

use super::{Ledger, Refused};
use crate::model::PublicKey;
use crate::records::RecordKey;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Departure, Membership, Name, Node, Record, RevokedKind, Service};

/// The maximum difference between the clock of the machine that made a token and the clock of a machine that made a membership.
/// When a node joins, a coordinator permits less, since it can compare with its own clock.
const CLOCK_SLACK_SECONDS: u64 = 24 * 3600;

/// Checks that the signer of `envelope` may publish `record`, given all records held.
pub(super) fn permit(
    ledger: &Ledger,
    envelope: &Authentic,
    key: &RecordKey,
    record: &Record,
) -> Result<(), Refused> {
    let signer = &envelope.signer;
    let signed_by = |rightful: &PublicKey| {
        if signer == rightful {
            Ok(())
        } else {
            Err(Refused::Signer(key.clone()))
        }
    };
    let rightful = match record {
        Record::Mesh(_) | Record::Token(_) | Record::Revocation(_) | Record::Policy(_) => {
            signed_by(&ledger.mesh_key)
        }
        Record::Membership(membership) => {
            let is_proven = envelope.is_proven();
            signed_by(&membership.token)
                .and_then(|()| permit_membership(ledger, membership, is_proven))
        }
        Record::Departure(departure) => {
            signed_by(&departure.id).and_then(|()| permit_departure(ledger, departure))
        }
        Record::Node(node) => signed_by(&node.id).and_then(|()| permit_node(ledger, node)),
        Record::Name(name) => signed_by(&name.id).and_then(|()| permit_name(ledger, name)),
        Record::Service(service) => {
            signed_by(&service.node).and_then(|()| permit_service(ledger, service))
        }
        Record::Unknown if *signer == ledger.mesh_key => return Ok(()),
        Record::Unknown => permit_member(ledger, signer),
    };
    rightful?;
    let bytes = envelope.payload.len();
    let before = ledger.entry(key);
    match ledger.usages.exceeded_with(signer, bytes, record, before) {
        Some(bound) => Err(Refused::Full(bound)),
        None => Ok(()),
    }
}

fn permit_membership(
    ledger: &Ledger,
    membership: &Membership,
    is_proven: bool,
) -> Result<(), Refused> {
    let token = ledger
        .token(&membership.token)
        .ok_or(Refused::UnknownToken)?;
    if let Some(revocation) = ledger.revocation(&membership.token)
        && revocation.revoked == RevokedKind::Token
        && !revocation.spares(membership)
    {
        return Err(Refused::TokenRevoked);
    }
    if membership.issued_at.0.saturating_add(CLOCK_SLACK_SECONDS) < token.created_at.0 {
        return Err(Refused::BeforeToken);
    }
    // Somebody other than the node may have caused a membership without a proof. So the first one with a proof is treated like the
    // first membership of the node: another node that has the name does not prevent it.
    if let Some(held) = ledger.membership(&membership.id)
        && held.name != membership.name
        && ledger.is_membership_proven(&membership.id) == is_proven
        && ledger.is_name_of_another(&membership.name, &membership.id)
    {
        return Err(Refused::NameTaken(membership.name.to_string()));
    }
    if membership.issued_at >= token.expires_at {
        return Err(Refused::TokenExpired);
    }
    if let Some(tag) = membership.tags.iter().find(|tag| !token.tags.contains(tag)) {
        return Err(Refused::Tag(tag.to_string()));
    }
    let admitted = ledger.admitted.get(&membership.token);
    let known = admitted.is_some_and(|nodes| nodes.contains(&membership.id));
    if !known && ledger.admitted_by(&membership.token) >= token.uses as usize {
        return Err(Refused::TokenSpent(token.uses));
    }
    Ok(())
}

fn permit_member(ledger: &Ledger, node: &PublicKey) -> Result<(), Refused> {
    if ledger.is_revoked(node) {
        return Err(Refused::NodeRevoked);
    }
    ledger.membership(node).map(drop).ok_or(Refused::NotAMember)
}

/// The departure of a removed node is accepted as well, so that the order of departure and removal does not matter.
fn permit_departure(ledger: &Ledger, departure: &Departure) -> Result<(), Refused> {
    ledger
        .membership(&departure.id)
        .map(drop)
        .ok_or(Refused::NotAMember)
}

fn permit_name(ledger: &Ledger, name: &Name) -> Result<(), Refused> {
    permit_member(ledger, &name.id)?;
    if ledger.is_name_of_another(&name.name, &name.id) {
        return Err(Refused::NameTaken(name.name.to_string()));
    }
    Ok(())
}

fn permit_node(ledger: &Ledger, node: &Node) -> Result<(), Refused> {
    permit_member(ledger, &node.id)?;
    let mesh = ledger.mesh().ok_or(Refused::NoMesh)?;
    if mesh.addresses.index_of(&node.block).is_none() {
        return Err(Refused::ForeignBlock(node.block.v4.to_string()));
    }
    // Packets of the tunnel to an address inside the mesh would be sent through the tunnel again.
    if let Some(endpoint) = node
        .endpoints
        .iter()
        .find(|e| mesh.addresses.contains(e.ip()))
    {
        return Err(Refused::ForeignAddress(endpoint.ip()));
    }
    if ledger.addresses.block_is_taken(node) {
        return Err(Refused::BlockTaken(node.block.v4.to_string()));
    }
    permit_key(ledger, node)
}

/// A node with a proof gets the key, unless another node has proved it before. Without a proof a node gets the key only if no
/// other node has it and no membership of other nodes alone names it.
fn permit_key(ledger: &Ledger, node: &Node) -> Result<(), Refused> {
    let key = &node.wireguard_key;
    let holder = ledger.addresses.holder_of_key(key);
    let other = holder.filter(|holder| *holder != node.id);
    match &node.key_proof {
        Some(proof) if !proof.holds(&node.id, key) => Err(Refused::KeyProof),
        Some(_) => {
            let is_proved =
                |other: &PublicKey| ledger.node(other).is_some_and(|n| n.key_proof.is_some());
            if other.as_ref().is_some_and(is_proved) {
                return Err(Refused::KeyTaken);
            }
            Ok(())
        }
        None if other.is_some() || ledger.addresses.is_key_of_another_membership(key, &node.id) => {
            Err(Refused::KeyTaken)
        }
        None => Ok(()),
    }
}

fn permit_service(ledger: &Ledger, service: &Service) -> Result<(), Refused> {
    permit_member(ledger, &service.node)?;
    // The netmap leaves out addresses outside the node's block. The record is accepted all the same: otherwise ledgers that
    // receive the node's block at different times would hold different records.
    ledger.mesh().ok_or(Refused::NoMesh)?;
    let floor = ledger.node(&service.node).map_or(0, |n| n.services_from);
    if service.version < floor {
        return Err(Refused::Stale {
            key: RecordKey::Service(service.service_id()),
            offered: service.version,
            held: floor,
        });
    }
    Ok(())
}
