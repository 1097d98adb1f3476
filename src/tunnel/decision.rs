//! The decision about a received data message, after it was opened. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::drops::DropReason;
use super::guests::{self, GuestWay};
use super::messages;
use super::noise::Opened;
use super::packet::Ip;
use super::peer::Peer;
use super::probe::{self, Probe};
use super::table::Table;

/// What to do with a received data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Deliver the packet to the device.
    Deliver,
    /// The packet is of a guest or for one: pass it on to the peer that owns its destination.
    Forward,
    /// The packet is of a guest to the local service: answer it.
    Serve,
    /// The packet is a probe to this node: answer it.
    AnswerProbe,
    /// The packet is the answer to the probe with this nonce, after this round trip.
    Measured { nonce: u64, rtt: Duration },
    /// The packet carries a message about paths to this node: read it.
    ReadMessage,
    /// The message is authentic, and there is nothing to deliver.
    Keepalive,
    /// Drop the message.
    Drop(DropReason),
}

impl From<GuestWay> for Decision {
    fn from(way: GuestWay) -> Self {
        match way {
            GuestWay::Forward => Self::Forward,
            GuestWay::Serve => Self::Serve,
            GuestWay::Deliver => Self::Deliver,
            GuestWay::Drop(reason) => Self::Drop(reason),
        }
    }
}

/// Decides about a data message of the session of `sender`, which was opened into `output`. `is_local` says whether an address is
/// one at which this node answers probes.
#[inline]
pub(super) fn decide(
    opened: Opened,
    output: &[u8],
    sender: &Arc<Peer>,
    table: &Table,
    is_local: impl Fn(IpAddr) -> bool,
    now: Instant,
) -> Decision {
    let length = match opened {
        Opened::Packet(length) => length,
        Opened::Refused(reason) => return Decision::Drop(reason),
        Opened::Keepalive | Opened::Reply(_) | Opened::Established(_) | Opened::Nothing => {
            return Decision::Keepalive;
        }
    };
    let packet = output.get(..length).unwrap_or_default();
    let Some(ip) = Ip::parse(packet) else {
        return Decision::Drop(DropReason::Malformed);
    };
    let owner = table.owner(ip.source);
    let is_owner = |owner: &Arc<Peer>| Arc::ptr_eq(owner, sender) || owner.member == sender.member;
    if !owner.is_some_and(is_owner) {
        return Decision::Drop(DropReason::ForeignSource);
    }
    if table.door.has_guests
        && let Some(way) = guests::decide(packet, &ip, sender, table)
    {
        return way.into();
    }
    if !table.accepts_destination(ip.destination) {
        return Decision::Drop(DropReason::ForeignDestination);
    }
    match probe::parse(packet, &ip) {
        Some(Probe::Request) if is_local(ip.destination) => Decision::AnswerProbe,
        Some(Probe::Reply(nonce)) if is_local(ip.destination) => {
            // An answer to no probe of this node changes nothing.
            match sender.probes().round_trip(nonce, now) {
                Some(rtt) => Decision::Measured { nonce, rtt },
                None => Decision::Keepalive,
            }
        }
        _ if messages::payload(packet, &ip).is_some() && is_local(ip.destination) => {
            Decision::ReadMessage
        }
        _ => Decision::Deliver,
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::super::table::tests::{peer, table};
    use super::*;
    use crate::model::Path;

    const HERE: &str = "10.0.0.1";
    const THERE: &str = "10.0.0.2";

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    /// A table with the peer that owns [`THERE`].
    fn setting() -> (Table, Arc<Peer>) {
        let peer = peer(2, 1, 7, "10.0.0.2/32");
        (table(&[Arc::clone(&peer)]), peer)
    }

    fn decide_at(table: &Table, sender: &Arc<Peer>, packet: &[u8], now: Instant) -> Decision {
        let opened = Opened::Packet(packet.len());
        let is_local = |destination| destination == address(HERE);
        decide(opened, packet, sender, table, is_local, now)
    }

    fn decide_about(table: &Table, sender: &Arc<Peer>, packet: &[u8]) -> Decision {
        decide_at(table, sender, packet, Instant::now())
    }

    fn probe_between(source: &str, destination: &str, nonce: u64) -> Vec<u8> {
        let mut packet = vec![0; probe::MAX_PROBE];
        let ends = (address(source), address(destination));
        let length = probe::write(ends.0, ends.1, nonce, None, &mut packet).expect("one family");
        packet.truncate(length);
        packet
    }

    /// A packet that is no probe.
    fn packet(source: &str, destination: &str) -> Vec<u8> {
        let mut packet = probe_between(source, destination, 0);
        packet[9] = super::super::packet::UDP;
        packet
    }

    #[test]
    fn a_packet_from_an_address_of_its_sender_is_delivered() {
        let (table, sender) = setting();
        assert_eq!(
            decide_about(&table, &sender, &packet(THERE, HERE)),
            Decision::Deliver
        );
    }

    #[test]
    fn a_packet_is_delivered_whichever_peer_of_the_owning_member_received_it() {
        let (table, _) = setting();
        let retired = peer(9, 5, 7, "10.0.0.9/32");
        assert_eq!(
            decide_about(&table, &retired, &packet(THERE, HERE)),
            Decision::Deliver
        );
    }

    #[test]
    fn a_packet_from_an_address_of_another_peer_or_of_none_is_dropped() {
        let (table, sender) = setting();
        let other = peer(3, 2, 8, "10.0.0.3/32");
        let foreign = Decision::Drop(DropReason::ForeignSource);
        assert_eq!(decide_about(&table, &other, &packet(THERE, HERE)), foreign);
        let unknown = packet("203.0.113.1", HERE);
        assert_eq!(decide_about(&table, &sender, &unknown), foreign);
    }

    #[test]
    fn a_packet_from_a_network_is_delivered_only_if_its_sender_routes_to_it() {
        let (mut table, sender) = setting();
        let other = peer(3, 2, 8, "10.0.0.3/32");
        table.by_key.insert(other.public_key, Arc::clone(&other));
        let network: IpNet = "192.168.1.0/24".parse().expect("a literal");
        table.set_routes([(network, sender.public_key)].into());
        let from = |peer: &Arc<Peer>, source| decide_about(&table, peer, &packet(source, HERE));
        let foreign = Decision::Drop(DropReason::ForeignSource);
        assert_eq!(from(&sender, "192.168.1.7"), Decision::Deliver);
        assert_eq!(from(&other, "192.168.1.7"), foreign);
        assert_eq!(from(&sender, "192.168.2.7"), foreign);
        assert_eq!(from(&sender, "10.0.0.3"), foreign);
    }

    #[test]
    fn a_packet_to_a_network_that_is_not_this_node_s_is_dropped() {
        let (mut table, sender) = setting();
        table.own_networks = [IpNet::from(address(HERE))].into();
        assert_eq!(
            decide_about(&table, &sender, &packet(THERE, "203.0.113.1")),
            Decision::Drop(DropReason::ForeignDestination)
        );
        let own = packet(THERE, HERE);
        assert_eq!(decide_about(&table, &sender, &own), Decision::Deliver);
    }

    #[test]
    fn bytes_that_are_no_packet_are_dropped() {
        let (table, sender) = setting();
        for bytes in [&[0x45; 19][..], &[0xff; 40], &[]] {
            assert_eq!(
                decide_about(&table, &sender, bytes),
                Decision::Drop(DropReason::Malformed)
            );
        }
    }

    #[test]
    fn a_probe_to_this_node_is_answered_and_one_to_another_host_is_delivered() {
        let (table, sender) = setting();
        assert_eq!(
            decide_about(&table, &sender, &probe_between(THERE, HERE, 7)),
            Decision::AnswerProbe
        );
        let elsewhere = probe_between(THERE, "10.0.0.5", 7);
        assert_eq!(decide_about(&table, &sender, &elsewhere), Decision::Deliver);
    }

    #[test]
    fn the_answer_to_a_probe_is_measured_once_and_any_other_answer_changes_nothing() {
        let (table, sender) = setting();
        let (sent, rtt) = (Instant::now(), Duration::from_millis(12));
        let path = Path::Direct(([192, 0, 2, 1], 51820).into());
        sender.probes().handle_probe(7, sent, Some(path));
        let answer = |nonce| {
            let mut packet = probe_between(HERE, THERE, nonce);
            let ip = Ip::parse(&packet).expect("a whole packet");
            probe::answer(&mut packet, &ip);
            packet
        };
        let decide = |nonce| decide_at(&table, &sender, &answer(nonce), sent + rtt);
        assert_eq!(decide(7), Decision::Measured { nonce: 7, rtt });
        sender.probes().handle_answer(7, path, rtt, sent + rtt);
        assert_eq!(decide(7), Decision::Keepalive, "the answer again");
        assert_eq!(decide(8), Decision::Keepalive, "an answer to no probe");
    }

    #[test]
    fn a_keepalive_delivers_nothing_and_a_refused_message_is_dropped_for_its_reason() {
        let (table, sender) = setting();
        let about = |opened| decide(opened, &[], &sender, &table, |_| true, Instant::now());
        assert_eq!(about(Opened::Keepalive), Decision::Keepalive);
        for reason in [DropReason::NoSession, DropReason::NotAuthentic] {
            assert_eq!(about(Opened::Refused(reason)), Decision::Drop(reason));
        }
    }
}
