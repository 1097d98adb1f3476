//! The networks outside the mesh to which members route: what a member offers and the policy permits.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

use super::Netmap;
use crate::model::key::PublicKey;
use crate::model::name::Label;
use crate::model::{MeshAddresses, prefix};
use crate::records::kinds::MAX_ROUTES;

impl Netmap {
    /// Adds the networks that a member offers to route to, as far as the policy permits it. A member without permission adds none, and
    /// without a policy there is no permission.
    pub(in crate::records) fn add_routes(
        &mut self,
        id: &PublicKey,
        name: &Label,
        offered: &[IpNet],
    ) {
        let (Some(policy), Some(mesh)) = (self.rules.policy(), &self.mesh) else {
            return;
        };
        for network in permitted(offered, policy.routes_of(name), &mesh.addresses) {
            self.routes.entry(network).or_default().insert(*id);
        }
    }

    /// The networks to which a member routes.
    pub fn routes_of(&self, id: &PublicKey) -> impl Iterator<Item = Ipv4Net> {
        let routes = self.routes.iter();
        let routes = routes.filter(move |(_, gateways)| gateways.contains(id));
        routes.map(|(network, _)| *network)
    }
}

/// The networks that are in an offer and in a permission too. An offer that is wider than the permission is cut down to it. Networks
/// that no node of the mesh may route to are left out.
#[must_use]
pub fn permitted(
    offered: &[IpNet],
    permissions: impl IntoIterator<Item = IpNet>,
    mesh: &MeshAddresses,
) -> BTreeSet<Ipv4Net> {
    let permissions = permissions.into_iter();
    let both = permissions.flat_map(|permission| {
        let offered = offered.iter();
        offered.filter_map(move |offer| prefix::common(*offer, permission))
    });
    let both: BTreeSet<Ipv4Net> = both
        .filter_map(|network| prefix::check_in(network, mesh).ok())
        .collect();
    both.into_iter().take(MAX_ROUTES).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::Policy;
    use crate::records::netmap::Rules;
    use crate::testbed::records as build;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a literal")
    }

    fn both(offered: &[&str], permissions: &[&str]) -> Vec<String> {
        let offered: Vec<IpNet> = offered.iter().map(|text| net(text)).collect();
        let permissions = permissions.iter().map(|text| net(text));
        let both = permitted(&offered, permissions, &build::plan());
        both.into_iter().map(|net| net.to_string()).collect()
    }

    #[test]
    fn a_network_is_routed_if_it_is_offered_and_permitted() {
        let lan = "192.168.1.0/24";
        assert_eq!(both(&[lan], &[lan]), [lan]);
        assert!(both(&[lan], &[]).is_empty());
        assert!(both(&[], &[lan]).is_empty());
        assert!(both(&["192.168.2.0/24"], &[lan]).is_empty());
        // Of a wide offer and a narrow permission, or the other way round, the narrow one counts.
        assert_eq!(both(&["192.168.0.0/16"], &[lan]), [lan]);
        assert_eq!(both(&[lan], &["192.168.0.0/16"]), [lan]);
        assert_eq!(
            both(&["192.168.0.0/16"], &[lan, "192.168.2.0/24"]),
            [lan, "192.168.2.0/24"]
        );
    }

    #[test]
    fn networks_that_no_node_may_route_to_are_left_out_even_if_they_are_permitted() {
        for network in [
            "0.0.0.0/0",
            "::/0",
            "10.210.0.0/16",
            "10.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "192.168.1.5/24",
        ] {
            assert!(both(&[network], &[network]).is_empty(), "{network}");
        }
        // The part of a default route that is permitted is no default route.
        assert_eq!(both(&["0.0.0.0/0"], &["10.1.0.0/16"]), ["10.1.0.0/16"]);
    }

    #[test]
    fn an_offer_is_bounded_whatever_is_permitted() {
        let offered: Vec<IpNet> = (0..100).map(|n| net(&format!("172.16.{n}.0/24"))).collect();
        let both = permitted(&offered, [net("172.16.0.0/12")], &build::plan());
        assert_eq!(both.len(), MAX_ROUTES);
    }

    #[test]
    fn only_members_that_the_policy_names_route() {
        let text = "language = 1\n[[route]]\nnode = \"nas\"\nprefix = \"192.168.1.0/24\"\n";
        let policy = Arc::new(Policy::parse(text).expect("a literal"));
        let of = |rules: Rules, name: &str| {
            let mut netmap = Netmap {
                mesh: Some(build::mesh()),
                rules,
                ..Netmap::default()
            };
            let id = build::id(1);
            netmap.add_routes(&id, &build::label(name), &[net("192.168.1.0/24")]);
            netmap.routes_of(&id).count()
        };
        let rules = || Rules::Policy(Arc::clone(&policy));
        assert_eq!(of(rules(), "nas"), 1);
        assert_eq!(of(rules(), "nas-2"), 0);
        assert_eq!(of(Rules::Open, "nas"), 0);
        assert_eq!(of(Rules::Closed, "nas"), 0);
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        let anywhere = (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| {
            let net = Ipv4Net::new(bits.into(), length).expect("a length in range");
            IpNet::V4(net)
        });
        // Networks of a small part of the addresses, so that many of them overlap.
        let near = (0u32..0x1000, 16u8..=32).prop_map(|(bits, length)| {
            let net = Ipv4Net::new((0xc0a8_0000 | bits).into(), length);
            IpNet::V4(net.expect("a length in range").trunc())
        });
        prop_oneof![1 => anywhere, 4 => near]
    }

    proptest! {
        #[test]
        fn no_address_outside_the_permission_or_the_offer_is_ever_routed(
            offered in prop::collection::vec(any_net(), 0..20),
            permissions in prop::collection::vec(any_net(), 0..20),
        ) {
            let mesh = build::plan();
            for network in permitted(&offered, permissions.iter().copied(), &mesh) {
                let network = IpNet::V4(network);
                prop_assert!(permissions.iter().any(|net| net.contains(&network)));
                prop_assert!(offered.iter().any(|net| net.contains(&network)));
                prop_assert!(network.prefix_len() > 0);
                prop_assert!(prefix::common(network, mesh.prefix_v4.into()).is_none());
            }
        }
    }
}
