//! An exposed container accepts connections from the mesh and from its own host on the ports that it declares, and on no others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::hosts::{Hosts, PORT};

/// A container that listens on [`PORT`] over TCP and UDP, as a service of its own name, with these labels.
fn serve(hosts: &Hosts, name: &str, network: &str, labels: &[&str]) {
    let service = format!("mesh.service={name}");
    let labels = [&[service.as_str(), "mesh.check=none"], labels].concat();
    let labels: Vec<&str> = labels.into_iter().flat_map(|l| ["--label", l]).collect();
    hosts.run(1, name, network, &labels);
}

/// Waits until node 0 knows the one instance of a service.
fn wait_for(hosts: &Hosts, service: &str) -> Ipv4Addr {
    let mut found = Vec::new();
    hosts.wait_until(&format!("{service} is published"), || {
        found = hosts.instances(0, service);
        found.len() == 1
    });
    match found[0].address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{service} has {address}"),
    }
}

/// Waits until node 0 knows the IPv6 address of the one instance of a service.
fn wait_for_v6(hosts: &Hosts, service: &str) -> Ipv6Addr {
    let mut found = None;
    hosts.wait_until(&format!("{service} is published with IPv6"), || {
        let rows = hosts.instances(0, service).into_iter();
        let mut addresses = rows.flat_map(|row| row.addresses);
        found = addresses.find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        });
        found.is_some()
    });
    found.expect("it was waited for")
}

/// Which of TCP and UDP are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answers {
    Tcp,
    Udp,
    Both,
    Neither,
}

/// Asks a server over both protocols, as a container or (if `container` is empty) as the host. A refused TCP connection is refused
/// at once.
fn ask(hosts: &Hosts, n: usize, container: &str, server: &str) -> Answers {
    let tcp = hosts.ask(n, container, "tcp", server);
    if let Err(why) = &tcp {
        assert!(why.contains("ConnectionRefused"), "{server}: {why}");
    }
    match (tcp.is_ok(), hosts.ask(n, container, "udp", server).is_ok()) {
        (true, false) => Answers::Tcp,
        (false, true) => Answers::Udp,
        (true, true) => Answers::Both,
        (false, false) => Answers::Neither,
    }
}

/// The clients: a node and, if it is in a container, the container's name.
const CLIENTS: [(usize, &str); 6] = [
    (0, ""),
    (0, "client"),
    (1, ""),
    (1, "client"),
    (1, "neighbour"),
    (1, "web"),
];

/// Asks a server from all clients at once: a datagram that is refused is waited for in vain.
fn check(hosts: &Hosts, server: &str, expected: Answers) {
    std::thread::scope(|scope| {
        let asked = CLIENTS.map(|(n, container)| {
            let client = format!("{server} from {container:?} on node {n}");
            (
                client,
                scope.spawn(move || ask(hosts, n, container, server)),
            )
        });
        for (client, answers) in asked {
            assert_eq!(answers.join().expect("no panic"), expected, "{client}");
        }
    });
}

#[test]
fn only_declared_ports_accept_connections() {
    let Some(mut hosts) = Hosts::joined(2) else {
        return;
    };
    for n in [0, 1] {
        hosts.docker(n, &["network", "create", "project"]);
        hosts.run(n, "client", "bridge", &[]);
    }
    hosts.run(1, "neighbour", "project", &[]);
    let tcp = format!("mesh.port={PORT}");
    let udp = format!("mesh.port={PORT}/udp");
    let other = "mesh.port=5432";
    serve(&hosts, "web", "project", &[&tcp]);
    serve(&hosts, "names", "project", &[&udp]);
    serve(&hosts, "db", "project", &[other]);
    serve(&hosts, "vip", "project", &[&tcp, "mesh.vip=true"]);
    serve(&hosts, "closed", "project", &[other, "mesh.vip=true"]);
    let services = ["web", "names", "db", "vip", "closed"];
    let instances = services.map(|service| wait_for(&hosts, service).to_string());
    let expected = [
        Answers::Tcp,
        Answers::Udp,
        Answers::Neither,
        Answers::Tcp,
        Answers::Neither,
    ];
    let check_all = |hosts: &Hosts, expected: [Answers; 5]| {
        for ((service, instance), expected) in services.iter().zip(&instances).zip(expected) {
            check(hosts, &format!("{service}.svc.mesh"), expected);
            check(hosts, instance, expected);
        }
    };
    check_all(&hosts, expected);
    let [_, _, db, ..] = &instances;
    hosts.exec(0, &["ping", "-c", "1", "-W", "5", db]);

    hosts.stop_daemon(1);
    hosts.configure(1, "[docker]\nports = \"all\"\n");
    hosts.start_daemon(1);
    hosts.wait_until("the other ports are open", || {
        ask(&hosts, 0, "", db) == Answers::Both
    });
    hosts.wait_until("the names lead there", || {
        ask(&hosts, 0, "client", "closed.svc.mesh") == Answers::Both
    });
    check_all(&hosts, [Answers::Both; 5]);
}

#[test]
fn only_declared_ports_accept_connections_over_ipv6() {
    let Some(mut hosts) = Hosts::joined(2).filter(Hosts::have_ipv6) else {
        return;
    };
    for n in [0, 1] {
        hosts.create_dual_network(n, "project", 101);
        hosts.create_dual_network(n, "clients", 102);
        hosts.run(n, "client", "clients", &[]);
    }
    hosts.run(1, "neighbour", "project", &[]);
    let tcp = format!("mesh.port={PORT}");
    let udp = format!("mesh.port={PORT}/udp");
    serve(&hosts, "web", "project", &[&tcp]);
    serve(&hosts, "names", "project", &[&udp]);
    serve(&hosts, "db", "project", &["mesh.port=5432"]);
    let instances = ["web", "names", "db"].map(|service| {
        let address = wait_for_v6(&hosts, service);
        format!("[{address}]")
    });
    let expected = [Answers::Tcp, Answers::Udp, Answers::Neither];
    for (instance, expected) in instances.iter().zip(expected) {
        check(&hosts, instance, expected);
    }
    let [.., db] = &instances;
    let db_address = db.trim_matches(['[', ']']);
    hosts.exec(0, &["ping", "-c", "1", "-W", "5", db_address]);

    hosts.stop_daemon(1);
    hosts.configure(1, "[docker]\nports = \"all\"\n");
    hosts.start_daemon(1);
    hosts.wait_until("the other ports are open", || {
        ask(&hosts, 0, "", db) == Answers::Both
    });
    for instance in &instances {
        check(&hosts, instance, Answers::Both);
    }
}

#[test]
fn only_declared_ports_of_a_container_with_a_mesh_address_of_its_own_accept_connections() {
    let Some(mut hosts) = Hosts::start(2) else {
        return;
    };
    for n in [0, 1] {
        hosts.configure(n, "[docker]\naddressing = \"network\"\n");
        hosts.join(n);
    }
    hosts.wait_for_peers();
    hosts.wait_until("the network is there", || {
        let names = hosts.docker(1, &["network", "ls", "--format", "{{.Name}}"]);
        names.lines().any(|name| name == "mesh")
    });
    hosts.run(1, "neighbour", "mesh", &[]);
    hosts.run(1, "client", "bridge", &[]);
    serve(&hosts, "web", "mesh", &[&format!("mesh.port={PORT}")]);
    serve(&hosts, "db", "mesh", &["mesh.port=5432"]);
    for (service, expected) in [("web", Answers::Tcp), ("db", Answers::Neither)] {
        let instance = wait_for(&hosts, service).to_string();
        for (n, container) in [(0, ""), (1, ""), (1, "client")] {
            let answers = ask(&hosts, n, container, &instance);
            assert_eq!(
                answers, expected,
                "{service} from {container:?} on node {n}"
            );
        }
        // The two are on one bridge, and the packets between them do not pass the host.
        assert_eq!(ask(&hosts, 1, "neighbour", &instance), Answers::Both);
    }
}
