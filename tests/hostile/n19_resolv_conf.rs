//! meshd has no right to write in /etc, and asks a helper to write /etc/resolv.conf. An intruder who controls meshd can choose the
//! server in that file, and change nothing else.

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use meshd::testbed::{Host, Running};

use crate::mesh::{Ended, Mesh, SOCKET, run, write};

const BEFORE: &str = "nameserver 198.51.100.9\noptions timeout:2\n";
/// The request to the helper, in the directory of the socket.
const REQUEST: &str = "/run/resolv.conf";

/// Gives the host its own /etc, since all hosts of a test share that of the machine.
fn own_etc(host: &Host) {
    let script = "cp -a /etc /run/etc && mount --bind /run/etc /etc && rm -f /etc/resolv.conf /etc/resolv.conf.before-meshd && cat > /etc/resolv.conf";
    let mut child = Command::new("nsenter")
        .args(["-t", &host.pid().to_string(), "-m", "sh", "-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nsenter");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(BEFORE.as_bytes()).expect("the shell reads");
    drop(input);
    assert!(child.wait().expect("it ends").success());
}

fn resolv_conf(host: &Host) -> String {
    std::fs::read_to_string(host.path("/run/etc/resolv.conf")).unwrap_or_default()
}

/// Starts meshd with a read-only /etc, as its unit does.
fn start_confined(mesh: &Mesh, config: &str) -> Running {
    let host = &mesh.nodes[0].host;
    let mut command = host.command("unshare").expect("a namespace");
    let script = "mount -o remount,bind,ro /etc && exec \"$0\" \"$@\"";
    command
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_meshd")])
        .args([
            "--state-dir",
            "/run/state",
            "--socket",
            SOCKET,
            "--config",
            config,
        ]);
    host.start(&mut command, &mesh.log(0)).expect("a program")
}

/// Runs the command of the helper's unit.
fn helper(host: &Host) -> Ended {
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    run(command.args([
        "--state-dir",
        "/run/none",
        "--socket",
        SOCKET,
        "resolv-conf",
        "apply",
    ]))
}

#[test]
fn a_helper_writes_what_meshd_asks_for_and_follows_nothing_that_an_intruder_puts_there() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    mesh.kill_node(0);
    let host = &mesh.nodes[0].host;
    own_etc(host);
    let config = write(
        host,
        "/run/meshd.toml",
        "[dns]\nmanage_resolv_conf = true\n",
    );
    let mut daemon = start_confined(&mesh, &config);
    let request = host.path(REQUEST);
    mesh.wait_until("meshd writes a request", || request.exists());
    assert_eq!(
        resolv_conf(host),
        BEFORE,
        "meshd cannot write in /etc itself"
    );

    // The helper writes the file that meshd asks for.
    let applied = helper(host);
    assert_eq!(applied.code, 0, "{applied:?}");
    let ours = resolv_conf(host);
    assert!(
        ours.contains("\nnameserver 10.210.0.53\noptions timeout:2\n"),
        "{ours}"
    );
    mesh.wait_until("meshd shows no problem about resolv.conf", || {
        let problems = mesh.status(0).problems;
        !problems
            .iter()
            .any(|problem| problem.what.contains("resolv.conf"))
    });

    // An intruder who controls meshd can write in its directories, and puts a link there which root could follow.
    let secret = host.path("/run/secret");
    std::fs::write(&secret, "nameserver 192.0.2.66\nroot:$6$secret:0:0\n").expect("ours");
    std::fs::remove_file(&request).expect("there");
    symlink("/run/secret", &request).expect("ours");
    let refused = helper(host);
    assert!(
        refused.code != 0 && refused.stderr.contains("it is a link"),
        "{refused:?}"
    );
    std::fs::remove_file(&request).expect("there");
    for text in [
        "nameserver 192.0.2.66\nnameserver 192.0.2.67\n",
        "search evil.example\nnameserver 192.0.2.66\n",
        "nameserver 192.0.2.66\n* * * * * root sh\n",
    ] {
        std::fs::write(&request, text).expect("ours");
        let refused = helper(host);
        assert!(
            refused.code != 0 && refused.stderr.contains("is not followed"),
            "{refused:?}"
        );
    }
    assert_eq!(resolv_conf(host), ours);
    std::fs::remove_file(&request).expect("there");

    // When meshd ends, it asks for the file as it was before.
    assert!(daemon.stop().is_some_and(|status| status.success()));
    assert!(request.exists(), "it asks");
    assert_eq!(resolv_conf(host), ours);
    let restored = helper(host);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(resolv_conf(host), BEFORE);
}

#[test]
fn what_the_unit_runs_as_root_at_the_end_follows_no_link_in_meshds_directory() {
    let Some(mesh) = Mesh::start(1) else {
        return;
    };
    let host = &mesh.nodes[0].host;
    own_etc(host);
    let ours = "# Written by meshd\nnameserver 10.210.0.53\n";
    std::fs::write(host.path("/run/etc/resolv.conf"), ours).expect("ours");
    let secret = host.path("/run/secret");
    std::fs::write(&secret, "root:$6$secret:0:0\n").expect("ours");
    let copy = host.path("/run/state/resolv.conf.before-meshd");
    symlink("/run/secret", &copy).expect("ours");
    let restore = || {
        let mut command = host
            .command(env!("CARGO_BIN_EXE_meshd"))
            .expect("a namespace");
        run(command.args(["--state-dir", "/run/state", "--restore-resolv-conf"]))
    };
    restore();
    assert!(
        !resolv_conf(host).contains("secret"),
        "{}",
        resolv_conf(host)
    );
    // From a copy that belongs to another user, only lines that a resolv.conf can have are restored.
    let _ = std::fs::remove_file(&copy);
    std::fs::write(&copy, format!("root:$6$secret:0:0\n{BEFORE}")).expect("ours");
    std::os::unix::fs::chown(&copy, Some(65_534), None).expect("root");
    let restored = restore();
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(resolv_conf(host), BEFORE);
}
