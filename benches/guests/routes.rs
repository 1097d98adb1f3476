//! Two nodes route to one network, and the one in use loses its cable: how soon a new connection is answered through the other one, and
//! what becomes of a stream through the one that failed. Only that one knew the translation of the addresses of the stream.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd::protocol::local::RouteState;
use meshd::testbed::{Host, World};

use crate::Settings;
use crate::bed::{await_peers, programs, status, wait};
use crate::control::meshctl;
use crate::mesh::{Member, Mesh};
use crate::report::{Times, ms, note, print};

const OFFER: &str = "[route]\nadvertise = [\"192.168.77.0/24\"]\n";
const POLICY: &str = r#"
language = 1
default = "allow"
[[route]]
node = "gate-1"
prefix = "192.168.77.0/24"
[[route]]
node = "gate-2"
prefix = "192.168.77.0/24"
"#;
/// The file of the policy, where the mesh is administered.
const POLICY_FILE: &str = "/run/policy.toml";
/// The host in the network.
const PRINTER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 77, 10)), 7000);
/// The interval of the messages on the stream.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long a new connection may take until the next one is tried.
const ATTEMPT: Duration = Duration::from_millis(150);
/// Both nodes have been used for so long before one of them fails.
const STEADY: Duration = Duration::from_secs(2);
/// How long after the failure the stream is looked at, and the longest fail-over.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn fail_over(settings: &Settings) {
    let world = World::new().expect("a network");
    let mesh = Mesh::start(&world, programs());
    let client = mesh.add("client", "");
    let gates = ["gate-1", "gate-2"].map(|name| mesh.add(name, OFFER));
    let printer = world.host("printer").expect("a namespace");
    serve(&printer);
    for (gate, last) in gates.iter().zip(2..) {
        let address = Ipv4Addr::new(192, 168, 77, last);
        let added = gate.host.add_address(address.into(), 24);
        added.expect("an address");
    }
    await_peers(&client.host, gates.len());
    let admin = &mesh.coordinator_host;
    std::fs::write(admin.path(POLICY_FILE), POLICY).expect("its own file system");
    meshctl(admin, &["policy", "apply", POLICY_FILE]);
    let mut taken_over = Times::default();
    let (mut broken, mut survivors) = (Times::default(), 0);
    for _ in 0..settings.runs {
        let used = await_both(&client, &gates);
        wait("the printer answers", || exchange(&client.host).is_ok());
        let stream = Watched::start(&client.host);
        std::thread::sleep(STEADY);
        let failed = Instant::now();
        world.set_cable(&used.host, false).expect("a cable");
        taken_over.add(first_answer(&client.host, failed));
        std::thread::sleep(LIMIT.saturating_sub(failed.elapsed()));
        match stream.stop() {
            End::Broken(at) => broken.add(Some(at.saturating_duration_since(failed))),
            End::Open { last } => {
                broken.add(None);
                let goes_on = last.is_some_and(|last| last.elapsed() < STEADY);
                survivors += usize::from(goes_on);
            }
        }
        world.set_cable(&used.host, true).expect("a cable");
    }
    print(
        "F3",
        "a new connection after the node in use fails",
        &taken_over.shown(),
        "<= 1 s",
        taken_over.percentile(100) <= ms(1000),
    );
    note(
        "F3",
        "a stream through that node ends with an error",
        &broken.shown(),
    );
    note(
        "F3",
        "a stream through that node goes on",
        &format!("{survivors} of {}", settings.runs),
    );
}

/// Waits until one of the nodes is used and the other one stands by. Returns the one that is used.
fn await_both<'a>(client: &Member, gates: &'a [Member]) -> &'a Member {
    let mut used = None;
    wait("both nodes route to the network", || {
        let routes = status(&client.host).routes;
        let with = |state| routes.iter().find(move |route| route.state == state);
        let name = with(RouteState::InUse).map(|route| route.node.to_string());
        used = name.filter(|_| with(RouteState::Standby).is_some());
        used.is_some()
    });
    let mut gates = gates.iter();
    let found = gates.find(|gate| Some(gate.host.name()) == used.as_deref());
    found.expect("a node is named as its host")
}

/// When a new connection is answered, after the failure.
fn first_answer(host: &Host, failed: Instant) -> Option<Duration> {
    while failed.elapsed() < LIMIT {
        let began = Instant::now();
        if exchange(host).is_ok() {
            return Some(failed.elapsed());
        }
        // Refusals come at once.
        std::thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
    }
    None
}

/// Sends back what arrives at the host of the network, until the program ends.
fn serve(printer: &Host) {
    printer.add_address(PRINTER.ip(), 24).expect("an address");
    let listener = printer.inside(|| TcpListener::bind(PRINTER));
    let listener = listener.expect("a namespace").expect("a free port");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 1000];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn connect(host: &Host, limit: Duration) -> io::Result<TcpStream> {
    let open = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&PRINTER, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        Ok(stream)
    };
    host.inside(open).expect("a namespace")
}

/// Sends a message on a new connection, and waits for the answer.
fn exchange(host: &Host) -> io::Result<()> {
    let mut stream = connect(host, ATTEMPT)?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

/// What became of a stream.
#[derive(Debug, Clone, Copy)]
enum End {
    /// It has no error, and the last answer came then.
    Open { last: Option<Instant> },
    /// The program got an error, or the end of the stream.
    Broken(Instant),
}

/// A stream on which messages are sent all the time.
struct Watched {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<End>,
}

impl Watched {
    fn start(host: &Host) -> Self {
        let stream = connect(host, LIMIT).expect("the printer answers");
        stream.set_read_timeout(Some(INTERVAL)).expect("a socket");
        stream.set_write_timeout(Some(INTERVAL)).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(stream, &stopped));
        Self { stop, thread }
    }

    fn stop(self) -> End {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no thread panics")
    }
}

fn watch(mut stream: TcpStream, stop: &AtomicBool) -> End {
    let mut last = None;
    let mut buffer = [0; 100];
    let is_final = |error: &io::Error| {
        let waits = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
        !waits.contains(&error.kind())
    };
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let sent = stream.write_all(b"ping");
        let received = stream.read(&mut buffer);
        let is_failed = sent.as_ref().is_err_and(is_final);
        if is_failed || received.as_ref().is_err_and(is_final) || matches!(received, Ok(0)) {
            return End::Broken(Instant::now());
        }
        if received.is_ok() {
            last = Some(Instant::now());
        }
        std::thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
    }
    End::Open { last }
}
