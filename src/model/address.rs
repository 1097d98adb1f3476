//! The address plan of a mesh: it has one prefix for each address family, and each node has one block of each prefix.
//!
//! In a node's block, host 1 is the node and the hosts from 2 on are instances. An instance that has addresses of both families is the
//! same host in both parts of the block. Block 0 is never leased: its host 53 is the DNS address
//! of the mesh, and its hosts from 64 on are service addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::key::PublicKey;

/// The prefixes of a mesh and the sizes of their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshAddresses {
    /// All IPv4 addresses of the mesh.
    pub prefix_v4: Ipv4Net,
    /// All IPv6 addresses of the mesh: a unique local /48 (RFC 4193).
    pub prefix_v6: Ipv6Net,
    /// The prefix length of a node's IPv4 block.
    pub node_block_v4: u8,
    /// The prefix length of a node's IPv6 block.
    pub node_block_v6: u8,
}

/// The addresses of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Block {
    /// The IPv4 part.
    pub v4: Ipv4Net,
    /// The IPv6 part.
    pub v6: Ipv6Net,
}

/// The reason why an address plan cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressPlanError {
    /// The prefix has bits set after its length.
    #[error("the mesh prefix {0} has bits set behind its length; write {1}")]
    Unaligned(String, String),
    /// The prefix is not for private use.
    #[error(
        "the mesh prefix {0} is not private address space; use a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
    )]
    NotPrivate(Ipv4Net),
    /// The blocks do not fit into the prefix.
    #[error(
        "a node block of /{block} does not fit into {prefix}: it must be at least 1 and at most 16 bits longer, and at most /{longest}"
    )]
    BlockSize {
        /// The mesh prefix.
        prefix: String,
        /// The configured prefix length of a block.
        block: u8,
        /// The maximum prefix length of a block that has room for the fixed hosts.
        longest: u8,
    },
}

/// Returns the unique local /48 prefix (RFC 4193 section 3.2) of the mesh with this key. Its global ID is a hash of the key, which is
/// random. So if the mesh is set up again with the same key, its nodes keep their addresses.
#[must_use]
pub fn unique_local_prefix(mesh_key: &PublicKey) -> Ipv6Net {
    let hash = Sha256::new()
        .chain_update(b"meshd unique local prefix v1\0")
        .chain_update(mesh_key.0)
        .finalize();
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..6]
        .iter_mut()
        .zip(hash)
        .for_each(|(to, from)| *to = from);
    Ipv6Net::new(Ipv6Addr::from(bytes), 48).expect("48 is a prefix length")
}

impl MeshAddresses {
    /// Checks the plan: the prefixes are aligned and private, and the blocks have room for the fixed hosts.
    ///
    /// # Errors
    /// Says what is wrong with the plan and what would be right.
    pub fn check(&self) -> Result<(), AddressPlanError> {
        if self.prefix_v4.trunc() != self.prefix_v4 {
            return Err(AddressPlanError::Unaligned(
                self.prefix_v4.to_string(),
                self.prefix_v4.trunc().to_string(),
            ));
        }
        if self.prefix_v6.trunc() != self.prefix_v6 {
            return Err(AddressPlanError::Unaligned(
                self.prefix_v6.to_string(),
                self.prefix_v6.trunc().to_string(),
            ));
        }
        // Shared address space (RFC 6598) is left out, because another overlay that is often installed on the same machine drops it.
        let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
        if !private
            .iter()
            .filter_map(|p| p.parse::<Ipv4Net>().ok())
            .any(|p| p.contains(&self.prefix_v4))
        {
            return Err(AddressPlanError::NotPrivate(self.prefix_v4));
        }
        // Host 64 of block 0 is a service address, so a block needs at least 7 bits.
        block_fits(
            self.prefix_v4.to_string(),
            self.prefix_v4.prefix_len(),
            self.node_block_v4,
            25,
        )?;
        block_fits(
            self.prefix_v6.to_string(),
            self.prefix_v6.prefix_len(),
            self.node_block_v6,
            112,
        )
    }

    /// Returns the number of blocks, including block 0. It is the smaller of the numbers of both families.
    #[must_use]
    pub fn block_count(&self) -> u32 {
        let bits_v4 = self
            .node_block_v4
            .saturating_sub(self.prefix_v4.prefix_len())
            .min(16);
        let bits_v6 = self
            .node_block_v6
            .saturating_sub(self.prefix_v6.prefix_len())
            .min(16);
        1 << bits_v4.min(bits_v6)
    }

    /// Returns block `index`; none after the end of the prefixes.
    #[must_use]
    pub fn block(&self, index: u32) -> Option<Block> {
        if index >= self.block_count() {
            return None;
        }
        let v4 = u32::from(self.prefix_v4.network())
            | index.checked_shl(32 - u32::from(self.node_block_v4))?;
        let v6 = u128::from(self.prefix_v6.network())
            | u128::from(index).checked_shl(128 - u32::from(self.node_block_v6))?;
        Some(Block {
            v4: Ipv4Net::new(v4.into(), self.node_block_v4).ok()?,
            v6: Ipv6Net::new(v6.into(), self.node_block_v6).ok()?,
        })
    }

    /// Returns the index of `block`; none if it is block 0, or if it is not a block of this plan with the same index in both families.
    #[must_use]
    pub fn index_of(&self, block: &Block) -> Option<u32> {
        if !self.prefix_v4.contains(&block.v4) {
            return None;
        }
        let offset = u32::from(block.v4.network()) ^ u32::from(self.prefix_v4.network());
        let index = offset.checked_shr(32 - u32::from(self.node_block_v4))?;
        (index != 0 && self.block(index).as_ref() == Some(block)).then_some(index)
    }

    /// Returns the IPv4 address at which every node answers DNS: host 53 of block 0.
    #[must_use]
    pub fn dns_v4(&self) -> Ipv4Addr {
        host_v4(self.prefix_v4, 53)
    }

    /// Returns the IPv6 address at which every node answers DNS: host 53 of block 0.
    #[must_use]
    pub fn dns_v6(&self) -> Ipv6Addr {
        host_v6(self.prefix_v6, 53)
    }

    /// Whether `address` is in either prefix, also if it is written as an IPv4-mapped IPv6 address. This is for rules that
    /// keep addresses of the mesh out; [`Block::contains`] lets addresses in and does not match mapped ones.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.prefix_v4.contains(&v4),
            IpAddr::V6(v6) => self.prefix_v6.contains(&v6),
        }
    }

    /// Whether datagrams can be sent to `address` outside of the mesh, as far as the address tells.
    #[must_use]
    pub fn is_outside(&self, address: &SocketAddr) -> bool {
        let ip = address.ip();
        is_routable(ip) && !self.contains(ip) && address.port() != 0
    }
}

impl Block {
    /// Returns the node's own IPv4 address: host 1.
    #[must_use]
    pub fn node_v4(&self) -> Ipv4Addr {
        host_v4(self.v4, 1)
    }

    /// Returns the node's own IPv6 address: host 1.
    #[must_use]
    pub fn node_v6(&self) -> Ipv6Addr {
        host_v6(self.v6, 1)
    }

    /// Returns both of the node's own addresses.
    #[must_use]
    pub fn node_addresses(&self) -> [IpAddr; 2] {
        [self.node_v4().into(), self.node_v6().into()]
    }

    /// Returns the IPv6 address that belongs to the IPv4 address `instance` of this block: the same host of the IPv6 block. None if
    /// `instance` is not in this block, or if the IPv6 block is too small.
    #[must_use]
    pub fn instance_v6(&self, instance: Ipv4Addr) -> Option<Ipv6Addr> {
        let host = u128::from(u32::from(instance) & u32::from(self.v4.hostmask()));
        let has_host = self.v4.contains(&instance) && host <= u128::from(self.v6.hostmask());
        has_host.then(|| host_v6(self.v6, host))
    }

    /// Returns the addresses of the instance with the number `host` in both parts of the block. None if it is the number of the node itself,
    /// of the network or of the broadcast address, or beyond the block.
    #[must_use]
    pub fn instance(&self, host: u16) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let last = u32::from(self.v4.broadcast()) - u32::from(self.v4.network());
        let is_instance = host >= 2 && u32::from(host) < last;
        is_instance.then(|| (host_v4(self.v4, host.into()), host_v6(self.v6, host.into())))
    }

    /// Returns the number of the last instance address of the block.
    #[must_use]
    pub fn last_instance(&self) -> u16 {
        let last = u32::from(self.v4.broadcast()) - u32::from(self.v4.network());
        u16::try_from(last.saturating_sub(1)).unwrap_or(u16::MAX)
    }

    /// Whether `address` is in this block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.contains(&v4),
            IpAddr::V6(v6) => self.v6.contains(&v6),
        }
    }

    /// Whether the blocks have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.v4.contains(&other.v4)
            || other.v4.contains(&self.v4)
            || self.v6.contains(&other.v6)
            || other.v6.contains(&self.v6)
    }
}

/// Whether no other machine can have `address`: it is unspecified, loopback, multicast, broadcast or in 0.0.0.0/8. An
/// IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is judged as the IPv4 address to which the kernel sends.
#[must_use]
pub fn is_never_remote(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0);
    address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast
}

/// Whether any node may send to `address` when another node names it. A link-local address means another machine on each
/// link. An IPv6 address that contains an IPv4 address is a second form of that address, and rules on IPv4 addresses do not
/// match it.
#[must_use]
pub fn is_routable(address: IpAddr) -> bool {
    let is_excluded = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || stands_for_ipv4(v6),
    };
    !is_never_remote(address) && !is_excluded
}

/// Whether `address` is routed in the whole internet, as far as the address itself tells: it is neither for private networks (RFC
/// 1918, RFC 4193) nor shared by the customers of a provider (RFC 6598).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    let is_public = match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            !v4.is_private() && !is_shared
        }
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    };
    is_public && is_routable(address)
}

/// What stands for the machine that has `address` in limits: the address of IPv4, or the network of 64 bits of IPv6, since one
/// machine can have all addresses of its link as easily as one of them. A socket for both protocols sees IPv4 addresses as
/// IPv4-mapped ones (RFC 4291 section 2.5.5.2), which are treated as IPv4.
#[must_use]
pub fn link_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Whether packets to `address` may be delivered to an IPv4 address that it contains. This holds for IPv4-mapped and
/// IPv4-compatible addresses (RFC 4291 section 2.5.5), for addresses in the well-known prefix of translators (RFC 6052
/// section 2.1), and for 6to4 addresses (RFC 3056) that contain an IPv4 address which is not public.
fn stands_for_ipv4(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => true,
        [0x2002, ..] => {
            let [_, _, c, d, e, f, ..] = address.octets();
            let within = Ipv4Addr::new(c, d, e, f);
            within.is_private() || !is_routable(within.into())
        }
        _ => false,
    }
}

fn block_fits(
    prefix: String,
    prefix_len: u8,
    block: u8,
    longest: u8,
) -> Result<(), AddressPlanError> {
    if block > prefix_len && block - prefix_len <= 16 && block <= longest {
        Ok(())
    } else {
        Err(AddressPlanError::BlockSize {
            prefix,
            block,
            longest,
        })
    }
}

fn host_v4(net: Ipv4Net, host: u32) -> Ipv4Addr {
    (u32::from(net.network()) | host).into()
}

fn host_v6(net: Ipv6Net, host: u128) -> Ipv6Addr {
    (u128::from(net.network()) | host).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> MeshAddresses {
        MeshAddresses {
            prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
            prefix_v6: "fd12:3456:789a::/48".parse().expect("a literal"),
            node_block_v4: 24,
            node_block_v6: 64,
        }
    }

    #[test]
    fn an_instance_has_the_same_number_in_both_parts_of_a_block_and_no_number_of_another_host() {
        let block = plan().block(1).expect("in the plan");
        let (v4, v6) = block.instance(254).expect("the last one");
        assert_eq!(
            (v4.to_string(), block.last_instance()),
            ("10.210.1.254".into(), 254)
        );
        assert_eq!(v6.to_string(), "fd12:3456:789a:1::fe");
        assert!(block.instance(2).is_some());
        for host in [0, 1, 255, 256, u16::MAX] {
            assert_eq!(block.instance(host), None, "{host}");
        }
    }

    #[test]
    fn blocks_overlap_by_either_family() {
        let block = |v4: &str, v6: &str| Block {
            v4: v4.parse().expect("a literal"),
            v6: v6.parse().expect("a literal"),
        };
        let own = block("10.210.1.0/24", "fd00:1:2:1::/64");
        assert!(own.overlaps(&own));
        for other in [
            block("10.210.1.0/24", "fd00:1:2:9::/64"),
            block("10.210.1.128/25", "fd00:1:2:9::/64"),
            block("10.210.9.0/24", "fd00:1:2:1::/64"),
            block("10.210.9.0/24", "fd00:1:2:1:8000::/65"),
        ] {
            assert!(own.overlaps(&other) && other.overlaps(&own), "{other:?}");
        }
        assert!(!own.overlaps(&block("10.210.2.0/24", "fd00:1:2:2::/64")));
    }

    #[test]
    fn blocks_are_cut_in_step_in_both_families() {
        let plan = plan();
        assert_eq!(plan.check(), Ok(()));
        assert_eq!(plan.block_count(), 256);
        let block = plan.block(7).expect("7 of 256");
        assert_eq!(block.v4.to_string(), "10.210.7.0/24");
        assert_eq!(block.v6.to_string(), "fd12:3456:789a:7::/64");
        assert_eq!(block.node_v4().to_string(), "10.210.7.1");
        assert_eq!(block.node_v6().to_string(), "fd12:3456:789a:7::1");
        assert_eq!(plan.index_of(&block), Some(7));
        assert_eq!(plan.block(256), None);
    }

    #[test]
    fn an_instance_is_the_same_host_in_both_families() {
        let block = plan().block(7).expect("7 of 256");
        let of = |text: &str| {
            let instance = text.parse().expect("a literal");
            block.instance_v6(instance).map(|v6| v6.to_string())
        };
        assert_eq!(of("10.210.7.2").as_deref(), Some("fd12:3456:789a:7::2"));
        assert_eq!(of("10.210.7.254").as_deref(), Some("fd12:3456:789a:7::fe"));
        assert_eq!(of("10.210.8.2"), None, "it is in another block");
        let wide = Block {
            v4: "10.128.0.0/9".parse().expect("a literal"),
            v6: "fd12:3456:789a:7::/112".parse().expect("a literal"),
        };
        let near: Ipv4Addr = "10.128.255.255".parse().expect("a literal");
        let far: Ipv4Addr = "10.129.0.0".parse().expect("a literal");
        assert!(wide.instance_v6(near).is_some());
        assert_eq!(
            wide.instance_v6(far),
            None,
            "its number has more than 16 bits"
        );
    }

    #[test]
    fn block_zero_and_mixed_blocks_are_nobodys() {
        let plan = plan();
        let zero = plan.block(0).expect("0 of 256");
        assert_eq!(plan.index_of(&zero), None);
        let mixed = Block {
            v4: plan.block(1).expect("1 of 256").v4,
            v6: plan.block(2).expect("2 of 256").v6,
        };
        assert_eq!(plan.index_of(&mixed), None);
    }

    #[test]
    fn an_ipv4_mapped_address_is_judged_as_the_ipv4_address_it_means() {
        let parse = |text: &str| -> IpAddr { text.parse().expect("a literal") };
        for never in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(is_never_remote(parse(never)), "{never}");
            assert!(
                is_never_remote(parse(&format!("::ffff:{never}"))),
                "{never}"
            );
            assert!(!is_routable(parse(never)), "{never}");
        }
        for unroutable in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:192.0.2.1",
            "::192.0.2.1",
            "64:ff9b::192.0.2.1",
            "2002:a00:1::1",
            "2002:a9fe:a9fe::",
            "::",
            "::1",
            "ff02::1",
        ] {
            assert!(!is_routable(parse(unroutable)), "{unroutable}");
        }
        for routable in [
            "192.0.2.1",
            "10.0.0.1",
            "fd00::1",
            "2001:db8::1",
            "2002:c000:201::1",
        ] {
            assert!(is_routable(parse(routable)), "{routable}");
            assert!(!is_never_remote(parse(routable)), "{routable}");
        }
        assert!(plan().contains(parse("::ffff:10.210.2.1")));
        assert!(!plan().contains(parse("::ffff:192.0.2.1")));
    }

    #[test]
    fn the_dns_address_is_host_53_of_block_0() {
        assert_eq!(plan().dns_v4().to_string(), "10.210.0.53");
        assert_eq!(plan().dns_v6().to_string(), "fd12:3456:789a::35");
    }

    #[test]
    fn plans_that_cannot_work_are_refused() {
        let mut unaligned = plan();
        unaligned.prefix_v4 = "10.210.3.0/16".parse().expect("a literal");
        assert!(matches!(
            unaligned.check(),
            Err(AddressPlanError::Unaligned(..))
        ));
        let mut public = plan();
        public.prefix_v4 = "8.8.0.0/16".parse().expect("a literal");
        assert!(matches!(
            public.check(),
            Err(AddressPlanError::NotPrivate(_))
        ));
        for block in [16, 26, 32] {
            let mut size = plan();
            size.node_block_v4 = block;
            assert!(
                matches!(size.check(), Err(AddressPlanError::BlockSize { .. })),
                "{block}"
            );
        }
    }
}
