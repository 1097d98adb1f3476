//! A guest comes in and goes out: the time to a name, the size of the configuration, and the time until nothing is answered any more.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd::testbed::{Host, World};

use crate::Settings;
use crate::bed::{await_peers, programs, wait};
use crate::control::meshctl;
use crate::device::{Device, resolves};
use crate::mesh::{Member, Mesh};
use crate::report::{Times, ms, note, print};

const ECHO: u16 = 7;
/// The interval of the packets of a guest.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long a guest sends before it is removed, and after that.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_secs(4);
/// The most bytes that the camera of a phone reads well from a terminal.
const MAX_CONFIG: usize = 400;

pub(crate) fn in_and_out(settings: &Settings) {
    let world = World::new().expect("a network");
    let logs = tempfile::tempdir().expect("a temporary directory");
    let mesh = Mesh::start(&world, programs());
    let door = mesh.add("door", "");
    let web = mesh.add("web", "[[service]]\nname = \"web\"\nport = 80\n");
    let guest = world.host("guest").expect("a namespace");
    await_peers(&door.host, 1);
    wait("the door resolves the name", || resolves(&door.host));
    echo(&web);
    let (mut resolved, mut removed, mut commands) =
        (Times::default(), Times::default(), Times::default());
    let mut largest = 0;
    for run in 0..settings.runs {
        let name = format!("guest-{run}");
        let admin = &mesh.coordinator_host;
        let config = meshctl(admin, &["guest", "add", &name, "--door", "door"]);
        largest = largest.max(config.len());
        let began = Instant::now();
        let _device = Device::up(&guest, &config, logs.path());
        let is_resolved = resolves(&guest);
        resolved.add(is_resolved.then(|| began.elapsed()));
        let packets = Packets::start(&guest, SocketAddr::from((web.address, ECHO)));
        std::thread::sleep(BEFORE);
        let began = Instant::now();
        meshctl(admin, &["guest", "remove", &name, "--yes"]);
        commands.add(Some(began.elapsed()));
        std::thread::sleep(AFTER.saturating_sub(began.elapsed()));
        // A guest that was not answered before its removal has not shown when that ended.
        let last = packets.stop().filter(|last| *last + BEFORE / 2 > began);
        let after = last.map(|last| last.saturating_duration_since(began));
        removed.add(after.filter(|after| *after + AFTER / 4 < AFTER));
    }
    print(
        "F1",
        "from the steps of `wg-quick up` to a name",
        &resolved.shown(),
        "p50 <= 300 ms",
        resolved.percentile(50) <= ms(300),
    );
    print(
        "F1",
        "last answer after `guest remove` began",
        &removed.shown(),
        "<= 1 s",
        removed.percentile(100) <= ms(1000),
    );
    note("F1", "`guest remove` itself ends", &commands.shown());
    print(
        "F1",
        "the largest configuration",
        &format!("{largest} bytes"),
        "<= 400 bytes",
        largest <= MAX_CONFIG,
    );
}

/// Sends each packet back that arrives at a node, until the program ends.
fn echo(node: &Member) {
    let bind = || UdpSocket::bind((node.address, ECHO));
    let socket = node.host.inside(bind).expect("a namespace");
    let socket = socket.expect("a free port");
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    });
}

/// Packets that are sent all the time, and their answers.
struct Packets {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Instant>>,
}

impl Packets {
    fn start(from: &Host, to: SocketAddr) -> Self {
        let open = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(INTERVAL))?;
            socket.connect(to)?;
            Ok(socket)
        };
        let socket = from.inside(open).expect("a namespace");
        let socket = socket.expect("a route");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut sent, mut last) = (None::<Instant>, None);
            while !stopped.load(Ordering::Relaxed) {
                if sent.is_none_or(|sent| sent.elapsed() >= INTERVAL) {
                    let _ = socket.send(b"anybody there?");
                    sent = Some(Instant::now());
                }
                if socket.recv(&mut [0; 100]).is_ok() {
                    last = Some(Instant::now());
                }
            }
            last
        });
        Self { stop, thread }
    }

    /// Stops to send. Returns when the last answer came.
    fn stop(self) -> Option<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no thread panics")
    }
}
