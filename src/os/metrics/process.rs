//! What this process costs the machine, under the names that all clients of Prometheus use.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use super::page::MetricsPage;
use crate::os::clock;

/// Notes the time as the start of the process, at the first call.
pub(super) fn started() -> SystemTime {
    static STARTED: OnceLock<SystemTime> = OnceLock::new();
    *STARTED.get_or_init(clock::wall)
}

/// The metrics of this process. What the kernel does not tell is left out.
#[must_use]
pub fn text() -> String {
    let mut page = MetricsPage::new("process_");
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let spent = usage.user_time() + usage.system_time();
        let help = "CPU time spent in user and system mode.";
        let seconds = spent.num_microseconds() as f64 / 1e6;
        page.counter("cpu_seconds_total", help, seconds);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the directory that is read.
        let open = files.count().saturating_sub(1);
        page.gauge("open_fds", "Open file descriptors.", open);
    }
    // The system call for this limit is the one that raises it, which the units forbid.
    let limits = std::fs::read_to_string("/proc/self/limits");
    if let Some(most) = limits.ok().as_deref().and_then(max_open_files) {
        let help = "The maximum number of open file descriptors.";
        page.gauge("max_fds", help, most);
    }
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        if let Some(bytes) = memory(&status, "VmSize:") {
            page.gauge("virtual_memory_bytes", "Virtual memory.", bytes);
        }
        if let Some(bytes) = memory(&status, "VmRSS:") {
            page.gauge("resident_memory_bytes", "Memory in use.", bytes);
        }
    }
    if let Ok(since) = started().duration_since(UNIX_EPOCH) {
        let help = "The time at which the process started.";
        page.gauge("start_time_seconds", help, since.as_secs_f64());
    }
    page.into_text()
}

/// The limit in force in a line of /proc/self/limits, such as `Max open files   1024   524288   files` (proc_pid_limits(5)).
fn max_open_files(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The bytes in a line of /proc/self/status, such as `VmRSS:    5120 kB` (proc_pid_status(5)).
fn memory(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_all_the_standard_metrics() {
        let text = text();
        for name in [
            "cpu_seconds_total",
            "open_fds",
            "max_fds",
            "virtual_memory_bytes",
            "resident_memory_bytes",
            "start_time_seconds",
        ] {
            let start = format!("process_{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&start));
            let value: f64 = value.expect(name).parse().expect("a number");
            assert!(value > 0.0, "{name}: {value}");
        }
    }

    #[test]
    fn memory_is_in_bytes_and_a_line_of_another_form_is_left_out() {
        let status = "Name:\tmeshd\nVmSize:\t   20480 kB\nVmRSS:\t  5120 MB\n";
        assert_eq!(memory(status, "VmSize:"), Some(20_971_520));
        assert_eq!(memory(status, "VmRSS:"), None);
        assert_eq!(memory(status, "VmSwap:"), None);
    }

    #[test]
    fn the_limit_of_open_files_is_the_one_in_force() {
        let limits =
            "Limit   Soft Limit  Hard Limit  Units\nMax open files   1024   524288   files\n";
        assert_eq!(max_open_files(limits), Some(1024));
        assert_eq!(
            max_open_files("Max open files unlimited unlimited files"),
            None
        );
    }
}
