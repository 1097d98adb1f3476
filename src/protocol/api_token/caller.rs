//! The caller of a call whose handler looks itself what is permitted: the calls about spawned containers.

use super::scope::Scope;
use crate::model::PublicKey;
use crate::policy::Subject;

/// A caller, with what proves who it is. At least one of the two is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiCaller {
    pub token: Option<ShownToken>,
    /// The node or instance of the mesh that has the address of the caller.
    pub subject: Option<Subject>,
}

/// A token that was shown with the call, and permits calls at this server, at this time and for this caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownToken {
    pub id: PublicKey,
    pub scopes: Vec<Scope>,
}
