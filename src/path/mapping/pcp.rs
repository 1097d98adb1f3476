//! Requests and answers of the Port Control Protocol (RFC 6887) for a hole in a firewall for IPv6. Pure.
//!
//! Nothing is translated, so the request names this node's own address and port as the outer ones as well (section 11.1). An answer
//! counts only if it has the random number, the protocol and the port of the request.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The UDP port of a router.
pub const PORT: u16 = 5351;
/// The size in bytes of a request, and of an answer without options.
pub const REQUEST: usize = 60;
/// The maximum size in bytes of a message (section 7).
pub const MAX_MESSAGE: usize = 1100;

const VERSION: u8 = 2;
const MAP: u8 = 1;
const ANSWER: u8 = 0x80;
const UDP: u8 = 17;
const SUCCESS: u8 = 0;

/// Asks for a hole, or closes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoleRequest {
    /// A random number, the same for all requests about one hole.
    pub nonce: [u8; 12],
    /// The address of this node, from which the request has to come.
    pub own: Ipv6Addr,
    /// The port of this node.
    pub port: u16,
}

/// What a router grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Where others send to.
    pub external: SocketAddr,
    /// How long the hole lasts.
    pub lifetime: Duration,
}

/// A router refuses, with the code of section 7.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub u8);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", meaning(self.0), self.0)
    }
}

impl HoleRequest {
    /// The datagram that asks for the hole for this time. A lifetime of zero closes it (section 15).
    #[must_use]
    pub fn write(&self, lifetime: Duration) -> [u8; REQUEST] {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let own = self.own.octets();
        let mut out = [0; REQUEST];
        out[0] = VERSION;
        out[1] = MAP;
        out[4..8].copy_from_slice(&seconds.to_be_bytes());
        out[8..24].copy_from_slice(&own);
        out[24..36].copy_from_slice(&self.nonce);
        out[36] = UDP;
        out[40..42].copy_from_slice(&self.port.to_be_bytes());
        if seconds > 0 {
            out[42..44].copy_from_slice(&self.port.to_be_bytes());
            out[44..60].copy_from_slice(&own);
        }
        out
    }

    /// The answer in a datagram of the router. None if it is no answer to this request, which is then still open.
    #[must_use]
    pub fn read(&self, datagram: &[u8]) -> Option<Result<Hole, Refused>> {
        let answer: &[u8; REQUEST] = datagram.first_chunk()?;
        let is_whole = datagram.len() <= MAX_MESSAGE && datagram.len().is_multiple_of(4);
        let is_of_this = answer[0] == VERSION
            && answer[1] == MAP | ANSWER
            && answer[24..36] == self.nonce
            && answer[36] == UDP
            && answer[40..42] == self.port.to_be_bytes();
        if !is_whole || !is_of_this {
            return None;
        }
        let code = answer[3];
        if code != SUCCESS {
            return Some(Err(Refused(code)));
        }
        let lifetime = u32::from_be_bytes([answer[4], answer[5], answer[6], answer[7]]);
        let port = u16::from_be_bytes([answer[42], answer[43]]);
        let (_, outer) = answer.split_last_chunk::<16>()?;
        Some(Ok(Hole {
            external: SocketAddr::new(Ipv6Addr::from(*outer).to_canonical(), port),
            lifetime: Duration::from_secs(lifetime.into()),
        }))
    }
}

/// What a code of section 7.4 means.
fn meaning(code: u8) -> &'static str {
    match code {
        1 => "the router has another version of PCP",
        2 => "the router does not allow it",
        3 | 6 => "the router does not understand the request",
        4 | 5 | 9 => "the router cannot do this",
        7 => "the router has no connection",
        8 => "the router has no room for more",
        10 => "this host has too many mappings",
        11 => "the router cannot give this port",
        12 => "the router sees the request come from another address",
        13 => "the router has no room for more peers",
        _ => "the router gives no known reason",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

    fn request() -> HoleRequest {
        HoleRequest {
            nonce: *b"twelve bytes",
            own: OWN,
            port: 51820,
        }
    }

    /// What a router answers to this datagram.
    fn answer(asked: &[u8; REQUEST], code: u8) -> Vec<u8> {
        let mut answer = asked.to_vec();
        answer[1] |= ANSWER;
        answer[2] = 0;
        answer[3] = code;
        // The address of the client is the time of the router and zeros in an answer.
        answer[8..24].fill(0);
        answer
    }

    #[test]
    fn a_request_has_these_bytes_and_a_deletion_asks_for_nothing() {
        let own = OWN.octets();
        let head = |seconds: u8| [2, 1, 0, 0, 0, 0, 0, seconds];
        let map = [17, 0, 0, 0, 0xca, 0x6c];
        let expected = [
            &head(120)[..],
            &own,
            b"twelve bytes",
            &map,
            &[0xca, 0x6c],
            &own,
        ]
        .concat();
        assert_eq!(request().write(Duration::from_secs(120))[..], expected);
        let expected = [&head(0)[..], &own, b"twelve bytes", &map, &[0; 18]].concat();
        assert_eq!(request().write(Duration::ZERO)[..], expected);
    }

    #[test]
    fn a_hole_and_a_refusal_are_read() {
        let asked = request().write(Duration::from_secs(7200));
        let hole = Hole {
            external: (OWN, 51820).into(),
            lifetime: Duration::from_secs(7200),
        };
        assert_eq!(request().read(&answer(&asked, 0)), Some(Ok(hole)));
        let refused = request().read(&answer(&asked, 12));
        assert_eq!(refused, Some(Err(Refused(12))));
        assert_eq!(
            Refused(12).to_string(),
            "the router sees the request come from another address (code 12)"
        );
        // An option follows.
        let longer = [answer(&asked, 0), vec![0; 20]].concat();
        assert_eq!(request().read(&longer), Some(Ok(hole)));
    }

    #[test]
    fn what_is_no_answer_to_this_request_is_ignored() {
        let asked = request().write(Duration::from_secs(7200));
        let sound = answer(&asked, 0);
        for length in 0..REQUEST {
            assert_eq!(request().read(&sound[..length]), None, "{length}");
        }
        // The version, the opcode, the random number, the protocol and the port of another request.
        for at in [0, 1, 24, 35, 36, 40, 41] {
            let mut other = sound.clone();
            other[at] ^= 0x80;
            assert_eq!(request().read(&other), None, "{at}");
        }
        assert_eq!(request().read(&asked), None, "its own request");
        for length in [61, 1104] {
            let mut long = sound.clone();
            long.resize(length, 0);
            assert_eq!(request().read(&long), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..1200),
            is_answer in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if is_answer && bytes.len() >= REQUEST {
                bytes[..REQUEST].copy_from_slice(&answer(&request().write(Duration::ZERO), 0));
            }
            let _ = request().read(&bytes);
        }
    }
}
