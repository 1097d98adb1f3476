//! The names of instances follow the present names of their container and of their node.

use crate::hosts::{ECHO, Hosts, IMAGE, PORT};

/// Starts a container of the Compose service `app` in the project `shop`, with the label `mesh.service=web`.
fn start(hosts: &Hosts, name: &str) {
    let port = PORT.to_string();
    let labels = [
        "mesh.service=web",
        "mesh.port=7777",
        "com.docker.compose.project=shop",
        "com.docker.compose.service=app",
        "com.docker.compose.container-number=1",
    ];
    let labels = labels.iter().flat_map(|label| ["--label", label]);
    let labels: Vec<&str> = labels.collect();
    let run = ["run", "-d", "--name", name, "--network", "shop_default"];
    let program = [IMAGE, ECHO, "serve", &port, "0"];
    hosts.docker(0, &[&run[..], &labels, &program].concat());
}

#[test]
fn instances_are_called_as_their_container_and_node_are_called_now() {
    let Some(hosts) = Hosts::joined(1) else {
        return;
    };
    hosts.docker(0, &["network", "create", "shop_default"]);
    let names = |service: &str| -> Vec<String> {
        let instances = hosts.instances(0, service).into_iter();
        instances.map(|row| row.id.to_string()).collect()
    };
    let wait_for_name = |name: &str| {
        for service in ["web", "app.shop", "web.shop"] {
            hosts.wait_until(&format!("{service} is {name}"), || names(service) == [name]);
        }
    };
    start(&hosts, "shop-web-1");
    wait_for_name("n1-shop-web-1");

    // As Compose v1 replaces it.
    hosts.docker(0, &["stop", "-t", "1", "shop-web-1"]);
    hosts.docker(0, &["rename", "shop-web-1", "1e7d88581144_shop-web-1"]);
    start(&hosts, "shop-web-1");
    wait_for_name("n1-shop-web-1");
    hosts.docker(0, &["rm", "1e7d88581144_shop-web-1"]);

    // A container that runs is renamed.
    hosts.docker(0, &["rename", "shop-web-1", "shop-front-1"]);
    wait_for_name("n1-shop-front-1");

    // The node is.
    hosts.meshctl(hosts.nodes[0].host(), &["rename", "edge"]);
    wait_for_name("edge-shop-front-1");
}
