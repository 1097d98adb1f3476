//! Servers and clients that tests put into containers: who calls, does everything come back, what arrives.
//!
//!     echo serve PORT [MILLISECONDS]     TCP: the caller's address, a line end, then everything back;
//!                                        UDP: the same in one datagram, and `report` counts datagrams by source;
//!                                        goes on for so long after it is asked to end
//!     echo ask tcp|udp NAME:PORT         prints what the server calls us, after 1 MiB there and back
//!     echo ask tcp4|udp4|tcp6|udp6 NAME:PORT     the same, at an address of this family
//!     echo ask bulk NAME:PORT MEBIBYTES  the same with more, over TCP
//!     echo ask udp ADDRESS:PORT from PORT        one datagram there and back, from a port of one's own
//!     echo look NAME:PORT                prints the addresses of a name
//!     echo flood NAME:PORT COUNT A_SECOND CACHE  so many new connections, the name looked up again after CACHE
//!                                        milliseconds; prints how many failed
//!     echo flood6 NAME:PORT COUNT A_SECOND CACHE     the same, at IPv6 addresses alone
//!     echo flow NAME:PORT SECONDS        ten requests a second over one connection, and ten datagrams; prints what got no
//!                                        answer within a second, and the longest time without one
//!     echo report ADDRESS:PORT           prints the server's counts
//!     echo claim SOURCE DESTINATION PORT COUNT   sends datagrams with a source address that may be anybody's
//!     echo pretend ADDRESS               tells all neighbors that it has this IPv6 address, and that it is their router

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream,
    ToSocketAddrs as _, UdpSocket,
};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

const LIMIT: Duration = Duration::from_secs(5);
const BULK: usize = 1 << 20;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", port] => serve(parse(port)?, Duration::ZERO),
        ["serve", port, linger] => serve(parse(port)?, Duration::from_millis(parse(linger)?)),
        ["ask", "tcp", server] => ask_tcp(look_up(server)?, BULK),
        ["ask", "bulk", server, size] => ask_tcp(look_up(server)?, parse::<usize>(size)? << 20),
        ["ask", "udp", server] => ask_udp(look_up(server)?),
        ["ask", "tcp4", server] => ask_tcp(look_up_in(server, SocketAddr::is_ipv4)?, BULK),
        ["ask", "tcp6", server] => ask_tcp(look_up_in(server, SocketAddr::is_ipv6)?, BULK),
        ["ask", "udp4", server] => ask_udp(look_up_in(server, SocketAddr::is_ipv4)?),
        ["ask", "udp6", server] => ask_udp(look_up_in(server, SocketAddr::is_ipv6)?),
        ["look", server] => {
            let mut addresses: Vec<IpAddr> = server.to_socket_addrs()?.map(|at| at.ip()).collect();
            addresses.dedup();
            addresses.iter().for_each(|address| println!("{address}"));
            Ok(())
        }
        ["flood", server, count, rate, cache] => flood(
            (server, |_| true),
            parse(count)?,
            parse(rate)?,
            Duration::from_millis(parse(cache)?),
        ),
        ["flood6", server, count, rate, cache] => flood(
            (server, SocketAddr::is_ipv6),
            parse(count)?,
            parse(rate)?,
            Duration::from_millis(parse(cache)?),
        ),
        ["flow", server, seconds] => flow(look_up(server)?, Duration::from_secs(parse(seconds)?)),
        ["ask", "udp", server, "from", port] => exchange(parse(server)?, parse(port)?, b"who"),
        ["report", server] => exchange(parse(server)?, 0, b"report"),
        ["claim", source, destination, port, count] => claim(
            parse(source)?,
            parse(destination)?,
            parse(port)?,
            parse(count)?,
        ),
        ["pretend", address] => pretend(parse(address)?),
        _ => Err(io::Error::other("usage: see the top of examples/echo.rs")),
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text:?} is not what belongs here")))
}

fn look_up(server: &str) -> io::Result<SocketAddr> {
    look_up_in(server, |_| true)
}

fn look_up_in(server: &str, of_family: fn(&SocketAddr) -> bool) -> io::Result<SocketAddr> {
    server
        .to_socket_addrs()?
        .find(of_family)
        .ok_or_else(|| io::Error::other("the name has no address"))
}

/// Any address of this machine from which `server` can be asked.
fn any_for(server: SocketAddr) -> IpAddr {
    match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn serve(port: u16, linger: Duration) -> io::Result<()> {
    // The first process of a container ends by no signal that it does not take itself.
    let mut asked_to_end = SigSet::empty();
    asked_to_end.add(Signal::SIGTERM);
    asked_to_end.thread_block()?;
    std::thread::spawn(move || {
        let _ = asked_to_end.wait();
        std::thread::sleep(linger);
        std::process::exit(0);
    });
    // Both families, or IPv4 where there is no other.
    let any = [
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
    ];
    let datagrams = UdpSocket::bind(&any[..])?;
    let streams = TcpListener::bind(&any[..])?;
    std::thread::spawn(move || serve_datagrams(&datagrams));
    for stream in streams.incoming() {
        let stream = stream?;
        std::thread::spawn(move || echo(stream));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let caller = stream.peer_addr()?.ip().to_canonical();
    stream.write_all(format!("{caller}\n").as_bytes())?;
    let mut reader = stream.try_clone()?;
    io::copy(&mut reader, &mut stream)?;
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut counts: BTreeMap<IpAddr, u64> = BTreeMap::new();
    let mut buffer = [0; 2048];
    loop {
        let (length, caller) = socket.recv_from(&mut buffer)?;
        let answer = match buffer.get(..length) {
            Some(b"report") => counts
                .iter()
                .map(|(source, count)| format!("{source} {count}\n"))
                .collect(),
            Some(bulk) if bulk.starts_with(b"bulk") => {
                let _ = socket.send_to(bulk, caller);
                continue;
            }
            _ => format!("{}\n", caller.ip().to_canonical()),
        };
        *counts.entry(caller.ip().to_canonical()).or_default() += 1;
        let _ = socket.send_to(answer.as_bytes(), caller);
    }
}

fn ask_tcp(server: SocketAddr, size: usize) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut called = String::new();
    reader.read_line(&mut called)?;
    let bulk: Vec<u8> = (0..size).map(|i| (i / 7 % 251) as u8).collect();
    let sent = bulk.clone();
    let sender = std::thread::spawn(move || {
        stream.write_all(&sent)?;
        stream.shutdown(std::net::Shutdown::Write)
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back)?;
    sender
        .join()
        .map_err(|_| io::Error::other("the sender panicked"))??;
    if back != bulk {
        return Err(io::Error::other(format!(
            "{} of {size} octets came back",
            back.len()
        )));
    }
    print!("{called}");
    Ok(())
}

/// 1 MiB in datagrams, each of which comes back, then what the server calls us.
fn ask_udp(server: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((any_for(server), 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut datagram = [7; 1024];
    let mut buffer = [0; 2048];
    for number in 0..BULK as u32 / 1024 {
        datagram[..8].copy_from_slice(&[*b"bulk", number.to_be_bytes()].concat());
        let mut tries = 10;
        loop {
            socket.send(&datagram)?;
            match socket.recv(&mut buffer) {
                Ok(length) if buffer.get(..length) == Some(&datagram) => break,
                _ if tries == 0 => return Err(io::ErrorKind::TimedOut.into()),
                _ => tries -= 1,
            }
        }
    }
    exchange(server, 0, b"who")
}

/// Connects to the addresses of a server that are `of_family`.
fn flood(
    (server, of_family): (&str, fn(&SocketAddr) -> bool),
    count: u32,
    rate: u32,
    cache: Duration,
) -> io::Result<()> {
    let began = Instant::now();
    let mut held: Option<(Instant, Vec<SocketAddr>)> = None;
    let mut clients = Vec::new();
    for number in 0..count {
        let due = Duration::from_secs(1) * number / rate;
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let known = held
            .take()
            .filter(|(at, _)| !cache.is_zero() && at.elapsed() < cache);
        let known = known.map_or_else(
            || {
                let found = server.to_socket_addrs();
                found.map(|found| (Instant::now(), found.filter(of_family).collect()))
            },
            Ok,
        );
        let (at, addresses): (_, Vec<_>) = match known {
            Ok(known) => known,
            Err(error) => {
                clients.push(std::thread::spawn(move || Err(error)));
                continue;
            }
        };
        // As a client that does not try the next address.
        let address = addresses
            .get(number as usize % addresses.len().max(1))
            .copied();
        held = Some((at, addresses));
        clients.push(std::thread::spawn(move || {
            let address = address.ok_or_else(|| io::Error::other("no address"))?;
            let say = |error: io::Error| io::Error::other(format!("{address}: {error}"));
            greet(address).map_err(say)
        }));
    }
    let mut failed = Vec::new();
    for client in clients {
        match client.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(error.to_string()),
            Err(_) => failed.push("a panic".into()),
        }
    }
    println!(
        "{} of {count} failed {:?}",
        failed.len(),
        failed.iter().take(5).collect::<Vec<_>>()
    );
    Ok(())
}

/// A connection on which the server says what it calls us.
fn greet(address: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut called = String::new();
    BufReader::new(&stream).read_line(&mut called)?;
    if called.ends_with('\n') {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn flow(server: SocketAddr, length: Duration) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(100);
    let end = Instant::now() + length;
    let datagrams = std::thread::spawn(move || -> io::Result<Gaps> {
        let socket = UdpSocket::bind((any_for(server), 0))?;
        socket.connect(server)?;
        let mut gaps = Gaps::new();
        let mut buffer = [0; 64];
        while Instant::now() < end {
            let began = Instant::now();
            socket.set_read_timeout(Some(PAUSE))?;
            gaps.note(socket.send(b"who").is_ok() && socket.recv(&mut buffer).is_ok());
            std::thread::sleep(PAUSE.saturating_sub(began.elapsed()));
        }
        Ok(gaps)
    });
    let mut gaps = Gaps::new();
    let mut connection: Option<BufReader<TcpStream>> = None;
    let mut reconnects = 0;
    while Instant::now() < end {
        let began = Instant::now();
        let answered = request(server, &mut connection, &mut reconnects);
        gaps.note(answered.is_ok());
        if answered.is_err() {
            connection = None;
        }
        std::thread::sleep(PAUSE.saturating_sub(began.elapsed()));
    }
    println!("tcp {gaps}, {} new connections", reconnects - 1);
    let datagrams = datagrams
        .join()
        .map_err(|_| io::Error::other("a panic"))??;
    println!("udp {datagrams}");
    Ok(())
}

/// One request and its answer, over a connection that is made when there is none.
fn request(
    server: SocketAddr,
    connection: &mut Option<BufReader<TcpStream>>,
    reconnects: &mut i32,
) -> io::Result<()> {
    const LIMIT: Duration = Duration::from_secs(1);
    let mut line = String::new();
    if connection.is_none() {
        *reconnects += 1;
        let stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut line)?;
        *connection = Some(reader);
    }
    let Some(reader) = connection else {
        return Ok(());
    };
    reader.get_ref().write_all(b"request\n")?;
    line.clear();
    reader.read_line(&mut line)?;
    if line == "request\n" {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// How many went unanswered, and the longest time without an answer.
struct Gaps {
    all: u32,
    lost: u32,
    last: Instant,
    longest: Duration,
}

impl Gaps {
    fn new() -> Self {
        Self {
            all: 0,
            lost: 0,
            last: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn note(&mut self, answered: bool) {
        self.all += 1;
        self.longest = self.longest.max(self.last.elapsed());
        if answered {
            self.last = Instant::now();
        } else {
            self.lost += 1;
        }
    }
}

impl std::fmt::Display for Gaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let longest = self.longest.as_millis();
        write!(
            f,
            "{} of {} unanswered, at most {longest} ms without",
            self.lost, self.all
        )
    }
}

fn exchange(server: SocketAddr, from: u16, question: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind((any_for(server), from))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut buffer = [0; 2048];
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..10 {
        socket.send(question)?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                print!(
                    "{}",
                    String::from_utf8_lossy(buffer.get(..length).unwrap_or_default())
                );
                return Ok(());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn claim(source: IpAddr, destination: IpAddr, port: u16, count: u32) -> io::Result<()> {
    let (domain, packet) = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (socket2::Domain::IPV4, packet_v4(from, to, port)),
        (IpAddr::V6(from), IpAddr::V6(to)) => (socket2::Domain::IPV6, packet_v6(from, to, port)),
        _ => return Err(io::Error::other("the addresses are of different families")),
    };
    let raw = socket2::Protocol::from(libc::IPPROTO_RAW);
    let socket = socket2::Socket::new(domain, socket2::Type::RAW, Some(raw))?;
    let to = SocketAddr::new(destination, 0);
    let mut sent = 0;
    for number in 0..count {
        // A full queue, or a router that says no, is no reason to stop.
        sent += u32::from(socket.send_to(&packet, &to.into()).is_ok());
        if number % 200 == 199 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    println!("{sent}");
    Ok(())
}

/// A neighbor advertisement and a router advertisement (RFC 4861 sections 4.4 and 4.2). The kernel fills in their checksums.
fn pretend(address: Ipv6Addr) -> io::Result<()> {
    let mut interfaces = nix::ifaddrs::getifaddrs()?;
    let link = interfaces.find_map(|interface| {
        let address = interface.address?;
        let link = address.as_link_addr()?;
        let is_own = interface.interface_name != "lo";
        is_own.then_some((link.ifindex(), link.addr()?))
    });
    let (index, mac) = link.ok_or_else(|| io::Error::other("there is no link"))?;
    let index = u32::try_from(index).map_err(io::Error::other)?;
    let socket = socket2::Socket::new(
        socket2::Domain::IPV6,
        socket2::Type::RAW,
        Some(socket2::Protocol::ICMPV6),
    )?;
    socket.set_multicast_if_v6(index)?;
    // Others are not accepted, because they may come from another link.
    socket.set_multicast_hops_v6(255)?;
    // It overrides what the neighbors know, and has the link address.
    let mut neighbor = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    neighbor.extend(address.octets());
    neighbor.extend([2, 1]);
    neighbor.extend(mac);
    // It is preferred for half an hour.
    let router = [134, 0, 0, 0, 64, 0x08, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = SocketAddr::from(SocketAddrV6::new(all_nodes, 0, 0, index)).into();
    socket.send_to(&neighbor, &to)?;
    socket.send_to(&router, &to)?;
    Ok(())
}

/// A datagram (RFC 768) from port 12345.
fn datagram(port: u16) -> Vec<u8> {
    let mut datagram = vec![0x30, 0x39];
    datagram.extend(port.to_be_bytes());
    datagram.extend([0, 13, 0, 0]);
    datagram.extend(b"claim");
    datagram
}

/// RFC 791; the kernel fills in the length and the checksum of IP, and UDP needs none.
fn packet_v4(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(datagram(port));
    packet
}

/// RFC 8200. Over IPv6 a datagram needs a checksum.
fn packet_v6(source: Ipv6Addr, destination: Ipv6Addr, port: u16) -> Vec<u8> {
    let mut addresses = source.octets().to_vec();
    addresses.extend(destination.octets());
    let mut datagram = datagram(port);
    let summed = [&addresses[..], &[0, 0, 0, 13, 0, 0, 0, 17], &datagram].concat();
    let checksum = checksum(&summed);
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    let head = [0x60, 0, 0, 0, 0, 13, 17, 64];
    [&head[..], &addresses, &datagram].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u16::from_be_bytes([*high, *low]),
        _ => pair
            .first()
            .map_or(0, |high| u16::from_be_bytes([*high, 0])),
    });
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}
