//! Which of two paths is better. Pure.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use super::LEAST_LOSS;
use crate::path::link::{ENOUGH, Link};

/// Whether a direct path is so bad that a relay is better.
fn is_bad(link: &Link, relay: Option<Duration>) -> bool {
    let is_slow = match (link.srtt(), relay) {
        (Some(srtt), Some(relay)) => srtt > relay * 2 + LEAST_LOSS,
        _ => false,
    };
    link.path.relay().is_none() && (link.is_lossy() || is_slow)
}

/// Whether the path in use does not work, though `link` does.
pub(super) fn has_failed(primary: &Link, link: &Link) -> bool {
    primary.is_unproven() || primary.is_silent(link.answered)
}

/// Whether `link` is better than the path in use. `relay` is the shortest round trip over a relay.
pub(super) fn beats(link: &Link, primary: &Link, relay: Option<Duration>, now: Instant) -> bool {
    if !link.is_fresh(now) {
        return false;
    }
    if has_failed(primary, link) {
        return true;
    }
    match link.path.kind().cmp(&primary.path.kind()) {
        Ordering::Less => !is_bad(link, relay),
        Ordering::Equal => {
            let is_better = is_bad(primary, relay) && !is_bad(link, relay);
            is_better || (link.faster >= ENOUGH && !is_bad(link, relay))
        }
        Ordering::Greater => is_bad(primary, relay),
    }
}
