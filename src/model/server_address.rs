//! The address of a server: an IP address, or a host name whose address is looked up again and again.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::authority::MAX_HOST;
use super::public_host::{PublicHost, PublicHostError};
use super::text::printable;

/// A host name of two or more labels, in lower case, such as `db.example.net`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct HostName(PublicHost);

impl HostName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether this is a name under the top-level domain `domain`.
    #[must_use]
    pub fn is_under(&self, domain: &str) -> bool {
        let top = self.as_str().rsplit('.').next();
        top.is_some_and(|top| top.eq_ignore_ascii_case(domain))
    }
}

impl FromStr for HostName {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host = PublicHost::parse(text).map_err(|error| match error {
            PublicHostError::Address(_) => ServerAddressError::Neither(printable(text, MAX_HOST)),
            error => ServerAddressError::Host(error),
        })?;
        match host.wildcard_domain() {
            Some(_) => Err(ServerAddressError::Wildcard(host)),
            None => Ok(Self(host)),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The reason why a text is no [`ServerAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerAddressError {
    /// There is no text.
    #[error(
        "an address cannot be empty; write an IP address such as 10.0.0.5, or a host name such as db.example.net"
    )]
    Empty,
    /// It looks like an IP address and is none.
    #[error(
        "`{0}` is not a whole IP address; write one such as 10.0.0.5, or a host name such as db.example.net"
    )]
    Neither(String),
    /// It is no host name.
    #[error("{}", with_example(.0))]
    Host(PublicHostError),
    /// It stands for many names.
    #[error(
        "`{0}` stands for many names; write the host name of the one server, such as db.example.net"
    )]
    Wildcard(PublicHost),
}

/// The reason with an example of what is right, unless it has one.
fn with_example(why: &PublicHostError) -> String {
    let why = why.to_string();
    if why.contains("such as") {
        return why;
    }
    format!("{why}; write an IP address such as 10.0.0.5, or a host name such as db.example.net")
}

/// The address of a server. It is stored and sent as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerAddress {
    /// An IP address. An IPv4 address is never in its form of IPv6.
    At(IpAddr),
    /// A host name.
    Named(HostName),
}

impl ServerAddress {
    /// The IP address, unless it is a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::At(address) => Some(*address),
            Self::Named(_) => None,
        }
    }

    /// The host name, unless it is an IP address.
    #[must_use]
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::At(_) => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ServerAddressError::Empty);
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::At(address.to_canonical())),
            Err(_) => text.parse::<HostName>().map(Self::Named),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => fmt::Display::fmt(address, f),
            Self::Named(name) => fmt::Display::fmt(name, f),
        }
    }
}

impl Serialize for ServerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServerAddress, String> {
        text.parse()
            .map_err(|error: ServerAddressError| error.to_string())
    }

    #[test]
    fn an_address_is_an_ip_address_or_a_host_name_and_is_the_same_after_it_was_stored() {
        let v4 = IpAddr::V4([10, 0, 0, 5].into());
        for text in ["10.0.0.5", "::ffff:10.0.0.5"] {
            assert_eq!(parse(text), Ok(ServerAddress::At(v4)), "{text}");
        }
        let named = parse("DB.Example.net").expect("a name");
        assert_eq!(named.name().map(HostName::as_str), Some("db.example.net"));
        assert_eq!(named.ip(), None);
        for address in [named, ServerAddress::At(v4)] {
            let json = serde_json::to_string(&address).expect("a text");
            assert_eq!(json, format!("\"{address}\""));
            let again: ServerAddress = serde_json::from_str(&json).expect("it was stored");
            assert_eq!(again, address);
        }
    }

    #[test]
    fn what_is_neither_an_address_nor_a_whole_name_is_refused_with_what_is_right_in_its_place() {
        for (text, part) in [
            ("db", "write the whole host name"),
            ("10.0.0.999", "not a whole IP address"),
            ("10.0.0", "not a whole IP address"),
            ("*.example.net", "write the host name of the one server"),
            ("db.example.net:5432", "a port"),
            ("db.example.net.", "dot"),
            ("", "empty"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_name_is_under_the_domain_that_is_its_last_label() {
        let name: HostName = "db.svc.mesh".parse().expect("a literal");
        assert!(name.is_under("mesh") && name.is_under("MESH"));
        assert!(!name.is_under("esh") && !name.is_under("svc"));
    }
}
