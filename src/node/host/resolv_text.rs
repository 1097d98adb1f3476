//! The text of a resolv.conf(5): read, and written anew. Pure.

use std::net::{IpAddr, SocketAddr};

/// How a file of meshd's begins.
const MARK: &str = "# Written by meshd";

/// Servers of a file at most: no libc takes more.
const SERVERS: usize = 8;

/// Whether meshd wrote this.
#[must_use]
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

/// What is to be done with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It is as it is to be.
    Nothing,
    /// Write this; what stood there before is kept already.
    Write(String),
    /// Keep what is there, then write this.
    KeepAndWrite(String),
}

/// Decides, from the file's text and what is kept of before.
#[must_use]
pub(super) fn plan(found: Option<&str>, before: Option<&str>, server: IpAddr) -> Step {
    match found {
        Some(found) if is_ours(found) => {
            // What is kept may be lost: its search list stands in ours as well.
            let text = ours(before.unwrap_or(found), server);
            if text == found {
                Step::Nothing
            } else {
                Step::Write(text)
            }
        }
        Some(found) => Step::KeepAndWrite(ours(found, server)),
        None => match before {
            Some(before) => Step::Write(ours(before, server)),
            None => Step::KeepAndWrite(ours("", server)),
        },
    }
}

/// `server` alone, with everything of `before` that is about names rather than servers.
fn ours(before: &str, server: IpAddr) -> String {
    let mut text = format!(
        "{MARK}, which forwards all names that are not the mesh's. The file as it was is resolv.conf.before-meshd,\n# and comes back when meshd stops. Set `[dns] manage_resolv_conf = false` in meshd.toml to have this file left alone.\nnameserver {server}\n"
    );
    let about_names = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        matches!(word, "search" | "domain" | "options" | "sortlist")
    };
    for line in before.lines().filter(about_names) {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns the lines of `text` that are empty, comments or directives of resolv.conf(5).
#[must_use]
pub(super) fn about_resolvers(text: &str) -> String {
    const WORDS: [&str; 5] = ["nameserver", "search", "domain", "options", "sortlist"];
    let is_plain = |line: &&str| {
        line.bytes()
            .all(|b| (b' '..=b'~').contains(&b) || b == b'\t')
    };
    let is_about_resolvers = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        line.is_empty() || line.starts_with(['#', ';']) || WORDS.contains(&word)
    };
    let mut kept = String::new();
    for line in text.lines().filter(is_plain).filter(is_about_resolvers) {
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// The `nameserver` lines, in order.
#[must_use]
pub(super) fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words
                .next()
                .filter(|word| *word == "nameserver")
                .and_then(|_| words.next())?;
            address
                .parse::<IpAddr>()
                .ok()
                .map(|ip| SocketAddr::new(ip, 53))
        })
        .take(SERVERS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 210, 0, 53));

    #[test]
    fn name_servers_are_read_and_everything_else_passed_over() {
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
    fn a_missing_file_is_made_from_what_is_kept() {
        let Step::KeepAndWrite(first) = plan(None, None, SERVER) else {
            panic!("there is nothing kept")
        };
        assert!(is_ours(&first));
        let Step::Write(again) = plan(None, Some("search a\n"), SERVER) else {
            panic!("something is kept")
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
                Step::KeepAndWrite(text) => text,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            prop_assert_eq!(name_servers(&text), [SocketAddr::new(SERVER, 53)]);
            prop_assert_eq!(plan(Some(&text), Some(&before), SERVER), Step::Nothing);
        }
    }
}
