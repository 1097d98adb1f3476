//! The `routes` thread: verifies the sources of what is sent to peers when addresses, routes or rules change.
//!
//! A source holds as long as its address is this host's and the route from it to the peer leaves by the same interface
//! as when the source was learnt. That interface need not be the one at which the peer's datagrams arrive: a host with two
//! interfaces in one network has one route. The kernel is asked only when a source is learnt and after one of its
//! notices; the data threads compare nothing. If a data thread finds that the kernel refuses a source, that one is given
//! up at once. A notice may also be about the MTU of the tunnel device, which is read then.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily as RouteFamily, IpProtocol, RouteNetlinkMessage};

use super::device::Shared;
use super::endpoint::{Endpoint, Source};
use super::peer::Peer;
use super::udp::Sockets;

/// How long notices are collected before the kernel is asked: a change of an interface comes as many.
const SETTLE: Duration = Duration::from_millis(50);
/// How many times as long as asking took the thread rests after it, and the limits of that.
const REST: u32 = 5;
const MIN_REST: Duration = Duration::from_millis(1);
const MAX_REST: Duration = Duration::from_secs(1);
/// How long the kernel may take for an answer.
const ANSWER_TIMEOUT: i64 = 1;
/// Refused endpoints that are remembered at most; of further ones another datagram is refused.
const MAX_REFUSED: usize = 64;
/// Octets of a netlink message at most.
const MESSAGE: usize = 32 * 1024;

/// What changes the way of a datagram: links, addresses, routes and rules (rtnetlink(7)).
const GROUPS: u32 = group(libc::RTNLGRP_LINK)
    | group(libc::RTNLGRP_IPV4_IFADDR)
    | group(libc::RTNLGRP_IPV4_ROUTE)
    | group(libc::RTNLGRP_IPV4_RULE)
    | group(libc::RTNLGRP_IPV6_IFADDR)
    | group(libc::RTNLGRP_IPV6_ROUTE)
    | group(libc::RTNLGRP_IPV6_RULE);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// Wakes the thread, and names it the endpoints whose source the kernel refused.
#[derive(Debug)]
pub(super) struct Recheck {
    event: EventFd,
    refused: Mutex<Vec<Endpoint>>,
}

impl Recheck {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Arc::new(Self {
            event: EventFd::from_flags(flags)?,
            refused: Mutex::new(Vec::with_capacity(MAX_REFUSED)),
        }))
    }

    /// The kernel sends to `endpoint` only from another source.
    pub(super) fn refuse(&self, endpoint: Endpoint) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_REFUSED && !refused.contains(&endpoint) {
            refused.push(endpoint);
            let _ = self.event.write(1);
        }
    }

    pub(super) fn wake(&self) {
        let _ = self.event.write(1);
    }

    /// What was refused, for tests of those who refuse.
    #[cfg(test)]
    pub(super) fn refused(&self) -> Vec<Endpoint> {
        let mut refused = Vec::new();
        self.take(&mut refused);
        refused
    }

    fn take(&self, into: &mut Vec<Endpoint>) {
        let _ = self.event.read();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut refused);
    }
}

/// Runs until the tunnel stops.
pub(super) fn run(shared: &Shared) {
    let kernel = subscribe().and_then(|notices| Ok((notices, RouteSocket::open()?)));
    let (notices, mut kernel) = match kernel {
        Ok((notices, kernel)) => (Some(notices), Some(kernel)),
        Err(error) => {
            tracing::warn!(%error, "changes of routes are not noticed; a peer may be answered from an old address until it is heard again");
            (None, None)
        }
    };
    let notices_fd = notices.as_ref().map_or(-1, |fd| fd.as_raw_fd());
    let mut refused = Vec::new();
    // When all sources are to be verified, after a notice; and not before when.
    let (mut due, mut rested) = (None, Instant::now());
    while !shared.stopping() {
        let waited = if due.is_some() { -1 } else { notices_fd };
        let limit = due.map(|at: Instant| at.saturating_duration_since(Instant::now()));
        wait([shared.recheck.event.as_fd().as_raw_fd(), waited], limit);
        shared.recheck.take(&mut refused);
        give_up(shared, &mut refused);
        let (Some(notices), Some(kernel)) = (&notices, &mut kernel) else {
            continue;
        };
        let began = Instant::now();
        if due.is_none() && drain(notices) {
            due = Some((began + SETTLE).max(rested));
        }
        let pass = match due {
            Some(at) if at <= began => {
                due = None;
                drain(notices);
                shared.follow_mtu();
                Pass::All
            }
            _ => Pass::Learnt,
        };
        verify(shared, kernel, pass);
        let rest = (began.elapsed() * REST).clamp(MIN_REST, MAX_REST);
        match pass {
            Pass::All => rested = Instant::now() + rest,
            Pass::Learnt if shared.stopping() => {}
            Pass::Learnt => std::thread::park_timeout(rest),
        }
    }
}

/// Waits until one of `descriptors` can be read, for at most `limit`; negative ones are passed over.
fn wait(descriptors: [RawFd; 2], limit: Option<Duration>) {
    let mut polled = descriptors.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    // One more than the whole milliseconds: the time has come after it.
    let limit = limit.map_or(-1, |limit| {
        i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX)
    });
    // SAFETY: `polled` is an array of so many valid entries.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit) };
}

/// Gives up the sources that the kernel refused.
fn give_up(shared: &Shared, refused: &mut Vec<Endpoint>) {
    if refused.is_empty() {
        return;
    }
    for peer in shared.table.load().by_index.values() {
        let mut state = peer.lock();
        if state
            .endpoint()
            .is_some_and(|endpoint| refused.contains(&endpoint))
        {
            state.forget_source();
        }
    }
    refused.clear();
}

/// Whose sources are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    All,
    /// Those that the kernel was not asked about yet.
    Learnt,
}

/// Asks the kernel about the sources of peers.
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

/// What is asked of the kernel: how a datagram would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Query {
    destination: IpAddr,
    source: Option<IpAddr>,
    /// The interface that it has to leave by; 0 for any.
    interface: u32,
    mark: u32,
    /// The port it comes from and the one it goes to; rules may look at them.
    ports: Option<(u16, u16)>,
}

/// How it would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    /// Whether the destination is an address of this host.
    is_local: bool,
    interface: u32,
}

/// The kernel's routing.
trait Kernel {
    /// The route for `query`, if there is one.
    fn route(&mut self, query: &Query) -> io::Result<Option<Route>>;
}

/// Verifies sources in one pass, in which no address is asked for twice.
struct Verifier<'a, K> {
    kernel: &'a mut K,
    mark: u32,
    port: u16,
    local: HashMap<IpAddr, bool>,
}

impl<K: Kernel> Verifier<'_, K> {
    /// Asks about the sources of one peer: the one in use, and one that was given up. The peer is not locked meanwhile.
    fn verify(&mut self, peer: &Peer, pass: Pass) {
        let (endpoint, refused) = {
            let state = peer.lock();
            let asked = pass == Pass::All || state.wants_route();
            (state.endpoint().filter(|_| asked), state.refused())
        };
        if let Some(endpoint) = endpoint
            && let Some(source) = endpoint.source
            && let Ok(leaves_by) = self.leaves_by(&endpoint, &source)
        {
            peer.lock().note_route(endpoint, leaves_by);
        }
        // What arrives and leaves by one interface is beyond doubt.
        if pass == Pass::All
            && let Some(refused) = refused
            && let Some(source) = refused.source
            && self.leaves_by(&refused, &source).ok() == Some(Some(source.interface))
        {
            peer.lock().accept(refused);
        }
    }

    /// The interface by which datagrams to `endpoint` leave from `source`; nothing if that is not an address of this
    /// host or no route begins there.
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

/// A netlink socket that gets a notice of every change that may move a datagram.
fn subscribe() -> io::Result<OwnedFd> {
    open(SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, GROUPS)
}

fn open(flags: SockFlag, groups: u32) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

/// Reads and discards all notices; returns whether there were any. A report that the kernel lost some counts as one.
fn drain(notices: &OwnedFd) -> bool {
    let mut buffer = [0; 1024];
    let mut any = false;
    loop {
        match recv(notices.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Ok(_) | Err(nix::Error::ENOBUFS) => any = true,
            Err(nix::Error::EINTR) => {}
            Err(_) => return any,
        }
    }
}

/// A netlink socket for questions.
struct RouteSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RouteSocket {
    fn open() -> io::Result<Self> {
        let fd = open(SockFlag::SOCK_CLOEXEC, 0)?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_TIMEOUT, 0),
        )?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; MESSAGE],
        })
    }
}

impl Kernel for RouteSocket {
    fn route(&mut self, query: &Query) -> io::Result<Option<Route>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(query, self.sequence);
        send(self.fd.as_raw_fd(), &request, MsgFlags::empty())?;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let datagram = self.buffer.get(..length).unwrap_or_default();
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
                .map_err(io::Error::other)?;
            // An answer that came too late for the question before.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return Ok(match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => read(&route),
                // The kernel names no route: an error of its own kind for each reason.
                _ => None,
            });
        }
    }
}

fn request(query: &Query, sequence: u32) -> Vec<u8> {
    let mut message = RouteMessage::default();
    let of = |address: IpAddr| match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    let (family, length) = match query.destination {
        IpAddr::V4(_) => (RouteFamily::Inet, 32),
        IpAddr::V6(_) => (RouteFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(of(query.destination)));
    if let Some(source) = query.source {
        message.header.source_prefix_length = length;
        attributes.push(RouteAttribute::Source(of(source)));
    }
    if query.interface != 0 {
        attributes.push(RouteAttribute::Oif(query.interface));
    }
    if query.mark != 0 {
        attributes.push(RouteAttribute::Mark(query.mark));
    }
    if let Some((from, to)) = query.ports {
        attributes.push(RouteAttribute::IpProto(IpProtocol::Udp.into()));
        attributes.push(RouteAttribute::Sport(from));
        attributes.push(RouteAttribute::Dport(to));
    }
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(message));
    request.header.flags = NLM_F_REQUEST;
    request.header.sequence_number = sequence;
    request.finalize();
    let mut octets = vec![0; request.buffer_len()];
    request.serialize(&mut octets);
    octets
}

fn read(route: &RouteMessage) -> Option<Route> {
    let is_local = match route.header.kind {
        RouteType::Local => true,
        RouteType::Unicast => false,
        _ => return None,
    };
    let interface = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    Some(Route {
        is_local,
        interface: interface?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::peer::tests::peer;
    use super::*;

    /// A host with these addresses, on which every route leaves by one interface.
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

    /// A peer that was heard from `from`, about whose source the kernel was asked.
    fn heard(from: Endpoint, kernel: &mut Host) -> Peer {
        let peer = peer();
        assert!(peer.lock().heard(from, Instant::now()));
        verifier(kernel).verify(&peer, Pass::Learnt);
        peer
    }

    #[test]
    fn a_source_holds_while_it_is_an_own_address_and_the_route_leaves_by_one_interface() {
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
    fn a_source_that_was_given_up_is_accepted_when_the_route_leads_back() {
        let from = endpoint("192.0.2.1", "198.51.100.2");
        let by = |interface| host(&["198.51.100.2"], Some(interface));
        let peer = heard(from, &mut by(2));
        for (interface, again) in [(3, false), (4, false), (2, true)] {
            verifier(&mut by(interface)).verify(&peer, Pass::All);
            assert_eq!(
                peer.lock().heard(from, Instant::now()),
                again,
                "{interface}"
            );
        }
    }

    #[test]
    fn the_route_is_asked_for_as_the_datagram_would_go_and_an_address_once_in_a_pass() {
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
    fn a_source_holds_when_the_kernel_gives_no_answer() {
        let from = endpoint("192.0.2.1", "198.51.100.2");
        let peer = heard(from, &mut host(&["198.51.100.2"], Some(2)));
        let mut silent = Host {
            fails: true,
            ..host(&[], None)
        };
        verifier(&mut silent).verify(&peer, Pass::All);
        assert_eq!(peer.lock().endpoint(), Some(from));
    }

    #[test]
    fn the_kernel_answers_what_is_asked_of_it() {
        let mut kernel = RouteSocket::open().expect("a netlink socket");
        let query = |destination: &str, source: Option<&str>| Query {
            destination: address(destination),
            source: source.map(address),
            interface: 0,
            mark: 0,
            ports: source.map(|_| (1, 2)),
        };
        let mut ask = |query: Query| kernel.route(&query).expect("an answer");
        let own = ask(query("127.0.0.1", None)).expect("loopback");
        assert!(own.is_local && own.interface == 1);
        assert!(ask(query("127.0.0.1", Some("127.0.0.2"))).is_some());
        assert_eq!(ask(query("127.0.0.1", Some("203.0.113.77"))), None);
    }

    #[test]
    fn endpoints_that_are_refused_are_taken_once_and_bounded() {
        let recheck = Recheck::new().expect("an event");
        for n in 0..1000u16 {
            let mut refused = endpoint("192.0.2.1", "198.51.100.2");
            refused.address.set_port(n / 2);
            recheck.refuse(refused);
        }
        let mut taken = Vec::new();
        recheck.take(&mut taken);
        assert_eq!(taken.len(), MAX_REFUSED);
        taken.clear();
        recheck.take(&mut taken);
        assert!(taken.is_empty());
    }
}
