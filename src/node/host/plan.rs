//! What there is to be, and what is in its way. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::MeshAddresses;
use crate::model::address::Block;
use crate::wire::local::SystemEntry;

/// What the tunnel device is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The device's name.
    pub interface: String,
    /// Octets.
    pub mtu: u16,
    /// The node's addresses, alone: what is around them is reached by the routes.
    pub addresses: Vec<IpNet>,
    /// The mesh's prefixes, with the source that packets to them get.
    pub routes: Vec<(IpNet, IpAddr)>,
}

impl Plan {
    /// For the node of `block`.
    #[must_use]
    pub fn new(interface: &str, mtu: u16, block: &Block, mesh: &MeshAddresses) -> Self {
        let (v4, v6) = (IpAddr::V4(block.node_v4()), IpAddr::V6(block.node_v6()));
        Self {
            interface: interface.to_owned(),
            mtu,
            addresses: vec![IpNet::from(v4), IpNet::from(v6)],
            routes: vec![(mesh.prefix_v4.into(), v4), (mesh.prefix_v6.into(), v6)],
        }
    }

    /// Leads to the IPv4 prefix by its two halves: an interface that has all of it on its link, as that of a container
    /// engine's network may, takes none of it away.
    pub fn halve(&mut self) {
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

    /// Each change, with its reason.
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
        entries
    }
}

/// An address or route that the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `address` or `route`.
    pub what: &'static str,
    /// Its prefix.
    pub net: IpNet,
    /// On which interface.
    pub interface: String,
}

/// Two networks that would be mixed up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mesh prefix {mesh} overlaps the {what} {net} on {interface}; take that away, or make the mesh with another prefix (`[mesh] prefix_v4` in coordinator.toml, before `meshctl init`)"
)]
pub struct Overlap {
    mesh: IpNet,
    what: &'static str,
    net: IpNet,
    interface: String,
}

/// Refuses a mesh whose prefixes overlap what is there. Default routes and our own interface do not count.
///
/// # Errors
/// Names both.
pub fn overlap(mesh: &MeshAddresses, found: &[Found], own: &str) -> Result<(), Overlap> {
    for prefix in [IpNet::V4(mesh.prefix_v4), IpNet::V6(mesh.prefix_v6)] {
        let clash = found.iter().find(|f| {
            f.interface != own
                && f.net.prefix_len() > 0
                && (prefix.contains(&f.net) || f.net.contains(&prefix))
        });
        if let Some(Found {
            what,
            net,
            interface,
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

    fn found(net: &str, interface: &str) -> Found {
        Found {
            what: "route",
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

    #[test]
    fn every_change_has_a_reason() {
        let block = mesh().block(3).expect("in the plan");
        let entries = Plan::new("mesh0", 1420, &block, &mesh()).entries();
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
    fn in_halves_the_prefix_is_as_whole_as_before() {
        let block = mesh().block(5).expect("it is large");
        let mut plan = Plan::new("mesh0", 1420, &block, &mesh());
        plan.halve();
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
