//! The last packet that passed, so that the packets of a run cost one lookup. Pure.
//!
//! It holds for one batch: the next batch may have another policy, and has another time.

use crate::tunnel::packet::{Ip, TCP, UDP};

const SYN: u8 = 0x02;
/// The size in bytes of an IPv4 header without options, and of an IPv6 header.
const V4: usize = 20;
const V6: usize = 40;

/// The values by which packets are the same to the check: addresses, ports and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    addresses: [u128; 2],
    ports: u32,
    protocol: u8,
}

/// The key of the last packet that passed in one direction.
#[derive(Debug, Default)]
pub struct Memo(Option<Key>);

impl Memo {
    /// Forgets the packet, at the start of a batch.
    #[inline]
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// Whether a packet that was the same passed.
    #[inline]
    pub(super) fn has(&self, packet: &[u8], ip: &Ip) -> bool {
        self.0.is_some() && self.0 == key(packet, ip)
    }

    /// Remembers that `packet` passed.
    #[inline]
    pub(super) fn note(&mut self, packet: &[u8], ip: &Ip) {
        self.0 = key(packet, ip);
    }
}

/// The key of a packet. None for packets that are checked one by one: those that begin a connection, that have no ports, or
/// whose ports are not where they are in most packets.
#[inline]
fn key(packet: &[u8], ip: &Ip) -> Option<Key> {
    let (addresses, transport) = match packet.first()? {
        0x45 => {
            let addresses = packet.get(12..V4)?.try_into().ok()?;
            // The first value is a multicast address of IPv6, which is no source of a packet.
            ([u128::MAX, u128::from(u64::from_be_bytes(addresses))], V4)
        }
        first if first >> 4 == 6 => {
            let source = packet.get(8..24)?.try_into().ok()?;
            let destination = packet.get(24..V6)?.try_into().ok()?;
            (
                [
                    u128::from_be_bytes(source),
                    u128::from_be_bytes(destination),
                ],
                V6,
            )
        }
        _ => return None,
    };
    // The check reads ports only from headers of at least these sizes, so that no shorter packet passes because of the memo.
    let body = packet.get(transport..ip.total)?;
    let ports = u32::from_be_bytes(*body.first_chunk()?);
    let is_plain = match ip.protocol {
        TCP => body.get(13).is_some_and(|flags| flags & SYN == 0),
        UDP => body.len() >= 8,
        _ => false,
    };
    (is_plain && !ip.fragment).then_some(Key {
        addresses,
        ports,
        protocol: ip.protocol,
    })
}
