//! A mesh that is only a ledger in the test's process: the mesh record, one token, and members with their node records.

use meshd::model::SigningKey;
use meshd::model::address::{MeshAddresses, unique_local_prefix};
use meshd::protocol::JoinToken;
use meshd::protocol::token::SpkiPin;
use meshd::records::ledger::{Applied, Refused};
use meshd::records::{Envelope, Ledger};

use crate::kit::record::Draft;
use crate::kit::{Identity, Member, ledger_of, record};

pub(crate) struct SmallMesh {
    pub(crate) key: SigningKey,
    pub(crate) plan: MeshAddresses,
    pub(crate) token: JoinToken,
    /// The members, in the order in which they joined. The first is called `m1`.
    pub(crate) members: Vec<Member>,
    pub(crate) ledger: Ledger,
}

impl SmallMesh {
    /// Makes a mesh with `count` members.
    pub(crate) fn new(count: u8) -> Self {
        let key = SigningKey::from_seed(&[201; 32]);
        let token_key = SigningKey::from_seed(&[202; 32]);
        let plan = record::plan(unique_local_prefix(&key.public()));
        let certificate = record::token(token_key.public()).with("uses", 200);
        let ledger = ledger_of(
            key.public(),
            [
                record::mesh(&plan).signed_by(&key),
                certificate.signed_by(&key),
            ],
        );
        let token = JoinToken {
            urls: Vec::new(),
            pin: SpkiPin([0; 32]),
            mesh_key: key.public(),
            key: token_key,
        };
        let mut mesh = Self {
            key,
            plan,
            token,
            members: Vec::new(),
            ledger,
        };
        for _ in 0..count {
            let token = mesh.token.clone();
            let member = mesh.next_member(&token);
            assert_taken(mesh.ledger.apply(member.membership.clone()));
            assert_taken(mesh.ledger.apply(member.node().signed_by(member.key())));
            mesh.members.push(member);
        }
        mesh
    }

    /// Makes the member that would be the next to join with `token`. None of its records is in the ledger.
    pub(crate) fn next_member(&self, token: &JoinToken) -> Member {
        let number = u8::try_from(self.members.len() + 1).expect("few members");
        let (identity, name) = (Identity::of(number), format!("m{number}"));
        let membership = record::membership(token.key.public(), &identity, &name);
        Member {
            membership: membership.signed_by(&token.key),
            block: self.plan.block(number.into()).expect("a small number"),
            token: token.clone(),
            identity,
            name,
        }
    }

    /// Signs a record with the mesh key.
    pub(crate) fn by_mesh_key(&self, draft: &Draft) -> Envelope {
        draft.signed_by(&self.key)
    }

    /// Makes another ledger of all that this one holds, in the order in which nodes receive the records.
    pub(crate) fn copy(&self) -> Ledger {
        let mut copy = Ledger::new(self.key.public());
        for envelope in self.ledger.envelopes() {
            assert_taken(copy.apply(envelope.clone()));
        }
        copy
    }
}

/// Asserts that the record was new and is held now.
#[track_caller]
pub(crate) fn assert_taken(result: Result<Applied, Refused>) {
    assert!(matches!(result, Ok(Applied::Changed(_))), "{result:?}");
}
