//! Members that are admitted, removed, renamed or leave have one line in the log each, which `docs/logs.md` lists.

use super::super::absence::QUIET_ABSENCE;
use super::*;
use crate::os::audit::line::Line;
use crate::os::log::captured;
use crate::protocol::api_token::ApiCertificate;
use crate::records::api_revocation;
use crate::records::kinds::Name;

const DOCUMENT: &str = include_str!("../../../../docs/logs.md");

/// The lines that `work` logs. Each of them is in the document.
fn lines(work: impl FnOnce()) -> Vec<String> {
    let lines = captured::lines(work);
    for line in &lines {
        captured::assert_documented(line, DOCUMENT);
    }
    lines
}

fn short(n: u8) -> String {
    id(n).short()
}

fn joins(hub: &Hub, n: u8, name: &str) {
    hub.join(&request(n, membership(n, name, 1, now())))
        .expect("a use left");
}

#[test]
fn a_node_is_admitted_with_one_line_however_often_it_asks() {
    let hub = hub();
    let asked = request(10, membership(10, "web", 1, now()));
    let logged = lines(|| {
        hub.join(&asked).expect("a use left");
        hub.join(&asked).expect("the same again");
    });
    assert_eq!(
        logged,
        [format!(
            "INFO node admitted node=web id={} token={} block=10.210.1.0/24",
            short(10),
            short(TOKEN)
        )]
    );
}

#[test]
fn a_node_that_leaves_one_that_is_removed_and_one_that_is_renamed_have_one_line_each() {
    let hub = hub();
    for (n, name) in [(10, "a"), (11, "b"), (12, "c")] {
        joins(&hub, n, name);
    }
    let renamed = |version| {
        let name = Name {
            id: id(12),
            version,
            name: Label::parse("db").expect("a literal"),
        };
        Envelope::seal(&Record::Name(name), &key(12))
    };
    let logged = lines(|| {
        publish(&hub, vec![departure(10)]).expect("writable");
        publish(&hub, vec![departure(10)]).expect("writable");
        submit(&hub, None, revocation(11, RevokedKind::Node)).expect("signed");
        hub.publish(&id(12), vec![renamed(1)]).expect("writable");
        hub.publish(&id(12), vec![renamed(2)]).expect("writable");
    });
    assert_eq!(
        logged,
        [
            format!("INFO node left node=a id={}", short(10)),
            format!(
                "INFO node removed node=b id={} reason=\"the administrator removed it\"",
                short(11)
            ),
            format!("INFO node renamed node=db id={} before=c", short(12)),
        ]
    );
}

#[test]
fn the_nodes_of_a_revoked_token_are_removed_with_one_line_each() {
    let hub = hub();
    joins(&hub, 10, "a");
    // The command revokes a token together with the members that stay. A node that joined at another coordinator meanwhile is not
    // among them, and nodes send each other the revocation.
    let revocation = Revocation {
        id: id(TOKEN),
        version: 1,
        revoked: RevokedKind::Token,
        at: UnixSeconds(now()),
        stays: Some(Vec::new()),
    };
    let revocation = Envelope::seal(&Record::Revocation(revocation), &key(MESH));
    // The hub takes it as a sign that the store went back in time, and logs that as well.
    let logged = captured::lines(|| {
        let published = hub.publish(&id(10), vec![revocation]).expect("writable");
        assert_eq!(published.accepted, 1);
    });
    let removed: Vec<&String> = logged
        .iter()
        .filter(|l| l.contains("node removed"))
        .collect();
    assert_eq!(
        removed,
        [&format!(
            "INFO node removed node=a id={} reason=\"the administrator revoked its token\"",
            short(10)
        )]
    );
}

#[test]
fn a_store_that_takes_writes_again_has_one_line() {
    let full = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let store = Fillable {
        inner: Sqlite::in_memory().expect("memory"),
        full: std::sync::Arc::clone(&full),
    };
    let hub = hub_with(store, now() + HOUR);
    joins(&hub, 10, "a");
    full.store(true, Ordering::Relaxed);
    let failing = captured::lines(|| {
        let refused = hub.publish(&id(10), vec![service(10, "web", 1)]);
        refused.expect_err("no room");
    });
    assert!(
        failing[0].starts_with("ERROR a write to the store failed error="),
        "{failing:?}"
    );
    full.store(false, Ordering::Relaxed);
    std::thread::sleep(PAUSE_AFTER_FAILURE + Duration::from_millis(50));
    let logged = lines(|| {
        publish(&hub, vec![service(10, "web", 1)]).expect("room");
        publish(&hub, vec![service(10, "web", 2)]).expect("room");
    });
    assert_eq!(logged, ["INFO store back; it accepts writes again"]);
}

/// A hub with a log of events in this directory.
fn audited(directory: &std::path::Path) -> Hub {
    let store = Sqlite::in_memory().expect("memory");
    let setup = Setup {
        audit: Audit::open(directory),
        ..setup()
    };
    Hub::open(Box::new(store), setup).expect("readable")
}

/// The events in the log, without that of the start: who, what, and the result.
fn events(directory: &std::path::Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(directory.join("audit.jsonl")).expect("there");
    let lines = text.lines().skip(1).map(|line| {
        let line = Line::parse(line.as_bytes()).expect("an event");
        let kind = line.who.get("kind").and_then(|kind| kind.as_str());
        let kind = kind.unwrap_or_default().to_owned();
        (kind, line.what, line.result)
    });
    lines.collect()
}

#[test]
fn what_the_administrator_and_the_nodes_do_is_an_event_before_it_is_acknowledged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let hub = audited(directory.path());
    let made = token(now() + HOUR);
    let logged = lines(|| {
        submit(&hub, Some(MESH), mesh(&hub)).expect("signed");
        submit(&hub, None, made.clone()).expect("signed");
    });
    assert_eq!(logged.len(), 2, "{logged:?}");
    let expected = |kind: &str, what: &str| (kind.to_owned(), what.to_owned(), "ok".to_owned());
    let mut seen = vec![
        expected("daemon", "mesh_made"),
        expected("daemon", "token_made"),
    ];
    assert_eq!(events(directory.path()), seen);
    let by = Who::Joiner {
        address: [192, 0, 2, 7].into(),
        token: None,
    };
    let asked = request(10, membership(10, "web", 1, now()));
    hub.0.join(&asked, by, clock::now()).expect("a use left");
    seen.push(expected("joiner", "node_admitted"));
    assert_eq!(events(directory.path()), seen);
    // The same records again are no event.
    submit(&hub, None, made).expect("held");
    publish(&hub, vec![departure(10)]).expect("writable");
    seen.push(expected("member", "node_left"));
    assert_eq!(events(directory.path()), seen);
    let administrator = Who::Local {
        uid: 0,
        pid: Some(7),
    };
    let revoked = Submit {
        mesh_key: None,
        records: vec![revocation(TOKEN, RevokedKind::Token)],
    };
    hub.0
        .submit(revoked, administrator, clock::now())
        .expect("signed");
    seen.push(expected("local", "token_revoked"));
    assert_eq!(events(directory.path()), seen);
}

#[test]
fn an_api_token_that_is_made_and_revoked_is_a_line_and_an_event_each() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let hub = audited(directory.path());
    submit(&hub, Some(MESH), mesh(&hub)).expect("signed");
    let before = events(directory.path()).len();
    let certificate = ApiCertificate {
        id: id(70),
        name: crate::testbed::records::label("ci"),
        scopes: vec![],
        nodes: vec![],
        from: vec![],
        created_at: UnixSeconds(0),
        expires_at: UnixSeconds(1),
    };
    let revocation = || api_revocation::seal(id(70), &key(MESH));
    let logged = lines(|| {
        api::note_made(&hub.0, certificate, &Who::Daemon);
        submit(&hub, None, revocation()).expect("signed");
        submit(&hub, None, revocation()).expect("held");
    });
    assert_eq!(
        logged,
        [
            format!("INFO API token made token={} name=ci", short(70)),
            format!("INFO API token revoked token={}", short(70)),
        ]
    );
    let event = |what: &str| ("daemon".to_owned(), what.to_owned(), "ok".to_owned());
    assert_eq!(
        events(directory.path()).split_off(before),
        [event("api_token_made"), event("api_token_revoked")]
    );
    assert_eq!(api::revoked_api_tokens(&hub.0).ids, [id(70)]);
    let place = |n| api::place(&hub.0, Some(&id(n))).expect("there is a mesh").0;
    assert!(place(70).is_revoked && !place(71).is_revoked);
}

#[test]
fn a_member_without_a_stream_is_away_once_and_back_once() {
    let hub = hub();
    joins(&hub, 10, "web");
    hub.set_connected(id(10), true);
    let at = |after| Now {
        monotonic: Instant::now() + after,
        ..clock::now()
    };
    let logged = lines(|| {
        hub.0.note_away(at(QUIET_ABSENCE * 2));
        hub.set_connected(id(10), false);
        hub.0.note_away(at(QUIET_ABSENCE / 2));
        hub.0.note_away(at(QUIET_ABSENCE));
        hub.0.note_away(at(QUIET_ABSENCE * 2));
        hub.0.set_connected(id(10), true, at(QUIET_ABSENCE * 3));
        hub.set_connected(id(10), false);
        hub.set_connected(id(10), true);
    });
    assert_eq!(
        logged,
        [
            format!("WARN node away node=web id={}", short(10)),
            format!("INFO node back node=web id={} away_seconds=180", short(10)),
        ]
    );
}

#[test]
fn the_absence_of_a_node_that_left_is_forgotten() {
    let hub = hub();
    for (n, name) in [(10, "a"), (11, "b")] {
        joins(&hub, n, name);
        hub.set_connected(id(n), true);
        hub.set_connected(id(n), false);
    }
    publish(&hub, vec![departure(10)]).expect("writable");
    hub.0.note_away(clock::now());
    let absent: Vec<PublicKey> = hub.read().absent.keys().copied().collect();
    assert_eq!(absent, [id(11)]);
}

#[test]
fn a_removal_that_a_node_sends_is_an_event_of_the_administrator_and_shows_that_the_store_lost_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let hub = audited(directory.path());
    submit(&hub, Some(MESH), mesh(&hub)).expect("signed");
    submit(&hub, None, token(now() + HOUR)).expect("signed");
    for (n, name) in [(10, "a"), (11, "b")] {
        joins(&hub, n, name);
    }
    let before = events(directory.path()).len();
    let removal = revocation(11, RevokedKind::Node);
    hub.publish(&id(10), vec![removal]).expect("writable");
    let event = |kind: &str, what: &str| (kind.to_owned(), what.to_owned(), "ok".to_owned());
    assert_eq!(
        events(directory.path()).split_off(before),
        [
            event("daemon", "store_went_back"),
            event("administrator", "node_removed"),
        ]
    );
}
