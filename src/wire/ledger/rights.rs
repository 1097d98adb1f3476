//! Who may say what, given all that a ledger holds.

use super::{Ledger, Refused};
use crate::model::PublicKey;
use crate::model::record::{Membership, Node, Record, RecordKey, RevokedKind, Service};

impl Ledger {
    /// Whether `signer` may say `record`, given all that is held.
    pub(super) fn permit(
        &self,
        signer: &PublicKey,
        key: &RecordKey,
        record: &Record,
    ) -> Result<(), Refused> {
        let signed_by = |rightful: &PublicKey| {
            if signer == rightful {
                Ok(())
            } else {
                Err(Refused::Signer(key.clone()))
            }
        };
        match record {
            Record::Mesh(_) | Record::Token(_) | Record::Revocation(_) => signed_by(&self.mesh_key),
            Record::Membership(membership) => {
                signed_by(&membership.token).and_then(|()| self.permit_membership(membership))
            }
            Record::Departure(departure) => {
                signed_by(&departure.id).and_then(|()| self.permit_member(&departure.id))
            }
            Record::Node(node) => signed_by(&node.id).and_then(|()| self.permit_node(node)),
            Record::Name(name) => signed_by(&name.id).and_then(|()| self.permit_member(&name.id)),
            Record::Service(service) => {
                signed_by(&service.node).and_then(|()| self.permit_service(service))
            }
            Record::Unknown if *signer == self.mesh_key => Ok(()),
            Record::Unknown => self.permit_member(signer),
        }
    }

    fn permit_membership(&self, membership: &Membership) -> Result<(), Refused> {
        let token = self.token(&membership.token).ok_or(Refused::UnknownToken)?;
        if let Some(Record::Revocation(revocation)) =
            self.record("revocation", &membership.token.to_string())
            && revocation.revoked == RevokedKind::Token
            && membership.issued_at >= revocation.at
        {
            return Err(Refused::TokenRevoked);
        }
        if self.is_revoked(&membership.id) {
            return Err(Refused::NodeRevoked);
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
        if self.holders.conflict(node) {
            Err(Refused::BlockTaken(node.block.v4.to_string()))
        } else {
            Ok(())
        }
    }

    fn permit_service(&self, service: &Service) -> Result<(), Refused> {
        self.permit_member(&service.node)?;
        let mesh = self.mesh().ok_or(Refused::NoMesh)?;
        let block = self.node(&service.node).map(|n| n.block);
        for address in service.instances.iter().flat_map(|i| &i.addresses) {
            if mesh.addresses.contains(*address) && !block.is_some_and(|b| b.contains(*address)) {
                return Err(Refused::ForeignAddress(*address));
            }
        }
        Ok(())
    }
}
