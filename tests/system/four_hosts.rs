//! A coordinator and three nodes, from the first join to a node's removal.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::mesh::Mesh;
use crate::query::{Answer, ask, fetch, serve_page};

const PAGE: &str = "the page\n";

fn reverse(address: IpAddr) -> String {
    hickory_proto::rr::Name::from(address).to_string()
}

fn found(data: &[&str]) -> Option<Answer> {
    let data = data.iter().map(ToString::to_string).collect();
    Some(Answer {
        code: ResponseCode::NoError,
        data,
        authority: vec![],
    })
}

fn negative(code: ResponseCode) -> Option<Answer> {
    Some(Answer {
        code,
        data: vec![],
        authority: vec!["SOA".into()],
    })
}

fn everyone_pings_everyone(mesh: &Mesh, nodes: &[usize]) {
    for from in nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            let (v4, v6) = mesh.addresses(*to);
            assert!(mesh.pings(*from, &v4.to_string()), "n{} to {v4}", from + 1);
            assert!(mesh.pings(*from, &v6.to_string()), "n{} to {v6}", from + 1);
        }
    }
}

#[test]
fn names_and_tunnels_work_with_the_coordinator_and_without_it() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    everyone_pings_everyone(&mesh, &[0, 1, 2]);

    serve_page(&mesh.nodes[1].host, 8080, PAGE);
    let ended = mesh.on(
        1,
        &[
            "service",
            "add",
            "web",
            "--port",
            "8080",
            "--check-http",
            "/",
        ],
    );
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (0, "web.svc.mesh on port 8080/tcp is new\n")
    );
    let (v4, v6) = mesh.addresses(1);
    for asker in 0..3 {
        let own = IpAddr::V4(mesh.addresses(asker).0);
        let host = &mesh.nodes[asker].host;
        mesh.wait_until("the name is known", || {
            ask(host, own, "web.svc.mesh.", RecordType::A, false)
                .is_some_and(|a| !a.data.is_empty())
        });
        for server in [own, IpAddr::V6(mesh.addresses(asker).1)] {
            for tcp in [false, true] {
                let ask = |name: &str, record_type| ask(host, server, name, record_type, tcp);
                assert_eq!(
                    ask("web.svc.mesh.", RecordType::A),
                    found(&[&v4.to_string()])
                );
                assert_eq!(
                    ask("Web.SVC.mesh.", RecordType::AAAA),
                    found(&[&v6.to_string()])
                );
                assert_eq!(
                    ask("web.svc.mesh.", RecordType::SRV),
                    found(&["0 10 8080 n2-8080.web.svc.mesh."])
                );
                assert_eq!(
                    ask("n2-8080.web.svc.mesh.", RecordType::A),
                    found(&[&v4.to_string()])
                );
                assert_eq!(
                    ask(&reverse(v4.into()), RecordType::PTR),
                    found(&["n2.node.mesh."])
                );
                assert_eq!(
                    ask(&reverse(v6.into()), RecordType::PTR),
                    found(&["n2.node.mesh."])
                );
                assert_eq!(
                    ask("web.svc.mesh.", RecordType::MX),
                    negative(ResponseCode::NoError)
                );
                assert_eq!(
                    ask("never.svc.mesh.", RecordType::A),
                    negative(ResponseCode::NXDomain)
                );
            }
        }
    }
    let page = fetch(&mesh.nodes[0].host, SocketAddr::new(v4.into(), 8080))
        .expect("the way through the tunnel");
    assert_eq!(page, PAGE);

    mesh.coordinator.take().expect("it runs").kill();
    everyone_pings_everyone(&mesh, &[0, 1, 2]);
    let resolves = |mesh: &Mesh, n: usize| {
        ask(
            &mesh.nodes[n].host,
            mesh.addresses(n).0.into(),
            "web.svc.mesh.",
            RecordType::A,
            false,
        ) == found(&[&v4.to_string()])
    };
    assert!(resolves(&mesh, 0), "with the coordinator dead");

    mesh.kill_node(2);
    mesh.start_node(2);
    mesh.wait_until("the restarted node answers names", || resolves(&mesh, 2));
    everyone_pings_everyone(&mesh, &[0, 1, 2]);

    mesh.kill_node(1);
    mesh.start_node(1);
    mesh.wait_until("the restarted server's service is back", || {
        resolves(&mesh, 0)
    });
    mesh.wait_until("the page is back", || {
        fetch(&mesh.nodes[0].host, SocketAddr::new(v4.into(), 8080)).is_ok_and(|page| page == PAGE)
    });
    assert!(
        mesh.status(0)
            .problems
            .iter()
            .any(|p| p.what.contains("the coordinator is not connected"))
    );

    mesh.start_coordinator();
    mesh.wait_until("all nodes are connected again", || {
        (0..3).all(|n| mesh.status(n).coordinator.is_some_and(|c| c.connected))
    });

    assert_eq!(mesh.admin(&["node", "remove", "n2"]).code, 0);
    mesh.wait_until("its peers drop the removed node", || {
        [0, 2].iter().all(|n| mesh.status(*n).peers.len() == 1)
    });
    let gone = ask(
        &mesh.nodes[0].host,
        mesh.addresses(0).0.into(),
        "n2.node.mesh.",
        RecordType::A,
        false,
    );
    assert_eq!(gone, negative(ResponseCode::NXDomain));
    let lingering = ask(
        &mesh.nodes[0].host,
        mesh.addresses(0).0.into(),
        "web.svc.mesh.",
        RecordType::A,
        false,
    );
    assert_eq!(
        lingering,
        negative(ResponseCode::NoError),
        "no data for a minute, then no name"
    );
    assert!(
        !mesh.succeeds(0, "ping", &["-c", "1", "-w", "1", &v4.to_string()]),
        "no way to a removed node"
    );
}

#[test]
fn a_service_leaves_the_answers_when_it_is_drained_unhealthy_unreachable_or_removed() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    for n in [0, 1] {
        serve_page(&mesh.nodes[n].host, 80, PAGE);
        assert_eq!(
            mesh.on(n, &["service", "add", "web", "--port", "80", "--check-tcp"])
                .code,
            0
        );
    }
    let addresses: Vec<String> = (0..2).map(|n| mesh.addresses(n).0.to_string()).collect();
    let both: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let server = IpAddr::V4(mesh.addresses(2).0);
    let answers = |mesh: &Mesh| {
        ask(
            &mesh.nodes[2].host,
            server,
            "web.svc.mesh.",
            RecordType::A,
            false,
        )
    };
    mesh.wait_until("both are answered", || answers(&mesh) == found(&both));

    assert_eq!(mesh.on(0, &["service", "drain", "web"]).code, 0);
    mesh.wait_until("the drained one is out", || {
        answers(&mesh) == found(&[both[1]])
    });
    assert_eq!(mesh.on(0, &["service", "undrain", "web"]).code, 0);
    mesh.wait_until("it is back", || answers(&mesh) == found(&both));

    assert_eq!(
        mesh.on(0, &["service", "add", "web", "--port", "81", "--check-tcp"])
            .code,
        0
    );
    let listed = mesh.on(0, &["service", "list"]);
    assert!(listed.stdout.contains(":81/tcp"), "{listed:?}");
    assert_eq!(
        answers(&mesh),
        found(&both),
        "nobody listens on port 81, and the other instance has the same address"
    );

    mesh.kill_node(1);
    mesh.wait_until("the unreachable one is out", || {
        answers(&mesh) == found(&[both[0]])
    });
    assert_eq!(mesh.on(0, &["service", "remove", "web"]).code, 0);
    mesh.wait_until("the unreachable one is better than none", || {
        answers(&mesh) == found(&[both[1]])
    });
}

#[test]
fn a_node_that_stops_leaves_nothing_behind_on_the_machine() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let shown = |mesh: &Mesh| {
        let host = &mesh.nodes[0].host;
        ["link", "addr", "route", "-6 route", "rule"].map(|what| {
            let mut command = host.command("ip").expect("a namespace");
            let output = command.args(what.split(' ')).output().expect("iproute2");
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter(|l| !l.contains("valid_lft"))
                .collect::<Vec<_>>()
                .join("\n")
        })
    };
    let before = shown(&mesh);
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    assert_ne!(shown(&mesh), before);
    let system = mesh.on(0, &["status", "--system"]).stdout;
    for part in ["link", "address", "route", "socket", "file"] {
        assert!(
            system.lines().any(|line| line.starts_with(part)),
            "{part} in {system}"
        );
    }
    assert!(
        mesh.nodes[0]
            .daemon
            .as_mut()
            .expect("it runs")
            .stop()
            .is_some_and(|status| status.success())
    );
    assert_eq!(shown(&mesh), before);
    assert!(!mesh.nodes[0].host.path(crate::mesh::SOCKET).exists());
}
