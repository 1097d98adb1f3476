//! Which labels the domain of a mesh must not have.
//!
//! The nodes answer all names under this domain themselves and forward none of them. With a public domain a mesh would therefore hide
//! every site under it from all programs of its machines. A mesh needs one label, so the list of the root zone's labels is enough, and
//! the crates with the Public Suffix List (2.5 MB of source) are not needed. The list is a file beside this one. New labels are rare,
//! and one that is missing only makes this check milder.

use super::Label;

/// The labels of the root zone, one a line.
const PUBLIC: &str = include_str!("public_domains.txt");

/// The labels that have a meaning of their own, with the reason. `internal` is not among them, since ICANN reserved it for private
/// networks.
const SPECIAL: [(&str, &str); 8] = [
    (
        "alt",
        "it is reserved for names outside the DNS (RFC 9476), which resolvers do not ask for",
    ),
    ("example", "it is reserved for documentation (RFC 6761)"),
    (
        "invalid",
        "resolvers answer it themselves with an error (RFC 6761)",
    ),
    (
        "local",
        "programs ask for it over multicast DNS (RFC 6762), so they would not ask meshd",
    ),
    (
        "localdomain",
        "many machines have it as the domain of their own name",
    ),
    ("localhost", "programs take it for this machine (RFC 6761)"),
    ("onion", "resolvers must not ask for it (RFC 7686)"),
    (
        "test",
        "it is reserved for tests (RFC 6761), so other software on the machine may answer it",
    ),
];

/// The reason why a label cannot be the domain of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// It is a top-level domain of the Internet.
    #[error(
        "`{0}` is a domain of the Internet, and every site under it would become unreachable for the machines of the mesh; choose a label that is none, such as \"mesh\" or \"internal\""
    )]
    Public(Label),
    /// It has another meaning.
    #[error("`{0}` cannot be used: {1}; choose another label, such as \"mesh\" or \"internal\"")]
    Special(Label, &'static str),
    /// It is a number.
    #[error(
        "`{0}` is a number, and programs take a name that ends in a number for an IPv4 address; choose a label with a letter, such as \"mesh\""
    )]
    Number(Label),
}

/// Checks whether names of a mesh may end in `label`.
///
/// # Errors
/// The names would have another meaning for programs and resolvers.
pub fn check_domain(label: &Label) -> Result<(), DomainError> {
    let text = label.as_str();
    if let Some((_, why)) = SPECIAL.iter().find(|(special, _)| *special == text) {
        return Err(DomainError::Special(label.clone(), why));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DomainError::Number(label.clone()));
    }
    if PUBLIC.lines().any(|public| public == text) {
        return Err(DomainError::Public(label.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), DomainError> {
        check_domain(&Label::parse(text).expect("a label"))
    }

    #[test]
    fn a_mesh_takes_no_domain_that_means_something_else() {
        for public in ["com", "COM", "de", "dev", "zip", "arpa", "xn--p1ai"] {
            assert!(
                matches!(check(public), Err(DomainError::Public(_))),
                "{public}"
            );
        }
        for special in ["local", "localhost", "test", "invalid", "example", "onion"] {
            assert!(
                matches!(check(special), Err(DomainError::Special(..))),
                "{special}"
            );
        }
        assert!(matches!(check("10"), Err(DomainError::Number(_))));
        for free in ["mesh", "internal", "lan", "home", "acme-mesh", "10a"] {
            assert_eq!(check(free), Ok(()), "{free}");
        }
    }

    #[test]
    fn the_list_of_public_domains_is_whole() {
        let labels: Vec<&str> = PUBLIC
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert!(labels.len() > 1400, "{}", labels.len());
        for label in labels {
            let parsed = Label::parse(label).expect("a label");
            assert_eq!(parsed.as_str(), label);
        }
    }
}
