//! Compares an output with the one in a page. What differs from run to run is masked on both sides.

use std::net::Ipv6Addr;

/// The beginning of a join token.
const TOKEN: &str = "mesh1_";
/// How much of a token a page shows.
const SHOWN: usize = 30;
const UNITS: [&str; 3] = ["ms", "s", "min"];
const SIZES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// The lines of an output, with what differs from run to run masked.
pub(crate) fn masked(output: &str) -> Vec<String> {
    // Whether a distance is known yet depends on when the command runs.
    let output = output.replace("unknown distance", "distance group 0");
    let lines = output.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut masked: Vec<String> = Vec::new();
        let mut at = 0;
        while let Some(word) = words.get(at) {
            let unit = words.get(at + 1).map(|next| bare(next));
            if bare(word).parse::<f64>().is_ok() && unit.is_some_and(|unit| UNITS.contains(&unit)) {
                masked.push("TIME".into());
                at += 2;
            } else if bare(word).parse::<f64>().is_ok()
                && unit.is_some_and(|unit| SIZES.contains(&unit))
            {
                masked.push("SIZE".into());
                at += 2;
            } else {
                let before = at.checked_sub(1).and_then(|n| words.get(n)).copied();
                masked.push(mask(word, before));
                at += 1;
            }
        }
        masked.join(" ")
    });
    lines.collect()
}

/// A word without the punctuation around it.
fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| "()[],;:.".contains(c))
}

fn mask(word: &str, before: Option<&str>) -> String {
    let text = bare(word);
    if text.starts_with(TOKEN) {
        // A page shows the beginning of a token.
        return "TOKEN".into();
    }
    if let Some(endpoint) = with_ipv4(text) {
        return word.trim_start_matches('[').replace(text, &endpoint);
    }
    let masked = if is_unique_local(text) {
        "IPV6"
    } else if text.len() >= 8 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        "ID"
    } else if ["revision", "group"].map(Some).contains(&before)
        && text.bytes().all(|b| b.is_ascii_digit())
    {
        // The distance group depends on the measured round trips.
        "N"
    } else if is_version(text) {
        "VERSION"
    } else if text.len() >= 16 && text.starts_with("20") && text.as_bytes()[4] == b'-' {
        "DATE"
    } else {
        return word.to_owned();
    };
    word.replace(text, masked)
}

fn is_unique_local(text: &str) -> bool {
    let address = text.split(['/', ']']).next().unwrap_or_default();
    address
        .parse::<Ipv6Addr>()
        .is_ok_and(|address| address.segments()[0] & 0xfe00 == 0xfc00)
}

/// If `text` is an endpoint with the IPv6 address of a host of the testbed, returns the endpoint with the IPv4 address of that host. Which
/// of the two addresses a node uses depends on which one answered faster.
fn with_ipv4(text: &str) -> Option<String> {
    let (address, port) = text.split_once("]:")?;
    match address.parse::<Ipv6Addr>().ok()?.segments() {
        [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, host] => Some(format!("198.51.100.{host}:{port}")),
        _ => None,
    }
}

fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    parts.len() == 3
        && parts
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// An output as a page shows it: tokens are cut, and no line ends with spaces.
pub(crate) fn shown(output: &str) -> String {
    let lines = output.lines().map(|line| {
        let line = line.trim_end();
        match line.find(TOKEN) {
            Some(at) => format!("{}...", &line[..(at + SHOWN).min(line.len())]),
            None => line.to_owned(),
        }
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    text.trim_end().to_owned()
}

#[test]
fn what_differs_from_run_to_run_is_masked_and_nothing_else() {
    let one = "db-1  10.210.1.1  fd12:3456:789a:1::1  0.4 ms  12 s ago\ncreated the mesh 53a1b2c3 revision 7, 0.1.0 (distance group 3)\nmesh1_abc\n1.5 KiB  300 B";
    let two = "db-1 10.210.1.1 fd99::1 11.0 ms 3 s ago\ncreated the mesh 0000ffff revision 9, 0.2.0 (distance group 5)\nmesh1_xyz...\n0 B  2 MiB";
    assert_eq!(masked(one), masked(two));
    assert_eq!(masked("(unknown distance)"), masked("(distance group 3)"));
    assert_eq!(
        masked("web-1 10.210.2.1 is 2001:db8::1, 5 of 5")[0],
        "web-1 10.210.2.1 is 2001:db8::1, 5 of 5"
    );
    assert_ne!(masked("direct"), masked("unreachable"));
    let endpoint = |text: &str| masked(&format!("db-1 directly at {text}, web-1"));
    assert_eq!(
        endpoint("[2001:db8:51::b]:51820"),
        endpoint("198.51.100.11:51820")
    );
    assert_ne!(
        endpoint("[2001:db8:51::b]:51820"),
        endpoint("198.51.100.10:51820")
    );
}

#[test]
fn tokens_are_cut_where_they_are_shown() {
    let token = format!("mesh1_{}", "a".repeat(300));
    assert_eq!(shown(&token), format!("mesh1_{}...", "a".repeat(24)));
    assert_eq!(shown("a  \nb\n\n"), "a\nb");
}
