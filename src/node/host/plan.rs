//! The wanted configuration of the tunnel device, and which steps lead to it. Pure.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::model::MeshAddresses;
use crate::model::address::Block;
use crate::protocol::local::{Problem, SystemEntry};

/// The wanted configuration of the tunnel device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The device's name.
    pub interface: String,
    /// The MTU in bytes.
    pub mtu: u16,
    /// The node's addresses, each as a single address: the routes lead to the rest of the mesh.
    pub addresses: Vec<IpNet>,
    /// The mesh's prefixes, each with the source address of packets to it.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// The networks outside the mesh to which other nodes route, each with the source address of packets to it.
    pub networks: Vec<(IpNet, IpAddr)>,
}

impl NetworkPlan {
    /// The configuration of the node that has `block`.
    #[must_use]
    pub fn new(interface: &str, mtu: u16, block: &Block, mesh: &MeshAddresses) -> Self {
        let (v4, v6) = (IpAddr::V4(block.node_v4()), IpAddr::V6(block.node_v6()));
        Self {
            interface: interface.to_owned(),
            mtu,
            addresses: vec![IpNet::from(v4), IpNet::from(v6)],
            routes: vec![(mesh.prefix_v4.into(), v4), (mesh.prefix_v6.into(), v6)],
            networks: Vec::new(),
        }
    }

    /// Sets the networks outside the mesh to which other nodes route.
    pub fn set_networks(&mut self, networks: impl IntoIterator<Item = Ipv4Net>, block: &Block) {
        let source = IpAddr::V4(block.node_v4());
        let networks = networks.into_iter();
        self.networks = networks.map(|net| (IpNet::V4(net), source)).collect();
    }

    /// The routes to networks outside the mesh that are in this plan and not in `new`.
    #[must_use]
    pub fn withdrawn(&self, new: &Self) -> Vec<IpNet> {
        let networks = self.networks.iter().map(|(net, _)| *net);
        let is_kept = |net: &IpNet| new.networks.iter().any(|(kept, _)| kept == net);
        networks.filter(|net| !is_kept(net)).collect()
    }

    /// Replaces the route to the IPv4 prefix by routes to its two halves. They take precedence over the route of an
    /// interface that has the whole prefix, such as the bridge of a container engine's network.
    pub fn halve_v4_route(&mut self) {
        let halved = |(net, source): (IpNet, IpAddr)| {
            let halves = match net {
                IpNet::V4(v4) => v4.subnets(v4.prefix_len().saturating_add(1)).ok(),
                IpNet::V6(_) => None,
            };
            match halves {
                Some(halves) => halves.map(|half| (half.into(), source)).collect(),
                None => vec![(net, source)],
            }
        };
        self.routes = std::mem::take(&mut self.routes)
            .into_iter()
            .flat_map(halved)
            .collect();
    }

    /// The part of the configuration that a device with this IPv6 support can have.
    #[must_use]
    pub fn with_families(&self, ipv6: Ipv6) -> Self {
        let there = |net: &IpNet| ipv6 == Ipv6::On || net.addr().is_ipv4();
        let mut plan = self.clone();
        plan.addresses.retain(there);
        plan.routes.retain(|(net, _)| there(net));
        plan
    }

    /// The steps that are missing. `found` is everything that the machine has. The order is one in which each step can
    /// succeed, and no step depends on one of the other address family.
    #[must_use]
    pub fn steps(&self, device: &Device, found: &[NetworkEntry]) -> Vec<Step> {
        let plan = self.with_families(device.ipv6);
        let lacks = |what: &str, table: u32, net: &IpNet| {
            !found.iter().any(|f| {
                f.what == what && f.table == table && f.net == *net && f.interface == plan.interface
            })
        };
        let mut steps = Vec::new();
        if !device.up || device.mtu != u32::from(plan.mtu) {
            steps.push(Step::Link);
        }
        let addresses = plan.addresses.iter().copied();
        steps.extend(
            addresses
                .filter(|net| lacks("address", NO_TABLE, net))
                .map(Step::Address),
        );
        let routes = plan.routes.iter().copied();
        steps.extend(
            routes
                .filter(|(net, _)| lacks("route", MAIN_TABLE, net))
                .map(|(net, source)| Step::Route(net, source)),
        );
        // The kernel would replace a route to the same network by ours, but that of another program was there first.
        let taken = plan.taken(found);
        let is_taken = |net: &IpNet| taken.iter().any(|f| f.net == *net);
        let networks = plan.networks.iter().copied();
        steps.extend(
            networks
                .filter(|(net, _)| lacks("route", MAIN_TABLE, net) && !is_taken(net))
                .map(|(net, source)| Step::Route(net, source)),
        );
        steps
    }

    /// The routes of other programs to networks to which other nodes route, among everything that the machine has.
    #[must_use]
    pub fn taken(&self, found: &[NetworkEntry]) -> Vec<NetworkEntry> {
        let is_wanted = |entry: &&NetworkEntry| {
            entry.what == "route"
                && entry.table == MAIN_TABLE
                && entry.interface != self.interface
                && self.networks.iter().any(|(net, _)| *net == entry.net)
        };
        found.iter().filter(is_wanted).cloned().collect()
    }

    /// All changes, each with its reason.
    #[must_use]
    pub fn entries(&self) -> Vec<SystemEntry> {
        let entry = |kind: &str, what: String, why: &str| SystemEntry {
            kind: kind.into(),
            what,
            why: why.into(),
        };
        let device = &self.interface;
        let mut entries = vec![entry(
            "link",
            format!("{device} (TUN, MTU {})", self.mtu),
            "packets to and from the mesh pass through it",
        )];
        entries.extend(self.addresses.iter().map(|a| {
            entry(
                "address",
                format!("{a} dev {device}"),
                "this node's address in the mesh",
            )
        }));
        entries.extend(self.routes.iter().map(|(net, source)| {
            entry(
                "route",
                format!("{net} dev {device} src {source}"),
                "sends packets to the other nodes into the tunnel",
            )
        }));
        entries.extend(self.networks.iter().map(|(net, source)| {
            entry(
                "route",
                format!("{net} dev {device} src {source}"),
                "sends packets to a network behind another node into the tunnel",
            )
        }));
        entries
    }
}

/// Whether a device supports IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6 {
    /// The device accepts IPv6 addresses.
    #[default]
    On,
    /// The sysctl `disable_ipv6` of the device is set.
    Off,
    /// The device has no IPv6, because the kernel runs without it (`ipv6.disable=1`).
    Absent,
}

impl Ipv6 {
    /// A problem for the status, unless the device accepts IPv6 addresses.
    #[must_use]
    pub fn problem(self, interface: &str) -> Option<Problem> {
        let (why, fix) = match self {
            Self::On => return None,
            Self::Off => (
                format!("IPv6 is switched off (net.ipv6.conf.{interface}.disable_ipv6 = 1)"),
                format!(
                    "nothing, if that is intended; otherwise run `sysctl -w net.ipv6.conf.{interface}.disable_ipv6=0`, and search /etc/sysctl.d for the file that sets it"
                ),
            ),
            Self::Absent => (
                format!("{interface} has no IPv6: the kernel was started without it (ipv6.disable=1)"),
                "nothing, if that is intended; otherwise remove `ipv6.disable=1` from the kernel's command line"
                    .to_owned(),
            ),
        };
        Some(Problem {
            what: "this node has only its IPv4 address in the mesh".into(),
            why,
            fix,
        })
    }
}

/// The tunnel device as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether the device supports IPv6 addresses.
    pub ipv6: Ipv6,
}

/// One change to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Bring the device up, with the planned MTU.
    Link,
    /// Add an address.
    Address(IpNet),
    /// Add a route, with the source address of packets to it.
    Route(IpNet, IpAddr),
}

impl Step {
    /// Whether the step concerns only IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Link => false,
            Self::Address(net) | Self::Route(net, _) => net.addr().is_ipv6(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("bring the tunnel device up"),
            Self::Address(net) => write!(f, "add the address {net}"),
            Self::Route(net, _) => write!(f, "add the route {net}"),
        }
    }
}

/// The routing table that the kernel uses unless a rule selects another one (`RT_TABLE_MAIN`).
pub(super) const MAIN_TABLE: u32 = 254;
/// The value of `table` for an address.
pub(super) const NO_TABLE: u32 = 0;

/// An address or route that the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkEntry {
    /// `address` or `route`.
    pub what: &'static str,
    /// The table of a route.
    pub table: u32,
    /// The prefix.
    pub net: IpNet,
    pub interface: String,
}

/// Two networks with addresses in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mesh prefix {mesh} overlaps the {what} {net} on {interface}; remove that, or create the mesh with another prefix (`[mesh] prefix_v4` in coordinator.toml, before `meshctl init`)"
)]
pub struct Overlap {
    mesh: IpNet,
    what: &'static str,
    net: IpNet,
    interface: String,
}

/// Checks that no prefix of the mesh overlaps an address or route of the machine. Default routes and meshd's own
/// interface do not count.
///
/// # Errors
/// The two networks.
pub fn overlap(mesh: &MeshAddresses, found: &[NetworkEntry], own: &str) -> Result<(), Overlap> {
    for prefix in [IpNet::V4(mesh.prefix_v4), IpNet::V6(mesh.prefix_v6)] {
        let clash = found.iter().find(|f| {
            f.interface != own
                && f.net.prefix_len() > 0
                && (prefix.contains(&f.net) || f.net.contains(&prefix))
        });
        if let Some(NetworkEntry {
            what,
            net,
            interface,
            ..
        }) = clash.cloned()
        {
            return Err(Overlap {
                mesh: prefix,
                what,
                net,
                interface,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh() -> MeshAddresses {
        MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        }
    }

    fn found(net: &str, interface: &str) -> NetworkEntry {
        NetworkEntry {
            what: "route",
            table: MAIN_TABLE,
            net: net.parse().expect("a literal"),
            interface: interface.into(),
        }
    }

    #[test]
    fn an_overlap_is_refused_and_both_are_named() {
        for net in ["10.210.5.0/24", "10.0.0.0/8", "fd00:1:2:3::/64"] {
            let error = overlap(&mesh(), &[found(net, "eth1")], "mesh0")
                .expect_err("overlaps")
                .to_string();
            assert!(
                error.contains(net) && error.contains("eth1") && error.contains("the mesh prefix"),
                "{error}"
            );
        }
    }

    #[test]
    fn default_routes_other_networks_and_our_own_do_not_count() {
        let fine = [
            found("0.0.0.0/0", "eth0"),
            found("::/0", "eth0"),
            found("10.211.0.0/16", "eth1"),
            found("10.210.0.0/16", "mesh0"),
        ];
        assert_eq!(overlap(&mesh(), &fine, "mesh0"), Ok(()));
    }

    const UP: Device = Device {
        mtu: 1420,
        up: true,
        ipv6: Ipv6::On,
    };

    /// Everything that a plan contains, as the kernel lists it once it is applied.
    fn done(plan: &NetworkPlan) -> Vec<NetworkEntry> {
        let entry = |what, table, net| NetworkEntry {
            what,
            table,
            net,
            interface: plan.interface.clone(),
        };
        let addresses = plan
            .addresses
            .iter()
            .map(|net| entry("address", NO_TABLE, *net));
        let routes = plan
            .routes
            .iter()
            .map(|(net, _)| entry("route", MAIN_TABLE, *net));
        addresses.chain(routes).collect()
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_missing_steps_are_returned() {
        let block = mesh().block(3).expect("in the plan");
        let plan = NetworkPlan::new("mesh0", 1420, &block, &mesh());
        let all = done(&plan);
        assert_eq!(plan.steps(&UP, &all), []);
        let down = Device { up: false, ..UP };
        assert_eq!(
            shown(&plan.steps(&down, &[])),
            [
                "bring the tunnel device up",
                "add the address 10.210.3.1/32",
                "add the address fd00:1:2:3::1/128",
                "add the route 10.210.0.0/16",
                "add the route fd00:1:2::/48",
            ]
        );
        assert_eq!(
            plan.steps(&Device { mtu: 1280, ..UP }, &all),
            [Step::Link],
            "another program changed the MTU"
        );
        // A route in another table, or through another device, does not replace ours.
        let mut elsewhere = all.clone();
        for found in &mut elsewhere {
            match (found.what, found.net.addr().is_ipv4()) {
                ("route", true) => found.table = 100,
                ("address", true) => found.interface = "eth0".into(),
                _ => {}
            }
        }
        assert_eq!(
            shown(&plan.steps(&UP, &elsewhere)),
            [
                "add the address 10.210.3.1/32",
                "add the route 10.210.0.0/16"
            ]
        );
    }

    #[test]
    fn a_missing_address_family_is_not_configured_and_does_not_affect_the_other() {
        let block = mesh().block(3).expect("in the plan");
        let plan = NetworkPlan::new("mesh0", 1420, &block, &mesh());
        for ipv6 in [Ipv6::Off, Ipv6::Absent] {
            let device = Device { ipv6, ..UP };
            let steps = plan.steps(&device, &[]);
            assert!(steps.iter().all(|step| !step.is_ipv6()), "{steps:?}");
            assert_eq!(steps.len(), 2, "{steps:?}");
            let entries = plan.with_families(ipv6).entries();
            assert!(entries.iter().all(|e| !e.what.contains("fd00")));
            let problem = ipv6.problem("mesh0").expect("it is shown");
            assert!(problem.what.contains("only its IPv4"), "{problem:?}");
        }
        assert_eq!(Ipv6::On.problem("mesh0"), None);
        // When IPv6 is switched on again, its part is added.
        let v4 = done(&plan.with_families(Ipv6::Off));
        let steps = plan.steps(&UP, &v4);
        assert_eq!(
            shown(&steps),
            [
                "add the address fd00:1:2:3::1/128",
                "add the route fd00:1:2::/48"
            ]
        );
        assert!(steps.iter().all(Step::is_ipv6));
    }

    #[test]
    fn networks_behind_other_nodes_have_routes_unless_another_program_has_one_there() {
        let block = mesh().block(3).expect("in the plan");
        let mut plan = NetworkPlan::new("mesh0", 1420, &block, &mesh());
        let all = done(&plan);
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a literal");
        plan.set_networks([net("192.168.1.0/24"), net("192.168.2.0/24")], &block);
        let both = [
            "add the route 192.168.1.0/24",
            "add the route 192.168.2.0/24",
        ];
        assert_eq!(shown(&plan.steps(&UP, &all)), both);
        let taken = [all.clone(), vec![found("192.168.2.0/24", "eth1")]].concat();
        assert_eq!(shown(&plan.steps(&UP, &taken)), both[..1]);
        let own = [all, vec![found("192.168.1.0/24", "mesh0")]].concat();
        assert_eq!(shown(&plan.steps(&UP, &own)), both[1..]);
        let mut after = plan.clone();
        after.set_networks([net("192.168.2.0/24")], &block);
        assert_eq!(
            plan.withdrawn(&after),
            [IpNet::V4(net("192.168.1.0/24"))],
            "and the other one stays"
        );
        assert!(after.withdrawn(&plan).is_empty());
    }

    #[test]
    fn every_change_has_a_reason() {
        let block = mesh().block(3).expect("in the plan");
        let entries = NetworkPlan::new("mesh0", 1420, &block, &mesh()).entries();
        let shown: Vec<String> = entries
            .iter()
            .map(|e| format!("{} {}", e.kind, e.what))
            .collect();
        assert_eq!(
            shown,
            [
                "link mesh0 (TUN, MTU 1420)",
                "address 10.210.3.1/32 dev mesh0",
                "address fd00:1:2:3::1/128 dev mesh0",
                "route 10.210.0.0/16 dev mesh0 src 10.210.3.1",
                "route fd00:1:2::/48 dev mesh0 src fd00:1:2:3::1",
            ]
        );
        assert!(entries.iter().all(|e| !e.why.is_empty()));
    }

    #[test]
    fn the_two_halves_cover_the_whole_prefix() {
        let block = mesh().block(5).expect("it is large");
        let mut plan = NetworkPlan::new("mesh0", 1420, &block, &mesh());
        plan.halve_v4_route();
        let routes: Vec<String> = plan.routes.iter().map(|(net, _)| net.to_string()).collect();
        assert_eq!(
            routes,
            ["10.210.0.0/17", "10.210.128.0/17", "fd00:1:2::/48"]
        );
        assert!(
            plan.routes
                .iter()
                .all(|(net, source)| net.addr().is_ipv4() == source.is_ipv4())
        );
    }
}
