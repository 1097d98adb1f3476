//! What a process and a directory use, as the kernel counts it.

use std::path::Path;
use std::time::{Duration, Instant};

/// What a process used since it was begun to be watched.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Resident octets at most, over those at the beginning.
    pub(crate) memory: i64,
    /// Part of a core, over that without the attack.
    pub(crate) cpu: f64,
    /// Octets of its state directory, over those at the beginning.
    pub(crate) disk: i64,
}

/// A process and its state directory at one moment.
pub(crate) struct Watch {
    pid: u32,
    directory: std::path::PathBuf,
    began: Instant,
    resident: u64,
    cpu: Duration,
    disk: u64,
}

impl Usage {
    /// With the processor time of the same work without the attack taken off.
    pub(crate) fn over(self, quiet: Self) -> Self {
        Self {
            cpu: self.cpu - quiet.cpu,
            ..self
        }
    }
}

impl Watch {
    /// Begins to watch. The kernel forgets the most that was resident before.
    pub(crate) fn begin(pid: u32, directory: &Path) -> Self {
        let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Self {
            pid,
            directory: directory.to_owned(),
            began: Instant::now(),
            resident: status(pid, "VmRSS:"),
            cpu: cpu(pid),
            disk: size(directory),
        }
    }

    pub(crate) fn end(&self) -> Usage {
        let most = status(self.pid, "VmHWM:").max(status(self.pid, "VmRSS:"));
        let seconds = self.began.elapsed().as_secs_f64();
        Usage {
            memory: difference(most, self.resident),
            cpu: cpu(self.pid).saturating_sub(self.cpu).as_secs_f64() / seconds,
            disk: difference(size(&self.directory), self.disk),
        }
    }
}

fn difference(now: u64, before: u64) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX)
}

/// Octets under this key of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Processor time of all threads; those that ended are left out, and the daemons' do not end.
fn cpu(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let nanoseconds = threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// Octets of the files in a directory.
fn size(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory);
    let metadata = files
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| file.metadata().ok());
    metadata
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum()
}

/// Has this thread give way to all others.
pub(crate) fn give_way() {
    // SAFETY: the call takes and gives plain numbers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Asks for as many open files as this process may have; children inherit it.
pub(crate) fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the calls: the first writes to it, the second reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
