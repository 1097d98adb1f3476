//! The local sockets serve the members of their group, whether it is their primary group or a supplementary one, and nobody else.

use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::kit::Coordinator;

const GROUP: u32 = 4_242;
/// The user id of the callers, and their primary group unless it is said otherwise.
const USER: u32 = 65_534;

/// A program that connects to the socket: its primary group, and its supplementary groups when it connects and when it sends a
/// request.
#[derive(Debug, Clone)]
struct Caller {
    primary: u32,
    connecting: Vec<u32>,
    asking: Vec<u32>,
}

impl Caller {
    fn with(groups: &[u32]) -> Self {
        Self {
            primary: USER,
            connecting: groups.to_vec(),
            asking: groups.to_vec(),
        }
    }
}

/// Sets the supplementary groups of this thread alone. The function of the C library sets those of all threads.
fn set_groups(groups: &[u32]) -> bool {
    // SAFETY: the kernel reads `groups.len()` groups from a live slice.
    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0 }
}

/// Returns the status line that the caller receives, or the reason why it cannot connect.
fn ask_as(path: &Path, caller: &Caller) -> String {
    let set = set_groups(&caller.connecting);
    // The saved user id stays that of root, so that the groups can be changed once more.
    // SAFETY: the calls take numbers only.
    let changed = unsafe {
        libc::syscall(libc::SYS_setresgid, caller.primary, caller.primary, 0) == 0
            && libc::syscall(libc::SYS_setresuid, USER, USER, 0) == 0
    };
    assert!(set && changed, "root may become anybody");
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    // SAFETY: the call takes numbers only.
    let back = unsafe { libc::syscall(libc::SYS_setresuid, USER, 0, 0) == 0 };
    assert!(back && set_groups(&caller.asking), "the saved id is root's");
    stream
        .write_all(b"GET /v1/mesh HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("the server reads");
    let mut line = String::new();
    std::io::BufReader::new(stream)
        .read_line(&mut line)
        .expect("the server answers");
    line
}

/// Calls [`ask_as`] on a thread of its own, since the thread's user and groups stay changed.
fn answer(path: &Path, caller: &Caller) -> String {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask_as(path, caller));
        asked.join().expect("no panic")
    })
}

/// A coordinator whose socket belongs to [`GROUP`], as systemd's `Group=` or a directory with the set-group-ID bit makes it.
fn with_group() -> (Coordinator, PathBuf) {
    let mut coordinator = Coordinator::start();
    let state = coordinator.state_directory();
    let directory = state.parent().expect("it is in one");
    chown(directory, None, Some(GROUP)).expect("root");
    let mode = std::fs::Permissions::from_mode(0o2755);
    std::fs::set_permissions(directory, mode).expect("root");
    let socket = directory.join("s");
    coordinator.restart();
    (coordinator, socket)
}

#[test]
fn a_member_of_the_sockets_group_is_served_however_it_is_one_and_nobody_else() {
    if !nix::unistd::geteuid().is_root() {
        return meshd::testbed::skip_test("becoming another user needs root");
    }
    let (_coordinator, socket) = with_group();
    let many: Vec<u32> = (5_000..6_000).collect();
    let members = [
        Caller::with(&[GROUP]),
        Caller::with(&[many.as_slice(), &[GROUP]].concat()),
        Caller {
            primary: GROUP,
            ..Caller::with(&many)
        },
        // The groups at the time of the connection count: a program that gives them up afterwards keeps its connection.
        Caller {
            asking: vec![],
            ..Caller::with(&[GROUP])
        },
    ];
    let strangers = [Caller::with(&[]), Caller::with(&many)];
    for caller in &members {
        let line = answer(&socket, caller);
        assert!(line.contains(" 200 "), "{line}");
    }
    for caller in &strangers {
        let line = answer(&socket, caller);
        assert!(line.contains("Permission denied"), "{line}");
    }

    // The server verifies the group as well, where the mode of the socket lets everybody connect.
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(&socket, open).expect("root");
    for caller in &strangers {
        let line = answer(&socket, caller);
        assert!(line.contains(" 403 "), "{line}");
    }
    // A group that the caller takes after it has connected does not count.
    let late = Caller {
        asking: vec![GROUP],
        ..Caller::with(&[])
    };
    let line = answer(&socket, &late);
    assert!(line.contains(" 403 "), "{line}");
    for caller in &members {
        let line = answer(&socket, caller);
        assert!(line.contains(" 200 "), "{line}");
    }
}
