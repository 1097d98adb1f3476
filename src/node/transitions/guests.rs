//! The guests of this node, as their door learns of them.

use std::net::SocketAddr;

use crate::model::time::UnixSeconds;
use crate::model::{Label, WireGuardKey};
use crate::os::audit::{Event, Transition, What, Who};
use crate::os::log::TRANSITION;

/// A transition of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) struct GuestChange {
    pub guest: Label,
    pub key: WireGuardKey,
    pub turn: GuestTurn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::node) enum GuestTurn {
    /// This node accepts packets of the guest, until the given time if the guest expires.
    Added(Option<UnixSeconds>),
    /// The administrator removed it, or it has another door now.
    Removed,
    /// Its time is over.
    Expired,
    /// A packet of the guest was received, the first one or the first one after three minutes or more. It came from the given address.
    Seen(Option<SocketAddr>),
}

impl GuestChange {
    pub(in crate::node) fn new(guest: &Label, key: WireGuardKey, turn: GuestTurn) -> Self {
        let guest = guest.clone();
        Self { guest, key, turn }
    }
}

impl Transition for GuestChange {
    fn log(&self) {
        let guest = &self.guest;
        match &self.turn {
            GuestTurn::Added(_) => tracing::info!(target: TRANSITION, %guest, "guest let in"),
            GuestTurn::Removed => {
                let reason = "the administrator removed it";
                tracing::info!(target: TRANSITION, %guest, reason, "guest not let in any more");
            }
            GuestTurn::Expired => {
                let reason = "it expired";
                tracing::info!(target: TRANSITION, %guest, reason, "guest not let in any more");
            }
            GuestTurn::Seen(endpoint) => {
                let endpoint = endpoint.map(|endpoint| endpoint.to_string());
                tracing::info!(target: TRANSITION, %guest, endpoint, "guest seen");
            }
        }
    }

    fn event(&self) -> Option<Event> {
        let (guest, key) = (self.guest.clone(), self.key);
        let removed = |reason| What::GuestRemoved {
            guest: Some(guest.clone()),
            key,
            reason,
        };
        Some(match &self.turn {
            GuestTurn::Added(expires_at) => {
                let what = What::GuestAdded {
                    guest,
                    key,
                    doors: Vec::new(),
                    tags: Vec::new(),
                    expires_at: *expires_at,
                };
                Event::done(Who::Administrator, what)
            }
            GuestTurn::Removed => {
                Event::done(Who::Administrator, removed("the administrator removed it"))
            }
            GuestTurn::Expired => Event::done(Who::Daemon, removed("it expired")),
            GuestTurn::Seen(endpoint) => {
                let endpoint = *endpoint;
                let what = What::GuestSeen {
                    guest,
                    key,
                    endpoint,
                };
                Event::done(Who::Daemon, what)
            }
        })
    }
}
