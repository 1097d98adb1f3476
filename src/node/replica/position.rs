//! The position of a node in the sequence of changes of a coordinator's store.

use serde::{Deserialize, Serialize};

/// The position of a node in the sequence of changes of a coordinator's store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The name of the store. None if this node never received one.
    pub store: Option<String>,
    /// The last revision of the store that this node holds.
    pub revision: u64,
    /// The last mark that was received from a coordinator. It is sent unchanged when a stream opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}
