//! The present mesh, from the records of the coordinator. meshctl verifies them with a ledger of its own, as a node does.

use super::exit::CliError;
use super::{Globals, mesh_key};
use crate::model::{Label, PublicKey};
use crate::policy::{Policy, Subject};
use crate::protocol::admin::{MeshState, RecordList};
use crate::protocol::api::ErrorCode;
use crate::records::netmap::{Netmap, Rules};
use crate::records::subjects::{not_keeping_to, subjects, without_policies};
use crate::records::{Envelope, Ledger, RecordKey};

/// The records of the mesh.
pub(super) struct Live {
    ledger: Ledger,
}

impl Live {
    /// Reads the records from the coordinator. They are verified up to the key in the file of the mesh key, or if this user has no such
    /// file, up to the key that the coordinator names.
    ///
    /// # Errors
    /// The coordinator is not reachable or has no mesh, or the file is the key of another mesh.
    pub(super) async fn read(globals: &Globals) -> Result<Self, CliError> {
        let state: MeshState = globals.coordinator().get("/v1/mesh").await?;
        let held = state.mesh_key.ok_or_else(mesh_key::no_mesh)?;
        if let Ok(key) = mesh_key::read(&globals.mesh_key) {
            mesh_key::check(&key, held, &globals.mesh_key)?;
        }
        Self::of_mesh(held, globals).await
    }

    /// Reads the records from the coordinator, and verifies them with the mesh key.
    ///
    /// # Errors
    /// The coordinator is not reachable.
    pub(super) async fn of_mesh(mesh_key: PublicKey, globals: &Globals) -> Result<Self, CliError> {
        let list: RecordList = globals.coordinator().get("/v1/records").await?;
        let mut ledger = Ledger::new(mesh_key);
        let refused = fill(&mut ledger, list.records);
        if refused > 0 {
            eprintln!(
                "warning: {refused} records of the coordinator do not verify and are left out; ask the person who runs it"
            );
        }
        Ok(Self { ledger })
    }

    /// The verified records.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The version of the policy record; 0 if there is none.
    pub(super) fn version(&self) -> u64 {
        let entry = self.ledger.entry(&RecordKey::Policy);
        entry.map_or(0, |entry| entry.version)
    }

    /// The text of the policy; none if there is none, or one in a form of a later version.
    pub(super) fn text(&self) -> Option<&str> {
        self.ledger.policy()?.text.as_deref()
    }

    /// The text of the policy that is tried beside it.
    pub(super) fn tried(&self) -> Option<&str> {
        self.ledger.policy()?.tried.as_deref()
    }

    /// The policy of the mesh; none if there is none.
    ///
    /// # Errors
    /// This version does not understand it.
    pub(super) fn policy(&self, command: &str) -> Result<Option<Policy>, CliError> {
        let Some(entry) = self.ledger.entry(&RecordKey::Policy) else {
            return Ok(None);
        };
        entry.record.policy().map(Some).map_err(|why| {
            let text = format!(
                "policy {command}: this meshctl does not understand the policy of the mesh ({why}); install the version with which it was applied"
            );
            CliError::new(ErrorCode::Version, text)
        })
    }

    /// The map of the mesh if `policy` were in force.
    pub(super) fn netmap(&self, policy: Option<&Policy>) -> Netmap {
        let rules = match policy {
            Some(policy) => Rules::Policy(policy.clone().into()),
            None => Rules::Open,
        };
        self.ledger.netmap_under(rules)
    }

    /// The subjects if `policy` were in force.
    pub(super) fn subjects(&self, policy: Option<&Policy>) -> Vec<Subject> {
        subjects(&self.netmap(policy))
    }

    /// The members that would not keep to a policy, because their version does not know policies.
    pub(super) fn without_policies(&self) -> Vec<Label> {
        without_policies(&self.ledger)
    }

    /// The members that would not keep to `policy`, because their version does not know what is in it.
    pub(super) fn not_keeping_to(&self, policy: &Policy) -> Vec<Label> {
        not_keeping_to(&self.ledger, policy)
    }
}

/// Applies the records of a coordinator. Returns how many the ledger refuses.
fn fill(ledger: &mut Ledger, records: Vec<Envelope>) -> usize {
    let results = records.into_iter().map(|record| ledger.apply(record));
    results.filter(Result::is_err).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::kinds::{Node, POLICY_1, Record};
    use crate::testbed::records as build;

    const MESH: u8 = 1;
    const TOKEN: u8 = 2;

    /// A mesh of the nodes 10, which knows policies, and 11, which does not.
    fn records() -> Vec<Envelope> {
        let token = crate::records::kinds::Token {
            uses: 2,
            ..build::token(&build::id(TOKEN))
        };
        let mut records = vec![
            build::sealed(&Record::Mesh(build::mesh()), MESH),
            build::sealed(&Record::Token(token), MESH),
        ];
        for (n, speaks) in [(10u8, vec![POLICY_1.to_owned()]), (11, vec![])] {
            let (id, token) = (build::id(n), build::id(TOKEN));
            let membership = build::membership(&id, &token, &format!("n{n}"));
            records.push(build::sealed(&Record::Membership(membership), TOKEN));
            let node = Node {
                speaks,
                ..build::node(&id, build::block(n.into()))
            };
            records.push(build::sealed(&Record::Node(node), n));
        }
        records
    }

    fn live(records: Vec<Envelope>) -> (Live, usize) {
        let mut ledger = Ledger::new(build::id(MESH));
        let refused = fill(&mut ledger, records);
        (Live { ledger }, refused)
    }

    #[test]
    fn members_of_a_version_without_policies_are_named() {
        let (live, refused) = live(records());
        assert_eq!(
            (live.without_policies(), refused),
            (vec![build::label("n11")], 0)
        );
        assert_eq!((live.version(), live.text()), (0, None));
    }

    #[test]
    fn a_policy_that_a_coordinator_made_up_is_left_out() {
        let mut records = records();
        let forged = Record::Policy(build::policy("language = 1\n"));
        records.push(build::sealed(&forged, 66));
        let (live, refused) = live(records);
        assert_eq!((live.version(), refused), (0, 1));
    }
}
