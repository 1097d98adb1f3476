//! Clients of other C libraries than this machine's: names are looked up by their code, not by ours.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::hosts::{Hosts, PORT};
use meshd::testbed::Image;

/// Compiles a client, if there is the compiler.
fn compile(into: &Path, program: &str, arguments: &[&str]) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/containers/clients");
    let made = Command::new(program)
        .current_dir(folder)
        .args(arguments)
        .arg("-o")
        .arg(into)
        .output();
    match made {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {output:?}");
            Some(into.to_owned())
        }
        Err(error) => {
            meshd::testbed::skip_part_of_test(&format!(
                "the client that {program} compiles: {error}"
            ));
            None
        }
    }
}

#[test]
fn clients_of_glibc_of_musl_and_static_ones_resolve_and_connect() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| folder.path().join(name);
    let rust = [
        "--edition=2024",
        "-Ctarget-feature=+crt-static",
        "client.rs",
    ];
    let clients: Vec<PathBuf> = [
        compile(&at("glibc"), "cc", &["client.c"]),
        compile(&at("musl"), "musl-gcc", &["-static", "client.c"]),
        compile(&at("rust"), "rustc", &rust),
    ]
    .into_iter()
    .flatten()
    .collect();
    let programs: Vec<&Path> = clients.iter().map(PathBuf::as_path).collect();
    let image = Image::pack(&at("clients.tar"), &programs).expect("an image");
    hosts.nodes[0].import(&image, "clients").expect("an image");
    hosts.serve(1, "web", "bridge", "web");
    hosts.wait_for(0, "web", 1);
    hosts.docker(0, &["network", "create", "project"]);
    let port = PORT.to_string();
    for client in &clients {
        let client = client
            .file_name()
            .and_then(|n| n.to_str())
            .expect("a plain name");
        let program = format!("/usr/local/bin/{client}");
        for network in ["bridge", "project", "host"] {
            let run = ["run", "--rm", "--network", network, "clients"];
            let said = hosts.docker(0, &[&run[..], &[&program, "web.svc.mesh", &port]].concat());
            println!("{client} on {network} is called {said}");
            assert_eq!(said, hosts.node(0).to_string(), "{client} on {network}");
        }
    }
}
