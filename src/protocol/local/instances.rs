//! The instances of one service on this node, and its reservation, for programs that drain it and replace its instances.

use serde::{Deserialize, Serialize};

use crate::model::Label;
use crate::records::kinds::Health;

/// The document of `GET /v1/services/NAME/instances`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnInstances {
    pub schema: u32,
    /// Whether the service is drained on this node.
    pub drained: bool,
    /// The instances in the order of their labels.
    pub instances: Vec<OwnInstance>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnInstance {
    /// The label of the instance.
    pub id: Label,
    /// Its health, independent of whether the service is drained. A container that received its stop signal is draining.
    pub health: Health,
    /// The milliseconds within which its health check notices that the program does not work any more. It is null for a
    /// container, whose health begins anew with each start, and for an instance without a check.
    pub check_ms: Option<u64>,
}

/// A request that reserves a service of this node for one rollout, so that another one is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// The rollout: 1 to 64 bytes that no other rollout has.
    pub holder: String,
    /// How long the service is reserved unless the holder renews this, 10 minutes at the most. With 0 the reservation ends.
    pub seconds: u64,
}

/// The answer when a service is reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    pub schema: u32,
}
