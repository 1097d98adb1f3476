//! The texts of `to`: a selector, and the ports behind it.

use crate::model::{Label, Protocol};
use crate::policy::error::printable;
use crate::policy::ports::{Asked, PortSet};
use crate::policy::rules::Ports;
use crate::policy::selector::PREFIXES;

/// Words that people write before a colon although no selector begins with them. Such a word is a service only if the port after the
/// colon is a number.
const WRONG_PREFIXES: [&str; 12] = [
    "tags", "nodes", "projects", "group", "groups", "service", "services", "svc", "name", "host",
    "ip", "cidr",
];

/// The words with which selectors of later versions of the language begin.
const LATER_PREFIXES: [&str; 2] = ["guest", "route"];

/// Takes the ports off a text: `node:web-1:80` becomes `node:web-1` and `80`.
pub(super) fn split(text: &str) -> (&str, Option<&str>) {
    let first = text.split_once(':').map(|(first, _)| first);
    // Before guests and networks had selectors, `route:80` was port 80 of a service called route, and it still is.
    let is_service = |first: &&str| {
        let port = text.get(first.len() + 1..).unwrap_or_default();
        let is_port = port.starts_with(|c: char| c.is_ascii_digit()) && ports(port).is_ok();
        LATER_PREFIXES.contains(first) && is_port
    };
    let prefix = first.filter(|first| PREFIXES.contains(first) && !is_service(first));
    let skipped = prefix.map_or(0, |prefix| prefix.len() + 1);
    let rest = text.get(skipped..).unwrap_or_default();
    let Some(colon) = rest.find(':').map(|at| skipped + at) else {
        return (text, None);
    };
    let selector = text.get(..colon).unwrap_or_default();
    let ports = text.get(colon + 1..).unwrap_or_default();
    let is_number = ports.starts_with(|c: char| c.is_ascii_digit());
    if WRONG_PREFIXES.contains(&selector) && !is_number {
        return (text, None);
    }
    (selector, Some(ports))
}

/// Parses what stands behind the colon: `80`, `8000-8100`, `53/udp`, `icmp`, or the name of a port.
pub(super) fn ports(text: &str) -> Result<Ports, String> {
    let shown = printable(text);
    if let Some(odd) = text.chars().find(|c| !c.is_ascii()) {
        let code = u32::from(odd);
        return Err(format!(
            "the port `{shown}` has the character U+{code:04X} in it, which may look like another one"
        ));
    }
    match text {
        "" => return Err("a port is missing after the colon".to_owned()),
        "icmp" => return Ok(Ports::Fixed(PortSet::of(Asked::Icmp))),
        "*" => {
            return Err(
                "`*` is no port; without a port, a rule opens the declared ports; \
                        `1-65535` opens all ports of TCP"
                    .to_owned(),
            );
        }
        _ => {}
    }
    if text.contains(',') {
        return Err(format!(
            "`{shown}` has several ports; write one entry for each port"
        ));
    }
    let (numbers, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((numbers, "tcp")) => (numbers, Some(Protocol::Tcp)),
        Some((numbers, "udp")) => (numbers, Some(Protocol::Udp)),
        Some((_, other)) => {
            let other = printable(other);
            return Err(format!(
                "unknown protocol `{other}` in `{shown}`; there are `tcp` and `udp`"
            ));
        }
    };
    let (first, last) = match numbers.split_once('-') {
        Some((first, last)) if is_number(first) && is_number(last) => (first, last),
        _ if is_number(numbers) => (numbers, numbers),
        _ if protocol.is_some() => {
            return Err(format!(
                "`{shown}`: a port that is called by its name has the protocol that its service declares; leave `/` and what follows out"
            ));
        }
        _ => {
            let name = Label::parse(numbers).map_err(|error| format!("the port: {error}"))?;
            return Ok(Ports::Named(name));
        }
    };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(format!(
            "the range `{first}-{last}` goes backwards; write `{last}-{first}`"
        ));
    }
    let protocol = protocol.unwrap_or(Protocol::Tcp);
    Ok(Ports::Fixed(PortSet::of_range(protocol, first..=last)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn number(digits: &str) -> Result<u16, String> {
    match digits.parse() {
        Ok(0) | Err(_) => {
            let shown = printable(digits);
            Err(format!("`{shown}` is no port; ports are 1 to 65535"))
        }
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stand_behind_the_selector() {
        assert_eq!(split("db"), ("db", None));
        assert_eq!(split("db:5432"), ("db", Some("5432")));
        assert_eq!(split("tag:x"), ("tag:x", None));
        assert_eq!(split("node:*:9100"), ("node:*", Some("9100")));
        assert_eq!(split("*:metrics"), ("*", Some("metrics")));
        assert_eq!(split("nodes:8080"), ("nodes", Some("8080")));
        assert_eq!(split("tags:ops"), ("tags:ops", None));
        assert_eq!(split("route:nas"), ("route:nas", None));
        assert_eq!(split("route:nas:443"), ("route:nas", Some("443")));
        assert_eq!(split("route:8080"), ("route", Some("8080")));
        assert_eq!(split("guest:anna:22"), ("guest:anna", Some("22")));
        assert_eq!(split("guest:8080"), ("guest", Some("8080")));
    }

    #[test]
    fn each_form_of_a_port_is_understood() {
        let of = |protocol, range| Ok(Ports::Fixed(PortSet::of_range(protocol, range)));
        assert_eq!(ports("80"), of(Protocol::Tcp, 80..=80));
        assert_eq!(ports("80/tcp"), of(Protocol::Tcp, 80..=80));
        assert_eq!(ports("53/udp"), of(Protocol::Udp, 53..=53));
        assert_eq!(ports("8000-8100/udp"), of(Protocol::Udp, 8000..=8100));
        assert_eq!(ports("1-65535"), of(Protocol::Tcp, 1..=65535));
        assert_eq!(ports("icmp"), Ok(Ports::Fixed(PortSet::of(Asked::Icmp))));
        let name = Label::parse("web-admin").expect("a literal");
        assert_eq!(ports("web-admin"), Ok(Ports::Named(name)));
    }

    #[test]
    fn a_wrong_port_is_answered_with_the_reason() {
        for (text, part) in [
            ("", "missing"),
            ("*", "no port"),
            ("0", "1 to 65535"),
            ("65536", "1 to 65535"),
            ("99999999999999999999", "1 to 65535"),
            ("90-80", "write `80-90`"),
            ("80,90", "one entry for each port"),
            ("80/sctp", "unknown protocol `sctp`"),
            ("metrics/udp", "leave `/` and what follows out"),
            ("80-", "starts or ends with a hyphen"),
            ("8\u{660}", "U+0660"),
            ("a_b", "`_`"),
        ] {
            let said = ports(text).expect_err(text);
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
