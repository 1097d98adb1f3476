//! Host names of sites: the names by which an ingress offers a service to the world outside the mesh.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

use super::authority::MAX_HOST;
use super::name::{Label, LabelError};
use super::text::printable;

/// The label in place of which any other label may stand.
const WILDCARD: &str = "*";

/// The host name of a site, such as `shop.example.com`; or a wildcard such as `*.example.com`, which stands for all names that have one
/// label in place of the asterisk. It has only letters, digits, hyphens and dots besides the asterisk, so no text of a configuration gets
/// another meaning by it. It is stored in lower case, because names are compared without case (RFC 4343).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PublicHost(String);

/// The reason why a text is not a [`PublicHost`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicHostError {
    #[error("a host name cannot be empty")]
    Empty,
    #[error("the host name has {0} bytes; {MAX_HOST} are the most")]
    TooLong(usize),
    /// The text has more than a name.
    #[error(
        "`{0}` has a scheme, a port or a path; write the host name alone, such as `shop.example.com`"
    )]
    NotOnlyHost(String),
    /// A certificate and a route are for a name.
    #[error("`{0}` is an address; write a host name, such as `shop.example.com`")]
    Address(String),
    /// An internationalized name in another form than the one on the wire (RFC 5890).
    #[error(
        "`{0}` has a character outside of ASCII; write the name as it is in the DNS, where each such label begins with `xn--`"
    )]
    NotAscii(String),
    /// The asterisk is not a whole label, not the first one, or has no domain behind it.
    #[error(
        "`{0}` has a `*` in the wrong place; it stands for the whole first label, with a domain of two labels or more behind it, such as `*.example.com`"
    )]
    Wildcard(String),
    /// A single label is no name of the public DNS.
    #[error("`{0}` is one label; write the whole host name, such as `{0}.example.com`")]
    OneLabel(String),
    /// Two dots in a row, or a dot at an end.
    #[error("`{0}` begins or ends with a dot, or has two dots in a row; write the name without it")]
    EmptyLabel(String),
    /// Labels with two hyphens in the third and fourth place are reserved (RFC 5891 section 4.2.3.1).
    #[error(
        "`{0}` has the label `{1}`, which is reserved: only `xn--` with an encoded name behind it has hyphens in that place"
    )]
    Reserved(String, String),
    /// A label breaks the rules of host names.
    #[error("`{0}`: {1}")]
    Label(String, LabelError),
}

impl PublicHost {
    /// Parses a host name, and changes upper case to lower case.
    ///
    /// # Errors
    /// The error says what is wrong, and what to write in its place.
    pub fn parse(text: &str) -> Result<Self, PublicHostError> {
        let shown = || printable(text, MAX_HOST);
        if text.is_empty() {
            return Err(PublicHostError::Empty);
        }
        if text.len() > MAX_HOST {
            return Err(PublicHostError::TooLong(text.len()));
        }
        if text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err(PublicHostError::Address(shown()));
        }
        if text.contains([':', '/', '?', '#', '@']) {
            return Err(PublicHostError::NotOnlyHost(shown()));
        }
        if !text.is_ascii() {
            return Err(PublicHostError::NotAscii(shown()));
        }
        let (is_wildcard, name) = match text.split_once('.') {
            Some((WILDCARD, name)) => (true, name),
            _ => (false, text),
        };
        if name.contains(WILDCARD) {
            return Err(PublicHostError::Wildcard(shown()));
        }
        let labels: Vec<&str> = name.split('.').collect();
        if labels.iter().any(|label| label.is_empty()) {
            return Err(PublicHostError::EmptyLabel(shown()));
        }
        for label in &labels {
            Label::parse(label).map_err(|error| PublicHostError::Label(shown(), error))?;
            if is_reserved(label) {
                return Err(PublicHostError::Reserved(
                    shown(),
                    printable(label, MAX_HOST),
                ));
            }
        }
        match labels.as_slice() {
            [_] if is_wildcard => return Err(PublicHostError::Wildcard(shown())),
            [_] => return Err(PublicHostError::OneLabel(shown())),
            // Browsers take a name whose last label is a number for an IPv4 address.
            [.., last] if last.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(PublicHostError::Address(shown()));
            }
            _ => {}
        }
        Ok(Self(text.to_ascii_lowercase()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain behind the asterisk, if this is a wildcard.
    #[must_use]
    pub fn wildcard_domain(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

/// Whether a label has hyphens in its third and fourth place and is no label of an internationalized name.
fn is_reserved(label: &str) -> bool {
    let prefix = label.get(..4).unwrap_or_default();
    prefix.ends_with("--") && !prefix.eq_ignore_ascii_case("xn--")
}

impl fmt::Display for PublicHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PublicHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for PublicHost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_host_name_has_nothing_in_it_that_a_configuration_could_take_for_something_else(
            text in "(\\*\\.)?([a-zA-Z0-9-]{1,4}\\.){1,3}[a-zA-Z`{}* -]{1,4}|\\PC{0,40}"
        ) {
            if let Ok(host) = PublicHost::parse(&text) {
                let domain = host.wildcard_domain().unwrap_or(host.as_str());
                let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
                prop_assert!(domain.chars().all(is_plain), "{host}");
                prop_assert_eq!(PublicHost::parse(host.as_str()), Ok(host));
            }
        }
    }

    #[test]
    fn a_host_name_is_in_lower_case_and_a_wildcard_stands_for_one_label() {
        for (text, host, domain) in [
            ("Shop.Example.COM", "shop.example.com", None),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
            ("1.2.3.example", "1.2.3.example", None),
            ("*.Example.com", "*.example.com", Some("example.com")),
        ] {
            let parsed = PublicHost::parse(text).expect(text);
            assert_eq!(
                (parsed.as_str(), parsed.wildcard_domain()),
                (host, domain),
                "{text}"
            );
        }
        let longest = format!("{}.example", vec!["a".repeat(60); 4].join("."));
        assert!(PublicHost::parse(&longest).is_ok(), "{}", longest.len());
    }

    #[test]
    fn what_is_no_host_name_is_answered_with_what_is_right_in_its_place() {
        let says = |text: &str| {
            let error = PublicHost::parse(text).expect_err(text);
            error.to_string()
        };
        for (text, why) in [
            ("", "cannot be empty"),
            ("https://shop.example.com", "write the host name alone"),
            ("shop.example.com:443", "write the host name alone"),
            ("shop.example.com/cart", "write the host name alone"),
            ("me@shop.example.com", "write the host name alone"),
            ("203.0.113.7", "is an address"),
            ("[2001:db8::1]", "is an address"),
            ("2001:db8::1", "is an address"),
            ("shop.0x7f.1", "is an address"),
            ("b\u{fc}cher.example", "begins with `xn--`"),
            ("\u{ff0a}.example.com", "begins with `xn--`"),
            ("*", "in the wrong place"),
            ("*.com", "in the wrong place"),
            ("*.*.example.com", "in the wrong place"),
            ("a*.example.com", "in the wrong place"),
            ("shop.*.com", "in the wrong place"),
            ("shop", "`shop.example.com`"),
            ("shop.example.com.", "dot"),
            (".example.com", "dot"),
            ("shop..com", "dot"),
            ("*.", "dot"),
            ("a_b.example.com", "`_`"),
            ("-a.example.com", "hyphen"),
            ("shop.example.com`) || Host(`x.example", "letters a-z"),
            ("{env.HOME}.example.com", "letters a-z"),
            ("shop example.com", "letters a-z"),
            ("sh\nop.example.com", "letters a-z"),
            ("ab--cd.example.com", "is reserved"),
            ("xn--.example.com", "hyphen"),
        ] {
            let error = says(text);
            assert!(error.contains(why), "{text:?}: {error}");
        }
        assert!(says(&"a.".repeat(127)).contains("254 bytes"));
        assert!(says(&format!("{}.example", "a".repeat(64))).contains("at most 63"));
    }
}
