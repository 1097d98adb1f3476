//! Which sources may ask, and which client each source belongs to. This module is pure.
//!
//! The limits count per client, and a client must not get more places because it has more addresses. So a client is one of
//! these: a single IPv4 address of this machine or of a container, the /64 network of an IPv6 address, or all addresses of
//! another node, which are its IPv4 block and its IPv6 block together.
//!
//! A container that can send from any address of its bridge could still pass for many clients. So each local client also
//! belongs to a network, which is the one that allows it to ask, and the limits bound the network too.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::address::{Block, MeshAddresses};

/// The sources that may ask.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    networks: Vec<IpNet>,
    mesh: Option<(MeshAddresses, Block)>,
}

/// A client, as the limits count clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// A program of this machine or of one of its containers.
    Local {
        /// Its IPv4 address, or the first half of its IPv6 address.
        address: u64,
        /// The number of the client's network: [`HOST`], [`OWN_BLOCK`], or from [`FIRST`] on the position in the list.
        network: usize,
    },
    /// Another node, with all containers that it hosts.
    Peer {
        /// The number of the node's block in the prefixes of the mesh.
        block: u32,
    },
}

/// The network of this machine's own addresses.
const HOST: usize = 0;
/// The network of containers that have addresses of this node's block themselves.
const OWN_BLOCK: usize = 1;
/// The number of the first network in the list.
const FIRST: usize = 2;

impl Client {
    /// Whether both clients are in the same network. All other nodes together form one network.
    pub(super) fn is_near(self, other: Self) -> bool {
        match (self, other) {
            (Self::Local { network, .. }, Self::Local { network: other, .. }) => network == other,
            (Self::Peer { .. }, Self::Peer { .. }) => true,
            _ => false,
        }
    }

    /// Whether names outside the mesh are forwarded for this client. Another node has upstreams of its own.
    pub(super) fn may_recurse(self) -> bool {
        matches!(self, Self::Local { .. })
    }
}

impl Allowed {
    /// Sources in `networks` may ask. A network with a single address stands for this machine itself.
    #[must_use]
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self {
            networks,
            mesh: None,
        }
    }

    /// All addresses of the mesh may ask too. `own` is this node's block.
    #[must_use]
    pub fn with_mesh(self, mesh: MeshAddresses, own: Block) -> Self {
        Self {
            mesh: Some((mesh, own)),
            ..self
        }
    }

    /// Returns the client that `source` belongs to, or `None` if `source` may not ask.
    pub(super) fn client(&self, source: IpAddr) -> Option<Client> {
        let source = source.to_canonical();
        if let Some((mesh, own)) = self.mesh.as_ref().filter(|(mesh, _)| mesh.contains(source)) {
            let block = block_number(mesh, source);
            let is_node = source == own.node_v4() || source == own.node_v6();
            return Some(match own.contains(source) {
                true if is_node => local(source, HOST),
                true => local(source, OWN_BLOCK),
                false => Client::Peer { block },
            });
        }
        let mut numbered = (FIRST..).zip(&self.networks);
        let (place, network) = numbered.find(|(_, net)| net.contains(&source))?;
        Some(match network.prefix_len() == network.max_prefix_len() {
            true => local(source, HOST),
            false => local(source, place),
        })
    }
}

fn local(source: IpAddr, network: usize) -> Client {
    let address = number(source);
    Client::Local { address, network }
}

/// Returns the IPv4 address, or the first half of the IPv6 address: a machine may use every address of a /64 network.
fn number(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64,
    }
}

/// The number of the block that an address of the mesh is in. It is the same for both families.
fn block_number(mesh: &MeshAddresses, address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => {
            let host = u32::from(v4) & u32::from(mesh.prefix_v4.hostmask());
            host.checked_shr(32u32.saturating_sub(mesh.node_block_v4.into()))
                .unwrap_or(0)
        }
        IpAddr::V6(v6) => {
            let host = u128::from(v6) & u128::from(mesh.prefix_v6.hostmask());
            let block = host.checked_shr(128u32.saturating_sub(mesh.node_block_v6.into()));
            block.unwrap_or(0) as u32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn mesh(node_block_v6: u8) -> MeshAddresses {
        MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6,
        }
    }

    fn allowed() -> Allowed {
        let networks = [
            "127.0.0.0/8",
            "192.0.2.9/32",
            "172.18.0.0/16",
            "172.19.0.0/16",
            "fd18::/64",
        ];
        let networks = networks.map(|net| net.parse().expect("a literal"));
        let own = mesh(64).block(1).expect("a block");
        Allowed::new(networks.to_vec()).with_mesh(mesh(64), own)
    }

    fn client(source: &str) -> Option<Client> {
        allowed().client(source.parse().expect("a literal"))
    }

    #[test]
    fn all_addresses_of_another_node_are_one_client() {
        let of_both_families = (0..=255)
            .map(|n| format!("10.210.7.{n}"))
            .chain((0..99).map(|n| format!("fd00:1:2:7::{n}")))
            .chain((0..99).map(|n| format!("fd00:1:2:7:{n}::1")))
            .chain(["::ffff:10.210.7.7".to_owned()]);
        let clients: HashSet<_> = of_both_families.map(|source| client(&source)).collect();
        let one = Some(Client::Peer { block: 7 });
        assert_eq!(clients, HashSet::from([one]));
        assert_eq!(client("10.210.8.1"), Some(Client::Peer { block: 8 }));
        assert!(!Client::Peer { block: 8 }.may_recurse());
    }

    #[test]
    fn blocks_of_any_size_are_distinguished() {
        for node_block_v6 in [56, 64, 72, 112] {
            let mesh = mesh(node_block_v6);
            let own = mesh.block(1).expect("a block");
            let allowed = Allowed::new(vec![]).with_mesh(mesh, own);
            for index in 2..mesh.block_count().min(300) {
                let block = mesh.block(index).expect("a block");
                let one = Some(Client::Peer { block: index });
                let last_v4: IpAddr = block.v4.broadcast().into();
                let last_v6: IpAddr = block.v6.broadcast().into();
                for address in [
                    block.node_v4().into(),
                    block.node_v6().into(),
                    last_v4,
                    last_v6,
                ] {
                    assert_eq!(allowed.client(address), one, "{address}, /{node_block_v6}");
                }
            }
        }
    }

    #[test]
    fn a_container_is_a_client_of_its_network_and_its_ipv6_network_is_one_client() {
        let [a, b, other] = ["172.18.0.2", "172.18.0.3", "172.19.0.2"].map(client);
        assert_ne!(a, b);
        let network = |client| match client {
            Some(Client::Local { network, .. }) => network,
            _ => panic!("{client:?}"),
        };
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(other));
        assert_eq!(client("fd18::2"), client("fd18::ffff:2"));
        assert_eq!(client("172.18.0.2"), client("::ffff:172.18.0.2"));
        // A container that has a mesh address itself is not in the network of the host.
        assert_ne!(network(client("10.210.1.2")), network(client("10.210.1.1")));
        assert!(a.expect("a container").may_recurse());
    }

    #[test]
    fn the_host_is_one_network_and_strangers_are_nobody() {
        for source in ["192.0.2.9", "10.210.1.1", "fd00:1:2:1::1"] {
            let Some(Client::Local { network, .. }) = client(source) else {
                panic!("{source}");
            };
            assert_eq!(network, HOST, "{source}");
        }
        for source in ["192.0.2.8", "10.211.0.1", "fd18:0:0:1::1", "2001:db8::1"] {
            assert_eq!(client(source), None, "{source}");
        }
    }
}
