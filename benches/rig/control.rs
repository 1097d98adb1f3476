//! Daemons in hosts of the lab, and what is said to them.

use std::time::{Duration, Instant};

use meshd::testbed::Host;

pub(crate) const SOCKET: &str = "/run/meshd.sock";
pub(crate) const ADMIN_SOCKET: &str = "/run/admin.sock";

/// Waits until a daemon listens.
pub(crate) fn wait_for(host: &Host, socket: &str) {
    let path = host.path(socket);
    let end = Instant::now() + Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(&path).is_err() {
        assert!(
            Instant::now() < end,
            "the daemon on {} does not start",
            host.name()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs the meshctl of this build; gives what it prints.
pub(crate) fn meshctl(host: &Host, arguments: &[&str]) -> String {
    meshctl_at(env!("CARGO_BIN_EXE_meshctl"), host, arguments)
}

/// Runs the meshctl at the path `program`; gives what it prints.
pub(crate) fn meshctl_at(program: &str, host: &Host, arguments: &[&str]) -> String {
    let output = host
        .command(program)
        .expect("a namespace")
        .args(arguments)
        .env("MESHD_SOCKET", SOCKET)
        .env("MESH_ADMIN_SOCKET", ADMIN_SOCKET)
        .env("MESH_KEY", "/run/mesh.key")
        .output()
        .expect("it is built");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
