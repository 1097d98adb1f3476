//! The clocks of the machine.

use std::time::{Instant, SystemTime};

use crate::model::time::Now;

/// The present time by both clocks.
#[must_use]
pub fn now() -> Now {
    Now {
        monotonic: Instant::now(),
        wall: SystemTime::now(),
    }
}
