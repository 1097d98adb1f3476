//! `meshctl bugreport` has what helps, and no secret of the machine.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::program::{command, token};

const PASSWORD: &str = "correct horse battery";

/// A machine with secrets in its files, and a log that a careless program has written them to.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().expect("a temporary directory"));
        let write = |name: &str, text: &str| {
            std::fs::write(machine.0.path().join(name), text).expect("writable");
        };
        let directory = machine.0.path().display();
        write(
            "meshd.toml",
            &format!(
                "state_dir = \"{directory}\"\nname = \"web-1\"\n# token = \"{}\"\n[join]\ntoken_file = \"{directory}/token\"\n[relay]\nproxy = \"http://admin:{PASSWORD}@proxy:3128\"\n",
                token()
            ),
        );
        write(
            "coordinator.toml",
            &format!(
                "state_dir = \"{directory}\"\n[store]\npassword_file = \"{directory}/password\"\n"
            ),
        );
        write("token", &token());
        write("password", PASSWORD);
        write("mesh.key", &hex(&[7; 32]));
        write(
            "identity.json",
            &format!(
                "{{\"keys\":{{\"identity_seed\":\"{}\",\"wireguard_secret\":\"{}\"}}}}",
                hex(&[8; 32]),
                hex(&[9; 32])
            ),
        );
        write(
            "tls.key",
            "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n",
        );
        let said: String = secrets()
            .iter()
            .map(|secret| format!("printf '%s\\n' '{secret}'\n"))
            .collect();
        write(
            "journalctl",
            &format!("#!/bin/sh\necho meshd was started\n{said}"),
        );
        let program = machine.0.path().join("journalctl");
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).expect("ours");
        machine
    }

    fn report(&self, words: &[&str]) -> Output {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let options = [
            "--config",
            &path("meshd.toml"),
            "--coordinator-config",
            &path("coordinator.toml"),
            "--mesh-key",
            &path("mesh.key"),
        ];
        let words = [&["bugreport"], words, &options].concat();
        command(Path::new("none.sock"), &words)
            .env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()))
            .current_dir(self.0.path())
            .output()
            .expect("meshctl is built")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The secrets of the machine, in all forms in which a log may have them.
fn secrets() -> Vec<String> {
    let mut secrets = vec![
        token(),
        PASSWORD.to_owned(),
        "MIGHAgEAMBMGByqGSM49".to_owned(),
    ];
    // The seed of the token is 3, that of the mesh key is 7, and those of the node are 8 and 9.
    for byte in [3u8, 7, 8, 9] {
        let seed = [byte; 32];
        secrets.extend([
            hex(&seed),
            STANDARD.encode(seed),
            URL_SAFE_NO_PAD.encode(seed),
        ]);
    }
    secrets
}

/// Names and texts of the files in a tar archive, read by its format (POSIX.1-1988, ustar).
fn parts(archive: &[u8]) -> Vec<(String, String)> {
    let mut parts = Vec::new();
    let mut rest = archive;
    while let Some((header, tail)) = rest.split_at_checked(512) {
        let name = String::from_utf8_lossy(&header[..100]);
        let name = name.trim_end_matches('\0').to_owned();
        if name.is_empty() {
            break;
        }
        let size = String::from_utf8_lossy(&header[124..135]).into_owned();
        let size =
            usize::from_str_radix(size.trim_end_matches(['\0', ' ']), 8).expect("octal digits");
        parts.push((name, String::from_utf8_lossy(&tail[..size]).into_owned()));
        rest = &tail[size.div_ceil(512) * 512..];
    }
    parts
}

#[test]
fn a_report_without_meshd_has_configuration_and_log_and_no_key_token_seed_or_password() {
    let machine = Machine::new();
    let output = machine.report(&["--output", "report.tar"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let file = machine.0.path().join("report.tar");
    let mode = std::fs::metadata(&file)
        .expect("written")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let parts = parts(&std::fs::read(file).expect("readable"));
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    let text_of = |name: &str| {
        let part = parts
            .iter()
            .find(|(n, _)| n == &format!("meshd-bugreport/{name}"));
        &part.unwrap_or_else(|| panic!("{name} in {names:?}")).1
    };
    assert!(text_of("meshd.toml").contains("name = \"web-1\""));
    assert!(text_of("journal-meshd.txt").starts_with("meshd was started\n"));
    assert!(text_of("status.json").contains("meshd is not running"));
    assert!(text_of("versions.txt").contains("Linux version"));
    for secret in secrets() {
        for (name, text) in &parts {
            assert!(!text.contains(&secret), "{name} has {secret}");
        }
    }
}

#[test]
fn a_report_goes_to_stdout_and_never_over_a_file() {
    let machine = Machine::new();
    let output = machine.report(&["--output", "-"]);
    assert!(output.status.success() && parts(&output.stdout).len() > 10);
    let output = machine.report(&["--output", "meshd.toml"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("meshctl: the report is not written: ") && said.contains("--output"),
        "{said}"
    );
}
