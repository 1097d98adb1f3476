//! Clients on one host that use ports of another one all the time while a page is walked through.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd::testbed::Host;
use nix::sched::{CloneFlags, setns};

/// The time between two exchanges of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// How long an answer may take: only an answer that is lost takes that long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client waits for an answer before it sends its datagram again.
const RESEND_INTERVAL: Duration = Duration::from_millis(500);
const TRIES: usize = 10;
/// How many exchanges of each client [`Traffic::await_more`] waits for.
const MORE: usize = 5;
const QUESTION: &[u8] = b"question";

/// Clients that run until [`Traffic::end`].
pub(crate) struct Traffic {
    is_over: Arc<AtomicBool>,
    clients: Vec<Client>,
}

/// A thread that makes one exchange after another.
struct Client {
    what: &'static str,
    /// The exchanges so far, from the first one that was answered.
    made: Arc<AtomicUsize>,
    /// The errors of those that failed.
    failed: JoinHandle<Vec<String>>,
}

/// What a client did.
pub(crate) struct Exchanges {
    pub(crate) what: &'static str,
    pub(crate) made: usize,
    pub(crate) failed: Vec<String>,
}

impl Traffic {
    /// Starts a server of datagrams on port `udp` of the host `server`, whose address is `at`, and clients on `from`. One client sends
    /// datagrams to it. Two clients use port `tcp` of that host, where a program must send everything back: one opens a connection for each
    /// exchange, and one keeps its connection.
    pub(crate) fn start(from: &Host, server: &Host, at: Ipv4Addr, tcp: u16, udp: u16) -> Self {
        answer_datagrams(server, udp);
        let (tcp, udp) = (SocketAddr::from((at, tcp)), SocketAddr::from((at, udp)));
        let mut traffic = Self {
            is_over: Arc::default(),
            clients: Vec::new(),
        };
        traffic.add(from, "new connections", move || ask(&mut connect(tcp)?));
        let mut kept = None;
        traffic.add(from, "requests on one connection", move || {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => connect(tcp)?,
            };
            ask(&mut connection)?;
            kept = Some(connection);
            Ok(())
        });
        traffic.add(from, "datagrams", move || ask_by_datagram(udp));
        traffic.await_more();
        traffic
    }

    fn add(
        &mut self,
        from: &Host,
        what: &'static str,
        mut exchange: impl FnMut() -> io::Result<()> + Send + 'static,
    ) {
        let network = File::open(format!("/proc/{}/ns/net", from.pid())).expect("a namespace");
        let (made, is_over) = (Arc::<AtomicUsize>::default(), Arc::clone(&self.is_over));
        let count = Arc::clone(&made);
        let failed = std::thread::spawn(move || {
            setns(&network, CloneFlags::CLONE_NEWNET).expect("root enters a namespace");
            let mut failed = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let result = exchange();
                // The tunnel may need a moment until the first exchange.
                if result.is_ok() || count.load(Ordering::Relaxed) > 0 {
                    let number = count.fetch_add(1, Ordering::Relaxed) + 1;
                    failed.extend(
                        result
                            .err()
                            .map(|error| format!("number {number}: {error}")),
                    );
                }
                std::thread::sleep(PAUSE);
            }
            failed
        });
        self.clients.push(Client { what, made, failed });
    }

    /// Waits until each client has made some exchanges that began after the call.
    pub(crate) fn await_more(&self) {
        let end = Instant::now() + ANSWER_TIMEOUT * 12;
        for client in &self.clients {
            let made = || client.made.load(Ordering::Relaxed);
            // An exchange that began before the call may still end.
            let enough = made() + 1 + MORE;
            while made() < enough {
                let what = client.what;
                assert!(Instant::now() < end, "{what}: {} and no more", made());
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Ends all clients.
    pub(crate) fn end(self) -> Vec<Exchanges> {
        self.is_over.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        let exchanges = clients.map(|client| Exchanges {
            what: client.what,
            failed: client.failed.join().expect("no panic"),
            made: client.made.load(Ordering::Relaxed),
        });
        exchanges.collect()
    }
}

/// Listens on a port of a host and sends everything back that arrives on a connection, until the test ends.
pub(crate) fn answer_connections(host: &Host, port: u16) {
    let listener = host.inside(|| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.expect("a namespace").expect("a free port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// Sends every datagram for a port of a host back, until the test ends.
fn answer_datagrams(host: &Host, port: u16) {
    let socket = host.inside(|| UdpSocket::bind(("0.0.0.0", port)));
    let socket = socket.expect("a namespace").expect("a free port");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            // An ICMP error about an earlier answer may be returned here.
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    });
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&server, ANSWER_TIMEOUT)?;
    connection.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(connection)
}

fn ask(connection: &mut TcpStream) -> io::Result<()> {
    connection.write_all(QUESTION)?;
    let mut answer = [0; QUESTION.len()];
    connection.read_exact(&mut answer)?;
    checked(&answer)
}

/// Sends a datagram until it is answered. An answer that is under way when the policy changes is lost, as any datagram can be.
fn ask_by_datagram(server: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(RESEND_INTERVAL))?;
    let mut answer = [0; QUESTION.len()];
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..TRIES {
        let received = socket.send(QUESTION).and_then(|_| socket.recv(&mut answer));
        match received {
            Ok(_) => return checked(&answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn checked(answer: &[u8]) -> io::Result<()> {
    if answer == QUESTION {
        Ok(())
    } else {
        Err(io::Error::other(format!("the answer is {answer:?}")))
    }
}
