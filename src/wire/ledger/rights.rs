//! Who may say what, given all that a ledger holds.

use super::{Ledger, Refused};
use crate::model::PublicKey;
use crate::model::record::{
    Departure, Membership, Name, Node, Record, RecordKey, RevokedKind, Service,
};
use crate::wire::Envelope;

/// How far the clocks of the machines where a token and a membership are made may be apart. A coordinator is stricter when
/// the node joins: it has a clock.
const CLOCK_SLACK_SECONDS: u64 = 24 * 3600;

impl Ledger {
    /// Whether `signer` may say `record`, given all that is held.
    pub(super) fn permit(
        &self,
        envelope: &Envelope,
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
            Record::Mesh(_) | Record::Token(_) | Record::Revocation(_) => signed_by(&self.mesh_key),
            Record::Membership(membership) => {
                signed_by(&membership.token).and_then(|()| self.permit_membership(membership))
            }
            Record::Departure(departure) => {
                signed_by(&departure.id).and_then(|()| self.permit_departure(departure))
            }
            Record::Node(node) => signed_by(&node.id).and_then(|()| self.permit_node(node)),
            Record::Name(name) => signed_by(&name.id).and_then(|()| self.permit_name(name)),
            Record::Service(service) => {
                signed_by(&service.node).and_then(|()| self.permit_service(service))
            }
            Record::Unknown if *signer == self.mesh_key => return Ok(()),
            Record::Unknown => self.permit_member(signer),
        };
        rightful?;
        let octets = envelope.payload.len();
        let before = self.entries.get(key);
        match self.usages.exceeded_with(signer, octets, record, before) {
            Some(bound) => Err(Refused::Full(bound)),
            None => Ok(()),
        }
    }

    fn permit_membership(&self, membership: &Membership) -> Result<(), Refused> {
        let token = self.token(&membership.token).ok_or(Refused::UnknownToken)?;
        if let Some(Record::Revocation(revocation)) =
            self.record("revocation", &membership.token.to_string())
            && revocation.revoked == RevokedKind::Token
            && !revocation.spares(membership)
        {
            return Err(Refused::TokenRevoked);
        }
        if membership.issued_at.0.saturating_add(CLOCK_SLACK_SECONDS) < token.created_at.0 {
            return Err(Refused::BeforeToken);
        }
        if let Some(held) = self.membership(&membership.id)
            && held.name != membership.name
            && self.is_name_of_another(&membership.name, &membership.id)
        {
            return Err(Refused::NameTaken(membership.name.to_string()));
        }
        if membership.issued_at >= token.expires_at {
            return Err(Refused::TokenExpired);
        }
        if let Some(tag) = membership.tags.iter().find(|tag| !token.tags.contains(tag)) {
            return Err(Refused::Tag(tag.to_string()));
        }
        // A node that joins again must not shed the certificate it is known by for a stranger's token.
        if let Some(held) = self.membership(&membership.id)
            && held.token != membership.token
            && self.admitted_by(&membership.token) >= token.uses as usize
        {
            return Err(Refused::TokenSpent(token.uses));
        }
        let admitted = self.admitted.get(&membership.token);
        let known = admitted.is_some_and(|nodes| nodes.contains(&membership.id));
        if !known && self.admitted_by(&membership.token) >= token.uses as usize {
            return Err(Refused::TokenSpent(token.uses));
        }
        Ok(())
    }

    fn permit_member(&self, node: &PublicKey) -> Result<(), Refused> {
        if self.is_revoked(node) {
            return Err(Refused::NodeRevoked);
        }
        self.membership(node).map(drop).ok_or(Refused::NotAMember)
    }

    /// A departure of a node that was removed as well is held like any other, so that their order does not matter.
    fn permit_departure(&self, departure: &Departure) -> Result<(), Refused> {
        self.membership(&departure.id)
            .map(drop)
            .ok_or(Refused::NotAMember)
    }

    fn permit_name(&self, name: &Name) -> Result<(), Refused> {
        self.permit_member(&name.id)?;
        if self.is_name_of_another(&name.name, &name.id) {
            return Err(Refused::NameTaken(name.name.to_string()));
        }
        Ok(())
    }

    fn permit_node(&self, node: &Node) -> Result<(), Refused> {
        self.permit_member(&node.id)?;
        let mesh = self.mesh().ok_or(Refused::NoMesh)?;
        if mesh.addresses.index_of(&node.block).is_none() {
            return Err(Refused::ForeignBlock(node.block.v4.to_string()));
        }
        // Outer packets to an address inside the mesh would go round in circles.
        if let Some(endpoint) = node
            .endpoints
            .iter()
            .find(|e| mesh.addresses.contains(e.ip()))
        {
            return Err(Refused::ForeignAddress(endpoint.ip()));
        }
        if self.holders.block_is_taken(node) {
            return Err(Refused::BlockTaken(node.block.v4.to_string()));
        }
        self.permit_key(node)
    }

    /// A proof decides; without one the key is that of the node whose membership names it, or which holds it.
    fn permit_key(&self, node: &Node) -> Result<(), Refused> {
        let key = &node.wireguard_key;
        let holder = self.holders.holder_of_key(key);
        let other = holder.filter(|holder| *holder != node.id);
        match &node.key_proof {
            Some(proof) if !proof.holds(&node.id, key) => Err(Refused::KeyProof),
            Some(_) => {
                let is_proved =
                    |other: &PublicKey| self.node(other).is_some_and(|n| n.key_proof.is_some());
                if other.as_ref().is_some_and(is_proved) {
                    return Err(Refused::KeyTaken);
                }
                Ok(())
            }
            None if other.is_some() || self.holders.is_named_by_another(key, &node.id) => {
                Err(Refused::KeyTaken)
            }
            None => Ok(()),
        }
    }

    fn permit_service(&self, service: &Service) -> Result<(), Refused> {
        self.permit_member(&service.node)?;
        // Addresses outside the node's block are left out of the netmap. They are no reason to refuse the record: ledgers that
        // learn of a node's block at different times would hold different records.
        self.mesh().ok_or(Refused::NoMesh)?;
        let floor = self.node(&service.node).map_or(0, |n| n.services_from);
        if service.version < floor {
            return Err(Refused::Stale {
                key: RecordKey {
                    kind: "service".to_owned(),
                    id: service.id.clone(),
                },
                offered: service.version,
                held: floor,
            });
        }
        Ok(())
    }
}
