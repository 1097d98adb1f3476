//! Finds and configures the bridge ports of containers through netlink, which needs no permission to inspect processes.
//!
//! The kernel gives a network namespace an id in the host's namespace as soon as a pair of virtual devices connects the
//! two. Netlink returns this id for a process, and for each device whose peer is in that namespace. So a container's
//! port is the device that has the namespace id of the container's process and that is a port of the bridge that holds
//! the container's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Handle, LinkBridgePort};

use super::FirewallState;

/// A container's port on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) index: u32,
    pub(super) name: String,
    /// Whether the port is in hairpin mode: the bridge may send a packet back out of the port that it came from.
    pub(super) hairpin: bool,
    /// The container's ports on other bridges. Its answers may leave through any of them.
    pub(super) others: Vec<String>,
}

/// The bridge ports that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// The ports by the container's own address.
    pub(super) found: BTreeMap<IpAddr, Port>,
    /// The bridges of mapped containers that are not on this machine. A bridge without containers may have gone with its network, before
    /// the engine said so.
    pub(super) absent: Vec<String>,
    /// The tunnel device and the bridges for which IPv4 forwarding is off.
    pub(super) not_forwarding: Vec<String>,
}

/// The attributes of a network device that matter here.
struct Device {
    index: u32,
    name: String,
    bridge: Option<u32>,
    namespace: Option<i32>,
    hairpin: bool,
    forwards: bool,
}

/// Finds the bridges and the ports of all mapped containers.
pub(super) async fn find(
    handle: &Handle,
    state: &FirewallState,
) -> Result<Ports, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let devices: Vec<Device> = links.iter().map(device).collect();
    let bridge = |name: &str| devices.iter().find(|d| d.name == name).map(|d| d.index);
    let mut ports = Ports {
        absent: absent(state, |name| bridge(name).is_some()),
        ..Ports::default()
    };
    let ours = |name: &String| *name == state.interface || state.bridges.contains_key(name);
    let not_forwarding = devices.iter().filter(|d| ours(&d.name) && !d.forwards);
    ports.not_forwarding = not_forwarding.map(|d| d.name.clone()).collect();
    for (container, pid) in state.processes() {
        let holder = holder(state, container);
        let (Some(pid), Some(bridge)) = (pid, holder.and_then(|name| bridge(name))) else {
            continue;
        };
        let Some(namespace) = namespace_of(handle, pid).await else {
            continue;
        };
        let is_peer_of =
            |device: &&Device| device.bridge.is_some() && device.namespace == Some(namespace);
        let all = || devices.iter().filter(is_peer_of);
        if let Some(device) = all().find(|d| d.bridge == Some(bridge)) {
            let others = all().filter(|d| d.index != device.index);
            ports.found.insert(
                container,
                Port {
                    index: device.index,
                    name: device.name.clone(),
                    hairpin: device.hairpin,
                    others: others.map(|d| d.name.clone()).collect(),
                },
            );
        }
    }
    Ok(ports)
}

/// The bridge in whose network a container has its address.
fn holder(state: &FirewallState, container: IpAddr) -> Option<&String> {
    let holds = state.subnets().filter(|(_, net)| net.contains(&container));
    let nearest = holds.max_by_key(|(_, net)| net.prefix_len());
    nearest.map(|(name, _)| name)
}

/// The bridges of mapped containers for which `is_here` does not hold.
fn absent(state: &FirewallState, is_here: impl Fn(&str) -> bool) -> Vec<String> {
    let containers = state.processes();
    let holders = containers.filter_map(|(container, _)| holder(state, container));
    let absent: BTreeSet<&String> = holders.filter(|name| !is_here(name)).collect();
    absent.into_iter().cloned().collect()
}

/// Sets whether the bridge may send packets back out of the port that they came from.
pub(super) async fn set_hairpin(
    handle: &Handle,
    index: u32,
    on: bool,
) -> Result<(), rtnetlink::Error> {
    let change = LinkBridgePort::new(index).hairpin(on).build();
    handle.link().set_port(change).execute().await
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        index: link.header.index,
        name: String::new(),
        bridge: None,
        namespace: None,
        hairpin: false,
        forwards: true,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Controller(index) => device.bridge = Some(*index),
            LinkAttribute::LinkNetNsId(id) => device.namespace = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                device.hairpin |= infos.iter().any(|info| match info {
                    LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                        port.contains(&InfoBridgePort::HairpinMode(true))
                    }
                    _ => false,
                });
            }
            LinkAttribute::AfSpecUnspec(families) => {
                let off = |setting: &AfSpecInet| matches!(setting, AfSpecInet::DevConf(conf) if conf.forwarding == 0);
                device.forwards &= !families.iter().any(
                    |family| matches!(family, AfSpecUnspec::Inet(settings) if settings.iter().any(off)),
                );
            }
            _ => {}
        }
    }
    device
}

/// The id that the network namespace of a process has in this namespace, if it has one.
async fn namespace_of(handle: &Handle, pid: u32) -> Option<i32> {
    let mut request_body = NsidMessage::default();
    request_body.attributes.push(NsidAttribute::Pid(pid));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(request_body));
    message.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(message).ok()?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(reply)) = answer.payload {
            return reply
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::firewall::{Mapped, Outside};

    #[test]
    fn a_bridge_is_absent_only_if_it_holds_a_container() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().expect("a literal");
        let bridge = |name: &str, net: &str| {
            let net = net.parse().expect("a literal");
            (name.to_owned(), vec![net])
        };
        let mapped = Mapped {
            container: ip("172.18.0.2"),
            pid: Some(7),
            name: "db".into(),
            ports: None,
        };
        let mut state = FirewallState {
            interface: "mesh0".into(),
            prefix: "10.210.0.0/16".parse().expect("a literal"),
            block: "10.210.1.0/24".parse().expect("a literal"),
            node: ip("10.210.1.1"),
            bridges: BTreeMap::from([
                bridge("docker0", "172.17.0.0/16"),
                bridge("br-project", "172.18.0.0/16"),
            ]),
            mappings: BTreeMap::from([(ip("10.210.1.2"), mapped)]),
            service_addresses: BTreeMap::new(),
            native: None,
            outside: Outside::default(),
            policy: None,
            guests: BTreeSet::new(),
            v6: None,
        };
        assert_eq!(absent(&state, |_| false), ["br-project"]);
        assert!(absent(&state, |name| name == "br-project").is_empty());
        state.mappings.clear();
        assert!(absent(&state, |_| false).is_empty());
    }
}
