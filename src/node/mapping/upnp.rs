//! Asks a router for a port by UPnP. The library `igd-next` speaks the protocol: it limits the size and depth of what a router
//! answers, and refuses a description or a control address at another host than the one that answered.
//!
//! The gateway itself is asked first. Some routers answer only questions to the multicast group, which anybody in the network may
//! answer, so an answer that leads to another address than the gateway's is refused.

use std::fmt::Display;
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
/// How long the gateway may take to describe itself. If it does not, all devices in the group are asked, which have the second time. A router
/// takes some time to make a description of many kilobytes.
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
    router: IpAddr,
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
        let places = [gateway, DISCOVERY_GROUP.into()];
        for (to, limit) in places.into_iter().zip(SEARCH_TIMEOUTS) {
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
        let asked = within(found.get_external_ip()).await;
        Ok(Self {
            outer: asked.map_err(|failed| failed.denied())?,
            gateway: found,
            router: gateway,
            local: (request.site.own, request.site.port).into(),
        })
    }

    /// Maps `port`, or another one if another device has it.
    pub(super) async fn map(self, mut port: u16) -> Result<Lease, Refusal> {
        let mut seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(0);
        let mut taken = 0;
        loop {
            let failed = match self.add(port, seconds).await {
                Ok(()) => break,
                Err(failed) => failed,
            };
            match failed {
                Failed::Error(AddPortError::OnlyPermanentLeasesSupported) if seconds != 0 => {
                    seconds = 0;
                }
                Failed::Error(AddPortError::SamePortValuesRequired)
                    if port != self.local.port() =>
                {
                    port = self.local.port();
                }
                Failed::Error(AddPortError::PortInUse)
                    if taken < MAX_PORTS && port != self.local.port() =>
                {
                    taken += 1;
                    port = port.checked_add(1).unwrap_or(u16::MAX - MAX_PORTS);
                }
                other => return Err(other.denied()),
            }
        }
        Ok(Lease {
            device: self,
            port,
            seconds,
        })
    }

    async fn add(&self, port: u16, seconds: u32) -> Result<(), Failed<AddPortError>> {
        let udp = PortMappingProtocol::UDP;
        let adding = self
            .gateway
            .add_port(udp, port, self.local, seconds, DESCRIPTION);
        within(adding).await
    }
}

impl Lease {
    /// The outer address.
    pub(super) fn external(&self) -> SocketAddr {
        SocketAddr::new(self.device.outer, self.port)
    }

    /// Asks for the mapping again: a router that was restarted has forgotten it, and may have another address. If the router does not
    /// answer, the mapping may last.
    pub(super) async fn renew(&mut self) -> Result<(), Refusal> {
        let router = self.device.router;
        let asked = within(self.device.gateway.get_external_ip()).await;
        self.device.outer = asked.map_err(|failed| failed.in_renewal(router))?;
        let added = self.device.add(self.port, self.seconds).await;
        added.map_err(|failed| failed.in_renewal(router))
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

/// Why a request has failed.
enum Failed<E> {
    /// There was no answer in time.
    Late,
    Error(E),
}

/// Waits for the answer to one request.
async fn within<T, E>(asked: impl Future<Output = Result<T, E>>) -> Result<T, Failed<E>> {
    match timeout(REQUEST_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(Failed::Error),
        Err(_) => Err(Failed::Late),
    }
}

impl<E: Display> Failed<E> {
    /// The router offers UPnP, and does not map a port by it.
    fn denied(&self) -> Refusal {
        match self {
            Self::Late => denied("it took too long to answer"),
            Self::Error(error) => denied(&error.to_string()),
        }
    }

    fn in_renewal(&self, router: IpAddr) -> Refusal {
        match self {
            Self::Late => Refusal::Silent(router),
            Self::Error(_) => self.denied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::os::tasks::Tasks;

    const OUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
    const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

    /// What a router answers to this request.
    fn answer(request: &str) -> String {
        let (action, value) = if request.contains("#GetExternalIPAddress") {
            let value = format!("<NewExternalIPAddress>{OUTER}</NewExternalIPAddress>");
            ("GetExternalIPAddress", value)
        } else {
            ("AddPortMapping", String::new())
        };
        let body = format!(
            "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
             <u:{action}Response xmlns:u=\"{SERVICE}\">{value}</u:{action}Response>\
             </s:Body></s:Envelope>"
        );
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    /// Answers requests, but not those that arrive while the router is silent.
    async fn serve(listener: TcpListener, is_silent: Arc<AtomicBool>) {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if is_silent.load(Ordering::Relaxed) {
                kept.push(stream);
                continue;
            }
            let mut request = String::new();
            while !request.ends_with("Envelope>") {
                let byte = stream.read_u8().await.expect("a request");
                request.push(char::from(byte));
            }
            let sent = stream.write_all(answer(&request).as_bytes()).await;
            sent.expect("the node waits");
        }
    }

    #[tokio::test]
    async fn a_router_that_does_not_answer_a_renewal_in_time_is_silent_and_refuses_nothing() {
        let router = Ipv4Addr::LOCALHOST;
        let listener = TcpListener::bind((router, 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let is_silent = Arc::new(AtomicBool::new(false));
        let serve = serve(listener, Arc::clone(&is_silent));
        let _router = Tasks::current()
            .spawn_child("router", serve)
            .abort_on_drop();
        let arguments = vec!["NewExternalPort".to_owned()];
        let gateway = Gateway {
            addr,
            root_url: "/".into(),
            control_url: "/control".into(),
            control_schema_url: "/actions".into(),
            control_schema: [(ACTIONS[0].to_owned(), arguments)].into(),
            service_type: SERVICE.into(),
            provider: Tokio,
        };
        let device = Device {
            gateway,
            router: router.into(),
            local: (router, 51820).into(),
            outer: OUTER.into(),
        };
        let Ok(mut lease) = device.map(50_000).await else {
            panic!("the router maps a port")
        };
        assert_eq!(lease.external(), (OUTER, 50_000).into());
        assert_eq!(lease.renew().await, Ok(()));
        is_silent.store(true, Ordering::Relaxed);
        assert_eq!(lease.renew().await, Err(Refusal::Silent(router.into())));
    }
}
