//! The coordinator under measurement: a process, and the kernel's figures about it.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use meshd::protocol::JoinToken;

/// Ends with the value.
pub(crate) struct Coordinator {
    process: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Coordinator {
    /// A running one, with a mesh that has room for tens of thousands of nodes.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("loopback")
            .port();
        let config = "[metrics]\nlisten = \"127.0.0.1:0\"\n[mesh]\nprefix_v4 = \"10.0.0.0/8\"\n";
        std::fs::write(directory.path().join("coordinator.toml"), config).expect("writable");
        let process = spawn(&directory, port);
        let coordinator = Self {
            process,
            directory,
            port,
        };
        coordinator.await_socket();
        coordinator.admin(&["init"]);
        coordinator
    }

    /// Cuts all connections at once, and lets nodes find it again.
    pub(crate) fn kill_and_restart(&mut self) {
        self.end();
        let _ = std::fs::remove_file(self.socket());
        self.process = spawn(&self.directory, self.port);
        self.await_socket();
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn await_socket(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(Instant::now() < end, "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn admin(&self, words: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(words)
            .env("MESH_ADMIN_SOCKET", self.socket())
            .env("MESH_KEY", self.directory.path().join("mesh.key"))
            .output()
            .expect("it is built");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Applies a policy, also for nodes that do not say that they know policies.
    pub(crate) fn apply_policy(&self, text: &str) {
        let file = self.directory.path().join("policy.toml");
        std::fs::write(&file, text).expect("writable");
        let file = file.to_str().expect("the path of a temporary directory");
        self.admin(&["policy", "apply", file, "--force"]);
    }

    /// A token for so many nodes.
    pub(crate) fn token(&self, uses: usize) -> JoinToken {
        let uses = uses.to_string();
        let token = self.admin(&["token", "create", "--uses", &uses]);
        JoinToken::parse(token.trim()).expect("a token")
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most there was since the process started, in KiB.
    pub(crate) fn most_resident(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|value| value.split_whitespace().next()?.parse().ok())
            .expect("the kernel says it of every process")
    }

    /// CPU time used since the start, in steps of 10 ms.
    pub(crate) fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.process.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        // After the name in parentheses; utime and stime are the 14th and 15th field (proc_pid_stat(5)).
        let ticks: u64 = text
            .rsplit(')')
            .next()
            .into_iter()
            .flat_map(str::split_whitespace)
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(directory: &tempfile::TempDir, port: u16) -> Child {
    let at = |name: &str| directory.path().join(name);
    Command::new(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .arg("--config")
        .arg(at("coordinator.toml"))
        .arg("--state-dir")
        .arg(at("state"))
        .arg("--admin-socket")
        .arg(at("s"))
        .arg("--listen")
        .arg(format!("127.0.0.1:{port}"))
        .arg("--public-url")
        .arg(format!("https://127.0.0.1:{port}"))
        .stderr(Stdio::null())
        .spawn()
        .expect("it is built")
}

/// Asks for as many open files as this process may have.
pub(crate) fn raise_open_files() -> std::io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call, which only writes to it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit that outlives the call, which only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
