//! A coordinator on loopback with a mesh of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshd::model::{PublicKey, SigningKey};
use meshd::protocol::JoinToken;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ends with the value.
pub(crate) struct Coordinator {
    process: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Coordinator {
    /// A running one, with a mesh.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same, with more configuration.
    pub(crate) fn start_with(configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("loopback")
            .port();
        let config = directory.path().join("coordinator.toml");
        let text = format!("[metrics]\nlisten = \"127.0.0.1:0\"\n{configuration}");
        std::fs::write(&config, text).expect("writable");
        let coordinator = Self {
            process: spawn(directory.path(), port),
            directory,
            port,
        };
        coordinator.await_socket();
        coordinator.admin(&["init"]);
        coordinator
    }

    /// Ends it as a loss of power would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// Asks the process to stop.
    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    }

    /// Starts it again with what is on disk.
    pub(crate) fn restart(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        self.process = spawn(self.directory.path(), self.port);
        self.await_socket();
    }

    fn await_socket(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < end, "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// The directory with its store and its log of events.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
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

    /// The key with which the administrator signs.
    pub(crate) fn mesh_key(&self) -> SigningKey {
        let text = std::fs::read_to_string(self.directory.path().join("mesh.key"));
        let seed: PublicKey = text.expect("there").trim().parse().expect("a seed");
        SigningKey::from_seed(&seed.0)
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

fn spawn(directory: &Path, port: u16) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .arg("--config")
        .arg(directory.join("coordinator.toml"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .arg("--admin-socket")
        .arg(directory.join("s"))
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--public-url")
        .arg(format!("https://127.0.0.1:{port}"))
        .stderr(Stdio::null())
        .spawn()
        .expect("it is built")
}
