//! Limits handshakes before any costly work is done for them.
//!
//! There are two levels. While handshakes are few, all of them pass. When the node receives more than [`LOAD_RATE`] a second, only
//! handshakes with a valid cookie pass ([`super::cookie`]), which proves the address of the source, and each source has a
//! limit of its own. A cookie for a forged source never reaches the host that forged it, and nothing is stored for such a source. So
//! forged sources can neither fill the table of sources nor use up the limits of others.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::cookie::{Cookies, Origin, REPLY};
use crate::model::address::link_of;
use crate::model::rate::{Bucket, Buckets, Rate};

/// The number of handshakes a second that pass whatever their source: a few percent of a core.
pub const LOAD_RATE: f64 = 250.0;
/// The number of handshakes at once that pass whatever their source.
pub const LOAD_BURST: f64 = 100.0;
/// The number of handshakes a second of one proven source under load.
pub const SOURCE_RATE: f64 = 10.0;
/// The number of handshakes at once of one proven source under load.
pub const SOURCE_BURST: f64 = 20.0;
/// The number of handshakes a second of all proven sources together, so that an owner of many addresses does not get the whole
/// core.
pub const PROVEN_RATE: f64 = 1000.0;
/// The maximum number of sources with a bucket of their own. The others share one.
pub const MAX_SOURCES: usize = 8192;
/// The number of cookies a second. The first message of a new peer is one among the forged ones, and the peer waits 5 s if it
/// gets no cookie. So this is more than the flood that a node has to bear. A reply is smaller than the message and costs one or
/// two microseconds.
pub const COOKIE_RATE: f64 = 100_000.0;
/// The number of cookies at once.
pub const COOKIE_BURST: f64 = 10_000.0;

const SOURCE: Rate = Rate {
    per_second: SOURCE_RATE,
    burst: SOURCE_BURST,
};

/// The initiations to one address from which nothing was heard: at most 20 in a second.
const OPENING: Rate = Rate {
    per_second: 10.0,
    burst: 10.0,
};
/// The maximum number of addresses to which initiations are counted. While there are more, others are sent none.
const MAX_OPENED: usize = 16_384;

/// The least time between two searches for the peer of an unknown session.
pub const REVIVAL_INTERVAL: Duration = Duration::from_millis(50);

/// The decision about a handshake message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Handle it.
    Pass,
    /// Do not handle it, and send this cookie reply to its source.
    Prove([u8; REPLY]),
    /// Do not handle it.
    Refuse,
}

/// Limits handshakes. It reads no clock.
#[derive(Debug)]
pub struct HandshakeLimiter {
    cookies: Cookies,
    all: Bucket,
    replies: Bucket,
    proven: Bucket,
    others: Bucket,
    sources: Buckets<(IpAddr, Option<Ipv4Addr>)>,
}

impl HandshakeLimiter {
    /// A limiter with full buckets. Cookies are derived from `seed`, which is secret and random.
    #[must_use]
    pub fn new(seed: [u8; 32], now: Instant) -> Self {
        let full = |per_second, burst| Bucket::full(Rate { per_second, burst }, now);
        Self {
            cookies: Cookies::new(seed, now),
            all: full(LOAD_RATE, LOAD_BURST),
            replies: full(COOKIE_RATE, COOKIE_BURST),
            proven: full(PROVEN_RATE, PROVEN_RATE),
            others: Bucket::full(SOURCE, now),
            sources: Buckets::new(SOURCE, MAX_SOURCES, now),
        }
    }

    /// Decides about a handshake message from `source`, whose first MAC was verified. Cookies are encrypted by `reply_key`.
    pub fn admit(
        &mut self,
        reply_key: &[u8; 32],
        handshake: &[u8],
        source: impl Into<Origin>,
        now: Instant,
    ) -> Admission {
        let source = source.into();
        if self.all.take(now) {
            return Admission::Pass;
        }
        if self.cookies.proves(handshake, source, now) {
            return if self.source(source, now) && self.proven.take(now) {
                Admission::Pass
            } else {
                Admission::Refuse
            };
        }
        if !self.replies.take(now) {
            return Admission::Refuse;
        }
        self.cookies
            .reply(reply_key, handshake, source, now)
            .map_or(Admission::Refuse, Admission::Prove)
    }

    /// Whether the bucket of a proven source allows one more.
    fn source(&mut self, source: Origin, now: Instant) -> bool {
        let source = (link_of(source.address.ip()), source.label);
        let bucket = self.sources.of(source, now);
        bucket.unwrap_or(&mut self.others).take(now)
    }
}

/// Limits initiations to addresses from which nothing was ever heard, whichever peers they are for.
#[derive(Debug)]
pub struct OpeningLimit(Buckets<IpAddr>);

impl OpeningLimit {
    /// A limit that was not used yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Buckets::new(OPENING, MAX_OPENED, now))
    }

    /// Whether an initiation may be sent to `address` now. All ports of an address share one limit. The members of a mesh may be
    /// the hosts of one IPv6 network, so its addresses do not.
    pub fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        let bucket = self.0.of(address.to_canonical(), now);
        bucket.is_some_and(|bucket| bucket.take(now))
    }
}

/// Limits how often a datagram of an unknown session makes this node look for the peer that may have sent it, so that
/// forged datagrams cost next to nothing.
#[derive(Debug)]
pub struct RevivalLimit {
    started: Instant,
    /// When one was last admitted, in milliseconds since the start.
    last: AtomicU64,
}

impl RevivalLimit {
    /// The first one is admitted [`REVIVAL_INTERVAL`] after `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            last: AtomicU64::new(0),
        }
    }

    /// Whether one is admitted now.
    pub fn admit(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.started).as_millis() as u64;
        let last = self.last.load(Ordering::Relaxed);
        let admitted = since >= last + REVIVAL_INTERVAL.as_millis() as u64;
        if admitted {
            self.last.store(since, Ordering::Relaxed);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use x25519_dalek::StaticSecret;

    use super::super::noise::{Message, Noise, Opened, StaticKeys};
    use std::net::SocketAddr;

    use super::*;

    fn forged(n: u32) -> SocketAddr {
        SocketAddr::from((n.wrapping_mul(2_654_435_761).to_be_bytes(), n as u16))
    }

    /// An initiation with a correct first MAC, which takes only the public key to make.
    fn initiation(from: u8, to: &StaticKeys) -> (Noise, [u8; 148]) {
        let from = StaticKeys::new(StaticSecret::from([from; 32]));
        let mut noise = Noise::new(&from, to.public(), None, None, 7, Instant::now());
        let mut out = [0; 256];
        let length = noise.initiate(&mut out).expect("none is under way");
        (noise, out[..length].try_into().expect("an initiation"))
    }

    #[test]
    fn a_new_peer_is_admitted_at_its_second_try_during_a_flood_from_forged_sources() {
        let (start, node) = (Instant::now(), StaticKeys::new(StaticSecret::from([1; 32])));
        let mut limiter = HandshakeLimiter::new([9; 32], start);
        let (_, attack) = initiation(2, &node);
        let (mut newcomer, first) = initiation(3, &node);
        let home = SocketAddr::from(([192, 0, 2, 1], 4000));
        let (mut out, mut passed, mut challenged) = ([0; 256], 0u32, 0u32);
        let mut flood = |limiter: &mut HandshakeLimiter, from: Instant| {
            for i in 0..2500u32 {
                let now = from + Duration::from_micros(u64::from(i) * 20);
                match limiter.admit(node.reply_key(), &attack, forged(i), now) {
                    Admission::Pass => passed += 1,
                    Admission::Prove(_) => challenged += 1,
                    Admission::Refuse => {}
                }
            }
            from + Duration::from_millis(50)
        };
        // There are 50,000 a second. The new peer tries once among them, and again 5 s later.
        let now = flood(&mut limiter, start);
        let Admission::Prove(reply) = limiter.admit(node.reply_key(), &first, home, now) else {
            panic!("no cookie for the newcomer");
        };
        let message = Message::parse(&reply).expect("a cookie reply");
        assert_eq!(newcomer.open(message, &reply, &mut out), Opened::Nothing);

        let now = flood(&mut limiter, start + Duration::from_secs(5));
        let length = newcomer.retry(&mut out).expect("an initiation");
        assert!(node.is_for_us(&out[..length]));
        let second = &out[..length];
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 4001));
        let admission = limiter.admit(node.reply_key(), second, elsewhere, now);
        assert!(
            matches!(admission, Admission::Prove(_)),
            "from another port"
        );
        assert_eq!(
            limiter.admit(node.reply_key(), second, home, now),
            Admission::Pass
        );
        assert!(f64::from(passed) <= 2.0 * (LOAD_BURST + 0.05 * LOAD_RATE) + 2.0);
        assert_eq!(passed + challenged, 5000, "all but those got a cookie");
        assert_eq!(limiter.sources.len(), 1, "nothing is kept for the others");
    }

    fn origin(address: [u8; 4]) -> Origin {
        SocketAddr::from((address, 51820)).into()
    }

    #[test]
    fn peers_behind_one_relay_have_buckets_of_their_own() {
        let start = Instant::now();
        let mut limiter = HandshakeLimiter::new([9; 32], start);
        let behind = |n: u8| Origin {
            label: Some([10, 210, n, 1].into()),
            ..origin([10, 0, 0, 1])
        };
        let passed = |limiter: &mut HandshakeLimiter, from| {
            (0..100).filter(|_| limiter.source(from, start)).count()
        };
        assert_eq!(passed(&mut limiter, behind(1)), 20);
        assert_eq!(passed(&mut limiter, behind(2)), 20);
        assert_eq!(passed(&mut limiter, origin([10, 0, 0, 1])), 20);
    }

    #[test]
    fn a_proven_source_has_a_bucket_of_its_own() {
        let start = Instant::now();
        let mut limiter = HandshakeLimiter::new([9; 32], start);
        let (greedy, honest) = (origin([10, 0, 0, 1]), origin([10, 0, 0, 2]));
        let mut passed = (0, 0);
        for i in 0..10_000u64 {
            let now = start + Duration::from_micros(i * 100);
            passed.0 += u32::from(limiter.source(greedy, now));
            if i % 2000 == 0 {
                passed.1 += u32::from(limiter.source(honest, now));
            }
        }
        assert!(
            (28..=30).contains(&passed.0),
            "20 at once, 10 a second: {passed:?}"
        );
        assert_eq!(passed.1, 5);
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let start = Instant::now();
        let mut limiter = HandshakeLimiter::new([9; 32], start);
        for i in 0..200_000u32 {
            limiter.source(
                origin(i.to_be_bytes()),
                start + Duration::from_micros(u64::from(i)),
            );
        }
        assert_eq!(limiter.sources.len(), MAX_SOURCES);
        limiter.source(origin([0, 0, 0, 1]), start + Duration::from_secs(10));
        assert_eq!(limiter.sources.len(), 1, "and is swept");
    }

    #[test]
    fn no_second_has_more_than_twenty_initiations_to_an_address_from_which_nothing_was_heard() {
        let start = Instant::now();
        let mut limit = OpeningLimit::new(start);
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let at = |ms| start + Duration::from_millis(ms);
        let sent: Vec<u64> = (0..3000)
            .filter(|ms| limit.admit(address(1), at(*ms)))
            .collect();
        let in_second = |from: &u64| {
            sent.iter()
                .filter(|ms| (*from..*from + 1000).contains(ms))
                .count()
        };
        assert!(
            sent.iter()
                .map(in_second)
                .max()
                .is_some_and(|most| (10..=20).contains(&most))
        );
        assert!(
            limit.admit(address(2), at(2999)),
            "others have their own limit"
        );
    }

    #[test]
    fn searches_for_the_peer_of_an_unknown_session_are_limited() {
        let start = Instant::now();
        let limit = RevivalLimit::new(start);
        let admitted = (0..1000u64).filter(|ms| limit.admit(start + Duration::from_millis(*ms)));
        assert_eq!(admitted.count(), 19);
    }

    #[test]
    fn cookies_are_limited() {
        let (start, node) = (Instant::now(), StaticKeys::new(StaticSecret::from([1; 32])));
        let mut limiter = HandshakeLimiter::new([9; 32], start);
        let (_, attack) = initiation(2, &node);
        let replies = (0..20_000u32)
            .filter(|i| {
                let admission = limiter.admit(node.reply_key(), &attack, forged(*i), start);
                matches!(admission, Admission::Prove(_))
            })
            .count();
        assert_eq!(replies, COOKIE_BURST as usize);
    }
}
