//! The STUN servers of this node: joins the rounds of requests ([`crate::path::stun`]) with the lookup of the servers' names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::config::NamedAddress;
use crate::os::tasks::Tasks;
use crate::path::stun::StunRounds;
use crate::protocol::url::CoordinatorUrl;

/// How long the lookup of one name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A STUN server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StunServer {
    /// What the operator calls it: the host and port of the configuration, or the URL of a coordinator.
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

/// The requests to STUN servers.
pub(super) struct Stun {
    /// The state machine.
    pub(super) rounds: StunRounds,
    configured: Vec<NamedAddress>,
    found: mpsc::Sender<Vec<StunServer>>,
    servers: Option<mpsc::Receiver<Vec<StunServer>>>,
    /// What the servers of the last lookup are called.
    names: BTreeMap<SocketAddr, String>,
}

impl Stun {
    /// The servers of the configuration.
    pub(super) fn new(configured: Vec<NamedAddress>) -> Self {
        let (found, servers) = mpsc::channel(1);
        Self {
            rounds: StunRounds::default(),
            configured,
            found,
            servers: Some(servers),
            names: BTreeMap::new(),
        }
    }

    /// What lookups find, at the first call.
    pub(super) fn take_servers(&mut self) -> mpsc::Receiver<Vec<StunServer>> {
        let closed = || mpsc::channel(1).1;
        self.servers.take().unwrap_or_else(closed)
    }

    /// Looks up the servers of the configuration, and after them the coordinators.
    pub(super) fn look_up(&self, coordinators: &[CoordinatorUrl]) {
        let configured = self.configured.iter().map(|server| match server {
            NamedAddress::Address(address) => {
                let name = address.to_string();
                (name, address.ip().to_string(), address.port())
            }
            NamedAddress::Name(host, port) => (format!("{host}:{port}"), host.clone(), *port),
        });
        let coordinators = coordinators.iter();
        let coordinators =
            coordinators.map(|url| (url.to_string(), url.host().to_owned(), url.port()));
        let places: Vec<(String, String, u16)> = configured.chain(coordinators).collect();
        let found = self.found.clone();
        Tasks::current().spawn_child("lookup of STUN servers", async move {
            // The next round looks them up again, so the result of a slow lookup may be left out.
            let _ = found.try_send(look_up(places).await);
        });
    }

    /// The servers were looked up. Their names are kept for as long as their answers are believed.
    pub(super) fn set_names(&mut self, servers: Vec<StunServer>) {
        let names = servers.into_iter().map(|of| (of.address, of.name));
        self.names = names.collect();
    }

    /// What the server with this address is called.
    pub(super) fn name_of(&self, server: &SocketAddr) -> String {
        let name = self.names.get(server).cloned();
        name.unwrap_or_else(|| server.to_string())
    }
}

/// The first address of each family of each server. More of them are most often the same server, whose word would count twice.
async fn look_up(places: Vec<(String, String, u16)>) -> Vec<StunServer> {
    let mut servers: Vec<StunServer> = Vec::new();
    for (name, host, port) in places {
        let found = timeout(LOOKUP_TIMEOUT, lookup_host((host.as_str(), port))).await;
        let Ok(Ok(found)) = found else {
            continue;
        };
        let found: Vec<SocketAddr> = found.collect();
        let v4 = found.iter().find(|address| address.is_ipv4());
        let v6 = found.iter().find(|address| address.is_ipv6());
        for address in v4.into_iter().chain(v6) {
            if servers.iter().all(|of| of.address != *address) {
                servers.push(StunServer {
                    name: name.clone(),
                    address: *address,
                });
            }
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn servers_are_called_as_they_are_configured_and_each_address_is_asked_once() {
        let place = |name: &str, host: &str| (name.to_owned(), host.to_owned(), 7443);
        let found = look_up(vec![
            place("192.0.2.1:7443", "192.0.2.1"),
            place("https://192.0.2.1:7443", "192.0.2.1"),
            place("https://[2001:db8::1]:7443", "2001:db8::1"),
            place("no-such-host.invalid:7443", "no-such-host.invalid"),
        ])
        .await;
        let names: Vec<&str> = found.iter().map(|server| server.name.as_str()).collect();
        assert_eq!(names, ["192.0.2.1:7443", "https://[2001:db8::1]:7443"]);
        let mut stun = Stun::new(Vec::new());
        let address = found[0].address;
        stun.set_names(found);
        assert_eq!(stun.name_of(&address), "192.0.2.1:7443");
        let other: SocketAddr = ([192, 0, 2, 9], 1).into();
        assert_eq!(stun.name_of(&other), "192.0.2.9:1");
    }
}
