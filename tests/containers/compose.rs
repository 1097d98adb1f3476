//! The example for Compose, as a reader runs it: other programs stand in for the images.

use crate::hosts::Hosts;

const EXAMPLE: &str = include_str!("../../config/compose.example.yaml");
const STAND_IN: &str = r#"
version: "3.8"
services:
  db: {image: box, command: ["/usr/local/bin/echo", "serve", "5432"]}
  app: {image: box, command: ["/usr/local/bin/echo", "serve", "1"]}
"#;

#[test]
fn the_compose_example_leads_from_two_servers_to_a_name() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    if hosts.nodes[0].exec(&["docker-compose", "version"]).is_err() {
        meshd::testbed::skip_test("docker-compose is not installed");
        return;
    }
    let compose = |n: usize, words: &str| {
        for (file, text) in [("example.yaml", EXAMPLE), ("stand-in.yaml", STAND_IN)] {
            let path = hosts.nodes[n].host().path(&format!("/run/{file}"));
            std::fs::write(path, text).expect("its own file system");
        }
        let files = "docker-compose -p shop -f /run/example.yaml -f /run/stand-in.yaml";
        let line = format!("{files} {words}");
        hosts.exec(n, &line.split(' ').collect::<Vec<_>>())
    };
    compose(1, "up -d db");
    compose(0, "up -d app");
    hosts.wait_for(0, "db", 1);
    hosts.wait_for(0, "db.shop", 1);
    // Compose's versions call it differently.
    let label = "label=com.docker.compose.service=app";
    let app = hosts.docker(0, &["ps", "-q", "--filter", label]);
    for name in ["db.svc.mesh:5432", "db.shop.svc.mesh:5432"] {
        let called = hosts.exec(0, &hosts.words(&app, &["ask", "tcp", name]));
        assert_eq!(called, hosts.node(0).to_string(), "{name}");
    }
}
