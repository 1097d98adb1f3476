//! What the node tells of itself.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::time::timeout;

use super::api::Reply;
use super::config::Config;
use super::contact::{self, Contact};
use super::docker::Docker;
use super::mesh::{Dns, Mesh};
use super::resolved::{ResolvedLink, State};
use crate::containers::residents::residents;
use crate::dns::answer::{Answer, Verdict, answer, is_special};
use crate::dns::explain::{Part, explain};
use crate::dns::forward::{Source, Stripped};
use crate::dns::query::Question;
use crate::dns::zone::{Standing, Zone};
use crate::model::{Label, PublicKey};
use crate::path::mtu::LEAST_IPV6;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{
    Checkup, ContainerList, CoordinatorStatus, DnsStatus, InstanceRow, InterfaceStatus, NodeState,
    NodeStatus, PeerState, PeerStatus, Ping, Pong, Problem, Resolve, Resolved, SCHEMA,
    ServiceCounts, ServiceList, ServiceRow, Status, SystemEntry, SystemList, TunnelCheck,
};
use crate::records::netmap::{Member, Netmap};
use crate::tunnel::{PeerStatus as TunnelPeer, Waiting};

/// How long the container engine may take to say what runs, for a doctor.
const CHECKUP_WAIT: Duration = Duration::from_secs(5);
/// How long a doctor's probe waits for its answer.
const PROBE_WAIT: Duration = Duration::from_secs(2);

/// The status of a node that is in no mesh.
pub(super) fn bare_status(state: NodeState) -> Status {
    Status {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state,
        not_ready: None,
        node: None,
        interface: None,
        coordinator: None,
        dns: None,
        peers: Vec::new(),
        services: ServiceCounts::default(),
        problems: Vec::new(),
    }
}

/// The status of a joined node.
pub(super) fn status(mesh: &Mesh, damaged_services: Option<&str>) -> Status {
    let now = Instant::now();
    let identity = &mesh.identity;
    let zone = mesh.names.zone().load();
    let tags = mesh
        .replica
        .ledger()
        .membership(&mesh.id())
        .map(|m| mesh.replica.ledger().tags_of(m))
        .unwrap_or_default();
    let names: std::collections::BTreeSet<_> = mesh
        .netmap
        .services
        .values()
        .map(|s| (&s.name, &s.project))
        .collect();
    Status {
        node: Some(NodeStatus {
            id: mesh.id(),
            name: identity.name.clone(),
            tags,
            address_v4: identity.block.node_v4(),
            address_v6: identity.block.node_v6(),
            block_v4: identity.block.v4,
            block_v6: identity.block.v6,
            public_key: identity.keys.wireguard_public(),
            domain: mesh
                .replica
                .ledger()
                .mesh()
                .map_or_else(|| identity.name.clone(), |m| m.domain.clone()),
        }),
        interface: Some(InterfaceStatus {
            name: mesh.config.tunnel.interface.clone(),
            mtu: u32::from(mesh.plan.mtu),
            listen_port: mesh.tunnel.listen_port(),
        }),
        coordinator: Some(CoordinatorStatus {
            url: mesh.replica.link().url().to_owned(),
            connected: mesh.replica.link().is_connected(),
            revision: mesh.replica.position().revision,
            synced_seconds_ago: mesh
                .replica
                .link()
                .last_received()
                .map(|at| seconds(now.saturating_duration_since(at))),
        }),
        dns: mesh.dns.as_ref().map(|dns| DnsStatus {
            listen: dns.listen(),
            records: zone.len(),
            split_dns: split_dns(dns).to_owned(),
        }),
        peers: peers(mesh, now),
        services: ServiceCounts {
            local: mesh.registry.len() + mesh.docker.as_ref().map_or(0, Docker::len),
            mesh: names.len(),
        },
        problems: problems(mesh, damaged_services, zone.flagged()),
        not_ready: not_ready(mesh),
        ..bare_status(if mesh.is_removed() {
            NodeState::Removed
        } else {
            NodeState::Up
        })
    }
}

fn split_dns(dns: &Dns) -> &'static str {
    match dns.resolved.as_ref().map(ResolvedLink::state) {
        Some(State::Configured) => "systemd-resolved",
        Some(State::Absent | State::Refused(_)) | None => "none",
    }
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

fn peers(mesh: &Mesh, now: Instant) -> Vec<PeerStatus> {
    let id = mesh.id();
    let out = if mesh.is_removed() {
        Some("this node was removed from the mesh, so no peer takes its packets")
    } else if mesh.replica.link().is_duplicate() {
        Some("this machine is a copy of another node and keeps off its peers")
    } else {
        None
    };
    let mut peers: Vec<PeerStatus> = mesh
        .netmap
        .members
        .values()
        .filter(|member| member.id != id)
        .map(|member| {
            let peer = mesh.tunnel.peer(&member.wireguard_key.0);
            let handshake = peer.as_ref().and_then(|p| p.last_handshake);
            let contact = contact_of(mesh, member, peer.as_ref(), now);
            let (state, reason) = contact.state();
            let reason = reason.map(|why| out.map_or(why, str::to_owned));
            let measured = match state {
                PeerState::Connecting | PeerState::Unreachable => None,
                _ => mesh.paths.distances().round_trip(&member.id),
            };
            PeerStatus {
                id: member.id,
                name: member.name.clone(),
                tags: member.tags.clone(),
                address_v4: member.block.node_v4(),
                address_v6: member.block.node_v6(),
                state,
                via: None,
                reason,
                last_heard_seconds_ago: contact.heard.map(seconds),
                version: None,
                endpoint: peer.as_ref().and_then(|p| p.endpoint),
                last_handshake_seconds_ago: handshake
                    .and_then(|at| SystemTime::now().duration_since(at).ok())
                    .map(seconds),
                rtt_ms: measured.map(milliseconds),
                path_mtu: Some(mesh.paths.limit(&member.id)),
                rx_bytes: peer.as_ref().map_or(0, |p| p.rx_bytes),
                tx_bytes: peer.as_ref().map_or(0, |p| p.tx_bytes),
            }
        })
        .collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers
}

fn contact_of(mesh: &Mesh, member: &Member, peer: Option<&TunnelPeer>, now: Instant) -> Contact {
    let id = &member.id;
    let heard = mesh.paths.watch().heard(id);
    let mut endpoints = member.endpoints.clone();
    if endpoints.is_empty() {
        endpoints.extend(peer.and_then(|p| p.endpoint));
    }
    Contact {
        reach: mesh.paths.watch().reach(id, now),
        heard: heard.map(|at| now.saturating_duration_since(at)),
        silent: mesh.paths.watch().is_silent(id, now),
        handshake: peer.is_some_and(|p| p.last_handshake.is_some()),
        received: peer.map_or(0, |p| p.rx_bytes),
        endpoints,
        port: mesh.tunnel.listen_port(),
    }
}

/// The other members, in the order of their names.
fn others(mesh: &Mesh) -> Vec<&Member> {
    let own = mesh.id();
    let members = mesh.netmap.members.values();
    let mut others: Vec<&Member> = members.filter(|member| member.id != own).collect();
    others.sort_by(|a, b| a.name.cmp(&b.name));
    others
}

/// Why this node is not ready, if it is not.
pub(super) fn not_ready(mesh: &Mesh) -> Option<String> {
    let [own, _] = mesh.own_addresses();
    let device = &mesh.config.tunnel.interface;
    contact::Standing {
        removed: mesh.is_removed(),
        copied: mesh.replica.link().is_duplicate(),
        tunnel: super::host::interfaces()
            .iter()
            .any(|i| i.name == *device && i.address == own),
        dns: mesh.dns.is_none() || mesh.names.zone().load().addresses.is_some(),
        others: others(mesh).len(),
        reached: mesh.paths.watch().any_heard(),
        port: mesh.tunnel.listen_port(),
    }
    .not_ready()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn problems(mesh: &Mesh, damaged_services: Option<&str>, flagged: usize) -> Vec<Problem> {
    let problem = |what: &str, why: String, fix: &str| Problem {
        what: what.into(),
        why,
        fix: fix.into(),
    };
    let mut problems = Vec::new();
    // First: it explains most of what follows.
    if mesh.is_removed() {
        problems.push(problem(
            "this node was removed from the mesh",
            "the administrator removed it: no peer takes its packets, and its names are gone"
                .into(),
            "run `meshctl leave`, then `meshctl join` with a new token if that was a mistake",
        ));
    }
    problems.extend(mesh.troubles.values().cloned());
    problems.extend(mesh.network.problems());
    problems.extend(mesh.unwritten.problems());
    problems.extend(mesh.own_records.problems());
    let now = Instant::now();
    problems.extend(mesh.replica.problems(now));
    problems.extend(mesh.registry.problems(&mesh.identity.block));
    problems.extend(mesh.docker.iter().flat_map(Docker::problems));
    // Without containers the guards alone are worth having, but nobody needs to install anything for them.
    if mesh.docker.as_ref().is_some_and(Docker::is_followed) || mesh.firewall.is_contested() {
        problems.extend(mesh.firewall.problems());
    }
    if mesh.is_removed() {
        // It is the first problem, above.
    } else if mesh.replica.link().is_duplicate() {
        problems.push(problem(
            "this machine is a copy of another node, which goes on; this one keeps off the mesh",
            "another machine with the same keys is connected to the coordinator".into(),
            "run `meshctl leave` here, and join with a new token",
        ));
    } else if !mesh.replica.link().is_connected() {
        let failure = mesh.replica.link().failure();
        let why = failure.unwrap_or("no connection yet").to_owned();
        problems.push(problem("the coordinator is not connected; names and tunnels go on, changes elsewhere are not seen", why, "start mesh-coordinator, or open the way to it"));
    }
    if mesh.damaged > 0 {
        let why = format!(
            "{} line(s) of records.jsonl were damaged and left out",
            mesh.damaged
        );
        problems.push(problem(
            "some records on disk were lost",
            why,
            "nothing, they come again from the coordinator; check the disk",
        ));
    }
    if let Some(why) = damaged_services {
        problems.push(problem(
            "services added by hand were lost",
            why.into(),
            "add them again with `meshctl service add`",
        ));
    }
    if flagged > 0 {
        problems.push(problem(
            "names are answered with instances that are not usable",
            format!("{flagged} name(s) have no instance that is healthy and reachable"),
            "look at `meshctl service list` for what is down",
        ));
    }
    if let Some(dns) = &mesh.dns {
        problems.extend(
            dns.keeper
                .as_ref()
                .and_then(super::resolv_conf::Keeper::problem),
        );
        problems.extend(dns.resolved.as_ref().and_then(ResolvedLink::problem));
        let absent = dns.resolved.as_ref().map(ResolvedLink::state) == Some(State::Absent);
        if absent && mesh.config.dns.require_resolved {
            problems.push(problem(
                "systemd-resolved does not send names of the mesh here",
                "there is no org.freedesktop.resolve1 on the system bus".into(),
                "start systemd-resolved, or set `[dns] split_dns = \"auto\"`",
            ));
        }
    }
    problems.extend(contested(&mesh.netmap));
    problems.extend(narrow_paths(mesh));
    problems.extend(unreached(mesh));
    problems
}

/// The maximum number of contested services that get a problem of their own, and of nodes that such a problem names.
const MAX_CONTESTED: usize = 8;

/// The problems of services that are served by nodes without a common tag: one of the nodes may serve by mistake or be hostile.
fn contested(netmap: &Netmap) -> Vec<Problem> {
    let contested = netmap.contested();
    let named = contested.iter().take(MAX_CONTESTED);
    let more = contested.len().saturating_sub(MAX_CONTESTED);
    let more = (more > 0).then(|| Problem {
        what: format!("{more} more services are served by nodes that have no tag in common"),
        why: "clients of these services are sent to all of their nodes alike".into(),
        fix: "see `meshctl service list` for the nodes that serve them".into(),
    });
    let problems = named.map(|contested| {
        let nodes = contested.nodes.iter().take(MAX_CONTESTED);
        let mut nodes: Vec<String> = nodes.map(ToString::to_string).collect();
        let others = contested.nodes.len().saturating_sub(nodes.len());
        if others > 0 {
            nodes.push(format!("{others} more"));
        }
        Problem {
            what: format!(
                "the service {} is served by nodes that have no tag in common: {}",
                contested.service,
                nodes.join(", ")
            ),
            why: "clients of the service are sent to all of these nodes alike, although their tags do not show that they belong together"
                .into(),
            fix: "end the service on the nodes that must not serve it, or join its nodes with tokens that have a tag in common"
                .into(),
        }
    });
    problems.chain(more).collect()
}

/// Peers from which no packet came since the start, or none any more from any.
fn unreached(mesh: &Mesh) -> Vec<Problem> {
    if mesh.is_removed() || mesh.replica.link().is_duplicate() {
        return Vec::new();
    }
    let now = Instant::now();
    let contacts: Vec<(&str, Contact)> = others(mesh)
        .into_iter()
        .map(|member| {
            let peer = mesh.tunnel.peer(&member.wireguard_key.0);
            let contact = contact_of(mesh, member, peer.as_ref(), now);
            (member.name.as_str(), contact)
        })
        .collect();
    let port = mesh.tunnel.listen_port();
    let never = contact::never_heard(&contacts, port);
    never
        .into_iter()
        .chain(contact::cut_off(&contacts, port))
        .collect()
}

/// Peers behind a path that does not carry what IPv6 needs.
fn narrow_paths(mesh: &Mesh) -> Option<Problem> {
    let narrow: Vec<String> = mesh
        .netmap
        .members
        .values()
        .filter(|member| member.id != mesh.id())
        .map(|member| (member.name.as_str(), mesh.paths.limit(&member.id)))
        .filter(|(_, limit)| *limit < LEAST_IPV6)
        .map(|(name, limit)| format!("{name} ({limit} octets)"))
        .collect();
    (!narrow.is_empty()).then(|| Problem {
        what: "large IPv6 packets to some peers may be lost".into(),
        why: format!(
            "the path carries less than the {LEAST_IPV6} octets of a packet that IPv6 needs: {}",
            narrow.join(", ")
        ),
        fix: "raise the MTU on the way to at least 1360, or let fragments of UDP datagrams through"
            .into(),
    })
}

/// Everything meshd put on the machine.
pub(super) fn system(config: &Config, mesh: Option<&Mesh>) -> SystemList {
    let entry = |kind: &str, what: String, why: &str| SystemEntry {
        kind: kind.into(),
        what,
        why: why.into(),
    };
    let mut entries = vec![
        entry(
            "socket",
            config.socket.display().to_string(),
            "meshctl connects to it",
        ),
        entry(
            "file",
            config.state_dir.display().to_string(),
            "keys and records; stays when meshd stops",
        ),
    ];
    if let Some(mesh) = mesh {
        entries.extend(mesh.network.entries());
        entries.extend(mesh.firewall.entries());
        entries.push(entry(
            "socket",
            format!("UDP port {}", mesh.tunnel.listen_port()),
            "the tunnel to the other nodes",
        ));
        let [inside, outside] = [
            mesh.dns
                .iter()
                .flat_map(|dns| dns.inside.listen())
                .collect::<Vec<_>>(),
            mesh.dns
                .iter()
                .flat_map(|dns| dns.server.listen().to_vec())
                .collect(),
        ];
        for address in inside {
            entries.push(entry(
                "resolver",
                format!("{address} inside {}", config.tunnel.interface),
                "answers names of the mesh to this machine and its containers; no socket",
            ));
        }
        if let Some(dns) = &mesh.dns {
            if split_dns(dns) != "none" {
                entries.push(entry(
                    "resolver",
                    format!(
                        "systemd-resolved: server and domains of {}",
                        config.tunnel.interface
                    ),
                    "sends names of the mesh, and no others, to the DNS address",
                ));
            }
            if dns
                .keeper
                .as_ref()
                .is_some_and(|keeper| keeper.problem().is_none())
            {
                entries.push(entry(
                    "file",
                    "/etc/resolv.conf, as it was in /etc/resolv.conf.before-meshd".into(),
                    "makes the DNS address this machine's resolver",
                ));
            }
        }
        for address in outside {
            entries.push(entry(
                "socket",
                format!("UDP and TCP {address}"),
                "answers names of the mesh",
            ));
        }
    }
    SystemList {
        schema: SCHEMA,
        entries,
    }
}

/// The exposed containers of this node.
pub(super) fn containers(mesh: &Mesh) -> ContainerList {
    let docker = mesh.docker.as_ref();
    ContainerList {
        schema: SCHEMA,
        containers: docker
            .map(|docker| docker.rows(mesh.registry.drained()))
            .unwrap_or_default(),
    }
}

/// All services of the mesh.
pub(super) fn services(mesh: &Mesh) -> ServiceList {
    let mut rows: std::collections::BTreeMap<_, ServiceRow> = std::collections::BTreeMap::new();
    for service in mesh.netmap.services.values() {
        let Some(member) = mesh.netmap.members.get(&service.node) else {
            continue;
        };
        let row = rows
            .entry((service.name.clone(), service.project.clone()))
            .or_insert_with(|| ServiceRow {
                name: service.name.clone(),
                project: service.project.clone(),
                instances: Vec::new(),
            });
        for instance in &service.instances {
            for port in &instance.ports {
                row.instances.push(InstanceRow {
                    id: instance.id.clone(),
                    node: member.name.clone(),
                    address: instance
                        .addresses
                        .first()
                        .copied()
                        .unwrap_or(IpAddr::V4(member.block.node_v4())),
                    addresses: instance.addresses.clone(),
                    port: port.number.get(),
                    protocol: port.protocol,
                    port_name: port.name.clone(),
                    health: instance.health,
                    reachable: is_reachable(mesh, &service.node),
                    source: instance.source,
                });
            }
        }
    }
    ServiceList {
        schema: SCHEMA,
        services: rows.into_values().collect(),
    }
}

fn is_reachable(mesh: &Mesh, node: &PublicKey) -> bool {
    *node == mesh.id() || mesh.paths.reach().get(node) != Some(&Reach::Unreachable)
}

/// What a doctor must know.
pub(super) fn checkup(mesh: &Mesh, reply: Reply<Checkup>) {
    let domain = mesh.names.zone().load().domain.clone();
    let dns = mesh.dns.as_ref();
    let checkup = Checkup {
        schema: SCHEMA,
        name: format!("{}.node.{domain}", mesh.identity.name),
        expected: mesh.identity.block.node_v4(),
        dns: dns.and_then(|_| mesh.replica.ledger().mesh().map(|m| m.addresses.dns_v4())),
        split_dns: dns.map_or("none", split_dns).to_owned(),
        containers: Vec::new(),
        problems: [mesh.network.ways(), contested(&mesh.netmap)].concat(),
        removed: mesh.is_removed(),
        tunnels: Vec::new(),
    };
    let tunnels = tokio::task::spawn_blocking({
        let probes = probe_all(mesh);
        move || probes.into_iter().map(check_of).collect()
    });
    let sockets = mesh
        .config
        .docker
        .as_ref()
        .map(|docker| docker.sockets.clone());
    tokio::spawn(async move {
        let asked = timeout(
            CHECKUP_WAIT,
            residents(sockets.as_deref().unwrap_or_default()),
        )
        .await;
        let containers = asked.unwrap_or_default();
        let _ = reply.send(Ok(Checkup {
            containers,
            tunnels: tunnels.await.unwrap_or_default(),
            ..checkup
        }));
    });
}

/// A probe on its way to a peer, and what was known of the peer before.
struct Probed {
    name: Label,
    contact: Contact,
    waiting: Waiting,
}

/// Probes all other members at once.
fn probe_all(mesh: &Mesh) -> Vec<Probed> {
    let now = Instant::now();
    let probe = |member: &Member| {
        let key = member.wireguard_key.0;
        let contact = contact_of(mesh, member, mesh.tunnel.peer(&key).as_ref(), now);
        let [own, _] = mesh.own_addresses();
        Probed {
            name: member.name.clone(),
            contact,
            waiting: mesh
                .tunnel
                .probing()
                .ping(key, own, member.block.node_v4().into()),
        }
    };
    others(mesh).into_iter().map(probe).collect()
}

/// Waits for the answer. All probes were sent at the same time, so all of them take no longer than one.
fn check_of(probed: Probed) -> TunnelCheck {
    let (rtt, endpoint) = probed.waiting.wait(PROBE_WAIT);
    let (why, fix) = match rtt {
        Some(_) => (None, None),
        None => {
            let (why, fix) = probed.contact.failure(probed.name.as_str());
            (Some(why), Some(fix))
        }
    };
    TunnelCheck {
        peer: probed.name,
        endpoint,
        rtt_ms: rtt.map(milliseconds),
        why,
        fix,
    }
}

/// Sends a probe and answers when its echo is back.
pub(super) fn ping(mesh: &Mesh, ping: &Ping, reply: Reply<Pong>) {
    let wanted = ping.node.to_ascii_lowercase();
    let by_name = |name: &str| {
        name.strip_suffix(&format!(".node.{}", mesh.names.zone().load().domain))
            .unwrap_or(name)
            .to_owned()
    };
    let address: Option<IpAddr> = wanted.parse().ok();
    let name = by_name(&wanted);
    let member = mesh
        .netmap
        .members
        .values()
        .find(|m| m.name.as_str() == name || address.is_some_and(|a| m.block.contains(a)));
    let Some(member) = member.cloned() else {
        let text = format!(
            "there is no node {}; `meshctl status` shows all",
            ping.node.chars().take(70).collect::<String>()
        );
        return drop(reply.send(Err(ApiError::new(ErrorCode::NotFound, text))));
    };
    let target = IpAddr::V4(member.block.node_v4());
    let pong = Pong {
        node: member.name.clone(),
        address: target,
        endpoint: None,
        rtt_ms: None,
        problems: if mesh.network.is_astray(&member.addresses()) {
            mesh.network.ways()
        } else {
            Vec::new()
        },
    };
    if member.id == mesh.id() {
        return drop(reply.send(Ok(Pong {
            rtt_ms: Some(0.0),
            ..pong
        })));
    }
    let limit = Duration::from_millis(ping.timeout_ms.clamp(1, 60_000));
    let waiting =
        mesh.tunnel
            .probing()
            .ping(member.wireguard_key.0, mesh.own_addresses()[0], target);
    tokio::task::spawn_blocking(move || {
        let (rtt, endpoint) = waiting.wait(limit);
        let _ = reply.send(Ok(Pong {
            rtt_ms: rtt.map(milliseconds),
            endpoint,
            ..pong
        }));
    });
}

/// What DNS answers, and why.
pub(super) fn resolve(mesh: &Mesh, resolve: Resolve, reply: Reply<Resolved>) {
    let bad = |text: String| ApiError::new(ErrorCode::BadRequest, text);
    let shown: String = resolve.name.chars().take(260).collect();
    let Ok(mut name) = Name::from_ascii(&resolve.name) else {
        return drop(reply.send(Err(bad(format!("`{shown}` is no domain name: labels have at most 63 octets, names 253, with one dot between labels")))));
    };
    name.set_fqdn(true);
    let Ok(record_type) = resolve
        .record_type
        .to_ascii_uppercase()
        .parse::<RecordType>()
    else {
        return drop(reply.send(Err(bad(format!(
            "`{}` is no record type; A, AAAA, SRV, TXT and PTR are some",
            resolve.record_type.chars().take(20).collect::<String>()
        )))));
    };
    let zone = mesh.names.zone().load_full();
    let entropy = getrandom::u64().unwrap_or_default();
    match answer(&zone, &name, record_type, entropy) {
        Verdict::Answer(found) => {
            let why = if is_special(&name) {
                vec!["a name for special use (RFC 6761): answered here, and asked of no upstream resolver".into()]
            } else {
                why_so(&zone, &name, &found)
            };
            let _ = reply.send(Ok(resolved(shown, found.code, &found.answers, why)));
        }
        Verdict::Forward => {
            let upstream = std::sync::Arc::clone(&mesh.upstream);
            tokio::spawn(async move {
                let mut found = upstream.ask(&Question::new(name, record_type)).await;
                let mut why = vec![why_from(found.source)];
                why.extend(why_stripped(found.strip(&zone)));
                let _ = reply.send(Ok(resolved(shown, found.code, &found.answers, why)));
            });
        }
    }
}

fn resolved(name: String, code: ResponseCode, answers: &[Record], why: Vec<String>) -> Resolved {
    Resolved {
        schema: SCHEMA,
        name,
        response_code: code_text(code),
        answers: answers.iter().map(ToString::to_string).collect(),
        why,
    }
}

/// One line for each instance that the name has, and one for each thing that holds for all.
fn why_so(zone: &Zone, name: &Name, found: &Answer) -> Vec<String> {
    let mut why: Vec<String> = explain(zone, name)
        .into_iter()
        .map(|(i, part)| {
            let standing = match i.standing {
                Standing::Usable => "usable",
                Standing::Unreachable => "this node cannot reach its node",
                Standing::Unhealthy => "its node says it is unhealthy",
                Standing::Starting => "its first check is not through",
                Standing::Draining => "it is draining",
            };
            let part = match part {
                Part::Answered => "answered",
                Part::InTurn => "answered in turn, since there are more than go into one answer",
                Part::Farther => "left out: others are nearer",
                Part::Unusable => "left out",
            };
            let distance = match i.group {
                0 => "on this node".to_owned(),
                u8::MAX => "distance not known".to_owned(),
                group => format!("distance group {group}"),
            };
            format!(
                "{} on {}: {part}: {standing} (health {}, {distance})",
                i.name,
                i.node,
                i.health.as_str()
            )
        })
        .collect();
    if found.flagged {
        why.push(
            "no instance is usable, so those that are only unhealthy or unreachable are answered"
                .into(),
        );
    }
    match (found.code, found.answers.first(), found.authority.first()) {
        (ResponseCode::NXDomain, ..) => why.push("no such name is known in the mesh".into()),
        (_, Some(record), _) => why.push(format!("may be kept for {} s", record.ttl)),
        (_, None, Some(soa)) => {
            why.push(format!("that there is none may be kept for {} s", soa.ttl));
        }
        _ => {}
    }
    why
}

/// What was left out of an answer from outside.
fn why_stripped(stripped: Stripped) -> Vec<String> {
    let mut why = Vec::new();
    if stripped.addresses > 0 {
        why.push(format!(
            "left out: {} record(s) with addresses of the mesh, into which nobody outside may point",
            stripped.addresses
        ));
    }
    if stripped.aliases > 0 {
        why.push(format!(
            "left out: {} alias(es) to a name of the mesh, which are not followed: whoever owns the public name could lead a \
             browser to a service of the mesh (DNS rebinding); use the name of the mesh itself",
            stripped.aliases
        ));
    }
    why
}

fn why_from(source: Source) -> String {
    let seconds = |age: Duration| age.as_secs();
    match source {
        Source::Nobody => {
            "not a name of the mesh: no upstream resolver gave an answer to it".to_owned()
        }
        Source::Upstream(from) => format!("not a name of the mesh: {from} said so just now"),
        Source::Cache { from, age } => format!(
            "not a name of the mesh: {from} said so {} s ago",
            seconds(age)
        ),
        Source::Stale { from, age } => format!(
            "not a name of the mesh: {from} said so {} s ago, and no upstream resolver answers now",
            seconds(age)
        ),
    }
}

fn code_text(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".into(),
        ResponseCode::NXDomain => "NXDOMAIN".into(),
        ResponseCode::ServFail => "SERVFAIL".into(),
        other => other.to_str().to_ascii_uppercase(),
    }
}
