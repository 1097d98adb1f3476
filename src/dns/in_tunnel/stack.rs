//! TCP for an address that no kernel has: smoltcp with limits for each client.
//!
//! The stack takes and returns segments, and offers connections from which bytes are read and to which bytes are written. A SYN
//! makes a connection, which has a place from then on. The places are bounded for each client and for all clients together, and
//! neither a client nor its network has more places than are left for others. A SYN without a place is answered with a reset.
//! This module is pure: the caller passes the time, and the client of each segment.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket,
};

use super::super::access::Client;

/// The maximum number of connections of all clients and of one client. Half-open connections count too.
const MAX_CONNECTIONS: usize = 256;
const MAX_CONNECTIONS_OF_ONE: usize = 32;
/// The size of the receive buffer in bytes: a query and its length.
const RECEIVE: usize = 4096 + 2;
/// The size of the send buffer in bytes. A longer reply is sent in parts.
const SEND: usize = 16 * 1024;
/// How long a connection waits for an acknowledgement of the client. This also bounds how long it may be half open.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// The minimum MTU of a link that carries IPv6 (RFC 8200 section 5), so that segments pass every path to a client.
const MTU: usize = 1280;
/// The minimum wait before the stack is polled again.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// Identifies a connection as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId(u64);

struct Connection {
    id: ConnectionId,
    handle: SocketHandle,
    owner: Client,
    client: SocketAddr,
    server: SocketAddr,
    /// The time at which this end was closed.
    closed: Option<Instant>,
}

/// The reason why there is no place for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crowd {
    /// The client has as many connections as one client may have. A closed connection of another client would not help.
    Client,
    /// The client or its network has as many connections as are left.
    Network,
}

pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    connections: Vec<Connection>,
    port: u16,
    next: u64,
    started: Instant,
}

impl Stack {
    /// Listens on `port` of `addresses`, of which there is at most one of each family. `seed` should be random, because sequence
    /// numbers are derived from it.
    pub(super) fn new(addresses: &[IpAddr], port: u16, seed: u64, now: Instant) -> Self {
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for address in addresses {
                let host = if address.is_ipv4() { 32 } else { 128 };
                // There is room for two.
                let _ = list.push(IpCidr::new(IpAddress::from(*address), host));
            }
        });
        for address in addresses {
            // There is one link, on which the address of the next hop has no meaning.
            let _ = match address {
                IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(*v4),
                IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(*v6),
            };
        }
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
            connections: Vec::new(),
            port,
            next: 0,
            started: now,
        }
    }

    /// Processes a segment of `owner`. If the segment opens a connection, returns the connection and the client's address.
    pub(super) fn handle_segment(
        &mut self,
        packet: Vec<u8>,
        owner: Client,
        now: Instant,
    ) -> Option<(ConnectionId, SocketAddr)> {
        let opens = opening(&packet).filter(|(_, server)| server.port() == self.port);
        let new = opens.and_then(|(client, server)| self.listen(owner, client, server));
        self.link.received = Some(packet);
        let now = self.time(now);
        self.interface
            .poll_ingress_single(now, &mut self.link, &mut self.sockets);
        // If smoltcp did not accept the SYN, the socket would listen for ever.
        let taken = new.filter(|id| self.state(*id).is_some_and(|s| s != State::Listen));
        if let (Some(id), None) = (new, taken) {
            self.remove(id);
        }
        let client = opens.map(|(client, _)| client)?;
        taken.map(|id| (id, client))
    }

    /// Makes a socket for a SYN, if there is a place for it.
    fn listen(
        &mut self,
        owner: Client,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Option<ConnectionId> {
        let same = self
            .connections
            .iter()
            .find(|c| c.client == client && c.server == server)
            .map(|c| c.id);
        if let Some(id) = same {
            // A client that reuses its port wants a new connection (RFC 9293 section 3.6.1). Any other SYN is a retransmission
            // of the first one.
            if self.state(id) != Some(State::TimeWait) {
                return None;
            }
            self.remove(id);
        }
        while let Some(crowd) = self.crowd(owner) {
            let waiting = |c: &&Connection| {
                let state = self.sockets.get::<Socket<'_>>(c.handle).state();
                state == State::TimeWait && (crowd == Crowd::Network || c.owner == owner)
            };
            let waiting = self.connections.iter().filter(waiting);
            let id = waiting.min_by_key(|c| c.owner != owner)?.id;
            self.remove(id);
        }
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(RECEIVE), buffer(SEND));
        socket.set_timeout(Some(ACK_TIMEOUT.into()));
        socket.set_nagle_enabled(false);
        socket.listen(server).ok()?;
        let id = ConnectionId(self.next);
        self.next += 1;
        self.connections.push(Connection {
            id,
            handle: self.sockets.add(socket),
            owner,
            client,
            server,
            closed: None,
        });
        Some(id)
    }

    /// Returns why there is no place for one more connection of `owner`, or `None` if there is one. Neither `owner` nor its
    /// network may have more places than are left.
    fn crowd(&self, owner: Client) -> Option<Crowd> {
        let count = |same: &dyn Fn(Client) -> bool| {
            let owners = self.connections.iter().map(|c| c.owner);
            owners.filter(|other| same(*other)).count()
        };
        let left = MAX_CONNECTIONS.saturating_sub(self.connections.len());
        let of_one = count(&|other| other == owner);
        let of_network = count(&|other| other.is_near(owner));
        if of_one >= MAX_CONNECTIONS_OF_ONE {
            Some(Crowd::Client)
        } else {
            (of_one.max(of_network) >= left).then_some(Crowd::Network)
        }
    }

    /// Returns the segments that have to be sent now.
    pub(super) fn poll(&mut self, now: Instant) -> impl Iterator<Item = Vec<u8>> + '_ {
        let time = self.time(now);
        while self
            .interface
            .poll_egress(time, &mut self.link, &mut self.sockets)
            != smoltcp::iface::PollResult::None
        {}
        self.link.sent.drain(..)
    }

    /// Returns the time until the next segment is due, if none arrives before.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let time = self.time(now);
        let due = self.interface.poll_delay(time, &self.sockets);
        let closing = self
            .connections
            .iter()
            .filter_map(|c| c.closed)
            .map(|since| (since + ACK_TIMEOUT).saturating_duration_since(now))
            .min();
        due.map(Duration::from)
            .into_iter()
            .chain(closing)
            .min()
            .map(|wait| wait.max(MIN_WAIT))
    }

    /// Returns the bytes that the client has sent and that are not consumed.
    pub(super) fn received(&mut self, id: ConnectionId) -> &[u8] {
        self.socket(id)
            .and_then(|socket| socket.peek(RECEIVE).ok())
            .unwrap_or_default()
    }

    /// Removes the first `bytes` bytes of those.
    pub(super) fn consume(&mut self, id: ConnectionId, bytes: usize) {
        if let Some(socket) = self.socket(id) {
            let _ = socket.recv(|held| (bytes.min(held.len()), ()));
        }
    }

    /// Returns whether the client will send no more, and everything that it sent is consumed.
    pub(super) fn is_read(&mut self, id: ConnectionId) -> bool {
        self.socket(id)
            .is_none_or(|s| !s.may_recv() && s.state() != State::SynReceived)
    }

    /// Returns the number of bytes that can be sent now.
    pub(super) fn room(&mut self, id: ConnectionId) -> usize {
        self.socket(id)
            .filter(|s| s.may_send())
            .map_or(0, |s| s.send_capacity() - s.send_queue())
    }

    /// Sends bytes, at most as many as [`Stack::room`] returns.
    pub(super) fn send(&mut self, id: ConnectionId, bytes: &[u8]) {
        if let Some(socket) = self.socket(id) {
            let _ = socket.send_slice(bytes);
        }
    }

    /// Closes this end of the connection.
    pub(super) fn close(&mut self, id: ConnectionId, now: Instant) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == id) {
            connection.closed.get_or_insert(now);
            let socket: &mut Socket<'_> = self.sockets.get_mut(connection.handle);
            socket.close();
        }
    }

    /// Returns whether the connection has ended.
    pub(super) fn is_over(&self, id: ConnectionId) -> bool {
        matches!(self.state(id), None | Some(State::Closed | State::TimeWait))
    }

    /// Removes connections that are closed, and aborts those that the client does not close.
    pub(super) fn sweep(&mut self, now: Instant) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let over = |since: Instant| now.saturating_duration_since(since) >= ACK_TIMEOUT;
            let closed = sockets.get::<Socket<'_>>(connection.handle).state() == State::Closed
                || connection.closed.is_some_and(over);
            if closed {
                sockets.remove(connection.handle);
            }
            !closed
        });
    }

    fn remove(&mut self, id: ConnectionId) {
        if let Some(at) = self.connections.iter().position(|c| c.id == id) {
            let connection = self.connections.swap_remove(at);
            self.sockets.remove(connection.handle);
        }
    }

    fn state(&self, id: ConnectionId) -> Option<State> {
        let connection = self.connections.iter().find(|c| c.id == id)?;
        Some(self.sockets.get::<Socket<'_>>(connection.handle).state())
    }

    fn socket(&mut self, id: ConnectionId) -> Option<&mut Socket<'static>> {
        let handle = self.connections.iter().find(|c| c.id == id)?.handle;
        Some(self.sockets.get_mut(handle))
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.started).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

/// Returns the ends of the connection that a SYN opens.
fn opening(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ends = |source: IpAddr, destination: IpAddr, payload: &[u8]| {
        let tcp = TcpPacket::new_checked(payload).ok()?;
        (tcp.syn() && !tcp.ack() && !tcp.rst()).then(|| {
            (
                SocketAddr::new(source, tcp.src_port()),
                SocketAddr::new(destination, tcp.dst_port()),
            )
        })
    };
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let tcp = ip.next_header() == IpProtocol::Tcp;
            ends(ip.src_addr().into(), ip.dst_addr().into(), ip.payload()).filter(|_| tcp)
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let tcp = ip.next_header() == IpProtocol::Tcp;
            ends(ip.src_addr().into(), ip.dst_addr().into(), ip.payload()).filter(|_| tcp)
        }
        _ => None,
    }
}

/// The link of smoltcp: it has one received packet, and any number of packets to send.
#[derive(Default)]
struct Link {
    received: Option<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Link {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(
        &mut self,
        _: smoltcp::time::Instant,
    ) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.received.take()?;
        Some((Incoming(packet), Outgoing(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        Some(Outgoing(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let written = write(&mut packet);
        self.0.push_back(packet);
        written
    }
}

#[cfg(test)]
mod tests;
