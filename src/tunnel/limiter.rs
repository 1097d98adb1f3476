//! Limits handshakes before any costly work is done for them.
//!
//! Two levels. While handshakes are few, all pass. When the node as a whole gets more than [`LOAD_RATE`] a
//! second, each source has a bucket of its own, so that a flood from some sources leaves the others alone. The
//! table of sources has a bound: when it is full, sources without a bucket share one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Handshakes a second that pass without a look at their source: a few percent of a core.
pub const LOAD_RATE: f64 = 250.0;
/// Handshakes a second of one source under load.
pub const SOURCE_RATE: f64 = 10.0;
/// Handshakes of one source at once under load.
pub const SOURCE_BURST: f64 = 20.0;
/// Sources with a bucket at most.
pub const MAX_SOURCES: usize = 8192;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: f64, burst: f64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate).min(burst);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            true
        } else {
            false
        }
    }
}

/// The limiter. It reads no clock.
#[derive(Debug)]
pub struct HandshakeLimiter {
    all: Bucket,
    others: Bucket,
    sources: HashMap<IpAddr, Bucket>,
    swept: Instant,
}

impl HandshakeLimiter {
    /// A limiter with full buckets.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let full = |tokens| Bucket { tokens, at: now };
        Self {
            all: full(LOAD_RATE),
            others: full(SOURCE_BURST),
            sources: HashMap::new(),
            swept: now,
        }
    }

    /// Whether a handshake message from `source` may pass.
    pub fn admit(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.all.take(LOAD_RATE, LOAD_RATE, now) {
            return true;
        }
        self.sweep(now);
        // A single machine owns a /64 as easily as one address.
        let source = match source {
            IpAddr::V4(_) => source,
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            return self.others.take(SOURCE_RATE, SOURCE_BURST, now);
        }
        self.sources
            .entry(source)
            .or_insert(Bucket {
                tokens: SOURCE_BURST,
                at: now,
            })
            .take(SOURCE_RATE, SOURCE_BURST, now)
    }

    /// Forgets sources whose bucket has filled up again.
    fn sweep(&mut self, now: Instant) {
        const EVERY: Duration = Duration::from_secs(1);
        if now.saturating_duration_since(self.swept) >= EVERY {
            self.swept = now;
            let full = Duration::from_secs_f64(SOURCE_BURST / SOURCE_RATE);
            self.sources
                .retain(|_, bucket| now.saturating_duration_since(bucket.at) < full);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_some_sources_leaves_an_honest_one_alone() {
        let start = Instant::now();
        let mut limiter = HandshakeLimiter::new(start);
        let (mut flood, mut honest) = (0, 0);
        for i in 0..100_000u32 {
            let now = start + Duration::from_micros(u64::from(i) * 20);
            flood += u32::from(limiter.admit(IpAddr::from([10, 0, 0, (i % 16) as u8]), now));
            if i % 10_000 == 0 {
                honest += u32::from(limiter.admit(IpAddr::from([192, 0, 2, 1]), now));
            }
        }
        assert_eq!(honest, 10, "five a second of one source");
        assert!(
            flood < 2 * 250 + 250 + 16 * (20 + 2 * 10) + 16,
            "{flood} passed"
        );
    }

    #[test]
    fn a_flood_from_forged_sources_does_not_grow_the_table() {
        let start = Instant::now();
        let mut limiter = HandshakeLimiter::new(start);
        for i in 0..200_000u32 {
            limiter.admit(
                IpAddr::V4(i.into()),
                start + Duration::from_micros(u64::from(i)),
            );
        }
        assert!(limiter.sources.len() <= MAX_SOURCES);
    }
}
