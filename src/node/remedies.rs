//! Explains why two nodes do not reach each other directly, and what an administrator can do about it. Pure:
//! [`super::report`] collects the facts.

use std::net::{IpAddr, SocketAddr};

use crate::model::address::is_public;
use crate::path::watch::Reach;
use crate::protocol::local::Ipv6State;

mod calls;

pub(super) use calls::Calls;

/// The maximum number of endpoints that one sentence names.
const MAX_NAMED: usize = 3;

/// One of the two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) name: String,
    /// Where it offers to be reached, best first.
    pub(super) endpoints: Vec<SocketAddr>,
    /// The address from which a coordinator sees it, if that is none of its own.
    pub(super) outer: Option<IpAddr>,
}

/// What is known of the path between this node and a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Situation {
    pub(super) own: End,
    pub(super) peer: End,
    pub(super) reach: Reach,
    /// Whether an authentic datagram of the peer was received since the start.
    pub(super) is_heard: bool,
    /// Whether handshakes of the peer arrive, and none is completed.
    pub(super) arrives: bool,
    /// Whether any peer was heard since the start.
    pub(super) any_heard: bool,
    /// The networks of this machine.
    pub(super) networks: Vec<ipnet::IpNet>,
    pub(super) ipv6: Ipv6State,
    pub(super) calls: Calls,
    /// Why this node connects to nobody, if it does not: the mesh removed it, or it is a copy.
    pub(super) isolated: Option<Isolated>,
}

/// Why a node connects to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolated {
    Removed,
    Copied,
}

impl Isolated {
    fn remedy(self) -> String {
        let why = match self {
            Self::Removed => "the mesh removed this node",
            Self::Copied => "another machine has the same keys",
        };
        format!(
            "run `meshctl leave` on this machine, then `meshctl join` with a new token, because {why}"
        )
    }
}

/// How others can begin to send to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It offers a public address.
    Public,
    /// It offers private addresses only, so a router is between it and the others.
    BehindRouter,
    /// It offers no address.
    Silent,
}

impl End {
    fn standing(&self) -> Standing {
        match self.endpoints.as_slice() {
            [] => Standing::Silent,
            endpoints if endpoints.iter().any(|e| !is_private(e.ip())) => Standing::Public,
            _ => Standing::BehindRouter,
        }
    }

    fn port(&self) -> Option<u16> {
        self.endpoints.first().map(SocketAddr::port)
    }

    /// `UDP port 51820 of web-1 (192.0.2.7)`, with the public addresses if there are some.
    fn ports(&self) -> String {
        let Some(port) = self.port() else {
            return format!("the UDP port of {}", self.name);
        };
        let public = self.endpoints.iter().filter(|e| !is_private(e.ip()));
        let public: Vec<&SocketAddr> = public.collect();
        let all: Vec<&SocketAddr> = self.endpoints.iter().collect();
        let shown = if public.is_empty() { all } else { public };
        let shown: Vec<String> = shown
            .iter()
            .take(MAX_NAMED)
            .map(|endpoint| endpoint.ip().to_string())
            .collect();
        format!("UDP port {port} of {} ({})", self.name, shown.join(" or "))
    }

    /// `on web-1's router forward UDP 51820 to 192.168.1.10`.
    fn forwarding(&self) -> Option<String> {
        let inner = self.endpoints.iter().find(|e| e.is_ipv4())?;
        let outer = match self.outer {
            Some(outer) => format!(" ({outer})"),
            None => String::new(),
        };
        Some(format!(
            "on {}'s router{outer} forward UDP {} to {}",
            self.name,
            inner.port(),
            inner.ip()
        ))
    }
}

impl Situation {
    /// What to do so that the two nodes reach each other, the best remedy first. It is empty while nothing is to be done.
    pub(super) fn remedies(&self) -> Vec<String> {
        if let Some(isolated) = self.isolated {
            return vec![isolated.remedy()];
        }
        if self.reach == Reach::Reachable {
            return Vec::new();
        }
        let (own, peer) = (&self.own, &self.peer);
        if self.is_heard {
            return vec![format!(
                "check that {} and its network are up, because it was reached before; if it will not come back, run `meshctl node remove {}`",
                peer.name, peer.name
            )];
        }
        if self.arrives {
            return vec![format!(
                "let UDP datagrams from {} pass to {}, because handshakes of {} arrive and the answers to them are lost",
                own.ports(),
                peer.ports(),
                peer.name
            )];
        }
        let mut remedies = match (own.standing(), peer.standing()) {
            (_, Standing::Silent) => vec![format!(
                "check that meshd runs on {}, because it has published no address yet",
                peer.name
            )],
            _ if self.is_same_network() => vec![format!(
                "open {} and {} in the firewalls of the two machines, which are in one network",
                own.ports(),
                peer.ports()
            )],
            (Standing::Public | Standing::Silent, Standing::BehindRouter) => vec![
                format!(
                    "open {} for UDP datagrams from everywhere, because {} is behind a router and has to speak first",
                    own.ports(),
                    peer.name
                ),
                format!(
                    "check that meshd runs on {}, and that its network lets UDP out",
                    peer.name
                ),
            ],
            (Standing::BehindRouter | Standing::Silent, Standing::Public) => vec![format!(
                "open {} for UDP datagrams from everywhere, because {} is behind a router and has to speak first",
                peer.ports(),
                own.name
            )],
            (Standing::Public, Standing::Public) => vec![format!(
                "open {} and {}, in both directions, in every firewall between them",
                own.ports(),
                peer.ports()
            )],
            (_, Standing::BehindRouter) => self.for_two_routers(),
        };
        if !self.any_heard && own.standing() == Standing::BehindRouter {
            remedies.push(format!(
                "let this network's firewall pass UDP from port {} to the outside, because no peer answers at all",
                own.port().unwrap_or_default()
            ));
        }
        // Without a router in between, a call changes nothing.
        let has_router = [own, peer]
            .map(End::standing)
            .contains(&Standing::BehindRouter);
        remedies.extend(self.calls.remedy(&peer.name).filter(|_| has_router));
        remedies
    }

    /// Both are behind routers, and each drops what the other one sends first.
    fn for_two_routers(&self) -> Vec<String> {
        let both = [&self.peer, &self.own].map(End::forwarding);
        let forwarding: Vec<String> = both.into_iter().flatten().collect();
        let ipv6 = match self.ipv6 {
            Ipv6State::Public => format!("give {} IPv6", self.peer.name),
            _ => "give both IPv6".to_owned(),
        };
        let all = forwarding.into_iter().chain([ipv6]);
        vec![all.collect::<Vec<String>>().join(", or ")]
    }

    /// Whether the peer offers an address of a network of this machine. Two homes may have the same network, but then one of
    /// them usually has the other's address as well.
    fn is_same_network(&self) -> bool {
        let is_own = |ip: IpAddr| self.own.endpoints.iter().any(|e| e.ip() == ip);
        self.peer.endpoints.iter().any(|endpoint| {
            !is_own(endpoint.ip()) && self.networks.iter().any(|n| n.contains(&endpoint.ip()))
        }) && (self.own.outer.is_none() || self.own.outer == self.peer.outer)
    }

    /// Why the endpoint of the peer cannot lead to it, as far as this node can know.
    pub(super) fn why_unusable(&self, endpoint: SocketAddr) -> Option<String> {
        let ip = endpoint.ip();
        if self.own.endpoints.iter().any(|own| own.ip() == ip) {
            return Some("this host has the same address in its own network".to_owned());
        }
        if ip.is_ipv6() && self.ipv6 == Ipv6State::None {
            return Some("no IPv6 here".to_owned());
        }
        None
    }

    /// Why probes to the endpoint of the peer are not answered, as far as this node can know.
    pub(super) fn why_failed(&self, endpoint: SocketAddr) -> String {
        let ip = endpoint.ip();
        let is_near = self.networks.iter().any(|network| network.contains(&ip));
        match (is_private(ip), is_near) {
            (true, false) => format!(
                "an address of {}'s private network, which others reach only through its router",
                self.peer.name
            ),
            (true, true) => format!(
                "a firewall drops it, or {} is in another network with the same addresses",
                self.peer.name
            ),
            (false, _) => format!(
                "a firewall drops it, or meshd does not run on {}",
                self.peer.name
            ),
        }
    }
}

/// Whether routers forward to this address only inside a private network (RFC 1918, RFC 6598, RFC 4193, link-local).
pub(super) fn is_private(ip: IpAddr) -> bool {
    !is_public(ip)
}

#[cfg(test)]
mod tests;
