//! Applies a plan through netlink, and lists what is configured on the machine.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::plan::{Device, Ipv6, MAIN_TABLE, NO_TABLE, NetworkEntry, NetworkPlan, Step};
use super::route_lookup::{Lookup, Rule};
use super::survey::{DefaultGateway, Link, LinkKind, Route, RouteKind, Survey};
use crate::os::tasks::{AbortOnDrop, Tasks};

/// An error of the kernel.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct HostNetworkError {
    action: String,
    source: rtnetlink::Error,
    ipv6: bool,
}

impl HostNetworkError {
    /// Whether the error concerns only IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }
}

/// The result of applying a plan.
#[derive(Debug)]
pub struct Applied {
    /// Whether the device accepts IPv6 addresses.
    pub ipv6: Ipv6,
    /// The machine's network before the plan was applied.
    pub survey: Survey,
    /// The steps that were necessary.
    pub changed: Vec<Step>,
    /// The steps that failed.
    pub refused: Vec<HostNetworkError>,
}

/// Access to the machine's network.
#[derive(Debug)]
pub struct HostNetwork {
    handle: Handle,
    _connection: AbortOnDrop,
}

impl HostNetwork {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// The kernel opens no socket.
    pub fn open() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        // The connection ends with the socket, or with this value.
        let connection = Tasks::current().spawn_finite("netlink of the host", connection);
        Ok(Self {
            handle,
            _connection: connection.abort_on_drop(),
        })
    }

    /// Sets a simple queueing discipline, with one queue, for a device that is not up yet. By default the kernel
    /// creates one discipline for each possible queue, but no packet ever waits in any of them, since the device
    /// accepts every packet at once. If this fails, the only cost is memory.
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

    /// Applies the plan to the device with index `index`. A step that fails does not prevent the others. Returns none
    /// if there is no such device in this network namespace.
    ///
    /// # Errors
    /// The kernel does not list the present configuration.
    pub async fn apply(
        &self,
        plan: &NetworkPlan,
        index: u32,
    ) -> Result<Option<Applied>, HostNetworkError> {
        let survey = self.survey().await?;
        let Some(device) = survey.device(index).copied() else {
            return Ok(None);
        };
        let mut applied = Applied {
            ipv6: device.ipv6,
            survey,
            changed: Vec::new(),
            refused: Vec::new(),
        };
        for step in plan.steps(&device, &applied.survey.found()) {
            match self.apply_step(step, plan, index).await {
                Ok(()) => applied.changed.push(step),
                Err(source) => applied.refused.push(HostNetworkError {
                    action: step.to_string(),
                    source,
                    ipv6: step.is_ipv6(),
                }),
            }
        }
        Ok(Some(applied))
    }

    async fn apply_step(
        &self,
        step: Step,
        plan: &NetworkPlan,
        index: u32,
    ) -> Result<(), rtnetlink::Error> {
        match step {
            Step::Link => {
                let up = LinkUnspec::new_with_index(index)
                    .mtu(u32::from(plan.mtu))
                    .up()
                    .build();
                self.handle.link().set(up).execute().await
            }
            Step::Address(net) => {
                let mut request = self
                    .handle
                    .address()
                    .add(index, net.addr(), net.prefix_len())
                    .replace();
                if net.addr().is_ipv6() {
                    // No other host can have this address, so duplicate address detection is not necessary.
                    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
                }
                request.execute().await
            }
            Step::Route(net, source) => self.add_route(net, source, index).await,
        }
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

    /// Removes the route to `net` by the device with index `index`.
    ///
    /// # Errors
    /// The kernel does not remove it. It may be gone already.
    pub async fn remove_route(&self, net: IpNet, index: u32) -> Result<(), HostNetworkError> {
        let message: RouteMessage = match net {
            IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .build(),
            IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .build(),
        };
        let removed = self.handle.route().del(message).execute().await;
        removed.map_err(error_in("remove a route"))
    }

    /// Returns all addresses and unicast routes of the machine.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub async fn found(&self) -> Result<Vec<NetworkEntry>, HostNetworkError> {
        Ok(self.survey().await?.found())
    }

    /// Returns all interfaces, addresses and routes of the machine.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub async fn survey(&self) -> Result<Survey, HostNetworkError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(error_in("list the interfaces"))?;
        let links: Vec<Link> = links.iter().map(link_of).collect();
        let names: HashMap<u32, &str> = links.iter().map(|l| (l.index, l.name.as_str())).collect();
        let name = |index: u32| match names.get(&index) {
            Some(name) => (*name).to_owned(),
            None => format!("interface {index}"),
        };
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(error_in("list the addresses"))?;
        let mut addresses = Vec::new();
        for message in messages {
            for attribute in &message.attributes {
                if let AddressAttribute::Address(address) = attribute
                    && let Ok(net) = IpNet::new(*address, message.header.prefix_len)
                {
                    addresses.push(NetworkEntry {
                        what: "address",
                        table: NO_TABLE,
                        net,
                        interface: name(message.header.index),
                    });
                }
            }
        }
        let (mut routes, mut gateways) = (Vec::new(), Vec::new());
        for request in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let listed = self.handle.route().get(request).execute();
            let listed: Result<Vec<RouteMessage>, _> = listed.try_collect().await;
            match listed {
                Ok(listed) => {
                    routes.extend(listed.iter().filter_map(|r| route_of(r, &name)));
                    gateways.extend(gateway_of(&listed, &name));
                }
                Err(error) if is_without_family(&error) => {}
                Err(error) => return Err(error_in("list the routes")(error)),
            }
        }
        Ok(Survey {
            links,
            addresses,
            routes,
            gateway: gateways.iter().find(|of| of.address.is_ipv4()).cloned(),
            gateway_v6: gateways.iter().find(|of| of.address.is_ipv6()).cloned(),
        })
    }

    /// Returns the route that the kernel uses for a packet from `source` to `address`.
    ///
    /// # Errors
    /// The kernel does not reply.
    pub async fn look_up_route(
        &self,
        address: IpAddr,
        source: IpAddr,
        survey: &Survey,
    ) -> Result<Lookup, HostNetworkError> {
        let message = match (address, source) {
            (IpAddr::V4(to), IpAddr::V4(from)) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .source_prefix(from, 32)
                .build(),
            (IpAddr::V6(to), IpAddr::V6(from)) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, 128)
                .source_prefix(from, 128)
                .build(),
            _ => {
                return Ok(Lookup::Failed(
                    "the addresses are of different families".into(),
                ));
            }
        };
        let mut request = self.handle.route().get(message);
        let header = &mut request.message_mut().header;
        // Returns the entry of the routing table itself, not a route derived from it for this address.
        header.flags = RouteFlags::LookupTable | RouteFlags::FibMatch;
        let answer: Result<Option<RouteMessage>, _> = request.execute().try_next().await;
        let name = |index: u32| survey.name(index);
        match answer {
            Ok(Some(route)) => Ok(route_of(&route, &name).map_or_else(
                || Lookup::Failed("the reply is not a route".into()),
                Lookup::Route,
            )),
            Ok(None) => Ok(Lookup::Failed("no reply".into())),
            Err(rtnetlink::Error::NetlinkError(error)) => {
                Ok(Lookup::Failed(error.to_io().to_string()))
            }
            Err(error) => Err(error_in("look up a route")(error)),
        }
    }

    /// Returns all policy routing rules.
    ///
    /// # Errors
    /// The kernel returns an error.
    pub async fn rules(&self) -> Result<Vec<Rule>, HostNetworkError> {
        let mut rules = Vec::new();
        for family in [IpVersion::V4, IpVersion::V6] {
            let listed = self.handle.rule().get(family).execute();
            let listed: Result<Vec<RuleMessage>, _> = listed.try_collect().await;
            match listed {
                Ok(listed) => rules.extend(listed.iter().map(rule_of)),
                Err(error) if is_without_family(&error) => {}
                Err(error) => return Err(error_in("list the rules")(error)),
            }
        }
        Ok(rules)
    }
}

fn error_in(action: &'static str) -> impl Fn(rtnetlink::Error) -> HostNetworkError {
    move |source| HostNetworkError {
        action: action.into(),
        source,
        ipv6: false,
    }
}

/// Whether the error is that the kernel does not support this address family.
fn is_without_family(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(error) = error else {
        return false;
    };
    matches!(
        error.raw_code().saturating_neg(),
        libc::EAFNOSUPPORT | libc::EOPNOTSUPP
    )
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        controller: None,
        device: Device {
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            ipv6: Ipv6::Absent,
        },
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.device.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
                        LinkInfo::Kind(InfoKind::Veth | InfoKind::Tun) => {
                            link.kind = LinkKind::Guest;
                        }
                        _ => {}
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(families) => {
                let settings = families.iter().filter_map(|family| match family {
                    AfSpecUnspec::Inet6(settings) => Some(settings),
                    _ => None,
                });
                for setting in settings.flatten() {
                    if let AfSpecInet6::DevConf(conf) = setting {
                        link.device.ipv6 = if conf.disable_ipv6 == 0 {
                            Ipv6::On
                        } else {
                            Ipv6::Off
                        };
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn route_of(message: &RouteMessage, name: &impl Fn(u32) -> String) -> Option<Route> {
    let header = &message.header;
    let everything: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut to, mut interface, mut table) = (everything, None, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => to = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => to = (*v6).into(),
            RouteAttribute::Oif(index) => interface = Some(name(*index)),
            RouteAttribute::MultiPath(hops) if interface.is_none() => {
                interface = hops.first().map(|hop| name(hop.interface_index));
            }
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => RouteKind::Discard,
        RouteType::Throw => RouteKind::Throw,
        _ => RouteKind::Other,
    };
    Some(Route {
        table,
        kind,
        net: IpNet::new(to, header.destination_prefix_length).ok()?,
        interface,
    })
}

/// The gateway of the default route with the lowest metric in the main table, among the routes of one family. A route without a gateway,
/// as that of a tunnel, leads to no router that could be asked.
fn gateway_of(routes: &[RouteMessage], name: &impl Fn(u32) -> String) -> Option<DefaultGateway> {
    let defaults = routes.iter().filter(|route| {
        let header = &route.header;
        header.destination_prefix_length == 0
            && header.kind == RouteType::Unicast
            && u32::from(header.table) == MAIN_TABLE
    });
    let metric = |route: &&RouteMessage| {
        let metrics = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Priority(metric) => Some(*metric),
                _ => None,
            });
        metrics.unwrap_or(0)
    };
    let (mut address, mut interface) = (None, None);
    for attribute in &defaults.min_by_key(metric)?.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => address = Some((*v4).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => address = Some((*v6).into()),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let index = interface?;
    Some(DefaultGateway {
        address: address?,
        interface: name(index),
        index,
    })
}

fn rule_of(message: &RuleMessage) -> Rule {
    let (mut priority, mut to, mut table) = (0, None, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Destination(address) => {
                to = IpNet::new(*address, message.header.dst_len).ok();
            }
            _ => {}
        }
    }
    let discards = matches!(
        message.header.action,
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit
    );
    Rule {
        priority,
        to,
        table: (!discards).then_some(table),
    }
}
