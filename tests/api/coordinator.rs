//! A coordinator on loopback with a mesh of its own.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshd::wire::JoinToken;

/// Ends with the value.
pub(crate) struct Coordinator {
    process: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Coordinator {
    /// A running one, with a mesh.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("loopback")
            .port();
        let config = directory.path().join("coordinator.toml");
        std::fs::write(&config, "[metrics]\nlisten = \"127.0.0.1:0\"\n").expect("writable");
        let process = Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"))
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .arg("--admin-socket")
            .arg(directory.path().join("s"))
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"))
            .arg("--public-url")
            .arg(format!("https://127.0.0.1:{port}"))
            .stderr(Stdio::null())
            .spawn()
            .expect("it is built");
        let coordinator = Self {
            process,
            directory,
            port,
        };
        let end = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(coordinator.socket()).is_err() {
            assert!(Instant::now() < end, "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        coordinator.admin(&["init"]);
        coordinator
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether the process still runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Runs an administrator's command; gives what it printed.
    pub(crate) fn admin(&self, words: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(words)
            .env("MESH_ADMIN_SOCKET", self.socket())
            .env("MESH_KEY", self.directory.path().join("mesh.key"))
            .output()
            .expect("it is built");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(crate) fn token(&self) -> JoinToken {
        JoinToken::parse(self.admin(&["token", "create"]).trim()).expect("a token")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
