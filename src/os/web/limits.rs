//! How many calls a token and a source may make. Pure.

use std::net::IpAddr;
use std::time::Instant;

use crate::model::PublicKey;
use crate::model::address::link_of;
use crate::model::rate::{Buckets, Rate};

/// The calls with one token, or from one address without a token.
const OF_TOKEN: Rate = Rate {
    per_second: 50.0,
    burst: 50.0,
};
/// The calls of one source that were refused. A source that guesses tokens makes the server verify signatures.
const OF_REFUSED: Rate = Rate {
    per_second: 5.0,
    burst: 50.0,
};
/// The maximum number of tokens, and of sources, that are counted at once.
const MAX_COUNTED: usize = 4096;

/// The calls that were made lately.
#[derive(Debug)]
pub(super) struct CallLimits {
    tokens: Buckets<PublicKey>,
    /// The calls without a token, by the address that proves their caller.
    addresses: Buckets<IpAddr>,
    refused: Buckets<IpAddr>,
}

impl CallLimits {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: Buckets::new(OF_TOKEN, MAX_COUNTED, now),
            addresses: Buckets::new(OF_TOKEN, MAX_COUNTED, now),
            refused: Buckets::new(OF_REFUSED, MAX_COUNTED, now),
        }
    }

    /// Whether a call of this source is looked at. Too many of its calls may have been refused before.
    pub(super) fn may_try(&mut self, source: IpAddr, now: Instant) -> bool {
        let bucket = self.refused.of(link_of(source), now);
        // If there are too many sources to count, none of them is held up for the others.
        bucket.is_none_or(|bucket| bucket.holds(1.0, now))
    }

    /// A call of this source was refused.
    pub(super) fn handle_refused(&mut self, source: IpAddr, now: Instant) {
        if let Some(bucket) = self.refused.of(link_of(source), now) {
            bucket.take(now);
        }
    }

    /// Takes one call with this token. Returns false if there were too many.
    pub(super) fn take(&mut self, token: PublicKey, now: Instant) -> bool {
        let bucket = self.tokens.of(token, now);
        bucket.is_some_and(|bucket| bucket.take(now))
    }

    /// Takes one call without a token from this address. Returns false if there were too many.
    pub(super) fn take_address(&mut self, address: IpAddr, now: Instant) -> bool {
        let bucket = self.addresses.of(address.to_canonical(), now);
        bucket.is_some_and(|bucket| bucket.take(now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_token_has_a_rate_of_its_own() {
        let start = Instant::now();
        let mut limits = CallLimits::new(start);
        let (one, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let taken = (0..1000).filter(|_| limits.take(one, start)).count();
        assert_eq!(taken, 50);
        assert!(limits.take(other, start));
        let later = start + Duration::from_secs(1);
        let taken = (0..1000).filter(|_| limits.take(one, later)).count();
        assert_eq!(taken, 50);
    }

    #[test]
    fn a_source_whose_calls_are_refused_has_to_wait_and_others_do_not() {
        let start = Instant::now();
        let mut limits = CallLimits::new(start);
        let source = IpAddr::from([192, 0, 2, 7]);
        let mut tried = 0;
        for _ in 0..1000 {
            if limits.may_try(source, start) {
                tried += 1;
                limits.handle_refused(source, start);
            }
        }
        assert_eq!(tried, 50);
        let mapped = "::ffff:192.0.2.7".parse().expect("a literal");
        assert!(!limits.may_try(mapped, start));
        assert!(limits.may_try(IpAddr::from([192, 0, 2, 8]), start));
        assert!(limits.may_try(source, start + Duration::from_secs(1)));
    }

    #[test]
    fn a_source_whose_calls_are_permitted_never_waits() {
        let start = Instant::now();
        let mut limits = CallLimits::new(start);
        let source = IpAddr::from([192, 0, 2, 7]);
        assert!((0..1000).all(|_| limits.may_try(source, start)));
    }
}
