//! Networks outside the mesh to which nodes may route.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::MeshAddresses;

/// The reason why the mesh routes to no such network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The text is not a network.
    #[error("`{0}` is no network; an example is 192.168.1.0/24")]
    Unknown(String),
    /// The text is an address without a prefix length.
    #[error(
        "`{0}` is an address; write the network that it is in, or `{0}/32` for this address alone"
    )]
    Address(Ipv4Addr),
    /// The prefix has bits set after its length.
    #[error("the network {0} has bits set behind its length; write {1}")]
    Unaligned(IpNet, IpNet),
    /// The prefix is that of all addresses.
    #[error(
        "{0} is every address there is; write the networks that are behind the node, such as 192.168.1.0/24"
    )]
    Everything(IpNet),
    /// The network is one of IPv6.
    #[error("{0} is a network of IPv6; nodes route to networks of IPv4 only")]
    Ipv6(String),
    /// The network has addresses that no router passes on.
    #[error("{0} has {1} addresses in it, which no node routes; write a network without them")]
    Special(Ipv4Net, &'static str),
    /// The network has addresses of the mesh.
    #[error("{0} overlaps the addresses of the mesh, {1}; write a network without them")]
    OfMesh(IpNet, Ipv4Net),
}

/// The networks whose addresses no router passes on (RFC 6890), and what they are for.
const SPECIAL: [(Ipv4Addr, u8, &str); 5] = [
    (Ipv4Addr::UNSPECIFIED, 8, "unspecified"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Parses a network to which a node may route, as far as that does not depend on the mesh.
///
/// # Errors
/// Says why nothing routes there, and what to write in its place.
pub fn parse(text: &str) -> Result<IpNet, PrefixError> {
    let shown = || super::text::printable(text, 64);
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => PrefixError::Address(address),
            Ok(IpAddr::V6(_)) => PrefixError::Ipv6(shown()),
            Err(_) => PrefixError::Unknown(shown()),
        });
    };
    check(net).map(|_| net)
}

/// Checks that a node may route to a network, as far as that does not depend on the mesh. Returns the network as one of IPv4.
///
/// # Errors
/// Says why nothing routes there.
pub fn check(net: IpNet) -> Result<Ipv4Net, PrefixError> {
    if net.prefix_len() == 0 {
        return Err(PrefixError::Everything(net));
    }
    let IpNet::V4(v4) = net else {
        return Err(PrefixError::Ipv6(net.to_string()));
    };
    if v4.trunc() != v4 {
        return Err(PrefixError::Unaligned(net, v4.trunc().into()));
    }
    for (address, length, what) in SPECIAL {
        let special = Ipv4Net::new(address, length);
        if special.is_ok_and(|special| overlaps(v4, special)) {
            return Err(PrefixError::Special(v4, what));
        }
    }
    Ok(v4)
}

/// Checks that a node of the mesh `mesh` may route to a network. Returns the network as one of IPv4.
///
/// # Errors
/// Says why nothing routes there.
pub fn check_in(net: IpNet, mesh: &MeshAddresses) -> Result<Ipv4Net, PrefixError> {
    let v4 = check(net)?;
    if overlaps(v4, mesh.prefix_v4) {
        return Err(PrefixError::OfMesh(net, mesh.prefix_v4));
    }
    Ok(v4)
}

/// Whether two networks have addresses in common.
#[must_use]
pub fn overlaps(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// The addresses that two networks have in common: one of the two, if they have any.
#[must_use]
pub fn common(one: IpNet, other: IpNet) -> Option<IpNet> {
    if one.contains(&other) {
        return Some(other);
    }
    other.contains(&one).then_some(one)
}

/// The networks that together have the addresses of `network` that are in none of `others`.
#[must_use]
pub fn without(network: Ipv4Net, others: &[Ipv4Net]) -> Vec<Ipv4Net> {
    if others.iter().any(|other| other.contains(&network)) {
        return Vec::new();
    }
    if !others.iter().any(|other| network.contains(other)) {
        return vec![network];
    }
    // A network with another one inside is no single address, so it has halves.
    let halves = network.subnets(network.prefix_len().saturating_add(1));
    let halves = halves.into_iter().flatten();
    halves.flat_map(|half| without(half, others)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a literal")
    }

    fn mesh() -> MeshAddresses {
        MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        }
    }

    #[test]
    fn networks_of_others_are_routed_and_those_that_no_router_passes_on_are_not() {
        for routed in [
            "192.168.1.0/24",
            "10.0.0.0/9",
            "172.16.0.0/12",
            "100.64.0.0/10",
            "203.0.113.7/32",
        ] {
            assert!(check_in(net(routed), &mesh()).is_ok(), "{routed}");
        }
        for refused in [
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "::/0",
            "2001:db8::/32",
            "127.0.0.0/8",
            "127.0.0.1/32",
            "169.254.169.254/32",
            "169.254.0.0/16",
            "224.0.0.0/24",
            "255.255.255.255/32",
            "240.0.0.0/8",
            "0.0.0.0/32",
            "192.168.1.1/24",
            "10.0.0.0/8",
            "10.210.0.0/16",
            "10.210.3.0/24",
            "10.210.3.4/32",
            "8.0.0.0/5",
        ] {
            assert!(check_in(net(refused), &mesh()).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_wrong_network_is_answered_with_what_is_right_in_its_place() {
        let said = |text: &str| parse(text).expect_err("wrong on purpose").to_string();
        assert_eq!(
            said("192.168.1.5/24"),
            "the network 192.168.1.5/24 has bits set behind its length; write 192.168.1.0/24"
        );
        assert_eq!(
            said("192.168.1.5"),
            "`192.168.1.5` is an address; write the network that it is in, or `192.168.1.5/32` for this address alone"
        );
        assert_eq!(
            said("nas"),
            "`nas` is no network; an example is 192.168.1.0/24"
        );
        assert!(said("0.0.0.0/0").contains("every address"));
        assert!(said("fd00::/8").contains("IPv4 only"));
        assert!(said("127.0.0.0/8").contains("loopback"));
    }

    #[test]
    fn two_networks_have_in_common_the_smaller_one_or_nothing() {
        let (wide, narrow, other) = (net("10.0.0.0/8"), net("10.1.0.0/16"), net("11.0.0.0/8"));
        assert_eq!(common(wide, narrow), Some(narrow));
        assert_eq!(common(narrow, wide), Some(narrow));
        assert_eq!(common(narrow, narrow), Some(narrow));
        assert_eq!(common(narrow, other), None);
    }

    #[test]
    fn a_network_without_others_has_all_its_addresses_but_theirs() {
        let v4 = |text: &str| text.parse::<Ipv4Net>().expect("a literal");
        let left = |network: &str, others: &[&str]| -> Vec<String> {
            let others: Vec<Ipv4Net> = others.iter().map(|other| v4(other)).collect();
            let left = without(v4(network), &others);
            left.iter().map(ToString::to_string).collect()
        };
        assert_eq!(left("10.0.0.0/22", &[]), ["10.0.0.0/22"]);
        assert_eq!(left("10.0.0.0/22", &["10.1.0.0/24"]), ["10.0.0.0/22"]);
        assert_eq!(
            left("10.0.0.0/22", &["10.0.1.0/24"]),
            ["10.0.0.0/24", "10.0.2.0/23"]
        );
        assert_eq!(
            left("10.0.0.0/22", &["10.0.1.0/24", "10.0.2.0/23"]),
            ["10.0.0.0/24"]
        );
        assert!(left("10.0.0.0/22", &["10.0.0.0/22"]).is_empty());
        assert!(left("10.0.0.0/22", &["10.0.0.0/8"]).is_empty());
        assert_eq!(left("10.0.0.0/31", &["10.0.0.0/32"]), ["10.0.0.1/32"]);
        assert_eq!(left("10.0.0.0/8", &["10.9.9.9/32"]).len(), 24);
    }
}
