//! Lookups in the kernel's routing tables, and notifications of their changes (rtnetlink(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily as RouteFamily, IpProtocol, RouteNetlinkMessage};

/// How many seconds the kernel may take for an answer.
const ANSWER_TIMEOUT: i64 = 1;
/// The maximum size of a netlink message in bytes.
const MAX_MESSAGE: usize = 32 * 1024;

/// The notifications about changes that may affect the route of a datagram: links, addresses, routes and rules.
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

/// A datagram whose route is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) destination: IpAddr,
    pub(super) source: Option<IpAddr>,
    /// The interface that it has to leave by; 0 for any.
    pub(super) interface: u32,
    pub(super) mark: u32,
    /// The source port and the destination port, which routing rules may match.
    pub(super) ports: Option<(u16, u16)>,
}

/// The route of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// Whether the destination is an address of this host.
    pub(super) is_local: bool,
    pub(super) interface: u32,
}

/// The kernel's routing.
pub(super) trait Kernel {
    /// The route for `query`, if there is one.
    fn route(&mut self, query: &Query) -> io::Result<Option<Route>>;
}

/// A netlink socket that receives a notification for every change that may affect the route of a datagram.
pub(super) fn subscribe() -> io::Result<OwnedFd> {
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

/// Reads and discards all notifications, and returns whether there were any. An error that reports lost notifications counts as
/// one.
pub(super) fn drain(notices: &OwnedFd) -> bool {
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

/// A netlink socket for lookups.
pub(super) struct RouteSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RouteSocket {
    pub(super) fn open() -> io::Result<Self> {
        let fd = open(SockFlag::SOCK_CLOEXEC, 0)?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_TIMEOUT, 0),
        )?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; MAX_MESSAGE],
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
            // The answer to an earlier request, which arrived after its timeout.
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return Ok(match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => read(&route),
                // There is no route. The kernel has an error for each reason.
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
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    bytes
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
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    #[test]
    fn the_kernel_s_routes_are_read() {
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
}
