//! Services outside the mesh: another node reaches them by name, at an instance address of the node that forwards to them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::{RData, Record, RecordType};

use crate::mesh::{Mesh, write};
use crate::query::{ask, serve_answers};

/// A database that is not in the mesh. It has no route to the mesh.
const DATABASE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
/// The address to which the database moves.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 11);
const PORT: u16 = 5432;
const UNDECLARED: u16 = 5433;
const LIMIT: Duration = Duration::from_secs(2);

/// Answers each connection with the address from which it comes, while `is_open`.
fn serve(mesh: &Mesh, port: u16, is_open: &Arc<AtomicBool>) {
    let listener = mesh
        .coordinator_host
        .inside(|| TcpListener::bind((DATABASE, port)))
        .expect("a namespace")
        .expect("a free port");
    let is_open = Arc::clone(is_open);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let from = stream.peer_addr().map(|from| from.ip().to_string());
            if is_open.load(Ordering::Relaxed) {
                let _ = stream.write_all(from.unwrap_or_default().as_bytes());
            }
        }
    });
}

/// Answers each connection to `address` with `address`.
fn serve_own_address(mesh: &Mesh, address: Ipv4Addr) {
    let listener = mesh
        .coordinator_host
        .inside(|| TcpListener::bind((address, PORT)))
        .expect("a namespace")
        .expect("a free port");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(address.to_string().as_bytes());
        }
    });
}

/// Answers all names with an address, as a resolver outside the mesh does.
fn serve_names(mesh: &Mesh, address: &Arc<Mutex<Ipv4Addr>>) {
    let address = Arc::clone(address);
    let listen = mesh.coordinator_host.v4().to_string();
    serve_answers(&mesh.coordinator_host, (&listen, 5300), move |question| {
        let address = *address.lock().unwrap_or_else(PoisonError::into_inner);
        let record = || Record::from_rdata(question.name().clone(), 1, RData::A(address.into()));
        let asked = question.query_type() == RecordType::A;
        (asked.then(record).into_iter().collect(), vec![])
    });
}

/// What a connection from node `n` to `to` is answered with.
fn fetch(mesh: &Mesh, n: usize, to: (IpAddr, u16)) -> Option<String> {
    let fetched = mesh.nodes[n].host.inside(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(to), LIMIT).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    });
    fetched.expect("a namespace")
}

/// The addresses of `postgres.svc.mesh` as node `n` answers them.
fn addresses(mesh: &Mesh, n: usize) -> Vec<IpAddr> {
    let dns = "10.210.0.53".parse().expect("a literal");
    let host = &mesh.nodes[n].host;
    let answer = ask(host, dns, "postgres.svc.mesh.", RecordType::A, false);
    let data = answer.map(|answer| answer.data).unwrap_or_default();
    data.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Starts the first node with the configuration `text`, lets both nodes join, and waits until the second one answers the name. Returns
/// the file of the configuration.
fn join_with(mesh: &mut Mesh, text: &str) -> String {
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", text);
    mesh.kill_node(0);
    mesh.start_node_with(0, &["--config", &file]);
    for n in 0..2 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("the name is answered", || !addresses(mesh, 1).is_empty());
    file
}

#[test]
fn a_database_outside_the_mesh_is_reached_by_its_name_through_the_node_that_has_it_in_its_configuration()
 {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    mesh.coordinator_host
        .add_address(DATABASE.into(), 24)
        .expect("an address");
    let own = Ipv4Addr::new(192, 168, 77, 1);
    mesh.nodes[0]
        .host
        .add_address(own.into(), 24)
        .expect("an address");
    let is_open = Arc::new(AtomicBool::new(true));
    for port in [PORT, UNDECLARED] {
        serve(&mesh, port, &is_open);
    }
    let text = format!(
        "[[service]]\nname = \"postgres\"\nport = {PORT}\naddress = \"{DATABASE}\"\ncheck = {{ tcp = true, interval = \"200ms\" }}\n"
    );
    join_with(&mut mesh, &text);
    let [instance] = addresses(&mesh, 1)[..] else {
        panic!("one instance: {:?}", addresses(&mesh, 1));
    };
    let block = mesh.status(0).node.expect("it has joined").block_v4;
    let IpAddr::V4(v4) = instance else {
        panic!("{instance}");
    };
    assert!(block.contains(&v4) && v4 != mesh.addresses(0).0, "{v4}");
    for n in [1, 0] {
        // The database sees the node, because it has no route to the mesh.
        mesh.wait_until("the database answers", || {
            fetch(&mesh, n, (instance, PORT)) == Some(own.to_string())
        });
        assert_eq!(fetch(&mesh, n, (instance, UNDECLARED)), None, "from {n}");
    }

    // It is under the policy like any other service.
    let policy = "language = 1\n[[allow]]\nfrom = [\"node:n9\"]\nto = [\"postgres\"]\n";
    let file = write(&mesh.coordinator_host, "/run/policy.toml", policy);
    let ended = mesh.admin(&["policy", "apply", &file]);
    assert_eq!(ended.code, 0, "{ended:?}");
    for n in [1, 0] {
        mesh.wait_until("nobody reaches it", || {
            fetch(&mesh, n, (instance, PORT)).is_none()
        });
    }
    let policy = policy.replace("n9", "n2");
    let file = write(&mesh.coordinator_host, "/run/policy.toml", &policy);
    assert_eq!(mesh.admin(&["policy", "apply", &file]).code, 0);
    mesh.wait_until("n2 reaches it", || {
        fetch(&mesh, 1, (instance, PORT)).is_some()
    });
    assert_eq!(fetch(&mesh, 0, (instance, PORT)), None);

    // It leaves the answers with its drain, and its instance address leads nowhere once it is removed.
    let drained = mesh.on(0, &["service", "drain", "postgres"]);
    assert_eq!(drained.code, 0, "{drained:?}");
    mesh.wait_until("it is in no answer", || addresses(&mesh, 1).is_empty());
    assert!(fetch(&mesh, 1, (instance, PORT)).is_some(), "it is mapped");
}

#[test]
fn a_service_outside_that_is_added_by_command_is_mapped_and_unmapped_with_it() {
    let Some(mesh) = Mesh::joined(2) else {
        return;
    };
    mesh.coordinator_host
        .add_address(DATABASE.into(), 24)
        .expect("an address");
    let own = Ipv4Addr::new(192, 168, 77, 1);
    let host = &mesh.nodes[0].host;
    host.add_address(own.into(), 24).expect("an address");
    serve(&mesh, PORT, &Arc::new(AtomicBool::new(true)));
    let add = |address: &str| {
        let words = [
            "service",
            "add",
            "postgres",
            "--port",
            "5432",
            "--address",
            address,
        ];
        mesh.on(0, &words)
    };
    mesh.wait_until("an address of this machine is refused", || {
        let ended = add("192.168.77.1");
        let removed = mesh.on(0, &["service", "remove", "postgres"]);
        ended.code == 64 && removed.code != 0 && ended.stderr.contains("of this machine")
    });
    for (refused, part) in [
        ("169.254.169.254", "link-local"),
        ("2001:db8::5", "IPv6"),
        ("10.210.77.1", "nothing carries packets to 10.210.77.1"),
    ] {
        let ended = add(refused);
        assert_eq!(ended.code, 64, "{ended:?}");
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
    let ended = add(&DATABASE.to_string());
    assert_eq!(ended.code, 0, "{ended:?}");
    mesh.wait_until("the name is answered", || !addresses(&mesh, 1).is_empty());
    let instance = addresses(&mesh, 1)[0];
    mesh.wait_until("the database answers", || {
        fetch(&mesh, 1, (instance, PORT)).is_some()
    });
    let removed = mesh.on(0, &["service", "remove", "postgres"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    mesh.wait_until("its address leads nowhere", || {
        addresses(&mesh, 1).is_empty() && fetch(&mesh, 1, (instance, PORT)).is_none()
    });
}

#[test]
fn a_service_outside_with_a_host_name_is_reached_where_the_name_leads_under_the_same_mesh_address()
{
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    for address in [DATABASE, OTHER] {
        mesh.coordinator_host
            .add_address(address.into(), 24)
            .expect("an address");
        serve_own_address(&mesh, address);
    }
    let own = Ipv4Addr::new(192, 168, 77, 1);
    mesh.nodes[0]
        .host
        .add_address(own.into(), 24)
        .expect("an address");
    let leads_to = Arc::new(Mutex::new(DATABASE));
    let lead_to = |address| *leads_to.lock().unwrap_or_else(PoisonError::into_inner) = address;
    serve_names(&mesh, &leads_to);
    let upstream = mesh.coordinator_host.v4();
    let text = format!(
        "[dns]\nupstreams = [\"{upstream}:5300\"]\n[[service]]\nname = \"postgres\"\nport = {PORT}\naddress = \"db.example.net\"\ncheck = {{ tcp = true, interval = \"200ms\" }}\n"
    );
    let file = join_with(&mut mesh, &text);
    let instance = addresses(&mesh, 1)[0];
    let reached = |mesh: &Mesh| fetch(mesh, 1, (instance, PORT));
    mesh.wait_until("the database answers", || {
        reached(&mesh) == Some(DATABASE.to_string())
    });

    lead_to(OTHER);
    mesh.wait_until("the database answers where it is now", || {
        reached(&mesh) == Some(OTHER.to_string())
    });
    assert_eq!(addresses(&mesh, 1), [instance]);
    let status = mesh.on(0, &["status"]);
    let is_shown = |line: &str| {
        line.split_whitespace()
            .eq(["db.example.net", "192.168.77.11"])
    };
    assert!(status.stdout.lines().any(is_shown), "{status:?}");

    // An address that no service outside may have changes nothing, and is a problem.
    lead_to(Ipv4Addr::new(169, 254, 169, 254));
    mesh.wait_until("the address is refused", || {
        mesh.has_problem(0, &["postgres", "db.example.net", "link-local"])
    });
    assert_eq!(reached(&mesh), Some(OTHER.to_string()));
    // The node knows the last good address after a restart.
    mesh.kill_node(0);
    mesh.start_node_with(0, &["--config", &file]);
    mesh.wait_until("the database answers after a restart", || {
        reached(&mesh) == Some(OTHER.to_string())
    });
    mesh.wait_until("the name has the same address after the restart", || {
        addresses(&mesh, 1) == [instance]
    });
    let ended = mesh.on(
        0,
        &[
            "service",
            "add",
            "web",
            "--port",
            "80",
            "--address",
            "web.svc.mesh",
        ],
    );
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("a name of the mesh"), "{ended:?}");
}
