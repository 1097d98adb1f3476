//! The machine's network as the kernel lists it, as plain values, and what follows from it. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::{Device, NetworkEntry};

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The index of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The kind of interface, as far as it matters here.
    pub kind: LinkKind,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// The settings of the interface.
    pub device: Device,
}

/// The kinds of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// An interface that connects containers and virtual machines: veth, TUN or TAP.
    Guest,
    /// Anything else.
    Other,
}

/// What the kernel does with packets that match a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Send them out of an interface.
    Unicast,
    /// Deliver them on this machine.
    Local,
    /// Discard them, with or without an error (`blackhole`, `unreachable`, `prohibit`).
    Discard,
    /// Look no further in this table (`throw`).
    Throw,
    /// Anything else: broadcast, multicast.
    Other,
}

/// A route of the machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The routing table.
    pub table: u32,
    /// What the kernel does with matching packets.
    pub kind: RouteKind,
    /// The destinations.
    pub net: IpNet,
    /// The interface of the route; the first one, if there are several.
    pub interface: Option<String>,
}

/// The router to which this machine sends packets of one family for other networks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultGateway {
    /// Its address.
    pub address: IpAddr,
    /// The interface that leads to it.
    pub interface: String,
    /// The index of the interface.
    pub index: u32,
}

/// The machine's network at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<NetworkEntry>,
    /// All routes, in all tables.
    pub routes: Vec<Route>,
    /// The gateway of the preferred default route over IPv4, if that route has one.
    pub gateway: Option<DefaultGateway>,
    /// The same over IPv6.
    pub gateway_v6: Option<DefaultGateway>,
}

impl Survey {
    /// The settings of the interface with index `index`.
    #[must_use]
    pub fn device(&self, index: u32) -> Option<&Device> {
        let link = self.links.iter().find(|link| link.index == index);
        link.map(|link| &link.device)
    }

    /// The name of the interface with index `index`.
    #[must_use]
    pub fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// The MTU of the interface called `name`.
    pub(super) fn mtu(&self, name: &str) -> Option<u32> {
        let link = self.links.iter().find(|link| link.name == name);
        link.map(|link| link.device.mtu)
    }

    /// The addresses, and the unicast routes other than default routes.
    #[must_use]
    pub fn found(&self) -> Vec<NetworkEntry> {
        let of = |route: &Route| {
            let counts = route.kind == RouteKind::Unicast && route.net.prefix_len() > 0;
            Some(NetworkEntry {
                what: "route",
                table: route.table,
                net: route.net,
                interface: route.interface.clone().filter(|_| counts)?,
            })
        };
        let routes = self.routes.iter().filter_map(of);
        self.addresses.iter().cloned().chain(routes).collect()
    }

    /// The bridges that connect only containers and virtual machines of this machine: all ports are theirs, and no
    /// default route uses the bridge. No other machine reaches this machine at the addresses of such a bridge.
    #[must_use]
    pub fn guest_bridges(&self) -> BTreeSet<String> {
        let defaults: BTreeSet<&str> = self
            .routes
            .iter()
            .filter(|route| route.kind == RouteKind::Unicast && route.net.prefix_len() == 0)
            .filter_map(|route| route.interface.as_deref())
            .collect();
        self.bridges()
            .filter(|bridge| {
                !self.has_external_port(bridge) && !defaults.contains(bridge.name.as_str())
            })
            .map(|bridge| bridge.name.clone())
            .collect()
    }

    /// The bridges to which other machines are connected as well: one of the ports leads out of this machine.
    #[must_use]
    pub fn external_bridges(&self) -> BTreeSet<String> {
        self.bridges()
            .filter(|bridge| self.has_external_port(bridge))
            .map(|bridge| bridge.name.clone())
            .collect()
    }

    fn bridges(&self) -> impl Iterator<Item = &Link> {
        let links = self.links.iter();
        links.filter(|link| link.kind == LinkKind::Bridge)
    }

    fn has_external_port(&self, bridge: &Link) -> bool {
        self.links
            .iter()
            .filter(|port| port.controller == Some(bridge.index))
            .any(|port| port.kind != LinkKind::Guest)
    }

    /// One address of each route for a part of `prefix` that does not use the device `own`, except for routes in
    /// `block`, whose addresses this node assigns itself. Returns at most `max` addresses.
    #[must_use]
    pub fn routed_elsewhere(
        &self,
        prefix: IpNet,
        block: IpNet,
        own: &str,
        max: usize,
    ) -> Vec<IpAddr> {
        let taken = |route: &&Route| {
            let counts = matches!(
                route.kind,
                RouteKind::Unicast | RouteKind::Local | RouteKind::Discard
            );
            counts
                && route.interface.as_deref() != Some(own)
                && prefix.contains(&route.net)
                && !block.contains(&route.net)
        };
        // The network address itself is not used, because some kernels treat it as a broadcast address.
        let of = |route: &Route| route.net.hosts().next().unwrap_or(route.net.addr());
        let addresses: BTreeSet<IpAddr> = self.routes.iter().filter(taken).map(of).collect();
        addresses.into_iter().take(max).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Ipv6, MAIN_TABLE};
    use super::*;

    fn link(index: u32, name: &str, kind: LinkKind, controller: Option<u32>) -> Link {
        Link {
            index,
            name: name.into(),
            kind,
            controller,
            device: Device {
                mtu: 1500,
                up: true,
                ipv6: Ipv6::On,
            },
        }
    }

    fn route(net: &str, kind: RouteKind, interface: &str) -> Route {
        Route {
            table: MAIN_TABLE,
            kind,
            net: net.parse().expect("a literal"),
            interface: Some(interface.to_owned()).filter(|name| !name.is_empty()),
        }
    }

    #[test]
    fn a_bridge_is_an_uplink_by_its_ports_and_routes_and_never_by_its_name() {
        use LinkKind::{Bridge, Guest, Other};
        let survey = Survey {
            links: vec![
                link(1, "eth0", Other, Some(2)),
                link(2, "br-lan", Bridge, None),
                link(3, "docker0", Bridge, None),
                link(4, "br-0a1b2c", Bridge, None),
                link(5, "veth1", Guest, Some(4)),
                link(6, "lan", Bridge, None),
                link(7, "tap0", Guest, Some(6)),
                link(8, "br-wan", Bridge, None),
                link(9, "veth2", Guest, Some(8)),
                link(10, "eth1", Guest, None),
            ],
            routes: vec![route("0.0.0.0/0", RouteKind::Unicast, "br-wan")],
            ..Survey::default()
        };
        let guests: Vec<String> = survey.guest_bridges().into_iter().collect();
        assert_eq!(guests, ["br-0a1b2c", "docker0", "lan"]);
        let outer: Vec<String> = survey.external_bridges().into_iter().collect();
        assert_eq!(outer, ["br-lan"]);
    }

    #[test]
    fn routes_of_others_inside_the_prefix_are_found_and_our_own_are_not() {
        let survey = Survey {
            routes: vec![
                route("0.0.0.0/0", RouteKind::Unicast, "eth0"),
                route("10.210.0.0/16", RouteKind::Unicast, "mesh0"),
                route("10.210.1.1/32", RouteKind::Local, "mesh0"),
                route("10.210.1.128/25", RouteKind::Unicast, "br-mesh"),
                route("10.210.7.0/24", RouteKind::Unicast, "eth1"),
                route("10.210.7.255/32", RouteKind::Other, "eth1"),
                route("10.210.8.5/32", RouteKind::Local, "eth1"),
                route("10.210.9.0/24", RouteKind::Discard, ""),
                route("10.211.0.0/16", RouteKind::Unicast, "eth1"),
            ],
            ..Survey::default()
        };
        let prefix = "10.210.0.0/16".parse().expect("a literal");
        let block = "10.210.1.0/24".parse().expect("a literal");
        let taken = |max| {
            let taken = survey.routed_elsewhere(prefix, block, "mesh0", max);
            taken.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(taken(10), ["10.210.7.1", "10.210.8.5", "10.210.9.1"]);
        assert_eq!(taken(2), ["10.210.7.1", "10.210.8.5"]);
    }

    #[test]
    fn default_routes_and_those_that_lead_nowhere_are_no_overlap() {
        let survey = Survey {
            routes: vec![
                route("0.0.0.0/0", RouteKind::Unicast, "eth0"),
                route("10.0.0.0/8", RouteKind::Unicast, "eth0"),
                route("10.1.0.0/16", RouteKind::Discard, ""),
                route("10.2.0.1/32", RouteKind::Local, "eth0"),
            ],
            ..Survey::default()
        };
        let nets: Vec<String> = survey.found().iter().map(|f| f.net.to_string()).collect();
        assert_eq!(nets, ["10.0.0.0/8"]);
    }
}
