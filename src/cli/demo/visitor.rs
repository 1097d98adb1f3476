//! Somebody who serves a page, looks a name up and fetches it, with nothing of meshd's.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::testbed::{Host, LabError};

const LIMIT: Duration = Duration::from_secs(5);

/// Serves `page` on `port` of `host` for as long as this program runs.
pub(super) fn serve(host: &Host, port: u16, page: &'static str) -> Result<(), LabError> {
    let listener = host
        .inside(|| TcpListener::bind(("0.0.0.0", port)))?
        .map_err(|e| LabError::Io("serve a page", e))?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.set_read_timeout(Some(LIMIT));
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    Ok(())
}

/// The addresses of `name`, asked of `resolver` by a program on `host`.
pub(super) fn look_up(host: &Host, resolver: SocketAddr, name: &str) -> io::Result<Vec<IpAddr>> {
    host.inside(|| ask(resolver, name))
        .map_err(io::Error::other)?
}

fn ask(resolver: SocketAddr, name: &str) -> io::Result<Vec<IpAddr>> {
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

/// What an HTTP GET from `host` brings.
pub(super) fn fetch(host: &Host, server: SocketAddr) -> io::Result<String> {
    host.inside(|| get(server)).map_err(io::Error::other)?
}

fn get(server: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
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
