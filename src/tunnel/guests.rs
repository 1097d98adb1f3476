//! The decision about packets of guests and for guests. Pure.
//!
//! A guest is a peer with one address of each family, which is an address of this node's own block: this node is its *door*. Its packets do
//! not pass through the kernel on their way to other nodes. The thread that opened a packet seals it for the peer that owns its destination.
//!
//! A guest never speaks for this node. Other nodes take a packet of a guest for one of this node, so packets for the ports at which only the
//! meshds of two nodes speak are dropped here, and so are those that may hide such a port.

use std::net::IpAddr;

use ipnet::IpNet;

use super::drops::DropReason;
use super::packet::{ICMP, ICMP6, Ip, TCP, UDP};
use super::peer::Peer;
use super::table::Table;
use crate::protocol::{gossip, path_messages, web};

/// The ports at which nodes speak to each other.
const PORTS_OF_NODES: [u16; 3] = [gossip::PORT, path_messages::PORT, web::PORT];
/// The size in bytes of an IPv4 header without options.
const PLAIN_V4: usize = 20;

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
pub(super) fn decide(packet: &[u8], ip: &Ip, sender: &Peer, table: &Table) -> Option<GuestWay> {
    let owner = table.allowed.owner(ip.destination);
    if !sender.is_guest {
        let is_for_guest = owner.is_some_and(|owner| owner.is_guest);
        return is_for_guest.then_some(GuestWay::Forward);
    }
    let service = table.local_service.as_ref();
    Some(if speaks_for_node(packet, ip, table) {
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

/// Whether a packet is for a port of nodes, or may be a part of such a packet.
fn speaks_for_node(packet: &[u8], ip: &Ip, table: &Table) -> bool {
    // The options of IPv4 may send a packet to another address than that of its header.
    if ip.source.is_ipv4() && ip.transport != PLAIN_V4 {
        return true;
    }
    match destination_port(packet, ip) {
        Some(port) => PORTS_OF_NODES.contains(&port),
        None if is_echo_or_error(ip) => false,
        // A fragment, or a header behind which there may be a port. The programs of nodes are behind the addresses of nodes only.
        None => is_node(ip.destination, table),
    }
}

fn destination_port(packet: &[u8], ip: &Ip) -> Option<u16> {
    if ip.fragment || !matches!(ip.protocol, TCP | UDP) {
        return None;
    }
    let transport = packet.get(ip.transport..ip.total)?;
    let [_, _, a, b] = *transport.first_chunk::<4>()?;
    Some(u16::from_be_bytes([a, b]))
}

fn is_echo_or_error(ip: &Ip) -> bool {
    let icmp = if ip.source.is_ipv4() { ICMP } else { ICMP6 };
    !ip.fragment && ip.protocol == icmp
}

/// Whether this is the address of a node itself: of this one, or of another one.
fn is_node(address: IpAddr, table: &Table) -> bool {
    let is_first = |net: &IpNet| match (net, address) {
        (IpNet::V4(net), IpAddr::V4(address)) => {
            u32::from(address).checked_sub(net.network().into()) == Some(1)
        }
        (IpNet::V6(net), IpAddr::V6(address)) => {
            u128::from(address).checked_sub(net.network().into()) == Some(1)
        }
        _ => false,
    };
    table.allowed.is_first_host(address) || table.own_networks.iter().any(is_first)
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
            assert_ne!(decided(&table, &anna, &echo), dropped, "{destination}");
        }
        let mut fragment = packet(ANNA, "10.0.2.9", 80);
        fragment[6] = 0x20;
        assert_eq!(decided(&table, &anna, &fragment), Some(GuestWay::Forward));
        let mut routed = packet(ANNA, "10.0.2.9", 80);
        routed[0] = 0x46;
        assert_eq!(decided(&table, &anna, &routed), dropped);
    }
}
