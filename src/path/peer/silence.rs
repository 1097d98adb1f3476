//! What the silence of the path in use shows. Pure.
//!
//! A probe of the peer that arrives by the path in use does not show that datagrams to the peer arrive: the peer may have left that path,
//! and only tests it. So the data plane goes on waiting after such a probe, and a path that is suspect stays so until
//!
//! - a probe of this node by it is answered, or
//! - the probes had their time to be answered, and the peer sends something else than probes by it. A peer that was started again answers
//!   no probe of the session before, and some peers answer no probe at all.

use std::time::{Duration, Instant};

use super::state::State;
use crate::path::link::Link;
use crate::path::links::Links;

/// The least silence, while packets are sent, that makes a path suspect.
pub const LEAST_PATIENCE: Duration = Duration::from_millis(400);

/// Whether the path in use works, which is suspect since then. `is_silent` says whether packets have been sent for too long with nothing
/// but probes of the peer after them.
pub(super) fn is_refuted(
    state: State,
    since: Instant,
    links: &Links,
    is_silent: bool,
    now: Instant,
) -> bool {
    let is_answered = links
        .in_use()
        .is_some_and(|link| link.answered >= Some(since));
    let fails = state.fails_at(links.trip_in_use());
    let is_over = fails.is_some_and(|at| at <= now);
    is_answered || (is_over && !is_silent && is_heard_since(links, since))
}

/// Whether something came by the path in use since then.
pub(super) fn is_heard_since(links: &Links, since: Instant) -> bool {
    links.in_use().is_some_and(|link| link.works_since(since))
}

/// How long the path in use may be silent while packets are sent.
pub(super) fn patience(links: &Links) -> Duration {
    LEAST_PATIENCE.max(links.trip_in_use() * 4)
}

/// Whether the peer sends by another path than the one in use, and not by that one any more: a datagram came by another path after the
/// one in use had been silent. Perhaps the path in use does not work, and while no packets are sent nothing else shows that. A path that
/// is being probed is left out, because the probes will show it.
pub(super) fn is_left(links: &Links) -> bool {
    let other = links.others().filter_map(|link| link.heard).max();
    let in_use = links.in_use().filter(|link| link.poll_timeout().is_none());
    let last = in_use.and_then(Link::last);
    other
        .zip(last)
        .is_some_and(|(other, last)| other.saturating_duration_since(last) >= patience(links))
}
