//! Addresses that are served inside the device. The kernel does not own them, so no INPUT chain of a firewall and no port of
//! another program is in the way.
//!
//! This parses and builds packets; a [`LocalHandler`] handles their payload. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::drops::DropReason;
use super::packet::{self, ICMP, ICMP6, Ip, TCP, UDP};
use super::probe;

const UDP_HEADER: usize = 8;

/// Handles packets to the served addresses. It is called by a data thread and must not block.
pub trait LocalHandler: Send + Sync {
    /// Handles the payload of a UDP datagram.
    fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Handled;
    /// Handles a whole packet with a TCP segment, whose checksum is not verified yet.
    fn segment(&self, source: IpAddr, packet: &[u8]) -> Handled;
}

/// The result of handling a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// Send this payload back.
    Reply(Vec<u8>),
    /// The reply, if there is one, will be sent by an [`super::Injector`].
    Later,
    /// There is no reply.
    Refused,
    /// Too many requests wait.
    Overload,
}

/// The served addresses and their handler.
#[derive(Clone)]
pub struct LocalService {
    /// At most one address of each family.
    pub addresses: Vec<IpAddr>,
    /// The handler of packets to these addresses.
    pub handler: Arc<dyn LocalHandler>,
}

impl LocalService {
    /// Whether `destination` is served.
    #[inline]
    pub(super) fn has(&self, destination: IpAddr) -> bool {
        self.addresses.contains(&destination)
    }

    /// Handles one packet to one of the addresses. Returns whether there is a reply in `out`.
    pub(super) fn answer(&self, packet: &[u8], out: &mut Vec<u8>) -> Result<bool, DropReason> {
        out.clear();
        let ip = Ip::parse(packet).ok_or(DropReason::Malformed)?;
        let packet = packet.get(..ip.total).ok_or(DropReason::Malformed)?;
        if ip.fragment {
            return Err(DropReason::Unanswered);
        }
        match (ip.protocol, ip.source.is_ipv4()) {
            (UDP, _) => {
                let (source, destination, payload) =
                    datagram(packet, &ip).ok_or(DropReason::Unanswered)?;
                match self.handler.datagram(source, destination, payload) {
                    Handled::Reply(reply) => {
                        write_datagram(destination, source, &reply, out)
                            .ok_or(DropReason::Malformed)?;
                        Ok(true)
                    }
                    other => without_reply(&other),
                }
            }
            (TCP, _) => without_reply(&self.handler.segment(ip.source, packet)),
            (ICMP, true) | (ICMP6, false) if is_echo(packet, &ip) => {
                out.extend_from_slice(packet);
                probe::turn_echo(out, &ip);
                Ok(true)
            }
            _ => Err(DropReason::Unanswered),
        }
    }
}

impl std::fmt::Debug for LocalService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalService")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The result for a packet whose reply, if any, is not in the output.
fn without_reply(handled: &Handled) -> Result<bool, DropReason> {
    match handled {
        Handled::Reply(_) | Handled::Later => Ok(false),
        Handled::Refused => Err(DropReason::Unanswered),
        Handled::Overload => Err(DropReason::AnswersWaiting),
    }
}

/// The source, destination and payload of a UDP datagram whose lengths and checksum are correct.
fn datagram<'a>(packet: &'a [u8], ip: &Ip) -> Option<(SocketAddr, SocketAddr, &'a [u8])> {
    let udp = packet.get(ip.transport..)?;
    let [a, b, c, d, e, f, g, h] = *udp.first_chunk::<UDP_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([e, f]));
    let udp = udp.get(..length)?;
    // A checksum of zero means that there is none (RFC 768). IPv6 forbids that (RFC 8200 section 8.1).
    let unsummed = [g, h] == [0, 0] && ip.source.is_ipv4();
    let pseudo = packet::pseudo_header_sum(packet, UDP, length);
    if !unsummed && packet::finish(packet::sum(udp, pseudo)) != 0 {
        return None;
    }
    let source = SocketAddr::new(ip.source, u16::from_be_bytes([a, b]));
    let destination = SocketAddr::new(ip.destination, u16::from_be_bytes([c, d]));
    Some((source, destination, udp.get(UDP_HEADER..)?))
}

fn is_echo(packet: &[u8], ip: &Ip) -> bool {
    let kind = packet
        .get(ip.transport..ip.transport + 8)
        .map(|icmp| icmp[0]);
    kind == Some(if ip.protocol == ICMP { 8 } else { 128 })
}

/// Writes a packet with a datagram into `out`. Returns none if the addresses are of two families or the payload is too long.
pub(super) fn write_datagram(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Option<()> {
    out.clear();
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let [high, low] = length.to_be_bytes();
    let transport = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [a, b] = length.checked_add(20)?.to_be_bytes();
            // The packet is never fragmented, so its identification has no meaning (RFC 6864 section 4.1).
            out.extend_from_slice(&[0x45, 0, a, b, 0, 0, 0x40, 0, 64, UDP, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            packet::write_ipv4_checksum(out, 20);
            20
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            out.extend_from_slice(&[0x60, 0, 0, 0, high, low, UDP, 64]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            40
        }
        _ => return None,
    };
    let ([a, b], [c, d]) = (
        source.port().to_be_bytes(),
        destination.port().to_be_bytes(),
    );
    out.extend_from_slice(&[a, b, c, d, high, low, 0, 0]);
    out.extend_from_slice(payload);
    let pseudo = packet::pseudo_header_sum(out, UDP, usize::from(length));
    let checksum = match packet::finish(packet::sum(&out[transport..], pseudo)) {
        0 => 0xffff,
        checksum => checksum,
    };
    out[transport + 6..transport + 8].copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Upper;

    impl LocalHandler for Upper {
        fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Handled {
            match destination.port() {
                53 => Handled::Reply(payload.to_ascii_uppercase()),
                54 => Handled::Overload,
                55 if source.port() == 9 => Handled::Later,
                _ => Handled::Refused,
            }
        }

        fn segment(&self, _: IpAddr, _: &[u8]) -> Handled {
            Handled::Later
        }
    }

    fn service() -> LocalService {
        LocalService {
            addresses: vec![
                "10.210.0.53".parse().expect("a literal"),
                "fd00::35".parse().expect("a literal"),
            ],
            handler: Arc::new(Upper),
        }
    }

    fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let address = |text: &str| text.parse().expect("a literal");
        let mut out = Vec::new();
        write_datagram(address(source), address(destination), payload, &mut out)
            .expect("one family");
        out
    }

    #[test]
    fn a_datagram_is_answered_with_its_addresses_swapped_and_with_correct_checksums() {
        for (client, server) in [
            ("172.18.0.3:4000", "10.210.0.53:53"),
            ("[fd00::7]:4000", "[fd00::35]:53"),
        ] {
            let mut out = Vec::new();
            assert_eq!(
                service().answer(&packet(client, server, b"odd"), &mut out),
                Ok(true)
            );
            let ip = Ip::parse(&out).expect("a whole packet");
            let (source, destination, payload) = datagram(&out, &ip).expect("checksums that hold");
            assert_eq!(
                (source.to_string(), destination.to_string(), payload),
                (server.to_owned(), client.to_owned(), &b"ODD"[..])
            );
            if ip.source.is_ipv4() {
                assert_eq!(packet::finish(packet::sum(&out[..20], 0)), 0);
            }
        }
    }

    #[test]
    fn fragments_wrong_checksums_other_protocols_and_overload_have_their_drop_reasons() {
        let mut out = Vec::new();
        let mut answer = |packet: &[u8]| service().answer(packet, &mut out);
        let whole = packet("172.18.0.3:4000", "10.210.0.53:53", b"name");
        let mut fragment = whole.clone();
        fragment[6] = 0x20;
        assert_eq!(answer(&fragment), Err(DropReason::Unanswered));
        let mut damaged = whole.clone();
        damaged[30] ^= 1;
        assert_eq!(answer(&damaged), Err(DropReason::Unanswered));
        let mut unsummed = whole.clone();
        unsummed[26..28].fill(0);
        assert_eq!(answer(&unsummed), Ok(true));
        let mut sctp = whole.clone();
        sctp[9] = 132;
        assert_eq!(answer(&sctp), Err(DropReason::Unanswered));
        assert_eq!(answer(&whole[..19]), Err(DropReason::Malformed));
        let to = |port| packet("172.18.0.3:9", &format!("10.210.0.53:{port}"), b"x");
        assert_eq!(answer(&to(54)), Err(DropReason::AnswersWaiting));
        assert_eq!(answer(&to(55)), Ok(false));
        assert_eq!(answer(&to(56)), Err(DropReason::Unanswered));
    }

    #[test]
    fn an_echo_is_answered() {
        let mut echo = packet("172.18.0.3:2048", "10.210.0.53:1", b"ping");
        echo[9] = ICMP;
        echo[20] = 8;
        let mut out = Vec::new();
        assert_eq!(service().answer(&echo, &mut out), Ok(true));
        assert_eq!((out[20], &out[28..]), (0, &b"ping"[..]));
        assert_eq!(packet::finish(packet::sum(&out[20..], 0)), 0);
        assert_eq!(
            Ip::parse(&out).map(|ip| ip.destination.to_string()),
            Some("172.18.0.3".into())
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_not(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            first in prop::sample::select(vec![0x45u8, 0x46, 0x60]),
            protocol in prop::sample::select(vec![ICMP, ICMP6, UDP, TCP]),
        ) {
            let length = bytes.len();
            if let Some(byte) = bytes.first_mut() { *byte = first; }
            if let Some(byte) = bytes.get_mut(3) { *byte = length as u8; }
            if let Some(byte) = bytes.get_mut(if first == 0x60 { 6 } else { 9 }) { *byte = protocol; }
            let _ = service().answer(&bytes, &mut Vec::new());
        }
    }
}
