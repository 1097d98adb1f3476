//! CPU time and memory as the kernel counts them (proc(5)).

use std::fs;
use std::time::Duration;

use meshd::testbed::Running;

/// Ticks a second of `/proc/stat`.
fn ticks_per_second() -> f64 {
    // SAFETY: reads a constant of the system.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) as f64 }
}

/// CPU seconds that the whole machine has been busy, and those the host of a virtual machine withheld.
pub(crate) fn machine_cpu() -> (f64, f64) {
    let text = fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let fields: Vec<f64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1))
        .filter_map(|field| field.parse().ok())
        .collect();
    let [user, nice, system, _, _, irq, softirq, steal] = *fields
        .first_chunk()
        .expect("the first line has eight figures or more");
    let second = ticks_per_second();
    (
        (user + nice + system + irq + softirq) / second,
        steal / second,
    )
}

/// CPU time of all threads of `process`, to the nanosecond.
pub(crate) fn process_cpu(process: &Running) -> Duration {
    let threads = fs::read_dir(format!("/proc/{}/task", process.pid())).expect("it runs");
    let nanoseconds = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// Resident memory of `process` in KiB.
pub(crate) fn resident_kib(process: &Running) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("a process with memory")
}
