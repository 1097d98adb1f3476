//! How long the parts of a change take: from a container that starts on this node, and from records that arrive, to the answers for
//! their names. Pure.
//!
//! On the node with the container, a change passes [`Stage::Engine`], then [`Stage::Firewall`] and [`Stage::Probe`] at the same time,
//! then [`Stage::Sign`] and [`Stage::Store`]. Every other node then passes [`Stage::Verify`] and [`Stage::Zone`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::containers::inspect::Action;
use crate::containers::{ContainerId, Report};
use crate::os::metrics::Durations;
use crate::services::checks::Outcome;

/// The upper bounds of the durations that are counted together.
const BOUNDS: [Duration; 12] = [
    Duration::from_micros(100),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];
/// The maximum number of containers whose start is followed at a time. Those without a probe are followed until they end.
const MAX_FOLLOWED: usize = 1024;

/// A part of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// From the event of the engine that a container started to its description.
    Engine,
    /// From the description of a container until a probe finds that the container accepts connections. The probe is the health check.
    Probe,
    /// From a new wanted state of the firewall until the kernel has it.
    Firewall,
    /// The records of this node: which ones changed, their signatures, and this node's own ledger.
    Sign,
    /// From the signatures of records until a coordinator answers that it stored them.
    Store,
    /// The verification of records that a coordinator sent.
    Verify,
    /// The computation of a zone, up to the first answer from it.
    Zone,
}

impl Stage {
    pub(super) const ALL: [Self; 7] = [
        Self::Engine,
        Self::Probe,
        Self::Firewall,
        Self::Sign,
        Self::Store,
        Self::Verify,
        Self::Zone,
    ];

    /// The value of a label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Probe => "probe",
            Self::Firewall => "firewall",
            Self::Sign => "sign",
            Self::Store => "store",
            Self::Verify => "verify",
            Self::Zone => "zone",
        }
    }
}

/// How long the parts of all changes took.
#[derive(Debug)]
pub(super) struct ChangeTimes {
    /// In the order of [`Stage::ALL`].
    durations: [Durations; Stage::ALL.len()],
    /// Containers that started and have no description yet.
    started: BTreeMap<ContainerId, Instant>,
    /// Containers that started, have a description, and were not found to accept connections yet.
    described: BTreeMap<ContainerId, Instant>,
    /// Since when the firewall is behind the wanted state.
    wanted: Option<Instant>,
    /// The last publication, if it was not answered yet.
    offered: Option<(u64, Instant)>,
}

impl Default for ChangeTimes {
    fn default() -> Self {
        Self {
            durations: std::array::from_fn(|_| Durations::new(&BOUNDS)),
            started: BTreeMap::new(),
            described: BTreeMap::new(),
            wanted: None,
            offered: None,
        }
    }
}

impl ChangeTimes {
    /// A part of a change took this long.
    pub(super) fn note(&mut self, stage: Stage, took: Duration) {
        if let Some(durations) = self.durations.get_mut(stage as usize) {
            durations.note(took);
        }
    }

    /// The engine sent these reports, in this order.
    pub(super) fn handle_reports(&mut self, reports: &[Report], now: Instant) {
        for report in reports {
            match report {
                Report::Event(id, Action::Start) if self.started.len() < MAX_FOLLOWED => {
                    self.started.insert(id.clone(), now);
                }
                Report::Event(id, Action::Die | Action::Destroy) | Report::Unreadable(id, _) => {
                    self.started.remove(id);
                    self.described.remove(id);
                }
                Report::Inspected(inspected) => {
                    if let Some(started) = self.started.remove(&inspected.id) {
                        self.note(Stage::Engine, now.saturating_duration_since(started));
                        if self.described.len() < MAX_FOLLOWED {
                            self.described.insert(inspected.id.clone(), now);
                        }
                    }
                }
                Report::Listed(existing) => {
                    self.started.retain(|id, _| existing.contains(id));
                    self.described.retain(|id, _| existing.contains(id));
                }
                _ => {}
            }
        }
    }

    /// Probes of containers came to these verdicts.
    pub(super) fn handle_probes(&mut self, verdicts: &[(ContainerId, Outcome)], now: Instant) {
        for (id, outcome) in verdicts {
            if outcome.is_ok()
                && let Some(described) = self.described.remove(id)
            {
                self.note(Stage::Probe, now.saturating_duration_since(described));
            }
        }
    }

    /// The firewall was given a new wanted state.
    pub(super) fn handle_wanted(&mut self, now: Instant) {
        self.wanted.get_or_insert(now);
    }

    /// The firewall has applied the wanted state.
    pub(super) fn handle_applied(&mut self, now: Instant) {
        if let Some(wanted) = self.wanted.take() {
            self.note(Stage::Firewall, now.saturating_duration_since(wanted));
        }
    }

    /// Records of this node were offered to a coordinator, in the publication with this number.
    pub(super) fn handle_offered(&mut self, sequence: u64, now: Instant) {
        self.offered = Some((sequence, now));
    }

    /// A coordinator answered the publication with this number.
    pub(super) fn handle_stored(&mut self, sequence: u64, now: Instant) {
        if let Some((_, offered)) = self.offered.take_if(|(offered, _)| *offered == sequence) {
            self.note(Stage::Store, now.saturating_duration_since(offered));
        }
    }

    /// The stream to the coordinator closed, so no answer comes to the last publication.
    pub(super) fn handle_closed(&mut self) {
        self.offered = None;
    }

    /// The durations by the name of the stage.
    pub(super) fn by_stage(&self) -> impl Iterator<Item = (&'static str, &Durations)> {
        Stage::ALL
            .map(Stage::as_str)
            .into_iter()
            .zip(&self.durations)
    }
}

#[cfg(test)]
mod tests;
