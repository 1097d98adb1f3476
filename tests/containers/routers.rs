//! Container hosts behind routers: a home, a cloud whose gateway gives each
//! destination another port, and an office that drops UDP.

use meshd::testbed::Nat;

use crate::hosts::{ECHO, Hosts, IMAGE, PORT};

/// Compose starts this on each host as it is: nothing in it knows of routers.
fn compose(name: &str) -> String {
    format!(
        r#"version: "3.8"
services:
  {name}:
    image: {IMAGE}
    command: ["{ECHO}", "serve", "{PORT}", "0"]
    labels:
      mesh.service: {name}
      mesh.port: "{PORT}"
"#
    )
}

#[test]
fn containers_behind_three_kinds_of_routers_find_and_reach_each_other_by_name() {
    let Some(hosts) = Hosts::joined_behind(&[Nat::Plain, Nat::Symmetric, Nat::UdpBlocked]) else {
        return;
    };
    if hosts.nodes[0].exec(&["docker-compose", "version"]).is_err() {
        meshd::testbed::skip_test("docker-compose is not installed");
        return;
    }
    let names = ["home", "cloud", "office"];
    for (n, name) in names.iter().enumerate() {
        let file = hosts.nodes[n].host().path("/run/compose.yaml");
        std::fs::write(file, compose(name)).expect("its own file system");
        let line = "docker-compose -p shop -f /run/compose.yaml up -d";
        hosts.exec(n, &line.split(' ').collect::<Vec<_>>());
    }
    for (n, name) in names.iter().enumerate() {
        // A container of a service calls from its own address in the mesh.
        let own = hosts.wait_for(n, name, 1)[0].to_string();
        let label = format!("label=com.docker.compose.service={name}");
        let container = hosts.docker(n, &["ps", "-q", "--filter", &label]);
        for wanted in names.iter().filter(|wanted| *wanted != name) {
            hosts.wait_for(n, wanted, 1);
            for wanted in [
                format!("{wanted}.svc.mesh"),
                format!("{wanted}.shop.svc.mesh"),
            ] {
                let called = hosts.ask(n, &container, "tcp", &wanted);
                assert_eq!(called.as_ref(), Ok(&own), "{wanted}, asked by {name}");
            }
        }
    }
}
