//! The reply to the last initiation of a peer, which is sent again to other copies of the same initiation. Pure.
//!
//! A peer that does not know yet which path works sends one initiation by several of them. boringtun refuses the second copy as
//! a replay, although the reply to the first one may be lost on its path. The exact reply does no harm: whoever has the
//! initiation could have the reply as well, and it is valid only for the peer that made the initiation.

use std::time::{Duration, Instant};

use super::noise::HANDSHAKE;

/// How long copies are answered: a copy takes no other path for longer, and the peer makes another initiation after 5 s.
const LIFETIME: Duration = Duration::from_secs(10);
/// The maximum number of copies that are answered: one for each path.
const MAX_COPIES: u32 = crate::model::path::MAX_PATHS as u32;

/// An initiation and its reply.
#[derive(Debug, Clone)]
pub(super) struct Replied {
    initiation: Vec<u8>,
    reply: Vec<u8>,
    at: Instant,
    copies: u32,
}

impl Replied {
    /// `initiation` was answered with `reply`. None if one of them is larger than a handshake message.
    pub(super) fn new(initiation: &[u8], reply: &[u8], now: Instant) -> Option<Box<Self>> {
        let fits = initiation.len() <= HANDSHAKE && reply.len() <= HANDSHAKE;
        fits.then(|| {
            Box::new(Self {
                initiation: initiation.to_vec(),
                reply: reply.to_vec(),
                at: now,
                copies: 0,
            })
        })
    }

    /// The reply, if `initiation` is a copy of the one that was answered.
    pub(super) fn again(&mut self, initiation: &[u8], now: Instant) -> Option<&[u8]> {
        let is_young = now.saturating_duration_since(self.at) < LIFETIME;
        if !is_young || self.copies >= MAX_COPIES || self.initiation != initiation {
            return None;
        }
        self.copies += 1;
        Some(&self.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_an_initiation_are_answered_for_ten_seconds_and_at_most_once_for_each_path() {
        let now = Instant::now();
        let mut replied = Replied::new(&[1; 148], &[2; 92], now).expect("small");
        assert_eq!(replied.again(&[3; 148], now), None, "another initiation");
        assert_eq!(replied.again(&[1; 148], now + LIFETIME), None);
        for _ in 0..MAX_COPIES {
            assert_eq!(replied.again(&[1; 148], now), Some(&[2; 92][..]));
        }
        assert_eq!(replied.again(&[1; 148], now), None);
        assert!(Replied::new(&[1; 149], &[2; 92], now).is_none());
    }
}
