//! The limits of the operating system on this process.

/// Raises the limit of open files as far as permitted, up to `most`. Returns the limit.
///
/// Each connected node uses one file descriptor. The usual soft limit of 1024 is low only for programs that use `select`.
pub(super) fn raise_open_files(most: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives the call, which only writes to it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let wanted = limit.rlim_max.min(most).max(limit.rlim_cur);
    let raised = libc::rlimit {
        rlim_cur: wanted,
        rlim_max: limit.rlim_max,
    };
    // SAFETY: `raised` is a valid rlimit that outlives the call, which only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        wanted
    } else {
        limit.rlim_cur
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_never_lowered() {
        let first = raise_open_files(4096);
        assert!(first >= 256, "{first}");
        assert_eq!(raise_open_files(1), first);
    }
}
