//! The commands that speak to meshd, against prepared answers.

use crate::daemon::{Daemon, JOINED, UNJOINED};
use crate::program::{Ran, command, meshctl, token};
use meshd::model::Label;

const CHANGED: &str = r#"{"schema":1,"name":"web.svc.mesh","published":true,"change":"changed"}"#;

/// Runs `words` against one prepared answer; gives what came of it and what was asked.
fn with_answer(status: u16, body: &str, words: &[&str]) -> (Ran, String) {
    let daemon = Daemon::answering(vec![(status, body.to_owned())]);
    let ran = meshctl(&daemon.socket(), words);
    let asked = daemon.asked();
    (ran, asked.join("\n"))
}

fn ran(status: i32, stdout: &str, stderr: &str) -> Ran {
    Ran {
        status,
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
    }
}

#[test]
fn join_sends_the_token_and_prints_the_result() {
    let joined = r#"{"schema":1,"name":"web-1","address_v4":"10.210.1.1","address_v6":"fd00:0:0:1::1",
        "notes":["the name web is taken; this node is web-1"]}"#;
    let token = token();
    let (ran_, asked) = with_answer(
        200,
        joined,
        &["join", &token, "--name", "Web", "--timeout", "1.5s"],
    );
    assert_eq!(
        ran_,
        ran(
            0,
            "",
            "note: the name web is taken; this node is web-1\njoined as web-1 with 10.210.1.1 and fd00:0:0:1::1\n"
        )
    );
    assert_eq!(
        asked,
        format!(r#"POST /v1/join {{"token":"{token}","name":"web","timeout_seconds":1.5}}"#)
    );
}

#[test]
fn join_reads_the_token_from_stdin_where_others_cannot_see_it() {
    let daemon = Daemon::answering(vec![(200, JOINED.to_owned())]);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("{}\n", token())).expect("writable");
    let status = command(&daemon.socket(), &["join", "-"])
        .stdin(std::fs::File::open(file.path()).expect("just written"))
        .stdout(std::process::Stdio::null())
        .status()
        .expect("meshctl is built");
    assert_eq!(status.code(), Some(0));
    assert!(daemon.asked().concat().contains(&token()));
}

#[test]
fn join_reads_the_token_from_a_file_and_warns_of_one_that_every_user_can_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("{}\n", token())).expect("writable");
    let path = file.path().to_str().expect("a plain path");
    for (mode, warned) in [(0o600, false), (0o644, true)] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("ours");
        let (ran, asked) = with_answer(200, JOINED, &["join", "--token-file", path]);
        assert_eq!(ran.status, 0, "{ran:?}");
        assert!(asked.contains(&token()), "{asked}");
        let remedy = format!("; run: chmod 600 {path}\n");
        assert_eq!(ran.stderr.contains(&remedy), warned, "{ran:?}");
        assert!(!ran.stderr.contains(&token()), "{ran:?}");
    }
}

#[test]
fn a_token_file_that_cannot_be_one_is_one_line_and_asks_nobody() {
    for (path, said) in [
        (
            "/nonexistent/token",
            "cannot read the token from /nonexistent/token: ",
        ),
        ("/dev/zero", "from /dev/zero: it has more than 16384 bytes"),
        ("/dev/null", "join token"),
    ] {
        let words = ["join", "--token-file", path];
        let ran = meshctl(std::path::Path::new("/nonexistent/s"), &words);
        assert_eq!(ran.status, 64, "{ran:?}");
        assert!(ran.stderr.contains(said), "{ran:?}");
        assert_eq!(ran.stderr.matches('\n').count(), 1, "{ran:?}");
    }
    let both = ["join", "mesh1_x", "--token-file", "/dev/null"];
    let ran = meshctl(std::path::Path::new("/nonexistent/s"), &both);
    assert_eq!(ran.status, 64, "{ran:?}");
}

#[test]
fn a_refused_join_keeps_its_reason_and_its_exit_status() {
    let refused = r#"{"code":"conflict","message":"the name web is taken","suggestion":"web-2"}"#;
    let (ran_, _) = with_answer(409, refused, &["join", &token()]);
    assert_eq!(
        ran_,
        ran(1, "", "meshctl: the name web is taken; `web-2` is free\n")
    );
}

#[test]
fn leave_asks_once() {
    let daemon = Daemon::answering(vec![(200, UNJOINED.into()), (200, "{}".into())]);
    let ran = meshctl(&daemon.socket(), &["leave"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.starts_with("left the mesh; "), "{ran:?}");
    assert_eq!(daemon.asked(), ["GET /v1/status", "POST /v1/leave {}"]);
}

#[test]
fn status_is_for_people_and_json_is_the_document() {
    let (ran_, asked) = with_answer(200, UNJOINED, &["status"]);
    assert_eq!(
        ran_,
        ran(
            0,
            "not ready: this node has not joined a mesh; run `meshctl join -` and give it a token, which `meshctl token create` prints where the mesh key is\n",
            ""
        )
    );
    assert_eq!(asked, "GET /v1/status");
    let (ran_, _) = with_answer(200, UNJOINED, &["status", "--json"]);
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!((ran_.status, ran_.stderr.as_str()), (0, ""));
    assert_eq!(value(&ran_.stdout), value(UNJOINED));
}

#[test]
fn live_holds_when_meshd_answers_and_ready_only_when_it_is_up() {
    let (ran_, _) = with_answer(200, UNJOINED, &["status", "--check", "live"]);
    assert_eq!(ran_, ran(0, "", ""));
    let (ran_, _) = with_answer(200, UNJOINED, &["status", "--check", "ready"]);
    assert_eq!(
        ran_,
        ran(
            2,
            "",
            "meshctl: not ready: this node has not joined a mesh; run `meshctl join -` and give it a token, which `meshctl token create` prints where the mesh key is\n"
        )
    );
}

#[test]
fn what_meshd_put_on_the_machine_is_listed() {
    let list = r#"{"schema":1,"entries":[{"kind":"link","what":"mesh0","why":"the tunnel"},
        {"kind":"route","what":"10.210.0.0/16 dev mesh0","why":"the mesh"}]}"#;
    let (ran_, asked) = with_answer(200, list, &["status", "--system"]);
    assert_eq!(
        ran_,
        ran(
            0,
            "KIND   WHAT                     WHY\nlink   mesh0                    the tunnel\nroute  10.210.0.0/16 dev mesh0  the mesh\n",
            ""
        )
    );
    assert_eq!(asked, "GET /v1/system");
}

#[test]
fn ping_shows_each_trip_and_a_summary() {
    let pong =
        r#"{"node":"web-2","address":"10.210.2.1","endpoint":"192.0.2.7:51820","rtt_ms":0.84}"#;
    let (ran_, asked) = with_answer(200, pong, &["ping", "web-2", "-c", "1"]);
    assert_eq!(
        ran_,
        ran(
            0,
            "web-2 (10.210.2.1): 0.84 ms over 192.0.2.7:51820\n",
            "1 of 1 answered, best 0.84 ms\n"
        )
    );
    assert_eq!(asked, r#"POST /v1/ping {"node":"web-2","timeout_ms":2000}"#);
}

#[test]
fn ping_tells_a_node_that_is_silent_from_one_that_does_not_exist() {
    let lost = r#"{"node":"web-2","address":"10.210.2.1","endpoint":null,"rtt_ms":null}"#;
    let (ran_, _) = with_answer(200, lost, &["ping", "web-2", "-c", "1"]);
    assert_eq!(ran_.status, 1);
    assert!(ran_.stderr.starts_with("meshctl: web-2 does not answer; "));
    let unknown = r#"{"code":"not_found","message":"there is no node web-9"}"#;
    let (ran_, _) = with_answer(404, unknown, &["ping", "web-9", "-c", "1"]);
    assert_eq!(ran_, ran(2, "", "meshctl: there is no node web-9\n"));
}

#[test]
fn why_asks_for_the_path_from_this_node_or_between_two() {
    let answer = r#"{"schema":1,"from":"nas","to":"web-1","state":"direct","via":null,"reason":null,
        "since_seconds_ago":7.0,"rtt_ms":0.84,"mtu":1420,"last_heard_seconds_ago":0.2,
        "last_sent_seconds_ago":0.3,"last_handshake_seconds_ago":60.0,"rx_bytes":1,"paths":[],"mend":[]}"#;
    let shown = "nas -> web-1   direct, 0.8 ms, for 7 s, heard 0 s ago, sent 0 s ago, handshake 60 s ago, mtu 1420\n";
    let (ran_, asked) = with_answer(200, answer, &["why", "web-1"]);
    assert_eq!(ran_, ran(0, shown, ""));
    assert_eq!(asked, r#"POST /v1/why {"to":"web-1"}"#);
    let (ran_, asked) = with_answer(200, answer, &["why", "nas", "web-1"]);
    assert_eq!(ran_, ran(0, shown, ""));
    assert_eq!(asked, r#"POST /v1/why {"from":"nas","to":"web-1"}"#);
    let elsewhere = r#"{"code":"conflict","message":"run `meshctl why b` on a"}"#;
    let (ran_, _) = with_answer(409, elsewhere, &["why", "a", "b"]);
    assert_eq!(ran_, ran(1, "", "meshctl: run `meshctl why b` on a\n"));
}

#[test]
fn service_add_sends_its_arguments() {
    let (ran_, asked) = with_answer(
        200,
        CHANGED,
        &[
            "service",
            "add",
            "Web",
            "--port",
            "80",
            "--address",
            "10.0.0.5",
            "--check-http",
            "/healthz",
            "--interval",
            "1.5s",
            "--timeout",
            "500ms",
            "--rise",
            "3",
            "--fall",
            "4",
            "--status",
            "200-299",
            "--port-name",
            "http",
            "--weight",
            "20",
            "--priority",
            "1",
        ],
    );
    assert_eq!(ran_, ran(0, "", "web.svc.mesh on port 80/tcp is changed\n"));
    assert_eq!(
        asked,
        r#"POST /v1/services {"name":"web","port":80,"protocol":"tcp","address":"10.0.0.5","check":{"probe":{"http":"/healthz"},"interval_ms":1500,"timeout_ms":500,"rise":3,"fall":4,"status":[200,299]},"port_name":"http","weight":20,"priority":1}"#
    );
    let (_, asked) = with_answer(
        200,
        CHANGED,
        &["service", "add", "web", "--port", "80", "--check-tcp"],
    );
    assert!(asked.contains(r#""check":{"probe":"tcp""#), "{asked}");
}

#[test]
fn the_answer_to_a_change_tells_that_the_mesh_has_not_received_it_yet() {
    let later = CHANGED.replace("true", "false").replace("changed", "new");
    let (ran_, _) = with_answer(200, &later, &["service", "add", "web", "--port", "80"]);
    assert_eq!(
        ran_,
        ran(
            0,
            "",
            "web.svc.mesh on port 80/tcp is new; the coordinator is not reachable: the nodes send this change to each other, and to the coordinator when it is reachable again\n"
        )
    );
}

#[test]
fn service_remove_drain_and_undrain_send_the_name() {
    let (ran_, asked) = with_answer(
        200,
        CHANGED,
        &[
            "service",
            "remove",
            "web",
            "--port",
            "80",
            "--protocol",
            "udp",
        ],
    );
    assert_eq!(
        ran_,
        ran(0, "", "web.svc.mesh on port 80 is removed from this node\n")
    );
    assert_eq!(asked, "DELETE /v1/services/web/80/udp");
    for (verb, asked, said) in [
        (
            "remove",
            "DELETE /v1/services/web",
            "is removed from this node",
        ),
        (
            "drain",
            "POST /v1/services/web/drain {}",
            "gets no new clients on this node",
        ),
        (
            "undrain",
            "POST /v1/services/web/undrain {}",
            "gets clients on this node again",
        ),
    ] {
        let (ran_, request) = with_answer(200, CHANGED, &["service", verb, "web"]);
        assert_eq!(ran_, ran(0, "", &format!("web.svc.mesh {said}\n")));
        assert_eq!(request, asked);
    }
}

#[test]
fn services_are_a_table_with_a_line_per_instance() {
    let list = r#"{"schema":1,"services":[{"name":"web","project":null,"instances":[
        {"id":"n1-80","node":"n1","address":"10.210.1.1","addresses":["10.210.1.1","fd00::1"],"port":80,
         "protocol":"tcp","port_name":null,"health":"healthy","reachable":true,"source":"cli"},
        {"id":"n2-80","node":"n2","address":"10.210.2.1","addresses":["10.210.2.1"],"port":80,
         "protocol":"tcp","port_name":null,"health":"unknown","reachable":false,"source":"config"}]},
        {"name":"db","project":"shop","instances":[
        {"id":"n1-53-udp","node":"n1","address":"10.210.1.1","addresses":["10.210.1.1"],"port":53,
         "protocol":"udp","port_name":null,"health":"draining","reachable":true,"source":"docker"}]}]}"#;
    let (ran_, asked) = with_answer(200, list, &["service", "list"]);
    assert_eq!(
        ran_,
        ran(
            0,
            "\
SERVICE  INSTANCE   NODE  ADDRESS            STATE                 SOURCE
web      n1-80      n1    10.210.1.1:80/tcp  healthy               cli
web      n2-80      n2    10.210.2.1:80/tcp  unknown, unreachable  config
db.shop  n1-53-udp  n1    10.210.1.1:53/udp  draining              docker
",
            ""
        )
    );
    assert_eq!(asked, "GET /v1/services");
}

#[test]
fn resolve_prints_records_on_stdout_and_reasons_on_stderr() {
    let resolved = r#"{"schema":1,"name":"web.svc.mesh","response_code":"NOERROR",
        "answers":["web.svc.mesh. 5 IN A 10.210.1.1"],"why":["n1-80 is healthy"]}"#;
    let (ran_, asked) = with_answer(200, resolved, &["resolve", "web.svc.mesh", "a"]);
    assert_eq!(
        ran_,
        ran(0, "web.svc.mesh. 5 IN A 10.210.1.1\n", "n1-80 is healthy\n")
    );
    assert_eq!(
        asked,
        r#"POST /v1/resolve {"name":"web.svc.mesh","type":"a"}"#
    );
}

#[test]
fn a_name_without_records_exits_with_2() {
    let nothing = r#"{"schema":1,"name":"x.svc.mesh","response_code":"NXDOMAIN","answers":[],
        "why":["no node has ever registered x"]}"#;
    let (ran_, _) = with_answer(200, nothing, &["resolve", "x.svc.mesh"]);
    assert_eq!(
        ran_,
        ran(
            2,
            "",
            "x.svc.mesh: NXDOMAIN and no records of type A\nno node has ever registered x\n"
        )
    );
}

#[test]
fn completions_need_no_daemon() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = meshctl(
            std::path::Path::new("/nonexistent"),
            &["completions", shell],
        );
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("MESHCTL_COMPLETE"), "{shell}");
    }
}

/// What a shell gets for the last of `words`.
fn completed(socket: &std::path::Path, words: &[&str]) -> Vec<String> {
    let all = [&["--", "meshctl"], words].concat();
    let output = command(socket, &all)
        .env("MESHCTL_COMPLETE", "fish")
        .output()
        .expect("meshctl is built");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let values = text.lines().filter_map(|line| line.split('\t').next());
    values.map(str::to_owned).collect()
}

#[test]
fn commands_options_and_names_are_completed() {
    let nobody = std::path::Path::new("/nonexistent");
    assert_eq!(completed(nobody, &["und"]), [""; 0]);
    assert_eq!(completed(nobody, &["service", "und"]), ["undrain"]);
    assert_eq!(
        completed(nobody, &["service", "add", "--check-"]),
        ["--check-tcp", "--check-http"]
    );
    assert_eq!(
        completed(nobody, &["ping", "w"]),
        [""; 0],
        "there is no meshd"
    );
    let list = r#"{"schema":1,"services":[{"name":"web","project":"shop","instances":[
        {"id":"n1-80","node":"n1","address":"10.210.1.1","addresses":[],"port":80,"protocol":"tcp","port_name":null,
         "health":"healthy","reachable":true,"source":"docker"}]}]}"#;
    let status = crate::wrong_uses::STATUS;
    let answers = || vec![(200, status.to_owned()), (200, list.to_owned())];
    let daemon = Daemon::answering(answers());
    let names = completed(&daemon.socket(), &["resolve", ""]);
    // Options follow.
    assert_eq!(names[..2], ["web.shop.svc.mesh", "n1.node.mesh"]);
    let daemon = Daemon::answering(answers());
    assert_eq!(
        completed(&daemon.socket(), &["service", "drain", "w"]),
        ["web.shop"]
    );
}

#[test]
fn the_name_of_a_service_is_checked_before_anything_is_asked() {
    assert!(Label::parse("a.b").is_err());
    let ran = meshctl(
        std::path::Path::new("/nonexistent"),
        &["service", "remove", "a.b"],
    );
    assert_eq!(ran.status, 64, "{ran:?}");
    assert!(
        ran.stderr.contains("give one label, such as `a`"),
        "{ran:?}"
    );
}
