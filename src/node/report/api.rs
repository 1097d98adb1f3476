//! What is needed to check a call of the API over the network.

use std::net::IpAddr;

use crate::model::PublicKey;
use crate::node::joined::JoinedNode;
use crate::os::web::Facts;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::api_token::Place;
use crate::records::{api_revocation, subjects};

/// The facts about the token with the id `token`, if there is one, and about a caller at `address`.
///
/// # Errors
/// The node has no record of the mesh.
pub(in crate::node) fn api_facts(
    node: &JoinedNode,
    token: Option<&PublicKey>,
    address: IpAddr,
) -> Result<Facts, ApiError> {
    let ledger = node.replica.ledger();
    let mesh = ledger.mesh().ok_or_else(no_mesh)?;
    let own = node.netmap.members.get(&node.id());
    let name = own.map_or(&node.identity.name, |member| &member.name);
    // A container of this node calls it from its own address, since no packet of such a call leaves the machine.
    let address = node.workloads.instance_of(address).unwrap_or(address);
    Ok(Facts {
        place: Place {
            mesh_key: ledger.mesh_key(),
            node: Some(name.clone()),
            is_revoked: token.is_some_and(|token| api_revocation::is_revoked(ledger, token)),
            caller: subjects::subject_at(&node.netmap, address),
        },
        domain: mesh.domain.clone(),
        names: Vec::new(),
    })
}

fn no_mesh() -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        "this node has no record of its mesh; look at the log of meshd",
    )
}
