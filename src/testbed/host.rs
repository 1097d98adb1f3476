//! A host: a process that holds its namespaces, and the programs that run in them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{TestbedError, link};

/// Namespaces that are held open by a process which reads from a pipe of this process. When this process ends for any
/// reason, the pipe closes, the holder ends, and the kernel removes the namespaces.
#[derive(Debug)]
pub(super) struct Namespace {
    holder: Child,
    _pipe: Option<ChildStdin>,
    network: File,
    mounts: File,
    uts: File,
    /// The first process of a process namespace, if there is one.
    init: Option<u32>,
}

impl Namespace {
    /// Creates a network namespace, a mount namespace and a namespace of the host name.
    pub(super) fn new(name: &str) -> Result<Self, TestbedError> {
        let holder = hold(&mut Command::new("cat"), name, private_mounts)?;
        Self::open(holder, None)
    }

    /// Creates the same namespaces, a process namespace, and a root directory that shows the machine's files without
    /// changing them. The directories `shared` are the machine's own: changes to them stay.
    pub(super) fn with_root(name: &str, shared: &[PathBuf]) -> Result<Self, TestbedError> {
        let shared = shared.to_vec();
        let mut command = Command::new("unshare");
        command.args(["--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        // The shell reaps orphaned processes, as the first process of a machine must. Otherwise an engine that is
        // started again would treat a zombie as a running engine.
        command.args(["sh", "-c", "cat; :"]);
        let holder = hold(&mut command, name, move || super::root::own_root(&shared))?;
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let mounted = |pid: &u32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "sh\n")
            };
            if let Some(init) = child_of(holder.id()).filter(mounted) {
                return Self::open(holder, Some(init));
            }
            if Instant::now() > end {
                return Err(TestbedError::Io(
                    "make a root for a host",
                    io::ErrorKind::TimedOut.into(),
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn open(mut holder: Child, init: Option<u32>) -> Result<Self, TestbedError> {
        let pipe = holder.stdin.take();
        let inside = init.unwrap_or(holder.id());
        let open = |kind: &str| {
            File::open(format!("/proc/{inside}/ns/{kind}"))
                .map_err(|e| TestbedError::Io("open a namespace", e))
        };
        let (network, mounts, uts) = (open("net")?, open("mnt")?, open("uts")?);
        Ok(Self {
            holder,
            _pipe: pipe,
            network,
            mounts,
            uts,
            init,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.init.unwrap_or(self.holder.id())
    }

    /// Runs `work` on a thread in the network namespace.
    pub(super) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, TestbedError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.network, CloneFlags::CLONE_NEWNET)
                    .map_err(|e| TestbedError::Io("enter a namespace", e.into()))?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs in the namespaces, and ends with the thread that starts it.
    pub(super) fn command(&self, program: &str) -> Result<Command, TestbedError> {
        let copy = |file: &File| {
            file.try_clone()
                .map_err(|e| TestbedError::Io("open a namespace", e))
        };
        let namespaces = [
            (copy(&self.network)?, CloneFlags::CLONE_NEWNET),
            (copy(&self.uts)?, CloneFlags::CLONE_NEWUTS),
            (copy(&self.mounts)?, CloneFlags::CLONE_NEWNS),
        ];
        let mut command = Command::new(program);
        // SAFETY: the closure runs between fork and exec, and only makes system calls on values created before the
        // fork. std has no safe function for this: only the caller can know what the closure does.
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

    /// Runs a program in the namespaces that reads `input`.
    pub(super) fn run(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<(), TestbedError> {
        let fault = |e| TestbedError::Io("run a program", e);
        let mut command = self.command(program)?;
        command.args(arguments);
        command.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(fault)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).map_err(fault)?;
        }
        let output = child.wait_with_output().map_err(fault)?;
        printed(program, output).map(drop)
    }

    /// Runs a program in the namespaces, and returns what it prints.
    pub(super) fn output(&self, program: &str, arguments: &[&str]) -> Result<String, TestbedError> {
        let mut command = self.command(program)?;
        let output = command.args(arguments).output();
        let output = output.map_err(|e| TestbedError::Io("run a program", e))?;
        printed(program, output)
    }
}

/// What a program printed, or its messages if it failed.
fn printed(program: &str, output: Output) -> Result<String, TestbedError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let messages = text(&output.stderr);
        Err(TestbedError::Program(program.to_owned(), messages))
    }
}

impl Namespace {
    fn end(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the process that holds the namespaces, inside them.
fn hold(
    command: &mut Command,
    name: &str,
    mut prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Result<Child, TestbedError> {
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let name = name.to_owned();
    // SAFETY: the closure runs between fork and exec. It makes system calls on values created before the fork. The
    // little that it allocates is safe in a forked child, because the C library keeps the allocator consistent. std has
    // no safe function for this: only the caller can know what the closure does.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
            nix::unistd::sethostname(&name)?;
            prepare()
        });
    }
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => TestbedError::NoRights,
        _ => TestbedError::Io("make a namespace", error),
    })
}

/// The first child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Mounts a private `/run` and `/var/lib`, and a `/sys` that shows the own network if the kernel allows it.
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

/// A host on the bridge.
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

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's IPv4 address on the bridge.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// The host's IPv6 address on the bridge. It is the unspecified address in a network without IPv6.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// The process that holds the host's namespaces, for `nsenter`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.namespace.pid()
    }

    pub(super) fn port(&self) -> &str {
        &self.port
    }

    /// Ends everything in the host.
    pub(super) fn end(&mut self) {
        self.namespace.end();
    }

    /// Adds an address to its interface on the bridge.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub fn add_address(&self, address: IpAddr, length: u8) -> Result<(), TestbedError> {
        self.namespace.inside(|| link::add(address, length))?
    }

    /// Runs `work` on a thread in the host's network: the sockets that it opens belong to the host.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, TestbedError> {
        self.namespace.inside(work)
    }

    /// The path, seen from outside, of a file in the host's file system.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.trim_start_matches('/'))
    }

    /// A command that runs in the host. It ends with the thread that starts it, or with the host if the host has a
    /// process namespace.
    ///
    /// # Errors
    /// The namespaces cannot be opened.
    pub fn command(&self, program: &str) -> Result<Command, TestbedError> {
        if let Some(init) = self.namespace.init {
            let mut command = Command::new("nsenter");
            command.arg(format!("--target={init}"));
            command.args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd",
            ]);
            command.args(["--", program]);
            return Ok(command);
        }
        self.namespace.command(program)
    }

    /// Starts a program in the background. Its output is written to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, command: &mut Command, log: &Path) -> Result<Running, TestbedError> {
        Running::start(command, log, self.namespace.init.is_some())
    }
}

/// A program in the background. Dropping this value kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
    /// The child process only entered the host: the program is its child.
    entered: bool,
}

impl Running {
    /// Starts a program whose output is written to `log`.
    pub(super) fn start(
        command: &mut Command,
        log: &Path,
        entered: bool,
    ) -> Result<Self, TestbedError> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(|e| TestbedError::Io("open a log", e))?;
        let copy = file
            .try_clone()
            .map_err(|e| TestbedError::Io("open a log", e))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .map_err(|e| TestbedError::Io("start a program", e))?;
        Ok(Self {
            child,
            log: log.to_owned(),
            entered,
        })
    }

    /// The pid of the program.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let child = self.child.id();
        let end = Instant::now() + Duration::from_secs(5);
        while self.entered && Instant::now() < end {
            if let Some(pid) = child_of(child) {
                return pid;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    /// The output of the program so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// Kills the program.
    pub fn kill(&mut self) {
        if self.entered
            && matches!(self.child.try_wait(), Ok(None))
            && let Ok(pid) = i32::try_from(self.pid())
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGTERM to the program and waits for at most ten seconds. Returns its exit status if it has ended.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        let _ = kill(
            Pid::from_raw(i32::try_from(self.pid()).ok()?),
            Signal::SIGTERM,
        );
        self.wait(Duration::from_secs(10))
    }

    /// Waits until the program has ended, for at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
