//! The resolver of this node and its surroundings: where it listens, who may ask, which upstream servers it has, and which
//! programs of this machine send queries to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net};

use super::config::Config;
use super::dns_address;
use super::host::{self, Interface, ResolvConf, SplitDns};
use super::naming::NameLookups;
use super::resolv_conf::Keeper;
use super::resolved::{ResolvedLink, State};
use crate::dns::forward::Server;
use crate::dns::{Allowed, DnsServer, Resolver, TunnelDns, Upstream, Zone};
use crate::model::address::Block;
use crate::model::{HostName, Label, MeshAddresses};
use crate::protocol::local::Problem;
use crate::tunnel::Tunnel;

/// What the resolver has to know of the mesh and of this node.
#[derive(Debug, Clone)]
pub(super) struct ResolverScope {
    /// The addresses of the mesh.
    pub(super) addresses: MeshAddresses,
    /// The domain of the mesh.
    pub(super) domain: Label,
    /// The block of this node.
    pub(super) block: Block,
}

impl ResolverScope {
    fn split_dns(&self) -> SplitDns {
        SplitDns::new(&self.domain, &self.addresses)
    }

    fn own_addresses(&self) -> [IpAddr; 2] {
        self.block.node_addresses()
    }

    /// Returns who may ask for names: the mesh, the host and its containers. `bridges` are those that the engine reports for its
    /// networks. From any other network only this machine itself may ask, whatever name the interface has.
    fn allowed(
        &self,
        bridges: &BTreeMap<String, Vec<Ipv4Net>>,
        interfaces: &[Interface],
    ) -> Allowed {
        let loopback = ["127.0.0.0/8", "::1/128"].iter();
        let mut nets: Vec<IpNet> = loopback.filter_map(|net| net.parse().ok()).collect();
        nets.extend(bridges.values().flatten().copied().map(IpNet::V4));
        nets.extend(interfaces.iter().map(|interface| match interface.net {
            Some(net) if bridges.contains_key(&interface.name) => net.trunc(),
            _ => interface.address.into(),
        }));
        Allowed::new(nets).with_mesh(self.addresses, self.block)
    }
}

/// The resolver and its surroundings.
pub(super) struct NodeResolver {
    config: Arc<Config>,
    pub(super) upstream: Arc<Upstream>,
    allowed: Arc<ArcSwap<Allowed>>,
    /// None if the configuration turns it off.
    pub(super) dns: Option<Dns>,
    /// The problem while it cannot listen at all of the node's own addresses.
    refused: Option<Problem>,
    /// The lookups of names of services outside the mesh.
    pub(super) lookups: NameLookups,
}

/// The resolver at work.
pub(super) struct Dns {
    pub(super) resolver: Arc<Resolver>,
    /// At the DNS address, inside the tunnel device.
    pub(super) in_tunnel: Arc<TunnelDns>,
    /// On the node's own addresses.
    pub(super) server: DnsServer,
    /// Where the server is to listen.
    wanted: Vec<SocketAddr>,
    /// Configures systemd-resolved.
    resolved: Option<ResolvedLink>,
    /// Maintains /etc/resolv.conf.
    pub(super) keeper: Option<Keeper>,
}

impl NodeResolver {
    /// Starts to answer names of `zone` at the DNS address inside `tunnel`. [`NodeResolver::listen`] binds the other addresses.
    /// `interfaces` are the addresses of this machine, until [`NodeResolver::set_allowed`] is called.
    pub(super) fn start(
        config: Arc<Config>,
        scope: &ResolverScope,
        zone: &Arc<ArcSwap<Zone>>,
        tunnel: &Tunnel,
        interfaces: &[Interface],
    ) -> Self {
        let allowed = scope.allowed(&BTreeMap::new(), interfaces);
        let allowed = Arc::new(ArcSwap::from_pointee(allowed));
        let upstream = Arc::new(Upstream::new());
        let dns = config.dns.enabled.then(|| {
            let resolver = Arc::new(Resolver::new(
                Arc::clone(zone),
                Arc::clone(&allowed),
                Arc::clone(&upstream),
            ));
            Dns::start(&config, scope, resolver, tunnel)
        });
        Self {
            config,
            upstream,
            allowed,
            dns,
            refused: None,
            lookups: NameLookups::new(),
        }
    }

    /// Looks up the name of a service outside the mesh.
    pub(super) fn look_up(&self, name: HostName) {
        self.lookups.look_up(&self.upstream, name);
    }

    /// Listens at each address where it does not listen yet. An address that it cannot bind is a problem. The DNS address needs
    /// no socket. `has_ipv6` is whether the tunnel device has IPv6 addresses.
    pub(super) fn listen(&mut self, block: &Block, has_ipv6: bool) {
        let Some(dns) = &mut self.dns else { return };
        let v6 = IpAddr::V6(block.node_v6());
        let exists = |at: &&SocketAddr| at.ip() != v6 || has_ipv6;
        let wanted: Vec<SocketAddr> = dns.wanted.iter().filter(exists).copied().collect();
        let refused = dns.server.listen_on(&wanted);
        let [v4, _] = dns.in_tunnel.listen();
        let why: Vec<String> = refused.iter().map(ToString::to_string).collect();
        self.refused = (!refused.is_empty()).then(|| Problem {
            what: "names are not answered at all of this node's addresses".into(),
            why: why.join("; "),
            fix: format!(
                "nothing, if programs ask {}; else find out who listens with `ss -ulpn sport = :53`, and end it or keep it off the mesh's addresses",
                v4.ip()
            ),
        });
    }

    /// Sets the upstream servers: those of the configuration, or else those of this machine. Queries to the resolver itself
    /// would go round in a circle, so none of the machine's own addresses is used.
    pub(super) fn set_upstreams(&self, interfaces: &[Interface]) {
        let own = interfaces.iter().map(|i| i.address);
        let own = own.filter(|address| !address.is_loopback());
        let dns = self.dns.iter().flat_map(|dns| dns.in_tunnel.listen());
        let own = own.chain(dns.map(|at| at.ip())).collect();
        let servers = if self.config.dns.upstreams.is_empty() {
            let found = host::resolvers(&ResolvConf::new(&self.config.state_dir));
            found.into_iter().map(Server::from).collect()
        } else {
            self.config.dns.upstreams.clone()
        };
        self.upstream.set(&servers, &own);
    }

    /// Sets who may ask.
    pub(super) fn set_allowed(
        &self,
        scope: &ResolverScope,
        bridges: &BTreeMap<String, Vec<Ipv4Net>>,
        interfaces: &[Interface],
    ) {
        self.allowed
            .store(Arc::new(scope.allowed(bridges, interfaces)));
    }

    /// Configures systemd-resolved for a device that was made again, with this index: the settings belong to the index.
    pub(super) fn configure_device(&mut self, index: u32, scope: &ResolverScope) {
        if let Some(resolved) = self.dns.as_mut().and_then(|dns| dns.resolved.as_mut()) {
            *resolved = ResolvedLink::start(index, scope.split_dns());
        }
    }

    /// What is wrong with listening.
    pub(super) fn refused(&self) -> Option<Problem> {
        self.refused.clone()
    }

    /// What is wrong with the programs that send queries here.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let Some(dns) = &self.dns else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        problems.extend(dns.keeper.as_ref().and_then(Keeper::problem));
        problems.extend(dns.resolved.as_ref().and_then(ResolvedLink::problem));
        let is_absent = dns.resolved.as_ref().map(ResolvedLink::state) == Some(State::Absent);
        if is_absent && self.config.dns.require_resolved {
            problems.push(Problem {
                what: "systemd-resolved does not send names of the mesh here".into(),
                why: "there is no org.freedesktop.resolve1 on the system bus".into(),
                fix: "start systemd-resolved, or set `[dns] split_dns = \"auto\"`".into(),
            });
        }
        problems
    }

    /// Takes the settings of systemd-resolved back.
    pub(super) async fn stop(&mut self) {
        if let Some(resolved) = self.dns.as_mut().and_then(|dns| dns.resolved.as_mut()) {
            resolved.stop().await;
        }
    }
}

impl Dns {
    fn start(
        config: &Config,
        scope: &ResolverScope,
        resolver: Arc<Resolver>,
        tunnel: &Tunnel,
    ) -> Self {
        let own = scope.own_addresses();
        let wanted = own.iter().chain(&config.dns.listen);
        Self {
            in_tunnel: dns_address::answer_at(
                tunnel,
                Arc::clone(&resolver),
                scope.addresses,
                scope.block,
            ),
            server: DnsServer::new(Arc::clone(&resolver)),
            wanted: wanted.map(|ip| SocketAddr::new(*ip, 53)).collect(),
            resolved: config
                .dns
                .split_dns
                .then(|| ResolvedLink::start(tunnel.index(), scope.split_dns())),
            keeper: config.dns.manage_resolv_conf.then(|| {
                let runtime_dir = config.runtime_dir();
                let address = scope.addresses.dns_v4().into();
                Keeper::start(&config.state_dir, runtime_dir, address)
            }),
            resolver,
        }
    }

    /// Where it answers, the address that is the same on every node first.
    pub(super) fn listen(&self) -> Vec<SocketAddr> {
        let in_tunnel = self.in_tunnel.listen().into_iter();
        in_tunnel
            .chain(self.server.listen().iter().copied())
            .collect()
    }

    /// The program that sends names of the mesh here, and only these.
    pub(super) fn split_dns(&self) -> &'static str {
        match self.resolved.as_ref().map(ResolvedLink::state) {
            Some(State::Configured) => "systemd-resolved",
            Some(State::Absent | State::Refused(_)) | None => "none",
        }
    }
}
