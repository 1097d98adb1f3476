//! The Noise protocol with one peer. This and `keys` are the only users of `boringtun`.
//!
//! boringtun is not a pure state machine: it reads the system's monotonic clock and wall clock for its timers, session ages and
//! handshake timestamps, and draws ephemeral keys from the system's random source. The `now` that callers pass here decides only
//! what this file adds. So tests with a virtual clock replace the data plane as a whole.
//!
//! This file adds what boringtun leaves open:
//!
//! - Handshakes are limited before they come here ([`super::limiter`]); boringtun's own limit is never reached.
//! - Counters at which a session must not be used any more are refused (WireGuard section 6.1).
//! - Payloads are padded to 16 bytes, within the MTU (section 5.4.6).
//! - The caller chooses a random 24-bit number, with which the session indices begin.
//! - After a pause the timers run before anything is sealed, so that no session is used after its end.
//! - No buffer that is passed to boringtun is smaller than it needs: it would panic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Packet, Tunn, TunnResult};

use super::drops::DropReason;
pub use super::keys::StaticKeys;

/// The number of bytes that sealing adds: header and tag.
pub const OVERHEAD: usize = 32;
/// The size of the largest handshake message in bytes.
pub const HANDSHAKE: usize = 148;
/// The least size in bytes of an output buffer, for `packet` bytes of input.
#[inline]
#[must_use]
pub const fn room_for(packet: usize) -> usize {
    if packet + OVERHEAD > HANDSHAKE {
        packet + OVERHEAD + 16
    } else {
        HANDSHAKE + 16
    }
}

/// No session may receive a message with this counter or a higher one: 2^64 - 2^13 - 1.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// After a pause of this length, the timers run before the session is used.
const PAUSE: Duration = Duration::from_secs(2);
/// The maximum number of packets that wait for a session: enough for a burst at the start of a connection. boringtun would keep
/// more, and drop the rest without reporting it.
const MAX_WAITING: usize = 128;

/// A message, recognized by its type and length (section 5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Requests a session.
    Initiation,
    /// Completes a session, for the peer with this index.
    Response(u32),
    /// Carries a cookie, for the peer with this index.
    Cookie(u32),
    /// Carries a sealed packet, for the peer with this index.
    Data(u32),
}

impl Message {
    /// Parses a datagram.
    ///
    /// # Errors
    /// The datagram is no WireGuard message, or its counter is too high.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(_)) => Ok(Self::Initiation),
            Ok(Packet::HandshakeResponse(response)) => {
                Ok(Self::Response(response.receiver_idx >> 8))
            }
            Ok(Packet::PacketCookieReply(cookie)) => Ok(Self::Cookie(cookie.receiver_idx >> 8)),
            Ok(Packet::PacketData(_)) if counter(datagram) >= REJECT_AFTER_MESSAGES => {
                Err(DropReason::Exhausted)
            }
            Ok(Packet::PacketData(data)) => Ok(Self::Data(data.receiver_idx >> 8)),
            Err(_) => Err(DropReason::NotWireGuard),
        }
    }
}

/// The number of the session of a data message among the sessions with its peer. After 256 sessions the numbers begin again.
#[must_use]
pub fn session_of(datagram: &[u8]) -> u8 {
    // The receiver's index is little-endian, and its lowest byte counts the sessions.
    datagram.get(4).copied().unwrap_or_default()
}

/// The counter of a data message.
fn counter(datagram: &[u8]) -> u64 {
    datagram
        .get(8..16)
        .and_then(|c| c.try_into().ok())
        .map_or(u64::MAX, u64::from_le_bytes)
}

/// The result of opening a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// The output begins with a packet of so many bytes.
    Packet(usize),
    /// The message is authentic and carries no packet.
    Keepalive,
    /// Send the first so many bytes of the output back.
    Reply(usize),
    /// As `Reply`, and a session has begun, so that waiting packets can be sealed.
    Established(usize),
    /// There is nothing to do.
    Nothing,
    /// The message is refused.
    Refused(DropReason),
}

/// The result of running the timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticked {
    /// Send the first so many bytes of the output.
    Send(usize),
    /// There is nothing to do.
    Nothing,
    /// All sessions were removed: the peer was idle for three times the life of a session (section 6.3), or has not answered for
    /// 90 s. The timers rest until a handshake starts.
    Expired,
}

/// The state of the protocol with one peer.
///
/// It is never removed, even when its sessions have expired: it has the timestamp of the peer's last initiation, without which an
/// old initiation could be replayed (section 5.1).
pub struct Noise {
    tunn: Tunn,
    ticked: Instant,
    /// The number of packets that wait for a session.
    waiting: usize,
    /// The number of packets that waited in vain and were not reported yet.
    lost: usize,
    /// Whether the next handshake is started though one is in progress.
    again: bool,
}

impl Noise {
    /// A state without a session. `index` is a random 24-bit number that no other peer has.
    #[must_use]
    pub fn new(
        keys: &StaticKeys,
        peer: [u8; 32],
        preshared_key: Option<[u8; 32]>,
        keepalive: Option<u16>,
        index: u32,
        now: Instant,
    ) -> Self {
        let tunn = Tunn::new(
            keys.secret.clone(),
            peer.into(),
            preshared_key,
            keepalive,
            index,
            Some(Arc::clone(&keys.mac_checker)),
        );
        Self {
            tunn,
            ticked: now,
            waiting: 0,
            lost: 0,
            again: false,
        }
    }

    /// Seals `packet` into `output`, which has at least [`room_for`] bytes. Without a session the packet waits, and a handshake
    /// starts. Returns how many bytes to send, if any, and whether they are the sealed packet.
    #[inline]
    pub fn seal(
        &mut self,
        packet: &[u8],
        output: &mut [u8],
        now: Instant,
    ) -> Option<(usize, bool)> {
        if now.saturating_duration_since(self.ticked) > PAUSE {
            self.tick_after_pause(now);
        }
        if self.waiting >= MAX_WAITING && self.session_age().is_none() {
            self.lost += 1;
            return self.initiate(output).map(|length| (length, false));
        }
        match self.tunn.encapsulate(packet, output) {
            TunnResult::WriteToNetwork(datagram) if datagram.first() == Some(&4) => {
                Some((datagram.len(), true))
            }
            TunnResult::WriteToNetwork(datagram) => {
                self.waiting += 1;
                Some((datagram.len(), false))
            }
            _ => {
                self.waiting += 1;
                None
            }
        }
    }

    #[cold]
    fn tick_after_pause(&mut self, now: Instant) {
        let mut scratch = [0u8; HANDSHAKE + 16];
        // The timers will produce this message again shortly.
        let _ = self.tick(&mut scratch, now);
    }

    /// Opens a message into `output`, which has at least [`room_for`] bytes.
    #[inline]
    pub fn open(&mut self, message: Message, datagram: &[u8], output: &mut [u8]) -> Opened {
        match self.tunn.decapsulate(None, datagram, output) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Opened::Packet(packet.len())
            }
            TunnResult::WriteToNetwork(reply) if matches!(message, Message::Response(_)) => {
                Opened::Established(reply.len())
            }
            TunnResult::WriteToNetwork(reply) => Opened::Reply(reply.len()),
            TunnResult::Done if matches!(message, Message::Data(_)) => Opened::Keepalive,
            TunnResult::Done => Opened::Nothing,
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => {
                Opened::Refused(DropReason::NoSession)
            }
            // The message was parsed before, so it is the packet inside that is invalid.
            TunnResult::Err(WireGuardError::InvalidPacket) => {
                Opened::Refused(DropReason::Malformed)
            }
            TunnResult::Err(_) => Opened::Refused(DropReason::NotAuthentic),
        }
    }

    /// The number of packets that wait for a session.
    #[inline]
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The number of packets that waited in vain since the last call.
    #[inline]
    pub fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    /// Seals the next packet that waited for a session, and returns its length.
    pub fn next_waiting(&mut self, output: &mut [u8]) -> Option<usize> {
        match self.tunn.decapsulate(None, &[], output) {
            TunnResult::WriteToNetwork(datagram) => {
                self.waiting = self.waiting.saturating_sub(1);
                Some(datagram.len())
            }
            _ => {
                self.waiting = 0;
                None
            }
        }
    }

    /// Runs the timers. To be called several times a second, until the result is [`Ticked::Expired`].
    pub fn tick(&mut self, output: &mut [u8], now: Instant) -> Ticked {
        self.ticked = now;
        match self.tunn.update_timers(output) {
            TunnResult::WriteToNetwork(datagram) => Ticked::Send(datagram.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.lost += std::mem::take(&mut self.waiting);
                Ticked::Expired
            }
            _ => Ticked::Nothing,
        }
    }

    /// Lets the next call of [`Noise::initiate`] start a handshake though one is in progress. The peer may be reached by paths by which
    /// the message in progress was not sent, and the timers would send it there only after 5 s.
    pub fn begin_again(&mut self) {
        self.again = true;
    }

    /// Starts a handshake if none is in progress, and returns the length of the message.
    pub fn initiate(&mut self, output: &mut [u8]) -> Option<usize> {
        let again = std::mem::take(&mut self.again);
        match self.tunn.format_handshake_initiation(output, again) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }

    /// Repeats a handshake, as the timers do when it was not answered.
    #[cfg(test)]
    pub(super) fn retry(&mut self, output: &mut [u8]) -> Option<usize> {
        match self.tunn.format_handshake_initiation(output, true) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }

    /// The age of the session in use, by the clock of boringtun.
    #[must_use]
    pub fn session_age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
}

impl std::fmt::Debug for Noise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Noise")
            .field("session_age", &self.session_age())
            .finish()
    }
}

/// The size to which a packet of `length` bytes is padded: a multiple of 16, within `mtu`.
#[inline]
#[must_use]
pub fn padded(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(16).min(mtu.max(length))
}

#[cfg(test)]
pub(in crate::tunnel) mod tests {
    use super::*;
    use proptest::prelude::*;
    use x25519_dalek::StaticSecret;

    fn pair() -> (StaticKeys, StaticKeys, Noise, Noise) {
        let (a, b) = (
            StaticKeys::new(StaticSecret::from([1; 32])),
            StaticKeys::new(StaticSecret::from([2; 32])),
        );
        let now = Instant::now();
        let to_b = Noise::new(&a, b.public(), Some([9; 32]), None, 0x123456, now);
        let to_a = Noise::new(&b, a.public(), Some([9; 32]), None, 0xfedcba, now);
        (a, b, to_b, to_a)
    }

    pub(in crate::tunnel) fn packet(n: u8) -> Vec<u8> {
        let mut p = vec![n; 48];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&48u16.to_be_bytes());
        p
    }

    pub(in crate::tunnel) fn open(noise: &mut Noise, datagram: &[u8], output: &mut [u8]) -> Opened {
        match Message::parse(datagram) {
            Ok(message) => noise.open(message, datagram, output),
            Err(reason) => Opened::Refused(reason),
        }
    }

    /// Both ends of a session in which the first packet has arrived.
    pub(in crate::tunnel) fn established() -> (Noise, Noise) {
        let (_, b, mut to_b, mut to_a) = pair();
        let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
        let (n, data) = to_b
            .seal(&packet(1), &mut x, Instant::now())
            .expect("an initiation");
        assert!(!data);
        assert!(b.is_for_us(&x[..n]));
        let Opened::Reply(m) = open(&mut to_a, &x[..n], &mut y) else {
            panic!("a response")
        };
        assert!(matches!(
            open(&mut to_b, &y[..m], &mut x),
            Opened::Established(_)
        ));
        let n = to_b.next_waiting(&mut x).expect("the packet that waited");
        assert_eq!(open(&mut to_a, &x[..n], &mut y), Opened::Packet(48));
        assert_eq!(y[..48], packet(1));
        (to_b, to_a)
    }

    #[test]
    fn a_handshake_in_progress_is_begun_again_only_when_that_is_asked_for() {
        let (_, _, mut to_b, _) = pair();
        let mut out = vec![0; 4096];
        assert!(to_b.initiate(&mut out).is_some());
        assert_eq!(to_b.initiate(&mut out), None);
        to_b.begin_again();
        assert!(to_b.initiate(&mut out).is_some());
        assert_eq!(to_b.initiate(&mut out), None);
    }

    #[test]
    fn the_initiator_is_identified_by_its_key() {
        let (a, b, mut to_b, _) = pair();
        let mut x = vec![0; 4096];
        let n = to_b.initiate(&mut x).expect("none is under way");
        assert_eq!(b.initiator(&x[..n]), Some(a.public()));
        assert!(!a.is_for_us(&x[..n]));
    }

    #[test]
    fn all_messages_of_a_session_have_its_number_and_the_next_session_has_another_one() {
        let (mut to_b, mut to_a) = established();
        let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
        let session = |to_b: &mut Noise, x: &mut [u8]| {
            let (length, is_data) = to_b.seal(&packet(1), x, Instant::now()).expect("a session");
            assert!(is_data);
            session_of(&x[..length])
        };
        let first = session(&mut to_b, &mut x);
        assert_eq!(session(&mut to_b, &mut x), first);
        let n = to_b.initiate(&mut x).expect("none is under way");
        let Opened::Reply(m) = open(&mut to_a, &x[..n], &mut y) else {
            panic!("a response")
        };
        assert!(matches!(
            open(&mut to_b, &y[..m], &mut x),
            Opened::Established(_)
        ));
        assert_ne!(session(&mut to_b, &mut x), first);
    }

    #[test]
    fn a_replayed_datagram_is_refused_every_time() {
        let (mut to_b, mut to_a) = established();
        let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
        for n in 0..200 {
            let (length, _) = to_b
                .seal(&packet(n), &mut x, Instant::now())
                .expect("a session");
            assert_eq!(open(&mut to_a, &x[..length], &mut y), Opened::Packet(48));
            for _ in 0..50 {
                assert_eq!(
                    open(&mut to_a, &x[..length], &mut y),
                    Opened::Refused(DropReason::NotAuthentic)
                );
            }
        }
    }

    #[test]
    fn counters_at_the_limit_are_refused_before_they_are_opened() {
        let mut datagram = vec![0u8; 64];
        datagram[0] = 4;
        for counter in [u64::MAX, u64::MAX - 1, REJECT_AFTER_MESSAGES] {
            datagram[8..16].copy_from_slice(&counter.to_le_bytes());
            assert_eq!(Message::parse(&datagram), Err(DropReason::Exhausted));
        }
        datagram[8..16].copy_from_slice(&(REJECT_AFTER_MESSAGES - 1).to_le_bytes());
        assert_eq!(Message::parse(&datagram), Ok(Message::Data(0)));
    }

    #[test]
    fn datagrams_of_every_length_and_type_are_refused_without_a_panic() {
        let (_, mut to_a) = established();
        let mut output = vec![0; room_for(65_535)];
        for kind in 0..6u8 {
            for length in (0..2100).chain([8192, 65_507, 65_535]) {
                let mut datagram = vec![0u8; length];
                if let Some(first) = datagram.first_mut() {
                    *first = kind;
                }
                let opened = open(&mut to_a, &datagram, &mut output);
                assert!(
                    matches!(opened, Opened::Refused(_)),
                    "type {kind}, {length} bytes: {opened:?}"
                );
            }
        }
    }

    #[test]
    fn packets_beyond_the_limit_of_waiting_ones_are_lost_and_counted() {
        let (_, _, mut to_b, mut to_a) = pair();
        let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
        let (n, _) = to_b
            .seal(&packet(0), &mut x, Instant::now())
            .expect("an initiation");
        for _ in 1..MAX_WAITING + 5 {
            assert_eq!(to_b.seal(&packet(0), &mut y, Instant::now()), None);
        }
        assert_eq!((to_b.waiting(), to_b.take_lost()), (MAX_WAITING, 5));
        assert_eq!(to_b.take_lost(), 0);
        let Opened::Reply(m) = open(&mut to_a, &x[..n], &mut y) else {
            panic!("a response")
        };
        open(&mut to_b, &y[..m], &mut x);
        let mut sent = 0;
        while to_b.waiting() > 0 && to_b.next_waiting(&mut x).is_some() {
            sent += 1;
        }
        assert_eq!(sent, MAX_WAITING);
        let sealed = to_b.seal(&packet(0), &mut x, Instant::now());
        assert!(
            sealed.is_some_and(|(_, data)| data),
            "no packet waits any more"
        );
    }

    #[test]
    fn an_authentic_packet_with_a_wrong_length_is_malformed() {
        let (mut to_b, mut to_a) = established();
        let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
        let mut long = packet(1);
        long[2..4].copy_from_slice(&49u16.to_be_bytes());
        for lie in [long, vec![0xff; 48], vec![0x60; 39], vec![0x45]] {
            let (n, _) = to_b.seal(&lie, &mut x, Instant::now()).expect("a session");
            assert_eq!(
                open(&mut to_a, &x[..n], &mut y),
                Opened::Refused(DropReason::Malformed)
            );
        }
    }

    #[test]
    fn payloads_are_padded_to_16_bytes_within_the_mtu() {
        assert_eq!(
            [0, 1, 16, 17, 1408, 1409, 1420].map(|n| padded(n, 1420)),
            [0, 16, 16, 32, 1408, 1420, 1420]
        );
        assert_eq!(
            padded(1500, 1420),
            1500,
            "a packet that is too long is not padded"
        );
    }

    proptest! {
        #[test]
        fn a_changed_sealed_packet_is_refused(at in 0usize..96, bit in 0u8..8) {
            let (mut to_b, mut to_a) = established();
            let (mut x, mut y) = (vec![0; 4096], vec![0; 4096]);
            let (length, _) = to_b.seal(&packet(7), &mut x, Instant::now()).expect("a session");
            prop_assume!(at < length);
            x[at] ^= 1 << bit;
            // The three reserved bytes after the type are not authenticated.
            let opened = open(&mut to_a, &x[..length], &mut y);
            prop_assert!(matches!(opened, Opened::Refused(_)) || (at > 0 && at < 8), "{opened:?}");
        }
    }
}
