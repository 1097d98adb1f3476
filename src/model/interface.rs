//! Names of network interfaces.

use super::text::printable;

/// The longest name of an interface in bytes: the kernel's `IFNAMSIZ` without the terminating null.
const MAX_INTERFACE_NAME: usize = 15;

/// Names that the kernel refuses, since they are directories beside those of the interfaces in /proc/sys/net, and the name of the
/// loopback interface, which every machine has.
const TAKEN: [&str; 3] = ["all", "default", "lo"];

/// The reason why an interface cannot be made with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// It has other characters, or it is too short or too long.
    #[error(
        "`{0}` cannot be the name of an interface: write 1 to 15 letters, digits, `-`, `_` or `.`, with a letter, a digit or `_` first, such as \"mesh0\""
    )]
    Characters(String),
    /// The kernel uses the name itself.
    #[error(
        "`{0}` cannot be the name of an interface, since the kernel uses it itself; write another name, such as \"mesh0\""
    )]
    Taken(String),
}

/// Checks whether meshd may make an interface called `name`.
///
/// # Errors
/// The kernel refuses the name, or the name has another meaning on command lines, in paths or in nftables rules.
pub fn check_interface(name: &str) -> Result<(), InterfaceError> {
    if !is_plain_interface(name) {
        return Err(InterfaceError::Characters(printable(name, 40)));
    }
    if TAKEN.contains(&name) {
        return Err(InterfaceError::Taken(name.to_owned()));
    }
    Ok(())
}

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

    #[test]
    fn an_interface_gets_no_name_that_the_kernel_refuses() {
        for name in ["mesh0", "wg.1", "_m", "a23456789012345"] {
            assert_eq!(check_interface(name), Ok(()), "{name}");
        }
        for name in [
            "mesh/0",
            "mesh 0",
            "mesh:0",
            "mesh%d",
            "",
            "..",
            "a234567890123456",
        ] {
            assert!(
                matches!(check_interface(name), Err(InterfaceError::Characters(_))),
                "{name}"
            );
        }
        for name in ["all", "default", "lo"] {
            assert!(
                matches!(check_interface(name), Err(InterfaceError::Taken(_))),
                "{name}"
            );
        }
        let error = check_interface("a\nb").expect_err("two lines").to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}
