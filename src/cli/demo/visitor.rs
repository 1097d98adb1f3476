//! The server of a page, and its client, which looks the name up and fetches the page. Neither uses the code of meshd.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::testbed::{Host, TestbedError};

const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `page` on `port` of `host` for as long as this program runs.
pub(super) fn serve(host: &Host, port: u16, page: &'static str) -> Result<(), TestbedError> {
    let listener = host
        .inside(|| TcpListener::bind(("0.0.0.0", port)))?
        .map_err(|e| TestbedError::Io("serve a page", e))?;
    let thread = std::thread::Builder::new().name("demo-page".into());
    let started = thread.spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.set_read_timeout(Some(IO_TIMEOUT));
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    started
        .map(drop)
        .map_err(|e| TestbedError::Io("serve a page", e))
}

/// Returns the addresses of `name` that `resolver` answers to a program on `host`.
pub(super) fn look_up(host: &Host, resolver: SocketAddr, name: &str) -> io::Result<Vec<IpAddr>> {
    host.inside(|| query(resolver, name))
        .map_err(io::Error::other)?
}

fn query(resolver: SocketAddr, name: &str) -> io::Result<Vec<IpAddr>> {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(
        Name::from_ascii(name).map_err(io::Error::other)?,
        RecordType::A,
    ));
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(&query.to_vec().map_err(io::Error::other)?, resolver)?;
    let mut buffer = [0; 1500];
    let (length, _) = socket.recv_from(&mut buffer)?;
    let reply =
        Message::from_vec(buffer.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
    Ok(reply
        .answers
        .iter()
        .filter_map(|record| {
            if let RData::A(a) = &record.data {
                Some(IpAddr::V4(a.0))
            } else {
                None
            }
        })
        .collect())
}

/// Returns the body of an HTTP GET from `host`.
pub(super) fn fetch(host: &Host, server: SocketAddr) -> io::Result<String> {
    host.inside(|| get(server)).map_err(io::Error::other)?
}

fn get(server: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, IO_TIMEOUT)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: web.svc.mesh\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.take(65_536).read_to_string(&mut text)?;
    text.split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
