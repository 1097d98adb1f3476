//! The systemd units: how much of the machine they leave to the daemons, and that they fit them.

use std::process::{Command, Stdio};

use crate::{read, repository};

/// Each unit and the exposure it may have at most, as `systemd-analyze security` reckons it.
const UNITS: [(&str, &str); 2] = [("meshd", "2.0"), ("mesh-coordinator", "1.2")];

#[test]
fn the_units_expose_no_more_than_they_must() {
    // --offline came with systemd 250.
    let able = Command::new("systemd-analyze")
        .args(["security", "--help"])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("--offline"));
    if !able {
        meshd::lab::skip_test("there is no systemd-analyze that works offline");
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
    for (name, _) in UNITS {
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
    let settings: Vec<String> = read("systemd/meshd-resolv-conf.conf")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        settings,
        [
            "[Service]",
            "ReadWritePaths=/etc",
            "AmbientCapabilities=CAP_DAC_OVERRIDE",
            "CapabilityBoundingSet=CAP_DAC_OVERRIDE"
        ]
    );
    let rules = read("systemd/meshd.rules");
    assert!(rules.contains("subject.user == \"meshd\""), "{rules}");
    let readme = read("README.md");
    for file in ["systemd/meshd-resolv-conf.conf", "systemd/meshd.rules"] {
        assert!(readme.contains(file), "{file}");
    }
}
