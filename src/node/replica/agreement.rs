//! Detects that this node and its coordinator hold different records although the node has received all changes. Pure: the clock is
//! an argument.
//!
//! A coordinator sends changes after the revision that a node holds. That is not enough if the coordinator's store went back in time
//! and has grown again since: the same revision then stands for other records, and neither side notices. So a coordinator also sends
//! a fingerprint of its records. If it differs from this node's fingerprint for [`DIFFERENCE_TIMEOUT`], this node requests all
//! records and offers all that it holds.
//!
//! The fingerprints may differ permanently, for example because node and coordinator have different versions. So the pause before
//! the next attempt grows.

use std::time::{Duration, Instant};

use crate::model::time::retry_pause;
use crate::records::fingerprint::Fingerprint;

/// How long a difference may last before this node acts. A shorter one may come from records that are on their way.
const DIFFERENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after the first attempt to end a difference. It doubles with each further attempt, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(300);
const MAX_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// What a coordinator holds at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub revision: u64,
    pub fingerprint: Fingerprint,
}

/// Whether this node holds what its coordinator holds.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// The last summary, until this node has reached its revision.
    announced: Option<Summary>,
    differs_since: Option<Instant>,
    /// When this node last tried to end the difference, and how often it did so.
    attempt: Option<(Instant, u32)>,
}

impl Agreement {
    pub(super) fn handle_summary(&mut self, summary: Summary) {
        self.announced = Some(summary);
    }

    /// The stream closed. The next one begins with a summary.
    pub(super) fn handle_closed(&mut self) {
        self.announced = None;
    }

    /// Whether a summary is to be compared once this node has received all changes up to `revision`.
    pub(super) fn awaits(&self, revision: u64) -> bool {
        self.announced.is_some_and(|at| at.revision <= revision)
    }

    /// This node has received all changes up to `revision`, and its records have this fingerprint.
    pub(super) fn compare(&mut self, revision: u64, held: Fingerprint, now: Instant) {
        let Some(summary) = self.announced.take_if(|at| at.revision <= revision) else {
            return;
        };
        // This node is already past the revision of the summary, so the two fingerprints cannot be compared.
        if summary.revision < revision {
            return;
        }
        if summary.fingerprint == held {
            self.differs_since = None;
            // The pause becomes the shortest one, and does not end: otherwise a member that causes differences again and again
            // would cause attempts without a pause.
            if let Some((_, attempts)) = &mut self.attempt {
                *attempts = 1;
            }
        } else {
            self.differs_since.get_or_insert(now);
        }
    }

    /// Whether this node is to request and offer all records now.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        let passed = |since: Instant| now.saturating_duration_since(since);
        let differs = self
            .differs_since
            .is_some_and(|since| passed(since) >= DIFFERENCE_TIMEOUT);
        let (pause, attempts) = match self.attempt {
            Some((at, attempts)) => {
                let pause = retry_pause(MIN_PAUSE, attempts - 1, MAX_PAUSE);
                (pause.saturating_sub(passed(at)), attempts)
            }
            None => (Duration::ZERO, 0),
        };
        if !differs || !pause.is_zero() {
            return false;
        }
        self.attempt = Some((now, attempts.saturating_add(1)));
        // The next summary shows whether the attempt ended the difference.
        self.differs_since = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;
    use crate::records::{Envelope, Ledger};
    use crate::testbed::records as build;

    fn fingerprint(n: u8) -> Fingerprint {
        let mut ledger = Ledger::new(SigningKey::from_seed(&[n; 32]).public());
        let mesh = crate::records::kinds::Record::Mesh(build::mesh());
        let envelope = Envelope::seal(&mesh, &SigningKey::from_seed(&[n; 32]));
        ledger.apply(envelope).expect("signed by the mesh key");
        ledger.fingerprint()
    }

    fn summary(revision: u64) -> Summary {
        Summary {
            revision,
            fingerprint: fingerprint(1),
        }
    }

    #[test]
    fn a_difference_that_lasts_leads_to_attempts_with_growing_pauses() {
        let (mut agreement, mut now) = (Agreement::default(), Instant::now());
        let mut attempts = Vec::new();
        for second in 0..3000 {
            agreement.handle_summary(summary(5));
            agreement.compare(5, fingerprint(2), now);
            if agreement.poll(now) {
                attempts.push(second);
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(attempts, [60, 360, 960, 2160]);
        agreement.handle_summary(summary(5));
        agreement.compare(5, fingerprint(1), now);
        assert!(!agreement.poll(now + MAX_PAUSE), "they agree");
        agreement.handle_summary(summary(5));
        agreement.compare(5, fingerprint(2), now);
        assert!(agreement.poll(now + DIFFERENCE_TIMEOUT));
        now += DIFFERENCE_TIMEOUT;
        for held in [1, 2] {
            agreement.handle_summary(summary(5));
            agreement.compare(5, fingerprint(held), now);
        }
        assert!(!agreement.poll(now + MIN_PAUSE - Duration::from_secs(1)));
        assert!(agreement.poll(now + MIN_PAUSE));
    }

    #[test]
    fn only_the_very_revision_of_a_summary_is_compared() {
        let (mut agreement, now) = (Agreement::default(), Instant::now());
        let mut differs = |revision| {
            agreement.handle_summary(summary(5));
            agreement.compare(revision, fingerprint(2), now);
            agreement.poll(now + DIFFERENCE_TIMEOUT)
        };
        assert!(!differs(4) && !differs(6));
        assert!(differs(5));
        agreement.handle_summary(summary(7));
        agreement.compare(6, fingerprint(2), now);
        agreement.handle_closed();
        agreement.compare(7, fingerprint(2), now);
        assert!(!agreement.poll(now + MAX_PAUSE));
    }
}
