//! The identity of this node after it gets a new key of the tunnel or a new name.

use super::replica::Replica;
use super::state::{Identity, Keys, Previous};
use crate::model::Label;
use crate::model::time::UnixSeconds;
use crate::protocol::api::{ApiError, ErrorCode};

/// The identity with a new key of the tunnel. The old key is accepted for a while.
///
/// # Errors
/// The key was changed a moment ago (`is_rotating`), or the system returns no random bytes.
pub(super) fn rotated(
    identity: &Identity,
    is_rotating: bool,
    now: UnixSeconds,
) -> Result<Identity, ApiError> {
    if is_rotating {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "the key was changed less than {} min ago, and the previous key is still accepted; try again later",
                crate::tunnel::OVERLAP.as_secs() / 60
            ),
        ));
    }
    let fresh = Keys::generate().map_err(|e| {
        ApiError::new(
            ErrorCode::Internal,
            format!("the system returns no random bytes: {e}"),
        )
    })?;
    let mut rotated = identity.clone();
    let wireguard = std::mem::replace(&mut rotated.keys.wireguard, fresh.wireguard);
    rotated.previous = Some(Previous {
        wireguard,
        until: now.plus(crate::tunnel::OVERLAP),
    });
    Ok(rotated)
}

/// The identity with another name.
///
/// # Errors
/// Another node has this name.
pub(super) fn renamed(
    identity: &Identity,
    replica: &Replica,
    name: &Label,
) -> Result<Identity, ApiError> {
    let id = identity.keys.identity.public();
    if replica.ledger().is_name_of_another(name, &id) {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("another node is called {name}, or joined with that name; choose another"),
        ));
    }
    Ok(Identity {
        name: name.clone(),
        ..identity.clone()
    })
}
