//! `meshctl rollout`, against prepared answers.

use crate::daemon::Daemon;
use crate::program::{Ran, meshctl};

const CHANGED: &str = r#"{"schema":1,"name":"web.svc.mesh","published":true}"#;

fn containers(state: &str, health: &str) -> (u16, String) {
    let body = format!(
        r#"{{"schema":1,"containers":[{{"id":"aa","name":"web_1","instance":"n1-web-1","services":["web","app.shop"],
            "address":"10.210.1.2","state":"{state}","health":"{health}","drained":false}}]}}"#
    );
    (200, body)
}

fn services(elsewhere: bool) -> (u16, String) {
    let instance = |id: &str, node: &str| {
        format!(
            r#"{{"id":"{id}","node":"{node}","address":"10.210.1.2","addresses":[],"port":80,"protocol":"tcp",
                "port_name":null,"health":"healthy","reachable":true,"source":"docker"}}"#
        )
    };
    let mut instances = vec![instance("n1-web-1", "n1")];
    instances.extend(elsewhere.then(|| instance("n2-web-1", "n2")));
    let body = format!(
        r#"{{"schema":1,"services":[{{"name":"web","project":null,"instances":[{}]}}]}}"#,
        instances.join(",")
    );
    (200, body)
}

fn status() -> (u16, String) {
    let key = "01".repeat(32);
    let wireguard = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let body = format!(
        r#"{{"schema":1,"version":"9.9.9","state":"up","node":{{"id":"{key}","name":"n1","tags":[],"address_v4":"10.210.1.1",
            "address_v6":"fd00::1","block_v4":"10.210.1.0/24","block_v6":"fd00::/64","public_key":"{wireguard}","domain":"mesh"}},
            "interface":null,"coordinator":null,"dns":null,"peers":[],"services":{{"local":1,"mesh":1}},"problems":[]}}"#
    );
    (200, body)
}

fn rollout(answers: Vec<(u16, String)>, words: &[&str]) -> (Ran, Vec<String>) {
    let daemon = Daemon::answering(answers);
    let ran = meshctl(&daemon.socket(), &[&["rollout"], words].concat());
    (ran, daemon.asked())
}

fn changed() -> (u16, String) {
    (200, CHANGED.to_owned())
}

#[test]
fn the_whole_way_has_a_line_for_each_step() {
    let answers = vec![
        containers("ready", "healthy"),
        services(true),
        status(),
        changed(),
        status(),
        containers("starting", "starting"),
        containers("ready", "healthy"),
        changed(),
    ];
    let (ran, asked) = rollout(answers, &["--", "echo", "replaced"]);
    assert_eq!(
        ran,
        Ran {
            status: 0,
            stdout: "replaced\n".into(),
            stderr: "draining web on this node\n0 other node(s) send no new clients\nwaiting 6 s until clients have dropped earlier answers\nrunning echo replaced\nwaiting until the new containers are healthy\nweb published again; done\n".into(),
        }
    );
    assert_eq!(
        asked,
        [
            "GET /v1/containers",
            "GET /v1/services",
            "GET /v1/status",
            "POST /v1/services/web/drain {}",
            "GET /v1/status",
            "GET /v1/containers",
            "GET /v1/containers",
            "POST /v1/services/web/undrain {}",
        ]
    );
}

#[test]
fn what_still_runs_is_published_again_when_the_command_fails() {
    let answers = vec![
        containers("ready", "healthy"),
        services(true),
        status(),
        changed(),
        status(),
        changed(),
    ];
    let (ran, asked) = rollout(answers, &["web", "--", "false"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr.ends_with("meshctl: the command failed (exit status: 1); the instances that run on this node get clients again\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        asked.last().map(String::as_str),
        Some("POST /v1/services/web/undrain {}")
    );
}

#[test]
fn the_last_ready_instance_is_not_drained_and_the_command_not_run() {
    let answers = vec![containers("ready", "healthy"), services(false), status()];
    let (ran, _) = rollout(answers, &["--", "echo", "replaced"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.contains("web is ready only on this node") && ran.stderr.contains("--force"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_service_that_no_container_here_is_is_not_found() {
    let answers = vec![containers("ready", "healthy"), services(true), status()];
    let (ran, _) = rollout(answers, &["cache", "--", "echo", "replaced"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (2, ""));
}

#[test]
fn nothing_is_replaced_while_the_coordinator_is_unreachable() {
    let unpublished = (200, CHANGED.replace("true", "false"));
    let answers = vec![
        containers("ready", "healthy"),
        services(true),
        status(),
        unpublished.clone(),
        unpublished,
    ];
    let (ran, asked) = rollout(answers, &["--", "echo", "replaced"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (69, ""));
    assert_eq!(asked.len(), 5);
}

#[test]
fn without_a_command_it_is_a_usage_error() {
    let (ran, _) = rollout(vec![], &["web"]);
    assert_eq!(ran.status, 64, "{}", ran.stderr);
}
