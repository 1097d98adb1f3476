//! A host: a process that holds its namespaces, and what runs in them.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{LabError, link};

/// Namespaces held open by a process that reads from a pipe of ours: when this process ends, however it ends, the pipe
/// closes, the holder ends, and the namespaces go.
#[derive(Debug)]
pub(super) struct Namespace {
    holder: Child,
    _pipe: Option<ChildStdin>,
    network: File,
    mounts: File,
    uts: File,
}

impl Namespace {
    pub(super) fn new(name: &str) -> Result<Self, LabError> {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let name = name.to_owned();
        // SAFETY: the closure makes system calls only, on values made before the fork.
        unsafe {
            command.pre_exec(move || {
                unshare(
                    CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS,
                )?;
                nix::unistd::sethostname(&name)?;
                private_mounts()
            });
        }
        let mut holder = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => LabError::NoRights,
            _ => LabError::Io("make a namespace", error),
        })?;
        let pipe = holder.stdin.take();
        let open = |kind: &str| {
            File::open(format!("/proc/{}/ns/{kind}", holder.id()))
                .map_err(|e| LabError::Io("open a namespace", e))
        };
        let (network, mounts, uts) = (open("net")?, open("mnt")?, open("uts")?);
        Ok(Self {
            holder,
            _pipe: pipe,
            network,
            mounts,
            uts,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Runs `work` on a thread inside the network.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.network, CloneFlags::CLONE_NEWNET)
                    .map_err(|e| LabError::Io("enter a namespace", e.into()))?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Own `/run` and `/var/lib`, and a `/sys` that shows the own network where the kernel allows it.
fn private_mounts() -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for path in ["/run", "/var/lib"] {
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )?;
    }
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none);
    Ok(())
}

/// A host.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    port: String,
}

impl Host {
    pub(super) fn new(
        namespace: Namespace,
        name: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        port: String,
    ) -> Self {
        Self {
            namespace,
            name: name.to_owned(),
            v4,
            v6,
            port,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the bridge.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// The same in IPv6.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// The process that holds its namespaces, for `nsenter`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.namespace.pid()
    }

    pub(super) fn port(&self) -> &str {
        &self.port
    }

    /// Adds an address to its interface on the bridge.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_address(&self, address: IpAddr, length: u8) -> Result<(), LabError> {
        self.namespace.inside(|| link::add(address, length))?
    }

    /// Runs `work` on a thread inside the host's network: sockets it opens are the host's.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.namespace.inside(work)
    }

    /// A path in the host's own file system, as seen from outside.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.trim_start_matches('/'))
    }

    /// A command that will run in the host. It ends when the thread that starts it does.
    ///
    /// # Errors
    /// The namespaces cannot be opened.
    pub fn command(&self, program: &str) -> Result<Command, LabError> {
        let copy = |file: &File| {
            file.try_clone()
                .map_err(|e| LabError::Io("open a namespace", e))
        };
        let namespaces = [
            (copy(&self.namespace.network)?, CloneFlags::CLONE_NEWNET),
            (copy(&self.namespace.uts)?, CloneFlags::CLONE_NEWUTS),
            (copy(&self.namespace.mounts)?, CloneFlags::CLONE_NEWNS),
        ];
        let mut command = Command::new(program);
        // SAFETY: the closure makes system calls only, on values made before the fork.
        unsafe {
            command.pre_exec(move || {
                for (file, kind) in &namespaces {
                    setns(file, *kind)?;
                }
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        Ok(command)
    }

    /// Starts a program that goes on, its output in `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, command: &mut Command, log: &Path) -> Result<Running, LabError> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|e| LabError::Io("open a log", e))?;
        let copy = file
            .try_clone()
            .map_err(|e| LabError::Io("open a log", e))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .map_err(|e| LabError::Io("start a program", e))?;
        Ok(Running {
            child,
            log: log.to_owned(),
        })
    }
}

/// A program that goes on. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and waits for at most ten seconds; gives how it ended, if it did.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        let _ = kill(
            Pid::from_raw(i32::try_from(self.child.id()).ok()?),
            Signal::SIGTERM,
        );
        self.wait(Duration::from_secs(10))
    }

    /// Waits until it has ended, for at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
