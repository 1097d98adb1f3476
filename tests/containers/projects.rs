//! Compose projects beside each other.

use std::net::Ipv4Addr;

use crate::hosts::{ECHO, Hosts, PORT};

/// The addresses of a name, as a container sees them.
fn look(hosts: &Hosts, n: usize, container: &str, name: &str) -> Vec<Ipv4Addr> {
    let server = format!("{name}:{PORT}");
    let found = hosts.exec(n, &hosts.words(container, &["look", &server]));
    found
        .lines()
        .map(|a| a.parse().expect("an address"))
        .collect()
}

#[test]
fn a_service_of_one_project_is_never_that_of_another() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    // Both projects are on both hosts, each with a `db`, as Compose starts them.
    for n in [0, 1] {
        for project in ["a", "b"] {
            let network = format!("{project}_default");
            hosts.docker(n, &["network", "create", &network]);
            let label = format!("com.docker.compose.project={project}");
            let labels = [
                "--label",
                "mesh.service=db",
                "--label",
                "mesh.port=7777",
                "--label",
                &label,
                "--label",
                "com.docker.compose.service=db",
                "--label",
                "com.docker.compose.container-number=1",
                "--network-alias",
                "db",
            ];
            hosts.run(n, &format!("{project}_db_1"), &network, &labels);
            hosts.run(n, &format!("{project}_app_1"), &network, &[]);
        }
    }
    for n in [0, 1] {
        for name in ["db.a", "db.b"] {
            hosts.wait_for(n, name, 2);
        }
        hosts.wait_for(n, "db", 4);
    }
    let sorted = |mut addresses: Vec<Ipv4Addr>| {
        addresses.sort();
        addresses
    };
    let [of_a, of_b] = ["db.a", "db.b"].map(|name| sorted(hosts.wait_for(0, name, 2)));
    assert!(of_a.iter().all(|address| !of_b.contains(address)));
    for n in [0, 1] {
        for project in ["a", "b"] {
            let app = format!("{project}_app_1");
            for _ in 0..20 {
                assert_eq!(sorted(look(&hosts, n, &app, "db.a.svc.mesh")), of_a);
                assert_eq!(sorted(look(&hosts, n, &app, "db.b.svc.mesh")), of_b);
            }
            // Plain `db` is Docker's: the project's own, at its own address.
            let own = hosts.container_address(n, &format!("{project}_db_1"));
            assert_eq!(look(&hosts, n, &app, "db"), [own]);
            let called = hosts.docker(
                n,
                &["exec", &app, ECHO, "ask", "tcp", &format!("db:{PORT}")],
            );
            assert_eq!(called, hosts.container_address(n, &app).to_string());
        }
    }
    // And removing such a service by hand is refused with the reason.
    let output = hosts.nodes[0]
        .output(&[
            env!("CARGO_BIN_EXE_meshctl"),
            "--socket",
            "/run/meshd.sock",
            "service",
            "remove",
            "db",
        ])
        .expect("a program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("db is a service of containers"), "{said}");
}
