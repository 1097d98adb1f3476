//! API tokens, with which programs call the API of nodes and coordinators.
//!
//! The administrator signs a certificate with the mesh key, and the token is this certificate. It is published nowhere, so the
//! possession of a token is the proof of its rights. A node or coordinator checks it with the mesh key alone, without asking anybody.
//! Only the revocation of a token is a record (`records::api_revocation`).
//!
//! | file | what it is |
//! |---|---|
//! | `certificate` | the contents of a token, and its text |
//! | `scope` | the groups of calls that a token permits |
//! | `caller` | the caller of a call whose handler looks itself what is permitted |
//! | `permit` | whether a token permits a call at this server, at this time and for this caller |

mod caller;
mod certificate;
mod permit;
mod scope;

pub use self::caller::{ApiCaller, ShownToken};
pub use self::certificate::{
    ApiCertificate, ApiToken, ApiTokenError, MAX_BINDINGS, MAX_NODES, PREFIX,
};
pub use self::permit::{Place, TokenRefused, permit};
pub use self::scope::{Scope, ScopeError};
