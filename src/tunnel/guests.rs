//! The decision about packets of guests and for guests. Pure.
//!
//! A guest is a peer with one address of each family, which is an address of this node's own block: this node is its *door*. Its packets do
//! not pass through the kernel on their way to other nodes. The thread that opened a packet seals it for the peer that owns its destination.
//!
//! A guest never speaks for this node. Other nodes take a packet of a guest for one of this node, so packets for the ports at which only the
//! meshds of two nodes speak are dropped here, and so are those that may hide such a port, and errors about packets of others.

use std::net::IpAddr;

use ipnet::IpNet;

use super::drops::DropReason;
use super::guard::{Kind, Seen};
use super::packet::{Ip, TCP, UDP};
use super::peer::Peer;
use super::table::Table;
use crate::protocol::{gossip, path_messages, web};

/// The ports at which nodes speak to each other.
const PORTS_OF_NODES: [u16; 3] = [gossip::PORT, path_messages::PORT, web::PORT];
/// The size in bytes of an IPv4 header without options.
const PLAIN_V4: usize = 20;
/// The protocol number of the fragment header of IPv6 (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;
/// The extension headers of IPv6 by which a packet goes on to another address, and those that may stand before one of them (RFC 8200
/// section 4.1, RFC 6275 section 6.1).
const CHAINED: [u8; 5] = [0, 43, FRAGMENT, 60, 135];

/// The way of a packet that is of a guest or for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestWay {
    /// To the peer that owns its destination.
    Forward,
    /// To the local service, whose answer goes back to the guest.
    Serve,
    /// To the device.
    Deliver,
    /// It is dropped.
    Drop(DropReason),
}

/// Decides about a packet of `sender`, which owns its source, on a node that has guests. None if the packet is neither of a guest nor for
/// one.
#[inline(never)]
pub(super) fn decide(packet: &[u8], ip: &Ip, sender: &Peer, table: &Table) -> Option<GuestWay> {
    let owner = table.allowed.owner(ip.destination);
    if !sender.is_guest {
        let is_for_guest = owner.is_some_and(|owner| owner.is_guest);
        return is_for_guest.then_some(GuestWay::Forward);
    }
    let service = table.local_service.as_ref();
    Some(if speaks_for_node(packet, ip, sender, table) {
        GuestWay::Drop(DropReason::Guest)
    } else if service.is_some_and(|service| service.has(ip.destination)) {
        GuestWay::Serve
    } else if owner.is_some() {
        GuestWay::Forward
    } else if table.accepts_destination(ip.destination) {
        GuestWay::Deliver
    } else {
        GuestWay::Drop(DropReason::ForeignDestination)
    })
}

/// Whether a packet of the guest `sender` is for a port of nodes, or may be a part of such a packet or an error about one.
fn speaks_for_node(packet: &[u8], ip: &Ip, sender: &Peer, table: &Table) -> bool {
    if may_go_elsewhere(packet, ip) {
        return true;
    }
    if let Some(port) = destination_port(packet, ip) {
        return PORTS_OF_NODES.contains(&port);
    }
    match Seen::read(packet, ip).kind {
        Kind::Echo { .. } => false,
        // A guest receives only what is for its own addresses. An error about anything else could disturb the connections of others.
        Kind::Error(quoted) => {
            let owner = table.allowed.owner(quoted.destination);
            owner.is_none_or(|owner| owner.member != sender.member)
        }
        // A fragment, or a header behind which there may be a port. The programs of nodes are behind the addresses of nodes only.
        _ => is_node(ip, table),
    }
}

/// Whether a packet may go on to another address than that of its header, which was checked.
fn may_go_elsewhere(packet: &[u8], ip: &Ip) -> bool {
    if ip.source.is_ipv4() {
        return ip.transport != PLAIN_V4;
    }
    let next = match ip.protocol {
        FRAGMENT => packet.get(ip.transport).copied(),
        other => Some(other),
    };
    next.is_none_or(|next| CHAINED.contains(&next))
}

fn destination_port(packet: &[u8], ip: &Ip) -> Option<u16> {
    if ip.fragment || !matches!(ip.protocol, TCP | UDP) {
        return None;
    }
    let transport = packet.get(ip.transport..ip.total)?;
    let [_, _, a, b] = *transport.first_chunk::<4>()?;
    Some(u16::from_be_bytes([a, b]))
}

/// Whether a packet of a guest is for the address of a node itself: of this one, or of another one. The block of this node is the network
/// that has the guest's own address. The other networks of this node are outside the mesh, and their first hosts are no nodes.
fn is_node(ip: &Ip, table: &Table) -> bool {
    let is_own = |net: &IpNet| net.contains(&ip.source) && is_first_host(net, ip.destination);
    table.allowed.is_first_host(ip.destination) || table.own_networks.iter().any(is_own)
}

fn is_first_host(net: &IpNet, address: IpAddr) -> bool {
    match (net, address) {
        (IpNet::V4(net), IpAddr::V4(address)) => {
            u32::from(address).checked_sub(net.network().into()) == Some(1)
        }
        (IpNet::V6(net), IpAddr::V6(address)) => {
            u128::from(address).checked_sub(net.network().into()) == Some(1)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::super::local_service::{Handled, LocalHandler, LocalService, write_datagram};
    use super::super::table::tests::{peer, table};
    use super::*;

    struct Silent;

    impl LocalHandler for Silent {
        fn datagram(&self, _: SocketAddr, _: SocketAddr, _: &[u8]) -> Handled {
            Handled::Refused
        }
        fn segment(&self, _: IpAddr, _: &[u8]) -> Handled {
            Handled::Refused
        }
    }

    const ICMP: u8 = 1;
    const ICMP6: u8 = 58;

    const NODE: &str = "10.0.2.1";
    const ANNA: &str = "10.0.1.254";
    const BERT: &str = "10.0.1.253";

    fn guest(n: u8, index: u32, net: &str) -> Arc<Peer> {
        let peer = peer(n, index, index.into(), net);
        let config = peer.lock().config.clone();
        Arc::new(Peer::guest(config, index, index.into(), Arc::default()))
    }

    /// This node has the block 10.0.1.0/24 and the guests [`ANNA`] and [`BERT`]. Another node has 10.0.2.0/24. Each node answers at 10.0.0.53.
    struct Setting {
        table: Table,
        node: Arc<Peer>,
        anna: Arc<Peer>,
    }

    fn setting() -> Setting {
        let node = peer(2, 1, 1, "10.0.2.0/24");
        let anna = guest(3, 2, "10.0.1.254/32");
        let bert = guest(4, 3, "10.0.1.253/32");
        let mut table = table(&[Arc::clone(&node), Arc::clone(&anna), bert]);
        table.own_networks = ["10.0.1.0/24".parse().expect("a literal")].into();
        table.local_service = Some(Arc::new(LocalService {
            addresses: vec!["10.0.0.53".parse().expect("a literal")],
            handler: Arc::new(Silent),
        }));
        Setting { table, node, anna }
    }

    fn packet(source: &str, destination: &str, port: u16) -> Vec<u8> {
        let source = SocketAddr::new(source.parse().expect("a literal"), 4000);
        let destination = SocketAddr::new(destination.parse().expect("a literal"), port);
        let mut packet = Vec::new();
        write_datagram(source, destination, b"hello", &mut packet).expect("one family");
        packet
    }

    fn decided(table: &Table, sender: &Peer, packet: &[u8]) -> Option<GuestWay> {
        let ip = Ip::parse(packet).expect("a whole packet");
        decide(packet, &ip, sender, table)
    }

    #[test]
    fn a_packet_of_a_guest_goes_to_the_owner_of_its_destination() {
        let Setting { table, anna, .. } = setting();
        assert!(table.door.has_guests);
        for (destination, expected) in [
            (NODE, GuestWay::Forward),
            ("10.0.2.9", GuestWay::Forward),
            (BERT, GuestWay::Forward),
            ("10.0.1.1", GuestWay::Deliver),
            ("10.0.1.9", GuestWay::Deliver),
            ("10.0.0.53", GuestWay::Serve),
            (
                "203.0.113.1",
                GuestWay::Drop(DropReason::ForeignDestination),
            ),
        ] {
            let packet = packet(ANNA, destination, 80);
            assert_eq!(
                decided(&table, &anna, &packet),
                Some(expected),
                "{destination}"
            );
        }
    }

    #[test]
    fn a_packet_of_a_guest_goes_to_no_network_behind_another_node() {
        let Setting {
            mut table,
            node,
            anna,
        } = setting();
        let network: IpNet = "192.168.2.0/24".parse().expect("a literal");
        table.set_routes([(network, node.public_key)].into());
        let behind = packet(ANNA, "192.168.2.7", 80);
        let foreign = GuestWay::Drop(DropReason::ForeignDestination);
        assert_eq!(decided(&table, &anna, &behind), Some(foreign));
        // A network behind the door itself is one of its own, and the policy decides.
        let own =
            ["10.0.1.0/24", "192.168.1.0/24"].map(|net| net.parse::<IpNet>().expect("a literal"));
        table.own_networks = own.into();
        let own = packet(ANNA, "192.168.1.7", 80);
        assert_eq!(decided(&table, &anna, &own), Some(GuestWay::Deliver));
    }

    #[test]
    fn a_fragment_of_a_guest_reaches_the_first_host_of_a_network_behind_its_door_which_is_no_node()
    {
        let Setting {
            mut table, anna, ..
        } = setting();
        let own = ["10.0.1.0/24", "192.168.1.0/24", "192.168.2.7/32"];
        table.own_networks = own
            .map(|net| net.parse::<IpNet>().expect("a literal"))
            .into();
        let way = |destination| {
            let mut fragment = packet(ANNA, destination, 80);
            fragment[6] = 0x20;
            decided(&table, &anna, &fragment)
        };
        for behind in ["192.168.1.1", "192.168.1.2", "192.168.2.7"] {
            assert_eq!(way(behind), Some(GuestWay::Deliver), "{behind}");
        }
        let dropped = Some(GuestWay::Drop(DropReason::Guest));
        assert_eq!(way("10.0.1.1"), dropped, "the door");
        assert_eq!(way(NODE), dropped);
    }

    #[test]
    fn a_guest_routes_to_no_network_even_if_a_member_claims_its_key() {
        let Setting {
            mut table, anna, ..
        } = setting();
        let network: IpNet = "192.168.2.0/24".parse().expect("a literal");
        table.set_routes([(network, anna.public_key)].into());
        assert!(
            table
                .owner("192.168.2.7".parse().expect("a literal"))
                .is_none()
        );
    }

    #[test]
    fn a_packet_of_a_node_is_special_only_if_it_is_for_a_guest() {
        let Setting { table, node, .. } = setting();
        let of = |destination| decided(&table, &node, &packet(NODE, destination, 80));
        assert_eq!(of(ANNA), Some(GuestWay::Forward));
        assert_eq!(of("10.0.1.9"), None);
        assert_eq!(of("10.0.0.53"), None);
    }

    #[test]
    fn a_guest_never_reaches_the_ports_of_nodes() {
        let Setting { table, anna, .. } = setting();
        let dropped = Some(GuestWay::Drop(DropReason::Guest));
        for port in [7444, 7446, 7447] {
            for protocol in [TCP, UDP] {
                for destination in [NODE, "10.0.1.1", "10.0.2.9"] {
                    let mut packet = packet(ANNA, destination, port);
                    packet[9] = protocol;
                    assert_eq!(decided(&table, &anna, &packet), dropped, "{port}");
                }
            }
        }
    }

    #[test]
    fn a_guest_hides_no_port_from_a_node_in_a_fragment_or_behind_another_header() {
        let Setting { table, anna, .. } = setting();
        let dropped = Some(GuestWay::Drop(DropReason::Guest));
        for destination in [NODE, "10.0.1.1"] {
            let mut fragment = packet(ANNA, destination, 80);
            fragment[6] = 0x20;
            assert_eq!(decided(&table, &anna, &fragment), dropped, "{destination}");
            let mut tunnelled = packet(ANNA, destination, 80);
            tunnelled[9] = 4;
            assert_eq!(decided(&table, &anna, &tunnelled), dropped, "{destination}");
            let mut echo = packet(ANNA, destination, 80);
            echo[9] = ICMP;
            echo[20] = 8;
            assert_ne!(decided(&table, &anna, &echo), dropped, "{destination}");
            // A redirect is neither an echo nor an error.
            echo[20] = 5;
            assert_eq!(decided(&table, &anna, &echo), dropped, "{destination}");
        }
        let mut fragment = packet(ANNA, "10.0.2.9", 80);
        fragment[6] = 0x20;
        assert_eq!(decided(&table, &anna, &fragment), Some(GuestWay::Forward));
        let mut routed = packet(ANNA, "10.0.2.9", 80);
        routed[0] = 0x46;
        assert_eq!(decided(&table, &anna, &routed), dropped);
    }

    const NODE_V6: &str = "fd00:2::1";
    const OWN_V6: &str = "fd00:1::1";
    const ANNA_V6: &str = "fd00:1::fe";

    /// The same with IPv6: this node has the block fd00:1::/64 and the guest [`ANNA_V6`], and another node has fd00:2::/64.
    fn setting_v6() -> Setting {
        let node = peer(2, 1, 1, "fd00:2::/64");
        let anna = guest(3, 2, "fd00:1::fe/128");
        let mut table = table(&[Arc::clone(&node), Arc::clone(&anna)]);
        table.own_networks = ["fd00:1::/64".parse().expect("a literal")].into();
        Setting { table, node, anna }
    }

    /// The packet with an extension header of eight bytes in front of what it carries.
    fn behind(header: u8, packet: &[u8]) -> Vec<u8> {
        let mut longer = packet.to_vec();
        longer.splice(40..40, [packet[6], 0, 0, 0, 0, 0, 0, 0]);
        longer[6] = header;
        longer[5] += 8;
        longer
    }

    #[test]
    fn a_guest_never_reaches_the_ports_of_nodes_over_ipv6_whatever_stands_before_the_port() {
        let Setting { table, anna, .. } = setting_v6();
        let dropped = Some(GuestWay::Drop(DropReason::Guest));
        for destination in [NODE_V6, OWN_V6] {
            for port in PORTS_OF_NODES {
                let packet = packet(ANNA_V6, destination, port);
                assert_eq!(decided(&table, &anna, &packet), dropped, "{port}");
            }
            let plain = packet(ANNA_V6, destination, 80);
            assert_ne!(decided(&table, &anna, &plain), dropped, "{destination}");
            // Options, routing, fragment, authentication and mobility headers, and packets inside.
            for header in [0, 43, 44, 51, 60, 135, 4, 41, 47] {
                let hidden = behind(header, &packet(ANNA_V6, destination, 7444));
                assert_eq!(decided(&table, &anna, &hidden), dropped, "{header}");
            }
        }
    }

    #[test]
    fn a_packet_of_a_guest_that_may_go_on_to_another_address_is_dropped() {
        let Setting { table, anna, .. } = setting_v6();
        let dropped = Some(GuestWay::Drop(DropReason::Guest));
        let plain = packet(ANNA_V6, "fd00:2::9", 80);
        for header in [0, 43, 60, 135] {
            let routed = behind(header, &plain);
            assert_eq!(decided(&table, &anna, &routed), dropped, "{header}");
            let fragment = behind(FRAGMENT, &routed);
            assert_eq!(decided(&table, &anna, &fragment), dropped, "{header}");
        }
        let twice = behind(FRAGMENT, &behind(FRAGMENT, &plain));
        assert_eq!(decided(&table, &anna, &twice), dropped);
        let fragment = behind(FRAGMENT, &plain);
        assert_eq!(decided(&table, &anna, &fragment), Some(GuestWay::Forward));
    }

    /// The error by which `source` tells `destination` that the packet `inside` did not arrive.
    fn error(source: &str, destination: &str, inside: &[u8]) -> Vec<u8> {
        let mut error = packet(source, destination, 0);
        let is_v4 = error[0] >> 4 == 4;
        error.truncate(if is_v4 { 20 } else { 40 });
        let kind = if is_v4 { 3 } else { 1 };
        error.extend_from_slice(&[kind, 3, 0, 0, 0, 0, 0, 0]);
        error.extend_from_slice(inside);
        let length = u8::try_from(error.len()).expect("it is short");
        if is_v4 {
            (error[3], error[9]) = (length, ICMP);
        } else {
            (error[5], error[6]) = (length - 40, ICMP6);
        }
        error
    }

    #[test]
    fn a_guest_tells_of_errors_only_about_packets_that_were_for_it() {
        let dropped = Some(GuestWay::Drop(DropReason::Guest));
        let Setting { table, anna, .. } = setting();
        let own = error(ANNA, NODE, &packet(NODE, ANNA, 80));
        assert_eq!(decided(&table, &anna, &own), Some(GuestWay::Forward));
        // Other nodes take the address of the guest for one of this node, and would heed what it says about this node.
        for about in ["10.0.1.1", "10.0.1.9", BERT, "203.0.113.1"] {
            let forged = error(ANNA, NODE, &packet(NODE, about, 7444));
            assert_eq!(decided(&table, &anna, &forged), dropped, "{about}");
        }
        let Setting { table, anna, .. } = setting_v6();
        let own = error(ANNA_V6, OWN_V6, &packet(OWN_V6, ANNA_V6, 80));
        assert_eq!(decided(&table, &anna, &own), Some(GuestWay::Deliver));
        let forged = error(ANNA_V6, OWN_V6, &packet(OWN_V6, NODE_V6, 7444));
        assert_eq!(decided(&table, &anna, &forged), dropped);
    }
}
