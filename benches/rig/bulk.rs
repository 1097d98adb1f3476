//! A TCP stream from one host to another.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meshd::testbed::Host;

/// A stream, and the threads at both ends of it.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<io::Result<u64>>,
    reader: JoinHandle<io::Result<u64>>,
    received: Arc<AtomicU64>,
}

impl Stream {
    /// Sends from one host to `target`, an address of the other, at most so many bytes in a second, or as many as pass.
    pub(crate) fn start(from: &Host, to: &Host, target: SocketAddr, rate: Option<f64>) -> Self {
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, target.port()));
        let listener = to.inside(listen).expect("a namespace");
        let listener = listener.expect("a free port");
        let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(20));
        let stream = from.inside(connect).expect("a namespace");
        let mut stream = stream.expect("the peer is reached");
        let (mut accepted, _) = listener.accept().expect("it is connected");
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&received));
        let writer = std::thread::spawn(move || {
            let block = vec![7; if rate.is_some() { 8 << 10 } else { 128 << 10 }];
            let (mut sent, began) = (0, Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                if rate.is_some_and(|rate| sent as f64 > rate * began.elapsed().as_secs_f64()) {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                stream.write_all(&block)?;
                sent += block.len() as u64;
            }
            Ok(sent)
        });
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            loop {
                match accepted.read(&mut buffer)? {
                    0 => return Ok(count.load(Ordering::Relaxed)),
                    length => count.fetch_add(length as u64, Ordering::Relaxed),
                };
            }
        });
        Self {
            stop,
            writer,
            reader,
            received,
        }
    }

    /// The number of bytes that arrived so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the stream. Returns whether all that was sent arrived.
    pub(crate) fn stop(self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.writer.join().expect("no thread panics");
        let received = self.reader.join().expect("no thread panics");
        matches!((sent, received), (Ok(sent), Ok(received)) if sent == received)
    }
}
