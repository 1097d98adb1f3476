//! Explains the result of a lookup at one place, and the remedy if it failed. Pure.

use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use crate::protocol::local::NetworkKind;

/// Docker's own DNS server, inside every container on a user-defined network.
const EMBEDDED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// The servers that Docker configures if all servers of the host are on its loopback interface.
const FALLBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
];

/// The place where a lookup is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// On the host itself.
    Host,
    /// Inside a container.
    Container {
        name: String,
        network: String,
        kind: NetworkKind,
    },
}

/// The reply of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// The right address.
    Right,
    /// Another address.
    Wrong,
    /// The server does not know the name.
    Unknown,
    /// The server failed or refused.
    Failed,
    /// There was no reply in time.
    Silent,
}

/// The result of a lookup at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LookupResult {
    /// The servers of its resolv.conf, each with its reply.
    Servers(Vec<(IpAddr, Outcome)>),
    /// The lookup was not possible.
    Failed(String),
}

/// Facts about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// The DNS address.
    pub(super) dns: Ipv4Addr,
    /// Whether systemd-resolved is configured for the mesh.
    pub(super) split: bool,
    /// Whether the host itself resolves mesh names.
    pub(super) host_resolves: bool,
}

/// The explanation for a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Whether mesh names resolve there.
    pub(super) ok: bool,
    /// The reason.
    pub(super) why: String,
    /// The remedy, if one is necessary.
    pub(super) fix: Option<String>,
}

/// Explains what was found at `place`.
pub(super) fn explain(place: &Place, found: &LookupResult, machine: &Machine) -> Finding {
    let servers = match found {
        LookupResult::Servers(servers) => servers,
        LookupResult::Failed(why) => {
            return bad(
                format!("the lookup was not possible: {why}"),
                Some("run `sudo meshctl doctor`".into()),
            );
        }
    };
    let Some((first, outcome)) = servers.first() else {
        return bad(
            "its resolv.conf names no server".into(),
            Some(missing(place, machine)),
        );
    };
    // Programs query the next server only after a failure, and most do not after a reply.
    let decisive = servers
        .iter()
        .find(|(_, outcome)| !matches!(outcome, Outcome::Silent | Outcome::Failed));
    if let Some((server, Outcome::Right)) = decisive {
        let other = servers
            .iter()
            .find(|(_, o)| matches!(o, Outcome::Unknown | Outcome::Wrong));
        return match (server == first, other) {
            (false, _) => Finding {
                ok: true,
                why: format!(
                    "{server} answers, but only after {first}, which {}: each lookup is slow",
                    described(*outcome)
                ),
                fix: Some(missing(place, machine)),
            },
            (true, Some((other, outcome))) => Finding {
                ok: true,
                why: format!(
                    "{server} answers, but {other}, which {}, is listed too: programs built with musl (Alpine) query all servers at once and use the first reply",
                    described(*outcome)
                ),
                fix: Some(format!(
                    "leave {server} as the only server: it forwards all other names"
                )),
            },
            (true, None) => Finding {
                ok: true,
                why: format!("{server} answers"),
                fix: None,
            },
        };
    }
    let (server, outcome) = decisive.unwrap_or(&servers[0]);
    match place {
        Place::Host => host(*server, *outcome, machine),
        Place::Container {
            name,
            network,
            kind,
        } => container(*server, *outcome, name, network, *kind, machine),
    }
}

fn host(server: IpAddr, outcome: Outcome, machine: &Machine) -> Finding {
    let dns = machine.dns;
    if server == IpAddr::V4(dns) {
        return bad(
            format!("the DNS address {dns} {}", described(outcome)),
            Some("look at `meshctl status` for problems, and whether a firewall drops packets from this machine to mesh0".into()),
        );
    }
    if server.is_loopback() && machine.split {
        return bad(
            format!(
                "systemd-resolved is configured for the mesh, but {server} {}",
                described(outcome)
            ),
            Some("look at `resolvectl status mesh0`, and run `resolvectl flush-caches`".into()),
        );
    }
    bad(
        format!(
            "/etc/resolv.conf sends programs to {server}, which {}",
            described(outcome)
        ),
        Some(missing(&Place::Host, machine)),
    )
}

fn container(
    server: IpAddr,
    outcome: Outcome,
    name: &str,
    network: &str,
    kind: NetworkKind,
    machine: &Machine,
) -> Finding {
    let described = described(outcome);
    if kind == NetworkKind::Internal {
        return bad(
            format!(
                "the network {network} is internal: the engine forwards no names from it, and no packets to other machines"
            ),
            Some(format!(
                "put {name} on a second network that is not internal"
            )),
        );
    }
    if kind == NetworkKind::Default && FALLBACK.contains(&server) {
        return bad(
            format!(
                "the host's DNS server is on its loopback interface, which the default bridge cannot reach, so the engine configured {server}, which {described}"
            ),
            Some(format!(
                "put {name} on a network of its own, as Compose does, or write {{\"dns\": [\"{}\"]}} into /etc/docker/daemon.json, restart docker, and create {name} again",
                machine.dns
            )),
        );
    }
    if !machine.host_resolves && (server == EMBEDDED || kind == NetworkKind::Host) {
        return bad(
            format!(
                "its lookups use the servers of the host, which do not know the name: {server} {described}"
            ),
            Some(format!(
                "correct the host first; if that is not enough, restart {name}"
            )),
        );
    }
    if server == EMBEDDED {
        return bad(
            format!(
                "the engine's DNS server queries the servers that the host had when {name} was started, and {described}"
            ),
            Some(format!("docker restart {name}")),
        );
    }
    if server == IpAddr::V4(machine.dns) {
        return bad(
            format!("the DNS address {server} {described} to {name}"),
            Some("look for a rule that drops packets from containers to mesh0: `nft list ruleset`, `iptables -S FORWARD`".into()),
        );
    }
    own_servers(server, described, name, machine)
}

/// The container has a resolv.conf of its own, and its server does not know mesh names.
fn own_servers(server: IpAddr, described: &str, name: &str, machine: &Machine) -> Finding {
    if machine.host_resolves {
        bad(
            format!("its resolv.conf, made when it was started, names {server}, which {described}"),
            Some(format!(
                "docker restart {name}; if it has servers of its own (`dns:` in Compose, `--dns`), put {} in their place",
                machine.dns
            )),
        )
    } else {
        bad(
            format!("its resolv.conf names {server}, which {described}"),
            Some(format!(
                "correct the host, then restart {name}; or write `dns: [{}]` under {name} in its Compose file",
                machine.dns
            )),
        )
    }
}

/// The remedy at a place where mesh names do not resolve.
fn missing(place: &Place, machine: &Machine) -> String {
    let dns = machine.dns;
    match place {
        Place::Host => format!(
            "set `manage_resolv_conf = true` under [dns] in /etc/meshd/meshd.toml and restart meshd, or write `nameserver {dns}` as the only server into /etc/resolv.conf"
        ),
        Place::Container { name, .. } => {
            format!("write `dns: [{dns}]` under {name} in its Compose file, and create it again")
        }
    }
}

fn described(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Right => "answers",
        Outcome::Wrong => "returns another address",
        Outcome::Unknown => "does not know the name",
        Outcome::Failed => "fails",
        Outcome::Silent => "does not answer",
    }
}

fn bad(why: String, fix: Option<String>) -> Finding {
    Finding {
        ok: false,
        why,
        fix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[(&str, Outcome)]) -> LookupResult {
        let parse = |text: &str| text.parse().expect("a literal");
        LookupResult::Servers(list.iter().map(|(s, o)| (parse(s), *o)).collect())
    }

    fn machine(host_resolves: bool, split: bool) -> Machine {
        Machine {
            dns: Ipv4Addr::new(10, 210, 0, 53),
            split,
            host_resolves,
        }
    }

    fn web(kind: NetworkKind) -> Place {
        Place::Container {
            name: "web".into(),
            network: "shop_default".into(),
            kind,
        }
    }

    #[test]
    fn every_place_gets_the_reason_and_the_one_thing_to_do() {
        use NetworkKind::{Default, Host, Internal, User};
        use Outcome::{Failed, Right, Silent, Unknown, Wrong};
        let (good, plain, split) = (
            machine(true, false),
            machine(false, false),
            machine(false, true),
        );
        let closed = LookupResult::Failed("permission denied".into());
        #[rustfmt::skip]
        let table = [
            (Place::Host, servers(&[("10.210.0.53", Right)]), &good, true, "10.210.0.53 answers", ""),
            (Place::Host, servers(&[("127.0.0.53", Right)]), &good, true, "127.0.0.53 answers", ""),
            (Place::Host, servers(&[("10.210.0.53", Right), ("192.0.2.1", Unknown)]), &good, true, "musl", "only server"),
            (Place::Host, servers(&[("192.0.2.1", Silent), ("10.210.0.53", Right)]), &good, true, "slow", "manage_resolv_conf"),
            (Place::Host, servers(&[("192.0.2.1", Unknown), ("10.210.0.53", Right)]), &plain, false, "does not know", "manage_resolv_conf"),
            (Place::Host, servers(&[("192.0.2.1", Unknown)]), &plain, false, "sends programs to 192.0.2.1", "nameserver 10.210.0.53"),
            (Place::Host, servers(&[("127.0.0.53", Unknown)]), &split, false, "systemd-resolved is configured", "resolvectl status"),
            (Place::Host, servers(&[("10.210.0.53", Silent)]), &plain, false, "does not answer", "meshctl status"),
            (Place::Host, servers(&[]), &plain, false, "no server", "manage_resolv_conf"),
            (web(User), servers(&[("127.0.0.11", Right)]), &good, true, "127.0.0.11 answers", ""),
            (web(User), servers(&[("127.0.0.11", Unknown)]), &good, false, "when web was started", "docker restart web"),
            (web(User), servers(&[("127.0.0.11", Failed)]), &plain, false, "use the servers of the host", "correct the host first"),
            (web(Internal), servers(&[("127.0.0.11", Failed)]), &good, false, "shop_default is internal", "second network"),
            (web(Default), servers(&[("8.8.8.8", Unknown), ("8.8.4.4", Unknown)]), &good, false, "configured 8.8.8.8", "daemon.json"),
            (web(Default), servers(&[("192.0.2.1", Unknown)]), &good, false, "made when it was started", "docker restart web"),
            (web(Default), servers(&[("10.210.0.53", Silent)]), &good, false, "does not answer to web", "iptables -S FORWARD"),
            (web(User), servers(&[("9.9.9.9", Unknown)]), &good, false, "names 9.9.9.9", "`dns:` in Compose"),
            (web(User), servers(&[("9.9.9.9", Wrong)]), &plain, false, "another address", "dns: [10.210.0.53]"),
            (web(Host), servers(&[("192.0.2.1", Unknown)]), &plain, false, "use the servers of the host", "correct the host"),
            (web(User), closed, &good, false, "permission denied", "sudo meshctl doctor"),
        ];
        for (place, found, machine, ok, why, fix) in table {
            let finding = explain(&place, &found, machine);
            assert_eq!(finding.ok, ok, "{place:?} {found:?}: {finding:?}");
            assert!(finding.why.contains(why), "{why}: {finding:?}");
            match (&finding.fix, fix) {
                (None, "") => {}
                (Some(text), fix) if !fix.is_empty() => {
                    assert!(text.contains(fix), "{fix}: {finding:?}");
                }
                _ => panic!("{place:?} {found:?}: {finding:?}"),
            }
        }
    }
}
