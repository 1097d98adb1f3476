//! The limits of the operating system on this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files as far as permitted, up to `most`. Returns the limit.
///
/// Each connected node uses one file descriptor. The usual soft limit of 1024 is low only for programs that use `select`.
pub(super) fn raise_open_files(most: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let wanted = hard.min(most).max(soft);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
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
