//! How others reach this node: the addresses that it offers, and the relays that it names.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;

use super::config::{Advertised, PathSettings};
use super::host::Interface;
use crate::model::{MeshAddresses, PublicKey};
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::path::OwnRelays;
use crate::path::candidates::{Exclusions, HostAddress, Observed, OwnAddresses, host_addresses};
use crate::protocol::local::Problem;
use crate::protocol::path_messages::Candidate;

/// How often the names in `[path] advertise` are looked up: the address at a home changes about once a day.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(60);
/// How long one lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of addresses of one name.
const MAX_OF_NAME: usize = 4;

/// How others reach this node.
pub(super) struct Reach {
    settings: PathSettings,
    lookup: watch::Receiver<Lookup>,
    /// The addresses that peers and servers see.
    pub(super) observed: Observed<PublicKey>,
    /// The relays in this node's record.
    pub(super) relays: OwnRelays<PublicKey>,
    _task: Option<AbortOnDrop>,
}

/// The addresses in `[path] advertise`, and the names that have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lookup {
    addresses: Vec<SocketAddr>,
    unresolved: Vec<String>,
}

impl Reach {
    /// Starts to look up the names in `settings`.
    pub(super) fn start(settings: PathSettings) -> Self {
        let known = settings.advertise.iter().filter_map(|entry| match entry {
            Advertised::Address(address) => Some(*address),
            Advertised::Name(..) => None,
        });
        let first = Lookup {
            addresses: known.collect(),
            unresolved: Vec::new(),
        };
        let (sender, lookup) = watch::channel(first);
        let entries = settings.advertise.clone();
        let has_names = entries.iter().any(|e| matches!(e, Advertised::Name(..)));
        let task = has_names.then(|| {
            let tasks = Tasks::current();
            let task = tasks.spawn("lookup of advertised names", follow(entries, sender));
            task.abort_on_drop()
        });
        Self {
            settings,
            lookup,
            observed: Observed::default(),
            relays: OwnRelays::default(),
            _task: task,
        }
    }

    /// The endpoints for this node's record, best first. Observed ones are among them if they are stable.
    pub(super) fn endpoints(
        &mut self,
        interfaces: &[Interface],
        underlay: Underlay<'_>,
        now: Instant,
    ) -> Vec<SocketAddr> {
        self.observed.refresh_record(now);
        let candidates = self.of(interfaces, underlay, self.observed.recorded());
        let endpoints = candidates.into_iter().map(|candidate| candidate.address);
        endpoints
            .take(crate::records::kinds::MAX_ENDPOINTS)
            .collect()
    }

    fn of(
        &self,
        interfaces: &[Interface],
        underlay: Underlay<'_>,
        observed: &[SocketAddr],
    ) -> Vec<Candidate> {
        let host = self.host_addresses(interfaces, underlay);
        let own = OwnAddresses {
            set: &self.lookup.borrow().addresses,
            mapped: &[],
            host: &host,
            port: underlay.port,
            observed,
        };
        own.candidates(underlay.mesh)
    }

    fn host_addresses(&self, interfaces: &[Interface], underlay: Underlay<'_>) -> Vec<IpAddr> {
        let found = interfaces.iter().map(|interface| HostAddress {
            interface: &interface.name,
            address: interface.address,
            is_tunnel: interface.is_tunnel,
        });
        let exclusions = Exclusions {
            own: underlay.own,
            mesh: underlay.mesh,
            engine: underlay.engine,
            guests: underlay.guests,
            settings: &self.settings.exclude,
        };
        host_addresses(&found.collect::<Vec<_>>(), exclusions)
    }

    /// What is wrong, with remedies.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let lookup = self.lookup.borrow();
        let problems = lookup.unresolved.iter().map(|name| Problem {
            what: format!("the name {name} in [path] advertise has no address"),
            why: "this host's DNS servers gave no address for it, so no peer is told to reach this node there"
                .into(),
            fix: format!("correct the name in meshd.toml, or give {name} an A or AAAA record"),
        });
        problems.collect()
    }
}

/// What the addresses of this node depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Underlay<'a> {
    /// The name of the tunnel device.
    pub(super) own: &'a str,
    /// The port of the tunnel.
    pub(super) port: u16,
    /// The addresses of the mesh.
    pub(super) mesh: &'a MeshAddresses,
    /// The bridges of the container engine.
    pub(super) engine: &'a std::collections::BTreeSet<String>,
    /// The bridges that connect only guests.
    pub(super) guests: &'a std::collections::BTreeSet<String>,
}

/// Looks up the names among `entries` again and again.
async fn follow(entries: Vec<Advertised>, sender: watch::Sender<Lookup>) {
    loop {
        let before = sender.borrow().clone();
        let now = look_up(&entries, &before).await;
        sender.send_if_modified(|lookup| {
            let is_new = *lookup != now;
            *lookup = now;
            is_new
        });
        tokio::time::sleep(LOOKUP_INTERVAL).await;
    }
}

/// The addresses of all entries. If a name cannot be looked up now, all addresses of before are kept as well.
async fn look_up(entries: &[Advertised], before: &Lookup) -> Lookup {
    let mut lookup = Lookup::default();
    for entry in entries {
        match entry {
            Advertised::Address(address) => lookup.addresses.push(*address),
            Advertised::Name(name, port) => {
                let found = timeout(LOOKUP_TIMEOUT, lookup_host((name.as_str(), *port))).await;
                match found {
                    Ok(Ok(found)) => lookup.addresses.extend(found.take(MAX_OF_NAME)),
                    Ok(Err(_)) | Err(_) => lookup.unresolved.push(name.clone()),
                }
            }
        }
    }
    if !lookup.unresolved.is_empty() {
        let kept = before.addresses.iter();
        let kept = kept.filter(|address| !lookup.addresses.contains(address));
        let kept: Vec<SocketAddr> = kept.copied().collect();
        lookup.addresses.extend(kept);
        lookup.addresses.truncate(MAX_OF_NAME * entries.len());
    }
    // The order in which servers give the addresses of a name varies, and the record of this node must not vary with it.
    lookup.addresses.sort_unstable();
    lookup.addresses.dedup();
    lookup
}
