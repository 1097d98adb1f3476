//! The STUN servers of this node: joins the rounds of requests ([`crate::path::stun`]) with the lookup of the servers' names.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::config::NamedAddress;
use crate::os::tasks::Tasks;
use crate::path::stun::{MAX_SERVERS, StunRounds};
use crate::protocol::url::CoordinatorUrl;

/// How long the lookup of all names may take: less than the shortest pause between two rounds.
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
        let places: Vec<Place> = configured.chain(coordinators).take(MAX_SERVERS).collect();
        let found = self.found.clone();
        Tasks::current().spawn_child("lookup of STUN servers", async move {
            // The next round looks them up again, so the result of a slow lookup may be left out.
            let _ = found.try_send(look_up(&places, system_lookup).await);
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

/// What a server is called, and its host and port.
type Place = (String, String, u16);

/// Looks up a host as the other programs of this machine do.
async fn system_lookup(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(lookup_host((host, port)).await?.collect())
}

/// The first address of each family of each server. More of them are most often the same server, whose word would count twice. All
/// lookups begin at once, so names that nobody answers do not delay the others, and have one limit together.
async fn look_up<F>(places: &[Place], lookup: impl Fn(String, u16) -> F) -> Vec<StunServer>
where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let lookups = places
        .iter()
        .map(|(_, host, port)| timeout(LOOKUP_TIMEOUT, lookup(host.clone(), *port)));
    let all_found = join_all(lookups).await;
    let mut servers: Vec<StunServer> = Vec::new();
    for ((name, ..), found) in places.iter().zip(all_found) {
        let Ok(Ok(found)) = found else {
            continue;
        };
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
    use std::sync::Arc;

    use tokio::sync::Barrier;

    use super::*;

    fn place(name: &str, host: &str) -> Place {
        (name.to_owned(), host.to_owned(), 7443)
    }

    #[tokio::test]
    async fn names_are_looked_up_together_so_that_one_which_nobody_answers_delays_none() {
        let places = (0..MAX_SERVERS).map(|n| place(&n.to_string(), &n.to_string()));
        let places: Vec<Place> = places.collect();
        // No lookup ends before all of them have begun, and one never ends.
        let barrier = Arc::new(Barrier::new(MAX_SERVERS));
        let lookup = |host: String, port: u16| {
            let barrier = Arc::clone(&barrier);
            async move {
                barrier.wait().await;
                if host == "0" {
                    std::future::pending::<()>().await;
                }
                let last: u8 = host.parse().unwrap_or(0);
                Ok(vec![SocketAddr::from(([192, 0, 2, last], port))])
            }
        };
        let found = look_up(&places, lookup).await;
        assert_eq!(found.len(), MAX_SERVERS - 1);
    }

    #[tokio::test]
    async fn servers_are_called_as_they_are_configured_and_each_address_is_asked_once() {
        let places = [
            place("192.0.2.1:7443", "192.0.2.1"),
            place("https://192.0.2.1:7443", "192.0.2.1"),
            place("https://[2001:db8::1]:7443", "2001:db8::1"),
            place("no-such-host.invalid:7443", "no-such-host.invalid"),
        ];
        let found = look_up(&places, system_lookup).await;
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
