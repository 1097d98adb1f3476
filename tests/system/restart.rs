//! meshd killed in the middle of things.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::mesh::Mesh;

#[test]
fn a_transfer_continues_when_meshd_is_killed_and_started_again() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    let server = SocketAddr::new(mesh.addresses(1).0.into(), 9000);
    let listener = mesh.nodes[1]
        .host
        .inside(|| TcpListener::bind(server))
        .expect("a namespace")
        .expect("a free port");
    static RECEIVED: AtomicU64 = AtomicU64::new(0);
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a socket");
        let mut buffer = vec![0; 65_536];
        let mut expected = 0u8;
        loop {
            let read = stream.read(&mut buffer).expect("the transfer goes on");
            if read == 0 {
                return;
            }
            for byte in &buffer[..read] {
                assert_eq!(*byte, expected);
                expected = expected.wrapping_add(1);
            }
            RECEIVED.fetch_add(read as u64, Ordering::Relaxed);
        }
    });
    let mut stream = mesh.nodes[0]
        .host
        .inside(|| TcpStream::connect(server))
        .expect("a namespace")
        .expect("the way through the tunnel");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let sender = std::thread::spawn(move || {
        let chunk: Vec<u8> = (0..=255u8).cycle().take(16_384).collect();
        while !stopped.load(Ordering::Relaxed) {
            stream.write_all(&chunk).expect("the transfer goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    mesh.wait_until("the transfer runs", || {
        RECEIVED.load(Ordering::Relaxed) > 1 << 20
    });

    let killed = Instant::now();
    mesh.kill_node(1);
    mesh.start_node(1);
    let at_restart = RECEIVED.load(Ordering::Relaxed);
    mesh.wait_until("the transfer goes on", || {
        RECEIVED.load(Ordering::Relaxed) > at_restart + (1 << 20)
    });
    eprintln!(
        "kill -9 of the receiver's meshd: the transfer had gone on {:.0} ms later",
        killed.elapsed().as_secs_f64() * 1e3
    );
    stop.store(true, Ordering::Relaxed);
    sender.join().expect("the sender saw no error");
    receiver
        .join()
        .expect("the receiver saw every byte in order");
}
