//! The sites of the mesh: host names, and the servers behind each one.
//!
//! A host name belongs to one service. If several services ask for it, the service of the member that joined first has it, so a member
//! that joins later cannot take the visitors of a site. The others are left out, which is a problem.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::known_name;
use crate::model::{Label, PublicHost, PublicKey, ServiceName};
use crate::records::kinds::{Health, Instance, web_port};
use crate::records::netmap::{Member, Netmap, Rank};

/// The maximum number of host names of the instances of one node. More are left out.
pub const MAX_HOSTS_OF_NODE: usize = 256;
/// The maximum number of servers of a site. More are left out.
pub const MAX_SERVERS: usize = 256;

/// A site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    pub host: PublicHost,
    /// The service that has the host name.
    pub service: ServiceName,
    /// Where requests are sent, over plain HTTP. There is one at least.
    pub servers: Vec<SocketAddr>,
}

#[cfg(test)]
impl Site {
    /// A site of the service `web`.
    pub(super) fn sample(host: &str, servers: &[&str]) -> Self {
        let servers = servers.iter().map(|s| s.parse().expect("a literal"));
        Self {
            host: PublicHost::parse(host).expect("a literal"),
            service: ServiceName::parse("web").expect("a literal"),
            servers: servers.collect(),
        }
    }
}

/// A host name for which several services ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disputed {
    pub host: PublicHost,
    /// The service that has it.
    pub kept: ServiceName,
    /// The services that do not have it.
    pub others: BTreeSet<ServiceName>,
    /// The nodes of the services that do not have it.
    pub nodes: BTreeSet<Label>,
}

/// The sites of the mesh. Host names come before wildcards, and both are in alphabetical order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sites {
    pub sites: Vec<Site>,
    pub disputed: Vec<Disputed>,
    /// The nodes with more host names than [`MAX_HOSTS_OF_NODE`].
    pub crowded: BTreeSet<Label>,
}

impl Sites {
    /// Computes the sites. `is_reachable` says whether packets reach a node.
    #[must_use]
    pub fn of(netmap: &Netmap, is_reachable: impl Fn(&PublicKey) -> bool) -> Self {
        let mut sites = Self::default();
        let servers = servers(netmap, is_reachable, &mut sites.crowded);
        let mut claims: BTreeMap<(bool, &PublicHost), Vec<Claim<'_>>> = BTreeMap::new();
        for (address, server) in &servers {
            for host in &server.hosts {
                let key = (host.wildcard_domain().is_some(), *host);
                let claim = Claim {
                    address: *address,
                    server,
                };
                claims.entry(key).or_default().push(claim);
            }
        }
        for ((_, host), claims) in claims {
            sites.settle(host, claims);
        }
        sites
    }

    /// Gives a host name to one of the services that ask for it.
    fn settle(&mut self, host: &PublicHost, claims: Vec<Claim<'_>>) {
        let first = claims.iter().min_by_key(|claim| claim.rank());
        let Some(first) = first.map(|claim| claim.server) else {
            return;
        };
        let is_own = |claim: &Claim<'_>| !claim.server.names.is_disjoint(&first.names);
        let (own, others): (Vec<_>, Vec<_>) = claims.into_iter().partition(is_own);
        let Some(kept) = known_name(&first.names) else {
            return;
        };
        self.sites.push(Site {
            host: host.clone(),
            service: kept.clone(),
            servers: best(&own),
        });
        if !others.is_empty() {
            let names = others
                .iter()
                .filter_map(|claim| known_name(&claim.server.names));
            let nodes = others.iter().map(|claim| &claim.server.member.name);
            self.disputed.push(Disputed {
                host: host.clone(),
                kept: kept.clone(),
                others: names.cloned().collect(),
                nodes: nodes.cloned().collect(),
            });
        }
    }
}

/// A program that serves host names. A container with several names in the DNS is one server.
struct Server<'a> {
    member: &'a Member,
    /// The services that it is an instance of.
    names: BTreeSet<ServiceName>,
    hosts: BTreeSet<&'a PublicHost>,
    standing: Standing,
    priority: u16,
}

/// Whether requests are sent to a server. A server with a later variant is used only if the site has no server with an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Usable,
    /// It is unhealthy, not ready yet, or not reached.
    Unusable,
    Draining,
}

impl Standing {
    fn of(instance: &Instance, is_reachable: bool) -> Self {
        match instance.health {
            Health::Draining => Self::Draining,
            health if health.is_usable() && is_reachable => Self::Usable,
            _ => Self::Unusable,
        }
    }
}

/// A server that asks for a host name.
struct Claim<'a> {
    address: SocketAddr,
    server: &'a Server<'a>,
}

impl Claim<'_> {
    fn rank(&self) -> (Rank, SocketAddr) {
        (self.server.member.rank(), self.address)
    }
}

/// The servers with host names, by the addresses at which they are reached. Adds the nodes with too many host names to `crowded`.
fn servers<'a>(
    netmap: &'a Netmap,
    is_reachable: impl Fn(&PublicKey) -> bool,
    crowded: &mut BTreeSet<Label>,
) -> BTreeMap<SocketAddr, Server<'a>> {
    let mut servers: BTreeMap<SocketAddr, Server<'a>> = BTreeMap::new();
    let mut hosts_of: BTreeMap<PublicKey, BTreeSet<&PublicHost>> = BTreeMap::new();
    for service in netmap.services.values() {
        let Some(member) = netmap.members.get(&service.node) else {
            continue;
        };
        for instance in service.instances.iter().filter(|i| !i.public.is_empty()) {
            let (Some(ip), Some(port)) = (instance.addresses.first(), web_port(&instance.ports))
            else {
                continue;
            };
            let standing = Standing::of(instance, is_reachable(&member.id));
            let address = SocketAddr::new(*ip, port.get());
            let server = servers.entry(address).or_insert_with(|| Server {
                member,
                names: BTreeSet::new(),
                hosts: BTreeSet::new(),
                standing,
                priority: instance.priority,
            });
            server.names.insert(service.service_name());
            server.standing = server.standing.min(standing);
            server.priority = server.priority.min(instance.priority);
            let held = hosts_of.entry(member.id).or_default();
            for host in &instance.public {
                if held.len() < MAX_HOSTS_OF_NODE || held.contains(host) {
                    held.insert(host);
                    server.hosts.insert(host);
                } else if !crowded.contains(&member.name) {
                    crowded.insert(member.name.clone());
                }
            }
        }
    }
    servers
}

/// The addresses of the servers with the best standing, and of these with the lowest priority.
fn best(claims: &[Claim<'_>]) -> Vec<SocketAddr> {
    let order = |claim: &Claim<'_>| (claim.server.standing, claim.server.priority);
    let best = claims.iter().map(order).min();
    let of_best = claims.iter().filter(|claim| Some(order(claim)) == best);
    let mut addresses: Vec<SocketAddr> = of_best.map(|claim| claim.address).collect();
    addresses.sort_unstable();
    addresses.truncate(MAX_SERVERS);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::UnixSeconds;
    use crate::records::kinds::Service;
    use crate::testbed::records as build;

    /// An instance of a service on a node.
    struct Offer {
        node: u8,
        service: &'static str,
        /// The last byte of its address.
        host: u8,
        health: Health,
        public: Vec<String>,
    }

    fn offer(node: u8, service: &'static str, host: u8, public: &[&str]) -> Offer {
        Offer {
            node,
            service,
            host,
            health: Health::Healthy,
            public: public.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// The map of a mesh of nodes with these offers. Nodes with a higher number joined later.
    fn netmap(offers: &[Offer]) -> Netmap {
        let mut netmap = Netmap::default();
        for offer in offers {
            let id = build::id(offer.node);
            let block = build::block(offer.node.into());
            let member = Member {
                issued_at: UnixSeconds(offer.node.into()),
                ..build::member(&id, &format!("n{}", offer.node), block)
            };
            netmap.members.insert(id, member);
            let name = ServiceName::parse(offer.service).expect("a literal");
            let record = Service::id_of(&id, name.project.as_ref(), &name.name);
            let service = netmap.services.entry(record).or_insert_with(|| Service {
                project: name.project.clone(),
                ..build::service(&id, name.name.as_str(), vec![])
            });
            let hosts = offer.public.iter().map(|host| PublicHost::parse(host));
            let address = [10, 210, offer.node, offer.host].into();
            service.instances.push(Instance {
                health: offer.health,
                public: hosts.collect::<Result<_, _>>().expect("literals"),
                ..build::instance(&format!("i{}", offer.host), vec![address])
            });
        }
        netmap
    }

    /// Each site as `host service servers`.
    fn sites(offers: &[Offer]) -> Vec<String> {
        let sites = Sites::of(&netmap(offers), |_| true).sites;
        let texts = sites.iter().map(|site| {
            let servers: Vec<String> = site.servers.iter().map(ToString::to_string).collect();
            format!("{} {} {}", site.host, site.service, servers.join(","))
        });
        texts.collect()
    }

    #[test]
    fn the_instances_of_all_nodes_serve_a_host_name_and_wildcards_come_last() {
        let found = sites(&[
            offer(1, "shop", 7, &["*.example.com", "shop.example.com"]),
            offer(2, "shop", 8, &["shop.example.com"]),
            offer(2, "db", 9, &[]),
        ]);
        assert_eq!(
            found,
            [
                "shop.example.com shop 10.210.1.7:80,10.210.2.8:80",
                "*.example.com shop 10.210.1.7:80",
            ]
        );
    }

    #[test]
    fn a_container_with_several_names_is_one_server_and_disputes_nothing() {
        let offers = [
            offer(1, "frontend.shop", 7, &["a.example"]),
            offer(1, "web", 7, &["a.example"]),
            // Another container of the project, without the label `mesh.service`.
            offer(1, "frontend.shop", 8, &["a.example"]),
        ];
        assert_eq!(
            sites(&offers),
            ["a.example web 10.210.1.7:80,10.210.1.8:80"]
        );
        assert_eq!(Sites::of(&netmap(&offers), |_| true).disputed, []);
    }

    #[test]
    fn a_host_name_stays_with_the_service_of_the_member_that_joined_first() {
        let offers = [
            offer(3, "aaa", 7, &["a.example"]),
            offer(2, "web", 7, &["a.example"]),
            offer(4, "web", 7, &["a.example"]),
            offer(3, "bbb", 8, &["a.example"]),
        ];
        assert_eq!(
            sites(&offers),
            ["a.example web 10.210.2.7:80,10.210.4.7:80"]
        );
        let disputed = Sites::of(&netmap(&offers), |_| true).disputed;
        let name = |text| ServiceName::parse(text).expect("a literal");
        assert_eq!(
            disputed,
            [Disputed {
                host: PublicHost::parse("a.example").expect("a literal"),
                kept: name("web"),
                others: [name("aaa"), name("bbb")].into(),
                nodes: [build::label("n3")].into(),
            }]
        );
    }

    #[test]
    fn requests_go_to_usable_servers_and_to_others_only_if_there_is_none() {
        let with = |first: Health, second: Health, reached: &[u8]| {
            let mut offers = [
                offer(1, "web", 7, &["a.example"]),
                offer(2, "web", 8, &["a.example"]),
            ];
            offers[0].health = first;
            offers[1].health = second;
            let reached: Vec<PublicKey> = reached.iter().map(|n| build::id(*n)).collect();
            let sites = Sites::of(&netmap(&offers), |node| reached.contains(node)).sites;
            let servers = sites[0].servers.iter().map(|server| match server.ip() {
                std::net::IpAddr::V4(address) => address.octets()[2],
                std::net::IpAddr::V6(_) => 0,
            });
            servers.collect::<Vec<u8>>()
        };
        assert_eq!(with(Health::Healthy, Health::Unknown, &[1, 2]), [1, 2]);
        assert_eq!(with(Health::Healthy, Health::Unhealthy, &[1, 2]), [1]);
        assert_eq!(with(Health::Healthy, Health::Healthy, &[2]), [2]);
        assert_eq!(with(Health::Draining, Health::Starting, &[1, 2]), [2]);
        assert_eq!(with(Health::Draining, Health::Draining, &[1, 2]), [1, 2]);
        assert_eq!(with(Health::Healthy, Health::Draining, &[]), [1]);
    }

    #[test]
    fn servers_of_a_higher_priority_wait_until_they_are_needed() {
        let mut netmap = netmap(&[
            offer(1, "web", 7, &["a.example"]),
            offer(2, "web", 8, &["a.example"]),
        ]);
        for service in netmap.services.values_mut() {
            let is_first = service.node == build::id(1);
            service.instances[0].priority = if is_first { 10 } else { 20 };
        }
        let of = |netmap: &Netmap| Sites::of(netmap, |_| true).sites[0].servers.clone();
        assert_eq!(of(&netmap), [SocketAddr::from(([10, 210, 1, 7], 80))]);
        for service in netmap.services.values_mut() {
            if service.node == build::id(1) {
                service.instances[0].health = Health::Unhealthy;
            }
        }
        assert_eq!(of(&netmap), [SocketAddr::from(([10, 210, 2, 8], 80))]);
    }

    #[test]
    fn requests_go_to_the_port_with_the_name_http_or_to_the_first_tcp_port() {
        let mut netmap = netmap(&[offer(1, "web", 7, &["a.example"])]);
        let mut port_of = |ports: &[(u16, Option<&str>)]| {
            for service in netmap.services.values_mut() {
                let ports = ports.iter().map(|(port, name)| build::port(*port, *name));
                service.instances[0].ports = ports.collect();
            }
            Sites::of(&netmap, |_| true).sites[0].servers[0].port()
        };
        assert_eq!(port_of(&[(9000, None), (8080, Some("http"))]), 8080);
        assert_eq!(port_of(&[(9000, Some("metrics")), (8080, None)]), 9000);
    }

    #[test]
    fn a_node_has_a_bound_of_host_names_and_takes_none_from_others() {
        let many: Vec<String> = (0..300).map(|n| format!("h{n:03}.example")).collect();
        let mut offers: Vec<Offer> = Vec::new();
        for (n, hosts) in many.chunks(8).enumerate() {
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            let last = 2 + u8::try_from(n).expect("few");
            offers.push(offer(1, "web", last, &hosts));
        }
        offers.push(offer(2, "shop", 7, &["shop.example"]));
        let found = Sites::of(&netmap(&offers), |_| true);
        assert_eq!(found.sites.len(), MAX_HOSTS_OF_NODE + 1);
        assert_eq!(found.crowded, BTreeSet::from([build::label("n1")]));
        let last = found.sites.last().expect("there are some");
        assert_eq!(last.host.as_str(), "shop.example");
    }
}
