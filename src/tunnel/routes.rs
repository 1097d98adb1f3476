//! The `routes` thread: verifies the sources of datagrams to peers when addresses, routes or rules change.
//!
//! A source is valid as long as its address is one of this host and the route from it to the peer leaves by the same interface as
//! when the source was learnt. That interface may be another one than the one at which the peer's datagrams arrive: a host
//! with two interfaces in one network has one route. Routes are looked up only when a source is learnt and after a
//! notification of the kernel; the data threads compare nothing. If the kernel refuses a source when a data thread
//! sends, that source is given up at once. A notification may also be about the MTU of the tunnel device, which is
//! read then.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::peer::Peer;
use super::route_lookup::{self, Kernel, Query, RouteSocket};
use super::shared::Shared;
use super::sockets::Sockets;
use crate::os::batch::Source;
use crate::os::readable;

/// How long notifications are collected before routes are looked up: a change of an interface causes many.
const SETTLE: Duration = Duration::from_millis(50);
/// After the lookups the thread sleeps this many times as long as they took, within the limits below.
const PAUSE_FACTOR: u32 = 5;
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared) {
    let kernel = route_lookup::subscribe().and_then(|notices| Ok((notices, RouteSocket::open()?)));
    let (notices, mut kernel) = match kernel {
        Ok((notices, kernel)) => (Some(notices), Some(kernel)),
        Err(error) => {
            tracing::warn!(%error, "changes of routes are not noticed; a peer may be answered from an old address until it is heard again");
            (None, None)
        }
    };
    let mut refused = Vec::new();
    // When all sources are to be verified, after a notification; and when that may be at the earliest.
    let (mut due, mut rested) = (None, Instant::now());
    while !shared.stopping() {
        let notified = notices.as_ref().map(|notices| notices.as_fd());
        let notified = notified.filter(|_| due.is_none());
        let limit = due.map(|at: Instant| at.saturating_duration_since(Instant::now()));
        readable::wait([Some(shared.wakes.recheck.event()), notified], limit);
        shared.wakes.recheck.take(&mut refused);
        give_up(shared, &mut refused);
        let (Some(notices), Some(kernel)) = (&notices, &mut kernel) else {
            continue;
        };
        let began = Instant::now();
        if due.is_none() && route_lookup::drain(notices) {
            due = Some((began + SETTLE).max(rested));
        }
        let pass = match due {
            Some(at) if at <= began => {
                due = None;
                route_lookup::drain(notices);
                shared.follow_mtu();
                Pass::All
            }
            _ => Pass::Learnt,
        };
        verify(shared, kernel, pass);
        let rest = (began.elapsed() * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE);
        match pass {
            Pass::All => rested = Instant::now() + rest,
            Pass::Learnt if shared.stopping() => {}
            Pass::Learnt => std::thread::park_timeout(rest),
        }
    }
}

/// Gives up the sources that the kernel refused.
fn give_up(shared: &Shared, refused: &mut Vec<Endpoint>) {
    if refused.is_empty() {
        return;
    }
    for peer in shared.table.load().by_index.values() {
        peer.lock().paths.give_up(refused);
    }
    refused.clear();
}

/// Which sources are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    All,
    /// Those whose routes were not looked up yet.
    Learnt,
}

/// Looks up the routes from the sources of peers.
fn verify(shared: &Shared, kernel: &mut impl Kernel, pass: Pass) {
    let table = shared.table.load_full();
    let mark = shared.mark.load(Ordering::Relaxed);
    let port = shared.sockets.load().first().map_or(0, Sockets::port);
    let mut verifier = Verifier {
        kernel,
        mark,
        port,
        local: HashMap::new(),
    };
    for peer in table.by_index.values() {
        verifier.verify(peer, pass);
        if shared.stopping() {
            return;
        }
    }
}

/// Verifies sources in one pass, in which each address is looked up once.
struct Verifier<'a, K> {
    kernel: &'a mut K,
    mark: u32,
    port: u16,
    local: HashMap<IpAddr, bool>,
}

impl<K: Kernel> Verifier<'_, K> {
    /// Verifies the sources of the paths of one peer: those in use, and those that were given up. The peer is not locked during
    /// the lookups.
    fn verify(&mut self, peer: &Peer, pass: Pass) {
        let (learnt, refused) = {
            let paths = &peer.lock().paths;
            if pass == Pass::Learnt && !paths.wants_route() {
                return;
            }
            let refused = match pass {
                Pass::All => paths.refused(),
                Pass::Learnt => Vec::new(),
            };
            (paths.with_source(pass == Pass::All), refused)
        };
        for endpoint in learnt {
            if let Some(source) = endpoint.source
                && let Ok(leaves_by) = self.leaves_by(&endpoint, &source)
            {
                peer.lock().paths.handle_route(endpoint, leaves_by);
            }
        }
        // A source is certainly valid if datagrams arrive and leave by one interface.
        for endpoint in refused {
            if let Some(source) = endpoint.source
                && self.leaves_by(&endpoint, &source).ok() == Some(Some(source.interface))
            {
                peer.lock().paths.accept(endpoint);
            }
        }
    }

    /// The interface by which datagrams to `endpoint` leave from `source`. Returns none if the source is not an address of this
    /// host, or if no route begins there.
    fn leaves_by(&mut self, endpoint: &Endpoint, source: &Source) -> io::Result<Option<u32>> {
        if !self.is_own(source)? {
            return Ok(None);
        }
        let route = self.kernel.route(&Query {
            destination: endpoint.address.ip(),
            source: Some(source.address),
            interface: source.bound_interface(),
            mark: self.mark,
            ports: Some((self.port, endpoint.address.port())),
        })?;
        Ok(route.map(|route| route.interface))
    }

    /// Whether the source is an address of this host.
    fn is_own(&mut self, source: &Source) -> io::Result<bool> {
        if let Some(known) = self.local.get(&source.address) {
            return Ok(*known);
        }
        let route = self.kernel.route(&Query {
            destination: source.address,
            source: None,
            interface: source.bound_interface(),
            mark: 0,
            ports: None,
        })?;
        let own = route.is_some_and(|route| route.is_local);
        self.local.insert(source.address, own);
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::tests::peer;
    use super::super::route_lookup::Route;
    use super::*;

    /// A host with these addresses, whose routes all leave by one interface.
    struct Host {
        own: Vec<IpAddr>,
        interface: Option<u32>,
        fails: bool,
        asked: Vec<Query>,
    }

    impl Kernel for Host {
        fn route(&mut self, query: &Query) -> io::Result<Option<Route>> {
            self.asked.push(*query);
            if self.fails {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let is_local = self.own.contains(&query.destination);
            let interface = if is_local { Some(1) } else { self.interface };
            Ok(interface.map(|interface| Route {
                is_local,
                interface,
            }))
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    fn host(own: &[&str], interface: Option<u32>) -> Host {
        Host {
            own: own.iter().map(|text| address(text)).collect(),
            interface,
            fails: false,
            asked: Vec::new(),
        }
    }

    fn endpoint(to: &str, source: &str) -> Endpoint {
        Endpoint {
            address: (address(to), 51820).into(),
            source: Some(Source {
                address: address(source),
                interface: 2,
            }),
        }
    }

    fn verifier(kernel: &mut Host) -> Verifier<'_, Host> {
        Verifier {
            kernel,
            mark: 7,
            port: 9,
            local: HashMap::new(),
        }
    }

    /// A peer whose datagrams arrive from `from`, and whose source was verified.
    fn heard(from: Endpoint, kernel: &mut Host) -> Peer {
        let peer = peer();
        assert!(
            peer.lock()
                .handle_received(from, Instant::now())
                .wants_route
        );
        verifier(kernel).verify(&peer, Pass::Learnt);
        peer
    }

    #[test]
    fn a_source_is_valid_while_it_is_an_own_address_and_the_route_leaves_by_the_same_interface() {
        for (to, source) in [
            ("192.0.2.1", "198.51.100.2"),
            ("2001:db8::1", "2001:db8:1::2"),
        ] {
            let from = endpoint(to, source);
            // The route leaves by interface 3 at first, although the datagrams arrive at 2.
            for (own, interface, holds) in [
                (vec![source], Some(3), true),
                (vec![source], Some(2), false),
                (vec![source], None, false),
                (vec![], Some(3), false),
            ] {
                let peer = heard(from, &mut host(&[source], Some(3)));
                assert_eq!(peer.lock().endpoint(), Some(from));
                verifier(&mut host(&own, interface)).verify(&peer, Pass::All);
                let kept = peer.lock().endpoint() == Some(from);
                assert_eq!(kept, holds, "{to} by {interface:?} of {own:?}");
            }
        }
    }

    #[test]
    fn a_source_that_was_given_up_is_accepted_when_the_old_route_is_back() {
        let from = endpoint("192.0.2.1", "198.51.100.2");
        let by = |interface| host(&["198.51.100.2"], Some(interface));
        let peer = heard(from, &mut by(2));
        for (interface, again) in [(3, false), (4, false), (2, true)] {
            verifier(&mut by(interface)).verify(&peer, Pass::All);
            assert_eq!(
                peer.lock()
                    .handle_received(from, Instant::now())
                    .wants_route,
                again,
                "{interface}"
            );
        }
    }

    #[test]
    fn the_route_of_the_datagram_is_looked_up_and_each_address_once_in_a_pass() {
        let mut host = host(&["198.51.100.2"], Some(2));
        let mut verifier = verifier(&mut host);
        for to in ["192.0.2.1", "192.0.2.3"] {
            let endpoint = endpoint(to, "198.51.100.2");
            let source = endpoint.source.expect("given");
            let leaves_by = verifier.leaves_by(&endpoint, &source);
            assert_eq!(leaves_by.expect("an answer"), Some(2));
        }
        let to = |query: &Query| query.destination.to_string();
        let asked: Vec<String> = host.asked.iter().map(to).collect();
        assert_eq!(asked, ["198.51.100.2", "192.0.2.1", "192.0.2.3"]);
        assert_eq!(
            host.asked.get(1),
            Some(&Query {
                destination: address("192.0.2.1"),
                source: Some(address("198.51.100.2")),
                interface: 0,
                mark: 7,
                ports: Some((9, 51820)),
            })
        );
    }

    #[test]
    fn a_source_stays_in_use_when_the_kernel_does_not_answer() {
        let from = endpoint("192.0.2.1", "198.51.100.2");
        let peer = heard(from, &mut host(&["198.51.100.2"], Some(2)));
        let mut silent = Host {
            fails: true,
            ..host(&[], None)
        };
        verifier(&mut silent).verify(&peer, Pass::All);
        assert_eq!(peer.lock().endpoint(), Some(from));
    }
}
