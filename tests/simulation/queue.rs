//! The events of a simulation in the order of their times. Two events with the same time happen in the order in which they were
//! added.

use std::collections::BTreeMap;

use meshd::model::PublicKey;

use super::network::{At, Due, Side, StreamId};
use super::plan::Fault;

/// The number of one run of a program. An event of an earlier run is ignored.
pub(crate) type Run = u32;

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Deliver(StreamId, Side),
    /// This side of a stream notices that the other one is gone.
    Hangup(StreamId, Side),
    /// A node tries to join.
    Join(usize, Run),
    /// A node opens its control stream.
    Dial(usize, Run),
    /// A node's replica asked to be called now.
    Timer(usize, Run),
    /// A write of a node's replica is on disk.
    Written(usize, Run),
    /// A node compares its records with what it wants to publish, and learns which peers it reaches.
    Settle(usize, Run),
    /// The dialled peer of a node does not answer.
    Unreached(usize, Run, PublicKey),
    /// A node starts.
    Start(usize, Run),
    /// A coordinator sends changes to its streams.
    Push(usize, Run),
    /// A coordinator sends pings.
    Beat(usize, Run),
    /// A coordinator starts.
    Open(usize, Run),
    Fault(Fault),
    /// The time of faults is over.
    Calm,
    /// A node that departs ends its program.
    Left(usize, Run),
    /// The administrator removes the nodes of the attackers.
    CleanUp,
    /// A settled point: the invariants that take long are checked.
    Check,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    events: BTreeMap<(At, u64), Event>,
    added: u64,
}

impl Queue {
    pub(crate) fn add(&mut self, at: At, event: Event) {
        self.added += 1;
        self.events.insert((at, self.added), event);
    }

    pub(crate) fn deliver(&mut self, due: Option<Due>) {
        if let Some(Due { at, stream, to }) = due {
            self.add(at, Event::Deliver(stream, to));
        }
    }

    pub(crate) fn next(&mut self) -> Option<(At, Event)> {
        let ((at, _), event) = self.events.pop_first()?;
        Some((at, event))
    }
}
