//! Guests: a device with nothing but a WireGuard app, here wireguard-go or boringtun, which `wg` configures with what `meshctl guest add`
//! prints.

use std::fs::Permissions;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use meshd::testbed::{Host, Running, skip_part_of_test, skip_test};

use crate::mesh::{Mesh, write};
use crate::query::ask;
use crate::tool::find_program;

const PORT: u16 = 8080;
const PAGE: &str = "hello, guest";
const DNS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 210, 0, 53));

/// A mesh of n1 and n2, and the host n3, which is in no mesh. On n2 a page is served in both families.
fn mesh() -> Option<Mesh> {
    for program in ["wg", "wireguard-go"] {
        if find_program(program).is_none() {
            skip_test(&format!("{program} is not installed"));
            return None;
        }
    }
    let mesh = Mesh::start(3)?;
    for n in [0, 1] {
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    mesh.wait_until("both nodes reach each other", || {
        [0, 1].iter().all(|n| mesh.reaches(*n) == 1)
    });
    let ended = mesh.on(1, &["service", "add", "web", "--port", &PORT.to_string()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    serve(&mesh.nodes[1].host);
    Some(mesh)
}

/// Serves [`PAGE`] in both families until the test ends.
fn serve(host: &Host) {
    let listener = host
        .inside(|| TcpListener::bind(("::", PORT)))
        .expect("a namespace")
        .expect("a free port");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(PAGE.as_bytes());
        }
    });
}

fn fetch(host: &Host, address: IpAddr, port: u16) -> Option<String> {
    let server = SocketAddr::new(address, port);
    let page = host.inside(|| {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    });
    page.expect("a namespace")
}

/// Adds the guest `anna` behind n1. Returns its configuration.
fn add(mesh: &Mesh, options: &[&str]) -> String {
    let ended = mesh.admin(&[&["guest", "add", "anna", "--door", "n1"], options].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.len() <= 400, "{}", ended.stdout);
    ended.stdout
}

/// An app of WireGuard that a device may have.
#[derive(Debug, Clone, Copy)]
enum App {
    WireguardGo,
    Boringtun,
}

impl App {
    fn program(self) -> &'static str {
        match self {
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
        }
    }

    /// Starts it in the foreground, with the device `wg0`.
    fn command(self, host: &Host) -> Command {
        let program = find_program(self.program()).expect("it was looked for");
        let program = program.to_str().expect("a plain path");
        let mut command = host.command(program).expect("a namespace");
        match self {
            Self::WireguardGo => command.args(["-f", "wg0"]).env("LOG_LEVEL", "error"),
            Self::Boringtun => command
                .args(["-f", "--disable-drop-privileges", "wg0"])
                .env("WG_SUDO", "1"),
        };
        command
    }
}

/// The apps that are installed. A test takes them in this order for one guest: the timestamps in the handshakes of boringtun are 27 seconds
/// ahead of those of wireguard-go, and a door accepts only later ones.
fn apps() -> Vec<App> {
    let mut apps = vec![App::WireguardGo];
    if find_program(App::Boringtun.program()).is_some() {
        apps.push(App::Boringtun);
    } else {
        skip_part_of_test("boringtun as a guest: boringtun-cli is not installed");
    }
    apps
}

/// A device with a configuration. It is gone when this is dropped.
struct Device<'a> {
    host: &'a Host,
    v4: String,
    _daemon: Running,
}

impl<'a> Device<'a> {
    fn start(mesh: &'a Mesh, n: usize, config: &str) -> Self {
        Self::start_app(mesh, n, App::WireguardGo, config)
    }

    /// Does what `wg-quick up` does with this app, except for the resolver of the host.
    fn start_app(mesh: &'a Mesh, n: usize, app: App, config: &str) -> Self {
        let host = &mesh.nodes[n].host;
        let socket = host.path("/run/wireguard/wg0.sock");
        // One that was killed leaves it behind.
        let _ = std::fs::remove_file(&socket);
        let log = mesh.logs.path().join(format!("guest-{n}"));
        let daemon = host.start(&mut app.command(host), &log);
        let daemon = daemon.expect("a program");
        mesh.wait_until("the app runs", || socket.exists());
        std::thread::sleep(Duration::from_millis(100));
        let (own, stripped): (Vec<&str>, Vec<&str>) = config
            .lines()
            .partition(|line| line.starts_with("Address") || line.starts_with("DNS"));
        let file = write(host, "/run/wg0.conf", &(stripped.join("\n") + "\n"));
        let run = |program: &str, arguments: &str| {
            let mut command = host.command(program).expect("a namespace");
            let output = command.args(arguments.split(' ')).output();
            let output = output.expect("a program");
            assert!(output.status.success(), "{program} {arguments}: {output:?}");
        };
        run("wg", &format!("setconf wg0 {file}"));
        let values = |key: &str, lines: &[&str]| -> Vec<String> {
            let line = lines.iter().find_map(|line| line.strip_prefix(key));
            let line = line.and_then(|line| line.split_once('='));
            let (_, values) = line.expect("it is there");
            values.split(',').map(|v| v.trim().to_owned()).collect()
        };
        let addresses = values("Address", &own);
        for address in &addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            run("ip", &format!("addr add {address} dev wg0{nodad}"));
        }
        run("ip", "link set wg0 mtu 1420 up");
        for prefix in values("AllowedIPs", &stripped) {
            run("ip", &format!("route add {prefix} dev wg0"));
        }
        let v4 = addresses.first().and_then(|a| a.split('/').next());
        Self {
            host,
            v4: v4.expect("an address").to_owned(),
            _daemon: daemon,
        }
    }

    /// Whether an echo to `address` is answered within so many seconds.
    fn pings(&self, address: &str, seconds: u32, more: &[&str]) -> bool {
        let mut command = self.host.command("ping").expect("a namespace");
        command
            .args(["-c", "1", "-i", "0.2", "-w", &seconds.to_string()])
            .args(more)
            .arg(address);
        command.output().is_ok_and(|output| output.status.success())
    }

    fn resolves(&self, name: &str, record_type: RecordType) -> Option<IpAddr> {
        let answer = ask(self.host, DNS, name, record_type, false)?;
        answer.data.first()?.parse().ok()
    }
}

#[test]
fn a_guest_resolves_and_fetches_by_name_in_both_families_and_is_reached_by_its_own_name() {
    let Some(mesh) = mesh() else {
        return;
    };
    let config = add(&mesh, &[]);
    for app in apps() {
        let anna = Device::start_app(&mesh, 2, app, &config);
        eprintln!("{app:?}");
        assert_meets_the_mesh(&mesh, &anna);
    }
}

/// Asserts that a guest reaches a service by its name, is reached by its own name, and reaches no port of nodes.
fn assert_meets_the_mesh(mesh: &Mesh, anna: &Device<'_>) {
    let began = Instant::now();
    for record_type in [RecordType::A, RecordType::AAAA] {
        mesh.wait_until("the name resolves", || {
            anna.resolves("web.svc.mesh.", record_type).is_some()
        });
        let address = anna.resolves("web.svc.mesh.", record_type);
        let address = address.expect("it resolved");
        let page = fetch(anna.host, address, PORT);
        assert_eq!(page.as_deref(), Some(PAGE), "{address}");
    }
    eprintln!("both pages after {} ms", began.elapsed().as_millis());
    // Over TCP the answer takes another way to the guest.
    let by_tcp = ask(anna.host, DNS, "web.svc.mesh.", RecordType::A, true);
    assert!(by_tcp.is_some_and(|answer| !answer.data.is_empty()));
    let own = anna.v4.clone();
    mesh.wait_until("the guest has a name at the other node", || {
        let answer = ask(
            &mesh.nodes[1].host,
            DNS,
            "anna.guest.mesh.",
            RecordType::A,
            false,
        );
        answer.is_some_and(|answer| answer.data == [own.clone()])
    });
    assert!(mesh.pings(1, &own), "the other node reaches the guest");
    assert!(mesh.pings(0, &own), "the door reaches the guest");
    let (door, node) = (mesh.addresses(0).0, mesh.addresses(1).0);
    assert!(anna.pings(&door.to_string(), 5, &[]));
    for address in [door, node] {
        for port in [7444, 7446, 7447] {
            let reached = fetch(anna.host, address.into(), port);
            assert_eq!(reached, None, "{address}:{port}");
        }
    }
    let listed = mesh.admin(&["guest", "list"]).stdout;
    assert!(
        listed.contains("anna") && listed.contains("here"),
        "{listed}"
    );
    let status = mesh.status(0).node.expect("it has joined");
    assert!(status.guests.iter().any(|guest| guest.is_here));
}

#[test]
fn a_guest_cannot_send_from_the_address_of_somebody_else() {
    let Some(mesh) = mesh() else {
        return;
    };
    let anna = Device::start(&mesh, 2, &add(&mesh, &[]));
    let (door, node) = (mesh.addresses(0).0.to_string(), mesh.addresses(1).0);
    assert!(anna.pings(&door, 10, &[]));
    for forged in ["10.210.1.77".to_owned(), node.to_string()] {
        let added = ["addr", "add", &format!("{forged}/32"), "dev", "wg0"].map(str::to_owned);
        let mut command = anna.host.command("ip").expect("a namespace");
        assert!(
            command
                .args(&added)
                .output()
                .is_ok_and(|o| o.status.success())
        );
        assert!(!anna.pings(&door, 2, &["-I", &forged]), "{forged}");
    }
    let dropped = metrics(&mesh.nodes[0].host);
    let dropped = dropped
        .lines()
        .find(|line| line.contains("dropped_total{reason=\"foreign_source\"}"));
    let count: Option<u64> = dropped.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    assert!(count > Some(0), "{dropped:?}");
}

/// The metrics of a node.
fn metrics(host: &Host) -> String {
    let read = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:9560")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    host.inside(read)
        .expect("a namespace")
        .expect("the metrics of meshd")
}

#[test]
fn a_guest_that_is_removed_reaches_nothing_any_more_and_its_name_is_free() {
    let Some(mesh) = mesh() else {
        return;
    };
    let door = mesh.addresses(0).0.to_string();
    for app in apps() {
        let anna = Device::start_app(&mesh, 2, app, &add(&mesh, &[]));
        assert!(anna.pings(&door, 10, &[]), "{app:?}");
        let twice = mesh.admin(&["guest", "add", "anna", "--door", "n1"]);
        assert_ne!(twice.code, 0);
        assert!(twice.stderr.contains("there is a guest anna already"));
        let ended = mesh.admin(&["guest", "remove", "anna", "--yes"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        mesh.wait_until("the guest reaches nothing", || !anna.pings(&door, 1, &[]));
        assert!(!anna.pings(&door, 3, &[]), "{app:?}: and it stays so");
        let none = mesh.admin(&["guest", "show", "anna"]);
        assert_eq!(none.code, 2, "{none:?}");
    }
    add(&mesh, &[]);
}

#[test]
fn a_guest_expires_at_its_door_without_the_coordinator_and_outlives_a_restart_and_a_rotation() {
    let Some(mut mesh) = mesh() else {
        return;
    };
    let config = add(&mesh, &["--ttl", "40s"]);
    let began = Instant::now();
    let door = mesh.addresses(0).0.to_string();
    {
        let anna = Device::start(&mesh, 2, &config);
        assert!(anna.pings(&door, 10, &[]));
        assert_eq!(mesh.on(0, &["rotate-key"]).code, 0);
        assert!(anna.pings(&door, 10, &[]), "after a rotation");
    }
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(0);
    mesh.start_node(0);
    let anna = Device::start(&mesh, 2, &config);
    mesh.wait_until("the door lets the guest in again", || {
        anna.pings(&door, 1, &[])
    });
    assert!(began.elapsed() < Duration::from_secs(40), "it had time");
    mesh.wait_within(Duration::from_secs(60), "the guest has expired", || {
        !anna.pings(&door, 1, &[])
    });
    assert!(!anna.pings(&door, 3, &[]), "and it stays so");
}

#[test]
fn a_guest_that_is_removed_at_any_node_without_the_coordinator_reaches_nothing_any_more() {
    let Some(mut mesh) = mesh() else {
        return;
    };
    let config = add(&mesh, &[]);
    let door = mesh.addresses(0).0.to_string();
    let key = std::fs::read_to_string(mesh.coordinator_host.path("/run/mesh.key"));
    let node = &mesh.nodes[1].host;
    let copy = write(node, "/run/mesh.key", &key.expect("the mesh key"));
    std::fs::set_permissions(node.path(&copy), Permissions::from_mode(0o600)).expect("our file");
    mesh.coordinator.take().expect("it runs").kill();
    let anna = Device::start(&mesh, 2, &config);
    assert!(anna.pings(&door, 10, &[]));
    let unknown = mesh.on(1, &["guest", "remove", "bert", "--yes"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    let ended = mesh.on(1, &["guest", "remove", "anna", "--yes"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    mesh.wait_until("the guest reaches nothing", || !anna.pings(&door, 1, &[]));
    assert!(!anna.pings(&door, 3, &[]), "and it stays so");
}

#[test]
fn a_policy_counts_for_a_guest_in_both_directions_and_its_door_denies_at_once() {
    let Some(mesh) = mesh() else {
        return;
    };
    let allow = format!("[[allow]]\nfrom = [\"guest:*\"]\nto = [\"web:{PORT}\"]\n");
    let policy = format!("language = 1\ndefault = \"deny\"\n{allow}");
    let file = write(&mesh.coordinator_host, "/run/policy.toml", &policy);
    let applied = mesh.admin(&["policy", "apply", &file]);
    assert_eq!(applied.code, 0, "{applied:?}");
    // The door serves it too, and no rule is about the door.
    serve(&mesh.nodes[0].host);
    let anna = Device::start(&mesh, 2, &add(&mesh, &[]));
    let (door, node) = (mesh.addresses(0).0, mesh.addresses(1).0);
    mesh.wait_until("the guest reaches what the policy allows it", || {
        fetch(anna.host, node.into(), PORT).as_deref() == Some(PAGE)
    });
    let server = SocketAddr::new(door.into(), PORT);
    let connected = anna
        .host
        .inside(|| TcpStream::connect_timeout(&server, Duration::from_secs(10)));
    let error = connected.expect("a namespace").expect_err("it is denied");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(!mesh.pings(1, &anna.v4), "no rule is about the guest");
}

#[test]
fn a_guest_with_two_doors_reaches_the_mesh_by_one_while_the_other_one_is_dead() {
    let Some(mut mesh) = mesh() else {
        return;
    };
    let doors = ["--door", "n1", "--door", "n2", "--json"];
    let ended = mesh.admin(&[&["guest", "add", "anna"], &doors[..]].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    let added: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a document");
    let config = |n: usize| -> String {
        let config = added["configurations"][n]["config"].as_str();
        config.expect("a text").to_owned()
    };
    let (first, second) = (mesh.addresses(0).0, mesh.addresses(1).0);
    {
        let anna = Device::start(&mesh, 2, &config(0));
        assert!(anna.pings(&second.to_string(), 10, &[]), "by the first");
    }
    mesh.kill_node(0);
    let anna = Device::start(&mesh, 2, &config(1));
    assert!(anna.pings(&second.to_string(), 10, &[]), "by the second");
    assert!(!anna.pings(&first.to_string(), 1, &[]), "it is dead");
    let own = [anna.v4.clone()];
    mesh.wait_within(
        Duration::from_secs(120),
        "the name leads there alone",
        || {
            let host = &mesh.nodes[1].host;
            let answer = ask(host, DNS, "anna.guest.mesh.", RecordType::A, false);
            answer.is_some_and(|answer| answer.data == own)
        },
    );
}

#[test]
fn a_guest_of_a_door_that_nobody_reaches_or_that_is_none_is_refused_with_a_reason() {
    let Some(mesh) = mesh() else {
        return;
    };
    let refused = |arguments: &[&str], part: &str| {
        let ended = mesh.admin(&[&["guest", "add", "anna"], arguments].concat());
        assert_ne!(ended.code, 0, "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
        assert_eq!(ended.stdout, "");
    };
    refused(&["--door", "n9"], "there is no node n9");
    let key = mesh.status(1).node.expect("it has joined").public_key;
    let key = key.to_string();
    refused(
        &["--door", "n1", "--public-key", &key],
        "the key of the node n2",
    );
    refused(&["--door", "n1", "--public-key", "AAAA"], "wg pubkey");
    let listed = mesh.admin(&["guest", "list", "--json"]).stdout;
    assert!(listed.contains("\"guests\": []"), "{listed}");
}
