//! How long the kernel lets a data thread run before another thread's turn.

/// Nanoseconds. The kernel's own slice is 0.7 to 2.8 ms by the number of cores, and the thread that waits longest for a
/// slice of its own goes first: with a longer one than the programs that read what is delivered, a data thread lets them empty
/// their sockets before it delivers more. With 64-octet datagrams at the most that two cores carry, a third more of them
/// are read than with the kernel's slice; how soon a thread that slept gets its turn is not changed measurably.
const SLICE: u64 = 3_000_000;

/// Gives the calling thread its slice, where the kernel has such slices (Linux 6.12) and the administrator has not chosen
/// another scheduling policy.
pub(super) fn request_longer_slice() {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: a sched_attr of zeros is a valid value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer and size describe `attributes`, which outlives both calls; 0 is the calling thread.
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
