//! The timers of the node: a table with the deadline of each. Pure.
//!
//! A part that needs the time returns its next deadline from a method `poll_timeout`. The agent sleeps until the earliest
//! deadline of the table, and passes the time to each part whose timer is due.

use std::time::Instant;

/// The use of a timer. Timers that are due at the same time are handled in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Old keys of the tunnel expire.
    Keys,
    /// The paths read the state of the peers, and probe them.
    Paths,
    /// The router is asked for a port, or a peer to try it.
    Mapping,
    /// The replica retries and forgets.
    Replica,
    /// Names of services that ended are removed from the zone.
    Names,
    /// The policy is compiled for changes of members that waited.
    Policy,
    /// Guests expire, and their last packets are noted.
    Guests,
    /// Containers become ready, or their engine has not reported in time.
    Containers,
    /// Names of services outside the mesh are looked up.
    Outside,
    /// A join has waited long enough for the coordinator to accept this node's record.
    Acceptance,
    /// Everything on this machine is compared with what it is to be, and the service manager is shown whether the node is ready.
    Reconcile,
    /// The service manager expects a sign of life.
    Watchdog,
}

impl Timer {
    const ALL: [Self; 12] = [
        Self::Keys,
        Self::Paths,
        Self::Mapping,
        Self::Replica,
        Self::Names,
        Self::Policy,
        Self::Guests,
        Self::Containers,
        Self::Outside,
        Self::Acceptance,
        Self::Reconcile,
        Self::Watchdog,
    ];
}

/// The deadline of each timer that runs.
#[derive(Debug, Default)]
pub(super) struct Timers([Option<Instant>; Timer::ALL.len()]);

impl Timers {
    /// Sets the deadline of a timer, or stops it.
    pub(super) fn set(&mut self, timer: Timer, deadline: Option<Instant>) {
        self.0[timer as usize] = deadline;
    }

    /// Sets the deadline of a timer that does not run. A timer that runs keeps its deadline.
    pub(super) fn start(&mut self, timer: Timer, deadline: Instant) {
        self.0[timer as usize].get_or_insert(deadline);
    }

    /// The earliest deadline.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Stops the first timer that is due, and returns it.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Timer> {
        Timer::ALL.into_iter().find(|timer| {
            let deadline = &mut self.0[*timer as usize];
            deadline.take_if(|at| *at <= now).is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_timer_has_a_place_of_its_own_in_the_table() {
        for (place, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, place);
        }
    }

    #[test]
    fn timers_that_are_due_are_returned_once_and_in_their_order() {
        let now = Instant::now();
        let mut timers = Timers::default();
        assert_eq!(timers.poll_timeout(), None);
        timers.set(Timer::Names, Some(now));
        timers.set(Timer::Keys, Some(now + SECOND));
        timers.set(Timer::Watchdog, Some(now + 2 * SECOND));
        assert_eq!(timers.poll_timeout(), Some(now));
        let later = now + SECOND;
        assert_eq!(timers.poll(later), Some(Timer::Keys));
        assert_eq!(timers.poll(later), Some(Timer::Names));
        assert_eq!(timers.poll(later), None);
        assert_eq!(timers.poll_timeout(), Some(now + 2 * SECOND));
        timers.set(Timer::Watchdog, None);
        assert_eq!(timers.poll_timeout(), None);
    }

    #[test]
    fn starting_a_timer_that_runs_does_not_delay_it() {
        let now = Instant::now();
        let mut timers = Timers::default();
        timers.start(Timer::Containers, now);
        timers.start(Timer::Containers, now + SECOND);
        assert_eq!(timers.poll(now), Some(Timer::Containers));
        timers.start(Timer::Containers, now + SECOND);
        assert_eq!(timers.poll(now), None);
    }
}
