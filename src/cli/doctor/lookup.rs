//! Lookups where programs make them: in a container's network, by its own resolv.conf.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sched::{CloneFlags, setns};

use super::explain::{Found, Outcome};

/// How long a server may take: Docker's own waits 4 s for each of those behind it, so a slow one shows as silence.
const PATIENCE: Duration = Duration::from_secs(3);
/// Servers asked at most: what a libc takes.
const SERVERS: usize = 3;
/// Octets of a resolv.conf at most.
const MOST: u64 = 64 * 1024;

/// Looks `name` up as programs of `process` do, or those of the host.
pub(super) fn look_up(process: Option<u32>, name: &str, expected: Ipv4Addr) -> Found {
    // A thread of its own: the namespace it enters ends with it.
    std::thread::scope(|scope| {
        let look = || inside(process, name, expected);
        match scope.spawn(look).join() {
            Ok(Ok(servers)) => Found::Servers(servers),
            Ok(Err(error)) => Found::Closed(error.to_string()),
            Err(_) => Found::Closed("the lookup broke off".into()),
        }
    })
}

fn inside(
    process: Option<u32>,
    name: &str,
    expected: Ipv4Addr,
) -> io::Result<Vec<(IpAddr, Outcome)>> {
    let (path, network) = match process {
        None => (PathBuf::from("/etc/resolv.conf"), None),
        Some(pid) => (
            format!("/proc/{pid}/root/etc/resolv.conf").into(),
            Some(File::open(format!("/proc/{pid}/ns/net"))?),
        ),
    };
    let servers = servers(&path)?;
    if let Some(network) = network {
        setns(network, CloneFlags::CLONE_NEWNET)?;
    }
    Ok(servers
        .into_iter()
        .map(|server| {
            let outcome = ask(server, name, expected).unwrap_or(Outcome::Silent);
            (server, outcome)
        })
        .collect())
}

/// The servers of a resolv.conf(5). Its text is the container's own, and may be anything.
fn servers(path: &std::path::Path) -> io::Result<Vec<IpAddr>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("its resolv.conf is no regular file"));
    }
    let mut octets = Vec::new();
    file.take(MOST).read_to_end(&mut octets)?;
    Ok(parse(&String::from_utf8_lossy(&octets)))
}

fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .take(SERVERS)
        .collect()
}

fn ask(server: IpAddr, name: &str, expected: Ipv4Addr) -> io::Result<Outcome> {
    let id = getrandom::u32().unwrap_or_default() as u16;
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let mut fqdn = Name::from_ascii(name).map_err(io::Error::other)?;
    fqdn.set_fqdn(true);
    query.add_query(Query::query(fqdn, RecordType::A));
    let octets = query.to_vec().map_err(io::Error::other)?;
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    // Connected: only the server's replies come in, and its refusals are told.
    socket.connect((server, 53))?;
    socket.send(&octets)?;
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Outcome::Silent);
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        let reply = buffer.get(..length).and_then(|o| Message::from_vec(o).ok());
        if let Some(reply) = reply.filter(|r| r.metadata.id == id) {
            return Ok(outcome(&reply, expected));
        }
    }
}

fn outcome(reply: &Message, expected: Ipv4Addr) -> Outcome {
    let addresses: Vec<Ipv4Addr> = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(a.0),
            _ => None,
        })
        .collect();
    match reply.metadata.response_code {
        ResponseCode::NoError if addresses.contains(&expected) => Outcome::Right,
        ResponseCode::NoError if addresses.is_empty() => Outcome::Unknown,
        ResponseCode::NoError => Outcome::Wrong,
        ResponseCode::NXDomain => Outcome::Unknown,
        _ => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_any_text() {
        let text = "nameserver 127.0.0.11\n  nameserver\tfd00::1 x\n#nameserver 1.1.1.1\nnameservers 2.2.2.2\nnameserver z\n\0\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.11", "fd00::1"]);
    }
}
