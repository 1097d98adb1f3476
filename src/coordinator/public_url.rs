//! Finds out a URL at which nodes reach this coordinator, if none is configured.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::model::address::is_routable;
use crate::protocol::url::CoordinatorUrl;

/// The URL of the address on which the coordinator listens. If it listens on all addresses, the URL has the address from which this
/// machine reaches others, by IPv4 if it has that. None, if there is no such address.
pub(super) fn guess(listen: SocketAddr) -> Option<CoordinatorUrl> {
    let ip = if listen.ip().is_unspecified() {
        let has_ipv6 = listen.is_ipv6();
        source_address_v4()
            .or_else(|| source_address_v6().filter(|_| has_ipv6))
            .or_else(|| first_address(IpAddr::is_ipv4))
            .or_else(|| first_address(IpAddr::is_ipv6).filter(|_| has_ipv6))?
    } else {
        listen.ip()
    };
    format!("https://{}", SocketAddr::new(ip, listen.port()))
        .parse()
        .ok()
}

/// The destinations here are reserved for documentation (RFC 5737).
fn source_address_v4() -> Option<IpAddr> {
    source_address("0.0.0.0:0", "192.0.2.1:9")
}

/// The same for IPv6 (RFC 3849).
fn source_address_v6() -> Option<IpAddr> {
    source_address("[::]:0", "[2001:db8::1]:9")
}

/// The source address that the kernel selects. To connect a UDP socket sends nothing.
fn source_address(any: &str, destination: &str) -> Option<IpAddr> {
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(destination).ok()?;
    let address = socket.local_addr().ok()?.ip();
    is_routable(address).then_some(address)
}

/// The first address of an interface that others may reach, for machines without a default route.
fn first_address(of_family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let mut addresses = nix::ifaddrs::getifaddrs().ok()?.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    addresses.find(|address| of_family(address) && is_routable(*address))
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
        for listen in ["0.0.0.0:7443", "[::]:7443"] {
            if let Some(url) = guess(listen.parse().expect("a literal")) {
                let ip: IpAddr = url.host().parse().expect("an address");
                assert!(!ip.is_unspecified() && !ip.is_loopback(), "{url}");
                assert_eq!(url.port(), 7443);
            }
        }
    }

    #[test]
    fn a_coordinator_that_listens_on_ipv4_alone_has_no_url_of_ipv6() {
        if let Some(url) = guess("0.0.0.0:7443".parse().expect("a literal")) {
            assert!(!url.host().contains(':'), "{url}");
        }
    }
}
