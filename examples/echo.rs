//! Servers and clients that tests put into containers: who calls, does everything come back, what arrives.
//!
//!     echo serve PORT                    TCP: the caller's address, a line end, then everything back;
//!                                        UDP: the same in one datagram, and `report` counts datagrams by source
//!     echo ask tcp|udp ADDRESS:PORT      prints what the server calls us; over TCP after 1 MiB there and back
//!     echo ask udp ADDRESS:PORT from PORT        the same from a port of one's own
//!     echo report ADDRESS:PORT           prints the server's counts
//!     echo claim SOURCE DESTINATION PORT COUNT   sends datagrams with a source address that may be anybody's

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);
const BULK: usize = 1 << 20;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", port] => serve(parse(port)?),
        ["ask", "tcp", server] => ask_tcp(parse(server)?),
        ["ask", "udp", server] => exchange(parse(server)?, 0, b"who"),
        ["ask", "udp", server, "from", port] => exchange(parse(server)?, parse(port)?, b"who"),
        ["report", server] => exchange(parse(server)?, 0, b"report"),
        ["claim", source, destination, port, count] => claim(
            parse(source)?,
            parse(destination)?,
            parse(port)?,
            parse(count)?,
        ),
        _ => Err(io::Error::other("usage: see the top of examples/echo.rs")),
    }
}

fn parse<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse()
        .map_err(|_| io::Error::other(format!("{text:?} is not what belongs here")))
}

fn serve(port: u16) -> io::Result<()> {
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let streams = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || serve_datagrams(&datagrams));
    for stream in streams.incoming() {
        let stream = stream?;
        std::thread::spawn(move || echo(stream));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let caller = stream.peer_addr()?.ip();
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
            _ => format!("{}\n", caller.ip()),
        };
        *counts.entry(caller.ip()).or_default() += 1;
        let _ = socket.send_to(answer.as_bytes(), caller);
    }
}

fn ask_tcp(server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut called = String::new();
    reader.read_line(&mut called)?;
    let bulk: Vec<u8> = (0..BULK).map(|i| (i / 7 % 251) as u8).collect();
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
            "{} of {BULK} octets came back",
            back.len()
        )));
    }
    print!("{called}");
    Ok(())
}

fn exchange(server: SocketAddr, from: u16, question: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, from))?;
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

/// RFC 791, RFC 768; the kernel fills in the length and the checksum of IP, and UDP needs none.
fn claim(source: Ipv4Addr, destination: Ipv4Addr, port: u16, count: u32) -> io::Result<()> {
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::RAW,
        Some(socket2::Protocol::from(libc::IPPROTO_RAW)),
    )?;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([0x30, 0x39]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 13, 0, 0]);
    packet.extend(b"claim");
    let to = SocketAddr::V4(SocketAddrV4::new(destination, 0));
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
