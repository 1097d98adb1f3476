//! Applies a plan through netlink, and reads what the machine has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::plan::{Found, Plan};

/// A refusal of the kernel.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct HostNetworkError {
    action: String,
    source: rtnetlink::Error,
}

/// The machine's network.
#[derive(Debug)]
pub struct HostNetwork {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for HostNetwork {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl HostNetwork {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn open() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Gives a device that is not up yet the plainest queueing discipline, one for all its queues: the kernel would make one
    /// for each queue there might be, and nothing ever waits in any, since the device always takes what it is given. Where it
    /// refuses, that only costs memory.
    pub async fn set_discipline(&self, index: u32) {
        let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or_default());
        message.header.parent = TcHandle::ROOT;
        message
            .attributes
            .push(TcAttribute::Kind("pfifo_fast".into()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let Ok(mut answers) = self.handle.clone().request(request) else {
            return;
        };
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                tracing::debug!(%error, "the tunnel device keeps its queueing discipline");
            }
        }
    }

    /// Brings the device of index `index` into the planned state; gives what was not as planned before.
    ///
    /// # Errors
    /// The kernel refuses a change.
    pub async fn apply(&self, plan: &Plan, index: u32) -> Result<Vec<String>, HostNetworkError> {
        let fault = |action: String| move |source| HostNetworkError { action, source };
        let mut changed = Vec::new();
        let found = self.found().await?;
        let has = |what: &str, net: &IpNet| {
            found
                .iter()
                .any(|f| f.what == what && f.net == *net && f.interface == plan.interface)
        };
        let up = LinkUnspec::new_with_index(index)
            .mtu(u32::from(plan.mtu))
            .up()
            .build();
        self.handle
            .link()
            .set(up)
            .execute()
            .await
            .map_err(fault(format!("bring {} up", plan.interface)))?;
        for net in plan.addresses.iter().filter(|net| !has("address", net)) {
            let mut request = self
                .handle
                .address()
                .add(index, net.addr(), net.prefix_len())
                .replace();
            if net.addr().is_ipv6() {
                // Nobody else can have it: there is nobody to ask.
                request.message_mut().header.flags |=
                    rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
            }
            request
                .execute()
                .await
                .map_err(fault(format!("add the address {net}")))?;
            changed.push(format!("address {net}"));
        }
        for (net, source) in plan.routes.iter().filter(|(net, _)| !has("route", net)) {
            self.add_route(*net, *source, index)
                .await
                .map_err(fault(format!("add the route {net}")))?;
            changed.push(format!("route {net}"));
        }
        Ok(changed)
    }

    async fn add_route(
        &self,
        net: IpNet,
        source: IpAddr,
        index: u32,
    ) -> Result<(), rtnetlink::Error> {
        let message: RouteMessage = match (net, source) {
            (IpNet::V4(net), IpAddr::V4(source)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .pref_source(source)
                .build(),
            (IpNet::V6(net), IpAddr::V6(source)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .pref_source(source)
                .build(),
            _ => return Ok(()),
        };
        self.handle.route().add(message).replace().execute().await
    }

    /// All addresses and unicast routes of the machine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn found(&self) -> Result<Vec<Found>, HostNetworkError> {
        let fault = |action: &'static str| {
            move |source| HostNetworkError {
                action: action.into(),
                source,
            }
        };
        let mut names = HashMap::new();
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(fault("list the interfaces"))?;
        for link in links {
            for attribute in &link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(link.header.index, name.clone());
                }
            }
        }
        let name = |index: u32| {
            names
                .get(&index)
                .cloned()
                .unwrap_or_else(|| format!("interface {index}"))
        };
        let mut found = Vec::new();
        let addresses: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(fault("list the addresses"))?;
        for message in addresses {
            for attribute in &message.attributes {
                if let AddressAttribute::Address(address) = attribute
                    && let Ok(net) = IpNet::new(*address, message.header.prefix_len)
                {
                    found.push(Found {
                        what: "address",
                        net,
                        interface: name(message.header.index),
                    });
                }
            }
        }
        for request in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let routes: Vec<RouteMessage> = self
                .handle
                .route()
                .get(request)
                .execute()
                .try_collect()
                .await
                .map_err(fault("list the routes"))?;
            found.extend(routes.iter().filter_map(|route| route_of(route, &name)));
        }
        Ok(found)
    }
}

fn route_of(route: &RouteMessage, name: &impl Fn(u32) -> String) -> Option<Found> {
    // The kernel keeps local and multicast entries in tables of their own; addresses stand for those.
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut net, mut interface) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
                net = IpNet::new(IpAddr::V4(*v4), route.header.destination_prefix_length).ok()
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
                net = IpNet::new(IpAddr::V6(*v6), route.header.destination_prefix_length).ok()
            }
            RouteAttribute::Oif(index) => interface = Some(name(*index)),
            _ => {}
        }
    }
    Some(Found {
        what: "route",
        net: net?,
        interface: interface?,
    })
}
