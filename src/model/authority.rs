//! The host and the port in a URL (RFC 3986 section 3.2).

use std::net::Ipv6Addr;

/// The maximum length of a host name in bytes (RFC 1035 section 2.3.4, without the length bytes of the first and the last label).
pub(super) const MAX_HOST: usize = 253;

/// Splits `host`, `host:port`, `[address]` or `[address]:port`. An IPv6 address is returned without its brackets. None if the text has
/// another form, or the port is 0.
#[must_use]
pub fn split(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
            let is_host = (1..=MAX_HOST).contains(&host.len()) && host.chars().all(is_plain);
            (is_host.then_some(host)?, port)
        }
    };
    if port.is_empty() {
        return Some((host, None));
    }
    let port = port.strip_prefix(':')?.parse().ok();
    Some((host, Some(port.filter(|port| *port != 0)?)))
}

/// Writes what [`split`] reads.
#[must_use]
pub fn join(host: &str, port: Option<u16>) -> String {
    let mut text = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    if let Some(port) = port {
        text.push_str(&format!(":{port}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_split_and_joined() {
        for (text, host, port) in [
            ("a.example", "a.example", None),
            ("a-b_c.example:7443", "a-b_c.example", Some(7443)),
            ("192.0.2.1:1", "192.0.2.1", Some(1)),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("[2001:db8::1]:65535", "2001:db8::1", Some(65535)),
        ] {
            assert_eq!(split(text), Some((host, port)));
            assert_eq!(join(host, port), text);
        }
        let long = "a".repeat(MAX_HOST + 1);
        for text in [
            "", ":1", "a:", "a:0", "a:65536", "a:x", "a:1:2", "::1", "[::1", "[::1]1", "[a]:1",
            "a b", "u@a", "a/b", &long,
        ] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
