//! Address translators and stateful firewalls, as far as UDP is concerned (RFC 4787).

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use crate::network::At;
use crate::random::Random;

/// What stands between a host and the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The host has a public address, and nothing drops what is sent to it.
    Public,
    /// The host has a public address, at which only what it asked for arrives.
    Firewall,
    /// One port for all peers, and everybody may send to it.
    Cone,
    /// One port for all peers. Only addresses to which the host sent may send to it.
    AddressRestricted,
    /// One port for all peers. Only addresses and ports to which the host sent may send to it.
    PortRestricted,
    /// Connection tracking of Linux: it keeps the port where no other connection has it. It drops what nobody asked for.
    Plain,
    /// The same, but it accepts datagrams to itself that nobody asked for. Such a datagram takes the port that the host behind it
    /// would get for the same peer.
    PlainOpen,
    /// Another port for each peer.
    Symmetric,
    /// It drops all UDP.
    UdpBlocked,
}

impl Kind {
    /// Whether the host has a public address of its own.
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Self::Public | Self::Firewall)
    }

    /// Whether peers may send to the port that other peers saw, once the host has sent to them.
    pub(crate) fn has_one_port(self) -> bool {
        !matches!(self, Self::Symmetric | Self::UdpBlocked)
    }
}

/// What a translator does with a datagram from the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inward {
    To(SocketAddr),
    Dropped,
}

/// A connection as the translator tracks it.
#[derive(Debug, Clone, Copy)]
struct Connection {
    /// None if the translator itself is the end.
    inner: Option<SocketAddr>,
    /// The outer port.
    port: u16,
    remote: SocketAddr,
    used: At,
    /// Whether it was answered.
    is_answered: bool,
}

/// After so long, a connection without an answer is forgotten.
const UNANSWERED: Duration = Duration::from_secs(30);

/// A translator. The connections that are too old are never looked at.
#[derive(Debug)]
pub(crate) struct Nat {
    kind: Kind,
    outer: Ipv4Addr,
    /// Hosts behind it reach each other at the outer address.
    is_hairpin: bool,
    /// After so long, a connection is forgotten.
    timeout: Duration,
    connections: Vec<Connection>,
    /// What is added to the port of a host where the port would be kept.
    shift: u16,
}

impl Nat {
    pub(crate) fn new(kind: Kind, outer: Ipv4Addr, is_hairpin: bool, timeout: Duration) -> Self {
        Self {
            kind,
            outer,
            is_hairpin,
            timeout,
            connections: Vec::new(),
            shift: 0,
        }
    }

    /// The address at which others see the hosts.
    pub(crate) fn address(&self) -> std::net::IpAddr {
        self.outer.into()
    }

    /// Forgets all connections, and gives other ports from now on, as after a restart.
    pub(crate) fn rebind(&mut self) {
        self.connections.clear();
        self.shift += 1000;
    }

    fn forget(&mut self, now: At) {
        let timeout = self.timeout;
        self.connections.retain(|connection| {
            let limit = if connection.is_answered {
                timeout
            } else {
                UNANSWERED
            };
            now.saturating_sub(connection.used) < limit
        });
    }

    fn maps_independently(&self) -> bool {
        matches!(
            self.kind,
            Kind::Cone | Kind::AddressRestricted | Kind::PortRestricted
        )
    }

    /// A host sends a datagram. Returns the source that others see.
    pub(crate) fn outward(
        &mut self,
        inner: SocketAddr,
        remote: SocketAddr,
        now: At,
        random: &mut Random,
    ) -> Option<SocketAddr> {
        if self.kind == Kind::UdpBlocked {
            return None;
        }
        self.forget(now);
        let own = |c: &Connection| c.inner == Some(inner);
        if let Some(known) = (self.connections.iter_mut()).find(|c| own(c) && c.remote == remote) {
            known.used = now;
            let port = known.port;
            return Some(self.outside(port));
        }
        let independent = self.maps_independently();
        let shared = self.connections.iter().find(|c| independent && own(c));
        let port = shared.map(|c| c.port);
        let port = port.unwrap_or_else(|| self.new_port(inner, remote, random));
        self.connections.push(Connection {
            inner: Some(inner),
            port,
            remote,
            used: now,
            is_answered: false,
        });
        Some(self.outside(port))
    }

    fn new_port(&self, inner: SocketAddr, remote: SocketAddr, random: &mut Random) -> u16 {
        let is_taken = |port: u16| {
            let mut connections = self.connections.iter();
            connections.any(|c| c.port == port && (self.maps_independently() || c.remote == remote))
        };
        let kept = inner.port().wrapping_add(self.shift);
        if self.kind != Kind::Symmetric && !is_taken(kept) {
            return kept;
        }
        loop {
            let port = random.range(1024, 65_535) as u16;
            if !is_taken(port) {
                return port;
            }
        }
    }

    fn outside(&self, port: u16) -> SocketAddr {
        SocketAddrV4::new(self.outer, port).into()
    }

    /// Somebody sends a datagram to this port.
    pub(crate) fn inward(&mut self, remote: SocketAddr, port: u16, now: At) -> Inward {
        self.forget(now);
        let exact = |c: &Connection| c.port == port && c.remote == remote;
        if let Some(known) = self.connections.iter_mut().find(|c| exact(c)) {
            known.used = now;
            known.is_answered |= known.inner.is_some();
            return known.inner.map_or(Inward::Dropped, Inward::To);
        }
        let kind = self.kind;
        let admits = |c: &&Connection| match kind {
            Kind::Cone => true,
            Kind::AddressRestricted => c.remote.ip() == remote.ip(),
            _ => false,
        };
        let mut others = self.connections.iter().filter(|c| c.port == port);
        if let Some(inner) = others.find(admits).and_then(|c| c.inner) {
            self.connections.push(Connection {
                inner: Some(inner),
                port,
                remote,
                used: now,
                is_answered: true,
            });
            return Inward::To(inner);
        }
        if kind == Kind::PlainOpen {
            self.connections.push(Connection {
                inner: None,
                port,
                remote,
                used: now,
                is_answered: false,
            });
        }
        Inward::Dropped
    }

    /// A host behind the translator sends to its outer address.
    pub(crate) fn hairpin(
        &mut self,
        inner: SocketAddr,
        port: u16,
        now: At,
        random: &mut Random,
    ) -> Option<(SocketAddr, SocketAddr)> {
        if !self.is_hairpin {
            return None;
        }
        let seen = self.outward(inner, self.outside(port), now, random)?;
        match self.inward(seen, port, now) {
            Inward::To(to) => Some((seen, to)),
            Inward::Dropped => None,
        }
    }
}

#[test]
fn translators_map_and_filter_as_their_kind_says() {
    let at = |text: &str| -> SocketAddr { text.parse().expect("a literal") };
    let (inner, second) = (at("192.168.1.10:7"), at("192.168.1.11:7"));
    let (server, other) = (at("198.51.100.1:9"), at("198.51.100.2:9"));
    let other_port = at("198.51.100.1:10");
    let now = Duration::from_secs(1);
    let mut random = Random::new(1);
    // The kind, whether two servers see one port, and what the other port of a server and another server reach.
    for (kind, is_one, by_port, by_address) in [
        (Kind::Cone, true, true, true),
        (Kind::AddressRestricted, true, true, false),
        (Kind::PortRestricted, true, false, false),
        (Kind::Plain, true, false, false),
        (Kind::PlainOpen, true, false, false),
        (Kind::Symmetric, false, false, false),
    ] {
        let outer = Ipv4Addr::new(203, 0, 113, 1);
        let mut nat = Nat::new(kind, outer, false, Duration::from_secs(60));
        let seen = nat.outward(inner, server, now, &mut random).expect("UDP");
        assert_eq!(nat.inward(server, seen.port(), now), Inward::To(inner));
        let arrives = |nat: &mut Nat, from| nat.inward(from, seen.port(), now) == Inward::To(inner);
        assert_eq!(arrives(&mut nat, other_port), by_port, "{kind:?}");
        assert_eq!(arrives(&mut nat, other), by_address, "{kind:?}");
        let third = at("198.51.100.3:9");
        let again = nat.outward(inner, third, now, &mut random).expect("UDP");
        assert_eq!(again == seen, is_one, "{kind:?}");
        let beside = nat.outward(second, server, now, &mut random).expect("UDP");
        assert_ne!(beside, seen, "{kind:?}");
        // A datagram that nobody asked for takes the port at an open router, and at no other one.
        let stray = at("198.51.100.4:9");
        assert!(!arrives(&mut nat, stray) || kind == Kind::Cone);
        let to_stray = nat.outward(inner, stray, now, &mut random).expect("UDP");
        let is_kept = to_stray.port() == inner.port();
        assert_eq!(is_kept, is_one && kind != Kind::PlainOpen, "{kind:?}");
        let late = now + Duration::from_secs(61);
        assert_eq!(nat.inward(server, seen.port(), late), Inward::Dropped);
    }
}
