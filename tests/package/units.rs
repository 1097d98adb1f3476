//! The systemd units: how much of the machine they leave to the daemons, and that they fit them.

use std::process::{Command, Stdio};

use crate::{read, repository};

/// Each unit and the exposure it may have at most, as `systemd-analyze security` reckons it.
const UNITS: [(&str, &str); 3] = [
    ("meshd", "2.0"),
    ("mesh-coordinator", "1.2"),
    ("meshd-resolv-conf", "1.0"),
];
/// The units that run a daemon for as long as the machine runs.
const DAEMONS: [&str; 2] = ["meshd", "mesh-coordinator"];
/// The line that lets meshd write the kernel's settings of the network, and no others.
const NETWORK_SETTINGS: &str = "ReadWritePaths=-/proc/sys/net";

#[test]
fn the_units_expose_no_more_than_they_must() {
    // --offline came with systemd 250.
    let able = Command::new("systemd-analyze")
        .args(["security", "--help"])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("--offline"));
    if !able {
        meshd::testbed::skip_test("there is no systemd-analyze that works offline");
        return;
    }
    for (name, most) in UNITS {
        let unit = repository(&format!("systemd/{name}.service"));
        let output = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true"])
            .arg(unit)
            .output()
            .expect("it just ran");
        let text = String::from_utf8_lossy(&output.stdout);
        let exposure: f64 = text
            .lines()
            .find_map(|line| line.split_once("Overall exposure level for "))
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or_else(|| panic!("{name}: no verdict in\n{text}"));
        let most: f64 = most.parse().expect("a literal");
        assert!(
            exposure <= most,
            "{name}: {exposure} is over {most}\n{text}"
        );
    }
}

#[test]
fn the_units_run_the_programs_where_their_defaults_look() {
    for name in DAEMONS {
        let unit = read(&format!("systemd/{name}.service"));
        let has = |line: &str| unit.lines().any(|l| l == line);
        for line in [
            "Type=notify".to_owned(),
            format!("ExecStart=/usr/local/bin/{name}"),
            format!("User={name}"),
            format!("StateDirectory={name}"),
            "StateDirectoryMode=0700".to_owned(),
            format!("RuntimeDirectory={name}"),
        ] {
            assert!(has(&line), "{name}: no {line}");
        }
        assert!(unit.contains("\nWatchdogSec="), "{name}");
        let users = read("systemd/sysusers.conf");
        assert!(users.contains(&format!("\nu {name} - ")), "{name}");
    }
}

#[test]
fn what_lets_meshd_change_the_hosts_resolver_is_there_and_asks_for_no_more() {
    let unit = read("systemd/meshd.service");
    assert!(
        unit.lines()
            .any(|line| line == "ExecStopPost=-+/usr/local/bin/meshd --restore-resolv-conf"),
        "{unit}"
    );
    // A program that can write in /etc can become root, so no unit that runs for long has this right.
    for name in DAEMONS {
        let unit = read(&format!("systemd/{name}.service"));
        for right in ["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_CHOWN"] {
            assert!(!unit.contains(right), "{name}: {right}");
        }
        let mut writable = unit.lines().filter(|l| l.starts_with("ReadWritePaths="));
        assert!(writable.all(|line| line == NETWORK_SETTINGS), "{unit}");
    }
    assert!(
        !repository("systemd/meshd-resolv-conf.conf").exists(),
        "no drop-in gives meshd this right either"
    );
    let rules = read("systemd/meshd.rules");
    assert!(rules.contains("subject.user == \"meshd\""), "{rules}");
    let page = read("docs/howto/resolver.md");
    for file in ["systemd/meshd-resolv-conf.", "systemd/meshd.rules"] {
        assert!(page.contains(file), "{file}");
    }
}

#[test]
fn meshd_may_change_the_kernels_settings_of_the_network_and_no_others() {
    let unit = read("systemd/meshd.service");
    for line in ["ProtectKernelTunables=yes", NETWORK_SETTINGS] {
        assert!(unit.lines().any(|l| l == line), "no {line}");
    }
    // It hides /proc/sys, with the settings that meshd reads.
    assert!(
        !unit.lines().any(|l| l.starts_with("ProcSubset=")),
        "{unit}"
    );
    let coordinator = read("systemd/mesh-coordinator.service");
    assert!(!coordinator.contains("ReadWritePaths="), "{coordinator}");
}

#[test]
fn the_helper_that_writes_resolv_conf_runs_for_a_moment_without_rights_or_network() {
    let helper = read("systemd/meshd-resolv-conf.service");
    let settings: Vec<&str> = helper.lines().filter(|l| !l.starts_with('#')).collect();
    for line in [
        "Type=oneshot",
        "ExecStart=/usr/local/bin/meshd resolv-conf apply",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ReadWritePaths=/etc",
        "PrivateNetwork=yes",
        "RestrictAddressFamilies=none",
        // Two programs that write the file by turns start the unit often. The unit must not fail for that reason.
        "StartLimitIntervalSec=0",
    ] {
        assert!(settings.contains(&line), "no {line}");
    }
    let capabilities = settings.iter().filter(|l| l.contains("CAP_"));
    assert_eq!(capabilities.count(), 0, "{helper}");
    let path = read("systemd/meshd-resolv-conf.path");
    // meshd writes its request into the directory of the default socket.
    assert!(
        path.contains("\nPathChanged=/run/meshd/resolv.conf\n"),
        "{path}"
    );
    assert!(path.contains("\nWantedBy=multi-user.target\n"), "{path}");
}

#[test]
fn the_units_are_ones_that_systemd_understands() {
    let able = Command::new("systemd-analyze")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if able.is_err() {
        meshd::testbed::skip_test("there is no systemd-analyze");
        return;
    }
    let files = UNITS.map(|(name, _)| repository(&format!("systemd/{name}.service")));
    let path = repository("systemd/meshd-resolv-conf.path");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(files)
        .arg(path)
        .output()
        .expect("it just ran");
    let text = String::from_utf8_lossy(&output.stderr);
    // The programs need not be installed where the tests run.
    let faults: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("systemd/") || line.contains("mesh"))
        .filter(|line| !line.contains("is not executable"))
        .collect();
    assert!(faults.is_empty(), "{text}");
}
