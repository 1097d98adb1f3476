//! Asks a router for a port by UPnP. The library `igd-next` speaks the protocol: it limits the size and depth of what a router
//! answers, and refuses a description or a control address at another host than the one that answered.
//!
//! The gateway itself is asked first. Some routers answer only questions to the multicast group, which anybody in the network may
//! answer, so an answer that leads to another address than the gateway's is refused.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, GatewayIpVersion, PortMappingProtocol, SearchError, SearchOptions};
use tokio::time::timeout;

use crate::model::text;
use crate::path::mapping::{LIFETIME, Protocol, Refusal, Request};

/// The port and the multicast group of discovery (UPnP Device Architecture 1.1 section 1.3.2).
const DISCOVERY_PORT: u16 = 1900;
const DISCOVERY_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// How long the gateway may take to describe itself, and then whoever is in the group. A router takes some time to make a
/// description of many kilobytes.
const SEARCH_TIMEOUTS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// How long the answer to one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the deletion may take: the node stops meanwhile.
const DELETE_TIMEOUT: Duration = Duration::from_millis(500);
/// The number of outer ports that are asked for, if others have them.
const MAX_PORTS: u16 = 3;
/// What the list of the router calls the mapping.
const DESCRIPTION: &str = "meshd";
/// The actions that are asked for, and their arguments. What else a router describes is left out.
const ACTIONS: [&str; 2] = ["AddPortMapping", "DeletePortMapping"];
const ARGUMENTS: [&str; 8] = [
    "NewRemoteHost",
    "NewExternalPort",
    "NewProtocol",
    "NewInternalPort",
    "NewInternalClient",
    "NewEnabled",
    "NewPortMappingDescription",
    "NewLeaseDuration",
];

/// A router that maps ports by UPnP.
pub(super) struct Device {
    gateway: Gateway<Tokio>,
    local: SocketAddr,
    /// Its outer address.
    pub(super) outer: IpAddr,
}

/// A mapping.
pub(super) struct Lease {
    device: Device,
    port: u16,
    /// How long the router keeps the mapping, in seconds: 0 is for ever.
    seconds: u32,
}

impl Device {
    /// Finds the router and asks for its outer address.
    pub(super) async fn find(request: &Request) -> Result<Self, Refusal> {
        let gateway = request.site.gateway;
        let mut found = Err(SearchError::NoResponseWithinTimeout);
        for (to, limit) in [gateway, DISCOVERY_GROUP].into_iter().zip(SEARCH_TIMEOUTS) {
            let mut options = SearchOptions::default();
            options.bind_addr = (request.site.own, 0).into();
            options.broadcast_address = (to, DISCOVERY_PORT).into();
            options.timeout = Some(limit);
            options.single_search_timeout = Some(limit);
            options.gateway_ip_version = GatewayIpVersion::V4;
            found = search_gateway(options).await;
            if found.is_ok() {
                break;
            }
        }
        // The library goes on after an answer that is none, so most errors are silence in the end.
        let Ok(mut found) = found else {
            return Err(Refusal::Silent(gateway));
        };
        if found.addr.ip() != gateway {
            let who = found.addr.ip();
            return Err(denied(&format!(
                "{who} answered, which is not the gateway {gateway}"
            )));
        }
        found.control_schema.retain(|action, arguments| {
            arguments.retain(|argument| ARGUMENTS.contains(&argument.as_str()));
            ACTIONS.contains(&action.as_str())
        });
        let mut device = Self {
            gateway: found,
            local: (request.site.own, request.site.port).into(),
            outer: Ipv4Addr::UNSPECIFIED.into(),
        };
        device.ask_outer().await?;
        Ok(device)
    }

    async fn ask_outer(&mut self) -> Result<(), Refusal> {
        let outer = timeout(REQUEST_TIMEOUT, self.gateway.get_external_ip()).await;
        self.outer = outer
            .map_err(|_| late())?
            .map_err(|error| denied(&error.to_string()))?;
        Ok(())
    }

    /// Maps `port`, or another one if somebody has it.
    pub(super) async fn map(self, mut port: u16) -> Result<Lease, Refusal> {
        let mut seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(0);
        let mut taken = 0;
        loop {
            let error = match self.add(port, seconds).await? {
                Ok(()) => break,
                Err(error) => error,
            };
            match error {
                AddPortError::OnlyPermanentLeasesSupported if seconds != 0 => seconds = 0,
                AddPortError::SamePortValuesRequired if port != self.local.port() => {
                    port = self.local.port();
                }
                AddPortError::PortInUse if taken < MAX_PORTS && port != self.local.port() => {
                    taken += 1;
                    port = port.checked_add(1).unwrap_or(u16::MAX - MAX_PORTS);
                }
                other => return Err(denied(&other.to_string())),
            }
        }
        Ok(Lease {
            device: self,
            port,
            seconds,
        })
    }

    async fn add(&self, port: u16, seconds: u32) -> Result<Result<(), AddPortError>, Refusal> {
        let udp = PortMappingProtocol::UDP;
        let adding = self
            .gateway
            .add_port(udp, port, self.local, seconds, DESCRIPTION);
        timeout(REQUEST_TIMEOUT, adding).await.map_err(|_| late())
    }
}

impl Lease {
    /// The outer address.
    pub(super) fn external(&self) -> SocketAddr {
        SocketAddr::new(self.device.outer, self.port)
    }

    /// Asks for the mapping again: a router that was restarted has forgotten it, and may have another address.
    pub(super) async fn renew(&mut self) -> Result<(), Refusal> {
        self.device.ask_outer().await?;
        let added = self.device.add(self.port, self.seconds).await?;
        added.map_err(|error| denied(&error.to_string()))
    }

    /// Deletes the mapping. If that fails, it ends by itself at most routers.
    pub(super) async fn delete(self) {
        let udp = PortMappingProtocol::UDP;
        let deleted = self.device.gateway.remove_port(udp, self.port);
        match timeout(DELETE_TIMEOUT, deleted).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a router does not delete a mapping"),
            Err(_) => tracing::debug!("a router does not answer the deletion of a mapping"),
        }
    }
}

fn denied(why: &str) -> Refusal {
    Refusal::Denied(Protocol::Upnp, text::message(why))
}

fn late() -> Refusal {
    denied("it took too long to answer")
}
