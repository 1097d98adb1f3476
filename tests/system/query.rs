//! Asks a resolver, over UDP and TCP, and fetches pages, from inside a host.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use meshd::testbed::Host;

const LIMIT: Duration = Duration::from_secs(5);

/// An answer as text: code, the data of the answers in order, the types in the authority section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: ResponseCode,
    pub(crate) data: Vec<String>,
    pub(crate) authority: Vec<String>,
}

/// Asks `server` from `host`, over TCP if `tcp`.
pub(crate) fn ask(
    host: &Host,
    server: IpAddr,
    name: &str,
    record_type: RecordType,
    tcp: bool,
) -> Option<Answer> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(
        Name::from_ascii(name).expect("a literal"),
        record_type,
    ));
    let bytes = query.to_vec().expect("a small message");
    let server = SocketAddr::new(server, 53);
    let reply = host
        .inside(|| {
            if tcp {
                over_tcp(server, &bytes)
            } else {
                over_udp(server, &bytes)
            }
        })
        .expect("a namespace")
        .ok()?;
    let reply = Message::from_vec(&reply).expect("a reply that parses");
    let mut data: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    Some(Answer {
        code: reply.metadata.response_code,
        data,
        authority: reply
            .authorities
            .iter()
            .map(|r| r.record_type().to_string())
            .collect(),
    })
}

fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(query, server)?;
    let mut buffer = vec![0; 4096];
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(from, server, "a reply comes from where it was asked");
    buffer.truncate(length);
    Ok(buffer)
}

fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&(query.len() as u16).to_be_bytes())?;
    stream.write_all(query)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// Serves `page` on `port` of `host` until the test ends.
pub(crate) fn serve_page(host: &Host, port: u16, page: &'static str) {
    let listener = host
        .inside(|| TcpListener::bind(("0.0.0.0", port)))
        .expect("a namespace")
        .expect("a free port");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(LIMIT));
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
}

/// The body of the answer to an HTTP GET from `host`.
pub(crate) fn fetch(host: &Host, server: SocketAddr) -> io::Result<String> {
    host.inside(|| {
        let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: web.svc.mesh\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default())
    })
    .expect("a namespace")
}

/// Answers every query that is sent to `listen` on `host`, as a resolver outside the mesh does, until the test ends.
/// `said` makes the answers and the additional records.
pub(crate) fn serve_answers(
    host: &Host,
    listen: (&str, u16),
    said: impl Fn(&Query) -> (Vec<Record>, Vec<Record>) + Send + 'static,
) {
    let socket = host
        .inside(|| UdpSocket::bind(listen))
        .expect("a namespace")
        .expect("a free port");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let Ok(query) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.metadata.recursion_available = true;
            for question in &query.queries {
                reply.add_query(question.clone());
                let (answers, additional) = said(question);
                for record in answers {
                    reply.add_answer(record);
                }
                for record in additional {
                    reply.add_additional(record);
                }
            }
            let _ = socket.send_to(&reply.to_vec().expect("a small message"), client);
        }
    });
}

/// Does the same with one address for every name.
pub(crate) fn serve_address(host: &Host, listen: (&str, u16), address: Ipv4Addr, ttl: u32) {
    serve_answers(host, listen, move |question| {
        let record = || Record::from_rdata(question.name().clone(), ttl, RData::A(address.into()));
        let asked = question.query_type() == RecordType::A;
        (asked.then(record).into_iter().collect(), vec![])
    });
}
