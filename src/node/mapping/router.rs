//! The task that asks the router for a port, by PCP, NAT-PMP and UPnP at the same time.
//!
//! All three ask for the outer address; a port is then mapped by one of them, so that no router holds two mappings. The library
//! `crab_nat` speaks PCP and NAT-PMP: its sockets accept datagrams of the gateway only, and it verifies nonce, inner port and
//! protocol of an answer.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{
    GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType,
    TimeoutConfig, natpmp, pcp,
};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::upnp;
use crate::model::{MeshAddresses, text};
use crate::path::mapping::{
    Answer, Choice, Finding, Granted, LIFETIME, Protocol, Refusal, Request, choose,
};

/// The answer to the first datagram is awaited for the time of RFC 6886 section 3.1. Then the datagram is sent once more.
const TIMEOUTS: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 1,
    max_retry_timeout: Some(Duration::from_millis(500)),
};
/// A deletion is not repeated: the node stops meanwhile, and the mapping ends by itself.
const DELETE_TIMEOUTS: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 0,
    max_retry_timeout: None,
};
/// How long the whole deletion may take.
const DELETE_TIMEOUT: Duration = Duration::from_millis(600);

/// What the task is to do.
pub(super) enum Command {
    /// Delete the mapping that there is, and ask for one.
    Ask(Request, MeshAddresses),
    /// Ask for the same mapping again.
    Renew(u64),
    /// Delete the mapping. The sender is told when that is done.
    Delete(oneshot::Sender<()>),
}

/// A mapping at the router.
enum Lease {
    /// By PCP or NAT-PMP, with the outer address.
    Datagram(PortMapping, IpAddr),
    Upnp(upnp::Lease),
}

/// What a router answered to the question for its outer address.
enum Found {
    /// PCP maps the port with the same answer.
    Pcp(PortMapping, IpAddr),
    NatPmp(IpAddr),
    Upnp(upnp::Device),
}

/// Carries out commands until there are no more.
pub(super) async fn run(mut commands: mpsc::Receiver<Command>, answers: mpsc::Sender<Answer>) {
    let mut lease: Option<Lease> = None;
    while let Some(command) = commands.recv().await {
        let answer = match command {
            Command::Ask(request, mesh) => {
                delete(lease.take()).await;
                let made = Box::pin(ask(&request, &mesh)).await;
                let result = made.map(|made| lease.insert(made).granted());
                Answer {
                    number: request.number,
                    result,
                }
            }
            Command::Renew(number) => {
                let Some(lease) = &mut lease else { continue };
                let renewed = Box::pin(lease.renew()).await;
                Answer {
                    number,
                    result: renewed.map(|()| lease.granted()),
                }
            }
            Command::Delete(done) => {
                delete(lease.take()).await;
                let _ = done.send(());
                continue;
            }
        };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

async fn delete(lease: Option<Lease>) {
    let Some(lease) = lease else { return };
    let deleted = async {
        match lease {
            Lease::Datagram(mut mapping, _) => {
                mapping.timeout_config = DELETE_TIMEOUTS;
                if let Err((error, _)) = mapping.try_drop().await {
                    tracing::debug!(%error, "a router does not delete a mapping");
                }
            }
            Lease::Upnp(lease) => lease.delete().await,
        }
    };
    let _ = timeout(DELETE_TIMEOUT, deleted).await;
}

/// Asks for a port by the protocol that is chosen.
async fn ask(request: &Request, mesh: &MeshAddresses) -> Result<Lease, Refusal> {
    let (chosen, [pcp, nat_pmp, upnp]) = find(request, mesh).await;
    let taken = match chosen {
        Ok(Protocol::Pcp) => pcp,
        other => {
            discard(pcp).await;
            match other? {
                Protocol::Upnp => upnp,
                Protocol::Pcp | Protocol::NatPmp => nat_pmp,
            }
        }
    };
    match taken {
        Some(Found::Pcp(mapping, outer)) => Ok(Lease::Datagram(mapping, outer)),
        Some(Found::NatPmp(outer)) => {
            let mapping = natpmp::port_mapping(
                request.site.gateway.into(),
                InternetProtocol::Udp,
                inner_port(request)?,
                options(request),
            );
            let mapping = mapping.await;
            let mapping = mapping.map_err(|error| nat_pmp_refusal(request, &error))?;
            Ok(Lease::Datagram(mapping, outer))
        }
        Some(Found::Upnp(device)) => Ok(Lease::Upnp(device.map(request.port).await?)),
        None => Err(Refusal::Silent(request.site.gateway)),
    }
}

/// Asks for the outer address by all protocols until one is chosen. Returns that one, and the answers so far.
async fn find(
    request: &Request,
    mesh: &MeshAddresses,
) -> (Result<Protocol, Refusal>, [Option<Found>; 3]) {
    let mut asked: FuturesUnordered<BoxFuture<'_, (Protocol, Result<Found, Refusal>)>> =
        FuturesUnordered::new();
    asked.push(Box::pin(async { (Protocol::Pcp, ask_pcp(request).await) }));
    asked.push(Box::pin(async {
        (Protocol::NatPmp, ask_nat_pmp(request).await)
    }));
    asked.push(Box::pin(async {
        let found = upnp::Device::find(request).await;
        (Protocol::Upnp, found.map(Found::Upnp))
    }));
    let mut findings: [Option<Finding>; 3] = [const { None }; 3];
    let mut found: [Option<Found>; 3] = [const { None }; 3];
    let gateway = request.site.gateway;
    loop {
        match choose(&request.order, &findings, mesh, gateway) {
            Choice::Take(protocol) => return (Ok(protocol), found),
            Choice::None(refusal) => return (Err(refusal), found),
            Choice::Wait => {}
        }
        let Some((protocol, result)) = asked.next().await else {
            return (Err(Refusal::Silent(gateway)), found);
        };
        let at = protocol as usize;
        findings[at] = Some(match result {
            Ok(answer) => {
                let outer = answer.outer();
                found[at] = Some(answer);
                Ok(outer)
            }
            Err(refusal) => Err(refusal),
        });
    }
}

/// Deletes what PCP has mapped, if another protocol was chosen.
async fn discard(pcp: Option<Found>) {
    if let Some(Found::Pcp(mapping, outer)) = pcp {
        delete(Some(Lease::Datagram(mapping, outer))).await;
    }
}

async fn ask_pcp(request: &Request) -> Result<Found, Refusal> {
    let site = request.site;
    let base = pcp::BaseMapRequest::new(
        site.gateway.into(),
        site.own,
        InternetProtocol::Udp,
        inner_port(request)?,
    );
    let mapping = pcp::port_mapping(base, None, None, options(request)).await;
    let mapping = mapping.map_err(|error| match error {
        // A router with NAT-PMP alone answers so.
        pcp::Failure::Timeout | pcp::Failure::Socket(_) | pcp::Failure::UnsupportedVersion(_) => {
            Refusal::Silent(site.gateway)
        }
        other => denied(Protocol::Pcp, &other),
    })?;
    let outer = outer_of(&mapping).unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    Ok(Found::Pcp(mapping, outer))
}

async fn ask_nat_pmp(request: &Request) -> Result<Found, Refusal> {
    let gateway = GatewayAddress::from(request.site.gateway);
    let outer = natpmp::external_address(gateway, Some(TIMEOUTS)).await;
    let outer = outer.map_err(|error| nat_pmp_refusal(request, &error))?;
    Ok(Found::NatPmp(outer.into()))
}

fn nat_pmp_refusal(request: &Request, error: &natpmp::Failure) -> Refusal {
    match error {
        natpmp::Failure::Timeout | natpmp::Failure::Socket(_) => {
            Refusal::Silent(request.site.gateway)
        }
        other => denied(Protocol::NatPmp, other),
    }
}

fn denied(protocol: Protocol, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::Denied(protocol, text::message(&error.to_string()))
}

fn inner_port(request: &Request) -> Result<NonZeroU16, Refusal> {
    let port = NonZeroU16::new(request.site.port);
    port.ok_or_else(|| denied(Protocol::Pcp, &"this node has no port"))
}

fn options(request: &Request) -> PortMappingOptions {
    PortMappingOptions {
        external_port: NonZeroU16::new(request.port),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(TIMEOUTS),
    }
}

/// The outer address of a mapping by PCP.
fn outer_of(mapping: &PortMapping) -> Option<IpAddr> {
    match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => Some(external_ip),
        PortMappingType::NatPmp => None,
    }
}

impl Found {
    fn outer(&self) -> IpAddr {
        match self {
            Self::Pcp(_, outer) | Self::NatPmp(outer) => *outer,
            Self::Upnp(device) => device.outer,
        }
    }
}

impl Lease {
    fn granted(&self) -> Granted {
        match self {
            Self::Datagram(mapping, outer) => Granted {
                protocol: match mapping.mapping_type() {
                    PortMappingType::Pcp { .. } => Protocol::Pcp,
                    PortMappingType::NatPmp => Protocol::NatPmp,
                },
                external: SocketAddr::new(*outer, mapping.external_port().get()),
                lifetime: Duration::from_secs(mapping.lifetime().into()),
            },
            Self::Upnp(lease) => Granted {
                protocol: Protocol::Upnp,
                external: lease.external(),
                // A mapping that the router keeps for ever is asked for again as often as any other one: the router may be
                // restarted.
                lifetime: LIFETIME,
            },
        }
    }

    async fn renew(&mut self) -> Result<(), Refusal> {
        let (mapping, outer) = match self {
            Self::Upnp(lease) => return lease.renew().await,
            Self::Datagram(mapping, outer) => (mapping, outer),
        };
        let gateway = mapping.gateway();
        let router: IpAddr = gateway.into();
        let failed = |error: crab_nat::MappingFailure| match error {
            crab_nat::MappingFailure::NatPmp(
                natpmp::Failure::Timeout | natpmp::Failure::Socket(_),
            )
            | crab_nat::MappingFailure::Pcp(pcp::Failure::Timeout | pcp::Failure::Socket(_)) => {
                Refusal::Silent(router)
            }
            crab_nat::MappingFailure::NatPmp(other) => denied(Protocol::NatPmp, &other),
            crab_nat::MappingFailure::Pcp(other) => denied(Protocol::Pcp, &other),
        };
        mapping.renew().await.map_err(failed)?;
        *outer = match outer_of(mapping) {
            Some(outer) => outer,
            None => {
                let outer = natpmp::external_address(gateway, Some(TIMEOUTS)).await;
                outer.map_err(|error| failed(error.into()))?.into()
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
