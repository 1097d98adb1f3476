//! Sessions as WireGuard has them (section 6 of its paper), without the encryption: its implementation reads the system's clock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::network::At;

/// What is inside a data message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inner {
    /// A packet of a program.
    Packet,
    /// A message about paths.
    PathMessage(Vec<u8>),
    /// A probe that tests a size.
    Sized(u64, u16),
    SizedAnswer(u64),
    Keepalive,
}

/// A message between two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The node that sealed it, and the node that may open it.
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With the number of the session that it proposes, and the time at which it was made.
    Initiation(u64, At),
    Response(u64),
    /// Sealed under this session.
    Data(u64, Inner),
}

impl Kind {
    /// The number of the session, as `src/tunnel/noise.rs` reads it from a datagram: its lowest byte.
    pub(crate) fn session(&self) -> u8 {
        let (Self::Initiation(number, _) | Self::Response(number) | Self::Data(number, _)) = self;
        number.to_le_bytes()[0]
    }

    /// The size of the datagram in bytes, without a frame.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Initiation(..) => 148,
            Self::Response(_) => 92,
            Self::Data(_, Inner::Packet) => 32 + 64,
            Self::Data(_, Inner::PathMessage(bytes)) => 32 + padded(28 + bytes.len()),
            Self::Data(_, Inner::Sized(_, size)) => 32 + padded(usize::from(*size)),
            Self::Data(_, Inner::SizedAnswer(_)) => 32 + padded(44),
            Self::Data(_, Inner::Keepalive) => 32,
        }
    }
}

/// The size of a packet in a message (WireGuard's paper, section 5.4.6).
fn padded(size: usize) -> usize {
    size.next_multiple_of(16)
}

/// What follows from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Send this back to where the message came from.
    Reply(Kind),
    /// A session has begun. Send a keepalive and the packets that waited.
    Established,
    Data(Inner),
    Refused,
}

/// What the timers want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    Nothing,
    /// Repeat or begin a handshake.
    Initiate,
    Keepalive,
}

const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPTS: Duration = Duration::from_secs(90);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The interval that meshd configures for some peers.
const PERSISTENT_KEEPALIVE: Duration = Duration::from_secs(18);
/// Copies of an initiation are answered with the same response for so long.
const REPLY_KEPT_FOR: Duration = Duration::from_secs(10);
const MAX_WAITING: usize = 128;

#[derive(Debug, Clone, Copy)]
struct Session {
    number: u64,
    since: At,
    is_initiator: bool,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    number: u64,
    began: At,
    sent: At,
}

/// The sessions with one peer.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    current: Option<Session>,
    previous: Option<Session>,
    /// Begun by the peer, and not used by it yet.
    next: Option<Session>,
    attempt: Option<Attempt>,
    /// The last initiation that was answered, when it was made, and when it was answered.
    replied: Option<(u64, At, At)>,
    pub(crate) waiting: VecDeque<Inner>,
    /// When data was first sent that nothing was received since.
    unanswered: Option<At>,
    /// When data was first received that nothing was sent since.
    owed: Option<At>,
    kept_alive: At,
}

impl Sessions {
    pub(crate) fn has_session(&self, now: At) -> bool {
        let is_young = |session: &Session| now.saturating_sub(session.since) < REJECT_AFTER;
        self.current.as_ref().is_some_and(is_young)
    }

    /// Seals something. Without a session it waits, and an initiation is due if none is under way.
    pub(crate) fn seal(&mut self, inner: Inner, now: At) -> Result<Kind, bool> {
        let Some(session) = self.current.filter(|_| self.has_session(now)) else {
            self.waiting.push_back(inner);
            while self.waiting.len() > MAX_WAITING {
                self.waiting.pop_front();
            }
            return Err(self.attempt.is_none());
        };
        self.owed = None;
        if inner != Inner::Keepalive {
            self.unanswered.get_or_insert(now);
        }
        Ok(Kind::Data(session.number, inner))
    }

    /// Begins or repeats a handshake with a session of this number.
    pub(crate) fn initiate(&mut self, number: u64, now: At) -> Kind {
        let began = self.attempt.map_or(now, |attempt| attempt.began);
        self.attempt = Some(Attempt {
            number,
            began,
            sent: now,
        });
        Kind::Initiation(number, now)
    }

    /// Whether a handshake is under way.
    pub(crate) fn is_initiating(&self) -> bool {
        self.attempt.is_some()
    }

    pub(crate) fn open(&mut self, kind: &Kind, now: At) -> Opened {
        match kind {
            Kind::Initiation(number, made) => {
                if let Some((last, last_made, at)) = self.replied {
                    if last == *number && now.saturating_sub(at) < REPLY_KEPT_FOR {
                        return Opened::Reply(Kind::Response(*number));
                    }
                    if *made <= last_made {
                        return Opened::Refused;
                    }
                }
                self.replied = Some((*number, *made, now));
                self.next = Some(Session {
                    number: *number,
                    since: now,
                    is_initiator: false,
                });
                Opened::Reply(Kind::Response(*number))
            }
            Kind::Response(number) => {
                if self.attempt.is_none_or(|attempt| attempt.number != *number) {
                    return Opened::Refused;
                }
                self.attempt = None;
                self.unanswered = None;
                self.begin(Session {
                    number: *number,
                    since: now,
                    is_initiator: true,
                });
                Opened::Established
            }
            Kind::Data(number, inner) => {
                if let Some(next) = self.next.filter(|next| next.number == *number) {
                    self.next = None;
                    self.begin(next);
                }
                let known = self.current.iter().chain(&self.previous);
                let mut known = known.filter(|s| now.saturating_sub(s.since) < REJECT_AFTER);
                if !known.any(|session| session.number == *number) {
                    return Opened::Refused;
                }
                self.unanswered = None;
                if *inner != Inner::Keepalive {
                    self.owed.get_or_insert(now);
                }
                Opened::Data(inner.clone())
            }
        }
    }

    fn begin(&mut self, session: Session) {
        self.previous = self.current.replace(session);
    }

    /// Runs the timers.
    pub(crate) fn tick(&mut self, now: At) -> Tick {
        let since = |at: At| now.saturating_sub(at);
        if let Some(attempt) = self.attempt {
            if since(attempt.began) >= REKEY_ATTEMPTS {
                // A peer that is configured to be kept alive is tried without an end.
                self.waiting.clear();
                self.attempt = None;
                return Tick::Initiate;
            }
            if since(attempt.sent) >= REKEY_TIMEOUT {
                return Tick::Initiate;
            }
        } else {
            let is_old = |s: Session| s.is_initiator && since(s.since) >= REKEY_AFTER;
            let is_silent = |at: At| since(at) >= KEEPALIVE + REKEY_TIMEOUT;
            if self.current.is_some_and(is_old) || self.unanswered.is_some_and(is_silent) {
                return Tick::Initiate;
            }
        }
        if since(self.kept_alive) >= PERSISTENT_KEEPALIVE
            || self.owed.is_some_and(|at| since(at) >= KEEPALIVE)
        {
            self.kept_alive = now;
            return Tick::Keepalive;
        }
        Tick::Nothing
    }
}
