//! Since when packets are sent to a peer without a datagram that arrives by the primary path. Pure.
//!
//! Each datagram by the primary path ends the wait, except a probe of the peer. A probe does not show that the peer receives what is sent
//! to it: perhaps the peer has left the primary path, and only tests it. That a datagram is a probe is known only some time after it
//! arrived, so the wait that it ended is kept until the next one.

use std::time::{Duration, Instant};

/// The wait for a datagram by the primary path.
#[derive(Debug, Clone, Default)]
pub(super) struct Wait {
    /// When the first packet was sent of those that are not followed by a datagram.
    since: Option<Instant>,
    is_reported: bool,
    /// The wait that the last datagram ended, and whether it was reported.
    ended: (Option<Instant>, bool),
    /// The number of the session by which the last probe of the peer came.
    probed_by: Option<u8>,
}

impl Wait {
    /// When the first packet was sent of those that are not followed by a datagram.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// A packet is sent.
    #[inline]
    pub(super) fn handle_sent(&mut self, now: Instant) {
        if self.since.is_none() {
            self.since = Some(now);
        }
    }

    /// A datagram arrived by the primary path.
    #[inline]
    pub(super) fn handle_received(&mut self) {
        self.ended = (self.since.take(), std::mem::take(&mut self.is_reported));
    }

    /// A datagram arrived by another path.
    pub(super) fn handle_other(&mut self) {
        self.ended = (None, false);
    }

    /// The datagram that has just arrived is a probe of the peer, by the session with this number. The wait goes on that the datagram
    /// ended, unless the session is another one than that of the probe before: the peer may have been started again, and then nothing
    /// answers what was sent by the former session.
    pub(super) fn handle_probe(&mut self, session: u8) {
        let (since, is_reported) = std::mem::take(&mut self.ended);
        let before = self.probed_by.replace(session);
        let is_same = before.is_none_or(|before| before == session);
        if is_same && since.is_some() {
            (self.since, self.is_reported) = (since, is_reported);
        }
    }

    /// Nothing is waited for any more.
    pub(super) fn end(&mut self) {
        (self.since, self.is_reported) = (None, false);
        self.ended = (None, false);
    }

    /// Returns whether there is a wait of this length to report, or when there will be.
    pub(super) fn poll(&mut self, patience: Duration, now: Instant) -> (bool, Option<Instant>) {
        let due = self.since.map(|since| since + patience);
        match due.filter(|_| !self.is_reported) {
            Some(at) if at <= now => {
                self.is_reported = true;
                (true, None)
            }
            due => (false, due),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(400);

    fn probe(wait: &mut Wait, session: u8) {
        wait.handle_received();
        wait.handle_probe(session);
    }

    #[test]
    fn a_probe_of_the_peer_does_not_end_the_wait_and_whatever_else_arrives_does() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut wait = Wait::default();
        probe(&mut wait, 1);
        assert_eq!(wait.since(), None, "nothing was sent");
        wait.handle_sent(start);
        for ms in [100, 200, 300] {
            probe(&mut wait, 1);
            wait.handle_sent(at(ms));
            assert_eq!(wait.since(), Some(start), "{ms}");
        }
        assert_eq!(wait.poll(PATIENCE, at(300)), (false, Some(at(400))));
        assert_eq!(wait.poll(PATIENCE, at(400)), (true, None));
        // What was reported is not reported again.
        probe(&mut wait, 1);
        assert_eq!(wait.poll(PATIENCE, at(500)), (false, None));
        wait.handle_received();
        wait.handle_other();
        wait.handle_probe(1);
        assert_eq!(
            wait.since(),
            None,
            "a probe by another path brings nothing back"
        );
    }

    #[test]
    fn the_first_probe_by_another_session_ends_the_wait_once() {
        let start = Instant::now();
        let mut wait = Wait::default();
        for session in [1, 2, 1] {
            probe(&mut wait, session);
            wait.handle_sent(start);
            assert_eq!(wait.since(), Some(start));
            probe(&mut wait, session);
            assert_eq!(wait.since(), Some(start));
            probe(&mut wait, session + 1);
            assert_eq!(wait.since(), None);
        }
    }
}
