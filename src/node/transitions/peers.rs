//! Peers that answer, and peers that do not answer any more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::seconds;
use crate::model::{Label, Path, PublicKey};
use crate::os::audit::{Event, Text, Transition, What, Who};
use crate::os::log::TRANSITION;
use crate::path::watch::Reach;

/// A transition of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum PeerTurn {
    /// It answers for the first time since the start.
    Reached,
    /// It has never answered since the start.
    NotReached,
    /// It does not answer any more.
    Lost,
    /// It answers again, after so long a silence.
    Back(Duration),
}

/// What the log says about each peer.
#[derive(Debug, Default)]
pub(in crate::node) struct PeerTurns(BTreeMap<PublicKey, State>);

#[derive(Debug, Clone, Copy)]
enum State {
    Reached,
    NotReached,
    Lost { since: Instant },
}

impl PeerTurns {
    /// Forgets the peers that are not among `ids`.
    pub(in crate::node) fn retain(&mut self, ids: &BTreeSet<PublicKey>) {
        self.0.retain(|id, _| ids.contains(id));
    }

    /// What is known of a peer now. `heard` is when a packet from it was last received.
    pub(in crate::node) fn handle_reach(
        &mut self,
        id: PublicKey,
        reach: Reach,
        heard: Option<Instant>,
        now: Instant,
    ) -> Option<PeerTurn> {
        let (state, turn) = match (self.0.get(&id), reach, heard) {
            (_, Reach::Unknown, _)
            | (Some(State::Reached), Reach::Reachable, _)
            | (Some(State::NotReached | State::Lost { .. }), Reach::Unreachable, _) => return None,
            (Some(State::Lost { since }), Reach::Reachable, _) => {
                let away = now.saturating_duration_since(*since);
                (State::Reached, PeerTurn::Back(away))
            }
            (None | Some(State::NotReached), Reach::Reachable, _) => {
                (State::Reached, PeerTurn::Reached)
            }
            (None | Some(State::Reached), Reach::Unreachable, Some(since)) => {
                (State::Lost { since }, PeerTurn::Lost)
            }
            (None | Some(State::Reached), Reach::Unreachable, None) => {
                (State::NotReached, PeerTurn::NotReached)
            }
        };
        self.0.insert(id, state);
        Some(turn)
    }
}

/// The line of a transition.
#[derive(Debug)]
pub(in crate::node) struct PeerChange<'a> {
    pub peer: &'a Label,
    pub turn: PeerTurn,
    /// The endpoint in use.
    pub endpoint: Option<SocketAddr>,
    /// Why it does not answer, as far as that is known.
    pub why: &'a str,
}

impl Transition for PeerChange<'_> {
    fn event(&self) -> Option<Event> {
        let (peer, reason) = (self.peer.clone(), Text::from(self.why));
        let what = match self.turn {
            PeerTurn::Reached => What::PeerReached {
                peer,
                endpoint: self.endpoint,
            },
            PeerTurn::NotReached => What::PeerNotReached { peer, reason },
            PeerTurn::Lost => What::PeerLost { peer, reason },
            PeerTurn::Back(away) => What::PeerBack {
                peer,
                away_seconds: away.as_secs(),
            },
        };
        Some(Event::done(Who::Daemon, what))
    }

    fn log(&self) {
        let Self { peer, why, .. } = self;
        let endpoint = self.endpoint.map(tracing::field::display);
        match self.turn {
            PeerTurn::Reached => {
                tracing::info!(target: TRANSITION, %peer, endpoint, "peer reached");
            }
            PeerTurn::NotReached => {
                tracing::warn!(target: TRANSITION, %peer, endpoint, reason = why, "peer not reached");
            }
            PeerTurn::Lost => {
                tracing::warn!(target: TRANSITION, %peer, endpoint, reason = why, "peer lost");
            }
            PeerTurn::Back(away) => {
                let away_seconds = seconds(away);
                tracing::info!(target: TRANSITION, %peer, endpoint, away_seconds, "peer back");
            }
        }
    }
}

/// Packets to a peer take another path.
#[derive(Debug)]
pub(in crate::node) struct PathChange<'a> {
    pub peer: &'a Label,
    pub path: &'a Path,
}

impl Transition for PathChange<'_> {
    /// A path may change often. The audit log has a limit for that, and this log has it only at the level for developers.
    fn log(&self) {
        let Self { peer, path } = self;
        tracing::debug!(%peer, %path, "packets to a peer take another path");
    }

    fn event(&self) -> Option<Event> {
        let what = What::PathChanged {
            peer: self.peer.clone(),
            path: Text::of(self.path),
        };
        Some(Event::done(Who::Daemon, what))
    }
}
