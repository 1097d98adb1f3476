//! The API over the network: a node serves it at its mesh addresses, to callers whose token permits the call.

use std::net::IpAddr;

use crate::mesh::{Ended, Mesh, write};

/// A mesh of three nodes that reach each other. The first one serves the API.
fn mesh() -> Option<Mesh> {
    let mut mesh = Mesh::joined(3)?;
    mesh.kill_node(0);
    start_with_api(&mut mesh, 0);
    Some(mesh)
}

fn start_with_api(mesh: &mut Mesh, n: usize) {
    let text = "[api]\nenabled = true\n";
    let config = write(&mesh.nodes[n].host, "/run/meshd.toml", text);
    mesh.start_node_with(n, &["--config", &config]);
    let url = format!("http://{}:7447/v1/openapi.json", mesh.addresses(n).0);
    mesh.wait_until("the node serves the API", || {
        mesh.succeeds(n, "curl", &["-sf", "-o", "/dev/null", &url])
    });
    mesh.wait_until("all nodes reach each other", || {
        (0..3).all(|n| mesh.reaches(n) == 2)
    });
}

/// Makes an API token where the mesh is administered.
pub(crate) fn create(mesh: &Mesh, options: &[&str]) -> String {
    let ended = mesh.admin(&[&["api-token", "create"][..], options].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.stdout.trim().to_owned()
}

/// Runs a command on node `n` that asks the API at `address` with `token`.
fn ask(mesh: &Mesh, n: usize, address: IpAddr, token: &str, words: &[&str]) -> Ended {
    let file = write(&mesh.nodes[n].host, "/run/api-token", token);
    let url = match address {
        IpAddr::V4(address) => format!("http://{address}"),
        IpAddr::V6(address) => format!("http://[{address}]"),
    };
    let options = ["--api", &url, "--api-token-file", &file];
    mesh.on(n, &[&options[..], words].concat())
}

#[test]
fn a_token_opens_the_api_of_a_node_until_it_is_revoked_also_without_a_coordinator() {
    if !has_curl() {
        return;
    }
    let Some(mut mesh) = mesh() else {
        return;
    };
    let (v4, v6) = mesh.addresses(0);
    let options = ["--scope", "status:read"];
    let [kept, gone] =
        ["kept", "gone"].map(|name| create(&mesh, &[&["--name", name][..], &options].concat()));
    for n in 0..3 {
        for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
            let ended = ask(&mesh, n, address, &kept, &["status", "--json"]);
            assert_eq!(ended.code, 0, "{n} {address}: {ended:?}");
            let status: serde_json::Value =
                serde_json::from_str(&ended.stdout).expect("a document");
            assert_eq!(status["node"]["name"], "n1");
        }
    }
    let v4 = IpAddr::V4(v4);
    let status = |mesh: &Mesh, token: &str| ask(mesh, 1, v4, token, &["status"]).code;
    assert_eq!(status(&mesh, &gone), 0);
    assert_eq!(mesh.admin(&["api-token", "revoke", "gone"]).code, 0);
    mesh.wait_until("the node refuses the revoked token", || {
        status(&mesh, &gone) == 77
    });
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(0);
    start_with_api(&mut mesh, 0);
    assert_eq!(status(&mesh, &kept), 0, "nobody has to be asked");
    assert_eq!(status(&mesh, &gone), 77, "the revocation is on disk");
}

/// Asks the API at `address` `count` times from node `n` to drain a service. Returns the statuses of the answers, one on each line.
fn drain_again(mesh: &Mesh, n: usize, address: IpAddr, token: &str, count: usize) -> String {
    let host = &mesh.nodes[n].host;
    let header = write(
        host,
        "/run/header",
        &format!("Authorization: Bearer {token}"),
    );
    let header = format!("@{header}");
    // The server ignores the query, which makes another URL for curl.
    let url = format!("http://{address}:7447/v1/services/web/drain?[1-{count}]");
    let mut command = host.command("curl").expect("a namespace");
    command.args(["-s", "-X", "POST", "--max-time", "60", "-o", "/dev/null"]);
    command.args(["-w", "%{http_code}\n", "--header", &header, &url]);
    let output = command.output().expect("a program");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_stolen_token_that_is_bound_to_a_node_works_from_nowhere_else() {
    if !has_curl() {
        return;
    }
    let Some(mesh) = mesh() else {
        return;
    };
    let v4 = IpAddr::V4(mesh.addresses(0).0);
    let added = mesh.on(0, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    let options = ["--name", "deploy", "--scope", "drain", "--node", "n1"];
    let token = create(&mesh, &[&options[..], &["--from", "node:n2"]].concat());
    let drain = |n: usize| ask(&mesh, n, v4, &token, &["service", "drain", "web"]);
    for _ in 0..10 {
        for n in [0, 2] {
            let ended = drain(n);
            assert_eq!(ended.code, 1, "{n}: {ended:?}");
            assert!(ended.stderr.contains("node:n2"), "{n}: {ended:?}");
        }
    }
    // A program that does not stop. With those before it, these are 1,000 calls.
    for n in [0, 2] {
        let statuses = drain_again(&mesh, n, v4, &token, 490);
        assert_eq!(statuses.lines().count(), 490, "{n}: {statuses}");
        let mut statuses = statuses.lines();
        let accepted = statuses.find(|status| !matches!(*status, "403" | "429"));
        assert_eq!(accepted, None, "{n}");
    }
    let listed = || mesh.on(0, &["service", "list"]).stdout;
    assert!(!listed().contains("draining"), "{}", listed());
    // The program may have used up the calls of the token.
    mesh.wait_until("a call from the right node is accepted", || {
        drain(1).code == 0
    });
    assert!(listed().contains("draining"), "{}", listed());
    // Another call needs another scope, from wherever it comes.
    let ended = ask(&mesh, 1, v4, &token, &["service", "remove", "web"]);
    assert_eq!(ended.code, 1, "{ended:?}");

    let log = mesh.on(0, &["audit", "--json", "--file", "/run/state"]);
    let document: serde_json::Value = serde_json::from_str(&log.stdout).expect("a document");
    let events = document["events"].as_array().expect("a list");
    let by = mesh.addresses(1).0.to_string();
    let drained = events.iter().find(|event| {
        event["object"]["call"] == "drain_service" && event["who"]["kind"] == "api_caller"
    });
    let drained = drained.expect("the drain has an event");
    assert_eq!(drained["who"]["name"], "deploy");
    assert_eq!(drained["who"]["address"], by);
    let mut refused = events.iter().filter(|event| event["what"] == "api_refused");
    assert!(refused.all(|event| event["who"]["name"] == "deploy"));
    assert!(!log.stdout.contains(&token));
}

/// Whether curl is installed. If it is not, the test is listed as skipped.
pub(crate) fn has_curl() -> bool {
    let version = std::process::Command::new("curl").arg("--version").output();
    if version.is_err() {
        meshd::testbed::skip_test("curl is not installed");
    }
    version.is_ok()
}
