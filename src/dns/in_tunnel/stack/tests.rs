use super::*;
use crate::dns::access::{Allowed, Client as Owner};
use proptest::prelude::*;

/// Another smoltcp, as clients have it.
struct Client {
    owner: Owner,
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
}

impl Client {
    fn new(address: &str) -> Self {
        let mut link = Link::default();
        let mut interface = Interface::new(
            Config::new(HardwareAddress::Ip),
            &mut link,
            smoltcp::time::Instant::ZERO,
        );
        let ip: IpAddr = address.parse().expect("a literal");
        interface.update_ip_addrs(|list| {
            let host = if ip.is_ipv4() { 32 } else { 128 };
            list.push(IpCidr::new(ip.into(), host)).expect("the first");
        });
        match ip {
            IpAddr::V4(v4) => drop(interface.routes_mut().add_default_ipv4_route(v4)),
            IpAddr::V6(v6) => drop(interface.routes_mut().add_default_ipv6_route(v6)),
        }
        Self {
            owner: owner(ip),
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
        }
    }

    fn connect(&mut self, server: &str, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 70_000]);
        let mut socket = Socket::new(buffer(), buffer());
        let server: SocketAddr = server.parse().expect("a literal");
        socket
            .connect(self.interface.context(), server, port)
            .expect("a free port");
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// The client that an address belongs to: there are two bridges with IPv4 and one with IPv6.
fn owner(address: IpAddr) -> Owner {
    let networks = ["172.18.0.0/16", "172.19.0.0/16", "fd00::/16"];
    let networks = networks.map(|net| net.parse().expect("a literal"));
    let allowed = Allowed::new(networks.to_vec());
    allowed.client(address).expect("of one of the bridges")
}

/// Carries segments to and fro until nothing moves; gives the connections that came to be.
fn exchange(stack: &mut Stack, client: &mut Client, now: Instant) -> Vec<ConnectionId> {
    let mut opened = Vec::new();
    loop {
        let time = stack.time(now);
        while client
            .interface
            .poll_egress(time, &mut client.link, &mut client.sockets)
            != smoltcp::iface::PollResult::None
        {}
        let out: Vec<Vec<u8>> = client.link.sent.drain(..).collect();
        let mut moved = !out.is_empty();
        for packet in out {
            opened.extend(
                stack
                    .handle_segment(packet, client.owner, now)
                    .map(|(id, _)| id),
            );
        }
        for packet in stack.poll(now).collect::<Vec<_>>() {
            moved = true;
            client.link.received = Some(packet);
            client
                .interface
                .poll_ingress_single(time, &mut client.link, &mut client.sockets);
        }
        if !moved {
            return opened;
        }
    }
}

fn stack(now: Instant) -> Stack {
    let addresses = ["10.210.0.53", "fd00::35"].map(|a| a.parse().expect("a literal"));
    Stack::new(&addresses, 53, 7, now)
}

#[test]
fn bytes_go_both_ways_in_either_family_and_long_ones_in_parts() {
    let mut now = Instant::now();
    let mut stack = stack(now);
    for (address, server) in [
        ("172.18.0.3", "10.210.0.53:53"),
        ("fd00:1::3", "[fd00::35]:53"),
    ] {
        let mut client = Client::new(address);
        let handle = client.connect(server, 4000);
        let opened = exchange(&mut stack, &mut client, now);
        let [id] = opened[..] else {
            panic!("one connection, not {opened:?}")
        };
        client
            .socket(handle)
            .send_slice(b"question")
            .expect("established");
        exchange(&mut stack, &mut client, now);
        assert_eq!(stack.received(id), b"question");
        stack.consume(id, 8);
        assert!(stack.received(id).is_empty() && !stack.is_read(id));

        let answer: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let part = stack.room(id).min(rest.len());
            stack.send(id, &rest[..part]);
            rest = &rest[part..];
            now += Duration::from_millis(20);
            exchange(&mut stack, &mut client, now);
        }
        let received = client
            .socket(handle)
            .recv(|bytes| (bytes.len(), bytes.to_vec()))
            .expect("established");
        assert!(received == answer, "{} bytes", received.len());

        client.socket(handle).close();
        exchange(&mut stack, &mut client, now);
        assert!(stack.is_read(id));
        stack.close(id, now);
        exchange(&mut stack, &mut client, now);
        stack.sweep(now);
        assert!(stack.is_over(id) && stack.connections.is_empty());
    }
}

#[test]
fn a_client_has_so_many_connections_and_others_have_theirs() {
    let now = Instant::now();
    let mut stack = stack(now);
    let mut greedy = Client::new("172.18.0.3");
    let handles: Vec<SocketHandle> = (0..40)
        .map(|n| greedy.connect("10.210.0.53:53", 4000 + n))
        .collect();
    let opened = exchange(&mut stack, &mut greedy, now);
    assert_eq!(opened.len(), MAX_CONNECTIONS_OF_ONE);
    let refused = handles
        .iter()
        .filter(|h| greedy.sockets.get::<Socket<'_>>(**h).state() == State::Closed)
        .count();
    assert_eq!(
        refused,
        40 - MAX_CONNECTIONS_OF_ONE,
        "reset, not kept waiting"
    );
    let mut other = Client::new("172.18.0.4");
    other.connect("10.210.0.53:53", 4000);
    assert_eq!(exchange(&mut stack, &mut other, now).len(), 1);
}

#[test]
fn all_addresses_of_an_ipv6_network_have_one_clients_connections() {
    let now = Instant::now();
    let mut stack = stack(now);
    let mut opened = 0;
    for n in 1..=10 {
        let mut greedy = Client::new(&format!("fd00:1::{n}"));
        for port in 0..20 {
            greedy.connect("[fd00::35]:53", 4000 + port);
        }
        opened += exchange(&mut stack, &mut greedy, now).len();
    }
    assert_eq!(opened, MAX_CONNECTIONS_OF_ONE);
}

#[test]
fn however_many_connections_one_bridge_opens_another_finds_a_place() {
    let now = Instant::now();
    let mut stack = stack(now);
    let mut opened = 0;
    for n in 1..=40 {
        let mut greedy = Client::new(&format!("172.18.0.{n}"));
        for port in 0..20 {
            greedy.connect("10.210.0.53:53", 4000 + port);
        }
        opened += exchange(&mut stack, &mut greedy, now).len();
    }
    assert_eq!(opened, MAX_CONNECTIONS / 2);
    let mut other = Client::new("172.19.0.4");
    other.connect("10.210.0.53:53", 4000);
    assert_eq!(exchange(&mut stack, &mut other, now).len(), 1);
}

#[test]
fn another_port_is_refused_with_a_reset() {
    let now = Instant::now();
    let mut stack = stack(now);
    let mut client = Client::new("172.18.0.3");
    let handle = client.connect("10.210.0.53:80", 4000);
    assert!(exchange(&mut stack, &mut client, now).is_empty());
    assert_eq!(client.socket(handle).state(), State::Closed);
}

#[test]
fn half_open_and_half_closed_connections_end_by_themselves() {
    let start = Instant::now();
    let mut stack = stack(start);
    let mut client = Client::new("172.18.0.3");
    client.connect("10.210.0.53:53", 4000);
    let time = stack.time(start);
    client
        .interface
        .poll_egress(time, &mut client.link, &mut client.sockets);
    let syn = client.link.sent.pop_front().expect("a SYN");
    assert!(stack.handle_segment(syn, client.owner, start).is_some());
    // No packet from the client arrives any more.
    let mut now = start;
    while stack.connections.iter().any(|_| true) && now < start + Duration::from_secs(60) {
        stack.poll(now).for_each(drop);
        stack.sweep(now);
        now += Duration::from_millis(500);
    }
    assert!(stack.connections.is_empty(), "half open");

    let start = now;
    client = Client::new("172.18.0.4");
    client.connect("10.210.0.53:53", 4001);
    let opened = exchange(&mut stack, &mut client, now);
    stack.close(opened[0], now);
    while !stack.connections.is_empty() && now < start + Duration::from_secs(60) {
        exchange(&mut stack, &mut client, now);
        stack.sweep(now);
        now += Duration::from_millis(500);
    }
    assert!(stack.connections.is_empty(), "half closed");
    assert!(now < start + Duration::from_secs(30), "{:?}", now - start);
}

proptest! {
    #[test]
    fn any_packets_do_no_harm(
        packets in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 20..80), prop::sample::select(vec![0x45u8, 0x60, 0x00])),
            1..20,
        ),
    ) {
        let now = Instant::now();
        let mut stack = stack(now);
        for (mut packet, first) in packets {
            let length = packet.len();
            packet[0] = first;
            (packet[2], packet[3], packet[9]) = (0, length as u8, 6);
            let _ = stack.handle_segment(packet, owner([172, 18, 0, 3].into()), now);
            stack.poll(now).for_each(drop);
            stack.sweep(now);
        }
    }
}
