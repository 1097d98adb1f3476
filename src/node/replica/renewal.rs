//! Which records a node accepts from its peers. Pure.
//!
//! A membership, a block and a name are claims to something that only one node can have, and a node must not profit from
//! spreading such a claim first. So these claims come only through a coordinator. Peers bring newer versions of records that
//! are held already, and records that claim nothing.

use crate::records::Ledger;
use crate::records::kinds::Record;

/// Whether `record` claims nothing that its signer does not have already by the records in `ledger`.
pub(super) fn is_renewal(ledger: &Ledger, record: &Record) -> bool {
    match record {
        Record::Membership(_) => false,
        Record::Node(node) => ledger
            .node(&node.id)
            .is_some_and(|held| held.block == node.block),
        Record::Name(name) => ledger
            .wanted_name(&name.id)
            .is_some_and(|held| held.name == name.name),
        Record::Mesh(_)
        | Record::Token(_)
        | Record::Revocation(_)
        | Record::Departure(_)
        | Record::Service(_)
        | Record::Policy(_)
        | Record::Unknown => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::address::{MeshAddresses, unique_local_prefix};
    use crate::model::time::UnixSeconds;
    use crate::model::{Label, SigningKey, WireGuardKey};
    use crate::records::Envelope;
    use crate::records::kinds::{
        Departure, MESH_ID, Membership, Mesh, Name, Node, Revocation, RevokedKind, Token,
    };

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn label(text: &str) -> Label {
        Label::parse(text).expect("a literal")
    }

    fn membership(n: u8, name: &str) -> Membership {
        Membership {
            id: key(n).public(),
            version: 1,
            token: key(2).public(),
            name: label(name),
            wireguard_key: WireGuardKey([n; 32]),
            tags: vec![],
            issued_at: UnixSeconds(10),
            proof: None,
        }
    }

    fn name(n: u8, version: u64, text: &str) -> Record {
        Record::Name(Name {
            id: key(n).public(),
            version,
            name: label(text),
        })
    }

    #[test]
    fn peers_renew_what_is_held_and_bring_no_membership_block_or_name() {
        let addresses = MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: unique_local_prefix(&key(1).public()),
            node_block_v4: 24,
            node_block_v6: 64,
        };
        let node = |n: u8, block, version, wireguard_key| {
            Record::Node(Node {
                id: key(n).public(),
                version,
                wireguard_key: WireGuardKey([wireguard_key; 32]),
                key_proof: None,
                block: addresses.block(block).expect("in the plan"),
                endpoints: vec![],
                without_ipv6: false,
                services_from: 0,
                program_version: None,
                speaks: vec![],
                relays: vec![],
                observed: vec![],
                mapped: vec![],
                stream: None,
                guest_key: None,
                guests: vec![],
                routes: vec![],
            })
        };
        let mesh = Record::Mesh(Mesh {
            id: MESH_ID.into(),
            version: 1,
            domain: label("mesh"),
            addresses,
            coordinators: vec![],
        });
        let token = Record::Token(Token {
            id: key(2).public(),
            version: 1,
            tags: vec![],
            uses: 9,
            created_at: UnixSeconds(1),
            expires_at: UnixSeconds(100),
            ephemeral: false,
        });
        let mut ledger = Ledger::new(key(1).public());
        for (record, signer) in [
            (mesh, 1),
            (token.clone(), 1),
            (Record::Membership(membership(3, "n3")), 2),
            (Record::Membership(membership(4, "n4")), 2),
            (node(3, 1, 1, 3), 3),
            (name(3, 1, "web"), 3),
        ] {
            let applied = ledger.apply(Envelope::seal(&record, &key(signer)));
            assert!(applied.is_ok(), "{applied:?}");
        }
        let revocation = Record::Revocation(Revocation {
            id: key(4).public(),
            version: 1,
            revoked: RevokedKind::Node,
            at: UnixSeconds(20),
            stays: None,
        });
        let accepted = [
            node(3, 1, 2, 3),
            // A node may change its tunnel key and its endpoints.
            node(3, 1, 2, 33),
            name(3, 2, "web"),
            revocation,
            Record::Departure(Departure::of(key(3).public())),
            token,
            Record::Unknown,
        ];
        for record in accepted {
            assert!(is_renewal(&ledger, &record), "{record:?}");
        }
        let passed_over = [
            node(3, 2, 2, 3),
            node(4, 2, 1, 4),
            name(3, 2, "db"),
            name(4, 1, "db"),
            name(4, 1, "n4"),
            Record::Membership(membership(5, "n5")),
            Record::Membership(membership(3, "n3")),
        ];
        for record in passed_over {
            assert!(!is_renewal(&ledger, &record), "{record:?}");
        }
    }
}
