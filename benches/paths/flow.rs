//! UDP packets with numbers, from one host to another.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::lab::Node;

const PORT: u16 = 7000;
/// The size of a packet's payload in bytes.
const SIZE: usize = 200;
/// What is under way arrives within this time.
const DRAIN: Duration = Duration::from_millis(500);

/// Packets from one host to another.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Sent>,
    receiver: JoinHandle<Vec<(u64, Instant)>>,
    last: Arc<AtomicU64>,
    began: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    /// How many were sent.
    count: u64,
    /// When there was a route for the first time.
    first: Option<Instant>,
}

/// What was sent and what arrived.
pub(crate) struct Flown {
    pub(crate) sent: u64,
    pub(crate) first_sent: Option<Instant>,
    /// The numbers of the packets that arrived, and when they did.
    pub(crate) arrived: Vec<(u64, Instant)>,
}

impl Flow {
    /// Sends so many packets in a second.
    pub(crate) fn start(from: &Node, to: &Node, packets: u32) -> Self {
        let bind = |port: u16| move || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        let open = |node: &Node, port: u16| -> UdpSocket {
            let socket = node.host.inside(bind(port)).expect("a namespace");
            let socket = socket.expect("a free port");
            let timeout = Some(Duration::from_millis(50));
            socket.set_read_timeout(timeout).expect("a socket");
            let buffer = SockRef::from(&socket).set_recv_buffer_size(8 << 20);
            buffer.expect("a socket");
            socket
        };
        let (source, sink) = (open(from, 0), open(to, PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let last = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let target = SocketAddr::from((to.address, PORT));
        let stopped = Arc::clone(&stop);
        let sender = spawn(move || send(&source, target, packets, &stopped));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&last));
        let receiver = spawn(move || receive(&sink, began, &stopped, &seen));
        Self {
            stop,
            sender,
            receiver,
            last,
            began,
        }
    }

    /// When a packet last arrived.
    pub(crate) fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    pub(crate) fn stop(self) -> Flown {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("no thread panics");
        let arrived = self.receiver.join().expect("no thread panics");
        Flown {
            sent: sent.count,
            first_sent: sent.first,
            arrived,
        }
    }
}

impl Flown {
    /// How many packets did not arrive.
    pub(crate) fn lost(&self) -> u64 {
        let mut numbers: Vec<u64> = self.arrived.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        self.sent - numbers.len() as u64
    }

    /// The longest time without a packet that began or ended in this span.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Option<Duration> {
        let times = self.arrived.windows(2).map(|pair| (pair[0].1, pair[1].1));
        let gaps = times.filter(|(begin, end)| *end >= from && *begin <= to);
        let last = self.arrived.last().map(|(_, at)| *at);
        // A flow that never came back has no gap with an end.
        gaps.map(|(begin, end)| end - begin)
            .max()
            .filter(|_| last.is_some_and(|at| at >= to))
    }
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::spawn(work)
}

fn send(socket: &UdpSocket, to: SocketAddr, packets: u32, stop: &AtomicBool) -> Sent {
    let mut payload = [0; SIZE];
    let mut sent = Sent::default();
    let mut began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_secs_f64() * f64::from(packets)) as u64;
        while sent.count <= due {
            payload[..8].copy_from_slice(&sent.count.to_be_bytes());
            if socket.send_to(&payload, to).is_err() {
                // There is no route yet, or not any more for the moment.
                if sent.first.is_none() {
                    began = Instant::now();
                }
                break;
            }
            sent.first.get_or_insert_with(Instant::now);
            sent.count += 1;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    sent
}

fn receive(
    socket: &UdpSocket,
    began: Instant,
    stop: &AtomicBool,
    last: &AtomicU64,
) -> Vec<(u64, Instant)> {
    let mut buffer = [0; 2 * SIZE];
    let mut arrived = Vec::new();
    let mut end = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            let end = *end.get_or_insert_with(|| Instant::now() + DRAIN);
            if Instant::now() >= end {
                return arrived;
            }
        }
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let now = Instant::now();
        let number = buffer.get(..length).and_then(|bytes| bytes.first_chunk());
        if let Some(number) = number {
            arrived.push((u64::from_be_bytes(*number), now));
            let micros = (now - began).as_micros() as u64;
            last.store(micros, Ordering::Relaxed);
        }
    }
}
