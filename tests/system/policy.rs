//! The policy of the mesh: it is applied where the mesh is administered, and each node keeps to it.

use crate::mesh::{Ended, Mesh, write};

/// Only nodes with the tag `db` may serve `db`. Nodes with the tag `web` reach it, and nobody reaches anything else.
const POLICY: &str = r#"
language = 1
default = "deny"
[[serve]]
names = ["db"]
by = ["tag:db"]
[[allow]]
from = ["tag:web"]
to = ["db:5432"]
[[test]]
from = "node:n2"
to = "db:5432"
is = "allow"
[[test]]
from = "node:n1"
to = "db:22"
is = "deny"
"#;

/// Puts `text` into a file where the mesh is administered, and applies it.
fn apply(mesh: &Mesh, text: &str, options: &[&str]) -> Ended {
    let file = write(&mesh.coordinator_host, "/run/policy.toml", text);
    mesh.admin(&[&["policy", "apply", &file], options].concat())
}

/// A mesh of the nodes n1 with the tag `db`, n2 with the tag `web`, and n3 without a tag. The first and the last one offer `db`.
fn mesh() -> Option<Mesh> {
    let mesh = Mesh::start(3)?;
    for (n, options) in [
        (0, vec!["--tag", "db"]),
        (1, vec!["--tag", "web"]),
        (2, vec![]),
    ] {
        let token = mesh.token(&options);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    for n in [0, 2] {
        let ended = mesh.on(n, &["service", "add", "db", "--port", "5432"]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("both instances are answered", || {
        addresses_of_db(&mesh, 1).len() == 2
    });
    Some(mesh)
}

/// The addresses that node `n` answers for `db.svc.mesh`.
fn addresses_of_db(mesh: &Mesh, n: usize) -> Vec<String> {
    let ended = mesh.on(n, &["resolve", "db.svc.mesh", "A", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap_or_default();
    let text = document.to_string();
    let nodes = [0, 2].map(|n| mesh.addresses(n).0.to_string());
    nodes
        .into_iter()
        .filter(|address| text.contains(address))
        .collect()
}

#[test]
fn an_applied_policy_is_in_force_at_every_node_and_takes_a_name_from_a_node_without_the_right() {
    let Some(mut mesh) = mesh() else {
        return;
    };
    let (db, rogue) = (
        mesh.addresses(0).0.to_string(),
        mesh.addresses(2).0.to_string(),
    );
    let dry = apply(&mesh, POLICY, &["--dry-run", "--json"]);
    assert_eq!(dry.code, 0, "{dry:?}");
    // A node that may do less is listed, and its packets pass.
    mesh.wait_until("what would be denied is listed", || {
        assert!(mesh.pings(2, &db), "it is not enforced");
        let listed = mesh.on(2, &["policy", "denied"]).stdout;
        listed.contains("would be denied")
    });
    assert_eq!(addresses_of_db(&mesh, 1).len(), 2, "nothing changed");
    let tried = |mesh: &Mesh| mesh.status(2).policy.and_then(|policy| policy.tried);
    assert!(tried(&mesh).is_some_and(|tried| tried.since_seconds_ago.is_some()));
    let shown = mesh.on(2, &["status"]).stdout;
    assert!(shown.contains("nothing is denied by it"), "{shown}");

    let ended = apply(&mesh, POLICY, &[]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""), "{ended:?}");
    for n in 0..3 {
        mesh.wait_until("the node without the right is in no answer", || {
            addresses_of_db(&mesh, n) == [db.clone()]
        });
    }
    mesh.wait_until("both ends have a problem", || {
        mesh.has_problem(2, &["this node may not serve db"])
            && mesh.has_problem(1, &["n3", "db", "may not serve"])
    });
    assert!(!mesh.has_problem(0, &["this node may not serve"]));
    assert_eq!(tried(&mesh), None);

    // It is in force again from the first packet on after a restart without the coordinator.
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(1);
    mesh.start_node(1);
    mesh.wait_until("the node answers names again", || {
        !addresses_of_db(&mesh, 1).is_empty()
    });
    assert_eq!(addresses_of_db(&mesh, 1), [db]);
    assert!(!mesh.pings(1, &rogue), "nothing allows that");
}

#[test]
fn a_policy_whose_test_fails_is_not_applied_and_one_that_is_applied_is_shown_and_explained() {
    let Some(mesh) = mesh() else {
        return;
    };
    let wrong = POLICY.replace("is = \"deny\"", "is = \"allow\"");
    let ended = apply(&mesh, &wrong, &[]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("/run/policy.toml:14"), "{ended:?}");
    assert_eq!(mesh.admin(&["policy", "show"]).stdout, "");

    let diff = mesh.admin(&["policy", "diff", "/run/policy.toml"]);
    assert!(diff.stdout.contains("- node:n3 serves db"), "{diff:?}");
    assert_eq!(apply(&mesh, POLICY, &[]).code, 0);
    assert_eq!(mesh.admin(&["policy", "show"]).stdout, POLICY);
    let explain = |from, to| mesh.admin(&["policy", "explain", from, to]);
    let allowed = explain("node:n2", "db:5432");
    assert_eq!(allowed.code, 0, "{allowed:?}");
    assert!(allowed.stdout.contains("line 7"), "{allowed:?}");
    let denied = explain("node:n3", "db:5432");
    assert_eq!(denied.code, 2, "{denied:?}");
    let unknown = explain("nobody", "db:5432");
    assert_eq!(
        (unknown.code, unknown.stdout.as_str()),
        (2, ""),
        "{unknown:?}"
    );
    // The same text again is no new version.
    let again = apply(&mesh, POLICY, &["--json"]);
    let version = |ended: &Ended| -> u64 {
        let document: serde_json::Value = serde_json::from_str(&ended.stdout).expect("a document");
        document["version"].as_u64().expect("a version")
    };
    assert_eq!(version(&again), version(&apply(&mesh, POLICY, &["--json"])));
}

#[test]
fn the_first_and_the_last_service_of_a_node_change_who_is_reached_under_a_policy() {
    let Some(mesh) = mesh() else {
        return;
    };
    let remove = || mesh.on(0, &["service", "remove", "db"]);
    assert_eq!(remove().code, 0, "n1 offers nothing now");
    let to_db = "language = 1\n[[allow]]\nfrom = [\"tag:web\"]\nto = [\"db\"]\n";
    assert_eq!(apply(&mesh, to_db, &[]).code, 0);
    let n1 = mesh.addresses(0).0.to_string();
    mesh.wait_until("nothing allows that", || !mesh.pings(1, &n1));
    let added = mesh.on(0, &["service", "add", "db", "--port", "5432"]);
    assert_eq!(added.code, 0, "{added:?}");
    mesh.wait_until("n1 is reached as db", || mesh.pings(1, &n1));
    assert_eq!(remove().code, 0, "n1 offers nothing again");
    mesh.wait_until("n1 is not db any more", || !mesh.pings(1, &n1));
}
