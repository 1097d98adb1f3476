//! Runs programs as root, or as root of a user namespace, and creates the root directories of hosts.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid, pivot_root};

use super::TestbedError;

/// The environment variable that tells the second run of a program that it is the second.
const INSIDE: &str = "MESHD_LAB_INSIDE";
/// The environment variable with a directory that replaces the machine's files as the root file system of hosts, so that
/// another engine than the machine's can be tested.
const LOWER: &str = "MESHD_LAB_ROOT";

/// Runs `body` as root. Without the rights, this runs the whole program again as root of a user namespace, where the
/// same call runs `body`, and returns the program's exit status.
///
/// # Errors
/// There are neither root rights nor user namespaces.
pub fn as_root(body: impl FnOnce() -> u8) -> Result<u8, TestbedError> {
    if geteuid().is_root() {
        return Ok(body());
    }
    if std::env::var_os(INSIDE).is_some() {
        return Err(TestbedError::NoRights);
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(INSIDE, "1");
    enter(&mut command);
    let status = command.status().map_err(|_| TestbedError::NoRights)?;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Whether [`as_root`] would work.
#[must_use]
pub fn is_possible() -> bool {
    if geteuid().is_root() {
        return true;
    }
    let mut command = Command::new("true");
    enter(&mut command);
    command.status().is_ok_and(|status| status.success())
}

/// Lets `command` start as root of a user namespace of its own.
fn enter(command: &mut Command) {
    let (user, group) = (geteuid(), getegid());
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ];
    // SAFETY: the closure runs between fork and exec. It makes system calls on values created before the fork, and
    // allocates nothing except what opening a file needs on the stack. std has no safe function for this: only the
    // caller knows that the closure is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWUSER)?;
            for (path, text) in &maps {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(path)?
                    .write_all(text.as_bytes())?;
            }
            io::Result::Ok(())
        });
    }
}

/// The directories in which container engines keep their settings and layers.
const ENGINE_FOLDERS: &[&str] = &[
    "etc/docker",
    "var/lib/docker",
    "var/lib/containerd",
    "var/lib/containers",
];

/// Makes an overlay of the machine's files, with all changes in memory, the root of this process. The process
/// must have a mount namespace of its own.
pub(super) fn own_root(shared: &[PathBuf]) -> io::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    memory("/run", "mode=755")?;
    for path in ["/run/changes", "/run/work", "/run/root"] {
        std::fs::create_dir(path)?;
    }
    let below = std::env::var(LOWER).unwrap_or_else(|_| "/".into());
    let layers = format!("lowerdir={below},upperdir=/run/changes,workdir=/run/work");
    mount(
        Some("overlay"),
        "/run/root",
        Some("overlay"),
        MsFlags::empty(),
        Some(layers.as_str()),
    )?;
    let root = Path::new("/run/root");
    let engine = ["run"].iter().chain(ENGINE_FOLDERS);
    for path in ["proc", "sys", "dev", "tmp"].iter().chain(engine) {
        std::fs::create_dir_all(root.join(path))?;
    }
    mount(
        Some("proc"),
        &root.join("proc"),
        Some("proc"),
        MsFlags::empty(),
        none,
    )?;
    mount(
        Some("sysfs"),
        &root.join("sys"),
        Some("sysfs"),
        MsFlags::empty(),
        none,
    )?;
    let shown = [PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/dev")];
    for path in shown.iter().chain(shared) {
        let Ok(below) = path.strip_prefix("/") else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let there = root.join(below);
        // The host has temporary files of its own, except for what is shared.
        if !there.exists() {
            std::fs::create_dir_all(&there)?;
        }
        mount(
            Some(path.as_path()),
            &there,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )?;
    }
    // The engine's layers cannot be on an overlay.
    for path in ["run"].iter().chain(ENGINE_FOLDERS) {
        memory(&root.join(path), "mode=755")?;
    }
    // If systemd-resolved is installed, the file is a link to a file that does not exist here.
    let resolv_conf = root.join("etc/resolv.conf");
    let _ = std::fs::remove_file(&resolv_conf);
    std::fs::write(resolv_conf, "")?;
    std::env::set_current_dir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

fn memory<P: nix::NixPath + ?Sized>(path: &P, options: &str) -> io::Result<()> {
    let kind = Some("tmpfs");
    Ok(mount(kind, path, kind, MsFlags::empty(), Some(options))?)
}
