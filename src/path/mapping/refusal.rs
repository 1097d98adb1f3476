//! The protocols by which a router is asked for a port, and the reasons why there is none.

use std::net::{IpAddr, SocketAddr};

use crate::model::MeshAddresses;
use crate::model::address::{is_public, is_routable};

/// A protocol by which a router is asked for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// The Port Control Protocol (RFC 6887).
    Pcp,
    /// The NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// The Internet Gateway Device protocol of UPnP.
    Upnp,
}

impl Protocol {
    /// All of them, the preferred one first: PCP and NAT-PMP are one datagram each way, and their mappings end by themselves.
    pub const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    /// The name in documents and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat-pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// Why this node has no mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// This machine has no default route, or no address in the network of its gateway. With IPv6: no public one on its interface.
    NoGateway,
    /// The address that the gateway sees is public, so no router translates it.
    Public(IpAddr),
    /// The gateway answers none of the protocols.
    Silent(IpAddr),
    /// The outer address of the gateway is none that strangers reach.
    Outer(Protocol, IpAddr, Reserved),
    /// The gateway refused, or its answer is none.
    Denied(Protocol, String),
    /// The gateway reported this mapping, but peers that tried it did not get through.
    Dead(Protocol, SocketAddr),
}

/// Why strangers do not reach an outer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// It is for private networks (RFC 1918), so another router translates behind this one.
    Private,
    /// The provider shares it among its customers (RFC 6598).
    Shared,
    /// It is an address of the mesh.
    Mesh,
    /// It is no address of another machine: loopback, link-local, multicast, or one that means no address.
    Local,
    /// It is no IPv4 address.
    Ipv6,
}

impl Reserved {
    /// Why strangers do not reach a router at `outer`, which is none of `mesh`. None if they may.
    #[must_use]
    pub fn of(outer: IpAddr, mesh: &MeshAddresses) -> Option<Self> {
        let IpAddr::V4(v4) = outer else {
            return Some(Self::Ipv6);
        };
        if mesh.contains(outer) {
            Some(Self::Mesh)
        } else if v4.is_private() {
            Some(Self::Private)
        } else if !is_routable(outer) {
            Some(Self::Local)
        } else {
            (!is_public(outer)).then_some(Self::Shared)
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::Private => "is private: there is another router between it and the Internet",
            Self::Shared => "is shared by the customers of the provider",
            Self::Mesh => "is an address of the mesh",
            Self::Local => "is not one at which others reach it",
            Self::Ipv6 => "is not an IPv4 address",
        }
    }
}

impl Refusal {
    /// The names in metrics of the reasons that are counted, in the order of [`Refusal::index`].
    pub const NAMES: [&'static str; 4] = ["silent", "outer_address", "denied", "dead"];

    /// The number of the reason among [`Refusal::NAMES`]. None if it is no router that refuses.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        match self {
            Self::NoGateway | Self::Public(_) => None,
            Self::Silent(_) => Some(0),
            Self::Outer(..) => Some(1),
            Self::Denied(..) => Some(2),
            Self::Dead(..) => Some(3),
        }
    }

    /// The reason, for people.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::NoGateway => {
                "this host has no default route, or no address in the network of its gateway".into()
            }
            Self::Public(own) => format!("this host has the public address {own} and needs none"),
            Self::Silent(gateway @ IpAddr::V4(_)) => {
                format!("the router {gateway} answers neither PCP nor NAT-PMP nor UPnP")
            }
            Self::Silent(gateway @ IpAddr::V6(_)) => {
                format!("the router {gateway} does not answer PCP over IPv6")
            }
            Self::Outer(protocol, outer, why) => {
                format!(
                    "the router's outer address {outer}, by {protocol}, {}",
                    why.why()
                )
            }
            Self::Denied(protocol, why) => format!("the router refuses by {protocol}: {why}"),
            Self::Dead(protocol, endpoint) => format!(
                "the router reported {endpoint} by {protocol}, but peers that tried it did not get through; meshd asks again later"
            ),
        }
    }

    /// What to do so that there is a mapping, if anything.
    #[must_use]
    pub fn remedy(&self, port: u16) -> Option<String> {
        match self {
            Self::NoGateway | Self::Public(_) => None,
            Self::Silent(gateway) => Some(format!(
                "switch UPnP, NAT-PMP or PCP on at the router {gateway}, or forward UDP port {port} there by hand"
            )),
            Self::Outer(_, outer, Reserved::Private) => Some(format!(
                "forward UDP port {port} on the second router as well, the one that gave the router of this host the address {outer}, or set it up as a bridge"
            )),
            Self::Outer(_, _, Reserved::Local | Reserved::Ipv6) => Some(format!(
                "look at the router whether it is connected to the Internet over IPv4; if it is, forward UDP port {port} there by hand and set [path] advertise"
            )),
            Self::Outer(_, _, Reserved::Shared | Reserved::Mesh) => Some(
                "ask the provider for a public IPv4 address, or give this host IPv6; until then peers behind such routers need a relay"
                    .into(),
            ),
            Self::Denied(..) => Some(format!(
                "allow this host to map UDP ports at the router, or forward UDP port {port} there by hand"
            )),
            Self::Dead(..) => Some(format!(
                "restart the router, or forward UDP port {port} there by hand and set [path] advertise"
            )),
        }
    }
}

/// What a router answered to the question for its outer address, by one protocol.
pub type Finding = Result<IpAddr, Refusal>;

/// What to do with the answers that have arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A protocol that is preferred has not answered yet.
    Wait,
    /// Ask for the port by this protocol.
    Take(Protocol),
    /// No protocol is of use.
    None(Refusal),
}

/// Chooses a protocol: the first one of `order` by which the router has an outer address that strangers reach. `findings` has the
/// answers so far, in the order of [`Protocol::ALL`].
#[must_use]
pub fn choose(
    order: &[Protocol; 3],
    findings: &[Option<Finding>; 3],
    mesh: &MeshAddresses,
    gateway: IpAddr,
) -> Choice {
    let mut worst = Refusal::Silent(gateway);
    for protocol in order {
        let refusal = match &findings[*protocol as usize] {
            None => return Choice::Wait,
            Some(Ok(outer)) => match Reserved::of(*outer, mesh) {
                None => return Choice::Take(*protocol),
                Some(reserved) => Refusal::Outer(*protocol, *outer, reserved),
            },
            Some(Err(refusal)) => refusal.clone(),
        };
        // An outer address explains more than a refusal, and that more than silence.
        let rank = |refusal: &Refusal| match refusal {
            Refusal::Outer(..) => 2,
            Refusal::Silent(_) => 0,
            _ => 1,
        };
        if rank(&refusal) > rank(&worst) {
            worst = refusal;
        }
    }
    Choice::None(worst)
}
