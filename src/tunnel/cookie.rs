//! Cookies: under load, a source has to return one before costly work is done for it (WireGuard section 5.4.7).
//!
//! boringtun has cookies as well, but its responder binds them to the address without the port, and decides by one counter for
//! the whole node. The part of its initiator that returns cookies is used as it is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac as _};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::{AeadInPlace as _, XChaCha20Poly1305};

/// The size of a cookie reply in bytes.
pub const REPLY: usize = 64;
/// How long one secret is used to make cookies. Cookies of the secret before it are still accepted.
const ROTATE: Duration = Duration::from_secs(120);
/// The size in bytes of each of the two MACs at the end of a handshake message (section 5.4.4).
const MAC: usize = 16;
const COOKIE_REPLY: u32 = 3;

type Keyed = Blake2sMac<U16>;

/// The key by which a node's cookies are encrypted: HASH("cookie--" || public key).
#[must_use]
pub fn reply_key(public_key: &[u8; 32]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, b"cookie--");
    Digest::update(&mut hash, public_key);
    hash.finalize().into()
}

/// Where a handshake message came from: an address and port, and behind a relay the mesh address of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The address and port.
    pub address: SocketAddr,
    /// The mesh address of the sender, if the message came through a relay.
    pub label: Option<Ipv4Addr>,
}

impl From<SocketAddr> for Origin {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            label: None,
        }
    }
}

/// Makes and verifies cookies. It stores nothing for a source, and reads no clock.
pub struct Cookies {
    seed: [u8; 32],
    started: Instant,
    replies: u64,
}

impl Cookies {
    /// The secrets and nonces are derived from `seed`, which is secret, random and used for nothing else.
    #[must_use]
    pub fn new(seed: [u8; 32], now: Instant) -> Self {
        Self {
            seed,
            started: now,
            replies: 0,
        }
    }

    /// Whether the second MAC of a message was made with a cookie that was sent to the address and port of `source`.
    #[must_use]
    pub fn proves(&self, handshake: &[u8], source: impl Into<Origin>, now: Instant) -> bool {
        let source = source.into();
        let Some((message, mac2)) = handshake.split_last_chunk::<MAC>() else {
            return false;
        };
        // Without a cookie the MAC is zero, so most often nothing has to be computed.
        if *mac2 == [0; MAC] {
            return false;
        }
        let epoch = self.epoch(now);
        [Some(epoch), epoch.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|epoch| {
                let mac = keyed(&self.cookie(source, epoch), &[message]);
                mac.verify(mac2.into()).is_ok()
            })
    }

    /// The reply to a handshake message without a valid cookie: a cookie, which only the host at `source` can read.
    pub fn reply(
        &mut self,
        reply_key: &[u8; 32],
        handshake: &[u8],
        source: impl Into<Origin>,
        now: Instant,
    ) -> Option<[u8; REPLY]> {
        let source = source.into();
        let sender = handshake.get(4..8)?;
        let mac1 = handshake
            .len()
            .checked_sub(2 * MAC)
            .and_then(|at| handshake.get(at..at + MAC))?;
        let mut reply = [0; REPLY];
        let (head, sealed) = reply.split_at_mut(32);
        head[..4].copy_from_slice(&COOKIE_REPLY.to_le_bytes());
        head[4..8].copy_from_slice(sender);
        // A nonce is used once: one half is random for each start, and the other half counts.
        head[8..24].copy_from_slice(&mac(&self.seed, &[b"nonce"]));
        head[24..32].copy_from_slice(&self.replies.to_le_bytes());
        self.replies += 1;
        let (cookie, tag) = sealed.split_at_mut(MAC);
        cookie.copy_from_slice(&self.cookie(source, self.epoch(now)));
        let cipher = <XChaCha20Poly1305 as KeyInit>::new(reply_key.into());
        let sum = cipher
            .encrypt_in_place_detached((&head[8..32]).into(), mac1, cookie)
            .ok()?;
        tag.copy_from_slice(&sum);
        Some(reply)
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / ROTATE.as_secs()
    }

    fn cookie(&self, source: Origin, epoch: u64) -> [u8; MAC] {
        let secret = mac(&self.seed, &[b"secret", &epoch.to_le_bytes()]);
        let port = source.address.port().to_be_bytes();
        // The lengths of an address, with a label or without, are all different.
        let label = source.label.map(|label| label.octets());
        let label = label.as_ref().map_or(&[][..], |label| label);
        match source.address.ip() {
            IpAddr::V4(v4) => mac(&secret, &[&v4.octets(), &port, label]),
            IpAddr::V6(v6) => mac(&secret, &[&v6.octets(), &port, label]),
        }
    }
}

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookies")
            .field("replies", &self.replies)
            .finish_non_exhaustive()
    }
}

/// MAC(key, parts): keyed BLAKE2s of 16 bytes (section 5.4).
fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    keyed(key, parts).finalize().into_bytes().into()
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Keyed {
    let mut keyed = <Keyed as KeyInit>::new_from_slice(key).expect("a key of at most 32 bytes");
    for part in parts {
        keyed.update(part);
    }
    keyed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: &str) -> SocketAddr {
        source.parse().expect("a literal")
    }

    /// A message with the length of a handshake, whose second MAC was made with the cookie in `reply`.
    fn proven(key: &[u8; 32], first: &[u8; 148], reply: &[u8; REPLY]) -> [u8; 148] {
        let mut cookie: [u8; MAC] = reply[32..48].try_into().expect("16 bytes");
        <XChaCha20Poly1305 as KeyInit>::new(key.into())
            .decrypt_in_place_detached(
                (&reply[8..32]).into(),
                &first[116..132],
                &mut cookie,
                (&reply[48..64]).into(),
            )
            .expect("it is for this message");
        let mut second = *first;
        let sum = mac(&cookie, &[&first[..132]]);
        second[132..].copy_from_slice(&sum);
        second
    }

    fn message() -> [u8; 148] {
        let mut message: [u8; 148] = std::array::from_fn(|i| i as u8);
        message[132..].fill(0);
        message
    }

    #[test]
    fn a_cookie_proves_the_address_and_port_it_was_sent_to_and_no_other() {
        let (start, key) = (Instant::now(), reply_key(&[5; 32]));
        let mut cookies = Cookies::new([1; 32], start);
        for source in ["192.0.2.1:1000", "[2001:db8::1]:1000"] {
            let first = message();
            assert!(!cookies.proves(&first, at(source), start));
            let reply = cookies
                .reply(&key, &first, at(source), start)
                .expect("a whole message");
            assert_eq!(reply[..8], [3, 0, 0, 0, 4, 5, 6, 7]);
            let second = proven(&key, &first, &reply);
            assert!(cookies.proves(&second, at(source), start));
            for other in [
                "192.0.2.1:1001",
                "192.0.2.2:1000",
                "[2001:db8::1]:1001",
                "[2001:db8::2]:1000",
            ] {
                assert!(!cookies.proves(&second, at(other), start), "{other}");
            }
            let mut changed = second;
            changed[40] ^= 1;
            assert!(!cookies.proves(&changed, at(source), start));
        }
    }

    #[test]
    fn a_cookie_is_valid_after_one_change_of_the_secret_and_not_after_two() {
        let (start, key, source) = (Instant::now(), reply_key(&[5; 32]), at("192.0.2.1:1000"));
        let mut cookies = Cookies::new([1; 32], start);
        let made = start + Duration::from_secs(119);
        let reply = cookies
            .reply(&key, &message(), source, made)
            .expect("a whole message");
        let second = proven(&key, &message(), &reply);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(cookies.proves(&second, source, after(120)));
        assert!(cookies.proves(&second, source, after(239)));
        assert!(!cookies.proves(&second, source, after(240)));
    }

    #[test]
    fn no_two_replies_have_the_same_nonce() {
        let (start, key, source) = (Instant::now(), reply_key(&[5; 32]), at("192.0.2.1:1000"));
        let mut cookies = Cookies::new([1; 32], start);
        let mut nonce = || {
            let reply = cookies.reply(&key, &message(), source, start);
            reply.expect("a whole message")[8..32].to_vec()
        };
        assert_ne!(nonce(), nonce());
    }

    #[test]
    fn messages_of_any_length_are_refused_without_a_panic() {
        let (start, source) = (Instant::now(), at("192.0.2.1:1000"));
        let mut cookies = Cookies::new([1; 32], start);
        for length in 0..200 {
            let message = vec![7; length];
            assert!(!cookies.proves(&message, source, start));
            assert_eq!(
                cookies.reply(&[0; 32], &message, source, start).is_some(),
                length >= 32
            );
        }
    }
}
