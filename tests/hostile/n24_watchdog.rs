//! A meshd in which one loop hangs sends no keep-alive message to the service manager, which then ends it and starts it again.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::kit::WAIT_TIMEOUT;
use crate::mesh::{Mesh, SOCKET};

/// The watchdog interval of the service manager.
const INTERVAL: Duration = Duration::from_millis(1200);
/// A pause that is too long for chance: meshd sends a keep-alive message several times in an interval.
const SILENCE: Duration = Duration::from_secs(3);

/// The service manager's end of the notification socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Waits for a keep-alive message. Returns whether one was received within `limit`.
    fn receives_a_sign(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut message = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.0.set_read_timeout(Some(left)).expect("a limit");
            let Ok(length) = self.0.recv(&mut message) else {
                continue;
            };
            let text = String::from_utf8_lossy(&message[..length]);
            if text.lines().any(|line| line == "WATCHDOG=1") {
                return true;
            }
        }
    }

    /// Whether the keep-alive messages end. Some may still be in the socket.
    fn falls_silent(&self) -> bool {
        let end = Instant::now() + WAIT_TIMEOUT;
        while Instant::now() < end {
            if !self.receives_a_sign(SILENCE) {
                return true;
            }
        }
        false
    }
}

/// A thread of another process that is stopped until this value is dropped.
struct Held(libc::pid_t);

impl Held {
    fn stop(thread: libc::pid_t) -> Option<Self> {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these calls act on another process. The only memory of this process that they write is `status`.
        unsafe {
            if libc::ptrace(libc::PTRACE_SEIZE, thread, nothing, nothing) != 0 {
                return None;
            }
            assert_eq!(
                libc::ptrace(libc::PTRACE_INTERRUPT, thread, nothing, nothing),
                0
            );
            let mut status = 0;
            assert_eq!(libc::waitpid(thread, &raw mut status, libc::__WALL), thread);
        }
        Some(Self(thread))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, nothing, nothing) };
    }
}

/// The thread of `process` that is called `name`, or its first thread if `name` is empty.
fn thread_of(process: u32, name: &str) -> libc::pid_t {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    for thread in threads.flatten() {
        let number: u32 = thread
            .file_name()
            .to_string_lossy()
            .parse()
            .expect("a number");
        let called = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        if called.trim() == name || (name.is_empty() && number == process) {
            return number.try_into().expect("small");
        }
    }
    panic!("no thread is called {name}");
}

#[test]
fn a_data_thread_the_timers_or_the_agent_that_hang_end_the_signs_of_life() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    mesh.kill_node(0);

    let host = &mesh.nodes[0].host;
    let socket =
        UnixDatagram::bind(host.path("/run/notify.sock")).expect("the host's own directory");
    let manager = Manager(socket);
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    command
        .args(["--state-dir", "/run/state", "--socket", SOCKET])
        .env("NOTIFY_SOCKET", "/run/notify.sock")
        .env("WATCHDOG_USEC", INTERVAL.as_micros().to_string());
    let daemon = host.start(&mut command, &mesh.log(0)).expect("a program");
    mesh.wait_until("the node is up", || {
        let ended = mesh.on(0, &["status", "--check", "live"]);
        ended.code == 0
    });

    // The threads of a node without a peer are idle. Idle threads must not count as threads that hang.
    let end = Instant::now() + SILENCE;
    while Instant::now() < end {
        assert!(manager.receives_a_sign(WAIT_TIMEOUT));
    }
    for name in ["mesh-data-0", "mesh-timer", ""] {
        let Some(held) = Held::stop(thread_of(daemon.pid(), name)) else {
            meshd::testbed::skip_part_of_test("threads of other processes cannot be stopped here");
            return;
        };
        assert!(manager.falls_silent(), "{name:?} hangs and nobody notices");
        drop(held);
        assert!(manager.receives_a_sign(WAIT_TIMEOUT), "{name:?} goes on");
    }
    let log = daemon.log();
    for name in ["mesh-data-0", "mesh-timer"] {
        assert!(log.contains(name), "{log}");
    }
}
