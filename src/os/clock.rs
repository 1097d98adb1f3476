//! The clocks of the machine.

use std::time::{Instant, SystemTime};

use crate::model::time::Now;

/// The present time by both clocks.
#[must_use]
pub fn now() -> Now {
    Now {
        monotonic: Instant::now(),
        wall: wall(),
    }
}

/// The present date and time. The system's clock may be set and may jump, so this is only for dates in records and for
/// users.
#[cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "all other parts get the time from here"
    )
)]
#[must_use]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
