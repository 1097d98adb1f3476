//! The stream to a relay: WebSocket (RFC 6455) over TLS on a TCP port, for nodes whose network drops UDP.
//!
//! ```text
//! node                                relay
//!   hello {protocol, node}      ->
//!                               <-  challenge {nonce}      or  refuse {..}
//!   proof {signature}           ->
//!                               <-  welcome {protocol}     or  refuse {..}
//!   frames                      ->
//!                               <-  frames
//! ```
//!
//! The opening is text messages with JSON. After it there are only binary messages, each of whole frames:
//!
//! ```text
//! 0 length u16 | 2 label u32 | 6 datagram, of `length` bytes
//! ```
//!
//! Numbers are big-endian. To the relay, the label is the mesh address of the destination; from the relay, it is that of the source.
//! Label 0 is the node at the other end itself. The datagram is a WireGuard message, which the relay cannot read.
//!
//! A reader ignores fields and kinds of messages of the opening that it does not know.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::api::message;
use super::control::Refusal;
use super::token::SpkiPin;
use crate::model::{PublicKey, authority};
use crate::records::envelope::Signature;
use crate::records::kinds::MAX_STREAM_URL;

/// The path of the stream, after that of the relay's URL.
pub const PATH: &str = "/v1/relay";
/// The newest version of the protocol that this program supports.
pub const PROTOCOL: u32 = 1;
/// The maximum size of a message of the opening, in bytes.
pub const MAX_OPENING: usize = 4096;
/// The size of what precedes a datagram, in bytes.
pub const FRAME_HEADER: usize = 6;
/// The maximum size of a message with frames, in bytes: one frame of the largest size fits.
pub const MAX_MESSAGE: usize = 80 * 1024;
/// The number of bytes after which a sender begins another message. A datagram that arrives meanwhile waits for no more than this.
pub const FULL_MESSAGE: usize = 16 * 1024;
/// Seconds between pings. A side that receives nothing for three times as long closes the connection. Proxies close connections that
/// are silent for a minute.
pub const PING_SECONDS: u64 = 20;

/// Messages of the opening from a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// The first message.
    Hello {
        /// The newest protocol version that the node supports.
        protocol: u32,
        /// The node's identity key.
        node: PublicKey,
    },
    /// The answer to the challenge.
    Proof {
        /// A signature over [`proof_message`], with purpose `Relay`.
        signature: Signature,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// Messages of the opening from a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromRelay {
    /// Requests a proof of the node's identity.
    Challenge {
        /// 32 random bytes in hexadecimal.
        nonce: String,
    },
    /// The relay accepts the node. Frames follow.
    Welcome {
        /// The version of the protocol on this stream.
        protocol: u32,
    },
    /// The relay ends the stream.
    Refuse {
        /// The kind of the refusal.
        reason: Refusal,
        /// One line for people.
        #[serde(deserialize_with = "message")]
        message: String,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// The text that a node signs: the nonce, and the identity key of the relay that it wants to use. So no relay can forward the challenge
/// of another one.
#[must_use]
pub fn proof_message(nonce: &str, relay: &PublicKey) -> Vec<u8> {
    [nonce.as_bytes(), b"\0", &relay.0].concat()
}

/// A datagram on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The mesh address of the destination or of the source. None is the node at the other end itself.
    pub label: Option<Ipv4Addr>,
    /// The datagram, which is not empty.
    pub datagram: &'a [u8],
}

/// A message that does not consist of whole frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message on the stream does not consist of whole frames")]
pub struct NoFrames;

impl<'a> Frame<'a> {
    /// Splits the first frame from `bytes`.
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), NoFrames> {
        let (length, rest) = bytes.split_first_chunk::<2>().ok_or(NoFrames)?;
        let (label, rest) = rest.split_first_chunk::<4>().ok_or(NoFrames)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (datagram, rest) = rest.split_at_checked(length).ok_or(NoFrames)?;
        if datagram.is_empty() {
            return Err(NoFrames);
        }
        let label = Ipv4Addr::from(*label);
        let label = (!label.is_unspecified()).then_some(label);
        Ok((Self { label, datagram }, rest))
    }

    /// What precedes the datagram. None if the datagram is empty or too long for a frame.
    #[must_use]
    pub fn header(&self) -> Option<[u8; FRAME_HEADER]> {
        let length = u16::try_from(self.datagram.len()).ok();
        let length = length.filter(|length| *length > 0)?;
        let mut header = [0; FRAME_HEADER];
        header[..2].copy_from_slice(&length.to_be_bytes());
        let label = self.label.unwrap_or(Ipv4Addr::UNSPECIFIED);
        header[2..].copy_from_slice(&label.octets());
        Some(header)
    }
}

/// The size in bytes of the first frame of `bytes`, which begin with a whole frame. 0 if there is none.
#[must_use]
pub fn first_length(bytes: &[u8]) -> usize {
    let length = bytes.first_chunk::<2>().map(|l| u16::from_be_bytes(*l));
    length.map_or(0, |length| usize::from(length) + FRAME_HEADER)
}

/// The frames of a message. It ends with the first byte that belongs to no frame.
#[derive(Debug, Clone)]
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    /// The frames of a message that was checked when it was received.
    #[must_use]
    pub fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// Checks a message that was received.
    ///
    /// # Errors
    /// It does not consist of whole frames, or there is none in it.
    pub fn parse(message: &'a [u8]) -> Result<Self, NoFrames> {
        let mut rest = message;
        loop {
            (_, rest) = Frame::split(rest)?;
            if rest.is_empty() {
                return Ok(Self(message));
            }
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (frame, rest) = Frame::split(self.0).ok()?;
        self.0 = rest;
        Some(frame)
    }
}

/// The URL of a relay: `wss://host[:port][/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamUrl {
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
}

/// The reason why a text is not the URL of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write wss://HOST, wss://HOST:PORT or wss://HOST/PATH, such as \"wss://web-1.example.com/meshd\""
)]
pub struct NoStreamUrl;

impl StreamUrl {
    /// The port if the URL names none.
    pub const PORT: u16 = 443;
    /// The maximum length of a URL, in bytes.
    pub const MAX: usize = MAX_STREAM_URL;

    /// The relay at an address.
    #[must_use]
    pub fn at(address: std::net::SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            path: String::new(),
        }
    }

    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the request that opens the stream.
    #[must_use]
    pub fn request(&self) -> String {
        format!("{self}{PATH}")
    }
}

impl std::str::FromStr for StreamUrl {
    type Err = NoStreamUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |c: char| c.is_ascii_graphic() && !"?#\"\\<>^`{|}@".contains(c);
        if text.len() > Self::MAX || !text.chars().all(is_plain) {
            return Err(NoStreamUrl);
        }
        let rest = text.strip_prefix("wss://").ok_or(NoStreamUrl)?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = authority::split(authority).ok_or(NoStreamUrl)?;
        Ok(Self {
            host: host.to_owned(),
            port: port.unwrap_or(Self::PORT),
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for StreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, path } = self;
        let port = Some(*port).filter(|port| *port != Self::PORT);
        write!(f, "wss://{}{path}", authority::join(host, port))
    }
}

/// Where a relay is reached over TLS, and by which key it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTarget {
    pub url: StreamUrl,
    /// The hash of the relay's TLS key. Without it the certificate must be one that this system trusts for the host of the URL.
    pub pin: Option<SpkiPin>,
}

impl StreamTarget {
    /// Reads what a node record contains. None if it is of no use to this version.
    #[must_use]
    pub fn parse(url: &str, pin: Option<&str>) -> Option<Self> {
        let pin = match pin {
            Some(pin) => Some(SpkiPin(pin.parse::<PublicKey>().ok()?.0)),
            None => None,
        };
        let url = url.parse().ok()?;
        Some(Self { url, pin })
    }

    /// The text of the pin in a node record: hexadecimal, as keys are written.
    #[must_use]
    pub fn pin_text(&self) -> Option<String> {
        self.pin.map(|pin| PublicKey(pin.0).to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::model::SigningKey;
    use crate::records::envelope::Purpose;

    fn written(label: Option<Ipv4Addr>, datagram: &[u8]) -> Vec<u8> {
        let header = Frame { label, datagram }.header().expect("it fits");
        [&header[..], datagram].concat()
    }

    #[test]
    fn frames_of_every_length_are_read_as_they_were_written() {
        let label = Some(Ipv4Addr::new(10, 210, 2, 1));
        let datagram: Vec<u8> = (0..=u16::MAX).map(|n| n as u8).collect();
        for length in (1..2000).chain([16_384, 65_534, 65_535]) {
            let datagram = &datagram[..length];
            let message = [written(label, datagram), written(None, &[7])].concat();
            let frames: Vec<Frame<'_>> = Frames::parse(&message).expect("whole frames").collect();
            let last = Frame {
                label: None,
                datagram: &[7],
            };
            assert_eq!(frames, [Frame { label, datagram }, last]);
            assert_eq!(first_length(&message), length + FRAME_HEADER);
        }
    }

    #[test]
    fn a_datagram_that_is_empty_or_too_long_has_no_frame() {
        let long = vec![0; 65_536];
        for datagram in [&[][..], &long] {
            let frame = Frame {
                label: None,
                datagram,
            };
            assert_eq!(frame.header(), None);
        }
    }

    #[test]
    fn a_message_that_lies_about_its_lengths_is_refused_wherever_it_is_cut() {
        let message = [written(None, &[1; 40]), written(None, &[2; 3])].concat();
        for end in 0..message.len() {
            let is_whole = end == 40 + FRAME_HEADER;
            let read = Frames::parse(&message[..end]);
            assert_eq!(read.is_ok(), is_whole, "{end}");
        }
        for length in [0u16, 4, 5, u16::MAX] {
            let mut lie = written(None, &[2; 3]);
            lie[..2].copy_from_slice(&length.to_be_bytes());
            assert!(Frames::parse(&lie).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_written_in_the_same_way(message in vec(any::<u8>(), 0..200)) {
            if let Ok(frames) = Frames::parse(&message) {
                let again = frames.map(|frame| written(frame.label, frame.datagram));
                prop_assert_eq!(again.collect::<Vec<_>>().concat(), message);
            }
        }
    }

    #[test]
    fn a_proof_holds_for_one_relay_and_one_challenge() {
        let key = SigningKey::from_seed(&[1; 32]);
        let (relay, other) = (PublicKey([2; 32]), PublicKey([3; 32]));
        let sign = |purpose| Signature::make(&key, purpose, &proof_message("a", &relay));
        let holds = |signature: Signature, nonce: &str, relay: &PublicKey| {
            let message = proof_message(nonce, relay);
            signature.holds(&key.public(), Purpose::Relay, &message)
        };
        assert!(holds(sign(Purpose::Relay), "a", &relay));
        assert!(!holds(sign(Purpose::Relay), "b", &relay), "replayed");
        assert!(!holds(sign(Purpose::Relay), "a", &other), "forwarded");
        assert!(
            !holds(sign(Purpose::Control), "a", &relay),
            "for the coordinator"
        );
    }

    #[test]
    fn urls_of_relays_are_read_and_shown() {
        for (text, host, port, request) in [
            (
                "wss://a.example",
                "a.example",
                443,
                "wss://a.example/v1/relay",
            ),
            (
                "wss://a.example/",
                "a.example",
                443,
                "wss://a.example/v1/relay",
            ),
            (
                "wss://a.example:8443/meshd/",
                "a.example",
                8443,
                "wss://a.example:8443/meshd/v1/relay",
            ),
            (
                "wss://[2001:db8::1]:7/x",
                "2001:db8::1",
                7,
                "wss://[2001:db8::1]:7/x/v1/relay",
            ),
            (
                "wss://192.0.2.1",
                "192.0.2.1",
                443,
                "wss://192.0.2.1/v1/relay",
            ),
        ] {
            let url: StreamUrl = text.parse().expect(text);
            assert_eq!((url.host(), url.port()), (host, port));
            assert_eq!(url.request(), request);
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        let long = format!("wss://{}", "a".repeat(300));
        for text in [
            "",
            "wss://",
            "wss:///x",
            "https://a.example",
            "ws://a.example",
            "wss://a.example:0",
            "wss://a.example:x",
            "wss://a.example:",
            "wss://[::1",
            "wss://[x]",
            "wss://u@a.example",
            "wss://a.example/x?y",
            "wss://a.example/\r\nx",
            "wss://a b",
            long.as_str(),
        ] {
            assert_eq!(text.parse::<StreamUrl>(), Err(NoStreamUrl), "{text}");
        }
    }

    #[test]
    fn the_pin_of_a_record_is_read_or_the_whole_offer_is_of_no_use() {
        let pin = "ab".repeat(32);
        let target = StreamTarget::parse("wss://a.example", Some(&pin)).expect("valid");
        assert_eq!(target.pin, Some(SpkiPin([0xab; 32])));
        assert_eq!(target.pin_text(), Some(pin));
        assert_eq!(StreamTarget::parse("wss://a.example", Some("x")), None);
        let without = StreamTarget::parse("wss://a.example", None).expect("valid");
        assert_eq!(without.pin, None);
    }
}
