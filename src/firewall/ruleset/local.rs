//! The policy between the containers of this host, and between them and the host. Pure.
//!
//! The rules are about each packet of a connection and not only about the first one, so a change of the policy ends established
//! connections. They name a container by its own address. They take the ends of a connection from connection tracking: the
//! source before translation, and the server that was chosen, whether the client asked for an instance address or for a service
//! address. Packets to the host's own mesh address are checked before they are translated, because the engine maps ports of that
//! address to containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use super::chains::chain;
use super::family::Family;
use super::noting;
use super::sets::set;
use crate::firewall::LocalPolicy;
use crate::model::Protocol;
use crate::policy::{Asked, PortSet};

/// The port of DNS (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// The addresses of one family on this host.
#[derive(Debug)]
pub(super) struct LocalAddresses {
    /// The prefix of the mesh.
    pub(super) prefix: IpNet,
    pub(super) node: IpAddr,
    /// The own addresses of the containers whose addresses are translated, by instance address.
    pub(super) mapped: BTreeMap<IpAddr, IpAddr>,
    /// The containers that have mesh addresses of their own.
    pub(super) natives: BTreeSet<IpAddr>,
}

/// What the policy allows on this host, by the addresses that packets of one family have here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::firewall) struct LocalRules {
    family: Family,
    prefix: IpNet,
    node: IpAddr,
    /// The addresses of the containers that are members of the mesh themselves. Every other source on this host is the node.
    members: BTreeSet<IpAddr>,
    /// The containers whose addresses are translated.
    mapped: BTreeSet<IpAddr>,
    /// What all other containers may ask of a container. Most rules are about many sources, and an element for each pair of containers
    /// would make the sets of a large host slow to load.
    from_members: BTreeMap<IpAddr, PortSet>,
    /// What one container may ask of another one beyond that.
    between: BTreeMap<(IpAddr, IpAddr), PortSet>,
    /// What the node may ask of a container.
    from_node: BTreeMap<IpAddr, PortSet>,
    /// What a container may ask of the node.
    to_node: BTreeMap<IpAddr, PortSet>,
}

impl LocalRules {
    /// The rules for a host. None if no container of the host has a mesh address of this family.
    pub(super) fn of(policy: &LocalPolicy, addresses: LocalAddresses) -> Option<Self> {
        let LocalAddresses {
            prefix,
            node,
            mapped,
            natives,
        } = addresses;
        let translated: BTreeSet<IpAddr> = mapped.values().copied().collect();
        let natives = natives.into_iter().map(|native| (native, native));
        let members: Vec<(IpAddr, IpAddr)> = mapped.into_iter().chain(natives).collect();
        if members.is_empty() {
            return None;
        }
        let mut rules = Self {
            family: Family::of(node),
            prefix,
            node,
            members: members.iter().map(|(_, container)| *container).collect(),
            mapped: translated,
            from_members: BTreeMap::new(),
            between: BTreeMap::new(),
            from_node: BTreeMap::new(),
            to_node: BTreeMap::new(),
        };
        for (instance, container) in &members {
            let ports = policy.between(node, *instance);
            rules.from_node.extend(ports.map(|p| (*container, p)));
            let ports = policy.between(*instance, node);
            rules.to_node.extend(ports.map(|p| (*container, p)));
            rules.add_server(policy, &members, (*instance, *container));
        }
        Some(rules)
    }

    /// Adds what the containers may ask of the one that is `server`, whose instance address is `to`. `members` are all of them by their
    /// instance addresses.
    fn add_server(
        &mut self,
        policy: &LocalPolicy,
        members: &[(IpAddr, IpAddr)],
        (to, server): (IpAddr, IpAddr),
    ) {
        let asked = |from: &IpAddr| policy.between(*from, to).unwrap_or_default();
        let asked = members.iter().map(|(from, client)| (*client, asked(from)));
        let asked: Vec<(IpAddr, PortSet)> = asked.collect();
        let others = asked.iter().filter(|(client, _)| *client != server);
        let by_all = common(others.map(|(_, ports)| ports));
        for (client, ports) in asked {
            // Everything is one element. Without the ports in `by_all` it would be several.
            let rest = if ports.is_everything() && !by_all.is_everything() {
                ports
            } else {
                ports.without(&by_all)
            };
            if !rest.is_empty() {
                self.between.insert((client, server), rest);
            }
        }
        if !by_all.is_empty() {
            self.from_members.insert(server, by_all);
        }
    }

    /// Whether a connection from `from` may go on. `to` is the address that the client asked for, and `server` the one that it was
    /// translated to. Connections with an end outside this host are not decided here.
    pub(in crate::firewall) fn allows<A: Into<IpAddr>>(
        &self,
        (from, to, server): (A, A, A),
        asked: Asked,
    ) -> bool {
        let (from, to, server) = (from.into(), to.into(), server.into());
        let is_member = self.members.contains(&from);
        let is_of_node = !self.prefix.contains(&from) || from == self.node;
        let ports = match (is_member, to == self.node) {
            _ if !self.prefix.contains(&to) => return true,
            (true, true) if matches!(asked, Asked::Port(_, DNS)) => return true,
            (true, true) => self.to_node.get(&from),
            (true, false) if self.members.contains(&server) => {
                let by_all = self.from_members.get(&server);
                if by_all.is_some_and(|ports| ports.contains(asked)) {
                    return true;
                }
                self.between.get(&(from, server))
            }
            (false, false) if is_of_node && self.mapped.contains(&server) => {
                self.from_node.get(&server)
            }
            _ => return true,
        };
        ports.is_some_and(|ports| ports.contains(asked))
    }

    /// The sets that the rules refer to.
    pub(super) fn sets(&self, text: &mut String) {
        let address = self.family.address();
        set(
            text,
            "set members",
            &format!("type {address}"),
            self.members.iter().map(ToString::to_string),
        );
        set(
            text,
            "set mapped",
            &format!("type {address}"),
            self.mapped.iter().map(ToString::to_string),
        );
        self.sets_of_servers(text, |_| true);
        let to_node = self.to_node.iter();
        let to_node = to_node.map(|(from, ports)| (from.to_string(), ports));
        Allowed::of(to_node).sets(text, "to_node", address);
        noting::sets(text, self.family);
    }

    /// The sets of what containers and the node may ask of containers. Only containers that `is_in` accepts are in them.
    fn sets_of_servers(&self, text: &mut String, is_in: impl Fn(&IpAddr) -> bool) {
        let address = self.family.address();
        let ends = format!("{address} . {address}");
        let between = self.between.iter();
        let between = between.filter(|((from, to), _)| is_in(from) && is_in(to));
        let between = between.map(|((from, to), ports)| (format!("{from} . {to}"), ports));
        Allowed::of(between).sets(text, "between", &ends);
        let from_members = self.from_members.iter().filter(|(to, _)| is_in(to));
        let from_members = from_members.map(|(to, ports)| (to.to_string(), ports));
        Allowed::of(from_members).sets(text, "from_members", address);
        let from_node = self.from_node.iter().filter(|(to, _)| is_in(to));
        let from_node = from_node.map(|(to, ports)| (to.to_string(), ports));
        Allowed::of(from_node).sets(text, "from_node", address);
    }

    /// The chains with the rules.
    pub(super) fn chains(&self, text: &mut String) {
        let (ip, icmp) = (self.family.ip(), self.family.icmp());
        // The ends of a connection, as connection tracking has them: the source, and the server after translation.
        let ends = format!("ct original {ip} saddr . ct reply {ip} saddr");
        let server = format!("ct reply {ip} saddr");
        let others = self.family.others();
        let mut rules = vec![
            format!("ct state related meta l4proto {icmp} return"),
            format!("ct direction reply {others} goto other_answers"),
        ];
        rules.extend(self.returns(&ends, "between"));
        rules.push(format!("ct original {ip} saddr @members goto from_members"));
        rules.extend(self.returns(&server, "from_node"));
        rules.push("goto prohibited".into());
        chain(text, "local_policy", "", &rules);
        let mut rules = self.returns(&server, "from_members").to_vec();
        rules.push("goto prohibited".into());
        chain(text, "from_members", "", &rules);
        chain(text, "other_answers", "", &self.other_answers());
        // With br_netfilter, which Docker loads, the kernel does not translate a reset, so the client would ignore it. It does translate
        // an ICMP error. Such an error ends an attempt to connect at once, but no established connection.
        let mut prohibited = noting::connections(self.family).to_vec();
        prohibited.extend([
            "tcp flags & (syn | ack) != syn reject with tcp reset".to_owned(),
            format!("reject with {icmp} type admin-prohibited"),
        ]);
        chain(text, "prohibited", "", &prohibited);
        let hook = "filter hook prerouting priority -150";
        chain(text, "to_node", hook, &self.asked_of_node());
    }

    /// The rules about what containers ask of the node.
    fn asked_of_node(&self) -> Vec<String> {
        let (ip, icmp, others) = (self.family.ip(), self.family.icmp(), self.family.others());
        let mut rules = vec![
            format!("{ip} daddr != {} accept", self.node),
            format!("{ip} saddr != @members accept"),
            format!("ct direction reply meta l4proto {{ {icmp}, tcp, udp }} accept"),
            // The node resolves names for its containers.
            format!("meta l4proto {{ tcp, udp }} th dport {DNS} accept"),
            format!("{icmp} type != echo-request accept"),
            format!("{ip} saddr @to_node_all accept"),
            format!("{ip} saddr . meta l4proto . th dport @to_node_ports accept"),
            format!("{icmp} type echo-request {ip} saddr @to_node_pings accept"),
            format!("{others} {ip} saddr @to_node_others accept"),
        ];
        rules.extend(noting::packets(self.family));
        // Older kernels cannot reject here.
        rules.push("drop".to_owned());
        rules
    }

    /// The rules about answers of protocols without ports. As in the tunnel they need a rule of their own, because the kernel takes for an
    /// answer whatever the server sends to the client. So the server is the one that asks here.
    fn other_answers(&self) -> [String; 7] {
        let ip = self.family.ip();
        let (client, server) = (
            format!("ct original {ip} saddr"),
            format!("ct reply {ip} saddr"),
        );
        [
            format!("{server} . {client} @between_all return"),
            format!("{server} . {client} @between_others return"),
            format!("{server} @members {client} @from_members_all return"),
            format!("{server} @members {client} @from_members_others return"),
            format!("{client} != @members {server} @to_node_all return"),
            format!("{client} != @members {server} @to_node_others return"),
            "goto prohibited".to_owned(),
        ]
    }

    /// The sets and the chain for the table of bridges. Empty if no container has a mesh address of its own, which is an IPv4 address.
    pub(super) fn bridged(&self) -> String {
        let mut text = String::new();
        let natives: BTreeSet<&IpAddr> = self.members.difference(&self.mapped).collect();
        if natives.is_empty() {
            return text;
        }
        let elements = natives.iter().map(ToString::to_string);
        set(&mut text, "set natives", "type ipv4_addr", elements);
        self.sets_of_servers(&mut text, |container| natives.contains(container));
        noting::sets(&mut text, self.family);
        chain(
            &mut text,
            "local_policy",
            "filter hook forward priority 0",
            &BRIDGED.map(str::to_owned),
        );
        let mut prohibited = noting::packets(self.family).to_vec();
        prohibited.push("drop".to_owned());
        chain(&mut text, "prohibited", "", &prohibited);
        text
    }

    /// The rules that return if the policy allows a packet between the ends `key`, by the sets of this name.
    fn returns(&self, key: &str, name: &str) -> [String; 5] {
        let (icmp, others) = (self.family.icmp(), self.family.others());
        [
            format!("{key} @{name}_all return"),
            format!("ct direction original {key} . meta l4proto . th dport @{name}_ports return"),
            format!("ct direction reply {key} . meta l4proto . th sport @{name}_ports return"),
            format!("{icmp} type {{ echo-request, echo-reply }} {key} @{name}_pings return"),
            format!("{others} {key} @{name}_others return"),
        ]
    }

    /// The rules about packets that are forwarded.
    pub(super) fn passing(&self, interface: &str) -> Vec<String> {
        let Self { prefix, node, .. } = self;
        let ip = self.family.ip();
        let stays = format!("iifname != \"{interface}\" oifname != \"{interface}\"");
        vec![
            format!(
                "{stays} ct original {ip} daddr {prefix} ct original {ip} daddr != {node} jump local_policy"
            ),
            // Packets that belong to no connection are not translated, so they reach only containers that have mesh addresses.
            format!("{stays} {ip} daddr {prefix} ct state {{ invalid, untracked }} drop"),
        ]
    }

    /// The rule about packets that the host itself sends. It matches no answers, because the resets by which the host refuses packets
    /// are answers. It does not match packets to containers that have mesh addresses of their own, because this node checks their
    /// health at these addresses.
    pub(super) fn sent_by_host(&self) -> String {
        let (ip, prefix) = (self.family.ip(), self.prefix);
        format!(
            "ct direction original ct original {ip} daddr {prefix} ct reply {ip} saddr @mapped jump local_policy"
        )
    }
}

/// The rules for containers on one bridge that have mesh addresses of their own. Packets between them do not pass through the host. A
/// container there that is no member counts as the node. There is no connection tracking for bridges. So TCP is checked as in the
/// tunnel, and a server may send datagrams to a client from each port that the client may reach.
const BRIDGED: [&str; 26] = [
    "ether type != ip accept",
    "ip daddr != @natives accept",
    "tcp flags & (syn | ack) != syn ip saddr != @natives accept",
    "meta l4proto icmp icmp type != echo-request accept",
    "ip saddr . ip daddr @between_all accept",
    "ip saddr . ip daddr . meta l4proto . th dport @between_ports accept",
    "tcp flags & (syn | ack) != syn ip daddr . ip saddr . meta l4proto . th sport @between_ports accept",
    "tcp flags & (syn | ack) != syn ip daddr . ip saddr @between_all accept",
    "meta l4proto udp ip daddr . ip saddr . meta l4proto . th sport @between_ports accept",
    "meta l4proto udp ip daddr . ip saddr @between_all accept",
    "icmp type echo-request ip saddr . ip daddr @between_pings accept",
    "meta l4proto != { icmp, tcp, udp } ip saddr . ip daddr @between_others accept",
    "ip saddr @natives ip daddr @from_members_all accept",
    "ip saddr @natives ip daddr . meta l4proto . th dport @from_members_ports accept",
    "tcp flags & (syn | ack) != syn ip saddr . meta l4proto . th sport @from_members_ports accept",
    "tcp flags & (syn | ack) != syn ip saddr @from_members_all accept",
    "meta l4proto udp ip saddr . meta l4proto . th sport @from_members_ports accept",
    "meta l4proto udp ip saddr @from_members_all accept",
    "icmp type echo-request ip saddr @natives ip daddr @from_members_pings accept",
    "meta l4proto != { icmp, tcp, udp } ip saddr @natives ip daddr @from_members_others accept",
    "ip saddr @natives goto prohibited",
    "ip daddr @from_node_all accept",
    "ip daddr . meta l4proto . th dport @from_node_ports accept",
    "icmp type echo-request ip daddr @from_node_pings accept",
    "meta l4proto != { icmp, tcp, udp } ip daddr @from_node_others accept",
    "goto prohibited",
];

/// The ports that are in all of `sets`. Nothing if these are fewer than two, because then no element is saved.
fn common<'a>(mut sets: impl Iterator<Item = &'a PortSet>) -> PortSet {
    let both = |a: &PortSet, b: &PortSet| a.without(&a.without(b));
    match (sets.next(), sets.next()) {
        (Some(one), Some(other)) => sets.fold(both(one, other), |all, set| both(&all, set)),
        _ => PortSet::nothing(),
    }
}

/// The elements of the sets for one kind of ends, for example for the node and a container.
#[derive(Default)]
struct Allowed {
    /// The ends between which all packets pass.
    all: Vec<String>,
    ports: Vec<String>,
    pings: Vec<String>,
    others: Vec<String>,
    has_ranges: bool,
}

impl Allowed {
    fn of<'a>(pairs: impl Iterator<Item = (String, &'a PortSet)>) -> Self {
        let mut allowed = Self::default();
        for (ends, ports) in pairs {
            if ports.is_everything() {
                allowed.all.push(ends);
                continue;
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for range in ports.ranges(protocol) {
                    let mut element = format!("{ends} . {} . {}", protocol.as_str(), range.start());
                    if range.start() < range.end() {
                        let _ = write!(element, "-{}", range.end());
                        allowed.has_ranges = true;
                    }
                    allowed.ports.push(element);
                }
            }
            if ports.contains(Asked::Icmp) {
                allowed.pings.push(ends.clone());
            }
            if ports.contains(Asked::Other) {
                allowed.others.push(ends);
            }
        }
        allowed
    }

    fn sets(self, text: &mut String, name: &str, ends: &str) {
        let keys = format!("type {ends}");
        set(
            text,
            &format!("set {name}_all"),
            &keys,
            self.all.into_iter(),
        );
        let flags = if self.has_ranges {
            "; flags interval"
        } else {
            ""
        };
        let ports = format!("type {ends} . inet_proto . inet_service{flags}");
        set(
            text,
            &format!("set {name}_ports"),
            &ports,
            self.ports.into_iter(),
        );
        set(
            text,
            &format!("set {name}_pings"),
            &keys,
            self.pings.into_iter(),
        );
        set(
            text,
            &format!("set {name}_others"),
            &keys,
            self.others.into_iter(),
        );
    }
}
