//! Tags: the proof that a member receives packets at the endpoint from which it sends frames.
//!
//! A relay writes the tag for the endpoint that it saw into each echo (`protocol::path_messages`). The tag is the first four bytes of a
//! keyed BLAKE2s hash of the member and the endpoint. The keys change, so that a tag that was observed is of no use for long. Tags of
//! the key before the present one are still accepted. The relay stores no tag. A tag is not secret from the networks between the
//! member and its relay, and need not be: a host there can send packets in the member's name anyway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use blake2::Blake2sMac;
use blake2::digest::consts::U32;
use blake2::digest::{KeyInit, Mac as _};

/// How long a key is used. A tag is valid for at least this time, so a member needs an echo of its relay at least as often.
pub const TAG_LIFETIME: Duration = Duration::from_secs(300);

type Keyed = Blake2sMac<U32>;

/// The tag of a member at an endpoint, which is never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(NonZeroU32);

impl Tag {
    /// The tag as a number in a message. Zero is no tag.
    #[must_use]
    #[inline]
    pub fn from_bits(bits: u32) -> Option<Self> {
        NonZeroU32::new(bits).map(Self)
    }

    /// The number that stands for the tag in a message.
    #[must_use]
    #[inline]
    pub fn to_bits(self) -> u32 {
        self.0.get()
    }
}

/// Makes tags. It stores nothing for a member, and reads no clock.
pub struct Tags {
    seed: [u8; 32],
    started: Instant,
}

impl Tags {
    /// The keys are derived from `seed`, which is secret, random and used for nothing else.
    #[must_use]
    pub fn new(seed: [u8; 32], now: Instant) -> Self {
        Self { seed, started: now }
    }

    /// The tag to give to `member`, which was seen at `endpoint`.
    #[must_use]
    pub fn tag(&self, member: Ipv4Addr, endpoint: SocketAddr, now: Instant) -> Tag {
        self.of_epoch(self.epoch(now), member, endpoint)
    }

    /// The number of the present key. The tags that are valid change when it does.
    #[inline]
    pub(super) fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / TAG_LIFETIME.as_secs()
    }

    /// The tags that `member` may use at `endpoint` in `epoch`.
    pub(super) fn valid(&self, epoch: u64, member: Ipv4Addr, endpoint: SocketAddr) -> [Tag; 2] {
        [epoch, epoch.saturating_sub(1)].map(|epoch| self.of_epoch(epoch, member, endpoint))
    }

    fn of_epoch(&self, epoch: u64, member: Ipv4Addr, endpoint: SocketAddr) -> Tag {
        let key = hash(&self.seed, &[b"key", &epoch.to_be_bytes()]);
        let port = endpoint.port().to_be_bytes();
        let hash = match endpoint.ip().to_canonical() {
            IpAddr::V4(v4) => hash(&key, &[&member.octets(), &v4.octets(), &port]),
            IpAddr::V6(v6) => hash(&key, &[&member.octets(), &v6.octets(), &port]),
        };
        let [a, b, c, d, ..] = hash;
        let bits = u32::from_be_bytes([a, b, c, d]);
        Tag(NonZeroU32::new(bits).unwrap_or(NonZeroU32::MIN))
    }
}

impl std::fmt::Debug for Tags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tags").finish_non_exhaustive()
    }
}

/// Keyed BLAKE2s of all parts. The parts of one use always have the same lengths, or lengths that differ in sum.
fn hash(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut keyed = <Keyed as KeyInit>::new_from_slice(key).expect("a key of at most 32 bytes");
    for part in parts {
        keyed.update(part);
    }
    keyed.finalize().into_bytes().into()
}
