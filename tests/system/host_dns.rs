//! Lookups of the host itself: meshd manages /etc/resolv.conf, configures systemd-resolved over D-Bus, and `doctor` checks both.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use meshd::protocol::local::{Checkup, ContainerResolver, NetworkKind};
use meshd::testbed::Host;

use crate::mesh::{Ended, Mesh, SOCKET, run, write};
use crate::query::serve_address;

/// A resolver of the world outside, on port 53: every name is `address`.
fn serve_elsewhere(host: &Host, listen: &str, address: [u8; 4]) {
    serve_address(host, (listen, 53), address.into(), 1);
}

/// Gives a node an /etc of its own with `resolv_conf` in it: the lab's hosts share the machine's.
pub(crate) fn own_etc(mesh: &Mesh, n: usize, resolv_conf: &str) {
    let pid = mesh.nodes[n].host.pid().to_string();
    let script = "cp -a /etc /run/etc && mount --bind /run/etc /etc && rm -f /etc/resolv.conf /etc/resolv.conf.before-meshd && cat > /etc/resolv.conf";
    let mut child = Command::new("nsenter")
        .args(["-t", &pid, "-m", "sh", "-c", script])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("nsenter");
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(resolv_conf.as_bytes())
        .expect("the shell reads");
    drop(input);
    assert!(child.wait().expect("it ends").success());
}

fn resolv_conf(mesh: &Mesh, n: usize) -> String {
    std::fs::read_to_string(mesh.nodes[n].host.path("/run/etc/resolv.conf")).unwrap_or_default()
}

/// Looks a name up as every program does.
fn getent(mesh: &Mesh, n: usize, name: &str) -> Ended {
    let mut command = mesh.nodes[n].host.command("getent").expect("a namespace");
    run(command.args(["ahostsv4", name]))
}

#[test]
fn resolv_conf_is_written_corrected_and_restored() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.coordinator_host
        .add_address("198.51.100.9".parse().expect("a literal"), 24)
        .expect("the kernel allows it");
    serve_elsewhere(&mesh.coordinator_host, "198.51.100.9", [192, 0, 2, 9]);
    let other = mesh.coordinator_host.v4();
    serve_elsewhere(&mesh.coordinator_host, &other.to_string(), [192, 0, 2, 10]);
    let before = "nameserver 198.51.100.9\noptions timeout:2\n";
    mesh.kill_node(0);
    own_etc(&mesh, 0, before);
    let file = write(
        &mesh.nodes[0].host,
        "/run/meshd.toml",
        "[dns]\nmanage_resolv_conf = true\n",
    );
    mesh.start_node_with(0, &["--config", &file]);
    let doctor = mesh.on(0, &["doctor"]);
    assert_eq!(doctor.code, 1, "it has not joined: {doctor:?}");
    let token = mesh.token(&["--uses", "2"]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    mesh.wait_until("resolv.conf is meshd's", || {
        resolv_conf(&mesh, 0).contains("\nnameserver 10.210.0.53\n")
    });
    let ours = resolv_conf(&mesh, 0);
    assert!(
        ours.contains("options timeout:2") && !ours.contains("198.51.100.9"),
        "{ours}"
    );
    let own = mesh.addresses(0).0.to_string();
    let found = getent(&mesh, 0, "n1.node.mesh");
    assert!(found.stdout.contains(&own), "{found:?}");
    let doctor = mesh.on(0, &["doctor", "--json"]);
    assert_eq!(doctor.code, 0, "{doctor:?}");
    let report: serde_json::Value = serde_json::from_str(&doctor.stdout).expect("one document");
    assert_eq!(report["places"][0]["servers"][0]["address"], "10.210.0.53");
    assert_eq!(report["places"][0]["servers"][0]["outcome"], "right");
    mesh.wait_until("other names are asked of the server from before", || {
        getent(&mesh, 0, "one.example.com")
            .stdout
            .contains("192.0.2.9")
    });

    // Another program has other servers: they are asked from then on, behind meshd.
    let path = mesh.nodes[0].host.path("/run/etc/resolv.conf");
    std::fs::write(&path, format!("nameserver {other}\n")).expect("ours");
    mesh.wait_until("resolv.conf is meshd's again", || {
        resolv_conf(&mesh, 0).contains("\nnameserver 10.210.0.53\n")
    });
    mesh.wait_until("the new server is asked", || {
        getent(&mesh, 0, "two.example.com")
            .stdout
            .contains("192.0.2.10")
    });

    // A kill leaves it, and what systemd runs then gives it back.
    mesh.kill_node(0);
    assert!(resolv_conf(&mesh, 0).contains("10.210.0.53"));
    let restore = || {
        let mut command = mesh.nodes[0]
            .host
            .command(env!("CARGO_BIN_EXE_meshd"))
            .expect("a namespace");
        run(command.args(["--state-dir", "/run/state", "--restore-resolv-conf"]))
    };
    let restored = restore();
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(resolv_conf(&mesh, 0), format!("nameserver {other}\n"));
    let again = restore();
    assert_eq!(
        (again.code, again.stderr.contains("nothing was changed")),
        (0, true)
    );
    // Told to stop the moment it has the file, while it still starts, it gives it back.
    for _ in 0..5 {
        let mut daemon = mesh.spawn_node(0, &["--config", &file]);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !resolv_conf(&mesh, 0).contains("10.210.0.53") {
            assert!(std::time::Instant::now() < end, "it takes resolv.conf");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let status = daemon.stop().expect("it ends in time");
        assert!(status.success(), "{status}");
        assert_eq!(resolv_conf(&mesh, 0), format!("nameserver {other}\n"));
    }
}

#[test]
fn doctor_shows_the_remedy_on_a_host_with_another_dns_server() {
    let Some(mesh) = Mesh::joined(1) else { return };
    serve_elsewhere(&mesh.coordinator_host, "198.51.100.10", [192, 0, 2, 10]);
    own_etc(&mesh, 0, "nameserver 198.51.100.10\n");
    let doctor = mesh.on(0, &["doctor"]);
    assert_eq!(doctor.code, 2, "{doctor:?}");
    for part in [
        "host: n1.node.mesh does not resolve",
        "why: /etc/resolv.conf sends programs to 198.51.100.10, which returns another address",
        "fix: set `manage_resolv_conf = true`",
    ] {
        assert!(doctor.stdout.contains(part), "{part}: {doctor:?}");
    }
    let path = mesh.nodes[0].host.path("/run/etc/resolv.conf");
    std::fs::write(path, "nameserver 10.210.0.53\n").expect("ours");
    assert_eq!(mesh.on(0, &["doctor"]).code, 0);
}

/// Answers every request with `checkup`, as a meshd does that has found containers.
fn stand_in(host: &Host, path: &str, checkup: &Checkup) {
    let listener = UnixListener::bind(host.path(path)).expect("the host's own file system");
    let body = serde_json::to_string(checkup).expect("plain values");
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

#[test]
fn a_doctor_looks_inside_a_containers_network_by_its_own_resolv_conf() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    own_etc(&mesh, 0, "nameserver 10.210.0.53\n");
    // The second host is the container: its own network, where the same address is somebody else's.
    own_etc(&mesh, 1, "nameserver 10.210.0.53\n");
    let checkup = Checkup {
        schema: 1,
        name: "n1.node.mesh".into(),
        expected: mesh.addresses(0).0,
        dns: Some("10.210.0.53".parse().expect("a literal")),
        split_dns: "none".into(),
        containers: vec![ContainerResolver {
            name: "web".into(),
            network: "shop_default".into(),
            kind: NetworkKind::User,
            pid: mesh.nodes[1].host.pid(),
        }],
        problems: Vec::new(),
        removed: false,
        tunnels: vec![],
    };
    stand_in(&mesh.nodes[0].host, "/run/doctor.sock", &checkup);
    let doctor = |mesh: &Mesh| mesh.on(0, &["--socket", "/run/doctor.sock", "doctor"]);
    let well = doctor(&mesh);
    assert_eq!(well.code, 0, "{well:?}");
    assert!(
        well.stdout
            .contains("container web (network shop_default): n1.node.mesh resolves"),
        "{well:?}"
    );
    mesh.kill_node(1);
    let ill = doctor(&mesh);
    assert_eq!(ill.code, 2, "{ill:?}");
    for part in [
        "host: n1.node.mesh resolves",
        "container web (network shop_default): n1.node.mesh does not resolve",
        "the DNS address 10.210.0.53 does not answer to web",
    ] {
        assert!(ill.stdout.contains(part), "{part}: {ill:?}");
    }
}

/// The calls that a stand-in for systemd-resolved recorded.
type Calls = Arc<Mutex<Vec<String>>>;

struct Recorder {
    calls: Calls,
    /// Whether it refuses the settings, as without a rule of polkit.
    refuses: Arc<AtomicBool>,
}

impl Recorder {
    fn note(&self, text: String) {
        self.calls.lock().expect("no panic").push(text);
    }
}

#[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
impl Recorder {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, servers: Vec<(i32, Vec<u8>)>) -> zbus::fdo::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            let why = "there is no rule".to_owned();
            return Err(zbus::fdo::Error::AccessDenied(why));
        }
        self.note(format!("SetLinkDNS {servers:?}"));
        self.note(format!("link {link}"));
        Ok(())
    }

    #[zbus(name = "SetLinkDomains")]
    fn set_link_domains(&self, _link: i32, domains: Vec<(String, bool)>) {
        let mesh = domains.contains(&("mesh".into(), true));
        let routing = domains.iter().all(|(_, only)| *only);
        self.note(format!("SetLinkDomains mesh={mesh} routing={routing}"));
    }

    #[zbus(name = "SetLinkDefaultRoute")]
    fn set_link_default_route(&self, _link: i32, on: bool) {
        self.note(format!("SetLinkDefaultRoute {on}"));
    }

    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, _link: i32, mode: &str) {
        self.note(format!("SetLinkLLMNR {mode}"));
    }

    #[zbus(name = "RevertLink")]
    fn revert_link(&self, _link: i32) {
        self.note("RevertLink".into());
    }

    #[zbus(name = "FlushCaches")]
    fn flush_caches(&self) {
        self.note("FlushCaches".into());
    }
}

/// A bus of the test's own.
struct Bus {
    daemon: std::process::Child,
    address: String,
}

impl Bus {
    fn start(directory: &Path) -> Option<Self> {
        let address = format!("unix:path={}/bus", directory.display());
        let config = directory.join("bus.conf");
        let text = format!(
            "<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/></policy></busconfig>"
        );
        std::fs::write(&config, text).expect("ours");
        let daemon = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--config-file"])
            .arg(&config)
            .spawn();
        let Ok(daemon) = daemon else {
            meshd::testbed::skip_test("there is no dbus-daemon");
            return None;
        };
        Some(Self { daemon, address })
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn systemd_resolved_is_configured_again_after_a_refusal_and_a_restart_and_reverted_at_the_end() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(bus) = Bus::start(directory.path()) else {
        return;
    };
    mesh.wait_until("the bus listens", || directory.path().join("bus").exists());
    let (calls, refuses) = (Calls::default(), Arc::new(AtomicBool::new(true)));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let recorder = || Recorder {
        calls: Arc::clone(&calls),
        refuses: Arc::clone(&refuses),
    };
    let serve = || {
        let builder = zbus::connection::Builder::address(bus.address.as_str())
            .name("org.freedesktop.resolve1")
            .serve_at("/org/freedesktop/resolve1", recorder());
        runtime
            .block_on(builder.build())
            .expect("a name on the bus")
    };
    let noted = |text: &str| {
        let calls = calls.lock().expect("no panic");
        calls.iter().filter(|call| call.as_str() == text).count()
    };
    mesh.kill_node(0);
    let host = &mesh.nodes[0].host;
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    command.env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address).args([
        "--state-dir",
        "/run/state",
        "--socket",
        SOCKET,
    ]);
    let daemon = host.start(&mut command, &mesh.log(0)).expect("a program");
    mesh.nodes[0].daemon = Some(daemon);
    let socket = mesh.nodes[0].host.path(SOCKET);
    mesh.wait_until("meshd answers", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let split = |mesh: &Mesh| mesh.status(0).dns.map(|dns| dns.split_dns);
    assert_eq!(split(&mesh).as_deref(), Some("none"));

    let resolved = serve();
    mesh.wait_until("status shows that resolved refuses", || {
        let problems = mesh.status(0).problems;
        let refused = "systemd-resolved does not send queries for names of the mesh to this node";
        problems.iter().any(|problem| problem.what == refused)
    });
    refuses.store(false, Ordering::Relaxed);
    mesh.wait_until("resolved is told", || noted("FlushCaches") == 1);
    for call in [
        "SetLinkDNS [(2, [10, 210, 0, 53])]",
        "SetLinkDomains mesh=true routing=true",
        "SetLinkDefaultRoute false",
        "SetLinkLLMNR no",
    ] {
        assert_eq!(noted(call), 1, "{call}");
    }
    mesh.wait_until("status says so", || {
        split(&mesh).as_deref() == Some("systemd-resolved")
    });
    drop(resolved);
    mesh.wait_until("status says that it went", || {
        split(&mesh).as_deref() == Some("none")
    });
    let _resolved = serve();
    mesh.wait_until("a resolved that was restarted is told again", || {
        noted("FlushCaches") == 2
    });
    mesh.wait_until("status says so", || {
        split(&mesh).as_deref() == Some("systemd-resolved")
    });
    let link = |mesh: &Mesh| {
        let index = || nix::net::if_::if_nametoindex("mesh0");
        let index = mesh.nodes[0].host.inside(index).expect("a namespace");
        index.map(|index| format!("link {index}"))
    };
    assert_eq!(noted(&link(&mesh).expect("the device")), 2);
    assert!(mesh.succeeds(0, "ip", &["link", "del", "mesh0"]));
    mesh.wait_until("resolved is told of the device that was made again", || {
        noted("FlushCaches") == 3 && link(&mesh).is_ok_and(|link| noted(&link) == 1)
    });
    mesh.wait_until("status says so", || {
        split(&mesh).as_deref() == Some("systemd-resolved")
    });
    assert!(
        mesh.nodes[0]
            .daemon
            .as_mut()
            .expect("it runs")
            .stop()
            .is_some_and(|status| status.success())
    );
    assert_eq!(noted("RevertLink"), 1);
}
