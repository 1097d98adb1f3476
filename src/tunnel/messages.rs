//! The messages about paths ([`crate::protocol::path_messages`]) as packets in the tunnel.
//!
//! They are UDP datagrams between the IPv4 addresses of two nodes. The data plane writes and reads them itself, so that neither
//! a kernel nor a firewall sees them.

use std::net::IpAddr;

use super::packet::{self, Ip, UDP};
use crate::protocol::path_messages::{MAX_MESSAGE, PORT, PathMessage};

/// The size in bytes of the headers of IPv4 and UDP.
const HEADERS: usize = 28;
/// The maximum size of a packet with a message that is no padded probe.
pub(super) const MAX_PACKET: usize = HEADERS + MAX_MESSAGE;

/// Writes a message from `source` to `destination`, and returns the length of the packet. Returns none if the addresses are not of
/// IPv4, or there is no room.
pub(super) fn write(
    source: IpAddr,
    destination: IpAddr,
    message: &PathMessage,
    out: &mut [u8],
) -> Option<usize> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
        return None;
    };
    let (headers, payload) = out.split_at_mut_checked(HEADERS)?;
    let length = message.write(payload)?;
    let (ip, udp) = headers.split_at_mut_checked(20)?;
    ip.copy_from_slice(&[
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    let total = u16::try_from(HEADERS + length).ok()?;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    udp[..2].copy_from_slice(&PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&(total - 20).to_be_bytes());
    // No checksum (RFC 768): the session authenticates the packet.
    udp[6..8].fill(0);
    packet::write_ipv4_checksum(out, 20);
    Some(HEADERS + length)
}

/// The message in `packet`, whose header is `ip`, if it is one by its ports. It is not read yet.
#[inline]
pub(super) fn payload<'a>(packet: &'a [u8], ip: &Ip) -> Option<&'a [u8]> {
    if ip.protocol != UDP || ip.fragment || !ip.source.is_ipv4() {
        return None;
    }
    let udp = packet.get(ip.transport..ip.total)?;
    let (ports, rest) = udp.split_first_chunk::<4>()?;
    let [a, b, c, d] = *ports;
    if u16::from_be_bytes([c, d]) != PORT || u16::from_be_bytes([a, b]) != PORT {
        return None;
    }
    let length = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
    udp.get(8..length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::path_messages::{ByeReason, Message};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    #[test]
    fn a_message_is_a_valid_packet_and_is_read_again() {
        let message = PathMessage {
            nonce: 7,
            message: Message::Bye(ByeReason::Stopping),
        };
        let (a, b) = (address("10.210.1.1"), address("10.210.2.1"));
        let mut out = [1; MAX_PACKET];
        let length = write(a, b, &message, &mut out).expect("room");
        let ip = Ip::parse(&out[..length]).expect("a whole packet");
        assert_eq!((ip.source, ip.destination, ip.total), (a, b, length));
        assert_eq!(packet::finish(packet::sum(&out[..20], 0)), 0);
        let payload = payload(&out[..length], &ip).expect("a message");
        assert_eq!(PathMessage::parse(payload), Ok(message.clone()));
        assert_eq!(write(address("fd00::1"), b, &message, &mut out), None);
        assert_eq!(write(a, b, &message, &mut out[..30]), None);
    }

    #[test]
    fn other_packets_and_false_lengths_are_no_messages() {
        let message = PathMessage {
            nonce: 7,
            message: Message::Bye(ByeReason::Stopping),
        };
        let (a, b) = (address("10.210.1.1"), address("10.210.2.1"));
        let mut out = [0; MAX_PACKET];
        let length = write(a, b, &message, &mut out).expect("room");
        for (at, byte) in [(9, 6), (20, 0), (22, 0), (24, 0xff), (25, 7), (6, 0x20)] {
            let mut packet = out;
            packet[at] = byte;
            let ip = Ip::parse(&packet[..length]).expect("a whole packet");
            assert_eq!(payload(&packet[..length], &ip), None, "byte {at}");
        }
    }
}
