//! A real Caddy that gets its sites from meshd, and serves containers by the label `mesh.public`.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use meshd::testbed::{Running, skip_test};

use crate::hosts::{Hosts, IMAGE};
use crate::tool::find_program;

/// Caddy listens on port 80, so it speaks no TLS.
const SITES: &str = "http://127.0.0.1:9560/v1/caddy?listen=:80";
/// The name of the site.
const HOST: &str = "shop.example.com";

/// Starts a Caddy on node 0. Its own configuration has only the address from which it loads its sites.
fn start_caddy(hosts: &Hosts, program: &Path) -> Running {
    let host = hosts.nodes[0].host();
    let load = format!(r#"{{"module":"http","url":"{SITES}"}}"#);
    let text = format!(r#"{{"admin":{{"config":{{"load":{load},"load_delay":"1s"}}}}}}"#);
    std::fs::write(host.path("/run/caddy.json"), text).expect("its own file system");
    let mut command = host
        .command(program.to_str().expect("a plain path"))
        .expect("a host");
    command.args(["run", "--config", "/run/caddy.json"]);
    for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        command.env(variable, "/run");
    }
    let log = host.path("/run/caddy.log");
    host.start(&mut command, &log).expect("a program")
}

/// Starts a container on node `n` that serves a page with its own name on port 8080, as `service` under [`HOST`].
fn serve(hosts: &Hosts, n: usize, name: &str, service: &str) {
    let serve =
        format!("mkdir /www && echo {name} >/www/index.html && exec httpd -f -p 8080 -h /www");
    let labels = [
        format!("mesh.service={service}"),
        "mesh.port=8080".to_owned(),
        format!("mesh.public={HOST}"),
    ];
    let labels = labels.iter().flat_map(|l| ["--label", l.as_str()]);
    let start = ["run", "-d", "--name", name];
    let program = [IMAGE, "sh", "-c", &serve];
    let words: Vec<&str> = start.into_iter().chain(labels).chain(program).collect();
    hosts.docker(n, &words);
}

/// The answer of Caddy to a request for the host `name`: the status, and the body without white space at its ends.
fn visit(hosts: &Hosts, name: &str) -> Option<(u16, String)> {
    let answer = hosts.nodes[0].host().inside(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], 80)))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.expect("a namespace").ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.trim().to_owned()))
}

/// The containers that answer several visitors of the site. None if one of the visitors is not answered.
fn answering(hosts: &Hosts) -> Option<BTreeSet<String>> {
    let visits = (0..6).map(|_| visit(hosts, HOST));
    let answers = visits.map(|visit| visit.filter(|(status, _)| *status == 200));
    answers.map(|visit| visit.map(|(_, body)| body)).collect()
}

/// Waits until these containers answer the visitors of the site, and no others.
fn wait_for(hosts: &Hosts, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    hosts.wait_until(&format!("{names:?} answer"), || {
        answering(hosts).as_ref() == Some(&expected)
    });
}

#[test]
fn a_real_caddy_serves_containers_of_all_hosts_under_their_host_name() {
    let Some(program) = find_program("caddy") else {
        return skip_test("caddy is neither installed nor unpacked (tests/run does that)");
    };
    let Some(mut hosts) = Hosts::start(2) else {
        return;
    };
    hosts.configure(0, "[metrics]\ndiscovery = true\n");
    hosts.join(0);
    // If several services ask for one host name, the service of the node that joined first has it. Dates of joins are in whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    hosts.join(1);
    hosts.wait_for_peers();
    let _caddy = start_caddy(&hosts, &program);
    // A host name that the mesh does not have is no site.
    hosts.wait_until("caddy has the first configuration", || {
        visit(&hosts, HOST).is_some_and(|(status, _)| status == 404)
    });

    serve(&hosts, 1, "one", "shop");
    wait_for(&hosts, &["one"]);
    serve(&hosts, 0, "two", "shop");
    wait_for(&hosts, &["one", "two"]);
    assert_eq!(
        visit(&hosts, "other.example.com").map(|(s, _)| s),
        Some(404)
    );

    // Another service asks for the same host name.
    serve(&hosts, 1, "three", "intruder");
    hosts.wait_for(0, "intruder", 1);
    hosts.wait_until("the dispute is a problem", || {
        let problems = hosts.status(0).problems;
        let what =
            format!("the host name {HOST} is asked for by several services: shop and intruder");
        problems.iter().any(|problem| problem.what == what)
    });
    wait_for(&hosts, &["one", "two"]);

    hosts.docker(1, &["rm", "-f", "three"]);
    hosts.docker(1, &["rm", "-f", "one"]);
    wait_for(&hosts, &["two"]);
    hosts.docker(0, &["rm", "-f", "two"]);
    hosts.wait_until("the site is gone", || {
        visit(&hosts, HOST).is_some_and(|(status, _)| status == 404)
    });
}
