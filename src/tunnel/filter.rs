//! The settings by which packets pass through a tunnel, and the list of the packets that the policy denied, for callers outside the
//! data plane.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::guard::{Denial, Denials, Guard, Sender};
use super::peers::Peers;
use crate::os::clock;
use crate::policy::Table;

/// Sets which packets pass through a running tunnel, and lists those that the policy denied.
pub struct Filter<'a>(pub(super) &'a Peers);

/// A denied packet, with the number of packets like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// The source and the destination of the packet, and what it asked for.
    pub denial: Denial,
    /// The number of such packets.
    pub count: u64,
    /// When the first one was denied.
    pub first: SystemTime,
    /// When the last one was denied.
    pub last: SystemTime,
}

impl Filter<'_> {
    /// Sets the networks of this node. Peers reach no other destination through it, whatever the host would forward. If
    /// there are none, they may send anywhere.
    pub fn set_own_networks(&self, networks: &[IpNet]) {
        (self.0).change_settings(|table| table.own_networks = networks.into());
    }

    /// Sets the networks outside the mesh, each with the public key of the peer that routes to it: packets to it go to that peer, and
    /// packets from it are accepted from that peer alone. Addresses that members own themselves are not affected.
    pub fn set_routes(&self, routes: &[(IpNet, [u8; 32])]) {
        (self.0).change_settings(|table| table.set_routes(routes.into()));
    }

    /// Sets the policy, and another one that is tried: packets that only the tried one would deny are listed, and pass. Both hold from
    /// the next batch of packets on, for established connections too. Before the first call everything passes.
    pub fn set_policy(&self, policy: Arc<Table>, tried: Option<Arc<Table>>) {
        self.0.change_settings(|table| {
            let former = table.guard.take();
            let is_needed = tried.is_some() || !policy.allows_everything();
            table.guard = is_needed.then(|| {
                let guard = match former {
                    Some(former) => former.with(policy),
                    None => Guard::new(policy),
                };
                guard.trying(tried)
            });
        });
    }

    /// The last packets that the policy denied, the latest first.
    #[must_use]
    pub fn denied(&self) -> Vec<Denied> {
        let entries = self.denials().entries();
        let (now, wall) = (Instant::now(), clock::wall());
        let date = |at: Instant| {
            let age = now.saturating_duration_since(at);
            wall.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let denied = entries.into_iter().map(|entry| Denied {
            denial: entry.denial,
            count: entry.count,
            first: date(entry.first),
            last: date(entry.last),
        });
        denied.collect()
    }

    /// Adds packets that did not pass through the tunnel, because both their ends are on this host, and that the policy denied all the
    /// same. `age` is how long ago there was the last one.
    pub fn note_local(&self, denial: Denial, count: u64, age: Duration) {
        let now = Instant::now();
        let last = now.checked_sub(age).unwrap_or(now);
        let sender = Sender::Own(denial.from);
        let denials = &mut self.denials();
        if denials.note_many((denial, sender), (count, last), now) {
            self.0.shared.wakes.news.raise();
        }
    }

    /// Takes the first denied packets of pairs of addresses that were not reported yet. The event of
    /// [`super::Steering::news_event`] is raised for each of them. Their rate is limited, and those beyond it are only listed.
    #[must_use]
    pub fn take_first_denials(&self) -> Vec<Denial> {
        self.denials().take_first()
    }

    fn denials(&self) -> MutexGuard<'_, Denials> {
        let denials = self.0.shared.wakes.denials.lock();
        denials.unwrap_or_else(PoisonError::into_inner)
    }
}
