//! The URL of a coordinator: `https://host:port`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::authority;

/// The default port of a coordinator.
pub const DEFAULT_PORT: u16 = 7443;

/// The URL of a coordinator. It has the scheme `https`, a host and a port, and nothing else.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoordinatorUrl {
    host: String,
    port: u16,
}

/// The reason why a text is not a coordinator URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It has another scheme, or none.
    #[error("`{0}` is not a coordinator URL: it must start with https://")]
    Scheme(String),
    /// The host or the port is not valid.
    #[error(
        "`{0}` is not a coordinator URL: write https://HOST:PORT, such as https://coord.example.com:7443"
    )]
    Authority(String),
}

impl CoordinatorUrl {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The text `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn authority(&self) -> String {
        authority::join(&self.host, Some(self.port))
    }
}

impl std::str::FromStr for CoordinatorUrl {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || {
            text.chars()
                .take(80)
                .map(|c| if c.is_control() { '?' } else { c })
                .collect::<String>()
        };
        let authority = text
            .strip_prefix("https://")
            .ok_or_else(|| UrlError::Scheme(shown()))?;
        let bad = || UrlError::Authority(shown());
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        // The length is written in one byte of a token.
        if authority.len() > 255 {
            return Err(bad());
        }
        let (host, port) = authority::split(authority).ok_or_else(bad)?;
        Ok(Self {
            host: host.to_owned(),
            port: port.unwrap_or(DEFAULT_PORT),
        })
    }
}

impl fmt::Display for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

impl fmt::Debug for CoordinatorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CoordinatorUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CoordinatorUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_read_and_written() {
        for (text, authority) in [
            ("https://coord.example.com:7443", "coord.example.com:7443"),
            ("https://coord.example.com/", "coord.example.com:7443"),
            ("https://192.0.2.1:1", "192.0.2.1:1"),
            ("https://[2001:db8::1]:9", "[2001:db8::1]:9"),
        ] {
            assert_eq!(
                text.parse::<CoordinatorUrl>().map(|u| u.authority()),
                Ok(authority.to_owned())
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "http://a:1",
            "https://",
            "https://a:0",
            "https://a:b",
            "https://a/b",
            "https://[::1",
            "https://a b",
        ] {
            assert!(text.parse::<CoordinatorUrl>().is_err(), "{text}");
        }
    }
}
