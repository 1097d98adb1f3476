//! The resolvers that programs bring with them, each asking for what programs ask for: those of glibc, musl and busybox,
//! c-ares, Node's, dnspython, Go's, and systemd-resolved in between. A resolver that is not
//! installed is left out, and `tests/run` lists it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use meshd::testbed::{Running, skip_part_of_test};

use crate::host_dns::own_etc;
use crate::mesh::{Mesh, run, write};

/// More addresses than fit a datagram.
const MANY: u8 = 60;
/// As containers have it, but for the search list, of which the first part is in vain for a name with a dot in it.
const RESOLV_CONF: &str = "search svc.mesh mesh\noptions ndots:2 attempts:1\n";
/// Installed, or as `tests/run` unpacks it.
const RESOLVED: &[&str] = &[
    "/usr/lib/systemd/systemd-resolved",
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/tools/usr/lib/systemd/systemd-resolved"
    ),
    concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/target/tools/lib/systemd/systemd-resolved"
    ),
];

/// A client.
struct Client {
    name: &'static str,
    /// A shell command that succeeds if what the client needs is there. In `$D` are the files of this folder, in `$B`
    /// is a folder for programs.
    made: &'static str,
    /// A shell command that looks a name up, `$2`, for A, AAAA, SRV or BOTH, `$1`, and prints an answer a line: an
    /// address, the data of an SRV record, or else NXDOMAIN, NODATA, or NONE from one who does not tell these apart.
    command: &'static str,
    /// The features that this client does not have.
    cannot: &'static [Ability],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ability {
    /// It asks again over TCP when an answer is cut; if not, it takes what there is.
    Streams,
    Srv,
    /// It uses the search list.
    Search,
}
use Ability::{Search, Srv, Streams};

const CLIENTS: &[Client] = &[
    Client {
        name: "glibc",
        made: "cc -O1 -o $B/glibc $D/lookup.c -lresolv",
        command: "$B/glibc $1 $2",
        cannot: &[],
    },
    Client {
        name: "musl",
        made: "musl-gcc -static -O1 -o $B/musl $D/lookup.c",
        command: "$B/musl $1 $2",
        // Since 1.2.4 it asks over TCP as well.
        cannot: &[Streams],
    },
    Client {
        name: "busybox",
        made: "command -v busybox",
        command: "case $1 in BOTH) t=;; *) t=-type=$1;; esac; busybox nslookup $t $2 > /run/out; \
            sed -n '3,$s/^Address: *//p' /run/out | grep . || echo NONE",
        cannot: &[Streams, Srv, Search],
    },
    Client {
        name: "c-ares",
        made: "/usr/bin/python3 -c 'import pycares'",
        command: "/usr/bin/python3 $D/cares.py $1 $2",
        cannot: &[],
    },
    Client {
        name: "Node's c-ares",
        made: "command -v node",
        command: "node $D/lookup.js resolve $1 $2",
        cannot: &[Search],
    },
    Client {
        name: "Node's lookup",
        made: "command -v node",
        command: "node $D/lookup.js lookup $1 $2",
        cannot: &[Srv],
    },
    Client {
        name: "dnspython",
        made: "/usr/bin/python3 -c 'import dns.resolver'",
        command: "/usr/bin/python3 $D/lookup.py $1 $2",
        cannot: &[],
    },
    Client {
        name: "Go",
        made: "command -v go && GO111MODULE=off GOCACHE=$B/cache CGO_ENABLED=0 go build -o $B/go $D/lookup.go",
        command: "$B/go $1 $2",
        cannot: &[],
    },
];

/// A shell with the words that the commands use.
fn shell(command: &mut Command, programs: &Path, script: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/system/clients");
    command
        .env("D", folder)
        .env("B", programs)
        .args(["-c", script, "sh"]);
}

fn is_there(client: &Client, programs: &Path) -> bool {
    let mut command = Command::new("sh");
    shell(&mut command, programs, client.made);
    let output = command.output();
    let there = output.as_ref().is_ok_and(|output| output.status.success());
    if !there {
        skip_part_of_test(&format!("the client {} is not installed", client.name));
    }
    there
}

/// The lines that a client prints, without repetitions.
fn printed(
    mesh: &Mesh,
    client: &Client,
    programs: &Path,
    kind: &str,
    name: &str,
) -> BTreeSet<String> {
    let mut command = mesh.nodes[0].host.command("sh").expect("a namespace");
    shell(&mut command, programs, client.command);
    let ended = run(command.args([kind, name]));
    let lines = ended.stdout.lines().map(|line| line.trim().to_owned());
    let lines: BTreeSet<String> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return [format!("{} {}", ended.code, ended.stderr.trim())].into();
    }
    lines
}

/// A question, and the right answer.
struct Trial {
    what: &'static str,
    kind: &'static str,
    name: &'static str,
    wanted: BTreeSet<String>,
    needs: Option<Ability>,
}

impl Trial {
    fn new(what: &'static str, kind: &'static str, name: &'static str, wanted: &[&str]) -> Self {
        Self {
            what,
            kind,
            name,
            wanted: wanted.iter().map(ToString::to_string).collect(),
            needs: None,
        }
    }

    fn needing(self, ability: Ability) -> Self {
        Self {
            needs: Some(ability),
            ..self
        }
    }

    fn is_right(&self, client: &Client, found: &BTreeSet<String>) -> bool {
        let negative = ["NXDOMAIN", "NODATA"]
            .iter()
            .any(|n| self.wanted.contains(*n));
        if self.needs == Some(Streams) && client.cannot.contains(&Streams) {
            return !found.is_empty() && found.is_subset(&self.wanted);
        }
        *found == self.wanted || (negative && *found == ["NONE".to_owned()].into())
    }
}

/// Addresses of the block of the node that has `v4`: those of the service `many`.
fn addresses_of_many(v4: Ipv4Addr) -> Vec<String> {
    let [a, b, c, _] = v4.octets();
    let addresses = (1..=MANY).map(|n| Ipv4Addr::new(a, b, c, 100 + n).to_string());
    addresses.collect()
}

fn trials(v4: Ipv4Addr, v6: &str) -> Vec<Trial> {
    let many = addresses_of_many(v4);
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let v4 = v4.to_string();
    let v4 = v4.as_str();
    vec![
        Trial::new("A", "A", "both.svc.mesh", &[v4]),
        Trial::new("AAAA", "AAAA", "both.svc.mesh", &[v6]),
        Trial::new("both at once", "BOTH", "both.svc.mesh", &[v4, v6]),
        Trial::new("mixed case", "A", "BoTh.sVc.MeSh", &[v4]),
        Trial::new("no AAAA", "AAAA", "many.svc.mesh", &["NODATA"]),
        Trial::new("no name", "A", "never.svc.mesh", &["NXDOMAIN"]),
        Trial::new("neither of both", "BOTH", "never.svc.mesh", &["NXDOMAIN"]),
        Trial::new("60 addresses", "A", "many.svc.mesh", &many).needing(Streams),
        Trial::new("60, of both", "BOTH", "many.svc.mesh", &many).needing(Streams),
        Trial::new(
            "SRV",
            "SRV",
            "both.svc.mesh",
            &["0 10 80 n1-80.both.svc.mesh"],
        )
        .needing(Srv),
        Trial::new("search", "A", "both", &[v4]).needing(Search),
        Trial::new("search, second", "A", "both.svc", &[v4]).needing(Search),
    ]
}

/// Has `clients` go through everything; gives what went wrong, and prints the table.
fn go_through(mesh: &Mesh, clients: &[&Client], programs: &Path, by: &str) -> Vec<String> {
    let (v4, v6) = mesh.addresses(0);
    let trials = trials(v4, &v6.to_string());
    let mut wrong = Vec::new();
    for client in clients {
        let mut line = String::new();
        for trial in &trials {
            let left_out = |need: &Ability| *need != Streams && client.cannot.contains(need);
            if trial.needs.as_ref().is_some_and(left_out) {
                line += &format!(" {}: -;", trial.what);
                continue;
            }
            let found = printed(mesh, client, programs, trial.kind, trial.name);
            let right = trial.is_right(client, &found);
            line += &format!(
                " {}: {};",
                trial.what,
                if right { "right" } else { "WRONG" }
            );
            if !right {
                wrong.push(format!("{}{by}: {}: {found:?}", client.name, trial.what));
            }
        }
        println!("{}{by}:{line}", client.name);
    }
    wrong
}

/// systemd-resolved between the programs of a host and meshd.
fn start_resolved(mesh: &Mesh) -> Option<Running> {
    let Some(program) = RESOLVED.iter().find(|path| Path::new(path).exists()) else {
        skip_part_of_test("systemd-resolved is not installed");
        return None;
    };
    let host = &mesh.nodes[0].host;
    let text = "[Resolve]\nDNS=10.210.0.53\nFallbackDNS=\nDomains=~.\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n";
    // Its own folder in /run it wants to make itself.
    let script = "mkdir -p /etc/systemd /run/systemd && \
        { id systemd-resolve || echo systemd-resolve:x:990:990::/:/bin/false >> /etc/passwd; } && \
        cat > /etc/systemd/resolved.conf";
    let file = write(host, "/run/resolved.conf", text);
    let script = format!("{script} < {file}");
    assert!(mesh.succeeds(0, "sh", &["-c", &script]));
    let mut command = host.command(program).expect("a namespace");
    // It lives without a bus.
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/none");
    let log = mesh.logs.path().join("resolved");
    let running = host.start(&mut command, &log).expect("it starts");
    mesh.wait_until("systemd-resolved answers", || {
        mesh.succeeds(0, "getent", &["ahostsv4", "both.svc.mesh"])
    });
    Some(running)
}

#[test]
fn every_client_gets_the_answer_to_its_query() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    let many = addresses_of_many(mesh.addresses(0).0);
    mesh.kill_node(0);
    let mut text = "[dns]\nmax_addresses = 100\nsplit_dns = \"none\"\n".to_owned();
    for (port, address) in (8001..).zip(many) {
        text += &format!("[[service]]\nname = \"many\"\nport = {port}\naddress = \"{address}\"\n");
    }
    text += "[[service]]\nname = \"both\"\nport = 80\n";
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    let programs = tempfile::tempdir().expect("a temporary directory");
    let clients = CLIENTS.iter().filter(|c| is_there(c, programs.path()));
    let clients: Vec<&Client> = clients.collect();
    own_etc(&mesh, 0, &format!("nameserver 10.210.0.53\n{RESOLV_CONF}"));
    let mut wrong = go_through(&mesh, &clients, programs.path(), "");
    let conf = format!("nameserver 127.0.0.53\n{RESOLV_CONF}options edns0\n");
    std::fs::write(mesh.nodes[0].host.path("/run/etc/resolv.conf"), conf).expect("ours");
    if let Some(_resolved) = start_resolved(&mesh) {
        let through = ["glibc", "dnspython"];
        let clients: Vec<&Client> = clients
            .into_iter()
            .filter(|client| through.contains(&client.name))
            .collect();
        wrong.extend(go_through(
            &mesh,
            &clients,
            programs.path(),
            ", by systemd-resolved",
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
