//! The memory and processor time of a process and the size of a directory, as the kernel counts them.

use std::path::Path;
use std::time::{Duration, Instant};

/// The resources that a process used during a measurement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// The greatest resident size in bytes, above that at the beginning.
    pub(crate) memory: i64,
    /// The processor time as a part of one core.
    pub(crate) cpu: f64,
    /// The size in bytes of its state directory, above that at the beginning.
    pub(crate) disk: i64,
}

/// A process and its state directory at the beginning of a measurement.
pub(crate) struct Watch {
    pid: u32,
    directory: std::path::PathBuf,
    began: Instant,
    resident: u64,
    cpu: Duration,
    disk: u64,
}

impl Usage {
    /// Subtracts the processor time for the same work without the attack.
    pub(crate) fn over(self, quiet: Self) -> Self {
        Self {
            cpu: self.cpu - quiet.cpu,
            ..self
        }
    }
}

impl Watch {
    /// Begins a measurement, and resets the kernel's peak of the resident size.
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

/// The value in bytes of this key of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The processor time of all running threads. The threads of the daemons do not end, so none is missed.
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

/// The size in bytes of the files in a directory.
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

/// Gives this thread the lowest priority.
pub(crate) fn give_way() {
    // SAFETY: the arguments and the result are plain numbers. 0 stands for the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Raises the limit of open files as far as this process may. Child processes inherit the limit.
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
