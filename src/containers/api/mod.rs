//! The JSON of the engine's API, parsed into the values of [`super::inspect`]. Pure.
//!
//! The engine decides what it sends, so every field may be missing or null: Docker and Podman of many years differ in such fields. An
//! answer is refused if the fields that identify its subject are missing.

mod raw;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::{IpNet, Ipv4Net};

use self::raw::{
    RawContainer, RawEvent, RawFacts, RawImage, RawListed, RawNetwork, RawPorts, RawVersion,
};
use super::inspect::{
    Action, ContainerId, Endpoint, Engine, EngineHealth, EngineNetwork, Event, Image, Inspected,
    Network, OWNER, Published, SIGTERM, Status,
};
use super::labels::{Facts, Labels};
use crate::model::interface::is_plain_interface;
use crate::records::kinds::Protocol;

/// Reads one line of the stream of events.
///
/// # Errors
/// The line is not an event.
pub fn event(line: &[u8]) -> Result<Event, serde_json::Error> {
    let raw: RawEvent = serde_json::from_slice(line)?;
    let (action, detail) = match raw.action.split_once(':') {
        Some((action, detail)) => (action, detail.trim()),
        None => (raw.action.as_str(), ""),
    };
    let actor = raw.actor.unwrap_or_default();
    let attributes = actor.attributes.unwrap_or_default();
    let id = ContainerId::parse(&actor.id);
    Ok(match (raw.kind.as_str(), id) {
        ("container", Some(id)) => match action {
            "kill" => Event::Container(
                id,
                // An unknown signal is treated as the one that ends a process.
                Action::Kill(signal(&attributes.signal).unwrap_or(SIGTERM)),
            ),
            "die" | "died" => Event::Container(id, Action::Die),
            "start" => Event::Container(id, Action::Start),
            "pause" => Event::Container(id, Action::Pause),
            "unpause" => Event::Container(id, Action::Unpause),
            "destroy" | "remove" => Event::Container(id, Action::Destroy),
            "health_status" => {
                Event::Container(id, health(detail).map_or(Action::Changed, Action::Health))
            }
            "restart" | "rename" | "update" => Event::Container(id, Action::Changed),
            _ => Event::Other,
        },
        ("network", _) => match (action, ContainerId::parse(&attributes.container)) {
            ("connect" | "disconnect", Some(id)) => Event::Container(id, Action::Changed),
            ("create" | "destroy" | "remove", _) => Event::Networks,
            _ => Event::Other,
        },
        _ => Event::Other,
    })
}

/// Reads a list of containers. Only running containers come with their labels.
///
/// # Errors
/// The text is not such a list.
pub fn list(text: &[u8]) -> Result<Vec<(ContainerId, Option<Labels>)>, serde_json::Error> {
    let raw: Vec<RawListed> = serde_json::from_slice(text)?;
    Ok(raw
        .into_iter()
        .filter_map(|row| {
            let running = matches!(row.state.as_str(), "running" | "paused" | "restarting");
            let labels = running.then(|| row.labels.unwrap_or_default().0);
            Some((ContainerId::parse(&row.id)?, labels))
        })
        .collect())
}

/// Reads the description of one container.
///
/// # Errors
/// The text is not such a description.
pub fn container(text: &[u8]) -> Result<Inspected, serde_json::Error> {
    let raw: RawContainer = serde_json::from_slice(text)?;
    let id = ContainerId::parse(&raw.id)
        .ok_or_else(|| serde::de::Error::custom("not a container's id"))?;
    let state = raw.state.unwrap_or_default();
    let config = raw.config.unwrap_or_default();
    let mode = raw.host_config.unwrap_or_default().network_mode;
    let settings = raw.network_settings.unwrap_or_default();
    let published = published(settings.ports.unwrap_or_default());
    let attached: BTreeMap<String, Endpoint> = settings
        .networks
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, endpoint)| {
            let endpoint = endpoint?;
            let v4 = endpoint.ip_address.and_then(|text| text.parse().ok());
            let v6 = endpoint.ipv6_address.and_then(|text| text.parse().ok());
            let network = endpoint.network_id.unwrap_or_default();
            let has_any = v4.is_some() || v6.is_some();
            has_any.then_some((name, Endpoint { v4, v6, network }))
        })
        .collect();
    let network = match mode.as_str() {
        "host" => Network::Host,
        "none" => Network::Isolated,
        mode if mode.starts_with("container:") => Network::Shared,
        _ => Network::Attached(attached),
    };
    let status = match (state.running, state.paused, state.restarting) {
        (_, _, true) => Status::Restarting,
        (_, true, _) => Status::Paused,
        (true, ..) => Status::Running,
        _ => Status::Stopped,
    };
    let test = config
        .healthcheck
        .unwrap_or_default()
        .test
        .unwrap_or_default();
    let exposed = config
        .exposed_ports
        .unwrap_or_default()
        .keys()
        .filter_map(|port| exposed_port(port))
        .collect::<BTreeSet<_>>();
    Ok(Inspected {
        id,
        name: raw.name.trim_start_matches('/').to_owned(),
        image: Image {
            id: raw.image,
            labels: None,
        },
        labels: config.labels.unwrap_or_default().0,
        run: state.started_at.unwrap_or_default(),
        status,
        pid: u32::try_from(state.pid).ok().filter(|pid| *pid > 0),
        health: state
            .health
            .and_then(|h| health(&h.status.unwrap_or_default())),
        facts: Facts {
            exposed,
            has_healthcheck: test.first().is_some_and(|word| word != "NONE"),
        },
        stop_signal: signal(&config.stop_signal.unwrap_or_default()).unwrap_or(SIGTERM),
        network,
        published,
    })
}

/// Reads the labels from the description of an image.
///
/// # Errors
/// The text is not such a description.
pub fn image_labels(text: &[u8]) -> Result<Labels, serde_json::Error> {
    let raw: RawImage = serde_json::from_slice(text)?;
    Ok(raw.config.and_then(|c| c.labels).unwrap_or_default().0)
}

/// Reads a list of networks.
///
/// # Errors
/// The text is not such a list.
pub fn networks(text: &[u8]) -> Result<Vec<EngineNetwork>, serde_json::Error> {
    let raw: Vec<RawNetwork> = serde_json::from_slice(text)?;
    Ok(raw.into_iter().map(into_network).collect())
}

/// Reads the answers to `/version` and `/info`. The second one may be missing or unreadable.
///
/// # Errors
/// The first text is not such an answer.
pub fn engine(version: &[u8], facts: Option<&[u8]>) -> Result<Engine, serde_json::Error> {
    let version: RawVersion = serde_json::from_slice(version)?;
    let podman = version
        .components
        .unwrap_or_default()
        .iter()
        .any(|part| part.name.to_ascii_lowercase().contains("podman"));
    let facts: RawFacts = facts
        .and_then(|text| serde_json::from_slice(text).ok())
        .unwrap_or_default();
    Ok(Engine {
        version: super::labels::printable(&version.version),
        podman,
        firewall: facts
            .firewall_backend
            .and_then(|backend| backend.driver)
            .map(|driver| super::labels::printable(&driver))
            .unwrap_or_default(),
        rootless: facts
            .security_options
            .unwrap_or_default()
            .iter()
            .any(|option| option.split(',').any(|part| part == "name=rootless")),
    })
}

/// Reads a signal, which engines write as a number or a name.
fn signal(text: &str) -> Option<u32> {
    let name = text.trim_start_matches("SIG");
    let number = match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "TERM" => libc::SIGTERM,
        "KILL" => libc::SIGKILL,
        "WINCH" => libc::SIGWINCH,
        "PWR" => libc::SIGPWR,
        _ => {
            // The C library keeps the first two of the kernel's real-time signals, from 32 on, for itself.
            let real_time = name.strip_prefix("RTMIN").map(|rest| {
                let offset = rest.strip_prefix('+').map_or(Some(0), |n| n.parse().ok());
                offset.and_then(|n: u32| n.checked_add(34))
            });
            return real_time.unwrap_or_else(|| name.parse().ok().filter(|n| (1..=64).contains(n)));
        }
    };
    Some(number.unsigned_abs())
}

fn health(text: &str) -> Option<EngineHealth> {
    match text {
        "starting" => Some(EngineHealth::Starting),
        "healthy" => Some(EngineHealth::Healthy),
        "unhealthy" => Some(EngineHealth::Unhealthy),
        _ => None,
    }
}

fn published(ports: RawPorts) -> Vec<Published> {
    let mut published = Vec::new();
    for (port, bindings) in ports {
        let Some((protocol, port)) = exposed_port(&port) else {
            continue;
        };
        for binding in bindings.unwrap_or_default() {
            let address = match binding.host_ip.parse::<IpAddr>() {
                Ok(address) if !address.is_unspecified() => Some(address),
                Err(_) if !binding.host_ip.is_empty() => continue,
                _ => None,
            };
            if let Ok(host_port) = binding.host_port.parse() {
                published.push(Published {
                    protocol,
                    port,
                    address,
                    host_port,
                });
            }
        }
    }
    published
}

/// `5432/tcp`.
fn exposed_port(text: &str) -> Option<(Protocol, NonZeroU16)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    Some((protocol, number.parse().ok()?))
}

fn into_network(raw: RawNetwork) -> EngineNetwork {
    let options = raw.options.unwrap_or_default();
    let named = options
        .get("com.docker.network.bridge.name")
        .cloned()
        .or(raw.network_interface);
    let bridge = (raw.driver == "bridge").then(|| {
        // The name that Docker gives a bridge by default.
        named.unwrap_or_else(|| format!("br-{}", raw.id.get(..12).unwrap_or(&raw.id)))
    });
    let subnets = raw.ipam.and_then(|i| i.config).unwrap_or_default();
    let v4 = subnets.iter().find(|s| s.subnet.parse::<Ipv4Net>().is_ok());
    let range = v4.and_then(|s| s.range.as_deref()?.parse().ok());
    let gateway = v4.and_then(|s| s.gateway.as_deref()?.parse().ok());
    let all = subnets.into_iter().chain(raw.subnets.unwrap_or_default());
    let all: Vec<IpNet> = all.filter_map(|s| s.subnet.parse().ok()).collect();
    // A network may have a subnet of IPv6 from which it assigns nothing.
    let has_ipv6 = raw.ipv6 != Some(false);
    let (owner, value) = OWNER;
    EngineNetwork {
        range,
        gateway,
        ours: raw
            .labels
            .is_some_and(|labels| labels.0.get(owner).is_some_and(|by| by == value)),
        options,
        bridge: bridge.filter(|name| is_plain_interface(name)),
        subnets: all
            .iter()
            .filter_map(|net| match net {
                IpNet::V4(v4) => Some(v4.trunc()),
                IpNet::V6(_) => None,
            })
            .collect(),
        subnets_v6: all
            .iter()
            .filter_map(|net| match net {
                IpNet::V6(v6) if has_ipv6 => Some(v6.trunc()),
                _ => None,
            })
            .collect(),
        id: raw.id,
        name: raw.name,
        driver: raw.driver,
        internal: raw.internal,
    }
}

#[cfg(test)]
mod tests;
