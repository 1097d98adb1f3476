//! Finds out a URL at which nodes reach this coordinator, if none is configured.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::protocol::url::CoordinatorUrl;

/// The URL of the address on which the coordinator listens. If it listens on all addresses, the URL has the address from which this
/// machine reaches others. None, if there is no such address.
pub(super) fn guess(listen: SocketAddr) -> Option<CoordinatorUrl> {
    let ip = if listen.ip().is_unspecified() {
        source_address().or_else(first_address)?
    } else {
        listen.ip()
    };
    format!("https://{}", SocketAddr::new(ip, listen.port()))
        .parse()
        .ok()
}

/// The source address that the kernel selects. To connect a UDP socket sends nothing. The destination is reserved for documentation
/// (RFC 5737).
fn source_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The first address of an interface, for machines without a default route.
fn first_address() -> Option<IpAddr> {
    nix::ifaddrs::getifaddrs()
        .ok()?
        .filter_map(|entry| entry.address?.as_sockaddr_in().map(|a| a.ip()))
        .find(|ip| !ip.is_loopback() && !ip.is_link_local())
        .map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_listened_on_is_the_one_to_reach() {
        for (listen, url) in [
            ("192.0.2.7:7443", "https://192.0.2.7:7443"),
            ("[2001:db8::7]:1", "https://[2001:db8::7]:1"),
        ] {
            let guessed = guess(listen.parse().expect("a literal"));
            assert_eq!(guessed.map(|u| u.to_string()), Some(url.to_owned()));
        }
    }

    #[test]
    fn all_addresses_are_none_to_reach() {
        if let Some(url) = guess("0.0.0.0:7443".parse().expect("a literal")) {
            assert_ne!(url.host(), "0.0.0.0");
            assert_eq!(url.port(), 7443);
        }
    }
}
