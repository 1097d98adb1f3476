//! The rights of this process.

/// The number of the capability that making network devices needs (capabilities(7)).
const CAP_NET_ADMIN: u32 = 12;

/// Whether this process may make network devices. It is assumed where the kernel does not show its capabilities.
#[must_use]
pub fn has_net_admin() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective(&status).is_none_or(|capabilities| capabilities & (1 << CAP_NET_ADMIN) != 0)
}

/// The effective capabilities in the text of /proc/PID/status.
fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The name of the user with this id, or the id where it has none.
#[must_use]
pub fn user_name(id: u32) -> String {
    let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(id));
    found
        .ok()
        .flatten()
        .map_or_else(|| id.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_of_a_process() {
        let status = "Name:\tmeshd\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001400\n";
        assert_eq!(effective(status), Some(0x1400));
        for odd in ["", "CapEff:", "CapEff:\tzz"] {
            assert_eq!(effective(odd), None, "{odd}");
        }
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(u32::MAX - 7), (u32::MAX - 7).to_string());
    }
}
