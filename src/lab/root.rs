//! Root, or the next best thing: root of a user namespace.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::LabError;

/// Says to the second run of a program that it is the second.
const INSIDE: &str = "MESHD_LAB_INSIDE";

/// Runs `body` as root. Without the rights, runs the whole program again as root of a user namespace, where this call
/// runs `body`, and gives its exit status.
///
/// # Errors
/// There are neither the rights nor user namespaces.
pub fn as_root(body: impl FnOnce() -> u8) -> Result<u8, LabError> {
    if geteuid().is_root() {
        return Ok(body());
    }
    if std::env::var_os(INSIDE).is_some() {
        return Err(LabError::NoRights);
    }
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(INSIDE, "1");
    enter(&mut command);
    let status = command.status().map_err(|_| LabError::NoRights)?;
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

/// Makes `command` start as root of a user namespace of its own.
fn enter(command: &mut Command) {
    let (user, group) = (geteuid(), getegid());
    let maps = [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ];
    // SAFETY: the closure makes system calls only, on values made before the fork; it allocates nothing but what
    // opening a file needs on the stack.
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
