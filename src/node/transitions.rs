//! The transitions of a node that an operator asks about. Each is a value, and has one line in the log, which `docs/logs.md`
//! lists, and one event in the audit log, the kinds of which `docs/howto/audit.md` lists. Pure.

pub(super) mod coordinator;
pub(super) mod denials;
pub(super) mod engine;
pub(super) mod guests;
pub(super) mod instances;
pub(super) mod local;
pub(super) mod members;
pub(super) mod peers;
pub(super) mod policy;
pub(super) mod routes;
pub(super) mod spawn;

use std::time::Duration;

/// A duration as it stands in the log, in seconds and tenths.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests;
