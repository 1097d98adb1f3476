//! The states of the paths to a peer, and how long each one lasts.

use std::time::{Duration, Instant};

/// The number of probes by a suspect path.
pub const SUSPECT_PROBES: u32 = 3;
/// The time between two probes by a suspect path.
pub const SUSPECT_INTERVAL: Duration = Duration::from_millis(80);
/// After so long, a peer is asked again that is heard by a suspect path and answered by none.
const RENEWAL: Duration = Duration::from_secs(2);
/// The first and the last pause between two attempts to find a better path than a relay, or to reach a lost peer. Each pause is
/// twice the one before.
pub const FIRST_RETRY: Duration = Duration::from_secs(1);
/// See [`FIRST_RETRY`].
pub const LAST_RETRY: Duration = Duration::from_secs(64);
/// The pause after that.
pub const RARE_RETRY: Duration = Duration::from_secs(300);

/// The state of a peer's paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Nothing was sent to the peer yet.
    #[default]
    Cold,
    /// Initiations are sent by all paths that may work.
    Opening {
        /// When that began.
        since: Instant,
    },
    /// The path in use works.
    Open,
    /// Packets are sent by the path in use, and nothing arrives by it.
    Suspect {
        /// When it became suspect.
        since: Instant,
        /// The number of probes that were sent by it.
        probes: u32,
        /// When the next one is due.
        next: Instant,
        /// Whether all other paths are probed as well.
        is_wide: bool,
        /// Whether its time to answer is over, so that the next answer by another path is enough.
        is_over: bool,
    },
    /// Nothing answers.
    Lost {
        /// When the last attempt began. The peer was silent before.
        since: Instant,
        /// When the next attempt begins.
        again: Instant,
        /// The number of attempts so far.
        tries: u32,
    },
}

impl State {
    /// The path in use is suspect from now on.
    pub(super) fn suspect(now: Instant) -> Self {
        Self::Suspect {
            since: now,
            probes: 0,
            next: now,
            is_wide: false,
            is_over: false,
        }
    }

    /// The state after an attempt that was in vain; there were `tries` before.
    pub(super) fn lost(tries: u32, now: Instant) -> Self {
        Self::Lost {
            since: now,
            again: now + retry_pause(tries),
            tries: tries.saturating_add(1),
        }
    }

    /// When a path that is suspect, with this round trip, has failed, unless it answers before. Each probe that could not be sent
    /// makes it later.
    pub(super) fn fails_at(self, srtt: Duration) -> Option<Instant> {
        let Self::Suspect { probes, next, .. } = self else {
            return None;
        };
        let patience = (SUSPECT_INTERVAL * SUSPECT_PROBES).max(srtt * 3);
        Some(next + patience.saturating_sub(SUSPECT_INTERVAL * probes))
    }

    /// When the probes by a path that is suspect, with this round trip, begin anew if the peer is heard by it.
    pub(super) fn renewed_at(self, srtt: Duration) -> Option<Instant> {
        self.fails_at(srtt).map(|at| at + RENEWAL)
    }

    /// The state after the probes that were due were sent. `is_sent` says whether one left by the path in use: otherwise that path
    /// had no chance to answer, and is asked again.
    pub(super) fn after_probes(self, is_sent: bool, now: Instant) -> Self {
        match self {
            Self::Suspect {
                since,
                probes,
                next,
                is_wide,
                is_over,
            } if probes < SUSPECT_PROBES && next <= now => Self::Suspect {
                since,
                probes: probes + u32::from(is_sent),
                next: if is_sent { next } else { now } + SUSPECT_INTERVAL,
                is_wide,
                is_over,
            },
            other => other,
        }
    }
}

/// The pause before the attempt with this number.
#[must_use]
pub fn retry_pause(tries: u32) -> Duration {
    match 1u32.checked_shl(tries).map(|factor| FIRST_RETRY * factor) {
        Some(pause) if pause <= LAST_RETRY => pause,
        _ => RARE_RETRY,
    }
}
