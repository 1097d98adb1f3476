//! The resolvers that programs bring with them, each asking for what programs ask for: glibc, busybox, c-ares (by Node)
//! and dnspython. One that is not installed is left out, and said so.

use std::collections::BTreeSet;

use crate::host_dns::own_etc;
use crate::mesh::{Mesh, run, write};

/// More addresses than fit a datagram of 512 octets.
const MANY: u8 = 60;

/// A client: its name, the program, and scripts that print one address a line and fail if there is none.
struct Client {
    name: &'static str,
    program: &'static str,
    v4: &'static str,
    v6: &'static str,
    /// Whether it asks again over TCP when an answer is cut; if not, it takes what there is.
    streams: bool,
}

const CLIENTS: &[Client] = &[
    Client {
        name: "glibc",
        program: "getent",
        v4: "getent ahostsv4 \"$1\" > /run/out && cut -d ' ' -f 1 /run/out",
        v6: "getent ahostsv6 \"$1\" > /run/out && cut -d ' ' -f 1 /run/out | grep -v '^::ffff:'",
        streams: true,
    },
    Client {
        name: "busybox",
        program: "busybox",
        v4: "busybox nslookup -type=a \"$1\" > /run/out && sed -n '3,$s/^Address: *//p' /run/out | grep .",
        v6: "busybox nslookup -type=aaaa \"$1\" > /run/out && sed -n '3,$s/^Address: *//p' /run/out | grep .",
        streams: false,
    },
    Client {
        name: "c-ares, by Node",
        program: "node",
        v4: "node -e 'require(\"dns\").resolve4(process.argv[1], (e, a) => { if (e) process.exit(1); console.log(a.join(\"\\n\")) })' \"$1\"",
        v6: "node -e 'require(\"dns\").resolve6(process.argv[1], (e, a) => { if (e) process.exit(1); console.log(a.join(\"\\n\")) })' \"$1\"",
        streams: true,
    },
    Client {
        name: "Node's own lookup",
        program: "node",
        v4: "node -e 'require(\"dns\").lookup(process.argv[1], {all: true, family: 4}, (e, a) => { if (e) process.exit(1); console.log(a.map(x => x.address).join(\"\\n\")) })' \"$1\"",
        v6: "node -e 'require(\"dns\").lookup(process.argv[1], {all: true, family: 6}, (e, a) => { if (e) process.exit(1); console.log(a.map(x => x.address).join(\"\\n\")) })' \"$1\"",
        streams: true,
    },
    Client {
        name: "dnspython",
        program: "/usr/bin/python3 -c 'import dns.resolver' && true",
        v4: "/usr/bin/python3 -c 'import dns.resolver, sys\nfor a in dns.resolver.resolve(sys.argv[1], \"A\"): print(a)' \"$1\"",
        v6: "/usr/bin/python3 -c 'import dns.resolver, sys\nfor a in dns.resolver.resolve(sys.argv[1], \"AAAA\"): print(a)' \"$1\"",
        streams: true,
    },
];

/// What a script prints, without repetitions; nothing if it fails.
fn printed(mesh: &Mesh, script: &str, name: &str) -> BTreeSet<String> {
    let mut command = mesh.nodes[0].host.command("sh").expect("a namespace");
    let ended = run(command.args(["-c", script, "sh", name]));
    if ended.code != 0 {
        return BTreeSet::new();
    }
    let lines = ended.stdout.lines().map(|line| line.trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

fn is_there(client: &Client) -> bool {
    let asked = match client.program.split_once(' ') {
        Some(_) => client.program.to_owned(),
        None => format!("command -v {}", client.program),
    };
    let there = std::process::Command::new("sh")
        .args(["-c", &asked])
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("{} is not installed: left out", client.name);
    }
    there
}

#[test]
fn every_client_is_answered_what_it_asks_for() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.kill_node(0);
    let mut text = "[dns]\nmax_addresses = 100\n".to_owned();
    let mut many = BTreeSet::new();
    for n in 1..=MANY {
        let address = format!("10.50.0.{n}");
        text += &format!(
            "[[service]]\nname = \"many\"\nport = {}\naddress = \"{address}\"\n",
            8000 + u16::from(n)
        );
        many.insert(address);
    }
    text += "[[service]]\nname = \"both\"\nport = 80\n";
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.start_node_with(0, &["--config", &file]);
    let token = mesh.token(&[]);
    let ended = mesh.on(0, &["join", &token]);
    assert_eq!(ended.code, 0, "{ended:?}");
    own_etc(
        &mesh,
        0,
        "nameserver 10.210.0.53\nsearch svc.mesh\noptions ndots:2\n",
    );
    let (v4, v6) = mesh.addresses(0);
    let (v4, v6) = (
        BTreeSet::from([v4.to_string()]),
        BTreeSet::from([v6.to_string()]),
    );
    let mut wrong = Vec::new();
    for client in CLIENTS.iter().filter(|client| is_there(client)) {
        for (what, script, name, wanted) in [
            ("A", client.v4, "both.svc.mesh", v4.clone()),
            ("AAAA", client.v6, "both.svc.mesh", v6.clone()),
            ("A in mixed case", client.v4, "BoTh.sVc.MeSh", v4.clone()),
            (
                "AAAA, where there is none",
                client.v6,
                "many.svc.mesh",
                BTreeSet::new(),
            ),
            (
                "a name that is not there",
                client.v4,
                "never.svc.mesh",
                BTreeSet::new(),
            ),
            ("60 addresses", client.v4, "many.svc.mesh", many.clone()),
        ] {
            let found = printed(&mesh, script, name);
            let cut = !client.streams && wanted.len() > 8;
            let right = match cut {
                true => !found.is_empty() && found.is_subset(&wanted),
                false => found == wanted,
            };
            if !right {
                wrong.push(format!("{}: {what}: {found:?}", client.name));
            }
        }
    }
    // The search list is libc's business; that it works is ours.
    let getent = CLIENTS.first().expect("glibc");
    let short = printed(&mesh, getent.v4, "both");
    if short != v4 {
        wrong.push(format!("glibc: a short name: {short:?}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
