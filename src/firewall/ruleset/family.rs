//! The words of nftables for the two address families. Pure.

use std::net::IpAddr;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name of the family's header, and of the family of its tables.
    pub(super) fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    pub(super) fn icmp(self) -> &'static str {
        match self {
            Self::V4 => "icmp",
            Self::V6 => "icmpv6",
        }
    }

    /// The type of its addresses in sets.
    pub(super) fn address(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// The match for protocols other than those whose ports or types are known.
    pub(super) fn others(self) -> String {
        format!("meta l4proto != {{ {}, tcp, udp }}", self.icmp())
    }

    /// The match for packets of new connections to ports that the destination does not declare.
    pub(super) fn undeclared(self) -> String {
        let (ip, icmp) = (self.ip(), self.icmp());
        format!("meta l4proto != {icmp} {ip} daddr . meta l4proto . th dport != @declared")
    }
}
