//! Services that cannot be published as they are meant: at addresses to which the mesh carries nothing, or with more instances
//! than a record holds. The node goes on with all others, and says which they are.

use std::fmt::Write as _;
use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::mesh::{Mesh, write};
use crate::query::ask;

#[test]
fn a_service_that_cannot_be_published_whole_is_named_in_status_and_holds_up_no_other() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    let own = mesh.addresses(0).0;

    // By hand it is refused with the reason.
    for address in ["10.210.98.5", "10.210.99.1"] {
        let words = [
            "service",
            "add",
            "db",
            "--port",
            "5432",
            "--address",
            address,
        ];
        let ended = mesh.on(0, &words);
        assert_eq!(ended.code, 64, "{ended:?}");
        let reason = format!("nothing carries packets to {address}");
        assert!(ended.stderr.contains(&reason), "{ended:?}");
    }
    let address = own.to_string();
    let words = [
        "service",
        "add",
        "db",
        "--port",
        "5432",
        "--address",
        &address,
    ];
    assert_eq!(mesh.on(0, &words).code, 0);

    // A configuration of an earlier version does not keep the node from its work.
    let mut text = "[[service]]\nname = \"postgres\"\nport = 5432\naddress = \"10.210.99.1\"\n\
        check = { tcp = true }\n"
        .to_owned();
    for port in 1..=300 {
        let _ = write!(text, "[[service]]\nname = \"many\"\nport = {port}\n");
    }
    let file = write(&mesh.nodes[0].host, "/run/meshd.toml", &text);
    mesh.kill_node(0);
    mesh.start_node_with(0, &["--config", &file]);
    let problems = || -> Vec<String> {
        let problems = mesh.status(0).problems.into_iter();
        problems.map(|p| format!("{}: {}", p.what, p.fix)).collect()
    };
    let problem = |what: &str| problems().iter().any(|p| p.contains(what));
    mesh.wait_until("status names the service nobody reaches", || {
        problem("the service postgres on 10.210.99.1 is not answered")
    });
    assert!(problem("meshd.toml"), "{:?}", problems());
    assert!(
        problem("44 of 300 instances of the service many are not published"),
        "{:?}",
        problems()
    );
    let dns: IpAddr = "10.210.0.53".parse().expect("a literal");
    let answer = |name: &str| ask(&mesh.nodes[0].host, dns, name, RecordType::A, false);
    let code = |name: &str| answer(name).map(|a| a.code);
    assert_eq!(code("postgres.svc.mesh."), Some(ResponseCode::NXDomain));
    for name in ["db.svc.mesh.", "many.svc.mesh."] {
        let found = answer(name).expect("an answer");
        assert_eq!(found.data, [own.to_string()], "{name}");
    }
}
