//! A host with its own container engine, and images made of programs of this machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::TestbedError;
use super::host::{Host, Running};

/// The time limit for the start of the engine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/docker.sock";
/// The environment variable that selects the engine: `podman`, or Docker with any other value.
const ENGINE: &str = "MESHD_LAB_ENGINE";
/// The script that is called as the engine's client if the engine is Podman. Without a service manager, Podman needs
/// these options. The runtime is Docker's, which works with the control groups of any machine.
const PODMAN: &str = "#!/bin/sh\nexec podman --cgroup-manager=cgroupfs --runtime=runc \"$@\"\n";
/// Any image may be used.
const POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
/// The engine's log in the host.
const LOG: &str = "/run/dockerd.log";

/// A host with a container engine. Dropping it ends everything in it.
#[derive(Debug)]
pub struct DockerHost {
    // The engine ends before the host.
    engine: Option<Running>,
    host: Host,
    group: String,
}

impl DockerHost {
    /// Checks whether this machine has everything that container hosts need.
    ///
    /// # Errors
    /// What is missing.
    pub fn is_possible() -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("container hosts need root".into());
        }
        for program in [
            "dockerd", "docker", "busybox", "iptables", "nsenter", "tar", "ldd",
        ] {
            let found = std::env::var_os("PATH")
                .is_some_and(|path| std::env::split_paths(&path).any(|d| d.join(program).exists()));
            if !found {
                return Err(format!("{program} is not installed"));
            }
        }
        Ok(())
    }

    pub(super) fn start(host: Host) -> Result<Self, TestbedError> {
        let group = format!("meshd-lab-{}", host.pid());
        let mut host = Self {
            engine: None,
            host,
            group,
        };
        host.start_engine(&[])?;
        Ok(host)
    }

    /// Starts the engine with additional arguments, and waits until it answers.
    ///
    /// # Errors
    /// It does not start. The error has the engine's log.
    pub fn start_engine(&mut self, arguments: &[&str]) -> Result<(), TestbedError> {
        let mut command = if std::env::var(ENGINE).is_ok_and(|engine| engine == "podman") {
            self.podman()?
        } else {
            let mut command = self.host.command("dockerd")?;
            command.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
            command.args(["--cgroup-parent", &format!("/{}", self.group)]);
            command.args(arguments);
            command
        };
        let log = self.host.path(LOG);
        let mut engine = self.host.start(&mut command, &log)?;
        let end = Instant::now() + WAIT_TIMEOUT;
        while !self.answers() {
            if Instant::now() > end || engine.wait(Duration::ZERO).is_some() {
                return Err(TestbedError::Program(
                    "dockerd does not start".into(),
                    engine.log(),
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.engine = Some(engine);
        Ok(())
    }

    /// Returns the command for Podman's service, and installs its client under the name of Docker's.
    fn podman(&self) -> Result<Command, TestbedError> {
        let fault = |e| TestbedError::Io("set Podman up", e);
        let client = self.host.path("/usr/local/bin/docker");
        fs::write(&client, PODMAN).map_err(fault)?;
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).map_err(fault)?;
        fs::create_dir_all(self.host.path("/etc/containers")).map_err(fault)?;
        fs::write(self.host.path("/etc/containers/policy.json"), POLICY).map_err(fault)?;
        let mut command = self.host.command("docker")?;
        command.args(["system", "service", "--time=0"]);
        command.arg(format!("unix://{SOCKET}"));
        Ok(command)
    }

    /// Stops the engine as a restart of its service would.
    pub fn stop_engine(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            let _ = engine.stop();
        }
        let _ = fs::remove_file(self.host.path("/run/docker.pid"));
    }

    fn answers(&self) -> bool {
        let ask = || -> io::Result<bool> {
            let mut stream = UnixStream::connect(self.host.path(SOCKET))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            Ok(answer.ends_with(b" 200"))
        };
        ask().unwrap_or(false)
    }

    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Runs the engine's client, and returns its output without the last newline.
    ///
    /// # Errors
    /// It fails. The error has its error output.
    pub fn docker(&self, arguments: &[&str]) -> Result<String, TestbedError> {
        self.exec(&[&["docker"], arguments].concat())
    }

    /// Runs a program on the host, and returns its output without the last newline.
    ///
    /// # Errors
    /// It fails. The error has its error output.
    pub fn exec(&self, words: &[&str]) -> Result<String, TestbedError> {
        let output = self.output(words)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .to_owned());
        }
        Err(TestbedError::Program(
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        ))
    }

    /// Runs a program on the host, and returns its output and exit status.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, words: &[&str]) -> Result<Output, TestbedError> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(TestbedError::Io(
                "run nothing",
                io::ErrorKind::InvalidInput.into(),
            ));
        };
        self.host
            .command(program)?
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| TestbedError::Io("run a program", e))
    }

    /// Imports an image into the engine.
    ///
    /// # Errors
    /// The engine returns an error.
    pub fn import(&self, image: &Image, name: &str) -> Result<(), TestbedError> {
        let fault = |e| TestbedError::Io("import an image", e);
        let file = fs::File::open(&image.file).map_err(fault)?;
        let output = self
            .host
            .command("docker")?
            .args(["import", "-", name])
            .stdin(file)
            .output()
            .map_err(fault)?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(TestbedError::Program("docker import".into(), message))
    }

    /// The pid on this machine of the process with pid `inner` in this host.
    #[must_use]
    pub fn outer_pid(&self, inner: u32) -> Option<u32> {
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.host.pid())).ok()?;
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
            // The pids are listed from the outermost to the innermost namespace; a container has further namespaces
            // inside.
            let found = numbers.split_whitespace().any(|n| n.parse() == Ok(inner));
            let within = || {
                let mut at = pid;
                for _ in 0..64 {
                    if fs::read_link(format!("/proc/{at}/ns/pid")).ok() == Some(own.clone()) {
                        return true;
                    }
                    let status = fs::read_to_string(format!("/proc/{at}/status")).ok();
                    let parent = status.and_then(|s| {
                        s.lines()
                            .find_map(|l| l.strip_prefix("PPid:"))
                            .and_then(|p| p.trim().parse().ok())
                    });
                    match parent {
                        Some(0 | 1) | None => return false,
                        Some(parent) => at = parent,
                    }
                }
                false
            };
            (found && within()).then_some(pid)
        })
    }
}

impl Drop for DockerHost {
    fn drop(&mut self) {
        // The engine's containers end with the host's first process. Their control groups remain unless they are
        // removed.
        self.engine = None;
        self.host.end();
        let end = Instant::now() + Duration::from_secs(5);
        while !remove_groups(Path::new("/sys/fs/cgroup"), &self.group) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes the control groups called `name` and those in them. Returns whether none is left. They are at the root of
/// the one hierarchy, or of each.
fn remove_groups(root: &Path, name: &str) -> bool {
    let mut roots = vec![root.to_owned()];
    roots.extend(folders(root));
    roots
        .iter()
        .map(|root| root.join(name))
        .filter(|group| group.is_dir())
        .all(|group| remove_group(&group))
}

fn remove_group(group: &Path) -> bool {
    folders(group).iter().all(|inner| remove_group(inner)) && fs::remove_dir(group).is_ok()
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The files of an image: a small shell with its tools, and programs with the libraries they need.
#[derive(Debug)]
pub struct Image {
    file: PathBuf,
}

impl Image {
    /// Packs `programs` of this machine into the new file `file`, in `/usr/local/bin`.
    ///
    /// # Errors
    /// A program is missing, or the disk is full.
    pub fn pack(file: &Path, programs: &[&Path]) -> Result<Self, TestbedError> {
        let fault = |e| TestbedError::Io("pack an image", e);
        let folder = file.with_extension("files");
        for path in [
            "bin",
            "dev",
            "etc",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "usr/local/bin",
            "var",
        ] {
            fs::create_dir_all(folder.join(path)).map_err(fault)?;
        }
        let shell = program("sh", &["-c", "command -v busybox"])?;
        let shell = fs::canonicalize(shell.trim()).map_err(fault)?;
        fs::copy(&shell, folder.join("bin/busybox")).map_err(fault)?;
        for tool in program("busybox", &["--list"])?.lines() {
            if tool != "busybox" {
                std::os::unix::fs::symlink("busybox", folder.join("bin").join(tool))
                    .map_err(fault)?;
            }
        }
        let mut libraries = BTreeSet::new();
        for path in programs.iter().copied().chain([shell.as_path()]) {
            // A statically linked program has no libraries, and `ldd` fails.
            let listed = Command::new("ldd").arg(path).output().map_err(fault)?;
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            libraries.extend(
                listed
                    .split_whitespace()
                    .filter(|word| word.starts_with('/'))
                    .map(|word| PathBuf::from(word.trim_end_matches(':'))),
            );
        }
        for path in programs {
            let name = path.file_name().unwrap_or_default();
            fs::copy(path, folder.join("usr/local/bin").join(name)).map_err(fault)?;
        }
        for library in libraries {
            let there = folder.join(library.strip_prefix("/").unwrap_or(&library));
            if let Some(parent) = there.parent() {
                fs::create_dir_all(parent).map_err(fault)?;
            }
            fs::copy(&library, there).map_err(fault)?;
        }
        fs::write(folder.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").map_err(fault)?;
        fs::write(folder.join("etc/nsswitch.conf"), "hosts: files dns\n").map_err(fault)?;
        let (from, to) = (folder.to_string_lossy(), file.to_string_lossy());
        program("tar", &["-C", &from, "-cf", &to, "."])?;
        fs::remove_dir_all(&folder).map_err(fault)?;
        Ok(Self {
            file: file.to_owned(),
        })
    }
}

/// Runs a program of this machine, and returns its output.
fn program(name: &str, arguments: &[&str]) -> Result<String, TestbedError> {
    let output = Command::new(name)
        .args(arguments)
        .output()
        .map_err(|e| TestbedError::Io("pack an image", e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(TestbedError::Program(name.to_owned(), message))
}
