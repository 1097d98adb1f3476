//! The settings for systemd-resolved: which names it resolves with which server on which link. Pure.

use std::net::IpAddr;

use crate::model::{Label, MeshAddresses};

/// The settings of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitDns {
    /// The DNS server.
    pub server: IpAddr,
    /// The domains that are resolved with this server, including everything below them, and no others.
    pub domains: Vec<String>,
}

impl SplitDns {
    /// The settings for a mesh: its domain and the reverse zones of its addresses.
    #[must_use]
    pub fn new(domain: &Label, mesh: &MeshAddresses) -> Self {
        let mut domains = vec![domain.to_string()];
        domains.extend(reverse_v4(mesh));
        domains.extend(reverse_v6(mesh));
        Self {
            server: mesh.dns_v4().into(),
            domains,
        }
    }
}

/// The reverse zone of the IPv4 prefix. None if the prefix is only a part of a zone, since the rest of the zone belongs
/// to others.
fn reverse_v4(mesh: &MeshAddresses) -> Option<String> {
    let length = mesh.prefix_v4.prefix_len();
    let bytes = mesh.prefix_v4.network().octets();
    let labels: Vec<String> = bytes
        .iter()
        .take(usize::from(length / 8))
        .rev()
        .map(ToString::to_string)
        .collect();
    (length > 0 && length.is_multiple_of(8)).then(|| format!("{}.in-addr.arpa", labels.join(".")))
}

fn reverse_v6(mesh: &MeshAddresses) -> Option<String> {
    let length = mesh.prefix_v6.prefix_len();
    let bits = u128::from(mesh.prefix_v6.network());
    let labels: Vec<String> = (0..u32::from(length / 4))
        .rev()
        .map(|at| format!("{:x}", (bits >> (124 - at * 4)) & 15))
        .collect();
    (length > 0 && length.is_multiple_of(4)).then(|| format!("{}.ip6.arpa", labels.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(v4: &str) -> MeshAddresses {
        MeshAddresses {
            prefix_v4: v4.parse().expect("a literal"),
            prefix_v6: "fd12:3456:789a::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        }
    }

    #[test]
    fn the_domain_and_the_reverse_zones_are_resolved_with_the_dns_address() {
        let domain = Label::parse("mesh").expect("a literal");
        let split = SplitDns::new(&domain, &mesh("10.210.0.0/16"));
        assert_eq!(split.server.to_string(), "10.210.0.53");
        assert_eq!(
            split.domains,
            [
                "mesh",
                "210.10.in-addr.arpa",
                "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"
            ]
        );
        assert_eq!(
            SplitDns::new(&domain, &mesh("10.208.0.0/14")).domains,
            ["mesh", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"],
            "a part of a zone is left out"
        );
    }
}
