//! How others reach this node: the addresses that it offers, and the relays that it names.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;

use super::config::{NamedAddress, PathSettings, RelaySettings};
use super::host::Interface;
use super::mapping::PortMapping;
use super::stun::Stun;
use crate::model::address::is_public;
use crate::model::{MeshAddresses, PublicKey};
use crate::os::random;
use crate::os::tasks::{AbortOnDrop, Tasks};
use crate::path::candidates::{Exclusions, HostAddress, Observed, OwnAddresses, host_addresses};
use crate::path::punch::Punching;
use crate::path::relays::{MeasuredRelay, OwnRelays};
use crate::protocol::local::Problem;
use crate::protocol::path_messages::{Candidate, CandidateKind, MAX_CANDIDATES, Paths};
use crate::records::kinds::MAX_ENDPOINTS;
use crate::tunnel::PathReport;
use crate::tunnel::relay::RelayLimit;

/// How often the names in `[path] advertise` are looked up: the address at a home changes about once a day.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(60);
/// How long one lookup may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of addresses of one name.
const MAX_OF_NAME: usize = 4;
/// How often relays are measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

/// How others reach this node.
pub(super) struct Reach {
    path: PathSettings,
    relay: RelaySettings,
    lookup: watch::Receiver<Lookup>,
    /// The addresses that peers and servers see.
    pub(super) observed: Observed<Witness>,
    /// The requests to STUN servers.
    pub(super) stun: Stun,
    relays: OwnRelays<PublicKey>,
    measured_at: Option<Instant>,
    /// The attempts to open direct paths to peers behind relays.
    pub(super) punching: Punching<PublicKey>,
    /// The port that the router maps to this node.
    pub(super) mapping: PortMapping,
    /// The last message about this node's paths.
    own: Paths,
    /// Whether one of the addresses in the last record is public.
    is_public: bool,
    _task: Option<AbortOnDrop>,
}

/// Who saw from where this node's packets come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Witness {
    Peer(PublicKey),
    /// A STUN server, by the address that was asked.
    Server(SocketAddr),
}

/// The addresses in `[path] advertise`, and the names that have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lookup {
    addresses: Vec<SocketAddr>,
    unresolved: Vec<String>,
}

/// The addresses in this node's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OwnEndpoints {
    /// Where it may be reached, best first.
    pub(super) endpoints: Vec<SocketAddr>,
    /// From where others saw its datagrams come, for some time.
    pub(super) observed: Vec<SocketAddr>,
    /// Those of the endpoints that the router maps.
    pub(super) mapped: Vec<SocketAddr>,
}

impl OwnEndpoints {
    /// A public endpoint that no router maps on request. What a router maps is one UDP port and nothing else of its address, and behind
    /// it is most often the uplink of a home.
    pub(super) fn public(&self) -> Option<SocketAddr> {
        let unmapped = self.endpoints.iter();
        let mut unmapped = unmapped.filter(|endpoint| !self.mapped.contains(endpoint));
        unmapped.find(|endpoint| is_public(endpoint.ip())).copied()
    }
}

impl Reach {
    /// Starts to look up the names in `path`, and the task that asks the router for a port that depends on `seed`.
    pub(super) fn start(path: PathSettings, relay: RelaySettings, seed: u16) -> Self {
        let known = path.advertise.iter().filter_map(|entry| match entry {
            NamedAddress::Address(address) => Some(*address),
            NamedAddress::Name(..) => None,
        });
        let first = Lookup {
            addresses: known.collect(),
            unresolved: Vec::new(),
        };
        let (sender, lookup) = watch::channel(first);
        let entries = path.advertise.clone();
        let has_names = entries.iter().any(|e| matches!(e, NamedAddress::Name(..)));
        let task = has_names.then(|| {
            let tasks = Tasks::current();
            let task = tasks.spawn("lookup of advertised names", follow(entries, sender));
            task.abort_on_drop()
        });
        Self {
            mapping: PortMapping::start(path.maps_port, seed),
            stun: Stun::new(path.stun.clone()),
            path,
            relay,
            lookup,
            observed: Observed::default(),
            relays: OwnRelays::default(),
            measured_at: None,
            punching: Punching::default(),
            // A peer that remembers the numbers of before a restart must not take this one for an older message.
            own: Paths {
                seq: random::u64().map_or(0, |number| number as u32),
                ..Paths::default()
            },
            is_public: false,
            _task: task,
        }
    }

    /// The addresses for this node's record.
    pub(super) fn own_addresses(
        &mut self,
        interfaces: &[Interface],
        underlay: Underlay<'_>,
        now: Instant,
    ) -> OwnEndpoints {
        self.observed.refresh_record(now);
        let host = self.host_addresses(interfaces, underlay);
        let mapped: Vec<SocketAddr> = self.mapping.state.offered().into_iter().collect();
        let own = OwnAddresses {
            set: &self.lookup.borrow().addresses.clone(),
            mapped: &mapped,
            host: &host,
            port: underlay.port,
            observed: &[],
        };
        self.own.candidates = own.candidates(underlay.mesh);
        let endpoints = self.own.candidates.iter().map(|c| c.address);
        let endpoints: Vec<SocketAddr> = endpoints.take(MAX_ENDPOINTS).collect();
        self.own.nat = self.observed.nat(&host, underlay.port);
        let recorded = self.observed.recorded().iter();
        let recorded = recorded.filter(|address| !endpoints.contains(address));
        OwnEndpoints {
            observed: recorded.copied().collect(),
            mapped: mapped
                .into_iter()
                .filter(|address| endpoints.contains(address))
                .collect(),
            endpoints,
        }
    }

    fn host_addresses(&self, interfaces: &[Interface], underlay: Underlay<'_>) -> Vec<IpAddr> {
        let found = interfaces.iter().map(host_address);
        let exclusions = Exclusions {
            own: underlay.own,
            mesh: underlay.mesh,
            engine: underlay.engine,
            guests: underlay.guests,
            settings: &self.path.exclude,
        };
        host_addresses(&found.collect::<Vec<_>>(), exclusions)
    }

    /// The addresses of this machine have changed.
    pub(super) fn handle_network_changed(&mut self, now: Instant) {
        self.mapping.state.handle_network_changed(now);
        self.observed.handle_network_change();
        self.stun.rounds.handle_network_changed(now);
        self.punching.handle_network_change();
    }

    /// Whether the router is asked for a port, and for a hole in its firewall.
    pub(super) fn maps_port(&self) -> bool {
        self.path.maps_port
    }

    /// The addresses of this machine without those that the operator excludes. The router is asked from no other ones.
    pub(super) fn not_excluded(&self, interfaces: &[Interface]) -> Vec<Interface> {
        let excludes = &self.path.exclude;
        let is_excluded = |interface: &Interface| {
            let host = host_address(interface);
            excludes.iter().any(|exclude| exclude.covers(&host))
        };
        let interfaces = interfaces.iter().filter(|i| !is_excluded(i)).cloned();
        interfaces.collect()
    }

    /// How much this node relays for each member. None if it does not relay. Without a setting it does if strangers may reach it: it has
    /// a `public` endpoint, or takes streams.
    pub(super) fn relay_limit(&mut self, public: Option<SocketAddr>) -> Option<RelayLimit> {
        self.is_public = public.is_some();
        let is_reached = self.is_public || self.relay.listen.is_some();
        let is_offered = self.relay.is_offered.unwrap_or(is_reached);
        is_offered.then_some(self.relay.limit)
    }

    /// The relays that this node names in its record.
    pub(super) fn chosen_relays(&self) -> &[PublicKey] {
        self.relays.chosen()
    }

    /// Whether [`Reach::handle_measured`] is due.
    pub(super) fn is_measuring(&self, now: Instant) -> bool {
        let since = self.measured_at.map(|at| now.saturating_duration_since(at));
        since.is_none_or(|since| since >= MEASURE_INTERVAL)
    }

    /// The peers that offer to relay for this node, as they are now, and whether UDP reaches none of them. Returns whether the record of
    /// this node has to name other relays, or other addresses at which peers see it.
    pub(super) fn handle_measured(
        &mut self,
        measured: &[MeasuredRelay<PublicKey>],
        is_blocked: bool,
        now: Instant,
    ) -> bool {
        self.measured_at = Some(now);
        // Peers reach a node with a public address without a relay, unless its network drops UDP, and each name is another record for
        // the whole mesh.
        let needs_relays = self.relay.is_used && (is_blocked || !self.is_public);
        let measured = if needs_relays { measured } else { &[] };
        let has_other_relays = self.relays.handle_measured(measured, now);
        self.observed.refresh_record(now) || has_other_relays
    }

    /// A witness saw this node's packets come from `seen`. An address of the mesh is left out, because such packets came through the
    /// tunnel. The port that the router maps is left out too, because the router may give other ports to other
    /// flows.
    pub(super) fn handle_seen(
        &mut self,
        witness: Witness,
        seen: SocketAddr,
        mesh: Option<&MeshAddresses>,
        at: Instant,
    ) {
        let mapped = self.mapping.state.report();
        let is_mapped = mapped.is_some_and(|mapped| mapped.granted.external == seen);
        if mesh.is_some_and(|mesh| !mesh.contains(seen.ip())) && !is_mapped {
            self.observed.handle_seen(witness, seen, at);
        }
    }

    /// Whether a peer that is reached directly has reported from which public address this node's packets come. A peer in the same network
    /// sees a private address, which other peers cannot use.
    pub(super) fn is_told_by_peers(&self, is_reached: impl Fn(&PublicKey) -> bool) -> bool {
        let mut observations = self.observed.observations();
        observations.any(|(witness, seen, _)| match witness {
            Witness::Peer(peer) => is_public(seen.ip()) && is_reached(peer),
            Witness::Server(_) => false,
        })
    }

    /// Whether this node reaches peers through relays.
    pub(super) fn uses_relays(&self) -> bool {
        self.relay.is_used
    }

    /// The addresses of this host that peers were told and that are not among those `listed` now. Addresses of containers and of other
    /// tunnels, which come and go, were not told. If none is listed, no peer can be told either, and perhaps the list failed.
    pub(super) fn lost(&self, listed: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let own = self.own.candidates.iter().filter(|_| !listed.is_empty());
        let own = own.filter(|candidate| candidate.kind == CandidateKind::Host);
        let addresses = own.map(|candidate| candidate.address.ip());
        addresses.filter(|own| !listed.contains(own)).collect()
    }

    /// The message about this node's paths.
    pub(super) fn message(&mut self, punch: bool) -> Paths {
        self.own.seq = self.own.seq.wrapping_add(1);
        self.own.punch = punch;
        let mut paths = self.own.clone();
        let known: Vec<SocketAddr> = paths.candidates.iter().map(|c| c.address).collect();
        let observed = self.observed.addresses(&known).into_iter();
        paths.candidates.extend(observed.map(|address| Candidate {
            kind: CandidateKind::Observed,
            address,
        }));
        paths.candidates.truncate(MAX_CANDIDATES);
        paths
    }

    /// The message that asks a peer to send to the address that the router maps, or to which it lets datagrams pass, whether that works
    /// or not.
    pub(super) fn try_message(&mut self, address: SocketAddr) -> Paths {
        let mut paths = self.message(false);
        paths.try_my_mapping = true;
        paths.candidates.retain(|of| of.address != address);
        let mapped = Candidate {
            kind: CandidateKind::Mapped,
            address,
        };
        paths.candidates.insert(0, mapped);
        paths.candidates.truncate(MAX_CANDIDATES);
        paths
    }

    /// The message that tells a peer that this node sends to the peer's mapped address.
    pub(super) fn tries_message(&mut self) -> Paths {
        let mut paths = self.message(false);
        paths.tries_mapping = true;
        paths
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

/// Whether the peer with these paths may send to one of the addresses `lost` of this host, which has the addresses `listed`. Behind
/// address translation, the peer sees none of them. Where it sees one, the others may go: many hosts change an IPv6 address each day.
pub(super) fn sends_to_lost(
    report: &PathReport,
    lost: &[IpAddr],
    listed: &BTreeSet<IpAddr>,
) -> bool {
    let mut paths = report.paths.iter();
    let primary = paths.find(|seen| Some(seen.path) == report.primary);
    let Some((seen, to)) =
        primary.and_then(|primary| Some((primary.seen, primary.path.endpoint()?)))
    else {
        return false;
    };
    let is_kept = seen.is_some_and(|seen| listed.contains(&seen.ip()));
    !is_kept && lost.iter().any(|own| own.is_ipv4() == to.is_ipv4())
}

fn host_address(interface: &Interface) -> HostAddress<'_> {
    HostAddress {
        interface: &interface.name,
        address: interface.address,
        is_tunnel: interface.is_tunnel,
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
    pub(super) engine: &'a BTreeSet<String>,
    /// The bridges that connect only guests.
    pub(super) guests: &'a BTreeSet<String>,
}

/// Looks up the names among `entries` again and again.
async fn follow(entries: Vec<NamedAddress>, sender: watch::Sender<Lookup>) {
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
async fn look_up(entries: &[NamedAddress], before: &Lookup) -> Lookup {
    let mut lookup = Lookup::default();
    for entry in entries {
        match entry {
            NamedAddress::Address(address) => lookup.addresses.push(*address),
            NamedAddress::Name(name, port) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeAddress, Path};
    use crate::testbed::records::{id, plan};
    use crate::tunnel::RoundTrip;

    const START: RelayLimit = RelayLimit {
        bits_per_second: 1_000_000,
    };

    fn reach(is_offered: Option<bool>) -> Reach {
        let relay = RelaySettings {
            is_used: true,
            is_offered,
            limit: START,
            listen: None,
            public_url: None,
            proxy: None,
        };
        Reach::start(PathSettings::default(), relay, 0)
    }

    fn interface(name: &str, address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            address: address.parse().expect("a literal"),
            net: None,
            is_tunnel: false,
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("a literal")
    }

    /// The public endpoint of a node with this one.
    fn public(address: &str) -> Option<SocketAddr> {
        let own = OwnEndpoints {
            endpoints: vec![at(address)],
            ..OwnEndpoints::default()
        };
        own.public()
    }

    #[test]
    fn what_the_router_maps_is_no_address_at_which_others_reach_the_streams_of_this_node() {
        let mut own = OwnEndpoints {
            endpoints: vec![at("203.0.113.7:49152"), at("192.168.1.10:51820")],
            observed: vec![],
            mapped: vec![at("203.0.113.7:49152")],
        };
        assert_eq!(own.public(), None);
        own.endpoints.push(at("[2001:db8::7]:51820"));
        assert_eq!(own.public(), Some(at("[2001:db8::7]:51820")));
    }

    #[test]
    fn an_observed_address_is_apart_from_the_endpoints_and_named_to_peers_at_once() {
        let (mut reach, start) = (reach(None), Instant::now());
        let mesh = plan();
        let none = BTreeSet::new();
        let underlay = Underlay {
            own: "mesh0",
            port: 51820,
            mesh: &mesh,
            engine: &none,
            guests: &none,
        };
        let interfaces = [interface("eth0", "192.168.1.10")];
        for n in [1, 2] {
            let seen = at("203.0.113.7:4000");
            let witness = Witness::Peer(id(n));
            reach.observed.handle_seen(witness, seen, start);
        }
        let own = reach.own_addresses(&interfaces, underlay, start);
        let expected = OwnEndpoints {
            endpoints: vec![at("192.168.1.10:51820")],
            observed: vec![],
            mapped: vec![],
        };
        assert_eq!(own, expected);
        let told = reach.message(true);
        let told: Vec<SocketAddr> = told.candidates.iter().map(|c| c.address).collect();
        assert_eq!(told, [at("192.168.1.10:51820"), at("203.0.113.7:4000")]);
        let later = start + Duration::from_secs(60);
        let own = reach.own_addresses(&interfaces, underlay, later);
        assert_eq!(own.observed, [at("203.0.113.7:4000")]);
        assert_eq!(own.endpoints, [at("192.168.1.10:51820")]);
    }

    #[test]
    fn an_address_is_lost_if_peers_were_told_it_and_the_host_does_not_have_it_any_more() {
        let (mut reach, start) = (reach(None), Instant::now());
        let mesh = plan();
        let engine = BTreeSet::from(["docker0".to_owned()]);
        let underlay = Underlay {
            own: "mesh0",
            port: 51820,
            mesh: &mesh,
            engine: &engine,
            guests: &engine,
        };
        let interfaces = [
            interface("eth0", "192.168.1.10"),
            interface("docker0", "172.17.0.1"),
        ];
        reach.own_addresses(&interfaces, underlay, start);
        let listed = |addresses: &[&str]| -> BTreeSet<IpAddr> {
            let addresses = addresses.iter().map(|ip| ip.parse().expect("a literal"));
            addresses.collect()
        };
        let own = ["192.168.1.10".parse::<IpAddr>().expect("a literal")];
        let lost = reach.lost(&listed(&["192.168.1.10", "10.0.0.1"]));
        assert!(lost.is_empty(), "{lost:?}");
        assert_eq!(reach.lost(&listed(&["192.168.1.11", "172.17.0.1"])), own);
        assert_eq!(reach.lost(&listed(&[])), [] as [IpAddr; 0]);
    }

    #[test]
    fn a_peer_that_sees_another_address_of_this_host_is_not_told_that_one_is_lost() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("a literal");
        let (old, new) = (ip("2001:db8::1"), ip("2001:db8::2"));
        let listed = BTreeSet::from([new, ip("192.168.1.10")]);
        let trip = RoundTrip {
            at: Instant::now(),
            took: Duration::from_millis(1),
        };
        let sends = |to: Path, seen: Option<IpAddr>| {
            let mut report = PathReport::of(to, trip, None);
            report.paths[0].seen = seen.map(|seen| (seen, 51820).into());
            sends_to_lost(&report, &[old], &listed)
        };
        let v6 = Path::Direct(at("[2001:db8::7]:51820"));
        assert!(sends(v6, Some(old)), "it sees the address that is lost");
        assert!(sends(v6, Some(ip("2001:db8:ff::1"))), "it sees a router");
        assert!(sends(v6, None), "it has not said what it sees");
        assert!(!sends(v6, Some(new)));
        assert!(!sends(Path::Direct(at("192.0.2.7:51820")), Some(old)));
        let relay = Path::Relay(NodeAddress([10, 210, 1, 1].into()));
        assert!(!sends(relay, None));
    }

    #[test]
    fn an_address_that_peers_agreed_on_for_a_minute_makes_another_record_without_other_events() {
        let (mut reach, start) = (reach(None), Instant::now());
        for n in [1, 2] {
            let seen = at("203.0.113.7:4000");
            let witness = Witness::Peer(id(n));
            reach.observed.handle_seen(witness, seen, start);
        }
        let seconds = (0..=300).step_by(5);
        let records = seconds.filter(|second| {
            reach.handle_measured(&[], false, start + Duration::from_secs(*second))
        });
        assert_eq!(records.collect::<Vec<u64>>(), [60]);
        assert_eq!(reach.observed.recorded(), [at("203.0.113.7:4000")]);
    }

    #[test]
    fn servers_are_needed_until_a_peer_that_is_reached_sees_a_public_address() {
        let (mut reach, now) = (reach(None), Instant::now());
        let mut see = |witness, seen: &str| {
            reach.observed.handle_seen(witness, at(seen), now);
            reach.is_told_by_peers(|peer| *peer != id(2))
        };
        let server = Witness::Server(at("192.0.2.1:7443"));
        assert!(!see(server, "203.0.113.7:4000"));
        assert!(!see(Witness::Peer(id(1)), "192.168.1.10:51820"));
        assert!(!see(Witness::Peer(id(2)), "203.0.113.7:4000"));
        assert!(see(Witness::Peer(id(3)), "203.0.113.7:4000"));
    }

    #[test]
    fn a_node_relays_without_a_setting_only_if_it_has_a_public_address() {
        let limit = |is_offered, address: &str| reach(is_offered).relay_limit(public(address));
        for (address, is_public) in [
            ("203.0.113.7:1", true),
            ("[2001:db8::7]:1", true),
            ("192.168.1.10:1", false),
            ("100.64.0.7:1", false),
            ("[fd00::7]:1", false),
        ] {
            assert_eq!(limit(None, address).is_some(), is_public, "{address}");
            assert_eq!(limit(Some(true), address), Some(START));
            assert_eq!(limit(Some(false), address), None);
        }
    }

    #[test]
    fn only_a_node_without_a_public_address_names_relays() {
        let now = Instant::now();
        let measured = [MeasuredRelay {
            relay: id(7),
            rtt: Duration::from_millis(5),
            load: 0,
        }];
        for (address, names) in [("192.168.1.10:1", true), ("203.0.113.7:1", false)] {
            let mut reach = reach(None);
            reach.relay_limit(public(address));
            assert!(reach.is_measuring(now));
            assert_eq!(reach.handle_measured(&measured, false, now), names);
            assert_eq!(reach.chosen_relays().len(), usize::from(names));
            assert!(!reach.is_measuring(now + Duration::from_secs(4)));
        }
    }
}
