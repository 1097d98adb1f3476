//! Names of network interfaces.

/// The longest name of an interface in bytes: the kernel's `IFNAMSIZ` without the terminating null.
const MAX_INTERFACE_NAME: usize = 15;

/// Whether `name` is the name of an interface that needs no quoting in nftables rules, in paths and on command lines. The kernel
/// allows more characters, but quotes, wildcards, slashes and a leading dot or hyphen have another meaning there.
#[must_use]
pub fn is_plain_interface(name: &str) -> bool {
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_need_no_quoting_are_plain() {
        for plain in [
            "lo",
            "br-0123456789ab",
            "veth1.2",
            "mesh0",
            "a23456789012345",
        ] {
            assert!(is_plain_interface(plain), "{plain}");
        }
        for other in [
            "",
            ".",
            "..",
            "-x",
            "a b",
            "a/b",
            "a\"b",
            "a*",
            "a234567890123456",
            "ü",
        ] {
            assert!(!is_plain_interface(other), "{other}");
        }
    }
}
