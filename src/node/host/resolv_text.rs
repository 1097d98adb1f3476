//! Parses and writes the text of a resolv.conf(5). Pure.

use std::net::{IpAddr, SocketAddr};

/// The beginning of a file that meshd wrote.
const MARK: &str = "# Written by meshd";

/// The maximum number of servers that are read from a file. No C library uses more.
const MAX_SERVERS: usize = 8;

/// Whether meshd wrote this text.
#[must_use]
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

/// The change to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// No change is necessary.
    Nothing,
    /// Write this text. The original is stored already.
    Write(String),
    /// Store a copy of the present text, then write this one.
    CopyAndWrite(String),
}

/// Computes the change from the file's text and from the stored original.
#[must_use]
pub(super) fn plan(found: Option<&str>, original: Option<&str>, server: IpAddr) -> Step {
    match found {
        Some(found) if is_ours(found) => {
            // The original may be lost. Its search list is in our text as well.
            let text = text_with(original.unwrap_or(found), server);
            if text == found {
                Step::Nothing
            } else {
                Step::Write(text)
            }
        }
        Some(found) => Step::CopyAndWrite(text_with(found, server)),
        None => match original {
            Some(original) => Step::Write(text_with(original, server)),
            None => Step::CopyAndWrite(text_with("", server)),
        },
    }
}

/// The text with `server` as the only server, and with all lines of `original` that concern names rather than servers.
fn text_with(original: &str, server: IpAddr) -> String {
    let mut text = format!(
        "{MARK}, which forwards queries for names outside the mesh. The original is in resolv.conf.before-meshd,\n# and is restored when meshd stops. Set `[dns] manage_resolv_conf = false` in meshd.toml to keep the original.\nnameserver {server}\n"
    );
    let about_names = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        matches!(word, "search" | "domain" | "options" | "sortlist")
    };
    for line in original.lines().filter(about_names) {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns the lines of `text` that are empty, comments or directives of resolv.conf(5).
#[must_use]
pub(super) fn about_resolvers(text: &str) -> String {
    const DIRECTIVES: [&str; 5] = ["nameserver", "search", "domain", "options", "sortlist"];
    let is_plain = |line: &&str| {
        line.bytes()
            .all(|b| (b' '..=b'~').contains(&b) || b == b'\t')
    };
    let is_about_resolvers = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        line.is_empty() || line.starts_with(['#', ';']) || DIRECTIVES.contains(&word)
    };
    let mut kept = String::new();
    for line in text.lines().filter(is_plain).filter(is_about_resolvers) {
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// The servers of the `nameserver` lines, in order.
#[must_use]
pub(super) fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(name_server)
        .map(|ip| SocketAddr::new(ip, 53))
        .take(MAX_SERVERS)
        .collect()
}

/// The address in a line of resolv.conf, if it is a `nameserver` line with an address. The C library ignores what follows the
/// address.
#[must_use]
pub(super) fn name_server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let keyword = words.next()?;
    words
        .next()?
        .parse()
        .ok()
        .filter(|_| keyword == "nameserver")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 210, 0, 53));

    #[test]
    fn name_servers_are_read_and_everything_else_is_ignored() {
        let text = "# nameserver 9.9.9.9\nnameserver 192.0.2.1\nsearch a b\nnameserver  2001:db8::1 extra\nnameserver x\nnameserver\n";
        assert_eq!(
            name_servers(text),
            [
                "192.0.2.1:53".parse().expect("a literal"),
                "[2001:db8::1]:53".parse().expect("a literal")
            ]
        );
    }

    #[test]
    fn lines_that_are_not_about_resolvers_are_left_out() {
        let text = "; old\n\nnameserver 192.0.2.1\nroot:x:0:0\nsearch a b\nsudo ALL\noptions\tndots:1\nsearch \u{1b}[2J\n";
        assert_eq!(
            about_resolvers(text),
            "; old\n\nnameserver 192.0.2.1\nsearch a b\noptions\tndots:1\n"
        );
    }

    #[test]
    fn a_missing_file_is_made_from_the_original() {
        let Step::CopyAndWrite(first) = plan(None, None, SERVER) else {
            panic!("there is no original")
        };
        assert!(is_ours(&first));
        let Step::Write(again) = plan(None, Some("search a\n"), SERVER) else {
            panic!("there is an original")
        };
        assert!(
            again.ends_with("nameserver 10.210.0.53\nsearch a\n"),
            "{again}"
        );
        assert_eq!(plan(Some(&again), None, SERVER), Step::Nothing);
    }

    proptest! {
        #[test]
        fn after_one_step_there_is_nothing_to_do_and_one_server(before in "[ -~\n]{0,200}") {
            let text = match plan(Some(&before), None, SERVER) {
                Step::CopyAndWrite(text) => text,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            prop_assert_eq!(name_servers(&text), [SocketAddr::new(SERVER, 53)]);
            prop_assert_eq!(plan(Some(&text), Some(&before), SERVER), Step::Nothing);
        }
    }
}
