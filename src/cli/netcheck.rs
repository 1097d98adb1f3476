//! `meshctl netcheck`.

use clap::Args;

use super::exit::CliError;
use super::style::Output;
use super::why::age;
use super::{Globals, table};
use crate::protocol::local::{
    Ipv6State, LocalAddress, NatFiltering, NatMapping, Netcheck, PathKind, PortMappingCheck,
    PortMappingState, RelayCheck, SeenFrom, UdpState,
};

/// The arguments of `meshctl netcheck`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  meshctl netcheck           what this node knows of its network: UDP, IPv6, address translation
  meshctl netcheck --json")]
pub(super) struct NetcheckArguments {
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &NetcheckArguments, globals: &Globals) -> Result<u8, CliError> {
    let netcheck: Netcheck = globals.daemon().get("/v1/netcheck").await?;
    if arguments.json {
        return table::json(&netcheck);
    }
    for line in lines(&netcheck, Output::stdout()) {
        table::line(&line);
    }
    Ok(0)
}

fn lines(check: &Netcheck, output: Output) -> Vec<String> {
    let mut lines = vec![
        format!("UDP           {}", udp(check)),
        format!("addresses     {}", addresses(&check.addresses)),
        format!("IPv6          {}", ipv6(check.ipv6)),
        format!("translation   {}", mapping(check.nat.mapping)),
        format!("filtering     {}", filtering(check.nat.filtering)),
    ];
    lines.extend(check.nat.seen.iter().map(seen));
    lines.push(format!(
        "port mapping  {}",
        port_mapping(&check.port_mapping)
    ));
    let pinhole = check.ipv6_pinhole.as_ref().map(port_mapping);
    lines.extend(pinhole.map(|pinhole| format!("IPv6 pinhole  {pinhole}")));
    let state = if check.coordinator_connected {
        "connected"
    } else {
        "not reachable"
    };
    lines.push(format!("coordinator   {} {state}", check.coordinator));
    if check.relays.is_empty() {
        lines.push("relays        none".to_owned());
    }
    lines.extend(check.relays.iter().map(relay));
    for remedy in &check.mend {
        lines.extend(output.wrap("", &format!("to mend: {remedy}")));
    }
    lines
}

fn udp(check: &Netcheck) -> String {
    let udp = &check.udp;
    let state = match udp.state {
        UdpState::Works => "works",
        UdpState::Unknown | UdpState::Other => "not known yet",
        UdpState::Unanswered => "no peer answers",
    };
    let last = udp
        .last_heard_seconds_ago
        .map_or_else(String::new, |ago| format!(", the last {} ago", age(ago)));
    format!(
        "port {}: {state}; packets of {} of {} peer(s) arrived{last}",
        udp.port, udp.heard, udp.peers
    )
}

fn addresses(addresses: &[LocalAddress]) -> String {
    let shown = addresses.iter().map(|address| {
        let private = if address.private { ", private" } else { "" };
        let offered = if address.offered { "" } else { ", not offered" };
        format!(
            "{} ({}{private}{offered})",
            address.address, address.interface
        )
    });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() {
        return "none".to_owned();
    }
    shown.join(", ")
}

fn ipv6(state: Ipv6State) -> &'static str {
    match state {
        Ipv6State::Public => "this host has a public address",
        Ipv6State::Private => "this host has private addresses only",
        Ipv6State::None => "none",
        Ipv6State::Other => "not known",
    }
}

fn mapping(mapping: NatMapping) -> &'static str {
    match mapping {
        NatMapping::Unknown | NatMapping::Other => "not known",
        NatMapping::None => "none: others see an address of this host",
        NatMapping::Translated => {
            "a router translates addresses; how it chooses ports is not known"
        }
        NatMapping::EndpointIndependent => "a router translates addresses; all peers see one port",
        NatMapping::EndpointDependent => {
            "a router translates addresses; each peer sees another port"
        }
    }
}

fn filtering(filtering: NatFiltering) -> &'static str {
    match filtering {
        NatFiltering::Unknown | NatFiltering::Other => "not known",
        NatFiltering::Open => "everybody may send to this host",
        NatFiltering::AddressDependent => "only addresses to which this host sent may send to it",
        NatFiltering::AddressAndPortDependent => {
            "only addresses and ports to which this host sent may send to it"
        }
    }
}

fn seen(seen: &SeenFrom) -> String {
    let port = seen
        .port
        .map_or_else(String::new, |port| format!(", port {port}"));
    let ago = seen
        .seconds_ago
        .map_or_else(String::new, |ago| format!(", {} ago", age(ago)));
    format!("seen as       {}{port} by {}{ago}", seen.address, seen.by)
}

fn port_mapping(mapping: &PortMappingCheck) -> String {
    let endpoint = mapping
        .endpoint
        .map_or_else(String::new, |endpoint| format!(" {endpoint}"));
    let by = mapping
        .protocol
        .as_ref()
        .map_or_else(String::new, |protocol| format!(" by {protocol}"));
    let state = match mapping.state {
        PortMappingState::Off => "off".to_owned(),
        PortMappingState::None => "none".to_owned(),
        PortMappingState::Unproven => {
            format!("the router reports{endpoint}{by}; nothing came through it yet")
        }
        PortMappingState::Proven => match mapping.proven_seconds_ago {
            Some(ago) => format!("works:{endpoint}{by}, proven {} ago", age(ago)),
            None => format!("works:{endpoint}{by}"),
        },
        PortMappingState::Other => "not known".to_owned(),
    };
    match &mapping.reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state,
    }
}

fn relay(relay: &RelayCheck) -> String {
    let kind = match relay.kind {
        PathKind::Stream => " over TLS",
        _ => "",
    };
    let rtt = relay
        .rtt_ms
        .map_or_else(String::new, |ms| format!(" {ms:.1} ms"));
    let load = relay
        .load
        .map_or_else(String::new, |load| format!(", load {:.0} %", load * 100.0));
    let in_use = if relay.in_use { ", in use" } else { "" };
    format!("relay         {}{kind}{rtt}{load}{in_use}", relay.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::local::{NatCheck, SCHEMA, UdpCheck};

    fn check() -> Netcheck {
        Netcheck {
            schema: SCHEMA,
            name: "nas".parse().expect("a label"),
            udp: UdpCheck {
                port: 51820,
                state: UdpState::Works,
                heard: 1,
                peers: 2,
                last_heard_seconds_ago: Some(3.2),
            },
            addresses: vec![LocalAddress {
                interface: "eth0".into(),
                address: [192, 168, 1, 10].into(),
                private: true,
                offered: true,
            }],
            ipv6: Ipv6State::None,
            nat: NatCheck {
                mapping: NatMapping::Translated,
                filtering: NatFiltering::Unknown,
                seen: vec![SeenFrom {
                    by: "https://192.0.2.1:7443".into(),
                    address: [203, 0, 113, 7].into(),
                    port: None,
                    seconds_ago: Some(130.0),
                }],
            },
            port_mapping: PortMappingCheck {
                state: PortMappingState::Off,
                protocol: None,
                endpoint: None,
                proven_seconds_ago: None,
                reason: Some("it is not built".into()),
            },
            ipv6_pinhole: None,
            relays: Vec::new(),
            coordinator: "https://192.0.2.1:7443".into(),
            coordinator_connected: true,
            mend: vec!["forward a port".into()],
        }
    }

    #[test]
    fn each_fact_has_a_line_with_its_evidence() {
        assert_eq!(
            lines(&check(), Output::PLAIN).join("\n"),
            "\
UDP           port 51820: works; packets of 1 of 2 peer(s) arrived, the last 3 s ago
addresses     192.168.1.10 (eth0, private)
IPv6          none
translation   a router translates addresses; how it chooses ports is not known
filtering     not known
seen as       203.0.113.7 by https://192.0.2.1:7443, 2 min ago
port mapping  off: it is not built
coordinator   https://192.0.2.1:7443 connected
relays        none
to mend: forward a port"
        );
    }

    #[test]
    fn mappings_and_relays_of_later_versions_are_shown() {
        let proven = Netcheck {
            port_mapping: PortMappingCheck {
                state: PortMappingState::Proven,
                protocol: Some("pcp".into()),
                endpoint: "203.0.113.7:51820".parse().ok(),
                proven_seconds_ago: Some(7.0),
                reason: None,
            },
            relays: vec![RelayCheck {
                name: "fra-1".parse().expect("a label"),
                kind: PathKind::Stream,
                rtt_ms: Some(31.2),
                load: Some(0.25),
                in_use: true,
            }],
            ..check()
        };
        assert_eq!(
            port_mapping(&proven.port_mapping),
            "works: 203.0.113.7:51820 by pcp, proven 7 s ago"
        );
        let behind_a_firewall = Netcheck {
            ipv6_pinhole: Some(PortMappingCheck {
                state: PortMappingState::Unproven,
                protocol: Some("pcp".into()),
                endpoint: "[2001:db8::7]:51820".parse().ok(),
                proven_seconds_ago: None,
                reason: None,
            }),
            ..check()
        };
        assert_eq!(
            lines(&behind_a_firewall, Output::PLAIN)
                .get(7)
                .map(String::as_str),
            Some(
                "IPv6 pinhole  the router reports [2001:db8::7]:51820 by pcp; nothing came through it yet"
            )
        );
        assert_eq!(
            proven.relays.first().map(relay).as_deref(),
            Some("relay         fra-1 over TLS 31.2 ms, load 25 %, in use")
        );
    }
}
