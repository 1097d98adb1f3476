//! Lists for administrators, and numbers for metrics.

use std::time::Duration;

use super::state::State;
use super::view::View;
use crate::model::time::{Now, UnixSeconds};
use crate::model::{Label, MeshAddresses, PublicKey};
use crate::protocol::admin::{
    MeshState, NodeList, NodeRow, TokenList, TokenMemberships, TokenRow, TokenState,
};
use crate::records::kinds::{Membership, Node, Token};
use crate::records::{Ledger, RecordKey};

/// The size of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The number of members of the mesh.
    pub members: usize,
    pub records: usize,
    pub revision: u64,
    /// The number of open control streams.
    pub connections: usize,
    /// Whether the store has lost records and waits for the nodes to offer them.
    pub refilling: bool,
}

impl View {
    /// The size of the mesh.
    #[must_use]
    pub fn size(&self) -> Size {
        let state = self.read();
        let memberships = state.ledger.iter().flat_map(|ledger| {
            let members = ledger.memberships();
            members.filter(|member| !ledger.is_revoked(&member.id))
        });
        Size {
            members: memberships.count(),
            records: state.ledger.as_ref().map_or(0, |ledger| ledger.len()),
            revision: state.revision,
            connections: state.connected.values().sum(),
            refilling: state.refill.is_some(),
        }
    }

    /// The state that an administrator's commands need.
    #[must_use]
    pub fn mesh_state(&self) -> MeshState {
        let state = self.read();
        let ledger = state.ledger.as_ref();
        MeshState {
            mesh_key: ledger.map(Ledger::mesh_key),
            mesh: ledger.and_then(|ledger| ledger.mesh().cloned()),
            urls: self.setup.urls.clone(),
            pin: self.setup.pin,
            configured_domain: self.setup.domain.clone(),
            configured_addresses: MeshAddresses {
                prefix_v4: self.setup.prefix_v4,
                prefix_v6: self.setup.prefix_v6,
                node_block_v4: self.setup.node_block_v4,
                node_block_v6: 64,
            },
            url_problems: self.url_problems.read(),
        }
    }

    /// All tokens, newest first.
    #[must_use]
    pub fn tokens(&self, now: Now) -> TokenList {
        let state = self.read();
        let now = UnixSeconds::from_system(now.wall);
        let mut tokens: Vec<TokenRow> = state
            .ledger
            .iter()
            .flat_map(|ledger| ledger.tokens().map(|token| token_row(ledger, token, now)))
            .collect();
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.created_at), token.id));
        TokenList { schema: 1, tokens }
    }

    /// The membership certificates of the present members that `token` admitted.
    #[must_use]
    pub fn memberships_by(&self, token: &PublicKey) -> TokenMemberships {
        let state = self.read();
        let ledger = state.ledger.iter();
        let memberships = ledger.flat_map(|ledger| {
            ledger
                .members_by(token)
                .filter_map(|member| ledger.entry(&RecordKey::Membership(member.id)))
        });
        TokenMemberships {
            schema: 1,
            memberships: memberships.map(|entry| entry.envelope.clone()).collect(),
        }
    }

    /// All members, by name.
    #[must_use]
    pub fn nodes(&self, now: Now) -> NodeList {
        let state = self.read();
        let mut nodes: Vec<NodeRow> = state
            .ledger
            .iter()
            .flat_map(|ledger| {
                let mut names = ledger.names();
                ledger
                    .memberships()
                    .filter_map(|membership| {
                        let name = names.remove(&membership.id)?;
                        Some(node_row(&state, ledger, membership, name, now))
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        NodeList { schema: 1, nodes }
    }
}

fn token_row(ledger: &Ledger, token: &Token, now: UnixSeconds) -> TokenRow {
    let used = u32::try_from(ledger.admitted_by(&token.id)).unwrap_or(u32::MAX);
    let state = if ledger.is_token_revoked(&token.id) {
        TokenState::Revoked
    } else if used >= token.uses {
        TokenState::Spent
    } else if now >= token.expires_at {
        TokenState::Expired
    } else {
        TokenState::Valid
    };
    TokenRow {
        id: token.id,
        tags: token.tags.clone(),
        uses: token.uses,
        used,
        created_at: token.created_at,
        expires_at: token.expires_at,
        ephemeral: token.ephemeral,
        state,
    }
}

fn node_row(
    state: &State,
    ledger: &Ledger,
    membership: &Membership,
    name: Label,
    now: Now,
) -> NodeRow {
    let node = ledger.node(&membership.id);
    let connected = state.connected.contains_key(&membership.id);
    let absence = state
        .absent
        .get(&membership.id)
        .map(|since| now.monotonic.saturating_duration_since(*since))
        .or(connected.then_some(Duration::ZERO));
    NodeRow {
        id: membership.id,
        name,
        tags: ledger.tags_of(membership),
        address_v4: node.map(|node| node.block.node_v4()),
        address_v6: node.map(|node| node.block.node_v6()),
        endpoints: node.map(|node| node.endpoints.clone()).unwrap_or_default(),
        connected,
        joined_at: membership.issued_at,
        last_seen_at: absence
            .and_then(|absence| now.wall.checked_sub(absence))
            .map(UnixSeconds::from_system),
        version: node.and_then(Node::shown_version),
    }
}
