//! The static keys of a node (WireGuard section 5.4).

use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn};
use x25519_dalek::{PublicKey, StaticSecret};

use super::cookie;

/// The key pair of this node, and the checks of handshake messages that need nothing else.
pub struct StaticKeys {
    pub(super) secret: StaticSecret,
    public: PublicKey,
    /// boringtun verifies MACs in its rate limiter. The limit is set so high that it is never reached:
    /// [`super::limiter`] limits handshakes before they come here.
    pub(super) mac_checker: Arc<RateLimiter>,
    reply_key: [u8; 32],
}

impl StaticKeys {
    /// The key pair of `secret`.
    #[must_use]
    pub fn new(secret: StaticSecret) -> Self {
        let public = PublicKey::from(&secret);
        Self {
            secret,
            public,
            mac_checker: Arc::new(RateLimiter::new(&public, u64::MAX)),
            reply_key: cookie::reply_key(public.as_bytes()),
        }
    }

    /// The key by which this node's cookies are encrypted (section 5.4.7).
    #[must_use]
    pub fn reply_key(&self) -> &[u8; 32] {
        &self.reply_key
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public.to_bytes()
    }

    /// The private key.
    #[must_use]
    pub fn secret(&self) -> &StaticSecret {
        &self.secret
    }

    /// Whether a handshake message carries the first MAC for this node (section 5.4.4): a cheap test that the sender knows
    /// the public key.
    #[must_use]
    pub fn is_for_us(&self, datagram: &[u8]) -> bool {
        let mut cookie = [0u8; 64];
        let checked = self.mac_checker.verify_packet(None, datagram, &mut cookie);
        checked.is_ok()
    }

    /// The public key of the sender of a handshake initiation. Costs a Diffie-Hellman.
    #[must_use]
    pub fn initiator(&self, datagram: &[u8]) -> Option<[u8; 32]> {
        match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(init)) => {
                parse_handshake_anon(&self.secret, &self.public, &init)
                    .ok()
                    .map(|half| half.peer_static_public)
            }
            _ => None,
        }
    }
}

impl std::fmt::Debug for StaticKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "StaticKeys({:02x?})",
            self.public.as_bytes().first_chunk::<4>()
        )
    }
}
