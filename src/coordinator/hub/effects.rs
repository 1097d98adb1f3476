//! What an accepted record changes in the store's tables of tokens, names and blocks.

use crate::coordinator::store::Effect;
use crate::model::PublicKey;
use crate::records::Ledger;
use crate::records::kinds::{Record, RecordKey, RevokedKind};
use crate::records::ledger::Replaced;

/// The effect of the record that `replaced` is about. `by_administrator` says whether the administrator submitted it.
pub(super) fn effect_of(ledger: &Ledger, replaced: &Replaced, by_administrator: bool) -> Effect {
    match ledger.entry(replaced.key()).map(|entry| &entry.record) {
        // A token that comes on a stream proves nothing about the nodes that it has admitted.
        Some(Record::Token(token)) if by_administrator && replaced.is_first() => {
            Effect::Issued(token.id)
        }
        Some(Record::Membership(membership)) if ledger.is_revoked(&membership.id) => {
            Effect::Spent {
                node: membership.id,
                token: membership.token,
            }
        }
        Some(Record::Membership(membership)) => Effect::Admitted {
            node: membership.id,
            token: membership.token,
            name: membership.name.clone(),
        },
        Some(Record::Node(node)) => ledger
            .mesh()
            .and_then(|mesh| mesh.addresses.index_of(&node.block))
            .map_or(Effect::None, |block| Effect::Leased {
                node: node.id,
                block,
            }),
        Some(Record::Revocation(revocation)) if revocation.revoked == RevokedKind::Node => {
            Effect::Released(vec![revocation.id])
        }
        Some(Record::Revocation(_)) => {
            let members = replaced.dropped().iter().filter_map(|key| match key {
                RecordKey::Membership(node) => Some(*node),
                _ => None,
            });
            let nodes: Vec<PublicKey> = members.collect();
            if nodes.is_empty() {
                Effect::None
            } else {
                Effect::Released(nodes)
            }
        }
        Some(Record::Departure(departure)) => Effect::Released(vec![departure.id]),
        _ => Effect::None,
    }
}
