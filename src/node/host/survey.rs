//! What the kernel shows of the machine's network, as plain values, and what follows from it. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::plan::{Device, Found};

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, as far as that matters here.
    pub kind: LinkKind,
    /// The bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// How it is set.
    pub device: Device,
}

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// An end that containers and virtual machines are connected with: veth, TUN or TAP.
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
    /// In which table.
    pub table: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Which destinations it is for.
    pub net: IpNet,
    /// Through which interface; the first, if there are several.
    pub interface: Option<String>,
}

/// The machine's network at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Found>,
    /// All routes, in all tables.
    pub routes: Vec<Route>,
}

impl Survey {
    /// The device of number `index`.
    #[must_use]
    pub fn device(&self, index: u32) -> Option<&Device> {
        let link = self.links.iter().find(|link| link.index == index);
        link.map(|link| &link.device)
    }

    /// The name of the interface of number `index`.
    #[must_use]
    pub fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// Addresses, and routes that lead through an interface to something other than everything.
    #[must_use]
    pub fn found(&self) -> Vec<Found> {
        let of = |route: &Route| {
            let counts = route.kind == RouteKind::Unicast && route.net.prefix_len() > 0;
            Some(Found {
                what: "route",
                table: route.table,
                net: route.net,
                interface: route.interface.clone().filter(|_| counts)?,
            })
        };
        let routes = self.routes.iter().filter_map(of);
        self.addresses.iter().cloned().chain(routes).collect()
    }

    /// The bridges that lead only to containers and virtual machines of this machine: all ports are theirs, and no default
    /// route goes through the bridge. No other machine reaches this one at their addresses.
    #[must_use]
    pub fn guest_bridges(&self) -> BTreeSet<String> {
        let defaults: BTreeSet<&str> = self
            .routes
            .iter()
            .filter(|route| route.kind == RouteKind::Unicast && route.net.prefix_len() == 0)
            .filter_map(|route| route.interface.as_deref())
            .collect();
        self.bridges()
            .filter(|bridge| !self.leads_out(bridge) && !defaults.contains(bridge.name.as_str()))
            .map(|bridge| bridge.name.clone())
            .collect()
    }

    /// The bridges that other machines are on as well: one of the ports leads out of this machine.
    #[must_use]
    pub fn outer_bridges(&self) -> BTreeSet<String> {
        self.bridges()
            .filter(|bridge| self.leads_out(bridge))
            .map(|bridge| bridge.name.clone())
            .collect()
    }

    fn bridges(&self) -> impl Iterator<Item = &Link> {
        let links = self.links.iter();
        links.filter(|link| link.kind == LinkKind::Bridge)
    }

    fn leads_out(&self, bridge: &Link) -> bool {
        self.links
            .iter()
            .filter(|port| port.controller == Some(bridge.index))
            .any(|port| port.kind != LinkKind::Guest)
    }

    /// One address of each route by somebody else that is for a part of `prefix`: not by the device `own`, and for
    /// nothing in `block`, which this node itself gives out. At most `most`.
    #[must_use]
    pub fn parts_taken(&self, prefix: IpNet, block: IpNet, own: &str, most: usize) -> Vec<IpAddr> {
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
        // Not the address of the network itself: some kernels take it for that of a broadcast.
        let of = |route: &Route| route.net.hosts().next().unwrap_or(route.net.addr());
        let addresses: BTreeSet<IpAddr> = self.routes.iter().filter(taken).map(of).collect();
        addresses.into_iter().take(most).collect()
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
        let outer: Vec<String> = survey.outer_bridges().into_iter().collect();
        assert_eq!(outer, ["br-lan"]);
    }

    #[test]
    fn parts_of_the_prefix_that_others_took_are_found_and_our_own_are_not() {
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
        let taken = |most| {
            let taken = survey.parts_taken(prefix, block, "mesh0", most);
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
