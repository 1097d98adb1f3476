//! The containers' ports of the bridges, found and set through netlink: no right to look into processes is needed.
//!
//! A container's network namespace has a number here once a pair of devices leads into it. The kernel gives that number
//! for a process, and for each device that leads there; so the port is the device with the number of the container's
//! process on the bridge that holds its address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{Handle, LinkBridgePort};

use super::Wiring;

/// A container's port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) index: u32,
    pub(super) name: String,
    /// Whether packets go back to where they came from.
    pub(super) hairpin: bool,
    /// The container's ports of other bridges: answers may leave by any of them.
    pub(super) others: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// By the container's own address.
    pub(super) found: BTreeMap<Ipv4Addr, Port>,
    /// Bridges of the wiring that are not on this machine.
    pub(super) absent: Vec<String>,
    /// The tunnel device and bridges from which packets are not forwarded.
    pub(super) stuck: Vec<String>,
}

/// A device as far as it matters here.
struct Device {
    index: u32,
    name: String,
    bridge: Option<u32>,
    namespace: Option<i32>,
    hairpin: bool,
    forwards: bool,
}

/// Looks for the bridges and for the ports of all mapped containers.
pub(super) async fn find(handle: &Handle, wiring: &Wiring) -> Result<Ports, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let devices: Vec<Device> = links.iter().map(device).collect();
    let bridge = |name: &str| devices.iter().find(|d| d.name == name).map(|d| d.index);
    let mut ports = Ports::default();
    for name in wiring.bridges.keys() {
        if bridge(name).is_none() {
            ports.absent.push(name.clone());
        }
    }
    let ours = |name: &String| *name == wiring.interface || wiring.bridges.contains_key(name);
    let stuck = devices.iter().filter(|d| ours(&d.name) && !d.forwards);
    ports.stuck = stuck.map(|d| d.name.clone()).collect();
    for mapped in wiring.mappings.values() {
        let holds = wiring
            .bridges
            .iter()
            .flat_map(|(name, nets)| nets.iter().map(move |net| (name, net)))
            .filter(|(_, net)| net.contains(&mapped.container))
            .max_by_key(|(_, net)| net.prefix_len());
        let (Some(pid), Some(bridge)) = (mapped.pid, holds.and_then(|(name, _)| bridge(name)))
        else {
            continue;
        };
        let Some(namespace) = namespace_of(handle, pid).await else {
            continue;
        };
        let leads_there =
            |device: &&Device| device.bridge.is_some() && device.namespace == Some(namespace);
        let all = || devices.iter().filter(leads_there);
        if let Some(device) = all().find(|d| d.bridge == Some(bridge)) {
            let others = all().filter(|d| d.index != device.index);
            ports.found.insert(
                mapped.container,
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

/// Lets packets go back out of the port they came from, or no longer.
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

/// The number that the network namespace of a process has here, if it has one.
async fn namespace_of(handle: &Handle, pid: u32) -> Option<i32> {
    let mut ask = NsidMessage::default();
    ask.attributes.push(NsidAttribute::Pid(pid));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(ask));
    message.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(message).ok()?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(told)) = answer.payload {
            return told
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
