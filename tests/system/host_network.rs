//! What others do to a node's machine: a family switched off, routes and addresses taken away or put in the way, forwarding
//! switched off, a full disk.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::engine;
use crate::machine::{cover, empty, fill};
use crate::mesh::{Mesh, SOCKET};

/// Less than one look of those that are made without a notice; the changes below need several.
const WITHOUT_NOTICES: Duration = Duration::from_secs(15);

fn set_ipv6(mesh: &Mesh, n: usize, on: bool) {
    let value = if on { "0" } else { "1" };
    for which in ["all", "default"] {
        let setting = format!("net.ipv6.conf.{which}.disable_ipv6={value}");
        assert!(mesh.succeeds(n, "sysctl", &["-qw", &setting]));
    }
}

/// The output of a program on a node.
fn printed(mesh: &Mesh, n: usize, program: &str, arguments: &str) -> String {
    let mut command = mesh.nodes[n].host.command(program).expect("a namespace");
    let output = command.args(arguments.split(' ')).output();
    String::from_utf8_lossy(&output.expect("a program").stdout).into_owned()
}

/// What `meshctl resolve` on a node answers for a name.
fn answers(mesh: &Mesh, n: usize, name: &str, kind: &str) -> String {
    mesh.on(n, &["resolve", name, kind]).stdout
}

#[test]
fn a_node_joins_without_ipv6_and_no_answer_has_its_ipv6_address() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    set_ipv6(&mesh, 0, false);
    for n in 0..2 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let added = mesh.on(0, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    for restarted in [false, true] {
        if restarted {
            mesh.kill_node(0);
            mesh.start_node(0);
        }
        mesh.wait_until("they reach each other", || {
            mesh.reaches(0) == 1 && mesh.reaches(1) == 1
        });
        let [(v4, v6), (other, other_v6)] = [mesh.addresses(0), mesh.addresses(1)];
        assert!(mesh.pings(0, &other.to_string()) && mesh.pings(1, &v4.to_string()));
        let problems = mesh.status(0).problems;
        assert!(mesh.has_problem(0, &["only its IPv4 address", "disable_ipv6"]));
        assert_eq!(problems.len(), 1, "{problems:?}");
        mesh.wait_until("the service is known", || {
            answers(&mesh, 1, "web.svc.mesh", "A").contains(&v4.to_string())
        });
        for name in ["n1.node.mesh", "web.svc.mesh"] {
            let answer = answers(&mesh, 1, name, "AAAA");
            assert!(!answer.contains(&v6.to_string()), "{name}: {answer}");
        }
        let answer = answers(&mesh, 1, "n2.node.mesh", "AAAA");
        assert!(answer.contains(&other_v6.to_string()), "{answer}");
        let system = mesh.on(0, &["status", "--system"]).stdout;
        assert!(!system.contains(&format!("{v6}/128")), "{system}");
    }
}

/// Has a program that is started by `command` get no IPv6 sockets, as where the kernel was started with `ipv6.disable=1`.
fn deny_ipv6_sockets(command: &mut Command) {
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).expect("a small constant"),
        jt,
        jf,
        k,
    };
    let (load, equal, end) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let number = u32::try_from(libc::SYS_socket).expect("a small number");
    let family = u32::try_from(libc::AF_INET6).expect("a small number");
    let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EAFNOSUPPORT).expect("small");
    // `struct seccomp_data`: the call's number comes first, its first argument at 16.
    let filter = [
        step(load, 0, 0, 0),
        step(equal, number, 0, 3),
        step(load, 16, 0, 0),
        step(equal, family, 0, 1),
        step(end, refusal, 0, 0),
        step(end, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    // SAFETY: the closure makes one system call, on a filter that it owns.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: 6,
                filter: filter.as_ptr().cast_mut(),
            };
            let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
            let set = libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program);
            if set == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

#[test]
fn all_programs_run_without_ipv6_sockets() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    set_ipv6(&mesh, 0, false);
    mesh.coordinator.take().expect("it runs").stop();
    let host = &mesh.coordinator_host;
    let mut command = host
        .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .expect("a namespace");
    let arguments = [
        "--state-dir",
        "/run/coordinator",
        "--admin-socket",
        "/run/admin.sock",
    ];
    deny_ipv6_sockets(command.args(arguments));
    let log = mesh.logs.path().join("coordinator");
    mesh.coordinator = Some(host.start(&mut command, &log).expect("a program"));
    mesh.wait_until("the coordinator answers", || {
        mesh.admin(&["node", "list"]).code == 0
    });

    mesh.kill_node(0);
    let host = &mesh.nodes[0].host;
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    deny_ipv6_sockets(command.args(["--state-dir", "/run/state", "--socket", SOCKET]));
    let daemon = host.start(&mut command, &mesh.log(0)).expect("a program");
    mesh.nodes[0].daemon = Some(daemon);
    mesh.wait_until("meshd answers", || mesh.on(0, &["status"]).code == 0);
    for n in 0..2 {
        let token = mesh.token(&[]);
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    mesh.wait_until("they reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
    let [(v4, _), (other, _)] = [mesh.addresses(0), mesh.addresses(1)];
    assert!(mesh.pings(0, &other.to_string()) && mesh.pings(1, &v4.to_string()));
    let problems = mesh.status(0).problems;
    assert!(mesh.has_problem(0, &["only its IPv4 address"]));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(mesh.on(0, &["status", "--check", "ready"]).code, 0);
}

#[test]
fn ipv6_that_is_switched_off_while_a_node_runs_affects_nothing_else_and_is_restored() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let [(v4, v6), (other, other_v6)] = [mesh.addresses(0), mesh.addresses(1)];
    assert!(mesh.pings(1, &v6.to_string()));
    set_ipv6(&mesh, 0, false);
    mesh.wait_until("it is a problem", || {
        mesh.has_problem(0, &["only its IPv4 address"])
    });
    mesh.wait_until("the other node no longer sends anybody there", || {
        !answers(&mesh, 1, "n1.node.mesh", "AAAA").contains(&v6.to_string())
    });
    mesh.ip(0, "route del 10.210.0.0/16 dev mesh0");
    mesh.wait_until("the IPv4 route is back", || {
        printed(&mesh, 0, "ip", "route").contains("10.210.0.0/16 dev mesh0")
    });
    assert!(mesh.pings(0, &other.to_string()) && mesh.pings(1, &v4.to_string()));
    assert!(!mesh.has_problem(0, &["not configured completely"]));

    set_ipv6(&mesh, 0, true);
    mesh.wait_until("its addresses come back", || {
        mesh.pings(0, &other_v6.to_string()) && mesh.pings(1, &v6.to_string())
    });
    mesh.wait_until("the problem is gone", || {
        !mesh.has_problem(0, &["only its IPv4 address"])
    });
    mesh.wait_until("the other node sends people there again", || {
        answers(&mesh, 1, "n1.node.mesh", "AAAA").contains(&v6.to_string())
    });
}

#[test]
fn removed_settings_are_restored_after_notifications() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let [(v4, v6), (other, other_v6)] = [mesh.addresses(0), mesh.addresses(1)];
    let begun = Instant::now();
    for taken in [
        format!("address del {v4}/32 dev mesh0"),
        format!("-6 address del {v6}/128 dev mesh0"),
        "route del 10.210.0.0/16 dev mesh0".to_owned(),
        "link set mesh0 down".to_owned(),
    ] {
        mesh.ip(0, &taken);
        mesh.wait_until(&format!("all is back after {taken}"), || {
            let addresses = printed(&mesh, 0, "ip", "address show dev mesh0");
            let routes = printed(&mesh, 0, "ip", "route") + &printed(&mesh, 0, "ip", "-6 route");
            addresses.contains(&format!("{v4}/32"))
                && addresses.contains(&format!("{v6}/128"))
                && routes.contains("10.210.0.0/16 dev mesh0")
                && routes.contains("/48 dev mesh0")
        });
    }
    assert!(begun.elapsed() < WITHOUT_NOTICES, "{:?}", begun.elapsed());
    assert!(mesh.pings(0, &other.to_string()) && mesh.pings(0, &other_v6.to_string()));
    assert!(!mesh.has_problem(0, &["again and again"]));
}

#[test]
fn a_program_that_removes_a_route_again_and_again_is_one_problem_and_a_few_lines_in_the_log() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                mesh.succeeds(0, "ip", &["route", "del", "10.210.0.0/16", "dev", "mesh0"]);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            mesh.wait_until("it is a problem", || {
                mesh.has_problem(0, &["again and again", "mesh0"])
            });
        }));
        done.store(true, Ordering::Relaxed);
        found.expect("the fight is noticed");
    });
    let log = std::fs::read_to_string(mesh.log(0)).expect("our directory");
    let lines = log.matches("restored what another program removed").count();
    assert!((1..=6).contains(&lines), "{lines}: {log}");
    mesh.wait_until("the route is back after the fight", || {
        printed(&mesh, 0, "ip", "route").contains("10.210.0.0/16 dev mesh0")
    });
}

#[test]
fn a_route_that_diverts_packets_is_named_with_table_and_device() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let (other, other_v6) = mesh.addresses(1);
    let gateway = mesh.coordinator_host.v4();
    assert_eq!(mesh.on(0, &["ping", "-c", "1", "n2"]).code, 0);
    let rule = "rule add priority 100 to 10.210.0.0/16 lookup 100";
    // A change of another program, the command that undoes it, and the text that the report must contain.
    let cases = [
        (
            vec!["route add 10.210.2.0/24 dev eth0".to_owned()],
            vec!["route del 10.210.2.0/24 dev eth0".to_owned()],
            vec!["n2", "dev eth0 in table main", "ip route del"],
        ),
        (
            vec![
                format!("route add default via {gateway} table 100"),
                rule.to_owned(),
            ],
            vec!["rule del priority 100".to_owned()],
            vec![
                "n2",
                "priority 100",
                "default dev eth0 in table 100",
                "ip rule del priority 100",
            ],
        ),
        (
            vec![format!("route add blackhole {other}/32")],
            vec![format!("route del blackhole {other}/32")],
            vec!["n2", "which discards", "table main"],
        ),
        (
            vec![format!("address add {other}/32 dev eth0")],
            vec![format!("address del {other}/32 dev eth0")],
            vec!["n2", "of this machine", "ip address del"],
        ),
        (
            vec![format!("-6 route add {other_v6}/128 dev eth0")],
            vec![format!("-6 route del {other_v6}/128 dev eth0")],
            vec!["n2", "dev eth0 in table main", "ip -6 route del"],
        ),
        (
            // An address of a container there: not that of the node.
            vec!["route add 10.210.2.77/32 dev eth0".to_owned()],
            vec!["route del 10.210.2.77/32 dev eth0".to_owned()],
            vec!["10.210.2.77", "dev eth0 in table main"],
        ),
    ];
    for (done, undone, named) in &cases {
        for arguments in done {
            mesh.ip(0, arguments);
        }
        mesh.wait_until(
            &format!("{done:?} is a problem that names {named:?}"),
            || mesh.has_problem(0, named),
        );
        let doctor = mesh.on(0, &["doctor"]);
        assert_ne!(doctor.code, 0, "{doctor:?}");
        assert!(doctor.stdout.contains(named[1]), "{doctor:?}");
        let ping = mesh.on(0, &["ping", "-c", "1", "n2"]);
        if named[0] == "n2" {
            assert_eq!(ping.code, 1, "{ping:?}");
            assert!(ping.stderr.contains(named[1]), "{ping:?}");
        }
        for arguments in undone {
            mesh.ip(0, arguments);
        }
        mesh.wait_until(&format!("after {undone:?} all is well"), || {
            !mesh.has_problem(0, &["do not go into mesh0"])
        });
    }
    assert_eq!(mesh.on(0, &["ping", "-c", "1", "n2"]).code, 0);
}

#[test]
fn forwarding_that_was_switched_off_is_restored_after_a_notification() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.kill_node(0);
    engine::start_on_docker0(&mesh.nodes[0].host);
    mesh.start_node(0);
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let forwards = || printed(&mesh, 0, "sysctl", "-n net.ipv4.ip_forward").trim() == "1";
    mesh.wait_until("the machine forwards for its container", forwards);
    let begun = Instant::now();
    for _ in 0..3 {
        assert!(mesh.succeeds(0, "sysctl", &["-qw", "net.ipv4.ip_forward=0"]));
        mesh.wait_until("it forwards again", forwards);
    }
    assert!(begun.elapsed() < WITHOUT_NOTICES, "{:?}", begun.elapsed());
}

#[test]
fn whatever_part_of_its_state_a_full_disk_refuses_is_a_problem_until_it_is_written() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    mesh.kill_node(0);
    cover(&mesh, 0, "/run/state", "256k");
    mesh.start_node(0);
    for n in 0..2 {
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    let directory = mesh.nodes[0].host.path("/run/state");
    let is_full = |mesh: &Mesh| mesh.has_problem(0, &["No space left", "make room"]);
    fill(&directory);
    // One change, which the last page of the records may still take.
    let ended = mesh.on(1, &["service", "add", "web", "--port", "80"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    mesh.wait_until("the full disk is a problem", || is_full(&mesh));
    let log = std::fs::read_to_string(mesh.log(0)).expect("our directory");
    empty(&directory);
    mesh.wait_until("it is none any more, without another change", || {
        !is_full(&mesh)
    });
    assert!(log.matches("not written to disk").count() <= 2, "{log}");

    // A line that was cut off, and no room to write the rest anew.
    mesh.kill_node(0);
    let records = directory.join("records.jsonl");
    let bytes = std::fs::read(&records).expect("the host's own file system");
    std::fs::write(&records, &bytes[..bytes.len() - 20]).expect("it fits");
    fill(&directory);
    mesh.start_node(0);
    mesh.wait_until("it starts all the same, and says so", || is_full(&mesh));
    empty(&directory);
    mesh.wait_until("it is well again", || {
        !is_full(&mesh) && mesh.reaches(0) == 1
    });
}
