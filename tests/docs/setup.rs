//! What has to be there before the blocks of a page run.

/// A state of the hosts of a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// A coordinator with a mesh, on a host.
    Coordinator(String),
    /// A coordinator with a mesh on the first host, and all hosts are members.
    Mesh(Vec<String>),
    /// The same, on hosts with container engines whose programs ask meshd for names.
    Containers(Vec<String>),
    /// An etcd on a host.
    Etcd(String),
    /// A program listens on a port of a host.
    Listener { host: String, port: u16 },
    /// Clients on the host `from` use a TCP port, whose program sends everything back, and a UDP port of the host `to` until the page
    /// ends. None of their exchanges may fail.
    Traffic {
        from: String,
        to: String,
        ports: (u16, u16),
    },
    /// The firewall of a host admits only answers, as a router does that translates addresses.
    AnswersOnly(String),
    /// The TLS files of the coordinator on the first host are on the others.
    TlsFiles { from: String, to: Vec<String> },
    /// A host is a member, admitted with a token that another host made.
    Joined { host: String, by: String },
}

impl Setup {
    /// Reads a sentence such as `a mesh of db-1 and web-1`. What is in parentheses is for readers only.
    pub(crate) fn parse(sentence: &str) -> Option<Self> {
        let said = sentence.split('(').next().unwrap_or_default().trim();
        let words: Vec<&str> = said
            .split_whitespace()
            .map(|word| word.trim_matches(|c: char| ",.".contains(c)))
            .collect();
        let mut hosts = words
            .iter()
            .filter(|word| is_host(word))
            .map(|word| (*word).to_owned());
        let port = words.iter().find_map(|word| word.parse().ok());
        Some(if said.starts_with("a mesh with containers of") {
            Self::Containers(hosts.collect())
        } else if said.starts_with("a mesh of") {
            Self::Mesh(hosts.collect())
        } else if said.starts_with("a coordinator on") {
            Self::Coordinator(hosts.next()?)
        } else if said.starts_with("etcd on") {
            Self::Etcd(hosts.next()?)
        } else if said.starts_with("a program listens on port") {
            let (host, port) = (hosts.next()?, port?);
            Self::Listener { host, port }
        } else if said.ends_with("until the page ends") {
            let of = |ending: &str| -> Option<u16> {
                let mut numbers = words.iter().filter_map(|word| word.strip_suffix(ending));
                numbers.next()?.parse().ok()
            };
            let (from, to) = (hosts.next()?, hosts.next()?);
            let ports = (of("/tcp")?, of("/udp")?);
            Self::Traffic { from, to, ports }
        } else if said.contains("admits only answers") {
            Self::AnswersOnly(hosts.next()?)
        } else if said.starts_with("the TLS files of") {
            Self::TlsFiles {
                from: hosts.next()?,
                to: hosts.collect(),
            }
        } else if said.contains("joins with a token of") {
            let (host, by) = (hosts.next()?, hosts.next()?);
            Self::Joined { host, by }
        } else {
            return None;
        })
    }

    /// The hosts that it is about, in their order.
    pub(crate) fn hosts(&self) -> Vec<&str> {
        match self {
            Self::Coordinator(host) | Self::Etcd(host) | Self::AnswersOnly(host) => vec![host],
            Self::Listener { host, .. } => vec![host],
            Self::Mesh(hosts) | Self::Containers(hosts) => {
                hosts.iter().map(String::as_str).collect()
            }
            Self::TlsFiles { from, to } => std::iter::once(from)
                .chain(to)
                .map(String::as_str)
                .collect(),
            Self::Joined { host, by } => vec![host, by],
            Self::Traffic { from, to, .. } => vec![from, to],
        }
    }
}

/// Whether a word is the name of a host, such as `web-1`.
pub(crate) fn is_host(word: &str) -> bool {
    word.split_once('-').is_some_and(|(name, number)| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_lowercase())
            && !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
    })
}

#[test]
fn sentences_are_read() {
    let text = |t: &str| t.to_owned();
    assert_eq!(
        Setup::parse("a mesh of db-1, web-1 and web-2"),
        Some(Setup::Mesh(vec![
            text("db-1"),
            text("web-1"),
            text("web-2")
        ]))
    );
    assert_eq!(
        Setup::parse("a program listens on port 5432 of db-1 (it stands in for home-1)"),
        Some(Setup::Listener {
            host: text("db-1"),
            port: 5432
        })
    );
    assert_eq!(
        Setup::parse("web-1 uses ports 5432/tcp and 514/udp of db-1 until the page ends (all)"),
        Some(Setup::Traffic {
            from: text("web-1"),
            to: text("db-1"),
            ports: (5432, 514)
        })
    );
    assert_eq!(Setup::parse("a mess"), None);
    assert!(is_host("web-1") && !is_host("web") && !is_host("node-exporter"));
}
