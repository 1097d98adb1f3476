//! Looks names up as the programs of a container or of the host do: in its network namespace, with its own resolv.conf.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use super::explain::{LookupResult, Outcome};
use crate::os::random;

/// How long a server may take. Docker's own server waits 4 s for each of its upstreams, so a slow upstream counts as no
/// answer.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum number of servers that are queried, as in a C library.
const MAX_SERVERS: usize = 3;
/// The maximum size of a resolv.conf that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Looks `name` up as the programs of `process` do, or as those of the host.
pub(super) fn look_up(process: Option<u32>, name: &str, expected: Ipv4Addr) -> LookupResult {
    // The lookup has a thread of its own, because the thread stays in the namespace that it enters.
    std::thread::scope(|scope| {
        let look_up = || look_up_here(process, name, expected);
        match scope.spawn(look_up).join() {
            Ok(Ok(servers)) => LookupResult::Servers(servers),
            Ok(Err(error)) => LookupResult::Failed(error.to_string()),
            Err(_) => LookupResult::Failed("the lookup failed unexpectedly".into()),
        }
    })
}

fn look_up_here(
    process: Option<u32>,
    name: &str,
    expected: Ipv4Addr,
) -> io::Result<Vec<(IpAddr, Outcome)>> {
    let (root, network) = match process {
        None => (root_of(None)?, None),
        Some(pid) => {
            // Both directories belong to the same process, even if another process gets its pid in the meantime.
            let process = directory(AT_FDCWD, format!("/proc/{pid}").as_str())?;
            let network = openat(
                &process,
                "ns/net",
                OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            (root_of(Some(&process))?, Some(network))
        }
    };
    let servers = servers(&root)?;
    if let Some(network) = network {
        setns(network, CloneFlags::CLONE_NEWNET)?;
    }
    Ok(servers
        .into_iter()
        .map(|server| {
            let outcome = query(server, name, expected).unwrap_or(Outcome::Silent);
            (server, outcome)
        })
        .collect())
}

/// The root directory of a process, or that of this one.
fn root_of(process: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    match process {
        Some(process) => directory(process, "root"),
        None => directory(AT_FDCWD, "/"),
    }
}

fn directory(parent: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(parent, path, flags, Mode::empty())?)
}

/// The servers of the resolv.conf(5) below `root`. The file belongs to the container: its text is untrusted, and a link
/// may lead to any path, which then means a path in the container.
fn servers(root: &OwnedFd) -> io::Result<Vec<IpAddr>> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // Opening a device or a pipe can have effects. `O_PATH` has none, so the type of the file is verified first.
    let found = File::from(openat2(root, "etc/resolv.conf", how)?);
    if !found.metadata()?.is_file() {
        return Err(io::Error::other("its resolv.conf is not a regular file"));
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .take(MAX_SERVERS)
        .collect()
}

fn query(server: IpAddr, name: &str, expected: Ipv4Addr) -> io::Result<Outcome> {
    let id = random::u32().unwrap_or_default() as u16;
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let mut fqdn = Name::from_ascii(name).map_err(io::Error::other)?;
    fqdn.set_fqdn(true);
    query.add_query(Query::query(fqdn, RecordType::A));
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    // The socket is connected, so that it receives only packets of the server, and also its ICMP errors.
    socket.connect((server, 53))?;
    socket.send(&bytes)?;
    let end = Instant::now() + SERVER_TIMEOUT;
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
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    #[test]
    fn servers_are_parsed_from_any_text() {
        let text = "nameserver 127.0.0.11\n  nameserver\tfd00::1 x\n#nameserver 1.1.1.1\nnameservers 2.2.2.2\nnameserver z\n\0\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.11", "fd00::1"]);
    }

    /// A directory that represents a container's root, with this etc/resolv.conf.
    fn with_resolv_conf(make: impl FnOnce(&Path, &Path)) -> io::Result<Vec<IpAddr>> {
        let root = tempfile::tempdir().expect("a temporary directory");
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).expect("writable");
        make(root.path(), &etc.join("resolv.conf"));
        let path = root.path().to_str().expect("a plain path");
        servers(&directory(AT_FDCWD, path)?)
    }

    #[test]
    fn an_absolute_link_in_a_container_leads_to_a_file_of_the_container() {
        let outside = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(outside.path(), "nameserver 192.0.2.66\n").expect("writable");
        let found = with_resolv_conf(|_, conf| {
            symlink(outside.path(), conf).expect("writable");
        });
        assert!(found.is_err(), "{found:?}");
        let climbing = with_resolv_conf(|_, conf| {
            let up = Path::new("../../../../../../..")
                .join(outside.path().strip_prefix("/").expect("an absolute path"));
            symlink(up, conf).expect("writable");
        });
        assert!(climbing.is_err(), "{climbing:?}");
        let found = with_resolv_conf(|root, conf| {
            std::fs::create_dir(root.join("run")).expect("writable");
            std::fs::write(root.join("run/made.conf"), "nameserver 192.0.2.1\n").expect("writable");
            symlink("/run/made.conf", conf).expect("writable");
        });
        let expected: IpAddr = "192.0.2.1".parse().expect("a literal");
        assert_eq!(found.expect("in the container"), [expected]);
    }

    #[test]
    fn a_resolv_conf_that_is_no_regular_file_is_not_read() {
        let pipe = with_resolv_conf(|_, conf| {
            nix::unistd::mkfifo(conf, Mode::S_IRWXU).expect("writable");
        });
        let error = pipe.expect_err("a pipe").to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let folder = with_resolv_conf(|_, conf| std::fs::create_dir(conf).expect("writable"));
        assert!(folder.is_err(), "{folder:?}");
    }
}
