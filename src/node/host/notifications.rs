//! The kernel's notifications of changes to links, addresses, routes, rules and forwarding, as far as they concern the
//! mesh.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::sys::protocols;

use crate::os::netlink::{Message, Subscription, attributes, messages};

/// The multicast groups with these notifications.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];
/// `RTM_NEWLINK` and `RTM_DELLINK`.
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
/// The offset of the interface's index in these messages (`ifinfomsg`), and the size of that header.
const LINK_INDEX: usize = 4;
const LINK_HEADER: usize = 16;
/// `IFLA_MASTER`, `IFLA_LINKINFO` and, inside that, `IFLA_INFO_KIND`.
const LINK_CONTROLLER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_INFO_KIND: u16 = 1;
/// `RTM_NEWNETCONF`.
const NEW_NETCONF: u16 = 80;
/// The size of `struct netconfmsg` with its padding.
const NETCONF_HEADER: usize = 4;
/// `NETCONFA_FORWARDING`.
const NETCONF_FORWARDING: u16 = 2;

/// The devices and prefixes whose changes matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    /// The index of the tunnel device.
    pub(super) index: u32,
    /// The prefixes of the mesh.
    pub(super) prefixes: Vec<IpNet>,
}

/// A subscription to these notifications.
pub(super) struct Notifications(Subscription);

impl Notifications {
    /// Subscribes. This must be called in a tokio runtime.
    pub(super) fn open() -> Self {
        let groups = GROUPS.map(|group| group as u32);
        Self(Subscription::open(protocols::NETLINK_ROUTE, &groups))
    }

    /// Why there are no notifications, if there are none.
    pub(super) fn error(&self) -> Option<String> {
        self.0.error()
    }

    /// Returns when something in `scope` has changed. Never returns if there are no notifications. Dropping the future loses no
    /// notification.
    pub(super) async fn next(&mut self, scope: &Scope) {
        self.0.next(|datagram| concerns(datagram, scope)).await;
    }
}

/// Whether any of the notifications in `datagram` is in `scope`.
fn concerns(datagram: &[u8], scope: &Scope) -> bool {
    messages(datagram).any(|message| one_concerns(message, scope))
}

fn one_concerns(message: Message<'_>, scope: &Scope) -> bool {
    match message.kind {
        NEW_NETCONF => {
            return stops_forwarding(message.body.get(NETCONF_HEADER..).unwrap_or_default());
        }
        // Each container causes many of these messages, and they are long, so they are not parsed completely.
        NEW_LINK | DELETED_LINK => {
            let index = message.body.get(LINK_INDEX..LINK_INDEX + 4);
            return index == Some(&scope.index.to_ne_bytes())
                || is_external_port(message.body.get(LINK_HEADER..).unwrap_or_default());
        }
        _ => {}
    }
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message.bytes) else {
        return false;
    };
    let NetlinkPayload::InnerMessage(message) = message.payload else {
        return false;
    };
    match message {
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            scope.has_address(&address)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            scope.has_route(&route)
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => true,
        _ => false,
    }
}

impl Scope {
    fn has_address(&self, message: &AddressMessage) -> bool {
        let within = |address: &IpAddr| self.prefixes.iter().any(|p| p.contains(address));
        message.header.index == self.index
            || message.attributes.iter().any(|attribute| match attribute {
                AddressAttribute::Address(address) | AddressAttribute::Local(address) => {
                    within(address)
                }
                _ => false,
            })
    }

    /// Whether the route uses the tunnel device, or its destination overlaps a prefix of the mesh.
    fn has_route(&self, message: &RouteMessage) -> bool {
        let length = message.header.destination_prefix_length;
        let overlaps = |to: IpAddr| {
            IpNet::new(to, length).is_ok_and(|net| {
                let mut prefixes = self.prefixes.iter();
                prefixes.any(|p| p.contains(&net) || net.contains(p))
            })
        };
        length == 0
            || message.attributes.iter().any(|attribute| match attribute {
                RouteAttribute::Oif(index) => *index == self.index,
                RouteAttribute::Destination(RouteAddress::Inet(v4)) => overlaps((*v4).into()),
                RouteAttribute::Destination(RouteAddress::Inet6(v6)) => overlaps((*v6).into()),
                _ => false,
            })
    }
}

/// Whether a link with these attributes is a bridge port that leads out of this machine. A bridge with such a port does
/// not connect only containers. Ports of containers and virtual machines (`veth`, `tun`) do not count, since they are
/// created and removed all the time.
fn is_external_port(link: &[u8]) -> bool {
    let (mut has_controller, mut is_guest) = (false, false);
    for (kind, value) in attributes(link) {
        has_controller |= kind == LINK_CONTROLLER;
        if kind == LINK_INFO {
            is_guest |= attributes(value)
                .any(|(kind, name)| kind == LINK_INFO_KIND && matches!(name, b"veth\0" | b"tun\0"));
        }
    }
    has_controller && !is_guest
}

/// Whether the attributes of a notification about settings (`netconf`) report that one interface, or all of them,
/// stopped forwarding.
fn stops_forwarding(settings: &[u8]) -> bool {
    attributes(settings)
        .find(|(kind, _)| *kind == NETCONF_FORWARDING)
        .is_some_and(|(_, value)| value.get(..4) == Some(&[0; 4]))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
    use rtnetlink::packet_route::rule::RuleMessage;
    use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

    use super::*;
    use crate::os::netlink::HEADER;

    fn scope() -> Scope {
        Scope {
            index: 7,
            prefixes: ["10.210.0.0/16", "fd00:1:2::/48"]
                .map(|net| net.parse().expect("a literal"))
                .to_vec(),
        }
    }

    fn encoded(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn route(net: &str, index: u32) -> Vec<u8> {
        let net: IpNet = net.parse().expect("a literal");
        let message = match net {
            IpNet::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4.network(), v4.prefix_len())
                .output_interface(index)
                .build(),
            IpNet::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6.network(), v6.prefix_len())
                .output_interface(index)
                .build(),
        };
        encoded(RouteNetlinkMessage::DelRoute(message))
    }

    fn address(text: &str, index: u32) -> Vec<u8> {
        let address: Ipv4Addr = text.parse().expect("a literal");
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, 24)
            .build();
        encoded(RouteNetlinkMessage::NewAddress(message))
    }

    fn link(index: u32) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        encoded(RouteNetlinkMessage::NewLink(message))
    }

    /// A notification about a port of bridge 3. `kind` is the kind of its link.
    fn port(kind: Option<InfoKind>) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = 2;
        message.attributes = vec![
            LinkAttribute::IfName("port0".into()),
            LinkAttribute::Controller(3),
        ];
        let infos = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(infos);
        encoded(RouteNetlinkMessage::NewLink(message))
    }

    fn netconf(forwarding: u32) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&NEW_NETCONF.to_ne_bytes());
        bytes.extend([2, 0, 0, 0]);
        for (kind, value) in [(1u16, u32::MAX), (NETCONF_FORWARDING, forwarding)] {
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value.to_ne_bytes());
        }
        let length = u32::try_from(bytes.len()).expect("short");
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn changes_that_concern_the_mesh_are_noticed_and_others_are_ignored() {
        let noticed = [
            link(7),
            port(None),
            port(Some(InfoKind::Vxlan)),
            address("192.0.2.1", 7),
            address("10.210.3.1", 2),
            route("192.0.2.0/24", 7),
            route("10.210.3.0/24", 2),
            route("10.0.0.0/8", 2),
            route("0.0.0.0/0", 2),
            route("fd00:1:2:3::/64", 2),
            encoded(RouteNetlinkMessage::NewRule(RuleMessage::default())),
            netconf(0),
        ];
        for message in &noticed {
            assert!(concerns(message, &scope()), "{message:?}");
        }
        let passed = [
            link(2),
            port(Some(InfoKind::Veth)),
            port(Some(InfoKind::Tun)),
            address("192.0.2.1", 2),
            route("192.0.2.0/24", 2),
            route("10.211.0.0/16", 2),
            route("fd00:1:3::/48", 2),
            netconf(1),
        ];
        for message in &passed {
            assert!(!concerns(message, &scope()), "{message:?}");
        }
        assert!(!concerns(&passed.concat(), &scope()));
        assert!(concerns(&[passed.concat(), link(7)].concat(), &scope()));
    }

    proptest! {
        #[test]
        fn received_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = concerns(&bytes, &scope());
            let _ = (stops_forwarding(&bytes), is_external_port(&bytes));
        }
    }
}
