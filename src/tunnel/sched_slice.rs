//! The time slice of the data threads: how long the kernel's scheduler lets one run before it runs another thread.

/// The slice in nanoseconds. The kernel's own slice is 0.7 to 2.8 ms, depending on the number of cores. The scheduler prefers
/// the waiting thread with the earliest deadline, and a longer slice makes the deadline later. So programs that read
/// from the tunnel empty their sockets before a data thread delivers more. With 64-byte datagrams at the highest rate
/// that two cores can carry, programs read a third more of them than with the kernel's slice. The delay until a thread runs
/// after it slept does not change measurably.
const SLICE: u64 = 3_000_000;

/// Requests the slice for the calling thread. Does nothing if the kernel has no such slices (before Linux 6.12), or if the
/// administrator chose another scheduling policy.
pub(super) fn request_longer_slice() {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the pointer and the size describe `attributes`, which outlives both calls; 0 is the calling thread. No library
    // has these calls: glibc has no wrappers, and nix has none.
    let done = unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) == 0
            && attributes.sched_policy == libc::SCHED_OTHER as u32
            && {
                attributes.sched_runtime = SLICE;
                attributes.size = size;
                libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0
            }
    };
    tracing::debug!(done, "asked for a longer time slice");
}
