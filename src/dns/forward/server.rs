//! One upstream: where it is, and who it has to prove to be, if it is asked over TLS.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use rustls_pki_types::ServerName;

/// The port of DNS.
const PORT: u16 = 53;
/// The port of DNS over TLS (RFC 7858 section 3.1).
const TLS_PORT: u16 = 853;

/// An upstream resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The address and port of the resolver.
    pub address: SocketAddr,
    /// The name that the resolver has to prove over TLS (RFC 8310 section 5, the strict profile). Without a name it is asked
    /// without encryption.
    pub name: Option<ServerName<'static>>,
}

/// The text does not name an upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no upstream: write `192.0.2.53`, `192.0.2.53:5353`, or `tls://dns.example.net@192.0.2.53` for DNS over TLS"
)]
pub struct ServerError(String);

impl From<SocketAddr> for Server {
    fn from(address: SocketAddr) -> Self {
        let name = None;
        Self { address, name }
    }
}

impl FromStr for Server {
    type Err = ServerError;

    /// `ADDRESS`, `ADDRESS:PORT`, or the same behind `tls://` or `tls://NAME@`. Without a name the certificate has to be
    /// one for the address.
    fn from_str(text: &str) -> Result<Self, ServerError> {
        let error = || ServerError(text.chars().take(80).collect());
        let Some(rest) = text.strip_prefix("tls://") else {
            return Ok(address(text, PORT).ok_or_else(error)?.into());
        };
        let (name, at) = match rest.rsplit_once('@') {
            Some((name, at)) => (Some(name), at),
            None => (None, rest),
        };
        let address = address(at, TLS_PORT).ok_or_else(error)?;
        let name = match name {
            Some(name) => ServerName::try_from(name.to_owned()).map_err(|_| error())?,
            None => ServerName::from(address.ip()),
        };
        let name = Some(name);
        Ok(Self { address, name })
    }
}

fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip = bare.unwrap_or(text).parse::<IpAddr>();
    ip.map(|ip| SocketAddr::new(ip, port))
        .or_else(|_| text.parse())
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_an_address_with_a_port_or_without_and_over_tls_with_a_name() {
        for (text, address, name) in [
            ("192.0.2.53", "192.0.2.53:53", None),
            ("192.0.2.53:5353", "192.0.2.53:5353", None),
            ("2001:db8::53", "[2001:db8::53]:53", None),
            ("[2001:db8::53]:5353", "[2001:db8::53]:5353", None),
            (
                "tls://dns.example.net@192.0.2.53",
                "192.0.2.53:853",
                Some("dns.example.net"),
            ),
            (
                "tls://dns.example.net@[2001:db8::53]:8853",
                "[2001:db8::53]:8853",
                Some("dns.example.net"),
            ),
            (
                "tls://[2001:db8::53]",
                "[2001:db8::53]:853",
                Some("2001:db8::53"),
            ),
            ("tls://192.0.2.53", "192.0.2.53:853", Some("192.0.2.53")),
        ] {
            let server: Server = text.parse().expect(text);
            assert_eq!(server.address.to_string(), address, "{text}");
            assert_eq!(
                server.name.map(|n| n.to_str().into_owned()).as_deref(),
                name,
                "{text}"
            );
        }
        for text in [
            "",
            "dns.example.net",
            "tls://",
            "tls://dns.example.net",
            "tls://@192.0.2.53",
            "https://192.0.2.53",
            "192.0.2.53:0x35",
            "192.0.2.53:70000",
        ] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
